//! The services that a client calls: the balancer of each, and its provider list.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use macula_select::{Balancer, BalancerConfig, Link, LocalityConfig, ProviderStats, Zone};
use macula_transport::{Connection, FoundConnection, Pool};
use macula_wire::{Address, NodeId, ServiceName};
use tokio::sync::Notify;

use super::{
    called::CalledProvider,
    link_state,
    news::{News, Teller},
    options::Defaults,
    refresh::Refresh,
};
use crate::{
    Provider,
    keyed::Keyed,
    observe::{CallStats, Meters, OTHER, PoolMeters},
};

/// Services whose health and rotation a client remembers. Beyond that it forgets a service without a running call for each new one.
pub const MAX_SERVICES: usize = 4096;

/// Services that only peers call through this client, and whose health and rotation it remembers. They are counted under [`OTHER`],
/// because peers choose the names and a recorder keeps each label for ever.
const MAX_SERVICES_FOR_PEERS: usize = 1024;

/// How often a called provider's load report is read. A provider reports once a second at most.
const LOAD_EVERY: Duration = Duration::from_millis(250);
/// The age from which on a load report is ignored.
const LOAD_AGE: Duration = Duration::from_secs(10);

/// The services a client has called.
pub(super) struct Services {
    seed: u64,
    /// How many balancers of one call were made.
    alone: AtomicU64,
    defaults: Defaults,
    services: RwLock<Known>,
    for_peers: RwLock<Known>,
    peers_meters: Arc<Meters>,
    pool_meters: Arc<PoolMeters>,
    routers: Balanced,
    pub(super) news: News,
}

type Known = HashMap<ServiceName, Arc<Service>, Keyed>;

/// A service as a client remembers it.
pub(super) struct Service {
    pub(super) balanced: Balanced,
    pub(super) meters: Arc<Meters>,
    pub(super) refresh: Refresh,
}

impl Services {
    pub(super) fn new(seed: u64, defaults: Defaults, pool: Pool) -> Self {
        let news = News::default();
        let routers = Balanced::new(&defaults, seed, news.teller(None));
        let pool_meters = Arc::new(PoolMeters::new(pool));
        Self {
            seed,
            alone: AtomicU64::new(0),
            defaults,
            services: RwLock::default(),
            for_peers: RwLock::default(),
            peers_meters: Arc::new(Meters::new(&other(), &pool_meters)),
            pool_meters,
            routers,
            news,
        }
    }

    /// The remembered state of `service`.
    pub(super) fn of(&self, service: &ServiceName) -> Arc<Service> {
        if let Some(known) = get(&self.services, service) {
            return known;
        }
        self.add(&self.services, MAX_SERVICES, service, || {
            Arc::new(Meters::new(service, &self.pool_meters))
        })
    }

    /// The remembered state of `service` for a forwarded call. It shares the state of this client's own calls, if there are any.
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
        // Another thread may have added it meanwhile.
        if let Some(known) = services.get(service) {
            return Arc::clone(known);
        }
        if services.len() >= max {
            let idle = services.iter().find(|(_, service)| Arc::strong_count(service) == 1);
            let idle = idle.map(|(name, _)| name.clone());
            idle.and_then(|name| services.remove(&name));
        }
        // Each service has its own random sequence, so callers that start together do not pick in step.
        let seed = self.seed ^ (services.len() as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let fresh = Arc::new(Service {
            balanced: Balanced::new(&self.defaults, seed, self.news.teller(Some(service))),
            meters: meters(),
            refresh: Refresh::default(),
        });
        if services.len() < max {
            services.insert(service.clone(), Arc::clone(&fresh));
        }
        fresh
    }

    /// A balancer for one call, which leaves no state. Each has a random sequence of its own.
    pub(super) fn alone(&self) -> Balanced {
        let seed = self.seed ^ self.alone.fetch_add(1, Relaxed);
        Balanced::new(&self.defaults, seed, Teller::silent())
    }

    /// The services that this client has called itself, sorted by name.
    pub(super) fn own(&self) -> Vec<(ServiceName, Arc<Service>)> {
        sorted(&self.services)
    }

    /// The calls that were forwarded for peers.
    pub(super) fn forwarded(&self) -> CallStats {
        self.peers_meters.stats()
    }

    /// The services that are remembered: first the client's own, then those called for peers, each sorted by name.
    pub(super) fn all(&self) -> Vec<(ServiceName, Arc<Service>)> {
        let mut all = sorted(&self.services);
        all.extend(sorted(&self.for_peers));
        all
    }

    /// The balancer of the routers.
    pub(super) fn routers(&self) -> &Balanced {
        &self.routers
    }
}

