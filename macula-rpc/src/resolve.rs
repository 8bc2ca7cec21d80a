//! The directory: it lists the providers of a service.
//!
//! The client knows discovery only through [`Resolve`], so a user with a fixed list never compiles a DHT.

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    net::IpAddr,
    sync::Arc,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use macula_wire::{Address, NodeId, ServiceName};

use crate::keyed::Keyed;

/// A node that serves a service, as the directory knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Provider {
    /// The provider's identity. The client uses a connection only when the peer proves this identity.
    pub node_id: NodeId,
    /// The addresses where it listens, the preferred one first.
    pub endpoints: Vec<Address>,
    /// Relative capacity, at least 1.
    pub weight: u32,
    /// The zone where it runs, if it names one.
    pub zone: Option<String>,
    /// The metadata of its record.
    pub metadata: BTreeMap<String, Bytes>,
}

impl Provider {
    /// A provider of weight 1 that listens at `endpoints`.
    #[must_use]
    pub fn new(node_id: NodeId, endpoints: impl IntoIterator<Item = Address>) -> Self {
        Self {
            node_id,
            endpoints: endpoints.into_iter().collect(),
            weight: 1,
            zone: None,
            metadata: BTreeMap::new(),
        }
    }

    /// Sets the relative capacity; 0 counts as 1.
    #[must_use]
    pub fn with_weight(mut self, weight: u32) -> Self {
        self.weight = weight.max(1);
        self
    }

    /// Sets where the provider runs.
    #[must_use]
    pub fn with_zone(mut self, zone: Option<String>) -> Self {
        self.zone = zone;
        self
    }

    /// Sets the metadata.
    #[must_use]
    pub fn with_metadata(mut self, metadata: BTreeMap<String, Bytes>) -> Self {
        self.metadata = metadata;
        self
    }
}

/// The origin of a list of providers, which the call's span shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// A list given by the user.
    Static,
    /// The directory cache.
    Cache,
    /// The DHT itself.
    Dht,
    /// The domain name system.
    Dns,
    /// A directory of the user's own.
    Custom,
}

impl Source {
    /// The source's name in spans and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Cache => "cache",
            Self::Dht => "dht",
            Self::Dns => "dns",
            Self::Custom => "custom",
        }
    }
}

/// The answer to a lookup: the providers in the directory's order, none when no node provides the service.
///
/// Return the same `Arc` while nothing has changed, so that the client has nothing to compare.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The providers, in the order that the strategy `first` uses.
    pub providers: Arc<[Provider]>,
    /// The origin of the list.
    pub source: Source,
}

/// How to resolve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ResolveOptions {
    /// Ask the directory itself and not its cache.
    pub force_refresh: bool,
    /// The peer whose call is forwarded; `None` for this node's own calls. A directory charges its work to the peer, so that peers leave
    /// it enough for this node.
    pub asker: Option<Asker>,
}

/// A peer, as a directory tells it from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Asker {
    /// Its identity.
    pub node_id: NodeId,
    /// Where its packets come from.
    pub ip: IpAddr,
}

impl Asker {
    /// The peer with this identity, whose packets come from `ip`.
    #[must_use]
    pub const fn new(node_id: NodeId, ip: IpAddr) -> Self {
        Self { node_id, ip }
    }
}

impl ResolveOptions {
    /// Sets whether the cache is skipped.
    #[must_use]
    pub const fn with_force_refresh(mut self, force: bool) -> Self {
        self.force_refresh = force;
        self
    }

    /// Sets for which peer the directory is asked.
    #[must_use]
    pub const fn with_asker(mut self, asker: Asker) -> Self {
        self.asker = Some(asker);
        self
    }
}

/// The directory gave no answer, so it is not known whether any node provides the service.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// No node of the directory answered.
    #[error("no node of the directory answered; check that a bootstrap node is running and reachable")]
    Unreachable,
    /// The directory does as much as it may for other nodes.
    #[error("this node is at its limit of lookups for other nodes; ask again later")]
    Busy,
    /// The directory is shut down.
    #[error("the directory of this node is shut down")]
    Closed,
    /// A name could not be looked up.
    #[error("a host name could not be looked up")]
    Lookup(#[source] Arc<std::io::Error>),
    /// A directory of the user's own gave no answer.
    #[error("the directory gave no answer: {0}")]
    Custom(#[source] Arc<dyn Error + Send + Sync>),
}

impl ResolveError {
    /// The error of a directory of the user's own.
    pub fn custom(cause: impl Error + Send + Sync + 'static) -> Self {
        Self::Custom(Arc::new(cause))
    }
}

/// A directory of providers.
///
/// An empty list is an answer: no node provides the service. An error means that there is no answer, and sends the call to a router.
pub trait Resolve: Send + Sync + 'static {
    /// Finds the providers of `service`.
    fn resolve<'a>(
        &'a self,
        service: &'a ServiceName,
        options: ResolveOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>>;

    /// The answer, if the directory has it without waiting. The client looks here first, which spares the common call a future. After
    /// `None`, the default, it asks with [`resolve`](Self::resolve).
    fn at_hand(&self, service: &ServiceName, options: ResolveOptions) -> Option<Resolved> {
        let _ = (service, options);
        None
    }
}

impl<R: Resolve + ?Sized> Resolve for Arc<R> {
    fn resolve<'a>(
        &'a self,
        service: &'a ServiceName,
        options: ResolveOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        (**self).resolve(service, options)
    }

    fn at_hand(&self, service: &ServiceName, options: ResolveOptions) -> Option<Resolved> {
        (**self).at_hand(service, options)
    }
}

/// A fixed list of providers.
#[derive(Debug, Clone, Default)]
pub struct StaticResolver {
    services: HashMap<ServiceName, Arc<[Provider]>, Keyed>,
}

impl StaticResolver {
    /// A directory without services.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces the providers of a service.
    #[must_use]
    pub fn with_service(mut self, service: ServiceName, providers: impl IntoIterator<Item = Provider>) -> Self {
        self.services.insert(service, providers.into_iter().collect());
        self
    }
}

impl StaticResolver {
    fn answer(&self, service: &ServiceName) -> Resolved {
        Resolved {
            providers: self.services.get(service).cloned().unwrap_or_default(),
            source: Source::Static,
        }
    }
}

impl Resolve for StaticResolver {
    fn resolve<'a>(
        &'a self,
        service: &'a ServiceName,
        _options: ResolveOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        Box::pin(std::future::ready(Ok(self.answer(service))))
    }

    fn at_hand(&self, service: &ServiceName, _options: ResolveOptions) -> Option<Resolved> {
        Some(self.answer(service))
    }
}
