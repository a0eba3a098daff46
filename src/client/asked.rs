//! The namespaces that a client has asked for on a transport, so that a CONNECT that would be ignored is noticed.
//!
//! Why: an application may take a CONNECT back before its answer. A stock client says nothing then, so its session stays,
//! and socketioxide ignores the next CONNECT for a namespace that is seated or being seated: the application would wait for
//! ever, or go on as whom it was before. Socket.IO's own server closes the transport in this case, and so does this one:
//! the client comes back and asks for each of its namespaces once.
//!
//! What always holds:
//! * A CONNECT that says the same as one that is not answered yet may be ignored: that one's answer is its answer.
//! * What was refused, was left, or was ended by the server may be asked for again.

use std::sync::{Mutex, MutexGuard};

/// Namespaces of one transport. Past it the transport is cut: no honest client has as many.
const NAMESPACES_MAX: usize = 1024;
/// Of what a client says this much is looked at. A longer CONNECT is the same as no other.
pub const HEAD_BYTES: usize = 2048;

/// Engine.IO's message with Socket.IO's packet type.
const CONNECT: &[u8] = b"40";
const DISCONNECT: &[u8] = b"41";
const REFUSED: &[u8] = b"44";

/// See the module.
#[derive(Default)]
pub struct Asked(Mutex<Vec<Namespace>>);

struct Namespace {
    name: Box<[u8]>,
    /// The head of its CONNECT, until that is answered.
    connect: Option<Box<[u8]>>,
}

/// Whether this packet of a client, of which the first two bytes are known, is to be [heard](Asked::hear).
pub fn matters(head: &[u8]) -> bool {
    head.starts_with(CONNECT) || head.starts_with(DISCONNECT)
}

/// What of a packet is to be heard.
pub fn head(packet: &[u8]) -> &[u8] {
    &packet[..packet.len().min(HEAD_BYTES)]
}

impl Asked {
    /// The client says this packet, or a longer one that begins with it and has [`HEAD_BYTES`] here. To be called before
    /// socketioxide hears it. False when the transport has to end.
    pub fn hear(&self, head: &[u8]) -> bool {
        if !matters(head) {
            return true;
        }
        let (name, mut all) = (namespace(head), self.lock());
        let known = all.iter().position(|each| *each.name == *name);
        match (head.starts_with(CONNECT), known) {
            (true, Some(nth)) => head.len() < HEAD_BYTES && all[nth].connect.as_deref() == Some(head),
            (true, None) => {
                all.push(Namespace { name: name.into(), connect: Some(head.into()) });
                all.len() <= NAMESPACES_MAX
            }
            (false, Some(nth)) => {
                all.swap_remove(nth);
                true
            }
            (false, None) => true,
        }
    }

    /// The client is told this packet.
    pub fn tell(&self, packet: &[u8]) {
        let (answered, refused) = (packet.starts_with(CONNECT), packet.starts_with(REFUSED));
        if !answered && !refused {
            return;
        }
        let (name, mut all) = (namespace(packet), self.lock());
        let Some(nth) = all.iter().position(|each| *each.name == *name) else { return };
        match answered {
            true => all[nth].connect = None,
            false => _ = all.swap_remove(nth),
        }
    }

    /// The server has ended the client's stay in a namespace.
    pub fn ended(&self, name: &str) {
        self.lock().retain(|each| *each.name != *name.as_bytes());
    }

    /// Whether an answer is due: only then has `tell` to be called.
    pub fn awaits(&self) -> bool {
        self.lock().iter().any(|each| each.connect.is_some())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Namespace>> {
        self.0.lock().expect("nothing panics under this lock")
    }
}

/// The namespace of a packet whose type takes two bytes, as socketioxide reads it: it begins with a slash and ends with a
/// comma or the packet.
fn namespace(packet: &[u8]) -> &[u8] {
    match &packet[2..] {
        rest if rest.starts_with(b"/") => rest.split(|byte| *byte == b',').next().unwrap_or(rest),
        _ => b"/",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Client's packets are true or false: what `hear` says to them.
    fn talk(asked: &Asked, heard: &[(&str, bool)]) {
        for (packet, goes_on) in heard {
            assert_eq!(asked.hear(packet.as_bytes()), *goes_on, "{packet}");
        }
    }

    #[test]
    fn a_second_connect_ends_the_transport_once_it_says_something_else_or_the_first_was_answered() {
        let asked = Asked::default();
        talk(&asked, &[("40{\"user\":1}", true), ("40/g,", true), ("40{\"user\":1}", true), ("40{\"user\":2}", false)]);
        assert!(asked.awaits());
        asked.tell(b"42[\"40\"]");
        asked.tell(b"40{\"sid\":1}");
        assert!(asked.awaits(), "/g");
        asked.tell(b"40/g,{\"sid\":1}");
        assert!(!asked.awaits());
        talk(
            &asked,
            &[("40{\"user\":1}", false), ("40/g", false), ("40/g,x", false), ("40/,", false), ("40/gg,", true)],
        );
    }

    #[test]
    fn what_was_left_refused_or_ended_may_be_asked_for_again() {
        let asked = Asked::default();
        talk(&asked, &[("40/g,", true)]);
        asked.tell(b"40/g,{}");
        talk(&asked, &[("41/g,", true), ("40/g,1", true), ("41/g", true), ("41/other", true), ("40/g,2", true)]);
        asked.tell(b"44/g,{\"message\":\"unauthorized\"}");
        talk(&asked, &[("40/g,3", true)]);
        asked.tell(b"40/g,{}");
        asked.ended("/g");
        talk(&asked, &[("40/g,4", true), ("40/g,5", false)]);
    }

    #[test]
    fn heads_that_are_cut_off_are_not_the_same() {
        let asked = Asked::default();
        let long = vec![b'4'; HEAD_BYTES - 2];
        let connect = [CONNECT, &long].concat();
        assert!(asked.hear(&connect));
        assert!(!asked.hear(&connect));
    }

    #[test]
    fn namespaces_are_bounded() {
        let asked = Asked::default();
        for n in 0..NAMESPACES_MAX {
            assert!(asked.hear(format!("40/{n},").as_bytes()));
        }
        assert!(!asked.hear(b"40/one-more,"));
    }
}
