//! Three stores in one process: what a cluster promises when nodes stop, come back, lead in turn and lag behind.

mod cluster;

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use cluster::{Cluster, GRACE, Node, PATIENCE, SNAPSHOT_EVERY, lobby, ns, say, sid, texts, until};
use moim_raft::{
    Error, Observation, Store, Ticket,
    command::{Command, Effect, Holder, Limits, Namespace, Position, Reply, Room, Sid, Unseated, User},
    marker,
    state::Applied,
};
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_form_one_cluster_and_play_one_order() {
    let c = Cluster::new(3).await;
    assert!(
        c.running().all(|node| node.store.cluster() == c.store(0).cluster() && node.store.status().voters.len() == 3)
    );
    let mut clients = Vec::new();
    for i in 0..3 {
        clients.push(c.node(i).open_in_lobby(&format!("client{i}")).await);
    }
    let start = c.node(2).call(say(&clients[2], "go")).await.position;
    let proposers = (0..3).map(|i| {
        let (store, by) = (c.store(i), clients[i].clone());
        tokio::spawn(async move {
            for n in 0..20 {
                let done = store.call(say(&by, format!("{i}:{n}"))).await.expect("a quorum is there");
                assert!(matches!(done.reply, Reply::Published { position, .. } if position == done.position));
                // The proposer reads its own writes.
                assert!(store.read(texts).contains(&format!("{i}:{n}")));
            }
        })
    });
    for proposer in proposers.collect::<Vec<_>>() {
        proposer.await.unwrap();
    }
    c.agree().await;
    let end = c.store(0).read(|state| state.position());
    let played = |i: usize| {
        let played = c.node(i).played.lock().unwrap();
        played.iter().filter(|a| a.position >= start).map(|a| format!("{a:?}")).collect::<Vec<_>>()
    };
    until(|| (0..3).all(|i| c.node(i).played.lock().unwrap().last().is_some_and(|last| last.position >= end))).await;
    assert!(played(0).len() > 60);
    assert!(played(0) == played(1) && played(1) == played(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_leader_stores_the_limits_also_when_they_are_the_defaults() {
    let c = Cluster::new(3).await;
    until(|| (0..3).all(|i| c.store(i).read(|state| *state.limits() == Limits::default()))).await;
}

/// Who was said to be online or offline on a node, in order.
fn told(node: &Node) -> Vec<(String, bool)> {
    let played = node.played.lock().unwrap();
    let effects = played.iter().flat_map(|applied| &applied.effects);
    let presence = effects.filter_map(|effect| match effect {
        Effect::Presence { user, online, .. } => Some((user.to_string(), *online)),
        _ => None,
    });
    presence.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_user_is_offline_after_its_grace_and_a_restarted_nodes_users_never_were() {
    let mut c = Cluster::new(3).await;
    let leader = c.leader().await;
    let (stays, restarted) = ((leader + 1) % 3, (leader + 2) % 3);
    let back = c.node(restarted).open_in_lobby("back").await;
    let gone = c.node(stays).open_in_lobby("gone").await;
    c.stop(restarted).await;
    c.reopen(restarted).await;
    c.all_started().await;
    let resume = c.node(restarted).resume(&back, "back");
    assert!(matches!(c.node(restarted).call(resume).await.reply, Reply::Seated { generation: 2, .. }));
    let lost = Instant::now();
    c.node(stays).call(Command::Lost(vec![gone])).await;
    until(|| c.running().all(|node| !told(node).is_empty())).await;
    assert!(lost.elapsed() >= GRACE);
    let online = |name: &str| c.store(0).read(|state| state.is_online(&ns(), &User::new(name).unwrap()));
    until(|| !online("gone")).await;
    assert!(online("back"));
    // Longer than the leader would have needed for a user that was lost with its node.
    assert!(c.running().all(|node| told(node) == [("gone".to_owned(), false)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_is_answered_once_when_the_player_comes_to_it() {
    let c = Cluster::new(3).await;
    let by = c.node(0).open_in_lobby("client").await;
    let node = c.node(0);
    node.playing.send_replace(false);
    let answers = Arc::new(AtomicUsize::new(0));
    for n in 0..20 {
        let answers = answers.clone();
        let ticket = Ticket::new(move |outcome| {
            assert!(outcome.is_ok());
            answers.fetch_add(1, Ordering::SeqCst);
        });
        node.store.propose(say(&by, n.to_string()), ticket);
    }
    until(|| node.texts().len() == 20).await;
    assert_eq!(answers.load(Ordering::SeqCst), 0, "applied is not played");
    node.playing.send_replace(true);
    until(|| answers.load(Ordering::SeqCst) == 20).await;
    node.call(say(&by, "after")).await;
    assert_eq!(answers.load(Ordering::SeqCst), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_that_is_not_worked_off_holds_apply_back_and_loses_nothing() {
    let c = Cluster::new(3).await;
    let leader = c.leader().await;
    let slow = (leader + 1) % 3;
    let by = c.node(leader).open_in_lobby("client").await;
    let start = c.node(slow).call(Command::EndDrain { node: 0 }).await.position;
    c.node(slow).playing.send_replace(false);
    for n in 0..400 {
        c.store(leader).call(say(&by, n.to_string())).await.expect("the other two are a quorum");
    }
    let applied = c.node(slow).texts().len();
    assert!((1..=300).contains(&applied), "{applied} of 400 were applied without a player");
    c.node(slow).playing.send_replace(true);
    until(|| c.node(slow).texts().len() == 400).await;
    c.agree().await;
    let end = c.store(slow).read(|state| state.position());
    until(|| c.node(slow).played.lock().unwrap().last().unwrap().position >= end).await;
    let played: Vec<u64> = c.node(slow).played.lock().unwrap().iter().map(|a| a.position.0).collect();
    let since: Vec<u64> = played.into_iter().filter(|p| *p >= start.0).collect();
    assert_eq!(since, (start.0..=end.0).collect::<Vec<_>>());
}

/// Made of four tables, while two of them change with every join.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_relation_is_of_one_index_whatever_happens_meanwhile() {
    let c = Cluster::new(3).await;
    let rooms: Vec<Room> = (0..50).map(|n| Room::new(format!("room{n}")).unwrap()).collect();
    let by = c.node(0).open_in_lobby("client").await;
    let (store, mine, busy) = (c.store(0), rooms.clone(), by.clone());
    let joining = tokio::spawn(async move {
        for room in mine.iter().cycle() {
            // Those that do not come into question at the moment are refused.
            _ = store.call(Command::Join { by: busy.clone(), room: room.clone() }).await;
            _ = store.call(Command::Leave { by: busy.clone(), room: room.clone() }).await;
        }
    });
    let told = rooms.iter().map(|room| Command::Enter { by: by.clone(), room: room.clone() });
    for (nth, command) in told.enumerate() {
        c.node(0).call(command).await;
        let before = c.store(0).status().applied;
        let (index, relation) = c.store(0).relation(&ns()).await.unwrap();
        assert!(before <= index && index <= c.store(0).status().applied);
        let views = relation.views();
        let seen = &views.sids[&by.sid];
        assert!(
            rooms[..=nth].iter().chain([&lobby()]).all(|room| seen.contains(room)),
            "what was acknowledged is in it"
        );
        assert_eq!(*seen, views.rooms.keys().cloned().collect::<Vec<_>>(), "each map is the inverse of the other");
        assert!(views.members.keys().all(|room| seen.contains(room)));
    }
    joining.abort();
    assert!(c.store(2).relation(&Namespace::new("/other").unwrap()).await.unwrap().1.views().sids.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_waits_for_a_player_is_in_the_log_once() {
    let c = Cluster::new(3).await;
    let leader = c.leader().await;
    let slow = (leader + 1) % 3;
    let (by, own) = (c.node(leader).open_in_lobby("client").await, c.node(slow).open_in_lobby("own").await);
    c.node(slow).playing.send_replace(false);
    for n in 0..300 {
        c.store(leader).call(say(&by, n.to_string())).await.expect("the other two are a quorum");
    }
    let answered = Arc::new(AtomicUsize::new(0));
    let (store, told) = (c.store(slow), answered.clone());
    store.propose(say(&own, "mine"), Ticket::new(move |_| _ = told.fetch_add(1, Ordering::SeqCst)));
    until(|| c.node(leader).texts().last().is_some_and(|last| last == "mine")).await;
    let before = c.store(leader).status().committed;
    // Longer than a leader may take to answer.
    tokio::time::sleep(Duration::from_millis(4500)).await;
    assert_eq!(c.store(leader).status().committed, before);
    c.node(slow).playing.send_replace(true);
    until(|| answered.load(Ordering::SeqCst) == 1).await;
    c.node(slow).call(say(&own, "after")).await;
    c.agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_sweeps_rooms_that_everybody_left() {
    let mut c = Cluster::new(1).await;
    c.limits.history_ttl_ms = 300;
    c.stop(0).await;
    c.reopen(0).await;
    c.all_started().await;
    let by = c.node(0).open_in_lobby("client").await;
    c.node(0).call(say(&by, "last words")).await;
    c.node(0).call(Command::Leave { by, room: lobby() }).await;
    assert!(c.store(0).read(|state| state.room(&ns(), &lobby()).is_some()));
    tokio::time::sleep(Duration::from_millis(400)).await;
    // The state's clock goes on with the log.
    c.node(0).call(Command::EndDrain { node: 0 }).await;
    until(|| c.store(0).read(|state| state.room(&ns(), &lobby()).is_none())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_are_lost_together_expire_soon_and_not_all_in_one_entry() {
    const SESSIONS: usize = 6000;
    let c = Cluster::new(1).await;
    let (store, batches) = (c.store(0), Arc::new(AtomicUsize::new(0)));
    let largest = batches.clone();
    store.on_observation(Box::new(move |observation| {
        if let Observation::Batch(commands) = observation {
            largest.fetch_max(commands, Ordering::SeqCst);
        }
    }));
    let sid = |n: usize| Sid::parse(&format!("{n:020}")).unwrap();
    for n in 0..SESSIONS {
        let mut pid = [0; 32];
        pid[..8].copy_from_slice(&n.to_be_bytes());
        let user = User::new(n.to_string()).unwrap();
        store.propose(Command::Open { sid: sid(n), ns: ns(), user, guest: false, pid }, Ticket::nobody());
    }
    let lost = (0..SESSIONS).map(|n| Holder { sid: sid(n), generation: 1 }).collect();
    c.node(0).call(Command::Lost(lost)).await;
    batches.store(0, Ordering::SeqCst);
    let expired = |applied: &Applied| {
        let ends = applied.effects.iter().filter(|e| matches!(e, Effect::Unseated { why: Unseated::Expired, .. }));
        Some(ends.count()).filter(|ends| *ends > 0)
    };
    let played = || c.node(0).played.lock().unwrap().iter().filter_map(expired).collect::<Vec<_>>();
    until(|| played().iter().sum::<usize>() == SESSIONS).await;
    assert_eq!(played(), [1000; SESSIONS / 1000]);
    let largest = batches.load(Ordering::SeqCst);
    assert!(largest <= 2, "a batch of {largest} commands: the next slice waits for the one before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_closes_although_nobody_works_its_feed_off() {
    let mut c = Cluster::new(3).await;
    let by = c.node(0).open_in_lobby("client").await;
    c.node(1).playing.send_replace(false);
    for n in 0..400 {
        c.node(0).call(say(&by, n.to_string())).await;
    }
    let waiting = tokio::spawn({
        let (store, by) = (c.store(1), by.clone());
        async move { store.call(say(&by, "mine")).await.map(|_| ()) }
    });
    let (store, playing) = (c.store(1), c.node(1).playing.clone());
    timeout(PATIENCE, store.close()).await.expect("closes in time").unwrap();
    drop(store);
    playing.send_replace(true);
    assert!(timeout(PATIENCE, waiting).await.expect("the ticket is answered").unwrap().is_err());
    c.nodes[1] = None;
    c.reopen(1).await;
    c.all_started().await;
    until(|| c.node(1).texts() == c.node(0).texts()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_without_one_node_and_it_catches_up() {
    let mut c = Cluster::new(3).await;
    for stopped in [c.leader().await, (c.leader().await + 1) % 3] {
        let other = (stopped + 1) % 3;
        let by = c.node(other).open_in_lobby(&format!("client{stopped}")).await;
        c.node(stopped).call(Command::EndDrain { node: 0 }).await;
        c.stop(stopped).await;
        for n in 0..10 {
            c.node(other).call(say(&by, n.to_string())).await;
        }
        c.store(other).linearizable().await.expect("two are a quorum");
        let end = c.store(other).read(|state| state.position());
        c.reopen(stopped).await;
        c.all_started().await;
        assert!(c.store(stopped).read(|state| state.position()) > end, "started after it had caught up");
        c.agree().await;
        assert_eq!(c.node(stopped).texts(), c.node(other).texts());
        let first = c.node(stopped).played.lock().unwrap().first().map(|applied| applied.position);
        assert!(first.is_none_or(|first| first > end), "what was applied before the start is not played");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_quorum_acknowledges_and_confirms_nothing() {
    let mut c = Cluster::new(3).await;
    let by = c.node(0).open_in_lobby("client").await;
    let leader = c.leader().await;
    let alone = c.nodes.iter().position(|node| node.as_ref().unwrap().store.node() == c.store(leader).node()).unwrap();
    for other in (0..3).filter(|i| *i != alone) {
        c.stop(other).await;
    }
    let store = c.store(alone);
    let began = Instant::now();
    for n in 0..3 {
        let heard = store.call(say(&by, format!("lost {n}"))).await;
        assert!(matches!(heard, Err(Error::Unavailable(_))), "{heard:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(8), "took {:?}", began.elapsed());
    assert!(store.linearizable().await.is_err());
    let at_once = Instant::now();
    assert!(store.call(say(&by, "lost")).await.is_err());
    assert!(at_once.elapsed() < Duration::from_millis(500), "it is known by now");
    let back = (0..3).find(|i| c.nodes[*i].is_none()).unwrap();
    c.reopen(back).await;
    c.all_started().await;
    let node = c.node(back);
    node.open_in_lobby("another").await;
    until(|| *store.started().borrow()).await;
    assert!(timeout(PATIENCE, async { while store.linearizable().await.is_err() {} }).await.is_ok());
    c.node(alone).call(Command::EndDrain { node: 0 }).await;
    c.agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_stop_of_all_the_state_is_there_and_nothing_is_played_again() {
    let mut c = Cluster::new(3).await;
    let by = c.node(0).open_in_lobby("client").await;
    for n in 0..50 {
        c.node(0).call(say(&by, n.to_string())).await;
    }
    c.agree().await;
    let (incarnations, before) = (c.running().map(|n| n.store.incarnation()).collect::<Vec<_>>(), c.node(0).texts());
    for damage in [Damage::None, Damage::Removed, Damage::Current, Damage::Files] {
        let end = (0..3).map(|i| c.store(i).read(|state| state.position())).max().unwrap();
        for i in 0..3 {
            c.stop(i).await;
        }
        damage.inflict(&c.data(1).join("state"));
        for i in 0..3 {
            c.reopen(i).await;
        }
        c.all_started().await;
        c.agree().await;
        for node in c.running() {
            assert_eq!(node.texts(), before);
            let attached = node.store.read(|state| state.session(&sid("client")).map(|s| state.is_attached(&s)));
            assert!(!attached.unwrap_or(false), "its node's incarnation is over");
            let played = node.played.lock().unwrap();
            assert!(played.iter().all(|applied| applied.position > end), "{damage:?}");
        }
    }
    let after = c.running().map(|n| n.store.incarnation());
    assert!(after.zip(incarnations).all(|(after, before)| after >= before + 4));
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Damage {
    None,
    Removed,
    Current,
    Files,
}

impl Damage {
    fn inflict(self, dir: &std::path::Path) {
        match self {
            Self::None => {}
            Self::Removed => fs::remove_dir_all(dir).unwrap(),
            Self::Current => fs::write(dir.join("CURRENT"), b"\xff\xfe").unwrap(),
            Self::Files => {
                let number = fs::read_to_string(dir.join("CURRENT")).unwrap();
                let mut files = files_below(&dir.join(number.trim()));
                assert!(!files.is_empty());
                for file in files.drain(..) {
                    let mut bytes = fs::read(&file).unwrap();
                    let middle = bytes.len() / 2;
                    bytes.iter_mut().skip(middle).take(64).for_each(|byte| *byte ^= 0x55);
                    fs::write(&file, bytes).unwrap();
                }
            }
        }
    }
}

fn files_below(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_2000_proposals_takes_effect_once_and_in_order_over_two_leader_changes() {
    const EACH: usize = 667;
    let c = Cluster::new(3).await;
    let answered: Arc<Mutex<HashMap<String, Position>>> = Arc::default();
    let mut proposers = Vec::new();
    for i in 0..3 {
        let by = c.node(i).open_in_lobby(&format!("client{i}")).await;
        let (store, answered) = (c.store(i), answered.clone());
        proposers.push(tokio::spawn(propose_numbered(store, by, i, EACH, answered)));
    }
    for _ in 0..2 {
        let leader = c.leader().await;
        until(|| answered.lock().unwrap().len() > 300).await;
        c.store(leader).hand_over().await;
        let status: Vec<_> = c
            .running()
            .map(|n| {
                let s = n.store.status();
                (s.node, s.leader, s.term)
            })
            .collect();
        assert_ne!(c.leader().await, leader, "{status:?}");
        eprintln!("{} answered when {leader} had handed over {status:?}", answered.lock().unwrap().len());
    }
    for proposer in proposers {
        proposer.await.unwrap();
    }
    c.agree().await;
    // History keeps the last 1,000; the players noted them all.
    for i in 0..3 {
        let end = c.store(i).read(|state| state.position());
        until(|| c.node(i).played.lock().unwrap().last().unwrap().position >= end).await;
    }
    let played = c.node(0).played.lock().unwrap();
    let messages: Vec<(Position, String)> = played.iter().flat_map(|a| &a.effects).filter_map(message).collect();
    assert_eq!(messages.len(), 3 * EACH);
    for i in 0..3 {
        let mine: Vec<&String> =
            messages.iter().map(|(_, text)| text).filter(|t| t.starts_with(&format!("{i}:"))).collect();
        assert_eq!(mine, (0..EACH).map(|n| format!("{i}:{n}")).collect::<Vec<_>>().iter().collect::<Vec<_>>());
    }
    let answered = answered.lock().unwrap();
    assert!(messages.iter().all(|(position, text)| answered.get(text) == Some(position)), "the ack names the place");
}

fn message(effect: &moim_raft::command::Effect) -> Option<(Position, String)> {
    use moim_raft::command::{Effect, What};
    match effect {
        Effect::Entry { entry, room, .. } if *room == lobby() => match &entry.what {
            What::Message { text, .. } => Some((entry.position, text.clone())),
            _ => None,
        },
        _ => None,
    }
}

/// Keeps up to 32 proposals waiting.
async fn propose_numbered(
    store: Store,
    by: moim_raft::command::Holder,
    i: usize,
    count: usize,
    answered: Arc<Mutex<HashMap<String, Position>>>,
) {
    let window = Arc::new(tokio::sync::Semaphore::new(32));
    for n in 0..count {
        let permit = window.clone().acquire_owned().await.unwrap();
        let (text, answered) = (format!("{i}:{n}"), answered.clone());
        let told = text.clone();
        let ticket = Ticket::new(move |outcome| {
            // `Position(0)` says that it was refused, which a planned change of leader is no reason for.
            let position = outcome.map_or(Position(0), |applied| applied.position);
            answered.lock().unwrap().insert(told, position);
            drop(permit);
        });
        store.propose(say(&by, text), ticket);
    }
    drop(timeout(PATIENCE, window.acquire_many(32)).await.expect("all are answered"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_for_longer_than_the_log_reaches_back_gets_a_snapshot() {
    let mut c = Cluster::new(3).await;
    let leader = c.leader().await;
    let away = (leader + 1) % 3;
    let by = c.node(leader).open_in_lobby("client").await;
    c.stop(away).await;
    for n in 0..SNAPSHOT_EVERY * 4 {
        // One at a time: each is an entry of its own.
        c.node(leader).call(say(&by, n.to_string())).await;
    }
    // A leader keeps what a node that was heard of a moment ago has still to get; a follower purged it long ago.
    c.store(leader).hand_over().await;
    assert_ne!(c.leader().await, leader);
    c.reopen(away).await;
    c.all_started().await;
    c.agree().await;
    // From the log alone it could not have caught up; the player comes to it after apply did.
    until(|| c.node(away).installed.load(Ordering::SeqCst) == 1).await;
    assert_eq!(c.node(away).texts(), c.node(leader).texts());
    // It lives on it: what it proposes counts, and its own restart starts from there.
    let own = c.node(away).open_in_lobby("own").await;
    c.node(away).call(say(&own, "after")).await;
    c.stop(away).await;
    c.reopen(away).await;
    c.all_started().await;
    c.agree().await;
    assert_eq!(c.node(away).installed.load(Ordering::SeqCst), 0);
    assert!(c.node(away).texts().contains(&"after".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_says_so_and_proposes_nothing_more() {
    let c = Cluster::new(3).await;
    let removed = (c.leader().await + 1) % 3;
    let (store, other) = (c.store(removed), c.node((removed + 1) % 3));
    c.node(removed).open("client", "client").await;
    other.call(Command::Removed { node: store.node() }).await;
    let why = store.call(Command::EndDrain { node: 0 }).await;
    assert!(why.is_err(), "{why:?}");
    let why = timeout(PATIENCE, store.fatal()).await.expect("it cannot go on");
    assert!(why.to_string().contains("removed"), "{why}");
    assert_eq!(other.store.read(|state| state.nodes().len()), 2);
    let attached = other.store.read(|state| state.session(&sid("client")).map(|s| state.is_attached(&s)));
    assert_ne!(attached, Some(true), "its sessions count down, or their time is over already, like any lost ones");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_log_is_gone_is_refused_and_not_taken_for_a_new_one() {
    let mut cluster = Cluster::new(1).await;
    cluster.all_started().await;
    cluster.stop(0).await;
    let (log, aside) = (cluster.data(0).join("log"), cluster.data(0).with_extension("aside"));
    std::fs::rename(&log, &aside).unwrap();
    for emptied in [false, true] {
        if emptied {
            std::fs::create_dir(&log).unwrap();
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let Err(why) = cluster.try_open(0, listener).await else { panic!("it votes again") };
        let why = why.to_string();
        assert!(why.starts_with("refused: the log in ") && why.contains("move the whole data folder away"), "{why}");
    }
    std::fs::remove_dir(&log).unwrap();
    std::fs::rename(&aside, &log).unwrap();
    cluster.reopen(0).await;
    cluster.all_started().await;
}

/// Its next number has been used, in a life that the folder knows nothing of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_identity_was_put_back_starts_under_a_number_that_is_free() {
    let mut cluster = Cluster::new(3).await;
    cluster.all_started().await;
    let identity = cluster.data(0).join("identity");
    let old = std::fs::read(&identity).unwrap();
    cluster.stop(0).await;
    cluster.reopen(0).await;
    cluster.all_started().await;
    cluster.stop(0).await;
    let before = cluster.store(1).status().applied;
    std::fs::write(&identity, old).unwrap();
    std::fs::remove_file(marker::path(&cluster.data(0))).unwrap();
    cluster.reopen(0).await;
    cluster.all_started().await;
    assert_eq!(cluster.store(0).incarnation(), 3);
    let entries = cluster.store(1).status().applied - before;
    assert!(entries < 100, "{entries} entries for one start");
    cluster.agree().await;
}

/// Copies a folder; what it had replaced goes.
fn copy(from: &Path, to: &Path) {
    _ = fs::remove_dir_all(to);
    fs::create_dir(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap().path();
        let to = to.join(file.file_name().unwrap());
        if file.is_dir() { copy(&file, &to) } else { _ = fs::copy(&file, &to).unwrap() }
    }
}

async fn refusal(cluster: &Cluster, i: usize) -> String {
    let listener = tokio::net::TcpListener::bind(&cluster.listens[i]).await.unwrap();
    match cluster.try_open(i, listener).await {
        Ok(_) => panic!("it votes with less than it acknowledged"),
        Err(why) => why.to_string(),
    }
}

/// With another node that lagged behind it would make up a majority that knows nothing of what was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_copy_of_a_data_folder_does_not_start() {
    let mut c = Cluster::new(1).await;
    let data = c.data(0);
    let [early, running, last] = ["early", "running", "last"].map(|name| data.with_extension(name));
    c.stop(0).await;
    copy(&data, &early);
    c.reopen(0).await;
    let by = c.node(0).open_in_lobby("client").await;
    copy(&data, &running);
    for n in 0..10 {
        c.node(0).call(say(&by, format!("acknowledged {n}"))).await;
    }
    c.stop(0).await;
    copy(&data, &last);
    copy(&early, &data);
    let why = refusal(&c, 0).await;
    assert!(why.starts_with("refused: ") && why.contains("it was started 1 times, the node 2 times"), "{why}");
    copy(&running, &data);
    let why = refusal(&c, 0).await;
    assert!(why.contains("its log ends at") && why.contains("moim node replace") && why.contains(".cluster"), "{why}");
    copy(&last, &data);
    c.reopen(0).await;
    c.all_started().await;
    assert_eq!(c.node(0).texts().len(), 10);
    c.stop(0).await;
    // An operator knows better.
    copy(&running, &data);
    fs::remove_file(marker::path(&data)).unwrap();
    c.reopen(0).await;
    c.all_started().await;
    assert!(c.node(0).texts().is_empty());
}

/// Where the marker could not tell: the leader can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_whose_log_went_back_is_told_so_and_starts_again_with_the_right_one() {
    let mut c = Cluster::new(3).await;
    let leader = c.leader().await;
    let (follower, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let data = c.data(follower);
    let [old, new] = ["old", "new"].map(|name| data.with_extension(name));
    let by = c.node(leader).open_in_lobby("client").await;
    c.agree().await;
    c.stop(follower).await;
    copy(&data, &old);
    c.reopen(follower).await;
    c.all_started().await;
    for n in 0..10 {
        c.node(leader).call(say(&by, format!("acknowledged {n}"))).await;
    }
    c.agree().await;
    c.stop(follower).await;
    copy(&data, &new);
    copy(&old, &data);
    fs::remove_file(marker::path(&data)).unwrap();
    c.reopen(follower).await;
    until(|| c.store(follower).status().entering.contains("its log went back")).await;
    assert!(!c.store(follower).status().started);
    assert_eq!(c.store(leader).status().leader, Some(c.store(leader).node()), "it leads on");
    let members = c.store(other).members().await.unwrap();
    let note = members.into_iter().find(|member| member.node == c.store(follower).node()).unwrap().note.unwrap();
    assert!(note.contains("had acknowledged") && note.contains("moim node replace"), "{note}");
    c.node(other).call(say(&by, "the others go on")).await;
    c.stop(follower).await;
    copy(&new, &data);
    c.reopen(follower).await;
    c.all_started().await;
    c.agree().await;
    assert!(c.store(leader).members().await.unwrap().iter().all(|member| member.note.is_none()));
}
