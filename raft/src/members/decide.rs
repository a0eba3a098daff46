//! What a leader does next about the cluster's nodes, and why it does not do what it is asked: pure, so that each case is
//! one test.
//!
//! What always holds: one step is decided at a time, on one view, and no second one while Raft's configuration is joint;
//! no step leaves a majority of the voters that remain without an answer; a dead id's place is taken only after its time
//! or on an operator's word.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Change, LAG_MAX, NEAR_FOR, UP_WITHIN};
use crate::raft::{NodeId, Peer};

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
    /// A node has another name or address.
    Move(NodeId, Peer),
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

/// Whether a node may come under that name: none that is up has it.
///
/// # Errors
/// Who has it, and the way on.
pub(super) fn is_free(view: &View, id: NodeId, name: &str) -> Result<(), String> {
    // Nor one that a new leader has had no time to hear of.
    let has_it = |(other, seen): &(&NodeId, &Seen)| **other != id && seen.name == name && seen.silent < UP_WITHIN;
    match view.members.iter().find(has_it) {
        Some((other, _)) => Err(format!(
            "a node that is up has the name {name} (id {other}): stop one of the two, or give this one another --name"
        )),
        None => Ok(()),
    }
}

/// What is said of a node that does not have an entry any more which it had acknowledged.
pub(super) fn went_back(index: u64) -> String {
    format!(
        "its log went back: it does not have entry {index} any more, which it had acknowledged. Was an old copy of its data \
         folder put back? Stop it, and put the newer one back; or move this one aside, start with an empty one, and let the \
         new node take the place of the old (\"moim node replace\")"
    )
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
            Some(lag) if lag < LAG_MAX => Err(format!(
                "{name} has caught up; it can have a vote when it has kept up for {} s",
                NEAR_FOR.as_secs()
            )),
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
