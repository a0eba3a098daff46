//! Forming a cluster: whatever the order of starts and stops, there is one.

mod support;

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use moim_raft::{
    error::{Error, Result},
    form::{Former, Outcome},
    identity::{Belongs, Identity},
    marker,
    net::{CallRequest, CallResponse, Lane, Remote},
    raft::{NodeId, Peer},
};
use support::Node;
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::timeout};

const LONG: Duration = Duration::from_secs(20);

/// A place for a node: its folder and its address stay the same over restarts.
#[derive(Clone)]
struct Place {
    dir: PathBuf,
    addr: String,
    id: NodeId,
}

/// A node at its place, forming.
struct Live {
    node: Node,
    run: JoinHandle<Result<Outcome>>,
}

/// `n` places, by ascending id of their nodes.
fn places(temp: &TempDir, n: usize) -> Vec<Place> {
    let ports: Vec<_> = (0..n).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let mut places: Vec<Place> = (0..n)
        .map(|i| {
            let dir = temp.path().join(format!("n{i}"));
            let id = Identity::open(&dir).unwrap().node();
            Place { dir, addr: ports[i].local_addr().unwrap().to_string(), id }
        })
        .collect();
    places.sort_by_key(|place| place.id);
    places
}

fn addrs(places: &[&Place]) -> Vec<String> {
    places.iter().map(|place| place.addr.clone()).collect()
}

impl Live {
    async fn start(place: &Place, join: &[String], expect: usize) -> Live {
        let node = Node::start(&place.dir, &place.addr, "secret", expect).await;
        let run = run(&node, join);
        Live { node, run }
    }

    /// The outcome; from then on the node takes learners in, as a leader would.
    async fn outcome(&mut self) -> Outcome {
        let ended = timeout(LONG, &mut self.run).await;
        let text = self.node.former.waiting().borrow().clone();
        let outcome = ended.unwrap_or_else(|_| panic!("still {text}")).unwrap().unwrap();
        self.node.app.leads.store(true, Ordering::SeqCst);
        outcome
    }

    async fn waits_for(&self, what: &str) -> String {
        let mut waiting = self.node.former.waiting();
        let text = timeout(LONG, waiting.wait_for(|text| text.contains(what))).await;
        text.unwrap_or_else(|_| panic!("waits for {:?}", *self.node.former.waiting().borrow())).unwrap().clone()
    }

    async fn stop(self) {
        if !self.run.is_finished() {
            self.run.abort();
            let _ = self.run.await;
        }
        self.node.stop().await;
    }

    fn belongs(&self) -> Belongs {
        self.node.local.identity().belongs().clone()
    }
}

fn run(node: &Node, join: &[String]) -> JoinHandle<Result<Outcome>> {
    let (former, join): (Arc<Former>, _) = (Arc::clone(&node.former), join.to_vec());
    tokio::spawn(async move { former.run(&join).await })
}

fn cluster_of(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Found { cluster, .. } | Outcome::Member { cluster } => cluster,
    }
}

/// Waits for all and checks that they are in one cluster with one founder; its members' ids.
async fn one_cluster(lives: &mut [Live]) -> (String, Vec<NodeId>) {
    let outcomes = futures_util::future::join_all(lives.iter_mut().map(Live::outcome)).await;
    let clusters: BTreeSet<&str> = outcomes.iter().map(cluster_of).collect();
    assert_eq!(clusters.len(), 1, "{outcomes:?}");
    let mut founded = outcomes.iter().filter_map(|outcome| match outcome {
        Outcome::Found { members, .. } => Some(members.iter().map(|(id, _)| *id).collect::<Vec<_>>()),
        Outcome::Member { .. } => None,
    });
    let members = founded.next().expect("one founder");
    assert!(founded.next().is_none(), "{outcomes:?}");
    let cluster = cluster_of(&outcomes[0]).to_owned();
    for live in lives {
        assert!(matches!(live.belongs(), Belongs::Settled { cluster: held, .. } if held == cluster));
        let text = fs::read_to_string(marker::path(live.node.local.dir())).unwrap();
        assert_eq!(text.lines().next(), Some(cluster.as_str()));
    }
    (cluster, members)
}

