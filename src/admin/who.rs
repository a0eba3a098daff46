//! Who is there: sessions and users.

use moim_raft::{
    command::{Namespace, Room, Sid, Stamp, User},
    state::{Session, State},
};
use serde::Serialize;

use super::{
    answer::{Named, Read, page},
    inspect::{Found, Place},
    peer::{self, Question, Reply},
};

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
    let (ns, limit) = (read.ns()?, read.params.limit()?);
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

/// `GET /v1/users?ns=&prefix=&limit=&after=`: users with a session or a room, by name.
pub async fn users(read: Read) -> Found<Users> {
    let (ns, limit) = (read.ns()?, read.params.limit()?);
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
    /// In some namespace.
    online: bool,
    namespaces: Vec<UserIn>,
}

/// A user in one namespace.
#[derive(Serialize)]
struct UserIn {
    ns: Namespace,
    /// As others see it: for `presence.grace` also without a transport.
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
            known.then(|| UserIn { online: state.is_online(&ns, &user), ns, rooms, sids })
        };
        let namespaces: Vec<UserIn> = state.namespaces().into_iter().filter_map(within).collect();
        let online = namespaces.iter().any(|ns| ns.online);
        (!namespaces.is_empty()).then_some(OneUser { user, online, namespaces })
    })
}
