//! Replies, effects and entries in words.

use moim_raft::command::{Attached, Effect, Holder, Reply, Room, RoomEntry, Sid, Stamp, What};

/// When every script begins.
pub const NOW: Stamp = 1_700_000_000_000;

pub fn time(at: Stamp) -> String {
    format!("{}s", (at.saturating_sub(NOW)) as f64 / 1000.0)
}

pub fn session(sid: &Sid) -> &str {
    sid.as_str().trim_end_matches('_')
}

pub fn holder(holder: &Holder) -> String {
    format!("{}#{}", session(&holder.sid), holder.generation)
}

pub fn rooms(rooms: &[Room]) -> String {
    format!("[{}]", rooms.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
}

pub fn reply(reply: &Reply) -> String {
    match reply {
        Reply::Done => "done".to_owned(),
        Reply::Refused(why) => format!("refused: {why:?}"),
        Reply::Seated { generation, first } => format!("generation {generation}, first position {}", first.0),
        Reply::Joined { count } => format!("{count} members"),
        Reply::Published { position, at } => format!("id {}, at {}", position.0, time(*at)),
    }
}

pub fn entry(entry: &RoomEntry) -> String {
    let (position, user) = (entry.position.0, &entry.user);
    match &entry.what {
        What::Message { text, mid: None } => format!("{position} {user}: {text}"),
        What::Message { text, mid: Some(mid) } => format!("{position} {user}: {text} (mid {mid})"),
        What::Joined => format!("{position} {user} joined"),
        What::Left => format!("{position} {user} left"),
    }
}

pub fn effect(effect: &Effect) -> String {
    match effect {
        Effect::Seated(attached) => seated(attached),
        Effect::Unseated { holder: whose, why } => format!("{} has no seat any more: {why:?}", holder(whose)),
        Effect::Member { user, room, joined: true, .. } => format!("{user}'s sessions receive in {room}"),
        Effect::Member { user, room, joined: false, .. } => format!("{user}'s sessions receive no longer in {room}"),
        Effect::Entered { sid, room, entered: true, .. } => format!("{} alone receives in {room}", session(sid)),
        Effect::Entered { sid, room, entered: false, .. } => {
            format!("{} alone receives no longer in {room}", session(sid))
        }
        Effect::Entry { room, entry: what, .. } => format!("to {room}: {}", entry(what)),
        Effect::Down { node, incarnation } => format!("n{node}/{incarnation} is down"),
        Effect::Presence { user, rooms: told, online, .. } => {
            format!("to {}: {user} is {}", rooms(told), if *online { "online" } else { "offline" })
        }
        #[allow(unreachable_patterns, reason = "effects that no script of today has")]
        other => format!("{other:?}"),
    }
}

fn seated(attached: &Attached) -> String {
    let Attached { holder: whose, node, incarnation, user, rooms: joined, entered, gap_ms, .. } = attached;
    let mut text = format!("{} of {user} gets a seat on n{node}/{incarnation}, in {}", holder(whose), rooms(joined));
    if !entered.is_empty() {
        text += &format!(", entered {}", rooms(entered));
    }
    if let Some(gap) = gap_ms {
        text += &format!(", after {} s", *gap as f64 / 1000.0);
    }
    text
}