fn get(known: &RwLock<Known>, service: &ServiceName) -> Option<Arc<Service>> {
    let known = known.read().unwrap_or_else(PoisonError::into_inner);
    known.get(service).cloned()
}

/// By name: a table's own order is another one in each process, and work that followed it could not be repeated from a seed.
fn sorted(known: &RwLock<Known>) -> Vec<(ServiceName, Arc<Service>)> {
    let known = known.read().unwrap_or_else(PoisonError::into_inner);
    let mut all: Vec<_> = known
        .iter()
        .map(|(name, service)| (name.clone(), Arc::clone(service)))
        .collect();
    all.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    all
}

fn other() -> ServiceName {
    ServiceName::new(OTHER).unwrap_or_else(|error| unreachable!("a valid name: {error}"))
}

/// A balancer behind a lock that is held for single steps only, never across an await. Clones share it.
#[derive(Clone)]
pub(super) struct Balanced(Arc<Shared>);

/// A balancer that does not keep the balancer alive.
pub(super) struct WeakBalanced(Weak<Shared>);

struct Shared {
    roster: Mutex<Roster>,
    /// Woken when the link of a provider has changed: calls that wait look at their attempts again.
    news: Notify,
    /// Woken when a dial behind the calls is due sooner than before.
    sooner: Arc<Notify>,
    teller: Teller,
}

/// A locked roster. At the end the balancer's events are told.
pub(super) struct Locked<'a> {
    roster: MutexGuard<'a, Roster>,
    teller: &'a Teller,
}

impl Deref for Locked<'_> {
    type Target = Roster;

    fn deref(&self) -> &Roster {
        &self.roster
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Roster {
        &mut self.roster
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        while let Some(event) = self.roster.balancer.poll_event() {
            // A provider that has just left the list has no name here any more; nothing is told of it.
            let named = event.named(|member| self.roster.node(member));
            self.teller.tell(named);
        }
    }
}

/// A service's providers and the balancer that chooses among them.
pub(super) struct Roster {
    pub(super) balancer: Balancer<Member>,
    list: Arc<[Provider]>,
    /// Each listed provider's index in `peers`.
    places: HashMap<NodeId, u32, Keyed>,
    peers: Vec<Option<Peer>>,
    free: Vec<u32>,
    /// When the task that dials providers behind the calls looks next; `None` without such a task.
    pub(super) dials_at: Option<Instant>,
}

/// A provider as the balancer knows it: small, because a call copies it several times, and an index, which spares a lookup.
///
/// **Invariant:** while a provider is in the list it keeps its member, and no other provider of the list has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    place: u32,
    /// The start of the node's id, which tells the holders of one place apart.
    identity: u64,
}

/// Equality ignores `place`: a provider that left the list and returned counts as tried (F2). Two keys with the same eight bytes at
/// the start are out of reach of any search; of such a pair only the first would be called.
impl PartialEq for Member {
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

impl Eq for Member {}

impl Hash for Member {
    /// The same at every caller, so that all callers give an affinity key to one provider.
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

/// How a provider came into the list.
#[derive(Debug, Clone, Copy)]
enum Came {
    New,
    /// It was listed before, with other addresses.
    Moved,
}

/// A provider, and where the pool last had its connection.
struct Peer {
    provider: Arc<Provider>,
    found: FoundConnection,
    /// When its load report is read next.
    look_at: Option<Instant>,
    /// When it made the last report that was read.
    reported: Option<Instant>,
}

impl Balanced {
    fn new(defaults: &Defaults, seed: u64, teller: Teller) -> Self {
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
        let roster = Roster {
            balancer: Balancer::new(config, seed),
            list: Arc::default(),
            places: HashMap::default(),
            peers: Vec::new(),
            free: Vec::new(),
            dials_at: None,
        };
        Self(Arc::new(Shared {
            roster: Mutex::new(roster),
            news: Notify::new(),
            sooner: Arc::default(),
            teller,
        }))
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        Locked {
            roster: self.0.roster.lock().unwrap_or_else(PoisonError::into_inner),
            teller: &self.0.teller,
        }
    }

    /// Woken when the link of a provider has changed.
    pub(super) fn news(&self) -> &Notify {
        &self.0.news
    }

    /// Woken when a dial behind the calls is due sooner than before. Shared, so that the task that waits for it does not keep the
    /// balancer.
    pub(super) fn sooner(&self) -> &Arc<Notify> {
        &self.0.sooner
    }

