//! The task that owns the DHT core: it performs the core's outputs, and tells it events with their time.
//!
//! **Invariant:** every effect is performed in the one match of [`Driver::perform`], and nothing else decides anything. No signature of a
//! peer's message is checked here: see `checks.rs`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use macula_dht::{
    Begun, Config, Contact, Dht, Event, MAX_PEER_REQUESTS, Output, Peer, QueryId, QueryResult, Request, RequestFailed,
    Role, Want,
};
use macula_rpc::{Asker, ResolveError};
use macula_transport::{Access, Hush, Identity, Pool};
use macula_wire::{ChainHash, Member, SecretKey, ServiceKey, ServiceName, VerifiedProvider};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::MissedTickBehavior,
};

use super::{
    Announcement, Asking, Command, Directory, PublishReport, Shared, Wait, WithdrawReport,
    checks::{Checked, Checking},
    join::{Joining, Progress, Reached},
    lookup::Lookup,
    neighbours::Neighbours,
    requests::{self, Done},
    state::{DirectoryState, Own, Publication},
};
use crate::{
    BootstrapAddr,
    clocks::{ClockWatch, Clocks, Jump},
    data::Kept,
    events::NodeEvent,
};

/// Requests on their way at a time; the core is told that those beyond it were not sent, and asks again later. Half of them are left for
/// this node itself.
const MAX_REQUESTS: usize = 2 * MAX_PEER_REQUESTS;
/// How often the driver looks after connections to neighbours and the clocks, and every [`LOOKS_A_ROUND`] times after its addresses.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOKS_A_ROUND: u32 = 2;
/// Commands taken before the core is drained.
const COMMANDS_AT_ONCE: usize = 64;

type Core = Dht<SecretKey, Kept>;

/// The core, and the callers that wait for its answers.
pub(crate) struct Driver {
    core: Core,
    access: Access,
    /// The grant that services are published with.
    grant: Option<ChainHash>,
    clocks: Clocks,
    watch: ClockWatch,
    commands: mpsc::Receiver<Command>,
    asking: Asking,
    shared: Arc<Shared>,
    joining: Joining,
    /// Lookups under way by number; one a key.
    lookups: BTreeMap<QueryId, Lookup>,
    advertising: HashMap<ServiceKey, Vec<oneshot::Sender<Result<PublishReport, macula_dht::AdvertiseError>>>>,
    withdrawing: HashMap<ServiceKey, Vec<oneshot::Sender<WithdrawReport>>>,
    /// This node's services.
    own: HashMap<ServiceKey, Own>,
    requests: JoinSet<Done>,
    checking: Checking,
    neighbours: Neighbours,
    timeouts: Timeouts,
    /// Done when every change is written to disk.
    kept: BoxFuture<'static, ()>,
    /// The caller that asked for the end.
    closing: Option<oneshot::Sender<()>>,
    /// Another process has this node's key.
    usurped: Hush,
}

/// How long the network is given.
#[derive(Clone, Copy)]
struct Timeouts {
    request: Duration,
    identify: Duration,
}

impl Driver {
    /// A directory for the node that is `identity`, and the task that runs it. It starts with the records and contacts of `kept`. `seed`
    /// is secret: it keys the hashes of values that peers choose.
    pub(crate) fn new(
        identity: &Identity,
        access: Access,
        config: Config,
        bootstrap: Vec<BootstrapAddr>,
        kept: Kept,
        clocks: Clocks,
        seed: u64,
    ) -> (Directory, Self, watch::Receiver<Progress>, Reached) {
        let timeouts = Timeouts {
            request: config.hard_timeout,
            identify: config.identify_timeout,
        };
        let closed = kept.closed();
        let watch = ClockWatch::new(clocks.read());
        let realm = access.realm().clone();
        let core = Dht::new(
            config,
            identity.secret().clone(),
            realm.clone(),
            kept,
            clocks.now(),
            watch.unix_ms(),
            seed,
        );
        let (directory, commands) = Directory::new(core.clock(), clocks.clone(), realm);
        let (progress, watched) = watch::channel(None);
        let reached = Reached::default();
        let mut driver = Self {
            core,
            access,
            grant: None,
            clocks,
            watch,
            commands,
            asking: Asking(Arc::clone(&directory.shared)),
            shared: Arc::clone(&directory.shared),
            joining: Joining::new(bootstrap, progress, reached.clone()),
            lookups: BTreeMap::new(),
            advertising: HashMap::new(),
            withdrawing: HashMap::new(),
            own: HashMap::new(),
            requests: JoinSet::new(),
            checking: Checking::default(),
            neighbours: Neighbours::default(),
            timeouts,
            kept: closed,
            closing: None,
            usurped: Hush::default(),
        };
        driver.follow_access();
        (directory, driver, watched, reached)
    }

