//! The request of a node that need not be a member, and its reply.

use bytes::Bytes;
use prost::Message as _;

use super::{
    membership::Issuer,
    token::{TokenId, TokenSecret},
};
use crate::{
    Chain, Effect, NodeId, SignedRevocations,
    proto::{self, join_reply, join_request},
};

/// The most bytes of a request or a reply.
pub const MAX_JOIN_BYTES: usize = 8 * 1024;

/// The bytes are no message of this kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the message cannot be read: it is damaged, or of a later version")]
#[non_exhaustive]
pub struct MalformedMessage;

/// The request of a node that need not be a member. The handshake has proved its key.
#[derive(Debug, Clone)]
pub enum JoinRequest {
    /// `macula.realm.join`: a token for the first grant.
    Join {
        /// Which token.
        token: TokenId,
        /// The token's secret.
        secret: TokenSecret,
    },
    /// `macula.realm.renew`: a grant for the next one.
    Renew(Chain),
    /// Orders about members, to any node.
    Revoke(SignedRevocations),
}

impl JoinRequest {
    /// The encoded form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let kind = match self {
            Self::Join { token, secret } => join_request::Kind::Join(proto::Join {
                token: token.to_wire(),
                secret: secret.to_wire(),
            }),
            Self::Renew(chain) => join_request::Kind::Renew(proto::Renew {
                chain: chain.as_bytes().clone(),
            }),
            Self::Revoke(orders) => join_request::Kind::Revoke(orders.clone().into()),
        };
        proto::JoinRequest { kind: Some(kind) }.encode_to_vec().into()
    }

    /// Reads the encoded form.
    ///
    /// # Errors
    /// When the bytes are no request.
    pub fn decode(bytes: Bytes) -> Result<Self, MalformedMessage> {
        let request = proto::JoinRequest::decode(bytes).map_err(|_| MalformedMessage)?;
        let read = || {
            Some(match request.kind? {
                join_request::Kind::Join(join) => Self::Join {
                    token: TokenId::from_slice(&join.token)?,
                    secret: TokenSecret::from_slice(&join.secret)?,
                },
                join_request::Kind::Renew(renew) => Self::Renew(Chain::from_bytes(renew.chain).ok()?),
                join_request::Kind::Revoke(orders) => Self::Revoke(orders.into()),
            })
        };
        read().ok_or(MalformedMessage)
    }
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinRefusal {
    /// The node issues no grants.
    #[error("the node issues no grants: ask an issuer of the realm")]
    NoIssuer,
    /// No token has this id and secret.
    #[error("the issuer does not know the token, which works only at the issuer that made it: ask for a new one")]
    UnknownToken,
    /// The token has been used as often as it may be.
    #[error("the token is used up: ask for a new one")]
    TokenUsedUp,
    /// The token has ended.
    #[error("the token has ended: ask for a new one")]
    TokenEnded,
    /// The grant is not one that an issuer signed for this node, or it ended too long ago.
    #[error(
        "the grant cannot be renewed: it is another node's, the realm's key signed it itself, or it ended too long ago"
    )]
    NotRenewable,
    /// The node was revoked.
    #[error("the node was revoked")]
    Revoked,
    /// The issuer may not give such a grant now.
    #[error("the issuer itself may not give such a grant, or its own grant has ended")]
    BeyondIssuer,
    /// The orders are not valid.
    #[error(
        "the revocation is not valid in this realm: see that the key is the realm's, and compare the clocks of both machines"
    )]
    BadOrders,
    /// Too many ask.
    #[error("too many nodes ask just now: try again")]
    Busy,
    /// A reason of a later version.
    #[error("for a reason that this version does not know")]
    Other,
}

impl JoinRefusal {
    fn to_wire(self) -> proto::JoinRefusal {
        match self {
            Self::Other => proto::JoinRefusal::Unspecified,
            Self::NoIssuer => proto::JoinRefusal::NoIssuer,
            Self::UnknownToken => proto::JoinRefusal::UnknownToken,
            Self::TokenUsedUp => proto::JoinRefusal::TokenUsedUp,
            Self::TokenEnded => proto::JoinRefusal::TokenEnded,
            Self::NotRenewable => proto::JoinRefusal::NotRenewable,
            Self::Revoked => proto::JoinRefusal::Revoked,
            Self::BeyondIssuer => proto::JoinRefusal::BeyondIssuer,
            Self::BadOrders => proto::JoinRefusal::BadOrders,
            Self::Busy => proto::JoinRefusal::Busy,
        }
    }

    fn from_wire(reason: i32) -> Self {
        match proto::JoinRefusal::try_from(reason) {
            Ok(proto::JoinRefusal::NoIssuer) => Self::NoIssuer,
            Ok(proto::JoinRefusal::UnknownToken) => Self::UnknownToken,
            Ok(proto::JoinRefusal::TokenUsedUp) => Self::TokenUsedUp,
            Ok(proto::JoinRefusal::TokenEnded) => Self::TokenEnded,
            Ok(proto::JoinRefusal::NotRenewable) => Self::NotRenewable,
            Ok(proto::JoinRefusal::Revoked) => Self::Revoked,
            Ok(proto::JoinRefusal::BeyondIssuer) => Self::BeyondIssuer,
            Ok(proto::JoinRefusal::BadOrders) => Self::BadOrders,
            Ok(proto::JoinRefusal::Busy) => Self::Busy,
            Ok(proto::JoinRefusal::Unspecified) | Err(_) => Self::Other,
        }
    }
}

