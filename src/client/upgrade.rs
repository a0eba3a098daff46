//! From long-polling to a WebSocket: the probe is ours, socketioxide gets the WebSocket once the client has chosen it.
//!
//! ```text
//! client  2probe ─▶   ◀─ 3probe   (its poll is let go, so that it can stop polling)   5 ─▶   from here on socketioxide
//! ```
//!
//! Why: socketioxide answers every poll with a noop from the moment in which a WebSocket is offered, and ends the session
//! when the offer comes to nothing. A client behind something that lets the upgrade pass and swallows its frames would
//! never hear a word. What always holds here: until the client says `5` its session polls on as if nothing had been, and
//! whatever happens to the WebSocket before that costs the WebSocket and nothing else.
//!
//! One thing costs the session its transport. Once the stock client has heard our answer it waits for its poll to end, and
//! when it loses the WebSocket while it waits it neither polls nor speaks again until its ping times out, 45 s later. So the
//! wait is kept short, and a poll that still waits when the WebSocket is lost ends with "session unknown": the client comes
//! back at once, and whole. One that had not heard our answer would have polled on; it comes back as well.

use std::{
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{sleep, timeout},
};

use super::{frame, transport::Transport};

/// From the offer to the choice; Socket.IO's own server waits as long.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The client's poll is let go while it is about to choose: again after this time, then after twice as long, ...
const LET_GO_FIRST: Duration = Duration::from_millis(1);
/// ... up to this, so that a client which never hears our answer does not poll in circles.
const LET_GO_MOST: Duration = Duration::from_millis(100);

const PING: &[u8] = b"2probe";
const PONG: &[u8] = b"3probe";
const CHOICE: &[u8] = b"5";

/// Waits for the client's choice. What comes back is the WebSocket as if nobody had read from it yet.
///
/// # Errors
/// When the client says something else, or nothing for too long, or goes.
pub(super) async fn probe<I>(mut io: I, transport: &Transport) -> io::Result<Chosen<I>>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let chosen = timeout(TIMEOUT, async {
        let ping = read(&mut io, PING).await?;
        io.write_all(&frame::text(PONG)).await?;
        io.flush().await?;
        let choice = async {
            let mut choice = pin!(read(&mut io, CHOICE));
            let mut pause = LET_GO_FIRST;
            loop {
                transport.release();
                tokio::select! {
                    choice = &mut choice => return choice,
                    () = sleep(pause) => pause = (pause * 2).min(LET_GO_MOST),
                }
            }
        };
        match choice.await {
            Ok(choice) => Ok([ping, choice].concat()),
            Err(e) => {
                // It may be waiting: see the module.
                if e.kind() != io::ErrorKind::InvalidData && transport.is_polled() {
                    transport.cut();
                }
                Err(e)
            }
        }
    });
    let heard = chosen.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    Ok(Chosen { io, heard: heard.into(), said: frame::text(PONG).len() })
}

/// The next frame, which has to be this one.
async fn read<I: AsyncRead + Unpin>(io: &mut I, payload: &[u8]) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; frame::masked_bytes(payload.len())];
    io.read_exact(&mut frame).await?;
    match frame::unmask(&frame).as_deref() {
        Some(said) if said == payload => Ok(frame),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// A WebSocket that somebody else has spoken on: what was heard is read again, what was said is not said twice.
pub struct Chosen<I> {
    io: I,
    heard: Bytes,
    /// Bytes that are still to be swallowed.
    said: usize,
}

impl<I: AsyncRead + Unpin> AsyncRead for Chosen<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.heard.has_remaining() {
            let length = self.heard.len().min(buf.remaining());
            buf.put_slice(&self.heard.split_to(length));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Chosen<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.said.min(bytes.len()) {
            0 => Pin::new(&mut self.io).poll_write(cx, bytes),
            swallowed => {
                self.said -= swallowed;
                Poll::Ready(Ok(swallowed))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
