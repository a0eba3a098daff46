//! A node whose state is not that of the others is found, named and kept from leading, however it came to it.

mod cluster;

use std::{collections::BTreeSet, fs, path::Path};

use bytes::Bytes;
use cluster::{Cluster, lobby, say, until};
use moim_raft::{
    codec::{self, Kind},
    command::{Batch, Command},
    log::{Log, Options},
    raft::{Entry, Payload},
};
use openraft::{
    EntryPayload,
    storage::{IOFlushed, RaftLogReader, RaftLogStorage},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_another_state_is_named_by_all_and_does_not_lead() {
    let mut c = Cluster::new(3).await;
    let by = c.node(0).open_in_lobby("client").await;
    c.node(0).call(say(&by, "true")).await;
    c.agree().await;
    let odd = (c.leader().await + 1) % 3;
    let id = c.store(odd).node();
    c.stop(odd).await;
    // The same log but for one word: no checksum is wrong, no file is damaged.
    fs::remove_dir_all(c.data(odd).join("state")).unwrap();
    forge(&c.data(odd).join("log"), "true", "lies").await;
    c.reopen(odd).await;
    c.all_started().await;
    assert_eq!(c.node(odd).texts(), ["lies"]);

    until(|| {
        c.running().all(|node| node.store.status().diverged.is_some_and(|found| found.wrong == BTreeSet::from([id])))
    })
    .await;
    let leader = c.leader().await;
    c.store(leader).hand_over().await;
    let next = c.leader().await;
    assert!(next != leader && next != odd, "n{next} leads");

    // The alarm is about nodes that answer.
    c.stop(odd).await;
    until(|| c.running().all(|node| node.store.status().diverged.is_none())).await;
}

/// Writes a log anew with another text in one of its messages, of the same length.
async fn forge(dir: &Path, text: &str, other: &str) {
    let mut log = Log::open(dir, Options::default()).unwrap();
    let entries = log.try_get_log_entries(..).await.unwrap();
    let at = entries.iter().position(|entry| messages(entry).contains(&text.to_owned())).expect("it is in the log");
    let mut rest = entries[at..].to_vec();
    let mut batch = batch(&rest[0]).unwrap();
    for command in &mut batch.commands {
        if let Command::Publish { room, text, .. } = command {
            assert_eq!(*room, lobby());
            *text = other.to_owned();
        }
    }
    rest[0].payload = EntryPayload::Normal(Payload(Bytes::from(codec::encode(Kind::Batch, &batch).unwrap())));
    log.truncate_after(Some(entries[at - 1].log_id)).await.unwrap();
    log.append(rest, IOFlushed::noop()).await.unwrap();
    log.close().await.unwrap();
}

fn batch(entry: &Entry) -> Option<Batch> {
    match &entry.payload {
        EntryPayload::Normal(Payload(bytes)) => Some(codec::decode(Kind::Batch, bytes).unwrap()),
        _ => None,
    }
}

fn messages(entry: &Entry) -> Vec<String> {
    let commands = batch(entry).map(|batch| batch.commands).unwrap_or_default();
    let text = |command| match command {
        Command::Publish { text, .. } => Some(text),
        _ => None,
    };
    commands.into_iter().filter_map(text).collect()
}
