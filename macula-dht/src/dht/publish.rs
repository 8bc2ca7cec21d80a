//! This node's own services: published, kept published, withdrawn (D3, D5, D6).
//!
//! A job looks up the nodes closest to the key, then sends them the record. One service has at most one job; a newer one
//! replaces it. Services that are due are taken in the order of their time and then of their keys, [`MAX_JOBS`] at once.
//!
//! Many services are one sweep through the key space: what the lookups of the last half minute met is remembered, and a key
//! around which everybody is known needs no lookup. Where services lie dense, the lookups are for what is not known yet rather than
//! for the keys, so that they are as many as there are neighbourhoods, about n / k, however many services there are.
//!
//! Where the k closest nodes lie denser than chance would have it, somebody may have made ids to surround the key. The record
//! then goes to everybody in the region that k nodes take up on average, the k closest among them.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use macula_wire::{Advertisement, MAX_TTL, NodeId, RecordError, ServiceKey, Signer, VerifiedProvider};

use super::{
    Dht,
    exchange::Purpose,
    queries::{Goal, Query},
    serve::RESPONSIBLE,
};
use crate::{
    Backend, Contact, Distance, Event, InsertError, K, Origin, Outcome, Output, Point, QueryId, Refusal, Request,
    clock::{Tick, nanos},
};

/// When more withdrawals than this wait, they go by what the sweep has met so far, like publications.
const MANY_WITHDRAWALS: usize = 64;
/// The most publications that run at a time.
pub const MAX_JOBS: usize = 16;
/// How long before a record expires it is published anew.
const REFRESH_AHEAD: Duration = Duration::from_secs(60);
/// The shortest time between two publications of a service.
const MIN_REFRESH: Duration = Duration::from_secs(10);
/// When a publication that nobody acknowledged, or that was refused for the time being, is tried again. After a refusal the wait
/// doubles each time in a row: it goes to all holders, and a single one that always refuses must not make a flood for the others.
const RETRY: Duration = Duration::from_secs(5);
/// How often it doubles: beyond every time to live.
const MAX_DOUBLINGS: u32 = 10;
/// How far ahead of its time a service is published when its neighbours are.
const SWEEP_AHEAD: Duration = Duration::from_secs(5);
/// How many other services must be due in a key's neighbourhood for the whole of it to be looked up.
const DENSE: usize = 3;
/// The most lookups of one job.
const MAX_LOOKUPS: u32 = 24;
/// The most earlier holders of a service that are remembered, the latest; a withdrawal finds others by looking.
const MAX_FORMER: usize = 256;
/// By how much a sequence number grows when holders know a larger one, in milliseconds; each time in a row eight times as much.
const SEQ_STEP: u64 = 60_000;
/// How far ahead of the time holders may drive a sequence number, in milliseconds: any of them can say that it knows a larger
/// one, and a number that has grown to the largest there is can never be superseded.
const MAX_SEQ_AHEAD: u64 = 86_400_000;

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
    job: Option<JobId>,
    /// When it is published next.
    next: Tick,
    /// How often in a row holders knew a larger sequence number.
    outdated: u32,
    /// How often in a row holders refused for the time being.
    refusals: u32,
}

/// A publication under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct JobId(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Advertise,
    Withdraw,
}

