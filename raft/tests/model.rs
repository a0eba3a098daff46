//! Random histories against a model of sets and vectors: what the state knows is what the model knows, and neither
//! checkpoints, snapshots, installations nor restarts on the way change a reply or a byte of it.

#[allow(dead_code, reason = "each test uses what it needs of it")]
mod disk;
#[path = "model/naive.rs"]
mod naive;

use std::collections::{BTreeMap, BTreeSet};

use disk::Disk;
use moim_raft::{
    command::{
        Away, Batch, Command, Holder, Limits, Namespace, NodeInfo, Position, Reply, Room, RoomEntry, Sid, User, What,
    },
    state::{
        Outcome, State,
        replay::{Incomplete, ReplayLimit},
    },
};
use naive::{HISTORY, MID_WINDOW, MIDS, Model, NODES, ROOMS, USERS, Wish, is_guest};

/// Long ones reach every bound, short ones many beginnings.
const LONG: (u64, u64) = (120, 220);
const SHORT: (u64, u64) = (9_900, 20);
/// How many threads share them.
const THREADS: u64 = 4;
/// As in the state.
const EXITS_KEPT: usize = 16;

/// xorshift64*: small, and the same everywhere.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

fn ns() -> Namespace {
    Namespace::new("/chat").unwrap()
}

fn room(n: u64) -> Room {
    Room::new(format!("room {n}")).unwrap()
}

fn user(n: u64) -> User {
    User::new(format!("user {n}")).unwrap()
}

fn sid(n: u64) -> Sid {
    Sid::parse(&format!("{n:020}")).unwrap()
}

struct Run {
    rng: Rng,
    model: Model,
    state: State,
    /// The same log, on a disk.
    disk: Disk,
    incarnations: BTreeMap<u64, (u64, u64)>,
    sids: u64,
    refusals: usize,
    replays: usize,
}

impl Run {
    fn holder(&mut self) -> (u64, u64) {
        let sid = self.rng.below(self.sids + 1);
        let generation = self.model.seats.get(&sid).map_or(1, |seat| seat.generation);
        let stale = self.rng.below(8) == 0;
        (sid, if stale { generation.saturating_sub(1) } else { generation })
    }

    fn wish(&mut self) -> Wish {
        let (by, room) = (self.holder(), self.rng.below(ROOMS));
        match self.rng.below(48) {
            0..4 => {
                self.sids += 1;
                Wish::Open(self.sids, self.rng.below(USERS))
            }
            4..7 => Wish::Resume(by),
            7..9 => Wish::Lost(vec![by, self.holder()]),
            9..11 => Wish::Expire((0..4).map(|_| self.holder()).collect()),
            11 => Wish::Close(by),
            12..17 => Wish::Join(by, room),
            17..20 => Wish::Leave(by, room),
            20..23 => Wish::Enter(by, room),
            23..25 => Wish::Exit(by, room),
            26 => {
                let late = self.rng.below(3) == 0;
                let present = self.model.present.iter();
                Wish::Offline(present.map(|(user, position)| (*user, position - u64::from(late))).collect())
            }
            25 if self.rng.below(8) == 0 => Wish::Level(1 + self.rng.below(2) as u16),
            25 if self.rng.below(3) == 0 => Wish::Down(1 + self.rng.below(NODES)),
            27..30 if self.model.level >= 2 => Wish::ForgetMids((0..USERS).filter(|_| self.rng.below(3) > 0).collect()),
            _ => Wish::Say(by, room, Some(self.rng.below(24)).filter(|mid| *mid < 6)),
        }
    }

