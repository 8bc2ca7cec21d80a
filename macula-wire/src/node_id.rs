//! The identity of a node: its Ed25519 public key (RFC 8032).

use std::{fmt, str::FromStr};

use crate::hex;

/// A node's identity: the 32 bytes of its Ed25519 public key, and its place in the DHT's key space.
///
/// Any 32 bytes are accepted; whether they are a point of the curve shows when a signature is verified. The text form is
/// 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; Self::LEN]);

/// The text is not a node id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a node id is 64 hexadecimal digits")]
#[non_exhaustive]
pub struct ParseNodeIdError;

impl NodeId {
    /// The length of a node id, in bytes.
    pub const LEN: usize = 32;

    /// The node id with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The node id in `bytes`, or `None` unless there are exactly [`NodeId::LEN`].
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes of the public key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The first ten digits of the text form: enough for a person to tell nodes apart, not to identify one.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(10);
        text
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::write(&self.0, f)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", self.short())
    }
}

impl FromStr for NodeId {
    type Err = ParseNodeIdError;

    fn from_str(text: &str) -> Result<Self, ParseNodeIdError> {
        hex::read(text).map(Self).ok_or(ParseNodeIdError)
    }
}
