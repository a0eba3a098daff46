//! What openraft's own suite does not ask of the machine.

use futures_util::stream;
use openraft::{EntryPayload, entry::RaftEntry};

use super::*;
use crate::{
    codec::{self, Kind},
    command::{Batch, Command, Holder, Namespace, NodeInfo, Room, Sid, User},
    level,
    raft::Payload,
    state::list::Relation,
    wire::WireLogId,
};

const PROPOSER: NodeId = 1;

async fn apply(machine: &mut Machine, index: u64, commands: Vec<Command>) {
    let batch = Batch { node: PROPOSER, incarnation: 1, sequence: index, stamp: index, commands };
    let body = codec::encode(Kind::Batch, &batch).expect("plain data");
    let id = LogId::from(WireLogId { term: 1, node: PROPOSER, index });
    let entry = Entry::new(id, EntryPayload::Normal(Payload(body.into())));
    machine.apply(stream::iter([Ok((entry, None))])).await.expect("applied");
}

#[tokio::test]
async fn a_copy_is_of_the_moment_it_was_asked_for_and_apply_goes_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let snapshots = Snapshots::open(&dir.path().join("snapshots")).expect("a folder");
    let (base, found) = Base::open(&dir.path().join("state"), &snapshots).expect("a usable folder");
    let (feed, _nobody) = mpsc::channel(1);
    let opened = Machine::open(2, level::KNOWN, base, found, snapshots, Arc::default(), feed, CancellationToken::new());
    let (mut machine, _gone) = opened.expect("what was found is usable");

    let ns = Namespace::new("/").expect("a name");
    let (sid, user) = (Sid::from_random([1; 16]), User::new("ann").expect("a name"));
    let by = Holder { sid: sid.clone(), generation: 1 };
    let open = Command::Open { sid: sid.clone(), ns: ns.clone(), user, guest: false, pid: [1; 32] };
    let room = |nth: u64| Room::new(format!("room{nth}")).expect("a name");
    let join = |nth| Command::Join { by: by.clone(), room: room(nth) };
    let mut rooms = Vec::new();
    let empty = machine.copy(Relation::tables(&ns));
    apply(&mut machine, 1, vec![Command::Started(NodeInfo::default()), open, join(1)]).await;
    for nth in 2..10 {
        rooms.push(room(nth - 1));
        let copied = machine.copy(Relation::tables(&ns));
        apply(&mut machine, nth, vec![join(nth)]).await;
        let copied = copied.await.expect("a copy");
        assert_eq!(copied.index, nth - 1);
        let views = Relation::of(copied.tables).views();
        assert_eq!(views.sids[&sid], rooms);
        assert!(views.rooms.keys().eq(&rooms) && views.members.keys().eq(&rooms));
    }
    assert_eq!(empty.await.expect("a copy").index, 0);
}
