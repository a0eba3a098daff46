//! Pairs that were copied out of the state, for whoever makes sense of them where nobody waits for it.

/// Pairs below one prefix, in key order and without it, one behind the other in one buffer.
#[derive(Debug, Default)]
pub struct Rows {
    bytes: Vec<u8>,
    /// Where each key and each value ends.
    ends: Vec<(usize, usize)>,
}

impl Rows {
    pub fn push(&mut self, key: &[u8], value: &[u8]) {
        self.bytes.extend(key);
        let key_end = self.bytes.len();
        self.bytes.extend(value);
        self.ends.push((key_end, self.bytes.len()));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|(_, end)| *end));
        starts.zip(&self.ends).map(|(start, (key, value))| (&self.bytes[start..*key], &self.bytes[*key..*value]))
    }
}
