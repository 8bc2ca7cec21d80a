//! The network: nodes, the messages between them, and virtual time.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    time::{Duration, Instant},
};

use macula_dht::{
    Config, Contact, Dht, Event, K, Memory, Output, Peer, Point, QueryId, QueryResult, Reply, Request, RequestId,
    Response, Role, Seed, Stats, Want,
};
use macula_wire::{Address, Advertisement, NodeId, Realm, SecretKey, ServiceKey, Signer};
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

use crate::queue::Queue;

/// The wall clock at the start.
const EPOCH_MS: u64 = 1_800_000_000_000;
/// Half of the median round trip. A path is as long back as it was there: of two delays drawn apart the sum would spread less than
/// either, and its median be more than twice this.
const ONE_WAY_MS: f64 = 25.0;
/// One message of so many is encoded and decoded, and must come out the same.
const ENCODED: u64 = 64;

/// Marks a node in the queue of events, whose timer it is; without it, it is a slot with a message.
const TIMER: u32 = 1 << 31;

/// Numbers that a seed repeats.
pub(crate) struct Rng(SplitMix64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SplitMix64::seed_from_u64(seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// From 0 up to 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn bytes(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes
            .chunks_exact_mut(8)
            .for_each(|chunk| chunk.copy_from_slice(&self.next().to_be_bytes()));
        bytes
    }

    /// Log-normal with median 1: most messages take about as long, some much longer.
    fn spread(&mut self) -> f64 {
        let normal = (0..12).map(|_| self.unit()).sum::<f64>() - 6.0;
        (normal * 0.35).exp()
    }
}

/// Ids are uniform already.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(Ok(head)) = bytes.get(..8).map(<[u8; 8]>::try_from) {
            self.0 = u64::from_le_bytes(head);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The identity of a node.
pub(crate) enum Identity {
    /// A key that signs.
    Key(Box<SecretKey>),
    /// An id without a key.
    Id(NodeId),
}

