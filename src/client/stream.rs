//! The bytes of one client connection, as hyper and tungstenite read and write them.
//!
//! What always holds:
//! * A write is taken whole or not at all; what the kernel does not take waits in a buffer, and while it does, writes
//!   are `Pending`. As tungstenite writes whole frames (its `write_out_buffer` hands over all that it has), every write on
//!   a WebSocket begins at the start of a frame. Replacing a frame and closing between two frames rest on that.
//! * While no replacement is armed, bytes go to the kernel without a copy.
//! * The descriptor is closed when the stream is dropped, whoever still holds a [`Connection`].
//!
//! For a hand-over the stream would get two more fields: a prelude, bytes that reads give before those of
//! the socket, and a swallow state, which drops what the client has heard from this process's predecessor.

use std::{
    io,
    net::Shutdown,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
};

use super::{
    connection::{Connection, Out, Phase},
    frame::replace,
    incoming::Incoming,
};

/// A client's TCP stream; see the module.
pub struct ClientStream {
    tcp: Arc<TcpStream>,
    connection: Connection,
    /// Once it is a WebSocket.
    incoming: Incoming,
    /// This connection's share of the listener's cap: given back when the descriptor is closed.
    _permit: Option<OwnedSemaphorePermit>,
}

impl ClientStream {
    /// Takes over an accepted stream and sets TCP_NODELAY: CONNECT's reply and the first event are two small writes, and
    /// without it the second waits 40 ms for the acknowledgement of the first.
    pub fn new(tcp: TcpStream, permit: Option<OwnedSemaphorePermit>) -> io::Result<Self> {
        tcp.set_nodelay(true)?;
        let peer = tcp.peer_addr()?;
        let tcp = Arc::new(tcp);
        let connection = Connection::new(&tcp, peer);
        Ok(Self { tcp, connection, incoming: Incoming::default(), _permit: permit })
    }

    /// A handle on this connection.
    pub fn connection(&self) -> Connection {
        self.connection.clone()
    }

    /// Gives as many of `bytes` to the kernel as it takes now, at least one.
    fn poll_kernel(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.tcp.poll_write_ready(cx))?;
            match self.tcp.try_write(bytes) {
                Ok(taken) => {
                    self.connection.wrote(taken);
                    return Poll::Ready(Ok(taken));
                }
                // The readiness was stale; asking again registers this task.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    fn poll_drain(&self, cx: &mut Context<'_>, out: &mut Out) -> Poll<io::Result<()>> {
        while !out.rest.is_empty() {
            let taken = ready!(self.poll_kernel(cx, &out.rest))?;
            out.rest.drain(..taken);
        }
        Poll::Ready(Ok(()))
    }

    /// `poll_write` under the lock.
    fn poll_accept(&self, cx: &mut Context<'_>, out: &mut Out, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if out.phase != Phase::Open || bytes.is_empty() {
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(self.poll_drain(cx, out))?;
        let carries = self.connection.carries().filter(|carries| carries.is_armed());
        let replaced = carries.and_then(|carries| replace(bytes, |payload| carries.replacement(payload)));
        match replaced {
            Some(replaced) => {
                out.rest = replaced;
                if let Poll::Ready(Err(e)) = self.poll_drain(cx, out) {
                    return Poll::Ready(Err(e));
                }
            }
            None => {
                let taken = ready!(self.poll_kernel(cx, bytes))?;
                out.rest.extend_from_slice(&bytes[taken..]);
            }
        }
        Poll::Ready(Ok(bytes.len()))
    }

