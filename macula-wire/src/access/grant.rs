//! A grant: what one node may do in a closed realm, and for how long (A2).

use std::{collections::BTreeMap, ops::RangeInclusive};

use bytes::Bytes;

use super::{
    error::{AccessError, Beyond},
    limits::{MAX_ADMITTED_BY, MAX_GRANT_SECS, MAX_LABEL_KEY_BYTES, MAX_LABEL_VALUE_BYTES},
    pattern::{Pattern, Patterns},
    role::GrantRole,
};
use crate::{NodeId, Realm, RealmHash, ServiceName, proto};

/// In an issuer's right: every value of a label, and as a key every label.
const ANY: &str = "*";

/// What one node may do in a closed realm, and for how long. A signature makes it a [`Chain`](super::Chain).
///
/// ```
/// use macula_wire::{Grant, GrantRole, NodeId, Pattern, Patterns, RealmKey, RealmName};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Real secrets come from the system's random source.
/// let key = RealmKey::from_bytes(&[1; 32]);
/// let realm = key.realm(RealmName::new("shop")?);
/// let node = NodeId::from_bytes([7; 32]);
///
/// let day = 1_700_000_000..=1_700_086_400;
/// let grant = Grant::new(&realm, node, day)
///     .with_role(GrantRole::Node)
///     .with_provide(Patterns::from_iter(["shop.cart".parse::<Pattern>()?]))
///     .with_call(Patterns::from_iter(["shop.*".parse::<Pattern>()?]))
///     .with_label("team", "orders");
/// let chain = grant.sign(&key)?;
///
/// let member = chain.verify(&realm, 1_700_000_060)?;
/// assert!(member.may_call(&"shop.stock".parse()?));
/// assert!(!member.may_provide(&"shop.stock".parse()?));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub(super) realm: RealmHash,
    pub(super) node_id: NodeId,
    pub(super) not_before: u64,
    pub(super) not_after: u64,
    pub(super) role: GrantRole,
    pub(super) provide: Patterns,
    pub(super) call: Patterns,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) issue: Option<Issue>,
    pub(super) admitted_by: Vec<NodeId>,
    pub(super) admitted_at: Option<u64>,
}

impl Grant {
    /// A client's grant that allows no service, valid from the first second of `dates` until its last, both since the Unix epoch.
    #[must_use]
    pub fn new(realm: &Realm, node_id: NodeId, dates: RangeInclusive<u64>) -> Self {
        Self {
            realm: realm.hash(),
            node_id,
            not_before: *dates.start(),
            not_after: *dates.end(),
            role: GrantRole::Client,
            provide: Patterns::NONE,
            call: Patterns::NONE,
            labels: BTreeMap::new(),
            issue: None,
            admitted_by: Vec::new(),
            admitted_at: None,
        }
    }

    /// Sets what the node may be.
    #[must_use]
    pub fn with_role(mut self, role: GrantRole) -> Self {
        self.role = role;
        self
    }

    /// Sets the services that the node may provide.
    #[must_use]
    pub fn with_provide(mut self, services: Patterns) -> Self {
        self.provide = services;
        self
    }

    /// Sets the services that the node may call.
    #[must_use]
    pub fn with_call(mut self, services: Patterns) -> Self {
        self.call = services;
        self
    }

    /// Adds or replaces a label, which services may ask of their callers.
    #[must_use]
    pub fn with_label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Lets the node sign grants of others. Only the realm's key can give this right.
    #[must_use]
    pub fn with_issue(mut self, issue: Issue) -> Self {
        self.issue = Some(issue);
        self
    }

    /// Names the issuers that signed the node's grants before this one, which renews them: the first one first. Their revocations count
    /// for it, and it ends with their own (A6). [`Member::renewed_by`](super::Member::renewed_by) says which they are.
    #[must_use]
    pub fn with_admitted_by(mut self, issuers: impl IntoIterator<Item = NodeId>) -> Self {
        self.admitted_by = issuers.into_iter().collect();
        self
    }

