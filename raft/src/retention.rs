//! When a snapshot is written, and how much of the log is kept behind it.
//!
//! A snapshot is due by the log that a start would have to apply, not by a count of entries alone: after `max(64 MiB, half of
//! the last snapshot)`. So it costs at most twice what the log cost, and a small cluster rarely writes one. The nodes take
//! turns, staggered by id.
//!
//! What always holds:
//!
//! * What is purged lies in a snapshot file that is synced and named. (openraft keeps to the snapshot that it knows; this
//!   looks at the folder, too.)
//! * The log reaches back to the older of the two snapshots that are kept, or to its beginning while there is one, unless that is
//!   very far: should the newest be damaged when the checkpoint is, a start goes on from there.
//! * A good stretch of log stays behind each snapshot: a node that restarts catches up from it and needs no snapshot.
//! * While a snapshot is on its way to a node, no other is written, and nothing behind it is purged; nor what a node that
//!   answers has still to get. Otherwise a slow node would never arrive: each snapshot would be too old when it is there.
//!   This patience is bounded, in time and in bytes of log.
//! * A snapshot that is damaged is not sent for ever: when somebody does not take it, its file is looked at, and written anew.
//! * A snapshot that would find no room is not begun: it would be written for nothing, and take from the log what is left. The
//!   log grows meanwhile, until there is room again or the disk counts as full: see `space`.

mod rule;

use std::{future, sync::Arc, time::Duration};

use tokio::{
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval},
};

use self::rule::{HOLD_BYTES, KEEP_BYTES, Look, Rule};
use crate::{
    base::Point,
    command::NodeId,
    consensus::Consensus,
    disk::check_room,
    error::{Error, Result},
    log::Log,
    net::Transfers,
    snapshot::{self, Snapshots},
};

/// A transfer that takes longer holds nothing up any more.
const HOLD_TIME: Duration = Duration::from_secs(15 * 60);
/// A node that was heard of within this time is waited for.
const HEARD_WITHIN: Duration = Duration::from_secs(5);

const TICK: Duration = Duration::from_millis(200);
/// A snapshot that was asked for and did not come is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// One of which the file was looked at is not looked at again so soon: who does not take it may be at fault.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// That there is no room is said no more often.
const SAY_AGAIN: Duration = Duration::from_secs(60);

pub(crate) struct Retention {
    pub node: NodeId,
    pub consensus: Consensus,
    pub log: Log,
    pub snapshots: Snapshots,
    pub transfers: Arc<Transfers>,
    /// Entries after which a snapshot is due however few bytes they have, and which the log keeps behind the newest at most, but for
    /// what it is held for.
    pub snapshot_every: u64,
}

/// The folder, as it was when Raft came to know of the newest snapshot.
#[derive(Clone, Copy)]
struct Files {
    /// The index that Raft knows.
    newest: u64,
    bytes: u64,
    /// Covered by the one before it.
    older: Option<u64>,
}

/// What it did and saw before, each with the time.
#[derive(Default)]
struct Past {
    files: Option<Files>,
    /// A snapshot that was asked for: what was applied then.
    asked: Option<(u64, Instant)>,
    /// A file that was looked at: the index that it covers.
    looked: Option<(u64, Instant)>,
    /// That there is no room.
    said: Option<Instant>,
}

impl Retention {
    pub async fn run(self) {
        let rule = Rule { snapshot_every: self.snapshot_every };
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut past = Past::default();
        loop {
            tick.tick().await;
            if let Some(index) = self.transfers.take_doubted() {
                self.doubt(index, &mut past).await;
            }
            let look = self.look(&mut past.files);
            if rule.is_due(&look) {
                self.write(&look, &mut past).await;
            }
            if let Some(upto) = rule.purge_upto(&look) {
                tracing::debug!(upto, ?look, "the log is purged");
                // Errors: Raft has stopped, and says so elsewhere.
                _ = self.consensus.raft.trigger().purge_log(upto).await;
            }
        }
    }

