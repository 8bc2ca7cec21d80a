//! A node's place in a closed realm, with all that it needs to keep it.

use std::{fmt, str::FromStr};

use bytes::Bytes;
use prost::Message as _;

use super::line::{self, Kind, LineError};
use crate::{Address, Chain, MAX_ENDPOINTS, NodeId, Realm, proto};

/// The most issuers that a node remembers.
pub const MAX_ISSUERS: usize = 8;

/// A node that issues grants, and where it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// Its node id.
    pub node_id: NodeId,
    /// Where it listens, at most [`MAX_ENDPOINTS`].
    pub endpoints: Vec<Address>,
}

impl Issuer {
    pub(super) fn to_wire(&self) -> proto::Issuer {
        proto::Issuer {
            node_id: Bytes::copy_from_slice(self.node_id.as_bytes()),
            endpoints: self
                .endpoints
                .iter()
                .take(MAX_ENDPOINTS)
                .map(ToString::to_string)
                .collect(),
        }
    }

    pub(super) fn from_wire(issuer: proto::Issuer) -> Option<Self> {
        let endpoints = issuer.endpoints.iter().take(MAX_ENDPOINTS);
        Some(Self {
            node_id: NodeId::from_slice(&issuer.node_id)?,
            endpoints: endpoints.map(|text| text.parse().ok()).collect::<Option<_>>()?,
        })
    }

    pub(super) fn all_to_wire(issuers: &[Self]) -> Vec<proto::Issuer> {
        issuers.iter().take(MAX_ISSUERS).map(Self::to_wire).collect()
    }

    pub(super) fn all_from_wire(issuers: Vec<proto::Issuer>) -> Option<Vec<Self>> {
        issuers.into_iter().take(MAX_ISSUERS).map(Self::from_wire).collect()
    }
}

/// A realm, a node's chain in it, and the issuers that renew the grant.
///
/// Its text form is one line, `macula_grant_…`, which is no secret: the grant is of use only with its node's key. The chain is
/// unchecked until [`Chain::verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The realm.
    pub realm: Realm,
    /// The proof of the node's rights.
    pub chain: Chain,
    /// Nodes that renew its grant, at most [`MAX_ISSUERS`].
    pub issuers: Vec<Issuer>,
}

impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let membership = proto::Membership {
            realm: self.realm.to_string(),
            chain: self.chain.as_bytes().clone(),
            issuers: Issuer::all_to_wire(&self.issuers),
        };
        f.write_str(&line::write(Kind::Grant, &membership.encode_to_vec()))
    }
}

impl FromStr for Membership {
    type Err = LineError;

    fn from_str(text: &str) -> Result<Self, LineError> {
        let body = line::read(Kind::Grant, text)?;
        let read = || {
            let membership = proto::Membership::decode(&*body).ok()?;
            Some(Self {
                realm: membership.realm.parse().ok()?,
                chain: Chain::from_bytes(membership.chain).ok()?,
                issuers: Issuer::all_from_wire(membership.issuers)?,
            })
        };
        read().ok_or(LineError::not_understood(Kind::Grant))
    }
}