    fn command(&self, wish: &Wish) -> Command {
        let holder = |(n, generation): &(u64, u64)| Holder { sid: sid(*n), generation: *generation };
        let pid = |n: u64| [n as u8; 32];
        let whose = |n: &u64| user(self.model.seats.get(n).map_or(0, |seat| seat.user));
        match wish {
            Wish::Open(n, who) => {
                Command::Open { sid: sid(*n), ns: ns(), user: user(*who), guest: is_guest(*who), pid: pid(*n) }
            }
            Wish::Resume(by) => Command::Resume { read: holder(by), ns: ns(), user: whose(&by.0), pid: pid(by.0) },
            Wish::Lost(all) => Command::Lost(all.iter().map(holder).collect()),
            Wish::Expire(all) => Command::Expire(all.iter().map(holder).collect()),
            Wish::Close(by) => Command::Close(holder(by)),
            Wish::Join(by, r) => Command::Join { by: holder(by), room: room(*r) },
            Wish::Leave(by, r) => Command::Leave { by: holder(by), room: room(*r) },
            Wish::Enter(by, r) => Command::Enter { by: holder(by), room: room(*r) },
            Wish::Exit(by, r) => Command::Exit { by: holder(by), room: room(*r) },
            Wish::Say(by, r, mid) => {
                let mid = mid.map(|mid| format!("mid {mid}"));
                Command::Publish { by: holder(by), room: room(*r), text: "hello".to_owned(), mid }
            }
            Wish::ForgetMids(users) => Command::ForgetMids(users.iter().map(|n| user(*n)).collect()),
            Wish::Down(node) => {
                Command::Down { node: *node, incarnation: self.incarnations.get(node).map_or(0, |(inc, _)| *inc) }
            }
            Wish::Level(level) => Command::SetLevel(*level),
            Wish::Offline(users) => {
                let away = |(who, at): &(u64, u64)| Away { ns: ns(), user: user(*who), attached: Position(*at) };
                Command::Offline(users.iter().map(away).collect())
            }
        }
    }

    fn apply(&mut self, batch: &Batch) -> Outcome {
        let outcome = self.state.apply(batch);
        self.disk.apply(batch, &outcome);
        match self.rng.below(60) {
            0..6 => self.disk.checkpoint(),
            6..9 => self.disk.catch_up(),
            9 => _ = self.disk.snapshot(),
            10 => self.disk.install(),
            11 => self.disk.restart(),
            12 => self.disk.lose_overlay(),
            _ => {}
        }
        outcome
    }

    fn start(&mut self, node: u64) {
        let (incarnation, sequence) = self.incarnations.entry(node).or_default();
        (*incarnation, *sequence) = (*incarnation + 1, 1);
        let commands = vec![Command::Started(NodeInfo::default())];
        let batch = Batch { node, incarnation: *incarnation, sequence: 1, stamp: 0, commands };
        self.model.live.insert(node, *incarnation);
        self.model.position += 1;
        assert!(matches!(self.apply(&batch), Outcome::Applied(_)));
    }

    /// A batch of a few commands from some node; commands later in it are chosen knowing those before.
    fn step(&mut self) {
        let node = 1 + self.rng.below(NODES);
        if self.rng.below(60) == 0 {
            self.start(node);
        }
        let (incarnation, sequence) = self.incarnations[&node];
        if !self.model.live.contains_key(&node) {
            let batch = Batch { node, incarnation, sequence: sequence + 1, stamp: 0, commands: vec![] };
            assert!(matches!(self.apply(&batch), Outcome::Skipped(_)));
            return self.start(node);
        }
        // Often a little later; sometimes it jumps, to and fro.
        let stamp = match self.rng.below(4) {
            0 => self.rng.below(1_000_000),
            _ => self.model.clock + self.rng.below(1000),
        };
        self.model.clock = self.model.clock.max(stamp);
        let (mut commands, mut worked, mut positions) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..=self.rng.below(4) {
            let wish = self.wish();
            commands.push(self.command(&wish));
            worked.push(self.model.carry_out(node, incarnation, wish));
            positions.push(self.model.position);
        }
        self.incarnations.insert(node, (incarnation, sequence + 1));
        let batch = Batch { node, incarnation, sequence: sequence + 1, stamp, commands };
        let Outcome::Applied(applied) = self.apply(&batch) else { panic!("a live node's next batch was skipped") };
        for (i, done) in applied.iter().enumerate() {
            assert_eq!(
                !matches!(done.reply, Reply::Refused(_)),
                worked[i],
                "{:?}: {:?}",
                batch.commands[i],
                done.reply
            );
            assert_eq!(done.position.0, positions[i], "{:?}", batch.commands[i]);
        }
    }

