//! Revocations from member to member, with no issuer in between (A6).
//!
//! **How they travel.** A node that learns of one tells every peer with an open connection at once, and these tell theirs. Beside that
//! each node compares what it knows with others, by a hash: with each new connection's peer, and every [`COMPARE_EVERY`] with
//! [`COMPARED`] of its peers. So news crosses the open connections in round trips, and a node that missed it is at most two comparisons
//! behind, well within the minute of A6.
//!
//! **What is known is kept** in a file and read before the node opens a connection. Each list proves itself, so it does not matter who
//! brings it: replays and old orders change nothing, and forged ones are refused.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use macula_rpc::Routers as _;
use macula_transport::{Access, Connection, PeerInfo, Pool, PoolEvent, Protocol, private_file};
use macula_wire::{NodeId, RevocationsReply, RevocationsRequest, SignedRevocations, known_hash};
use tokio::task::JoinSet;

use super::limiter::Limiter;
use crate::directory::Reached;

/// How often a node compares what it knows with others.
const COMPARE_EVERY: Duration = Duration::from_secs(20);
/// With how many peers each time.
const COMPARED: usize = 3;
/// How long a peer is waited for.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// The most pages that are read of one peer at a time.
const MAX_PAGES: usize = 256;
/// The most peers that are told at a time, and compared with at a time.
const AT_A_TIME: usize = 32;
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
    known: Mutex<Known>,
    limiter: Mutex<Limiter<NodeId>>,
}

impl Spread {
    /// Reads the revocations kept in `file`. Not for an async thread.
    pub(crate) fn open(access: Access, file: Option<PathBuf>, now: Instant) -> Self {
        for list in file.iter().flat_map(|file| read(file)) {
            // Those that have served their time are refused or no news; that is no fault.
            if let Err(error) = access.revoke(&list) {
                tracing::debug!(%error, "a revocation that was kept is not used");
            }
        }
        Self(Arc::new(Inner {
            known: Mutex::new(Known::of(&access)),
            limiter: Mutex::new(Limiter::new(now)),
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
        self.take(&request.news);
        Some(RevocationsReply::to(&request, &self.known().1).encode())
    }

    /// Takes in the lists that are not known. The first that is refused ends it: an honest peer has none.
    fn take(&self, lists: &[SignedRevocations]) {
        let (_, known) = self.known();
        for list in lists.iter().filter(|list| !known.contains(list)) {
            if let Err(error) = self.0.access.revoke(list) {
                tracing::warn!(%error, "a peer passes on revocations that are not valid");
                return;
            }
        }
    }

    /// Tells, compares and keeps, for as long as the node runs.
    pub(crate) async fn run(self, pool: Pool, routers: Reached) {
        let (mut changed, mut events) = (self.0.access.changed(), pool.events());
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
                event = events.next() => match event {
                    Some(PoolEvent::Opened { node, .. }) => pool.open(&node).into_iter().collect(),
                    Some(_) => Vec::new(),
                    None => return,
                },
                _ = compare.tick() => {
                    turn = turn.wrapping_add(1);
                    self.some_peers(&pool, &routers, turn).await
                }
            };
            for connection in met {
                if tasks.len() < AT_A_TIME {
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
        if let Some(file) = self.0.file.clone() {
            let written = tokio::task::spawn_blocking(move || write(&file, &lists).map_err(|error| (file, error)));
            if let Ok(Err((file, error))) = written.await {
                tracing::warn!(file = %file.display(), %error, "the revocations are not kept: after a restart the node learns them from others");
            }
        }
        if news.is_empty() {
            return;
        }
        let request = RevocationsRequest {
            known: hash,
            news,
            from: 0,
        };
        let body = request.encode();
        let peers = pool.all();
        tasks.spawn(async move {
            let told = stream::iter(peers).for_each_concurrent(AT_A_TIME, |peer| {
                let body = body.clone();
                async move {
                    // A peer that is not told now finds out when it compares.
                    let _ = peer.request(Protocol::Revocations, body, ANSWERS_WITHIN).await;
                }
            });
            told.await;
        });
    }

    /// Asks a peer for what it knows and this node does not.
    async fn compare(&self, peer: &Connection) {
        let mut from = 0;
        for _ in 0..MAX_PAGES {
            let request = RevocationsRequest {
                known: self.known().0,
                news: Vec::new(),
                from,
            };
            let asked = peer.request(Protocol::Revocations, request.encode(), ANSWERS_WITHIN);
            let Ok(reply) = asked.await else { return };
            let Ok(reply) = RevocationsReply::decode(reply) else {
                return;
            };
            self.take(&reply.lists);
            match reply.next.filter(|next| *next > from) {
                Some(next) => from = next,
                None => return,
            }
        }
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
