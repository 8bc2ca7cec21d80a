//! The pool of connections: the shell that dials, waits and closes as [`state`] decides.

mod dial;
mod event;
mod state;
mod successions;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    pin::pin,
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

pub(crate) use dial::Dialer;
use event::MAX_EVENTS;
pub use event::{PoolEvent, PoolEvents};
pub(crate) use state::ConnectionId;
use state::{AcceptLimits, Activity, Answer, Closing, DialedFor, Origin, Output, PoolState, Ticket};
use successions::Successions;

use crate::{
    call::{ask::Caller, connection::Connection},
    config::Limits,
    connection::{
        link::Link,
        shared::Shared,
        snapshot::{ConnectionStats, Opener},
        watch::Presence,
    },
    error::{CloseCode, DialError, Lost},
    identity::successor::Succession,
    share::memory::Memory,
};

/// The connections of an endpoint: one for each peer, opened on demand, used again, closed when idle (P1, P2).
///
/// A peer that dialed this node is called over its own connection. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    shell: Arc<Shell>,
    dialer: Arc<dyn Dialer>,
    by: DialedFor,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("shell", &self.shell)
            .finish_non_exhaustive()
    }
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
    pub(crate) fn new(shell: Arc<Shell>, dialer: Arc<dyn Dialer>) -> Self {
        let by = DialedFor::Itself;
        Self { shell, dialer, by }
    }

    /// The same pool, asked on behalf of peers, whose calls this node passes on: it dials for them until half of the pool's places are
    /// taken so, and the rest stays for this node itself (X5).
    #[must_use]
    pub fn for_peers(&self) -> Self {
        Self {
            by: DialedFor::Peers,
            ..self.clone()
        }
    }

    /// A connection to a node, verified against its id: the open one, or a new one to whichever endpoint answers first.
    ///
    /// Concurrent requests for one node at the same addresses make one dial (P1). Dropping the future does not stop the dial, because other
    /// requests may wait for it.
    ///
    /// # Errors
    /// When the node cannot be reached, has another id, failed a moment ago, or the pool is full of connections in
    /// use.
    pub async fn get(&self, node: &NodeId, at: &[macula_wire::Address]) -> Result<Connection, DialError> {
        self.shell
            .get(&self.dialer, Wanted::Node(*node, self.by), at)?
            .wait()
            .await
    }

    /// As [`Pool::get`], but waits for a place until then while every connection is in use.
    ///
    /// Cancel safe: another caller that waits gets the place.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub async fn get_by(
        &self,
        node: &NodeId,
        at: &[macula_wire::Address],
        until: Instant,
    ) -> Result<Connection, DialError> {
        match self.get(node, at).await {
            Err(DialError::PoolFull { .. }) => {}
            gotten => return gotten,
        }
        let waiting = self.shell.shared.room.wait();
        let found = loop {
            let mut room = pin!(waiting.next());
            // Before the look: a place that becomes free after it is not missed.
            room.as_mut().enable();
            match self.shell.get(&self.dialer, Wanted::Node(*node, self.by), at) {
                Err(full @ DialError::PoolFull { .. }) => {
                    if tokio::time::timeout_at(until.into(), room).await.is_err() {
                        break Err(full);
                    }
                }
                found => break found,
            }
        };
        drop(waiting);
        found?.wait().await
    }

    /// A connection to whichever node listens at an endpoint, trusted on first use: [`Connection::peer`] says which it is.
    ///
    /// For the first contact with a mesh only: nothing protects it from an attacker in between. The connection is pooled under
    /// the id found, and given again for this endpoint while it is open; concurrent requests make one dial.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub async fn first_contact(&self, at: &macula_wire::Address) -> Result<Connection, DialError> {
        let found = self.shell.get(&self.dialer, Wanted::Anyone, std::slice::from_ref(at))?;
        found.wait().await
    }

    /// The addresses of an endpoint that this node's user has named, at most sixteen lookups of host names at a time.
    ///
    /// # Errors
    /// When the name cannot be looked up.
    pub async fn look_up(&self, at: &macula_wire::Address) -> std::io::Result<Vec<std::net::SocketAddr>> {
        self.dialer.look_up(at).await
    }

    /// Learns that a node has a new key: a request for the old one gets a connection to the new one.
    ///
    /// From then on no node is taken for the old key, so learn it when the node has changed over. At most 1 024 successions are
    /// remembered, beyond which the one longest known is forgotten, and 16 are followed one after another.
    pub fn learn(&self, succession: &Succession) {
        self.shell.learn(succession);
    }

    /// Learns that a node listens at these addresses now. A connection to another address, over which the node has fallen silent, is
    /// not handed out again.
    pub fn moved(&self, node: &NodeId, at: &[macula_wire::Address]) {
        self.shell.moved(node, at);
    }

    /// The open connection to a node, if there is one: if there are several, one over which the node is heard.
    #[must_use]
    pub fn open(&self, node: &NodeId) -> Option<Connection> {
        self.shell.open(node)
    }

    /// As [`Pool::open`], for a caller that asks for one node again and again: while nothing in the pool has changed, the
    /// connection that was found last is given without a look into the pool. Keep one `found` for each caller and node.
    #[must_use]
    pub fn open_again(&self, node: &NodeId, found: &mut FoundConnection) -> Option<Connection> {
        let shell = &self.shell;
        let version = shell.version.load(Acquire);
        if found.version != version {
            let open = self.open(node)?;
            *found = FoundConnection {
                version,
                caller: open.downgrade(),
            };
            return Some(open);
        }
        let caller = found.caller.upgrade()?;
        shell.reused_again.fetch_add(1, Relaxed);
        Some(Connection::new(caller))
    }

    /// Every open connection, in the order in which they were opened.
    #[must_use]
    pub fn all(&self) -> Vec<Connection> {
        let table = self.shell.lock();
        table.open.values().cloned().map(Connection::new).collect()
    }

    /// The limits that the endpoint was given.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.shell.shared.config.limits
    }

    /// Where this node charges what it keeps for its own calls. Peers cannot fill it.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        self.shell.shared.memory.own()
    }

    /// What happens to connections from now on.
    #[must_use]
    pub fn events(&self) -> PoolEvents {
        PoolEvents(self.shell.events.subscribe())
    }

    /// What has been counted so far, and is open now.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.shell.stats()
    }

    /// The open connections, in the order in which they were opened: for people and dashboards. It counts as no use of them.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionStats> {
        self.shell.connections()
    }
}

