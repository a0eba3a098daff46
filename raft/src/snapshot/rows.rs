//! Pairs as a part of a file holds them: in key order, each key without what it shares with the one before.

use bytes::Bytes;

use crate::error::{Error, Result};

/// Bytes of rows after which a part is closed.
pub const PART_BYTES: usize = 1 << 20;

/// Rows being written, one behind the other.
#[derive(Default)]
pub struct Rows {
    bytes: Vec<u8>,
    last: Vec<u8>,
}

impl Rows {
    pub fn push(&mut self, key: &[u8], value: &[u8]) {
        let shared = self.last.iter().zip(key).take_while(|(a, b)| a == b).count();
        for number in [shared, key.len() - shared] {
            put_number(&mut self.bytes, number);
        }
        self.bytes.extend_from_slice(&key[shared..]);
        put_number(&mut self.bytes, value.len());
        self.bytes.extend_from_slice(value);
        self.last.truncate(shared);
        self.last.extend_from_slice(&key[shared..]);
    }

    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The first key of a part is whole.
    pub fn take(&mut self) -> Bytes {
        self.last.clear();
        std::mem::replace(&mut self.bytes, Vec::with_capacity(PART_BYTES + (PART_BYTES >> 2))).into()
    }
}

/// Hands on the rows of one part; `None` says that they are not rows.
pub fn read_rows(
    mut rows: &[u8],
    mut each: impl FnMut(&[u8], &[u8]) -> Result<()>,
) -> std::result::Result<(), Option<Error>> {
    let mut key = Vec::new();
    while !rows.is_empty() {
        let shared = take_number(&mut rows).filter(|shared| *shared <= key.len()).ok_or(None)?;
        key.truncate(shared);
        key.extend_from_slice(take_bytes(&mut rows).ok_or(None)?);
        each(&key, take_bytes(&mut rows).ok_or(None)?).map_err(Some)?;
    }
    Ok(())
}

/// Seven bits a byte, the lowest first.
fn put_number(to: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn take_number(from: &mut &[u8]) -> Option<usize> {
    let mut number = 0;
    for shift in (0..28).step_by(7) {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        number |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn take_bytes<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take_number(from)?;
    let (bytes, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bytes_of_a_part_make_its_reader_panic() {
        let mut rows = Rows::default();
        for n in 0..20_u32 {
            rows.push(&[&b"a prefix that all of them share "[..], &n.to_be_bytes()].concat(), &vec![7; n as usize]);
        }
        let whole = rows.take();
        for bit in 0..whole.len().min(400) * 8 {
            let mut damaged = whole.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            _ = read_rows(&damaged, |_, _| Ok(()));
        }
        assert!((1..whole.len()).filter(|n| read_rows(&whole[..*n], |_, _| Ok(())).is_ok()).count() < 20);
    }
}
