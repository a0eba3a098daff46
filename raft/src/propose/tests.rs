//! Which ticket hears what, and what a batch holds.

use std::sync::{Arc, Mutex as StdMutex};

use super::{
    queue::{BATCH_BYTES_MAX, BATCH_COMMANDS_MAX, QUEUE_COMMANDS_MAX},
    *,
};
use crate::{
    command::{Holder, Room, Sid},
    state::State,
};

type Heard = Arc<StdMutex<Vec<String>>>;

fn ticket(heard: &Heard, name: &str) -> Ticket {
    let (heard, name) = (heard.clone(), name.to_owned());
    Ticket::new(move |outcome| {
        let what = outcome.map_or_else(|e| format!("{name}: {e}"), |_| format!("{name}: done"));
        heard.lock().unwrap().push(what);
    })
}

fn say(text: String) -> Command {
    let by = Holder { sid: Sid::from_random([7; 16]), generation: 1 };
    Command::Publish { by, room: Room::new("r").unwrap(), text, mid: None }
}

fn live() -> (Proposals, Landed) {
    let proposals = Proposals::default();
    proposals.begin(1);
    proposals.accept();
    (proposals, Landed { incarnation: 1, sequence: 1, over: false })
}

#[test]
fn sessions_go_first_and_the_rest_keeps_its_order() {
    let (proposals, after) = live();
    let lost = Command::Lost(Vec::new());
    for command in [say("1".into()), say("2".into()), lost.clone(), say("3".into())] {
        proposals.push(command, Ticket::nobody());
    }
    let batch = proposals.try_batch(9, after).unwrap();
    assert_eq!(batch.commands, [lost, say("1".into()), say("2".into()), say("3".into())]);
    assert_eq!((batch.incarnation, batch.sequence), (1, 2));
}

#[test]
fn a_batch_is_bounded_by_commands_and_by_bytes() {
    let (proposals, after) = live();
    (0..BATCH_COMMANDS_MAX + 1).for_each(|_| proposals.push(say(String::new()), Ticket::nobody()));
    assert_eq!(proposals.try_batch(9, after).unwrap().commands.len(), BATCH_COMMANDS_MAX);
    assert_eq!(proposals.try_batch(9, after).unwrap().commands.len(), 1);
    (0..5).for_each(|_| proposals.push(say("x".repeat(BATCH_BYTES_MAX / 3)), Ticket::nobody()));
    assert_eq!(proposals.try_batch(9, after).unwrap().commands.len(), 3);
    assert_eq!(proposals.try_batch(9, after).unwrap().commands.len(), 2);
    proposals.push(say("x".repeat(TEXT_BYTES_MAX)), Ticket::nobody());
    assert_eq!(proposals.try_batch(9, after).unwrap().commands.len(), 1, "the longest text there may be");
    assert_eq!(lock(&proposals.queue).bytes(), 0);
}

#[test]
fn past_a_bound_or_without_a_quorum_a_ticket_hears_so_at_once() {
    let (heard, (proposals, _)) = (Heard::default(), live());
    proposals.push(say("x".repeat(TEXT_BYTES_MAX + 1)), ticket(&heard, "large"));
    (0..QUEUE_COMMANDS_MAX).for_each(|_| proposals.push(say(String::new()), Ticket::nobody()));
    proposals.push(say(String::new()), ticket(&heard, "one more"));
    proposals.refuse("no quorum");
    proposals.push(say(String::new()), ticket(&heard, "late"));
    let heard = heard.lock().unwrap();
    let expected = ["large: refused", "one more: unavailable: overloaded", "late: unavailable: no quorum"];
    assert!(heard.iter().zip(expected).all(|(heard, expected)| heard.starts_with(expected)), "{heard:?}");
    assert_eq!(heard.len(), 3);
}

#[test]
fn a_command_above_the_clusters_level_waits_for_it() {
    let (heard, (proposals, after)) = (Heard::default(), live());
    proposals.set_level(0);
    proposals.push(say("early".into()), ticket(&heard, "early"));
    assert!(heard.lock().unwrap()[0].starts_with("early: unavailable: the cluster is at level 0 until all"));
    proposals.set_level(1);
    proposals.push(say("in time".into()), ticket(&heard, "in time"));
    assert_eq!(proposals.try_batch(9, after).unwrap().commands, [say("in time".into())]);
    let second = [Command::ForgetMids(Vec::new()), Command::Undrain { node: 9, incarnation: 1 }];
    for command in second.clone() {
        proposals.push(command, ticket(&heard, "second"));
        assert!(
            heard.lock().unwrap().pop().unwrap().starts_with("second: unavailable: the cluster is at level 1 until")
        );
    }
    proposals.set_level(2);
    second.iter().for_each(|command| proposals.push(command.clone(), Ticket::nobody()));
    assert_eq!(proposals.try_batch(9, after).unwrap().commands, second);
}

