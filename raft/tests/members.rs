//! Changes of the cluster's nodes: who becomes a voter, who takes whose place, and who never comes back.

mod cluster;
#[path = "process/proxy.rs"]
mod proxy;

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use cluster::{Cluster, PATIENCE, REPLACE_AFTER, say, sid, until};
use moim_raft::{Change, Error, NodeId, Store, command::Command};
use proxy::{Links, Mode};
use tokio::{net::TcpListener, time::timeout};

async fn cluster_behind_links() -> (Cluster, Links) {
    let (links, mut listeners) = (Links::new(3).await, Vec::new());
    for i in 0..3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        links.listens(i, &listener.local_addr().unwrap().to_string());
        listeners.push(listener);
    }
    let cluster = Cluster::with(listeners, links.addrs.clone(), 3).await;
    (0..3).for_each(|i| links.is_called(i, cluster.store(i).node()));
    (cluster, links)
}

fn ids(c: &Cluster, nodes: impl IntoIterator<Item = usize>) -> Vec<NodeId> {
    nodes.into_iter().map(|i| c.store(i).node()).collect()
}

async fn change(by: &Store, change: Change) -> Result<(), String> {
    match by.change(&change).await {
        Ok(()) => Ok(()),
        Err(Error::Refused(why)) => Err(why),
        Err(e) => panic!("{change:?}: {e}"),
    }
}

