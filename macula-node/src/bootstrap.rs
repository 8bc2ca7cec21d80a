//! The address of a node that is in the mesh already.

use std::{fmt, str::FromStr};

use macula_wire::{Address, AddressError, NodeId, ParseNodeIdError};

/// The most bootstrap addresses a node is given.
pub const MAX_BOOTSTRAP: usize = 64;

/// Where to get into the mesh: `host:port`, or `NODEID@host:port` to accept that node only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BootstrapAddr {
    /// The node that must answer there. Without it, the node that answers is trusted on first use.
    pub node_id: Option<NodeId>,
    /// Where the node listens.
    pub endpoint: Address,
}

/// The text is not a bootstrap address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseBootstrapError {
    /// The part before the `@` is not a node id.
    #[error("before the @: {0}")]
    NodeId(#[from] ParseNodeIdError),
    /// The rest is not an endpoint.
    #[error(transparent)]
    Address(#[from] AddressError),
}

impl FromStr for BootstrapAddr {
    type Err = ParseBootstrapError;

    fn from_str(text: &str) -> Result<Self, ParseBootstrapError> {
        let (node_id, endpoint) = match text.split_once('@') {
            Some((id, endpoint)) => (Some(id.parse()?), endpoint),
            None => (None, text),
        };
        Ok(Self {
            node_id,
            endpoint: endpoint.parse()?,
        })
    }
}

impl From<Address> for BootstrapAddr {
    fn from(endpoint: Address) -> Self {
        Self {
            node_id: None,
            endpoint,
        }
    }
}

impl fmt::Display for BootstrapAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(id) = &self.node_id {
            write!(f, "{id}@")?;
        }
        let address = self.endpoint.to_string();
        f.write_str(address.strip_prefix("https://").unwrap_or(&address))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn addresses_round_trip(id in prop::option::of(any::<[u8; 32]>()), host in "[a-z][a-z0-9]{0,9}", port in 1..=u16::MAX) {
            let endpoint = format!("{host}:{port}").parse().unwrap();
            let address = BootstrapAddr { node_id: id.map(NodeId::from_bytes), endpoint };
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }

        #[test]
        fn arbitrary_text_is_taken_or_refused(text in "\\PC{0,80}") {
            let _ = text.parse::<BootstrapAddr>();
        }
    }

    #[test]
    fn an_address_is_read_with_and_without_an_id() {
        let id = NodeId::from_bytes([0xab; 32]);
        let plain: BootstrapAddr = "node1:9443".parse().unwrap();
        assert_eq!((plain.node_id, plain.to_string().as_str()), (None, "node1:9443"));
        let pinned: BootstrapAddr = format!("{id}@[::1]:9443").parse().unwrap();
        assert_eq!(pinned.node_id, Some(id));
        assert_eq!(pinned.to_string().parse(), Ok(pinned));
    }

    #[test]
    fn what_is_wrong_with_an_address_is_said() {
        let error = |text: &str| text.parse::<BootstrapAddr>().unwrap_err();
        assert!(matches!(error("xyz@node1:9443"), ParseBootstrapError::NodeId(_)));
        assert!(matches!(
            error("node1"),
            ParseBootstrapError::Address(AddressError::NoPort)
        ));
    }
}