impl Signer for Identity {
    fn node_id(&self) -> NodeId {
        match self {
            Self::Key(key) => key.node_id(),
            Self::Id(id) => *id,
        }
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        match self {
            Self::Key(key) => key.sign(message),
            Self::Id(_) => [0; 64],
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Honest,
    /// Says nothing any more.
    Dead,
    /// Answers that there is no provider, and names its like only.
    Colluder,
}

enum Message {
    Request {
        from: u32,
        to: u32,
        id: RequestId,
        request: Request,
        /// How long it was on its way, and how long the response will be.
        delay: Duration,
    },
    Response {
        from: u32,
        to: u32,
        id: RequestId,
        response: Response,
    },
}

/// The end of a lookup or a publication, with the node it happened at.
pub(crate) enum News {
    Finished(u32, QueryId, QueryResult, Stats),
    Withdrawn {
        node: u32,
        acknowledged: usize,
        at: Instant,
    },
    Joined,
}

pub(crate) struct Net {
    pub(crate) rng: Rng,
    pub(crate) start: Instant,
    pub(crate) now: Instant,
    pub(crate) nodes: Vec<Dht<Identity>>,
    /// How they are reached: every table shares these.
    contacts: Vec<Contact>,
    pub(crate) kinds: Vec<Kind>,
    /// Messages between a node of one side and one of the other do not arrive.
    pub(crate) side: Vec<bool>,
    pub(crate) loss: f64,
    pub(crate) messages: u64,
    pub(crate) bytes_sampled: (u64, u64),
    pub(crate) trace: u64,
    /// Messages a second of processor time while nothing but lookups went on.
    pub(crate) lookup_rate: f64,
    pub(crate) news: Vec<News>,
    endpoint: Address,
    index: HashMap<NodeId, u32, BuildHasherDefault<IdHasher>>,
    /// Every node by its point.
    sorted: Vec<(Point, u32)>,
    colluders: Vec<(Point, u32)>,
    queue: Queue,
    slots: Vec<Option<Message>>,
    free: Vec<u32>,
    /// When each node's timer is set to go off.
    timers: Vec<Option<Instant>>,
}

/// The `count` of `sorted` that are closest to `target`, exactly.
pub(crate) fn closest(sorted: &[(Point, u32)], target: &Point, count: usize) -> Vec<u32> {
    let (mut low, mut high) = (0, sorted.len());
    let target_bytes = target.to_bytes();
    for bit in 0..256 {
        let is_set = |bytes: &[u8; 32]| bytes[bit / 8] >> (7 - bit % 8) & 1 == 1;
        let middle = low + sorted[low..high].partition_point(|(point, _)| !is_set(&point.to_bytes()));
        let half = if is_set(&target_bytes) {
            (middle, high)
        } else {
            (low, middle)
        };
        if half.1 - half.0 < count {
            break;
        }
        (low, high) = half;
    }
    let mut nodes = sorted[low..high].to_vec();
    nodes.sort_unstable_by_key(|(point, _)| point.distance(target));
    nodes.truncate(count);
    nodes.into_iter().map(|(_, node)| node).collect()
}

impl Net {
    /// `count` nodes with the tables that long acquaintance would give them.
    pub(crate) fn ideal(seed: u64, count: usize, mut progress: impl FnMut(usize)) -> Self {
        let now = Instant::now();
        let endpoint = "10.0.0.1:4433".parse().unwrap_or_else(|error| panic!("{error}"));
        let mut net = Self {
            rng: Rng::new(seed),
            start: now,
            now,
            nodes: Vec::with_capacity(count + count / 10),
            contacts: Vec::with_capacity(count + count / 10),
            kinds: Vec::new(),
            side: Vec::new(),
            loss: 0.0,
            messages: 0,
            bytes_sampled: (0, 0),
            trace: 0xcbf2_9ce4_8422_2325,
            lookup_rate: f64::NAN,
            news: Vec::new(),
            endpoint,
            index: HashMap::default(),
            sorted: Vec::new(),
            colluders: Vec::new(),
            queue: Queue::new(now),
            slots: Vec::new(),
            free: Vec::new(),
            timers: Vec::new(),
        };
        for _ in 0..count {
            net.add();
        }
        net.sort();
        for node in 0..count {
            net.acquaint(node);
            progress(node + 1);
        }
        net
    }

    /// Adds a node that knows no other.
    pub(crate) fn add(&mut self) -> usize {
        let secret = SecretKey::from_bytes(&self.rng.bytes());
        self.add_as(Identity::Key(Box::new(secret)))
    }

    /// Adds a colluder under an id of its choice. No key belongs to such an id, and no test asks it to sign.
    pub(crate) fn add_sybil(&mut self, id: NodeId) {
        let node = self.add_as(Identity::Id(id));
        self.kinds[node] = Kind::Colluder;
    }

    fn add_as(&mut self, identity: Identity) -> usize {
        let node = self.nodes.len();
        let unix_ms = EPOCH_MS + (self.now - self.start).as_millis() as u64;
        self.index.insert(identity.node_id(), node as u32);
        self.contacts
            .push(Contact::new(identity.node_id(), [self.endpoint.clone()]));
        let seed = self.rng.next();
        self.nodes.push(Dht::new(
            Config::default(),
            identity,
            Realm::default(),
            Memory,
            self.now,
            unix_ms,
            seed,
        ));
        self.kinds.push(Kind::Honest);
        self.side.push(false);
        self.timers.push(None);
        self.settle(node as u32);
        node
    }

    /// Brings the order of points up to date with the nodes.
    pub(crate) fn sort(&mut self) {
        let nodes = self.nodes.iter().enumerate();
        self.sorted = nodes.map(|(n, dht)| (Point::from(dht.node_id()), n as u32)).collect();
        self.sorted.sort_unstable();
        let is_colluder = |n: u32| self.kinds[n as usize] == Kind::Colluder;
        self.colluders = self.sorted.iter().filter(|(_, n)| is_colluder(*n)).copied().collect();
    }

    pub(crate) fn contact_of(&self, node: usize) -> Contact {
        self.contacts[node].clone()
    }

    pub(crate) fn closest(&self, target: &Point, count: usize) -> Vec<u32> {
        closest(&self.sorted, target, count)
    }

    /// Introduces a node to up to k others of each distance.
    pub(crate) fn acquaint(&mut self, node: usize) {
        let own = Point::from(self.nodes[node].node_id()).to_bytes();
        let (mut low, mut high) = (0, self.sorted.len());
        for bit in 0..256 {
            let is_set = |bytes: &[u8; 32]| bytes[bit / 8] >> (7 - bit % 8) & 1 == 1;
            let middle = low + self.sorted[low..high].partition_point(|(point, _)| !is_set(&point.to_bytes()));
            let (same, other) = if is_set(&own) {
                ((middle, high), (low, middle))
            } else {
                ((low, middle), (middle, high))
            };
            let size = other.1 - other.0;
            for pick in 0..size.min(K) {
                // Spread over the subtree, from a random start.
                let at = other.0 + (pick * size / size.min(K) + self.rng.below(size.div_ceil(K))).min(size - 1);
                self.introduce(node, self.sorted[at].1 as usize);
            }
            (low, high) = same;
            if high - low <= 1 {
                break;
            }
        }
    }

    /// Lets `node` ask `other`, and `other` answer, outside of the network.
    pub(crate) fn introduce(&mut self, node: usize, other: usize) {
        let contact = self.contact_of(other);
        self.nodes[node].add_contact(self.now, contact);
        while let Some(output) = self.nodes[node].poll_output() {
            if let Output::Send { id, .. } = output {
                let reply = Reply {
                    response: Ok(Response::Pong),
                    role: Role::Node,
                    ip: None,
                };
                self.nodes[node].handle_response(self.now, id, Ok(reply));
            }
        }
        self.settle(node as u32);
    }

    pub(crate) fn join(&mut self, node: usize, through: usize) {
        let seed = Seed::Known(self.contact_of(through));
        self.nodes[node].bootstrap(self.now, [seed]);
        self.settle(node as u32);
    }

    pub(crate) fn advertise(&mut self, node: usize, key: ServiceKey) {
        let advertisement = Advertisement::new([self.endpoint.clone()]);
        if let Err(error) = self.nodes[node].advertise(self.now, key, advertisement) {
            panic!("{error}");
        }
        self.settle(node as u32);
    }

    pub(crate) fn withdraw(&mut self, node: usize, key: ServiceKey) {
        self.nodes[node].withdraw(self.now, key);
        self.settle(node as u32);
    }

    pub(crate) fn look_up(&mut self, node: usize, key: ServiceKey, want: Want) -> Option<QueryId> {
        let query = self.nodes[node].start_lookup(self.now, key, want).ok();
        self.settle(node as u32);
        query
    }

    pub(crate) fn find_node(&mut self, node: usize, target: Point) -> Option<QueryId> {
        let query = self.nodes[node].start_find_node(self.now, target).ok();
        self.settle(node as u32);
        query
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some((at, slot)) = self.queue.pop(end) {
            self.now = at;
            if slot & TIMER != 0 {
                self.wake(slot & !TIMER);
            } else if let Some(message) = self.slots[slot as usize].take() {
                self.free.push(slot);
                self.deliver(message);
            }
        }
        self.now = end;
    }

    fn arrives(&mut self, from: u32, to: u32) -> bool {
        self.messages += 1;
        let cut = self.side[from as usize] != self.side[to as usize];
        let lost = cut || self.kinds[to as usize] == Kind::Dead || (self.loss > 0.0 && self.rng.unit() < self.loss);
        for value in [
            (self.now - self.start).as_nanos() as u64,
            u64::from(from) << 32 | u64::from(to),
            lost.into(),
        ] {
            self.trace = (self.trace ^ value).wrapping_mul(0x0100_0000_01b3);
        }
        !lost
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Request {
                from,
                to,
                id,
                request,
                delay,
            } => {
                if !self.arrives(from, to) {
                    return;
                }
                let sample = self.messages.is_multiple_of(ENCODED);
                if sample {
                    let bytes = request.encode();
                    self.bytes_sampled = (self.bytes_sampled.0 + 1, self.bytes_sampled.1 + bytes.len() as u64);
                    assert_eq!(Request::decode(bytes).as_ref(), Ok(&request));
                }
                let response = match self.kinds[to as usize] {
                    Kind::Colluder => self.lie(&request),
                    Kind::Honest | Kind::Dead => {
                        let peer = Peer {
                            contact: self.contact_of(from as usize),
                            role: Role::Node,
                        };
                        self.nodes[to as usize].handle_request(self.now, &peer, Ok(request))
                    }
                };
                if sample {
                    let bytes = response.encode();
                    self.trace = (self.trace ^ bytes.len() as u64).wrapping_mul(0x0100_0000_01b3);
                    self.bytes_sampled = (self.bytes_sampled.0 + 1, self.bytes_sampled.1 + bytes.len() as u64);
                    assert!(bytes.len() <= macula_dht::MAX_MESSAGE_BYTES);
                    assert_eq!(Response::decode(bytes).as_ref(), Ok(&response));
                }
                let response = Message::Response {
                    from: to,
                    to: from,
                    id,
                    response,
                };
                self.schedule(self.now + delay, response);
                self.settle(to);
            }
            Message::Response { from, to, id, response } => {
                if self.arrives(from, to) {
                    let reply = Reply {
                        response: Ok(response),
                        role: Role::Node,
                        ip: None,
                    };
                    self.nodes[to as usize].handle_response(self.now, id, Ok(reply));
                    self.settle(to);
                }
            }
        }
    }

    /// Lets a node's timer go off, unless it has been set again since.
    fn wake(&mut self, node: u32) {
        if self.kinds[node as usize] != Kind::Dead && self.timers[node as usize] == Some(self.now) {
            self.timers[node as usize] = None;
            self.nodes[node as usize].handle_timeout(self.now);
            self.settle(node);
        }
    }

    /// A colluder's answer: nothing of use, and contacts of its kind.
    fn lie(&self, request: &Request) -> Response {
        let friends = |target: &Point| -> Vec<Contact> {
            closest(&self.colluders, target, K)
                .into_iter()
                .map(|n| self.contact_of(n as usize))
                .collect()
        };
        match request {
            Request::Ping => Response::Pong,
            Request::FindNode { target } => Response::Nodes(friends(target)),
            Request::FindProviders { key, .. } => Response::Providers {
                records: Vec::new(),
                closest: friends(&key.into()),
                more: false,
            },
            // It says that it keeps the record, and does not.
            Request::Publish { records, .. } => Response::Published {
                outcomes: vec![macula_dht::Outcome::Stored; records.len()],
                newer: Vec::new(),
            },
        }
    }

    fn schedule(&mut self, at: Instant, message: Message) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.slots[slot as usize] = Some(message);
        self.queue.push(at, slot);
    }

