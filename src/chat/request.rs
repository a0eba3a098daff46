//! What a seated client asks for, one after another.
//!
//! What always holds:
//! - A client's requests take effect, and are answered, in the order in which they came: the socket's one handler only
//!   queues, one task works the queue off, and reads wait until the client's own commands were played.
//! - A command is answered when it is played here, so after every event that lies below it.
//! - The client's own `disconnect()` stays behind what it sent before.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use moim_raft::{
    Store, Ticket,
    command::{Command, MID_CHARS_MAX, Namespace, Refusal, Reply, Room, User, What},
    state::Applied,
};
use serde::de::DeserializeOwned;
use serde_json::{json, value::RawValue};
use socketioxide::{
    handler::{DisconnectHandler, FromMessageParts, MessageHandler, Value},
    socket::{DisconnectReason, Socket},
};
use tokio::sync::mpsc;

use super::{
    Chat,
    event::{self, HistoryQuery, InRoom, Present, Publish, Refused, UsersQuery},
};
use crate::{
    adapter::{PeerAdapter, SocketRef},
    client::{Ack, Transport},
    seat::Seat,
};

/// Requests of one socket that may wait; past it the transport is cut, and the client recovers.
const REQUESTS_MAX: usize = 16_384;
/// Bytes of them; the same.
const REQUEST_BYTES_MAX: usize = 8 << 20;
/// Entries and users in one answer, unless the client asks for fewer.
const PAGE_DEFAULT: u64 = 100;
const PAGE_MAX: u64 = 1000;
/// Members that the ack of a join names.
const MEMBERS_IN_ACK: usize = 100;

/// An event as it came.
struct Request {
    /// `["name", args…]`.
    json: String,
    ack: Ack,
}

enum Job {
    Request(Request),
    /// The client's own `disconnect()`.
    Close,
}

/// The one handler of a socket's events. socketioxide calls it in the order in which the events came, and it only queues:
/// a handler that is a future would run in a task of its own, beside those of the other events.
struct Inbox {
    queue: mpsc::Sender<Job>,
    bytes: Arc<AtomicUsize>,
    seat: Arc<Seat>,
}

impl MessageHandler<PeerAdapter, Inbox> for Inbox {
    fn call(&self, socket: Arc<Socket<PeerAdapter>>, mut data: Value, id: Option<i64>) {
        let Ok(ack) = Ack::from_message_parts(&socket, &mut data, &id);
        let json = match data {
            Value::Str(text, None) => text.to_string(),
            // Binary attachments: the chat has no use for them, and this is refused as what it is not.
            _ => String::new(),
        };
        let waiting = self.bytes.fetch_add(json.len(), Ordering::Relaxed) + json.len();
        let job = Job::Request(Request { json, ack });
        if waiting > REQUEST_BYTES_MAX || self.queue.try_send(job).is_err() {
            tracing::info!(sid = %self.seat.holder.sid, "a client sends faster than it is served: it is cut off");
            self.seat.let_go();
        }
    }
}

/// Registers the handlers of a socket; in the middleware, so that nothing that the client sends after its CONNECT reply
/// can come before them.
pub fn register(chat: &Chat, socket: &SocketRef, transport: &Transport, seat: Arc<Seat>) {
    let (queue, jobs) = mpsc::channel(REQUESTS_MAX);
    let bytes = Arc::new(AtomicUsize::new(0));
    let worker = Worker { chat: chat.clone(), seat: seat.clone(), bytes: bytes.clone() };
    chat.tasks.spawn(worker.run(jobs));
    socket.on_fallback(Inbox { queue: queue.clone(), bytes, seat: seat.clone() });
    socket.on_disconnect(Goodbye { chat: chat.clone(), transport: transport.clone(), seat, queue });
}

/// The handler of a socket's end. Where the end is meant it is no future: socketioxide takes the socket out of the namespace
/// behind it, and without a word ignores a CONNECT that comes before that, which a stock client waits on for ever.
struct Goodbye {
    chat: Chat,
    transport: Transport,
    seat: Arc<Seat>,
    queue: mpsc::Sender<Job>,
}