    fn compare(&mut self) {
        let (model, state) = (&self.model, &self.state);
        assert_eq!(state.position().0, model.position);
        assert_eq!(state.sessions_after(None).count(), model.seats.len());
        for r in 0..ROOMS {
            let members: BTreeSet<User> = state.members(&ns(), &room(r), None, usize::MAX).into_iter().collect();
            let expected = model.members.iter().filter(|(room, _)| *room == r).map(|(_, who)| user(*who)).collect();
            assert_eq!(members, expected);
            let sids: Vec<Sid> = state.sids_in_room(&ns(), &room(r));
            let inside = model.seats.iter().filter(|(_, seat)| model.rooms(seat).contains(&r));
            assert_eq!(sids, inside.map(|(n, _)| sid(*n)).collect::<Vec<_>>());
            let (history, _) = state.history(&ns(), &room(r), None, None, usize::MAX, |_| true);
            assert_eq!(in_short(&history), model.kept(r));
            if let Some(record) = state.room(&ns(), &room(r)) {
                assert_eq!((record.members, record.entries), (members.len() as u64, history.len() as u64));
            }
        }
        for (n, seat) in &model.seats {
            let session = state.session(&sid(*n)).expect("the model has it");
            assert_eq!((session.generation, state.is_attached(&session)), (seat.generation, model.attached(seat)));
            let rooms: Vec<Room> = model.rooms(seat).into_iter().map(room).collect();
            assert_eq!(state.rooms_of_session(&session), rooms);
        }
        let lost: BTreeSet<Sid> = state.lost_sessions().into_iter().map(|holder| holder.sid).collect();
        let expected = model.seats.iter().filter(|(_, seat)| !model.attached(seat)).map(|(n, _)| sid(*n)).collect();
        assert_eq!(lost, expected);
        for n in 0..USERS {
            assert_eq!(state.is_online(&ns(), &user(n)), model.present.contains_key(&n), "{n}");
        }
        let away: BTreeSet<User> = state.away(&state.lost_sessions()).into_iter().map(|away| away.user).collect();
        assert_eq!(away, (0..USERS).filter(|n| model.is_away(*n)).map(user).collect());
        self.compare_rows();
        self.compare_replays();
    }

    /// Nothing is left behind that nobody would ever find again: each table has as many rows as the model has reasons.
    fn compare_rows(&self) {
        let mut tables = BTreeMap::<u8, BTreeSet<Vec<u8>>>::new();
        for (key, _) in self.state.pairs() {
            tables.entry(key[0]).or_default().insert(key[1..].to_vec());
        }
        let table = |byte: u8| tables.get(&byte).cloned().unwrap_or_default();
        let counts = self.model.rows();
        for (byte, reasons) in counts {
            assert_eq!(table(byte).len(), reasons, "rows of table {byte:#x}");
        }
        for (byte, of) in naive::EACH_OF {
            assert!(table(byte).is_subset(&table(of)), "table {byte:#x} has rows that are about nothing");
        }
        let known = [naive::META].into_iter().chain(counts.map(|each| each.0)).chain(naive::EACH_OF.map(|each| each.0));
        assert!(
            tables.into_keys().collect::<BTreeSet<_>>().is_subset(&known.collect()),
            "a table of which it knows nothing"
        );
    }

    fn compare_replays(&mut self) {
        const ALL: ReplayLimit = ReplayLimit { entries: usize::MAX, bytes: usize::MAX };
        let (model, state) = (&self.model, &self.state);
        let kept: BTreeSet<u64> = (0..ROOMS).flat_map(|r| model.kept(r)).map(|(position, _)| position).collect();
        for (n, seat) in &model.seats {
            let session = state.session(&sid(*n)).unwrap();
            let offset = self.rng.below(model.position + 1);
            let due = model.due(seat, offset, model.position);
            match state.replay(&session, Position(offset), Position(model.position), ALL) {
                Ok(entries) => {
                    self.replays += 1;
                    let entries: Vec<RoomEntry> = entries.into_iter().map(|(_, entry)| entry).collect();
                    assert_eq!(in_short(&entries), due, "{n} from {offset}");
                }
                Err(why) => {
                    assert_eq!(why, Incomplete::Trimmed);
                    self.refusals += 1;
                    let trimmed = due.iter().any(|(position, _)| !kept.contains(position));
                    let since = offset.max(seat.first);
                    let spans = |r| model.leaves.iter().filter(|l| (l.0, l.1) == (seat.user, r) && l.2 > since).count();
                    let dropped = (0..ROOMS).any(|r| spans(r) >= 2);
                    let exits = seat.exited.iter().filter(|exit| exit.2 > since).count();
                    let dropped = dropped || exits > EXITS_KEPT;
                    // Whether anything was said between an entry and an exit, nobody knows once it would be trimmed.
                    let unknown =
                        |(room, from, to): &(u64, u64, u64)| *to > since && model.floor(*room) > since.max(*from);
                    let unknown = seat.exited.iter().any(unknown);
                    assert!(trimmed || dropped || unknown, "{n} from {offset} was refused for nothing");
                }
            }
        }
    }
}