    /// Performs a node's outputs, and sets its timer.
    fn settle(&mut self, node: u32) {
        while let Some(output) = self.nodes[node as usize].poll_output() {
            match output {
                Output::Send { id, to, request } => {
                    if let Some(&to) = self.index.get(to.node_id()) {
                        let delay = Duration::from_nanos((ONE_WAY_MS * 1e6 * self.rng.spread()) as u64);
                        let request = Message::Request {
                            from: node,
                            to,
                            id,
                            request,
                            delay,
                        };
                        self.schedule(self.now + delay, request);
                    }
                }
                Output::Identify { id, .. } => self.nodes[node as usize].handle_identified(self.now, id, []),
                Output::Event(event) => self.note(node, event),
            }
        }
        if let Some(at) = self.nodes[node as usize].poll_timeout() {
            let timer = &mut self.timers[node as usize];
            if timer.is_none_or(|set| at < set) {
                *timer = Some(at);
                self.queue.push(at, node | TIMER);
            }
        }
    }

    fn note(&mut self, node: u32, event: Event) {
        let news = match event {
            Event::Finished { query, result, stats } => News::Finished(node, query, result, stats),
            Event::Withdrawn { acknowledged, .. } => News::Withdrawn {
                node,
                acknowledged,
                at: self.now,
            },
            Event::Joined { .. } => News::Joined,
            _ => return,
        };
        self.news.push(news);
    }
}
