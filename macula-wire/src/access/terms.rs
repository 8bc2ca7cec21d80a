//! The terms of a membership: all of a grant but its node and its dates.

use std::{collections::BTreeMap, ops::RangeInclusive};

use super::{
    error::AccessError,
    grant::{Grant, labels, labels_to_wire, patterns, texts},
    member::Member,
    pattern::Patterns,
    role::GrantRole,
};
use crate::{NodeId, Realm, proto};

/// What the members that a token lets in may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// What they may be.
    pub role: GrantRole,
    /// The services that they may provide.
    pub provide: Patterns,
    /// The services that they may call.
    pub call: Patterns,
    /// Their labels.
    pub labels: BTreeMap<String, String>,
}

impl Terms {
    /// The terms of a grant that a member has; `None` in an open realm.
    #[must_use]
    pub fn of(member: &Member) -> Option<Self> {
        Some(Self {
            role: member.role(),
            provide: member.provide()?.clone(),
            call: member.call()?.clone(),
            labels: member.labels().clone(),
        })
    }

    /// The grant of a node on these terms, valid in `dates`.
    #[must_use]
    pub fn grant(&self, realm: &Realm, node_id: NodeId, dates: RangeInclusive<u64>) -> Grant {
        let grant = Grant::new(realm, node_id, dates)
            .with_role(self.role)
            .with_provide(self.provide.clone())
            .with_call(self.call.clone());
        self.labels
            .iter()
            .fold(grant, |grant, (key, value)| grant.with_label(key, value))
    }

    pub(crate) fn to_wire(&self) -> proto::Terms {
        proto::Terms {
            role: self.role.to_wire(),
            provide: texts(&self.provide),
            call: texts(&self.call),
            labels: labels_to_wire(&self.labels),
        }
    }

    pub(crate) fn from_wire(terms: proto::Terms) -> Result<Self, AccessError> {
        Ok(Self {
            role: GrantRole::from_wire(terms.role).ok_or(AccessError::Malformed)?,
            provide: patterns(&terms.provide)?,
            call: patterns(&terms.call)?,
            labels: labels(terms.labels)?,
        })
    }
}
