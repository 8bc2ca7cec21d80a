//! Records for a node that is newly among the closest to their keys.
//!
//! A newcomer looks up its own id, and so meets the nodes closest to itself. Of the holders of a key each would send it the
//! same records, so only the [`SENDERS`] of them that are closest to the newcomer do, which it met if any: enough that one may
//! fail, and the publisher's next round mends the rest.
//!
//! The keys are gone through a few at a time: however many records there are, a newcomer costs little at once.

use std::{collections::BTreeMap, time::Instant};

use macula_wire::{NodeId, ServiceKey, SignedProvider, Signer};

use super::{Dht, exchange::Purpose};
use crate::{Backend, Contact, K, MAX_PUBLISH_RECORDS, Point, Request, clock::Tick};

/// How many of the holders of a key hand its records over.
const SENDERS: usize = 3;
/// The most newcomers that wait for their records. One beyond that gets them from the publishers' next round.
const MAX_WAITING: usize = 16;
/// The most keys looked at in one step.
const STEP_KEYS: usize = 256;
/// What the requests of one step may cost this node at the newcomer, in quarters of a token; the last list may go beyond.
const STEP_COST: usize = 36;
/// What a request costs there, besides one for each record whose signature is checked.
const REQUEST_COST: usize = 4;
/// The time from one step to the next, in nanoseconds. In it a peer gains 40 quarters of a token, and with more than that the
/// newcomer would decline requests, whose records are lost to it until the next round.
const STEP: Tick = 20_000_000;

/// A newcomer, and how far it has been served.
#[derive(Debug)]
pub(super) struct HandOver {
    to: Contact,
    from: ServiceKey,
}

impl<S: Signer, B: Backend> Dht<S, B> {
    /// A node turned up; some of what this one holds may be its to hold.
    pub(super) fn plan_hand_over(&mut self, now: Instant, to: &Contact) {
        let first = ServiceKey::from_bytes([0; 32]);
        if !self.is_node() || self.handovers.len() >= MAX_WAITING || self.store.keys_from(&first).next().is_none() {
            return;
        }
        self.handovers.push_back(HandOver {
            to: to.clone(),
            from: first,
        });
        let next = self.clock.tick(now) + STEP;
        self.handover_at.get_or_insert(next);
    }

    /// Does the next step.
    pub(super) fn hand_over(&mut self, now: Instant) {
        let tick = self.clock.tick(now);
        if self.handover_at.is_none_or(|at| at > tick) {
            return;
        }
        self.handover_at = None;
        let Some(HandOver { to, from }) = self.handovers.pop_front() else {
            return;
        };
        let mut batches: BTreeMap<ServiceKey, Vec<SignedProvider>> = BTreeMap::new();
        let mut resume = None;
        let mut cost = 0;
        for (looked_at, key) in self.store.keys_from(&from).enumerate() {
            if looked_at >= STEP_KEYS || cost >= STEP_COST {
                resume = Some(*key);
                break;
            }
            if self.is_newly_responsible(to.node_id(), key) {
                let records: Vec<_> = self
                    .store
                    .page(now, key, None)
                    .map(|record| record.to_signed())
                    .collect();
                cost += REQUEST_COST * records.len().div_ceil(MAX_PUBLISH_RECORDS) + records.len();
                batches.insert(*key, records);
            }
        }
        for (key, records) in batches {
            for records in records.chunks(MAX_PUBLISH_RECORDS) {
                let request = Request::Publish {
                    key,
                    records: records.to_vec(),
                };
                self.send(now, to.clone(), Purpose::HandOver, request);
            }
        }
        if let Some(from) = resume {
            self.handovers.push_front(HandOver { to, from });
        }
        if !self.handovers.is_empty() {
            self.handover_at = Some(tick + STEP * cost.max(STEP_COST) as Tick / STEP_COST as Tick);
        }
    }

    /// Whether `node` is among the k closest to `key`, and this one is among those that tell it what there is: the holders
    /// closest to it, and the owner.
    fn is_newly_responsible(&self, node: &NodeId, key: &ServiceKey) -> bool {
        let (point, newcomer) = (Point::from(key), Point::from(node));
        let (distance, own) = (newcomer.distance(&point), newcomer.distance(&self.own.into()));
        let (mut closer, mut nearer) = (0, 0);
        for contact in self
            .table
            .closest(&point, K)
            .filter(|contact| contact.node_id() != node)
        {
            let other = Point::from(contact.node_id());
            closer += usize::from(other.distance(&point) < distance);
            nearer += usize::from(other.distance(&newcomer) < own);
        }
        closer < K && (nearer < SENDERS || self.services.contains_key(key))
    }
}
