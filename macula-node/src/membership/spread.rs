//! Revocations from member to member, with no issuer in between (A6).
//!
//! **How they travel.** A node that learns of one tells every peer with an open connection, and these tell theirs. It tells a peer again
//! until the peer has answered or the connection has ended. A new connection begins with a comparison: each side asks the other for what
//! it lacks, by a hash. So a connection either carries the news or ends, also when the network was cut meanwhile, and news crosses the
//! open connections in round trips, well within the minute of A6. Should a node miss news all the same, as when it fell behind its own
//! events, it finds out in turn: every [`COMPARE_EVERY`] it compares with [`COMPARED`] of its peers.
//!
//! **Why not in the directory.** A list under a key of the realm would lie on twenty nodes, which could hold it back, and every node
//! would have to ask for it all the time. A revoked node does harm over its connections alone, and a node with a connection hears the
//! order over it.
//!
//! **A fresh node.** The first lookup for this node's own calls waits until the first peers have been compared with, [`CATCH_UP_WITHIN`] at
//! most, so that no call goes to a provider whose revocation they know.
//!
//! **What is known is kept** in a file and read before the node opens a connection. A file that could not be written is written again
//! every [`COMPARE_EVERY`]. Each list proves itself, so it does not matter who
//! brings it: replays and old orders change nothing, and forged ones are refused.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt as _, future::join_all, stream};
use macula_rpc::Routers as _;
use macula_transport::{Access, Connection, PeerInfo, Pool, PoolEvent, Protocol, private_file};
use macula_wire::{AccessError, Named, NodeId, RevocationsReply, RevocationsRequest, SignedRevocations, known_hash};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use super::limiter::Limiter;
use crate::directory::Reached;

/// How often a node compares what it knows with others.
const COMPARE_EVERY: Duration = Duration::from_secs(20);
/// With how many peers each time.
const COMPARED: usize = 3;
/// How long the first lookup of a node waits for the revocations of its first peers.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(5);
/// How long a peer is waited for.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// How long to wait before a peer is told or asked again that gave no answer.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How often a peer is told some news at most: for longer than a dead connection lasts.
const MAX_TELLS: usize = 12;
/// The most pages that are read of one peer at a time, and how often a page is asked for: peers answer two requests a second for long.
const MAX_PAGES: usize = 1024;
const MAX_ASKS: usize = 4;
/// The most peers that are told at a time.
const AT_A_TIME: usize = 32;
/// The most comparisons at a time: more than a node has connections, unless it is told to take very many.
const MAX_COMPARISONS: usize = 1024;
/// The most bytes of the file.
const MAX_FILE_BYTES: usize = 16 * 1024 * 1024;

/// The lists of revocations in force, and what they hash to.
#[derive(Debug)]
struct Known {
    hash: [u8; 32],
    lists: Arc<[SignedRevocations]>,
}

impl Known {
    fn of(access: &Access) -> Self {
        let lists = access.revocations();
        Self {
            hash: known_hash(&lists),
            lists: lists.into(),
        }
    }
}

/// Passes revocations on. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Spread(Arc<Inner>);

struct Inner {
    access: Access,
    file: Option<PathBuf>,
    /// The hash of the lists in the file, once it was written. Locked while it is.
    on_disk: Mutex<Option<[u8; 32]>>,
    /// The file could not be written.
    is_behind: AtomicBool,
    /// Lists of the file that this node's clock, which may be slow, puts into the future.
    ahead: Mutex<Vec<SignedRevocations>>,
    known: Mutex<Known>,
    limiter: Mutex<Limiter<NodeId>>,
    /// Lists of peers and visitors that were not valid, and the nodes that the log has named for them.
    refused: AtomicU64,
    named: Mutex<Named>,
    /// The first peers have been compared with.
    is_caught_up: AtomicBool,
    /// Held by the caller that has them compared with.
    catching_up: tokio::sync::Mutex<()>,
    /// Asks [`Spread::run`] for the comparison. It tells whether there were peers.
    ask: mpsc::Sender<oneshot::Sender<bool>>,
    /// Until it is run.
    asked: Mutex<Option<mpsc::Receiver<oneshot::Sender<bool>>>>,
}

