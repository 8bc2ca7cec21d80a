//! The proof of a member's rights: its signed grant, and its issuer's.

use std::fmt;

use bytes::Bytes;
use prost::Message as _;

use super::{
    error::AccessError,
    grant::Grant,
    limits::MAX_CHAIN_BYTES,
    member::{Granted, Member},
};
use crate::{Realm, RealmKey, Signer, hash::sha256, hex, proto, realm::is_signed};

/// Which key signs is part of what is signed, so that no signature of one kind is taken for another.
const SIGNED_BY_REALM: &[u8] = b"macula/v1/grant-by-realm\0";
const SIGNED_BY_ISSUER: &[u8] = b"macula/v1/grant-by-issuer\0";

/// The encoded proof of a member's rights, checked only by [`Chain::verify`]: a grant that the realm's key signed, or a grant and
/// the grant of the issuer that signed it. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Chain(Bytes);

/// The hash of a chain, which stands for it where it is known already.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainHash([u8; 32]);

impl ChainHash {
    /// The hash in `bytes`, or `None` unless there are exactly 32.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes of the hash.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChainHash(")?;
        hex::write(&self.0[..5], f)?;
        f.write_str(")")
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain({} bytes, {:?})", self.0.len(), self.hash())
    }
}

impl Grant {
    /// Signs the grant as the realm.
    ///
    /// # Errors
    /// When the grant is larger than [`MAX_CHAIN_BYTES`], its dates or labels are not valid, or it is not of the key's realm.
    pub fn sign(&self, key: &RealmKey) -> Result<Chain, AccessError> {
        self.check()?;
        let body = Bytes::from(self.to_wire().encode_to_vec());
        let signature = key.sign(&signed_bytes(SIGNED_BY_REALM, &body));
        Chain::of(proto::Chain {
            grant: Some(signed(body, signature)),
            issuer: None,
        })
    }

    /// Signs the grant as the issuer whose own verified grant is `issuer`.
    ///
    /// # Errors
    /// When the issuer may not issue it, or its dates, labels or size are not valid.
    pub fn issue(&self, issuer: &Member, signer: &(impl Signer + ?Sized)) -> Result<Chain, AccessError> {
        let granted = issuer.granted_by_realm().ok_or(AccessError::NotAnIssuer)?;
        if signer.node_id() != granted.grant.node_id {
            return Err(AccessError::OtherNode(granted.grant.node_id));
        }
        if self.realm != granted.grant.realm {
            return Err(AccessError::OtherRealm);
        }
        self.check()?;
        self.check_within(&granted.grant)?;
        let body = Bytes::from(self.to_wire().encode_to_vec());
        let signature = signer.sign(&signed_bytes(SIGNED_BY_ISSUER, &body));
        let own = proto::Chain::decode(granted.chain.0.clone()).map_err(|_| AccessError::Malformed)?;
        Chain::of(proto::Chain {
            grant: Some(signed(body, signature)),
            issuer: own.grant,
        })
    }
}

impl Chain {
    fn of(chain: proto::Chain) -> Result<Self, AccessError> {
        Self::from_bytes(chain.encode_to_vec().into())
    }

    /// The chain in these bytes, unchecked but for its size.
    ///
    /// # Errors
    /// When there are more than [`MAX_CHAIN_BYTES`].
    pub fn from_bytes(bytes: Bytes) -> Result<Self, AccessError> {
        if bytes.len() > MAX_CHAIN_BYTES {
            return Err(AccessError::TooLarge(bytes.len()));
        }
        // A copy of its own: a slice would keep the whole message it came in alive.
        Ok(Self(Bytes::copy_from_slice(&bytes)))
    }

    /// The encoded chain.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// What it is known by.
    #[must_use]
    pub fn hash(&self) -> ChainHash {
        ChainHash(sha256(b"macula/v1/chain\0", &[&self.0]))
    }

    /// Checks everything about the chain but revocations: form, signatures up to the realm's key, that no link allows more than the
    /// one above it, and that it is valid at `now`, in seconds since the Unix epoch.
    ///
    /// The signatures, which cost far more than the rest, are checked last.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn verify(&self, realm: &Realm, now: u64) -> Result<Member, AccessError> {
        self.verify_at(realm, Some(now))
    }

    /// As [`Chain::verify`], for a grant that may have ended at most `late` seconds ago: an issuer that was away renews it still.
    ///
    /// # Errors
    /// As [`Chain::verify`].
    pub fn verify_late(&self, realm: &Realm, now: u64, late: u64) -> Result<Member, AccessError> {
        let member = self.verify_at(realm, None)?;
        match member.check_at(now) {
            Err(AccessError::Ended(ago)) if ago <= late => Ok(member),
            checked => checked.map(|()| member),
        }
    }

    /// As [`Chain::verify`], at any time unless it is given.
    pub(super) fn verify_at(&self, realm: &Realm, now: Option<u64>) -> Result<Member, AccessError> {
        let Some(realm_key) = realm.key() else {
            return Err(AccessError::OtherRealm);
        };
        let chain = proto::Chain::decode(self.0.clone()).map_err(|_| AccessError::Malformed)?;
        // Bytes that mean nothing would give one chain many hashes.
        if chain.encode_to_vec() != self.0 {
            return Err(AccessError::Malformed);
        }
        let signed = chain.grant.ok_or(AccessError::Malformed)?;
        let read = |signed: &proto::SignedGrant| {
            let body = proto::Grant::decode(signed.body.clone()).map_err(|_| AccessError::Malformed)?;
            let grant = Grant::from_wire(body, &realm.hash())?;
            grant.check().map(|()| grant)
        };
        let grant = read(&signed)?;
        let issuer = chain.issuer.as_ref().map(read).transpose()?;
        if let Some(issuer) = &issuer {
            grant.check_within(issuer)?;
        }
        let member = Member::granted(Granted {
            grant,
            issuer,
            chain: self.clone(),
            hash: self.hash(),
        });
        // An issuer's grant lasts at least as long as those it signs.
        now.map_or(Ok(()), |now| member.check_at(now))?;
        let is_right = match (member.issuer(), &chain.issuer) {
            (Some(issuer), Some(by_realm)) => {
                is_right(realm_key.as_bytes(), SIGNED_BY_REALM, by_realm)
                    && is_right(issuer.as_bytes(), SIGNED_BY_ISSUER, &signed)
            }
            (None, _) | (_, None) => is_right(realm_key.as_bytes(), SIGNED_BY_REALM, &signed),
        };
        if is_right {
            Ok(member)
        } else {
            Err(AccessError::BadSignature)
        }
    }
}

fn signed(body: Bytes, signature: [u8; 64]) -> proto::SignedGrant {
    proto::SignedGrant {
        body,
        signature: Bytes::copy_from_slice(&signature),
    }
}

pub(super) fn signed_bytes(domain: &[u8], body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    [domain, &length, body].concat()
}

fn is_right(key: &[u8; 32], domain: &[u8], signed: &proto::SignedGrant) -> bool {
    is_signed(key, &signed_bytes(domain, &signed.body), &signed.signature)
}
