//! Makes a state large: messages that look like nothing else, where nobody counts them.

use moim_raft::{
    Error, Store,
    command::{Command, Holder, Namespace, Reply, Room},
};
use tokio::task::JoinSet;

use super::{node::open_session_in, random::Random};

/// Messages that wait for their commit at a time.
const WINDOW: usize = 32;

/// Says so many bytes in messages of `each` bytes, and waits until all are committed.
pub async fn fill(store: &Store, name: String, bytes: usize, each: usize) -> moim_raft::Result<()> {
    let (sid, _) = open_session_in(store, Namespace::new("/fill").expect("a short name"), &name).await?;
    let (by, room) = (Holder { sid, generation: 1 }, Room::new(&name).expect("a short name"));
    store.call(Command::Join { by: by.clone(), room: room.clone() }).await?;
    let mut random = Random::new(store.incarnation());
    let mut waiting = JoinSet::new();
    for _ in 0..bytes / each {
        if waiting.len() == WINDOW {
            taken(waiting.join_next().await)?;
        }
        let (store, text) = (store.clone(), noise(&mut random, each));
        let command = Command::Publish { by: by.clone(), room: room.clone(), text, mid: None };
        waiting.spawn(async move { store.call(command).await });
    }
    while !waiting.is_empty() {
        taken(waiting.join_next().await)?;
    }
    Ok(())
}

fn taken(
    called: Option<Result<moim_raft::Result<moim_raft::state::Applied>, tokio::task::JoinError>>,
) -> moim_raft::Result<()> {
    match called.expect("somebody waits").map_err(Error::fatal)??.reply {
        Reply::Refused(why) => Err(Error::refused(format!("{why:?}"))),
        _ => Ok(()),
    }
}

/// Six random bits a byte, so that it packs badly.
fn noise(random: &mut Random, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 4);
    while text.len() < bytes {
        let bits = random.below(1 << 30);
        text.extend((0..5).map(|n| char::from(b' ' + (bits >> (6 * n) & 0x3f) as u8)));
    }
    text.truncate(bytes);
    text
}
