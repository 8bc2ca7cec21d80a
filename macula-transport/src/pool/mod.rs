//! The pool of connections: the shell that dials, waits and closes as [`state`] decides.

mod event;
mod state;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Acquire, Ordering::Release},
    },
    time::Instant,
};

use macula_wire::NodeId;
use tokio::sync::{Notify, broadcast, oneshot};

use event::MAX_EVENTS;
pub use event::{PoolEvent, PoolEvents};
pub(crate) use state::{Activity, ConnectionId};
use state::{Answer, Closing, DialFailure, Output, PoolState, Ticket};

use crate::{
    Connection, PoolConfig, Succession,
    connection::Link,
    drive,
    endpoint::{self, Inner},
    error::{CloseCode, DialError, Lost},
    handshake,
};

/// The connections of an endpoint: one for each peer, opened on demand, used again, closed when idle (P1, P2).
///
/// A peer that dialed this node is called over its own connection. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

/// What a pool has counted, and holds now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Connections open now, dialed and accepted.
    pub open: usize,
    /// Connections dialed.
    pub opened: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Requests for a connection that found one open.
    pub reused: u64,
    /// Dials that failed.
    pub dial_failures: u64,
    /// Connections closed to make room.
    pub evicted: u64,
    /// Connections closed because they were idle.
    pub idle_closed: u64,
    /// Connections lost: timed out, reset, or closed by the peer.
    pub lost: u64,
}

impl Pool {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    /// A connection to a node, verified against its id: the open one, or a new one to whichever endpoint answers first.
    ///
    /// Concurrent requests for one node make one dial (P1). Dropping the future does not stop the dial, from which others may
    /// gain.
    ///
    /// # Errors
    /// When the node cannot be reached, is not who it should be, failed a moment ago, or the pool is full of connections in
    /// use.
    pub async fn get(&self, node: &NodeId, at: &[macula_wire::Endpoint]) -> Result<Connection, DialError> {
        let node = &self.inner.pool.successor(*node);
        let outcome = match self.inner.pool.get(&self.inner, node, at)? {
            Answered::Ready(connection) => return Ok(connection),
            Answered::Wait(outcome) => outcome,
        };
        outcome.await.unwrap_or(Err(DialError::ShutDown))
    }

    /// A connection to whichever node listens at an endpoint, trusted on first use: who it is, [`Connection::peer`] says.
    ///
    /// For the first contact with a mesh only: nothing protects it from somebody in between. The connection is pooled under
    /// the id found.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub async fn first_contact(&self, at: &macula_wire::Endpoint) -> Result<Connection, DialError> {
        let inner = &self.inner;
        let outcome = inner.pool.first_contact(inner, at)?;
        outcome.await.unwrap_or(Err(DialError::ShutDown))
    }

    /// Learns that a node has a new key: whoever asks for the old one gets a connection to the new one.
    ///
    /// At most 1 024 successions are remembered; beyond that, the one longest known is forgotten.
    pub fn learn(&self, succession: &Succession) {
        self.inner.pool.learn(succession);
    }

    /// The open connection to a node, if there is one.
    #[must_use]
    pub fn open(&self, node: &NodeId) -> Option<Connection> {
        self.inner.pool.open(&self.inner.pool.successor(*node))
    }

    /// As [`Pool::open`], for a caller that asks for one node again and again: while nothing in the pool has changed, what was
    /// found last is given without a look into the pool. `found` is that caller's, and that node's.
    #[must_use]
    pub fn open_again(&self, node: &NodeId, found: &mut FoundConnection) -> Option<Connection> {
        let version = self.inner.pool.version.load(Acquire);
        if found.version != version {
            let open = self.open(node)?;
            *found = FoundConnection {
                version,
                link: open.downgrade(),
            };
            return Some(open);
        }
        found.link.upgrade().map(Connection::new)
    }

    /// What happens to connections from now on.
    #[must_use]
    pub fn events(&self) -> PoolEvents {
        PoolEvents(self.inner.pool.events.subscribe())
    }

    /// What has been counted so far, and is open now.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.inner.pool.stats()
    }
}

/// Where the open connection to a node was found last; see [`Pool::open_again`]. It keeps no connection open.
#[derive(Debug, Default)]
pub struct FoundConnection {
    /// Of the pool, when it was found; 0 is none.
    version: u64,
    link: Weak<Link>,
}

enum Answered {
    Ready(Connection),
    Wait(oneshot::Receiver<Result<Connection, DialError>>),
}

type Waiter = oneshot::Sender<Result<Connection, DialError>>;

/// The pool's state behind its lock, with what the core does not know: links and waiters.
#[derive(Debug)]
pub(crate) struct Shell {
    table: Mutex<Table>,
    /// Changes whenever another connection may be the open one to some node.
    version: AtomicU64,
    /// Woken when the core's next timeout may have changed.
    changed: Notify,
    events: broadcast::Sender<PoolEvent>,
}

#[derive(Debug)]
struct Table {
    state: PoolState<NodeId, Arc<DialError>>,
    links: HashMap<ConnectionId, Arc<Link>>,
    waiters: HashMap<Ticket, Vec<Waiter>>,
    lost: u64,
    stopped: bool,
    /// Old keys and what took their place, the one longest known first.
    successions: VecDeque<(NodeId, NodeId)>,
}

