//! The directory of this node: the DHT core in a task of its own, and the cache in front of it.
//!
//! Callers hold a [`Directory`]: a cache hit takes a lock and no message; everything else is a command to the task in
//! [`driver`]. The core decides everything; this module moves bytes and answers.

mod announce;
mod checks;
mod driver;
mod join;
mod lookup;
mod neighbours;
mod report;
mod requests;
mod state;
mod turns;

use std::{
    collections::HashMap,
    fmt,
    future::ready,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use macula_dht::{AdvertiseError, CacheCounters, CacheLimits, Cached, Clock, Counters, DirectoryCache, Flight};
use macula_rpc::{Asker, Provider, Resolve, ResolveError, ResolveOptions, Resolved, ServiceName, Source};
use macula_transport::PeerInfo;
use macula_wire::{Holder, Network, NodeId, Realm, ServiceKey, VerifiedProvider};
use tokio::sync::{
    Notify,
    mpsc::{self, error::TrySendError},
    oneshot,
};

use self::turns::Turns;
pub(crate) use self::{
    announce::{Announcement, Offer},
    driver::Driver,
    join::{Progress, Reached},
};
pub use self::{
    join::{JoinCause, JoinError, JoinReport, TrustedPeer},
    report::{PublishReport, WithdrawReport, WrongClock},
    state::{DirectoryState, Publication},
};
use crate::{clocks::Clocks, events::News, membership::Spread};

/// Commands of this node's own callers that wait for the task at a time. Beyond it, the callers wait.
const MAX_WAITING_COMMANDS: usize = 1024;
/// Commands of peers that wait for the task at a time. Beyond it, the peer that has most is declined.
const MAX_WAITING_REQUESTS: usize = 1024;

/// The counters of a node's directory, and the size of its store.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct DirectoryStats {
    /// How the cache answered.
    pub cache: CacheCounters,
    /// The counters of the protocol.
    pub dht: Counters,
    /// Nodes in the routing table.
    pub known_nodes: usize,
    /// Records of others held here.
    pub records: usize,
}

/// A provider as its record in the directory shows it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ProviderRecord {
    /// The provider.
    pub provider: Provider,
    /// How long ago the record was published, by this node's clock.
    pub age: Duration,
    /// How long the record is valid from its publication on.
    pub ttl: Duration,
}

/// The directory, to be asked. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Directory {
    commands: mpsc::Sender<Command>,
    clocks: Clocks,
    shared: Arc<Shared>,
}

/// The state that callers and the task share.
struct Shared {
    cache: Mutex<Cache>,
    stats: Mutex<DirectoryStats>,
    /// Told of each answer of another node.
    answered: Notify,
    news: News,
    asked: Asked,
    /// In a closed realm, the revocations of this node.
    spread: OnceLock<Spread>,
}

/// The commands of peers, on their way to the task.
struct Asked {
    /// `None` once the task is gone.
    turns: Mutex<Option<Turns<Command>>>,
    news: Notify,
}

/// The task's end of [`Asked`]. Dropped, it ends what waits.
struct Asking(Arc<Shared>);

/// The cache, by the names that callers use.
struct Cache {
    found: DirectoryCache,
    realm: Realm,
    /// Services found lately; no more than the cache has keys.
    read: HashMap<ServiceName, Read>,
}

/// A service's key and its last list, decoded. The key is hashed once, and an unchanged answer stays the same `Arc`.
struct Read {
    key: ServiceKey,
    found: Arc<[VerifiedProvider]>,
    providers: Arc<[Provider]>,
}

impl Cache {
    fn key(&self, service: &ServiceName) -> ServiceKey {
        match self.read.get(service) {
            Some(read) => read.key,
            None => ServiceKey::new(&self.realm, service),
        }
    }

    /// The answer that needs no waiting, and the key that the caller has to have looked up behind it.
    fn at_hand(&mut self, now: Instant, service: &ServiceName) -> Option<(Arc<[Provider]>, Option<ServiceKey>)> {
        let known = self.read.get_mut(service);
        let key = match &known {
            Some(read) => read.key,
            None => ServiceKey::new(&self.realm, service),
        };
        let (found, due) = match self.found.at_hand(now, &key)? {
            Cached::Hit(found) => (found, None),
            Cached::Stale(found, Flight::Lead) => (found, Some(key)),
            Cached::Stale(found, Flight::Follow) => (found, None),
            Cached::Negative => return Some((Arc::default(), None)),
            Cached::Miss(_) => return None,
        };
        let providers = match known {
            Some(read) => read.providers(found),
            None => self.read(service, key, found),
        };
        Some((providers, due))
    }

