//! Room on the disk, before there is none.
//!
//! A log that cannot be written ends its node, so a node that is short of room stops taking things on while it still can
//! choose: it refuses proposals, gives leadership away and is not ready, and it goes on by itself once there is room again. What
//! its leader replicates it takes to the end: a follower that refused entries would only make the others wait for it.
//!
//! What always holds: between the two bounds nothing changes, so a node at the edge does not flicker. Opening has to write
//! (an incarnation, sled's own files), so a [reserve](RESERVE_BYTES) is kept in the data folder that a start on a full disk gives up.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    disk,
    error::{Error, Result},
    store::Store,
};

/// A file system that is fuller than this many percent is full; the root user's share counts as used.
pub const FULL_PERCENT: u64 = 90;
/// One that is less full than this has room again.
pub const ROOM_PERCENT: u64 = 85;
/// A file system with so many bytes left is not full, however large it is: a tenth of a large disk is more than a node ever
/// writes.
const PLENTY_BYTES: u64 = 4 << 30;
/// Bytes of the file that a start gives up when the disk is full.
pub const RESERVE_BYTES: u64 = 4 << 20;

const RESERVE: &str = "reserve";
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A full leader that was elected again gives leadership away no more often: all others may be as full.
const HAND_OVER_EVERY: Duration = Duration::from_secs(30);

/// What is known of the room on the data folder's file system. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Space(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    full: watch::Sender<bool>,
}

impl Space {
    /// Looks at once, and gives the reserve up if there is no room.
    ///
    /// # Errors
    /// `Fatal` when the file system cannot be asked.
    pub fn open(dir: &Path) -> Result<Self> {
        let full = used_percent(dir, 0).map_err(|e| disk::failed("ask for the room in", dir, &e))? > FULL_PERCENT;
        if full && fs::remove_file(dir.join(RESERVE)).is_ok() {
            tracing::warn!("the disk is full: its reserve is given up to start with");
        }
        Ok(Self(Arc::new(Inner { dir: dir.to_path_buf(), full: watch::channel(full).0 })))
    }

    /// Why nothing is taken on, if so.
    pub fn full(&self) -> Option<String> {
        self.0.full.borrow().then(|| {
            format!(
                "the disk of this node's data folder {} is more than {FULL_PERCENT} % full: make room until it is below \
                 {ROOM_PERCENT} %, or {} GiB are left; then the node goes on by itself",
                self.0.dir.display(),
                PLENTY_BYTES >> 30
            )
        })
    }

    /// `Unavailable` while the disk is full.
    pub fn check(&self) -> Result<()> {
        self.full().map_or(Ok(()), |why| Err(Error::unavailable(why)))
    }

    /// Looks for ever.
    pub async fn run(&self, store: &Store) {
        let mut given: Option<Instant> = None;
        loop {
            let space = self.clone();
            // A file system that hangs must not hang anything else.
            if let Err(e) = tokio::task::spawn_blocking(move || space.look()).await {
                tracing::error!("the room on the disk cannot be looked at: {e}");
            }
            let full = *self.0.full.borrow();
            if full && store.leads() && given.is_none_or(|at| at.elapsed() >= HAND_OVER_EVERY) {
                given = Some(Instant::now());
                tracing::warn!("leadership goes to a node whose disk may have room");
                store.hand_over().await;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn look(&self) {
        let used = match used_percent(&self.0.dir, 0) {
            Ok(used) => used,
            Err(e) => return tracing::warn!("the room in {} cannot be told: {e}", self.0.dir.display()),
        };
        let was = *self.0.full.borrow();
        let full = is_full(was, used);
        if full != was {
            self.0.full.send_replace(full);
            match self.full() {
                Some(why) => tracing::error!("{why}"),
                None => tracing::info!("the disk has room again"),
            }
        }
        // Not where it would bring the next alarm about.
        let has_room = || used_percent(&self.0.dir, RESERVE_BYTES).is_ok_and(|used| used < ROOM_PERCENT);
        if !full
            && !has_reserve(&self.0.dir)
            && has_room()
            && let Err(e) = make_reserve(&self.0.dir.join(RESERVE))
        {
            tracing::warn!("there is no reserve for a start on a full disk: {e}");
        }
    }
}

/// Fuller than the upper bound, or not yet below the lower one.
fn is_full(was: bool, used: u64) -> bool {
    used > FULL_PERCENT || (was && used >= ROOM_PERCENT)
}

/// How full the file system would be with so many bytes more, of what this user may use; 0 while there is plenty.
fn used_percent(dir: &Path, more: u64) -> io::Result<u64> {
    let found = rustix::fs::statvfs(dir)?;
    if found.f_bavail.saturating_mul(found.f_frsize) >= more.saturating_add(PLENTY_BYTES) {
        return Ok(0);
    }
    let used = found.f_blocks.saturating_sub(found.f_bfree);
    let all = used + found.f_bavail;
    Ok((100 * (used + more / found.f_frsize.max(1))).div_ceil(all.max(1)))
}

fn has_reserve(dir: &Path) -> bool {
    fs::metadata(dir.join(RESERVE)).is_ok_and(|found| found.len() == RESERVE_BYTES)
}

/// Written, not only declared: holes would reserve nothing.
fn make_reserve(path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    let made = file.write_all(&vec![0; RESERVE_BYTES as usize]).and_then(|()| file.sync_data());
    if made.is_err() {
        _ = fs::remove_file(path);
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_the_bounds_nothing_changes() {
        let mut full = false;
        let seen = [50, 86, 90, 91, 99, 90, 86, 85, 84, 90].map(|used| {
            full = is_full(full, used);
            full
        });
        assert_eq!(seen, [false, false, false, true, true, true, true, true, false, false]);
    }

    #[test]
    fn a_reserve_that_was_cut_short_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(RESERVE);
        fs::write(&path, b"cut short").unwrap();
        assert!(!has_reserve(dir.path()));
        make_reserve(&path).unwrap();
        assert!(has_reserve(dir.path()));
        let used = used_percent(dir.path(), 0).unwrap();
        assert!(used <= 100 && used_percent(dir.path(), 1 << 50).unwrap() > 100);
    }
}
