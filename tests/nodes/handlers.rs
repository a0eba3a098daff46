//! A team's handlers, as they could be in its own program.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use futures_util::StreamExt;
use moim::{
    adapter::{AckSender, SocketIo, SocketRef, public_sid},
    handlers::Handlers,
};
use serde_json::json;
use socketioxide::{extract::Data, socket::Sid};

pub const NS: &str = "/adapter";

pub fn handlers() -> Handlers {
    Handlers::default().on_connect(NS, async |socket: SocketRef| {
        socket.join(["room1", "room2", "room4", "room5"]);
        broadcasts(&socket);
        selections(&socket);
        acks(&socket);
        sockets(&socket);
        remote_sockets(&socket);
    })
}

fn hello(socket: &SocketRef) -> String {
    format!("hello from {}", public_sid(socket).unwrap())
}

fn io(io: &SocketIo) -> socketioxide::operators::BroadcastOperators<moim::adapter::PeerAdapter> {
    io.of(NS).unwrap()
}

fn broadcasts(socket: &SocketRef) {
    socket.on("broadcast", async |all: SocketIo, socket: SocketRef, ack: AckSender| {
        io(&all).emit("broadcast", &hello(&socket)).await.unwrap();
        ack.send(&()).unwrap();
    });
    socket.on("volatile_broadcast", async |all: SocketIo, socket: SocketRef, ack: AckSender| {
        io(&all).volatile().emit("volatile_broadcast", &hello(&socket)).await.unwrap();
        ack.send(&()).unwrap();
    });
    socket.on("emit_text", async |all: SocketIo, Data::<String>(text), ack: AckSender| {
        let sent = io(&all).emit("text", &json!({ "text": text })).await;
        ack.send(&sent.is_ok()).unwrap();
    });
    socket.on("emit_binary", async |all: SocketIo, ack: AckSender| {
        io(&all).emit("binary", &bytes::Bytes::from_static(&[1, 2, 3])).await.unwrap();
        ack.send(&()).unwrap();
    });
    socket.on("fence", async |all: SocketIo, ack: AckSender| {
        io(&all).emit("fence", &1).await.unwrap();
        ack.send(&()).unwrap();
    });
}

fn selections(socket: &SocketRef) {
    socket.on("enter", async |socket: SocketRef, Data::<String>(room), ack: AckSender| {
        socket.join(room);
        ack.send(&()).unwrap();
    });
    socket.on("to_all_but_me", async |socket: SocketRef, ack: AckSender| {
        socket.broadcast().emit("to_all_but_me", &1).await.unwrap();
        ack.send(&()).unwrap();
    });
    socket.on("to_room", async |socket: SocketRef, Data::<Vec<String>>(rooms), ack: AckSender| {
        socket.to(rooms).emit("to_room", &1).await.unwrap();
        ack.send(&()).unwrap();
    });
    socket.on("within_room", async |socket: SocketRef, Data::<Vec<String>>(rooms), ack: AckSender| {
        socket.within(rooms).emit("within_room", &1).await.unwrap();
        ack.send(&()).unwrap();
    });
    socket.on("except_rooms", async |all: SocketIo, Data::<Vec<String>>(rooms), ack: AckSender| {
        io(&all).except(rooms).emit("except_rooms", &1).await.unwrap();
        ack.send(&()).unwrap();
    });
    socket.on("local", async |all: SocketIo, ack: AckSender| {
        io(&all).local().emit("local", &1).await.unwrap();
        ack.send(&()).unwrap();
    });
}

fn acks(socket: &SocketRef) {
    socket.on("broadcast_with_ack", async |all: SocketIo, ack: AckSender| {
        let acks = io(&all).emit_with_ack::<_, String>("broadcast_with_ack", &1).await.unwrap();
        let acks: Vec<String> = acks.filter_map(async |(_, ack)| ack.ok()).collect().await;
        ack.send(&acks).unwrap();
    });
    socket.on("who_acks", async |all: SocketIo, ack: AckSender| {
        let acks = io(&all).emit_with_ack::<_, String>("who_acks", &1).await.unwrap();
        let sids: Vec<Sid> = acks.map(|(sid, _)| sid).collect().await;
        ack.send(&sids).unwrap();
    });
    // Each is told as it comes, too.
    socket.on("acks_within", async |all: SocketIo, me: SocketRef, Data::<u64>(ms), ack: AckSender| {
        let all = io(&all).timeout(Duration::from_millis(ms));
        let acks = all.emit_with_ack::<_, String>("acks_within", &1).await.unwrap();
        let word =
            |ack: Result<String, socketioxide::AckError>| ack.map_or_else(|e| e.to_string(), |_| "ok".to_owned());
        let acks: BTreeMap<String, String> = acks
            .inspect(|(sid, _)| _ = me.emit("acked", &json!({ "by": sid.to_string() })))
            .map(|(sid, ack)| (sid.to_string(), word(ack)))
            .collect()
            .await;
        ack.send(&acks).unwrap();
    });
}