    /// Takes in a list of a service that had none, and gives its providers.
    fn read(&mut self, service: &ServiceName, key: ServiceKey, found: Arc<[VerifiedProvider]>) -> Arc<[Provider]> {
        if self.read.len() >= CacheLimits::default().keys {
            // Only one makes room: names that peers make up must not empty the cache.
            let any = self.read.keys().next().cloned();
            any.and_then(|name| self.read.remove(&name));
        }
        let read = Read {
            key,
            providers: read(&*found),
            found,
        };
        let providers = Arc::clone(&read.providers);
        self.read.insert(service.clone(), read);
        providers
    }
}

impl Read {
    /// The providers of this list, which mostly is the last one.
    fn providers(&mut self, found: Arc<[VerifiedProvider]>) -> Arc<[Provider]> {
        if !Arc::ptr_eq(&self.found, &found) {
            self.providers = read(&*found);
            self.found = found;
        }
        Arc::clone(&self.providers)
    }
}

/// The most a provider's weight counts, in multiples of its service's median: providers state their own weight (X3).
const MAX_WEIGHT_OF_MEDIAN: u32 = 8;

/// Records as callers take them.
fn read<'a>(records: impl IntoIterator<Item = &'a VerifiedProvider>) -> Arc<[Provider]> {
    let mut providers: Vec<_> = records.into_iter().filter_map(provider).collect();
    let mut weights: Vec<_> = providers.iter().map(|provider| provider.weight).collect();
    weights.sort_unstable();
    // The lower one of two: a provider beside one other does not raise its own bound.
    let median = weights.get(weights.len().saturating_sub(1) / 2).copied().unwrap_or(1);
    let most = median.saturating_mul(MAX_WEIGHT_OF_MEDIAN);
    for provider in &mut providers {
        provider.weight = provider.weight.min(most);
    }
    providers.into()
}

fn provider(record: &VerifiedProvider) -> Option<Provider> {
    let advertisement = record.advertisement()?;
    let provider = Provider::new(*record.node_id(), advertisement.endpoints().iter().cloned());
    Some(
        provider
            .with_weight(advertisement.weight())
            .with_zone(advertisement.zone().map(str::to_owned))
            .with_metadata(advertisement.metadata().clone()),
    )
}

fn holder(asker: &Asker) -> Holder<NodeId> {
    Holder::new(Network::of(asker.ip), asker.node_id)
}

pub(crate) type LookupReply = oneshot::Sender<Result<Arc<[Provider]>, ResolveError>>;

/// How much of a lookup its caller waits for.
pub(crate) enum Wait {
    /// Some providers: a call is to be made.
    Enough(LookupReply),
    /// The whole list.
    Whole(LookupReply),
    /// The cache is refreshed behind a call.
    Nothing,
}

/// A caller's request to the task.
enum Command {
    /// Answer a peer's request.
    Answer {
        peer: Arc<PeerInfo>,
        body: Bytes,
        reply: oneshot::Sender<Bytes>,
    },
    /// Look a key up, for this node or for a peer, and put the answer into the cache.
    Lookup {
        key: ServiceKey,
        wait: Wait,
        asker: Option<Asker>,
    },
    /// Publish this node as a provider of a service.
    Advertise {
        service: ServiceName,
        reply: oneshot::Sender<Result<PublishReport, AdvertiseError>>,
    },
    /// Withdraw this node from a key.
    Withdraw {
        key: ServiceKey,
        reply: oneshot::Sender<WithdrawReport>,
    },
    /// Show the directory at this moment.
    State { reply: oneshot::Sender<DirectoryState> },
    /// Write the waiting changes to disk, and end.
    Close { reply: oneshot::Sender<()> },
}

impl Asked {
    fn new() -> Self {
        Self {
            turns: Mutex::new(Some(Turns::new(MAX_WAITING_REQUESTS))),
            news: Notify::new(),
        }
    }

    fn turns(&self) -> MutexGuard<'_, Option<Turns<Command>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a command in. Gives back the one that is declined for it, which may be itself.
    fn push(&self, from: Holder<NodeId>, command: Command) -> Option<Command> {
        match &mut *self.turns() {
            Some(turns) => {
                let declined = turns.push(from, command);
                self.news.notify_one();
                declined
            }
            None => Some(command),
        }
    }
}

