//! A network of cores in memory: messages take as long as the seed says, in the order the seed says, and every one is encoded
//! and decoded on its way.
#![allow(dead_code, reason = "each test file uses its part of it")]
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

pub(crate) mod bench;
pub(crate) mod disk;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use macula_dht::{
    Backend, Config, Contact, Dht, Event, Memory, Output, Peer, QueryId, QueryResult, Reply, Request, RequestFailed,
    RequestId, Response, Role, Seed, Stats, Want,
};
use macula_wire::{Advertisement, NodeId, Realm, SecretKey, ServiceKey, Signer};
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

/// The wall clock at the start.
pub(crate) const EPOCH_MS: u64 = 1_800_000_000_000;

pub(crate) struct Rng(SplitMix64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SplitMix64::seed_from_u64(seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

pub(crate) struct Node<B: Backend = Memory> {
    pub(crate) dht: Dht<SecretKey, B>,
    pub(crate) contact: Contact,
    pub(crate) role: Role,
    pub(crate) alive: bool,
    pub(crate) events: Vec<Event>,
    /// Answers everything, stores nothing, and names none but its like.
    pub(crate) lies: bool,
}

enum Message {
    Request {
        from: usize,
        to: usize,
        id: RequestId,
        request: bytes::Bytes,
    },
    Response {
        to: usize,
        from: usize,
        id: RequestId,
        response: Result<bytes::Bytes, RequestFailed>,
    },
    Timer {
        node: usize,
    },
}

pub(crate) struct Net {
    pub(crate) start: Instant,
    pub(crate) now: Instant,
    pub(crate) rng: Rng,
    pub(crate) nodes: Vec<Node>,
    pub(crate) sent: u64,
    /// Every message's time, ends and length, hashed.
    pub(crate) trace: u64,
    by_id: BTreeMap<NodeId, usize>,
    queue: BTreeMap<(Instant, u64), Message>,
    timers: BTreeMap<usize, (Instant, u64)>,
    serial: u64,
    /// Messages between the two sides do not arrive.
    pub(crate) cut: BTreeSet<usize>,
}

pub(crate) fn secret(n: usize) -> SecretKey {
    let mut secret = [0x5a; 32];
    secret[..8].copy_from_slice(&(n as u64).to_be_bytes());
    SecretKey::from_bytes(&secret)
}

pub(crate) fn contact_of(n: usize) -> Contact {
    Contact::new(
        secret(n).node_id(),
        [format!("10.0.{}.{}:4433", n / 256, n % 256).parse().unwrap()],
    )
}

pub(crate) fn advertisement(n: usize) -> Advertisement {
    Advertisement::new([format!("10.0.{}.{}:4433", n / 256, n % 256).parse().unwrap()])
}

pub(crate) fn key(name: &str) -> ServiceKey {
    ServiceKey::new(&Realm::default(), &name.parse().unwrap())
}

impl Net {
    pub(crate) fn new(seed: u64) -> Self {
        let now = Instant::now();
        Self {
            start: now,
            now,
            rng: Rng::new(seed),
            nodes: Vec::new(),
            sent: 0,
            trace: 0xcbf2_9ce4_8422_2325,
            by_id: BTreeMap::new(),
            queue: BTreeMap::new(),
            timers: BTreeMap::new(),
            serial: 0,
            cut: BTreeSet::new(),
        }
    }

    /// A network of `count` nodes, joined one after another through a random earlier one.
    pub(crate) fn joined(seed: u64, count: usize) -> Self {
        let mut net = Self::new(seed);
        for n in 0..count {
            let node = net.add(Config::default());
            if n > 0 {
                let seed = net.rng.below(n);
                net.bootstrap(node, seed);
            }
            net.run(Duration::from_millis(200));
        }
        net.run(Duration::from_secs(30));
        net
    }

    pub(crate) fn add(&mut self, config: Config) -> usize {
        let n = self.nodes.len();
        let unix_ms = EPOCH_MS + (self.now - self.start).as_millis() as u64;
        let role = config.role;
        let dht = Dht::new(
            config,
            secret(n),
            Realm::default(),
            Memory,
            self.now,
            unix_ms,
            self.rng.next(),
        );
        let contact = contact_of(n);
        self.by_id.insert(*contact.node_id(), n);
        self.nodes.push(Node {
            dht,
            contact,
            role,
            alive: true,
            events: Vec::new(),
            lies: false,
        });
        self.settle(n);
        n
    }

    /// Adds nodes whose ids were made to lie next to `key`, nearer than any other, and makes them known to every node.
    pub(crate) fn add_liars(&mut self, key: ServiceKey, count: usize) {
        for at in 1..=count {
            let n = self.add(Config::default());
            let mut id = *key.as_bytes();
            id[24..].copy_from_slice(&(at as u64).to_be_bytes());
            let contact = Contact::new(NodeId::from_bytes(id), contact_of(n).endpoints().to_vec());
            self.by_id.remove(self.nodes[n].contact.node_id());
            self.by_id.insert(*contact.node_id(), n);
            self.nodes[n].contact = contact;
            self.nodes[n].lies = true;
        }
        let liars = self.liars();
        for node in 0..self.nodes.len() - count {
            for liar in &liars {
                self.with(node, |dht, now| dht.add_contact(now, liar.clone()));
            }
        }
    }

    fn liars(&self) -> Vec<Contact> {
        let liars = self.nodes.iter().filter(|node| node.lies);
        liars.map(|node| node.contact.clone()).collect()
    }

    fn lie(&self, request: &Request) -> Response {
        let closest = || self.liars().into_iter().take(20).collect();
        match request {
            Request::FindNode { .. } => Response::Nodes(closest()),
            Request::FindProviders { .. } => Response::Providers {
                records: Vec::new(),
                closest: closest(),
                more: false,
            },
            Request::Ping | Request::Publish { .. } => bench::agreeable(request),
        }
    }

    pub(crate) fn bootstrap(&mut self, node: usize, seed: usize) {
        let seed = Seed::Known(self.nodes[seed].contact.clone());
        self.nodes[node].dht.bootstrap(self.now, [seed]);
        self.settle(node);
    }

    pub(crate) fn kill(&mut self, node: usize) {
        self.nodes[node].alive = false;
        if let Some(timer) = self.timers.remove(&node) {
            self.queue.remove(&timer);
        }
    }

    /// Does something with a node's core, and performs its outputs.
    pub(crate) fn with<T>(&mut self, node: usize, act: impl FnOnce(&mut Dht<SecretKey>, Instant) -> T) -> T {
        let result = act(&mut self.nodes[node].dht, self.now);
        self.settle(node);
        result
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(entry) = self.queue.first_entry()
            && entry.key().0 <= end
        {
            let ((at, _), message) = entry.remove_entry();
            self.now = at;
            self.deliver(message);
        }
        self.now = end;
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Request { from, to, id, request } => {
                let cut = self.cut.contains(&from) != self.cut.contains(&to);
                if !self.nodes[to].alive || cut {
                    // A dead host says nothing.
                    return;
                }
                self.note(from, to, request.len());
                let peer = Peer {
                    contact: self.nodes[from].contact.clone(),
                    role: self.nodes[from].role,
                };
                let request = Request::decode(request);
                let response = match &request {
                    Ok(request) if self.nodes[to].lies => self.lie(request),
                    _ => self.nodes[to].dht.handle_request(self.now, &peer, request),
                };
                let response = response.encode();
                assert!(response.len() <= macula_dht::MAX_MESSAGE_BYTES);
                self.post(Message::Response {
                    to: from,
                    from: to,
                    id,
                    response: Ok(response),
                });
                self.settle(to);
            }
            Message::Response { to, from, id, response } => {
                let cut = self.cut.contains(&from) != self.cut.contains(&to);
                if !self.nodes[to].alive || cut {
                    return;
                }
                let reply = response.map(|bytes| {
                    self.note(from, to, bytes.len());
                    Reply {
                        response: Response::decode(bytes),
                        role: self.nodes[from].role,
                        ip: None,
                    }
                });
                self.nodes[to].dht.handle_response(self.now, id, reply);
                self.settle(to);
            }
            Message::Timer { node } => {
                self.timers.remove(&node);
                self.nodes[node].dht.handle_timeout(self.now);
                self.settle(node);
            }
        }
    }

    fn note(&mut self, from: usize, to: usize, length: usize) {
        self.sent += 1;
        let at = (self.now - self.start).as_nanos() as u64;
        for value in [at, from as u64, to as u64, length as u64] {
            self.trace = (self.trace ^ value).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn post(&mut self, message: Message) {
        let delay = Duration::from_micros(2_000 + self.rng.next() % 60_000);
        self.serial += 1;
        self.queue.insert((self.now + delay, self.serial), message);
    }

    /// Performs a node's outputs, and sets its timer.
    fn settle(&mut self, node: usize) {
        while let Some(output) = self.nodes[node].dht.poll_output() {
            match output {
                Output::Send { id, to, request } => {
                    if let Some(&to) = self.by_id.get(to.node_id()) {
                        self.post(Message::Request {
                            from: node,
                            to,
                            id,
                            request: request.encode(),
                        });
                    } else {
                        let response = Err(RequestFailed::Unreachable);
                        self.post(Message::Response {
                            to: node,
                            from: node,
                            id,
                            response,
                        });
                    }
                }
                Output::Identify { id, address } => {
                    let reached = |n: &usize| self.nodes[*n].alive && self.cut.contains(n) == self.cut.contains(&node);
                    let found: Vec<_> = (0..self.nodes.len())
                        .filter(reached)
                        .map(|n| self.nodes[n].contact.clone())
                        .filter(|contact| contact.endpoints().contains(&address))
                        .collect();
                    self.nodes[node].dht.handle_identified(self.now, id, found);
                }
                Output::Event(event) => self.nodes[node].events.push(event),
            }
        }
        if let Some(timer) = self.timers.remove(&node) {
            self.queue.remove(&timer);
        }
        if let Some(at) = self.nodes[node].dht.poll_timeout() {
            self.serial += 1;
            let timer = (at.max(self.now), self.serial);
            self.timers.insert(node, timer);
            self.queue.insert(timer, Message::Timer { node });
        }
    }

    pub(crate) fn advertise(&mut self, node: usize, key: ServiceKey) {
        self.with(node, |dht, now| dht.advertise(now, key, advertisement(node)).unwrap());
    }

    /// Looks a key up and waits for the end.
    pub(crate) fn find(&mut self, node: usize, key: ServiceKey, want: Want) -> (QueryResult, Stats) {
        let query = self.with(node, |dht, now| dht.start_lookup(now, key, want).unwrap());
        self.finish(node, query)
    }

    pub(crate) fn finish(&mut self, node: usize, query: QueryId) -> (QueryResult, Stats) {
        for _ in 0..600 {
            let events = std::mem::take(&mut self.nodes[node].events);
            let (mut finished, mut others) = (None, Vec::new());
            for event in events {
                match event {
                    Event::Finished {
                        query: q,
                        result,
                        stats,
                    } if q == query => finished = Some((result, stats)),
                    other => others.push(other),
                }
            }
            self.nodes[node].events = others;
            if let Some(finished) = finished {
                return finished;
            }
            self.run(Duration::from_millis(50));
        }
        panic!("the lookup does not end");
    }

    pub(crate) fn found(&mut self, node: usize, key: ServiceKey, want: Want) -> Vec<usize> {
        match self.find(node, key, want).0 {
            QueryResult::Found(providers) => providers.iter().map(|p| self.by_id[p.node_id()]).collect(),
            QueryResult::NotFound => Vec::new(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn count_events(&self, node: usize, wanted: impl Fn(&Event) -> bool) -> usize {
        self.nodes[node].events.iter().filter(|event| wanted(event)).count()
    }
}
