//! What a client says on its WebSocket, as far as somebody beside tungstenite has to know: the packets that ask for a
//! namespace or leave it.
//!
//! What always holds: bytes are looked at and never changed, and of any other message not more than two are kept. Whoever
//! does not speak WebSocket is not understood here; tungstenite closes such a connection.

use super::asked::{HEAD_BYTES, matters};

/// A frame's header at its longest: two bytes, a length of eight, a mask of four (RFC 6455, section 5.2).
const HEADER_MAX: usize = 14;
const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
/// Opcodes from here on are of control frames, which may come between the frames of a message.
const CONTROL: u8 = 8;

/// The bytes of a WebSocket as they come, in pieces of any size.
#[derive(Default)]
pub struct Incoming {
    header: [u8; HEADER_MAX],
    /// Bytes of the header that have come.
    has: usize,
    /// Bytes of the payload that are still to come.
    left: u64,
    /// Bytes of the payload that have come.
    at: usize,
    is_text: bool,
    /// The start of the message.
    head: Vec<u8>,
}

impl Incoming {
    /// Reads on, and hands out the head of each message that [matters].
    pub fn read(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.has < self.header_bytes() {
                self.header[self.has] = *first;
                self.has += 1;
                bytes = rest;
                if self.has < self.header_bytes() {
                    continue;
                }
                self.begin();
            }
            let taken = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
            let (payload, rest) = bytes.split_at(taken);
            self.payload(payload);
            bytes = rest;
            if self.left == 0 {
                self.end(&mut each);
            }
        }
    }

    /// As far as it is known.
    fn header_bytes(&self) -> usize {
        if self.has < 2 {
            return 2;
        }
        let length = match self.header[1] & !MASKED {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + length + if self.header[1] & MASKED == 0 { 0 } else { 4 }
    }

    fn opcode(&self) -> u8 {
        self.header[0] & 0x0f
    }

    /// The header is whole.
    fn begin(&mut self) {
        let length = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        self.at = 0;
        self.left = match self.header[1] & !MASKED {
            126 => length(&self.header[2..4]),
            127 => length(&self.header[2..10]),
            short => short.into(),
        };
        if (CONTINUATION + 1..CONTROL).contains(&self.opcode()) {
            self.is_text = self.opcode() == TEXT;
            self.head.clear();
        }
    }

    fn payload(&mut self, mut bytes: &[u8]) {
        self.left -= bytes.len() as u64;
        let mask = match self.header[1] & MASKED {
            0 => [0; 4],
            _ => [4, 3, 2, 1].map(|back| self.header[self.has - back]),
        };
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(self.wanted().min(bytes.len()));
            if now.is_empty() {
                self.at = self.at.wrapping_add(bytes.len());
                return;
            }
            self.head.extend(now.iter().enumerate().map(|(n, byte)| byte ^ mask[(self.at + n) % 4]));
            self.at += now.len();
            bytes = rest;
        }
    }

    /// How many more bytes of the message matter.
    fn wanted(&self) -> usize {
        match self.head.len() {
            _ if !self.is_text || self.opcode() >= CONTROL => 0,
            known @ 0..2 => 2 - known,
            known if matters(&self.head) => HEAD_BYTES - known,
            _ => 0,
        }
    }

    /// The frame is whole.
    fn end(&mut self, each: &mut impl FnMut(&[u8])) {
        let is_last = self.header[0] & FIN != 0 && self.opcode() < CONTROL;
        self.has = 0;
        if !is_last {
            return;
        }
        if self.is_text && matters(&self.head) {
            // Its buffer is not kept for a client that asks once.
            each(&std::mem::take(&mut self.head));
        }
        self.is_text = false;
        self.head.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x11, 0xee, 0x80, 0x07];
        let length = match payload.len() {
            short @ 0..126 => vec![MASKED | short as u8],
            long @ 126..65536 => [&[MASKED | 126][..], &(long as u16).to_be_bytes()].concat(),
            long => [&[MASKED | 127][..], &(long as u64).to_be_bytes()].concat(),
        };
        let masked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
        [&[first][..], &length, &mask, &masked.collect::<Vec<_>>()].concat()
    }

    fn read(bytes: &[u8], step: usize) -> Vec<String> {
        let (mut incoming, mut seen) = (Incoming::default(), Vec::new());
        for piece in bytes.chunks(step) {
            incoming.read(piece, |head| seen.push(String::from_utf8(head.to_vec()).unwrap()));
        }
        assert!(incoming.head.is_empty() && incoming.head.capacity() < 64, "nothing is kept");
        seen
    }

    #[test]
    fn what_asks_and_what_leaves_is_found_however_it_comes() {
        let auth = format!("40/chat,{{\"token\":\"{}\"}}", "t".repeat(500));
        let whole = |payload: &str| frame(FIN | TEXT, payload.as_bytes());
        let bytes = [
            whole("3"),
            whole("40"),
            whole(&format!("42[\"{}\"]", "40/not,".repeat(20_000))),
            frame(FIN | 2, b"40/binary,"),
            whole(""),
            whole(&auth),
            frame(FIN | 9, b"40/ping,"),
            // In pieces, with a pong between them.
            frame(TEXT, b"4"),
            frame(FIN | 10, b"40"),
            frame(CONTINUATION, b""),
            frame(CONTINUATION, b"1/ch"),
            frame(FIN, b"at,"),
            // A binary one in pieces.
            frame(2, b"4"),
            frame(FIN, b"0/no,"),
            whole("41"),
        ]
        .concat();
        for step in [1, 2, 3, 7, 1024, bytes.len()] {
            assert_eq!(read(&bytes, step), ["40", &auth, "41/chat,", "41"], "in steps of {step}");
        }
    }

    #[test]
    fn of_a_long_one_the_head_is_enough() {
        let long = format!("40/g,{}", "x".repeat(1 << 17));
        let bytes = [frame(FIN | TEXT, long.as_bytes()), frame(FIN | TEXT, b"41/g,")].concat();
        assert_eq!(read(&bytes, 1000), [&long[..HEAD_BYTES], "41/g,"]);
    }

    #[test]
    fn what_is_no_websocket_harms_nobody() {
        let mut incoming = Incoming::default();
        let mut seed = 7_u32;
        for _ in 0..100_000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            incoming.read(&seed.to_be_bytes()[..2], |_| {});
            assert!(incoming.head.len() <= HEAD_BYTES);
        }
        incoming = Incoming::default();
        incoming.read(&[&[FIN | TEXT, MASKED | 127][..], &[0xff; 30]].concat(), |_| {});
    }
}
