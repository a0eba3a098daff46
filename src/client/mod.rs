//! Everything that a client connection *is*, below Socket.IO and without knowledge of the store.
//!
//! socketioxide speaks the protocol; what it has no hook for (whose id the client is told, who is closed and how, what
//! has really left this machine) is done on the byte stream under it, and the byte stream is ours.
//!
//! | file | one sentence |
//! |---|---|
//! | `listener` | accepts, bounds and tracks connections; answers probes and turns handshakes away |
//! | `ask`, `engine` | the request layer before socketioxide: what is asked, whose it is, who answers |
//! | `transport`, `transports` | one record per Engine.IO session, what everybody above holds of a client; all of them |
//! | `poll` | long-polling: how a poll waits and ends |
//! | `upgrade` | from long-polling to a WebSocket |
//! | `relay`, `tunnel` | requests for another node's sessions, passed on to it |
//! | `stream` | the bytes of one connection, as hyper and tungstenite read and write them |
//! | `connection` | a cheap handle on the same connection: facts about it, and the two things one can do to it |
//! | `outgoing` | what is on its way to one client, whichever connections carry it |
//! | `incoming`, `asked` | what a client says on its WebSocket of namespaces; which it has asked for |
//! | `frame`, `rewrite` | the same packets on a WebSocket and in a body, replaced where they must be |
//! | `tag` | the id of a session that polls, which names its node |
//! | `socketio` | socketioxide with every limit named, and the exact bytes of its CONNECT reply |
//! | `emit` | writing to one socket, once encoded, never after a gap |

mod ask;
mod asked;
pub mod connection;
pub mod emit;
pub mod engine;
pub mod frame;
mod incoming;
pub mod listener;
pub mod outgoing;
mod poll;
pub mod relay;
pub mod rewrite;
pub mod socketio;
pub mod stream;
pub mod tag;
pub mod transport;
pub mod transports;
mod tunnel;
mod upgrade;

pub use connection::Connection;
pub use emit::{Ack, Encoded, Lost, Outlet};
pub use listener::{Gate, Limits, serve};
pub use relay::Relay;
pub use stream::ClientStream;
pub use transport::Transport;
pub use transports::Transports;
