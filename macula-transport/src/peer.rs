//! The peer of a connection: its proven id, and its own word about itself.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

use macula_wire::{GrantRole, Holder, Member, Network, NodeId, ServiceName, proto};

use crate::heads::HeadLimits;

/// What a node does in the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Calls, looks up and publishes, but stores nothing for others.
    Client,
    /// Stores records and answers lookups too.
    Node,
}

impl Role {
    /// Its name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Node => "node",
        }
    }

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
    /// How much of a call or a reply may be no payload for it, in bytes.
    pub max_head_bytes: usize,
    /// How many entries of metadata it takes.
    pub max_metadata_entries: usize,
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
            standing: Standing::Fixed(caller),
            ..self.clone()
        }
    }

    pub(crate) fn heads(&self) -> HeadLimits {
        HeadLimits {
            bytes: self.max_head_bytes,
            entries: self.max_metadata_entries,
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
        self.standing.rights(service).call
    }

    /// Whether the peer's grant lets it provide `service`, as [`PeerInfo::may_call`].
    #[must_use]
    pub fn may_provide(&self, service: &ServiceName) -> bool {
        self.standing.rights(service).provide
    }

    /// Keeps the grant that the peer has renewed.
    pub(crate) fn renew(&self, member: Member) {
        match &self.standing {
            Standing::Fixed(_) => {}
            Standing::Renewable(remembered) => {
                *remembered.write().unwrap_or_else(PoisonError::into_inner) = Remembered::of(member);
            }
        }
    }
}

/// The most services whose rights a connection remembers. About others the grant itself is asked.
const MAX_REMEMBERED_SERVICES: usize = 64;

/// The member that a peer is.
#[derive(Debug, Clone)]
pub(crate) enum Standing {
    /// For as long as it is known: in an open realm, and of a caller behind a router.
    Fixed(Member),
    /// In a closed realm, until the peer renews its grant.
    Renewable(Arc<RwLock<Remembered>>),
}

/// The rights of a member to one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rights {
    call: bool,
    provide: bool,
}

impl Rights {
    fn of(member: &Member, service: &ServiceName) -> Self {
        Self {
            call: member.may_call(service),
            provide: member.may_provide(service),
        }
    }
}

/// A member, and its rights to the services that it was asked about.
#[derive(Debug)]
pub(crate) struct Remembered {
    member: Member,
    rights: BTreeMap<ServiceName, Rights>,
}

impl Remembered {
    fn of(member: Member) -> Self {
        Self {
            member,
            rights: BTreeMap::new(),
        }
    }

    fn rights(this: &RwLock<Self>, service: &ServiceName) -> Rights {
        let known = this
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .rights
            .get(service)
            .copied();
        if let Some(rights) = known {
            return rights;
        }
        let mut this = this.write().unwrap_or_else(PoisonError::into_inner);
        let rights = Rights::of(&this.member, service);
        if this.rights.len() < MAX_REMEMBERED_SERVICES {
            this.rights.insert(service.clone(), rights);
        }
        rights
    }
}

impl Standing {
    pub(crate) fn new(member: Member) -> Self {
        match member.chain() {
            None => Self::Fixed(member),
            Some(_) => Self::Renewable(Arc::new(RwLock::new(Remembered::of(member)))),
        }
    }

    fn rights(&self, service: &ServiceName) -> Rights {
        match self {
            Self::Fixed(member) => Rights::of(member, service),
            Self::Renewable(remembered) => Remembered::rights(remembered, service),
        }
    }

    fn with<T>(&self, ask: impl FnOnce(&Member) -> T) -> T {
        match self {
            Self::Fixed(member) => ask(member),
            Self::Renewable(remembered) => ask(&remembered.read().unwrap_or_else(PoisonError::into_inner).member),
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

#[cfg(test)]
mod tests {
    use macula_wire::{Grant, Patterns, RealmKey, RealmName, SecretKey, Signer as _};

    use super::*;

    /// A member that may call the services of this pattern, and provide none.
    fn member(call: &str) -> Member {
        let key = RealmKey::from_bytes(&[1; 32]);
        let realm = key.realm(RealmName::default());
        let node_id = SecretKey::from_bytes(&[2; 32]).node_id();
        let call = Patterns::from_iter([call.parse().unwrap()]);
        let grant = Grant::new(&realm, node_id, 1000..=2000).with_call(call).sign(&key);
        grant.unwrap().verify(&realm, 1000).unwrap()
    }

    #[test]
    fn a8_the_rights_to_a_bounded_number_of_services_are_remembered() {
        let remembered = RwLock::new(Remembered::of(member("shop.*")));
        for n in 0..2 * MAX_REMEMBERED_SERVICES {
            let (may, may_not) = (format!("shop.n{n}"), format!("mail.n{n}"));
            for _ in 0..2 {
                assert!(Remembered::rights(&remembered, &may.parse().unwrap()).call);
                assert!(!Remembered::rights(&remembered, &may_not.parse().unwrap()).call);
            }
            let known = remembered.read().unwrap().rights.len();
            assert_eq!(known, MAX_REMEMBERED_SERVICES.min(2 * n + 2));
        }
    }

    #[test]
    fn a8_a_renewed_grant_is_asked_anew() {
        let peer = PeerInfo {
            node_id: *member("shop.*").node_id(),
            role: Role::Client,
            endpoints: Vec::new(),
            remote_addr: ([127, 0, 0, 1], 1).into(),
            observed: None,
            agent: String::new(),
            max_message_bytes: 0,
            max_head_bytes: 0,
            max_metadata_entries: 0,
            max_concurrent_calls: 0,
            router: None,
            standing: Standing::new(member("shop.*")),
        };
        let cart: ServiceName = "shop.cart".parse().unwrap();
        assert!(peer.may_call(&cart) && !peer.may_provide(&cart));
        peer.renew(member("mail.*"));
        assert!(!peer.may_call(&cart));
    }
}
