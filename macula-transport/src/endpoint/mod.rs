//! The endpoint: a UDP socket, an identity, and every connection made from or to it.

mod allocator;
mod arrivals;
mod batching;
pub(crate) mod handshake;
pub(crate) mod hello;
pub(crate) mod quic;
mod tls;
#[cfg(target_os = "linux")]
mod unreachable;
pub(crate) mod visit;

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, join_all};
use macula_wire::{AccessError, NodeId, proto};
use tokio::{
    sync::{broadcast, mpsc},
    task::AbortHandle,
    time::{Instant, timeout},
};

use crate::{
    access::Access,
    call::{
        answer::{self, Provider},
        ask::{self, Caller},
        handler::Handler,
    },
    config::{Config, MAX_MOVED_REPLIES},
    connection::{
        control::{self, Events},
        link::Link,
        shared::Shared,
        standstill::{BEAT, Heart},
    },
    error::{BindError, CloseCode, DialError, HelloError, Lost, TlsError},
    identity::Identity,
    load::Load,
    pool::{self, ConnectionId, Dialer, Pool},
    report::REPORT_EVERY,
    share::{names::ToldBy, window},
    stats::{Counters, Stats},
};
use arrivals::Arrivals;
use batching::Batching;
use handshake::{Established, Introducer};
use tls::{Alpn, Tls};
use visit::VisitError;

/// How long a shut-down endpoint waits for its last packets to leave, and repeats the close to peers that missed it. A peer that is
/// farther away than this, or gone, times out by itself.
const FAREWELL: Duration = Duration::from_millis(250);

/// Reports of unreachable addresses that wait to be heeded; further ones are dropped.
const MAX_HINTS: usize = 64;
/// How often such reports are heeded, together.
const HINTS_EVERY: Duration = Duration::from_millis(5);

/// A node's place on the network: a UDP socket, an identity, and the connections made from and to it.
///
/// Dropping it closes everything at once; [`Endpoint::shutdown`] leaves without failing a call.
#[derive(Debug)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

/// What the endpoint's tasks share.
struct Inner {
    shared: Arc<Shared>,
    introducer: Introducer,
    handler: Arc<dyn Handler>,
    pool: Arc<pool::Shell>,
    local_addr: SocketAddr,
    arrivals: Mutex<Arrivals<AbortHandle>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("node_id", &self.introducer.node_id)
            .field("local_addr", &self.local_addr)
            .finish()
    }
}

