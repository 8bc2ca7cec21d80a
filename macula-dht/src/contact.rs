//! A peer and how to reach it.
//!
//! A peer chooses the addresses it announces, and those it names for others. A node that dialed them all could be made to send
//! packets to any host, or to ask name servers for any name. So a stranger is dialed only at the address it was seen at
//! ([`Contact::as_seen`]), a peer on a public address names no private ones
//! ([`Contact::named_by`]), and host names are not passed on: peers
//! are told the address that was seen instead ([`Contact::as_told`]).

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use macula_wire::{Address, MAX_ENDPOINTS, NodeId, VerifiedProvider};

/// A node of the DHT and where it listens. One pointer: clones share the data, and tables hold hundreds.
#[derive(Clone, PartialEq, Eq)]
pub struct Contact(Arc<Inner>);

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    node_id: NodeId,
    endpoints: Box<[Address]>,
    observed: Option<IpAddr>,
    /// The subnet of the address. It is needed with every request, and an endpoint's host is text.
    subnet: Subnet,
    /// The bytes of all the endpoints' hosts: a contact's size in a message is asked for with every reply.
    host_bytes: usize,
    /// The narrowest scope of the endpoints.
    scope: Scope,
    /// The narrowest scope it may name: that of its address. A peer with an unknown address may name all.
    names: Scope,
}

/// How far an address means the same host, the widest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    /// Everywhere.
    Public,
    /// Within one site.
    Private,
    /// On one host.
    Loopback,
    /// It is a host name, which is not looked up for others, or no address of a host.
    None,
}

impl Scope {
    fn of(ip: IpAddr) -> Self {
        let ip = ip.to_canonical();
        let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
        if ip.is_unspecified() || ip.is_multicast() || is_broadcast {
            Self::None
        } else if ip.is_loopback() {
            Self::Loopback
        } else if Subnet::of(ip).is_limited() {
            Self::Public
        } else {
            Self::Private
        }
    }

    fn of_address(address: &Address) -> Self {
        address.ip().map_or(Self::None, Self::of)
    }
}

impl Contact {
    /// A contact that listens at `endpoints`, the preferred one first; endpoints beyond [`MAX_ENDPOINTS`] are left out.
    #[must_use]
    pub fn new(node_id: NodeId, endpoints: impl IntoIterator<Item = Address>) -> Self {
        let endpoints: Box<[_]> = endpoints.into_iter().take(MAX_ENDPOINTS).collect();
        let claimed = endpoints.first().and_then(Address::ip);
        let scopes = endpoints.iter().map(Scope::of_address);
        Self(Arc::new(Inner {
            scope: scopes.fold(Scope::Public, Scope::max),
            names: claimed.map_or(Scope::Loopback, Scope::of),
            node_id,
            observed: None,
            subnet: claimed.map_or(Subnet::UNKNOWN, Subnet::of),
            host_bytes: endpoints.iter().map(|endpoint| endpoint.host().len()).sum(),
            endpoints,
        }))
    }

    /// The same contact, seen at `ip`. Diversity limits go by that address, since a peer chooses its endpoints freely.
    #[must_use]
    pub fn observed_at(self, ip: IpAddr) -> Self {
        let ip = ip.to_canonical();
        if self.0.observed == Some(ip) {
            return self;
        }
        let inner = Arc::unwrap_or_clone(self.0);
        Self(Arc::new(Inner {
            observed: Some(ip),
            names: Scope::of(ip),
            subnet: Subnet::of(ip),
            ..inner
        }))
    }

    /// The same peer with the endpoints at the address it was seen at only; a host name is taken for that address. `None` when no
    /// endpoint is left. A contact whose address was not observed stays as it is.
    pub(crate) fn as_seen(&self) -> Option<Self> {
        let Some(seen) = self.0.observed else {
            return Some(self.clone());
        };
        let mut endpoints = Vec::new();
        for endpoint in self.endpoints() {
            let is_there = endpoint.ip().is_none_or(|ip| ip.to_canonical() == seen);
            let address = Address::try_from(SocketAddr::new(seen, endpoint.port()));
            if is_there
                && let Ok(address) = address
                && !endpoints.contains(&address)
            {
                endpoints.push(address);
            }
        }
        if endpoints == self.endpoints() {
            return Some(self.clone());
        }
        (!endpoints.is_empty()).then(|| Self::new(*self.node_id(), endpoints).observed_at(seen))
    }

