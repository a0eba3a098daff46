//! What is on disks: commands, entries and records of the log, values of the state, small files.

use std::fs;

use bytes::Bytes;

use super::{Golden, body, variants};
use crate::{
    base::Point,
    codec::{self, Kind},
    command::{Away, Batch, Command, Holder, Limits, Namespace, NodeInfo, Position, Room, RoomEntry, Sid, User, What},
    error::Error,
    identity::{Belongs, Stored},
    kv::Sum,
    level::Levels,
    raft::Peer,
    snapshot::{Reading, Snapshots},
    state::{Drain, Mid, MidsOf, NameSet, Node, RoomRecord, Session, Span, Spans},
    wal::record::{Record, Spot, parse},
    wire::{WireEntry, WireLogId, WireMembership, WirePayload, WireSnapshotMeta, WireStoredMembership, WireVote},
};

pub fn ns() -> Namespace {
    Namespace::new("/").expect("a name")
}

fn room() -> Room {
    Room::new("모임").expect("a name")
}

fn user() -> User {
    User::new("ann").expect("a name")
}

fn by() -> Holder {
    Holder { sid: Sid::parse("AnnsSession_00000001").expect("a sid"), generation: 2 }
}

fn info() -> NodeInfo {
    let text = str::to_owned;
    NodeInfo {
        name: text("n1"),
        client: text("10.0.0.1:3000"),
        admin: text("10.0.0.1:3100"),
        peer: text("10.0.0.1:3200"),
        version: text("0.1.0"),
        levels: Levels { min: 1, max: 1 },
    }
}

fn limits() -> Limits {
    Limits { history_size: 1000, history_ttl_ms: 604_800_000, history_bytes: 4 << 20, ..Limits::default() }
}

