//! What the state machine promises, claim by claim, through one small script.

use moim_raft::{
    command::{
        Away, Batch, Command, Effect, Generation, Holder, Limits, Namespace, NodeInfo, Position, Refusal, Reply, Room,
        RoomEntry, Sid, Unseated, User, What,
    },
    state::{
        Applied, Outcome, Skipped, State,
        replay::{Incomplete, ReplayLimit},
    },
};

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
const NOW: u64 = 1_700_000_000_000;
const ALL: ReplayLimit = ReplayLimit { entries: 10_000, bytes: 8 << 20 };

fn ns() -> Namespace {
    Namespace::new("/").unwrap()
}

fn room(name: &str) -> Room {
    Room::new(name).unwrap()
}

fn user(name: &str) -> User {
    User::new(name).unwrap()
}

fn sid(name: &str) -> Sid {
    Sid::parse(&format!("{name:_>20}")).unwrap()
}

fn pid(name: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash[..name.len()].copy_from_slice(name.as_bytes());
    hash
}

/// A state and the batches that its nodes would make.
struct Script {
    state: State,
    stamp: u64,
    /// The incarnation and last sequence of nodes 0 to 3.
    nodes: [(u64, u64); 4],
    /// On which node the script's commands are proposed.
    at: u64,
}

impl Script {
    fn new() -> Self {
        let mut script = Self { state: State::default(), stamp: NOW, nodes: [(0, 0); 4], at: 1 };
        for node in [3, 2, 1] {
            script.start(node);
        }
        script.run(Command::SetLimits(Limits::default()));
        script
    }

    fn limited(change: impl FnOnce(&mut Limits)) -> Self {
        let mut script = Self::new();
        let mut limits = Limits::default();
        change(&mut limits);
        script.run(Command::SetLimits(limits));
        script
    }

    fn at_level_2() -> Self {
        let mut script = Self::new();
        script.run(Command::SetLevel(2));
        script
    }

    /// The node's next start; the script goes on there.
    fn start(&mut self, node: u64) {
        self.at = node;
        self.nodes[node as usize] = (self.nodes[node as usize].0 + 1, 0);
        self.run(Command::Started(NodeInfo::default()));
    }

    /// The next batch of a node, not applied.
    fn batch(&mut self, node: u64, commands: Vec<Command>) -> Batch {
        let (incarnation, sequence) = &mut self.nodes[node as usize];
        *sequence += 1;
        Batch { node, incarnation: *incarnation, sequence: *sequence, stamp: self.stamp, commands }
    }

    fn run_all(&mut self, commands: Vec<Command>) -> Vec<Applied> {
        let batch = self.batch(self.at, commands);
        match self.state.apply(&batch) {
            Outcome::Applied(applied) => applied,
            Outcome::Skipped(why) => panic!("skipped: {why:?}"),
        }
    }

    fn run(&mut self, command: Command) -> Applied {
        self.run_all(vec![command]).remove(0)
    }

    fn reply(&mut self, command: Command) -> Reply {
        self.run(command).reply
    }

    fn open(&mut self, name: &str, who: &str) -> Holder {
        self.open_as(name, who, false).expect("opened")
    }

