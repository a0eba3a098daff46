//! Snapshots are files, and one connection of the `bulk` lane carries one of them.
//!
//! ```text
//! sender     Offer{vote, meta, length}  ──▶
//!                                       ◀──   Have{bytes, crc32 of them}    receiver
//!            From{offset}, Chunk…, End{crc32 of all}  ──▶
//!                                       ◀──   Installing…, Installed{vote} or Failed
//! ```
//!
//! A transfer that is cancelled or breaks is a closed connection. What had arrived stays, also when the node starts anew, until
//! another snapshot is offered: when the same one is, and the sender's file begins with the same bytes, it goes on there.
//!
//! Neither side holds more than a chunk in memory. The sender keeps to the bandwidth of [`super::Transfers`], and TCP itself
//! holds it back where the receiver is slower. The receiver takes one snapshot at a time, the one of the newer leader, and
//! hands it on only when it is whole, checked and synced.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::{Mutex, watch},
    time::timeout,
};

use super::{Transfers, consensus::Consensus, frame, incoming::Incoming};
use crate::{
    disk::check_room,
    error::{Error, Result},
    raft::{SnapshotMeta, Vote},
    wire::{WireSnapshotMeta, WireVote},
};

/// File bytes in one frame.
const CHUNK_BYTES: usize = 1 << 20;
/// Bound of a frame on this lane: a chunk and its envelope.
const FRAME_MAX: usize = CHUNK_BYTES + 4096;
/// A receiver gives a sender up that says nothing for so long.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// A receiver that installs says so this often.
const INSTALLING_EVERY: Duration = Duration::from_secs(2);

/// A snapshot as openraft passes it around: where it lies. Whoever is handed a received one owns the file, and renames or
/// deletes it: what still has its name of arrival at the next start is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    pub path: PathBuf,
}

/// Sent: only ever add variants at the end.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Part {
    Offer {
        vote: WireVote,
        meta: WireSnapshotMeta,
        len: u64,
    },
    Chunk(Bytes),
    End {
        crc: u32,
    },
    Installed {
        vote: WireVote,
    },
    Failed(String),
    /// What is there of the offered file, and its checksum.
    Have {
        bytes: u64,
        crc: u32,
    },
    /// Chunks come from here on.
    From {
        offset: u64,
    },
    /// It has all arrived, and installing it takes its time.
    Installing,
}

/// Streams the file and waits until it is installed; the other side's vote. `step` bounds each chunk and each silence.
///
/// # Errors
/// `Unavailable` when the connection or the other side is at fault; else it may be the file: the other side had all of it and
/// did not take it, or it cannot be read here.
pub(crate) async fn send(
    stream: &mut TcpStream,
    vote: &Vote,
    meta: &SnapshotMeta,
    file: &SnapshotFile,
    transfers: &Transfers,
    step: Duration,
) -> Result<Vote> {
    let mut from = File::open(&file.path).map_err(|e| failed("open", &file.path, &e))?;
    let len = from.metadata().map_err(|e| failed("read", &file.path, &e))?.len();
    write(stream, &Part::Offer { vote: vote.into(), meta: meta.into(), len }, step).await?;
    let (mut offset, mut crc) = match read(stream, step).await? {
        Part::Have { bytes, crc } => {
            agreed(&mut from, len, bytes, crc).await.map_err(|e| failed("read", &file.path, &e))?
        }
        Part::Failed(why) => return Err(Error::unavailable(why)),
        _ => return Err(unexpected()),
    };
    write(stream, &Part::From { offset }, step).await?;
    while offset < len {
        let want = (len - offset).min(CHUNK_BYTES as u64) as usize;
        let chunk;
        (from, chunk) = blocking(move || {
            let mut chunk = vec![0; want];
            from.read_exact_at(&mut chunk, offset).map(|()| (from, chunk))
        })
        .await
        .map_err(|e| failed("read", &file.path, &e))?;
        crc.update(&chunk);
        offset += chunk.len() as u64;
        transfers.pace(chunk.len() as u64).await;
        write(stream, &Part::Chunk(chunk.into()), step).await?;
    }
    write(stream, &Part::End { crc: crc.finalize() }, step).await?;
    loop {
        match read(stream, step).await? {
            Part::Installing => {}
            Part::Installed { vote } => return Ok(vote.into()),
            Part::Failed(why) => return Err(Error::refused(format!("the snapshot was not installed: {why}"))),
            _ => return Err(unexpected()),
        }
    }
}

