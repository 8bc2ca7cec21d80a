//! The reasons for a request or a lookup, by which its end finds the core that waits for it.

use crate::QueryId;

/// A publication under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct JobId(pub(super) u64);

/// A step of a lookup: a request to one peer on one of its paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) query: QueryId,
    pub(super) path: u8,
    /// 1 for a contact of this node, else one more than the hop of the peer that named it.
    pub(super) hop: u8,
}

/// The reason for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A step of a lookup.
    Step(Step),
    /// Storing a record for a job.
    Store(JobId),
    /// Finding out whether a stranger answers.
    Probe,
    /// Finding out whether an entry has to give way to a newcomer.
    Check,
    /// Records for a node that is newly among the closest.
    HandOver,
}

/// The reason for a lookup that no caller asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Errand {
    /// A job needs the nodes to publish to.
    Publish(JobId),
    /// This node joins: the closest nodes are to know it.
    Join,
    /// A bucket is kept fresh.
    Refresh,
    /// This node looks for neighbours that none of its contacts know.
    Meet,
}
