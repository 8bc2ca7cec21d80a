//! What an issuer keeps of tokens and members.

use bytes::Bytes;
use prost::Message as _;

use super::{
    message::MalformedMessage,
    token::{SecretHash, TokenId},
};
use crate::{Chain, Terms, proto};

/// A token as its issuer keeps it: without the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptToken {
    /// The hash of the secret.
    pub secret_hash: SecretHash,
    /// When it was made, in seconds since the Unix epoch. The rights that it gives count as given then, so an order that takes back a node's
    /// present rights takes back those of its earlier tokens too (A6).
    pub made_at: u64,
    /// When it ends, in seconds since the Unix epoch.
    pub not_after: u64,
    /// How many nodes it may still let in.
    pub uses_left: u32,
    /// What these nodes may do.
    pub terms: Terms,
}

impl KeptToken {
    /// The encoded form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let token = proto::KeptToken {
            secret_hash: self.secret_hash.to_wire(),
            made_at: self.made_at,
            not_after: self.not_after,
            uses_left: self.uses_left,
            terms: Some(self.terms.to_wire()),
        };
        token.encode_to_vec().into()
    }

    /// Reads the encoded form.
    ///
    /// # Errors
    /// When the bytes are no such token.
    pub fn decode(bytes: Bytes) -> Result<Self, MalformedMessage> {
        let token = proto::KeptToken::decode(bytes).map_err(|_| MalformedMessage)?;
        let read = || {
            Some(Self {
                secret_hash: SecretHash::from_slice(&token.secret_hash)?,
                made_at: token.made_at,
                not_after: token.not_after,
                uses_left: token.uses_left,
                terms: Terms::from_wire(token.terms?).ok()?,
            })
        };
        read().ok_or(MalformedMessage)
    }
}

/// A member as its issuer keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptMember {
    /// The token that let it in; `None` for a member that another issuer let in.
    pub token: Option<TokenId>,
    /// When this issuer saw it first, in seconds since the Unix epoch.
    pub since: u64,
    /// The proof of its last grant.
    pub chain: Chain,
}

impl KeptMember {
    /// The encoded form.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let member = proto::KeptMember {
            token: self.token.map(TokenId::to_wire).unwrap_or_default(),
            since: self.since,
            chain: self.chain.as_bytes().clone(),
        };
        member.encode_to_vec().into()
    }

    /// Reads the encoded form.
    ///
    /// # Errors
    /// When the bytes are no such member.
    pub fn decode(bytes: Bytes) -> Result<Self, MalformedMessage> {
        let member = proto::KeptMember::decode(bytes).map_err(|_| MalformedMessage)?;
        Ok(Self {
            token: TokenId::from_slice(&member.token),
            since: member.since,
            chain: Chain::from_bytes(member.chain).map_err(|_| MalformedMessage)?,
        })
    }
}
