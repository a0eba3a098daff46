//! Versions side by side: a cluster goes to a higher level when its last node knows it, and never back. Later versions are
//! this one, announcing more; earlier ones are this one, announcing less.

mod cluster;

use bytes::Bytes;
use cluster::{Cluster, Node, PATIENCE, lobby, say, until};
use moim_raft::{
    Error,
    codec::{self, Kind},
    command::Command,
    level::{KNOWN, Level, Levels},
    log::{Log, Options},
    wire::{WireEntry, WireLogId, WirePayload},
};
use openraft::storage::{IOFlushed, RaftLogStorage};
use tokio::{
    net::TcpListener,
    time::{Duration, sleep, timeout},
};

const FIRST: Levels = Levels { min: 1, max: 1 };
const OLD: Levels = KNOWN;
const NEW: Levels = Levels { max: KNOWN.max + 1, ..KNOWN };
/// The leader looks twice a second; so by then it has looked.
const LOOKED: Duration = Duration::from_millis(1500);

fn level(node: &Node) -> Option<Level> {
    node.store.status().level
}

async fn restart(c: &mut Cluster, i: usize, levels: Levels) {
    c.stop(i).await;
    c.levels[i] = levels;
    c.reopen(i).await;
    c.all_started().await;
}

async fn all_at(c: &Cluster, wanted: Level) {
    until(|| c.running().all(|node| level(node) == Some(wanted))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_upgrade_ends_at_the_higher_level_and_an_old_node_stays_out_of_it() {
    let mut c = Cluster::new(3).await;
    all_at(&c, OLD.max).await;
    for i in 0..2 {
        restart(&mut c, i, NEW).await;
        sleep(LOOKED).await;
        assert!(c.running().all(|node| level(node) == Some(OLD.max)), "one node does not know the next level yet");
    }
    // Until the last one has the new version, each can go back.
    restart(&mut c, 0, OLD).await;
    restart(&mut c, 0, NEW).await;
    restart(&mut c, 2, NEW).await;
    all_at(&c, NEW.max).await;
    let by = c.node(0).open_in_lobby("client").await;
    c.node(1).call(say(&by, "after")).await;
    c.agree().await;

    // From here on there is no way back: its own folder says so,
    c.stop(2).await;
    c.levels[2] = OLD;
    let listener = TcpListener::bind(&c.listens[2]).await.unwrap();
    let Err(Error::Refused(why)) = c.try_open(2, listener).await else { panic!("must be refused") };
    assert!(why.contains("at level 3, but this node knows levels 1 to 2 only: it needs a newer version"), "{why}");

    // and an empty folder is not taken in,
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    c.listens.push(listener.local_addr().unwrap().to_string());
    c.addrs.push(c.listens[3].clone());
    c.levels.push(OLD);
    c.names.push("n3".to_owned());
    let late = c.try_open(3, listener).await.expect("it looks for its cluster");
    until(|| late.store.status().waiting.contains("at level 3, but n3 knows levels 1 to 2 only")).await;
    assert!(c.running().all(|node| node.store.status().peers.len() == 3));
    late.store.close().await.unwrap();
    drop(late);

    // while the same folders do well with the newer version.
    c.levels = vec![NEW; 4];
    c.nodes.push(None);
    for i in [2, 3] {
        c.reopen(i).await;
    }
    c.all_started().await;
    all_at(&c, NEW.max).await;
    c.agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_knows_less_holds_the_level_back() {
    let mut c = Cluster::new(2).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    c.listens.push(listener.local_addr().unwrap().to_string());
    c.addrs.push(c.listens[2].clone());
    c.levels.push(OLD);
    c.names.push("n2".to_owned());
    let learner = c.try_open(2, listener).await.expect("it joins");
    c.nodes.push(Some(learner));
    c.all_started().await;
    for i in 0..2 {
        restart(&mut c, i, NEW).await;
    }
    sleep(LOOKED).await;
    assert!(c.running().all(|node| level(node) == Some(OLD.max)));
    restart(&mut c, 2, NEW).await;
    all_at(&c, NEW.max).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_with_level_2_is_proposed_from_there_on() {
    let mut c = Cluster::knowing(FIRST, 2, 2).await;
    c.limits.mid_window_ms = 300;
    restart(&mut c, 0, FIRST).await;
    restart(&mut c, 1, KNOWN).await;
    let by = c.node(0).open_in_lobby("client").await;
    let mid = Some("mid".to_owned());
    c.node(0).call(Command::Publish { by: by.clone(), room: lobby(), text: "once".to_owned(), mid }).await;
    sleep(LOOKED).await;
    // The state's clock goes on with the log.
    c.node(0).call(say(&by, "and no more")).await;
    sleep(LOOKED).await;
    let old = |c: &Cluster| c.store(1).read(|state| state.users_with_old_mids(None, 9).0.len());
    assert_eq!((level(c.node(1)), old(&c)), (Some(1), 1), "nobody may propose that it is forgotten");
    let node = c.store(1).node();
    assert_eq!(c.store(1).undrain(1), Command::EndDrain { node });
    restart(&mut c, 0, KNOWN).await;
    all_at(&c, 2).await;
    until(|| old(&c) == 0).await;
    until(|| c.store(1).undrain(1) == Command::Undrain { node, incarnation: 1 }).await;
    c.agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_meets_a_level_above_its_own_stops_and_says_what_to_do() {
    let c = Cluster::new(1).await;
    let _ = c.store(0).call(Command::SetLevel(NEW.max)).await;
    let why = timeout(PATIENCE, c.store(0).fatal()).await.expect("it cannot go on").to_string();
    assert!(why.starts_with("fatal: the cluster is at level 3, but this node knows levels 1 to 2 only"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_meets_a_command_it_does_not_know_stops_and_says_what_to_do() {
    let mut c = Cluster::new(1).await;
    let by = c.node(0).open_in_lobby("client").await;
    c.node(0).call(say(&by, "before")).await;
    c.stop(0).await;
    let index = append_unknown(&c).await;
    c.reopen(0).await;
    let why = timeout(PATIENCE, c.store(0).fatal()).await.expect("it cannot go on").to_string();
    let expected = format!("fatal: entry {index} of the log was made by a newer version of moim");
    assert!(why.starts_with(&expected) && why.contains("Start that version on this data folder"), "{why}");
    assert_eq!(c.node(0).texts(), ["before"]);
}

/// Puts an entry behind the log of the one stopped node, as a later version would have written it. Its index.
async fn append_unknown(c: &Cluster) -> u64 {
    let mut log = Log::open(&c.data(0).join("log"), Options::default()).unwrap();
    let last = WireLogId::from(&log.get_log_state().await.unwrap().last_log_id.expect("it has entries"));
    // A batch of one command whose number is not given to any.
    let batch = codec::encode(Kind::Batch, &(last.node, 1_u64, 1_000_000_u64, 0_u64, [200_u8].as_slice())).unwrap();
    let id = WireLogId { index: last.index + 1, ..last };
    let entry = WireEntry { id, payload: WirePayload::Normal(Bytes::from(batch)) };
    log.append([entry.try_into().unwrap()], IOFlushed::noop()).await.unwrap();
    log.close().await.unwrap();
    id.index
}