    /// Throws away what comes until the peer closes.
    fn poll_discard(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut thrown = [0; 4096];
        loop {
            ready!(self.tcp.poll_read_ready(cx))?;
            match self.tcp.try_read(&mut thrown) {
                Ok(0) => return Poll::Ready(Ok(())),
                Ok(_) => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    fn poll_from_kernel(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.tcp.poll_read_ready(cx))?;
            // The phase may have changed while the task slept.
            match self.phase() {
                Phase::Open => {}
                Phase::Closing => return self.poll_discard(cx),
                Phase::Cut => return Poll::Ready(Ok(())),
            }
            match self.tcp.try_read_buf(buf) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    fn phase(&self) -> Phase {
        self.connection.lock().phase
    }

    /// The peer has said this. What it may not say is heard, and the last that is.
    fn heard(&mut self, bytes: &[u8]) {
        self.connection.heard();
        let Some(carries) = self.connection.carries() else { return };
        let mut goes_on = true;
        self.incoming.read(bytes, |head| goes_on &= carries.asked.hear(head));
        if !goes_on {
            self.connection.cut();
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = match self.phase() {
            Phase::Cut => Poll::Ready(Ok(())),
            Phase::Open | Phase::Closing => self.poll_from_kernel(cx, buf),
        };
        match &result {
            Poll::Pending => {}
            Poll::Ready(Ok(())) if buf.filled().len() > before => self.heard(&buf.filled()[before..]),
            Poll::Ready(Ok(())) if buf.remaining() == 0 => {}
            Poll::Ready(_) => self.connection.ended(),
        }
        result
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = self.poll_accept(cx, &mut self.connection.lock(), bytes);
        if let Poll::Ready(Err(_)) = &result {
            self.connection.ended();
        }
        result
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut out = self.connection.lock();
        match out.phase {
            Phase::Open => self.poll_drain(cx, &mut out),
            Phase::Closing | Phase::Cut => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_ref().get_ref().poll_drain(cx, &mut self.connection.lock()))?;
        match socket2::SockRef::from(&*self.tcp).shutdown(Shutdown::Write) {
            Err(e) if e.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(e)),
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        self.connection.cut();
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::client::{frame::text, outgoing::Outgoing};

    /// A WebSocket and what it carries.
    async fn websocket() -> (ClientStream, TcpStream, Arc<Outgoing>) {
        let (stream, client) = pair().await;
        let outgoing = Arc::new(Outgoing::default());
        stream.connection().upgraded(&outgoing);
        (stream, client, outgoing)
    }

    async fn pair() -> (ClientStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (ClientStream::new(listener.accept().await.unwrap().0, None).unwrap(), client)
    }

    #[tokio::test]
    async fn small_writes_are_not_held_back() {
        let (stream, _client) = pair().await;
        assert!(stream.tcp.nodelay().unwrap());
    }

    #[tokio::test]
    async fn a_frame_is_replaced_among_others_of_one_write() {
        let (mut stream, mut client, outgoing) = websocket().await;
        outgoing.arm(b"40{1}".to_vec(), b"40{22}".to_vec());
        let written = [text(b"0{}"), text(b"40{1}"), text(b"42[]")].concat();
        assert_eq!(stream.write(&written).await.unwrap(), written.len());
        stream.write_all(&text(b"40{1}")).await.unwrap();
        drop(stream);
        let mut seen = Vec::new();
        client.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, [text(b"0{}"), text(b"40{22}"), text(b"42[]"), text(b"40{1}")].concat(), "once");
    }

    #[tokio::test]
    async fn a_write_is_taken_whole_and_counted_as_the_kernel_takes_it() {
        let (mut stream, mut client, outgoing) = websocket().await;
        let many = vec![7; 8 << 20];
        outgoing.queued(many.len());
        assert_eq!(stream.write(&many).await.unwrap(), many.len());
        assert!(outgoing.queued_bytes() > 0, "more than the kernel's buffers hold");
        let (flushed, read) = tokio::join!(stream.flush(), async {
            let mut seen = vec![0; many.len()];
            client.read_exact(&mut seen).await.map(|_| seen)
        });
        flushed.unwrap();
        assert_eq!(read.unwrap(), many);
        assert_eq!((outgoing.queued_bytes(), outgoing.written()), (0, many.len() as u64));
    }

    #[tokio::test]
    async fn nothing_goes_out_after_a_cut() {
        let (mut stream, mut client) = pair().await;
        stream.write_all(b"before").await.unwrap();
        let connection = stream.connection();
        connection.cut();
        connection.cut();
        assert!(connection.is_closed());
        stream.write_all(b"after").await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        let mut seen = Vec::new();
        client.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, b"before");
    }

    #[tokio::test]
    async fn a_cut_wakes_a_reader_and_a_writer_that_wait() {
        let (stream, _client, outgoing) = websocket().await;
        let connection = stream.connection();
        let (mut reads, mut writes) = tokio::io::split(stream);
        let reader = tokio::spawn(async move { reads.read(&mut [0; 8]).await.unwrap() });
        let writer = tokio::spawn(async move {
            loop {
                writes.write_all(&[0; 1 << 16]).await.unwrap();
                if writes.flush().await.is_err() || connection.is_closed() {
                    return connection;
                }
                if outgoing.written() > 1 << 20 {
                    let cut = connection.clone();
                    tokio::spawn(async move { cut.cut() });
                }
            }
        });
        assert_eq!(reader.await.unwrap(), 0);
        writer.await.unwrap().closed().await;
    }

    #[tokio::test]
    async fn a_gentle_close_writes_what_was_accepted_and_then_1012() {
        let (mut stream, mut client, _) = websocket().await;
        let connection = stream.connection();
        let many = text(&[b'x'; 60_000]).repeat(100);
        assert_eq!(stream.write(&many).await.unwrap(), many.len());
        let closing = tokio::spawn(async move { connection.close_gently().await });
        let mut seen = vec![0; many.len() + 4];
        client.read_exact(&mut seen).await.unwrap();
        assert_eq!(seen[many.len()..], crate::client::frame::CLOSE_RESTART);
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0, "and the end");
        client.write_all(b"too late").await.unwrap();
        drop(client);
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0, "what came after is not heard");
        closing.await.unwrap();
    }

    #[tokio::test]
    async fn a_gentle_close_does_not_wait_for_a_peer_that_does_not_read() {
        let (mut stream, _client) = pair().await;
        let connection = stream.connection();
        stream.write_all(&vec![0; 8 << 20]).await.unwrap();
        connection.close_gently().await;
        assert!(connection.is_closed());
    }
}