fn in_short(entries: &[RoomEntry]) -> Vec<(u64, String)> {
    let who = |entry: &RoomEntry| entry.user.as_str().trim_start_matches("user ").to_owned();
    let short = |entry: &RoomEntry| match &entry.what {
        What::Message { text, .. } => format!("{}: {text}", who(entry)),
        What::Joined => format!("+{}", who(entry)),
        What::Left => format!("-{}", who(entry)),
    };
    entries.iter().map(|entry| (entry.position.0, short(entry))).collect()
}

/// One history; how many replays were compared and how many refused, and how many `mid`s forgotten.
fn history(seed: u64, commands: u64) -> [usize; 3] {
    let mut run = Run {
        rng: Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        model: Model::default(),
        state: State::default(),
        disk: Disk::new(),
        incarnations: BTreeMap::new(),
        sids: 0,
        refusals: 0,
        replays: 0,
    };
    (1..=NODES).for_each(|node| run.start(node));
    let limits = Limits {
        history_size: HISTORY as u64,
        sessions_per_user: 1000,
        history_ttl_ms: u64::MAX,
        mid_window_ms: MID_WINDOW,
        mids_per_user: MIDS as u64,
        ..Limits::default()
    };
    let (node, sequence) = (1, 2);
    // Some are of a level from the start, some come to one on the way.
    let level = 1 + (seed % 2) as u16;
    let first = vec![Command::SetLimits(limits), Command::SetLevel(level)];
    run.apply(&Batch { node, incarnation: 1, sequence, stamp: 0, commands: first });
    run.incarnations.insert(node, (1, sequence));
    (run.model.position, run.model.level) = (run.model.position + 2, level);
    let mut looked = 0;
    while run.model.position < commands {
        run.step();
        if run.model.position >= looked + 10 {
            looked = run.model.position;
            run.compare();
        }
    }
    run.compare();
    run.disk.compare(&run.state);
    // A start takes longer than the rest of a short one.
    if seed.is_multiple_of(4) {
        run.disk.restart();
        run.disk.compare(&run.state);
    }
    [run.replays, run.refusals, run.model.forgotten]
}

#[test]
fn random_histories_agree_with_a_naive_model_whatever_happens_to_the_disk() {
    let part = |thread: u64| {
        let mut sums = [0; 3];
        for (sequences, commands) in [LONG, SHORT] {
            for seed in (1..=sequences).filter(|seed| seed % THREADS == thread) {
                let context = Context(seed, commands);
                add(&mut sums, history(seed + commands * 1_000_000, commands));
                std::mem::forget(context);
            }
        }
        sums
    };
    let mut sums = [0; 3];
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || part(thread))).collect();
        threads.into_iter().for_each(|thread| add(&mut sums, thread.join().expect("a history does not agree")));
    });
    let [replays, refusals, forgotten] = sums;
    println!("{replays} replays, {refusals} refused; {forgotten} `mid`s forgotten");
    assert!(replays > 1000 && refusals > 100 && forgotten > 50, "{sums:?} are no test");
}

fn add(sums: &mut [usize; 3], more: [usize; 3]) {
    sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

/// Says which history it was that did not agree.
struct Context(u64, u64);

impl Drop for Context {
    fn drop(&mut self) {
        eprintln!("seed {} of the histories of {} commands", self.0, self.1);
    }
}
