//! The balancer of each service, and the provider list it goes by.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
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

/// Services that this client passes calls of peers on to, and has not called itself, of which it remembers as much.
const MAX_SERVICES_FOR_PEERS: usize = 1024;

/// What calls of such services are counted as: the names are whatever peers make up, and a recorder keeps each for ever.
const FOR_PEERS: &str = "_OTHER";

/// How often a provider's report of its load is looked at while it is called; it makes one a second at most.
const LOAD_EVERY: Duration = Duration::from_millis(250);
/// A report that is older than this says nothing any more.
const LOAD_AGE: Duration = Duration::from_secs(10);

/// The services a client has called.
pub(super) struct Services {
    seed: u64,
    defaults: Defaults,
    services: RwLock<Known>,
    for_peers: RwLock<Known>,
    peers_meters: Arc<Meters>,
    routers: Balanced,
}

type Known = HashMap<ServiceName, Arc<Service>, Keyed>;

/// What a client remembers of a service.
pub(super) struct Service {
    pub(super) balanced: Balanced,
    pub(super) meters: Arc<Meters>,
}

impl Services {
    pub(super) fn new(seed: u64, defaults: Defaults) -> Self {
        let routers = Balanced::new(&defaults, seed);
        Self {
            seed,
            defaults,
            services: RwLock::default(),
            for_peers: RwLock::default(),
            peers_meters: Arc::new(Meters::new(&other())),
            routers,
        }
    }

    /// What is remembered of `service`.
    pub(super) fn of(&self, service: &ServiceName) -> Arc<Service> {
        if let Some(known) = get(&self.services, service) {
            return known;
        }
        self.add(&self.services, MAX_SERVICES, service, || Arc::new(Meters::new(service)))
    }

    /// What is remembered of `service` for a call of a peer that is passed on: as little as its name is worth, unless this client
    /// calls it, too.
    pub(super) fn for_peers(&self, service: &ServiceName) -> Arc<Service> {
        let known = get(&self.services, service).or_else(|| get(&self.for_peers, service));
        known.unwrap_or_else(|| {
            self.add(&self.for_peers, MAX_SERVICES_FOR_PEERS, service, || {
                Arc::clone(&self.peers_meters)
            })
        })
    }

    fn add(
        &self,
        services: &RwLock<Known>,
        max: usize,
        service: &ServiceName,
        meters: impl FnOnce() -> Arc<Meters>,
    ) -> Arc<Service> {
        let mut services = services.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have been faster.
        if let Some(known) = services.get(service) {
            return Arc::clone(known);
        }
        if services.len() >= max {
            // One makes room, not all.
            let idle = services.iter().find(|(_, service)| Arc::strong_count(service) == 1);
            let idle = idle.map(|(name, _)| name.clone());
            idle.and_then(|name| services.remove(&name));
        }
        // Each service its own sequence: callers that start together do not pick in step.
        let seed = self.seed ^ (services.len() as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let fresh = Arc::new(Service {
            balanced: Balanced::new(&self.defaults, seed),
            meters: meters(),
        });
        if services.len() < max {
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

/// Callers on other threads read at the same time.
fn get(known: &RwLock<Known>, service: &ServiceName) -> Option<Arc<Service>> {
    let known = known.read().unwrap_or_else(PoisonError::into_inner);
    known.get(service).cloned()
}

fn other() -> ServiceName {
    ServiceName::new(FOR_PEERS).unwrap_or_else(|error| unreachable!("a good name: {error}"))
}

/// A balancer behind a lock that is held for single steps only, never across an await.
pub(super) struct Balanced {
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) balancer: Balancer<Member>,
    list: Arc<[Provider]>,
    /// Where each provider of the list stands in `peers`.
    places: HashMap<NodeId, u32, Keyed>,
    peers: Vec<Option<Peer>>,
    free: Vec<u32>,
}

/// A provider as the balancer knows it: small, because a call copies it several times, and found without a lookup.
///
/// **Invariant:** while a provider is in the list it keeps its member, and no other provider of the list has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    place: u32,
    /// The start of the node's id: the place's next holder is another member.
    identity: u64,
}

/// Whatever their places: who leaves the list and comes back is known to the calls that have tried it (F2). Keys that start alike
/// are beyond what anybody can search for; a list that had two has the first of them.
impl PartialEq for Member {
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

impl Eq for Member {}

impl Hash for Member {
    /// The same at every caller, or they would not agree whom an affinity key belongs to.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.identity);
    }
}

impl Member {
    fn new(place: u32, id: &NodeId) -> Self {
        let mut start = [0; 8];
        start.copy_from_slice(&id.as_bytes()[..8]);
        Self {
            place,
            identity: u64::from_le_bytes(start),
        }
    }
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
            places: HashMap::default(),
            peers: Vec::new(),
            free: Vec::new(),
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
            self.place(providers);
            let candidates = providers.iter().filter_map(|provider| {
                let zone = provider.zone.as_deref().map(Zone::named);
                let member = Member::new(*self.places.get(&provider.node_id)?, &provider.node_id);
                Some(macula_select::Provider::new(member).weight(provider.weight).zone(zone))
            });
            self.balancer.update(now, candidates);
        }
        self.list = Arc::clone(providers);
    }

