//! Records for a node that is newly among the closest to their keys.
//!
//! A newcomer looks up its own id, and so meets the nodes closest to itself. All holders of a key would send it the same records.
//! So only the [`SENDERS`] holders that are closest to the newcomer do, since it surely met those. One of them may fail, and the
//! publisher's next round mends the rest.
//!
//! The keys are gone through a few at a time: however many records there are, a newcomer costs little at once.

use std::{collections::VecDeque, time::Instant};

use macula_wire::{NodeId, ServiceKey, SignedProvider};

use super::local::Local;
use crate::{Contact, MAX_PUBLISH_RECORDS, Point, clock::Tick, table::K};

/// The number of holders of a key that hand its records over.
const SENDERS: usize = 3;
/// The most newcomers that wait for their records. A newcomer beyond that gets them from the publishers' next round.
const MAX_WAITING: usize = 16;
/// The most keys looked at in one step.
const STEP_KEYS: usize = 256;
/// The most that the requests of one step cost this node at the newcomer, in quarters of a token; the last list may go beyond.
const STEP_COST: usize = 36;
/// The cost of a request there, besides one quarter for each record whose signature is checked.
const REQUEST_COST: usize = 4;
/// The time from one step to the next, in nanoseconds. In it a peer gains 40 quarters of a token. With more than that the newcomer
/// would decline requests, whose records are lost to it until the next round.
const STEP: Tick = 20_000_000;

/// A newcomer, and how far it has been served.
#[derive(Debug)]
struct Newcomer {
    contact: Contact,
    from: ServiceKey,
}

/// A part of the records of one key, for a newcomer.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) key: ServiceKey,
    pub(super) records: Vec<SignedProvider>,
}

/// The newcomers that wait for their records.
#[derive(Debug, Default)]
pub(super) struct HandOvers {
    waiting: VecDeque<Newcomer>,
    at: Option<Tick>,
}

impl HandOvers {
    /// A node turned up. Some records of this node may be its to hold.
    pub(super) fn plan(&mut self, local: &Local, now: Instant, contact: &Contact) {
        let first = ServiceKey::from_bytes([0; 32]);
        let has_records = local.store.keys_from(&first).next().is_some();
        if !local.is_node() || self.waiting.len() >= MAX_WAITING || !has_records {
            return;
        }
        let contact = contact.clone();
        self.waiting.push_back(Newcomer { contact, from: first });
        self.at.get_or_insert(local.tick(now) + STEP);
    }

    /// When [`HandOvers::step`] next has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Tick> {
        self.at
    }

    /// Does the next step when it is due. Returns a newcomer and its records; `owns` tells which keys this node publishes under.
    pub(super) fn step(
        &mut self,
        local: &Local,
        now: Instant,
        owns: impl Fn(&ServiceKey) -> bool,
    ) -> Option<(Contact, Vec<Batch>)> {
        let tick = local.tick(now);
        self.at.take_if(|at| *at <= tick)?;
        let Newcomer { contact, from } = self.waiting.pop_front()?;
        let (mut batches, mut resume, mut cost) = (Vec::new(), None, 0);
        for (looked_at, key) in local.store.keys_from(&from).enumerate() {
            if looked_at >= STEP_KEYS || cost >= STEP_COST {
                resume = Some(*key);
                break;
            }
            if is_newly_responsible(local, contact.node_id(), key, owns(key)) {
                let page = local.store.page(now, key, None);
                let records: Vec<_> = page.map(|record| record.to_signed()).collect();
                cost += REQUEST_COST * records.len().div_ceil(MAX_PUBLISH_RECORDS) + records.len();
                batches.extend(records.chunks(MAX_PUBLISH_RECORDS).map(|records| Batch {
                    key: *key,
                    records: records.to_vec(),
                }));
            }
        }
        if let Some(from) = resume {
            let contact = contact.clone();
            self.waiting.push_front(Newcomer { contact, from });
        }
        if !self.waiting.is_empty() {
            self.at = Some(tick + STEP * cost.max(STEP_COST) as Tick / STEP_COST as Tick);
        }
        Some((contact, batches))
    }
}

/// Whether `node` is among the k closest to `key`, and this node hands the records over: it owns the key, or is among the holders
/// closest to the newcomer.
fn is_newly_responsible(local: &Local, node: &NodeId, key: &ServiceKey, owns: bool) -> bool {
    let (point, newcomer) = (Point::from(key), Point::from(node));
    let (distance, own) = (newcomer.distance(&point), newcomer.distance(&local.own.into()));
    let (mut closer, mut nearer) = (0, 0);
    let closest = local.table.closest(&point, K);
    for contact in closest.filter(|contact| contact.node_id() != node) {
        let other = Point::from(contact.node_id());
        closer += usize::from(other.distance(&point) < distance);
        nearer += usize::from(other.distance(&newcomer) < own);
    }
    closer < K && (nearer < SENDERS || owns)
}