impl Spread {
    /// Reads the revocations kept in `file`. Not for an async thread.
    pub(crate) fn open(access: Access, file: Option<PathBuf>, now: Instant) -> Self {
        let mut ahead = Vec::new();
        for list in file.iter().flat_map(|file| read(file)) {
            match access.revoke(&list) {
                Ok(_) => {}
                Err(AccessError::FromTheFuture(seconds)) => {
                    tracing::warn!(
                        seconds,
                        "a revocation that was kept is dated ahead: is this machine's clock slow?"
                    );
                    ahead.push(list);
                }
                // Those that have served their time are no fault.
                Err(error) => tracing::debug!(%error, "a revocation that was kept is not used"),
            }
        }
        let (ask, asked) = mpsc::channel(1);
        Self(Arc::new(Inner {
            is_caught_up: AtomicBool::new(!access.realm().is_closed()),
            catching_up: tokio::sync::Mutex::default(),
            ask,
            asked: Mutex::new(Some(asked)),
            known: Mutex::new(Known::of(&access)),
            limiter: Mutex::new(Limiter::new(now)),
            refused: AtomicU64::new(0),
            named: Mutex::default(),
            on_disk: Mutex::default(),
            is_behind: AtomicBool::new(false),
            ahead: Mutex::new(ahead),
            access,
            file,
        }))
    }

    fn known(&self) -> ([u8; 32], Arc<[SignedRevocations]>) {
        let known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        (known.hash, known.lists.clone())
    }

    /// Answers a peer; `None` when it asks too often, or not in this protocol.
    pub(crate) fn answer(&self, peer: &PeerInfo, body: Bytes, now: Instant) -> Option<Bytes> {
        let mut limiter = self.0.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        if !limiter.admit(peer.node_id, now) {
            return None;
        }
        drop(limiter);
        let request = RevocationsRequest::decode(body).ok()?;
        self.take(&peer.node_id, &request.news);
        let (hash, lists) = self.known();
        Some(RevocationsReply::to(&request, hash, &lists).encode())
    }

    /// Takes in the lists that are not known.
    fn take(&self, peer: &NodeId, lists: &[SignedRevocations]) {
        let (_, known) = self.known();
        for list in lists.iter().filter(|list| !known.contains(list)) {
            if let Err(error) = self.0.access.revoke(list) {
                self.note_refusal(peer, &error);
            }
        }
    }

    /// Counts a list that is not valid, and names the node in the log that passes it on or hands it in.
    pub(crate) fn note_refusal(&self, peer: &NodeId, error: &AccessError) {
        self.0.refused.fetch_add(1, Relaxed);
        let now = tokio::time::Instant::now().into_std();
        let mut named = self.0.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.is_new(*peer, now) {
            drop(named);
            tracing::warn!(%peer, %error, "a node passes on a revocation that is not valid");
        }
    }

    /// How many lists of peers and visitors were not valid.
    pub(crate) fn refused(&self) -> u64 {
        self.0.refused.load(Relaxed)
    }

    /// Writes what is known to the file, unless it holds that already. Returns whether it does now. Not for an async thread.
    pub(crate) fn keep(&self) -> bool {
        let Some(file) = &self.0.file else { return false };
        let mut on_disk = self.0.on_disk.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lists = self.0.access.revocations();
        let hash = known_hash(&lists);
        if *on_disk == Some(hash) {
            return true;
        }
        lists.extend_from_slice(&self.0.ahead.lock().unwrap_or_else(PoisonError::into_inner));
        let written = write(file, &lists);
        let was_behind = self.0.is_behind.swap(written.is_err(), Relaxed);
        match written {
            Ok(()) => {
                *on_disk = Some(hash);
                true
            }
            Err(error) => {
                if !was_behind {
                    tracing::warn!(file = %file.display(), %error, "the revocations are in force and not kept: the node tries again, and after a restart it would learn them from others");
                }
                false
            }
        }
    }