impl Endpoint {
    /// Starts an endpoint, which serves its peers from now on.
    ///
    /// # Errors
    /// When the address cannot be listened on, or there is no tokio runtime.
    pub async fn bind(config: Config, handler: impl Handler) -> Result<Self, BindError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(BindError::NoRuntime);
        }
        check_grant(&config)?;
        let tls = Tls::new(&config.identity, config.key_exchange)
            .map_err(TlsError::from)
            .map_err(BindError::Tls)?;
        allocator::keep_pages(config.limits.max_message_bytes);
        let counters = Arc::new(Counters::default());
        let load = Arc::new(Load::default());
        let transport = Arc::new(quic::transport_config(&config));
        let server = tls.server().map_err(TlsError::from).map_err(BindError::Tls)?;
        let server = quic::server_config(server, transport.clone(), &config);
        let seed = config.next_seed();
        let runtime = Arc::new(Batching::new(load.clone()));
        let addr = config.listen.unwrap_or((Ipv6Addr::UNSPECIFIED, 0).into());
        let (hints, reports) = mpsc::channel(MAX_HINTS);
        let bound = quic::open_socket(&config, &*runtime, hints).and_then(|socket| {
            let local = socket.local_addr()?;
            let endpoint_config = quic::endpoint_config(&config.identity, local.port(), counters.clone(), seed);
            let quic = quinn::Endpoint::new_with_abstract_socket(endpoint_config, Some(server), socket, runtime)?;
            Ok((local, quic))
        });
        let (mut local_addr, quic) = bound.map_err(|source| BindError::Socket { addr, source })?;
        local_addr.set_ip(local_addr.ip().to_canonical());
        let max_handshakes = config.limits.max_handshakes;
        let node_id = config.identity.node_id();
        let advertised = RwLock::new(config.advertise.clone());
        let shared = Arc::new(Shared::new(
            config,
            counters,
            load,
            handler.load().map(|load| load.capacity),
        ));
        let inner = Arc::new(Inner {
            pool: Arc::new(pool::Shell::new(shared.clone(), seed.unwrap_or_else(random_seed))),
            introducer: Introducer {
                shared: shared.clone(),
                node_id,
                quic,
                tls,
                transport,
                advertised,
                unreachable: broadcast::Sender::new(MAX_HINTS),
            },
            shared,
            handler: Arc::new(handler),
            local_addr,
            arrivals: Mutex::new(Arrivals::new(max_handshakes)),
        });
        tokio::spawn(accept_all(inner.clone()));
        tokio::spawn(pool::keep(inner.pool.clone()));
        tokio::spawn(heed_hints(Arc::downgrade(&inner), reports));
        tokio::spawn(beat(Arc::downgrade(&inner)));
        if inner.handler.load().is_some() {
            tokio::spawn(report_load(Arc::downgrade(&inner)));
        }
        Ok(Self { inner })
    }

    /// The address the socket is bound to, its port chosen.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        match self.inner.introducer.quic.local_addr() {
            Ok(addr) => SocketAddr::new(addr.ip().to_canonical(), addr.port()),
            Err(_) => self.inner.local_addr,
        }
    }

    /// What this node is known by.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.inner.introducer.node_id
    }

    /// The node's identity.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.inner.shared.config.identity
    }

    /// The node's realm and grant.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.inner.shared.config.access
    }

    /// The connections to other nodes.
    #[must_use]
    pub fn pool(&self) -> Pool {
        Pool::new(self.inner.pool.clone(), self.inner.clone())
    }

    /// Sets where new peers are told this node listens, as [`Config::with_advertised`].
    pub fn set_advertised(&self, endpoints: impl IntoIterator<Item = macula_wire::Address>) {
        let endpoints = endpoints.into_iter().take(macula_wire::MAX_ENDPOINTS).collect();
        let advertised = &self.inner.introducer.advertised;
        *advertised.write().unwrap_or_else(PoisonError::into_inner) = endpoints;
    }

    /// Asks every connected peer for a sign of life. A connection whose peer is not heard within [`Timers::probe_grace`] and three
    /// round trips is closed.
    ///
    /// For a node whose own addresses have changed: its peers send to the old ones, and take no packets from new ones on a connection
    /// that was made before.
    ///
    /// [`Timers::probe_grace`]: crate::Timers::probe_grace
    pub fn check_connections(&self) {
        for link in self.inner.pool.links() {
            link.timed_out();
        }
    }

    /// Asks a node something as a visitor: this node need not be a member of the realm, and shows nothing but its key. Both messages have
    /// [`MAX_VISIT_BYTES`](crate::MAX_VISIT_BYTES) at most.
    ///
    /// Without `node` the node that answers at the addresses is trusted; the reply says which it is. The visit has a connection of its
    /// own, outside the pool.
    ///
    /// # Errors
    /// When the node cannot be reached, or gives no reply.
    pub async fn visit(
        &self,
        node: Option<NodeId>,
        at: &[macula_wire::Address],
        body: Bytes,
    ) -> Result<(NodeId, Bytes), VisitError> {
        visit::make(&self.inner.introducer, node, at, body).await
    }

    /// What has been counted so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let shared = &self.inner.shared;
        shared
            .counters
            .snapshot(self.inner.pool.len(), shared.memory.stats(), shared.places.stats())
    }

    /// Takes no further calls and waits until those under way are answered: peers are told, and calls that they send all the same
    /// are refused as not started (N4).
    ///
    /// There is no way back. This node may call others until it is shut down, because its running handlers may have to.
    pub async fn drain(&self) {
        self.inner.shared.drain();
        let links = self.inner.pool.links();
        for link in &links {
            link.shut(proto::GoAwayReason::Draining);
        }
        for link in links {
            link.drained().await;
        }
    }

    /// Drains, waits until the peers have acknowledged every reply, and closes every connection: all within `grace`. After that
    /// unfinished calls are given up, and their callers are told that they may have run.
    pub async fn shutdown(&self, grace: Duration) {
        let left = async {
            self.drain().await;
            let links = self.inner.pool.links();
            join_all(links.iter().map(|link| link.leave(CloseCode::Shutdown, ""))).await;
        };
        let code = match timeout(grace, left).await {
            Ok(()) => CloseCode::Shutdown,
            Err(_) => CloseCode::Aborted,
        };
        self.inner.close(code);
        let _ = timeout(FAREWELL, self.inner.introducer.quic.wait_idle()).await;
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.inner.close(CloseCode::Aborted);
    }
}

impl Inner {
    fn arrivals(&self) -> MutexGuard<'_, Arrivals<AbortHandle>> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, code: CloseCode) {
        self.shared.drain();
        for link in self.pool.links() {
            link.close_naming(code, "");
        }
        self.introducer.quic.close(code.to_wire(), b"");
        self.pool.stop();
    }
}

