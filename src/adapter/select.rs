//! Which sockets a handler means, and on which nodes they can be.

use moim_raft::NodeId;
use socketioxide::socket::Sid;
use socketioxide_core::{
    Uid,
    adapter::{BroadcastFlags, BroadcastOptions, Room},
};

use super::{PeerAdapter, wire::Selection};

/// On which nodes the sockets of a selection can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Here,
    On(NodeId),
    Everywhere,
}

/// A node as socketioxide names servers.
pub fn server(node: NodeId) -> Uid {
    format!("{node:016x}").parse().expect("16 digits are an id")
}

fn node(server: Uid) -> Option<NodeId> {
    NodeId::from_str_radix(&server.to_string(), 16).ok()
}

/// The one socket that is meant, if it is one: this handler's own, or a remote one by its public sid.
fn one(opts: &BroadcastOptions) -> Option<Sid> {
    (opts.rooms.is_empty() && !opts.has_flag(BroadcastFlags::Broadcast)).then_some(opts.sid).flatten()
}

impl PeerAdapter {
    pub(super) fn reach(&self, opts: &BroadcastOptions) -> Reach {
        if opts.has_flag(BroadcastFlags::Local) {
            return Reach::Here;
        }
        match (one(opts), opts.server_id) {
            // A handler's own socket.
            (Some(_), None) => Reach::Here,
            (Some(sid), Some(server)) => match self.names.socket(sid) {
                Some(_) => Reach::Here,
                // Its client may have moved since it was fetched.
                None => match self.hub.holder(sid).or(node(server)) {
                    Some(node) if node != self.hub.me() => Reach::On(node),
                    _ => Reach::Here,
                },
            },
            (None, _) => Reach::Everywhere,
        }
    }

    /// The selection as other nodes are told of it. Who broadcasts is not among their sockets, so his id is not in it.
    pub(super) fn select(&self, opts: &BroadcastOptions) -> Selection {
        let texts = |rooms: &[Room]| rooms.iter().map(|room| room.to_string()).collect();
        Selection {
            rooms: texts(&opts.rooms),
            except: texts(&opts.except),
            all: opts.has_flag(BroadcastFlags::Broadcast),
            one: one(opts).filter(|_| opts.server_id.is_some()).map(|sid| sid.to_string()),
        }
    }

    /// The selection as the local adapter takes it: the one socket that is meant, by its own id.
    pub(super) fn here(&self, mut opts: BroadcastOptions) -> BroadcastOptions {
        if let Some(sid) = one(&opts)
            && let Some(socket) = self.names.socket(sid)
        {
            opts.sid = Some(socket);
        }
        opts
    }
}

impl Selection {
    /// As the receiving node's local adapter takes it, but for the one socket, which is still named by its public sid.
    pub fn options(self) -> BroadcastOptions {
        let mut opts = BroadcastOptions::default();
        opts.rooms.extend(self.rooms.into_iter().map(Room::Owned));
        opts.except.extend(self.except.into_iter().map(Room::Owned));
        opts.sid = self.one.and_then(|sid| sid.parse().ok());
        if self.all {
            opts.add_flag(BroadcastFlags::Broadcast);
        }
        opts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_servers_and_back() {
        for id in [0, 1, 0x0123_4567_89ab_cdef, NodeId::MAX] {
            assert_eq!(node(server(id)), Some(id));
        }
        assert_eq!(node(Uid::new()), None, "an id of socketioxide's own is no node");
    }
}
