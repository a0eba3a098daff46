//! What a node in no cluster does with what it saw of the others: pure, so that each case is one test.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    identity::{ClusterId, Members},
    net::Probed,
    raft::NodeId,
};

/// What one round of probing saw, this node not included.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) nodes: BTreeMap<NodeId, Probed>,
    /// Why the other addresses gave nothing.
    pub(super) missing: Vec<String>,
}

/// What a round leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Join { cluster: ClusterId },
    Propose { members: Members },
    Wait(String),
}

/// What to do with what was seen. Pure.
pub(super) fn decide(me: &Probed, seen: &Seen) -> Step {
    let clusters: BTreeSet<&ClusterId> =
        seen.nodes.values().filter(|node| node.formed).filter_map(|node| node.cluster.as_ref()).collect();
    let mut clusters = clusters.into_iter();
    match (clusters.next(), clusters.next()) {
        (Some(one), Some(two)) => {
            return Step::Wait(format!("the addresses given lead to two clusters, {one} and {two}: give those of one"));
        }
        (Some(cluster), None) if me.formed && me.cluster.as_ref() != Some(cluster) => {
            return Step::Wait(format!(
                "this node belongs to another cluster than {cluster}, which it was told to join"
            ));
        }
        (Some(cluster), None) => return Step::Join { cluster: cluster.clone() },
        (None, _) if me.formed => return Step::Wait(missing_text("a node of its cluster", seen)),
        (None, _) => {}
    }
    if let Some(why) = &me.barred {
        return Step::Wait(why.clone());
    }
    propose_or_wait(me, seen)
}

fn propose_or_wait(me: &Probed, seen: &Seen) -> Step {
    let expect = me.expect as usize;
    if let Some(other) = seen.nodes.values().find(|node| node.expect != me.expect) {
        return Step::Wait(format!(
            "{} expects {} nodes, this one {expect}: give all the same",
            other.peer, other.expect
        ));
    }
    if let Some((peer, why)) = seen.nodes.values().find_map(|node| Some((&node.peer, node.barred.as_ref()?))) {
        return Step::Wait(format!("waiting for {peer}: {why}"));
    }
    let mut members: Members = seen.nodes.values().chain([me]).map(|node| (node.node, node.peer.clone())).collect();
    members.sort_by_key(|(id, _)| *id);
    let found = members.len();
    let mut names = BTreeMap::new();
    if let Some((one, other)) = members.iter().find_map(|(_, peer)| Some((names.insert(&peer.name, peer)?, peer))) {
        return Step::Wait(format!("{one} and {other} have the same name: give each node its own --name"));
    }
    if found < expect {
        return Step::Wait(missing_text(&format!("{} of {expect} nodes", expect - found), seen));
    }
    // Those outside could be enough for a cluster of their own: then go on only when all are seen, for all pick the same.
    let known = found + seen.missing.len();
    if known >= 2 * expect && !seen.missing.is_empty() {
        return Step::Wait(missing_text(&format!("all {known} nodes, since {expect} are no majority of them"), seen));
    }
    members.truncate(expect);
    match &members[0] {
        (id, _) if *id == me.node => Step::Propose { members },
        (_, founder) => Step::Wait(format!("waiting for {founder} to form the cluster")),
    }
}

fn missing_text(what: &str, seen: &Seen) -> String {
    match seen.missing.join("; ") {
        missing if missing.is_empty() => format!("waiting for {what}"),
        missing => format!("waiting for {what}: {missing}"),
    }
}

pub(super) fn bound_text(cluster: &str, founder: NodeId, seen: &Seen) -> String {
    match seen.nodes.get(&founder) {
        Some(node) => format!("waiting for {} to form cluster {cluster}", node.peer),
        None => format!(
            "{} (this node has agreed to its cluster {cluster}; if the data of that node is lost for good, empty this node's \
             data folder, which holds nothing yet)",
            missing_text(&format!("the founder, node {founder:016x}"), seen)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Peer;

    fn node(id: NodeId, expect: u64) -> Probed {
        let peer = Peer { name: format!("n{id}"), addr: format!("127.0.0.1:{id}") };
        Probed { node: id, peer, cluster: None, formed: false, expect, barred: None, clock_ms: 0 }
    }

    fn formed(id: NodeId, cluster: &str) -> Probed {
        Probed { cluster: Some(cluster.to_owned()), formed: true, ..node(id, 3) }
    }

    fn step(me: Probed, others: impl IntoIterator<Item = Probed>, missing: usize) -> Step {
        let nodes = others.into_iter().map(|node| (node.node, node)).collect();
        decide(&me, &Seen { nodes, missing: vec!["it does not answer".to_owned(); missing] })
    }

    fn members(step: Step) -> Vec<NodeId> {
        let Step::Propose { members } = step else { panic!("{step:?}") };
        members.iter().map(|(id, _)| *id).collect()
    }

    fn text(step: Step) -> String {
        let Step::Wait(text) = step else { panic!("{step:?}") };
        text
    }

    #[test]
    fn only_the_lowest_proposes_and_it_takes_the_lowest() {
        assert_eq!(members(step(node(1, 3), [node(4, 3), node(2, 3), node(3, 3)], 0)), [1, 2, 3]);
        assert!(text(step(node(2, 3), [node(1, 3), node(3, 3)], 0)).contains("n1"));
        assert_eq!(members(step(node(1, 1), [], 0)), [1]);
    }

    /// Otherwise those who are not seen could do the same at this moment.
    #[test]
    fn who_is_no_majority_of_the_known_waits_for_all_of_them() {
        assert_eq!(members(step(node(1, 3), [node(2, 3), node(3, 3)], 2)), [1, 2, 3]);
        assert!(text(step(node(1, 3), [node(2, 3), node(3, 3)], 3)).contains("all 6 nodes"));
        assert!(text(step(node(1, 1), [], 1)).contains("all 2 nodes"));
        assert_eq!(members(step(node(1, 1), [node(2, 1)], 0)), [1]);
    }

    #[test]
    fn two_of_one_name_form_nothing() {
        let named = |id, name: &str| Probed { peer: Peer { name: name.to_owned(), ..node(id, 3).peer }, ..node(id, 3) };
        let why = text(step(named(1, "a"), [named(2, "b"), named(3, "a")], 0));
        assert_eq!(why, "a@127.0.0.1:1 and a@127.0.0.1:3 have the same name: give each node its own --name");
    }

    #[test]
    fn a_formed_cluster_goes_before_forming_one() {
        let join = Step::Join { cluster: "one".to_owned() };
        assert_eq!(step(node(1, 3), [node(2, 3), node(3, 3), formed(4, "one")], 0), join);
        assert_eq!(step(formed(1, "one"), [formed(4, "one")], 0), join);
        assert!(text(step(node(1, 3), [formed(4, "one"), formed(5, "two")], 0)).contains("two clusters"));
        assert!(text(step(formed(1, "one"), [formed(4, "two")], 0)).contains("another cluster"));
        assert!(text(step(formed(1, "one"), [node(2, 3), node(3, 3)], 0)).contains("a node of its cluster"));
    }

    #[test]
    fn a_barred_node_joins_but_forms_nothing() {
        let barred = |id| Probed { barred: Some("lost".to_owned()), ..node(id, 3) };
        assert_eq!(text(step(barred(1), [node(2, 3), node(3, 3)], 0)), "lost");
        assert!(text(step(node(1, 3), [barred(2), node(3, 3)], 0)).contains("n2@127.0.0.1:2: lost"));
        assert_eq!(step(barred(1), [formed(2, "one")], 0), Step::Join { cluster: "one".to_owned() });
    }
}
