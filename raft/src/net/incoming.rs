//! The file of a snapshot on its way in.
//!
//! What always holds: there is one at most; it has the name of a whole one only when it is whole; and a part outlives the
//! process only while its snapshot is of more than the node has.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use super::SnapshotFile;
use crate::{
    error::{Error, Result},
    wire::WireSnapshotMeta,
};

/// How the names of files begin that have not arrived as a whole.
const PARTIAL: &str = "incoming-partial-";

/// A file being received. It stays when the transfer breaks, and there is only one.
pub(super) struct Incoming {
    pub path: PathBuf,
    pub file: File,
}

impl Incoming {
    /// The file of this snapshot, with what an earlier transfer left in it. Those of others go.
    pub fn open(dir: &Path, meta: &WireSnapshotMeta, len: u64) -> Result<Self> {
        let (index, term) = meta.last.map_or((0, 0), |id| (id.index, id.term));
        let name = format!("{PARTIAL}{index}-{term}-{len}.tmp");
        let path = dir.join(&name);
        let io = |e: io::Error| Error::fatal(format!("cannot create {}: {e}", path.display()));
        remove_files(dir, |other| other.starts_with(PARTIAL) && other != name).map_err(io)?;
        let mut options = fs::OpenOptions::new();
        let file = options.create(true).truncate(false).read(true).write(true).mode(0o600).open(&path).map_err(io)?;
        if file.metadata().map_err(io)?.len() > len {
            file.set_len(0).map_err(io)?;
        }
        Ok(Self { path, file })
    }

    /// Hands it on, under a name of its own.
    pub fn whole(self) -> Result<SnapshotFile> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let path = self.path.with_file_name(format!("incoming-{}.tmp", COUNT.fetch_add(1, Ordering::Relaxed)));
        fs::rename(&self.path, &path)
            .map_err(|e| Error::fatal(format!("cannot rename {}: {e}", self.path.display())))?;
        Ok(SnapshotFile { path })
    }

    /// Nothing of it may be gone on from.
    pub fn worthless(&self, why: impl std::fmt::Display) -> Error {
        _ = fs::remove_file(&self.path);
        Error::refused(why)
    }
}

/// Deletes what transfers left behind when the process was killed, but for a part of a snapshot beyond `applied`: that one
/// may be offered again, and its checksum tells what is there of it.
pub(crate) fn clean(dir: &Path, applied: u64) -> io::Result<()> {
    let useful = |name: &str| index_of(name).is_some_and(|index| index > applied);
    remove_files(dir, |name| name.starts_with("incoming-") && name.ends_with(".tmp") && !useful(name))
}

/// Of the snapshot that a part belongs to.
fn index_of(name: &str) -> Option<u64> {
    name.strip_prefix(PARTIAL)?.split('-').next()?.parse().ok()
}

fn remove_files(dir: &Path, which: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&which) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::raft::SnapshotMeta;

    fn meta(index: u64) -> WireSnapshotMeta {
        WireSnapshotMeta {
            last: Some(crate::wire::WireLogId { term: 1, node: 1, index }),
            ..(&SnapshotMeta::default()).into()
        }
    }
    #[test]
    fn what_arrived_of_a_snapshot_stays_and_what_is_of_another_goes() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("incoming-3.tmp"), b"somebody has it").unwrap();
        let open = |index, len| Incoming::open(temp.path(), &meta(index), len).unwrap();
        open(7, 10).file.write_all_at(b"state", 0).unwrap();
        assert_eq!(open(7, 10).file.metadata().unwrap().len(), 5);
        assert_eq!(open(8, 10).file.metadata().unwrap().len(), 0);
        assert_eq!(open(7, 10).file.metadata().unwrap().len(), 0);
        open(7, 10).file.write_all_at(b"more than it has", 0).unwrap();
        assert_eq!(open(7, 10).file.metadata().unwrap().len(), 0, "it cannot be of this one");
        open(7, 10).file.write_all_at(b"state", 0).unwrap();
        open(7, 10).worthless("");
        assert_eq!(open(7, 10).file.metadata().unwrap().len(), 0);
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 2);
    }

    #[test]
    fn leftovers_are_deleted_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let part = |index| format!("{PARTIAL}{index}-1-10.tmp");
        for name in ["incoming-3.tmp", "identity", "incoming-3", "other.tmp", &part(7), &part(8)] {
            fs::write(temp.path().join(name), name).unwrap();
        }
        clean(temp.path(), 7).unwrap();
        let mut left: Vec<_> = fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["identity", "incoming-3", &part(8), "other.tmp"]);
    }
}
