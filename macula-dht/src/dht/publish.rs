//! This node's own services: published, kept published, withdrawn (D3, D5, D6).
//!
//! A job looks up the nodes closest to the key, then sends them the record. One service has at most one job; a newer one
//! replaces it. Services that are due are taken in the order of their time and then of their keys, [`MAX_JOBS`] at once.

use std::time::{Duration, Instant};

use macula_wire::{Advertisement, MAX_TTL, NodeId, RecordError, ServiceKey, Signer, VerifiedProvider};

use super::{Dht, exchange::Purpose, queries::Goal};
use crate::{
    Backend, Contact, Event, InsertError, Origin, Outcome, Output, QueryId, Refusal, Request,
    clock::{Tick, nanos},
};

/// The most publications that run at a time.
pub const MAX_JOBS: usize = 16;
/// How long before a record expires it is published anew.
const REFRESH_AHEAD: Duration = Duration::from_secs(60);
/// The shortest time between two publications of a service.
const MIN_REFRESH: Duration = Duration::from_secs(10);
/// When a publication that nobody acknowledged is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// A service cannot be advertised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdvertiseError {
    /// The advertisement breaks a limit of records.
    #[error("the advertisement is not valid")]
    Record(#[from] RecordError),
    /// This node's own store does not take it.
    #[error("this node cannot hold another record of its own")]
    Store(#[from] InsertError),
}

/// A service this node advertises.
#[derive(Debug)]
pub(super) struct Service {
    advertisement: Advertisement,
    seq: u64,
    /// The longest validity any of its records was given: a withdrawal has to outlive them all.
    longest_ttl: Duration,
    /// Who acknowledged the last publication.
    holders: Vec<Contact>,
    job: Option<QueryId>,
    /// When it is published next.
    next: Tick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Advertise,
    Withdraw,
}

/// A publication under way.
#[derive(Debug)]
pub(super) struct Job {
    key: ServiceKey,
    kind: Kind,
    record: VerifiedProvider,
    /// Holders of earlier records, who are told of a withdrawal even if they are no longer among the closest.
    former: Vec<Contact>,
    waiting: usize,
    holders: Vec<Contact>,
    refused: Vec<(NodeId, Refusal)>,
    unreachable: usize,
}

impl<S: Signer, B: Backend> Dht<S, B> {
    /// Publishes this node as a provider of `key`, and keeps it published (D5). Replaces an earlier advertisement.
    ///
    /// Each publication is reported with [`Event::Advertised`].
    ///
    /// # Errors
    /// When the advertisement is not valid, or there are too many.
    pub fn advertise(
        &mut self,
        now: Instant,
        key: ServiceKey,
        advertisement: Advertisement,
    ) -> Result<(), AdvertiseError> {
        let (seq, record) = self.sign(now, &key, &advertisement)?;
        self.store.insert(now, record.clone(), Origin::Local)?;
        self.touch_backend(now);
        let ttl = advertisement.ttl();
        let mut service = Service {
            advertisement,
            seq,
            longest_ttl: ttl,
            holders: Vec::new(),
            job: None,
            next: 0,
        };
        if let Some(former) = self.services.remove(&key) {
            self.due.remove(&(former.next, key));
            self.cancel(former.job);
            service.longest_ttl = ttl.max(former.longest_ttl);
            service.holders = former.holders;
        }
        service.next = self.clock.tick(now);
        self.due.insert((service.next, key));
        self.services.insert(key, service);
        self.start_due_jobs(now);
        Ok(())
    }

    /// Withdraws this node as a provider of `key`, here at once and at the holders as they hear of it (D3).
    ///
    /// [`Event::Withdrawn`] tells when they have. Withdrawing what was never advertised is reported the same way.
    pub fn withdraw(&mut self, now: Instant, key: ServiceKey) {
        let Some(service) = self.services.remove(&key) else {
            let event = Event::Withdrawn {
                key,
                acknowledged: 0,
                unacknowledged: 0,
            };
            return self.outputs.push_back(Output::Event(event));
        };
        self.due.remove(&(service.next, key));
        self.cancel(service.job);
        let seq = self.next_seq(now, &key, service.seq);
        let ttl = service.longest_ttl.min(MAX_TTL);
        let unix_ms = self.clock.unix_ms(now);
        let signed = VerifiedProvider::sign_withdrawal(&self.signer, &self.realm_hash, &key, seq, unix_ms, ttl);
        // Neither can fail: the validity was that of a record, and the place in the store is held.
        let Ok(record) = signed else { return };
        let stored = self.store.insert(now, record.clone(), Origin::Local);
        debug_assert!(stored.is_ok(), "{stored:?}");
        self.touch_backend(now);
        self.start_job(now, key, Kind::Withdraw, record, service.holders);
    }

    /// The keys this node advertises, ascending.
    pub fn advertised(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.keys()
    }

    /// Publishes what is due, as far as the number of jobs allows.
    pub(super) fn start_due_jobs(&mut self, now: Instant) {
        let tick = self.clock.tick(now);
        while self.jobs.len() < MAX_JOBS
            && let Some(&(due, key)) = self.due.first()
            && due <= tick
        {
            self.due.pop_first();
            self.publish(now, key);
        }
    }

    /// Publishes every service that nobody holds: this node has found its mesh.
    pub(super) fn publish_unheld(&mut self, now: Instant) {
        let tick = self.clock.tick(now);
        for (key, service) in &mut self.services {
            if service.holders.is_empty() && service.job.is_none() && self.due.remove(&(service.next, *key)) {
                service.next = tick;
                self.due.insert((tick, *key));
            }
        }
        self.start_due_jobs(now);
    }

    fn publish(&mut self, now: Instant, key: ServiceKey) {
        let Some(service) = self.services.get(&key) else { return };
        let advertisement = service.advertisement.clone();
        let published = self
            .store
            .held(&key, &self.own)
            .filter(|r| r.advertised_at_ms() == self.clock.unix_ms(now));
        let record = match published.cloned() {
            // Signed in this very moment.
            Some(record) => record,
            None => match self.sign(now, &key, &advertisement) {
                Ok((seq, record)) => {
                    // The place is held, so that only the dates could be wrong, and they are this clock's.
                    let stored = self.store.insert(now, record.clone(), Origin::Local);
                    debug_assert!(stored.is_ok(), "{stored:?}");
                    self.touch_backend(now);
                    if let Some(service) = self.services.get_mut(&key) {
                        service.seq = seq;
                    }
                    record
                }
                // It was valid when it was advertised, and nothing of it has changed.
                Err(_) => return,
            },
        };
        let refresh = MIN_REFRESH.max(advertisement.ttl().saturating_sub(REFRESH_AHEAD));
        let next = self.clock.tick(now) + nanos(refresh);
        let job = self.start_job(now, key, Kind::Advertise, record, Vec::new());
        if let Some(service) = self.services.get_mut(&key) {
            service.job = job.filter(|job| self.jobs.contains_key(job));
            // A job that ended at once has set the time already.
            if service.next <= self.clock.tick(now) {
                service.next = next;
                self.due.insert((next, key));
            }
        }
    }

    fn sign(
        &self,
        now: Instant,
        key: &ServiceKey,
        advertisement: &Advertisement,
    ) -> Result<(u64, VerifiedProvider), RecordError> {
        let seq = self.next_seq(now, key, self.services.get(key).map_or(0, |service| service.seq));
        let unix_ms = self.clock.unix_ms(now);
        let record = VerifiedProvider::sign(&self.signer, &self.realm_hash, key, seq, unix_ms, advertisement)?;
        Ok((seq, record))
    }

    /// `max(last + 1, unix_ms)`, where the last one may be that of a withdrawal which is still held.
    fn next_seq(&self, now: Instant, key: &ServiceKey, last: u64) -> u64 {
        let held = self.store.held(key, &self.own).map_or(0, VerifiedProvider::seq);
        last.max(held).saturating_add(1).max(self.clock.unix_ms(now))
    }

    fn cancel(&mut self, job: Option<QueryId>) {
        if let Some(job) = job {
            self.jobs.remove(&job);
            self.queries.remove(&job);
        }
    }

    fn start_job(
        &mut self,
        now: Instant,
        key: ServiceKey,
        kind: Kind,
        record: VerifiedProvider,
        former: Vec<Contact>,
    ) -> Option<QueryId> {
        let job = Job {
            key,
            kind,
            record,
            former,
            waiting: 0,
            holders: Vec::new(),
            refused: Vec::new(),
            unreachable: 0,
        };
        match self.start(now, key.into(), Goal::Publish) {
            Ok(id) => {
                self.jobs.insert(id, job);
                self.pump(now, id);
                Some(id)
            }
            Err(_) => {
                // No room for the lookup. A refresh comes round again; a withdrawal goes to those who hold the record.
                let id = QueryId(self.next_query);
                self.next_query += 1;
                self.jobs.insert(id, job);
                self.on_holders_found(now, id, Vec::new());
                Some(id)
            }
        }
    }

    /// The closest nodes of a job's key are known: they get the record.
    pub(super) fn on_holders_found(&mut self, now: Instant, id: QueryId, closest: Vec<Contact>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let mut targets = closest;
        for contact in std::mem::take(&mut job.former) {
            if targets.iter().all(|target| target.node_id() != contact.node_id()) {
                targets.push(contact);
            }
        }
        job.waiting = targets.len();
        let (key, record) = (job.key, job.record.to_signed());
        for contact in targets {
            let request = Request::Publish {
                key,
                records: vec![record.clone()],
            };
            self.send(now, contact, Purpose::Store { job: id }, request);
        }
        self.end_job_if_done(now, id);
    }

    /// One of a job's targets answered, or did not.
    pub(super) fn on_stored(&mut self, now: Instant, id: QueryId, contact: Contact, outcome: Option<Outcome>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.waiting = job.waiting.saturating_sub(1);
        match outcome {
            Some(Outcome::Stored) => job.holders.push(contact),
            Some(Outcome::Refused(refusal)) => job.refused.push((*contact.node_id(), refusal)),
            None => job.unreachable += 1,
        }
        self.end_job_if_done(now, id);
    }

    fn end_job_if_done(&mut self, now: Instant, id: QueryId) {
        if self.jobs.get(&id).is_none_or(|job| job.waiting > 0) {
            return;
        }
        let Some(job) = self.jobs.remove(&id) else { return };
        let acknowledged = job.holders.len();
        let Job {
            key,
            refused,
            unreachable,
            ..
        } = job;
        let event = match job.kind {
            Kind::Withdraw => Event::Withdrawn {
                key,
                acknowledged,
                unacknowledged: refused.len() + unreachable,
            },
            Kind::Advertise => {
                self.settle_service(now, &key, job.holders, unreachable > 0 || !refused.is_empty());
                Event::Advertised {
                    key,
                    acknowledged,
                    refused,
                    unreachable,
                }
            }
        };
        self.outputs.push_back(Output::Event(event));
        self.start_due_jobs(now);
    }

    fn settle_service(&mut self, now: Instant, key: &ServiceKey, holders: Vec<Contact>, troubled: bool) {
        let expects_peers = troubled || !self.table.is_empty() || self.joining.has_seeds();
        let retry = self.clock.tick(now) + nanos(RETRY);
        let Some(service) = self.services.get_mut(key) else {
            return;
        };
        service.job = None;
        if holders.is_empty() && expects_peers && service.next > retry {
            self.due.remove(&(service.next, *key));
            service.next = retry;
            self.due.insert((retry, *key));
        }
        service.holders = holders;
    }
}
