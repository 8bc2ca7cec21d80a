//! This node's own services: published, kept published, withdrawn (D3, D5, D6).
//!
//! A job looks up the nodes closest to the key, then sends them the record. One service has at most one job; a newer one
//! replaces it. Services that are due are taken in the order of their time and then of their keys, [`MAX_JOBS`] at once.
//!
//! Many services are one sweep through the key space: when another one is due soon within the subtree that holds a key's k
//! closest nodes, the lookup takes in the whole subtree, after which the k closest of every key in it are known exactly, and
//! all the services in it are published without another lookup. That takes about n / k lookups however many services there are.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use macula_wire::{Advertisement, MAX_TTL, NodeId, RecordError, ServiceKey, Signer, VerifiedProvider};

use super::{
    Dht, TooManyQueries,
    exchange::Purpose,
    queries::{Goal, Query},
};
use crate::{
    Backend, Contact, Distance, Event, InsertError, K, Origin, Outcome, Output, Point, QueryId, Refusal, Request,
    clock::{Tick, nanos},
};

/// The most publications that run at a time.
pub const MAX_JOBS: usize = 16;
/// How long before a record expires it is published anew.
const REFRESH_AHEAD: Duration = Duration::from_secs(60);
/// The shortest time between two publications of a service.
const MIN_REFRESH: Duration = Duration::from_secs(10);
/// When a publication that nobody acknowledged, or that was refused for the time being, is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How far ahead of its time a service is published when its neighbours are.
const SWEEP_AHEAD: Duration = Duration::from_secs(5);
/// By how much a sequence number grows, doubled each time, when holders know a larger one.
const SEQ_STEP: u64 = 60_000;

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
    /// How often in a row holders knew a larger sequence number.
    outdated: u32,
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
            outdated: 0,
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
        self.start_job(now, key, Kind::Withdraw, record, service.holders, None);
    }

    /// The keys this node advertises, ascending.
    pub fn advertised(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.keys()
    }

    /// Publishes what is due, as far as the number of jobs allows.
    pub(super) fn start_due_jobs(&mut self, now: Instant) {
        let tick = self.clock.tick(now);
        while self.jobs.len() < MAX_JOBS {
            if let Some((key, nodes)) = self.ready.pop_front() {
                self.publish(now, key, Some(&nodes));
            } else if let Some(&(due, key)) = self.due.first()
                && due <= tick
            {
                self.due.pop_first();
                self.publish(now, key, None);
            } else {
                break;
            }
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

    /// Publishes a service, to the closest of `nodes` when these are known to hold all that are closest.
    fn publish(&mut self, now: Instant, key: ServiceKey, nodes: Option<&[Contact]>) {
        let Some(service) = self.services.get(&key) else { return };
        if service.job.is_some() || self.due.contains(&(service.next, key)) {
            // It was advertised anew while it was waiting.
            return;
        }
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
        if let Some(service) = self.services.get_mut(&key) {
            service.next = next;
            self.due.insert((next, key));
        }
        let id = self.start_job(now, key, Kind::Advertise, record, Vec::new(), nodes);
        // A job may end at once.
        if let Some(service) = self.services.get_mut(&key)
            && self.jobs.contains_key(&id)
        {
            service.job = Some(id);
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
        nodes: Option<&[Contact]>,
    ) -> QueryId {
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
        let started = match nodes {
            Some(_) => Err(TooManyQueries),
            None => self.start(now, key.into(), Goal::Publish),
        };
        match started {
            Ok(id) => {
                self.jobs.insert(id, job);
                self.pump(now, id);
                id
            }
            Err(TooManyQueries) => {
                // The nodes are known, or there is no room for a lookup: then a refresh comes round again, and a withdrawal
                // goes to those who hold the record.
                let id = QueryId(self.next_query);
                self.next_query += 1;
                self.jobs.insert(id, job);
                let point = Point::from(key);
                let mut closest = nodes.unwrap_or_default().to_vec();
                closest.sort_by_cached_key(|contact| Point::from(contact.node_id()).distance(&point));
                closest.truncate(K);
                self.send_records(now, id, closest);
                id
            }
        }
    }

    /// The lookup for a job's key has come to its end: the record goes out, or the lookup goes on through the subtree for the
    /// sake of other services there.
    pub(super) fn on_publish_lookup(&mut self, now: Instant, id: QueryId, mut query: Query) {
        let (Some(job), [lookup]) = (self.jobs.get(&id), &mut query.paths[..]) else {
            return;
        };
        let (key, point) = (job.key, Point::from(job.key));
        // With fewer than k in all, everybody is known.
        let bits = lookup.kth().map_or(0, |kth| kth.shared_bits());
        let others = self.due_within(now, &key, bits);
        if !others.is_empty() && lookup.kth().is_some() && !lookup.is_widened() {
            lookup.widen(Distance::within(bits));
            if !lookup.is_finished() {
                self.queries.insert(id, query);
                return self.pump(now, id);
            }
        }
        let crowd = lookup
            .kth()
            .filter(|&kth| self.size.is_crowded(kth))
            .and_then(|_| self.size.region(1.0));
        let nodes: Arc<[Contact]> = lookup.all_answered().cloned().collect();
        if crowd.is_none() {
            for other in others {
                if let Some(service) = self.services.get(&other) {
                    self.due.remove(&(service.next, other));
                    self.ready.push_back((other, Arc::clone(&nodes)));
                }
            }
        }
        let within =
            |contact: &Contact| crowd.is_some_and(|region| Point::from(contact.node_id()).distance(&point) <= region);
        let targets = nodes
            .iter()
            .enumerate()
            .filter(|(at, contact)| *at < K || within(contact));
        let targets = targets.map(|(_, contact)| contact.clone()).collect();
        self.send_records(now, id, targets);
        self.start_due_jobs(now);
    }

    /// Other services that share `bits` bits with `key` and are due soon.
    fn due_within(&self, now: Instant, key: &ServiceKey, bits: usize) -> Vec<ServiceKey> {
        let soon = self.clock.tick(now) + nanos(SWEEP_AHEAD);
        let point = Point::from(key);
        let first = ServiceKey::from_bytes(point.with_tail(bits, false).to_bytes());
        let last = ServiceKey::from_bytes(point.with_tail(bits, true).to_bytes());
        let near = self.services.range(first..=last);
        near.filter(|(other, service)| {
            *other != key && service.next <= soon && self.due.contains(&(service.next, **other))
        })
        .map(|(other, _)| *other)
        .collect()
    }

    /// A job's targets are known: they get the record.
    fn send_records(&mut self, now: Instant, id: QueryId, closest: Vec<Contact>) {
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
                self.settle_service(now, &key, job.holders, &refused, unreachable);
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

    fn settle_service(
        &mut self,
        now: Instant,
        key: &ServiceKey,
        holders: Vec<Contact>,
        refused: &[(NodeId, Refusal)],
        unreachable: usize,
    ) {
        let refused_as = |refusal| refused.iter().any(|(_, given)| *given == refusal);
        let expects_peers = unreachable > 0 || !self.table.is_empty() || self.joining.has_seeds();
        let unheld = holders.is_empty() && refused.is_empty() && expects_peers;
        let retry = self.clock.tick(now) + nanos(RETRY);
        let Some(service) = self.services.get_mut(key) else {
            return;
        };
        service.job = None;
        service.holders = holders;
        let outdated = refused_as(Refusal::Stale);
        if outdated {
            // This node's clock was set back since the last process of this identity. How far is not known.
            service.seq = service.seq.saturating_add(SEQ_STEP << service.outdated.min(30));
            service.outdated += 1;
        } else {
            service.outdated = 0;
        }
        if (unheld || outdated || refused_as(Refusal::Busy)) && service.next > retry {
            self.due.remove(&(service.next, *key));
            service.next = retry;
            self.due.insert((retry, *key));
        }
    }
}