impl Dialer for Inner {
    fn dial<'a>(
        &'a self,
        node: Option<NodeId>,
        at: &'a [macula_wire::Address],
    ) -> BoxFuture<'a, Result<Established, DialError>> {
        handshake::dial(&self.introducer, node, at).boxed()
    }

    fn look_up<'a>(&'a self, at: &'a macula_wire::Address) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        self.shared.names.look_up(at, ToldBy::User).boxed()
    }

    /// Starts the tasks of a connection that both sides have accepted. False when the pool does not take it.
    fn start(&self, established: Established, register: &mut dyn FnMut(&Arc<Caller>) -> Option<ConnectionId>) -> bool {
        let Established {
            quic,
            peer,
            outgoing,
            incoming,
            shown,
        } = established;
        let limits = &self.shared.config.limits;
        quic.set_max_concurrent_bi_streams(limits.max_streams.into());
        // However many replies stream, large ones have their streams.
        let uni = limits.max_streams.saturating_add(MAX_MOVED_REPLIES as u32);
        quic.set_max_concurrent_uni_streams(uni.into());
        let window = window::of_connection(limits, self.pool.len() + 1);
        quic.set_receive_window(window.into());
        quic.set_send_window(window.into());
        self.shared.saw_clock(Instant::now().into_std());
        let (link, queue) = Link::new(quic, peer, self.shared.clone());
        let caller = Arc::new(Caller::new(link.clone()));
        let Some(id) = register(&caller) else { return false };
        if self.shared.is_draining() {
            // A drain that began earlier did not see this connection. It carries this node's own calls and admits none of the peer's.
            link.shut(proto::GoAwayReason::Draining);
        }
        let events = Arc::new(Served {
            provider: Arc::new(Provider::new(link.clone(), self.handler.clone())),
            caller,
            pool: self.pool.clone(),
            id,
        });
        tokio::spawn(control::run(link, events, outgoing, incoming, queue, shown));
        true
    }
}

/// A connection, from the end of its handshake on.
struct Served {
    caller: Arc<Caller>,
    provider: Arc<Provider>,
    pool: Arc<pool::Shell>,
    id: ConnectionId,
}

impl Events for Served {
    fn stream(&self, send: quinn::SendStream, recv: quinn::RecvStream) {
        tokio::spawn(answer::stream(self.provider.clone(), send, recv));
    }

    fn reply(&self, recv: quinn::RecvStream) {
        tokio::spawn(ask::reply_stream(self.caller.clone(), recv));
    }

    fn peer_leaves(&self) {
        self.pool.retired(self.id);
    }

    fn ended(&self, reason: Lost) {
        self.pool.ended(self.id, self.caller.link.peer.node_id, reason);
    }
}

/// Notices when the process stands still, until the endpoint is gone.
async fn beat(inner: Weak<Inner>) {
    let mut heart = Heart::new(Instant::now().into_std());
    loop {
        tokio::time::sleep(BEAT).await;
        let Some(inner) = inner.upgrade().filter(|inner| !inner.pool.is_stopped()) else {
            return;
        };
        inner.shared.read_all_before(heart.beat(Instant::now().into_std()));
    }
}

/// Tells the peers that call how busy this node is, until the endpoint is gone.
async fn report_load(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(REPORT_EVERY).await;
        let Some(inner) = inner.upgrade().filter(|inner| !inner.pool.is_stopped()) else {
            return;
        };
        let Some(load) = inner.handler.load() else { continue };
        let now = Instant::now().into_std();
        for link in inner.pool.links() {
            link.report(now, load);
        }
    }
}

/// Asks the peers whose addresses are reported as unreachable whether they are there (L4), until the socket is gone.
async fn heed_hints(inner: Weak<Inner>, mut reports: mpsc::Receiver<SocketAddr>) {
    let mut unreachable = Vec::new();
    while reports.recv_many(&mut unreachable, MAX_HINTS).await > 0 {
        let Some(inner) = inner.upgrade() else { return };
        for addr in &unreachable {
            // Fails while no dial is under way.
            let _ = inner.introducer.unreachable.send(*addr);
        }
        for link in inner.pool.links() {
            if unreachable.contains(&link.peer.remote_addr) {
                inner.shared.counters.unreachable_hints.add();
                link.watch.hint();
            }
        }
        drop(inner);
        unreachable.clear();
        tokio::time::sleep(HINTS_EVERY).await;
    }
}

/// The least time between two log lines about peers that are not let in.
const SAID_EVERY: Duration = Duration::from_secs(1);

/// Peers that were not let in since the last log line.
#[derive(Debug, Default)]
struct KeptOut {
    handshakes: u64,
    said: Option<Instant>,
}

