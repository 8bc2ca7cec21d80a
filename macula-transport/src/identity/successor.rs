//! How a node takes a new key and stays known: a record in which the old key names the new one, and the new one agrees.
//!
//! **Invariant:** a [`Succession`] exists only where both signatures were made or checked in this process. The old key alone
//! could name a key that is not its owner's; the new one alone could claim another node's past.
//!
//! Left out: how the record travels, and whether an old key that was stolen may still name a successor. Its holder
//! may; keep it, or destroy it after the change.

use macula_wire::{NodeId, Signer};
use ring::signature::{ED25519, UnparsedPublicKey};

use super::Identity;

const DOMAIN: &[u8] = b"macula/v1/successor\0";

/// A node's key has a successor: both keys say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Succession {
    from: NodeId,
    to: NodeId,
    signatures: [[u8; 64]; 2],
}

/// The bytes are not a succession.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SuccessionError {
    /// There are more or fewer bytes than [`Succession::LEN`].
    #[error("a succession has {len} bytes, and this has {0}", len = Succession::LEN)]
    Length(usize),
    /// A key succeeds itself.
    #[error("the key names itself as its successor")]
    Same,
    /// The old key did not sign it.
    #[error("the old key did not name this successor")]
    OldKey,
    /// The new key did not sign it.
    #[error("the new key did not agree to succeed")]
    NewKey,
}

impl Succession {
    /// The length of a succession, in bytes.
    pub const LEN: usize = 2 * NodeId::LEN + 2 * 64;

    /// Names `new` as the successor of `old`.
    ///
    /// # Errors
    /// [`SuccessionError::Same`] when they are the same key.
    pub fn new(old: &Identity, new: &Identity) -> Result<Self, SuccessionError> {
        let (from, to) = (old.node_id(), new.node_id());
        if from == to {
            return Err(SuccessionError::Same);
        }
        let message = signed_bytes(&from, &to);
        Ok(Self {
            from,
            to,
            signatures: [old.sign(&message), new.sign(&message)],
        })
    }

    /// Reads and checks a succession.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn verify(bytes: &[u8]) -> Result<Self, SuccessionError> {
        let length = SuccessionError::Length(bytes.len());
        let (from, rest) = bytes.split_at_checked(NodeId::LEN).ok_or(length)?;
        let (to, rest) = rest.split_at_checked(NodeId::LEN).ok_or(length)?;
        let (old, new) = rest.split_at_checked(64).ok_or(length)?;
        let from = NodeId::from_slice(from).ok_or(length)?;
        let to = NodeId::from_slice(to).ok_or(length)?;
        let signatures = [old.try_into().map_err(|_| length)?, new.try_into().map_err(|_| length)?];
        if from == to {
            return Err(SuccessionError::Same);
        }
        let message = signed_bytes(&from, &to);
        let signed_by = |node: &NodeId, signature: &[u8]| {
            UnparsedPublicKey::new(&ED25519, node.as_bytes()).verify(&message, signature)
        };
        signed_by(&from, old).map_err(|_| SuccessionError::OldKey)?;
        signed_by(&to, new).map_err(|_| SuccessionError::NewKey)?;
        Ok(Self { from, to, signatures })
    }

    /// The succession as bytes, for others to [`verify`](Succession::verify).
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..32].copy_from_slice(self.from.as_bytes());
        bytes[32..64].copy_from_slice(self.to.as_bytes());
        bytes[64..128].copy_from_slice(&self.signatures[0]);
        bytes[128..].copy_from_slice(&self.signatures[1]);
        bytes
    }

    /// The old key.
    #[must_use]
    pub fn from(&self) -> NodeId {
        self.from
    }

    /// The new key.
    #[must_use]
    pub fn to(&self) -> NodeId {
        self.to
    }
}

fn signed_bytes(from: &NodeId, to: &NodeId) -> Vec<u8> {
    [DOMAIN, from.as_bytes(), to.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_keys_must_agree() {
        let (old, new, other) = (
            Identity::generate().unwrap(),
            Identity::generate().unwrap(),
            Identity::generate().unwrap(),
        );
        let succession = Succession::new(&old, &new).unwrap();
        assert_eq!((succession.from(), succession.to()), (old.node_id(), new.node_id()));
        let bytes = succession.to_bytes();
        assert_eq!(Succession::verify(&bytes), Ok(succession));
        for at in 0..bytes.len() {
            let mut forged = bytes;
            forged[at] ^= 1;
            assert!(Succession::verify(&forged).is_err(), "byte {at} is not signed");
        }
        let mut stolen = bytes;
        stolen[128..].copy_from_slice(&other.sign(&signed_bytes(&old.node_id(), &new.node_id())));
        assert_eq!(Succession::verify(&stolen), Err(SuccessionError::NewKey));
        assert_eq!(Succession::verify(&bytes[1..]), Err(SuccessionError::Length(191)));
        assert_eq!(Succession::new(&old, &old), Err(SuccessionError::Same));
    }
}