#[tokio::test]
async fn three_nodes_form_one_cluster_in_every_order_of_starts() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let temp = TempDir::new().unwrap();
        let places = places(&temp, 3);
        let join = addrs(&places.iter().collect::<Vec<_>>());
        let mut lives = Vec::new();
        for i in order {
            lives.push(Live::start(&places[i], &join, 3).await);
            if lives.len() < 3 {
                lives.last().unwrap().waits_for(&format!("waiting for {} of 3 nodes: ", 3 - lives.len())).await;
            }
        }
        let (_, members) = one_cluster(&mut lives).await;
        assert_eq!(members, places.iter().map(|place| place.id).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_waiting_node_says_for_whom() {
    let temp = TempDir::new().unwrap();
    let places = places(&temp, 3);
    let join = addrs(&places.iter().collect::<Vec<_>>());
    let _a = Live::start(&places[0], &join, 3).await;
    let b = Live::start(&places[1], &join, 3).await;
    let text = b.waits_for("waiting for 1 of 3").await;
    assert_eq!(text, format!("waiting for 1 of 3 nodes: {} does not answer", places[2].addr));
}

/// Each of the three is stopped when the proposal has been accepted by one member and not by the other, and comes back.
#[tokio::test]
async fn a_restart_in_the_middle_goes_on_with_the_same_cluster() {
    for stopped in 0..3 {
        let temp = TempDir::new().unwrap();
        let places = places(&temp, 3);
        let join = addrs(&places.iter().collect::<Vec<_>>());
        let mut lives = Vec::new();
        for (i, place) in places.iter().enumerate() {
            lives.push(Live::start(place, &join, 3).await);
            lives[i].node.app.deaf.store(i == 2, Ordering::SeqCst);
        }
        lives[1].waits_for("to form cluster").await; // It has agreed; the third has not.
        let Belongs::Proposed { cluster: proposed, founder, .. } = lives[1].belongs() else { panic!() };
        assert_eq!(founder, places[0].id);
        lives.remove(stopped).stop().await;
        for live in &lives {
            live.node.app.deaf.store(false, Ordering::SeqCst);
        }
        lives.push(Live::start(&places[stopped], &join, 3).await);
        let (cluster, members) = one_cluster(&mut lives).await;
        assert_eq!((cluster, members.len()), (proposed, 3));
    }
}

#[tokio::test]
async fn a_founder_that_stopped_before_raft_knew_founds_the_same_again() {
    let temp = TempDir::new().unwrap();
    let place = places(&temp, 1).remove(0);
    let mut live = Live::start(&place, &[], 1).await;
    let first = live.outcome().await;
    assert!(matches!(&first, Outcome::Found { members, .. } if members.len() == 1));
    live.stop().await;
    let mut live = Live::start(&place, &[], 1).await;
    assert_eq!(live.outcome().await, first);
    live.node.raft.initialized.store(true, Ordering::SeqCst);
    let again = run(&live.node, &[]).await.unwrap().unwrap();
    assert_eq!(again, Outcome::Member { cluster: cluster_of(&first).to_owned() });
}

/// The second founder has a lower id, knows all, and appears while the first is forming.
#[tokio::test]
async fn a_founder_with_a_lower_id_in_the_middle_makes_no_second_cluster() {
    for _ in 0..5 {
        let temp = TempDir::new().unwrap();
        let places = places(&temp, 4);
        let three = addrs(&[&places[1], &places[2], &places[3]]);
        let four = addrs(&places.iter().collect::<Vec<_>>());
        let mut lives = Vec::new();
        for place in &places[1..] {
            lives.push(Live::start(place, &three, 3).await);
        }
        lives.push(Live::start(&places[0], &four, 3).await);
        one_cluster(&mut lives).await;
    }
}

/// Two founders that do not know each other share one node, and each needs it.
#[tokio::test]
async fn two_founders_that_share_only_one_member_make_one_cluster() {
    for round in 0..6 {
        let temp = TempDir::new().unwrap();
        let places = places(&temp, 5);
        let one = addrs(&[&places[0], &places[2], &places[4]]);
        let two = addrs(&[&places[1], &places[3], &places[4]]);
        let mut lives = Vec::new();
        for i in [0, 2, 1, 3] {
            lives.push(Live::start(&places[i], if i % 2 == 0 { &one } else { &two }, 3).await);
        }
        // The shared node comes last, so that both founders are ready for it.
        lives.push(Live::start(&places[4], if round % 2 == 0 { &one } else { &two }, 3).await);
        let (_, members) = one_cluster(&mut lives).await;
        assert!(members.contains(&places[4].id) && members.len() == 3);
    }
}

/// As above, but the shared node is bound to a proposal that cannot be finished: nobody may take it away.
#[tokio::test]
async fn a_bound_node_accepts_no_other_founder() {
    let temp = TempDir::new().unwrap();
    let places = places(&temp, 5);
    let one = addrs(&[&places[0], &places[2], &places[4]]);
    let two = addrs(&[&places[1], &places[3], &places[4]]);
    let first = Live::start(&places[0], &one, 3).await;
    let deaf = Live::start(&places[2], &one, 3).await;
    deaf.node.app.deaf.store(true, Ordering::SeqCst);
    let shared = Live::start(&places[4], &one, 3).await;
    shared.waits_for("to form cluster").await;
    first.stop().await; // Perhaps it was told that all have agreed; who knows.
    let second = Live::start(&places[1], &two, 3).await;
    let third = Live::start(&places[3], &two, 3).await;
    second.waits_for("has agreed to cluster").await;
    let text = shared.waits_for("waiting for the founder").await;
    assert!(text.contains("empty this node's data folder"), "{text}");
    // It comes back: its cluster goes on, and the others find it.
    deaf.node.app.deaf.store(false, Ordering::SeqCst);
    let first = Live::start(&places[0], &one, 3).await;
    let (_, members) = one_cluster(&mut [first, deaf, shared, second, third]).await;
    assert_eq!(members, [places[0].id, places[2].id, places[4].id]);
}

/// Another founder, of whom only this message is ever seen, wins `of` for its cluster.
async fn bind(of: &Live, cluster: &str) {
    let peer = |name: &str| Peer { name: name.into(), addr: "127.0.0.1:1".into() };
    let members = vec![(1, peer("founder")), (of.node.id, peer("this")), (NodeId::MAX, peer("third"))];
    let from = Remote { node: 1, name: "founder".into(), cluster: None, lane: Lane::Call, process: None };
    let request = CallRequest::Form { cluster: cluster.into(), members };
    assert_eq!(of.node.former.answer(&from, &request).await, Some(CallResponse::Form(Ok(()))));
}

/// All members have accepted, but while the last answer was under way the founder itself agreed to another's proposal.
#[tokio::test]
async fn a_founder_that_gave_its_proposal_up_does_not_settle_it() {
    let temp = TempDir::new().unwrap();
    let places = places(&temp, 3);
    let join = addrs(&places.iter().collect::<Vec<_>>());
    let second = Live::start(&places[1], &join, 3).await;
    let third = Live::start(&places[2], &join, 3).await;
    third.node.app.delay.store(500, Ordering::SeqCst);
    let founder = Live::start(&places[0], &join, 3).await;
    until(|| {
        matches!(third.belongs(), Belongs::Proposed { .. }) && matches!(second.belongs(), Belongs::Proposed { .. })
    })
    .await;
    bind(&founder, "other").await;
    founder.waits_for("waiting for the founder").await;
    assert!(matches!(founder.belongs(), Belongs::Proposed { founder: 1, .. }) && !founder.run.is_finished());
}

/// A formed cluster was seen before the node agreed to a proposal, and the news of it comes after.
#[tokio::test]
async fn a_node_bound_meanwhile_does_not_act_on_what_it_saw_before() {
    let temp = TempDir::new().unwrap();
    let places = places(&temp, 1);
    let formed = Node::member(&temp.path().join("formed"), "formed", "secret").await;
    formed.app.delay.store(500, Ordering::SeqCst);
    let live = Live::start(&places[0], std::slice::from_ref(&formed.addr), 3).await;
    until(|| formed.app.asked.load(Ordering::SeqCst) == 1).await; // The answer is under way, for half a second.
    bind(&live, "other").await;
    live.waits_for("waiting for the founder").await;
    assert!(matches!(live.belongs(), Belongs::Proposed { founder: 1, .. }), "{:?}", live.belongs());
}

async fn until(done: impl Fn() -> bool) {
    let polled = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, polled).await.expect("it comes to pass");
}

