//! The protocol core: one node of the DHT.
//!
//! Mutate, drain, repeat: every input is a method that takes the time, every effect leaves through [`Dht::poll_output`], in
//! order. The same seed and the same inputs give the same outputs.
//!
//! [`Dht`] itself only routes. Three cores do the work, each with inputs, outputs and tests of its own: `Queries` runs lookups,
//! `Publisher` keeps this node's services published, `Joining` gets it into a mesh and keeps it there. Around them, `Exchange`
//! numbers requests and times them out, `Probes` bounds pings to strangers, `HandOvers` serves newcomers, `Keeper` feeds the
//! backend. They share `Local`: identity, settings, clock, routing table, store. `route.rs` connects them and `serve.rs` answers
//! peers; no core knows another.
//!
//! **Invariants:** nothing here blocks, sleeps, or reads a clock; every table and queue has a limit; a query has at most one final
//! event; an answer that was not asked for, or comes too late, changes nothing.

mod checks;
mod coverage;
mod exchange;
mod handover;
mod job;
mod joining;
mod keeper;
mod local;
mod peer_lookups;
mod probes;
mod publisher;
mod purpose;
mod queries;
mod route;
mod search;
mod serve;
#[cfg(test)]
mod testing;

use std::{collections::VecDeque, time::Instant};

use macula_wire::{
    AccessError, Advertisement, Chain, Member, Named, NodeId, Realm, ServiceKey, ServiceName, SignedRevocations,
    Signer, VerifiedProvider, Verifier,
};

pub use self::{
    checks::Checks,
    local::MAX_SEEDS,
    peer_lookups::{MAX_PEER_LOOKUPS, MAX_PEER_REQUESTS, PeerLookupError},
    publisher::{AdvertiseError, MAX_JOBS},
    queries::{MAX_QUERIES, TooManyQueries},
    route::Received,
    search::MAX_CHECKS_PER_ANSWER,
    serve::{Begun, Publication},
};
use self::{
    exchange::Exchange,
    handover::HandOvers,
    joining::Joining,
    keeper::Keeper,
    local::{Local, WaysIn},
    peer_lookups::{PeerLookups, Started},
    probes::Probes,
    publisher::Publisher,
    purpose::Purpose,
    queries::{Goal, Queries},
    search::Search,
};
use crate::{
    Backend, Clock, Config, Contact, Event, Memory, Output, Peer, Point, ProviderStore, QueryId, Request, RequestId,
    RoutingTable, Seed, Want, limiter::Limiter, rng::Rng, size::SizeEstimate,
};

/// The most outputs whose memory is kept when there are none.
const KEPT_OUTPUTS: usize = 4;

/// The numbers a node has counted since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Requests sent.
    pub sent: u64,
    /// Requests answered as asked.
    pub answered: u64,
    /// Requests that were not answered, or not as asked.
    pub failed: u64,
    /// Requests that never left this node.
    pub not_sent: u64,
    /// Answers that no request waits for.
    pub unexpected: u64,
    /// Answers of the wrong kind, and answers with forged records.
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
    /// Refused records that were forged, or whose nodes may not provide the service.
    pub unproven: u64,
    /// Records handed over to new closest nodes.
    pub handed_over: u64,
}

/// One node of the DHT.
///
/// `S` signs this node's records. `B` keeps records and contacts over a restart.
#[derive(Debug)]
pub struct Dht<S, B = Memory> {
    local: Local,
    limiter: Limiter,
    exchange: Exchange,
    queries: Queries,
    publisher: Publisher<S>,
    joining: Joining,
    probes: Probes,
    peer_lookups: PeerLookups,
    handovers: HandOvers,
    keeper: Keeper<B>,
    counters: Counters,
    /// The peers that were told of as misbehaving.
    named: Named,
    outputs: VecDeque<Output>,
}

