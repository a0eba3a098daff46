//! From a CONNECT to a seat that has its socket.
//!
//! ```text
//! middleware   who is it ─▶ Open or Resume, applied and played here ─▶ a seat
//!              ─▶ the replay, read and found complete ─▶ the CONNECT reply armed, handlers registered
//! handler      (socketioxide has written the reply) ─▶ the seat is taken: `ready`, replay, what came meanwhile, live
//! ```
//!
//! What always holds:
//! - `recovered` is decided before the reply is written, because it cannot be taken back: a replay that is not complete
//!   becomes a fresh session.
//! - A middleware that fails for a passing cause cuts the transport first and then returns: whatever socketioxide writes
//!   afterwards never goes out, so a client never gets a 44 that would end its attempts.
//! - A seat that nobody takes is given up: a session just opened is closed, a resumed one is lost again.

use std::{
    collections::BTreeMap,
    fmt,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use futures_util::FutureExt;
use moim_raft::{
    Ticket,
    command::{Command, Holder, Namespace, PidHash, Position, Refusal, Reply, Sid, User, url_safe},
    state::{Applied, Session},
};
use serde_json::{Value, value::RawValue};
use sha2::{Digest, Sha256};
use socketioxide::{extract::TryData, handler::ConnectHandler};

use super::{Chat, event, gap::Away, pattern::Pattern, request};
use crate::{
    adapter::{SocketIo, SocketRef},
    client::{Outlet, Transport, socketio},
    config::Auth,
    seat::{Gone, Played, Seat},
};

/// How often a resume is decided anew because another connection was faster.
const RESUME_TRIES: usize = 8;
/// A longer `pid` was not made here.
const PID_CHARS: usize = 32;

/// The session has moved on: what it missed is the business of whoever has it now.
const MOVED: &str = "moved";

/// The final refusals of a CONNECT: the code is Socket.IO's error message.
#[derive(Clone, Copy, Debug)]
pub enum Final {
    Unauthorized,
    /// Socket.IO's own word for a namespace that there is not.
    InvalidNamespace,
    /// Never seen by a client: the transport is cut already.
    Cut,
}

impl fmt::Display for Final {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unauthorized => "unauthorized",
            Self::InvalidNamespace => "Invalid namespace",
            Self::Cut => "unavailable",
        })
    }
}

