//! The pool of connections: the shell that dials, waits and closes as [`state`] decides.

mod event;
mod state;
mod successions;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Instant,
};

use macula_wire::NodeId;
use tokio::sync::{Notify, broadcast, oneshot};

use event::MAX_EVENTS;
pub use event::{PoolEvent, PoolEvents};
pub(crate) use state::{AcceptLimits, Activity, ConnectionId};
use state::{Answer, Closing, DialFailure, Output, PoolState, Ticket};
use successions::Successions;

use crate::{
    Connection, PoolConfig, Succession,
    connection::Link,
    endpoint::{self, Inner},
    error::{CloseCode, DialError, Lost},
    handshake,
    network::Network,
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
    /// Connections that got old and were replaced.
    pub aged: u64,
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
    pub async fn get(&self, node: &NodeId, at: &[macula_wire::Address]) -> Result<Connection, DialError> {
        self.inner.pool.get(&self.inner, Whom::Node(*node), at)?.wait().await
    }

    /// A connection to whichever node listens at an endpoint, trusted on first use: who it is, [`Connection::peer`] says.
    ///
    /// For the first contact with a mesh only: nothing protects it from somebody in between. The connection is pooled under
    /// the id found, and given again to whoever asks for this endpoint while it is open; concurrent requests make one dial.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub async fn first_contact(&self, at: &macula_wire::Address) -> Result<Connection, DialError> {
        let found = self
            .inner
            .pool
            .get(&self.inner, Whom::Anyone, std::slice::from_ref(at))?;
        found.wait().await
    }

    /// Learns that a node has a new key: whoever asks for the old one gets a connection to the new one.
    ///
    /// From then on nobody is taken for the old key, so learn it when the node has changed over. At most 1 024 successions are
    /// remembered, beyond which the one longest known is forgotten, and 16 are followed one after another.
    pub fn learn(&self, succession: &Succession) {
        self.inner.pool.learn(succession);
    }

    /// The open connection to a node, if there is one.
    #[must_use]
    pub fn open(&self, node: &NodeId) -> Option<Connection> {
        self.inner.pool.open(node)
    }

    /// As [`Pool::open`], for a caller that asks for one node again and again: while nothing in the pool has changed, what was
    /// found last is given without a look into the pool. `found` is that caller's, and that node's.
    #[must_use]
    pub fn open_again(&self, node: &NodeId, found: &mut FoundConnection) -> Option<Connection> {
        let shell = &self.inner.pool;
        let version = shell.version.load(Acquire);
        if found.version != version {
            let open = self.open(node)?;
            *found = FoundConnection {
                version,
                link: open.downgrade(),
            };
            return Some(open);
        }
        let link = found.link.upgrade()?;
        shell.reused_again.fetch_add(1, Relaxed);
        Some(Connection::new(link))
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

enum Found {
    Ready(Connection),
    Wait(oneshot::Receiver<Result<Connection, DialError>>),
}

impl Found {
    async fn wait(self) -> Result<Connection, DialError> {
        match self {
            Self::Ready(connection) => Ok(connection),
            Self::Wait(outcome) => outcome.await.unwrap_or(Err(DialError::ShutDown)),
        }
    }
}

/// Who is wanted.
enum Whom {
    Node(NodeId),
    Anyone,
}

type Waiter = oneshot::Sender<Result<Connection, DialError>>;

/// The pool's state behind its lock, with what the core does not know: links and waiters.
#[derive(Debug)]
pub(crate) struct Shell {
    table: Mutex<Table>,
    /// Changes whenever another connection may be the open one to some node.
    version: AtomicU64,
    /// Requests for a connection that were answered without a look into the table.
    reused_again: AtomicU64,
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
    reused: u64,
    stopped: bool,
    successions: Successions,
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Shell {
    pub(crate) fn new(config: PoolConfig, limits: AcceptLimits, seed: u64) -> Self {
        let table = Table {
            state: PoolState::new(config, limits, seed),
            links: HashMap::new(),
            waiters: HashMap::new(),
            lost: 0,
            reused: 0,
            stopped: false,
            successions: Successions::default(),
        };
        Self {
            table: Mutex::new(table),
            version: AtomicU64::new(1),
            reused_again: AtomicU64::new(0),
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

    fn learn(&self, succession: &Succession) {
        let mut table = self.lock();
        table.successions.learn(succession);
        self.outdate(&mut table);
    }

    fn get(&self, inner: &Arc<Inner>, whom: Whom, at: &[macula_wire::Address]) -> Result<Found, DialError> {
        let mut table = self.lock();
        if table.stopped {
            return Err(DialError::ShutDown);
        }
        let now = now();
        inner.saw_clock(now);
        let addresses = state::fingerprint(at);
        let node = match whom {
            Whom::Node(node) => Some(table.successions.current(node)),
            Whom::Anyone => None,
        };
        let (ticket, new) = loop {
            let Table { state, links, .. } = &mut *table;
            let activity = |id| activity(links, id, now);
            let answer = match &node {
                Some(node) => state.get(now, node, addresses, activity),
                None => state.get_anyone(addresses, activity),
            };
            match answer {
                Answer::Ready(id) => match table.lease(id) {
                    Some(connection) => return Ok(Found::Ready(connection)),
                    // It has ended, and nobody has taken it out yet.
                    None => {
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
                    return Err(match node.and_then(|node| state.failure(&node).cloned()) {
                        Some(source) => DialError::BackingOff { retry_in, source },
                        None => DialError::NoAddress,
                    });
                }
            }
        };
        let waiter = table.wait(ticket);
        if new {
            tokio::spawn(dial(inner.clone(), ticket, node, at.to_vec()));
        }
        self.perform(table);
        Ok(Found::Wait(waiter))
    }

    fn open(&self, node: &NodeId) -> Option<Connection> {
        let mut table = self.lock();
        let node = table.successions.current(*node);
        let id = table.state.current(&node)?;
        table.lease(id)
    }

    /// Takes in a connection that a peer has dialed; `None` when there are too many, or no further calls are taken.
    pub(crate) fn accepted(&self, link: &Arc<Link>) -> Option<ConnectionId> {
        let mut table = self.lock();
        // Asked while the table is held: a drain that begins after this finds the connection in it.
        if table.stopped || link.inner.is_draining() {
            return None;
        }
        let now = now();
        let Table { state, links, .. } = &mut *table;
        let id = state.accepted(now, link.peer.node_id, Network::of(link.peer.remote_addr.ip()), |id| {
            activity(links, id, now)
        })?;
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
        let ended_here = matches!(
            reason,
            Lost::ClosedHere(CloseCode::Retired | CloseCode::Shutdown | CloseCode::Aborted)
        );
        self.tell(PoolEvent::Closed {
            node: link.peer.node_id,
            reason,
        });
        let Some(&id) = link.id.get() else { return };
        let mut table = self.lock();
        table.forget(id);
        table.lost += u64::from(!ended_here);
        self.outdate(&mut table);
    }

    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        let mut links: Vec<_> = self.lock().links.values().cloned().collect();
        // In the order they were opened, so that what is said to all is said in the same order each time.
        links.sort_unstable_by_key(|link| link.id.get().copied());
        links
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
            reused: table.reused + self.reused_again.load(Relaxed),
            dial_failures: counts.dial_failures,
            evicted: counts.evicted,
            idle_closed: counts.idled,
            aged: counts.aged,
            lost: table.lost,
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.lock().stopped
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
                        link.say_retired();
                        link.retire();
                    }
                }
                Output::Close(id, why) => {
                    if let Some(link) = table.links.get(&id).cloned() {
                        let words = match why {
                            Closing::Evicted => "the connection made room for another",
                            Closing::Idle => "the connection was idle",
                        };
                        if link.close_unused(words) {
                            table.links.remove(&id);
                        } else {
                            // Something is under way. The link stays known until it has ended: a drain waits for it.
                            link.retire();
                        }
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
        self.links.remove(&id);
    }

    /// A handle to a connection that was there already; `None` when it has ended.
    fn lease(&mut self, id: ConnectionId) -> Option<Connection> {
        let link = self.links.get(&id).filter(|link| link.quic.close_reason().is_none())?;
        self.reused += 1;
        Some(Connection::new(link.clone()))
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
    links.get(&id).map_or(Activity::IdleSince(now), |link| link.activity())
}

async fn dial(inner: Arc<Inner>, ticket: Ticket, node: Option<NodeId>, at: Vec<macula_wire::Address>) {
    let dialed = handshake::dial(&inner, node, &at).await;
    let shell = &inner.pool;
    let result = match dialed {
        Ok(established) => {
            let mut connection = None;
            let _ = endpoint::start(&inner, established, |link| {
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
                // In use from the start: it must not make room for another before those who wait for it have it.
                connection = Some(Connection::new(link.clone()));
                Some(id)
            });
            connection.ok_or(DialError::ShutDown)
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
            biased;
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

#[cfg(test)]
mod tests;
