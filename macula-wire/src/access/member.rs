//! A member: a node whose right to be in the realm was verified, and what it may do there.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    chain::{Chain, ChainHash},
    error::AccessError,
    grant::{Grant, Issue},
    limits::CLOCK_TOLERANCE_SECS,
    pattern::Patterns,
    role::GrantRole,
};
use crate::{NodeId, Realm, RealmHash, ServiceName};

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

/// A node that belongs to its realm, made by [`Chain::verify`] or [`Member::open`], and in no other way. Cheap to clone.
///
/// In an open realm every node is a member that may all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    node_id: NodeId,
    /// `None` in an open realm.
    granted: Option<Arc<Granted>>,
}

/// What a verified chain says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Granted {
    pub(super) grant: Grant,
    /// The issuer's grant, when the realm's key did not sign the member's.
    pub(super) issuer: Option<Grant>,
    pub(super) chain: Chain,
    pub(super) hash: ChainHash,
}

impl Granted {
    pub(crate) fn not_after(&self) -> u64 {
        self.grant.not_after
    }

    pub(crate) fn chain(&self) -> &Chain {
        &self.chain
    }
}

impl Member {
    /// A node in an open realm; `None` for a closed one, where a chain is needed.
    #[must_use]
    pub fn open(realm: &Realm, node_id: NodeId) -> Option<Self> {
        (!realm.is_closed()).then_some(Self { node_id, granted: None })
    }

    pub(super) fn granted(granted: Granted) -> Self {
        Self {
            node_id: granted.grant.node_id,
            granted: Some(Arc::new(granted)),
        }
    }

    /// What was verified of it, for a value that keeps the node id itself; `None` in an open realm.
    pub(crate) fn shared(&self) -> Option<&Arc<Granted>> {
        self.granted.as_ref()
    }

    /// The member of which [`Member::shared`] was kept.
    pub(crate) fn from_shared(node_id: NodeId, granted: Option<Arc<Granted>>) -> Self {
        Self { node_id, granted }
    }

    /// What its chain says, when the realm's key itself signed its grant.
    pub(super) fn granted_by_realm(&self) -> Option<&Granted> {
        self.granted.as_deref().filter(|it| it.issuer.is_none())
    }

    /// The realm that its grant is of; `None` in an open realm.
    #[must_use]
    pub fn realm(&self) -> Option<&RealmHash> {
        self.granted.as_ref().map(|it| &it.grant.realm)
    }

    /// The member.
    #[must_use]
    pub fn node_id(&self) -> &NodeId {
        &self.node_id
    }

    /// Whether it may call `service`.
    #[must_use]
    pub fn may_call(&self, service: &ServiceName) -> bool {
        self.granted.as_ref().is_none_or(|it| it.grant.call.matches(service))
    }

    /// Whether it may provide `service`.
    #[must_use]
    pub fn may_provide(&self, service: &ServiceName) -> bool {
        self.granted.as_ref().is_none_or(|it| it.grant.provide.matches(service))
    }

    /// Whether it may be `role`.
    #[must_use]
    pub fn may_be(&self, role: GrantRole) -> bool {
        self.role() >= role
    }

    /// The most that it may be.
    #[must_use]
    pub fn role(&self) -> GrantRole {
        self.granted.as_ref().map_or(GrantRole::Node, |it| it.grant.role)
    }

    /// The services that it may provide; `None` in an open realm, for all of them.
    #[must_use]
    pub fn provide(&self) -> Option<&Patterns> {
        self.granted.as_ref().map(|it| &it.grant.provide)
    }

    /// The services that it may call; `None` in an open realm, for all of them.
    #[must_use]
    pub fn call(&self) -> Option<&Patterns> {
        self.granted.as_ref().map(|it| &it.grant.call)
    }

    /// Its labels; none in an open realm.
    #[must_use]
    pub fn labels(&self) -> &BTreeMap<String, String> {
        self.granted.as_ref().map_or(&NO_LABELS, |it| &it.grant.labels)
    }

    /// What it may put into the grants of others.
    #[must_use]
    pub fn issue(&self) -> Option<&Issue> {
        self.granted.as_ref().and_then(|it| it.grant.issue.as_ref())
    }

    /// The issuer that signed its grant; `None` when the realm's key did, and in an open realm.
    #[must_use]
    pub fn issuer(&self) -> Option<&NodeId> {
        self.granted.as_ref()?.issuer.as_ref().map(|issuer| &issuer.node_id)
    }

    /// The issuers that signed its grants before [`Member::issuer`] renewed them, by that issuer's word: the one that let it in first.
    /// None when its issuer let it in and alone has renewed its grant.
    #[must_use]
    pub fn admitted_by(&self) -> &[NodeId] {
        self.granted.as_ref().map_or(&[], |it| &it.grant.admitted_by)
    }

    /// The issuers that a grant has to name which `issuer` signs to renew this one: see [`Grant::with_admitted_by`]. The signer of the
    /// present grant is among them, because the others are named by its word alone.
    #[must_use]
    pub fn renewed_by(&self, issuer: &NodeId) -> Vec<NodeId> {
        let mut before = self.admitted_by().to_vec();
        before.extend(self.issuer().filter(|last| !before.contains(last)).copied());
        match &before[..] {
            [only] if only == issuer => Vec::new(),
            _ => before,
        }
    }

    /// Its issuer, and when the issuer's own terms were given.
    pub(super) fn issuing(&self) -> Option<(&NodeId, u64)> {
        let issuer = self.granted.as_ref()?.issuer.as_ref()?;
        Some((&issuer.node_id, issuer.admitted_at()))
    }

    /// When the terms of its grant were given, which a renewal does not change, in seconds since the Unix epoch; 0 in an open realm.
    #[must_use]
    pub fn admitted_at(&self) -> u64 {
        self.granted.as_ref().map_or(0, |it| it.grant.admitted_at())
    }

    /// When its grant begins, in seconds since the Unix epoch; 0 in an open realm.
    #[must_use]
    pub fn not_before(&self) -> u64 {
        self.granted.as_ref().map_or(0, |it| it.grant.not_before)
    }

    /// When its grant ends, in seconds since the Unix epoch; `None` in an open realm.
    #[must_use]
    pub fn not_after(&self) -> Option<u64> {
        self.granted.as_ref().map(|it| it.grant.not_after)
    }

    /// The proof of its rights; `None` in an open realm.
    #[must_use]
    pub fn chain(&self) -> Option<&Chain> {
        self.granted.as_ref().map(|it| &it.chain)
    }

    /// The hash of the proof; `None` in an open realm.
    #[must_use]
    pub fn chain_hash(&self) -> Option<&ChainHash> {
        self.granted.as_ref().map(|it| &it.hash)
    }

    /// Checks that its grant is valid at `now`, in seconds since the Unix epoch: at its first second, less
    /// [`CLOCK_TOLERANCE_SECS`], and before its last.
    ///
    /// # Errors
    /// [`AccessError::NotYet`] or [`AccessError::Ended`].
    pub fn check_at(&self, now: u64) -> Result<(), AccessError> {
        let Some(granted) = &self.granted else { return Ok(()) };
        let grant = &granted.grant;
        if now.saturating_add(CLOCK_TOLERANCE_SECS) < grant.not_before {
            return Err(AccessError::NotYet(grant.not_before - now));
        }
        match now.checked_sub(grant.not_after) {
            None => Ok(()),
            Some(ago) => Err(AccessError::Ended(ago)),
        }
    }
}
