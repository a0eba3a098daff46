//! Each case of a decision, on a cluster of three.

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
    let cases: [Case; 4] = [
        (|seen| (seen.lag, seen.caught_up) = (Some(5000), false), "5000 entries are missing"),
        (|seen| (seen.lag, seen.caught_up) = (Some(0), false), "kept up for 3 s"),
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
    assert!(note(&view, 5).unwrap().contains("3 were expected"), "{:?}", note(&view, 5));
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
    assert!(replace(&view, 3, 9).unwrap_err().contains("kept up for 3 s"));
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
fn a_name_is_free_when_nobody_who_is_up_has_it() {
    let mut view = three();
    assert!(is_free(&view, 9, "n4").is_ok() && is_free(&view, 3, "n3").is_ok());
    assert!(is_free(&view, 9, "n3").unwrap_err().contains("has the name n3 (id 3)"));
    view.down(3, Duration::from_millis(900));
    assert!(is_free(&view, 9, "n3").is_err(), "a new leader has not heard of anybody");
    view.down(3, Duration::from_secs(1));
    assert!(is_free(&view, 9, "n3").is_ok());
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
