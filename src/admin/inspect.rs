//! What is in the state: namespaces, rooms and their history.

use std::collections::HashMap;

use moim_raft::{
    NodeId, Store,
    command::{Namespace, Position, Room, RoomEntry, Sid, Stamp, User, What},
    state::{RoomRecord, Session, State, list::SessionCounts},
};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::task::yield_now;

use super::answer::{Answer, Failure, Named, Read, SCANNED_MAX, page};

pub(super) type Found<T> = Result<Answer<T>, Failure>;

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

/// `GET /v1/namespaces`: counted in parts, of which some may be as they were a moment later than `applied` says.
pub async fn namespaces(read: Read) -> Answer<Namespaces> {
    let store = &read.node.store;
    let found = read.state(|state| (state.namespaces(), state.lost_sessions()));
    let (names, lost) = &found.data;
    let mut counting_down: HashMap<Namespace, usize> = HashMap::new();
    for part in lost.chunks(SCANNED_MAX) {
        store.read(|state| {
            let sessions = part.iter().filter_map(|holder| state.session(&holder.sid));
            sessions.for_each(|session| *counting_down.entry(session.ns).or_default() += 1);
        });
        yield_now().await;
    }
    let mut namespaces = Vec::new();
    for ns in names {
        let rooms = in_parts(store, |state, after| state.count_rooms(ns, after, SCANNED_MAX)).await;
        let mut sids = 0;
        let users =
            in_parts(store, |state, after| state.count_users(ns, after, SCANNED_MAX, |of_user| sids += of_user));
        let users = users.await;
        let sockets = sids.saturating_sub(counting_down.get(ns).copied().unwrap_or(0));
        namespaces.push(NamespaceRow { ns: ns.clone(), rooms, users, sids, sockets });
    }
    found.map(|_| Namespaces { namespaces })
}

/// Counts part after part; between two of them apply goes on. Each part says after which name the next one begins.
async fn in_parts(store: &Store, mut part: impl FnMut(&State, Option<&str>) -> (usize, Option<String>)) -> usize {
    let (mut count, mut next) = store.read(|state| part(state, None));
    while let Some(after) = next {
        yield_now().await;
        let (more, then) = store.read(|state| part(state, Some(&after)));
        (count, next) = (count + more, then);
    }
    count
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
    async fn of(store: &Store, ns: &Namespace, room: Room, record: &RoomRecord, known: &mut SessionCounts) -> Self {
        let members = in_parts(store, |state, after| state.count_members_sids(ns, &room, after, SCANNED_MAX, known));
        let sids = members.await;
        let entered = in_parts(store, |state, after| state.count_entered_sids(ns, &room, after, SCANNED_MAX));
        let sids = sids + entered.await;
        Self { room, members: record.members, sids, entries: record.entries }
    }
}

/// `GET /v1/rooms?ns=&prefix=&limit=&after=`: by name. A room's members have to be counted through: that is done in parts, and
/// some may be as they were a moment later than `applied` says.
pub async fn rooms(read: Read) -> Found<Rooms> {
    let (ns, limit) = (read.ns()?, read.params.limit()?);
    let prefix = read.params.get("prefix").unwrap_or_default();
    let after = read.params.parsed("after", |text| Room::new(text))?;
    let named = read.state(|state| {
        let rooms = state.rooms_after(&ns, after.as_ref());
        page(rooms, limit, |(room, record)| room.as_str().starts_with(prefix).then(|| (room.clone(), record.clone())))
    });
    let (mut rooms, mut known) = (Vec::new(), SessionCounts::default());
    for (room, record) in &named.data.0 {
        rooms.push(RoomRow::of(&read.node.store, &ns, room.clone(), record, &mut known).await);
        yield_now().await;
    }
    Ok(named.map(|(_, next)| Rooms { rooms, next: next.map(|(room, _)| room) }))
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
pub(super) struct Place {
    sid: Sid,
    user: User,
    node: String,
    pub(super) attached: bool,
}

impl Place {
    pub(super) fn of(state: &State, session: &Session) -> Self {
        let (sid, user) = (session.sid.clone(), session.user.clone());
        Self { sid, user, node: node_name(state, session.node), attached: state.is_attached(session) }
    }
}

/// The name of a node; the number of one that was removed.
fn node_name(state: &State, id: NodeId) -> String {
    state.node(id).map_or_else(|| id.to_string(), |node| node.info.name)
}

/// `GET /v1/rooms/{room}?ns=&limit=&after=`: users in pages. How many sessions there are in all is counted a moment later.
pub async fn room(Named(name): Named, read: Read) -> Found<OneRoom> {
    let (ns, limit) = (read.ns()?, read.params.limit()?);
    let after = read.params.parsed("after", |text| User::new(text))?;
    let found = read.found("room", |state| {
        let room = Room::new(name)?;
        let record = state.room(&ns, &room)?;
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
        Some((room, record, users.into_iter().map(present).collect(), sids, next))
    })?;
    let (room, record, ..) = &found.data;
    let row = RoomRow::of(&read.node.store, &ns, room.clone(), record, &mut SessionCounts::default()).await;
    Ok(found.map(|(_, _, users, sids, next)| OneRoom { row, ns, users, sids, next }))
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
    let (ns, limit) = (read.ns()?, read.params.limit()?);
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
