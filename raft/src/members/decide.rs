//! What a leader does next about the cluster's nodes, and why it does not do what it is asked: pure, so that each case is
//! one test.
//!
//! What always holds: one step is decided at a time, on one view, and no second one while Raft's configuration is joint;
//! no step leaves a majority of the voters that remain without an answer; a dead id's place is taken only after its time
//! or on an operator's word.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::Change;
use crate::raft::NodeId;

/// The cluster's nodes as its leader sees them.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// The leader.
    pub me: NodeId,
    /// Voters. Two sets while a change is half done: the ones before and the ones after it.
    pub configs: Vec<BTreeSet<NodeId>>,
    /// All members, voters and learners.
    pub members: BTreeMap<NodeId, Seen>,
    /// Ids that may never come back; those that are still members are to go.
    pub removed: BTreeSet<NodeId>,
    /// Up to how many voters are made without an operator.
    pub expected: Option<u64>,
    pub replace_after: Duration,
}

#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub name: String,
    /// Entries that it does not have yet.
    pub lag: Option<u64>,
    /// It has been near the end of the log for long enough.
    pub caught_up: bool,
    /// This leader heard of it a moment ago.
    pub up: bool,
    /// No word of it for so long, counted from when this leader became one at the earliest.
    pub silent: Duration,
    /// An incarnation of it is live.
    pub started: bool,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A change is half done, perhaps since another leader: do its second half.
    LeaveJoint,
    SetExpected(u64),
    Promote(NodeId),
    Remove(NodeId),
    /// One change: `new` votes in place of `old`, which leaves.
    Replace {
        old: NodeId,
        new: NodeId,
    },
    /// What is to be done concerns this leader: another one has to do it.
    HandOver,
}

/// What to do without being asked.
pub(super) fn next(view: &View) -> Option<Step> {
    if view.is_joint() {
        return Some(Step::LeaveJoint);
    }
    if view.expected.is_none() {
        return Some(Step::SetExpected(view.voters().len() as u64));
    }
    view.finish_removal().or_else(|| view.replace_dead()).or_else(|| view.promote())
}

/// What an operator's word leads to; `None` when it is so already.
///
/// # Errors
/// Why it would not be safe, or can not be done now.
pub(super) fn judge(view: &View, change: &Change) -> Result<Option<Step>, String> {
    if view.is_joint() {
        return Err("another change is half done, and is being finished; try again when it is".to_owned());
    }
    match change {
        Change::Promote { node } => view.judge_promote(*node),
        Change::Remove { node } => view.judge_remove(*node),
        Change::Replace { old, new } => view.judge_replace(*old, *new),
    }
}

/// Why a learner is one still; `None` for a voter.
pub(super) fn note(view: &View, id: NodeId) -> Option<String> {
    let seen = view.members.get(&id)?;
    if view.removed.contains(&id) {
        return Some("it is being removed".to_owned());
    }
    if view.is_voter(id) {
        return None;
    }
    let name = &seen.name;
    if let Some(voter) = view.namesake(id)
        && view.members[&voter].silent < view.replace_after
    {
        return Some(match view.is_up(voter) {
            true => format!(
                "a voter that is up has the name {name} too (id {voter}): stop one of the two processes, or name it otherwise"
            ),
            false => format!(
                "the name {name} is that of a voter that is down (id {voter}); this node takes its place when it has been \
                 down for {} s (now {} s), or at once with \"moim node replace {name}\"",
                view.replace_after.as_secs(),
                view.members[&voter].silent.as_secs()
            ),
        });
    }
    if let Err(why) = view.fit(id) {
        return Some(why);
    }
    let (voters, expected) = (view.voters().len() as u64, view.expected.unwrap_or(0));
    Some(match voters < expected || view.namesake(id).is_some() {
        true => "it becomes a voter now".to_owned(),
        false => format!(
            "there are {voters} voters and {expected} were expected when the cluster formed; \"moim node promote {name}\" \
             makes it one more"
        ),
    })
}

impl View {
    fn is_joint(&self) -> bool {
        self.configs.len() > 1
    }

    pub(super) fn voters(&self) -> BTreeSet<NodeId> {
        self.configs.iter().flatten().copied().collect()
    }

    pub(super) fn is_voter(&self, id: NodeId) -> bool {
        self.configs.iter().any(|config| config.contains(&id))
    }

    fn is_up(&self, id: NodeId) -> bool {
        self.members.get(&id).is_some_and(|seen| seen.up)
    }

    fn name(&self, id: NodeId) -> &str {
        self.members.get(&id).map_or("it", |seen| &seen.name)
    }

