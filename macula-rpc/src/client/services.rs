//! The balancer of each service, and the provider list it goes by.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use macula_select::{Balancer, BalancerConfig, LocalityConfig, Zone};
use macula_transport::{Connection, FoundConnection, Pool};
use macula_wire::{NodeId, ServiceName};

use super::Defaults;
use crate::{Provider, keyed::Keyed, observe::Meters};

/// Services whose health and rotation are remembered at a time; a client that calls more of them forgets one that has no
/// call running.
pub const MAX_SERVICES: usize = 4096;

/// How often a provider's report of its load is looked at while it is called; it makes one a second at most.
const LOAD_EVERY: Duration = Duration::from_millis(250);
/// A report that is older than this says nothing any more.
const LOAD_AGE: Duration = Duration::from_secs(10);

/// The services a client has called.
pub(super) struct Services {
    seed: u64,
    defaults: Defaults,
    services: Mutex<HashMap<ServiceName, Arc<Service>, Keyed>>,
    routers: Balanced,
}

/// What a client remembers of a service.
pub(super) struct Service {
    pub(super) balanced: Balanced,
    pub(super) meters: Meters,
}

impl Services {
    pub(super) fn new(seed: u64, defaults: Defaults) -> Self {
        let routers = Balanced::new(&defaults, seed);
        Self {
            seed,
            defaults,
            services: Mutex::default(),
            routers,
        }
    }

    /// What is remembered of `service`.
    pub(super) fn of(&self, service: &ServiceName) -> Arc<Service> {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = services.get(service) {
            return Arc::clone(known);
        }
        if services.len() >= MAX_SERVICES {
            // One makes room, not all: names that peers make up must not cost this client what it knows.
            let idle = services.iter().find(|(_, service)| Arc::strong_count(service) == 1);
            let idle = idle.map(|(name, _)| name.clone());
            idle.and_then(|name| services.remove(&name));
        }
        // Each service its own sequence: callers that start together do not pick in step.
        let seed = self.seed ^ (services.len() as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let fresh = Arc::new(Service {
            balanced: Balanced::new(&self.defaults, seed),
            meters: Meters::new(service),
        });
        if services.len() < MAX_SERVICES {
            services.insert(service.clone(), Arc::clone(&fresh));
        }
        fresh
    }

    /// A balancer for one call, of which nothing is remembered.
    pub(super) fn alone(&self) -> Balanced {
        Balanced::new(&self.defaults, self.seed)
    }

    /// The balancer of the routers.
    pub(super) fn routers(&self) -> &Balanced {
        &self.routers
    }
}

/// A balancer behind a lock that is held for single steps only, never across an await.
pub(super) struct Balanced {
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) balancer: Balancer<NodeId>,
    list: Arc<[Provider]>,
    by_id: HashMap<NodeId, Peer, Keyed>,
}

/// A provider, and where the connection to it was found last.
struct Peer {
    provider: Arc<Provider>,
    found: FoundConnection,
    /// When its load is looked at next.
    look_at: Option<Instant>,
    /// When it made the last report that was taken in.
    reported: Option<Instant>,
}

impl Balanced {
    fn new(defaults: &Defaults, seed: u64) -> Self {
        let locality = LocalityConfig {
            zone: defaults.zone,
            ..LocalityConfig::default()
        };
        let config = BalancerConfig {
            strategy: defaults.strategy,
            locality,
            budget: defaults.budget,
            ..BalancerConfig::default()
        };
        let state = State {
            balancer: Balancer::new(config, seed),
            list: Arc::default(),
            by_id: HashMap::default(),
        };
        Self {
            state: Mutex::new(state),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes over a provider list, unless it is the one already there.
    pub(super) fn reconcile(&mut self, providers: &Arc<[Provider]>, now: Instant) {
        if Arc::ptr_eq(&self.list, providers) {
            return;
        }
        if self.list != *providers {
            let candidates = providers.iter().map(|provider| {
                let zone = provider.zone.as_deref().map(Zone::named);
                macula_select::Provider::new(provider.node_id)
                    .weight(provider.weight)
                    .zone(zone)
            });
            self.balancer.update(now, candidates);
            let peer = |provider: &Provider| Peer {
                provider: Arc::new(provider.clone()),
                found: FoundConnection::default(),
                look_at: None,
                reported: None,
            };
            self.by_id = providers.iter().map(|it| (it.node_id, peer(it))).collect();
        }
        self.list = Arc::clone(providers);
    }

    /// The provider with this id, as the list has it, and the connection to it if one is open. What it says of its load on that
    /// connection is taken in for the next choice.
    pub(super) fn provider(&mut self, now: Instant, id: &NodeId, pool: &Pool) -> (Arc<Provider>, Option<Connection>) {
        match self.by_id.get_mut(id) {
            Some(peer) => {
                let open = pool.open_again(id, &mut peer.found);
                if peer.look_at.is_none_or(|at| now >= at) {
                    peer.look_at = Some(now + LOAD_EVERY);
                    let load = open.as_ref().and_then(|connection| peer.news(now, connection));
                    if let Some(load) = load {
                        self.balancer.report_load(now, id, load);
                    }
                }
                (Arc::clone(&peer.provider), open)
            }
            // The balancer's keys are the list's; one without an endpoint would fail to be dialed.
            None => (Arc::new(Provider::new(*id, [])), None),
        }
    }
}

impl Peer {
    /// How busy the provider says it is, 0 to 1, when it has said so since this was asked last.
    fn news(&mut self, now: Instant, connection: &Connection) -> Option<f64> {
        let (load, at) = connection.load()?;
        let fresh = self.reported != Some(at) && now.saturating_duration_since(at) < LOAD_AGE;
        self.reported = Some(at);
        fresh.then(|| load.share())
    }
}