    /// Publishes this node under a key as soon as the task runs.
    pub(crate) fn advertise(
        &mut self,
        service: &ServiceName,
        announcement: &Announcement,
    ) -> Result<(), macula_dht::AdvertiseError> {
        let key = self.core.key(service);
        self.own.entry(key).or_insert_with(|| Own::new(service));
        self.core
            .advertise_service(self.clocks.now(), service, announcement.advertisement())
    }

    /// Uses this node's present grant, and drops what revoked nodes have published (A6). Returns whether the grant is another one than
    /// before.
    pub(crate) fn follow_access(&mut self) -> bool {
        let now = self.clocks.now();
        let mut revoked = false;
        for list in self.access.revocations() {
            match self.core.revoke(now, &list) {
                Ok(news) => revoked |= news,
                Err(error) => tracing::warn!(%error, "the directory does not take a list of revocations"),
            }
        }
        if revoked {
            let is_member = |record: &VerifiedProvider| self.access.check(&record.member()).is_ok();
            self.shared.cache().found.forget_unless(is_member);
            for lookup in self.lookups.values_mut() {
                lookup.found.retain(|_, record| is_member(record));
            }
        }
        let own = self.access.own().ok();
        let Some(grant) = own.as_ref().and_then(Member::chain) else {
            return false;
        };
        let hash = grant.hash();
        if self.grant == Some(hash) {
            return false;
        }
        match self.core.set_grant(now, grant) {
            Ok(()) => self.grant = Some(hash),
            Err(error) => tracing::warn!(%error, "the directory does not take this node's grant"),
        }
        self.grant == Some(hash)
    }

    /// Runs until it is closed, or every [`Directory`] is gone.
    pub(crate) async fn run(mut self, pool: Pool, announcement: Announcement) {
        self.work(pool, announcement).await;
        // Callers that still wait get no answer from here on.
        let Self {
            mut core,
            clocks,
            kept,
            closing,
            ..
        } = self;
        core.flush(clocks.now());
        drop(core);
        kept.await;
        if let Some(closing) = closing {
            // The caller may have stopped waiting.
            let _ = closing.send(());
        }
    }