impl DisconnectHandler<PeerAdapter, Goodbye> for Goodbye {
    fn call_with_defer(
        &self,
        socket: Arc<Socket<PeerAdapter>>,
        reason: DisconnectReason,
        remove: fn(Arc<Socket<PeerAdapter>>),
    ) {
        let (chat, seat) = (self.chat.clone(), self.seat.clone());
        // Its own `disconnect()`, or a handler's: either is final, for this namespace alone.
        if matches!(reason, DisconnectReason::ClientNSDisconnect | DisconnectReason::ServerNSDisconnect) {
            seat.vacate();
            // What the client says was heard when it came, perhaps with the CONNECT behind it, which stays known.
            if reason == DisconnectReason::ServerNSDisconnect {
                self.transport.left(socket.ns());
            }
            if self.queue.try_send(Job::Close).is_err() {
                chat.give_up(&seat);
            }
            return remove(socket);
        }
        let transport = self.transport.clone();
        self.chat.tasks.spawn(async move {
            // No pong, a packet that is none, …: of a session that polls, nobody else tells.
            transport.cut();
            chat.give_up(&seat);
            remove(socket);
        });
    }
}

/// The task of one socket.
struct Worker {
    chat: Chat,
    seat: Arc<Seat>,
    bytes: Arc<AtomicUsize>,
}

impl Worker {
    /// Ends when the socket, and with it the queue's other end, is gone.
    async fn run(self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(job) = jobs.recv().await {
            match job {
                Job::Close => self.chat.end_session(self.seat.holder.clone()),
                Job::Request(Request { json, ack }) => {
                    self.bytes.fetch_sub(json.len(), Ordering::Relaxed);
                    if let Err((refused, ack)) = self.handle(&json, ack).await {
                        self.answer(ack, event::refused(refused)).await;
                    }
                }
            }
        }
    }

    /// Carries one request out, or gives the ack back with the reason why not.
    async fn handle(&self, json: &str, ack: Ack) -> Result<(), (Refused, Ack)> {
        let Ok(args) = serde_json::from_str::<Vec<&RawValue>>(json) else { return Err((event::BAD_REQUEST, ack)) };
        let name = args.first().and_then(|name| serde_json::from_str::<String>(name.get()).ok()).unwrap_or_default();
        let payload = args.get(1).map_or("null", |payload| payload.get());
        let command = match name.as_str() {
            "join" => self.join(payload),
            "leave" => self.leave(payload),
            "message" => self.message(payload),
            "rooms" => return self.show(ack, || self.rooms()).await,
            "users" => return self.show(ack, || self.users(payload)).await,
            "history" => return self.show(ack, || self.history(payload)).await,
            "typing" => return self.typing(payload).map_err(|refused| (refused, ack)),
            other if self.chat.settings.relay.iter().any(|relayed| relayed == other) => {
                return self.relay(other, payload).map_err(|refused| (refused, ack));
            }
            _ => Err(event::UNKNOWN_EVENT),
        };
        match command {
            Ok(command) => self.propose(command, ack).await,
            Err(refused) => return Err((refused, ack)),
        }
        Ok(())
    }

    fn join(&self, payload: &str) -> Result<Command, Refused> {
        Ok(Command::Join { by: self.seat.holder.clone(), room: room(&parse::<String>(payload)?)? })
    }

    fn leave(&self, payload: &str) -> Result<Command, Refused> {
        Ok(Command::Leave { by: self.seat.holder.clone(), room: room(&parse::<String>(payload)?)? })
    }

