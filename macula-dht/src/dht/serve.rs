//! Answering peers.

use std::time::Instant;

use macula_wire::{NodeId, ServiceKey, SignedProvider, Signer};

use super::{Dht, MAX_PROBES, exchange::Purpose};
use crate::{
    Backend, Contact, Declined, InsertError, K, MessageError, Origin, Outcome, Peer, Point, Refusal, Request, Response,
    Role,
    message::{fit_contacts, fit_records},
};

/// A node holds a key when fewer than this many of those it knows are closer to it: twice k, since two nodes rarely agree
/// on who the k closest are.
const RESPONSIBLE: usize = 2 * K;

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
                let outcomes = records.iter().map(|record| match responsible {
                    false => Outcome::Refused(Refusal::NotResponsible),
                    true => self.take(now, &from.contact, &key, record),
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
        let node = from.contact.node_id();
        if from.role == Role::Client || from.contact.endpoints().is_empty() || self.probing.len() >= MAX_PROBES {
            return;
        }
        if self.table.wants(&from.contact) && self.probing.insert(*node) {
            self.send(now, from.contact.clone(), Purpose::Probe, Request::Ping);
        }
    }

    /// Whether this node is among those that should hold `key`.
    pub(super) fn is_responsible(&self, key: &ServiceKey) -> bool {
        self.is_node() && self.table.closer_than_self(&key.into(), RESPONSIBLE) < RESPONSIBLE
    }

    /// Stores a peer's record, or says why not. What is cheap to see is looked at before the signature.
    fn take(&mut self, now: Instant, from: &Contact, key: &ServiceKey, record: &SignedProvider) -> Outcome {
        let verified = match self.verify(now, key, record) {
            Ok(verified) => verified,
            Err(refusal) => return Outcome::Refused(refusal),
        };
        if *verified.node_id() == self.own {
            // Somebody hands our own record back. We know what we publish.
            return Outcome::Stored;
        }
        match self.store.insert(now, verified, Origin::Remote(from)) {
            Ok(_) => {
                self.touch_backend(now);
                Outcome::Stored
            }
            Err(InsertError::Stale { .. }) => Outcome::Refused(Refusal::Stale),
            Err(error) => Outcome::Refused(error.into()),
        }
    }

    fn verify(
        &mut self,
        now: Instant,
        key: &ServiceKey,
        record: &SignedProvider,
    ) -> Result<macula_wire::VerifiedProvider, Refusal> {
        if !self.limiter.admit_signature(self.clock.tick(now)) {
            return Err(Refusal::StoreFull);
        }
        record.verify(&self.realm_hash, key).map_err(|_| Refusal::Invalid)
    }
}
