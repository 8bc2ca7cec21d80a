//! Who a peer is and how to reach it.

use std::{fmt, net::IpAddr, sync::Arc};

use macula_wire::{Address, MAX_ENDPOINTS, NodeId};

/// A node of the DHT and where it listens. One pointer: clones share what it points to, and tables hold hundreds.
#[derive(Clone, PartialEq, Eq)]
pub struct Contact(Arc<Inner>);

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    node_id: NodeId,
    endpoints: Box<[Address]>,
    observed: Option<IpAddr>,
    /// That of the address: it is asked for with every request, and an endpoint's host is text.
    subnet: Subnet,
    /// The bytes of all the endpoints' hosts: what a contact takes in a message is asked for with every reply.
    host_bytes: usize,
}

impl Contact {
    /// A contact that listens at `endpoints`, the preferred one first; what is beyond [`MAX_ENDPOINTS`] is left out.
    #[must_use]
    pub fn new(node_id: NodeId, endpoints: impl IntoIterator<Item = Address>) -> Self {
        let endpoints: Box<[_]> = endpoints.into_iter().take(MAX_ENDPOINTS).collect();
        let claimed = endpoints.first().and_then(Address::ip);
        Self(Arc::new(Inner {
            node_id,
            observed: None,
            subnet: claimed.map_or(Subnet::UNKNOWN, Subnet::of),
            host_bytes: endpoints.iter().map(|endpoint| endpoint.host().len()).sum(),
            endpoints,
        }))
    }

    /// The same contact, seen at `ip`: what diversity limits go by, since a peer chooses its endpoints freely.
    #[must_use]
    pub fn observed_at(self, ip: IpAddr) -> Self {
        let ip = ip.to_canonical();
        if self.0.observed == Some(ip) {
            return self;
        }
        let inner = Arc::unwrap_or_clone(self.0);
        Self(Arc::new(Inner {
            observed: Some(ip),
            subnet: Subnet::of(ip),
            ..inner
        }))
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

/// What a node does in the DHT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Looks up and publishes, but stores nothing for others and enters nobody's table.
    Client,
    /// Stores records and answers lookups too.
    Node,
}

/// Who sent a request, as its connection proved.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The peer; its endpoints as it announced them, its address as observed.
    pub contact: Contact,
    /// What it does in the DHT.
    pub role: Role,
}

/// Where to find a mesh to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seed {
    /// A node whose id is known.
    Known(Contact),
    /// An address whose node is to be asked for its id, trusted on first use. A host name may stand for several addresses.
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
    /// That of peers whose address is not known.
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
