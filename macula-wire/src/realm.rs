//! Realms, open and closed, and the key that closes one (A1).
//!
//! An open realm is its name: every node that knows the name may do everything in it. A closed realm is its name with the public half
//! of its realm key, and its members hold grants that lead back to that key. The two never meet, because the key is part of the hash
//! that stands for the realm in every key, signature and introduction.

use std::{fmt, str::FromStr, sync::Arc};

use ed25519_dalek::{Signature, VerifyingKey};

use crate::{NameError, RealmName, SecretKey, Signer as _, hash::sha256, hex};

/// A realm: a mesh of its own, whose services no node outside it sees.
///
/// Its text form is its name, `shop`, and for a closed realm its name and key, `shop@` and 64 hexadecimal digits. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Realm(Arc<Parts>);

#[derive(PartialEq, Eq, Hash)]
struct Parts {
    name: RealmName,
    key: Option<RealmPublicKey>,
    hash: RealmHash,
}

/// The text is not a realm.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseRealmError {
    /// The part before the `@` is not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The part after the `@` is not a key.
    #[error("the key of a closed realm is 64 hexadecimal digits after the @: copy all of them")]
    Key,
}

impl Realm {
    /// The open realm of this name.
    ///
    /// # Errors
    /// The reason it is not a valid name.
    pub fn new(name: &str) -> Result<Self, NameError> {
        RealmName::new(name).map(Self::open)
    }

    /// The open realm of this name.
    #[must_use]
    pub fn open(name: RealmName) -> Self {
        Self::of(name, None)
    }

    /// The closed realm of this name and key.
    #[must_use]
    pub fn closed(name: RealmName, key: RealmPublicKey) -> Self {
        Self::of(name, Some(key))
    }

    fn of(name: RealmName, key: Option<RealmPublicKey>) -> Self {
        const DOMAIN: &[u8] = b"macula/v1/realm\0";
        // A name holds no zero byte, so no name is read as another name and a key.
        let bytes = match &key {
            None => sha256(DOMAIN, &[name.as_str().as_bytes()]),
            Some(key) => sha256(DOMAIN, &[name.as_str().as_bytes(), b"\0", key.as_bytes()]),
        };
        let hash = RealmHash {
            bytes,
            is_closed: key.is_some(),
        };
        Self(Arc::new(Parts { name, key, hash }))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &RealmName {
        &self.0.name
    }

    /// The key that closes it; `None` for an open realm.
    #[must_use]
    pub fn key(&self) -> Option<&RealmPublicKey> {
        self.0.key.as_ref()
    }

    /// Whether its members need grants.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.key.is_some()
    }

    /// SHA-256 of its name and key, under a domain of its own.
    #[must_use]
    pub fn hash(&self) -> RealmHash {
        self.0.hash
    }
}

impl Default for Realm {
    /// The open realm that is used when none is chosen: `default`.
    fn default() -> Self {
        Self::open(RealmName::default())
    }
}

impl fmt::Display for Realm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.key {
            None => self.0.name.fmt(f),
            Some(key) => write!(f, "{}@{key}", self.0.name),
        }
    }
}

impl fmt::Debug for Realm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Realm({self})")
    }
}

impl FromStr for Realm {
    type Err = ParseRealmError;

    fn from_str(text: &str) -> Result<Self, ParseRealmError> {
        match text.split_once('@') {
            None => Ok(Self::new(text)?),
            Some((name, key)) => {
                let name = RealmName::new(name)?;
                let key = hex::read(key).ok_or(ParseRealmError::Key)?;
                Ok(Self::closed(name, RealmPublicKey::from_bytes(key)))
            }
        }
    }
}

/// The hash of a realm, which travels in its place. It knows whether the realm is closed, so that no record of a closed realm is taken
/// for one of an open realm, which needs no proof.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RealmHash {
    bytes: [u8; 32],
    is_closed: bool,
}

impl RealmHash {
    /// The bytes of the hash.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    pub(crate) const fn is_closed(&self) -> bool {
        self.is_closed
    }
}

/// The public half of a realm's key: every grant of the realm leads back to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RealmPublicKey([u8; 32]);

impl RealmPublicKey {
    /// The key with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes of the key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for RealmPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::write(&self.0, f)
    }
}

impl fmt::Debug for RealmPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RealmPublicKey({self})")
    }
}

/// The Ed25519 secret key of a closed realm, wiped when dropped and absent from `Debug`.
///
/// Its holder decides which nodes belong to the realm, so it stays off the nodes: it signs the grants of issuers, which sign the rest.
#[derive(Clone)]
pub struct RealmKey(SecretKey);

impl RealmKey {
    /// The length of the secret, in bytes.
    pub const LEN: usize = SecretKey::LEN;

    /// The key with this secret, which must come from a cryptographic source.
    #[must_use]
    pub fn from_bytes(secret: &[u8; Self::LEN]) -> Self {
        Self(SecretKey::from_bytes(secret))
    }

    /// The secret itself, for storing it.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        self.0.as_bytes()
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> RealmPublicKey {
        RealmPublicKey(*self.0.node_id().as_bytes())
    }

    /// The realm of this name that the key closes.
    #[must_use]
    pub fn realm(&self, name: RealmName) -> Realm {
        Realm::closed(name, self.public())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message)
    }
}

impl fmt::Debug for RealmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RealmKey(of {})", self.public())
    }
}

/// Whether `signature` is the one that the holder of `key` made of `message`, by the strict rules: keys and signatures that verify only
/// under lenient ones are refused (Chalkias et al., *Taming the many EdDSAs*).
pub(crate) fn is_signed(key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    match (VerifyingKey::from_bytes(key), Signature::from_slice(signature)) {
        (Ok(key), Ok(signature)) => key.verify_strict(message, &signature).is_ok(),
        _ => false,
    }
}
