//! A passage: a caller's leave for one router to pass its calls of one service on (A5, X2).
//!
//! The caller signs it, so no router has to be trusted to name a caller: without a passage a router calls as itself, and with one it
//! calls only the service that the caller sent it, for about an hour. The provider judges the caller as if it had called itself. In an
//! open realm a passage proves the caller's key, which is all that there is to prove, and has no end: nothing there depends on clocks.

use bytes::Bytes;
use prost::Message as _;

use super::{
    chain::Chain,
    error::AccessError,
    limits::{MAX_PASSAGE_BYTES, PASSAGE_SECS},
    member::Member,
};
use crate::{NodeId, Realm, RealmHash, ServiceName, Signer, hash::sha256, proto, realm::is_signed};

const SIGNED_BY_CALLER: &[u8] = b"macula/v1/passage\0";

/// A passage as it travels, read but unchecked.
#[derive(Debug, Clone)]
pub struct Passage {
    node_id: NodeId,
    chain: Option<Chain>,
    until: u64,
    signature: Bytes,
}

impl Member {
    /// Lets `router` pass this member's calls of `service` on in its realm for an hour from `now`, in seconds since the Unix epoch.
    #[must_use]
    pub fn passage(
        &self,
        signer: &(impl Signer + ?Sized),
        realm: &RealmHash,
        router: &NodeId,
        service: &ServiceName,
        now: u64,
    ) -> Bytes {
        let until = now.saturating_add(PASSAGE_SECS);
        let signature = signer.sign(&signed_bytes(realm, router, service, until));
        let passage = proto::Passage {
            node_id: Bytes::copy_from_slice(self.node_id().as_bytes()),
            chain: self.chain().map(|chain| chain.as_bytes().clone()).unwrap_or_default(),
            until,
            signature: Bytes::copy_from_slice(&signature),
        };
        passage.encode_to_vec().into()
    }
}

impl Passage {
    /// Reads a passage.
    ///
    /// # Errors
    /// [`AccessError::BadPassage`], or what is wrong with the form of the chain in it.
    pub fn read(bytes: &Bytes) -> Result<Self, AccessError> {
        if bytes.len() > MAX_PASSAGE_BYTES {
            return Err(AccessError::BadPassage);
        }
        let passage = proto::Passage::decode(bytes.clone()).map_err(|_| AccessError::BadPassage)?;
        Ok(Self {
            node_id: NodeId::from_slice(&passage.node_id).ok_or(AccessError::BadPassage)?,
            chain: match passage.chain.is_empty() {
                true => None,
                false => Some(Chain::from_bytes(passage.chain)?),
            },
            until: passage.until,
            signature: passage.signature,
        })
    }

    /// A name (SHA-256) for a passage, its router and its service. One check holds for all with this name.
    #[must_use]
    pub fn hash(bytes: &Bytes, router: &NodeId, service: &ServiceName) -> [u8; 32] {
        let length = (bytes.len() as u64).to_be_bytes();
        let parts = [&length[..], router.as_bytes(), bytes, service.as_str().as_bytes()];
        sha256(b"macula/v1/known-passage\0", &parts)
    }

    /// The caller that it names.
    #[must_use]
    pub fn node_id(&self) -> &NodeId {
        &self.node_id
    }

    /// The chain that the caller shows; `None` in an open realm.
    #[must_use]
    pub fn chain(&self) -> Option<&Chain> {
        self.chain.as_ref()
    }

    /// Checks the date at `now`, in seconds since the Unix epoch, in a closed realm: in an open one nothing else depends on the clocks
    /// of others either. The callers' clocks may be off by as much as a passage lasts.
    ///
    /// # Errors
    /// [`AccessError::OldPassage`].
    pub fn check_at(&self, realm: &Realm, now: u64) -> Result<(), AccessError> {
        let earliest = now.saturating_sub(PASSAGE_SECS);
        if !realm.is_closed() || (earliest..=now.saturating_add(2 * PASSAGE_SECS)).contains(&self.until) {
            Ok(())
        } else {
            Err(AccessError::OldPassage)
        }
    }

    /// Checks that the caller lets `router` pass its calls of `service` on. It costs one signature; the chain has others.
    ///
    /// # Errors
    /// [`AccessError::BadPassage`].
    pub fn check_signed(&self, realm: &Realm, router: &NodeId, service: &ServiceName) -> Result<(), AccessError> {
        let signed = signed_bytes(&realm.hash(), router, service, self.until);
        if is_signed(self.node_id.as_bytes(), &signed, &self.signature) {
            Ok(())
        } else {
            Err(AccessError::BadPassage)
        }
    }
}

fn signed_bytes(realm: &RealmHash, router: &NodeId, service: &ServiceName, until: u64) -> Vec<u8> {
    let until = until.to_be_bytes();
    // Only the last part has no fixed length.
    let parts = [
        SIGNED_BY_CALLER,
        realm.as_bytes(),
        router.as_bytes(),
        &until,
        service.as_str().as_bytes(),
    ];
    parts.concat()
}
