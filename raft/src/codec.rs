//! The envelope around everything that is stored or sent.
//!
//! ```text
//! [u8 format][u8 kind][u32 length of body][u32 crc32 of body][body]      integers big-endian
//! ```
//!
//! bincode is positional and says nothing about itself: a changed struct can decode without an error into wrong data.
//! So a body is decoded only under its own kind and format, with its checksum checked, within [`BODY_BYTES_MAX`], and it
//! must be consumed to its last byte. Enums that travel here grow only at their end.

use bincode::config::{BigEndian, Configuration, Limit, Varint};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Error, Result};

/// The format that this version writes, and the only one that it reads.
pub const FORMAT: u8 = 1;
/// Bytes in front of each body.
pub const HEADER_BYTES: usize = 10;
/// A longer body is refused before anything is allocated for it.
pub const BODY_BYTES_MAX: usize = 32 << 20;

/// Where a body begins to grow: most are not longer.
const USUAL_BYTES: usize = 128;

/// What a body is. Numbers are stored: only ever add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Batch = 1,
    Value = 2,
    Identity = 3,
    Snapshot = 4,
    Frame = 5,
    Log = 6,
    Meta = 7,
}

fn config() -> Configuration<BigEndian, Varint, Limit<BODY_BYTES_MAX>> {
    bincode::config::standard().with_big_endian().with_limit::<BODY_BYTES_MAX>()
}

/// The bare bincode body, for places that bring their own length and checksum.
pub fn body<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    body_behind(Vec::with_capacity(USUAL_BYTES), value)
}

/// The same behind what is there already.
pub fn body_behind<T: Serialize>(mut start: Vec<u8>, value: &T) -> Result<Vec<u8>> {
    let done = bincode::serde::encode_into_std_write(value, &mut start, config());
    done.map(|_| start).map_err(|e| Error::refused(format!("cannot encode: {e}")))
}

/// The opposite of [`body`]; every byte must be used.
pub fn from_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    match bincode::serde::decode_from_slice(bytes, config()) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => Err(Error::refused(format!("{} bytes too many", bytes.len() - used))),
        Err(e) => Err(Error::refused(format!("cannot decode: {e}"))),
    }
}

/// `value` in its envelope.
pub fn encode<T: Serialize>(kind: Kind, value: &T) -> Result<Vec<u8>> {
    let mut start = Vec::with_capacity(HEADER_BYTES + USUAL_BYTES);
    start.resize(HEADER_BYTES, 0);
    let mut out = body_behind(start, value)?;
    let (header, body) = out.split_at_mut(HEADER_BYTES);
    if body.len() > BODY_BYTES_MAX {
        return Err(Error::refused(format!("{kind:?} of {} bytes is over the bound of {BODY_BYTES_MAX}", body.len())));
    }
    header[..2].copy_from_slice(&[FORMAT, kind as u8]);
    header[2..6].copy_from_slice(&(body.len() as u32).to_be_bytes());
    header[6..].copy_from_slice(&crc32fast::hash(body).to_be_bytes());
    Ok(out)
}

/// What [`encode`] wrote, checked.
pub fn decode<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T> {
    from_body(open(kind, bytes)?)
}

/// The body inside an envelope, after format, kind, length and checksum were found right.
pub fn open(kind: Kind, bytes: &[u8]) -> Result<&[u8]> {
    let wrong = |what: &str| Err(Error::refused(format!("{kind:?}: {what}")));
    let Some((header, body)) = bytes.split_at_checked(HEADER_BYTES) else {
        return wrong("shorter than its header");
    };
    if header[0] != FORMAT {
        return wrong(&format!("format {} is not known here; it was written by another version", header[0]));
    }
    if header[1] != kind as u8 {
        return wrong(&format!("found kind {}", header[1]));
    }
    if u32::from_be_bytes([header[2], header[3], header[4], header[5]]) as usize != body.len() {
        return wrong("its length does not match");
    }
    if u32::from_be_bytes([header[6], header[7], header[8], header[9]]) != crc32fast::hash(body) {
        return wrong("its checksum does not match");
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_an_envelope_is_refused() {
        let whole = encode(Kind::Value, &("room", 812_u64)).unwrap();
        assert_eq!(decode::<(String, u64)>(Kind::Value, &whole).unwrap(), ("room".to_owned(), 812));
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<(String, u64)>(Kind::Value, &damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_cut_or_longer_envelope_is_refused() {
        let whole = encode(Kind::Value, &7_u8).unwrap();
        assert!((0..whole.len()).all(|n| decode::<u8>(Kind::Value, &whole[..n]).is_err()));
        assert!(decode::<u8>(Kind::Value, &[&whole[..], &[0]].concat()).is_err());
        assert!(from_body::<u8>(&[7, 0]).is_err());
    }
}