impl<S: Signer, B: Backend> Dht<S, B> {
    /// A node with the identity of `signer` in `realm`, at `now`, which is `unix_ms` milliseconds after the Unix epoch.
    ///
    /// `seed` keys the store's hashes, and drives jitter and the choice of refresh targets. Choose a number that no peer can guess.
    /// Records and contacts that `backend` kept are verified and taken; when they cannot be read, the node starts empty and
    /// reports [`Event::BackendFailed`].
    #[must_use]
    pub fn new(config: Config, signer: S, realm: Realm, backend: B, now: Instant, unix_ms: u64, seed: u64) -> Self {
        let config = config.bounded();
        let clock = Clock::new(now, unix_ms);
        let own = signer.node_id();
        let mut rng = Rng::new(seed);
        let hash_seed = rng.next();
        let mut dht = Self {
            limiter: Limiter::new(config.rates, !hash_seed),
            exchange: Exchange::new(config.soft_timeout, config.hard_timeout),
            queries: Queries::default(),
            publisher: Publisher::new(signer),
            joining: Joining::new(rng),
            probes: Probes::default(),
            peer_lookups: PeerLookups::new(),
            handovers: HandOvers::default(),
            keeper: Keeper::new(backend),
            counters: Counters::default(),
            named: Named::default(),
            outputs: VecDeque::new(),
            local: Local {
                clock,
                own,
                verifier: Verifier::new(realm.clone()),
                member: Member::open(&realm, own),
                realm,
                table: RoutingTable::new(own, config.diversity, now),
                store: ProviderStore::new(clock, config.store, hash_seed),
                size: SizeEstimate::default(),
                ways_in: WaysIn::default(),
                config,
            },
        };
        if let Err(error) = dht.keeper.restore(&mut dht.local, now) {
            dht.report(Event::BackendFailed(error));
        }
        if dht.local.ways_in.contacts().next().is_some() {
            dht.joining.bootstrap(&mut dht.local, now, []);
        }
        dht.route(now);
        dht
    }

    /// This node.
    #[must_use]
    pub fn node_id(&self) -> &NodeId {
        &self.local.own
    }

    /// The realm.
    #[must_use]
    pub fn realm(&self) -> &Realm {
        &self.local.realm
    }

    /// Uses this grant of the node from now on, in a closed realm. Services are published with it as they come round again, which is
    /// before an earlier grant ends when grants are renewed an hour ahead.
    ///
    /// # Errors
    /// When the grant is not valid, or not this node's. The one before is kept.
    pub fn set_grant(&mut self, now: Instant, grant: &Chain) -> Result<(), AccessError> {
        self.local.set_grant(now, grant)
    }

    /// Takes revocations in, and drops the records of the nodes that they name (A6). Returns whether they were news.
    ///
    /// # Errors
    /// When the list is not valid, or its signer has reached a bound.
    pub fn revoke(&mut self, now: Instant, list: &SignedRevocations) -> Result<bool, AccessError> {
        let news = self.local.revoke(now, list)?;
        self.keeper.note_changes(&self.local, now);
        Ok(news)
    }

    /// The key of a service in this node's realm.
    #[must_use]
    pub fn key(&self, service: &ServiceName) -> ServiceKey {
        ServiceKey::new(&self.local.realm, service)
    }

    /// The number of nodes of the network, as far as lookups show; `None` while that is not known.
    #[must_use]
    pub fn network_size(&self) -> Option<f64> {
        self.local.size.nodes()
    }