    /// Sets when the terms were first given, in seconds since the Unix epoch. A renewed grant keeps that time, so a revocation of
    /// earlier grants covers it (A6). Default: the grant's first second.
    #[must_use]
    pub fn with_admitted_at(mut self, then: u64) -> Self {
        self.admitted_at = Some(then);
        self
    }

    pub(super) fn admitted_at(&self) -> u64 {
        self.admitted_at.unwrap_or(self.not_before)
    }

    /// Checks what does not depend on the signer.
    pub(super) fn check(&self) -> Result<(), AccessError> {
        let life = self.not_after.checked_sub(self.not_before);
        if !life.is_some_and(|life| life > 0 && life <= MAX_GRANT_SECS) || self.admitted_at() > self.not_before {
            return Err(AccessError::BadDates);
        }
        if self.admitted_by.len() > MAX_ADMITTED_BY {
            return Err(AccessError::TooManyRenewers);
        }
        let good = |(key, value): (&String, &String)| is_label_key(key) && is_label_value(value) && value != ANY;
        if self.labels.iter().all(good) && self.issue.as_ref().is_none_or(Issue::has_good_labels) {
            Ok(())
        } else {
            Err(AccessError::BadLabel)
        }
    }

    /// Checks that an issuer whose grant is `issuer` may sign this one.
    pub(super) fn check_within(&self, issuer: &Self) -> Result<(), AccessError> {
        let Some(issue) = &issuer.issue else {
            return Err(AccessError::NotAnIssuer);
        };
        let beyond = if self.issue.is_some() {
            Beyond::Issue
        } else if self.not_before < issuer.not_before || self.not_after > issuer.not_after {
            Beyond::Dates
        } else if self.role > issue.role {
            Beyond::Roles
        } else if !issue.provide.covers(&self.provide) {
            Beyond::Provide
        } else if !issue.call.covers(&self.call) {
            Beyond::Call
        } else if !self.labels.iter().all(|(key, value)| issue.may_label(key, value)) {
            Beyond::Labels
        } else {
            return Ok(());
        };
        Err(AccessError::Widened(beyond))
    }

    pub(super) fn to_wire(&self) -> proto::Grant {
        proto::Grant {
            realm: Bytes::copy_from_slice(self.realm.as_bytes()),
            node_id: Bytes::copy_from_slice(self.node_id.as_bytes()),
            not_before: self.not_before,
            not_after: self.not_after,
            role: self.role.to_wire(),
            provide: texts(&self.provide),
            call: texts(&self.call),
            labels: labels_to_wire(&self.labels),
            issue: self.issue.as_ref().map(Issue::to_wire),
            admitted_by: self
                .admitted_by
                .iter()
                .map(|issuer| Bytes::copy_from_slice(issuer.as_bytes()))
                .collect(),
            admitted_at: self.admitted_at,
        }
    }

    pub(super) fn from_wire(grant: proto::Grant, realm: &RealmHash) -> Result<Self, AccessError> {
        if grant.realm != realm.as_bytes()[..] {
            return Err(AccessError::OtherRealm);
        }
        Ok(Self {
            realm: *realm,
            node_id: NodeId::from_slice(&grant.node_id).ok_or(AccessError::Malformed)?,
            not_before: grant.not_before,
            not_after: grant.not_after,
            role: GrantRole::from_wire(grant.role).ok_or(AccessError::Malformed)?,
            provide: patterns(&grant.provide)?,
            call: patterns(&grant.call)?,
            labels: labels(grant.labels)?,
            issue: grant.issue.map(Issue::from_wire).transpose()?,
            admitted_by: issuers(&grant.admitted_by)?,
            admitted_at: grant.admitted_at,
        })
    }
}

/// The rights that an issuer may put into the grants that it signs. They are independent of its own: it may give rights that it does
/// not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    role: GrantRole,
    provide: Patterns,
    call: Patterns,
    labels: BTreeMap<String, String>,
    revoke: bool,
}

