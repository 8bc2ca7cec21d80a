//! This node's own services: published, kept published, withdrawn (D3, D5, D6).
//!
//! A job looks up the nodes closest to a key, then sends them the record. One service has at most one job; a newer job replaces
//! it. Due services are taken in the order of their time and then of their keys, [`MAX_JOBS`] at once and no faster than holders let
//! a peer ask: thousands of services go out in one sweep that no holder declines.
//!
//! Many services are one sweep through the key space. [`Coverage`] remembers the nodes that the lookups of the last half minute met, and a
//! key whose surroundings are all known needs no lookup. Where services lie dense, the lookups go to the parts not yet known
//! rather than to the keys. So there are as many lookups as there are neighbourhoods, about n / k, however many services there are.
//!
//! Where the k closest nodes lie denser than chance would have it, an attacker may have made ids to surround the key. The record
//! then goes to every node in the region that k nodes take up on average, the k closest among them.
//!
//! **Invariant:** a withdrawal outlives every record of its service, and no job of the service runs on after it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use macula_wire::{
    Advertisement, MAX_TTL, RecordError, ServiceKey, ServiceName, SignedProvider, Signer, VerifiedProvider,
};

use super::{
    coverage::Coverage,
    job::{Ended, Job, JobKind},
    local::{Local, RESPONSIBLE},
    purpose::JobId,
};
use crate::{
    Contact, Event, InsertError, Origin, Outcome, Point, QueryId, Refusal,
    clock::{Tick, nanos},
    lookup::Lookup,
    message::peek,
};

/// When more withdrawals than this wait, they go to the nodes that the sweep has met so far, as publications do.
const MANY_WITHDRAWALS: usize = 64;
/// The most publications that run at a time.
pub const MAX_JOBS: usize = 16;
/// The time between two publications once many were started, in nanoseconds. A holder of all of them is then asked 250 times a
/// second, half as often as it lets a peer ask by default.
const PACE: Tick = 4_000_000;
/// The publications that are started at once before the pace holds. They cost a third of the requests that a holder lets a peer
/// save up.
const PACE_BURST: Tick = 512;
/// How long before a record expires it is published again.
const REFRESH_AHEAD: Duration = Duration::from_secs(60);
/// The shortest time between two publications of a service.
const MIN_REFRESH: Duration = Duration::from_secs(10);
/// The wait before a publication is tried again that no holder acknowledged, or that was refused for the time being. After a
/// refusal the wait doubles each time in a row: the record goes to all holders, and a single holder that always refuses must not
/// make a flood for the others.
const RETRY: Duration = Duration::from_secs(5);
/// How often the wait doubles: beyond every time to live.
const MAX_DOUBLINGS: u32 = 10;
/// How far ahead of its time a service is published when its neighbours are.
const SWEEP_AHEAD: Duration = Duration::from_secs(5);
/// The number of other services that must be due in a key's neighbourhood for the whole of it to be looked up.
const DENSE: usize = 3;
/// The most lookups of one job.
const MAX_LOOKUPS: u32 = 24;
/// The most earlier holders of a service that are remembered, the latest; a withdrawal finds others by looking.
const MAX_FORMER: usize = 256;