/// The most successions that are remembered, and followed one after another.
const MAX_SUCCESSIONS: usize = 1024;

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Shell {
    pub(crate) fn new(config: PoolConfig, max_accepted: usize, seed: u64) -> Self {
        let table = Table {
            state: PoolState::new(config, max_accepted, seed),
            links: HashMap::new(),
            waiters: HashMap::new(),
            lost: 0,
            stopped: false,
            successions: VecDeque::new(),
        };
        Self {
            table: Mutex::new(table),
            version: AtomicU64::new(1),
            changed: Notify::new(),
            events: broadcast::Sender::new(MAX_EVENTS),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was found before is looked up again. To be called with the table locked, after the change.
    fn outdate(&self, _table: &mut Table) {
        self.version.fetch_add(1, Release);
    }

    fn get(&self, inner: &Arc<Inner>, node: &NodeId, at: &[macula_wire::Endpoint]) -> Result<Answered, DialError> {
        let mut table = self.lock();
        if table.stopped {
            return Err(DialError::ShutDown);
        }
        let now = now();
        inner.saw_clock(now);
        let addresses = state::fingerprint(at);
        let (ticket, new) = loop {
            let Table { state, links, .. } = &mut *table;
            match state.get(now, node, addresses, |id| activity(links, id, now)) {
                Answer::Ready(id) => match links.get(&id) {
                    Some(link) if link.quic.close_reason().is_none() => {
                        return Ok(Answered::Ready(Connection::new(link.clone())));
                    }
                    // It has ended, and nobody has taken it out yet.
                    _ => {
                        table.forget(id);
                        self.outdate(&mut table);
                    }
                },
                Answer::Join(ticket) => break (ticket, false),
                Answer::Dial(ticket) => break (ticket, true),
                Answer::Full => {
                    return Err(DialError::PoolFull {
                        max: inner.config.pool.max_connections,
                    });
                }
                Answer::BackOff(until) => {
                    let retry_in = until.saturating_duration_since(now);
                    return Err(match state.failure(node).cloned() {
                        Some(source) => DialError::BackingOff { retry_in, source },
                        None => DialError::NoAddress,
                    });
                }
            }
        };
        let waiter = table.wait(ticket);
        if new {
            tokio::spawn(dial(inner.clone(), ticket, Some(*node), at.to_vec()));
        }
        self.perform(table);
        Ok(Answered::Wait(waiter))
    }

    fn first_contact(
        &self,
        inner: &Arc<Inner>,
        at: &macula_wire::Endpoint,
    ) -> Result<oneshot::Receiver<Result<Connection, DialError>>, DialError> {
        let mut table = self.lock();
        if table.stopped {
            return Err(DialError::ShutDown);
        }
        let now = now();
        let Table { state, links, .. } = &mut *table;
        let Some(ticket) = state.dial_unknown(|id| activity(links, id, now)) else {
            return Err(DialError::PoolFull {
                max: inner.config.pool.max_connections,
            });
        };
        let waiter = table.wait(ticket);
        tokio::spawn(dial(inner.clone(), ticket, None, vec![at.clone()]));
        self.perform(table);
        Ok(waiter)
    }

    fn learn(&self, succession: &Succession) {
        let mut table = self.lock();
        let successions = &mut table.successions;
        successions.retain(|(from, _)| *from != succession.from());
        if successions.len() >= MAX_SUCCESSIONS {
            successions.pop_front();
        }
        successions.push_back((succession.from(), succession.to()));
        self.outdate(&mut table);
    }

    /// The key that `node` has now.
    fn successor(&self, node: NodeId) -> NodeId {
        let table = self.lock();
        let mut current = node;
        // Two keys that name each other lead nowhere: then the one asked for is the one meant.
        for _ in 0..table.successions.len() {
            match table.successions.iter().find(|(from, _)| *from == current) {
                Some(&(_, to)) if to != node => current = to,
                Some(_) => return node,
                None => break,
            }
        }
        current
    }

    fn open(&self, node: &NodeId) -> Option<Connection> {
        let table = self.lock();
        let link = table.state.current(node).and_then(|id| table.links.get(&id));
        link.map(|link| Connection::new(link.clone()))
    }

    /// Takes in a connection that a peer has dialed; `None` when there are too many.
    pub(crate) fn accepted(&self, link: &Arc<Link>) -> Option<ConnectionId> {
        let mut table = self.lock();
        if table.stopped {
            return None;
        }
        let now = now();
        let Table { state, links, .. } = &mut *table;
        let id = state.accepted(now, link.peer.node_id, |id| activity(links, id, now))?;
        self.tell(PoolEvent::Opened {
            node: link.peer.node_id,
            dialed: false,
        });
        table.links.insert(id, link.clone());
        self.perform(table);
        Some(id)
    }

    /// A connection takes no further calls.
    pub(crate) fn retired(&self, link: &Link) {
        if let Some(&id) = link.id.get() {
            let mut table = self.lock();
            table.state.retired(id);
            self.outdate(&mut table);
        }
    }

    fn tell(&self, event: PoolEvent) {
        // Fails when nobody watches.
        let _ = self.events.send(event);
    }

    /// A connection has ended.
    pub(crate) fn ended(&self, link: &Link, reason: Lost) {
        self.tell(PoolEvent::Closed {
            node: link.peer.node_id,
            reason,
        });
        let Some(&id) = link.id.get() else { return };
        let mut table = self.lock();
        table.forget(id);
        self.outdate(&mut table);
    }

    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        self.lock().links.values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().state.len()
    }

    fn stats(&self) -> PoolStats {
        let table = self.lock();
        let counts = table.state.counts();
        PoolStats {
            open: table.state.len(),
            opened: counts.opened,
            accepted: counts.accepted,
            reused: counts.reused,
            dial_failures: counts.dial_failures,
            evicted: counts.evicted,
            idle_closed: counts.idled,
            lost: table.lost,
        }
    }

    /// Takes no further connections, and wakes whoever waits for one.
    pub(crate) fn stop(&self) {
        let mut table = self.lock();
        table.stopped = true;
        table.waiters.clear();
        drop(table);
        self.changed.notify_one();
    }

    /// Does what the core says.
    fn perform(&self, mut table: MutexGuard<'_, Table>) {
        while let Some(output) = table.state.poll_output() {
            match output {
                Output::Retire(id) => {
                    if let Some(link) = table.links.get(&id) {
                        drive::say_goodbye(link, macula_wire::proto::GoAwayReason::Retired);
                        link.retire();
                    }
                }
                Output::Close(id, why) => {
                    if let Some(link) = table.links.remove(&id) {
                        let words = match why {
                            Closing::Evicted => "the connection made room for another",
                            Closing::Idle => "the connection was idle",
                        };
                        drive::say_goodbye(&link, macula_wire::proto::GoAwayReason::Retired);
                        link.close(CloseCode::Retired, words);
                    }
                }
            }
        }
        self.outdate(&mut table);
        drop(table);
        self.changed.notify_one();
    }
}

impl Table {
    /// Takes out a connection that has ended, if it is still there.
    fn forget(&mut self, id: ConnectionId) {
        self.state.closed(id);
        if self.links.remove(&id).is_some() {
            self.lost += 1;
        }
    }

    fn wait(&mut self, ticket: Ticket) -> oneshot::Receiver<Result<Connection, DialError>> {
        let (waiter, outcome) = oneshot::channel();
        let waiters = self.waiters.entry(ticket).or_default();
        // Those who gave up make place, so the list is as long as the callers that wait.
        waiters.retain(|waiter| !waiter.is_closed());
        waiters.push(waiter);
        outcome
    }
}

fn activity(links: &HashMap<ConnectionId, Arc<Link>>, id: ConnectionId, now: Instant) -> Activity {
    links
        .get(&id)
        .map_or(Activity::IdleSince(now), |link| link.activity(now))
}

async fn dial(inner: Arc<Inner>, ticket: Ticket, node: Option<NodeId>, at: Vec<macula_wire::Endpoint>) {
    let dialed = handshake::dial(&inner, node, &at).await;
    let shell = &inner.pool;
    let result = match dialed {
        Ok(established) => {
            let link = endpoint::start(&inner, established, |link| {
                let mut table = shell.lock();
                if table.stopped {
                    return None;
                }
                let id = table.state.dialed(now(), ticket, link.peer.node_id);
                table.links.insert(id, link.clone());
                shell.tell(PoolEvent::Opened {
                    node: link.peer.node_id,
                    dialed: true,
                });
                Some(id)
            });
            link.map(Connection::new).ok_or(DialError::ShutDown)
        }
        Err(error) => {
            tracing::debug!(node = node.map(|node| node.short()), %error, "a dial failed");
            let failure = if error.is_refusal() {
                DialFailure::Refused
            } else {
                DialFailure::Unreachable
            };
            let cause = Arc::new(error.clone());
            shell.tell(PoolEvent::DialFailed {
                node,
                error: cause.clone(),
            });
            shell
                .lock()
                .state
                .dial_failed(now(), ticket, state::fingerprint(&at), failure, cause);
            Err(error)
        }
    };
    let mut table = shell.lock();
    let waiters = table.waiters.remove(&ticket).unwrap_or_default();
    shell.perform(table);
    for waiter in waiters {
        // Whoever does not wait any more misses nothing.
        let _ = waiter.send(result.clone());
    }
}

/// Keeps the core's time until the endpoint is closed.
pub(crate) async fn keep(inner: Arc<Inner>) {
    let shell = &inner.pool;
    loop {
        let changed = shell.changed.notified();
        let (next, stopped) = {
            let table = shell.lock();
            (table.state.poll_timeout(), table.stopped)
        };
        if stopped {
            return;
        }
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed => continue,
            () = due => {}
        }
        let now = now();
        let mut table = shell.lock();
        let Table { state, links, .. } = &mut *table;
        state.handle_timeout(now, |id| activity(links, id, now));
        shell.perform(table);
    }
}