    pub(super) fn downgrade(&self) -> WeakBalanced {
        WeakBalanced(Arc::downgrade(&self.0))
    }
}

impl WeakBalanced {
    pub(super) fn upgrade(&self) -> Option<Balanced> {
        self.0.upgrade().map(Balanced)
    }
}

impl Roster {
    /// Takes over a provider list, unless it is the one already there. Connections that `pool` holds to new providers count from now on.
    pub(super) fn reconcile(&mut self, providers: &Arc<[Provider]>, now: Instant, pool: &Pool) {
        if Arc::ptr_eq(&self.list, providers) {
            return;
        }
        if self.list != *providers {
            let fresh = self.place(providers);
            let candidates = providers.iter().filter_map(|provider| {
                let zone = provider.zone.as_deref().map(Zone::named);
                let member = Member::new(*self.places.get(&provider.node_id)?, &provider.node_id);
                Some(macula_select::Provider::new(member).weight(provider.weight).zone(zone))
            });
            self.balancer.update(now, candidates);
            for (member, id, came) in fresh {
                match came {
                    Came::New => self.balancer.link(now, &member, link_state::of(pool, &id)),
                    Came::Moved => {
                        if let Some((node, endpoints)) = self.peer(member) {
                            pool.moved(&node, &endpoints);
                        }
                        self.balancer.renew(now, &member);
                    }
                }
            }
        }
        self.list = Arc::clone(providers);
    }

    /// Whether a provider is to be dialed behind the calls, sooner than the task looks that does it.
    pub(super) fn wants_dial(&self) -> bool {
        let next = self.balancer.next_dial();
        next.is_some_and(|next| self.dials_at.is_none_or(|at| next < at))
    }

    /// Gives every listed provider a place; one that had a place keeps it. Returns those that are new or have other addresses.
    fn place(&mut self, providers: &[Provider]) -> Vec<(Member, NodeId, Came)> {
        let mut fresh = Vec::new();
        let mut left = std::mem::take(&mut self.places);
        for provider in providers {
            if let Some((id, place)) = left.remove_entry(&provider.node_id) {
                self.places.insert(id, place);
            }
        }
        let mut left: Vec<u32> = left.into_values().collect();
        left.sort_unstable();
        for place in left {
            self.peers[place as usize] = None;
            self.free.push(place);
        }
        for provider in providers {
            let mut came = None;
            let place = *self.places.entry(provider.node_id).or_insert_with(|| {
                came = Some(Came::New);
                self.free.pop().unwrap_or_else(|| {
                    self.peers.push(None);
                    self.peers.len() as u32 - 1
                })
            });
            let before = &self.peers[place as usize];
            if before
                .as_ref()
                .is_some_and(|peer| peer.provider.endpoints != provider.endpoints)
            {
                came = came.or(Some(Came::Moved));
            }
            if let Some(came) = came {
                let member = Member::new(place, &provider.node_id);
                fresh.push((member, provider.node_id, came));
            }
            self.peers[place as usize] = Some(Peer {
                provider: Arc::new(provider.clone()),
                found: FoundConnection::default(),
                look_at: None,
                reported: None,
            });
        }
        fresh
    }

    /// The member of a listed node.
    pub(super) fn member(&self, id: &NodeId) -> Option<Member> {
        let place = self.places.get(id)?;
        Some(Member::new(*place, id))
    }

    /// Whether any of these nodes is in the list.
    pub(super) fn lists_any<'a>(&self, nodes: impl IntoIterator<Item = &'a NodeId>) -> bool {
        nodes.into_iter().any(|node| self.places.contains_key(node))
    }

    /// The nodes of the list.
    pub(super) fn listed(&self) -> Vec<NodeId> {
        self.peers.iter().flatten().map(|peer| peer.provider.node_id).collect()
    }

    /// Tells the balancer the link of every listed provider.
    pub(super) fn tell_all(&mut self, now: Instant, link: impl Fn(&NodeId) -> Link) {
        for (place, peer) in (0..).zip(&self.peers) {
            if let Some(peer) = peer {
                let id = &peer.provider.node_id;
                self.balancer.link(now, &Member::new(place, id), link(id));
            }
        }
    }

    fn node(&self, member: Member) -> Option<NodeId> {
        Some(self.peers.get(member.place as usize)?.as_ref()?.provider.node_id)
    }

    /// The providers with their standing, in the list's order.
    pub(super) fn standing(&self) -> Vec<CalledProvider> {
        let one = |stats: ProviderStats<'_, Member>| {
            let peer = self.peers.get(stats.provider.place as usize)?.as_ref()?;
            Some(CalledProvider {
                provider: Arc::clone(&peer.provider),
                state: stats.state,
                link: stats.link,
                in_flight: stats.in_flight,
                latency: stats.latency,
                recent: stats.counts,
                consecutive_failures: stats.consecutive_failures,
                ejections: stats.ejections,
            })
        };
        self.balancer.providers().filter_map(one).collect()
    }

