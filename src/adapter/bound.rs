//! What waits for a socket is bounded in bytes, broadcasts too: past the bound its transport is cut, and its client
//! recovers. What a handler emits to one socket itself (`socket.emit`) does not come by here; socketioxide's own bound on
//! packets holds for it.

use prometheus::IntCounter;
use socketioxide_core::{
    Value,
    packet::{Packet, PacketData},
};

use crate::client::{Transport, emit::packet_bytes, frame::frame_bytes};

/// Of one transport.
pub struct Bound {
    /// Bytes that may wait for it.
    pub queue_bytes_max: usize,
    /// Counts those that were cut.
    pub slow: IntCounter,
}

impl Bound {
    /// Counts a packet that is about to be queued for these, and cuts those for which it is one too many.
    pub fn count(&self, packet: &Packet, transports: &[Transport]) {
        let bytes = bytes(packet);
        for transport in transports.iter().filter(|transport| !transport.is_closed()) {
            let queued = transport.queued_bytes();
            // An empty queue takes a packet of any size: else one above the bound could never be sent.
            if queued > 0 && queued + bytes > self.queue_bytes_max {
                self.slow.inc();
                transport.cut();
            } else {
                transport.queued(bytes);
            }
        }
    }
}

/// What an event takes on a WebSocket.
fn bytes(packet: &Packet) -> usize {
    match &packet.inner {
        PacketData::Event(Value::Str(json, attachments), _)
        | PacketData::BinaryEvent(Value::Str(json, attachments), _) => {
            let attached = attachments.iter().flatten();
            let count = attached.clone().count();
            // `51-` in the place of `42`.
            let digits = if count == 0 { 0 } else { 1 + count.to_string().len() };
            packet_bytes(&packet.ns, digits, json.len()) + attached.map(|one| frame_bytes(one.len())).sum::<usize>()
        }
        _ => 0,
    }
}
