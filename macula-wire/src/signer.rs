//! The secret half of an identity.

use std::fmt;

use ed25519_dalek::{Signer as _, SigningKey};

use crate::NodeId;

/// Signs as a node: with a key in memory, or one held by an agent or a hardware module.
pub trait Signer {
    /// The node it signs as.
    fn node_id(&self) -> NodeId;

    /// The Ed25519 signature of `message` (RFC 8032).
    fn sign(&self, message: &[u8]) -> [u8; 64];
}

/// An Ed25519 secret key in memory, wiped when dropped and absent from `Debug`.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// The length of the secret, in bytes.
    pub const LEN: usize = 32;

    /// The key with this secret, which must come from a cryptographic source.
    #[must_use]
    pub fn from_bytes(secret: &[u8; Self::LEN]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }

    /// The secret itself, for storing it.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        self.0.as_bytes()
    }
}

impl Signer for SecretKey {
    fn node_id(&self) -> NodeId {
        NodeId::from_bytes(self.0.verifying_key().to_bytes())
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl<S: Signer + ?Sized> Signer for &S {
    fn node_id(&self) -> NodeId {
        (**self).node_id()
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        (**self).sign(message)
    }
}

impl<S: Signer + ?Sized> Signer for std::sync::Arc<S> {
    fn node_id(&self) -> NodeId {
        (**self).node_id()
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        (**self).sign(message)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.node_id().short())
    }
}
