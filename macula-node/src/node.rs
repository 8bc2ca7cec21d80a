//! The node: every layer, composed.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use macula_dht::AdvertiseError;
use macula_rpc::{
    CallError, Client, Handler, Provider, ResolveError, ResolveOptions, Server, ServiceOptions, StreamHandler,
};
use macula_transport::{
    Access, CallKind, Config, DialError, Endpoint as Transport, Identity, IncomingCall, IncomingMessages, LoadReport,
    OutgoingMessages, PeerInfo, PoolStats, Protocol, Reply, Role, VisitError, Visitor,
};
use macula_wire::{Address, JoinReply, JoinRequest, NameError, NodeId, Realm, ServiceKey, ServiceName};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use crate::{
    BootstrapAddr, JoinError, JoinReport, NodeBuilder, StartError,
    addresses::{Reach, interfaces},
    builder::Mode,
    directory::{
        Announcement, Directory, DirectoryStats, Driver, Progress, ProviderRecord, PublishReport, WithdrawReport,
    },
    events::NodeEvent,
    inspection::Inspection,
    life::{Ending, Life},
    membership::{Doorkeeper, IssuerFolder, Place, RENEW_SERVICE, Spread},
};

/// The largest request or response, in bytes: 4 MiB.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// The revocations in the data folder.
const REVOCATIONS_FILE: &str = "revocations";

/// How long a shutdown waits for the holders of this node's records to take its withdrawals.
const WITHDRAW_WITHIN: Duration = Duration::from_secs(2);
/// How long a shutdown waits for the next answer of a holder before it takes the silent ones for gone: enough for a dial and an exchange
/// with a node that is far away.
const SILENT_FOR: Duration = Duration::from_millis(500);
/// How long a shutdown waits until the directory is written to disk.
const KEEP_WITHIN: Duration = Duration::from_secs(3);

/// A node of the mesh: it listens, finds, calls, and serves. Cheap to clone; clones are the same node.
///
/// Dropping the last clone ends it at once; [`Node::shutdown`] ends it in order.
#[derive(Clone)]
pub struct Node {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) transport: Arc<Transport>,
    pub(crate) server: Server,
    pub(crate) inspection: Inspection,
    pub(crate) client: Client,
    pub(crate) directory: Directory,
    publisher: Publisher,
    endpoints: watch::Receiver<Arc<[Address]>>,
    /// How long a shutdown waits for calls.
    drain_time: Duration,
    pub(crate) progress: watch::Receiver<Progress>,
    pub(crate) life: Life,
    task: JoinHandle<()>,
    spread: Spread,
    door: Arc<OnceLock<Arc<Doorkeeper>>>,
    /// Ended when dropped.
    _membership: JoinSet<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A service cannot be provided.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Another handler has the name.
    #[error(transparent)]
    Name(#[from] macula_rpc::ServeError),
    /// The node cannot be published as its provider.
    #[error("the node cannot be published as a provider: {0}")]
    Advertise(#[from] AdvertiseError),
}

/// The way to a node.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Reached {
    /// The node.
    pub peer: Arc<PeerInfo>,
    /// How long it took to connect; `None` when there was a connection.
    pub handshake: Option<Duration>,
    /// The estimate of the path's round trip.
    pub round_trip: Duration,
}