    /// Another voter of the same name: what the node was before its disk was lost, as a rule.
    fn namesake(&self, id: NodeId) -> Option<NodeId> {
        let name = self.name(id);
        self.voters().into_iter().find(|voter| *voter != id && self.name(*voter) == name)
    }

    /// Whether a learner can be a voter.
    fn fit(&self, id: NodeId) -> Result<(), String> {
        let seen = self.members.get(&id).ok_or("it is not a node of this cluster")?;
        let name = &seen.name;
        if self.removed.contains(&id) {
            return Err(format!("{name} was removed"));
        }
        if !self.is_up(id) {
            return Err(format!("{name} has not been heard of for {} s", seen.silent.as_secs()));
        }
        if !seen.started {
            return Err(format!("{name} has not started in the cluster yet"));
        }
        match seen.lag {
            _ if seen.caught_up => Ok(()),
            Some(lag) => Err(format!("{name} is catching up, {lag} entries are missing")),
            None => Err(format!("{name} is catching up")),
        }
    }

    /// Whether these voters could go on: a majority of them is up.
    fn holds(&self, voters: &BTreeSet<NodeId>, without: NodeId) -> Result<(), String> {
        let (up, need) = (voters.iter().filter(|id| self.is_up(**id)).count(), voters.len() / 2 + 1);
        if voters.is_empty() {
            return Err(format!("{} is the only voter: the cluster would end with it", self.name(without)));
        }
        if up < need {
            return Err(format!(
                "without {}, {up} of {} voters would be up, and {need} are needed: bring the others back, or remove those \
                 that are dead, first",
                self.name(without),
                voters.len()
            ));
        }
        Ok(())
    }

    fn learners(&self) -> impl Iterator<Item = NodeId> {
        self.members.keys().copied().filter(|id| !self.is_voter(*id))
    }

    /// Somebody decided it; perhaps that leader is gone.
    fn finish_removal(&self) -> Option<Step> {
        let gone = |id: &&NodeId| self.removed.contains(id);
        self.members.keys().filter(gone).find_map(|old| {
            let heir = self.heir(*old).filter(|_| self.is_voter(*old));
            let step = heir.and_then(|new| self.judge_replace(*old, new).ok().flatten());
            step.or_else(|| self.judge_remove(*old).ok().flatten())
        })
    }

    /// Who takes the place of a voter that goes: a node of its name, else one that would be promoted after it anyway. In one
    /// change there is no moment with a voter less.
    fn heir(&self, old: NodeId) -> Option<NodeId> {
        let fit = |id: &NodeId| self.fit(*id).is_ok();
        let named = self.learners().filter(fit).find(|id| self.namesake(*id) == Some(old));
        let room = (self.voters().len() as u64) <= self.expected.unwrap_or(0);
        named.or_else(|| self.learners().filter(fit).find(|id| room && self.namesake(*id).is_none()))
    }

    /// An empty disk came back under the name of a dead id, whose time is over.
    fn replace_dead(&self) -> Option<Step> {
        let dead = |id: &NodeId| self.members[id].silent >= self.replace_after;
        let voters = self.learners().filter(|new| self.fit(*new).is_ok()).find_map(|new| {
            let old = self.namesake(new).filter(dead)?;
            self.judge_replace(old, new).ok().flatten()
        });
        // A learner whose disk was lost has no vote to hand on; it only stays in the way.
        let has_heir = |old: &NodeId| {
            self.members.keys().any(|id| id != old && self.name(*id) == self.name(*old) && self.is_up(*id))
        };
        voters.or_else(|| self.learners().filter(dead).find(has_heir).map(Step::Remove))
    }

    fn promote(&self) -> Option<Step> {
        let room = (self.voters().len() as u64) < self.expected.unwrap_or(0);
        let fit = |id: &NodeId| self.fit(*id).is_ok() && self.namesake(*id).is_none();
        self.learners().filter(|_| room).find(fit).map(Step::Promote)
    }

    fn judge_promote(&self, id: NodeId) -> Result<Option<Step>, String> {
        if self.is_voter(id) && !self.removed.contains(&id) {
            return Ok(None);
        }
        self.fit(id)?;
        if let Some(voter) = self.namesake(id) {
            let name = self.name(id);
            return Err(format!(
                "a voter has the name {name} too (id {voter}): \"moim node replace {name}\" puts this node in its place"
            ));
        }
        Ok(Some(Step::Promote(id)))
    }

    fn judge_remove(&self, id: NodeId) -> Result<Option<Step>, String> {
        if !self.members.contains_key(&id) {
            return if self.removed.contains(&id) { Ok(None) } else { Err("there is no such node".to_owned()) };
        }
        if self.is_voter(id) {
            let mut rest = self.voters();
            rest.remove(&id);
            self.holds(&rest, id)?;
        }
        Ok(Some(if id == self.me { Step::HandOver } else { Step::Remove(id) }))
    }

