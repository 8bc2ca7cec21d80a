//! The endpoint: a UDP socket, an identity, and every connection made from or to it.

use std::{
    net::{Ipv6Addr, SocketAddr},
    sync::{
        Arc, RwLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use futures::future::join_all;
use macula_wire::{NodeId, RealmHash, proto};
use tokio::time::timeout;

use crate::{
    Config, Handler, Identity, MAX_MOVED_REPLIES, Pool, Stats,
    batching::Batching,
    connection::Link,
    drive,
    error::{BindError, CloseCode, TlsError},
    handshake::{self, Established, Handshakes},
    hello,
    load::Load,
    memory,
    network::Network,
    pool, quic,
    report::REPORT_EVERY,
    stats::Counters,
    tls::{FoundKey, Tls},
};

/// How long a shut-down endpoint waits for its last packets to leave, and repeats to peers who missed it that it closes; one that
/// is far away or gone finds out by itself.
const FAREWELL: Duration = Duration::from_millis(250);

/// A node's place on the network: a UDP socket, an identity, and the connections made from and to it.
///
/// Dropping it closes everything at once; [`Endpoint::shutdown`] leaves without failing a call.
#[derive(Debug)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

/// What the endpoint's tasks share.
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) node_id: NodeId,
    pub(crate) realm: RealmHash,
    pub(crate) handler: Arc<dyn Handler>,
    pub(crate) quic: quinn::Endpoint,
    pub(crate) counters: Arc<Counters>,
    pub(crate) pool: pool::Shell,
    pub(crate) load: Arc<Load>,
    pub(crate) epoch: Instant,
    /// Microseconds since the epoch, when somebody last looked at the clock.
    lately: AtomicU64,
    local_addr: SocketAddr,
    tls: Tls,
    transport: Arc<quinn::TransportConfig>,
    advertised: RwLock<Vec<macula_wire::Address>>,
    draining: AtomicBool,
    handshakes: Handshakes,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("node_id", &self.node_id)
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
        let tls = Tls::new(&config.identity, config.key_exchange)
            .map_err(TlsError::from)
            .map_err(BindError::Tls)?;
        memory::keep_pages(config.limits.max_message_bytes);
        let counters = Arc::new(Counters::default());
        let load = Arc::new(Load::default());
        let transport = Arc::new(quic::transport_config(&config));
        let server = tls.server().map_err(TlsError::from).map_err(BindError::Tls)?;
        let server = quic::server_config(server, transport.clone(), &config);
        let seed = config.next_seed();
        let runtime = Arc::new(Batching::new(load.clone()));
        let addr = config.listen.unwrap_or((Ipv6Addr::UNSPECIFIED, 0).into());
        let bound = quic::open_socket(&config, &*runtime).and_then(|socket| {
            let local = socket.local_addr()?;
            let endpoint_config = quic::endpoint_config(&config.identity, counters.clone(), seed);
            let quic = quinn::Endpoint::new_with_abstract_socket(endpoint_config, Some(server), socket, runtime)?;
            Ok((local, quic))
        });
        let (mut local_addr, quic) = bound.map_err(|source| BindError::Socket { addr, source })?;
        local_addr.set_ip(local_addr.ip().to_canonical());
        let inner = Arc::new(Inner {
            node_id: config.identity.node_id(),
            realm: config.realm.hash(),
            handler: Arc::new(handler),
            quic,
            counters,
            load,
            lately: AtomicU64::new(0),
            pool: pool::Shell::new(
                config.pool,
                pool::AcceptLimits {
                    all: config.limits.max_accepted,
                    each: config.limits.max_accepted_per_network,
                },
                seed.unwrap_or_else(random_seed),
            ),
            epoch: tokio::time::Instant::now().into_std(),
            local_addr,
            tls,
            transport,
            advertised: RwLock::new(config.advertise.clone()),
            draining: AtomicBool::new(false),
            handshakes: Handshakes::default(),
            config,
        });
        tokio::spawn(accept_all(inner.clone()));
        tokio::spawn(pool::keep(inner.clone()));
        if inner.handler.load().is_some() {
            tokio::spawn(report_load(Arc::downgrade(&inner)));
        }
        Ok(Self { inner })
    }

    /// The address the socket is bound to, its port chosen.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr
    }

    /// What this node is known by.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.inner.node_id
    }

    /// The node's identity.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.inner.config.identity
    }

    /// The connections to other nodes.
    #[must_use]
    pub fn pool(&self) -> Pool {
        Pool::new(self.inner.clone())
    }

    /// Sets where new peers are told this node listens, as [`Config::with_advertised`].
    pub fn set_advertised(&self, endpoints: impl IntoIterator<Item = macula_wire::Address>) {
        let endpoints = endpoints.into_iter().take(macula_wire::MAX_ENDPOINTS).collect();
        *self
            .inner
            .advertised
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = endpoints;
    }

    /// What has been counted so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner.counters.snapshot(self.inner.pool.len())
    }

    /// Takes no further calls and waits until those under way are answered: peers are told, and what they send all the same
    /// is refused as not started (N4).
    ///
    /// There is no way back. This node may call others until it is shut down: what it still runs may have to.
    pub async fn drain(&self) {
        self.inner.draining.store(true, SeqCst);
        let links = self.inner.pool.links();
        for link in &links {
            link.shut(proto::GoAwayReason::Draining);
        }
        for link in links {
            link.drained().await;
        }
    }

    /// Drains, waits until the peers have acknowledged every reply, and closes every connection: all within `grace`. After that what
    /// is not finished is given up, and its callers are told that it may have run.
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
        let _ = timeout(FAREWELL, self.inner.quic.wait_idle()).await;
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.inner.close(CloseCode::Aborted);
    }
}