/// The providers of a service could not be looked up.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the providers cannot be looked up")]
#[non_exhaustive]
pub struct LookupError(#[from] ResolveError);

impl Node {
    /// Builds a node.
    pub fn builder() -> NodeBuilder {
        NodeBuilder::new()
    }

    pub(crate) async fn start(mut builder: NodeBuilder) -> Result<Self, StartError> {
        let (role, dht_role, listen) = match builder.mode {
            Mode::Node => {
                let anywhere = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
                let listen = builder.listen.unwrap_or(anywhere);
                (Role::Node, macula_dht::Role::Node, Some(listen))
            }
            Mode::Client => (Role::Client, macula_dht::Role::Client, builder.listen),
        };
        let (realm, granted) = builder.granted()?;
        let has_token = builder.standing.token.is_some();
        let (bootstrap, folder) = (builder.bootstrap.clone(), builder.folder());
        let (clocks, seed) = (builder.clocks(), builder.seed()?);
        let (now, wall) = (clocks.now(), clocks.clone());
        let issuing = folder.clone().filter(|_| realm.is_closed()).map(IssuerFolder::new);
        let (revocations, grant_file) = (
            folder.as_ref().map(|it| it.join(REVOCATIONS_FILE)),
            granted.file.clone(),
        );
        let dht = macula_dht::Config {
            role: dht_role,
            store: builder.store_limits,
            ..macula_dht::Config::default()
        };
        let make = move |identity: &Identity, kept| {
            let unix = Arc::new(move || wall.read().unix_ms / 1000);
            let access = Access::with_clock(realm, identity.node_id(), unix);
            let spread = Spread::open(access.clone(), revocations, now);
            // The folder is this process's from here on.
            if let Some(folder) = issuing {
                folder.tidy();
            }
            let standing = granted.choose(&access, has_token)?;
            let driver = Driver::new(identity, access.clone(), dht, bootstrap, kept, clocks, seed);
            Ok::<_, StartError>((access, spread, standing, driver))
        };
        let (identity, made) = builder.keeping().open(make).await?;
        let (access, spread, (ended, issuers), (directory, mut driver, progress, reached)) = made?;
        let server = Server::with_max_concurrent_calls(builder.max_concurrent_calls);
        #[cfg(feature = "tonic")]
        let inspection = Inspection::new(&server, builder.schemas.clone())?;
        #[cfg(not(feature = "tonic"))]
        let inspection = Inspection;
        // Filled in when the addresses are known, which is before the first peer knows them.
        let door = Arc::new(OnceLock::new());
        let handler = NodeHandler {
            server: server.clone(),
            inspection: inspection.clone(),
            directory: directory.clone(),
            spread: spread.clone(),
            door: door.clone(),
        };
        let config = Config::new(identity.clone());
        let config = match builder.transport.take() {
            Some(configure) => configure(config),
            None => config,
        };
        let config = config.with_access(access.clone()).with_role(role);
        let config = match listen {
            Some(listen) => config.with_listen(with_ipv6_or_without(listen)),
            None => config,
        };
        #[cfg(feature = "testing")]
        let config = match &builder.network {
            Some(network) => config.with_network(network),
            None => config,
        };
        let transport = Arc::new(Transport::bind(config, handler).await?);

        let reach = match (&builder.advertise[..], listen) {
            ([], Some(_)) => Reach::of(transport.local_addr()),
            ([], None) => Reach::Fixed(Vec::new()),
            (given, _) => Reach::Fixed(given.to_vec()),
        };
        let (announcement, endpoints) =
            Announcement::new(reach, builder.offer(), builder.bootstrap.clone(), &transport, now);
        let mut place = Place::new(&transport, issuers, grant_file, seed);
        let mut tasks = JoinSet::new();
        if access.realm().is_closed() {
            let tokens = folder.map(IssuerFolder::new);
            if let (Some(folder), true) = (tokens.clone(), access.own().is_ok_and(|own| own.issue().is_some())) {
                tasks.spawn(Doorkeeper::keep_addresses(folder, endpoints.clone()));
            }
            let keeper = Doorkeeper::new(
                access.clone(),
                identity,
                spread.clone(),
                tokens,
                builder.standing.life,
                endpoints.clone(),
                now,
            );
            let _ = door.set(Arc::new(keeper));
            place.enter(ended, builder.standing.token.as_ref()).await?;
            // The grant may be a new one, and services are published with it.
            driver.follow_access();
            tasks.spawn(place.stay(directory.clone(), reached.clone(), builder.bootstrap.clone()));
            directory.wait_for_orders(spread.clone());
            tasks.spawn(spread.clone().run(transport.pool(), reached.clone()));
        } else if !transport.local_addr().ip().is_loopback() && listen.is_some() {
            tracing::warn!(
                realm = %access.realm(),
                "the realm is open: every node that reaches this one may join it, provide and call; close it with `macula realm new`"
            );
        }
        let publisher = Publisher {
            realm: access.realm().clone(),
            directory: directory.clone(),
            services: Arc::default(),
        };
        let issues = access.own().is_ok_and(|own| own.issue().is_some());
        if let (true, Ok(service)) = (issues, RENEW_SERVICE.parse::<ServiceName>()) {
            if access.own().is_ok_and(|own| own.may_provide(&service)) {
                let door = door.clone();
                server.serve(service.clone(), move |request| {
                    Doorkeeper::called(door.get().cloned(), request)
                })?;
                driver.advertise(&service, &announcement)?;
                publisher.services().push(service);
            } else {
                tracing::warn!(
                    "this issuer's grant does not let it provide {RENEW_SERVICE}: members find it by its address only"
                );
            }
        }
        for registration in builder.services {
            for service in registration?(&server)? {
                driver.advertise(&service, &announcement)?;
                inspection.serving(&service);
                publisher.services().push(service);
            }
        }

        let mut client = Client::builder(&transport, directory.clone()).strategy(builder.strategy);
        if let Some(zone) = &builder.zone {
            client = client.zone(zone);
        }
        if let Some(propagate) = builder.propagate {
            server.propagate(Arc::clone(&propagate));
            client = client.propagate(propagate);
        }
        if let Some(configure) = builder.calls {
            client = configure(client);
        }
        #[cfg(feature = "tonic")]
        let client = client.inspected_by(inspection.server().clone());
        let client = client.local_first(server.clone()).routers(reached).build();
        server.route_through(&client);
        let task = tokio::spawn(driver.run(transport.pool(), announcement));
        let inner = Inner {
            transport,
            server,
            inspection,
            client,
            directory,
            publisher,
            endpoints,
            drain_time: builder.drain_time,
            progress,
            life: Life::begin(access.realm().clone(), role),
            task,
            spread,
            door,
            _membership: tasks,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Waits until the first attempt to join the mesh is over, or any later one has succeeded. A node without bootstrap
    /// addresses is its own mesh, and in it at once.
    ///
    /// # Errors
    /// When no bootstrap node could be reached; the node goes on trying.
    pub async fn join(&self) -> Result<JoinReport, JoinError> {
        let mut progress = self.inner.progress.clone();
        let outcome = progress
            .wait_for(Option::is_some)
            .await
            .map_err(|_| JoinError::ShutDown)?;
        outcome.clone().unwrap_or(Err(JoinError::ShutDown))
    }

    /// The node's identity.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.inner.transport.node_id()
    }

    /// The node's realm and grant: a renewed grant and revocations are given to it.
    #[must_use]
    pub fn access(&self) -> &Access {
        self.inner.transport.access()
    }

    /// Asks the node at an address something as a visitor that need not be a member of its realm: for tools that hand revocations in.
    /// Gives the node that has answered, as the handshake has proved it, and its reply.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn visit(&self, at: &BootstrapAddr, request: &JoinRequest) -> Result<(NodeId, JoinReply), VisitError> {
        let visit = self
            .inner
            .transport
            .visit(at.node_id, std::slice::from_ref(&at.endpoint), request.encode());
        let (node_id, reply) = visit.await?;
        let reply = JoinReply::decode(reply).map_err(|_| VisitError::Declined)?;
        Ok((node_id, reply))
    }

    /// Where others are told to dial now, the preferred address first; nowhere for a client. A node that listens on every address
    /// follows its interfaces (D13).
    #[must_use]
    pub fn endpoints(&self) -> Arc<[Address]> {
        self.inner.endpoints.borrow().clone()
    }

    /// The address listened on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.transport.local_addr()
    }

    /// The client that makes this node's calls: cheap to clone and to keep.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// Calls `service` with `payload`; short for `node.client().call(…)`.
    ///
    /// # Errors
    /// When the call fails; the error lists every attempt.
    pub async fn call<S>(&self, service: S, payload: impl Into<Bytes>) -> Result<Bytes, CallError>
    where
        S: TryInto<ServiceName>,
        NameError: From<S::Error>,
    {
        self.inner.client.call(service, payload).await
    }

    /// Sets the options of a service, such as the callers that it admits, from now on. Set them before the service is served.
    pub fn configure(&self, service: ServiceName, options: ServiceOptions) {
        self.inner.server.configure(service, options);
    }

    /// Provides `service` from now on: the handler takes calls, and the node is published as a provider.
    ///
    /// # Errors
    /// When the name is served already, or the node cannot be published: it has no endpoint, or too many services.
    pub async fn serve(&self, service: ServiceName, handler: impl Handler) -> Result<PublishReport, ServeError> {
        self.inner.server.serve(service.clone(), handler)?;
        self.published(&service).await
    }

    /// Provides `service` from now on with a handler whose requests and replies are streams.
    ///
    /// # Errors
    /// As [`Node::serve`].
    pub async fn serve_streaming(
        &self,
        service: ServiceName,
        handler: impl StreamHandler,
    ) -> Result<PublishReport, ServeError> {
        self.inner.server.serve_streaming(service.clone(), handler)?;
        self.published(&service).await
    }

    /// Provides gRPC services from now on, each under the name it has in its schema: a server that tonic has generated, or
    /// several as [`TonicServices`](macula_rpc::TonicServices). All of them, or none.
    ///
    /// # Errors
    /// When a name is served already or is not one of the mesh's, or the node cannot be published.
    #[cfg(feature = "tonic")]
    pub async fn serve_tonic(
        &self,
        services: impl Into<macula_rpc::TonicServices>,
    ) -> Result<Vec<(ServiceName, PublishReport)>, ServeError> {
        let names = self.inner.server.serve_tonic(services)?;
        let mut reports = Vec::new();
        for name in &names {
            match self.published(name).await {
                Ok(report) => reports.push((name.clone(), report)),
                Err(error) => {
                    for name in &names {
                        self.withdraw(name).await;
                    }
                    return Err(error);
                }
            }
        }
        Ok(reports)
    }

    /// Publishes this node as a provider of a service that its server has already, and removes it there when that fails.
    async fn published(&self, service: &ServiceName) -> Result<PublishReport, ServeError> {
        let published = self.inner.publisher.publish(service).await;
        match &published {
            Ok(_) => self.inner.inspection.serving(service),
            Err(_) => self.inner.server.withdraw(service),
        }
        Ok(published?)
    }

    /// Stops providing `service`; running calls finish. Withdrawing an unknown service is fine (D5).
    pub async fn withdraw(&self, service: &ServiceName) -> WithdrawReport {
        self.inner.server.withdraw(service);
        self.inner.inspection.withdrawn(service);
        self.inner.publisher.withdraw(service).await
    }

    /// The providers of `service`, in the directory's order, from the cache while it is fresh (D7); an empty list when there are none.
    ///
    /// # Errors
    /// When the directory gives no answer.
    pub async fn providers(&self, service: &ServiceName) -> Result<Arc<[Provider]>, LookupError> {
        Ok(self.inner.client.providers(service, ResolveOptions::default()).await?)
    }

    /// The providers of `service`, from the DHT itself.
    ///
    /// # Errors
    /// When the DHT gives no answer.
    pub async fn lookup(&self, service: &ServiceName) -> Result<Arc<[Provider]>, LookupError> {
        let options = ResolveOptions::default().with_force_refresh(true);
        Ok(self.inner.client.providers(service, options).await?)
    }

    /// The records of `service` in the DHT itself, with their age.
    ///
    /// # Errors
    /// When the DHT gives no answer.
    pub async fn records(&self, service: &ServiceName) -> Result<Vec<ProviderRecord>, LookupError> {
        Ok(self.inner.directory.records(service).await?)
    }

    /// Opens a connection to a provider, or takes the open one, and tells the way to it.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn reach(&self, provider: &Provider) -> Result<Reached, DialError> {
        let pool = self.inner.transport.pool();
        let known = pool.open(&provider.node_id);
        let begun = tokio::time::Instant::now();
        let (connection, handshake) = match known {
            Some(connection) => (connection, None),
            None => {
                let connection = pool.get(&provider.node_id, &provider.endpoints).await?;
                (connection, Some(begun.elapsed()))
            }
        };
        Ok(Reached {
            peer: Arc::clone(connection.peer()),
            handshake,
            round_trip: connection.rtt(),
        })
    }

    /// Where this node charges what it keeps for its own calls.
    #[cfg(feature = "ingress")]
    pub(crate) fn memory(&self) -> macula_transport::Memory {
        self.inner.transport.pool().memory().clone()
    }

    /// The counters of the connection pool.
    #[must_use]
    pub fn connection_stats(&self) -> PoolStats {
        self.inner.transport.pool().stats()
    }

    /// The counters of the transport, rejected peers among them.
    #[must_use]
    pub fn transport_stats(&self) -> macula_transport::Stats {
        self.inner.transport.stats()
    }

    /// How many revocations that peers passed on, or visitors handed in, were not valid (A6).
    #[must_use]
    pub fn refused_revocations(&self) -> u64 {
        self.inner.spread.refused()
    }

    /// How many requests for a first or a renewed grant this node has refused (A7).
    #[must_use]
    pub fn refused_joins(&self) -> u64 {
        self.inner.door.get().map_or(0, |door| door.refused())
    }

    /// The counters of the directory.
    #[must_use]
    pub fn directory_stats(&self) -> DirectoryStats {
        self.inner.directory.stats()
    }

    /// Leaves in order (N4): withdraws every service, refuses new calls so that their callers go elsewhere, finishes the running
    /// ones, writes the data folder, and closes each connection once its peer has acknowledged every reply or is found to be dead.
    ///
    /// Calls, this node's own among them, and acknowledgements have the [drain time](NodeBuilder::drain_time). The callers of those
    /// that are not finished by then are told which calls may have run. All of it takes 6 s more at most, and under a second when no
    /// call runs and no caller has just died.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        inner.life.ends(Ending::Draining);
        inner.directory.news().tell(NodeEvent::Draining);
        let services = inner.server.services();
        inner.inspection.draining(&services);
        let withdrawn = tokio::select! {
            biased;
            () = inner.publisher.withdraw_all() => true,
            () = inner.directory.silent_for(SILENT_FOR) => false,
            () = tokio::time::sleep(WITHDRAW_WITHIN) => false,
        };
        if !withdrawn {
            tracing::info!("not every holder of this node's records has confirmed their withdrawal");
        }
        let until = tokio::time::Instant::now() + inner.drain_time;
        if tokio::time::timeout_at(until, inner.server.drain()).await.is_err() {
            tracing::warn!(running = inner.server.running(), "calls still run; they are given up");
        }
        inner.inspection.ended();
        if tokio::time::timeout(KEEP_WITHIN, inner.directory.close())
            .await
            .is_err()
        {
            tracing::warn!("the disk is too slow; the last changes of the directory may not have been kept");
        }
        let left = until.saturating_duration_since(tokio::time::Instant::now());
        inner.transport.shutdown(left).await;
        inner.task.abort();
        inner.life.ends(Ending::Left);
        inner.directory.news().tell(NodeEvent::Left);
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.id())
            .field("endpoints", &self.endpoints())
            .finish_non_exhaustive()
    }
}