fn sockets(socket: &SocketRef) {
    socket.on("fetch_sockets", async |all: SocketIo, ack: AckSender| {
        let sockets = io(&all).broadcast().fetch_sockets().await.unwrap();
        let sids: Vec<Sid> = sockets.into_iter().map(|socket| socket.into_data().id).collect();
        ack.send(&sids).unwrap();
    });
    socket.on("rooms", async |all: SocketIo, ack: AckSender| {
        ack.send(&io(&all).broadcast().rooms().await.unwrap()).unwrap();
    });
    socket.on("own_rooms", async |socket: SocketRef, ack: AckSender| ack.send(&socket.rooms()).unwrap());
    socket.on("join_room", async |all: SocketIo, ack: AckSender| {
        io(&all).broadcast().join("room7").await.unwrap();
        ack.send(&()).unwrap();
    });
    socket.on("leave_room", async |all: SocketIo, ack: AckSender| {
        io(&all).broadcast().leave("room4").await.unwrap();
        ack.send(&()).unwrap();
    });
    socket.on("disconnect_socket", async |all: SocketIo| {
        io(&all).broadcast().disconnect().await.unwrap();
    });
}

type Remote = socketioxide::socket::RemoteSocket<moim::adapter::PeerAdapter>;

/// A remote socket that a handler keeps.
static KEPT: Mutex<Option<Remote>> = Mutex::new(None);

async fn remote(all: &SocketIo, id: Sid) -> Remote {
    let mut sockets = io(all).to(id).fetch_sockets().await.unwrap();
    assert_eq!(sockets.len(), 1);
    sockets.remove(0)
}

fn remote_sockets(socket: &SocketRef) {
    socket.on("emit_from_remote_sock", async |all: SocketIo, me: SocketRef, Data::<Sid>(id), ack: AckSender| {
        remote(&all, id).await.emit("emit", &hello(&me)).await.unwrap();
        ack.send(&()).unwrap();
    });
    socket.on("emit_with_ack_from_remote_sock", async |all: SocketIo, Data::<Sid>(id), ack: AckSender| {
        let answer: String = remote(&all, id).await.emit_with_ack("with_ack", &1).await.unwrap().await.unwrap();
        ack.send(&answer).unwrap();
    });
    socket.on("join_room_from_remote_sock", async |all: SocketIo, me: SocketRef, Data::<Sid>(id), ack: AckSender| {
        remote(&all, id).await.join(hello(&me)).await.unwrap();
        ack.send(&()).unwrap();
    });
    socket.on("leave_room_from_remote_sock", async |all: SocketIo, Data::<Vec<String>>(named), ack: AckSender| {
        let id = named[0].parse().unwrap();
        remote(&all, id).await.leave(named[1].clone()).await.unwrap();
        ack.send(&()).unwrap();
    });
    socket.on("get_rooms_remote_sock", async |all: SocketIo, Data::<Sid>(id), ack: AckSender| {
        ack.send(&remote(&all, id).await.rooms().await.unwrap()).unwrap();
    });
    socket.on("keep_remote_sock", async |all: SocketIo, Data::<Sid>(id), ack: AckSender| {
        *KEPT.lock().unwrap() = Some(remote(&all, id).await);
        ack.send(&()).unwrap();
    });
    socket.on("emit_to_kept_sock", async |me: SocketRef, ack: AckSender| {
        let kept = KEPT.lock().unwrap().clone().unwrap();
        kept.emit("kept", &hello(&me)).await.unwrap();
        ack.send(&()).unwrap();
    });
    socket.on("disconnect_remote_sock", async |all: SocketIo, Data::<Sid>(id), ack: AckSender| {
        remote(&all, id).await.disconnect().await.unwrap();
        ack.send(&()).unwrap();
    });
}
