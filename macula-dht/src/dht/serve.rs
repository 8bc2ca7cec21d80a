//! Answers to the requests of peers.

use std::time::Instant;

use macula_wire::{
    AccessError, MAX_CHAIN_BYTES, MAX_RECORD_BYTES, Network, NodeId, RecordError, ServiceKey, SignedProvider, Signer,
    VerifiedProvider,
};

use super::{Dht, checks::Checks};
use crate::{
    Backend, Contact, Declined, Inserted, MessageError, Origin, Outcome, Peer, Point, Refusal, Request, Response, Role,
    message::{fit_contacts, fit_records, peek, wire_bytes},
    table::K,
};

/// A request that [`Dht::begin_request`] has taken.
#[derive(Debug)]
#[must_use]
pub enum Begun {
    /// It is answered.
    Answered(Response),
    /// [`Dht::finish_request`] answers it when these signatures are checked.
    Checking(Checks<Publication>),
}

/// A peer's publication, whose records are checked.
#[derive(Debug)]
pub struct Publication {
    from: Contact,
    key: ServiceKey,
    records: Vec<SignedProvider>,
    /// One for each record.
    verdicts: Vec<Verdict>,
}

/// The verdict on a record of a publication.
#[derive(Debug)]
enum Verdict {
    Given(Outcome),
    /// It depends on the next of the records that are checked.
    AfterCheck,
}

/// A record that is not refused at sight.
enum Sight {
    /// It is stored already.
    Known,
    /// Its signature is to be checked.
    Unknown,
}

impl<S: Signer, B: Backend> Dht<S, B> {
    /// Answers a peer's request, as it was decoded. The answer is at most [`MAX_MESSAGE_BYTES`](crate::MAX_MESSAGE_BYTES) long.
    ///
    /// Signatures in it are checked at once; a shell that has other tasks calls [`Dht::begin_request`].
    pub fn handle_request(&mut self, now: Instant, from: &Peer, request: Result<Request, MessageError>) -> Response {
        match self.begin_request(now, from, request) {
            Begun::Answered(response) => response,
            Begun::Checking(checks) => self.finish_request(now, checks),
        }
    }

    /// Like [`Dht::handle_request`], but leaves the signature checks to the caller: run them on another task, then call
    /// [`Dht::finish_request`]. The rates of the peer's network bound their number.
    pub fn begin_request(&mut self, now: Instant, from: &Peer, request: Result<Request, MessageError>) -> Begun {
        let tick = self.local.tick(now);
        let peer = from.contact.node_id();
        if !self.limiter.admit(tick, peer) {
            self.counters.rate_limited += 1;
            return Begun::Answered(Response::Declined(Declined::RateLimited));
        }
        let Ok(request) = request else {
            self.counters.malformed += 1;
            return Begun::Answered(Response::Declined(Declined::Malformed));
        };
        self.counters.served += 1;
        self.meet(now, from);
        let response = match request {
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
            Request::Publish { key, records } => return self.begin_publication(now, &from.contact, key, records),
        };
        Begun::Answered(response)
    }

    /// Decides which records of a publication are to be checked.
    fn begin_publication(
        &mut self,
        now: Instant,
        from: &Contact,
        key: ServiceKey,
        records: Vec<SignedProvider>,
    ) -> Begun {
        let responsible = self.local.is_responsible(&key);
        let (mut verdicts, mut unchecked) = (Vec::with_capacity(records.len()), Vec::new());
        for record in &records {
            let seen = if responsible {
                self.look_at(now, from, &key, record)
            } else {
                Err(Refusal::NotResponsible)
            };
            verdicts.push(match seen {
                Ok(Sight::Known) => Verdict::Given(Outcome::Stored),
                Ok(Sight::Unknown) => {
                    unchecked.push(record.clone());
                    Verdict::AfterCheck
                }
                Err(refusal) => Verdict::Given(Outcome::Refused(refusal)),
            });
        }
        let publication = Publication {
            from: from.clone(),
            key,
            records,
            verdicts,
        };
        if unchecked.is_empty() {
            Begun::Answered(self.end_publication(now, publication, Vec::new()))
        } else {
            Begun::Checking(Checks::new(&self.local, now, key, unchecked, publication))
        }
    }

    /// Answers a request whose records were checked. Those that were not are checked now.
    pub fn finish_request(&mut self, now: Instant, checks: Checks<Publication>) -> Response {
        let (publication, checked) = checks.finish();
        self.end_publication(now, publication, checked)
    }