#[tokio::test]
async fn of_more_than_expected_the_lowest_form_and_the_rest_join() {
    let temp = TempDir::new().unwrap();
    let places = places(&temp, 6);
    let join = addrs(&places.iter().collect::<Vec<_>>());
    let mut lives = Vec::new();
    for place in &places[..5] {
        lives.push(Live::start(place, &join, 3).await);
    }
    // Three are no majority of six: as long as one is missing, others could form without us.
    lives[4].waits_for("waiting for all 6 nodes").await;
    lives.push(Live::start(&places[5], &join, 3).await);
    let (_, members) = one_cluster(&mut lives).await;
    assert_eq!(members, places[..3].iter().map(|place| place.id).collect::<Vec<_>>());
    let joined: BTreeSet<NodeId> = lives.iter().flat_map(|live| live.node.app.joined.lock().unwrap().clone()).collect();
    assert!(places[3..].iter().all(|place| joined.contains(&place.id)));
}

/// Any node is killed and started again, at any moment, while four of which three are expected are forming.
#[tokio::test]
async fn random_restarts_while_forming_make_one_cluster() {
    for seed in 0..8_u64 {
        let temp = TempDir::new().unwrap();
        let places = places(&temp, 4);
        let join = addrs(&places.iter().collect::<Vec<_>>());
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let mut lives = Vec::new();
        for place in &places {
            lives.push(Live::start(place, &join, 3).await);
        }
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(next(120))).await;
            let live = lives.remove(next(4) as usize);
            let place = places.iter().find(|place| place.id == live.node.id).unwrap();
            live.stop().await;
            lives.push(Live::start(place, &join, 3).await);
        }
        one_cluster(&mut lives).await;
    }
}