/// Answers peers: calls of services, and questions to the directory.
struct NodeHandler {
    server: Server,
    inspection: Inspection,
    directory: Directory,
    spread: Spread,
    door: Arc<OnceLock<Arc<Doorkeeper>>>,
}

impl NodeHandler {
    fn server_of(&self, call: &IncomingCall) -> &Server {
        match self.inspection.server_of(call.service()) {
            // A service of the application with the same name goes first.
            Some(own) if !self.server.serves(call.service()) => own,
            _ => &self.server,
        }
    }
}

impl macula_transport::Handler for NodeHandler {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        self.server_of(&call).call(call)
    }

    fn kind(&self, call: &IncomingCall) -> CallKind {
        self.server_of(call).kind(call)
    }

    fn refuses(&self, call: &IncomingCall) -> Option<Reply> {
        self.server_of(call).refuses(call)
    }

    fn stream(
        &self,
        call: IncomingCall,
        requests: IncomingMessages,
        replies: OutgoingMessages,
    ) -> BoxFuture<'static, Reply> {
        self.server_of(&call).stream(call, requests, replies)
    }

    fn request(&self, peer: &Arc<PeerInfo>, protocol: Protocol, body: Bytes) -> BoxFuture<'static, Option<Bytes>> {
        match protocol {
            Protocol::Dht => {
                let (directory, peer) = (self.directory.clone(), Arc::clone(peer));
                Box::pin(async move { directory.answer(&peer, body).await })
            }
            Protocol::Revocations => {
                let answer = self.spread.answer(peer, body, tokio::time::Instant::now().into_std());
                Box::pin(std::future::ready(answer))
            }
            _ => Box::pin(std::future::ready(None)),
        }
    }

    fn visit(&self, visitor: Visitor, body: Bytes) -> BoxFuture<'static, Option<Bytes>> {
        match self.door.get().cloned() {
            Some(door) => Box::pin(door.answer(visitor, body, tokio::time::Instant::now().into_std())),
            None => Box::pin(std::future::ready(None)),
        }
    }

    fn load(&self) -> Option<LoadReport> {
        self.server.load()
    }
}

