//! The directory of this node: the DHT core in a task of its own, and the cache in front of it.
//!
//! Callers hold a [`Directory`]: a cache hit takes a lock and no message; everything else is a command to the task in
//! [`driver`]. The core decides everything; this module moves bytes and answers.

mod driver;
mod join;
mod neighbours;
mod requests;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use macula_dht::{
    AdvertiseError, CacheCounters, CacheLimits, Cached, Clock, Counters, DirectoryCache, Flight, Refusal,
};
use macula_rpc::{Provider, Resolve, ResolveError, ResolveOptions, Resolved, ServiceName, Source};
use macula_transport::PeerInfo;
use macula_wire::{Advertisement, NodeId, Realm, ServiceKey, VerifiedProvider};
use tokio::sync::{Notify, mpsc, oneshot};

pub use self::join::{JoinCause, JoinError, JoinReport, TrustedPeer};
pub(crate) use self::{driver::Driver, join::Progress};

/// Commands that wait for the task at a time; requests of peers beyond that are declined, everybody else waits.
const MAX_WAITING_COMMANDS: usize = 1024;

/// What became of a publication (D10).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublishReport {
    /// How many other nodes hold the record; 0 when this node is alone, and holds it itself.
    pub acknowledged: usize,
    /// Who refused it, and why.
    pub refused: Vec<(NodeId, Refusal)>,
    /// How many nodes that should hold it did not answer.
    pub unreachable: usize,
}

/// What became of a withdrawal (D3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WithdrawReport {
    /// How many other nodes know of it.
    pub acknowledged: usize,
    /// How many held the record and could not be told; they show it until it expires.
    pub unacknowledged: usize,
}

/// What the directory of a node has counted and holds.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct DirectoryStats {
    /// How the cache answered.
    pub cache: CacheCounters,
    /// What the protocol has counted.
    pub dht: Counters,
    /// Nodes in the routing table.
    pub known_nodes: usize,
    /// Records of others held here.
    pub records: usize,
}

/// The directory, to be asked. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Directory {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
}

/// What callers and the task share.
struct Shared {
    cache: Mutex<Cache>,
    stats: Mutex<DirectoryStats>,
    /// Told of each answer of another node.
    answered: Notify,
}

/// A list as it was found, and as callers take it.
type ReadList = (Arc<[VerifiedProvider]>, Arc<[Provider]>);

/// The cache, and its providers as callers take them.
struct Cache {
    found: DirectoryCache,
    /// The last list of each key and what it reads like, so that an unchanged answer is decoded once and stays the same `Arc`.
    read: HashMap<ServiceKey, ReadList>,
}

impl Cache {
    fn read(&mut self, key: &ServiceKey, found: &Arc<[VerifiedProvider]>) -> Arc<[Provider]> {
        if let Some((list, read)) = self.read.get(key)
            && Arc::ptr_eq(list, found)
        {
            return Arc::clone(read);
        }
        let read: Arc<[Provider]> = found.iter().filter_map(provider).collect();
        if self.read.len() >= CacheLimits::default().keys {
            self.read.clear();
        }
        self.read.insert(*key, (Arc::clone(found), Arc::clone(&read)));
        read
    }
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

pub(crate) type LookupReply = oneshot::Sender<Result<Arc<[Provider]>, ResolveError>>;

/// What somebody who has a key looked up waits for.
pub(crate) enum Wait {
    /// Some providers: a call is to be made.
    Enough(LookupReply),
    /// The whole list.
    Whole(LookupReply),
    /// The cache is refreshed behind a call.
    Nothing,
}

/// What a caller asks of the task.
enum Command {
    /// Answer a peer's request.
    Answer {
        peer: Arc<PeerInfo>,
        body: Bytes,
        reply: oneshot::Sender<Bytes>,
    },
    /// Look a key up, and put what is found into the cache.
    Lookup { key: ServiceKey, wait: Wait },
    /// Publish this node under a key.
    Advertise {
        key: ServiceKey,
        advertisement: Advertisement,
        reply: oneshot::Sender<Result<PublishReport, AdvertiseError>>,
    },
    /// Withdraw this node from a key.
    Withdraw {
        key: ServiceKey,
        reply: oneshot::Sender<WithdrawReport>,
    },
    /// Keep what is to be kept, and end.
    Close { reply: oneshot::Sender<()> },
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
    /// A directory whose core has this clock, and what its task takes commands from.
    fn new(clock: Clock) -> (Self, mpsc::Receiver<Command>) {
        let (commands, waiting) = mpsc::channel(MAX_WAITING_COMMANDS);
        let found = DirectoryCache::new(clock, CacheLimits::default());
        let shared = Shared {
            cache: Mutex::new(Cache {
                found,
                read: HashMap::new(),
            }),
            stats: Mutex::default(),
            answered: Notify::new(),
        };
        (
            Self {
                commands,
                shared: Arc::new(shared),
            },
            waiting,
        )
    }

