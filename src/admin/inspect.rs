//! What is in the state: namespaces, rooms, sessions, users, and the two maps themselves.

use moim_raft::{
    NodeId,
    command::{Namespace, Position, Room, RoomEntry, Sid, Stamp, User, What},
    state::{RoomRecord, Session, State},
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    answer::{Answer, Failure, Named, Read, page},
    peer::{self, Question, Reply},
};

type Found<T> = Result<Answer<T>, Failure>;

#[derive(Serialize)]
pub struct Namespaces {
    namespaces: Vec<NamespaceRow>,
}

#[derive(Serialize)]
struct NamespaceRow {
    ns: Namespace,
    rooms: usize,
    /// Users that have a session.
    users: usize,
    /// Sessions, attached or counting down.
    sids: usize,
    /// Attached sessions.
    sockets: usize,
}

/// `GET /v1/namespaces`
pub async fn namespaces(read: Read) -> Answer<Namespaces> {
    read.state(|state| {
        let lost: Vec<Session> = state.lost_sessions().iter().filter_map(|holder| state.session(&holder.sid)).collect();
        let row = |ns: Namespace| {
            let (sids, users) = state.count_sessions(&ns);
            let lost = lost.iter().filter(|session| session.ns == ns).count();
            NamespaceRow { rooms: state.count_rooms(&ns), users, sids, sockets: sids - lost, ns }
        };
        Namespaces { namespaces: state.namespaces().into_iter().map(row).collect() }
    })
}

#[derive(Serialize)]
pub struct Rooms {
    rooms: Vec<RoomRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Room>,
}

#[derive(Serialize)]
struct RoomRow {
    room: Room,
    members: u64,
    /// Sessions that receive in it.
    sids: usize,
    /// Entries of its history.
    entries: u64,
}

impl RoomRow {
    fn of(state: &State, ns: &Namespace, room: &Room, record: &RoomRecord) -> Self {
        let sids = state.sids_in_room(ns, room).len();
        Self { room: room.clone(), members: record.members, sids, entries: record.entries }
    }
}

/// `GET /v1/rooms?ns=&prefix=&limit=&after=`: shorter names first.
pub async fn rooms(read: Read) -> Found<Rooms> {
    let (ns, limit) = (read.params.ns()?, read.params.limit()?);
    let prefix = read.params.get("prefix").unwrap_or_default();
    let after = read.params.parsed("after", |text| Room::new(text))?;
    Ok(read.state(|state| {
        let (rooms, next) = page(state.rooms_after(&ns, after.as_ref()), limit, |(room, record)| {
            room.as_str().starts_with(prefix).then(|| RoomRow::of(state, &ns, room, record))
        });
        Rooms { rooms, next: next.map(|(room, _)| room) }
    }))
}

#[derive(Serialize)]
pub struct OneRoom {
    #[serde(flatten)]
    row: RoomRow,
    ns: Namespace,
    users: Vec<Present>,
    /// The users' sessions, and on the first page those that entered for themselves.
    sids: Vec<Place>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<User>,
}

#[derive(Serialize)]
struct Present {
    user: User,
    online: bool,
}

/// Where a session is.
#[derive(Serialize)]
struct Place {
    sid: Sid,
    user: User,
    node: String,
    attached: bool,
}

impl Place {
    fn of(state: &State, session: &Session) -> Self {
        let (sid, user) = (session.sid.clone(), session.user.clone());
        Self { sid, user, node: node_name(state, session.node), attached: state.is_attached(session) }
    }
}

/// The name of a node; the number of one that was removed.
fn node_name(state: &State, id: NodeId) -> String {
    state.node(id).map_or_else(|| id.to_string(), |node| node.info.name)
}

