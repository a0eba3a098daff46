//! The Engine.IO id that a polling client is told: a tag that names the node, then socketioxide's own id.
//!
//! Why: a poll, a post or an upgrade can come to any node, and names its session by this id alone. So the node that holds
//! the session is in it, and nobody has to be asked. The tag is no secret, the rest still is: 96 random bits.

use socketioxide::socket::Sid;

/// Characters of a tag: a node's id in base 16.
const TAG: usize = 16;
/// Characters of socketioxide's id.
const SID: usize = 16;

/// The id that clients see.
pub fn tagged(node: u64, sid: Sid) -> String {
    format!("{node:016x}{sid}")
}

/// The node and its own id for the session; `None` when this was not made by [`tagged`].
pub fn parse(id: &str) -> Option<(u64, Sid)> {
    if id.len() != TAG + SID || !id.is_ascii() {
        return None;
    }
    let (tag, sid) = id.split_at(TAG);
    let node = u64::from_str_radix(tag, 16).ok()?;
    // One session has one id: neither a plus sign nor capital letters.
    (format!("{node:016x}") == tag).then_some((node, sid.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_tagged_is_found_again() {
        for node in [0, 1, 0xdead_beef, u64::MAX] {
            let sid = Sid::new();
            assert_eq!(parse(&tagged(node, sid)), Some((node, sid)));
        }
    }

    #[test]
    fn nothing_else_is_an_id() {
        let id = tagged(0xabc, Sid::new());
        let upper = id[..TAG].to_uppercase() + &id[TAG..];
        let plus = format!("+{}", &id[1..]);
        let long = format!("{id}0");
        for wrong in ["", "0", &id[1..], &id[TAG..], &long, &upper, &plus, &id.replace(&id[20..21], "!"), "é"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