impl KeptOut {
    /// Counts one more, and logs the number at most once a second.
    fn one_more(&mut self, inner: &Inner) {
        inner.shared.counters.rejected_busy.add();
        self.handshakes += 1;
        let now = Instant::now();
        if self.said.is_none_or(|said| now >= said + SAID_EVERY) {
            self.said = Some(now);
            let handshakes = std::mem::take(&mut self.handshakes);
            tracing::warn!(
                handshakes,
                "handshakes have to wait, because too many peers connect at once"
            );
        }
    }
}

async fn accept_all(inner: Arc<Inner>) {
    let mut kept_out = KeptOut::default();
    while let Some(arriving) = inner.introducer.quic.accept().await {
        let under_way = inner.arrivals().len();
        if inner.shared.is_draining() {
            inner.shared.counters.rejected_busy.add();
            arriving.refuse();
        } else if under_way >= inner.shared.config.limits.retry_above
            && arriving.may_retry()
            && !arriving.remote_address_validated()
        {
            inner.shared.counters.retried.add();
            // Cannot fail: it was just asked whether it may.
            let _ = arriving.retry();
        } else if let Some(arriving) = let_in(&inner, arriving) {
            kept_out.one_more(&inner);
            // It is not answered, so its peer asks again within the time of its dial.
            arriving.ignore();
        }
    }
}

/// Begins a handshake when there is a place for it, and else gives it back.
fn let_in(inner: &Arc<Inner>, arriving: quinn::Incoming) -> Option<quinn::Incoming> {
    let from = arriving.remote_address().ip();
    let mut waiting = Some(arriving);
    let begin = |number| {
        let (inner, arriving) = (inner.clone(), waiting.take());
        let handshake = tokio::spawn(async move {
            if let Some(arriving) = arriving {
                accept_one(&inner, arriving).await;
            }
            inner.arrivals().end(number);
        });
        handshake.abort_handle()
    };
    // The table is locked until the handshake is in it.
    let displaced = inner.arrivals().begin(Instant::now().into_std(), from, begin);
    for handshake in displaced.into_iter().flatten() {
        inner.shared.counters.rejected_busy.add();
        // Its connection is dropped with it.
        handshake.abort();
    }
    waiting
}

async fn accept_one(inner: &Arc<Inner>, arriving: quinn::Incoming) {
    let limit = inner.shared.config.timers.connect;
    let from = arriving.remote_address();
    let quic = match arriving.accept() {
        Ok(connecting) => match timeout(limit, connecting).await {
            Ok(Ok(quic)) => quic,
            Ok(Err(error)) => return rejected_handshake(inner, from, &error.to_string()),
            Err(_) => return rejected_handshake(inner, from, "it took too long"),
        },
        Err(error) => return rejected_handshake(inner, from, &error.to_string()),
    };
    if Alpn::of(&quic) == Some(Alpn::Visit) {
        visit::answer(inner, &quic).await;
        return;
    }
    let hello = timeout(limit, handshake::accept(&inner.introducer, &quic)).await;
    match hello.unwrap_or(Err(HelloError::TimedOut)) {
        Ok(established) => {
            if !inner.start(established, &mut |caller| inner.pool.accepted(caller)) {
                inner.shared.counters.rejected_busy.add();
                quic.close(CloseCode::Busy.to_wire(), b"");
            }
        }
        Err(error) => {
            inner.shared.counters.rejected_hellos.add();
            if let HelloError::Access(_) = error {
                inner.shared.counters.rejected_grants.add();
                let node = tls::peer_id(quic.peer_identity())
                    .map(|node| node.to_string())
                    .unwrap_or_default();
                inner.shared.hushes.turned_away.say(|unsaid| {
                    tracing::warn!(%from, node, %error, unsaid, "a peer without a valid grant was turned away");
                });
            } else {
                tracing::info!(%from, %error, "a peer was turned away");
            }
            quic.close(error.close_code().to_wire(), error.to_string().as_bytes());
        }
    }
}

/// A node may start without a grant, and be given one later. A grant that it has must allow the role that it names.
fn check_grant(config: &Config) -> Result<(), BindError> {
    match config.access.own() {
        Ok(own) if !own.may_be(config.role.needs()) => Err(BindError::Grant(AccessError::Role(own.role()))),
        Ok(_) | Err(AccessError::NoGrant) => Ok(()),
        Err(error) => Err(BindError::Grant(error)),
    }
}

fn rejected_handshake(inner: &Inner, from: SocketAddr, error: &str) {
    inner.shared.counters.rejected_handshakes.add();
    tracing::info!(%from, error, "a handshake failed");
}

fn random_seed() -> u64 {
    let mut seed = [0; 8];
    // Only jitter depends on it.
    let _ = getrandom::fill(&mut seed);
    u64::from_le_bytes(seed)
}