    fn judge_replace(&self, old: NodeId, new: NodeId) -> Result<Option<Step>, String> {
        if !self.members.contains_key(&old) && self.removed.contains(&old) && self.is_voter(new) {
            return Ok(None);
        }
        if !self.members.contains_key(&old) {
            return Err("there is no such node to be replaced".to_owned());
        }
        if self.is_voter(new) {
            return Err(format!("{} is a voter already: remove {} instead", self.name(new), self.name(old)));
        }
        self.fit(new)?;
        if !self.is_voter(old) {
            return Err(format!("{} is no voter: remove it instead", self.name(old)));
        }
        let same_name = self.name(old) == self.name(new);
        if same_name && self.is_up(old) && !self.removed.contains(&old) {
            return Err(format!(
                "{} (id {old}) is up: stop one of the two processes of this name first",
                self.name(old)
            ));
        }
        let mut voters = self.voters();
        voters.remove(&old);
        voters.insert(new);
        self.holds(&voters, old)?;
        Ok(Some(if old == self.me { Step::HandOver } else { Step::Replace { old, new } }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    /// Voters 1 to 3, named n1 to n3, all up; node 1 leads; three are expected.
    fn three() -> View {
        let mut view = View {
            me: 1,
            configs: vec![BTreeSet::from([1, 2, 3])],
            members: BTreeMap::new(),
            removed: BTreeSet::new(),
            expected: Some(3),
            replace_after: LONG,
        };
        for id in 1..=3 {
            view.add(id, &format!("n{id}"));
        }
        view
    }

    impl View {
        fn add(&mut self, id: NodeId, name: &str) {
            let (name, silent) = (name.to_owned(), Duration::ZERO);
            self.members.insert(id, Seen { name, lag: Some(0), caught_up: true, up: true, silent, started: true });
        }

        fn down(&mut self, id: NodeId, silent: Duration) {
            let seen = self.members.get_mut(&id).unwrap();
            (seen.up, seen.silent) = (false, silent);
        }

        fn unvote(&mut self, id: NodeId) {
            self.configs[0].remove(&id);
            self.members.remove(&id);
        }
    }

    fn remove(view: &View, node: NodeId) -> Result<Option<Step>, String> {
        judge(view, &Change::Remove { node })
    }

    fn replace(view: &View, old: NodeId, new: NodeId) -> Result<Option<Step>, String> {
        judge(view, &Change::Replace { old, new })
    }

    #[test]
    fn nothing_is_done_while_all_is_as_expected() {
        let mut view = three();
        assert_eq!(next(&view), None);
        assert_eq!(note(&view, 1), None);
        view.down(3, LONG * 2);
        assert_eq!(next(&view), None, "a dead voter is nobody's to remove but an operator's");
        view.add(4, "n4");
        assert_eq!(next(&view), None, "as many as expected vote");
        assert!(note(&view, 4).unwrap().contains("moim node promote n4"), "{:?}", note(&view, 4));
    }

    #[test]
    fn the_number_of_voters_that_formed_the_cluster_is_stored_first() {
        let mut view = View { expected: None, ..three() };
        view.add(4, "n4");
        assert_eq!(next(&view), Some(Step::SetExpected(3)));
    }

    #[test]
    fn a_joint_configuration_is_left_before_anything_else() {
        let mut view = View { expected: None, ..three() };
        view.add(4, "n4");
        view.configs.push(BTreeSet::from([1, 2, 4]));
        assert_eq!(next(&view), Some(Step::LeaveJoint));
        assert!(remove(&view, 3).unwrap_err().contains("half done"));
    }

    #[test]
    fn a_learner_is_promoted_when_caught_up_and_only_up_to_the_expected_number() {
        let mut view = three();
        view.unvote(3);
        view.add(4, "n4");
        view.add(5, "n5");
        assert_eq!(next(&view), Some(Step::Promote(4)));
        type Case = (fn(&mut Seen), &'static str);
        let cases: [Case; 3] = [
            (|seen| (seen.lag, seen.caught_up) = (Some(5000), false), "5000 entries are missing"),
            (|seen| (seen.up, seen.silent) = (false, Duration::from_secs(3)), "not been heard of for 3 s"),
            (|seen| seen.started = false, "not started"),
        ];
        for (change, why) in cases {
            let mut view = view.clone();
            change(view.members.get_mut(&4).unwrap());
            assert_eq!(next(&view), Some(Step::Promote(5)));
            assert!(note(&view, 4).unwrap().contains(why), "{:?}", note(&view, 4));
            assert!(judge(&view, &Change::Promote { node: 4 }).unwrap_err().contains(why));
        }
        view.configs[0].insert(4);
        assert_eq!(next(&view), None);
        assert_eq!(judge(&view, &Change::Promote { node: 5 }), Ok(Some(Step::Promote(5))), "an operator may go beyond");
        assert_eq!(judge(&view, &Change::Promote { node: 4 }), Ok(None), "it is so already");
        assert!(judge(&view, &Change::Promote { node: 9 }).is_err());
    }

    #[test]
    fn an_empty_disk_takes_the_place_of_its_dead_name_after_its_time_or_on_a_word() {
        let mut view = three();
        view.add(9, "n3");
        assert_eq!(next(&view), None);
        assert!(note(&view, 9).unwrap().contains("a voter that is up has the name n3 too (id 3)"));
        assert!(replace(&view, 3, 9).unwrap_err().contains("stop one of the two"));
        view.down(3, LONG / 2);
        assert_eq!(next(&view), None, "it may only be restarting");
        let why = note(&view, 9).unwrap();
        assert!(why.contains("down for 600 s (now 300 s)") && why.contains("moim node replace n3"), "{why}");
        assert_eq!(replace(&view, 3, 9), Ok(Some(Step::Replace { old: 3, new: 9 })));
        assert!(judge(&view, &Change::Promote { node: 9 }).unwrap_err().contains("moim node replace n3"));
        view.down(3, LONG);
        assert_eq!(next(&view), Some(Step::Replace { old: 3, new: 9 }));
        assert_eq!(note(&view, 9).unwrap(), "it becomes a voter now");
        view.members.get_mut(&9).unwrap().caught_up = false;
        assert_eq!(next(&view), None);
        assert!(replace(&view, 3, 9).unwrap_err().contains("catching up"));
    }

    /// With a voter short, a learner of another name is promoted; that of the dead voter's name waits to replace it.
    #[test]
    fn a_learner_of_a_voters_name_is_never_a_second_voter() {
        let mut view = View { expected: Some(4), ..three() };
        view.down(3, LONG / 2);
        view.add(9, "n3");
        assert_eq!(next(&view), None);
        view.add(10, "n4");
        assert_eq!(next(&view), Some(Step::Promote(10)));
    }

    #[test]
    fn a_dead_learner_goes_when_its_name_is_back() {
        let mut view = three();
        view.add(9, "n4");
        view.down(9, LONG);
        assert_eq!(next(&view), None, "it may come back");
        view.add(10, "n4");
        assert_eq!(next(&view), Some(Step::Remove(9)));
        assert!(note(&view, 10).unwrap().contains("promote"));
    }

    #[test]
    fn a_removal_that_would_lose_the_quorum_is_refused() {
        let mut view = three();
        assert_eq!(remove(&view, 3), Ok(Some(Step::Remove(3))));
        view.down(3, Duration::from_secs(30));
        let why = remove(&view, 2).unwrap_err();
        assert!(why.contains("without n2, 1 of 2 voters would be up, and 2 are needed"), "{why}");
        assert!(remove(&view, 1).is_err());
        assert_eq!(remove(&view, 3), Ok(Some(Step::Remove(3))), "the dead one may go");
        view.unvote(3);
        view.unvote(2);
        assert!(remove(&view, 1).unwrap_err().contains("only voter"));
        assert!(remove(&view, 3).unwrap_err().contains("no such node"));
        view.removed.insert(3);
        assert_eq!(remove(&view, 3), Ok(None));
    }

    #[test]
    fn what_concerns_the_leader_is_done_by_another() {
        let mut view = three();
        assert_eq!(remove(&view, 1), Ok(Some(Step::HandOver)));
        view.add(4, "n4");
        assert_eq!(replace(&view, 1, 4), Ok(Some(Step::HandOver)));
        view.removed.insert(1);
        assert_eq!(next(&view), Some(Step::HandOver));
    }

    #[test]
    fn a_removal_that_was_decided_is_finished_by_whoever_leads() {
        let mut view = three();
        view.removed.insert(3);
        assert_eq!(next(&view), Some(Step::Remove(3)));
        assert_eq!(note(&view, 3).unwrap(), "it is being removed");
        view.add(9, "n3");
        assert_eq!(next(&view), Some(Step::Replace { old: 3, new: 9 }));
        view.removed.insert(9);
        assert_eq!(next(&view), Some(Step::Remove(3)), "its heir is to go as well");
        view.down(2, LONG);
        assert_eq!(next(&view), Some(Step::Remove(9)), "a learner can always go");
        view.add(10, "n10");
        view.removed.remove(&9);
        view.members.get_mut(&9).unwrap().started = false;
        assert_eq!(next(&view), Some(Step::Replace { old: 3, new: 10 }), "in one change, or one of two would be up");
    }
}
