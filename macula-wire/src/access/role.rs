//! What a member may be.

use std::fmt;

use crate::proto;

/// What a member may be in its realm. Each role includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GrantRole {
    /// It looks up, publishes and calls.
    Client,
    /// It stores records and answers lookups too.
    Node,
}

impl GrantRole {
    pub(super) fn to_wire(self) -> i32 {
        match self {
            Self::Client => proto::GrantRole::Client,
            Self::Node => proto::GrantRole::Node,
        }
        .into()
    }

    pub(super) fn from_wire(role: i32) -> Option<Self> {
        match proto::GrantRole::try_from(role) {
            Ok(proto::GrantRole::Client) => Some(Self::Client),
            Ok(proto::GrantRole::Node) => Some(Self::Node),
            Ok(proto::GrantRole::Unspecified) | Err(_) => None,
        }
    }
}

impl fmt::Display for GrantRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Node => "node",
        })
    }
}