#[test]
fn every_ticket_is_answered_whatever_ends_the_wait() {
    let (heard, (proposals, after)) = (Heard::default(), live());
    let names = |heard: &Heard| {
        let mut heard = heard.lock().unwrap();
        heard.drain(..).map(|what| what.split(':').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let fly_and_queue = |proposals: &Proposals| {
        proposals.push(say("1".into()), ticket(&heard, "flying"));
        proposals.try_batch(9, after).unwrap();
        proposals.push(say("2".into()), ticket(&heard, "waiting"));
    };
    fly_and_queue(&proposals);
    proposals.time_out(Instant::now() + PROPOSAL_TIMEOUT);
    assert_eq!(names(&heard), ["waiting", "flying"]);
    fly_and_queue(&proposals);
    proposals.end_incarnation(1);
    proposals.refuse("starting again");
    assert_eq!(names(&heard), ["flying", "waiting"]);
    proposals.accept();
    fly_and_queue(&proposals);
    proposals.close("stopping");
    assert_eq!(names(&heard), ["waiting", "flying"]);
    proposals.accept();
    fly_and_queue(&proposals);
    drop(proposals);
    assert_eq!(names(&heard).len(), 2);
}

#[test]
fn a_landed_batch_gives_its_tickets_to_the_player_and_a_skipped_one_keeps_them() {
    let (heard, (proposals, after)) = (Heard::default(), live());
    proposals.push(say("1".into()), ticket(&heard, "one"));
    let batch = proposals.try_batch(9, after).unwrap();
    assert!(proposals.land(&batch, &Outcome::Skipped(Skipped::TooEarly)).is_empty());
    assert!(heard.lock().unwrap().is_empty());
    let tickets = proposals.land(&batch, &Outcome::Applied(Vec::new()));
    assert_eq!(tickets.len(), 1);
    assert_eq!(*proposals.landed().borrow(), Landed { incarnation: 1, sequence: 2, over: false });
    let started = Batch { sequence: 1, commands: vec![Command::Started(Default::default())], ..batch };
    let Outcome::Applied(applied) = State::default().apply(&started) else { panic!("a first start counts") };
    tickets.into_iter().for_each(|ticket| ticket.answer(Ok(&applied[0])));
    // It was sent twice.
    assert!(proposals.land(&batch, &Outcome::Skipped(Skipped::Repeated)).is_empty());
    assert!(!proposals.landed().borrow().over);
    assert_eq!(*heard.lock().unwrap(), ["one: done"]);
}

#[test]
fn a_number_that_was_used_before_ends_the_incarnation_and_a_later_one_is_somebody_else() {
    let (heard, (proposals, _)) = (Heard::default(), live());
    let started = vec![Command::Started(Default::default())];
    let batch = proposals.fly(9, 1, 1, started, vec![ticket(&heard, "one")]);
    assert!(proposals.land(&batch, &Outcome::Skipped(Skipped::Repeated)).is_empty());
    assert!(proposals.landed().borrow().over, "it would be sent again for ever");
    assert_eq!(heard.lock().unwrap().len(), 1);

    proposals.begin(2);
    assert!(!proposals.is_outlived_by(3), "not before it lives");
    let batch = proposals.fly(9, 2, 1, Vec::new(), Vec::new());
    proposals.land(&batch, &Outcome::Applied(Vec::new()));
    assert!(proposals.is_outlived_by(3) && !proposals.is_outlived_by(2));
    proposals.end_incarnation(2);
    assert!(!proposals.is_outlived_by(3), "it is the next of its own");
}

#[test]
fn what_is_said_of_an_earlier_incarnation_does_not_end_this_one() {
    let (heard, (proposals, _)) = (Heard::default(), live());
    proposals.begin(5);
    proposals.fly(9, 5, 1, vec![say("1".into())], vec![ticket(&heard, "one")]);
    proposals.end_incarnation(4);
    assert!(heard.lock().unwrap().is_empty());
    let landed = *proposals.landed().borrow();
    assert!(landed.over && landed.incarnation == 4);
    proposals.end_incarnation(5);
    assert_eq!(heard.lock().unwrap().len(), 1);
    assert!(proposals.landed().borrow().over);
}

#[test]
fn a_jump_over_entries_ends_the_incarnation_that_lived_and_no_other() {
    let (heard, proposals) = (Heard::default(), Proposals::default());
    proposals.begin(5);
    proposals.fly(9, 5, 1, vec![Command::Started(Default::default())], vec![ticket(&heard, "start")]);
    proposals.jump(4, 30, true);
    assert!(!proposals.landed().borrow().over && heard.lock().unwrap().is_empty(), "an earlier one, before its start");
    proposals.jump(5, 1, true);
    assert_eq!(*proposals.landed().borrow(), Landed { incarnation: 5, sequence: 1, over: false }, "it has started");
    proposals.fly(9, 5, 2, vec![say("1".into())], vec![ticket(&heard, "one")]);
    proposals.jump(5, 2, true);
    assert!(proposals.landed().borrow().over, "who was seated by what was jumped over has no seat");
    assert_eq!(heard.lock().unwrap().len(), 2);
}