    /// The clock, for a [`DirectoryCache`](crate::DirectoryCache) beside this core.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.local.clock
    }

    /// Ties the clocks again: at `now` it is `unix_ms` milliseconds after the Unix epoch, because the wall clock was set or the
    /// machine was suspended (D14). Advertise afterwards what is to be dated again.
    pub fn set_clock(&mut self, now: Instant, unix_ms: u64) {
        self.local.clock.set(now, unix_ms);
        self.local.store.set_clock(now, self.local.clock);
        self.keeper.note_changes(&self.local, now);
    }

    /// The routing table, to look at.
    #[must_use]
    pub fn table(&self) -> &RoutingTable {
        &self.local.table
    }

    /// The store, to look at.
    #[must_use]
    pub fn store(&self) -> &ProviderStore {
        &self.local.store
    }

    /// The numbers counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The next thing to do or to know. Call it until there is none, after every other call.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        let output = self.outputs.pop_front();
        if output.is_none() {
            self.give_back();
        }
        output
    }

    /// Gives unused memory back.
    fn give_back(&mut self) {
        if self.outputs.capacity() > KEPT_OUTPUTS {
            self.outputs.shrink_to(KEPT_OUTPUTS);
        }
        self.exchange.give_back();
        self.probes.give_back();
        self.queries.give_back();
        self.publisher.give_back();
        self.joining.give_back();
    }

    /// When [`Dht::handle_timeout`] next has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let cores = [
            self.exchange.poll_timeout(),
            self.publisher.poll_timeout(),
            Some(self.joining.poll_timeout()),
            self.handovers.poll_timeout(),
            self.keeper.poll_timeout(),
        ];
        let due = cores.into_iter().flatten().min();
        let due = due.map(|tick| self.local.clock.instant(tick));
        [due, self.local.store.poll_timeout()].into_iter().flatten().min()
    }

    /// Advances time: fails requests, drops records, publishes and refreshes.
    ///
    /// Early or repeated calls are harmless. Drain [`Dht::poll_output`] afterwards.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.time_out_requests(now);
        self.local.store.expire(now);
        self.publisher.handle_timeout(&mut self.local, now);
        self.route(now);
        let maintains = self.joining.handle_timeout(&self.local, now);
        self.route(now);
        if maintains {
            self.limiter.sweep(self.local.tick(now));
            self.keeper.note_contacts(&self.local, now);
        }
        self.hand_over(now);
        if let Err(error) = self.keeper.handle_timeout(&mut self.local, now) {
            self.report(Event::BackendFailed(error));
        }
        debug_assert!(
            self.poll_timeout().is_none_or(|at| at > now),
            "a timeout is due that was not handled"
        );
    }

    fn hand_over(&mut self, now: Instant) {
        let owns = |key: &ServiceKey| self.publisher.advertises(key);
        let Some((to, batches)) = self.handovers.step(&self.local, now, owns) else {
            return;
        };
        for batch in batches {
            let (key, records) = (batch.key, batch.records);
            self.send(now, to.clone(), Purpose::HandOver, Request::Publish { key, records });
        }
    }

    /// Commits every change to the backend at once: call it before the process ends.
    pub fn flush(&mut self, now: Instant) {
        if let Err(error) = self.keeper.flush(&mut self.local, now) {
            self.report(Event::BackendFailed(error));
        }
    }

    /// Providers of a key that this node holds itself, its own records among them, in the list's order.
    pub fn local_providers(
        &self,
        now: Instant,
        key: &ServiceKey,
    ) -> impl Iterator<Item = &VerifiedProvider> + use<'_, S, B> {
        self.local.store.get(now, key)
    }
}

/// Lookups.
impl<S: Signer, B: Backend> Dht<S, B> {
    /// Looks for providers of `key`: [`Event::Providers`] as they are found, then one [`Event::Finished`].
    ///
    /// This node's own store is asked first, and may be enough.
    ///
    /// # Errors
    /// When [`MAX_QUERIES`] are running.
    pub fn start_lookup(&mut self, now: Instant, key: ServiceKey, want: Want) -> Result<QueryId, TooManyQueries> {
        let id = self.prepare_lookup(now, key, want)?;
        self.run_lookup(now, id);
        Ok(id)
    }

    fn prepare_lookup(&mut self, now: Instant, key: ServiceKey, want: Want) -> Result<QueryId, TooManyQueries> {
        let goal = Goal::Providers(Search::new(key, want));
        self.queries.start(&mut self.local, now, key.into(), goal)
    }

    fn run_lookup(&mut self, now: Instant, id: QueryId) {
        self.queries.take_local(&mut self.local, now, id);
        self.queries.pump(&mut self.local, now, id);
        self.route(now);
    }

    /// Looks for providers of `key` for a peer, such as one whose call this node routes. Events are those of
    /// [`Dht::start_lookup`]; a lookup that gives way to those of other peers ends with [`QueryResult::Busy`](crate::QueryResult::Busy).
    ///
    /// A lookup costs the peer [`PEER_LOOKUP_COST`](crate::PEER_LOOKUP_COST) of the tokens it may ask with. At most [`MAX_PEER_LOOKUPS`] run for all peers
    /// together with at most [`MAX_PEER_REQUESTS`] requests, so that the rest is left to this node itself; they are shared as
    /// [`Shares`](macula_wire::Shares) says.
    ///
    /// # Errors
    /// When the peer asks too fast, or has its share of the lookups.
    pub fn start_lookup_for(
        &mut self,
        now: Instant,
        peer: &Peer,
        key: ServiceKey,
        want: Want,
    ) -> Result<QueryId, PeerLookupError> {
        let tick = self.local.tick(now);
        if !self.limiter.admit_lookup(tick, peer.contact.node_id()) {
            return Err(PeerLookupError::TooFast);
        }
        loop {
            match self.peer_lookups.admit(tick, &peer.contact)? {
                Started::Now => break,
                Started::InsteadOf(query) => self.queries.give_way(&self.local, now, query),
            }
        }
        let prepared = self.prepare_lookup(now, key, want);
        // Before it runs, since it may end at once.
        self.peer_lookups.begin(&peer.contact, prepared.ok());
        match prepared {
            Ok(id) => self.run_lookup(now, id),
            Err(_) => self.route(now),
        }
        Ok(prepared?)
    }

