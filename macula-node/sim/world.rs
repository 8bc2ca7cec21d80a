//! The simulated mesh, and the faults that it performs.

use std::{
    collections::BTreeSet,
    error::Error,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use macula_node::{BootstrapAddr, Node, PoolConfig, SimulatedClock};
use macula_transport::{
    Identity,
    testing::{LinkConditions, Network},
};
use macula_wire::{Address, MIN_TTL, SecretKey, ServiceName};

use crate::{
    fault::{Fault, Kind},
    random::Random,
    services::{Provider, STREAM, STUB, UNARY},
    stranger::Stranger,
    truth::{Life, Trouble, Truth, Withdrawn},
};

/// How long provider records are valid: as short as may be, so that a run sees them end.
pub(super) const TTL: Duration = MIN_TTL;

/// The first nodes of the directory: where others get in, and what passes calls on when the directory gives no answer.
pub(super) const ROUTERS: usize = 2;

/// The most connections of a caller: enough for every living node of a small mesh, but not for dead ones as well.
pub(super) const MAX_CONNECTIONS: usize = 8;

const LATENCY: Duration = Duration::from_millis(10);
const JITTER: Duration = Duration::from_millis(5);

/// What a node does in the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Keeps a part of the directory; the first two are where others get in.
    Directory,
    Provider,
    /// Calls, and stands in no routing table.
    Caller,
}

/// The part of the node of this number: three in ten keep the directory, four provide, and three call.
pub(super) fn part_of(n: usize, nodes: usize) -> Part {
    let (callers, providers) = (nodes * 3 / 10, nodes * 4 / 10);
    match nodes - n {
        left if left <= callers => Part::Caller,
        left if left <= callers + providers => Part::Provider,
        _ => Part::Directory,
    }
}

struct Member {
    part: Part,
    addr: SocketAddr,
    identity: Identity,
    clock: SimulatedClock,
    /// How far its wall clock is ahead, in milliseconds.
    ahead_ms: i64,
    /// What is wrong with its handlers.
    wrong: Arc<Mutex<Vec<Kind>>>,
    node: Option<Node>,
    /// The number of its life, while it runs.
    life: usize,
}

pub(super) struct World {
    network: Network,
    truth: Truth,
    members: Vec<Member>,
    /// The faults of links and ways that last.
    active: Vec<Fault>,
    cuts: BTreeSet<(SocketAddr, SocketAddr)>,
    random: Random,
    stranger: Option<Stranger>,
    /// How many addresses have been given.
    addresses: u16,
    rates: Vec<Arc<Mutex<u32>>>,
}

/// The services, by name.
pub(super) fn services() -> Vec<ServiceName> {
    [UNARY, STREAM, STUB]
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect()
}

impl World {
    pub(super) async fn start(network: Network, truth: Truth, nodes: usize, seed: u64) -> Result<Self, Box<dyn Error>> {
        let mut world = Self {
            network: network
                .clone()
                .with_link(LinkConditions::new(LATENCY).with_jitter(JITTER)),
            truth,
            members: Vec::new(),
            active: Vec::new(),
            cuts: BTreeSet::new(),
            random: Random::new(seed),
            stranger: None,
            addresses: 0,
            rates: (0..nodes).map(|_| Arc::new(Mutex::new(1))).collect(),
        };
        for n in 0..nodes {
            let member = Member {
                part: part_of(n, nodes),
                addr: world.new_address(),
                identity: world.new_identity(),
                clock: SimulatedClock::new(),
                ahead_ms: 0,
                wrong: Arc::default(),
                node: None,
                life: 0,
            };
            world.members.push(member);
        }
        for n in 0..nodes {
            world.begin(n).await?;
        }
        Ok(world)
    }

    fn new_address(&mut self) -> SocketAddr {
        self.addresses += 1;
        let [high, low] = self.addresses.to_be_bytes();
        ([10, 0, high, low], 9443).into()
    }

    fn new_identity(&mut self) -> Identity {
        let mut secret = [0; SecretKey::LEN];
        for word in secret.chunks_exact_mut(8) {
            word.copy_from_slice(&self.random.next().to_le_bytes());
        }
        Identity::from_secret(SecretKey::from_bytes(&secret))
    }

