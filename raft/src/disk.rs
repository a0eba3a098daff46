//! Small files that must survive a power cut: written aside, synced, renamed, the folder synced. Locks that are held for a
//! moment. And room for large ones.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::error::{Error, Result};

/// What a large file leaves, by estimate, to the log and the checkpoints that are written beside it.
const BESIDE_BYTES: u64 = 64 << 20;
/// How often is looked whether a lock was let go.
const LOOK: Duration = Duration::from_millis(5);

/// Replaces `path` by these bytes, readable by this user alone, or leaves it as it was; never a mix, also after a power
/// cut.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".tmp");
    let write = || {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&aside, path)
    };
    write().map_err(|e| failed("write", path, &e))?;
    sync_parent(path)
}

/// Makes a creation, renaming or removal in the folder of `path` durable.
pub fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(|e| failed("sync", parent, &e))
}

/// Opens or locks what may be locked for a moment: a process that is being started holds its parent's files until it runs its
/// own program, and one that was killed its own. `WouldBlock` when it is locked for longer than that. Blocks.
pub fn unlocked<T>(within: Duration, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let began = Instant::now();
    loop {
        match open() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && began.elapsed() < within => thread::sleep(LOOK),
            opened => return opened,
        }
    }
}

/// An I/O error as the node has to see it: final, with the path in it.
pub fn failed(what: &str, path: &Path, error: &io::Error) -> Error {
    Error::fatal(format!("cannot {what} {}: {error}", path.display()))
}

/// Whether so many bytes find room, and leave some.
///
/// # Errors
/// `Unavailable` when they do not. Where the file system cannot be asked, whoever writes will find out.
pub fn check_room(dir: &Path, bytes: u64) -> Result<()> {
    let left = rustix::fs::statvfs(dir).map_or(u64::MAX, |found| found.f_bavail.saturating_mul(found.f_frsize));
    if left >= bytes.saturating_add(BESIDE_BYTES) {
        return Ok(());
    }
    Err(Error::unavailable(format!(
        "it may take {} MiB, and {} MiB are left for it and all else: make room",
        bytes >> 20,
        left >> 20
    )))
}