    async fn work(&mut self, pool: Pool, mut announcement: Announcement) {
        let seeds = self.joining.seeds(self.core.node_id());
        if seeds.is_empty() && !self.core.knows_a_way_in() {
            self.joining.joined(0, std::iter::empty());
        } else {
            self.core.bootstrap(self.clocks.now(), seeds);
        }
        let mut looks = 0_u32;
        let mut changed = self.access.changed();
        // `changed` does not report earlier changes.
        self.follow_access();
        let mut batch = Vec::with_capacity(COMMANDS_AT_ONCE);
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while let Some(output) = self.core.poll_output() {
                self.perform(output, &pool);
            }
            self.publish_stats();
            let enough = self
                .lookups
                .values()
                .filter(|lookup| !lookup.hurried.is_empty())
                .filter_map(|l| l.enough_at);
            let due = enough.chain(self.core.poll_timeout()).min();
            let due = due.map(|due| self.clocks.on_runtime(due));
            tokio::select! {
                biased;
                Some(done) = self.requests.join_next(), if !self.requests.is_empty() => {
                    // A task that panicked leaves its request to the core's timeout.
                    if let Ok(done) = done {
                        self.take(done, &mut announcement);
                    }
                }
                checked = self.checking.next() => self.end_check(checked),
                // It cannot fail: the driver keeps the sender. Before the commands: a caller that has heard of an order asks by it.
                _ = changed.changed() => {
                    // A record ends with the grant that it was signed under.
                    if self.follow_access() {
                        self.publish_anew(&announcement);
                    }
                }
                taken = self.commands.recv_many(&mut batch, COMMANDS_AT_ONCE) => {
                    if taken == 0 {
                        return;
                    }
                    batch.drain(..).for_each(|command| self.obey(command, &mut announcement));
                    if self.closing.is_some() {
                        return;
                    }
                }
                asked = self.asking.next(COMMANDS_AT_ONCE) => {
                    asked.into_iter().for_each(|command| self.obey(command, &mut announcement));
                }
                _ = look.tick() => {
                    looks = looks.wrapping_add(1);
                    let jumped = self.look_at_clocks();
                    let moved = looks.is_multiple_of(LOOKS_A_ROUND) && announcement.look(self.clocks.now());
                    if moved {
                        self.shared.news.tell(NodeEvent::Addresses(announcement.addresses()));
                    }
                    if jumped || moved {
                        self.publish_anew(&announcement);
                    }
                    self.look_at_neighbours();
                }
                () = sleep_until(due) => {}
            }
            let now = self.clocks.now();
            self.core.handle_timeout(now);
            self.answer_the_hurried(now);
        }
    }

    /// Finds out whether the clocks have jumped, and sets the core's when they have (D14).
    fn look_at_clocks(&mut self) -> bool {
        let Some(Jump { slept, stepped_ms }) = self.watch.look(self.clocks.read()) else {
            return false;
        };
        tracing::warn!(
            ?slept,
            stepped_ms,
            "the machine was suspended or its wall clock was set; the node publishes its services again"
        );
        self.shared.news.tell(NodeEvent::ClockJumped { slept, stepped_ms });
        self.clocks.set_suspended(self.watch.suspended());
        let now = self.clocks.now();
        // Everything that ran out during the jump ends before new work starts.
        self.core.handle_timeout(now);
        self.core.set_clock(now, self.watch.unix_ms());
        self.shared.cache().found.set_clock(now, self.core.clock());
        if !slept.is_zero() {
            self.core.bootstrap(now, self.joining.seeds(self.core.node_id()));
        }
        true
    }

    /// Publishes every service again, with the present advertisement and date.
    fn publish_anew(&mut self, announcement: &Announcement) {
        let services: Vec<_> = self.core.advertised().copied().collect();
        for key in services {
            let Some(service) = self.own.get(&key).map(|own| &own.name) else {
                continue;
            };
            let advertised = self
                .core
                .advertise_service(self.clocks.now(), service, announcement.advertisement());
            if let Err(error) = advertised {
                tracing::warn!(%key, %error, "a service could not be published again");
            }
        }
    }

    fn look_at_neighbours(&mut self) {
        let now = self.clocks.now();
        // A node that was restarted has forgotten its records; one that is gone leaves the table early.
        for contact in self.neighbours.due(now) {
            self.joining.lost(contact.node_id());
            self.core.add_contact(now, contact);
        }
        if self.joining.is_time_to_try(now) {
            self.core.bootstrap(now, self.joining.seeds(self.core.node_id()));
        }
    }

    /// Gives the callers that need any provider the ones found so far.
    fn answer_the_hurried(&mut self, now: Instant) {
        let clock = self.core.clock();
        for lookup in self.lookups.values_mut() {
            if !lookup.hurried.is_empty() && lookup.is_enough(now) {
                let providers = lookup.so_far(now, &clock);
                if providers.is_empty() {
                    lookup.enough_at = None;
                    continue;
                }
                for reply in lookup.hurried.drain(..) {
                    let _ = reply.send(Ok(Arc::clone(&providers)));
                }
            }
        }
    }

    /// Performs an output of the core.
    fn perform(&mut self, output: Output, pool: &Pool) {
        match output {
            Output::Send { id, .. } if self.requests.len() >= MAX_REQUESTS => {
                // This node's own congestion says nothing of the peer (X10).
                self.core
                    .handle_response(self.clocks.now(), id, Err(RequestFailed::NotSent));
            }
            Output::Send { id, to, request } => {
                let body = request.encode();
                self.requests
                    .spawn(requests::send(pool.clone(), id, to, body, self.timeouts.request));
            }
            Output::Identify { id, address: endpoint } => {
                self.requests
                    .spawn(requests::identify(pool.clone(), id, endpoint, self.timeouts.identify));
            }
            Output::Event(event) => self.hear(event),
        }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Finished { query, result, stats } => {
                tracing::debug!(?stats, "a lookup is over");
                self.finish(query, result);
            }
            Event::Advertised {
                key,
                acknowledged,
                refused,
                unreachable,
            } => {
                let report = PublishReport {
                    acknowledged,
                    refused,
                    unreachable,
                };
                let own = self.own.get_mut(&key);
                let name = own.as_ref().map(|own| own.name.clone());
                if let Some(own) = own {
                    own.last = Some((report.clone(), self.clocks.now()));
                }
                if !report.refused.is_empty() {
                    let service = name.as_ref().map(ServiceName::as_str).unwrap_or_default();
                    let clock = report.wrong_clock().map(|clock| clock.to_string()).unwrap_or_default();
                    tracing::warn!(service, %report, clock, "some nodes did not take this node's provider record");
                }
                self.joining.published(&key);
                if let Some(service) = name {
                    let report = report.clone();
                    self.shared.news.tell(NodeEvent::Published { service, report });
                }
                // The caller may have stopped waiting.
                for reply in self.advertising.remove(&key).into_iter().flatten() {
                    let _ = reply.send(Ok(report.clone()));
                }
            }
            Event::Misbehaved { peer, times } => {
                tracing::warn!(%peer, times, "a peer publishes or hands out records that are forged or without right");
            }
            Event::Usurped { endpoints, .. } => {
                let at: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
                let node = self.core.node_id();
                self.usurped.say(|_| {
                    tracing::warn!(
                        %node, at = at.join(" "),
                        "another process uses this node's key: each takes the other's place in the directory; end one of them, or give it an identity of its own"
                    );
                });
            }
            Event::NotAdvertised { key, error } => {
                let service = self.own.get(&key).map(|own| own.name.as_str()).unwrap_or_default();
                tracing::warn!(service, %error, "this node is not published as a provider any more");
            }
            Event::Withdrawn {
                key,
                acknowledged,
                unacknowledged,
            } => {
                let report = WithdrawReport {
                    acknowledged,
                    unacknowledged,
                };
                for reply in self.withdrawing.remove(&key).into_iter().flatten() {
                    let _ = reply.send(report);
                }
                let service = self.own.get(&key).map(|own| own.name.clone());
                // It may have been advertised again meanwhile.
                if !self.core.advertised().any(|known| *known == key) {
                    self.own.remove(&key);
                }
                self.shared.news.tell(NodeEvent::Withdrawn { service, report });
            }
            Event::Joined { contacts } => {
                self.shared.news.tell(NodeEvent::Joined { contacts });
                let services = self.core.advertised();
                let services: Vec<_> = services.map(|key| (*key, !self.core.holders(key).is_empty())).collect();
                self.joining.joined(contacts, services.into_iter());
            }
            Event::JoinFailed { retry_in } => {
                let error = self.joining.failed(retry_in);
                self.shared.news.tell(NodeEvent::JoinFailed { error, retry_in });
            }
            Event::BackendFailed(error) => tracing::warn!(%error, "some of the directory is not kept"),
            Event::Providers { query, batch } => {
                if let Some(lookup) = self.lookups.get_mut(&query) {
                    lookup.add(self.clocks.now(), batch);
                }
            }
            other => tracing::debug!(?other, "news of a later version of the core"),
        }
    }

    fn take(&mut self, done: Done, announcement: &mut Announcement) {
        let now = self.clocks.now();
        match done {
            Done::Replied { id, result, end, to } => {
                self.joining.exchanged(&to, end.as_ref().err());
                if let Ok(connection) = end {
                    announcement.seen_by(now, connection.peer());
                    self.shared.answered.notify_waiters();
                    self.neighbours.talked_to(to, connection.end());
                }
                if let Some(checks) = self.core.begin_response(now, id, result) {
                    self.checking.reply(checks);
                }
                // No other node has to find this one, so one node that answers is mesh enough.
                if !self.core.table().is_empty() && self.core.advertised().next().is_none() {
                    self.joining.can_ask(self.core.table().len());
                }
            }
            Done::Identified { id, endpoint, peers } => {
                for found in peers.iter().flatten() {
                    announcement.seen_by(now, &found.peer);
                }
                let contacts = self.joining.identified(&endpoint, peers);
                self.core.handle_identified(now, id, contacts);
            }
        }
    }

    /// Goes on with a message whose signatures are checked.
    fn end_check(&mut self, checked: Checked) {
        let now = self.clocks.now();
        match checked {
            Checked::Reply(checks) => self.core.finish_response(now, checks),
            Checked::Request(checks, reply) => {
                let response = self.core.finish_request(now, checks);
                // The peer may have gone.
                let _ = reply.send(response.encode());
            }
        }
    }

    fn obey(&mut self, command: Command, announcement: &mut Announcement) {
        let now = self.clocks.now();
        match command {
            Command::Answer { peer, body, reply } => {
                announcement.seen_by(now, &peer);
                let peer = requests::peer(&peer);
                match self.core.begin_request(now, &peer, Request::decode(body)) {
                    // The peer may have gone.
                    Begun::Answered(response) => drop(reply.send(response.encode())),
                    Begun::Checking(checks) => self.checking.request(&peer, checks, reply),
                }
            }
            Command::Lookup { key, wait, asker } => self.look_up(key, wait, asker),
            Command::Advertise { service, reply } => match self.advertise(&service, announcement) {
                Ok(()) => self.advertising.entry(self.core.key(&service)).or_default().push(reply),
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Withdraw { key, reply } => {
                // A publication that was under way ends here, without an event of its own.
                self.joining.published(&key);
                for reply in self.advertising.remove(&key).into_iter().flatten() {
                    let _ = reply.send(Ok(PublishReport::default()));
                }
                self.withdrawing.entry(key).or_default().push(reply);
                self.core.withdraw(now, key);
            }
            Command::State { reply } => {
                // The reader may have gone.
                let _ = reply.send(self.state(now));
            }
            Command::Close { reply } => self.closing = Some(reply),
        }
    }

    /// Starts a lookup, or joins the one under way for the key.
    fn look_up(&mut self, key: ServiceKey, wait: Wait, asker: Option<Asker>) {
        let query = match self.lookups.iter().find(|(_, lookup)| lookup.key == key) {
            Some((query, _)) => *query,
            None => match self.start(key, asker) {
                Ok(query) => query,
                Err(error) => {
                    self.shared.cache().found.abandon(&key);
                    if let Wait::Enough(reply) | Wait::Whole(reply) = wait {
                        let _ = reply.send(Err(error));
                    }
                    return;
                }
            },
        };
        let lookup = self.lookups.entry(query).or_insert_with(|| Lookup {
            key,
            hurried: Vec::new(),
            patient: Vec::new(),
            found: BTreeMap::new(),
            enough_at: None,
            own: false,
            for_peer: asker.is_some(),
        });
        lookup.own |= asker.is_none();
        match wait {
            Wait::Enough(reply) => lookup.hurried.push(reply),
            Wait::Whole(reply) => lookup.patient.push(reply),
            Wait::Nothing => {}
        }
    }

    /// Starts a lookup: for this node, or for a peer within its share.
    fn start(&mut self, key: ServiceKey, asker: Option<Asker>) -> Result<QueryId, ResolveError> {
        let now = self.clocks.now();
        let Some(asker) = asker else {
            return self.core.start_lookup(now, key, Want::All).map_err(|error| {
                tracing::warn!(%error, "a lookup was not started");
                ResolveError::Unreachable
            });
        };
        let peer = Peer {
            contact: Contact::new(asker.node_id, []).observed_at(asker.ip),
            role: Role::Client,
        };
        self.core.start_lookup_for(now, &peer, key, Want::All).map_err(|error| {
            tracing::debug!(peer = %asker.node_id.short(), %error, "a lookup for a peer was not started");
            ResolveError::Busy
        })
    }

    fn finish(&mut self, query: QueryId, result: QueryResult) {
        let Some(mut lookup) = self.lookups.remove(&query) else {
            return;
        };
        if result == QueryResult::Busy && lookup.for_peer && lookup.own {
            // This node's own calls have joined it since. Their lookup is begun once: it ends as busy when nothing can be sent.
            if let Ok(query) = self.start(lookup.key, None) {
                lookup.for_peer = false;
                self.lookups.insert(query, lookup);
                return;
            }
        }
        let Lookup {
            key, hurried, patient, ..
        } = lookup;
        let mut cache = self.shared.cache();
        let answer = match result {
            QueryResult::Unreachable => {
                cache.found.abandon(&key);
                Err(ResolveError::Unreachable)
            }
            QueryResult::Busy => {
                cache.found.abandon(&key);
                Err(ResolveError::Busy)
            }
            QueryResult::Found(mut providers) => {
                // An order may have come since a record was checked.
                providers.retain(|record| self.access.check(&record.member()).is_ok());
                Ok(providers)
            }
            QueryResult::Misdated(error) => {
                cache.found.abandon(&key);
                Err(ResolveError::custom(error))
            }
            QueryResult::NotFound | QueryResult::Nodes(_) => Ok(Vec::new()),
        };
        let answer = answer.map(|providers| {
            let read = super::read(&providers);
            cache.found.insert(self.clocks.now(), &key, providers);
            read
        });
        for reply in hurried.into_iter().chain(patient) {
            let _ = reply.send(answer.clone());
        }
    }

    /// The directory as the task knows it; the rest is added by [`Directory::state`].
    fn state(&self, now: Instant) -> DirectoryState {
        let published = self.core.advertised().filter_map(|key| {
            let own = self.own.get(key)?;
            let ago = |(report, at): &(PublishReport, Instant)| (report.clone(), now.saturating_duration_since(*at));
            Some(Publication {
                service: own.name.clone(),
                holders: self.core.holders(key).iter().map(|holder| *holder.node_id()).collect(),
                last: own.last.as_ref().map(ago),
            })
        });
        let mut published: Vec<_> = published.collect();
        published.sort_unstable_by(|a, b| a.service.cmp(&b.service));
        DirectoryState {
            contacts: self.core.table().iter().cloned().collect(),
            replacements: self.core.table().replacements().count(),
            network_size: self.core.network_size(),
            held: self.core.store().usage(),
            limits: self.core.store().limits(),
            published,
            ..DirectoryState::default()
        }
    }

    fn publish_stats(&self) {
        let mut stats = self.shared.stats();
        stats.dht = self.core.counters();
        stats.known_nodes = self.core.table().len();
        stats.records = self.core.store().usage().records;
    }
}

async fn sleep_until(due: Option<tokio::time::Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
