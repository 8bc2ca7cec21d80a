//! A client's state, which its calls share.

use std::{
    sync::{Arc, Mutex, Weak, atomic::AtomicBool},
    time::{Duration, Instant},
};

#[cfg(feature = "tonic")]
use macula_transport::Limits;
use macula_transport::{Access, Pool, PoolEvents};
use macula_wire::ServiceName;

use super::{
    options::{Defaults, Options},
    services::Services,
};
use crate::{CallError, Propagate, Provider, Resolve, Server};

/// Calls services by name. Cheap to clone; clones share connections, provider health and rotation.
#[derive(Clone)]
pub struct Client {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) pool: Pool,
    /// This node's rights, for the calls that it runs itself.
    pub(super) access: Access,
    pub(super) resolver: Arc<dyn Resolve>,
    pub(super) routers: Option<Arc<dyn Routers>>,
    pub(super) local: Option<Server>,
    /// Answers questions about the services of `local`.
    pub(super) inspection: Option<Server>,
    pub(super) services: Services,
    pub(super) defaults: Defaults,
    pub(super) propagate: Option<Arc<dyn Propagate>>,
    /// A task tells the balancers of the pool's connections.
    pub(super) follows_links: AtomicBool,
    /// The pool's news since the client was built, until that task takes them.
    pub(super) pool_events: Mutex<Option<PoolEvents>>,
}

/// The nodes that forward a call when the directory gives no answer: the bootstrap nodes that this node is connected to.
pub trait Routers: Send + Sync + 'static {
    /// The routers to ask, the best first.
    fn routers(&self) -> Vec<Provider>;
}

/// A client that does not keep the client alive.
#[derive(Clone)]
pub(crate) struct WeakClient(Weak<Shared>);

impl WeakClient {
    pub(crate) fn upgrade(&self) -> Option<Client> {
        self.0.upgrade().map(|shared| Client { shared })
    }
}

impl Client {
    /// Whether this process answers a call of `service` itself.
    pub(super) fn serves_here(&self, service: &ServiceName, options: &Options) -> bool {
        self.server_here(service, options).is_some()
    }

    /// The server of this process that answers a call of `service`.
    pub(super) fn server_here(&self, service: &ServiceName, options: &Options) -> Option<&Server> {
        let local = self.shared.local.as_ref()?;
        if let Some(about) = &options.about
            && !local.serves(about)
        {
            return None;
        }
        let inspection = self.shared.inspection.as_ref().filter(|_| options.about.is_some());
        // A service of the application's own goes first.
        [Some(local), inspection]
            .into_iter()
            .flatten()
            .find(|server| server.serves(service))
    }

    /// The limits of the endpoint that this client calls from.
    #[cfg(feature = "tonic")]
    pub(crate) fn limits(&self) -> &Limits {
        self.shared.pool.limits()
    }

    pub(crate) fn downgrade(&self) -> WeakClient {
        WeakClient(Arc::downgrade(&self.shared))
    }
}

/// The time on the clock that calls are timed by, which tests may pause.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

pub(super) fn late(service: &ServiceName, allowed: Duration) -> CallError {
    CallError::DeadlineExceeded {
        service: service.clone(),
        allowed,
        attempts: Vec::new(),
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("defaults", &self.shared.defaults)
            .finish_non_exhaustive()
    }
}