#[tokio::test]
async fn folders_lost_beside_their_markers_form_nothing_and_one_may_join() {
    let temp = TempDir::new().unwrap();
    let places = places(&temp, 3);
    let join = addrs(&places.iter().collect::<Vec<_>>());
    let mut lives = Vec::new();
    for place in &places {
        lives.push(Live::start(place, &join, 3).await);
    }
    let (cluster, _) = one_cluster(&mut lives).await;
    for live in lives {
        live.stop().await;
    }
    // All three disks are not mounted after a reboot.
    let kept = temp.path().join("kept");
    fs::rename(&places[0].dir, &kept).unwrap();
    for place in &places[1..] {
        fs::remove_dir_all(&place.dir).unwrap();
    }
    let mut lives = Vec::new();
    for place in &places {
        let live = Live::start(place, &join, 3).await;
        live.waits_for(&format!("belonged to cluster {cluster}. Restore the folder")).await;
        lives.push(live);
    }
    assert!(lives.iter().all(|live| live.belongs() == Belongs::Nowhere));
    // One is: the others are new nodes of the old cluster.
    lives.remove(0).stop().await;
    fs::remove_dir_all(&places[0].dir).unwrap();
    fs::rename(&kept, &places[0].dir).unwrap();
    let first = Live::start(&places[0], &join, 3).await;
    first.node.raft.initialized.store(true, Ordering::SeqCst);
    first.node.app.leads.store(true, Ordering::SeqCst);
    for live in &mut lives {
        assert_eq!(live.outcome().await, Outcome::Member { cluster: cluster.clone() });
    }
}

#[tokio::test]
async fn a_lost_folder_alone_is_refused_with_what_to_do() {
    let temp = TempDir::new().unwrap();
    let place = places(&temp, 1).remove(0);
    let mut live = Live::start(&place, &[], 1).await;
    live.outcome().await;
    live.stop().await;
    fs::remove_dir_all(&place.dir).unwrap();
    let live = Live::start(&place, &[], 1).await;
    let Err(Error::Refused(why)) = live.run.await.unwrap() else { panic!("must be refused") };
    assert!(["Restore", "join that cluster", "delete the marker"].iter().all(|way| why.contains(way)), "{why}");
}

#[tokio::test]
async fn different_expectations_are_named() {
    let temp = TempDir::new().unwrap();
    let places = places(&temp, 2);
    let join = addrs(&places.iter().collect::<Vec<_>>());
    let a = Live::start(&places[0], &join, 2).await;
    let _b = Live::start(&places[1], &join, 3).await;
    let text = a.waits_for("expects").await;
    assert!(text.contains("expects 3 nodes, this one 2"), "{text}");
}