    /// Gives every provider of the list its place, those that had one the same.
    fn place(&mut self, providers: &[Provider]) {
        let mut left = std::mem::take(&mut self.places);
        for provider in providers {
            if let Some((id, place)) = left.remove_entry(&provider.node_id) {
                self.places.insert(id, place);
            }
        }
        for place in left.into_values() {
            self.peers[place as usize] = None;
            self.free.push(place);
        }
        for provider in providers {
            let place = *self.places.entry(provider.node_id).or_insert_with(|| {
                self.free.pop().unwrap_or_else(|| {
                    self.peers.push(None);
                    self.peers.len() as u32 - 1
                })
            });
            self.peers[place as usize] = Some(Peer {
                provider: Arc::new(provider.clone()),
                found: FoundConnection::default(),
                look_at: None,
                reported: None,
            });
        }
    }

    /// The provider that this member is, and the connection to it if one is open; `None` once it has left the list. What it says
    /// of its load on that connection is taken in for the next choice.
    pub(super) fn provider(
        &mut self,
        now: Instant,
        member: Member,
        pool: &Pool,
    ) -> Option<(Arc<Provider>, Option<Connection>)> {
        let peer = self.peers.get_mut(member.place as usize)?.as_mut()?;
        let open = pool.open_again(&peer.provider.node_id, &mut peer.found);
        if peer.look_at.is_none_or(|at| now >= at) {
            peer.look_at = Some(now + LOAD_EVERY);
            let load = open.as_ref().and_then(|connection| peer.news(now, connection));
            if let Some(load) = load {
                self.balancer.report_load(now, &member, load);
            }
        }
        Some((Arc::clone(&peer.provider), open))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{DEFAULT_ATTEMPT_TIMEOUT, DEFAULT_TIMEOUT};

    fn defaults() -> Defaults {
        Defaults {
            strategy: macula_select::Strategy::First,
            timeout: DEFAULT_TIMEOUT,
            attempt_timeout: DEFAULT_ATTEMPT_TIMEOUT,
            stream_attempt_timeout: None,
            zone: None,
            budget: macula_select::BudgetConfig::default(),
        }
    }

    fn balanced() -> Balanced {
        Balanced::new(&defaults(), 1)
    }

    fn id(number: u8) -> NodeId {
        NodeId::from_bytes([number; 32])
    }

    /// The members of a list, in its order, after the state has taken it over.
    fn members(state: &mut State, list: &[NodeId]) -> Vec<Member> {
        let providers: Arc<[Provider]> = list.iter().map(|id| Provider::new(*id, [])).collect();
        state.reconcile(&providers, Instant::now());
        list.iter().map(|id| Member::new(state.places[id], id)).collect()
    }

    #[test]
    fn a_provider_keeps_its_member_while_it_is_listed_and_no_other_ever_has_it() {
        let balanced = balanced();
        let mut state = balanced.lock();
        let [a, b, c] = [1, 2, 3].map(id);
        let before = members(&mut state, &[a, b]);
        let after = members(&mut state, &[c, b]);
        assert_eq!(after[1], before[1], "it stayed");
        assert_ne!(after[0], before[0], "the place's next holder is another member");
        assert_eq!(after[0].place, before[0].place, "places are used again");
        let back = members(&mut state, &[b, c, a]);
        assert_eq!((back[0], back[1]), (before[1], after[0]));
        assert!(
            back[2] == before[0] && back[2].place != before[0].place,
            "a call that has tried it knows it again (F2)"
        );
        assert_eq!(state.peers.len(), 3);
        for (member, id) in back.iter().zip([b, c, a]) {
            let peer = state.peers[member.place as usize].as_ref().unwrap();
            assert_eq!(peer.provider.node_id, id);
        }
    }

    #[test]
    fn names_that_peers_make_up_cost_nothing_of_what_is_known_of_ones_own() {
        let services = Services::new(1, defaults());
        let name = |text: String| ServiceName::new(&text).unwrap();
        let own: Vec<_> = (0..MAX_SERVICES).map(|n| name(format!("own.{n}"))).collect();
        let known: Vec<_> = own.iter().map(|name| Arc::downgrade(&services.of(name))).collect();
        for n in 0..2 * MAX_SERVICES_FOR_PEERS {
            services.for_peers(&name(format!("made.up.{n}")));
        }
        assert!(known.iter().all(|service| service.strong_count() == 1));
        assert_eq!(services.for_peers.read().unwrap().len(), MAX_SERVICES_FOR_PEERS);
        // What this client calls, too, has one health, whoever it is called for.
        assert!(Arc::ptr_eq(&services.of(&own[0]), &services.for_peers(&own[0])));
    }

    #[test]
    fn a_list_that_names_a_provider_twice_has_it_once() {
        let balanced = balanced();
        let mut state = balanced.lock();
        let [a, b] = [1, 2].map(id);
        let twice = members(&mut state, &[a, b, a]);
        assert_eq!(twice[0], twice[2]);
        assert_eq!((state.peers.len(), state.balancer.len()), (2, 2));
    }
}
