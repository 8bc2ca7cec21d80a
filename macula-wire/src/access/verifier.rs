//! Verifies chains. Verified signatures are remembered; dates and revocations are checked each time.

use std::collections::{BTreeMap, VecDeque};

use super::{
    chain::{Chain, ChainHash},
    error::AccessError,
    limits::MAX_KNOWN_CHAINS,
    member::Member,
    revocation::{Revocations, SignedRevocations},
};
use crate::{NodeId, Realm};

/// Judges which nodes belong to a realm. It remembers the chains whose signatures were checked, at most [`MAX_KNOWN_CHAINS`] of them, and
/// the revocations; dates and revocations are asked each time.
#[derive(Debug, Clone)]
pub struct Verifier {
    realm: Realm,
    chains: Known<ChainHash, Member>,
    revocations: Revocations,
}

/// The latest of the things that were checked.
#[derive(Debug, Clone)]
struct Known<K, V> {
    most: usize,
    by_key: BTreeMap<K, V>,
    /// The one known longest first.
    order: VecDeque<K>,
}

impl<K: Copy + Ord, V: Clone> Known<K, V> {
    fn new(most: usize) -> Self {
        Self {
            most,
            by_key: BTreeMap::new(),
            order: VecDeque::new(),
        }
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.by_key.get(key)
    }

    fn add(&mut self, key: K, value: V) {
        if self.by_key.insert(key, value).is_some() {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_key.remove(&oldest);
        }
    }
}

impl Verifier {
    /// A judge of this realm that knows no chain and no revocation.
    #[must_use]
    pub fn new(realm: Realm) -> Self {
        Self {
            revocations: Revocations::new(realm.clone()),
            realm,
            chains: Known::new(MAX_KNOWN_CHAINS),
        }
    }

    /// The realm.
    #[must_use]
    pub fn realm(&self) -> &Realm {
        &self.realm
    }

    /// The member that `node_id` is at `now`, in seconds since the Unix epoch, by the chain that it shows. In an open realm no chain is
    /// asked for, and none is looked at.
    ///
    /// # Errors
    /// The first thing that is wrong with the chain.
    pub fn admit(&mut self, node_id: &NodeId, chain: Option<&Chain>, now: u64) -> Result<Member, AccessError> {
        if let Some(member) = Member::open(&self.realm, *node_id) {
            return Ok(member);
        }
        let member = self.verify(chain.ok_or(AccessError::NoGrant)?, now)?;
        if member.node_id() == node_id {
            Ok(member)
        } else {
            Err(AccessError::OtherNode(*member.node_id()))
        }
    }

    /// The member that a chain makes at `now`, in seconds since the Unix epoch.
    ///
    /// # Errors
    /// The first thing that is wrong with the chain.
    pub fn verify(&mut self, chain: &Chain, now: u64) -> Result<Member, AccessError> {
        let hash = chain.hash();
        if let Some(member) = self.chains.get(&hash) {
            self.check(member, now)?;
            return Ok(member.clone());
        }
        let member = chain.verify(&self.realm, now)?;
        self.revocations.check(&member, now)?;
        self.chains.add(hash, member.clone());
        Ok(member)
    }

    /// Remembers the chain of a member that was verified apart from this judge, as by
    /// [`SignedProvider::verify_apart`](crate::SignedProvider::verify_apart).
    ///
    /// # Errors
    /// That the chain is of another realm, or as [`Verifier::check`]. It is not remembered then.
    pub fn learn(&mut self, member: &Member, now: u64) -> Result<(), AccessError> {
        let hash = self.realm.hash();
        let (Some(realm), Some(chain)) = (member.realm(), member.chain_hash()) else {
            return if hash.is_closed() {
                Err(AccessError::NoGrant)
            } else {
                Ok(())
            };
        };
        if *realm != hash {
            return Err(AccessError::OtherRealm);
        }
        self.check(member, now)?;
        if self.chains.get(chain).is_none() {
            self.chains.add(*chain, member.clone());
        }
        Ok(())
    }

    /// The member of a chain that was verified and is remembered, valid or not.
    #[must_use]
    pub fn known(&self, hash: &ChainHash) -> Option<&Member> {
        self.chains.get(hash)
    }

    /// Checks that a member is one still at `now`, in seconds since the Unix epoch.
    ///
    /// # Errors
    /// That its grant has not begun, has ended or was revoked.
    pub fn check(&self, member: &Member, now: u64) -> Result<(), AccessError> {
        member.check_at(now)?;
        self.revocations.check(member, now)
    }

    /// Takes the orders of a list that are news; see [`Revocations::merge`].
    ///
    /// # Errors
    /// As [`Revocations::merge`].
    pub fn revoke(&mut self, list: &SignedRevocations, now: u64) -> Result<bool, AccessError> {
        self.revocations.merge(list, now)
    }

    /// The revocations known.
    #[must_use]
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }
}
