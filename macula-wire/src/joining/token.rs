//! A token: an invitation into a closed realm, with a secret, an end and a number of uses (A7).

use std::{fmt, str::FromStr};

use bytes::Bytes;
use prost::Message as _;
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize as _, Zeroizing};

use super::{
    line::{self, Kind, LineError},
    membership::Issuer,
};
use crate::{Realm, hash::sha256, proto};

/// Tells an issuer which of its tokens is meant. It is no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId([u8; Self::LEN]);

impl TokenId {
    /// Its length, in bytes.
    pub const LEN: usize = 8;

    /// The id with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The id in `bytes`, or `None` unless there are exactly [`TokenId::LEN`].
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(super) fn to_wire(self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::hex::write(&self.0, f)
    }
}

/// The text is not a token's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the id of a token is 16 hexadecimal digits")]
#[non_exhaustive]
pub struct ParseTokenIdError;

impl FromStr for TokenId {
    type Err = ParseTokenIdError;

    fn from_str(text: &str) -> Result<Self, ParseTokenIdError> {
        let is_plain = text.len() == 2 * Self::LEN && text.bytes().all(|b| b.is_ascii_hexdigit());
        let number = is_plain.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        number.map(|number| Self(number.to_be_bytes())).ok_or(ParseTokenIdError)
    }
}

/// The secret of a token, wiped when dropped and absent from `Debug`.
#[derive(Clone)]
pub struct TokenSecret([u8; Self::LEN]);

impl TokenSecret {
    /// Its length, in bytes: no one guesses it.
    pub const LEN: usize = 32;

    /// The secret with these bytes, which must come from a cryptographic source.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        Self(*bytes)
    }

    pub(super) fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(super) fn to_wire(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }

    /// What an issuer keeps of it. The secret is random, so a plain hash is as hard to undo as a slow one.
    #[must_use]
    pub fn hash(&self) -> SecretHash {
        SecretHash(sha256(b"macula/v1/token-secret\0", &[&self.0]))
    }
}

impl Drop for TokenSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret")
    }
}

/// The hash of a token's secret. Comparing two takes the same time wherever they differ.
#[derive(Debug, Clone, Copy)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    pub(super) fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(super) fn to_wire(self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }
}

impl PartialEq for SecretHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretHash {}

/// An invitation into a closed realm. Its text form is one line, `macula_token_…`, and a secret: a node that has it can join.
#[derive(Debug, Clone)]
pub struct JoinToken {
    /// The realm.
    pub realm: Realm,
    /// The issuer that made the token, which alone takes it.
    pub issuer: Issuer,
    /// Which of the issuer's tokens it is.
    pub id: TokenId,
    /// The proof that the issuer gave it.
    pub secret: TokenSecret,
    /// When it ends, in seconds since the Unix epoch.
    pub not_after: u64,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = proto::JoinToken {
            realm: self.realm.to_string(),
            issuer: Some(self.issuer.to_wire()),
            id: self.id.to_wire(),
            secret: self.secret.to_wire(),
            not_after: self.not_after,
        };
        f.write_str(&line::write(Kind::Token, &Zeroizing::new(token.encode_to_vec())))
    }
}

impl FromStr for JoinToken {
    type Err = LineError;

    fn from_str(text: &str) -> Result<Self, LineError> {
        let body = Zeroizing::new(line::read(Kind::Token, text)?);
        let read = || {
            let token = proto::JoinToken::decode(&**body).ok()?;
            Some(Self {
                realm: token.realm.parse().ok()?,
                issuer: Issuer::from_wire(token.issuer?)?,
                id: TokenId::from_slice(&token.id)?,
                secret: TokenSecret::from_slice(&token.secret)?,
                not_after: token.not_after,
            })
        };
        read().ok_or(LineError::not_understood(Kind::Token))
    }
}