/// A service cannot be advertised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdvertiseError {
    /// The advertisement breaks a limit of records.
    #[error("the advertisement is not valid: {0}")]
    Record(#[from] RecordError),
    /// This node's own store does not take it.
    #[error("this node cannot hold another record of its own: {0}")]
    Store(#[from] InsertError),
}

/// The work and the news of publications.
#[derive(Debug)]
pub(super) enum PublisherOutput {
    /// Start lookups for the nodes closest to each target, and report them with [`Publisher::handle_lookups`].
    LookUp { job: JobId, targets: Vec<Point> },
    /// End a lookup: its job is gone.
    DropLookup(QueryId),
    /// Send a record to a node, and report the outcome with [`Publisher::handle_outcome`].
    Store {
        job: JobId,
        to: Contact,
        key: ServiceKey,
        record: SignedProvider,
    },
    /// News for the user.
    Event(Event),
}

/// A service this node advertises.
#[derive(Debug)]
struct Service {
    /// Its name, unless only its key is known.
    name: Option<ServiceName>,
    advertisement: Advertisement,
    seq: u64,
    /// The longest validity that any of its records was given: a withdrawal has to outlive them all.
    longest_ttl: Duration,
    /// The nodes that acknowledged the last publication.
    holders: Vec<Contact>,
    job: Option<JobId>,
    /// When it is published next.
    next: Tick,
    /// How often in a row holders refused for the time being.
    refusals: u32,
    /// The sequence number that was published last; 0 before the first publication.
    sent: u64,
}

/// The services that this node advertises.
#[derive(Debug)]
pub(super) struct Publisher<S> {
    signer: S,
    services: BTreeMap<ServiceKey, Service>,
    /// When each service is to be published next: one element a service.
    due: BTreeSet<(Tick, ServiceKey)>,
    /// Withdrawals that wait for a job, with the earlier holders: one a key.
    withdrawals: BTreeMap<ServiceKey, (VerifiedProvider, Vec<Contact>)>,
    jobs: BTreeMap<JobId, Job>,
    next_job: u64,
    /// The nodes that the lookups of this sweep have met.
    coverage: Coverage,
    /// When the next publication would start if all had kept to the pace (GCRA, ITU-T I.371).
    paced: Tick,
    outputs: VecDeque<PublisherOutput>,
}

impl<S: Signer> Publisher<S> {
    pub(super) fn new(signer: S) -> Self {
        Self {
            signer,
            services: BTreeMap::new(),
            due: BTreeSet::new(),
            withdrawals: BTreeMap::new(),
            jobs: BTreeMap::new(),
            next_job: 0,
            coverage: Coverage::default(),
            paced: 0,
            outputs: VecDeque::new(),
        }
    }

    /// The next thing to do or to know.
    pub(super) fn poll_output(&mut self) -> Option<PublisherOutput> {
        self.outputs.pop_front()
    }

    /// When [`Publisher::handle_timeout`] next has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Tick> {
        if self.jobs.len() >= MAX_JOBS {
            return None;
        }
        let due = self.due.first().map(|&(tick, _)| tick);
        let withdrawal = (!self.withdrawals.is_empty()).then_some(0);
        withdrawal.or(due).map(|tick| tick.max(self.pace_allows()))
    }

    /// When the pace allows the next publication.
    fn pace_allows(&self) -> Tick {
        self.paced.saturating_sub(PACE_BURST * PACE)
    }

    /// The nodes that acknowledged the last publication of a service.
    pub(super) fn holders(&self, key: &ServiceKey) -> &[Contact] {
        self.services.get(key).map_or(&[], |service| &service.holders)
    }

    /// The keys of the services, ascending.
    pub(super) fn advertised(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.keys()
    }

    pub(super) fn advertises(&self, key: &ServiceKey) -> bool {
        self.services.contains_key(key)
    }

    /// Publishes this node as a provider of `key`, and keeps it published. Replaces an earlier advertisement.
    pub(super) fn advertise(
        &mut self,
        local: &mut Local,
        now: Instant,
        key: ServiceKey,
        name: Option<ServiceName>,
        advertisement: Advertisement,
    ) -> Result<(), AdvertiseError> {
        let (seq, record) = self.sign(local, now, &key, name.as_ref(), &advertisement)?;
        local.store.insert(now, record, Origin::Local)?;
        let ttl = advertisement.ttl();
        let mut service = Service {
            name,
            advertisement,
            seq,
            longest_ttl: ttl,
            holders: Vec::new(),
            job: None,
            next: local.tick(now),
            refusals: 0,
            sent: 0,
        };
        if let Some(former) = self.services.remove(&key) {
            self.due.remove(&(former.next, key));
            service.longest_ttl = ttl.max(former.longest_ttl);
            service.sent = former.sent;
            service.holders = former.holders;
            remember_holders(&mut service.holders, self.cancel(former.job));
        }
        self.due.insert((service.next, key));
        self.services.insert(key, service);
        self.handle_timeout(local, now);
        Ok(())
    }

    /// Withdraws this node as a provider of `key`, here at once and at the holders as they hear of it.
    pub(super) fn withdraw(&mut self, local: &mut Local, now: Instant, key: ServiceKey) {
        let Some(service) = self.services.remove(&key) else {
            let event = Event::Withdrawn {
                key,
                acknowledged: 0,
                unacknowledged: 0,
            };
            return self.outputs.push_back(PublisherOutput::Event(event));
        };
        self.due.remove(&(service.next, key));
        let former = self.withdrawals.remove(&key).map(|(_, former)| former);
        let mut holders = former.unwrap_or_default();
        remember_holders(&mut holders, service.holders);
        remember_holders(&mut holders, self.cancel(service.job));
        let seq = next_seq(local, now, &key, service.seq);
        let ttl = service.longest_ttl.min(MAX_TTL);
        let unix_ms = local.clock.unix_ms(now);
        let place = local.place(now, &key, service.name.as_ref());
        let signed =
            place.and_then(|place| VerifiedProvider::sign_withdrawal_at(&self.signer, &place, seq, unix_ms, ttl));
        let Ok(record) = signed else {
            // The node has lost the right to provide, and its holders take no word of it: they drop the record as it ends.
            local.store.remove_local(&key, &local.own.clone());
            let event = Event::Withdrawn {
                key,
                acknowledged: 0,
                unacknowledged: holders.len(),
            };
            return self.outputs.push_back(PublisherOutput::Event(event));
        };
        // The record's place in the store may be lost to a service that came after this one expired here. Its holders still hear
        // of the withdrawal.
        let _ = local.store.insert(now, record.clone(), Origin::Local);
        self.withdrawals.insert(key, (record, holders));
        self.handle_timeout(local, now);
    }

    /// Withdraws the services that wait for it and publishes those that are due, as far as the number of jobs allows.
    pub(super) fn handle_timeout(&mut self, local: &mut Local, now: Instant) {
        let tick = local.tick(now);
        while self.jobs.len() < MAX_JOBS && self.pace_allows() <= tick {
            if let Some((key, (record, former))) = self.withdrawals.pop_first() {
                self.start_job(local, now, Job::new(key, JobKind::Withdraw, record, former));
                continue;
            }
            let Some(&(_, key)) = self.due.first().filter(|(due, _)| *due <= tick) else {
                break;
            };
            self.due.pop_first();
            self.publish(local, now, key);
        }
    }

    /// Publishes every service without a holder: this node has found its mesh.
    pub(super) fn publish_unheld(&mut self, local: &mut Local, now: Instant) {
        let tick = local.tick(now);
        for (key, service) in &mut self.services {
            if service.holders.is_empty() && service.job.is_none() && self.due.remove(&(service.next, *key)) {
                service.next = tick;
                self.due.insert((tick, *key));
            }
        }
        self.handle_timeout(local, now);
    }

    /// The lookups that [`PublisherOutput::LookUp`] asked for and that could be started.
    pub(super) fn handle_lookups(&mut self, local: &mut Local, now: Instant, id: JobId, started: &[QueryId]) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.lookups += started.len() as u32;
        job.running.extend(started);
        if started.is_empty() {
            // There is no room for a lookup. A refresh comes round again, and a withdrawal goes to the holders of the record.
            self.send_records(local, now, id, Vec::new());
        }
    }

    /// A lookup of a job has ended: the record goes out, or more is to be looked up.
    pub(super) fn handle_lookup_done(
        &mut self,
        local: &mut Local,
        now: Instant,
        id: JobId,
        query: QueryId,
        lookup: &Lookup,
        not_sent: bool,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.running.remove(&query);
        job.is_partial |= not_sent;
        let tick = local.tick(now);
        if !not_sent {
            self.coverage.add(tick, lookup.target(), lookup.closest());
        }
        if job.kind == JobKind::Withdraw {
            // A holder that knows the neighbourhood only in part may have taken a node for a newcomer among the closest and handed
            // it the record. The holder names that node to this one, too.
            job.former.extend(lookup.nearby(RESPONSIBLE).cloned());
        }
        let (key, point) = (job.key, Point::from(job.key));
        if *lookup.target() == point {
            let crowded = lookup.kth().is_some_and(|kth| local.size.is_crowded(kth));
            job.region = job.region.or(if crowded { local.size.region(1.0) } else { None });
            if job.region.is_none() {
                // The k closest are the holders; no more has to be known.
                let closest = lookup.closest().cloned().collect();
                return self.send_records(local, now, id, closest);
            }
        }
        if !job.running.is_empty() {
            return;
        }
        let (region, may_look) = (job.region, job.lookups < MAX_LOOKUPS);
        match self.coverage.closest(tick, &point, region) {
            Ok(closest) => self.send_records(local, now, id, closest),
            Err(gaps) if may_look && region.is_some() => self.look_up(id, gaps),
            // One at a time: other jobs of the sweep look into the same neighbourhood.
            Err(gaps) if may_look && self.is_dense(local, now, &key) => self.look_up(id, gaps[..1].to_vec()),
            Err(_) if may_look => self.look_up(id, vec![point]),
            Err(_) => {
                let closest = self.coverage.best(&point, region);
                self.send_records(local, now, id, closest);
            }
        }
    }

    /// One of a job's targets answered, or did not.
    pub(super) fn handle_outcome(
        &mut self,
        local: &mut Local,
        now: Instant,
        id: JobId,
        contact: Contact,
        outcome: Option<Outcome>,
    ) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.take(contact, outcome);
            self.end_job_if_done(local, now, id);
        }
    }

    /// A holder shows a record of this node that is newer than the one a job publishes, or that this one has replaced. Returns its key if
    /// its signature is to be checked.
    ///
    /// Only a record that this node signed moves its sequence number: a holder that merely claims to know a larger number could
    /// drive it to the largest there is, which nothing supersedes.
    pub(super) fn wants_newer(&self, local: &Local, id: JobId, newer: &SignedProvider) -> Option<ServiceKey> {
        let job = self.jobs.get(&id)?;
        let claimed = peek(&newer.body).filter(|peek| peek.node == local.own)?;
        let known = job.newer_seq.unwrap_or(0).max(job.record.seq());
        (claimed.seq >= known || job.is_foreign(claimed.seq)).then_some(job.key)
    }

    /// Takes the record that [`Publisher::wants_newer`] asked for.
    pub(super) fn handle_newer(&mut self, id: JobId, newer: &VerifiedProvider) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if newer.seq() >= job.record.seq() {
            job.newer_seq = job.newer_seq.max(Some(newer.seq()));
        }
        if job.is_foreign(newer.seq())
            && let Some(advertisement) = newer.advertisement()
        {
            let event = Event::Usurped {
                key: job.key,
                endpoints: advertisement.endpoints().to_vec(),
            };
            self.outputs.push_back(PublisherOutput::Event(event));
        }
    }

    /// Gives unused memory back: an empty map keeps room for eleven entries.
    pub(super) fn give_back(&mut self) {
        if self.jobs.is_empty() {
            self.jobs = BTreeMap::new();
        }
        self.outputs.shrink_to(0);
    }

    fn publish(&mut self, local: &mut Local, now: Instant, key: ServiceKey) {
        let Some(service) = self.services.get_mut(&key) else {
            return;
        };
        if service.job.is_some() {
            // The last round is not over, because some targets are slow. Wait for its end: of two rounds at a time one would be
            // forgotten, and go on after a withdrawal.
            service.next = local.tick(now) + nanos(RETRY);
            self.due.insert((service.next, key));
            return;
        }
        let (name, advertisement) = (service.name.clone(), service.advertisement.clone());
        let refresh = MIN_REFRESH.max(advertisement.ttl().saturating_sub(REFRESH_AHEAD));
        service.next = local.tick(now) + nanos(refresh);
        self.due.insert((service.next, key));
        let published = local.store.held(&key, &local.own);
        let published = published.filter(|record| record.advertised_at_ms() == local.clock.unix_ms(now));
        let record = match published.cloned() {
            // Signed in this very moment.
            Some(record) => record,
            None => match self.sign(local, now, &key, name.as_ref(), &advertisement) {
                Ok((seq, record)) => {
                    // The place is held unless the record expired while it waited for its turn and another service came.
                    let _ = local.store.insert(now, record.clone(), Origin::Local);
                    if let Some(service) = self.services.get_mut(&key) {
                        service.seq = seq;
                    }
                    record
                }
                // It was valid when it was advertised; the node's grant is not any more. It is tried again with the next one.
                Err(error) => {
                    let event = Event::NotAdvertised { key, error };
                    return self.outputs.push_back(PublisherOutput::Event(event));
                }
            },
        };
        let id = JobId(self.next_job);
        let seq = record.seq();
        let mut job = Job::new(key, JobKind::Advertise, record, Vec::new());
        if let Some(service) = self.services.get_mut(&key) {
            service.job = Some(id);
            job.after = std::mem::replace(&mut service.sent, seq);
        }
        self.start_job(local, now, job);
    }

    fn sign(
        &self,
        local: &Local,
        now: Instant,
        key: &ServiceKey,
        name: Option<&ServiceName>,
        advertisement: &Advertisement,
    ) -> Result<(u64, VerifiedProvider), RecordError> {
        let last = self.services.get(key).map_or(0, |service| service.seq);
        let (seq, unix_ms) = (next_seq(local, now, key, last), local.clock.unix_ms(now));
        let place = local.place(now, key, name)?;
        let record = VerifiedProvider::sign_at(&self.signer, &place, seq, unix_ms, advertisement)?;
        Ok((seq, record))
    }

    /// Ends a job without an event. Returns the nodes that have acknowledged its record.
    fn cancel(&mut self, job: Option<JobId>) -> Vec<Contact> {
        let Some(job) = job.and_then(|job| self.jobs.remove(&job)) else {
            return Vec::new();
        };
        self.outputs
            .extend(job.running.into_iter().map(PublisherOutput::DropLookup));
        job.holders
    }

    fn start_job(&mut self, local: &mut Local, now: Instant, job: Job) {
        self.paced = self.paced.max(local.tick(now)) + PACE;
        let id = JobId(self.next_job);
        self.next_job += 1;
        let (key, kind, point) = (job.key, job.kind, Point::from(job.key));
        self.jobs.insert(id, job);
        // A node that has come since the sweep began was handed the record. So a withdrawal looks for it, unless there are very
        // many withdrawals.
        let trusted = kind == JobKind::Advertise || self.withdrawals.len() > MANY_WITHDRAWALS;
        match self.coverage.closest(local.tick(now), &point, None) {
            Ok(_) if !trusted => self.look_up(id, vec![point]),
            Ok(closest) if !closest.is_empty() => self.send_records(local, now, id, closest),
            Err(gaps) if self.is_dense(local, now, &key) => self.look_up(id, gaps[..1].to_vec()),
            Ok(_) | Err(_) => self.look_up(id, vec![point]),
        }
    }

    fn look_up(&mut self, job: JobId, targets: Vec<Point>) {
        self.outputs.push_back(PublisherOutput::LookUp { job, targets });
    }

    /// Whether more of this node's services are due soon around `key` than it would take lookups to know its neighbourhood.
    fn is_dense(&self, local: &Local, now: Instant, key: &ServiceKey) -> bool {
        let Some(region) = local.size.region(1.0) else {
            return false;
        };
        let soon = local.tick(now) + nanos(SWEEP_AHEAD);
        let (point, bits) = (Point::from(key), region.shared_bits());
        let first = ServiceKey::from_bytes(point.with_tail(bits, false).to_bytes());
        let last = ServiceKey::from_bytes(point.with_tail(bits, true).to_bytes());
        let around = self.services.range(first..=last);
        around.filter(|(_, service)| service.next <= soon).nth(DENSE).is_some()
    }

    /// Sends a job's record to the closest nodes, and to former holders.
    fn send_records(&mut self, local: &mut Local, now: Instant, id: JobId, closest: Vec<Contact>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let targets = job.targets(closest, &local.table);
        let (key, record) = (job.key, job.record.to_signed());
        self.outputs
            .extend(targets.into_iter().map(|to| PublisherOutput::Store {
                job: id,
                to,
                key,
                record: record.clone(),
            }));
        self.end_job_if_done(local, now, id);
    }

    fn end_job_if_done(&mut self, local: &mut Local, now: Instant, id: JobId) {
        if self.jobs.get(&id).is_none_or(|job| job.waiting > 0) {
            return;
        }
        let Some(job) = self.jobs.remove(&id) else { return };
        let ended = Ended::from(job);
        if ended.kind == JobKind::Advertise {
            self.settle_service(local, now, &ended);
        }
        self.outputs.push_back(PublisherOutput::Event(ended.into_event()));
        self.handle_timeout(local, now);
    }

    /// A publication has ended: its service learns its holders, and when to try again.
    fn settle_service(&mut self, local: &Local, now: Instant, ended: &Ended) {
        let expects_peers = ended.unreachable > 0 || !local.table.is_empty() || local.ways_in.has_seeds();
        let unheld = ended.holders.is_empty() && ended.refused.is_empty() && expects_peers;
        let tick = local.tick(now);
        let Some(service) = self.services.get_mut(&ended.key) else {
            return;
        };
        service.job = None;
        service.holders.clone_from(&ended.holders);
        // An earlier process of this identity had a clock that was ahead, or another process uses the identity.
        let outdated = ended.newer_seq >= Some(service.seq);
        service.seq = service.seq.max(ended.newer_seq.unwrap_or(0));
        let refused = outdated || ended.is_partial || ended.was_refused_as(Refusal::Busy);
        let retry = tick + (nanos(RETRY) << service.refusals.min(MAX_DOUBLINGS));
        service.refusals = if refused { service.refusals + 1 } else { 0 };
        if (unheld || refused) && service.next > retry {
            self.due.remove(&(service.next, ended.key));
            service.next = retry;
            self.due.insert((retry, ended.key));
        }
    }
}

/// `max(last + 1, unix_ms)`, where the last one may be that of a withdrawal which is still held.
fn next_seq(local: &Local, now: Instant, key: &ServiceKey, last: u64) -> u64 {
    let held = local.store.held(key, &local.own).map_or(0, VerifiedProvider::seq);
    last.max(held).saturating_add(1).max(local.clock.unix_ms(now))
}

/// Adds to the known holders, each once; those known longest make room.
fn remember_holders(known: &mut Vec<Contact>, more: impl IntoIterator<Item = Contact>) {
    for holder in more {
        known.retain(|other| other.node_id() != holder.node_id());
        known.push(holder);
    }
    known.drain(..known.len().saturating_sub(MAX_FORMER));
}

#[cfg(test)]
#[path = "publisher_tests.rs"]
mod tests;
