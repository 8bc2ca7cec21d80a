//! Domain-separated SHA-256, the one hash of the protocol (FIPS 180-4).

use sha2::{Digest, Sha256};

/// Hashes `parts` one after another under `domain`.
///
/// Parts are not delimited: a caller that joins two parts of variable length puts a length between them.
pub(crate) fn sha256(domain: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(domain);
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}