/// `GET /v1/rooms/{room}?ns=&limit=&after=`: users in pages.
pub async fn room(Named(name): Named, read: Read) -> Found<OneRoom> {
    let (ns, limit) = (read.params.ns()?, read.params.limit()?);
    let after = read.params.parsed("after", |text| User::new(text))?;
    read.found("room", |state| {
        let room = Room::new(name)?;
        let row = RoomRow::of(state, &ns, &room, &state.room(&ns, &room)?);
        let mut users = state.members(&ns, &room, after.as_ref(), limit + 1);
        let more = users.len() > limit;
        users.truncate(limit);
        let next = users.last().filter(|_| more).cloned();
        let mut sessions: Vec<Session> = users.iter().flat_map(|user| state.sessions_of(&ns, user)).collect();
        if after.is_none() {
            let entered = state.sids_entered(&ns, &room).into_iter().take(limit);
            sessions.extend(entered.filter_map(|sid| state.session(&sid)));
        }
        sessions.sort_by(|a, b| a.sid.cmp(&b.sid));
        sessions.dedup_by(|a, b| a.sid == b.sid);
        let sids = sessions.iter().map(|session| Place::of(state, session)).collect();
        let present = |user| Present { online: state.is_online(&ns, &user), user };
        Some(OneRoom { row, users: users.into_iter().map(present).collect(), sids, next, ns })
    })
}

