//! The settings of a node.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use macula_dht::{AdvertiseError, StoreLimits};
use macula_rpc::{
    ClientBuilder, DEFAULT_MAX_CONCURRENT_CALLS, Handler, Propagate, ServeError, ServiceOptions, Strategy,
    StreamHandler,
};
use macula_transport::{BindError, Config, Identity, IdentityError};
use macula_wire::{
    Address, Chain, DEFAULT_TTL, JoinToken, MAX_ENDPOINTS, MAX_GRANT_SECS, MAX_TTL, MIN_TTL, Membership, NameError,
    Realm, ServiceName,
};

use crate::{
    BootstrapAddr, MAX_BOOTSTRAP, Node,
    clocks::{Clocks, TimeSource},
    data::Kept,
    directory::Offer,
    membership::{DEFAULT_GRANT_LIFE, Kept as Granted, MIN_GRANT_LIFE, MembershipError},
};

/// The node's grant in its data folder.
const GRANT_FILE: &str = "identity.grant";
/// How long a node that leaves waits for calls, unless it is told otherwise.
const DEFAULT_DRAIN_TIME: Duration = Duration::from_secs(30);
/// The longest that it waits; more would overflow the clock.
const MAX_DRAIN_TIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Services and their handlers, before the node runs.
pub(crate) type Registration = Box<dyn FnOnce(&macula_rpc::Server) -> Result<Vec<ServiceName>, ServeError> + Send>;

/// A user's changes to a configuration that the node also changes.
pub(crate) type Configure<T> = Box<dyn FnOnce(T) -> T + Send>;

/// Builds a [`Node`]. Its fields are one setting each.
#[must_use = "a builder does nothing until it is started"]
pub struct NodeBuilder {
    identity: Option<Identity>,
    #[cfg(feature = "redb")]
    data: Option<std::path::PathBuf>,
    pub(crate) realm: Realm,
    pub(crate) standing: Standing,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) advertise: Vec<Address>,
    pub(crate) bootstrap: Vec<BootstrapAddr>,
    pub(crate) mode: Mode,
    pub(crate) ttl: Duration,
    pub(crate) drain_time: Duration,
    pub(crate) weight: u32,
    pub(crate) zone: Option<String>,
    pub(crate) strategy: Strategy,
    pub(crate) calls: Option<Configure<ClientBuilder>>,
    pub(crate) transport: Option<Configure<Config>>,
    pub(crate) propagate: Option<Arc<dyn Propagate>>,
    pub(crate) max_concurrent_calls: usize,
    pub(crate) store_limits: StoreLimits,
    pub(crate) services: Vec<Result<Registration, NameError>>,
    #[cfg(feature = "tonic")]
    pub(crate) schemas: Vec<bytes::Bytes>,
    #[cfg(feature = "testing")]
    pub(crate) network: Option<macula_transport::testing::Network>,
    #[cfg(feature = "testing")]
    pub(crate) clock: crate::SimulatedClock,
}

/// What the node is told about its place in a closed realm.
pub(crate) struct Standing {
    grant: Option<Chain>,
    membership: Option<Membership>,
    pub(crate) token: Option<JoinToken>,
    file: Option<std::path::PathBuf>,
    /// How long the grants last that it signs.
    pub(crate) life: Duration,
}

impl Default for Standing {
    fn default() -> Self {
        Self {
            grant: None,
            membership: None,
            token: None,
            file: None,
            life: DEFAULT_GRANT_LIFE,
        }
    }
}

/// What the node does for other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Stores records and answers lookups.
    Node,
    /// Calls, looks up and publishes only.
    Client,
}

