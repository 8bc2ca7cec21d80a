//! The place of a service in the DHT, and the order of its providers.

use std::fmt;

use crate::{NodeId, Realm, ServiceName, hash::sha256, hex};

/// The place of a service in the DHT's key space: SHA-256 over realm and service, domain separated (D8).
///
/// Two realms never share a key, so a service of one is invisible in another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey([u8; Self::LEN]);

impl ServiceKey {
    /// The length of a key, in bytes.
    pub const LEN: usize = 32;

    /// The key of `service` in `realm`.
    #[must_use]
    pub fn new(realm: &Realm, service: &ServiceName) -> Self {
        // The realm's hash has a fixed length, so no two pairs of names join to the same bytes.
        Self(sha256(
            b"macula/v1/service\0",
            &[realm.hash().as_bytes(), service.as_str().as_bytes()],
        ))
    }

    /// The key with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The key in `bytes`, or `None` unless there are exactly [`ServiceKey::LEN`].
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes of the key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The place of a provider in this key's list: lists are sorted by it, ascending (D1).
    ///
    /// The same on every node, so `first` means one provider everywhere, and another one for each service.
    #[must_use]
    pub fn rank(&self, node: &NodeId) -> [u8; 32] {
        sha256(b"", &[&self.0, node.as_bytes()])
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::write(&self.0, f)
    }
}

impl fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceKey({:.10})", self.to_string())
    }
}
