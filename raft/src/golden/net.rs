//! What nodes say to each other.

use bytes::Bytes;

use super::{
    Golden, body,
    stored::{entries, id, peer, snapshot_meta, vote},
    variants,
};
use crate::{
    codec::{self, Kind},
    level::Levels,
    members::{Change, Member},
    net::{
        CallRequest, CallResponse, Forwarded, Lane, Leadership, Probed,
        frame::{Frame, What},
        handshake::{Hello, Step},
        message::{RaftReply, RaftRequest, WireAppended, WireTransferred, WireVoteRequest},
        snapshot::Part,
    },
};

const CLUSTER: &str = "abcdefghijklmnop";

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[test]
fn golden_handshake() {
    let lanes = [Lane::Raft, Lane::Beat, Lane::Call, Lane::Bulk, Lane::Bus, Lane::Tunnel];
    let hello = Hello {
        lane: Lane::Raft,
        cluster: Some(CLUSTER.to_owned()),
        settled: true,
        node: 7,
        name: "n2".to_owned(),
        wanted: Some(1),
        levels: Levels { min: 1, max: 1 },
        level: Some(1),
        nonce: [0xab; 32],
    };
    variants(
        "handshake",
        vec![Step::Hello(hello), Step::Proof([0xcd; 32]), Step::Refuse("why".to_owned()), Step::Removed([0xce; 32])],
    );
    variants("lane", lanes.to_vec());
}

#[test]
fn golden_frame() {
    let what = [
        What::Request(bytes("ask")),
        What::Reply(bytes("answer")),
        What::Failed(true, "why".to_owned()),
        What::OneWay(bytes("bus")),
    ];
    variants("frame_what", what.to_vec());
    let samples = what.map(|what| Frame { id: 812, what }).to_vec();
    let encode = |frame: &Frame| codec::encode(Kind::Frame, frame).expect("plain data");
    Golden { name: "frame", samples, encode, decode: |bytes: &[u8]| codec::decode::<Frame>(Kind::Frame, bytes) }
        .check();
}

#[test]
fn golden_calls() {
    let members = vec![(1, peer("n1")), (7, peer("n2"))];
    variants(
        "call_request",
        vec![
            CallRequest::Forward { batch: bytes("a batch") },
            CallRequest::ReadIndex,
            CallRequest::Probe,
            CallRequest::Form { cluster: CLUSTER.to_owned(), members },
            CallRequest::Join { id: 7, peer: peer("n2") },
            CallRequest::Ask(bytes("ask")),
            CallRequest::Hashes,
            CallRequest::Change(Change::Promote { node: 4 }),
            CallRequest::Change(Change::Replace { old: 3, new: 4 }),
            CallRequest::Change(Change::Remove { node: 3 }),
            CallRequest::Members,
        ],
    );
    let probed = Probed {
        node: 7,
        peer: peer("n2"),
        cluster: Some(CLUSTER.to_owned()),
        formed: true,
        expect: 3,
        barred: Some("why".to_owned()),
        clock_ms: 1_700_000_000_000,
    };
    let note = Some("why".to_owned());
    let member = Member { node: 7, peer: peer("n2"), voter: false, lag: Some(12), silent_ms: 50, note };
    variants(
        "call_response",
        vec![
            CallResponse::Forwarded(Forwarded::Accepted { index: 812 }),
            CallResponse::ReadIndex(Leadership::NotLeader { leader: Some(1) }),
            CallResponse::Probe(probed),
            CallResponse::Form(Err("why".to_owned())),
            CallResponse::Join(Leadership::Leader(Ok(()))),
            CallResponse::Ask(bytes("answer")),
            CallResponse::Hashes(vec![(811, 1), (812, u128::MAX / 3)]),
            CallResponse::Changed(Leadership::Leader(Err("why".to_owned()))),
            CallResponse::Members(Leadership::Leader(vec![member])),
        ],
    );
    variants("forwarded", vec![Forwarded::Accepted { index: 812 }, Forwarded::NotLeader { leader: Some(1) }]);
    variants("leadership", vec![Leadership::Leader(812_u64), Leadership::NotLeader { leader: None }]);
}

#[test]
fn golden_raft() {
    let ask = WireVoteRequest { vote: vote(), last: Some(id(812)), transfer: false };
    variants(
        "raft_request",
        vec![
            RaftRequest::Append { vote: vote(), prev: Some(id(811)), entries: entries(), commit: Some(id(800)) },
            RaftRequest::Vote(ask),
            RaftRequest::PreVote(ask),
            RaftRequest::Transfer { from: vote(), to: 1, last: Some(id(812)) },
        ],
    );
    let (last, changed) = (Some(id(812)), WireTransferred::VoteChanged { expected: vote(), actual: vote() });
    variants(
        "raft_reply",
        vec![
            RaftReply::Append(WireAppended::Partial(last)),
            RaftReply::Vote { vote: vote(), granted: true, last },
            RaftReply::Transfer(changed),
        ],
    );
    let appended =
        [WireAppended::Success, WireAppended::Partial(last), WireAppended::Conflict, WireAppended::HigherVote(vote())];
    variants("appended", appended.to_vec());
    let behind = WireTransferred::LogNotFlushed { expected: last, actual: None };
    variants("transferred", vec![WireTransferred::Done, changed, behind]);
}

#[test]
fn golden_transfer() {
    variants(
        "transfer",
        vec![
            Part::Offer { vote: vote(), meta: snapshot_meta(), len: 1 << 20 },
            Part::Chunk(bytes("chunk")),
            Part::End { crc: 0xdead_beef },
            Part::Installed { vote: vote() },
            Part::Failed("why".to_owned()),
            Part::Have { bytes: 1 << 19, crc: 0xdead_beef },
            Part::From { offset: 1 << 19 },
            Part::Installing,
        ],
    );
    body("snapshot_meta", vec![snapshot_meta()]);
}