/// From where the other side, which has so many bytes that add up to `crc`, goes on: from there if the file begins with them,
/// from its start if it does not. With the checksum so far.
async fn agreed(file: &mut File, len: u64, bytes: u64, crc: u32) -> io::Result<(u64, crc32fast::Hasher)> {
    if bytes == 0 || bytes > len {
        return Ok((0, crc32fast::Hasher::new()));
    }
    let file = file.try_clone()?;
    let ours = blocking(move || checksum(&file, bytes)).await?;
    Ok(if ours.clone().finalize() == crc { (bytes, ours) } else { (0, crc32fast::Hasher::new()) })
}

/// Of the first bytes of a file.
fn checksum(file: &File, bytes: u64) -> io::Result<crc32fast::Hasher> {
    let mut crc = crc32fast::Hasher::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut offset = 0;
    while offset < bytes {
        let part = (bytes - offset).min(CHUNK_BYTES as u64) as usize;
        file.read_exact_at(&mut chunk[..part], offset)?;
        crc.update(&chunk[..part]);
        offset += part as u64;
    }
    Ok(crc)
}

/// Takes snapshots in, one at a time.
#[derive(Default)]
pub(crate) struct Receiver {
    /// Whose turn it is.
    turn: Mutex<()>,
    /// The term of the newest offer, and its number: an older transfer gives way.
    newest: watch::Sender<(u64, u64)>,
}

impl Receiver {
    /// One transfer into `dir`, installed through `consensus`, answered.
    pub async fn receive(&self, stream: &mut TcpStream, dir: &Path, consensus: &dyn Consensus) -> Result<()> {
        let Part::Offer { vote, meta, len } = read(stream, IDLE_MAX).await? else { return Err(unexpected()) };
        let mut mine = None;
        self.newest.send_if_modified(|(term, number)| {
            if vote.term >= *term {
                (*term, *number) = (vote.term, *number + 1);
                mine = Some(*number);
            }
            mine.is_some()
        });
        let outcome = match mine {
            None => Err(Error::refused("a newer leader sends a snapshot")),
            Some(mine) => self.take(stream, dir, consensus, mine, (vote, meta, len)).await,
        };
        let (part, result) = match outcome {
            Ok(vote) => (Part::Installed { vote: (&vote).into() }, Ok(())),
            // Nobody is there to be told.
            Err(gone @ Error::Unavailable(_)) => return Err(gone),
            Err(e) => (Part::Failed(e.to_string()), Err(e)),
        };
        write(stream, &part, IDLE_MAX).await?;
        result
    }

    async fn take(
        &self,
        stream: &mut TcpStream,
        dir: &Path,
        consensus: &dyn Consensus,
        mine: u64,
        (vote, meta, len): (WireVote, WireSnapshotMeta, u64),
    ) -> Result<Vote> {
        let mut newest = self.newest.subscribe();
        let _turn = self.turn.lock().await;
        // The file, and what is built of it beside the state that is there: an install that fails ends the node.
        check_room(dir, len.saturating_mul(2))
            .map_err(|e| Error::refused(format!("a snapshot is not taken in: {}", e.why())))?;
        let incoming = Incoming::open(dir, &meta, len)?;
        let meta = meta.try_into()?;
        tokio::select! {
            received = receive_file(stream, &incoming, len) => received?,
            _ = newest.wait_for(|(_, number)| *number != mine) => return Err(Error::unavailable("a newer transfer has begun")),
        }
        let install = consensus.install(vote.into(), meta, incoming.whole()?);
        let mut install = std::pin::pin!(install);
        loop {
            match timeout(INSTALLING_EVERY, &mut install).await {
                Ok(installed) => return installed,
                // Whether or not the sender still listens: what was begun is brought to its end.
                Err(_) => _ = write(stream, &Part::Installing, IDLE_MAX).await,
            }
        }
    }
}

