//! The peer of a connection: its proven id, and its own word about itself.

use std::net::SocketAddr;

use macula_wire::{NodeId, proto};

/// What a node does in the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Calls, looks up and publishes, but stores nothing for others.
    Client,
    /// Stores records and answers lookups too.
    Node,
}

impl Role {
    pub(crate) fn to_wire(self) -> proto::Role {
        match self {
            Self::Client => proto::Role::Client,
            Self::Node => proto::Role::Node,
        }
    }

    /// A peer that says nothing, or something this version does not know, is not relied on as a node.
    pub(crate) fn from_wire(role: i32) -> Self {
        match proto::Role::try_from(role) {
            Ok(proto::Role::Node) => Self::Node,
            Ok(proto::Role::Client | proto::Role::Unspecified) | Err(_) => Self::Client,
        }
    }
}

/// The peer at the other end of a connection.
///
/// The id is proved by the handshake; the rest is what the peer says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerInfo {
    /// The peer's key.
    pub node_id: NodeId,
    /// What it does in the mesh.
    pub role: Role,
    /// Where it listens; empty for a client. At most [`macula_wire::MAX_ENDPOINTS`].
    pub endpoints: Vec<macula_wire::Address>,
    /// Where its packets come from.
    pub remote_addr: SocketAddr,
    /// Where it says that this node's packets come from.
    pub observed: Option<SocketAddr>,
    /// Its software and version, for a person.
    pub agent: String,
    /// The largest message it takes, in bytes.
    pub max_message_bytes: usize,
    /// How many calls it takes at a time on this connection.
    pub max_concurrent_calls: usize,
}
