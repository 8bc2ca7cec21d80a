//! This node's place in its realm: its own grant, and the judgement of the grants of others (A1 to A3).
//!
//! The endpoint, its connections and the layers above share one value. A renewed grant or a revocation takes effect
//! everywhere at once: [`Access::changed`] wakes each connection, which shows its peer the renewed grant, or ends.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use macula_wire::{
    AccessError, Chain, ChainHash, Effect, Member, NodeId, Passage, Realm, ServiceName, SignedRevocations, Verifier,
};
use tokio::sync::watch;

use crate::peer::Role;

/// Tells the time in seconds since the Unix epoch.
pub type UnixClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A node's realm, its own grant, and its knowledge of others' grants. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Access(Arc<Inner>);

struct Inner {
    realm: Realm,
    node_id: NodeId,
    clock: UnixClock,
    own: RwLock<Option<Member>>,
    verifier: Mutex<Verifier>,
    changed: watch::Sender<()>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("realm", &self.0.realm)
            .field("own", &self.member())
            .finish_non_exhaustive()
    }
}

impl Access {
    /// The node's access to a realm, by the system's clock. In a closed realm it has no grant yet.
    #[must_use]
    pub fn new(realm: Realm, node_id: NodeId) -> Self {
        Self::with_clock(realm, node_id, Arc::new(system_clock))
    }

    /// As [`Access::new`], by another clock.
    #[must_use]
    pub fn with_clock(realm: Realm, node_id: NodeId, clock: UnixClock) -> Self {
        Self(Arc::new(Inner {
            own: RwLock::new(Member::open(&realm, node_id)),
            verifier: Mutex::new(Verifier::new(realm.clone())),
            realm,
            node_id,
            clock,
            changed: watch::Sender::new(()),
        }))
    }

    /// The realm.
    #[must_use]
    pub fn realm(&self) -> &Realm {
        &self.0.realm
    }

    /// The time by which grants are judged, in seconds since the Unix epoch.
    #[must_use]
    pub fn now(&self) -> u64 {
        (self.0.clock)()
    }

    /// Uses this grant of the node from now on. Open connections show it to their peers, so that they outlive the one before.
    ///
    /// # Errors
    /// When the grant is not valid, or not this node's. The one before is kept.
    pub fn set_grant(&self, chain: &Chain) -> Result<Member, AccessError> {
        if !self.0.realm.is_closed() {
            return Err(AccessError::OtherRealm);
        }
        let member = self.verified(&self.0.node_id, Some(chain))?;
        *self.0.own.write().unwrap_or_else(PoisonError::into_inner) = Some(member.clone());
        self.0.changed.send_replace(());
        Ok(member)
    }

    /// This node as a member, by a grant that is valid now.
    ///
    /// # Errors
    /// When it has no grant, or its grant is not valid any more.
    pub fn own(&self) -> Result<Member, AccessError> {
        let own = self.member().ok_or(AccessError::NoGrant)?;
        self.check(&own).map(|()| own)
    }

    /// This node as a member by its last grant, valid or not; `None` in a closed realm before its first grant.
    #[must_use]
    pub fn member(&self) -> Option<Member> {
        self.0.own.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The chain that this node shows now.
    pub(crate) fn shown(&self) -> Option<(ChainHash, Chain)> {
        let own = self.member()?;
        Some((*own.chain_hash()?, own.chain()?.clone()))
    }

    /// Judges the chain of a peer that introduces itself in this role.
    pub(crate) fn admit(&self, node_id: &NodeId, chain: &Bytes, role: Role) -> Result<Member, AccessError> {
        let chain = match chain.is_empty() {
            true => None,
            false => Some(Chain::from_bytes(chain.clone())?),
        };
        let member = self.verified(node_id, chain.as_ref())?;
        if member.may_be(role.needs()) {
            Ok(member)
        } else {
            Err(AccessError::Role(member.role()))
        }
    }

    /// The member whose call of `service` the peer `router` passes on. It costs signatures: remember the result.
    pub(crate) fn pass(
        &self,
        passage: &Passage,
        router: &NodeId,
        service: &ServiceName,
    ) -> Result<Member, AccessError> {
        passage.check_at(&self.0.realm, self.now())?;
        passage.check_signed(&self.0.realm, router, service)?;
        self.verified(passage.node_id(), passage.chain())
    }

    /// The member that a node is by the chain that it shows. Nothing is locked while signatures are checked.
    fn verified(&self, node_id: &NodeId, chain: Option<&Chain>) -> Result<Member, AccessError> {
        let now = self.now();
        if let Some(chain) = chain.filter(|_| self.0.realm.is_closed())
            && self.verifier().known(&chain.hash()).is_none()
        {
            let member = chain.verify(&self.0.realm, now)?;
            self.verifier().learn(&member, now)?;
        }
        self.verifier().admit(node_id, chain, now)
    }

    /// Checks that a member is still one.
    ///
    /// # Errors
    /// That its grant has not begun, has ended or was revoked.
    pub fn check(&self, member: &Member) -> Result<(), AccessError> {
        if member.chain().is_none() {
            return Ok(());
        }
        self.verifier().check(member, self.now())
    }

    /// Checks that neither a member nor its issuer is revoked, whether or not its grant has ended.
    ///
    /// # Errors
    /// [`AccessError::Revoked`] with the node that is.
    pub fn check_unrevoked(&self, member: &Member) -> Result<(), AccessError> {
        self.verifier().revocations().check(member, self.now())
    }

    /// The list of revocations that takes a member's grant back.
    #[must_use]
    pub fn proof_against(&self, member: &Member) -> Option<SignedRevocations> {
        let (verifier, now) = (self.verifier(), self.now());
        verifier.revocations().proof_against(member, now).cloned()
    }

    /// Takes revocations in, and ends the connections of the members that they name. Returns whether they were news.
    ///
    /// # Errors
    /// When the list is not valid, or its signer has reached a bound.
    pub fn revoke(&self, list: &SignedRevocations) -> Result<bool, AccessError> {
        let news = self.verifier().revoke(list, self.now())?;
        if news {
            self.0.changed.send_replace(());
        }
        Ok(news)
    }

    /// What comes of a list of revocations that was taken, and the members that come back by it: see [`Revocations::readmitted_by`].
    ///
    /// # Errors
    /// When the list is not valid.
    ///
    /// [`Revocations::readmitted_by`]: macula_wire::Revocations::readmitted_by
    pub fn effect(&self, list: &SignedRevocations) -> Result<(Effect, Vec<NodeId>), AccessError> {
        let (verifier, now) = (self.verifier(), self.now());
        let known = verifier.revocations();
        Ok((known.effect(list, now)?, known.readmitted_by(list, now)))
    }

    /// The signed lists of revocations that are in force. Another node has to be told all of them.
    #[must_use]
    pub fn revocations(&self) -> Vec<SignedRevocations> {
        self.verifier().revocations().lists()
    }

    /// Tells when this node's grant was renewed, or a revocation came.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    fn verifier(&self) -> MutexGuard<'_, Verifier> {
        self.0.verifier.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn system_clock() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