async fn receive_file(stream: &mut TcpStream, incoming: &Incoming, len: u64) -> Result<()> {
    let io = |e: io::Error| Error::fatal(format!("cannot write {}: {e}", incoming.path.display()));
    let mut to = incoming.file.try_clone().map_err(io)?;
    let have = to.metadata().map_err(io)?.len();
    let mut crc;
    (to, crc) = blocking(move || checksum(&to, have).map(|crc| (to, crc))).await.map_err(io)?;
    write(stream, &Part::Have { bytes: have, crc: crc.clone().finalize() }, IDLE_MAX).await?;
    let mut got = match read(stream, IDLE_MAX).await? {
        Part::From { offset } if offset == have => have,
        Part::From { offset: 0 } => {
            crc = crc32fast::Hasher::new();
            0
        }
        _ => return Err(unexpected()),
    };
    to.set_len(got).map_err(io)?;
    loop {
        match read(stream, IDLE_MAX).await? {
            Part::Chunk(chunk) => {
                let at = got;
                got += chunk.len() as u64;
                if got > len {
                    return Err(incoming.worthless(format!("a snapshot longer than its {len} bytes")));
                }
                crc.update(&chunk);
                to = blocking(move || to.write_all_at(&chunk, at).map(|()| to)).await.map_err(io)?;
            }
            Part::End { crc: right } if got == len && crc.clone().finalize() == right => {
                return blocking(move || to.sync_all()).await.map_err(io);
            }
            Part::End { .. } => return Err(incoming.worthless("the snapshot is damaged: length or checksum differ")),
            _ => return Err(unexpected()),
        }
    }
}

async fn write(stream: &mut TcpStream, part: &Part, within: Duration) -> Result<()> {
    let bytes = frame::encode(part)?;
    let written = timeout(within, stream.write_all(&bytes)).await;
    written.map_err(|_| stalled(within))?.map_err(Error::unavailable)
}

async fn read(stream: &mut TcpStream, within: Duration) -> Result<Part> {
    let part = timeout(within, frame::read(stream, FRAME_MAX)).await.map_err(|_| stalled(within))??;
    part.ok_or_else(|| Error::unavailable("the other side ended the transfer"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Error {
    Error::fatal(format!("cannot {what} the snapshot {}: {error}", path.display()))
}

fn stalled(within: Duration) -> Error {
    Error::unavailable(format!("the snapshot transfer stood still for {within:?}"))
}

fn unexpected() -> Error {
    Error::refused("an unexpected part of a snapshot transfer")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    async fn received(len: u64, parts: Vec<Part>) -> Result<Vec<u8>> {
        let temp = tempfile::tempdir().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut receiver, _) = listener.accept().await.unwrap();
        write(&mut sender, &Part::From { offset: 0 }, IDLE_MAX).await.unwrap();
        for part in &parts {
            write(&mut sender, part, IDLE_MAX).await.unwrap();
        }
        sender.shutdown().await.unwrap();
        let incoming = Incoming::open(temp.path(), &meta(9), len).unwrap();
        let got = receive_file(&mut receiver, &incoming, len).await;
        let stays = matches!(got, Ok(()) | Err(Error::Unavailable(_)));
        let bytes = fs::read(&incoming.path);
        assert!(bytes.is_ok() || !stays);
        got.map(|()| bytes.unwrap())
    }

    fn meta(index: u64) -> WireSnapshotMeta {
        WireSnapshotMeta {
            last: Some(crate::wire::WireLogId { term: 1, node: 1, index }),
            ..(&SnapshotMeta::default()).into()
        }
    }

    #[tokio::test]
    async fn only_what_the_file_begins_with_is_gone_on_from() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all_at(b"statestate", 0).unwrap();
        let mut from = async |bytes, crc| agreed(&mut file, 10, bytes, crc).await.unwrap().0;
        assert_eq!(from(5, crc32fast::hash(b"state")).await, 5);
        assert_eq!(from(5, crc32fast::hash(b"other")).await, 0);
        assert_eq!(from(11, crc32fast::hash(b"statestate!")).await, 0);
        assert_eq!(from(10, crc32fast::hash(b"statestate")).await, 10);
    }

    #[tokio::test]
    async fn only_a_whole_and_right_file_is_taken() {
        let chunk = || Part::Chunk(Bytes::from_static(b"state"));
        let crc = crc32fast::hash(b"statestate");
        let end = || Part::End { crc };
        assert_eq!(received(10, vec![chunk(), chunk(), end()]).await.unwrap(), b"statestate");
        let refused = [
            (10, vec![chunk(), chunk(), Part::End { crc: crc ^ 1 }]),
            (10, vec![chunk(), end()]),
            (9, vec![chunk(), chunk(), end()]),
            (10, vec![chunk(), Part::Failed(String::new())]),
        ];
        for (len, parts) in refused {
            assert!(matches!(received(len, parts).await, Err(Error::Refused(_))));
        }
        assert!(matches!(received(10, vec![chunk(), chunk()]).await, Err(Error::Unavailable(_))), "broken off");
    }
}