impl Asking {
    /// Waits for commands, and takes at most `most` of them.
    async fn next(&self, most: usize) -> Vec<Command> {
        loop {
            let next: Vec<_> = match &mut *self.0.asked.turns() {
                Some(turns) => std::iter::from_fn(|| turns.pop()).take(most).collect(),
                None => Vec::new(),
            };
            if !next.is_empty() {
                return next;
            }
            self.0.asked.news.notified().await;
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        // Those that wait for an answer see that there will be none.
        *self.0.asked.turns() = None;
    }
}

impl Cache {
    /// Ends a command that is not done: there is more to do than can wait.
    fn decline(&mut self, command: Option<Command>) {
        // The peer of any other command sees that its answer is gone.
        if let Some(Command::Lookup { key, wait, .. }) = command {
            self.found.abandon(&key);
            if let Wait::Enough(reply) | Wait::Whole(reply) = wait {
                // The caller may have stopped waiting.
                let _ = reply.send(Err(ResolveError::Busy));
            }
        }
    }
}

impl Shared {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self) -> MutexGuard<'_, DirectoryStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Directory {
    /// A directory of this realm whose core has this clock, and the queue of commands for its task.
    fn new(clock: Clock, clocks: Clocks, realm: Realm) -> (Self, mpsc::Receiver<Command>) {
        let (commands, waiting) = mpsc::channel(MAX_WAITING_COMMANDS);
        let found = DirectoryCache::new(clock, CacheLimits::default());
        let shared = Shared {
            cache: Mutex::new(Cache {
                found,
                realm,
                read: HashMap::new(),
            }),
            stats: Mutex::default(),
            answered: Notify::new(),
            news: News::default(),
            asked: Asked::new(),
            spread: OnceLock::new(),
        };
        (
            Self {
                commands,
                clocks,
                shared: Arc::new(shared),
            },
            waiting,
        )
    }

    /// Answers a peer's request; `None` when there is more to do than can wait.
    pub(crate) async fn answer(&self, peer: &Arc<PeerInfo>, body: Bytes) -> Option<Bytes> {
        let (reply, answer) = oneshot::channel();
        let from = Holder::new(Network::of(peer.remote_addr.ip()), peer.node_id);
        let command = Command::Answer {
            peer: Arc::clone(peer),
            body,
            reply,
        };
        if let declined @ Some(_) = self.shared.asked.push(from, command) {
            self.shared.cache().decline(declined);
        }
        answer.await.ok()
    }

    /// The providers of a service, when they are known without waiting. A list that is due is refreshed behind it (D7).
    fn known(&self, service: &ServiceName, asker: Option<Asker>) -> Option<Resolved> {
        let now = self.clocks.now();
        let mut cache = self.shared.cache();
        let (providers, due) = cache.at_hand(now, service)?;
        if let Some(key) = due {
            let wait = Wait::Nothing;
            let lookup = Command::Lookup { key, wait, asker };
            // Without room for the command, the next caller refreshes the list.
            let declined = match asker {
                None => self.commands.try_send(lookup).err().map(TrySendError::into_inner),
                Some(asker) => self.shared.asked.push(holder(&asker), lookup),
            };
            cache.decline(declined);
        }
        Some(Resolved {
            providers,
            source: Source::Cache,
        })
    }

    /// The records of a service as the DHT has them, each with its age by this node's clock.
    pub(crate) async fn records(&self, service: &ServiceName) -> Result<Vec<ProviderRecord>, ResolveError> {
        self.look_up(service, ResolveOptions::default().with_force_refresh(true))
            .await?;
        // Decodes the answer, unless an earlier call has.
        self.known(service, None);
        let now = self.clocks.now();
        let cache = self.shared.cache();
        let Some(read) = cache.read.get(service) else {
            return Ok(Vec::new());
        };
        let unix_ms = cache.found.clock().unix_ms(now);
        let record = |record: &VerifiedProvider| {
            Some(ProviderRecord {
                provider: provider(record)?,
                age: Duration::from_millis(unix_ms.saturating_sub(record.advertised_at_ms())),
                ttl: record.ttl(),
            })
        };
        Ok(read.found.iter().filter_map(record).collect())
    }

    /// Has this node's lookups wait for the revocations that its first peers know.
    pub(crate) fn wait_for_orders(&self, spread: Spread) {
        // It is set once, at the node's start.
        let _ = self.shared.spread.set(spread);
    }

