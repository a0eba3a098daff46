//! A store node as a child process: this binary again, told by lines on its standard input, answering each with one line.

use std::{
    io::{BufRead, Write},
    path::PathBuf,
    time::Duration,
};

use moim_raft::{
    Config, Feeds, Play, Secret, Store,
    command::{Limits, NodeInfo},
};
use tokio::net::TcpListener;

use crate::load::{self, Writer};

/// Set for a child: its data folder and the address to listen at.
pub const DATA: &str = "MOIM_BENCH_DATA";
pub const LISTEN: &str = "MOIM_BENCH_LISTEN";

/// The pace of a server: see the constants of the same names in the server's `node.rs`.
const HEARTBEAT: Duration = Duration::from_millis(100);
const ELECTION: Duration = Duration::from_millis(300);
const SNAPSHOT_EVERY: u64 = 20_000;

/// Lives until its standard input ends.
pub fn main(data: PathBuf) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let listen = std::env::var(LISTEN).expect("an address to listen at");
    let listener = runtime.block_on(TcpListener::bind(listen)).expect("the address is free");
    let address = listener.local_addr().expect("it is bound").to_string();
    say(&address);
    let mut lines = std::io::stdin().lock().lines();
    let mut line = move || lines.next().and_then(Result::ok);
    let Some(peers) = line() else { return };
    let config = config(data, address, peers.split(',').map(str::to_owned).collect());
    let (store, feeds) = runtime.block_on(Store::open(config, listener)).expect("the store opens");
    runtime.spawn(play(feeds));
    let mut writer = None;
    while let Some(line) = line() {
        let answer = runtime.block_on(obey(&store, &mut writer, &line));
        say(&answer);
    }
    _ = runtime.block_on(store.close());
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Fails when the parent is gone: then the input ends as well.
    _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn config(data: PathBuf, peer: String, join: Vec<String>) -> Config {
    Config {
        data,
        info: NodeInfo { name: peer.clone(), peer, ..NodeInfo::default() },
        expect: join.len(),
        join,
        secret: Secret::default(),
        limits: Limits::default(),
        node_timeout: Duration::from_secs(5),
        session_ttl: Duration::from_secs(120),
        presence_grace: Duration::from_secs(60),
        replace_after: Duration::from_secs(600),
        heartbeat: HEARTBEAT,
        election: ELECTION,
        snapshot_every: SNAPSHOT_EVERY,
    }
}

/// The least that a player does: everybody who waits gets an answer.
async fn play(mut feeds: Feeds) {
    while let Some(play) = feeds.plays.recv().await {
        if let Play::Commands(commands) = play {
            for (applied, ticket) in commands {
                ticket.answer(Ok(&applied));
            }
        }
    }
}

async fn obey(store: &Store, writer: &mut Option<Writer>, line: &str) -> String {
    let mut words = line.split(' ');
    let verb = words.next().unwrap_or_default();
    let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
    match (verb, &numbers[..]) {
        ("status", []) => {
            let status = store.status();
            let leads = u64::from(status.leader == Some(status.node));
            format!("leads={leads} started={} applied={}", u64::from(status.started), status.applied)
        }
        ("hash", [index]) => format!("hash={}", store.hash_at(Some(*index)).map_or(0, |(_, hash)| hash as u64)),
        ("open", [from, count]) => load::open(store, *from..from + count).await,
        ("lose", [from, count]) => load::lose(store, *from..from + count).await,
        ("resume", [from, count]) => load::resume(store, *from..from + count).await,
        ("join", [from, count, proposers, ms]) => {
            load::join(store, *from..from + count, *proposers, Duration::from_millis(*ms)).await.to_string()
        }
        ("write", [session]) => {
            *writer = Some(Writer::start(store.clone(), *session));
            String::new()
        }
        ("written", []) => match writer.take() {
            Some(writer) => writer.stop().await,
            None => String::new(),
        },
        ("transfer", []) => {
            store.hand_over().await;
            String::new()
        }
        _ => format!("not understood: {line}"),
    }
}