/// Publishes this node's services in the directory.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    realm: Realm,
    directory: Directory,
    services: Arc<Mutex<Vec<ServiceName>>>,
}

impl Publisher {
    fn services(&self) -> MutexGuard<'_, Vec<ServiceName>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, service: &ServiceName) -> ServiceKey {
        ServiceKey::new(&self.realm, service)
    }

    async fn publish(&self, service: &ServiceName) -> Result<PublishReport, AdvertiseError> {
        // Listed before the wait: a caller that gives up waiting still has the service withdrawn at the end.
        self.services().push(service.clone());
        let published = self.directory.advertise(service).await;
        if published.is_err() {
            self.services().retain(|known| known != service);
        }
        published
    }

    async fn withdraw(&self, service: &ServiceName) -> WithdrawReport {
        self.services().retain(|known| known != service);
        self.directory.withdraw(self.key(service)).await
    }

    async fn withdraw_all(&self) {
        let services = self.services().clone();
        join_all(services.iter().map(|service| self.withdraw(service))).await;
    }
}

/// The address to bind for `listen`: `[::]` is every address, which is IPv4 on a machine without IPv6 (Y19).
fn with_ipv6_or_without(listen: SocketAddr) -> SocketAddr {
    match listen {
        SocketAddr::V6(v6) if v6.ip().is_unspecified() && !interfaces::has_ipv6() => {
            SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), listen.port())
        }
        listen => listen,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_limit_is_the_transports() {
        assert_eq!(MAX_MESSAGE_BYTES, macula_transport::Limits::default().max_message_bytes);
    }
}