/// Asks until it is done: a node that has just started is not caught up yet.
async fn changed(by: &Store, wanted: Change) {
    let done = async {
        while change(by, wanted.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let text = change(by, wanted.clone()).await;
    assert!(timeout(PATIENCE, done).await.is_ok(), "{wanted:?}: {text:?}");
}

/// Waits until the store says that it was removed.
async fn says_removed(store: &Store) {
    let why = timeout(PATIENCE, store.fatal()).await.expect("it cannot go on");
    assert!(matches!(&why, Error::Refused(text) if text.contains("removed") && text.contains("folder")), "{why}");
    assert!(store.is_removed());
}

fn learners(c: &Cluster) -> Vec<usize> {
    let voters = c.running().next().unwrap().store.status().voters;
    (0..c.nodes.len()).filter(|i| c.nodes[*i].is_some() && !voters.contains(&c.store(*i).node())).collect()
}

fn voters(c: &Cluster) -> Vec<usize> {
    let learners = learners(c);
    (0..c.nodes.len()).filter(|i| c.nodes[*i].is_some() && !learners.contains(i)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_is_promoted_by_itself_only_up_to_the_expected_voters() {
    let mut c = Cluster::of(5, 3).await;
    assert_eq!(learners(&c).len(), 2, "more nodes than expected, and the rest learn");
    until(|| learners(&c).iter().all(|i| c.store(*i).status().learner.contains("3 were expected"))).await;
    let leader = c.leader().await;
    let gone = voters(&c).into_iter().find(|i| *i != leader).unwrap();
    let spare = learners(&c);
    change(&c.store(spare[0]), Change::Remove { node: c.store(gone).node() }).await.unwrap();
    says_removed(&c.store(gone)).await;
    c.stop(gone).await;
    let promoted = async {
        while voters(&c).len() < 3 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, promoted).await.expect("a learner takes the free place");
    let left = learners(&c);
    assert_eq!(left.len(), 1);
    // Nobody goes beyond the expected number but an operator.
    change(&c.store(left[0]), Change::Promote { node: c.store(left[0]).node() }).await.unwrap();
    c.voters_are(ids(&c, (0..5).filter(|i| *i != gone))).await;
    until(|| c.store(left[0]).status().learner.is_empty()).await;
    c.agree().await;
}

/// Learner promoted too early: one that is far behind would hold up every commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_is_far_behind_is_promoted_only_when_it_has_been_near_for_a_while() {
    let mut c = Cluster::of(4, 3).await;
    let (leader, learner) = (c.leader().await, learners(&c)[0]);
    let by = c.node(leader).open_in_lobby("client").await;
    let (id, store) = (c.store(learner).node(), c.store(leader));
    c.stop(learner).await;
    // One at a time: each is an entry of its own.
    for n in 0..1100 {
        c.node(leader).call(say(&by, n.to_string())).await;
    }
    let promote = || change(&store, Change::Promote { node: id });
    let why = promote().await.unwrap_err();
    assert!(why.contains(&format!("n{learner} has not been heard of")), "{why}");
    let back = Instant::now();
    c.reopen(learner).await;
    let mut refusals = Vec::new();
    let promoted = async {
        while let Err(why) = promote().await {
            refusals.push(why);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, promoted).await.expect("promoted in the end");
    let is_right = |why: &String| why.contains("catching up") || why.contains("kept up");
    assert!(refusals.iter().any(is_right), "{:?}", refusals.last());
    assert!(back.elapsed() >= Duration::from_secs(3), "after {:?}", back.elapsed());
    c.voters_are(ids(&c, 0..4)).await;
}

/// Wiped disk, same id: there is no such thing; the same name with an empty disk is another node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_disk_with_the_old_name_is_a_new_id_a_learner_and_says_why_twice_in_a_row() {
    let mut c = Cluster::new(3).await;
    let lost = (c.leader().await + 1) % 3;
    let keeps = (lost + 1) % 3;
    let by = c.node(keeps).open_in_lobby("client").await;
    c.node(keeps).call(say(&by, "before")).await;
    for round in 0..2 {
        let old = c.store(lost).node();
        let down = Instant::now();
        c.wipe(lost).await;
        let new = c.store(lost).node();
        assert_ne!(old, new);
        until(|| c.store(lost).status().learner.contains("moim node replace")).await;
        let why = c.store(lost).status().learner;
        assert!(why.contains(&format!("n{lost}")) && why.contains(&old.to_string()), "{why}");
        assert!(c.store(lost).status().voters.contains(&old), "the dead one still has the vote");
        c.voters_are([c.store(lost).node(), c.store(keeps).node(), c.store((lost + 2) % 3).node()]).await;
        assert!(down.elapsed() >= REPLACE_AFTER, "replaced after {:?}", down.elapsed());
        for node in c.running() {
            until(|| node.store.read(|state| state.is_removed(old))).await;
        }
        until(|| c.store(lost).status().learner.is_empty()).await;
        c.node(keeps).call(say(&by, format!("after {round}"))).await;
        c.agree().await;
    }
    assert_eq!(c.node(lost).texts(), ["before", "after 0", "after 1"]);
    // The cluster lives with any one of the others gone: the new one has a vote that counts.
    let gone = c.leader().await;
    let gone = if gone == lost { keeps } else { gone };
    c.stop(gone).await;
    let other = (0..3).find(|i| *i != gone && *i != lost).unwrap();
    c.node(other).open("after", "after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_word_replaces_a_dead_id_at_once() {
    let mut c = Cluster::new(3).await;
    let lost = (c.leader().await + 1) % 3;
    let keeps = (lost + 1) % 3;
    let old = c.store(lost).node();
    c.wipe(lost).await;
    c.all_started().await;
    let new = c.store(lost).node();
    let took = Instant::now();
    changed(&c.store(keeps), Change::Replace { old, new }).await;
    assert!(took.elapsed() < REPLACE_AFTER);
    c.voters_are(ids(&c, 0..3)).await;
    assert!(c.store(keeps).status().peers.iter().all(|(id, _)| *id != old));
    assert_eq!(change(&c.store(keeps), Change::Replace { old, new }).await, Ok(()), "a second time it is so already");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removing_the_leader_hands_over_first() {
    let c = Cluster::new(3).await;
    let leader = c.leader().await;
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    c.node(leader).open("client", "client").await;
    let attached =
        |i: usize| c.store(i).read(|state| state.session(&sid("client")).map(|session| state.is_attached(&session)));
    assert_eq!(attached(leader), Some(true));
    let before = c.store(leader).status().term;
    change(&c.store(others[0]), Change::Remove { node: c.store(leader).node() }).await.unwrap();
    says_removed(&c.store(leader)).await;
    let two = ids(&c, others);
    for i in others {
        until(|| c.store(i).status().voters.iter().all(|id| two.contains(id))).await;
        // Its sessions count down, like those of a node that is down.
        until(|| attached(i) == Some(false)).await;
    }
    assert!(c.store(others[0]).status().term > before);
    // One vote less, and both that are left are needed.
    let why = change(&c.store(others[0]), Change::Remove { node: 1 }).await.unwrap_err();
    assert!(why.contains("no such node"), "{why}");
    c.node(others[1]).open("another", "another").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_voters_become_one_although_the_one_that_leaves_must_agree() {
    let c = Cluster::new(2).await;
    let leader = c.leader().await;
    let other = 1 - leader;
    change(&c.store(other), Change::Remove { node: c.store(other).node() }).await.unwrap();
    says_removed(&c.store(other)).await;
    let only = c.store(leader).node();
    until(|| c.store(leader).status().voters.iter().eq([&only])).await;
    c.node(leader).open("client", "client").await;
    let why = change(&c.store(leader), Change::Remove { node: only }).await.unwrap_err();
    assert!(why.contains("only voter"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_would_lose_the_quorum_is_refused_unless_it_is_the_dead_one_that_goes() {
    let mut c = Cluster::new(3).await;
    let leader = c.leader().await;
    let (dead, alive) = ((leader + 1) % 3, (leader + 2) % 3);
    let dead_id = c.store(dead).node();
    c.stop(dead).await;
    let store = c.store(alive);
    let why = loop {
        match change(&store, Change::Remove { node: 0 }).await {
            Err(_) => {}
            Ok(()) => panic!("nobody has that id"),
        }
        let members = store.members().await.expect("there is a leader");
        if members.iter().any(|member| member.node == dead_id && member.silent_ms > 1000) {
            break change(&store, Change::Remove { node: store.node() }).await.unwrap_err();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(why.contains("1 of 2 voters would be up, and 2 are needed"), "{why}");
    change(&store, Change::Remove { node: dead_id }).await.unwrap();
    c.voters_are(ids(&c, [leader, alive])).await;
    assert!(c.store(leader).read(|state| state.is_removed(dead_id)));
}

/// Node id reused: a removed node's folder is put back, and may not take part.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_folder_of_a_removed_node_is_refused_and_an_empty_one_is_a_new_node() {
    let mut c = Cluster::new(3).await;
    let leader = c.leader().await;
    let gone = (leader + 1) % 3;
    let old = c.store(gone).node();
    c.stop(gone).await; // It never heard of its removal.
    changed(&c.store(leader), Change::Remove { node: old }).await;
    let before = c.store(leader).status().term;
    c.reopen(gone).await;
    says_removed(&c.store(gone)).await;
    c.stop(gone).await;
    let peers = c.store(leader).status().peers;
    assert!(peers.len() == 2 && peers.iter().all(|(id, _)| *id != old));
    fs::remove_dir_all(c.data(gone)).unwrap();
    c.reopen(gone).await;
    c.all_started().await;
    assert_ne!(c.store(gone).node(), old);
    // A place is free, so it votes by itself.
    c.voters_are(ids(&c, 0..3)).await;
    assert_eq!(c.store(leader).status().term, before, "nobody's election was disturbed");
}

/// Removed node keeps campaigning: it is told when it knocks, and its term counts for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_removed_while_it_was_cut_off_changes_no_term_when_it_is_back() {
    let (c, links) = cluster_behind_links().await;
    let leader = c.leader().await;
    let away = (leader + 1) % 3;
    let id = c.store(away).node();
    links.set_all_of(away, Mode::Hold);
    changed(&c.store(leader), Change::Remove { node: id }).await;
    let term = c.store(leader).status().term;
    // Long enough to stand for election again and again.
    tokio::time::sleep(Duration::from_secs(2)).await;
    links.heal();
    says_removed(&c.store(away)).await;
    let other = (leader + 2) % 3;
    for i in [leader, other] {
        let status = c.store(i).status();
        assert_eq!((status.term, status.leader), (term, Some(c.store(leader).node())));
    }
    assert!(c.store(away).call(Command::EndDrain { node: 0 }).await.is_err());
    c.node(other).open("client", "client").await;
}

/// Concurrent membership changes: the second waits for the first, and is judged by what is so then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removals_at_once_are_done_one_after_another() {
    let c = Cluster::of(5, 5).await;
    let leader = c.leader().await;
    let gone = [(leader + 1) % 5, (leader + 2) % 5];
    let (one, two) = (c.store(gone[0]).node(), c.store(gone[1]).node());
    // Asked at two different nodes at the same time.
    let (a, b) = (c.store(leader), c.store((leader + 3) % 5));
    let (first, second) =
        tokio::join!(change(&a, Change::Remove { node: one }), change(&b, Change::Remove { node: two }));
    assert_eq!((first, second), (Ok(()), Ok(())));
    for i in gone {
        says_removed(&c.store(i)).await;
    }
    let left: Vec<usize> = (0..5).filter(|i| !gone.contains(i)).collect();
    let wanted = ids(&c, left.clone());
    for i in left {
        until(|| c.store(i).status().voters.iter().all(|id| wanted.contains(id))).await;
        assert_eq!(c.store(i).read(|state| state.expected_voters()), Some(5));
    }
}

/// Wrong address, nodes swapped: each listens where another is looked for, and each end checks whom it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swapped_ports_replicate_nothing_and_say_so() {
    let mut c = Cluster::new(3).await;
    let by = c.node(0).open_in_lobby("client").await;
    c.node(0).call(say(&by, "before")).await;
    let right = c.listens.clone();
    for turned in [1, 0] {
        for i in 0..3 {
            c.stop(i).await;
        }
        c.listens = right.clone();
        c.listens.rotate_left(turned);
        for i in 0..3 {
            c.reopen(i).await;
        }
        if turned == 0 {
            break;
        }
        // Node 0 listens where node 1 is looked for.
        until(|| c.store(2).status().peers.len() == 3).await;
        let (wanted, here) = (c.store(1).node(), c.store(0).node());
        let asked = c.store(2).ask(wanted, bytes::Bytes::new(), PATIENCE).await;
        let why = asked.unwrap_err().to_string();
        assert!(why.contains(&format!("node {wanted:016x} is wanted, but node {here:016x} is here")), "{why}");
        tokio::time::sleep(Duration::from_secs(2)).await;
        for node in c.running() {
            let status = node.store.status();
            assert!(status.silent_for.is_none() && !status.started, "{status:?}");
            assert!(node.store.linearizable().await.is_err());
        }
    }
    c.all_started().await;
    c.agree().await;
    assert_eq!(c.node(2).texts(), ["before"]);
}

/// Node restarts and serves older state: nothing that was acknowledged to it is missing when it serves again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_serves_nothing_older_than_it_served_before() {
    let mut c = Cluster::new(3).await;
    for i in 0..3 {
        let by = c.node(i).open_in_lobby(&format!("client{i}")).await;
        c.node(i).call(say(&by, format!("mine {i}"))).await;
        let served = c.store(i).read(|state| state.position());
        c.stop(i).await;
        c.reopen(i).await;
        let mut started = c.store(i).started();
        timeout(PATIENCE, started.wait_for(|started| *started)).await.expect("it starts").unwrap();
        // The very first read that it can answer.
        let (position, texts) = c.store(i).read(|state| (state.position(), cluster::texts(state)));
        assert!(position > served && texts.contains(&format!("mine {i}")), "{position} after {served}: {texts:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_node_of_a_name_waits_until_the_first_is_gone_and_says_so() {
    let mut c = Cluster::new(3).await;
    let taken = (c.leader().await + 1) % 3;
    let second = c.add(&format!("n{taken}")).await;
    until(|| c.store(second).status().waiting.contains(&format!("has the name n{taken}"))).await;
    let why = c.store(second).status().waiting;
    assert!(why.contains(&c.store(taken).node().to_string()) && why.contains("--name"), "{why}");
    assert_eq!(c.store(taken).status().peers.len(), 3);
    // The documented way: the old one is down.
    c.stop(taken).await;
    c.all_started().await;
    until(|| c.store(second).status().learner.contains("moim node replace")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_with_another_name_or_address_is_known_by_it() {
    let mut c = Cluster::new(3).await;
    let by = c.node(0).open_in_lobby("client").await;
    for round in 0..2 {
        // The leader, too.
        let moved = (c.leader().await + round) % 3;
        c.stop(moved).await;
        c.names[moved] = format!("moved{round}");
        c.reopen_elsewhere(&[moved]).await;
        c.all_started().await;
        let (node, addr) = (c.store(moved).node(), c.addrs[moved].clone());
        for node_of in c.running() {
            until(|| {
                let peers = node_of.store.status().peers;
                peers.iter().any(|(id, peer)| *id == node && peer.addr == addr && peer.name == format!("moved{round}"))
            })
            .await;
        }
        assert_eq!(c.store(moved).status().voters.len(), 3);
        c.node((moved + 1) % 3).call(say(&by, format!("after {round}"))).await;
        c.agree().await;
    }
    // But not by a name that another one has.
    let renamed = (c.leader().await + 1) % 3;
    c.stop(renamed).await;
    let (before, taken) = (c.names[renamed].clone(), c.names[(renamed + 1) % 3].clone());
    c.names[renamed] = taken;
    c.reopen(renamed).await;
    until(|| c.store(renamed).status().entering.contains("a node that is up has the name")).await;
    c.stop(renamed).await;
    c.names[renamed] = before;
    c.reopen(renamed).await;
    c.all_started().await;
    c.agree().await;
}

/// Nobody leads, so nobody can write down where they are: they find each other by what each says of itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_that_moved_at_once_finds_each_other() {
    let mut c = Cluster::new(3).await;
    // All of them; two, of which one leads; one, while another one is down.
    for (moved, down) in [(3, 0), (2, 0), (1, 1)] {
        let leader = c.leader().await;
        let stopped: Vec<usize> = (0..moved + down).map(|i| (leader + i) % 3).collect();
        for i in &stopped {
            c.stop(*i).await;
        }
        c.reopen_elsewhere(&stopped[..moved]).await;
        c.all_started().await;
        let wrote = c.running().next().expect("most run");
        wrote.open_in_lobby(&format!("client{moved}")).await;
        for i in &stopped[moved..] {
            c.reopen(*i).await;
        }
        c.all_started().await;
        for node in c.running() {
            let known = || node.store.status().peers.into_iter().map(|(_, peer)| peer.addr).collect::<BTreeSet<_>>();
            until(|| known() == c.addrs.iter().cloned().collect()).await;
        }
        c.agree().await;
    }
}

/// It moved since, or the list never named all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_also_when_it_was_not_told_where_the_leader_is() {
    let mut c = Cluster::new(3).await;
    let leader = c.leader().await;
    let addr = std::mem::replace(&mut c.addrs[leader], "127.0.0.1:1".to_owned());
    let new = c.add("n3").await;
    until(|| c.store(new).status().started).await;
    assert!(c.store(new).status().peers.iter().any(|(_, peer)| peer.addr == addr));
}
