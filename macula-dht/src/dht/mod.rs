//! The protocol core: one node of the DHT.
//!
//! Mutate, drain, repeat: every input is a method that takes the time, every effect leaves through [`Dht::poll_output`], in
//! order. The same seed and the same inputs give the same outputs.
//!
//! **Invariants:** nothing here blocks, sleeps, or reads a clock; every table and queue has a limit; of one query there is at
//! most one final event; an answer that was not asked for, or comes too late, changes nothing.

mod coverage;
mod exchange;
mod handover;
mod join;
mod persist;
mod publish;
mod queries;
mod serve;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Instant,
};

use macula_wire::{NodeId, Realm, RealmHash, ServiceKey, ServiceName, Signer, VerifiedProvider};

pub use self::publish::{AdvertiseError, MAX_JOBS};
use self::{
    coverage::Coverage,
    exchange::Inflight,
    handover::HandOver,
    join::Joining,
    publish::{Job, JobId, Service},
    queries::Query,
};
use crate::{
    Backend, Clock, Config, Contact, Memory, Output, Point, ProviderStore, QueryId, RequestId, Role, RoutingTable,
    StoredContact,
    clock::{Tick, nanos},
    contact::Subnet,
    limiter::Limiter,
    rng::Rng,
    size::SizeEstimate,
};

/// The most lookups that run at a time, those for publishing and maintenance included.
pub const MAX_QUERIES: usize = 1024;
/// The most seeds a node keeps.
pub const MAX_SEEDS: usize = 64;
/// The most peers that are remembered after they left the routing table.
const MAX_REMEMBERED: usize = 64;
/// The most strangers that are asked at a time whether they answer.
const MAX_PROBES: usize = 16;
/// The most outputs whose memory is kept when there are none.
const KEPT_OUTPUTS: usize = 4;

/// Too many lookups are running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_QUERIES} lookups are running already; start this one when some have ended")]
#[non_exhaustive]
pub struct TooManyQueries;

/// What a node has counted since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Requests sent.
    pub sent: u64,
    /// Requests answered as asked.
    pub answered: u64,
    /// Requests that were not answered, or not as asked.
    pub failed: u64,
    /// Answers to nothing that is waited for.
    pub unexpected: u64,
    /// Answers that were not what had been asked for, or carried forged records.
    pub misbehaved: u64,
    /// Requests served.
    pub served: u64,
    /// Requests declined because their sender asks too fast.
    pub rate_limited: u64,
    /// Requests that could not be read.
    pub malformed: u64,
    /// Records of others stored.
    pub stored: u64,
    /// Records of others refused.
    pub refused: u64,
    /// Records handed over to new closest nodes.
    pub handed_over: u64,
}

/// One node of the DHT.
///
/// `S` signs this node's records, `B` keeps what it would want back after a restart.
#[derive(Debug)]
pub struct Dht<S, B = Memory> {
    config: Config,
    clock: Clock,
    signer: S,
    own: NodeId,
    realm: Realm,
    realm_hash: RealmHash,
    backend: B,
    rng: Rng,
    table: RoutingTable,
    store: ProviderStore,
    limiter: Limiter,
    outputs: VecDeque<Output>,

    /// Requests that wait for an answer. Numbers grow and every request has the same timeouts, so the first is due first.
    inflight: BTreeMap<RequestId, Inflight>,
    next_request: u64,
    /// The first request that is not known to be overdue.
    soft_from: RequestId,
    /// Strangers that are being asked whether they answer, and where they are.
    probing: BTreeMap<NodeId, Subnet>,

    /// Boxed: the map is almost always empty or almost so, and makes room for eleven.
    queries: BTreeMap<QueryId, Box<Query>>,
    next_query: u64,

    services: BTreeMap<ServiceKey, Service>,
    /// When each service is to be published next: one element a service.
    due: BTreeSet<(Tick, ServiceKey)>,
    /// Withdrawals that wait for a job, with the earlier holders: one a key.
    withdrawals: BTreeMap<ServiceKey, (VerifiedProvider, Vec<Contact>)>,
    jobs: BTreeMap<JobId, Job>,
    next_job: u64,
    /// Jobs are being started, further up the stack.
    starting_jobs: bool,

    /// What the lookups of this sweep have shown.
    coverage: Coverage,
    handovers: VecDeque<HandOver>,
    handover_at: Option<Tick>,
    size: SizeEstimate,

    joining: Joining,
    /// Buckets to be refreshed.
    refreshes: BTreeSet<usize>,
    maintain_at: Tick,
    /// When changes are next committed, if there are any.
    commit_at: Option<Tick>,
    /// The contacts that were committed last.
    kept_contacts: Vec<StoredContact>,
    counters: Counters,
}

