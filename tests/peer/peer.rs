//! A chat on plain socketioxide and Redis that speaks the same events as moim, to be measured beside it by `moim bench`.
//!
//! What a team would write that takes the two off the shelf: rooms in each node's memory, broadcasts through Redis, nothing
//! ordered, stored or recovered. Joins are also written to Redis as a set of members, acknowledged when Redis has them: with
//! its `appendfsync always` that is a membership that survives a restart, which is what moim's join is.
//!
//! `peer PORT REDIS_URL`

use std::{sync::Arc, time::SystemTime};

use redis::{AsyncCommands, aio::MultiplexedConnection};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use socketioxide::{
    SocketIo,
    adapter::Adapter,
    extract::{AckSender, Data, Extension, SocketRef},
};
use socketioxide_redis::{RedisAdapter, RedisAdapterCtr, drivers::redis::redis_client as redis};
use tokio::net::TcpListener;

#[derive(Clone)]
struct User(Arc<str>);

#[derive(Deserialize)]
struct Auth {
    user: String,
}

#[derive(Deserialize)]
struct Message {
    room: String,
    text: Box<RawValue>,
}

fn enter<A: Adapter>(socket: SocketRef<A>, auth: Auth, redis: MultiplexedConnection) {
    socket.extensions.insert(redis);
    socket.extensions.insert(User(auth.user.as_str().into()));
    socket.on("join", join::<A>);
    socket.on("leave", leave::<A>);
    socket.on("message", message::<A>);
    let ready = json!({ "user": auth.user, "sid": socket.id, "rooms": [], "recovered": false });
    socket.emit("ready", &ready).ok();
}

async fn join<A: Adapter>(
    socket: SocketRef<A>,
    Data(room): Data<String>,
    ack: AckSender<A>,
    Extension(mut redis): Extension<MultiplexedConnection>,
    Extension(user): Extension<User>,
) {
    socket.join(room.clone());
    let done: redis::RedisResult<()> = redis.sadd(format!("members:{room}"), &*user.0).await;
    ack.send(&json!({ "ok": done.is_ok(), "room": room })).ok();
}

async fn leave<A: Adapter>(
    socket: SocketRef<A>,
    Data(room): Data<String>,
    ack: AckSender<A>,
    Extension(mut redis): Extension<MultiplexedConnection>,
    Extension(user): Extension<User>,
) {
    socket.leave(room.clone());
    let done: redis::RedisResult<()> = redis.srem(format!("members:{room}"), &*user.0).await;
    ack.send(&json!({ "ok": done.is_ok(), "room": room })).ok();
}

async fn message<A: Adapter>(
    socket: SocketRef<A>,
    io: SocketIo<A>,
    Data(message): Data<Message>,
    ack: AckSender<A>,
    Extension(user): Extension<User>,
) {
    let at = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64);
    let event = json!({ "room": message.room, "user": &*user.0, "text": message.text, "at": at });
    let sent = match io.of(socket.ns()) {
        Some(ns) => ns.to(message.room).emit("message", &event).await.is_ok(),
        None => false,
    };
    ack.send(&json!({ "ok": sent, "at": at })).ok();
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (port, url) = (args.next().ok_or("peer PORT REDIS_URL")?.parse()?, args.next().ok_or("peer PORT REDIS_URL")?);
    let client = redis::Client::open(format!("{url}?protocol=resp3"))?;
    let adapter = RedisAdapterCtr::new_with_redis(&client).await?;
    let (layer, io) = SocketIo::builder().with_adapter::<RedisAdapter<_>>(adapter).build_layer();
    let redis = client.get_multiplexed_async_connection().await?;
    io.ns("/", async move |socket: SocketRef<_>, Data(auth): Data<Auth>| enter(socket, auth, redis.clone())).await?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    // As in moim: without it CONNECT's answer and `ready` are 41 ms apart.
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| _ = stream.set_nodelay(true));
    axum::serve(listener, axum::Router::<()>::new().layer(layer)).await?;
    Ok(())
}
