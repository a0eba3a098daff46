//! The data folder of a released version must open for ever, and hold what it held. `tests/golden/folder-1` is one: the
//! identity, a log whose beginning is purged, and snapshots; what is derived from them is left out.
//!
//! `MOIM_GOLDEN=write cargo test -p moim-raft --test folder_golden` writes it anew, as long as its format was not released.

mod cluster;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use cluster::{Node, PATIENCE, lobby, ns, say, until};
use moim_raft::{
    Config, Secret, Store,
    command::{Command, Limits, NodeInfo, Reply, User},
    level::KNOWN,
};
use tokio::{
    net::TcpListener,
    time::{Duration, timeout},
};

/// Messages, one an entry: enough for the log to be purged behind a snapshot.
const MESSAGES: usize = 40;

async fn open(data: &Path) -> Node {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let info = NodeInfo { name: "n1".to_owned(), peer: "127.0.0.1:3200".to_owned(), ..NodeInfo::default() };
    let config = Config {
        data: data.to_owned(),
        info,
        join: Vec::new(),
        expect: 1,
        secret: Secret::default(),
        limits: Limits::default(),
        node_timeout: Duration::from_secs(5),
        session_ttl: Duration::from_secs(120),
        presence_grace: Duration::from_secs(20),
        replace_after: Duration::from_secs(600),
        heartbeat: Duration::from_millis(50),
        election: Duration::from_millis(250),
        snapshot_every: 10,
    };
    let (store, feeds) = Store::open(config, listener).await.expect("the folder opens");
    let node = Node::new(store, feeds);
    let mut started = node.store.started();
    timeout(PATIENCE, started.wait_for(|started| *started)).await.expect("it starts").unwrap();
    node
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/folder-1")
}

fn text(n: usize) -> String {
    format!("\"message {n}\"")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_folder_of_the_first_version_opens_with_what_it_held() {
    if env::var_os("MOIM_GOLDEN").is_some_and(|what| what == "write") {
        write().await;
    }
    let known = fs::read_to_string(golden().join("known")).unwrap();
    let (index, hash) = known.trim().split_once(' ').expect("an index and a hash");
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("n1");
    copy(&golden().join("data"), &data);
    let node = open(&data).await;
    let found = node.store.hash_at(Some(index.parse().unwrap())).expect("it came by that index");
    assert_eq!(format!("{:032x}", found.1), hash);
    assert_eq!(node.texts(), (0..MESSAGES).map(text).collect::<Vec<_>>());
    node.store.read(|state| {
        assert_eq!(state.members(&ns(), &lobby(), None, 9), [User::new("bob").unwrap()]);
        assert!(state.level() >= Some(1));
    });
    // It is not only read: the node goes on from there, as this version does.
    until(|| node.store.status().level == Some(KNOWN.max)).await;
    let by = node.open_in_lobby("carol").await;
    node.call(say(&by, "\"after\"")).await;
    node.store.close().await.unwrap();
}

async fn write() {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("n1");
    let node = open(&data).await;
    let (ann, bob) = (node.open_in_lobby("ann").await, node.open_in_lobby("bob").await);
    for n in 0..MESSAGES {
        let mid = Some(format!("mid {n}"));
        let publish = Command::Publish { by: ann.clone(), room: lobby(), text: text(n), mid };
        assert!(matches!(node.call(publish).await.reply, Reply::Published { .. }));
    }
    node.call(Command::Enter { by: bob.clone(), room: lobby() }).await;
    node.call(Command::Leave { by: ann.clone(), room: lobby() }).await;
    node.call(Command::Lost(vec![ann])).await;
    let snapshots = || fs::read_dir(data.join("snapshots")).unwrap().count();
    until(|| snapshots() > 0).await;
    node.store.close().await.unwrap();
    let (index, hash) = node.store.hash_at(None).unwrap();
    _ = fs::remove_dir_all(golden());
    copy(&data, &golden().join("data"));
    // Derived from the rest, and made anew.
    _ = fs::remove_dir_all(golden().join("data/state"));
    _ = fs::remove_file(golden().join("data/reserve"));
    fs::write(golden().join("known"), format!("{index} {hash:032x}\n")).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap().map(|file| file.unwrap().path()) {
        let to = to.join(file.file_name().unwrap());
        if file.is_dir() { copy(&file, &to) } else { _ = fs::copy(&file, &to).unwrap() }
    }
}