    /// The same contact as others are told of it: with the address it was seen at in place of host names.
    pub(crate) fn as_told(&self) -> Self {
        let Some(seen) = self.0.observed.filter(|_| self.0.scope == Scope::None) else {
            return self.clone();
        };
        let mut endpoints = Vec::new();
        for endpoint in self.endpoints() {
            let at = Address::try_from(SocketAddr::new(endpoint.ip().unwrap_or(seen), endpoint.port()));
            if let Ok(at) = at
                && !endpoints.contains(&at)
            {
                endpoints.push(at);
            }
        }
        Self::new(*self.node_id(), endpoints).observed_at(seen)
    }

    /// The same contact without host names, and without the endpoints that `namer` cannot know: private ones from a peer on a public
    /// address, loopback ones from another host. `None` when no endpoint is left.
    pub(crate) fn named_by(self, namer: &Contact) -> Option<Self> {
        let narrowest = namer.0.names;
        if self.0.scope <= narrowest {
            return Some(self);
        }
        let fitting = self
            .endpoints()
            .iter()
            .filter(|endpoint| Scope::of_address(endpoint) <= narrowest);
        let fitting: Vec<_> = fitting.cloned().collect();
        (!fitting.is_empty()).then(|| Self::new(*self.node_id(), fitting))
    }

    /// Whether this peer may bring a record: a record that names a loopback address comes from a peer on the same host.
    ///
    /// A private address is another matter. Its node says that it listens there, and may be of this site although a public peer brings
    /// its record.
    pub(crate) fn may_bring(&self, record: &VerifiedProvider) -> bool {
        if self.0.names >= Scope::Loopback {
            return true;
        }
        let advertised = record.advertisement();
        let mut endpoints = advertised.iter().flat_map(|it| it.endpoints());
        !endpoints.any(|endpoint| Scope::of_address(endpoint) == Scope::Loopback)
    }

    /// The node.
    #[must_use]
    pub fn node_id(&self) -> &NodeId {
        &self.0.node_id
    }

    /// Where it listens, the preferred endpoint first.
    #[must_use]
    pub fn endpoints(&self) -> &[Address] {
        &self.0.endpoints
    }

    /// The address it was seen at, or else the one its first endpoint names.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        let claimed = || self.0.endpoints.first().and_then(Address::ip);
        self.0.observed.or_else(|| claimed().map(|ip| ip.to_canonical()))
    }

    pub(crate) fn subnet(&self) -> Subnet {
        self.0.subnet
    }

    /// The bytes of all the endpoints' hosts.
    pub(crate) fn host_bytes(&self) -> usize {
        self.0.host_bytes
    }
}

impl fmt::Debug for Contact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Contact({}", self.node_id().short())?;
        self.endpoints()
            .iter()
            .try_for_each(|endpoint| write!(f, " {endpoint}"))?;
        f.write_str(")")
    }
}

/// A node's role in the DHT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It looks up and publishes, but stores nothing for others and enters no table.
    Client,
    /// It stores records and answers lookups, too.
    Node,
}

/// The sender of a request, as its connection proved.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The peer; its endpoints as it announced them, its address as observed.
    pub contact: Contact,
    /// Its role in the DHT.
    pub role: Role,
}

/// Where to find a mesh to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seed {
    /// A node with a known id.
    Known(Contact),
    /// An address. The node there is asked for its id, and trusted on first use. A host name may stand for several addresses.
    At(Address),
}

impl From<Contact> for Seed {
    fn from(contact: Contact) -> Self {
        Self::Known(contact)
    }
}

impl From<Address> for Seed {
    fn from(endpoint: Address) -> Self {
        Self::At(endpoint)
    }
}

/// The neighbourhood of an address that one party can be expected to own whole: an IPv4 /24 or an IPv6 /48.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Subnet(u64);

impl Subnet {
    /// The subnet of peers with an unknown address.
    pub(crate) const UNKNOWN: Self = Self(0);
    const V4: u64 = 1 << 62;
    const V6: u64 = 2 << 62;
    /// Marks addresses of private networks, where one subnet is one site and not one party.
    const PRIVATE: u64 = 1 << 61;