    /// Looks for the nodes closest to `target`: one [`Event::Finished`].
    ///
    /// # Errors
    /// When [`MAX_QUERIES`] are running.
    pub fn start_find_node(&mut self, now: Instant, target: Point) -> Result<QueryId, TooManyQueries> {
        let id = self.queries.start(&mut self.local, now, target, Goal::Nodes)?;
        self.queries.pump(&mut self.local, now, id);
        self.route(now);
        Ok(id)
    }

    /// Ends a lookup without an event.
    pub fn drop_query(&mut self, query: QueryId) {
        self.queries.drop_caller(query);
        self.peer_lookups.end(query);
    }
}

/// This node's services.
impl<S: Signer, B: Backend> Dht<S, B> {
    /// Publishes this node as a provider of `service`, and keeps it published (D5). Replaces an earlier advertisement.
    ///
    /// Each publication is reported with [`Event::Advertised`].
    ///
    /// # Errors
    /// When the advertisement is not valid, there are too many, or the realm is closed and this node's grant does not let it
    /// provide the service (A4).
    pub fn advertise_service(
        &mut self,
        now: Instant,
        service: &ServiceName,
        advertisement: Advertisement,
    ) -> Result<(), AdvertiseError> {
        let key = self.key(service);
        self.publisher
            .advertise(&mut self.local, now, key, Some(service.clone()), advertisement)?;
        self.route(now);
        Ok(())
    }

    /// As [`Dht::advertise_service`], in an open realm, for a service of which only the key is known.
    ///
    /// # Errors
    /// As [`Dht::advertise_service`]; in a closed realm always.
    pub fn advertise(
        &mut self,
        now: Instant,
        key: ServiceKey,
        advertisement: Advertisement,
    ) -> Result<(), AdvertiseError> {
        self.publisher
            .advertise(&mut self.local, now, key, None, advertisement)?;
        self.route(now);
        Ok(())
    }

    /// Withdraws this node as a provider of `key`, here at once and at the holders as they hear of it (D3).
    ///
    /// [`Event::Withdrawn`] tells when they have. Withdrawing a service that was never advertised is reported the same way.
    pub fn withdraw(&mut self, now: Instant, key: ServiceKey) {
        self.publisher.withdraw(&mut self.local, now, key);
        self.route(now);
    }

    /// The keys this node advertises, ascending.
    pub fn advertised(&self) -> impl Iterator<Item = &ServiceKey> {
        self.publisher.advertised()
    }

    /// The nodes that acknowledged the last publication of `key`; none when this node does not advertise it.
    #[must_use]
    pub fn holders(&self, key: &ServiceKey) -> &[Contact] {
        self.publisher.holders(key)
    }
}

/// Joining.
impl<S: Signer, B: Backend> Dht<S, B> {
    /// Joins a mesh through `seeds`, which are kept for joining again; at most [`MAX_SEEDS`].
    ///
    /// [`Event::Joined`] or [`Event::JoinFailed`] follows, unless the only seed is this node itself and no contact was kept. After
    /// a failure the node tries again by itself.
    pub fn bootstrap(&mut self, now: Instant, seeds: impl IntoIterator<Item = Seed>) {
        self.joining.bootstrap(&mut self.local, now, seeds);
        self.route(now);
    }

    /// Whether there is a node to join through: a seed, or a contact that was kept or is remembered.
    #[must_use]
    pub fn knows_a_way_in(&self) -> bool {
        !self.local.ways_in.is_empty()
    }

    /// Asks a node whether it answers, and takes it into the routing table when it does.
    pub fn add_contact(&mut self, now: Instant, contact: Contact) {
        if *contact.node_id() != self.local.own {
            self.probe(now, contact);
        }
    }

    /// Takes the answer to an [`Output::Identify`]: the nodes that listen at the address, none when it cannot be reached.
    pub fn handle_identified(&mut self, now: Instant, id: RequestId, nodes: impl IntoIterator<Item = Contact>) {
        if !self.joining.handle_identified(&mut self.local, now, id, nodes) {
            self.counters.unexpected += 1;
        }
        self.route(now);
    }
}