impl Inner {
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(SeqCst)
    }

    /// Notes a look at the clock, for those who need the time only roughly.
    pub(crate) fn saw_clock(&self, now: Instant) {
        let micros = u64::try_from(now.saturating_duration_since(self.epoch).as_micros()).unwrap_or(u64::MAX);
        self.lately.fetch_max(micros, Relaxed);
    }

    /// Microseconds since the endpoint was bound, when somebody last looked at the clock: every call looks once.
    pub(crate) fn lately(&self) -> u64 {
        self.lately.load(Relaxed)
    }

    pub(crate) fn hello(&self, peer_addr: SocketAddr) -> proto::Hello {
        let endpoints = self
            .advertised
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        hello::ours(&self.config, &endpoints, peer_addr)
    }

    pub(crate) fn client_config(
        &self,
        expected: Option<NodeId>,
    ) -> Result<(quinn::ClientConfig, Arc<FoundKey>), TlsError> {
        let (tls, found) = self.tls.client(expected)?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(self.transport.clone());
        Ok((config, found))
    }

    fn close(&self, code: CloseCode) {
        self.draining.store(true, SeqCst);
        for link in self.pool.links() {
            link.close_naming(code, "");
        }
        self.quic.close(code.to_wire(), b"");
        self.pool.stop();
    }
}

/// Starts the tasks of a connection that both sides have accepted. `None` when the pool does not take it.
pub(crate) fn start(
    inner: &Arc<Inner>,
    established: Established,
    register: impl FnOnce(&Arc<Link>) -> Option<pool::ConnectionId>,
) -> Option<Arc<Link>> {
    let Established {
        quic,
        peer,
        outgoing,
        incoming,
    } = established;
    quic.set_max_concurrent_bi_streams(inner.config.limits.max_streams.into());
    // Whatever streams, large replies have theirs.
    let uni = inner.config.limits.max_streams.saturating_add(MAX_MOVED_REPLIES as u32);
    quic.set_max_concurrent_uni_streams(uni.into());
    quic.set_receive_window(inner.config.limits.connection_window.into());
    inner.saw_clock(tokio::time::Instant::now().into_std());
    let (link, queue) = Link::new(quic, peer, inner.clone());
    let id = register(&link)?;
    // Nobody else knows the link yet.
    let _ = link.id.set(id);
    if inner.is_draining() {
        // A drain that began before finds it no more. What this node still asks for is answered here, and nothing else.
        link.shut(proto::GoAwayReason::Draining);
    }
    tokio::spawn(drive::connection(link.clone(), outgoing, incoming, queue));
    Some(link)
}

/// Tells the peers that call how busy this node is, until the endpoint is gone.
async fn report_load(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(REPORT_EVERY).await;
        let Some(inner) = inner.upgrade().filter(|inner| !inner.pool.is_stopped()) else {
            return;
        };
        let Some(load) = inner.handler.load() else { continue };
        let now = tokio::time::Instant::now().into_std();
        for link in inner.pool.links() {
            link.report(now, load);
        }
    }
}

async fn accept_all(inner: Arc<Inner>) {
    while let Some(arriving) = inner.quic.accept().await {
        let (limits, from) = (&inner.config.limits, Network::of(arriving.remote_address().ip()));
        let (all, from_there) = inner.handshakes.under_way(from);
        if inner.is_draining() || all >= limits.max_handshakes {
            inner.counters.rejected_busy.add();
            arriving.refuse();
        } else if all >= limits.retry_above && arriving.may_retry() && !arriving.remote_address_validated() {
            inner.counters.retried.add();
            // Cannot fail: it was just asked whether it may.
            let _ = arriving.retry();
        } else if from_there >= limits.max_handshakes_per_network {
            inner.counters.rejected_busy.add();
            arriving.refuse();
        } else {
            inner.handshakes.begin(from);
            let inner = inner.clone();
            tokio::spawn(async move {
                accept_one(&inner, arriving).await;
                inner.handshakes.end(from);
            });
        }
    }
}

async fn accept_one(inner: &Arc<Inner>, arriving: quinn::Incoming) {
    let limit = inner.config.timers.connect;
    let from = arriving.remote_address();
    let quic = match arriving.accept() {
        Ok(connecting) => match timeout(limit, connecting).await {
            Ok(Ok(quic)) => quic,
            Ok(Err(error)) => return rejected_handshake(inner, from, &error.to_string()),
            Err(_) => return rejected_handshake(inner, from, "it took too long"),
        },
        Err(error) => return rejected_handshake(inner, from, &error.to_string()),
    };
    let hello = timeout(limit, handshake::accept(inner, &quic)).await;
    match hello.unwrap_or(Err(crate::error::HelloError::TimedOut)) {
        Ok(established) => {
            let accepted = start(inner, established, |link| inner.pool.accepted(link));
            if accepted.is_none() {
                inner.counters.rejected_busy.add();
                quic.close(CloseCode::Busy.to_wire(), b"");
            }
        }
        Err(error) => {
            inner.counters.rejected_hellos.add();
            tracing::info!(%from, %error, "a peer was turned away");
            quic.close(error.close_code().to_wire(), error.to_string().as_bytes());
        }
    }
}

fn rejected_handshake(inner: &Inner, from: SocketAddr, error: &str) {
    inner.counters.rejected_handshakes.add();
    tracing::info!(%from, error, "a handshake failed");
}

fn random_seed() -> u64 {
    let mut seed = [0; 8];
    // Only jitter depends on it.
    let _ = getrandom::fill(&mut seed);
    u64::from_le_bytes(seed)
}