    /// Unless one is being written, or there is no room.
    async fn write(&self, look: &Look, past: &mut Past) {
        let waiting = past.asked.is_some_and(|(at, when)| look.snapshot < Some(at) && when.elapsed() < ASK_AGAIN);
        if waiting {
            return;
        }
        match check_room(self.snapshots.dir(), look.snapshot_bytes + look.bytes_since_snapshot) {
            Ok(()) => {
                past.asked = Some((look.applied, Instant::now()));
                _ = self.consensus.raft.trigger().snapshot().await;
            }
            Err(why) if past.said.is_none_or(|when| when.elapsed() >= SAY_AGAIN) => {
                past.said = Some(Instant::now());
                tracing::warn!("a snapshot is due, and not written, so the log grows: {}", why.why());
            }
            Err(_) => {}
        }
    }

    /// Somebody did not take the snapshot that covers that index.
    async fn doubt(&self, index: u64, past: &mut Past) {
        if past.looked.is_some_and(|(at, when)| at == index && when.elapsed() < LOOK_AGAIN) {
            return;
        }
        past.looked = Some((index, Instant::now()));
        if let Err(e) = self.mend(index).await {
            tracing::warn!("the damaged snapshot is not replaced: {}", e.why());
        }
    }

    /// Writes another snapshot if the newest, which covers that index, is damaged.
    async fn mend(&self, index: u64) -> Result<()> {
        let newest = self.snapshots.newest_header().filter(|(_, point)| point.index() == Some(index));
        let Some((path, Point { applied, .. })) = newest else { return Ok(()) };
        let file = path.clone();
        let checked = spawn_blocking(move || snapshot::check(&file, applied)).await.map_err(Error::fatal)?;
        let Err(why) = checked else { return Ok(()) };
        tracing::error!("the newest snapshot is damaged, and another is written: {}", why.why());
        let bytes = path.metadata().map_or(0, |found| found.len()) + self.log.bytes_after(index);
        check_room(self.snapshots.dir(), bytes)?;
        let written = self.consensus.raft.with_state_machine(|machine| Box::pin(future::ready(machine.snapshot())));
        let (mended, _) = written.await.map_err(Error::unavailable)?.await?;
        // Only now: openraft ends a node that has none to send.
        if mended != path { self.snapshots.set_aside(&path) } else { Ok(()) }
    }

    fn look(&self, files: &mut Option<Files>) -> Look {
        let metrics = self.consensus.metrics();
        let known = metrics.snapshot.map(|id| id.index);
        if let Some(newest) = known.filter(|index| files.is_none_or(|files| files.newest != *index)) {
            *files = self.files().filter(|files| files.newest >= newest).map(|files| Files { newest, ..files });
        }
        let snapshot = files.map(|files| files.newest);
        let purged = metrics.purged.map(|id| id.index);
        let sending = self.transfers.oldest(HOLD_TIME);
        let behind = metrics.replication.iter().flatten().filter(|(node, _)| {
            **node != self.node && self.consensus.heard_of(**node).is_some_and(|at| at.elapsed() < HEARD_WITHIN)
        });
        // Who is behind what is purged already waits for a snapshot: `sending` speaks for it.
        let matched = behind.filter_map(|(_, matched)| matched.map(|id| id.index)).filter(|at| Some(*at) >= purged);
        // Without an older snapshot it is the beginning of the log that a start can go on from.
        let spare = files.map(|files| files.older.map_or(0, |index| index + 1));
        let held = sending.into_iter().chain(matched).map(|index| index + 1).chain(spare);
        let members = self.consensus.members();
        let turn = members.iter().filter(|(node, _)| *node < self.node).count();
        Look {
            applied: metrics.last_applied.map_or(0, |id| id.index),
            snapshot,
            snapshot_bytes: files.map_or(0, |files| files.bytes),
            purged,
            bytes_since_snapshot: snapshot.map_or_else(|| self.log.bytes_in_all(), |index| self.log.bytes_after(index)),
            keep_from: snapshot.map_or(0, |index| self.log.reach_back(index, KEEP_BYTES)),
            held_from: held.filter(|first| self.log.bytes_after(first.saturating_sub(1)) < HOLD_BYTES).min(),
            is_sending: sending.is_some(),
            turn: (turn as u64, members.len() as u64),
        }
    }

    fn files(&self) -> Option<Files> {
        let mut headers = self.snapshots.headers();
        let (path, point) = headers.next()?;
        let older = headers.next().and_then(|(_, point)| point.index());
        Some(Files { newest: point.index()?, bytes: path.metadata().ok()?.len(), older })
    }
}
