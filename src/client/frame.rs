//! The little of WebSocket framing (RFC 6455, section 5.2) that is needed to recognise a frame that a server writes:
//! unmasked, in one piece. Payload bytes are never interpreted.

/// A close frame with code 1012, "service restart" (RFC 6455's registry): the client should reconnect.
pub const CLOSE_RESTART: [u8; 4] = [0x88, 0x02, 0x03, 0xf4];

/// First byte of a whole text frame: FIN and opcode 1.
const TEXT: u8 = 0x81;

/// The bytes on the wire of an unmasked frame with a payload of `payload` bytes, header included.
pub const fn frame_bytes(payload: usize) -> usize {
    let header = match payload {
        0..126 => 2,
        126..65536 => 4,
        _ => 10,
    };
    header + payload
}

/// The text frame of `payload`, as a server writes it.
///
/// # Panics
/// If `payload` is longer than 65,535 bytes; CONNECT replies, which this is for, are not.
pub fn text(payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a CONNECT reply is far below 64 KiB");
    let mut frame = Vec::with_capacity(frame_bytes(payload.len()));
    frame.push(TEXT);
    match length {
        0..126 => frame.push(length as u8),
        _ => {
            frame.push(126);
            frame.extend(length.to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}

/// The bytes of a small text frame as a client writes it.
pub const fn masked_bytes(payload: usize) -> usize {
    2 + 4 + payload
}

/// The payload of a text frame that a client wrote, if that is what `frame` is, whole and small.
pub fn unmask(frame: &[u8]) -> Option<Vec<u8>> {
    let (header, rest) = frame.split_at_checked(2)?;
    let (mask, payload) = rest.split_at_checked(4)?;
    let right = header[0] == TEXT && payload.len() < 126 && usize::from(header[1]) == 0x80 | payload.len();
    right.then(|| payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect())
}

/// `written` with every text frame in it replaced for whose payload there is a `replacement`; `None` if there is none.
///
/// `written` begins at the start of a frame. It is walked frame by frame, so that the same bytes inside of somebody's
/// message are never taken for a frame.
pub fn replace(written: &[u8], replacement: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    let mut replaced: Option<Vec<u8>> = None;
    let (mut at, mut copied) = (0, 0);
    while let Some((header, length)) = frame_length(&written[at..]) {
        let payload = &written[at + header..at + length];
        if written[at] == TEXT
            && let Some(to) = replacement(payload)
        {
            let out = replaced.get_or_insert_with(|| Vec::with_capacity(written.len() + 64));
            out.extend(&written[copied..at]);
            out.extend(text(&to));
            copied = at + length;
        }
        at += length;
    }
    if let Some(out) = &mut replaced {
        out.extend(&written[copied..]);
    }
    replaced
}

/// Header and whole length of the unmasked frame at the start of `bytes`, `None` if they do not hold all of it.
fn frame_length(bytes: &[u8]) -> Option<(usize, usize)> {
    let second = *bytes.get(1)?;
    let (header, payload) = match second & 0x7f {
        126 => (4, u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?) as usize),
        127 => (10, usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?),
        short => (2, short as usize),
    };
    let length = payload.checked_add(header)?;
    (length <= bytes.len()).then_some((header, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::outgoing::Outgoing;

    fn armed(list: &[(&[u8], &[u8])]) -> Outgoing {
        let outgoing = Outgoing::default();
        list.iter().for_each(|(from, to)| _ = outgoing.arm(from.to_vec(), to.to_vec()));
        outgoing
    }

    fn replaced(written: &[u8], outgoing: &Outgoing) -> Option<Vec<u8>> {
        replace(written, |payload| outgoing.replacement(payload))
    }

    #[test]
    fn frames_are_replaced_wherever_they_are_in_a_write() {
        let long = vec![b'x'; 300];
        let written = [text(b"0{}"), text(b"40{a}"), text(&long), text(b"40/g,{a}"), text(b"42[1]")].concat();
        let list = armed(&[(b"40/g,{a}", &long), (b"40{a}", b"40{bbb}"), (b"40/h,{a}", b"-")]);
        let wanted = [text(b"0{}"), text(b"40{bbb}"), text(&long), text(&long), text(b"42[1]")].concat();
        assert_eq!(replaced(&written, &list), Some(wanted));
        assert!(list.is_armed(), "what was not in the write stays armed");
    }

    #[test]
    fn the_same_bytes_inside_a_message_are_left_alone() {
        let mut inner = b"451-[".to_vec();
        inner.extend(text(b"40{a}"));
        assert_eq!(replaced(&text(&inner), &armed(&[(b"40{a}", b"40{b}")])), None);
    }

    #[test]
    fn bytes_that_are_no_whole_frame_are_left_alone() {
        for cut in 0..text(b"40{a}").len() {
            assert_eq!(replaced(&text(b"40{a}")[..cut], &armed(&[(b"40{a}", b"40{b}")])), None);
        }
        assert_eq!(replaced(&[0x81, 127, 255, 255, 255, 255, 255, 255, 255, 255], &armed(&[])), None);
    }

    #[test]
    fn a_clients_frame_is_unmasked() {
        let frame = [0x81, 0x82, 1, 2, 3, 4, b'h' ^ 1, b'i' ^ 2];
        assert_eq!(unmask(&frame).as_deref(), Some(&b"hi"[..]));
        assert_eq!(frame.len(), masked_bytes(2));
        for (at, wrong) in [(0, 0x82), (0, 0x01), (0, 0x88), (1, 0x02), (1, 0x83)] {
            let mut other = frame;
            other[at] = wrong;
            assert_eq!(unmask(&other), None);
        }
        for cut in 0..frame.len() {
            assert_eq!(unmask(&frame[..cut]), None);
        }
    }

    #[test]
    fn frame_bytes_counts_the_header() {
        for (payload, header) in [(0, 2), (125, 2), (126, 4), (65535, 4), (65536, 10)] {
            assert_eq!(frame_bytes(payload), payload + header);
        }
        for payload in [0, 125, 126, 65535] {
            assert_eq!(text(&vec![0; payload]).len(), frame_bytes(payload));
        }
    }
}
