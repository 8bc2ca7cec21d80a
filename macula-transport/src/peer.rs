//! The peer of a connection: its proven id, and its own word about itself.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

use macula_wire::{GrantRole, Holder, Member, Network, NodeId, ServiceName, proto};

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

    /// What a grant must allow for it.
    pub(crate) fn needs(self) -> GrantRole {
        match self {
            Self::Client => GrantRole::Client,
            Self::Node => GrantRole::Node,
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
/// The id is proved by the handshake and the member by its grant; the rest is what the peer says.
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
    /// The router that passed the caller's call on, which is the peer of the connection. All fields but the node id and the grant then
    /// describe the router. `None` when the caller itself is connected.
    pub router: Option<NodeId>,
    pub(crate) standing: Standing,
}

impl PeerInfo {
    /// The member whose call this peer passes on.
    pub(crate) fn passing_on_for(&self, caller: Member) -> Self {
        Self {
            node_id: *caller.node_id(),
            role: Role::Client,
            endpoints: Vec::new(),
            router: Some(self.node_id),
            standing: Standing::new(caller),
            ..self.clone()
        }
    }

    /// The labels of the peer's grant; none in an open realm.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.standing.with(|member| member.labels().clone())
    }

    /// The member of the realm that the peer is, by the grant that it showed last.
    #[must_use]
    pub fn member(&self) -> Member {
        self.standing.with(Member::clone)
    }

    /// Whether the peer's grant lets it call `service`: a look at what the connection knows (A8).
    #[must_use]
    pub fn may_call(&self, service: &ServiceName) -> bool {
        self.standing.with(|member| member.may_call(service))
    }

    /// Keeps the grant that the peer has renewed.
    pub(crate) fn renew(&self, member: Member) {
        match &self.standing {
            Standing::Open(_) => {}
            Standing::Closed(current) => *current.write().unwrap_or_else(PoisonError::into_inner) = member,
        }
    }
}

/// The member that a peer is; in a closed realm it changes when the peer's grant is renewed.
#[derive(Debug, Clone)]
pub(crate) enum Standing {
    Open(Member),
    Closed(Arc<RwLock<Member>>),
}

impl Standing {
    pub(crate) fn new(member: Member) -> Self {
        match member.chain() {
            None => Self::Open(member),
            Some(_) => Self::Closed(Arc::new(RwLock::new(member))),
        }
    }

    fn with<T>(&self, ask: impl FnOnce(&Member) -> T) -> T {
        match self {
            Self::Open(member) => ask(member),
            Self::Closed(current) => ask(&current.read().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

impl PartialEq for Standing {
    fn eq(&self, other: &Self) -> bool {
        self.with(Member::clone) == other.with(Member::clone)
    }
}

impl Eq for Standing {}

/// A peer that need not be a member of the realm, for the length of one request: see [`Endpoint::visit`](crate::Endpoint::visit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Visitor {
    /// The node, whose key the handshake has proved.
    pub node_id: NodeId,
    /// Where its packets come from.
    pub remote_addr: SocketAddr,
}

impl Visitor {
    /// A node whose key is proved, and where its packets come from.
    #[must_use]
    pub fn new(node_id: NodeId, remote_addr: SocketAddr) -> Self {
        Self { node_id, remote_addr }
    }
}

impl PeerInfo {
    /// Whose share it takes from.
    pub(crate) fn holder(&self) -> Holder<NodeId> {
        Holder::new(Network::of(self.remote_addr.ip()), self.node_id)
    }
}