    /// The providers of a service as the DHT has them. In a closed realm a node that has just started has heard of no revocation yet, so
    /// it takes those of its first peers in before it uses a provider (A6).
    async fn look_up(&self, service: &ServiceName, options: ResolveOptions) -> Result<Resolved, ResolveError> {
        let found = self.ask(service, options).await?;
        let Some(spread) = self.shared.spread.get().filter(|_| options.asker.is_none()) else {
            return Ok(found);
        };
        match spread.catch_up().await {
            true => self.ask(service, options.with_force_refresh(true)).await,
            false => Ok(found),
        }
    }

    async fn ask(&self, service: &ServiceName, options: ResolveOptions) -> Result<Resolved, ResolveError> {
        let (reply, answer) = oneshot::channel();
        let key = {
            let now = self.clocks.now();
            let mut cache = self.shared.cache();
            let key = cache.key(service);
            // Counted as a lookup. The task runs one lookup a key, so every caller sends the command.
            let _ = cache.found.force_refresh(now, &key);
            key
        };
        let wait = if options.force_refresh {
            Wait::Whole(reply)
        } else {
            Wait::Enough(reply)
        };
        let asker = options.asker;
        let lookup = Command::Lookup { key, wait, asker };
        match asker {
            None => self.commands.send(lookup).await.map_err(|_| ResolveError::Closed)?,
            Some(asker) => {
                if let declined @ Some(_) = self.shared.asked.push(holder(&asker), lookup) {
                    self.shared.cache().decline(declined);
                }
            }
        }
        let providers = answer.await.map_err(|_| ResolveError::Closed)??;
        Ok(Resolved {
            providers,
            source: Source::Dht,
        })
    }

    /// Publishes this node as a provider of a service, and keeps it published; answers when the nodes that should hold the record have.
    pub(crate) async fn advertise(&self, service: &ServiceName) -> Result<PublishReport, AdvertiseError> {
        let (reply, answer) = oneshot::channel();
        // A closed directory publishes nothing.
        let service = service.clone();
        let sent = self.commands.send(Command::Advertise { service, reply }).await;
        if sent.is_err() {
            Ok(PublishReport::default())
        } else {
            answer.await.unwrap_or_else(|_| Ok(PublishReport::default()))
        }
    }

    /// Withdraws this node from a key; answers when the holders of its record have been told.
    pub(crate) async fn withdraw(&self, key: ServiceKey) -> WithdrawReport {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(Command::Withdraw { key, reply }).await;
        if sent.is_err() {
            WithdrawReport::default()
        } else {
            answer.await.unwrap_or_default()
        }
    }

    /// Waits until no other node has answered anything for `pause`.
    pub(crate) async fn silent_for(&self, pause: Duration) {
        while tokio::time::timeout(pause, self.shared.answered.notified())
            .await
            .is_ok()
        {}
    }

    /// Ends the task after the waiting changes are written. Afterwards the directory gives no answer.
    pub(crate) async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        if self.commands.send(Command::Close { reply }).await.is_ok() {
            // Fails when another caller closes it.
            let _ = closed.await;
        }
    }

    /// The directory at this moment; empty once it is closed.
    pub(crate) async fn state(&self) -> DirectoryState {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::State { reply }).await.is_err() {
            return DirectoryState::default();
        }
        let state = answer.await.unwrap_or_default();
        let cached = self.shared.cache().found.len();
        DirectoryState {
            stats: self.stats(),
            cached,
            max_cached: CacheLimits::default().keys,
            ..state
        }
    }

    /// The readers of the node's events.
    pub(crate) fn news(&self) -> &News {
        &self.shared.news
    }

    pub(crate) fn stats(&self) -> DirectoryStats {
        let cache = self.shared.cache().found.counters();
        DirectoryStats {
            cache,
            ..*self.shared.stats()
        }
    }
}

impl Resolve for Directory {
    fn resolve<'a>(
        &'a self,
        service: &'a ServiceName,
        options: ResolveOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        match self.at_hand(service, options) {
            Some(known) => Box::pin(ready(Ok(known))),
            None => Box::pin(self.look_up(service, options)),
        }
    }

    fn at_hand(&self, service: &ServiceName, options: ResolveOptions) -> Option<Resolved> {
        match options.force_refresh {
            true => None,
            false => self.known(service, options.asker),
        }
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