    /// Answers a peer's request; `None` when there is more to do than can wait.
    pub(crate) async fn answer(&self, peer: &Arc<PeerInfo>, body: Bytes) -> Option<Bytes> {
        let (reply, answer) = oneshot::channel();
        // A peer does not wait for a place among the commands: it is declined.
        self.commands
            .try_send(Command::Answer {
                peer: Arc::clone(peer),
                body,
                reply,
            })
            .ok()?;
        answer.await.ok()
    }

    /// The providers of a key and what knew them.
    async fn find(&self, key: ServiceKey, options: ResolveOptions) -> Result<Resolved, ResolveError> {
        let now = tokio::time::Instant::now().into_std();
        let (found, refresh) = {
            let mut cache = self.shared.cache();
            let cached = if options.force_refresh {
                Cached::Miss(cache.found.force_refresh(now, &key))
            } else {
                cache.found.get(now, &key)
            };
            match cached {
                Cached::Hit(found) => (Some(cache.read(&key, &found)), false),
                Cached::Stale(found, flight) => (Some(cache.read(&key, &found)), flight == Flight::Lead),
                Cached::Negative => (Some(Arc::default()), false),
                Cached::Miss(_) => (None, true),
            }
        };
        match found {
            Some(providers) => {
                if refresh
                    && self
                        .commands
                        .try_send(Command::Lookup {
                            key,
                            wait: Wait::Nothing,
                        })
                        .is_err()
                {
                    self.shared.cache().found.abandon(&key);
                }
                Ok(Resolved {
                    providers,
                    source: Source::Cache,
                })
            }
            None => {
                let (reply, answer) = oneshot::channel();
                let wait = if options.force_refresh {
                    Wait::Whole(reply)
                } else {
                    Wait::Enough(reply)
                };
                let lookup = Command::Lookup { key, wait };
                self.commands.send(lookup).await.map_err(|_| ResolveError::Closed)?;
                let providers = answer.await.map_err(|_| ResolveError::Closed)??;
                Ok(Resolved {
                    providers,
                    source: Source::Dht,
                })
            }
        }
    }

    /// Publishes this node under a key, and keeps it published; answers when the nodes that should hold the record have.
    pub(crate) async fn advertise(
        &self,
        key: ServiceKey,
        advertisement: Advertisement,
    ) -> Result<PublishReport, AdvertiseError> {
        let (reply, answer) = oneshot::channel();
        // A directory that is closed publishes nothing, and nobody is left to hear of it.
        let sent = self
            .commands
            .send(Command::Advertise {
                key,
                advertisement,
                reply,
            })
            .await;
        if sent.is_err() {
            Ok(PublishReport::default())
        } else {
            answer.await.unwrap_or_else(|_| Ok(PublishReport::default()))
        }
    }

    /// Withdraws this node from a key; answers when those who hold its record have been told.
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

    /// Ends the task, once what is to be kept is kept. Afterwards the directory gives no answer.
    pub(crate) async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        if self.commands.send(Command::Close { reply }).await.is_ok() {
            // Fails when somebody else closes it.
            let _ = closed.await;
        }
    }

    pub(crate) fn stats(&self) -> DirectoryStats {
        let cache = self.shared.cache().found.counters();
        DirectoryStats {
            cache,
            ..*self.shared.stats()
        }
    }

    /// The directory as the client asks it: by name, in one realm.
    pub(crate) fn resolver(&self, realm: Realm) -> Resolver {
        Resolver {
            directory: self.clone(),
            realm,
        }
    }
}

/// Finds providers by service name.
pub(crate) struct Resolver {
    directory: Directory,
    realm: Realm,
}

impl Resolve for Resolver {
    fn resolve<'a>(
        &'a self,
        service: &'a ServiceName,
        options: ResolveOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        Box::pin(self.directory.find(ServiceKey::new(&self.realm, service), options))
    }
}

impl fmt::Display for PublishReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} hold it", self.acknowledged)?;
        for (node, refusal) in &self.refused {
            write!(f, ", {} refused it: {refusal}", node.short())?;
        }
        if self.unreachable > 0 {
            write!(f, ", {} did not answer", self.unreachable)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
