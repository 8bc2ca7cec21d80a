//! Answers to the requests of peers.

use std::time::Instant;

use macula_wire::{
    MAX_CHAIN_BYTES, MAX_RECORD_BYTES, Network, NodeId, ServiceKey, SignedProvider, Signer, VerifiedProvider,
};

use super::Dht;
use crate::{
    Backend, Contact, Declined, Inserted, MessageError, Origin, Outcome, Peer, Point, Refusal, Request, Response, Role,
    message::{fit_contacts, fit_records, peek, wire_bytes},
    table::K,
};

impl<S: Signer, B: Backend> Dht<S, B> {
    /// Answers a peer's request, as it was decoded. The answer is at most [`MAX_MESSAGE_BYTES`](crate::MAX_MESSAGE_BYTES) long.
    pub fn handle_request(&mut self, now: Instant, from: &Peer, request: Result<Request, MessageError>) -> Response {
        let tick = self.local.tick(now);
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
                // A request for the next page comes from a peer that has the contacts already.
                let (closest, used) = match after {
                    None => self.closest_for(peer, &key.into()),
                    Some(_) => (Vec::new(), 0),
                };
                let (records, more) = fit_records(self.local.store.page(now, &key, after.as_ref()), used);
                let bytes = records.iter().map(wire_bytes).sum::<usize>() + used;
                self.limiter.charge(tick, peer, bytes);
                Response::Providers { records, closest, more }
            }
            Request::Publish { key, records } => {
                let responsible = self.local.is_responsible(&key);
                let outcomes = records.iter().map(|record| {
                    let taken = if responsible {
                        self.take(now, &from.contact, &key, record)
                    } else {
                        Err(Refusal::NotResponsible)
                    };
                    taken.map_or_else(Outcome::Refused, |()| Outcome::Stored)
                });
                let outcomes: Vec<_> = outcomes.collect();
                let newer = self.newer_records(from.contact.node_id(), &key, &records, &outcomes);
                let bytes = newer.iter().map(wire_bytes).sum();
                self.limiter.charge(tick, peer, bytes);
                let stored = outcomes.iter().filter(|outcome| **outcome == Outcome::Stored).count();
                self.counters.stored += stored as u64;
                self.counters.refused += (outcomes.len() - stored) as u64;
                self.keeper.note_changes(&self.local, now);
                Response::Published { outcomes, newer }
            }
        }
    }

    /// The stored records that prove to a publisher that its own records are stale.
    fn newer_records(
        &self,
        publisher: &NodeId,
        key: &ServiceKey,
        records: &[SignedProvider],
        outcomes: &[Outcome],
    ) -> Vec<SignedProvider> {
        let outcomes = records.iter().zip(outcomes);
        let mut stale = outcomes.filter(|(_, outcome)| **outcome == Outcome::Refused(Refusal::Stale));
        let is_own = |record: &SignedProvider| peek(&record.body).is_some_and(|peek| peek.node == *publisher);
        let held = if stale.any(|(record, _)| is_own(record)) {
            self.local.store.held(key, publisher)
        } else {
            None
        };
        held.map(VerifiedProvider::to_signed).into_iter().collect()
    }

    fn closest_for(&self, peer: &NodeId, target: &Point) -> (Vec<Contact>, usize) {
        let closest = self.local.table.closest(target, K + 1);
        fit_contacts(closest.filter(|contact| contact.node_id() != peer))
    }

    /// Asks a stranger whether it answers when the routing table has a use for it, and only where it was seen.
    fn meet(&mut self, now: Instant, from: &Peer) {
        let contact = &from.contact;
        if from.role == Role::Node
            && !contact.endpoints().is_empty()
            && self
                .probes
                .has_room(contact.subnet(), self.local.config.diversity.per_bucket)
            && self.local.table.wants(contact)
            && let Some(contact) = contact.as_seen()
        {
            self.probe(now, contact);
        }
    }

    /// Stores a peer's record, or says why not. Everything that is cheap to see is looked at before the signature.
    fn take(&mut self, now: Instant, from: &Contact, key: &ServiceKey, record: &SignedProvider) -> Result<(), Refusal> {
        if record.body.len() > MAX_RECORD_BYTES || record.chain.len() > MAX_CHAIN_BYTES {
            return Err(Refusal::Invalid);
        }
        let peek = peek(&record.body).ok_or(Refusal::Invalid)?;
        if peek.node == self.local.own {
            // This node knows its own records best.
            return Ok(());
        }
        if self.local.store.precheck(now, key, record, &peek, from)? == Inserted::Unchanged {
            return Ok(());
        }
        let tick = self.local.tick(now);
        let network = Network::from(from.ip());
        let is_new = peek
            .chain
            .is_some_and(|chain| self.local.verifier.known(&chain).is_none());
        // A chain that was not seen before has up to two signatures of its own.
        let signatures = if is_new { 3 } else { 1 };
        if !(0..signatures).all(|_| self.limiter.admit_signature(tick, network)) {
            return Err(Refusal::Busy);
        }
        let verified = self.local.verify(now, key, record);
        self.limiter.charge_signature(tick, from.node_id(), verified.is_ok());
        let verified = verified.map_err(|_| Refusal::Invalid)?;
        self.local.store.insert(now, verified, Origin::Remote(from))?;
        Ok(())
    }
}
