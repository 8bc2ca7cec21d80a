//! One publication: its record, its lookups, and the nodes that have answered.

use std::collections::BTreeSet;

use macula_wire::{NodeId, ServiceKey, VerifiedProvider};

use crate::{Contact, Distance, Event, Outcome, Point, QueryId, Refusal, RoutingTable, table::K};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JobKind {
    Advertise,
    Withdraw,
}

/// A publication and how far it is.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) key: ServiceKey,
    pub(super) kind: JobKind,
    pub(super) record: VerifiedProvider,
    /// Holders of earlier records. They are told of a withdrawal even if they are no longer among the closest.
    pub(super) former: Vec<Contact>,
    /// Lookups under way.
    pub(super) running: BTreeSet<QueryId>,
    /// The number of lookups that were started.
    pub(super) lookups: u32,
    /// The region whose nodes all get the record, because the k closest are a crowd.
    pub(super) region: Option<Distance>,
    /// The number of targets that have not answered.
    pub(super) waiting: usize,
    pub(super) holders: Vec<Contact>,
    /// The largest sequence number of this node's own records that holders have shown.
    pub(super) newer_seq: Option<u64>,
    /// The sequence number of the record that this process published before; 0 for the first.
    pub(super) after: u64,
    /// This node was too busy to ask all nodes that a lookup should have: the closest may have been missed.
    pub(super) is_partial: bool,
    refused: Vec<(NodeId, Refusal)>,
    unreachable: usize,
}

impl Job {
    pub(super) fn new(key: ServiceKey, kind: JobKind, record: VerifiedProvider, former: Vec<Contact>) -> Self {
        Self {
            key,
            kind,
            record,
            former,
            running: BTreeSet::new(),
            lookups: 0,
            region: None,
            waiting: 0,
            holders: Vec::new(),
            newer_seq: None,
            after: 0,
            is_partial: false,
            refused: Vec::new(),
            unreachable: 0,
        }
    }

    /// Whether another process has signed the record of this node with this number: this one has published none between its last one and
    /// the one of this job, and none after that.
    pub(super) fn is_foreign(&self, seq: u64) -> bool {
        self.after > 0 && seq > self.after && seq != self.record.seq()
    }

    /// The nodes that get the record, each once: the closest and the former holders. The job waits for them from here on.
    pub(super) fn targets(&mut self, closest: Vec<Contact>, table: &RoutingTable) -> Vec<Contact> {
        let mut targets = closest;
        targets.append(&mut self.former);
        if self.kind == JobKind::Withdraw {
            // Nodes that have come since, and were handed the record.
            let point = Point::from(self.key);
            let distance = |contact: &Contact| point.distance(&contact.node_id().into());
            let farthest = targets.iter().map(distance).max();
            let few = targets.len() < K;
            let known = table.closest(&point, K).cloned();
            targets.extend(known.filter(|c| few || farthest.is_some_and(|far| distance(c) < far)));
        }
        let mut seen = BTreeSet::new();
        targets.retain(|target| seen.insert(*target.node_id()));
        self.waiting = targets.len();
        targets
    }

    /// Takes the outcome at one target; `None` when it did not answer.
    pub(super) fn take(&mut self, contact: Contact, outcome: Option<Outcome>) {
        self.waiting = self.waiting.saturating_sub(1);
        match outcome {
            Some(Outcome::Stored) => self.holders.push(contact),
            Some(Outcome::Refused(refusal)) => self.refused.push((*contact.node_id(), refusal)),
            None => self.unreachable += 1,
        }
    }
}

/// The end of a job.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) key: ServiceKey,
    pub(super) kind: JobKind,
    pub(super) holders: Vec<Contact>,
    pub(super) refused: Vec<(NodeId, Refusal)>,
    pub(super) unreachable: usize,
    pub(super) newer_seq: Option<u64>,
    pub(super) is_partial: bool,
}

impl From<Job> for Ended {
    fn from(job: Job) -> Self {
        Self {
            key: job.key,
            kind: job.kind,
            holders: job.holders,
            refused: job.refused,
            unreachable: job.unreachable,
            newer_seq: job.newer_seq,
            is_partial: job.is_partial,
        }
    }
}

impl Ended {
    pub(super) fn was_refused_as(&self, refusal: Refusal) -> bool {
        self.refused.iter().any(|(_, given)| *given == refusal)
    }

    pub(super) fn into_event(self) -> Event {
        let (key, acknowledged) = (self.key, self.holders.len());
        match self.kind {
            JobKind::Advertise => Event::Advertised {
                key,
                acknowledged,
                refused: self.refused,
                unreachable: self.unreachable,
            },
            JobKind::Withdraw => Event::Withdrawn {
                key,
                acknowledged,
                unacknowledged: self.refused.len() + self.unreachable,
            },
        }
    }
}