impl Issue {
    /// May sign the grants of members that are `role` at most and provide and call these services at most, without labels.
    #[must_use]
    pub fn new(role: GrantRole, provide: Patterns, call: Patterns) -> Self {
        Self {
            role,
            provide,
            call,
            labels: BTreeMap::new(),
            revoke: false,
        }
    }

    /// May give this label; `*` as the value stands for every value, and `*` as both for every label.
    #[must_use]
    pub fn with_label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// May take back grants that other issuers signed, too; those that the realm's key signed, never.
    #[must_use]
    pub fn with_revoke(mut self) -> Self {
        self.revoke = true;
        self
    }

    /// The most that its members may be.
    #[must_use]
    pub fn role(&self) -> GrantRole {
        self.role
    }

    /// The services that its members may provide at most.
    #[must_use]
    pub fn provide(&self) -> &Patterns {
        &self.provide
    }

    /// The services that its members may call at most.
    #[must_use]
    pub fn call(&self) -> &Patterns {
        &self.call
    }

    /// Whether it may give this label.
    #[must_use]
    pub fn may_label(&self, key: &str, value: &str) -> bool {
        let allowed = |key| self.labels.get(key).is_some_and(|it| it == ANY || it == value);
        allowed(key) || allowed(ANY)
    }

    /// Whether it may take back the grants of other issuers.
    #[must_use]
    pub fn may_revoke(&self) -> bool {
        self.revoke
    }

    fn has_good_labels(&self) -> bool {
        let good = |(key, value): (&String, &String)| match key.as_str() {
            ANY => value == ANY,
            key => is_label_key(key) && is_label_value(value),
        };
        self.labels.iter().all(good)
    }

    fn to_wire(&self) -> proto::Issue {
        proto::Issue {
            role: self.role.to_wire(),
            provide: texts(&self.provide),
            call: texts(&self.call),
            labels: labels_to_wire(&self.labels),
            revoke: self.revoke,
        }
    }

    fn from_wire(issue: proto::Issue) -> Result<Self, AccessError> {
        Ok(Self {
            role: GrantRole::from_wire(issue.role).ok_or(AccessError::Malformed)?,
            provide: patterns(&issue.provide)?,
            call: patterns(&issue.call)?,
            labels: labels(issue.labels)?,
            revoke: issue.revoke,
        })
    }
}

pub(super) fn texts(patterns: &Patterns) -> Vec<String> {
    patterns.iter().map(ToString::to_string).collect()
}

/// Refuses a list that this code would write differently: each right has one encoding.
pub(super) fn patterns(texts: &[String]) -> Result<Patterns, AccessError> {
    let read = |text: &String| text.parse::<Pattern>().map_err(|_| AccessError::Malformed);
    let patterns = texts.iter().map(read).collect::<Result<Patterns, _>>()?;
    if patterns.iter().count() == texts.len() {
        Ok(patterns)
    } else {
        Err(AccessError::Malformed)
    }
}

fn issuers(ids: &[Bytes]) -> Result<Vec<NodeId>, AccessError> {
    let read = |id: &Bytes| NodeId::from_slice(id).ok_or(AccessError::Malformed);
    ids.iter().map(read).collect()
}

pub(super) fn labels_to_wire(labels: &BTreeMap<String, String>) -> Vec<proto::Label> {
    let label = |(key, value): (&String, &String)| proto::Label {
        key: key.clone(),
        value: value.clone(),
    };
    labels.iter().map(label).collect()
}

pub(super) fn labels(labels: Vec<proto::Label>) -> Result<BTreeMap<String, String>, AccessError> {
    if !labels.is_sorted_by(|a, b| a.key < b.key) {
        return Err(AccessError::Malformed);
    }
    Ok(labels.into_iter().map(|label| (label.key, label.value)).collect())
}

fn is_label_key(key: &str) -> bool {
    key.len() <= MAX_LABEL_KEY_BYTES && ServiceName::new(key).is_ok()
}

fn is_label_value(value: &str) -> bool {
    (1..=MAX_LABEL_VALUE_BYTES).contains(&value.len()) && !value.chars().any(char::is_control)
}