/// Where the open connection to a node was found last; see [`Pool::open_again`]. It keeps no connection open.
#[derive(Debug, Default)]
pub struct FoundConnection {
    /// Of the pool, when it was found; 0 is none.
    version: u64,
    caller: Weak<Caller>,
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

/// Which node is wanted.
enum Wanted {
    Node(NodeId, DialedFor),
    Anyone,
}

type DialWaiter = oneshot::Sender<Result<Connection, DialError>>;

/// The pool's state behind its lock, with the links and waiters that the core does not know.
#[derive(Debug)]
pub(crate) struct Shell {
    shared: Arc<Shared>,
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
    open: BTreeMap<ConnectionId, Arc<Caller>>,
    waiters: HashMap<Ticket, Vec<DialWaiter>>,
    lost: u64,
    reused: u64,
    stopped: bool,
    successions: Successions,
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Shell {
    pub(crate) fn new(shared: Arc<Shared>, seed: u64) -> Self {
        let limits = AcceptLimits::new(&shared.config.limits, shared.memory.max_accepted());
        let table = Table {
            state: PoolState::new(shared.config.pool, limits, seed),
            open: BTreeMap::new(),
            waiters: HashMap::new(),
            lost: 0,
            reused: 0,
            stopped: false,
            successions: Successions::default(),
        };
        Self {
            shared,
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

    /// Makes remembered connections invalid. Call it with the table locked, after the change.
    fn outdate(&self, _table: &mut Table) {
        self.version.fetch_add(1, Release);
    }

    fn learn(&self, succession: &Succession) {
        let mut table = self.lock();
        table.successions.learn(succession);
        self.outdate(&mut table);
    }

    fn get(
        self: &Arc<Self>,
        dialer: &Arc<dyn Dialer>,
        wanted: Wanted,
        at: &[macula_wire::Address],
    ) -> Result<Found, DialError> {
        let mut table = self.lock();
        if table.stopped {
            return Err(DialError::ShutDown);
        }
        let now = now();
        self.shared.saw_clock(now);
        let addresses = state::fingerprint(at);
        let node = match wanted {
            Wanted::Node(node, by) => Some((table.successions.current(node), by)),
            Wanted::Anyone => None,
        };
        let (ticket, new) = loop {
            let Table { state, open, .. } = &mut *table;
            let activity = |id| activity(open, id, now);
            let answer = match &node {
                Some((node, by)) => state.get(now, node, addresses, *by, activity),
                None => state.get_anyone(addresses, activity),
            };
            match answer {
                Answer::Ready(id) if node.is_some() && table.leave(id, at) => self.outdate(&mut table),
                Answer::Ready(id) => match table.lease(id) {
                    Some(connection) => return Ok(Found::Ready(connection)),
                    // It has ended, and is not taken out yet.
                    None => {
                        table.forget(id);
                        self.outdate(&mut table);
                    }
                },
                Answer::Join(ticket) => break (ticket, false),
                Answer::Dial(ticket) => break (ticket, true),
                Answer::Full => {
                    return Err(DialError::PoolFull {
                        max: self.shared.config.pool.max_connections,
                    });
                }
                Answer::BackOff(until) => {
                    let retry_in = until.saturating_duration_since(now);
                    return Err(match node.and_then(|(node, _)| table.state.failure(&node).cloned()) {
                        Some(source) => DialError::BackingOff { retry_in, source },
                        None => DialError::NoAddress,
                    });
                }
            }
        };
        let waiter = table.wait(ticket);
        if new {
            tokio::spawn(dial::dial(
                self.clone(),
                dialer.clone(),
                ticket,
                node.map(|(node, _)| node),
                at.to_vec(),
            ));
        }
        self.perform(table);
        Ok(Found::Wait(waiter))
    }

    fn moved(&self, node: &NodeId, at: &[macula_wire::Address]) {
        let mut table = self.lock();
        let node = table.successions.current(*node);
        if let Some(id) = table.state.current(&node)
            && table.leave(id, at)
        {
            self.outdate(&mut table);
        }
    }

    fn open(&self, node: &NodeId) -> Option<Connection> {
        let mut table = self.lock();
        let node = table.successions.current(*node);
        loop {
            let id = table.state.current(&node)?;
            if !table.leave(id, &[]) {
                return table.lease(id);
            }
            self.outdate(&mut table);
        }
    }

    /// Takes in a connection that a peer has dialed; `None` when there are too many, or no further calls are taken.
    pub(crate) fn accepted(&self, caller: &Arc<Caller>) -> Option<ConnectionId> {
        let mut table = self.lock();
        // Asked while the table is held: a drain that begins after this finds the connection in it.
        let peer = &caller.link.peer;
        if table.stopped || self.shared.is_draining() {
            return None;
        }
        let now = now();
        let Table { state, open, .. } = &mut *table;
        let id = state.accepted(now, peer.holder(), |id| activity(open, id, now))?;
        if !caller.link.memory.open() {
            state.closed(id);
            self.perform(table);
            return None;
        }
        self.tell(PoolEvent::Opened {
            node: peer.node_id,
            dialed: false,
        });
        table.open.insert(id, caller.clone());
        self.perform(table);
        Some(id)
    }

    /// A connection takes no further calls.
    pub(crate) fn retired(&self, id: ConnectionId) {
        let mut table = self.lock();
        table.state.retired(id);
        self.outdate(&mut table);
    }

    fn tell(&self, event: PoolEvent) {
        // Fails when there is no watcher.
        let _ = self.events.send(event);
    }

    /// A connection has ended.
    pub(crate) fn ended(&self, id: ConnectionId, node: NodeId, reason: Lost) {
        let ended_here = matches!(
            reason,
            Lost::ClosedHere(CloseCode::Retired | CloseCode::Shutdown | CloseCode::Aborted)
        );
        let mut table = self.lock();
        table.forget(id);
        table.lost += u64::from(!ended_here);
        self.outdate(&mut table);
        // A watcher looks for another connection of the node: it must not find this one.
        self.tell(PoolEvent::Closed { node, reason });
        drop(table);
        self.shared.room.freed();
    }

    /// The open connections, in the order in which they were opened.
    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        self.lock().open.values().map(|caller| caller.link.clone()).collect()
    }

    fn connections(&self) -> Vec<ConnectionStats> {
        let opener = |origin| match origin {
            // The pool has forgotten it: it is about to end, and was dialed or evicted.
            Some(Origin::Dialed) | None => Opener::Here,
            Some(Origin::Accepted) => Opener::Peer,
        };
        let links: Vec<_> = {
            let table = self.lock();
            let open = table.open.iter();
            open.map(|(id, caller)| (opener(table.state.origin(*id)), caller.link.clone()))
                .collect()
        };
        // Without the pool's lock: each has a lock of its own.
        links
            .iter()
            .map(|(opener, link)| ConnectionStats::of(link, *opener))
            .collect()
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

    /// Takes no further connections, and wakes the callers that wait for one.
    pub(crate) fn stop(&self) {
        let mut table = self.lock();
        table.stopped = true;
        table.waiters.clear();
        drop(table);
        self.changed.notify_one();
        self.shared.room.freed();
    }

    /// Performs the core's outputs.
    fn perform(&self, mut table: MutexGuard<'_, Table>) {
        while let Some(output) = table.state.poll_output() {
            match output {
                Output::Retire(id) => {
                    if let Some(Caller { link, .. }) = table.open.get(&id).map(|caller| &**caller) {
                        link.say_retired();
                        link.retire();
                    }
                }
                Output::Displace(id) => {
                    // It stays in the table until it has ended.
                    table.open.get(&id).iter().for_each(|caller| caller.link.give_way());
                }
                Output::Close(id, why) => {
                    if let Some(link) = table.open.get(&id).map(|caller| caller.link.clone()) {
                        let words = match why {
                            Closing::Evicted => "the connection made room for another",
                            Closing::Idle => "the connection was idle",
                        };
                        if link.close_unused(words) {
                            table.open.remove(&id);
                        } else {
                            // The connection is in use. Its link stays in the table until it has ended, because a drain waits for it.
                            link.retire();
                        }
                    }
                }
            }
        }
        self.outdate(&mut table);
        drop(table);
        self.changed.notify_one();
        self.shared.room.freed();
    }
}

impl Table {
    /// Takes out a connection that has ended, if it is still there.
    fn forget(&mut self, id: ConnectionId) {
        self.state.closed(id);
        self.open.remove(&id);
    }

    /// Retires a connection over which its peer has fallen silent, when the peer is heard over another one or now listens elsewhere;
    /// whether it did. A host name may stand for any address.
    fn leave(&mut self, id: ConnectionId, at: &[macula_wire::Address]) -> bool {
        let Some(caller) = self.open.get(&id) else { return false };
        let link = &caller.link;
        let is_elsewhere = |address: &macula_wire::Address| {
            let ip = address.ip();
            ip.is_some_and(|ip| SocketAddr::new(ip, address.port()) != link.peer.remote_addr)
        };
        let is_heard = |other| {
            let other = self.open.get(&other).map(|caller| &caller.link);
            other.is_some_and(|link| link.quic.close_reason().is_none() && link.watch.presence() == Presence::Up)
        };
        let has_left = link.watch.presence() == Presence::Suspected
            && ((!at.is_empty() && at.iter().all(is_elsewhere)) || self.state.others(id).any(is_heard));
        if has_left {
            link.retire();
            self.state.retired(id);
        }
        has_left
    }

    /// A handle to a connection that was there already; `None` when it has ended.
    fn lease(&mut self, id: ConnectionId) -> Option<Connection> {
        let caller = self
            .open
            .get(&id)
            .filter(|caller| caller.link.quic.close_reason().is_none())?;
        self.reused += 1;
        Some(Connection::new(caller.clone()))
    }

    fn wait(&mut self, ticket: Ticket) -> oneshot::Receiver<Result<Connection, DialError>> {
        let (waiter, outcome) = oneshot::channel();
        let waiters = self.waiters.entry(ticket).or_default();
        // Callers that gave up make place, so the list is as long as the callers that wait.
        waiters.retain(|waiter| !waiter.is_closed());
        waiters.push(waiter);
        outcome
    }
}

fn activity(open: &BTreeMap<ConnectionId, Arc<Caller>>, id: ConnectionId, now: Instant) -> Activity {
    match open.get(&id).map(|caller| caller.link.idle_since()) {
        None => Activity::IdleSince(now),
        Some(Some(since)) => Activity::IdleSince(since),
        Some(None) => Activity::Busy,
    }
}

/// Keeps the core's time until the endpoint is closed.
pub(crate) async fn keep(shell: Arc<Shell>) {
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
        let Table { state, open, .. } = &mut *table;
        state.handle_timeout(now, |id| activity(open, id, now));
        shell.perform(table);
    }
}

#[cfg(test)]
mod tests;