/// What a publication is for and how far it is.
#[derive(Debug)]
pub(super) struct Job {
    key: ServiceKey,
    kind: Kind,
    record: VerifiedProvider,
    /// Holders of earlier records, who are told of a withdrawal even if they are no longer among the closest.
    former: Vec<Contact>,
    /// Lookups under way.
    running: BTreeSet<QueryId>,
    lookups: u32,
    /// Where everybody is to get the record, because the k closest are a crowd.
    region: Option<Distance>,
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
            refusals: 0,
        };
        if let Some(former) = self.services.remove(&key) {
            self.due.remove(&(former.next, key));
            service.longest_ttl = ttl.max(former.longest_ttl);
            service.holders = former.holders;
            remember_holders(&mut service.holders, self.cancel(former.job));
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
        let former = self.withdrawals.remove(&key).map(|(_, former)| former);
        let mut holders = former.unwrap_or_default();
        remember_holders(&mut holders, service.holders);
        remember_holders(&mut holders, self.cancel(service.job));
        let seq = self.next_seq(now, &key, service.seq);
        let ttl = service.longest_ttl.min(MAX_TTL);
        let unix_ms = self.clock.unix_ms(now);
        let signed = VerifiedProvider::sign_withdrawal(&self.signer, &self.realm_hash, &key, seq, unix_ms, ttl);
        // It cannot fail: the validity was that of a record.
        let Ok(record) = signed else { return };
        // The place in the store may be lost, to a service that came after this one had expired here; its holders still hear.
        let _ = self.store.insert(now, record.clone(), Origin::Local);
        self.touch_backend(now);
        self.withdrawals.insert(key, (record, holders));
        self.start_due_jobs(now);
    }

    /// The keys this node advertises, ascending.
    pub fn advertised(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.keys()
    }

    /// Withdraws what waits for it and publishes what is due, as far as the number of jobs allows.
    ///
    /// A job that is over as soon as it starts, because there is nobody to ask, comes back here: the loop that started it goes
    /// on, or every service due would take its place on the stack.
    pub(super) fn start_due_jobs(&mut self, now: Instant) {
        if std::mem::replace(&mut self.starting_jobs, true) {
            return;
        }
        let tick = self.clock.tick(now);
        while self.jobs.len() < MAX_JOBS {
            if let Some((key, (record, former))) = self.withdrawals.pop_first() {
                self.start_job(now, key, Kind::Withdraw, record, former);
                continue;
            }
            let Some(&(_, key)) = self.due.first().filter(|(due, _)| *due <= tick) else {
                break;
            };
            self.due.pop_first();
            self.publish(now, key);
        }
        self.starting_jobs = false;
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
        let Some(service) = self.services.get_mut(&key) else {
            return;
        };
        if service.job.is_some() {
            // The last round is not over: some of those asked are slow. Its end is waited for, since of two at a time one would
            // be forgotten, and go on after a withdrawal.
            service.next = self.clock.tick(now) + nanos(RETRY);
            self.due.insert((service.next, key));
            return;
        }
        let advertisement = service.advertisement.clone();
        let refresh = MIN_REFRESH.max(advertisement.ttl().saturating_sub(REFRESH_AHEAD));
        service.next = self.clock.tick(now) + nanos(refresh);
        self.due.insert((service.next, key));
        let published = self
            .store
            .held(&key, &self.own)
            .filter(|r| r.advertised_at_ms() == self.clock.unix_ms(now));
        let record = match published.cloned() {
            // Signed in this very moment.
            Some(record) => record,
            None => match self.sign(now, &key, &advertisement) {
                Ok((seq, record)) => {
                    // The place is held unless the record expired while it waited for its turn and another service came.
                    let _ = self.store.insert(now, record.clone(), Origin::Local);
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
        let id = self.start_job(now, key, Kind::Advertise, record, Vec::new());
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

    /// Ends a job without a word. Returns who has acknowledged its record.
    fn cancel(&mut self, job: Option<JobId>) -> Vec<Contact> {
        let Some(job) = job.and_then(|job| self.jobs.remove(&job)) else {
            return Vec::new();
        };
        for lookup in job.running {
            self.queries.remove(&lookup);
        }
        job.holders
    }

    fn start_job(
        &mut self,
        now: Instant,
        key: ServiceKey,
        kind: Kind,
        record: VerifiedProvider,
        former: Vec<Contact>,
    ) -> JobId {
        let id = JobId(self.next_job);
        self.next_job += 1;
        let job = Job {
            key,
            kind,
            record,
            former,
            running: BTreeSet::new(),
            lookups: 0,
            region: None,
            waiting: 0,
            holders: Vec::new(),
            refused: Vec::new(),
            unreachable: 0,
        };
        self.jobs.insert(id, job);
        let point = Point::from(key);
        // A node that has come since the sweep began was handed the record: a withdrawal looks for it, unless there are very many.
        let trusted = kind == Kind::Advertise || self.withdrawals.len() > MANY_WITHDRAWALS;
        match self.coverage.closest(self.clock.tick(now), &point, None) {
            Ok(_) if !trusted => self.look_up(now, id, &[point]),
            Ok(closest) if !closest.is_empty() => self.send_records(now, id, closest),
            Err(gaps) if self.is_dense(now, &key) => self.look_up(now, id, &gaps[..1]),
            Ok(_) | Err(_) => self.look_up(now, id, &[point]),
        }
        id
    }

    /// Starts lookups for a job: for its key, or for what is not known around it.
    fn look_up(&mut self, now: Instant, id: JobId, targets: &[Point]) {
        let started: Vec<_> = targets
            .iter()
            .map_while(|t| self.start(now, *t, Goal::Publish(id)).ok())
            .collect();
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.lookups += started.len() as u32;
        job.running.extend(&started);
        if started.is_empty() {
            // No room. A refresh comes round again, and a withdrawal goes to those who hold the record.
            return self.send_records(now, id, Vec::new());
        }
        for lookup in started {
            self.pump(now, lookup);
        }
    }

    /// A lookup of a job has come to its end: the record goes out, or something is still to be looked up.
    pub(super) fn on_publish_lookup(&mut self, now: Instant, id: JobId, lookup: QueryId, query: &Query) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let [path] = &query.paths[..] else { return };
        job.running.remove(&lookup);
        let tick = self.clock.tick(now);
        self.coverage.add(tick, path.target(), path.closest());
        if job.kind == Kind::Withdraw {
            // Holders that know the neighbourhood only in part took others for newcomers among the closest, and handed them the
            // record. They name them to whoever asks, too.
            job.former.extend(path.nearby(RESPONSIBLE).cloned());
        }
        let (key, point) = (job.key, Point::from(job.key));
        if *path.target() == point {
            let crowded = path.kth().is_some_and(|kth| self.size.is_crowded(kth));
            job.region = job.region.or(if crowded { self.size.region(1.0) } else { None });
            if job.region.is_none() {
                // The k closest themselves, with no need to know more.
                let closest = path.closest().cloned().collect();
                return self.send_records(now, id, closest);
            }
        }
        if !job.running.is_empty() {
            return;
        }
        let (region, may_look) = (job.region, job.lookups < MAX_LOOKUPS);
        match self.coverage.closest(tick, &point, region) {
            Ok(closest) => self.send_records(now, id, closest),
            Err(gaps) if may_look && region.is_some() => self.look_up(now, id, &gaps),
            // One at a time: other jobs of the sweep look into the same neighbourhood.
            Err(gaps) if may_look && self.is_dense(now, &key) => self.look_up(now, id, &gaps[..1]),
            Err(_) if may_look => self.look_up(now, id, &[point]),
            Err(_) => {
                let closest = self.coverage.best(&point, region);
                self.send_records(now, id, closest);
            }
        }
    }

    /// Whether others of this node's services lie so close to `key`, and are due so soon, that its neighbourhood is worth
    /// knowing: more of them than lookups it would take.
    fn is_dense(&self, now: Instant, key: &ServiceKey) -> bool {
        let Some(region) = self.size.region(1.0) else {
            return false;
        };
        let soon = self.clock.tick(now) + nanos(SWEEP_AHEAD);
        let (point, bits) = (Point::from(key), region.shared_bits());
        let first = ServiceKey::from_bytes(point.with_tail(bits, false).to_bytes());
        let last = ServiceKey::from_bytes(point.with_tail(bits, true).to_bytes());
        self.services
            .range(first..=last)
            .filter(|(_, service)| service.next <= soon)
            .nth(DENSE)
            .is_some()
    }

    /// A job's targets are known: they get the record.
    fn send_records(&mut self, now: Instant, id: JobId, closest: Vec<Contact>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let mut targets = closest;
        targets.append(&mut job.former);
        if job.kind == Kind::Withdraw {
            // Nodes that have come since, and were handed the record.
            let point = Point::from(job.key);
            let farthest = targets.iter().map(|t| point.distance(&t.node_id().into())).max();
            let known = self.table.closest(&point, K).cloned();
            let few = targets.len() < K;
            targets
                .extend(known.filter(|c| few || farthest.is_some_and(|far| point.distance(&c.node_id().into()) < far)));
        }
        let mut seen = BTreeSet::new();
        targets.retain(|target| seen.insert(*target.node_id()));
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
    pub(super) fn on_stored(&mut self, now: Instant, id: JobId, contact: Contact, outcome: Option<Outcome>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.waiting = job.waiting.saturating_sub(1);
        match outcome {
            Some(Outcome::Stored) => job.holders.push(contact),
            Some(Outcome::Refused(refusal)) => job.refused.push((*contact.node_id(), refusal)),
            None => job.unreachable += 1,
        }
        self.end_job_if_done(now, id);
    }

    fn end_job_if_done(&mut self, now: Instant, id: JobId) {
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
        let (tick, unix_ms) = (self.clock.tick(now), self.clock.unix_ms(now));
        let Some(service) = self.services.get_mut(key) else {
            return;
        };
        service.job = None;
        service.holders = holders;
        let outdated = refused_as(Refusal::Stale);
        if outdated {
            // This node's clock was set back since the last process of this identity. How far is not known.
            let step = SEQ_STEP << (3 * service.outdated.min(4));
            let most = unix_ms.saturating_add(MAX_SEQ_AHEAD);
            service.seq = service.seq.max(service.seq.saturating_add(step).min(most));
            service.outdated += 1;
        } else {
            service.outdated = 0;
        }
        let refused = outdated || refused_as(Refusal::Busy);
        let retry = tick + (nanos(RETRY) << service.refusals.min(MAX_DOUBLINGS));
        service.refusals = if refused { service.refusals + 1 } else { 0 };
        if (unheld || refused) && service.next > retry {
            self.due.remove(&(service.next, *key));
            service.next = retry;
            self.due.insert((retry, *key));
        }
    }
}

/// Adds to the holders that are known, each once; those known longest make room.
fn remember_holders(known: &mut Vec<Contact>, more: impl IntoIterator<Item = Contact>) {
    for holder in more {
        known.retain(|other| other.node_id() != holder.node_id());
        known.push(holder);
    }
    known.drain(..known.len().saturating_sub(MAX_FORMER));
}

#[cfg(test)]
mod tests {
    use macula_wire::{Realm, SecretKey};

    use super::*;
    use crate::{Config, Memory, Reply, Response, Role};

    fn contact(n: u16) -> Contact {
        let mut id = [7; 32];
        id[..2].copy_from_slice(&n.to_be_bytes());
        Contact::new(NodeId::from_bytes(id), ["10.0.0.1:4433".parse().unwrap()])
    }

    /// Answers everything but what one silent holder is told.
    fn answer(dht: &mut Dht<SecretKey>, now: Instant) {
        while let Some(output) = dht.poll_output() {
            let Output::Send { id, to, request } = output else {
                continue;
            };
            let response = match request {
                Request::Publish { .. } if to == contact(1) => continue,
                Request::Publish { records, .. } => Response::Published(vec![Outcome::Stored; records.len()]),
                Request::FindNode { .. } | Request::FindProviders { .. } => Response::Nodes(Vec::new()),
                Request::Ping => Response::Pong,
            };
            let reply = Reply {
                response: Ok(response),
                role: Role::Node,
                ip: None,
            };
            dht.handle_response(now, id, Ok(reply));
        }
    }

    /// One holder is slow, and the service advertised anew before any publication of it has ended.
    #[test]
    fn a_holder_is_remembered_once_however_often_a_service_is_advertised_anew() {
        let (now, signer) = (Instant::now(), SecretKey::from_bytes(&[9; 32]));
        let unix_ms = 1_800_000_000_000;
        let mut dht = Dht::new(Config::default(), signer, Realm::default(), Memory, now, unix_ms, 1);
        for n in 1..=20 {
            dht.add_contact(now, contact(n));
            answer(&mut dht, now);
        }
        let key = ServiceKey::from_bytes([3; 32]);
        for _ in 0..100 {
            let advertisement = Advertisement::new(["10.0.0.9:4433".parse().unwrap()]);
            dht.advertise(now, key, advertisement).unwrap();
            answer(&mut dht, now);
        }
        assert_eq!(dht.services[&key].holders.len(), 19);
        dht.withdraw(now, key);
        answer(&mut dht, now);
        assert!(dht.jobs.values().all(|job| job.former.len() <= 20));
    }

    #[test]
    fn of_many_former_holders_the_latest_are_remembered() {
        let mut known = Vec::new();
        for round in 0..10 {
            remember_holders(&mut known, (100 * round..100 * round + 120).map(contact));
        }
        let latest: Vec<_> = (1020 - MAX_FORMER as u16..1020).map(contact).collect();
        assert_eq!(known, latest);
    }
}
