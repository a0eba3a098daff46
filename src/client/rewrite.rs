//! Bodies of long-polling, rewritten: the CONNECT reply that is ours, and the OPEN packet with an id that names its node.
//!
//! Pure functions over whole bodies. A body is one packet or several with a record separator between them (Engine.IO
//! protocol 4, HTTP long-polling); no packet can hold one, as JSON escapes it and binary data is base 64.

use serde_json::Value;
use socketioxide::socket::Sid;

use super::frame::frame_bytes;

/// Between two packets of a body.
const SEPARATOR: u8 = 0x1e;

/// The body of a poll that tells the client to wait no longer for it: one packet, noop.
pub const NOOP: &[u8] = b"6";
/// The body that ends a session: one packet, close.
pub const CLOSE: &[u8] = b"1";

/// `body` with each packet replaced for which there is a `replacement`; `None` if there is none.
pub fn replace(body: &[u8], replacement: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    let mut any = false;
    let mut out = Vec::with_capacity(body.len() + 64);
    for (n, packet) in body.split(is_separator).enumerate() {
        if n > 0 {
            out.push(SEPARATOR);
        }
        match replacement(packet) {
            Some(to) => {
                any = true;
                out.extend(to);
            }
            None => out.extend(packet),
        }
    }
    any.then_some(out)
}

/// What the packets of `body` count as on a WebSocket, where packets are counted when they are queued.
pub fn counted(body: &[u8]) -> usize {
    packets(body).map(|packet| frame_bytes(packet.len())).sum()
}

/// The packets of `body`.
pub fn packets(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    body.split(is_separator)
}

fn is_separator(byte: &u8) -> bool {
    *byte == SEPARATOR
}

/// An OPEN packet as socketioxide wrote it: its id, and the same packet with the id `name(id)` and our `max_payload`;
/// everything else as it was. `None` when this is no OPEN packet.
pub fn open(body: &[u8], max_payload: usize, name: impl Fn(Sid) -> String) -> Option<(Sid, Vec<u8>)> {
    let mut packet: Value = serde_json::from_slice(body.strip_prefix(b"0")?).ok()?;
    let sid: Sid = packet.get("sid")?.as_str()?.parse().ok()?;
    let fields = packet.as_object_mut()?;
    fields.insert("sid".to_owned(), name(sid).into());
    fields.insert("maxPayload".to_owned(), max_payload.into());
    Some((sid, format!("0{packet}").into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::outgoing::Outgoing;

    const FROM: &[u8] = br#"40{"sid":"AAAAAAAAAAAAAAHs"}"#;
    const TO: &[u8] = br#"40{"sid":"ours","pid":"secret"}"#;
    const FROM_NS: &[u8] = br#"40/g,{"sid":"AAAAAAAAAAAAAAHs"}"#;
    const TO_NS: &[u8] = br#"40/g,{"sid":"other","pid":"secret"}"#;

    fn armed() -> Outgoing {
        let outgoing = Outgoing::default();
        outgoing.arm(FROM.to_vec(), TO.to_vec());
        outgoing.arm(FROM_NS.to_vec(), TO_NS.to_vec());
        outgoing
    }

    /// All bodies of one socket, each replaced as it is written, as the packets that the client reads.
    fn read(bodies: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let outgoing = armed();
        let seen = bodies.iter().flat_map(|body| {
            let replaced = replace(body, |packet| outgoing.replacement(packet));
            let body = replaced.unwrap_or_else(|| body.clone());
            body.split(is_separator).map(<[u8]>::to_vec).collect::<Vec<_>>()
        });
        seen.collect()
    }

    #[test]
    fn however_packets_are_spread_over_bodies_the_client_reads_the_same() {
        let inside = [b"42[\"message\",", FROM, b"]"].concat();
        let packets: [&[u8]; 7] = [b"2", FROM_NS, &inside, b"bAQIDBA==", FROM, b"42[1]", FROM];
        let wanted: [&[u8]; 7] = [b"2", TO_NS, &inside, b"bAQIDBA==", TO, b"42[1]", FROM];
        // Each bit says whether a body ends after that packet.
        for split in 0..1_u32 << (packets.len() - 1) {
            let mut bodies = vec![packets[0].to_vec()];
            for (n, packet) in packets.iter().enumerate().skip(1) {
                match (split >> (n - 1) & 1 == 1, bodies.last_mut()) {
                    (false, Some(body)) => {
                        body.push(SEPARATOR);
                        body.extend(*packet);
                    }
                    _ => bodies.push(packet.to_vec()),
                }
            }
            assert_eq!(read(&bodies), wanted, "split {split:b}");
        }
    }

    #[test]
    fn a_body_without_an_armed_packet_stays() {
        let outgoing = armed();
        let near = [FROM, b" "].concat();
        for body in [&b""[..], b"6", b"2\x1e6", &FROM[..FROM.len() - 1], &near, &FROM[1..]] {
            assert_eq!(replace(body, |packet| outgoing.replacement(packet)), None);
        }
        assert!(outgoing.is_armed());
    }

    #[test]
    fn a_body_counts_as_its_frames() {
        assert_eq!(counted(b"2"), 3);
        assert_eq!(counted(b"42[1]\x1e6"), 7 + 3);
        assert_eq!(counted(&[b'x'; 200]), 204);
    }

    #[test]
    fn only_the_id_and_the_bound_of_an_open_packet_change() {
        let body = br#"0{"sid":"AAAAAAAAAAAAAAHs","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000,"maxPayload":9}"#;
        let (sid, rewritten) = open(body, 131_072, |sid| format!("tag-{sid}")).unwrap();
        assert_eq!(sid.as_str(), "AAAAAAAAAAAAAAHs");
        let seen: Value = serde_json::from_slice(rewritten.strip_prefix(b"0").unwrap()).unwrap();
        let wanted = serde_json::json!({
            "sid": "tag-AAAAAAAAAAAAAAHs", "upgrades": ["websocket"], "pingInterval": 25000, "pingTimeout": 20000,
            "maxPayload": 131_072,
        });
        assert_eq!(seen, wanted);
    }

    #[test]
    fn what_is_no_open_packet_is_not_rewritten() {
        for body in [&b""[..], b"0", b"1{}", b"0[]", b"0{\"sid\":7}", b"0{\"sid\":\"short\"}", FROM] {
            assert_eq!(open(body, 1, |sid| sid.to_string()), None);
        }
    }
}