    pub(crate) fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let [a, b, c, _] = ip.octets();
                let private = ip.is_private() || ip.is_loopback() || ip.is_link_local() || (a == 100 && b & 0xc0 == 64);
                let prefix = u64::from(a) << 16 | u64::from(b) << 8 | u64::from(c);
                Self(Self::V4 | prefix | if private { Self::PRIVATE } else { 0 })
            }
            IpAddr::V6(ip) => {
                let [a, b, c, ..] = ip.segments();
                let private = ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local();
                let prefix = u64::from(a) << 32 | u64::from(b) << 16 | u64::from(c);
                Self(Self::V6 | prefix | if private { Self::PRIVATE } else { 0 })
            }
        }
    }

    /// Whether diversity limits apply: only to public addresses, since a cluster in one private subnet is the usual case.
    pub(crate) fn is_limited(self) -> bool {
        self != Self::UNKNOWN && self.0 & Self::PRIVATE == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(ip: &str) -> Subnet {
        Subnet::of(ip.parse().unwrap())
    }

    #[test]
    fn subnets_are_24_and_48_bits_wide() {
        assert_eq!(subnet("203.0.113.1"), subnet("203.0.113.250"));
        assert_ne!(subnet("203.0.113.1"), subnet("203.0.112.1"));
        assert_eq!(subnet("2001:db8:1::1"), subnet("2001:db8:1:ffff::2"));
        assert_ne!(subnet("2001:db8:1::1"), subnet("2001:db8:2::1"));
        assert_eq!(subnet("::ffff:203.0.113.9"), subnet("203.0.113.1"));
    }

    #[test]
    fn private_and_unknown_addresses_are_not_limited() {
        for ip in [
            "127.0.0.1",
            "10.1.2.3",
            "192.168.1.1",
            "172.20.0.1",
            "169.254.0.1",
            "100.64.0.1",
            "::1",
            "fd00::1",
        ] {
            assert!(!subnet(ip).is_limited(), "{ip}");
        }
        assert!(!Subnet::UNKNOWN.is_limited());
        assert!(subnet("8.8.8.8").is_limited() && subnet("2001:db8::1").is_limited());
    }

    fn at(endpoints: &[&str]) -> Contact {
        Contact::new(
            NodeId::from_bytes([1; 32]),
            endpoints.iter().map(|e| e.parse().unwrap()),
        )
    }

    fn shown(contact: Option<Contact>) -> Vec<String> {
        let endpoints = contact.iter().flat_map(Contact::endpoints).map(Address::to_string);
        endpoints.map(|e| e.trim_start_matches("https://").to_owned()).collect()
    }

    #[test]
    fn x12_a_stranger_is_reached_only_where_it_was_seen() {
        let announced = at(&["198.51.100.7:53", "203.0.113.5:4433", "node1.example:4434"]);
        assert_eq!(
            announced.as_seen(),
            Some(announced.clone()),
            "the shell does not say where it was seen"
        );
        let seen = announced.observed_at([203, 0, 113, 5].into()).as_seen();
        assert_eq!(shown(seen), ["203.0.113.5:4433", "203.0.113.5:4434"]);
        let elsewhere = at(&["198.51.100.7:53"]).observed_at([203, 0, 113, 5].into());
        assert_eq!(elsewhere.as_seen(), None);
    }

    #[test]
    fn x12_a_peer_names_no_addresses_of_other_networks() {
        let named = || {
            at(&[
                "10.0.0.1:1",
                "127.0.0.1:2",
                "0.0.0.0:3",
                "203.0.113.5:4",
                "[fe80::1]:5",
                "node1.example:6",
            ])
        };
        let by = |ip: &str| shown(named().named_by(&at(&[]).observed_at(ip.parse().unwrap())));
        assert_eq!(by("198.51.100.1"), ["203.0.113.5:4"]);
        assert_eq!(by("10.0.0.9"), ["10.0.0.1:1", "203.0.113.5:4", "[fe80::1]:5"]);
        assert_eq!(by("127.0.0.1").len(), 4);
        assert_eq!(at(&["10.0.0.1:1"]).named_by(&at(&["198.51.100.1:1"])), None);
    }

    #[test]
    fn x12_others_are_told_addresses_and_no_host_names() {
        let seen = at(&["node1.example:4433", "203.0.113.5:4433", "10.0.0.1:1"]).observed_at([203, 0, 113, 5].into());
        let told = seen.as_told();
        assert_eq!(shown(Some(told.clone())), ["203.0.113.5:4433", "10.0.0.1:1"]);
        let namer = at(&[]).observed_at([10, 0, 0, 9].into());
        assert_eq!(told.clone().named_by(&namer), Some(told));
        assert_eq!(at(&["node1.example:4433"]).named_by(&namer), None);
    }

    #[test]
    fn an_observed_address_counts_before_a_claimed_one() {
        let claimed = Contact::new(NodeId::from_bytes([1; 32]), ["198.51.100.7:1".parse().unwrap()]);
        assert_eq!(claimed.ip(), Some("198.51.100.7".parse().unwrap()));
        assert_eq!(
            claimed.observed_at("203.0.113.5".parse().unwrap()).ip(),
            Some("203.0.113.5".parse().unwrap())
        );
    }
}