/// A node could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A new key could not be made.
    #[error("no identity could be made")]
    Identity(#[from] IdentityError),
    /// The operating system gives no random numbers.
    #[error("the operating system gives no random numbers")]
    Randomness(#[source] getrandom::Error),
    /// The data folder cannot be used.
    #[cfg(feature = "redb")]
    #[error(transparent)]
    Data(#[from] crate::DataError),
    /// The node is not let into its closed realm.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The realm, the grant and the token are not of one realm.
    #[error("the settings name two realms, {0} and {1}: give the node one, and a grant or token of that realm")]
    TwoRealms(Realm, Realm),
    /// The life of grants is out of bounds.
    #[error("an issuer's grants last from 15 minutes to {max} days, not {0:?}", max = MAX_GRANT_SECS / 86_400)]
    GrantLife(Duration),
    /// The node cannot listen.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A service's name is not valid.
    #[error("a service cannot be served: {0}")]
    ServiceName(#[from] NameError),
    /// Two services have one name.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The node cannot be published as a provider.
    #[error("the node cannot be published as a provider: {0}")]
    Advertise(#[from] AdvertiseError),
    /// More endpoints than a record carries.
    #[error("{0} endpoints are advertised, more than the {MAX_ENDPOINTS} a provider may have")]
    TooManyEndpoints(usize),
    /// The validity of records is out of bounds.
    #[error("provider records are valid for 20 s to 3600 s, in whole seconds, not {0:?}")]
    Ttl(Duration),
    /// More bootstrap addresses than [`MAX_BOOTSTRAP`].
    #[error("{0} bootstrap addresses are given; {MAX_BOOTSTRAP} are enough")]
    TooManyBootstrapAddresses(usize),
    /// The schema given to [`NodeBuilder::reflect`] is not a descriptor set.
    #[cfg(feature = "tonic")]
    #[error("a schema for reflection is not a file descriptor set as protox and protoc write it")]
    Schema(#[from] tonic_reflection::server::Error),
}

impl NodeBuilder {
    pub(crate) fn new() -> Self {
        Self {
            identity: None,
            #[cfg(feature = "redb")]
            data: None,
            realm: Realm::default(),
            standing: Standing::default(),
            listen: None,
            advertise: Vec::new(),
            bootstrap: Vec::new(),
            mode: Mode::Node,
            ttl: DEFAULT_TTL,
            drain_time: DEFAULT_DRAIN_TIME,
            weight: 1,
            zone: None,
            strategy: Strategy::default(),
            calls: None,
            transport: None,
            propagate: None,
            max_concurrent_calls: DEFAULT_MAX_CONCURRENT_CALLS,
            store_limits: StoreLimits::default(),
            services: Vec::new(),
            #[cfg(feature = "tonic")]
            schemas: Vec::new(),
            #[cfg(feature = "testing")]
            network: None,
            #[cfg(feature = "testing")]
            clock: crate::SimulatedClock::new(),
        }
    }

    /// Keeps the node's state in this folder over a restart: its identity, unless [`NodeBuilder::identity`] gives one, the records it
    /// holds for others, and the nodes it knows. The folder is made if there is none.
    ///
    /// A node that starts again answers at once from these records, and finds its mesh without bootstrap addresses. News is written
    /// within two seconds and at [`Node::shutdown`](crate::Node::shutdown). A damaged file is set aside with a
    /// warning.
    #[cfg(feature = "redb")]
    pub fn data(mut self, folder: impl Into<std::path::PathBuf>) -> Self {
        self.data = Some(folder.into());
        self
    }

    /// Sets the node's identity; without it, the node has the one of its data folder, or a new one.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Sets the realm; the open realm `default` without it. A closed realm asks for a [grant](NodeBuilder::grant), too.
    pub fn realm(mut self, realm: Realm) -> Self {
        self.realm = realm;
        self
    }

    /// Sets the node's grant of its closed realm. It can be replaced later: see [`Node::access`](crate::Node::access).
    pub fn grant(mut self, grant: Chain) -> Self {
        self.standing.grant = Some(grant);
        self
    }

    /// Sets the realm and the node's grant, with the issuers that renew it: the line that `macula realm grant` prints, parsed.
    pub fn membership(mut self, membership: Membership) -> Self {
        self.standing.membership = Some(membership);
        self
    }

    /// Sets the realm, and lets the node join it with this token, unless it has a grant already.
    ///
    /// [`NodeBuilder::start`] waits for the token's issuer. The token is used once for each node id, so give the node an identity that it
    /// keeps, with [`NodeBuilder::data`] or [`NodeBuilder::identity`].
    pub fn token(mut self, token: JoinToken) -> Self {
        self.standing.token = Some(token);
        self
    }

    /// Keeps the node's grant in this file from renewal to renewal, and starts with the grant in it: mode 0600, the line that `macula realm
    /// grant` prints. With [`NodeBuilder::data`] it is `identity.grant` in that folder unless it is set.
    pub fn grant_file(mut self, file: impl Into<std::path::PathBuf>) -> Self {
        self.standing.file = Some(file.into());
        self
    }

    /// Sets how long the grants last that this node signs when its own grant lets it issue, a day without it,
    /// [`MIN_GRANT_LIFE`](crate::MIN_GRANT_LIFE) at least. They are renewed by themselves, so this is how long a revoked member stays with
    /// nodes that no revocation reaches.
    pub fn grant_life(mut self, life: Duration) -> Self {
        self.standing.life = life;
        self
    }

    /// Sets the UDP address to listen on, port 0 for a free one; every address and a free port without it. `[::]` stands for every
    /// address of both families, and for every IPv4 address on a machine without IPv6.
    pub fn listen(mut self, listen: SocketAddr) -> Self {
        self.listen = Some(listen);
        self
    }

    /// Sets the addresses that others dial. Without it that is the address listened on; for a node that listens on every address, the
    /// addresses of its interfaces as they change, and the address that peers in two networks see it at.
    pub fn advertise(mut self, endpoints: impl IntoIterator<Item = Address>) -> Self {
        self.advertise.extend(endpoints);
        self
    }

    /// Adds nodes that are in the mesh already.
    pub fn bootstrap(mut self, addresses: impl IntoIterator<Item = BootstrapAddr>) -> Self {
        self.bootstrap.extend(addresses);
        self
    }

    /// Only calls, looks up and publishes: stores nothing for others, and enters no routing table. For programs that come
    /// and go.
    pub fn client(mut self) -> Self {
        self.mode = Mode::Client;
        self
    }

    /// Sets how long the node's provider records are valid without being renewed.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets how long [`Node::shutdown`](crate::Node::shutdown) waits for running calls, and for callers to acknowledge their replies.
    /// Without it 30 s; more than a year counts as a year.
    pub fn drain_time(mut self, time: Duration) -> Self {
        self.drain_time = time.min(MAX_DRAIN_TIME);
        self
    }

    /// Sets this node's relative capacity, at least 1.
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight.max(1);
        self
    }

    /// Sets where this node runs.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Sets how this node's calls choose a provider; `random` without it.
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// Configures the client of this node's calls, such as timeouts and the retry budget. The node sets the directory, its own services
    /// and the routers itself.
    ///
    /// ```
    /// # use std::time::Duration;
    /// let node = macula_node::Node::builder()
    ///     .calls(|client| client.timeout(Duration::from_secs(2)).attempt_timeout(Duration::from_millis(500)));
    /// ```
    pub fn calls(mut self, configure: impl FnOnce(ClientBuilder) -> ClientBuilder + Send + 'static) -> Self {
        self.calls = Some(Box::new(configure));
        self
    }

    /// Configures this node's connections: the limits of its pool and of its peers, its timers, its key exchange. The node sets its
    /// identity, realm, role and address itself.
    ///
    /// ```
    /// use macula_node::PoolConfig;
    ///
    /// let pool = PoolConfig { max_connections: 64, ..PoolConfig::default() };
    /// let node = macula_node::Node::builder().transport(move |config| config.with_pool(pool));
    /// ```
    pub fn transport(mut self, configure: impl FnOnce(Config) -> Config + Send + 'static) -> Self {
        self.transport = Some(Box::new(configure));
        self
    }

    /// Sends with every call the trace it belongs to, and tells the spans of served calls theirs. [`W3c`](macula_rpc::W3c) does
    /// where no exporter has ids of its own. Without it no trace is sent.
    pub fn propagate(mut self, propagate: impl Propagate) -> Self {
        self.propagate = Some(Arc::new(propagate));
        self
    }

    /// Sets how many calls this node's services run at a time, [`DEFAULT_MAX_CONCURRENT_CALLS`] without it; the rest are refused,
    /// and go elsewhere.
    pub fn max_concurrent_calls(mut self, max: usize) -> Self {
        self.max_concurrent_calls = max;
        self
    }

    /// Sets how many provider records this node keeps for others. When there is no room, the peers that delivered most make it.
    pub fn store_limits(mut self, limits: StoreLimits) -> Self {
        self.store_limits = limits;
        self
    }

    /// Puts the node on a network in memory, whose time its records are dated by.
    #[cfg(feature = "testing")]
    pub fn network(mut self, network: &macula_transport::testing::Network) -> Self {
        self.network = Some(network.clone());
        self
    }

    /// Gives the node on a network in memory clocks that can be set and suspended.
    #[cfg(feature = "testing")]
    pub fn clock(mut self, clock: &crate::SimulatedClock) -> Self {
        self.clock = clock.clone();
        self
    }

    /// The clocks that the node goes by.
    pub(crate) fn clocks(&self) -> Clocks {
        #[cfg(feature = "testing")]
        if let Some(network) = self.network.clone() {
            let clock = self.clock.clone();
            return Clocks::new(TimeSource::Simulated { network, clock });
        }
        Clocks::new(TimeSource::System)
    }

    /// The secret key of the directory's hashes: a peer that knew it could choose keys that all collide.
    pub(crate) fn seed(&self) -> Result<u64, StartError> {
        #[cfg(feature = "testing")]
        if let (Some(_), Some(identity)) = (&self.network, &self.identity) {
            // The same each time; a simulation gives its nodes their identities.
            let id = identity.node_id();
            let bytes = id.as_bytes().iter();
            return Ok(bytes.fold(self.clocks().read().unix_ms, |seed, byte| {
                seed.rotate_left(7) ^ u64::from(*byte)
            }));
        }
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(StartError::Randomness)?;
        Ok(u64::from_ne_bytes(seed))
    }

    /// Sets the options of a service, such as the callers that it admits, whether it is served from the start or later.
    ///
    /// ```
    /// use macula_node::{Allowed, Node, ServiceOptions};
    ///
    /// let options = ServiceOptions::new().allow(Allowed::label("team", "orders"));
    /// let node = Node::builder().configure("shop.stock".parse()?, options);
    /// # Ok::<_, macula_node::NameError>(())
    /// ```
    pub fn configure(mut self, service: ServiceName, options: ServiceOptions) -> Self {
        // First of all: no service is served for a moment without its options.
        let configure = move |server: &macula_rpc::Server| {
            server.configure(service, options);
            Ok(Vec::new())
        };
        self.services.insert(0, Ok(Box::new(configure)));
        self
    }

    /// Provides `service` from the start.
    pub fn serve<S>(mut self, service: S, handler: impl Handler) -> Self
    where
        S: TryInto<ServiceName>,
        NameError: From<S::Error>,
    {
        let registration = service.try_into().map_err(NameError::from).map(|name| -> Registration {
            Box::new(move |server| server.serve(name.clone(), handler).map(|()| vec![name]))
        });
        self.services.push(registration);
        self
    }

    /// Provides `service` from the start with a handler whose requests and replies are streams.
    pub fn serve_streaming<S>(mut self, service: S, handler: impl StreamHandler) -> Self
    where
        S: TryInto<ServiceName>,
        NameError: From<S::Error>,
    {
        let name = service.try_into().map_err(NameError::from);
        let registration = name.map(|name| -> Registration {
            Box::new(move |server| server.serve_streaming(name.clone(), handler).map(|()| vec![name]))
        });
        self.services.push(registration);
        self
    }

    /// Provides gRPC services from the start, each under the name it has in its schema: a server that tonic has generated, or
    /// several as [`TonicServices`](macula_rpc::TonicServices).
    #[cfg(feature = "tonic")]
    pub fn serve_tonic(mut self, services: impl Into<macula_rpc::TonicServices>) -> Self {
        let services = services.into();
        self.services
            .push(Ok(Box::new(move |server| server.serve_tonic(services))));
        self
    }

    /// Shows the schemas of services by server reflection: an encoded `FileDescriptorSet`, as build scripts write it.
    ///
    /// Without it reflection lists this node's services by name. Every peer that may connect may read a schema.
    #[cfg(feature = "tonic")]
    pub fn reflect(mut self, schema: impl Into<bytes::Bytes>) -> Self {
        self.schemas.push(schema.into());
        self
    }

    /// Starts the node: it listens, and joins the mesh in the background. [`Node::join`] waits for that.
    ///
    /// # Errors
    /// When the node cannot listen, or something it was told is out of bounds.
    pub async fn start(self) -> Result<Node, StartError> {
        if self.advertise.len() > MAX_ENDPOINTS {
            return Err(StartError::TooManyEndpoints(self.advertise.len()));
        }
        if self.bootstrap.len() > MAX_BOOTSTRAP {
            return Err(StartError::TooManyBootstrapAddresses(self.bootstrap.len()));
        }
        if self.ttl.subsec_nanos() != 0 || !(MIN_TTL..=MAX_TTL).contains(&self.ttl) {
            return Err(StartError::Ttl(self.ttl));
        }
        if !(MIN_GRANT_LIFE..=Duration::from_secs(MAX_GRANT_SECS)).contains(&self.standing.life) {
            return Err(StartError::GrantLife(self.standing.life));
        }
        Node::start(self).await
    }

    /// The data folder.
    pub(crate) fn folder(&self) -> Option<std::path::PathBuf> {
        #[cfg(feature = "redb")]
        return self.data.clone();
        #[cfg(not(feature = "redb"))]
        None
    }

    /// The node's realm and the grants that it may start with: everything that it was told is of one realm, or it is an error. Reads the
    /// grant's file.
    pub(crate) fn granted(&self) -> Result<(Realm, Granted), StartError> {
        let in_folder = || self.folder().map(|folder| folder.join(GRANT_FILE));
        let file = self.standing.file.clone().or_else(in_folder);
        let told = [
            (self.realm != Realm::default()).then_some(&self.realm),
            self.standing.membership.as_ref().map(|it| &it.realm),
            self.standing.token.as_ref().map(|it| &it.realm),
        ];
        let mut told = told.into_iter().flatten();
        let realm = match told.next() {
            Some(realm) => realm.clone(),
            // The file that a node was told to use, or that it has made itself, is as good as an option.
            None => match file.as_deref().map(Granted::read).transpose()?.flatten() {
                Some(kept) => kept.realm,
                None => self.realm.clone(),
            },
        };
        if let Some(other) = told.find(|told| **told != realm) {
            return Err(StartError::TwoRealms(realm, other.clone()));
        }
        let is_let_in =
            self.standing.membership.is_some() || self.standing.grant.is_some() || self.standing.token.is_some();
        match &file {
            Some(file) if !realm.is_closed() => Granted::check_open(file, &realm)?,
            Some(file) if !is_let_in => Granted::check_closed(file, &realm)?,
            None if realm.is_closed() && !is_let_in => return Err(MembershipError::NoGrant(realm).into()),
            Some(_) | None => {}
        }
        let of_chain = |chain: &Chain| Membership {
            realm: realm.clone(),
            chain: chain.clone(),
            issuers: Vec::new(),
        };
        let given = self
            .standing
            .membership
            .clone()
            .or_else(|| self.standing.grant.as_ref().map(of_chain));
        Ok((realm, Granted { given, file }))
    }

    /// Where the node's identity comes from, and where its directory is kept.
    pub(crate) fn keeping(&self) -> Keeping {
        Keeping {
            identity: self.identity.clone(),
            #[cfg(feature = "redb")]
            data: self.data.clone(),
        }
    }

    /// The content of the node's records beside its addresses.
    pub(crate) fn offer(&self) -> Offer {
        Offer {
            ttl: self.ttl,
            weight: self.weight,
            zone: self.zone.clone(),
        }
    }
}

/// Where a node's identity comes from, and where its directory is kept.
pub(crate) struct Keeping {
    identity: Option<Identity>,
    #[cfg(feature = "redb")]
    data: Option<std::path::PathBuf>,
}

impl Keeping {
    /// Opens the data folder if there is one, and gives the node's identity and the result of `make`.
    #[cfg_attr(
        not(feature = "redb"),
        expect(clippy::unused_async, reason = "only a data folder is waited for")
    )]
    pub(crate) async fn open<T: Send + 'static>(
        self,
        make: impl FnOnce(&Identity, Kept) -> T + Send + 'static,
    ) -> Result<(Identity, T), StartError> {
        let given = self.identity;
        #[cfg(feature = "redb")]
        if let Some(path) = self.data {
            // Files are read, and the signature of every record is verified: seconds, when the store was full.
            let work = tokio::task::spawn_blocking(move || {
                let folder = crate::data::Folder::open(&path)?;
                let identity = match given {
                    Some(identity) => identity,
                    None => folder.identity()?,
                };
                let made = make(&identity, Kept::Folder(folder.keeper()?));
                Ok::<_, StartError>((identity, made))
            });
            return match work.await {
                Ok(made) => made,
                Err(ended) => std::panic::resume_unwind(ended.into_panic()),
            };
        }
        let identity = match given {
            Some(identity) => identity,
            None => Identity::generate()?,
        };
        let made = make(&identity, Kept::NOWHERE);
        Ok((identity, made))
    }
}

impl std::fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeBuilder")
            .field("realm", &self.realm)
            .field("mode", &self.mode)
            .field("listen", &self.listen)
            .field("advertise", &self.advertise)
            .field("bootstrap", &self.bootstrap)
            .field("services", &self.services.len())
            .finish_non_exhaustive()
    }
}