    /// As [`Spread::keep`], on a thread for files.
    async fn keep_apart(&self) {
        let spread = self.clone();
        // It does not panic.
        let _ = tokio::task::spawn_blocking(move || spread.keep()).await;
    }

    /// Waits until this node has the orders that its first peers know, once in its life and [`CATCH_UP_WITHIN`] at most. Returns whether
    /// there was news.
    pub(crate) async fn catch_up(&self) -> bool {
        let inner = &self.0;
        if inner.is_caught_up.load(Relaxed) {
            return false;
        }
        let before = known_hash(&inner.access.revocations());
        let _one = inner.catching_up.lock().await;
        if !inner.is_caught_up.load(Relaxed) {
            let (told, had_peers) = oneshot::channel();
            if inner.ask.send(told).await.is_err() {
                return false;
            }
            // Without an answer the time is up, and is not given again.
            let answer = tokio::time::timeout(CATCH_UP_WITHIN, had_peers).await;
            let had_peers = answer.is_err() || answer.is_ok_and(|had| had.unwrap_or(false));
            inner.is_caught_up.store(had_peers, Relaxed);
        }
        before != known_hash(&inner.access.revocations())
    }

    /// Takes the lists that were dated ahead, now that the clock has gone on or was set.
    fn look_at_those_ahead(&self) {
        let mut ahead = self.0.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.retain(|list| matches!(self.0.access.revoke(list), Err(AccessError::FromTheFuture(_))));
    }