/// A cause that passes: the transport has to be cut.
struct Passing(&'static str);

/// Passes too: sessions count whose clients have gone without anybody having missed them yet, and a final word would keep a
/// stock client away for good.
const TOO_MANY: &str = "its user has too many sessions";

/// Who connects, and what it brings along.
struct Client {
    ns: Namespace,
    user: User,
    guest: bool,
    /// The secret of an earlier session.
    pid: Option<String>,
    /// What it says that it heard last.
    offset: Option<String>,
    /// False when the client switched recovery off.
    recovery: bool,
    came: Instant,
}

/// A session that is attached to this node and waits for its socket.
struct Attachment {
    seat: Arc<Seat>,
    pid: String,
    replay: Vec<Played>,
    /// When and why a session that goes on lost its transport; `None` for a new one.
    resumed: Option<Away>,
}

/// What became of the session of which a client has the secret.
enum Resumed {
    Whole(Box<Attachment>),
    /// It is this connection's, but what the client missed cannot be had any more: it shall end.
    NotWhole(Holder),
    /// There is none, or it is not for this client.
    No,
}

/// What the middleware leaves for the handler.
#[derive(Clone)]
struct Waiting(Arc<Mutex<Option<Attachment>>>);

/// What is ours of a client's `auth`. The rest may be anything that a client calls JSON, also what no parser here takes (half of an
/// emoji); but who cannot be understood is not taken for somebody who named no user.
fn known(auth: &RawValue) -> Result<Value, Final> {
    let fields: BTreeMap<String, &RawValue> = match serde_json::from_str(auth.get()) {
        Ok(fields) => fields,
        Err(_) if auth.get().starts_with('{') => return Err(Final::Unauthorized),
        Err(_) => return Ok(Value::Null),
    };
    let ours = ["user", "pid", "offset", "csr"].into_iter().filter_map(|key| Some((key, fields.get(key)?)));
    let parsed = ours.map(|(key, field)| Ok((key.to_owned(), serde_json::from_str(field.get())?)));
    parsed.collect::<serde_json::Result<_>>().map(Value::Object).map_err(|_| Final::Unauthorized)
}

/// Registers the chat in a namespace; a pattern in braces makes a dynamic one.
pub fn register(chat: &Chat, io: &SocketIo, ns: &str) -> Result<(), String> {
    let (on_middleware, on_connect) = (chat.clone(), chat.clone());
    let pattern = ns.contains('{').then(|| Arc::new(Pattern::new(io, ns)));
    let is_pattern = pattern.is_some();
    let middleware = move |socket: SocketRef, auth: TryData<Box<RawValue>>| {
        let chat = on_middleware.clone();
        let auth = auth.0.map_err(|_| Final::Unauthorized).and_then(|auth| known(&auth));
        let client = auth.and_then(|auth| chat.identify(socket.ns(), auth));
        let client = match &pattern {
            Some(pattern) => pattern.let_in(socket.ns(), client),
            None => client,
        };
        async move { chat.connecting(socket, client).await }
    };
    let handler = move |socket: SocketRef| {
        let chat = on_connect.clone();
        async move { chat.connected(socket).await }
    };
    match is_pattern {
        true => io.dyn_ns(ns, handler.with(middleware)).map_err(|e| e.to_string()),
        false => {
            io.ns(ns.to_owned(), handler.with(middleware));
            Ok(())
        }
    }
}

impl Chat {
    /// The middleware: see the module.
    async fn connecting(&self, socket: SocketRef, client: Result<Client, Final>) -> Result<(), Final> {
        let Some(transport) = socketio::transport(&socket) else { return Err(Final::Cut) };
        if self.stopping.is_cancelled() || matches!(client, Err(Final::Cut)) {
            transport.cut();
            return Err(Final::Cut);
        }
        let client = client?;
        let attachment = match self.attach(&client, &transport).await {
            Ok(attachment) => attachment,
            Err(Passing(why)) => {
                tracing::debug!(peer = %transport.peer(), "a client is cut off while it attaches: {why}");
                transport.cut();
                return Err(Final::Cut);
            }
        };
        let sid = &attachment.seat.holder.sid;
        if !self.hub.name(&socket, sid, &transport) {
            transport.cut();
            self.give_up(&attachment.seat);
            return Err(Final::Cut);
        }
        let sid = sid.as_str();
        let reply = match client.recovery {
            true => socketio::our_reply(socket.ns(), sid, &attachment.pid),
            false => socketio::our_plain_reply(socket.ns(), sid),
        };
        transport.arm(socketio::reply(socket.ns(), socket.id), reply);
        request::register(self, &socket, &transport, attachment.seat.clone());
        socket.extensions.insert(Waiting(Arc::new(Mutex::new(Some(attachment)))));
        Ok(())
    }

    /// The connect handler: gives the seat its socket.
    async fn connected(&self, socket: SocketRef) {
        let waiting = socket.extensions.get::<Waiting>();
        let taken = waiting.and_then(|waiting| waiting.0.lock().unwrap_or_else(PoisonError::into_inner).take());
        let Some(Attachment { seat, resumed, replay, .. }) = taken else { return };
        let Some(transport) = socketio::transport(&socket).filter(|transport| !transport.is_closed()) else {
            return self.give_up(&seat);
        };
        // Before the handler, which may take its time: the client has its reply, and is to get its `ready`.
        if seat.claim() == Err(Gone) {
            return self.give_up(&seat);
        }
        let handled = async {
            if let Some(handler) = self.handlers.of(socket.ns()) {
                handler(socket.clone()).await;
            }
            Outlet::new(&self.hub, socket, transport)
        };
        // A handler may panic. Without an outlet nobody writes to the client, which has to come again then.
        let Ok(Some(outlet)) = AssertUnwindSafe(handled).catch_unwind().await else {
            seat.let_go();
            return self.give_up(&seat);
        };
        let outlet = outlet.with_limit(self.settings.queue_bytes_max);
        let ready = event::ready(&event::Ready {
            user: seat.user.as_str(),
            sid: seat.holder.sid.as_str(),
            rooms: seat.rooms.iter().map(|room| room.as_str()).collect(),
            recovered: resumed.is_some(),
            node: &self.settings.node_name,
        });
        let replayed = replay.len();
        match (seat.take(outlet, &ready, replay).await, resumed) {
            (Err(Gone), _) => self.give_up(&seat),
            (Ok(()), Some(away)) => self.metrics.resumed(away.cause, away.since.elapsed(), replayed),
            (Ok(()), None) => {}
        }
    }

    /// Who the client says, or proves, to be.
    fn identify(&self, ns: &str, auth: Value) -> Result<Client, Final> {
        let ns = Namespace::new(ns).ok_or(Final::Unauthorized)?;
        let text = |key: &str| auth.get(key).and_then(Value::as_str).map(str::to_owned);
        let (user, guest) = match (self.settings.auth, auth.get("user")) {
            (Auth::Jwt, _) => return Err(Final::Unauthorized),
            (Auth::Open, None | Some(Value::Null)) => (format!("guest-{}", random_text::<12>()), true),
            (Auth::Open, Some(user)) => (user.as_str().ok_or(Final::Unauthorized)?.to_owned(), false),
        };
        let user = User::new(user).ok_or(Final::Unauthorized)?;
        let recovery = auth.get("csr") != Some(&Value::Bool(false));
        let pid = text("pid").filter(|pid| recovery && pid.len() == PID_CHARS);
        // What is no text was not given here either; that it has heard nothing is said by saying nothing.
        let offset = auth.get("offset").filter(|offset| !offset.is_null());
        let offset = offset.map(|offset| offset.as_str().unwrap_or_default().to_owned());
        Ok(Client { ns, user, guest, pid, offset, recovery, came: Instant::now() })
    }

    async fn attach(&self, client: &Client, transport: &Transport) -> Result<Attachment, Passing> {
        let resumed = match &client.pid {
            Some(pid) => self.resume(client, pid, transport).await?,
            None => Resumed::No,
        };
        match resumed {
            Resumed::Whole(attachment) => Ok(*attachment),
            Resumed::No => self.open(client, transport).await,
            Resumed::NotWhole(holder) => {
                let opened = self.open(client, transport).await;
                if let Err(Passing(TOO_MANY)) = opened {
                    // It stands in its own way.
                    self.store.call(Command::Close(holder)).await.map_err(|_| Passing("no quorum"))?;
                    return self.open(client, transport).await;
                }
                // Not before: a user whose last session ends would be offline for a moment.
                self.end_session(holder);
                opened
            }
        }
    }

    async fn open(&self, client: &Client, transport: &Transport) -> Result<Attachment, Passing> {
        let sid = Sid::from_random(random());
        let pid = random_text::<PID_CHARS>();
        let command = Command::Open {
            sid: sid.clone(),
            ns: client.ns.clone(),
            user: client.user.clone(),
            guest: client.guest,
            pid: pid_hash(&pid),
        };
        let applied = self.store.call(command).await.map_err(|_| Passing("no quorum"))?;
        match applied.reply {
            Reply::Seated { generation, .. } => {
                let seat = self.seat(Holder { sid, generation }, client, transport)?;
                Ok(Attachment { seat, pid, resumed: None, replay: Vec::new() })
            }
            Reply::Refused(Refusal::TooManySessions) => Err(Passing(TOO_MANY)),
            other => {
                tracing::error!("an open was answered {other:?}");
                Err(Passing("an unexpected answer"))
            }
        }
    }

    async fn resume(&self, client: &Client, pid: &str, transport: &Transport) -> Result<Resumed, Passing> {
        let hash = pid_hash(pid);
        for _ in 0..RESUME_TRIES {
            if transport.is_closed() {
                return Err(Passing("it has gone"));
            }
            let Some(session) = self.look_up(&hash, client).await? else { return Ok(Resumed::No) };
            // Only its goodbye can have made room for this CONNECT on the same transport: the end is still on its way.
            let seat = self.seats.get(&session.holder());
            if seat.and_then(|seat| seat.transport()).is_some_and(|of| of.same(transport)) {
                return Ok(Resumed::No);
            }
            // A guest has no name but the one that was made up for it.
            let user = if client.guest && session.guest { &session.user } else { &client.user }.clone();
            let command = Command::Resume { read: session.holder(), ns: client.ns.clone(), user, pid: hash };
            let applied = self.store.call(command).await.map_err(|_| Passing("no quorum"))?;
            match applied.reply {
                Reply::Seated { generation, .. } => {
                    let holder = Holder { sid: session.sid.clone(), generation };
                    return self.recover(client, pid, transport, holder, &session, &applied);
                }
                // Another connection of this client was faster: look again.
                Reply::Refused(Refusal::Moved) => {}
                Reply::Refused(Refusal::Contested) => {
                    self.metrics.replay_refused("contested");
                    tracing::info!(sid = %session.sid, "two clients take a session from each other: a fresh one");
                    return Ok(Resumed::No);
                }
                _ => return Ok(Resumed::No),
            }
        }
        Err(Passing("others keep taking its session"))
    }

    /// A pid that this node does not know may be younger than what it has applied: it is looked up once more after a
    /// read index.
    async fn look_up(&self, hash: &PidHash, client: &Client) -> Result<Option<Session>, Passing> {
        let find = || self.store.read(|state| state.session_of_pid(hash)).filter(|session| session.ns == client.ns);
        if let Some(session) = find() {
            return Ok(Some(session));
        }
        self.store.linearizable().await.map_err(|_| Passing("no quorum"))?;
        Ok(find())
    }

    /// The resumed session with all that it missed.
    fn recover(
        &self,
        client: &Client,
        pid: &str,
        transport: &Transport,
        holder: Holder,
        before: &Session,
        applied: &Applied,
    ) -> Result<Resumed, Passing> {
        let seat = self.seat(holder.clone(), client, transport)?;
        match self.missed(client, &holder, applied.position) {
            Ok(replay) => {
                let resumed = Some(self.away(&seat, before, client.came));
                Ok(Resumed::Whole(Box::new(Attachment { seat, pid: pid.to_owned(), replay, resumed })))
            }
            Err(MOVED) => Err(Passing("another connection has taken its session")),
            Err(why) => {
                self.metrics.replay_refused(why);
                tracing::info!(sid = %holder.sid, why, "what the client missed cannot be replayed: a fresh session");
                Ok(Resumed::NotWhole(holder))
            }
        }
    }

    fn missed(&self, client: &Client, holder: &Holder, seam: Position) -> Result<Vec<Played>, &'static str> {
        let offset = match &client.offset {
            Some(offset) => self.encoder.position(offset).ok_or("foreign")?,
            // It has received nothing yet: everything since its first position is due.
            None => Position(0),
        };
        let limit = self.settings.replay;
        let due = self.store.read(|state| {
            let session = state.session(&holder.sid).filter(|session| session.generation == holder.generation);
            state.replay(&session.ok_or(MOVED)?, offset, seam, limit).map_err(|why| why.as_str())
        })?;
        Ok(due.iter().map(|(room, entry)| self.encoder.played(room, entry)).collect())
    }

    /// The seat that the player made, bound to its transport.
    fn seat(&self, holder: Holder, client: &Client, transport: &Transport) -> Result<Arc<Seat>, Passing> {
        let seat = self.seats.get(&holder).ok_or(Passing("its seat is gone"))?;
        seat.reserve(transport, client.recovery);
        if transport.is_closed() {
            self.give_up(&seat);
            return Err(Passing("it has gone"));
        }
        Ok(seat)
    }

    /// A seat that is not or no longer wanted: a session that was never ready ends, every other counts down.
    pub fn give_up(&self, seat: &Seat) {
        let holder = seat.holder.clone();
        if holder.generation > 1 || !seat.is_free() {
            return self.losses.report(holder);
        }
        self.end_session(holder);
    }

    /// Ends a session; when the log does not take it, it counts down like any lost one.
    pub fn end_session(&self, holder: Holder) {
        let (chat, close) = (self.clone(), Command::Close(holder.clone()));
        let ticket = Ticket::new(move |outcome| {
            if outcome.is_err() {
                chat.losses.report(holder);
            }
        });
        self.store.propose(close, ticket);
    }
}

fn pid_hash(pid: &str) -> PidHash {
    Sha256::digest(pid.as_bytes()).into()
}

fn random_text<const N: usize>() -> String {
    url_safe(&random::<N>())
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // An id that could be guessed would be worse than no server at all.
    getrandom::fill(&mut bytes).expect("the operating system has a random generator");
    bytes
}
