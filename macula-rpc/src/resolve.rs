//! Where the providers of a service come from.
//!
//! The client knows discovery only through [`Resolve`], so a user with a fixed list never compiles a DHT.

use std::{
    collections::{BTreeMap, HashMap},
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
    /// The provider's identity: the connection is refused unless the peer proves it.
    pub node_id: NodeId,
    /// Where it listens, the preferred endpoint first.
    pub endpoints: Vec<Address>,
    /// Relative capacity, at least 1.
    pub weight: u32,
    /// Where it runs, when it says so.
    pub zone: Option<String>,
    /// What it says of itself.
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

/// What answered a resolution; it stands in the call's span.
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
        }
    }
}

/// The answer to a resolution: the providers in the directory's order, none when the service is not provided.
///
/// Answers are shared: give the same `Arc` while nothing has changed, and the client has nothing to reconcile.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The providers, in the order that `first` goes by.
    pub providers: Arc<[Provider]>,
    /// What answered.
    pub source: Source,
}

/// How to resolve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ResolveOptions {
    /// Ask the directory itself, not its cache.
    pub force_refresh: bool,
}

impl ResolveOptions {
    /// Sets whether the cache is passed over.
    #[must_use]
    pub const fn with_force_refresh(mut self, force: bool) -> Self {
        self.force_refresh = force;
        self
    }
}

/// The directory gave no answer: whether the service is provided is not known.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// No node of the directory answered.
    #[error("no node of the directory answered; check that a bootstrap node is running and reachable")]
    Unreachable,
    /// The directory is shut down.
    #[error("the directory of this node is shut down")]
    Closed,
    /// A name could not be looked up.
    #[error("a host name could not be looked up")]
    Lookup(#[source] Arc<std::io::Error>),
}

/// A directory of providers.
///
/// "No provider" is an answer (an empty list); an error means that there is no answer, and sends the call to a router.
pub trait Resolve: Send + Sync + 'static {
    /// Finds the providers of `service`.
    fn resolve<'a>(
        &'a self,
        service: &'a ServiceName,
        options: ResolveOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>>;

    /// The answer, when it is at hand and no waiting is needed, which spares the usual call a future. The client looks here
    /// first. `None`, the default, says that it has to [`resolve`](Self::resolve).
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

/// Providers known beforehand.
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