fn commands() -> Vec<Command> {
    let (mid, text) = (Some("3f2a".to_owned()), r#"{"hello":"안녕"}"#.to_owned());
    vec![
        Command::Started(info()),
        Command::Down { node: 7, incarnation: 3 },
        Command::Open { sid: by().sid, ns: ns(), user: user(), guest: true, pid: [0xab; 32] },
        Command::Resume { read: by(), ns: ns(), user: user(), pid: [0xab; 32] },
        Command::Lost(vec![by()]),
        Command::Close(by()),
        Command::Expire(vec![by()]),
        Command::Join { by: by(), room: room() },
        Command::Leave { by: by(), room: room() },
        Command::Enter { by: by(), room: room() },
        Command::Exit { by: by(), room: room() },
        Command::Publish { by: by(), room: room(), text, mid },
        Command::SetLimits(limits()),
        Command::TakeDrain { force: true },
        Command::EndDrain { node: 7 },
        Command::Removed { node: 7 },
        Command::Offline(vec![Away { ns: ns(), user: user(), attached: Position(812) }]),
        Command::SetLevel(2),
        Command::SetExpected { voters: 3 },
        Command::Sweep(vec![(ns(), room())]),
        Command::ForgetMids(vec![user()]),
        Command::Undrain { node: 7, incarnation: 3 },
    ]
}

pub fn id(index: u64) -> WireLogId {
    WireLogId { term: 3, node: 7, index }
}

pub fn vote() -> WireVote {
    WireVote { term: 3, node: 7, committed: true }
}

pub fn peer(name: &str) -> Peer {
    Peer { name: name.to_owned(), addr: "10.0.0.1:3200".to_owned() }
}

fn membership() -> WireMembership {
    WireMembership { voters: vec![vec![1], vec![1, 2]], nodes: vec![(1, peer("n1")), (2, peer("n2")), (3, peer("n3"))] }
}

fn stored_membership() -> WireStoredMembership {
    WireStoredMembership { id: Some(id(5)), membership: membership() }
}

pub fn snapshot_meta() -> WireSnapshotMeta {
    WireSnapshotMeta { last: Some(id(812)), membership: stored_membership() }
}

pub fn entries() -> Vec<WireEntry> {
    let payloads = [
        WirePayload::Blank,
        WirePayload::Normal(Bytes::from_static(b"a batch")),
        WirePayload::Membership(membership()),
    ];
    (812..).zip(payloads).map(|(index, payload)| WireEntry { id: id(index), payload }).collect()
}

fn point(hash: u128, pairs: u64) -> Point {
    Point { applied: Some(id(812)), membership: stored_membership(), hash, pairs }
}

/// What a snapshot file holds.
#[derive(Debug)]
struct Snapshot {
    #[allow(dead_code, reason = "shown")]
    point: Point,
    pairs: Vec<(Bytes, Bytes)>,
}

/// A kind in an envelope of its own.
fn enveloped<T: serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug>(
    name: &'static str,
    kind: Kind,
    samples: Vec<T>,
) {
    let encode = |value: &T| codec::encode(kind, value).expect("plain data");
    Golden { name, samples, encode, decode: |bytes: &[u8]| codec::decode::<T>(kind, bytes) }.check();
}

#[test]
fn golden_commands() {
    variants("command", commands());
}

#[test]
fn golden_batch() {
    let batch = Batch { node: 7, incarnation: 3, sequence: 41, stamp: 1_700_000_000_000, commands: commands() };
    enveloped("batch", Kind::Batch, vec![batch]);
}

#[test]
fn golden_log() {
    variants("payload", entries().into_iter().map(|entry| entry.payload).collect());
    body("entry", entries());
    body("vote", vec![vote()]);
    body("log_id", vec![id(812)]);
}

/// Framed at one place, because their checksums say where they lie.
#[test]
fn golden_records() {
    const SPOT: Spot = Spot { salt: 0x5a17, offset: 4096 };
    let samples = vec![
        Record::Entry { index: 812, body: b"entry".into() },
        Record::Vote(b"vote".into()),
        Record::Truncate { next: 800 },
        Record::Purge { first: 700, body: b"id".into() },
        Record::Committed(b"id".into()),
    ];
    let encode = |record: &Record| {
        let mut out = Vec::new();
        record.frame(&mut out, SPOT);
        out
    };
    let decode = |bytes: &[u8]| {
        // A record borrows what it was read from; what a test leaks ends with it.
        let (kind, body) = parse(bytes.to_vec().leak(), SPOT).ok_or_else(|| Error::refused("not a whole record"))?;
        Record::read(kind, body)?.ok_or_else(|| Error::refused("the record in front of a group"))
    };
    Golden { name: "record", samples, encode, decode }.check();
}

#[test]
fn golden_identity() {
    let (cluster, members) = ("abcdefghijklmnop".to_owned(), vec![(1, peer("n1")), (7, peer("n2"))]);
    let belongs = [
        Belongs::Nowhere,
        Belongs::Proposed { cluster: cluster.clone(), founder: 1, members: members.clone() },
        Belongs::Settled { cluster, founding: members },
    ];
    variants("belongs", belongs.to_vec());
    let stored = belongs.map(|belongs| Stored { node: 7, incarnation: 3, belongs });
    enveloped("identity", Kind::Identity, stored.to_vec());
}

#[test]
fn golden_point() {
    enveloped("point", Kind::Meta, vec![point(u128::MAX / 3, 812)]);
}

#[test]
fn golden_snapshot() {
    let bytes = Bytes::from_static;
    let pairs = vec![
        (bytes(b"a key"), bytes(b"one")),
        (bytes(b"a key that begins as the one before"), bytes(b"")),
        (bytes(b"another"), bytes(b"three")),
    ];
    let mut sum = Sum::default();
    pairs.iter().for_each(|(key, value)| sum.add(key, value));
    let samples = vec![Snapshot { point: point(sum.hash, sum.pairs), pairs }];
    let dir = tempfile::tempdir().expect("a folder");
    let snapshots = Snapshots::open(dir.path()).expect("a folder");
    let encode = |snapshot: &Snapshot| {
        let path = snapshots.write(snapshot.pairs.iter().cloned().map(Ok), &snapshot.point).expect("a snapshot");
        fs::read(path).expect("a file")
    };
    let decode = |file: &[u8]| {
        let path = dir.path().join("read");
        fs::write(&path, file).expect("a file");
        let reading = Reading::open(&path)?;
        let (point, mut pairs) = (reading.point().clone(), Vec::new());
        reading.for_each(|key, value| {
            pairs.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            Ok(())
        })?;
        Ok(Snapshot { point, pairs })
    };
    Golden { name: "snapshot", samples, encode, decode }.check();
}

/// Values of the state lie behind one byte of format; sled and snapshots hold them.
#[test]
fn golden_state() {
    let message = What::Message { text: "\"hi\"".to_owned(), mid: Some("3f2a".to_owned()) };
    let what = vec![message, What::Joined, What::Left];
    let entry = |what| RoomEntry { position: Position(812), at: 1_700_000_000_000, user: user(), what };
    body("state_entry", what.iter().cloned().map(entry).collect());
    variants("state_what", what);
    let incarnation = 3;
    let node = Node {
        id: 7,
        info: info(),
        incarnation,
        live: true,
        sequence: 41,
        ended: vec![(1, 1_600_000_000_000), (2, 1_700_000_000_000)],
        removed: false,
    };
    body("state_node", vec![node]);
    let session = Session {
        sid: by().sid,
        ns: ns(),
        user: user(),
        guest: false,
        pid: [0xab; 32],
        entered: vec![(room(), Position(700))],
        exited: vec![(room(), Position(610), Position(620))],
        forgotten: Position(0),
        node: 7,
        incarnation,
        generation: 2,
        first: Position(600),
        lost_at: Some(1_700_000_000_000),
    };
    body("state_session", vec![session]);
    body("state_taken", vec![vec![1_700_000_000_000_u64, 1_700_000_003_000]]);
    let floor = Position(500);
    body(
        "state_room",
        vec![RoomRecord { members: 2, entered: 1, entries: 3, bytes: 400, floor, oldest: 1_700_000_000_000 }],
    );
    let spans =
        vec![Span { joined: Position(600), left: Some(Position(700)) }, Span { joined: Position(812), left: None }];
    body("state_spans", vec![Spans { spans, dropped: floor }]);
    body("state_mid", vec![Mid { position: Position(812), at: 1_700_000_000_000, content: u64::MAX / 3 }]);
    let of = MidsOf { count: 3, oldest: Position(700), oldest_at: 1_700_000_000_000 };
    body("state_mids_of", vec![of]);
    let mut rooms = NameSet::default();
    ["lobby", "a", "방"].iter().for_each(|name| rooms.insert(name));
    body("state_names", vec![rooms]);
    body("state_drain", vec![Drain { node: 7, incarnation }]);
    body("state_limits", vec![limits()]);
}