    fn message(&self, payload: &str) -> Result<Command, Refused> {
        let Publish { room: name, text, mid } = serde_json::from_str(payload).map_err(|_| event::BAD_REQUEST)?;
        let text = text.get();
        if text.len() > self.chat.settings.text_bytes_max {
            return Err(event::TOO_LARGE);
        }
        let fits = |mid: &String| !mid.is_empty() && mid.chars().count() <= MID_CHARS_MAX;
        if !mid.as_ref().is_none_or(fits) {
            return Err(event::BAD_REQUEST);
        }
        Ok(Command::Publish { by: self.seat.holder.clone(), room: room(&name)?, text: text.to_owned(), mid })
    }

    /// Hands a command to the log; it is answered when it is played.
    async fn propose(&self, command: Command, ack: Ack) {
        let turn = self.seat.begin_command().await;
        let (seat, room, store) = (self.seat.clone(), room_of(&command), self.chat.store.clone());
        let ticket = Ticket::new(move |outcome| {
            let answer = match outcome {
                Ok(applied) => answer(&store, &seat.ns, room.as_ref(), applied),
                Err(_) => event::refused(event::UNAVAILABLE),
            };
            seat.answer(turn, ack, answer);
        });
        self.chat.store.propose(command, ticket);
    }

    /// Reads after all that this client sent before was played.
    async fn read<T>(&self, read: impl FnOnce() -> T) -> T {
        let _quiet = self.seat.quiet().await;
        read()
    }

    /// Answers with something that may be large, at the pace at which the client takes it.
    async fn show(
        &self,
        ack: Ack,
        read: impl FnOnce() -> Result<Box<RawValue>, Refused>,
    ) -> Result<(), (Refused, Ack)> {
        // Before it is read: behind it, what happens meanwhile would be missing from it and come before it.
        self.seat.settled().await;
        self.seat.eased().await;
        match self.read(read).await {
            Ok(answer) => _ = self.seat.page(ack, &answer),
            Err(refused) => return Err((refused, ack)),
        }
        Ok(())
    }

    /// A refusal takes its turn too.
    async fn answer(&self, ack: Ack, answer: Box<RawValue>) {
        self.read(|| _ = self.seat.ack(ack, answer)).await;
    }

    fn rooms(&self) -> Result<Box<RawValue>, Refused> {
        let mut rooms: Vec<Room> = self.chat.seats.rooms(&self.seat.holder).into_iter().collect();
        rooms.sort_unstable();
        Ok(event::ok(&json!({ "rooms": rooms.iter().map(Room::as_str).collect::<Vec<_>>() })))
    }

    fn users(&self, payload: &str) -> Result<Box<RawValue>, Refused> {
        let (name, after, limit) = match parse(payload)? {
            UsersQuery::Room(room) => (room, None, None),
            UsersQuery::Page { room, after, limit } => (room, after, limit),
        };
        let room = self.member_room(&name)?;
        let after = after.map(|after| User::new(after).ok_or(event::BAD_REQUEST)).transpose()?;
        let limit = page(limit)?;
        let ns = &self.seat.ns;
        let (users, more) = self.chat.store.read(|state| {
            let mut names = state.members(ns, &room, after.as_ref(), limit + 1);
            let more = names.len() > limit;
            names.truncate(limit);
            let present = |user: User| Present { online: state.is_online(ns, &user), user: user.as_str().to_owned() };
            (names.into_iter().map(present).collect::<Vec<_>>(), more)
        });
        let next = users.last().filter(|_| more).map(|last| last.user.clone());
        let mut fields = json!({ "users": users });
        if let Some(next) = next {
            fields["next"] = json!(next);
        }
        Ok(event::ok(&fields))
    }

    fn history(&self, payload: &str) -> Result<Box<RawValue>, Refused> {
        let HistoryQuery { room: name, before, after, limit } = parse(payload)?;
        let room = self.member_room(&name)?;
        let id = |text: Option<String>| text.map(|t| t.parse().map_err(|()| event::BAD_REQUEST)).transpose();
        let (before, after, limit) = (id(before)?, id(after)?, page(limit)?);
        let is_message = |entry: &moim_raft::command::RoomEntry| matches!(entry.what, What::Message { .. });
        let ns = &self.seat.ns;
        let (entries, more, floor) = self.chat.store.read(|state| {
            let (entries, more) = state.history(ns, &room, after, before, limit, is_message);
            (entries, more, state.room(ns, &room).map(|record| record.floor))
        });
        let trimmed = after.is_some_and(|after| floor.is_some_and(|floor| floor > after));
        let messages = entries.iter().map(|entry| event::message(&room, entry)).collect();
        Ok(event::ok(&event::History { messages, more, trimmed }))
    }

