//! Everything that a client connection *is*, below Socket.IO and without knowledge of the store.
//!
//! socketioxide speaks the protocol; what it has no hook for (whose id the client is told, who is closed and how, what
//! has really left this machine) is done on the byte stream under it, and the byte stream is ours.
//!
//! | file | one sentence |
//! |---|---|
//! | `listener` | accepts, bounds and tracks connections; answers probes and turns handshakes away |
//! | `stream` | the bytes of one connection, as hyper and tungstenite read and write them |
//! | `connection` | a cheap handle on the same connection: facts about it, and the three things one can do to it |
//! | `frame` | the little of WebSocket framing that this needs |
//! | `engine` | the request layer before socketioxide: one record per Engine.IO session |
//! | `socketio` | socketioxide with every limit named, and the exact bytes of its CONNECT reply |
//! | `emit` | writing to one socket, once encoded, never after a gap |

pub mod connection;
pub mod emit;
pub mod engine;
pub mod frame;
pub mod listener;
pub mod socketio;
pub mod stream;

pub use connection::Connection;
pub use emit::{Ack, Encoded, Lost, Outlet};
pub use engine::Records;
pub use listener::{Gate, Limits, serve};
pub use stream::ClientStream;
