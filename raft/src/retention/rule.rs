//! What is due, as a function of where the log stands.

/// Log since the last snapshot that makes one due, unless half of the snapshot is more.
pub const SNAPSHOT_BYTES: u64 = 64 << 20;
/// Log that is kept behind a snapshot, in bytes and in entries; whichever is less.
pub const KEEP_BYTES: u64 = 64 << 20;
pub const KEEP_ENTRIES: u64 = 200_000;
/// Log that is kept for other nodes, and for the older snapshot, at most. A node that is further behind gets a snapshot, however
/// often.
pub const HOLD_BYTES: u64 = 1 << 30;

/// Where the log stands, as the rule sees it. Indexes are those of the last entry that counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    pub applied: u64,
    /// Covered by the newest snapshot; `None` without one.
    pub snapshot: Option<u64>,
    pub snapshot_bytes: u64,
    /// Entries up to this one are purged.
    pub purged: Option<u64>,
    pub bytes_since_snapshot: u64,
    /// The lowest index from which on there are [`KEEP_BYTES`] up to the snapshot.
    pub keep_from: u64,
    /// Entries from this one on are kept: for another node, or to go on from the older snapshot.
    pub held_from: Option<u64>,
    pub is_sending: bool,
    /// This node's place among all nodes by id, and how many there are.
    pub turn: (u64, u64),
}

/// What follows from it.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// A count of entries that bounds both, for many tiny ones (each costs its place in memory), and for tests.
    pub snapshot_every: u64,
}

impl Rule {
    pub fn is_due(self, look: &Look) -> bool {
        let (turn, nodes) = look.turn;
        // The last one waits half as long again as the first.
        let staggered = |bound: u64| bound + bound / 2 * turn / nodes.max(1);
        let entries = look.snapshot.map_or(look.applied, |snapshot| look.applied.saturating_sub(snapshot));
        let bytes = SNAPSHOT_BYTES.max(look.snapshot_bytes / 2);
        let long = look.bytes_since_snapshot >= staggered(bytes) || entries >= staggered(self.snapshot_every);
        let may = !look.is_sending || look.bytes_since_snapshot >= HOLD_BYTES;
        entries > 0 && long && may
    }

    /// The last entry to purge, if there is something to purge.
    pub fn purge_upto(self, look: &Look) -> Option<u64> {
        let snapshot = look.snapshot?;
        let entries = KEEP_ENTRIES.min(self.snapshot_every);
        let first = look.keep_from.max((snapshot + 1).saturating_sub(entries)).min(snapshot + 1);
        let upto = first.min(look.held_from.unwrap_or(first)).checked_sub(1)?;
        look.purged.is_none_or(|purged| upto > purged).then_some(upto)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: Rule = Rule { snapshot_every: 1 << 30 };

    #[test]
    fn a_snapshot_is_due_by_bytes_of_log_and_large_ones_are_rarer() {
        let look = |since, size| Look {
            applied: 900,
            snapshot: Some(100),
            bytes_since_snapshot: since,
            snapshot_bytes: size,
            turn: (0, 3),
            ..Look::default()
        };
        assert!(!MANY.is_due(&look(SNAPSHOT_BYTES - 1, 0)));
        assert!(MANY.is_due(&look(SNAPSHOT_BYTES, 0)));
        assert!(!MANY.is_due(&look(SNAPSHOT_BYTES, 1 << 30)));
        assert!(MANY.is_due(&look(1 << 29, 1 << 30)));
        assert!(Rule { snapshot_every: 800 }.is_due(&look(1, 0)));
        assert!(!Rule { snapshot_every: 801 }.is_due(&look(1, 0)));
        let nothing_new = Look { applied: 100, ..look(SNAPSHOT_BYTES, 0) };
        assert!(!MANY.is_due(&nothing_new));
    }

    #[test]
    fn nodes_take_turns() {
        let due = |turn, bytes| {
            MANY.is_due(&Look { applied: 9, bytes_since_snapshot: bytes, turn: (turn, 3), ..Look::default() })
        };
        assert!(due(0, SNAPSHOT_BYTES) && !due(1, SNAPSHOT_BYTES) && !due(2, SNAPSHOT_BYTES + SNAPSHOT_BYTES / 6));
        assert!((0..3).all(|turn| due(turn, SNAPSHOT_BYTES * 3 / 2)));
    }

    #[test]
    fn while_one_is_sent_no_other_is_written_within_bounds() {
        let look = |since| Look { applied: 9, bytes_since_snapshot: since, is_sending: true, ..Look::default() };
        assert!(!MANY.is_due(&look(HOLD_BYTES - 1)));
        assert!(MANY.is_due(&look(HOLD_BYTES)));
    }

    #[test]
    fn the_log_keeps_a_stretch_behind_a_snapshot_and_what_is_held() {
        let look = Look { applied: 5000, snapshot: Some(4000), keep_from: 3000, purged: Some(10), ..Look::default() };
        assert_eq!(MANY.purge_upto(&look), Some(2999));
        assert_eq!(Rule { snapshot_every: 300 }.purge_upto(&look), Some(3700));
        assert_eq!(MANY.purge_upto(&Look { held_from: Some(51), ..look }), Some(50));
        assert_eq!(MANY.purge_upto(&Look { held_from: Some(11), ..look }), None);
        assert_eq!(MANY.purge_upto(&Look { held_from: Some(0), purged: None, ..look }), None, "nor its first entry");
        assert_eq!(MANY.purge_upto(&Look { held_from: Some(4500), ..look }), Some(2999));
        assert_eq!(MANY.purge_upto(&Look { purged: Some(2999), ..look }), None);
        assert_eq!(MANY.purge_upto(&Look { snapshot: None, ..look }), None);
        assert_eq!(MANY.purge_upto(&Look { keep_from: 0, ..look }), None, "all of it is little");
        // Not even when nothing of it were to be kept is more purged than the snapshot covers.
        assert_eq!(Rule { snapshot_every: 0 }.purge_upto(&Look { keep_from: 9999, ..look }), Some(4000));
    }
}
