//! Frames: what travels on a peer connection after the handshake, and during it.
//!
//! A frame is one [`codec`] envelope of kind `Frame`. Its header carries the length, which is compared with the bound of
//! the place *before* anything is allocated, and a checksum, which is checked before anything is decoded. A reader that
//! meets anything else gives the connection up: after a wrong byte there is no telling where the next frame begins.

use std::io;

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::{
    codec::{self, BODY_BYTES_MAX, HEADER_BYTES, Kind},
    error::{Error, Result},
};

/// Bound of a frame between peers that have proved who they are.
pub const FRAME_BYTES_MAX: usize = BODY_BYTES_MAX;

/// One message of a multiplexed connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Chosen by who asks; the answer carries the same. 0 where no answer is awaited.
    pub id: u64,
    pub what: What,
}

/// Sent: only ever add variants at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    Request(Bytes),
    Reply(Bytes),
    /// The other side could not do it; true when trying again can help.
    Failed(bool, String),
    /// Nobody waits for an answer.
    OneWay(Bytes),
}

/// `value` as one frame.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    codec::encode(Kind::Frame, value)
}

/// The next frame, at most `max` bytes long; `None` when the other side has closed between two frames.
pub async fn read<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin), max: usize) -> Result<Option<T>> {
    let mut header = [0; HEADER_BYTES];
    match from.read_exact(&mut header[..1]).await {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(Error::unavailable(e)),
    }
    from.read_exact(&mut header[1..]).await.map_err(Error::unavailable)?;
    let len = u32::from_be_bytes([header[2], header[3], header[4], header[5]]) as usize;
    if header[0] != codec::FORMAT || header[1] != Kind::Frame as u8 {
        return Err(Error::refused("this is not a frame"));
    }
    if len > max {
        return Err(Error::refused(format!("a frame of {len} bytes is over the bound of {max}")));
    }
    let mut whole = vec![0; HEADER_BYTES + len];
    whole[..HEADER_BYTES].copy_from_slice(&header);
    from.read_exact(&mut whole[HEADER_BYTES..]).await.map_err(Error::unavailable)?;
    codec::decode(Kind::Frame, &whole).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_follow_each_other_until_a_clean_end() {
        let one = Frame { id: 7, what: What::Request(Bytes::from_static(b"hello")) };
        let two = Frame { id: 7, what: What::Failed(true, "later".to_owned()) };
        let bytes = [encode(&one).unwrap(), encode(&two).unwrap()].concat();
        let mut from = &bytes[..];
        assert_eq!(read(&mut from, FRAME_BYTES_MAX).await.unwrap(), Some(one));
        assert_eq!(read(&mut from, FRAME_BYTES_MAX).await.unwrap(), Some(two));
        assert_eq!(read::<Frame>(&mut from, FRAME_BYTES_MAX).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_cut_frame_is_an_error_at_every_byte() {
        let whole = encode(&Frame { id: 1, what: What::OneWay(Bytes::from_static(b"x")) }).unwrap();
        for n in 1..whole.len() {
            assert!(read::<Frame>(&mut &whole[..n], FRAME_BYTES_MAX).await.is_err(), "{n}");
        }
    }

    #[tokio::test]
    async fn a_declared_length_over_the_bound_is_refused_without_waiting_for_it() {
        let mut bytes = encode(&Frame { id: 1, what: What::OneWay(Bytes::new()) }).unwrap();
        bytes[2..6].fill(0xff);
        let Err(Error::Refused(why)) = read::<Frame>(&mut &bytes[..], FRAME_BYTES_MAX).await else { panic!() };
        assert!(why.contains("4294967295"), "{why}");
    }
}
