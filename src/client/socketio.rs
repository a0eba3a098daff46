//! socketioxide with every limit named, and the exact bytes of the CONNECT reply that is replaced on its way out.
//!
//! The replacement may go once socketioxide lets the server choose a socket's id and add to the CONNECT reply
//! (its issue 729).

use std::time::Duration;

use axum::Router;
use socketioxide::{ParserConfig, TransportType, service::SocketIoService, socket::Sid};

use super::{
    engine::Engine,
    relay::Relay,
    transport::{Opened, Transport},
    transports::Transports,
};
use crate::adapter::{Hub, PeerAdapter, SocketIo, SocketRef};

/// The path of the Socket.IO protocol, as stock clients have it.
pub const PATH: &str = "/socket.io";

/// Packets in socketioxide's queue of one connection. Set so that the bound in bytes (`emit`) is met first; past it the
/// socket is poisoned all the same.
pub const PACKETS: usize = 32_768;

/// What is read from a WebSocket at once, in bytes; each one holds a buffer of this size while it lives. Larger frames are
/// read in several steps.
const READ_BYTES: usize = 1024;

/// Binary attachments of one incoming packet. Past it the connection is closed.
pub const ATTACHMENTS: usize = 16;

/// What socketioxide is told to put into the answer to one poll: more than ever waits for a client. With a smaller bound it
/// sets a packet aside for the next poll, and forgets it when the client upgrades first. What clients may post is bounded
/// by [`Settings::max_payload`], in the request layer.
const POLL_BYTES: u64 = 1 << 30;

/// What differs between deployments; the rest is fixed here.
#[derive(Clone, Debug)]
pub struct Settings {
    pub ping_interval: Duration,
    pub ping_timeout: Duration,
    /// Largest message, frame, post and sum of attachments from a client, in bytes. Past it the transport is closed.
    pub max_payload: usize,
    /// From the transport's opening to the first successful CONNECT. Past it the transport is closed.
    pub connect_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(25),
            ping_timeout: Duration::from_secs(20),
            max_payload: 128 * 1024,
            connect_timeout: Duration::from_secs(10),
        }
    }
}

/// The client port's service: Engine.IO requests go to socketioxide, all others to `pages`.
pub fn service(
    settings: &Settings,
    transports: Transports,
    relay: Relay,
    pages: Router,
    hub: Hub,
) -> (Engine<SocketIoService<Router, PeerAdapter>>, SocketIo) {
    let parser = ParserConfig::common()
        .max_incoming_binary_buf_size(settings.max_payload)
        .max_incoming_binaries(ATTACHMENTS)
        .packet_completion_timeout(Duration::from_secs(10));
    let (service, io) = socketioxide::SocketIo::builder()
        .req_path(PATH)
        .transports([TransportType::Polling, TransportType::Websocket])
        .max_buffer_size(PACKETS)
        .max_payload(POLL_BYTES)
        .ws_max_message_size(settings.max_payload)
        .ws_max_frame_size(settings.max_payload)
        .ws_read_buffer_size(READ_BYTES)
        .ping_interval(settings.ping_interval)
        .ping_timeout(settings.ping_timeout)
        .connect_timeout(settings.connect_timeout)
        .with_parser(parser)
        .with_adapter::<PeerAdapter>(hub)
        .build_with_inner_svc(Router::new());
    (Engine::new(service, pages, transports, relay, settings.max_payload), io)
}

/// The transport of a socket; `None` if it did not come through the listener.
pub fn transport(socket: &SocketRef) -> Option<Transport> {
    socket.req_parts().extensions.get::<Opened>().map(|opened| opened.transport().clone())
}

/// The payload of the CONNECT reply that socketioxide writes for a socket (`Namespace::connect`, `ConnectPacket`).
pub fn reply(ns: &str, eio_sid: Sid) -> Vec<u8> {
    format!("40{}{{\"sid\":\"{eio_sid}\"}}", Prefix(ns)).into_bytes()
}

/// The payload of ours: a stock client takes `sid` as its id, and `pid` as the sign that it can recover.
/// Neither needs escaping in JSON: both are our own base-64 text.
pub fn our_reply(ns: &str, sid: &str, pid: &str) -> Vec<u8> {
    format!("40{}{{\"sid\":\"{sid}\",\"pid\":\"{pid}\"}}", Prefix(ns)).into_bytes()
}

/// The same for a client that switched recovery off: without a `pid` it does not try to recover.
pub fn our_plain_reply(ns: &str, sid: &str) -> Vec<u8> {
    format!("40{}{{\"sid\":\"{sid}\"}}", Prefix(ns)).into_bytes()
}

/// A namespace as it stands in a packet: nothing for `/`, else its name and a comma (Socket.IO protocol, packet encoding).
pub(super) struct Prefix<'a>(pub &'a str);

impl Prefix<'_> {
    pub fn len(&self) -> usize {
        if self.0 == "/" { 0 } else { self.0.len() + 1 }
    }
}

impl std::fmt::Display for Prefix<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            "/" => Ok(()),
            ns => write!(f, "{ns},"),
        }
    }
}