    /// The nodes that run, with their numbers.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (usize, Part, &Node)> {
        let members = self.members.iter().enumerate();
        members.filter_map(|(n, member)| Some((n, member.part, member.node.as_ref()?)))
    }

    /// How many times as often as usual a caller calls.
    pub(super) fn rate(&self, n: usize) -> Arc<Mutex<u32>> {
        Arc::clone(&self.rates[n])
    }

    /// Starts a node.
    async fn begin(&mut self, n: usize) -> Result<(), Box<dyn Error>> {
        let bootstrap = self.members[..ROUTERS].iter().enumerate().filter(|(at, _)| *at != n);
        let bootstrap = bootstrap.map(|(_, member)| -> Result<BootstrapAddr, Box<dyn Error>> {
            Ok(BootstrapAddr::from(Address::try_from(member.addr)?))
        });
        let bootstrap = bootstrap.collect::<Result<Vec<_>, _>>()?;
        let seed = self.random.next();
        let life = self.new_life(n)?;
        let member = &mut self.members[n];
        member.life = life;
        let builder = Node::builder()
            .network(&self.network)
            .clock(&member.clock)
            .identity(member.identity.clone())
            .listen(member.addr)
            .ttl(TTL)
            .bootstrap(bootstrap)
            .calls(move |client| client.seed(seed));
        let builder = match member.part {
            Part::Directory => builder,
            Part::Caller => builder.client().transport(|config| {
                config.with_pool(PoolConfig {
                    max_connections: MAX_CONNECTIONS,
                    ..PoolConfig::default()
                })
            }),
            Part::Provider => Provider {
                truth: self.truth.clone(),
                life: member.life,
                seed,
                wrong: Arc::clone(&member.wrong),
            }
            .serve(builder),
        };
        member.node = Some(builder.start().await?);
        Ok(())
    }

    /// The number of the life that a node is about to begin.
    fn new_life(&self, n: usize) -> Result<usize, Box<dyn Error>> {
        let member = &self.members[n];
        // A process that had the address before has lost it.
        self.network.kill(member.addr);
        let id = member.identity.node_id();
        let from = self.truth.now();
        let mut facts = self.truth.facts();
        facts.places.insert((id, Address::try_from(member.addr)?));
        for withdrawn in facts.withdrawn.iter_mut().filter(|it| it.id == id) {
            withdrawn.to.get_or_insert(from);
        }
        facts.lives.push(Life {
            member: n,
            id,
            from,
            to: None,
        });
        Ok(facts.lives.len() - 1)
    }

    /// A node has no life any more.
    fn end_life(&mut self, n: usize) -> Option<Node> {
        let node = self.members[n].node.take()?;
        let now = self.truth.now();
        self.truth.facts().lives[self.members[n].life].to = Some(now);
        Some(node)
    }

    /// Ends a node without a word.
    fn kill(&mut self, n: usize) {
        self.network.kill(self.members[n].addr);
        drop(self.end_life(n));
    }

    /// Ends a node in order, in a task of its own.
    fn leave(&mut self, n: usize) {
        let (truth, life) = (self.truth.clone(), self.members[n].life);
        if let Some(node) = self.members[n].node.take() {
            tokio::spawn(async move {
                node.shutdown().await;
                let now = truth.now();
                truth.facts().lives[life].to = Some(now);
            });
        }
    }

    fn trouble(&mut self, fault: &Fault) {
        let from = self.truth.now();
        let mut facts = self.truth.facts();
        for &member in &fault.who {
            facts.troubles.push(Trouble {
                member,
                kind: fault.kind,
                from,
                to: None,
            });
        }
    }

    fn trouble_ends(&mut self, fault: &Fault) {
        let now = self.truth.now();
        let mut facts = self.truth.facts();
        for &member in &fault.who {
            let open = facts.troubles.iter_mut();
            let mut open = open.filter(|it| it.member == member && it.kind == fault.kind && it.to.is_none());
            if let Some(trouble) = open.next() {
                trouble.to = Some(now);
            }
        }
    }

    /// Begins a fault.
    pub(super) async fn strike(&mut self, fault: &Fault) -> Result<(), Box<dyn Error>> {
        self.network.note(format_args!("strike {fault}"));
        self.trouble(fault);
        self.active.push(fault.clone());
        for &n in &fault.who {
            self.strike_one(n, fault.kind).await?;
        }
        if fault.kind == Kind::Forge {
            let targets: Vec<Node> = self
                .nodes()
                .filter(|(_, part, _)| *part != Part::Caller)
                .map(|(_, _, node)| node.clone())
                .collect();
            let secret = self.new_identity();
            self.stranger = Some(Stranger::start(&self.network, secret, &targets).await?);
        }
        self.set_links();
        Ok(())
    }

    async fn strike_one(&mut self, n: usize, kind: Kind) -> Result<(), Box<dyn Error>> {
        let addr = self.members[n].addr;
        match kind {
            Kind::Kill => self.kill(n),
            Kind::Lose => {
                self.kill(n);
                self.members[n].identity = self.new_identity();
            }
            Kind::Move => {
                self.kill(n);
                self.members[n].addr = self.new_address();
            }
            Kind::Restart => self.leave(n),
            Kind::Replace => {
                self.leave(n);
                self.members[n].addr = self.new_address();
                self.members[n].identity = self.new_identity();
                self.begin(n).await?;
            }
            Kind::SkewAhead(_) | Kind::SkewBehind(_) => {
                self.kill(n);
                self.set_clock(n, Some(kind));
                self.begin(n).await?;
            }
            Kind::Ahead(_) | Kind::Behind(_) => self.set_clock(n, Some(kind)),
            Kind::Rebind => {
                let to = self.new_address();
                self.network.move_host(addr, to);
                self.members[n].addr = to;
                let id = self.members[n].identity.node_id();
                self.truth.facts().places.insert((id, Address::try_from(to)?));
            }
            Kind::Pause => self.network.pause(addr),
            Kind::Slow(_) | Kind::Hang | Kind::Fail | Kind::Lie => {
                lock(&self.members[n].wrong).push(kind);
            }
            Kind::Withdraw => self.withdraw(n),
            Kind::Burst(by) => *lock(&self.rates[n]) = by,
            Kind::Part
            | Kind::Deaf
            | Kind::Mute
            | Kind::Delay(_)
            | Kind::Loss(_)
            | Kind::Reorder(_)
            | Kind::Duplicate(_)
            | Kind::Corrupt(_)
            | Kind::Bandwidth(_)
            | Kind::Forge => {}
        }
        Ok(())
    }

    /// Ends a fault.
    pub(super) async fn heal(&mut self, fault: &Fault) -> Result<(), Box<dyn Error>> {
        self.network.note(format_args!("heal {fault}"));
        for &n in &fault.who {
            self.heal_one(n, fault.kind).await?;
        }
        if fault.kind == Kind::Forge {
            self.stranger = None;
        }
        remove(&mut self.active, fault);
        self.set_links();
        self.trouble_ends(fault);
        Ok(())
    }

    async fn heal_one(&mut self, n: usize, kind: Kind) -> Result<(), Box<dyn Error>> {
        let addr = self.members[n].addr;
        match kind {
            Kind::Kill | Kind::Lose | Kind::Move | Kind::Restart => {
                if self.members[n].node.is_none() {
                    self.begin(n).await?;
                }
            }
            Kind::SkewAhead(_) | Kind::SkewBehind(_) | Kind::Ahead(_) | Kind::Behind(_) => self.set_clock(n, None),
            Kind::Pause => self.network.resume(addr),
            Kind::Slow(_) | Kind::Hang | Kind::Fail | Kind::Lie => remove(&mut lock(&self.members[n].wrong), &kind),
            Kind::Withdraw => self.provide_again(n),
            Kind::Burst(_) => *lock(&self.rates[n]) = 1,
            Kind::Part
            | Kind::Deaf
            | Kind::Mute
            | Kind::Delay(_)
            | Kind::Loss(_)
            | Kind::Reorder(_)
            | Kind::Duplicate(_)
            | Kind::Corrupt(_)
            | Kind::Bandwidth(_)
            | Kind::Rebind
            | Kind::Replace
            | Kind::Forge => {}
        }
        Ok(())
    }

    fn set_clock(&mut self, n: usize, wrong: Option<Kind>) {
        let ahead_ms = match wrong {
            Some(Kind::Ahead(by) | Kind::SkewAhead(by)) => i64::from(by) * 1_000,
            Some(Kind::Behind(by) | Kind::SkewBehind(by)) => i64::from(by) * -1_000,
            _ => 0,
        };
        let member = &mut self.members[n];
        member.clock.step(ahead_ms - member.ahead_ms);
        member.ahead_ms = ahead_ms;
    }

    fn withdraw(&mut self, n: usize) {
        let Some(node) = self.members[n].node.clone() else {
            return;
        };
        let (id, truth) = (node.id(), self.truth.clone());
        let mut facts = truth.facts();
        let number = facts.withdrawn.len();
        facts.withdrawn.push(Withdrawn {
            id,
            from: None,
            to: None,
        });
        drop(facts);
        tokio::spawn(async move {
            futures::future::join_all(services().iter().map(|service| node.withdraw(service))).await;
            let now = truth.now();
            truth.facts().withdrawn[number].from = Some(now);
        });
    }

    /// The node provides its services again.
    fn provide_again(&mut self, n: usize) {
        let Some(node) = self.members[n].node.clone() else {
            return;
        };
        let truth = self.truth.clone();
        let provider = Provider {
            truth: truth.clone(),
            life: self.members[n].life,
            seed: self.random.next(),
            wrong: Arc::clone(&self.members[n].wrong),
        };
        let (id, now) = (node.id(), truth.now());
        for withdrawn in truth.facts().withdrawn.iter_mut().filter(|it| it.id == id) {
            withdrawn.to.get_or_insert(now);
        }
        tokio::spawn(async move { provider.serve_on(&node).await });
    }

    /// Applies the current faults to the path from each node to each other.
    fn set_links(&mut self) {
        let mut cuts = BTreeSet::new();
        for (a, one) in self.members.iter().enumerate() {
            for (b, other) in self.members.iter().enumerate().filter(|(b, _)| *b != a) {
                let mut link = LinkConditions::new(LATENCY).with_jitter(JITTER);
                for fault in &self.active {
                    let (from, to) = (fault.who.contains(&a), fault.who.contains(&b));
                    if cuts_way(fault.kind, from, to) {
                        cuts.insert((one.addr, other.addr));
                    }
                    if from || to {
                        link = changed(link, fault.kind);
                    }
                }
                self.network.set_link_one_way(one.addr, other.addr, Some(link));
            }
        }
        for (from, to) in self.cuts.difference(&cuts) {
            self.network.restore_one_way(*from, *to);
        }
        for (from, to) in cuts.difference(&self.cuts) {
            self.network.cut_one_way(*from, *to);
        }
        self.cuts = cuts;
    }

    /// Ends everything in order.
    pub(super) async fn end(mut self) {
        self.stranger = None;
        let nodes: Vec<Node> = (0..self.members.len()).filter_map(|n| self.end_life(n)).collect();
        futures::future::join_all(nodes.iter().map(Node::shutdown)).await;
    }
}

/// Whether the fault drops datagrams from one node to another, by which of the two have the fault. Nodes that both have it hear each
/// other.
fn cuts_way(kind: Kind, from: bool, to: bool) -> bool {
    match kind {
        Kind::Part => from != to,
        Kind::Deaf => to && !from,
        Kind::Mute => from && !to,
        _ => false,
    }
}

/// The link with one more fault.
fn changed(link: LinkConditions, kind: Kind) -> LinkConditions {
    let chance = |percent: u32| f64::from(percent) / 100.0;
    match kind {
        Kind::Delay(by) => link.with_latency(LATENCY + Duration::from_millis(by.into())),
        Kind::Loss(by) => link.with_loss(chance(by)),
        Kind::Reorder(by) => link.with_reordering(chance(by)),
        Kind::Duplicate(by) => link.with_duplicates(chance(by)),
        Kind::Corrupt(by) => link.with_corruption(chance(by)),
        Kind::Bandwidth(by) => link.with_bandwidth(u64::from(by) * 1000),
        _ => link,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remove<T: PartialEq>(from: &mut Vec<T>, one: &T) {
    if let Some(at) = from.iter().position(|it| it == one) {
        from.remove(at);
    }
}