    fn typing(&self, payload: &str) -> Result<(), Refused> {
        let InRoom { room: name } = parse(payload)?;
        let room = self.member_room(&name)?;
        self.chat.typing(&self.seat.ns, &room, &self.seat.user, &self.seat.holder.sid)
    }

    /// Sends an event on as it is, with the user that the server knows.
    fn relay(&self, name: &str, payload: &str) -> Result<(), Refused> {
        let mut fields: serde_json::Map<String, serde_json::Value> = parse(payload)?;
        let room = fields.get("room").and_then(|room| room.as_str()).ok_or(event::BAD_REQUEST)?;
        let room = self.member_room(room)?;
        fields.insert("user".to_owned(), json!(self.seat.user.as_str()));
        self.chat.send_volatile(&self.seat.ns, &room, &self.seat.holder.sid, name, &event::raw(&fields))
    }

    /// The room of a request that is for its receivers only.
    fn member_room(&self, name: &str) -> Result<Room, Refused> {
        let room = room(name)?;
        match self.chat.seats.rooms(&self.seat.holder).contains(&room) {
            true => Ok(room),
            false => Err(event::NOT_MEMBER),
        }
    }
}

/// What a command's reply is to the client.
fn answer(store: &Store, ns: &Namespace, room: Option<&Room>, applied: &Applied) -> Box<RawValue> {
    let name = room.map_or("", Room::as_str);
    match &applied.reply {
        Reply::Done => event::ok(&json!({ "room": name })),
        Reply::Joined { count } => {
            // As the state has them now. What happened to the room since this join is played after this answer: it adds
            // whom the client knows already, or takes away whom it does not.
            let now = |room| store.read(|state| state.members(ns, room, None, MEMBERS_IN_ACK));
            let users = room.map_or_else(Vec::new, now);
            let users: Vec<&str> = users.iter().map(User::as_str).collect();
            event::ok(&json!({ "room": name, "count": count, "users": users }))
        }
        Reply::Published { position, at } => event::ok(&json!({ "id": position.to_string(), "at": at })),
        Reply::Seated { .. } => event::refused(event::BAD_REQUEST),
        Reply::Refused(refusal) => event::refused(refused(*refusal)),
    }
}

fn refused(refusal: Refusal) -> Refused {
    match refusal {
        Refusal::NotMember => event::NOT_MEMBER,
        Refusal::TooManyRooms => event::TOO_MANY_ROOMS,
        Refusal::MidReused => event::MID_REUSED,
        Refusal::Moved
        | Refusal::UnknownSession
        | Refusal::OtherUser
        | Refusal::TooManySessions
        | Refusal::Contested
        | Refusal::DrainHeld(_) => event::SESSION_MOVED,
    }
}

fn room_of(command: &Command) -> Option<Room> {
    match command {
        Command::Join { room, .. } | Command::Leave { room, .. } => Some(room.clone()),
        _ => None,
    }
}

fn room(name: &str) -> Result<Room, Refused> {
    Room::new(name).ok_or(event::ROOM_NAME)
}

fn page(limit: Option<u64>) -> Result<usize, Refused> {
    match limit.unwrap_or(PAGE_DEFAULT) {
        0 => Err(event::BAD_REQUEST),
        limit => Ok(limit.min(PAGE_MAX) as usize),
    }
}

fn parse<T: DeserializeOwned>(payload: &str) -> Result<T, Refused> {
    serde_json::from_str(payload).map_err(|_| event::BAD_REQUEST)
}