    /// Tells, compares and keeps, for as long as the node runs.
    pub(crate) async fn run(self, pool: Pool, routers: Reached) {
        let (mut changed, mut events) = (self.0.access.changed(), pool.events());
        let asked = self.0.asked.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut asked) = asked else { return };
        let mut compare = tokio::time::interval(COMPARE_EVERY);
        compare.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut turn = 0_usize;
        let mut tasks = JoinSet::new();
        loop {
            let met = tokio::select! {
                biased;
                change = changed.changed() => {
                    if change.is_err() {
                        return;
                    }
                    self.note(&pool, &mut tasks).await;
                    Vec::new()
                }
                Some(_) = tasks.join_next(), if !tasks.is_empty() => Vec::new(),
                Some(told) = asked.recv() => {
                    let mut first = pool.all();
                    first.truncate(COMPARED);
                    let spread = self.clone();
                    tasks.spawn(async move {
                        join_all(first.iter().map(|peer| spread.compare(peer))).await;
                        // Fails when the caller has stopped waiting.
                        let _ = told.send(!first.is_empty());
                    });
                    Vec::new()
                }
                event = events.next() => match event {
                    Some(PoolEvent::Opened { node, .. }) => pool.open(&node).into_iter().collect(),
                    // Any of them may be new.
                    Some(PoolEvent::Missed(_)) => pool.all(),
                    Some(_) => Vec::new(),
                    None => return,
                },
                _ = compare.tick() => {
                    turn = turn.wrapping_add(1);
                    self.look_at_those_ahead();
                    if self.0.is_behind.load(Relaxed) {
                        self.keep_apart().await;
                    }
                    self.some_peers(&pool, &routers, turn).await
                }
            };
            for connection in met {
                if tasks.len() < MAX_COMPARISONS {
                    let spread = self.clone();
                    tasks.spawn(async move { spread.compare(&connection).await });
                }
            }
        }
    }

    /// Peers to compare with; they take turns.
    async fn some_peers(&self, pool: &Pool, routers: &Reached, turn: usize) -> Vec<Connection> {
        let mut open = pool.all();
        if open.is_empty() {
            // A client whose connections were idle: a router knows.
            if let Some(router) = routers.routers().into_iter().next() {
                let dialed = pool.get(&router.node_id, &router.endpoints).await;
                open.extend(dialed.ok());
            }
        }
        let first = (turn * COMPARED) % open.len().max(1);
        open.rotate_left(first);
        open.truncate(COMPARED);
        open
    }

    /// Finds out whether there is news, keeps it, and tells it to the peers.
    async fn note(&self, pool: &Pool, tasks: &mut JoinSet<()>) {
        let new = Known::of(&self.0.access);
        let (hash, lists) = (new.hash, new.lists.clone());
        let before = {
            let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *known, new)
        };
        if before.hash == hash {
            return;
        }
        let old: BTreeSet<_> = before.lists.iter().collect();
        let news: Vec<_> = lists.iter().filter(|list| !old.contains(list)).cloned().collect();
        self.keep_apart().await;
        if news.is_empty() {
            return;
        }
        let request = RevocationsRequest {
            known: hash,
            news,
            from: 0,
        };
        let body = request.encode();
        tasks.spawn(tell(pool.all(), body));
    }

    /// Asks a peer for what it knows and this node does not.
    async fn compare(&self, peer: &Connection) {
        let (mut from, mut asks) = (0, 0);
        for _ in 0..MAX_PAGES {
            let request = RevocationsRequest {
                known: self.known().0,
                news: Vec::new(),
                from,
            };
            let asked = peer.request(Protocol::Revocations, request.encode(), ANSWERS_WITHIN);
            let reply = match asked.await {
                Ok(reply) => RevocationsReply::decode(reply),
                // It was asked too often. What was read is not read again.
                Err(_) if peer.lost().is_none() && asks < MAX_ASKS => {
                    asks += 1;
                    tokio::time::sleep(AGAIN_AFTER).await;
                    continue;
                }
                Err(_) => return,
            };
            let Ok(reply) = reply else { return };
            asks = 0;
            self.take(&peer.peer().node_id, &reply.lists);
            match reply.next.filter(|next| *next > from) {
                Some(next) => from = next,
                None => return,
            }
        }
    }
}

/// Tells peers some news, and those that give no answer again while their connections last.
async fn tell(mut peers: Vec<Connection>, news: Bytes) {
    for _ in 0..MAX_TELLS {
        let told = stream::iter(peers).map(|peer| {
            let news = news.clone();
            async move {
                let told = peer.request(Protocol::Revocations, news, ANSWERS_WITHIN).await;
                (told.is_err() && peer.lost().is_none()).then_some(peer)
            }
        });
        peers = told
            .buffer_unordered(AT_A_TIME)
            .filter_map(std::future::ready)
            .collect()
            .await;
        if peers.is_empty() {
            return;
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// The lists in a file, each after its length.
fn read(file: &Path) -> Vec<SignedRevocations> {
    let mut lists = Vec::new();
    let bytes = match private_file::read(file, MAX_FILE_BYTES) {
        Ok(bytes) => Bytes::copy_from_slice(&bytes),
        Err(private_file::ReadError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => return lists,
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "the revocations that were kept cannot be read; the node learns them from others");
            return lists;
        }
    };
    let mut rest = bytes;
    while let Some((length, _)) = rest.split_first_chunk::<4>() {
        let end = u32::from_be_bytes(*length) as usize + 4;
        if end > rest.len() {
            tracing::warn!(file = %file.display(), "the revocations that were kept are damaged; the node learns them from others");
            break;
        }
        let list = rest.split_to(end).slice(4..);
        lists.extend(SignedRevocations::decode(list));
    }
    lists
}

fn write(file: &Path, lists: &[SignedRevocations]) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    for list in lists {
        let list = list.encode();
        bytes.extend_from_slice(&u32::try_from(list.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(&list);
    }
    private_file::write(file, &bytes)
}