impl<S: Signer, B: Backend> Dht<S, B> {
    /// A node that is `signer`'s, in `realm`, at `now`, when it is `unix_ms` milliseconds after the Unix epoch.
    ///
    /// `seed` keys the store's hashes, and drives jitter and the choice of refresh targets: a number that nobody else can
    /// guess. What `backend` kept is verified and taken; when it cannot be read, the node starts empty and says so.
    #[must_use]
    pub fn new(config: Config, signer: S, realm: Realm, backend: B, now: Instant, unix_ms: u64, seed: u64) -> Self {
        let config = config.bounded();
        let clock = Clock::new(now, unix_ms);
        let own = signer.node_id();
        let mut rng = Rng::new(seed);
        let maintain_at = join::MAINTENANCE + rng.below(join::MAINTENANCE);
        let hash_seed = rng.next();
        let mut dht = Self {
            clock,
            own,
            realm_hash: realm.hash(),
            realm,
            table: RoutingTable::new(own, config.diversity, now),
            store: ProviderStore::new(clock, config.store, hash_seed),
            limiter: Limiter::new(config.rates, !hash_seed),
            outputs: VecDeque::new(),
            inflight: BTreeMap::new(),
            next_request: 0,
            soft_from: RequestId(0),
            probing: BTreeMap::new(),
            queries: BTreeMap::new(),
            next_query: 0,
            services: BTreeMap::new(),
            due: BTreeSet::new(),
            withdrawals: BTreeMap::new(),
            jobs: BTreeMap::new(),
            next_job: 0,
            starting_jobs: false,
            coverage: Coverage::default(),
            handovers: VecDeque::new(),
            handover_at: None,
            size: SizeEstimate::default(),
            joining: Joining::default(),
            refreshes: BTreeSet::new(),
            maintain_at,
            commit_at: None,
            kept_contacts: Vec::new(),
            counters: Counters::default(),
            config,
            signer,
            backend,
            rng,
        };
        dht.restore(now);
        dht
    }

    /// This node.
    #[must_use]
    pub fn node_id(&self) -> &NodeId {
        &self.own
    }

    /// The realm.
    #[must_use]
    pub fn realm(&self) -> &Realm {
        &self.realm
    }

    /// The key of a service in this node's realm.
    #[must_use]
    pub fn key(&self, service: &ServiceName) -> ServiceKey {
        ServiceKey::new(&self.realm, service)
    }

    /// How many nodes the network has, as far as lookups show; `None` while that is not known.
    #[must_use]
    pub fn network_size(&self) -> Option<f64> {
        self.size.nodes()
    }

    /// The clock, for a [`DirectoryCache`](crate::DirectoryCache) beside this core.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Ties the clocks anew: at `now` it is `unix_ms` milliseconds after the Unix epoch, because the wall clock was set or the
    /// machine was suspended (D14). Advertise afterwards what is to be dated anew.
    pub fn set_clock(&mut self, now: Instant, unix_ms: u64) {
        self.clock.set(now, unix_ms);
        self.store.set_clock(now, self.clock);
        self.touch_backend(now);
    }

    /// The routing table, for looking at.
    #[must_use]
    pub fn table(&self) -> &RoutingTable {
        &self.table
    }

    /// The store, for looking at.
    #[must_use]
    pub fn store(&self) -> &ProviderStore {
        &self.store
    }

    /// What has been counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The next thing to do or to know. Call until there is nothing, after every other call.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        let output = self.outputs.pop_front();
        if output.is_none() {
            self.give_back();
        }
        output
    }

    /// Gives memory back that is not used: a map keeps that of its last entry, room for eleven.
    fn give_back(&mut self) {
        if self.outputs.capacity() > KEPT_OUTPUTS {
            self.outputs.shrink_to(KEPT_OUTPUTS);
        }
        if self.inflight.is_empty() {
            self.inflight = BTreeMap::new();
        }
        if self.probing.is_empty() {
            self.probing = BTreeMap::new();
        }
        if self.queries.is_empty() {
            self.queries = BTreeMap::new();
        }
        if self.jobs.is_empty() {
            self.jobs = BTreeMap::new();
        }
    }

    /// When [`Dht::handle_timeout`] next has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let hard = self
            .inflight
            .values()
            .next()
            .map(|i| i.sent + nanos(self.config.hard_timeout));
        let soft = self
            .inflight
            .range(self.soft_from..)
            .next()
            .map(|(_, i)| i.sent + nanos(self.config.soft_timeout));
        let due = self
            .due
            .first()
            .filter(|_| self.jobs.len() < MAX_JOBS)
            .map(|&(tick, _)| tick);
        let own = [
            hard,
            soft,
            due,
            self.joining.due(),
            self.handover_at,
            self.commit_at,
            Some(self.maintain_at),
        ];
        let own = own.into_iter().flatten().min().map(|tick| self.clock.instant(tick));
        [own, self.store.poll_timeout()].into_iter().flatten().min()
    }

    /// Advances time: fails requests, drops records, publishes and refreshes what is due.
    ///
    /// Early or repeated calls are harmless. Drain [`Dht::poll_output`] afterwards.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.time_out_requests(now);
        self.store.expire(now);
        self.start_due_jobs(now);
        self.advance_join(now);
        self.maintain(now);
        self.hand_over(now);
        self.commit(now);
        debug_assert!(
            self.poll_timeout().is_none_or(|at| at > now),
            "a timeout is due that was not handled"
        );
    }

    /// Providers of a key that this node holds itself, its own records among them, in the list's order.
    pub fn local_providers(
        &self,
        now: Instant,
        key: &ServiceKey,
    ) -> impl Iterator<Item = &VerifiedProvider> + use<'_, S, B> {
        self.store.get(now, key)
    }

    /// The contacts to start a lookup from: the closest of the table, or all that were ever known when it is empty.
    fn starting_points(&self, target: &Point) -> Vec<Contact> {
        if self.table.is_empty() {
            return self.joining.known_contacts().cloned().collect();
        }
        self.table.closest(target, crate::K).cloned().collect()
    }

    fn is_node(&self) -> bool {
        self.config.role == Role::Node
    }
}