    fn open_as(&mut self, name: &str, who: &str, guest: bool) -> Result<Holder, Refusal> {
        let open = Command::Open { sid: sid(name), ns: ns(), user: user(who), guest, pid: pid(name) };
        match self.reply(open) {
            Reply::Seated { generation, .. } => Ok(Holder { sid: sid(name), generation }),
            Reply::Refused(why) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    fn resume(&mut self, read: &Holder, name: &str, who: &str) -> Reply {
        self.reply(Command::Resume { read: read.clone(), ns: ns(), user: user(who), pid: pid(name) })
    }

    /// The return of a session of alice, who was attached as of that generation.
    fn take_over(&mut self, read: &Holder, generation: Generation) -> Reply {
        self.resume(&at(read, generation), "a", "alice")
    }

    fn join(&mut self, by: &Holder, name: &str) -> Applied {
        self.run(Command::Join { by: by.clone(), room: room(name) })
    }

    fn leave(&mut self, by: &Holder, name: &str) -> Applied {
        self.run(Command::Leave { by: by.clone(), room: room(name) })
    }

    fn enter(&mut self, by: &Holder, name: &str) -> Applied {
        self.run(Command::Enter { by: by.clone(), room: room(name) })
    }

    fn exit(&mut self, by: &Holder, name: &str) -> Applied {
        self.run(Command::Exit { by: by.clone(), room: room(name) })
    }

    fn say(&mut self, by: &Holder, name: &str, text: &str) -> Applied {
        self.say_once(by, name, text, None)
    }

    fn say_once(&mut self, by: &Holder, name: &str, text: &str, mid: Option<&str>) -> Applied {
        let (text, mid) = (text.to_owned(), mid.map(str::to_owned));
        self.run(Command::Publish { by: by.clone(), room: room(name), text, mid })
    }

    fn texts(&self, name: &str) -> Vec<String> {
        let (entries, _) = self.state.history(&ns(), &room(name), None, None, usize::MAX, |_| true);
        entries.iter().map(in_short).collect()
    }

    fn replay(&self, name: &str, offset: Position) -> Result<Vec<String>, Incomplete> {
        self.replay_at(name, offset, self.state.position(), ALL)
    }

    fn replay_at(
        &self,
        name: &str,
        from: Position,
        seam: Position,
        max: ReplayLimit,
    ) -> Result<Vec<String>, Incomplete> {
        let session = self.state.session(&sid(name)).expect("it is there");
        let due = self.state.replay(&session, from, seam, max)?;
        assert!(due.is_sorted_by(|a, b| a.1.position < b.1.position), "each position once, in order");
        Ok(due.iter().map(|(room, entry)| format!("{room}:{}", in_short(entry))).collect())
    }

    /// Whom the leader finds away at this moment.
    fn away(&self) -> Vec<Away> {
        self.state.away(&self.state.lost_sessions())
    }

    fn is_online(&self, name: &str) -> bool {
        self.state.is_online(&ns(), &user(name))
    }

    fn attached(&self, name: &str) -> Option<bool> {
        self.state.session(&sid(name)).map(|session| self.state.is_attached(&session))
    }
}

fn in_short(entry: &RoomEntry) -> String {
    match &entry.what {
        What::Message { text, .. } => text.clone(),
        What::Joined => format!("+{}", entry.user),
        What::Left => format!("-{}", entry.user),
    }
}

/// What others hear of a user's presence.
fn heard(applied: &Applied) -> Vec<String> {
    let told = applied.effects.iter().filter_map(|effect| match effect {
        Effect::Presence { user, rooms, online, .. } => Some((user, rooms, if *online { "online" } else { "offline" })),
        _ => None,
    });
    told.flat_map(|(user, rooms, what)| rooms.iter().map(move |room| format!("{room}: {user} {what}"))).collect()
}

fn at(holder: &Holder, generation: Generation) -> Holder {
    Holder { generation, ..holder.clone() }
}

#[test]
fn a_batch_takes_effect_once_and_in_its_turn() {
    let mut s = Script::new();
    let alice = s.open("a", "alice");
    s.join(&alice, "lobby");
    let say = |text: &str| {
        vec![Command::Publish { by: alice.clone(), room: room("lobby"), text: text.to_owned(), mid: None }]
    };
    let (first, second) = (s.batch(1, say("1")), s.batch(1, say("2")));
    let before = (s.state.position(), s.state.hash());
    assert_eq!(s.state.apply(&second), Outcome::Skipped(Skipped::TooEarly));
    assert_eq!((s.state.position(), s.state.hash()), before, "a skipped batch changes nothing");
    assert!(matches!(s.state.apply(&first), Outcome::Applied(_)));
    assert_eq!(s.state.apply(&first), Outcome::Skipped(Skipped::Repeated));
    assert!(matches!(s.state.apply(&second), Outcome::Applied(_)));
    assert_eq!(s.state.apply(&second), Outcome::Skipped(Skipped::Repeated));
    assert_eq!(s.state.apply(&first), Outcome::Skipped(Skipped::Repeated));
    assert_eq!(s.texts("lobby"), ["+alice", "1", "2"]);
}

#[test]
fn a_batch_of_an_incarnation_that_is_not_live_does_nothing() {
    let mut s = Script::new();
    let alice = s.open("a", "alice");
    let late = s.batch(1, vec![Command::Join { by: alice, room: room("lobby") }]);
    let unknown = Batch { node: 9, ..late.clone() };
    assert_eq!(s.state.apply(&unknown), Outcome::Skipped(Skipped::NotLive));
    s.at = 2;
    s.run(Command::Down { node: 1, incarnation: 1 });
    let before = s.state.hash();
    assert_eq!(s.state.apply(&late), Outcome::Skipped(Skipped::NotLive));
    s.start(1);
    assert_eq!(s.state.apply(&late), Outcome::Skipped(Skipped::NotLive));
    assert_ne!(s.state.hash(), before, "the start itself counts");
    assert!(s.texts("lobby").is_empty());
}

#[test]
fn without_stored_limits_nothing_is_bounded_whatever_a_versions_defaults_are() {
    assert_eq!(*State::default().limits(), Limits::UNBOUNDED);
    assert_eq!(
        *State::load(State::default().pairs().map(|(k, v)| (k.to_vec(), v.to_vec()))).limits(),
        Limits::UNBOUNDED
    );
    let mut s = Script { state: State::default(), stamp: NOW, nodes: [(0, 0); 4], at: 1 };
    s.start(1);
    let defaults = Limits::default();
    for n in 0..=defaults.sessions_per_user {
        s.open(&n.to_string(), "u");
    }
    s.run(Command::SetLimits(defaults.clone()));
    assert_eq!(s.open_as("more", "u", false), Err(Refusal::TooManySessions));
    let pairs = s.state.pairs().map(|(key, value)| (key.to_vec(), value.to_vec()));
    assert_eq!(*State::load(pairs).limits(), defaults, "stored, also when they are somebody's defaults");
}

#[test]
fn a_start_is_once_and_never_goes_back() {
    let mut s = Script::new();
    let started = |incarnation| Batch {
        node: 1,
        incarnation,
        sequence: 1,
        stamp: NOW,
        commands: vec![Command::Started(NodeInfo::default())],
    };
    assert_eq!(s.state.apply(&started(1)), Outcome::Skipped(Skipped::Repeated));
    assert!(matches!(s.state.apply(&started(4)), Outcome::Applied(_)));
    assert_eq!(s.state.apply(&started(3)), Outcome::Skipped(Skipped::NotLive));
    s.at = 2;
    s.run(Command::Removed { node: 1 });
    assert_eq!(s.state.apply(&started(5)), Outcome::Skipped(Skipped::NotLive), "a removed id does not come back");
}

/// Node id reused: not even by a node that was removed before its first start.
#[test]
fn an_id_that_was_removed_before_its_first_start_is_never_used() {
    let mut s = Script::new();
    s.run(Command::Removed { node: 77 });
    assert!(s.state.is_removed(77) && s.state.removed_nodes().contains(&77));
    assert!(s.state.nodes().iter().all(|node| node.id != 77));
    let commands = vec![Command::Started(NodeInfo::default())];
    let first = Batch { node: 77, incarnation: 1, sequence: 1, stamp: NOW, commands };
    assert_eq!(s.state.apply(&first), Outcome::Skipped(Skipped::NotLive));
    let (hash, ended) = (s.state.hash(), s.state.node(77).map(|node| node.ended));
    s.at += 1;
    s.run(Command::Removed { node: 77 });
    assert_ne!(s.state.hash(), hash, "a position was taken");
    assert_eq!(s.state.node(77).map(|node| node.ended), ended, "a second time changes nothing");
}

#[test]
fn every_command_adds_one_position_also_a_refused_one() {
    let mut s = Script::new();
    let alice = s.open("a", "alice");
    let p = s.state.position().0;
    let done = s.run_all(vec![
        Command::Leave { by: alice.clone(), room: room("nowhere") },
        Command::Join { by: alice.clone(), room: room("lobby") },
        Command::Exit { by: at(&alice, 7), room: room("lobby") },
    ]);
    assert_eq!(done.iter().map(|a| a.position.0).collect::<Vec<_>>(), [p + 1, p + 2, p + 3]);
    assert_eq!(done[0].reply, Reply::Refused(Refusal::NotMember));
    assert_eq!(done[2].reply, Reply::Refused(Refusal::Moved));
}

#[test]
fn what_an_old_generation_still_wanted_is_refused_after_a_resume() {
    let mut s = Script::new();
    let old = s.open("a", "alice");
    s.join(&old, "lobby");
    s.at = 2;
    assert!(matches!(s.resume(&old, "a", "alice"), Reply::Seated { generation: 2, .. }));
    let before = (s.texts("lobby"), s.state.session(&sid("a")));
    let (by, lobby) = (old.clone(), room("lobby"));
    for late in [
        Command::Join { by: by.clone(), room: room("other") },
        Command::Leave { by: by.clone(), room: lobby.clone() },
        Command::Enter { by: by.clone(), room: lobby.clone() },
        Command::Exit { by: by.clone(), room: lobby.clone() },
        Command::Publish { by: by.clone(), room: lobby, text: "late".into(), mid: None },
        Command::Close(by.clone()),
    ] {
        assert_eq!(s.reply(late.clone()), Reply::Refused(Refusal::Moved), "{late:?}");
    }
    for late in [Command::Lost(vec![by.clone()]), Command::Expire(vec![by])] {
        assert!(s.run(late).effects.is_empty());
    }
    assert_eq!((s.texts("lobby"), s.state.session(&sid("a"))), before);
    assert_eq!(s.attached("a"), Some(true));
}

#[test]
fn expire_needs_the_generation_and_a_session_without_a_transport() {
    let mut s = Script::new();
    let alice = s.open("a", "alice");
    assert!(s.run(Command::Expire(vec![alice.clone()])).effects.is_empty(), "it is attached");
    s.run(Command::Lost(vec![alice.clone()]));
    assert_eq!(s.attached("a"), Some(false));
    assert_eq!(s.state.lost_sessions(), std::slice::from_ref(&alice));
    assert!(s.run(Command::Expire(vec![at(&alice, 2)])).effects.is_empty(), "another generation");
    let gone = s.run(Command::Expire(vec![alice.clone()]));
    assert_eq!(gone.effects, [Effect::Unseated { holder: alice, why: Unseated::Expired }]);
    assert_eq!(s.attached("a"), None);
    assert!(s.state.lost_sessions().is_empty());
}

#[test]
fn a_start_or_a_down_detaches_all_sessions_of_the_node_and_writes_none_of_them() {
    for by_start in [true, false] {
        let mut s = Script::new();
        for i in 0..50 {
            s.open(&format!("s{i}"), &format!("u{i}"));
        }
        s.at = 2;
        let elsewhere = s.open("b", "bob");
        s.state.kv_mut().freeze();
        match by_start {
            true => s.start(1),
            false => drop(s.run(Command::Down { node: 1, incarnation: 1 })),
        }
        let changed = s.state.kv().changed_keys();
        assert!(changed <= 5, "{changed} pairs were written");
        assert!((0..50).all(|i| s.attached(&format!("s{i}")) == Some(false)));
        assert_eq!(s.attached("b"), Some(true));
        assert_eq!(s.state.lost_sessions().len(), 50);
        assert!(!s.state.lost_sessions().contains(&elsewhere));
    }
}

#[test]
fn a_down_for_another_incarnation_or_an_unknown_node_does_nothing() {
    let mut s = Script::new();
    s.open("a", "alice");
    for (node, incarnation) in [(1, 0), (1, 2), (9, 1)] {
        assert!(s.run(Command::Down { node, incarnation }).effects.is_empty());
    }
    assert_eq!(s.attached("a"), Some(true));
    assert_eq!(s.state.nodes().len(), 3);
}

#[test]
fn resume_is_a_compare_and_set() {
    let mut s = Script::new();
    let read = s.open("a", "alice");
    s.stamp += 700;
    s.run(Command::Lost(vec![read.clone()]));
    s.stamp += 300;
    s.at = 2;
    let resume = Command::Resume { read: read.clone(), ns: ns(), user: user("alice"), pid: pid("a") };
    let done = s.run(resume);
    let Some(Effect::Seated(seat)) = done.effects.last() else { panic!("{done:?}") };
    assert_eq!((seat.holder.generation, seat.node, seat.gap_ms), (2, 2, Some(300)));
    s.at = 3;
    assert_eq!(s.resume(&read, "a", "alice"), Reply::Refused(Refusal::Moved), "decided on what is not so any more");
    let session = s.state.session(&sid("a")).unwrap();
    assert_eq!((session.node, session.generation), (2, 2));
    assert!(matches!(s.resume(&at(&read, 2), "a", "alice"), Reply::Seated { generation: 3, .. }));
}

#[test]
fn below_level_2_the_fourth_takeover_within_ten_seconds_is_refused() {
    let mut s = Script::new();
    s.run(Command::SetLevel(1));
    let read = s.open("a", "alice");
    for generation in 1..=3 {
        s.at = 1 + generation % 2;
        s.stamp += 1000;
        assert!(matches!(s.take_over(&read, generation), Reply::Seated { .. }));
    }
    s.stamp += 7999;
    assert_eq!(s.take_over(&read, 4), Reply::Refused(Refusal::Contested), "the fourth within ten seconds of the first");
    assert!(s.state.is_attached(&s.state.session(&read.sid).unwrap()), "and it goes on where it is");
    s.run(Command::Lost(vec![at(&read, 4)]));
    assert!(matches!(s.take_over(&read, 4), Reply::Seated { generation: 5, .. }), "that it has nobody is no contest");
    assert_eq!(s.take_over(&read, 5), Reply::Refused(Refusal::Contested));
    s.stamp += 1;
    assert!(matches!(s.take_over(&read, 5), Reply::Seated { generation: 6, .. }), "the first is long ago");
    assert_eq!(s.take_over(&read, 6), Reply::Refused(Refusal::Contested), "the second is not");
    s.run(Command::Close(at(&read, 6)));
    assert!(s.state.pairs().all(|(key, _)| key[0] != 0x15), "nothing is left of it");
}

/// A server's disconnect brings a stock client back after 0.5 to 1.5 s and what it takes to connect.
#[test]
fn a_session_that_two_clients_take_from_each_other_stays_with_the_one_that_has_it() {
    for pace in [500, 1000, 1900] {
        let mut s = Script::at_level_2();
        let read = s.open("a", "alice");
        for generation in 1..=10 {
            s.at = 1 + generation % 2;
            s.stamp += pace;
            assert!(matches!(s.take_over(&read, generation), Reply::Seated { .. }), "{pace}: {generation}");
        }
        s.stamp += pace;
        assert_eq!(s.take_over(&read, 11), Reply::Refused(Refusal::Contested), "{pace}");
        assert!(s.state.is_attached(&s.state.session(&read.sid).unwrap()), "and it goes on where it is");
        s.stamp += 20_000 - 10 * pace - 1;
        assert_eq!(s.take_over(&read, 11), Reply::Refused(Refusal::Contested), "{pace}");
        s.stamp += 1;
        assert!(matches!(s.take_over(&read, 11), Reply::Seated { .. }), "the first is long ago");
    }
}

/// Each kill costs a polling client three tries: its node, and two that went through the one that is dead, before anybody says
/// that this one is down.
#[test]
fn who_comes_back_while_three_nodes_are_killed_one_after_another_keeps_its_session() {
    let mut s = Script::at_level_2();
    let read = s.open("a", "alice");
    for generation in 1..=9 {
        s.at = 1 + generation % 3;
        s.stamp += if generation % 3 == 1 { 3000 } else { 600 };
        assert!(matches!(s.take_over(&read, generation), Reply::Seated { .. }), "{generation}");
    }
}

/// Nodes of both versions apply the same log: what counts is the level in it, and nothing else.
#[test]
fn what_was_refused_below_level_2_is_not_from_there_on() {
    let mut s = Script::new();
    s.run(Command::SetLevel(1));
    let read = s.open("a", "alice");
    for generation in 1..=3 {
        s.take_over(&read, generation);
    }
    let again = Command::Resume { read: at(&read, 4), ns: ns(), user: user("alice"), pid: pid("a") };
    let done = s.run_all(vec![again.clone(), Command::SetLevel(2), again]);
    assert_eq!(done[0].reply, Reply::Refused(Refusal::Contested));
    assert!(matches!(done[2].reply, Reply::Seated { generation: 5, .. }), "{done:?}");
}

#[test]
fn resume_needs_the_secret_the_namespace_and_the_user() {
    let mut s = Script::new();
    let alice = s.open("a", "alice");
    assert_eq!(s.resume(&alice, "b", "alice"), Reply::Refused(Refusal::UnknownSession));
    let other = Namespace::new("/other").unwrap();
    let elsewhere = Command::Resume { read: alice.clone(), ns: other, user: user("alice"), pid: pid("a") };
    assert_eq!(s.reply(elsewhere), Reply::Refused(Refusal::UnknownSession));
    assert_eq!(s.attached("a"), Some(true), "a guess changes nothing");
    assert_eq!(s.resume(&alice, "a", "mallory"), Reply::Refused(Refusal::OtherUser));
    assert_eq!(s.attached("a"), None, "the session is closed");
    assert_eq!(s.resume(&alice, "a", "alice"), Reply::Refused(Refusal::UnknownSession));
    assert_eq!(s.state.session_of_pid(&pid("a")), None);
}

#[test]
fn past_the_bound_of_a_user_the_session_that_was_lost_longest_ago_goes() {
    let mut s = Script::limited(|limits| limits.sessions_per_user = 3);
    let (a, b) = (s.open("a", "u"), s.open("b", "u"));
    s.at = 2;
    s.open("c", "u");
    assert_eq!(s.open_as("d", "u", false), Err(Refusal::TooManySessions));
    s.stamp += 1000;
    s.run(Command::Lost(vec![b.clone()]));
    s.stamp += 1000;
    s.run(Command::Down { node: 1, incarnation: 1 });
    s.open("d", "u");
    assert_eq!((s.attached("a"), s.attached("b")), (Some(false), None), "b was lost before a's node was");
    s.open("e", "u");
    assert_eq!(s.attached("a"), None);
    assert_eq!(s.open_as("f", "u", false), Err(Refusal::TooManySessions));
    assert_eq!(s.open_as("f", "v", false).unwrap().generation, 1, "another user has a bound of its own");
    assert_eq!(s.state.sessions_of(&ns(), &user("u")).len(), 3);
    drop(a);
}

#[test]
fn a_guests_rooms_end_with_its_last_session() {
    let mut s = Script::new();
    let (one, two) = (s.open_as("a", "guest", true).unwrap(), s.open_as("b", "guest", true).unwrap());
    let user_session = s.open("u", "user");
    for name in ["x", "y"] {
        s.join(&one, name);
        s.join(&user_session, name);
    }
    s.run(Command::Close(one));
    assert_eq!(s.state.rooms_of_user(&ns(), &user("guest")).len(), 2, "it has another session");
    s.run(Command::Close(two));
    assert!(s.state.rooms_of_user(&ns(), &user("guest")).is_empty());
    assert_eq!(s.replay("u", Position(0)).unwrap(), ["x:+user", "y:+user", "x:-guest", "y:-guest"]);
    s.run(Command::Close(user_session));
    assert_eq!(s.state.rooms_of_user(&ns(), &user("user")).len(), 2, "a user's rooms stay");
}

#[test]
fn guests_that_expire_together_leave_one_entry_each() {
    let mut s = Script::new();
    let watcher = s.open("w", "watcher");
    let guests: Vec<Holder> = ["g1", "g2", "g3"].iter().map(|name| s.open_as(name, name, true).unwrap()).collect();
    for room in ["x", "y"] {
        s.join(&watcher, room);
        guests.iter().for_each(|guest| drop(s.join(guest, room)));
    }
    let offset = s.state.position();
    s.run(Command::Lost(guests.clone()));
    let expired = s.run(Command::Expire(guests));
    assert_eq!(expired.position, s.state.position(), "a seat that follows lies above all of it");
    let left = ["x:-g1", "y:-g1", "x:-g2", "y:-g2", "x:-g3", "y:-g3"];
    assert_eq!(s.replay("w", offset).unwrap(), left);
    for name in ["x", "y"] {
        let record = s.state.room(&ns(), &room(name)).unwrap();
        assert_eq!(record.entries, s.texts(name).len() as u64);
        assert_eq!(record.members, 1);
    }
}

#[test]
fn the_same_mid_gives_the_same_place_and_no_second_message() {
    let mut s = Script::new();
    let (one, two) = (s.open("a", "alice"), s.open("b", "alice"));
    let bob = s.open("c", "bob");
    for holder in [&one, &bob] {
        s.join(holder, "lobby");
        s.join(holder, "other");
    }
    let first = s.say_once(&one, "lobby", "hello", Some("m"));
    s.stamp += 5000;
    let again = s.say_once(&two, "lobby", "hello", Some("m"));
    assert_eq!(first.reply, Reply::Published { position: first.position, at: NOW });
    assert_eq!(again.reply, first.reply);
    assert!(again.effects.is_empty());
    for (room, text) in [("lobby", "hullo"), ("other", "hello")] {
        let reply = s.say_once(&one, room, text, Some("m")).reply;
        assert_eq!(reply, Reply::Refused(Refusal::MidReused));
    }
    assert!(matches!(s.say_once(&bob, "lobby", "mine", Some("m")).reply, Reply::Published { .. }), "its own user's");
    assert_eq!(s.texts("lobby"), ["+alice", "+bob", "hello", "mine"]);
    s.leave(&one, "lobby");
    assert_eq!(s.say_once(&two, "lobby", "hello", Some("m")).reply, first.reply, "it was accepted at the time");
}

#[test]
fn a_mid_is_known_within_its_window_and_its_bound() {
    let mut s = Script::limited(|limits| limits.mids_per_user = 3);
    let alice = s.open("a", "alice");
    s.join(&alice, "lobby");
    let first: Vec<Applied> = ["1", "2", "3"].iter().map(|m| s.say_once(&alice, "lobby", m, Some(m))).collect();
    for _ in 0..3 {
        let again = s.say_once(&alice, "lobby", "1", Some("1"));
        assert_eq!(
            again.reply, first[0].reply,
            "a full table still knows its oldest, and a retry takes no place in it"
        );
        assert_eq!(s.say_once(&alice, "lobby", "2", Some("2")).reply, first[1].reply);
    }
    s.say_once(&alice, "lobby", "4", Some("4"));
    assert_eq!(s.say_once(&alice, "lobby", "3", Some("3")).reply, first[2].reply);
    assert_ne!(s.say_once(&alice, "lobby", "1", Some("1")).reply, first[0].reply, "past the bound the oldest goes");
    s.stamp += 600_000;
    assert_eq!(s.say_once(&alice, "lobby", "3", Some("3")).reply, first[2].reply, "the window includes its end");
    s.stamp += 1;
    assert_ne!(s.say_once(&alice, "lobby", "3", Some("3")).reply, first[2].reply);
}

#[test]
fn the_mids_of_users_who_say_nothing_more_are_forgotten_past_their_window() {
    let mut s = Script::at_level_2();
    let (alice, bob) = (s.open("a", "alice"), s.open("b", "bob"));
    for by in [&alice, &bob] {
        s.join(by, "lobby");
        s.say_once(by, "lobby", "1", Some("1"));
    }
    s.stamp += 300_000;
    let second = s.say_once(&bob, "lobby", "2", Some("2"));
    assert_eq!(s.state.users_with_old_mids(None, 100), (vec![], None));
    s.stamp += 300_001;
    s.join(&alice, "clock");
    let both = vec![user("alice"), user("bob")];
    assert_eq!(s.state.users_with_old_mids(None, 100), (both.clone(), None));
    assert_eq!(s.state.users_with_old_mids(None, 1), (both[..1].to_vec(), Some(user("alice"))));
    assert_eq!(s.state.users_with_old_mids(Some(&user("alice")), 1), (both[1..].to_vec(), Some(user("bob"))));
    assert_eq!(s.state.users_with_old_mids(Some(&user("bob")), 1), (vec![], None));
    assert_eq!(s.reply(Command::ForgetMids(both.clone())), Reply::Done);
    assert_eq!(rows_of_mids(&s), [1, 1, 1], "bob's second alone");
    assert_eq!(s.say_once(&bob, "lobby", "2", Some("2")).reply, second.reply, "which is still recognised");
    // What comes late forgets nothing of what came meanwhile.
    s.say_once(&alice, "lobby", "3", Some("3"));
    s.run(Command::ForgetMids(both.clone()));
    assert_eq!(rows_of_mids(&s), [2, 2, 2]);
    s.stamp += 600_001;
    s.run(Command::ForgetMids([both, vec![user("nobody")]].concat()));
    assert_eq!(rows_of_mids(&s), [0, 0, 0]);
}

#[test]
fn one_command_forgets_so_many_mids_and_the_next_goes_on() {
    let mut s = Script::at_level_2();
    let alice = s.open("a", "alice");
    let bob = s.open("b", "bob");
    for (by, count) in [(&alice, 700), (&bob, 700)] {
        s.join(by, "lobby");
        (0..count).for_each(|n| _ = s.say_once(by, "lobby", "x", Some(&n.to_string())));
    }
    s.stamp += 600_001;
    s.join(&alice, "clock");
    for left in [[400, 400, 1], [0, 0, 0]] {
        s.run(Command::ForgetMids(vec![user("alice"), user("bob")]));
        assert_eq!(rows_of_mids(&s), left);
    }
}

/// In the tables of the `mid`s, of their order, and of who has some.
fn rows_of_mids(s: &Script) -> [usize; 3] {
    [0x40, 0x41, 0x42].map(|table| s.state.pairs().filter(|(key, _)| key[0] == table).count())
}

#[test]
fn replay_is_what_lies_between_join_and_leave_both_included() {
    let mut s = Script::new();
    let (me, other) = (s.open("m", "me"), s.open("o", "other"));
    s.join(&other, "r");
    let offset = s.say(&other, "r", "before").position;
    s.join(&me, "r");
    s.say(&other, "r", "1");
    let middle = s.say(&other, "r", "2").position;
    s.leave(&me, "r");
    s.say(&other, "r", "away");
    s.join(&me, "r");
    s.say(&other, "r", "3");
    assert_eq!(s.replay("m", offset).unwrap(), ["r:+me", "r:1", "r:2", "r:-me", "r:+me", "r:3"]);
    assert_eq!(s.replay("m", middle).unwrap(), ["r:-me", "r:+me", "r:3"]);
    assert_eq!(s.replay("m", Position(0)), s.replay("m", offset), "nothing from before the session");
    let seam = s.state.position();
    s.say(&other, "r", "above the seam");
    assert_eq!(s.replay_at("m", middle, seam, ALL).unwrap(), ["r:-me", "r:+me", "r:3"]);
    assert_eq!(s.replay_at("m", seam, seam, ALL).unwrap(), [""; 0]);
    assert_eq!(s.replay_at("m", Position(seam.0 + 1), seam, ALL), Err(Incomplete::Future));
}

#[test]
fn an_offset_from_before_the_session_counts_as_its_first_position() {
    let mut s = Script::new();
    let old = s.open("o", "me");
    let offset = s.join(&old, "r").position;
    s.say(&old, "r", "1");
    s.open("m", "me");
    s.say(&old, "r", "2");
    assert_eq!(s.replay("m", offset).unwrap(), ["r:2"]);
    assert_eq!(s.replay("o", offset).unwrap(), ["r:1", "r:2"]);
}

#[test]
fn a_third_span_drops_the_first_and_replay_from_within_it_is_refused() {
    let mut s = Script::new();
    let me = s.open("m", "me");
    let first = s.join(&me, "r").position;
    let left = s.leave(&me, "r").position;
    for _ in 0..2 {
        s.join(&me, "r");
        s.leave(&me, "r");
    }
    assert_eq!(s.replay("m", first), Err(Incomplete::Trimmed));
    assert_eq!(s.replay("m", Position(left.0 - 1)), Err(Incomplete::Trimmed));
    assert_eq!(s.replay("m", left).unwrap(), ["r:+me", "r:-me", "r:+me", "r:-me"]);
}

#[test]
fn replay_is_refused_when_the_floor_is_above_the_offset() {
    let mut s = Script::limited(|limits| limits.history_size = 3);
    let me = s.open("m", "me");
    let joined = s.join(&me, "r").position;
    let said: Vec<Position> = (0..4).map(|i| s.say(&me, "r", &i.to_string()).position).collect();
    assert_eq!(s.state.room(&ns(), &room("r")).unwrap().floor, said[0]);
    assert_eq!(s.replay("m", joined), Err(Incomplete::Trimmed));
    assert_eq!(s.replay("m", said[0]).unwrap(), ["r:1", "r:2", "r:3"]);
}

#[test]
fn replay_is_refused_when_a_span_that_was_due_is_trimmed_away() {
    let mut s = Script::limited(|limits| limits.history_size = 3);
    let (me, other) = (s.open("m", "me"), s.open("o", "other"));
    s.join(&other, "r");
    s.join(&other, "quiet");
    let offset = s.join(&me, "r").position;
    s.say(&other, "r", "due");
    let left = s.leave(&me, "r").position;
    for i in 0..5 {
        s.say(&other, "r", &i.to_string());
    }
    assert_eq!(s.state.spans(&ns(), &user("me"), &room("r")), None, "nothing of it can be replayed");
    assert_eq!(s.replay("m", offset), Err(Incomplete::Trimmed));
    assert_eq!(s.replay("m", left).unwrap(), [""; 0], "its end was heard");
    let fresh = s.open("n", "me");
    assert_eq!(s.replay("n", offset).unwrap(), [""; 0], "a later session misses nothing");
    let pairs = s.state.pairs().count();
    s.run(Command::Close(me));
    s.run(Command::Close(fresh));
    assert!(s.state.pairs().count() < pairs - 2 * 4, "what remembered it goes with the user's last session");
}

#[test]
fn a_replay_past_its_limit_is_refused() {
    let mut s = Script::new();
    let me = s.open("m", "me");
    s.join(&me, "r");
    (0..3).for_each(|_| drop(s.say(&me, "r", "12345")));
    let seam = s.state.position();
    let with = |entries, bytes| s.replay_at("m", Position(0), seam, ReplayLimit { entries, bytes });
    assert_eq!(with(4, 15).unwrap().len(), 4);
    assert_eq!(with(3, 15), Err(Incomplete::TooLong));
    assert_eq!(with(4, 14), Err(Incomplete::TooLong));
}

#[test]
fn what_a_session_heard_as_an_entered_one_is_replayed_also_when_its_user_joined_since() {
    let mut s = Script::new();
    let (me, tab, other) = (s.open("m", "me"), s.open("t", "me"), s.open("o", "other"));
    s.join(&other, "r");
    let entered = s.enter(&me, "r").position;
    s.say(&other, "r", "1");
    s.join(&tab, "r");
    s.say(&other, "r", "2");
    let seam = s.state.position();
    assert_eq!(s.replay("m", entered).unwrap(), ["r:1", "r:+me", "r:2"]);
    assert_eq!(s.replay("t", entered).unwrap(), ["r:+me", "r:2"]);
    let exactly = ReplayLimit { entries: 3, bytes: 2 };
    assert_eq!(s.replay_at("m", entered, seam, exactly).unwrap().len(), 3, "an entry is counted once");
    s.leave(&tab, "r");
    s.say(&other, "r", "3");
    assert_eq!(s.replay("m", entered).unwrap(), ["r:1", "r:+me", "r:2", "r:-me", "r:3"]);
}

#[test]
fn what_a_session_missed_before_its_exit_is_still_due_to_it() {
    let mut s = Script::new();
    let (me, other) = (s.open("m", "me"), s.open("o", "other"));
    s.join(&other, "r");
    let entered = s.enter(&me, "r").position;
    s.say(&other, "r", "1");
    let exited = s.exit(&me, "r").position;
    s.say(&other, "r", "2");
    s.enter(&me, "r");
    s.say(&other, "r", "3");
    assert_eq!(s.replay("m", entered).unwrap(), ["r:1", "r:3"]);
    assert_eq!(s.replay("m", exited).unwrap(), ["r:3"]);
    // Only so many exits are kept; before those it cannot be said any more what was missed.
    let kept = s.state.position();
    for _ in 0..16 {
        s.enter(&me, "other");
        s.exit(&me, "other");
    }
    assert_eq!(s.replay("m", entered), Err(Incomplete::Trimmed));
    assert_eq!(s.replay("m", kept).unwrap(), [""; 0]);
}

#[test]
fn the_gap_of_a_session_begins_with_the_end_of_its_own_incarnation() {
    let mut s = Script::new();
    let (first, second) = (s.open("a", "alice"), s.open("b", "bob"));
    s.run(Command::Lost(vec![second.clone()]));
    s.start(1);
    let bob = s.resume(&second, "b", "bob");
    assert!(matches!(bob, Reply::Seated { generation: 2, .. }));
    s.stamp += 7000;
    s.start(1);
    s.stamp += 2000;
    let gap = |applied: Applied| match &applied.effects[..] {
        [_, Effect::Seated(attached)] => attached.gap_ms,
        other => panic!("{other:?}"),
    };
    let resume =
        |read: Holder, name: &str, who: &str| Command::Resume { read, ns: ns(), user: user(who), pid: pid(name) };
    assert_eq!(gap(s.run(resume(first, "a", "alice"))), Some(9000), "lost with the first restart");
    assert_eq!(gap(s.run(resume(at(&second, 2), "b", "bob"))), Some(2000), "lost with the second");
}

#[test]
fn a_room_that_nobody_speaks_in_is_swept_when_its_history_is_too_old() {
    let mut s = Script::limited(|limits| limits.history_ttl_ms = 10_000);
    let (me, tab) = (s.open("m", "me"), s.open("t", "me"));
    s.enter(&tab, "left");
    let missed = s.join(&me, "left").position;
    s.say(&me, "left", "last words");
    s.exit(&tab, "left");
    s.leave(&me, "left");
    s.join(&me, "quiet");
    s.stamp += 10_001;
    s.join(&me, "live");
    let (stale, next) = s.state.stale_rooms(None, 100);
    assert_eq!((stale.clone(), next), (vec![(ns(), room("left")), (ns(), room("quiet"))], None));
    assert_eq!(s.state.stale_rooms(None, 1).1, Some((ns(), room("left"))), "the next look goes on there");
    assert!(matches!(s.reply(Command::Sweep(stale)), Reply::Done));
    assert_eq!(s.state.room(&ns(), &room("left")), None, "nobody is in it and nothing left of it");
    assert_eq!(s.state.spans(&ns(), &user("me"), &room("left")), None);
    let quiet = s.state.room(&ns(), &room("quiet")).expect("it has a member");
    assert_eq!((quiet.members, quiet.entries, quiet.bytes), (1, 0, 0));
    assert_eq!(s.state.stale_rooms(None, 100), (vec![], None));
    // Also where a session alone is left when the last entry goes, and then exits.
    s.enter(&tab, "entered");
    let heard = s.say(&tab, "entered", "hello?").position;
    s.stamp += 10_001;
    s.enter(&tab, "clock");
    s.run(Command::Sweep(s.state.stale_rooms(None, 100).0));
    s.exit(&tab, "entered");
    assert_eq!(s.state.room(&ns(), &room("entered")), None);
    assert_eq!(s.replay("t", Position(heard.0 - 1)), Err(Incomplete::Trimmed));
    assert_eq!(s.replay("t", heard).unwrap(), [""; 0]);
    // What is gone is known to be gone, also when the room is there again.
    assert_eq!(s.replay("t", missed), Err(Incomplete::Trimmed));
    let again = s.join(&me, "left").position;
    assert_eq!(s.replay("t", missed), Err(Incomplete::Trimmed));
    s.say(&me, "left", "new");
    assert_eq!(s.replay("m", again).unwrap(), ["left:new"]);
    assert_eq!(s.texts("left"), ["+me", "new"]);
}

#[test]
fn history_is_trimmed_by_number_bytes_and_age_and_the_newest_stays() {
    let mut s = Script::limited(|limits| {
        limits.history_size = 4;
        limits.history_bytes = 4 * 64 + 100;
        limits.history_ttl_ms = 10_000;
    });
    let me = s.open("m", "me");
    s.join(&me, "r");
    (1..=5).for_each(|i| drop(s.say(&me, "r", &i.to_string())));
    assert_eq!(s.texts("r"), ["2", "3", "4", "5"]);
    s.say(&me, "r", &"x".repeat(90));
    s.say(&me, "r", &"y".repeat(90));
    assert_eq!(s.texts("r").len(), 2);
    s.say(&me, "r", &"z".repeat(1000));
    assert_eq!(s.texts("r"), ["z".repeat(1000)], "somebody was just told that it is there");
    s.say(&me, "r", "6");
    s.stamp += 10_000;
    s.say(&me, "r", "7");
    assert_eq!(s.texts("r"), ["6", "7"]);
    s.stamp += 1;
    s.say(&me, "r", "8");
    assert_eq!(s.texts("r"), ["7", "8"]);
    let record = s.state.room(&ns(), &room("r")).unwrap();
    assert_eq!((record.entries, record.bytes), (2, 2 * 65));
    let (above, more) = s.state.history(&ns(), &room("r"), Some(record.floor), None, 10, |_| true);
    assert_eq!((above.len(), more), (2, false), "whole above the floor");
}

#[test]
fn a_leaders_clock_may_jump_and_the_states_clock_never_goes_back() {
    let mut s = Script::new();
    let alice = s.open("a", "alice");
    let bob = s.open("b", "bob");
    s.join(&alice, "lobby");
    s.run(Command::Lost(vec![bob]));
    let mut clock = s.state.clock();
    for stamp in [NOW + HOUR, NOW, NOW + DAY, NOW - DAY, 0, NOW + DAY + 1] {
        s.stamp = stamp;
        let said = s.say(&alice, "lobby", &stamp.to_string());
        assert!(s.state.clock() >= clock && said.at == s.state.clock());
        clock = s.state.clock();
    }
    assert_eq!(clock, NOW + DAY + 1);
    assert_eq!((s.attached("a"), s.attached("b")), (Some(true), Some(false)), "a clock ends no session");
    assert_eq!(s.texts("lobby").len(), 7, "a day ahead empties no room that keeps a week");
}

#[test]
fn the_two_views_are_mutual_inverses() {
    let mut s = Script::new();
    let a = s.open("a", "alice");
    let b = s.open("b", "alice");
    let c = s.open("c", "bob");
    s.join(&a, "both");
    s.enter(&b, "both");
    s.enter(&b, "own");
    s.enter(&c, "own");
    let sids = |s: &Script, name| s.state.sids_in_room(&ns(), &room(name));
    assert_eq!(sids(&s, "both"), [sid("a"), sid("b")]);
    assert_eq!(sids(&s, "own"), [sid("b"), sid("c")]);
    s.leave(&a, "both");
    assert_eq!(sids(&s, "both"), [sid("b")], "what it entered for itself stays");
    s.run(Command::Close(b));
    assert_eq!(sids(&s, "own"), [sid("c")]);
    assert!(sids(&s, "both").is_empty());
}

#[test]
fn the_drain_token_is_held_by_one_node() {
    let mut s = Script::new();
    assert_eq!(s.reply(Command::TakeDrain { force: false }), Reply::Done);
    assert_eq!(s.reply(Command::TakeDrain { force: false }), Reply::Done, "it has it already");
    s.at = 2;
    assert_eq!(s.reply(Command::TakeDrain { force: false }), Reply::Refused(Refusal::DrainHeld(1)));
    s.run(Command::EndDrain { node: 2 });
    assert_eq!(s.state.drain().map(|drain| drain.node), Some(1), "only its holder's token ends");
    assert_eq!(s.reply(Command::TakeDrain { force: true }), Reply::Done);
    assert_eq!(s.state.drain().map(|drain| drain.node), Some(2));
    s.at = 3;
    s.run(Command::Removed { node: 2 });
    assert_eq!(s.state.drain(), None);
}

#[test]
fn an_end_of_a_drain_that_comes_late_does_not_end_a_newer_token() {
    let mut s = Script::at_level_2();
    s.run(Command::TakeDrain { force: false });
    s.start(1);
    s.run(Command::TakeDrain { force: false });
    let undrain = |node, incarnation| Command::Undrain { node, incarnation };
    for (node, incarnation) in [(1, 1), (2, 2)] {
        assert_eq!(s.reply(undrain(node, incarnation)), Reply::Done);
        assert_eq!(s.state.drain().map(|drain| (drain.node, drain.incarnation)), Some((1, 2)), "another token");
    }
    s.run(undrain(1, 2));
    assert_eq!(s.state.drain(), None);
    s.run(Command::TakeDrain { force: false });
    s.start(1);
    s.run(undrain(1, 3));
    assert_eq!(s.state.drain(), None, "also one that it took before its last start");
}

#[test]
fn many_tabs_of_one_user_are_one_presence() {
    let mut s = Script::new();
    let open = |name: &str| Command::Open { sid: sid(name), ns: ns(), user: user("ann"), guest: false, pid: pid(name) };
    assert!(heard(&s.run(open("a"))).is_empty(), "it is in no room");
    let first = Holder { sid: sid("a"), generation: 1 };
    s.join(&first, "x");
    s.join(&first, "y");
    assert!(heard(&s.run(open("b"))).is_empty());
    assert!(heard(&s.run(Command::Close(first))).is_empty());
    assert!(s.is_online("ann"));
    let gone = s.run(Command::Close(Holder { sid: sid("b"), generation: 1 }));
    assert_eq!(heard(&gone), ["x: ann offline", "y: ann offline"], "its own disconnect() counts at once");
    assert!(!s.is_online("ann"));
    let back = s.run(open("c"));
    assert_eq!(heard(&back), ["x: ann online", "y: ann online"]);
    assert!(matches!(back.effects.last(), Some(Effect::Seated(_))), "told before its own seat is made: {back:?}");
}

#[test]
fn a_restart_of_a_node_changes_nobodys_presence() {
    let mut s = Script::new();
    let ann = s.open("a", "ann");
    s.join(&ann, "x");
    for planned in [true, false] {
        let generation = s.state.session(&sid("a")).unwrap().generation;
        if planned {
            assert!(heard(&s.run(Command::Lost(vec![at(&ann, generation)]))).is_empty());
        } else {
            s.at = 2;
            assert!(heard(&s.run(Command::Down { node: 1, incarnation: s.nodes[1].0 })).is_empty());
        }
        s.start(1);
        assert!(s.is_online("ann"), "in its grace");
        let read = at(&ann, generation);
        let resumed = s.run(Command::Resume { read, ns: ns(), user: user("ann"), pid: pid("a") });
        assert!(matches!(resumed.reply, Reply::Seated { .. }));
        assert!(heard(&resumed).is_empty());
    }
}

#[test]
fn a_user_goes_offline_by_grace_only_when_all_its_sessions_are_lost() {
    let mut s = Script::new();
    let tabs = [s.open("a", "ann"), s.open("b", "ann")];
    s.join(&tabs[0], "x");
    s.at = 2;
    let third = s.open("c", "ann");
    s.run(Command::Lost(tabs.to_vec()));
    assert!(s.away().is_empty(), "one has a transport");
    s.at = 1;
    s.run(Command::Down { node: 2, incarnation: 1 });
    let away = s.away();
    assert_eq!(away.len(), 1, "once, whatever the number of sessions");
    assert!(s.is_online("ann"), "until its grace is over");
    assert_eq!(heard(&s.run(Command::Offline(away.clone()))), ["x: ann offline"]);
    assert!(!s.is_online("ann"));
    assert!(s.away().is_empty());
    assert!(heard(&s.run(Command::Offline(away))).is_empty(), "said once");
    assert!(heard(&s.run(Command::Expire(tabs.to_vec()))).is_empty());
    let resumed = s.run(Command::Resume { read: third, ns: ns(), user: user("ann"), pid: pid("c") });
    assert_eq!(heard(&resumed), ["x: ann online"], "it was said that it is not");
}

#[test]
fn a_late_verdict_on_a_user_changes_nothing() {
    let mut s = Script::new();
    let ann = s.open("a", "ann");
    s.join(&ann, "x");
    s.run(Command::Lost(vec![ann.clone()]));
    let late = s.away();
    s.resume(&ann, "a", "ann");
    assert!(heard(&s.run(Command::Offline(late.clone()))).is_empty(), "it came back");
    s.run(Command::Lost(vec![at(&ann, 2)]));
    assert!(heard(&s.run(Command::Offline(late.clone()))).is_empty(), "it went again, for a grace of its own");
    s.run(Command::Close(at(&ann, 2)));
    let new = s.open("b", "ann");
    s.run(Command::Lost(vec![new]));
    assert!(heard(&s.run(Command::Offline(late))).is_empty(), "this is another session");
    assert!(s.is_online("ann"));
}

#[test]
fn a_session_that_ends_within_its_grace_ends_the_presence_with_it() {
    let mut s = Script::new();
    let ann = s.open("a", "ann");
    s.join(&ann, "x");
    s.run(Command::Lost(vec![ann.clone()]));
    let away = s.away();
    assert_eq!(heard(&s.run(Command::Expire(vec![ann]))), ["x: ann offline"]);
    assert!(heard(&s.run(Command::Offline(away))).is_empty());
    let bo = s.open("b", "bo");
    s.join(&bo, "x");
    let stolen = s.run(Command::Resume { read: bo, ns: ns(), user: user("mallory"), pid: pid("b") });
    assert_eq!(heard(&stolen), ["x: bo offline"]);
}

#[test]
fn the_one_session_of_a_user_that_makes_room_for_its_next_ends_no_presence() {
    let mut s = Script::limited(|limits| limits.sessions_per_user = 1);
    let ann = s.open("a", "ann");
    s.join(&ann, "x");
    s.run(Command::Lost(vec![ann]));
    let open = Command::Open { sid: sid("b"), ns: ns(), user: user("ann"), guest: false, pid: pid("b") };
    assert!(heard(&s.run(open)).is_empty());
    assert_eq!((s.attached("a"), s.is_online("ann")), (None, true));
}

#[test]
fn a_guest_is_offline_and_then_leaves() {
    let mut s = Script::new();
    let guest = s.open_as("g", "guest", true).unwrap();
    s.join(&guest, "x");
    let gone = s.run(Command::Close(guest));
    assert_eq!(heard(&gone), ["x: guest offline"]);
    let presence = gone.effects.iter().position(|effect| matches!(effect, Effect::Presence { .. }));
    let left = gone.effects.iter().position(|effect| matches!(effect, Effect::Entry { .. }));
    assert!(presence < left && left.is_some(), "{gone:?}");
    assert!(!s.is_online("guest"));
}

#[test]
fn a_room_above_the_limit_hears_of_nobodys_presence() {
    let mut s = Script::limited(|limits| limits.presence_limit = 2);
    let users = ["ann", "bo", "cy"].map(|name| s.open(name, name));
    users.iter().for_each(|user| drop(s.join(user, "large")));
    users[..2].iter().for_each(|user| drop(s.join(user, "small")));
    assert_eq!(heard(&s.run(Command::Close(users[0].clone()))), ["small: ann offline"]);
    assert!(heard(&s.run(Command::Close(users[2].clone()))).is_empty());
    assert!(!s.is_online("cy"), "`users` knows all the same");
}
