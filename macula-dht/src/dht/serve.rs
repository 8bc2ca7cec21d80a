//! Answering peers.

use std::time::Instant;

use macula_wire::{MAX_RECORD_BYTES, NodeId, ServiceKey, SignedProvider, Signer};

use super::{Dht, MAX_PROBES, exchange::Purpose};
use crate::{
    Backend, Contact, Declined, Inserted, K, MessageError, Origin, Outcome, Peer, Point, Refusal, Request, Response,
    Role,
    message::{fit_contacts, fit_records, peek},
};

/// A node holds a key when fewer than this many of those it knows are closer to it: twice k, since two nodes rarely agree
/// on who the k closest are.
pub(super) const RESPONSIBLE: usize = 2 * K;

impl<S: Signer, B: Backend> Dht<S, B> {
    /// Answers a peer's request, as it was decoded. Its answer is at most [`MAX_MESSAGE_BYTES`](crate::MAX_MESSAGE_BYTES) long.
    pub fn handle_request(&mut self, now: Instant, from: &Peer, request: Result<Request, MessageError>) -> Response {
        let tick = self.clock.tick(now);
        let peer = from.contact.node_id();
        if !self.limiter.admit(tick, peer) {
            self.counters.rate_limited += 1;
            return Response::Declined(Declined::RateLimited);
        }
        let Ok(request) = request else {
            self.counters.malformed += 1;
            return Response::Declined(Declined::Malformed);
        };
        self.counters.served += 1;
        self.meet(now, from);
        match request {
            Request::Ping => Response::Pong,
            Request::FindNode { target } => {
                let (closest, bytes) = self.closest_for(peer, &target);
                self.limiter.charge(tick, peer, bytes);
                Response::Nodes(closest)
            }
            Request::FindProviders { key, after } => {
                // Whoever asks for the next page has the contacts already.
                let (closest, used) = match after {
                    None => self.closest_for(peer, &key.into()),
                    Some(_) => (Vec::new(), 0),
                };
                let (records, more) = fit_records(self.store.page(now, &key, after.as_ref()), used);
                let bytes = records.iter().map(|record| record.body.len() + 64).sum::<usize>() + used;
                self.limiter.charge(tick, peer, bytes);
                Response::Providers { records, closest, more }
            }
            Request::Publish { key, records } => {
                let responsible = self.is_responsible(&key);
                let outcomes = records.iter().map(|record| {
                    let taken = if responsible {
                        self.take(now, &from.contact, &key, record)
                    } else {
                        Err(Refusal::NotResponsible)
                    };
                    taken.map_or_else(Outcome::Refused, |()| Outcome::Stored)
                });
                let outcomes: Vec<_> = outcomes.collect();
                let stored = outcomes.iter().filter(|outcome| **outcome == Outcome::Stored).count();
                self.counters.stored += stored as u64;
                self.counters.refused += (outcomes.len() - stored) as u64;
                Response::Published(outcomes)
            }
        }
    }

    fn closest_for(&self, peer: &NodeId, target: &Point) -> (Vec<Contact>, usize) {
        fit_contacts(
            self.table
                .closest(target, K + 1)
                .filter(|contact| contact.node_id() != peer),
        )
    }

    /// A stranger that could be of use to the routing table is asked whether it answers.
    fn meet(&mut self, now: Instant, from: &Peer) {
        if from.role == Role::Client || from.contact.endpoints().is_empty() || self.probing.len() >= MAX_PROBES {
            return;
        }
        // Ids cost nothing: one subnet that answers no pings must not take all the places.
        let subnet = from.contact.subnet();
        let neighbours = self.probing.values().filter(|probed| **probed == subnet).count();
        if subnet.is_limited() && neighbours >= self.config.diversity.per_bucket {
            return;
        }
        if self.table.wants(&from.contact) {
            self.probe(now, from.contact.clone());
        }
    }

    /// Asks a node whether it answers, unless it is being asked.
    pub(super) fn probe(&mut self, now: Instant, contact: Contact) {
        if self.probing.insert(*contact.node_id(), contact.subnet()).is_none() {
            self.send(now, contact, Purpose::Probe, Request::Ping);
        }
    }

    /// Whether this node is among those that should hold `key`: few it knows are closer, or the key lies within the region
    /// that the k closest would take up in a network of this size, however many have crowded into it.
    pub(super) fn is_responsible(&self, key: &ServiceKey) -> bool {
        let key = Point::from(key);
        let within = || {
            self.size
                .region(2.0)
                .is_some_and(|region| Point::from(self.own).distance(&key) <= region)
        };
        self.is_node() && (self.table.closer_than_self(&key, RESPONSIBLE) < RESPONSIBLE || within())
    }

    /// Stores a peer's record, or says why not. What is cheap to see is looked at before the signature.
    fn take(&mut self, now: Instant, from: &Contact, key: &ServiceKey, record: &SignedProvider) -> Result<(), Refusal> {
        if record.body.len() > MAX_RECORD_BYTES {
            return Err(Refusal::Invalid);
        }
        let peek = peek(&record.body).ok_or(Refusal::Invalid)?;
        if peek.node == self.own {
            // What this node publishes it knows best.
            return Ok(());
        }
        if self.store.precheck(now, key, record, &peek, from)? == Inserted::Unchanged {
            return Ok(());
        }
        if !self.limiter.admit_signature(self.clock.tick(now)) {
            return Err(Refusal::Busy);
        }
        let verified = record.verify(&self.realm_hash, key);
        self.limiter
            .charge_signature(self.clock.tick(now), from.node_id(), verified.is_ok());
        let verified = verified.map_err(|_| Refusal::Invalid)?;
        self.store.insert(now, verified, Origin::Remote(from))?;
        self.touch_backend(now);
        Ok(())
    }
}