/// The most members that [`Heeded::readmitted`] names.
pub const MAX_READMITTED: usize = 64;

/// The word of a node that took orders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heeded {
    /// The node has them on its disk, so that they outlive it.
    pub kept: bool,
    /// The proof that the node is a member, unchecked: the word of no other counts. `None` when it has no grant.
    pub chain: Option<Chain>,
    /// What comes of the orders there.
    pub effect: Effect,
    /// The members that come back because the orders revoke an issuer which had shut them out, [`MAX_READMITTED`] at most: see
    /// [`Revocations::readmitted_by`](crate::Revocations::readmitted_by).
    pub readmitted: Vec<NodeId>,
}

impl Heeded {
    fn to_wire(&self) -> proto::Heeded {
        let chain = self.chain.as_ref().map(|chain| chain.as_bytes().clone());
        let effect = match self.effect {
            Effect::Counts => proto::Effect::Counts,
            Effect::StillOut => proto::Effect::StillOut,
            Effect::Overruled => proto::Effect::Overruled,
            Effect::SignerRevoked => proto::Effect::SignerRevoked,
            Effect::Unknown => proto::Effect::Unspecified,
        };
        let readmitted = self.readmitted.iter().take(MAX_READMITTED);
        proto::Heeded {
            kept: self.kept,
            chain: chain.unwrap_or_default(),
            effect: effect.into(),
            readmitted: readmitted.map(|id| Bytes::copy_from_slice(id.as_bytes())).collect(),
        }
    }

    fn from_wire(heeded: proto::Heeded) -> Option<Self> {
        let readmitted = heeded.readmitted.iter().take(MAX_READMITTED);
        Some(Self {
            kept: heeded.kept,
            chain: match heeded.chain.is_empty() {
                true => None,
                false => Some(Chain::from_bytes(heeded.chain).ok()?),
            },
            effect: match proto::Effect::try_from(heeded.effect) {
                Ok(proto::Effect::Counts) => Effect::Counts,
                Ok(proto::Effect::StillOut) => Effect::StillOut,
                Ok(proto::Effect::Overruled) => Effect::Overruled,
                Ok(proto::Effect::SignerRevoked) => Effect::SignerRevoked,
                Ok(proto::Effect::Unspecified) | Err(_) => Effect::Unknown,
            },
            readmitted: readmitted.map(|id| NodeId::from_slice(id)).collect::<Option<_>>()?,
        })
    }
}

/// The reply to a [`JoinRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinReply {
    /// A grant.
    Admitted {
        /// Its proof, unchecked.
        chain: Chain,
        /// Nodes that renew it.
        issuers: Vec<Issuer>,
    },
    /// The orders were taken, or known already, and the node passes them on.
    Heeded(Heeded),
    /// The grant that was to be renewed is taken back, by these orders: unchecked.
    Revoked(SignedRevocations),
    /// None of these.
    Refused(JoinRefusal),
}

impl JoinReply {
    /// The encoded form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let kind = match self {
            Self::Admitted { chain, issuers } => join_reply::Kind::Admitted(proto::Admitted {
                chain: chain.as_bytes().clone(),
                issuers: Issuer::all_to_wire(issuers),
            }),
            Self::Heeded(heeded) => join_reply::Kind::Heeded(heeded.to_wire()),
            Self::Revoked(orders) => join_reply::Kind::Revoked(orders.clone().into()),
            Self::Refused(refusal) => join_reply::Kind::Refused(proto::Refused {
                reason: refusal.to_wire().into(),
            }),
        };
        proto::JoinReply { kind: Some(kind) }.encode_to_vec().into()
    }

    /// Reads the encoded form.
    ///
    /// # Errors
    /// When the bytes are no reply.
    pub fn decode(bytes: Bytes) -> Result<Self, MalformedMessage> {
        let reply = proto::JoinReply::decode(bytes).map_err(|_| MalformedMessage)?;
        let read = || {
            Some(match reply.kind? {
                join_reply::Kind::Admitted(admitted) => Self::Admitted {
                    chain: Chain::from_bytes(admitted.chain).ok()?,
                    issuers: Issuer::all_from_wire(admitted.issuers)?,
                },
                join_reply::Kind::Heeded(heeded) => Self::Heeded(Heeded::from_wire(heeded)?),
                join_reply::Kind::Revoked(orders) => Self::Revoked(orders.into()),
                join_reply::Kind::Refused(refused) => Self::Refused(JoinRefusal::from_wire(refused.reason)),
            })
        };
        read().ok_or(MalformedMessage)
    }
}