    /// The node behind a member, and where it listens.
    pub(super) fn peer(&self, member: Member) -> Option<(NodeId, Vec<Address>)> {
        let peer = self.peers.get(member.place as usize)?.as_ref()?;
        Some((peer.provider.node_id, peer.provider.endpoints.clone()))
    }

    /// The provider that the balancer has just chosen, and the connection to it if one is open. The provider's load report on that
    /// connection counts for the next choice.
    pub(super) fn chosen(&mut self, now: Instant, member: Member, pool: &Pool) -> (Arc<Provider>, Option<Connection>) {
        let Some(Some(peer)) = self.peers.get_mut(member.place as usize) else {
            unreachable!("the balancer chooses among the list's members");
        };
        let open = pool.open_again(&peer.provider.node_id, &mut peer.found);
        if peer.look_at.is_none_or(|at| now >= at) {
            peer.look_at = Some(now + LOAD_EVERY);
            let load = open.as_ref().and_then(|connection| peer.news(now, connection));
            if let Some(load) = load {
                self.balancer.report_load(now, &member, load);
            }
        }
        (Arc::clone(&peer.provider), open)
    }
}

impl Peer {
    /// The load that the provider reported since the last read, 0 to 1.
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
        Balanced::new(&defaults(), 1, Teller::silent())
    }

    fn id(number: u8) -> NodeId {
        NodeId::from_bytes([number; 32])
    }

    /// The members of a list, in its order, after the roster has taken it over.
    fn members(roster: &mut Roster, list: &[NodeId], pool: &Pool) -> Vec<Member> {
        let providers: Arc<[Provider]> = list.iter().map(|id| Provider::new(*id, [])).collect();
        roster.reconcile(&providers, Instant::now(), pool);
        list.iter().map(|id| Member::new(roster.places[id], id)).collect()
    }

    #[tokio::test]
    async fn a_provider_keeps_its_member_while_it_is_listed_and_no_other_ever_has_it() {
        let pool = pool().await;
        let balanced = balanced();
        let mut roster = balanced.lock();
        let [a, b, c] = [1, 2, 3].map(id);
        let before = members(&mut roster, &[a, b], &pool);
        let after = members(&mut roster, &[c, b], &pool);
        assert_eq!(after[1], before[1], "it stayed");
        assert_ne!(after[0], before[0], "the place's next holder is another member");
        assert_eq!(after[0].place, before[0].place, "places are used again");
        let back = members(&mut roster, &[b, c, a], &pool);
        assert_eq!((back[0], back[1]), (before[1], after[0]));
        assert!(
            back[2] == before[0] && back[2].place != before[0].place,
            "a call that has tried it knows it again (F2)"
        );
        assert_eq!(roster.peers.len(), 3);
        for (member, id) in back.iter().zip([b, c, a]) {
            let peer = roster.peers[member.place as usize].as_ref().unwrap();
            assert_eq!(peer.provider.node_id, id);
        }
    }

    async fn pool() -> Pool {
        let identity = macula_transport::Identity::generate().unwrap();
        let config = macula_transport::Config::new(identity).with_listen("127.0.0.1:0".parse().unwrap());
        let endpoint = macula_transport::Endpoint::bind(config, macula_transport::NoService).await;
        endpoint.unwrap().pool()
    }

    #[tokio::test]
    async fn names_that_peers_make_up_evict_no_service_that_this_client_calls() {
        let services = Services::new(1, defaults(), pool().await);
        let name = |text: String| ServiceName::new(&text).unwrap();
        let own: Vec<_> = (0..MAX_SERVICES).map(|n| name(format!("own.{n}"))).collect();
        let known: Vec<_> = own.iter().map(|name| Arc::downgrade(&services.of(name))).collect();
        for n in 0..2 * MAX_SERVICES_FOR_PEERS {
            services.for_peers(&name(format!("made.up.{n}")));
        }
        assert!(known.iter().all(|service| service.strong_count() == 1));
        assert_eq!(services.for_peers.read().unwrap().len(), MAX_SERVICES_FOR_PEERS);
        // A service that this client calls itself has one health for both kinds of calls.
        assert!(Arc::ptr_eq(&services.of(&own[0]), &services.for_peers(&own[0])));
    }

    #[tokio::test]
    async fn a_list_that_names_a_provider_twice_has_it_once() {
        let pool = pool().await;
        let balanced = balanced();
        let mut roster = balanced.lock();
        let [a, b] = [1, 2].map(id);
        let twice = members(&mut roster, &[a, b, a], &pool);
        assert_eq!(twice[0], twice[2]);
        assert_eq!((roster.peers.len(), roster.balancer.len()), (2, 2));
    }
}