    fn end_publication(
        &mut self,
        now: Instant,
        publication: Publication,
        checked: Vec<Result<VerifiedProvider, RecordError>>,
    ) -> Response {
        let Publication {
            from,
            key,
            records,
            verdicts,
        } = publication;
        let mut checked = checked.into_iter();
        let before = self.local.store.held(&key, from.node_id()).cloned();
        let outcomes = verdicts.into_iter().map(|verdict| match verdict {
            Verdict::Given(outcome) => outcome,
            Verdict::AfterCheck => {
                let taken = checked.next().ok_or(Refusal::Busy);
                let taken = taken.and_then(|record| self.take(now, &from, record));
                taken.map_or_else(Outcome::Refused, |()| Outcome::Stored)
            }
        });
        let outcomes: Vec<_> = outcomes.collect();
        let mut newer = self.newer_records(from.node_id(), &key, &records, &outcomes);
        newer.extend(self.replaced_record(from.node_id(), &key, before));
        let bytes = newer.iter().map(wire_bytes).sum();
        self.limiter.charge(self.local.tick(now), from.node_id(), bytes);
        let stored = outcomes.iter().filter(|outcome| **outcome == Outcome::Stored).count();
        self.counters.stored += stored as u64;
        self.counters.refused += (outcomes.len() - stored) as u64;
        self.keeper.note_changes(&self.local, now);
        Response::Published { outcomes, newer }
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

    /// The record of a publisher that its new one has replaced, when that one has other addresses: it tells the publisher whether another
    /// process has its key.
    fn replaced_record(
        &self,
        publisher: &NodeId,
        key: &ServiceKey,
        before: Option<VerifiedProvider>,
    ) -> Option<SignedProvider> {
        let held = self.local.store.held(key, publisher)?.advertisement()?;
        let before = before?;
        let has_moved = before.advertisement()?.endpoints() != held.endpoints();
        has_moved.then(|| before.to_signed())
    }

    fn closest_for(&self, peer: &NodeId, target: &Point) -> (Vec<Contact>, usize) {
        let closest = self.local.table.closest(target, K + 1);
        fit_contacts(
            closest
                .filter(|contact| contact.node_id() != peer)
                .map(Contact::as_told),
        )
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

    /// Looks at everything about a peer's record that is cheap to see, before its signature.
    fn look_at(
        &mut self,
        now: Instant,
        from: &Contact,
        key: &ServiceKey,
        record: &SignedProvider,
    ) -> Result<Sight, Refusal> {
        if record.body.len() > MAX_RECORD_BYTES || record.chain.len() > MAX_CHAIN_BYTES {
            return Err(Refusal::Invalid);
        }
        let peek = peek(&record.body).ok_or(Refusal::Invalid)?;
        if peek.node == self.local.own {
            // This node knows its own records best.
            return Ok(Sight::Known);
        }
        if self.local.store.precheck(now, key, record, &peek, from)? == Inserted::Unchanged {
            return Ok(Sight::Known);
        }
        let tick = self.local.tick(now);
        let network = Network::from(from.ip());
        let is_new = peek
            .chain
            .is_some_and(|chain| self.local.verifier.known(&chain).is_none());
        // A chain that was not seen before has up to two signatures of its own.
        let signatures = if is_new { 3 } else { 1 };
        if (0..signatures).all(|_| self.limiter.admit_signature(tick, network)) {
            Ok(Sight::Unknown)
        } else {
            Err(Refusal::Busy)
        }
    }

    /// Stores a peer's record that was checked, or says why not.
    fn take(
        &mut self,
        now: Instant,
        from: &Contact,
        checked: Result<VerifiedProvider, RecordError>,
    ) -> Result<(), Refusal> {
        let verified = self.local.confirm(now, checked);
        // A peer may not have heard yet that a grant has ended or was revoked.
        let is_outdated = matches!(
            verified,
            Err(RecordError::Access(
                AccessError::Ended(_) | AccessError::NotYet(_) | AccessError::Revoked(_)
            ))
        );
        let is_honest = verified.is_ok() || is_outdated;
        self.limiter
            .charge_signature(self.local.tick(now), from.node_id(), is_honest);
        if !is_honest {
            self.counters.unproven += 1;
            self.denounce(now, *from.node_id());
        }
        let verified = verified.map_err(|_| Refusal::Invalid)?;
        if !from.may_bring(&verified) {
            return Err(Refusal::Loopback);
        }
        self.local.store.insert(now, verified, Origin::Remote(from))?;
        Ok(())
    }
}