#[derive(Serialize)]
pub struct History {
    messages: Vec<Entry>,
    /// Whether there are more beyond.
    more: bool,
    /// What to ask for next, as `after` if that was asked, else as `before`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

#[derive(Serialize)]
struct Entry {
    id: String,
    at: Stamp,
    user: User,
    what: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mid: Option<String>,
}

impl From<RoomEntry> for Entry {
    fn from(entry: RoomEntry) -> Self {
        let (what, text, mid) = match entry.what {
            What::Message { text, mid } => ("message", RawValue::from_string(text).ok(), mid),
            What::Joined => ("joined", None, None),
            What::Left => ("left", None, None),
        };
        Self { id: entry.position.to_string(), at: entry.at, user: entry.user, what, text, mid }
    }
}

/// `GET /v1/rooms/{room}/messages?ns=&before=&after=&limit=`: oldest first, joins and leaves among them.
pub async fn messages(Named(name): Named, read: Read) -> Found<History> {
    let (ns, limit) = (read.params.ns()?, read.params.limit()?);
    let id = |text: &str| text.parse::<Position>().ok();
    let (after, before) = (read.params.parsed("after", id)?, read.params.parsed("before", id)?);
    let entries = read.found("room", |state| {
        let room = Room::new(name)?;
        state.room(&ns, &room)?;
        Some(state.history(&ns, &room, after, before, limit, |_| true))
    })?;
    Ok(entries.map(|(entries, more)| {
        let end = if after.is_some() { entries.last() } else { entries.first() };
        let next = end.filter(|_| more).map(|entry| entry.position.to_string());
        History { messages: entries.into_iter().map(Entry::from).collect(), more, next }
    }))
}

#[derive(Serialize)]
pub struct Sids {
    sids: Vec<SidRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Sid>,
}

#[derive(Serialize)]
struct SidRow {
    #[serde(flatten)]
    place: Place,
    ns: Namespace,
    generation: u64,
    /// When its transport went, in milliseconds since the epoch; `null` while it is attached.
    lost_at: Option<Stamp>,
}

impl SidRow {
    fn of(state: &State, session: &Session) -> Self {
        let lost_at = state.lost_since(session);
        Self { place: Place::of(state, session), ns: session.ns.clone(), generation: session.generation, lost_at }
    }
}

/// `GET /v1/sids?ns=&node=&user=&limit=&after=`
pub async fn sids(read: Read) -> Found<Sids> {
    let (ns, limit) = (read.params.ns()?, read.params.limit()?);
    let user = read.params.parsed("user", |text| User::new(text))?;
    let after = read.params.parsed("after", Sid::parse)?;
    let node = read.params.get("node");
    Ok(read.state(|state| {
        let node = node.map(|name| state.nodes().into_iter().find(|node| node.info.name == name).map(|node| node.id));
        let wanted = |session: &Session| {
            let here = node.is_none_or(|node| node == Some(session.node));
            (session.ns == ns && here).then(|| SidRow::of(state, session))
        };
        let (sids, next) = match &user {
            Some(user) => {
                let mut sessions = state.sessions_of(&ns, user);
                sessions.retain(|session| after.as_ref().is_none_or(|after| session.sid > *after));
                page(sessions.into_iter(), limit, wanted)
            }
            None => page(state.sessions_after(after.as_ref()), limit, wanted),
        };
        Sids { sids, next: next.map(|session| session.sid) }
    }))
}

#[derive(Serialize)]
pub struct OneSid {
    #[serde(flatten)]
    row: SidRow,
    rooms: Vec<Room>,
    /// `websocket` or `polling`, as the node that holds it says; `null` without an answer.
    transport: Option<String>,
}

/// `GET /v1/sids/{sid}`
pub async fn sid(Named(text): Named, read: Read) -> Found<OneSid> {
    let found = read.found("sid", |state| {
        let session = state.session(&Sid::parse(&text)?)?;
        Some((SidRow::of(state, &session), state.rooms_of_session(&session), session))
    })?;
    let session = &found.data.2;
    let transport = match found.data.0.place.attached {
        true => peer::ask(&read.node, session.node, Question::Transport(session.holder()), peer::SOON).await,
        false => None,
    };
    let transport = match transport {
        Some(Reply::Transport(transport)) => transport,
        _ => None,
    };
    Ok(found.map(|(row, rooms, _)| OneSid { row, rooms, transport }))
}

#[derive(Serialize)]
pub struct Users {
    users: Vec<UserRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<User>,
}

#[derive(Serialize)]
struct UserRow {
    user: User,
    online: bool,
    rooms: usize,
    sids: usize,
}

/// `GET /v1/users?ns=&prefix=&limit=&after=`: users with a session or a room, shorter names first.
pub async fn users(read: Read) -> Found<Users> {
    let (ns, limit) = (read.params.ns()?, read.params.limit()?);
    let prefix = read.params.get("prefix").unwrap_or_default();
    let after = read.params.parsed("after", |text| User::new(text))?;
    Ok(read.state(|state| {
        let row = |user: &User| {
            if !user.as_str().starts_with(prefix) {
                return None;
            }
            let (rooms, sids) = (state.rooms_of_user(&ns, user).len(), state.sids_of_user(&ns, user).len());
            let online = state.is_online(&ns, user);
            (rooms + sids > 0).then(|| UserRow { user: user.clone(), online, rooms, sids })
        };
        let (users, next) = page(state.users_after(&ns, after.as_ref()), limit, row);
        Users { users, next }
    }))
}

#[derive(Serialize)]
pub struct OneUser {
    user: User,
    /// With a transport in some namespace.
    online: bool,
    namespaces: Vec<UserIn>,
}

/// A user in one namespace.
#[derive(Serialize)]
struct UserIn {
    ns: Namespace,
    online: bool,
    rooms: Vec<Room>,
    sids: Vec<Place>,
}

/// `GET /v1/users/{user}`
pub async fn user(Named(name): Named, read: Read) -> Found<OneUser> {
    read.found("user", |state| {
        let user = User::new(name)?;
        let within = |ns: Namespace| {
            let (rooms, sessions) = (state.rooms_of_user(&ns, &user), state.sessions_of(&ns, &user));
            let sids: Vec<Place> = sessions.iter().map(|session| Place::of(state, session)).collect();
            let known = !rooms.is_empty() || !sids.is_empty();
            known.then(|| UserIn { online: sids.iter().any(|place| place.attached), ns, rooms, sids })
        };
        let namespaces: Vec<UserIn> = state.namespaces().into_iter().filter_map(within).collect();
        let online = namespaces.iter().any(|ns| ns.online);
        (!namespaces.is_empty()).then_some(OneUser { user, online, namespaces })
    })
}
