//! The network: hosts, the ways between them, and what is cut.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};

use bytes::Bytes;
use quinn::udp::EcnCodepoint;
use tokio::time::Instant;

use super::{
    Link, Traffic,
    path::{Passage, Path, Random},
    trace::{Fate, Trace},
};

/// The most hosts at a time.
pub const MAX_HOSTS: usize = 65_536;
/// The most datagrams on their way to one host; those beyond are lost.
pub const MAX_IN_FLIGHT: usize = 65_536;

/// The port of hosts that ask for none.
const PORT: u16 = 9443;

/// A network in memory. Cheap to clone; clones are the same network.
///
/// [`Config::with_network`](crate::Config::with_network) puts an endpoint on it. A host is known by its address, which is
/// [`Endpoint::local_addr`](crate::Endpoint::local_addr): the one its configuration listens on, or the next free one of
/// `10.0.0.0/8`.
#[derive(Debug, Clone)]
pub struct Network {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
pub(super) struct State {
    seed: u64,
    seeds: Random,
    /// When the first host came.
    epoch: Option<Instant>,
    usual: Link,
    hosts: BTreeMap<SocketAddr, Host>,
    /// Where a process was killed on a machine that lives.
    refusing: BTreeSet<SocketAddr>,
    addresses: u32,
    sockets: u64,
    paths: BTreeMap<(SocketAddr, SocketAddr), Path>,
    /// Pairs that do not hear each other, the lesser address first.
    cuts: BTreeSet<(SocketAddr, SocketAddr)>,
    /// Hosts on the other side of a partition, by side.
    sides: BTreeMap<SocketAddr, usize>,
    sent: u64,
    trace: Trace,
}

/// Whoever listens at an address.
#[derive(Debug)]
struct Host {
    /// Tells the socket that is bound now from one that was.
    socket: u64,
    arriving: BinaryHeap<Reverse<Datagram>>,
    waker: Option<Waker>,
}

/// A datagram under way. In the order of arrival, and of sending for those that arrive together.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Datagram {
    at: Instant,
    number: u64,
    from: SocketAddr,
    again: bool,
    carried: Carried,
}

/// What travels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Carried {
    Datagram {
        ecn: Option<u8>,
        body: Bytes,
    },
    /// ICMP's word that nothing listens at an address, which is where it comes from.
    Unreachable,
}

impl Carried {
    fn len(&self) -> usize {
        match self {
            Self::Datagram { body, .. } => body.len(),
            Self::Unreachable => 0,
        }
    }
}

/// What a socket finds when it looks for datagrams.
pub(super) enum Arrivals {
    /// So many were taken.
    Taken(usize),
    /// The next one arrives then.
    Next(Instant),
    /// Nothing is under way.
    Nothing,
}

impl Network {
    /// A network without hosts, whose links take a millisecond and lose nothing.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State {
            seed,
            seeds: Random::new(seed),
            epoch: None,
            usual: Link::default(),
            hosts: BTreeMap::new(),
            refusing: BTreeSet::new(),
            addresses: 0,
            sockets: 0,
            paths: BTreeMap::new(),
            cuts: BTreeSet::new(),
            sides: BTreeMap::new(),
            sent: 0,
            trace: Trace::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the link between hosts that have none of their own.
    #[must_use]
    pub fn with_link(self, link: Link) -> Self {
        self.set_usual_link(link);
        self
    }

    /// Sets the link between hosts that have none of their own, from now on.
    pub fn set_usual_link(&self, link: Link) {
        self.lock().usual = link;
    }

    /// Sets the link between two hosts, both ways, from now on.
    pub fn set_link(&self, a: SocketAddr, b: SocketAddr, link: Link) {
        let mut state = self.lock();
        state.path(a, b).link = Some(link);
        state.path(b, a).link = Some(link);
    }

    /// Keeps two hosts from hearing each other. What is under way between them is lost.
    pub fn cut(&self, a: SocketAddr, b: SocketAddr) {
        let mut state = self.lock();
        state.note(format_args!("cut {a} {b}"));
        state.cuts.insert(pair(a, b));
    }

    /// Undoes the cut between two hosts.
    pub fn restore(&self, a: SocketAddr, b: SocketAddr) {
        let mut state = self.lock();
        state.note(format_args!("restore {a} {b}"));
        state.cuts.remove(&pair(a, b));
    }

    /// Parts these hosts from all others, which they stop hearing, and those that come later too. They still hear each other.
    pub fn partition(&self, hosts: impl IntoIterator<Item = SocketAddr>) {
        let mut state = self.lock();
        let side = state.sides.values().max().map_or(1, |side| side + 1);
        for host in hosts {
            state.note(format_args!("part {host} {side}"));
            state.sides.insert(host, side);
        }
    }

    /// Undoes every cut and partition.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.note(format_args!("heal"));
        state.cuts.clear();
        state.sides.clear();
    }

    /// Takes a host off the network as a pulled plug does: it sends and receives nothing any more, what is under way to it is lost,
    /// and nothing tells of it. Its address is free for another.
    pub fn kill(&self, host: SocketAddr) {
        let mut state = self.lock();
        state.note(format_args!("kill {host}"));
        state.hosts.remove(&host);
        state.refusing.remove(&host);
    }

    /// Kills a host's process on a machine that lives, as `kill -9` does: as [`Network::kill`], but what is sent there is answered with
    /// ICMP's "port unreachable" after the link's time, until another takes the address.
    pub fn kill_process(&self, host: SocketAddr) {
        let mut state = self.lock();
        state.note(format_args!("kill process {host}"));
        state.hosts.remove(&host);
        state.refusing.insert(host);
    }

    /// Adds an event of the test's own to the trace.
    pub fn note(&self, event: impl fmt::Display) {
        self.lock().note(format_args!("{event}"));
    }

    /// The time since the first host came.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.lock().since_epoch(Instant::now())
    }

    /// What has become of the datagrams so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.lock().trace.traffic
    }

    /// A hash of everything that has happened on the network so far, in order: time, source, destination, length and fate of
    /// each datagram, cuts, kills, and what was [noted](Network::note). The module says what the same seed repeats.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.lock().trace.hash()
    }

    /// A seed for the next endpoint, which repeats with the network's seed.
    pub(crate) fn next_seed(&self) -> u64 {
        self.lock().seeds.next()
    }

    /// Takes an address: the one asked for, or a free one.
    pub(super) fn bind(&self, asked: Option<SocketAddr>) -> io::Result<(SocketAddr, u64)> {
        let mut state = self.lock();
        state.epoch.get_or_insert_with(Instant::now);
        if state.hosts.len() >= MAX_HOSTS {
            return Err(io::Error::from(io::ErrorKind::AddrNotAvailable));
        }
        let addr = match asked {
            Some(addr) if !addr.ip().is_unspecified() && addr.port() != 0 => addr,
            asked => {
                let port = asked.map(|addr| addr.port()).filter(|&port| port != 0);
                state.free_address(port.unwrap_or(PORT))
            }
        };
        if state.hosts.contains_key(&addr) {
            return Err(io::Error::from(io::ErrorKind::AddrInUse));
        }
        state.sockets += 1;
        let socket = state.sockets;
        let host = Host {
            socket,
            arriving: BinaryHeap::new(),
            waker: None,
        };
        state.hosts.insert(addr, host);
        state.refusing.remove(&addr);
        state.note(format_args!("bind {addr}"));
        Ok((addr, socket))
    }

    /// A socket is gone.
    pub(super) fn unbind(&self, addr: SocketAddr, socket: u64) {
        let mut state = self.lock();
        if state.host(addr, socket).is_some() {
            state.hosts.remove(&addr);
        }
    }
}

impl State {
    fn host(&mut self, addr: SocketAddr, socket: u64) -> Option<&mut Host> {
        self.hosts.get_mut(&addr).filter(|host| host.socket == socket)
    }

    fn free_address(&mut self, port: u16) -> SocketAddr {
        loop {
            self.addresses = self.addresses % 0x00ff_fffe + 1;
            let ip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() | self.addresses);
            let addr = SocketAddr::new(IpAddr::V4(ip), port);
            // There are more addresses than hosts.
            if !self.hosts.contains_key(&addr) {
                return addr;
            }
        }
    }

    fn path(&mut self, from: SocketAddr, to: SocketAddr) -> &mut Path {
        let seed = self.seed;
        self.paths
            .entry((from, to))
            .or_insert_with(|| Path::new(seed, from, to))
    }

    fn passes(&self, from: SocketAddr, to: SocketAddr) -> bool {
        self.sides.get(&from) == self.sides.get(&to) && !self.cuts.contains(&pair(from, to))
    }

    /// The time since the first host came.
    fn since_epoch(&self, now: Instant) -> Duration {
        self.epoch.map_or(Duration::ZERO, |epoch| now - epoch)
    }

    fn note(&mut self, event: fmt::Arguments<'_>) {
        let at = self.since_epoch(Instant::now());
        self.trace.note(at, event);
    }

    /// Sends a datagram; one of a host that was killed goes nowhere, and leaves no trace.
    pub(super) fn send(
        &mut self,
        from: SocketAddr,
        socket: u64,
        to: SocketAddr,
        ecn: Option<EcnCodepoint>,
        body: &[u8],
    ) {
        if self.host(from, socket).is_none() {
            return;
        }
        let now = Instant::now();
        let fate = self.dispatch(now, from, to, ecn, body);
        if let Some(fate) = fate {
            let at = self.since_epoch(now);
            self.trace.datagram(at, from, to, body.len(), fate);
        }
    }

    /// Puts a datagram under way, or says why not.
    fn dispatch(
        &mut self,
        now: Instant,
        from: SocketAddr,
        to: SocketAddr,
        ecn: Option<EcnCodepoint>,
        body: &[u8],
    ) -> Option<Fate> {
        if !self.hosts.contains_key(&to) {
            if self.refusing.contains(&to) && self.passes(from, to) {
                self.refuse(now, from, to);
            }
            return Some(Fate::Nobody);
        }
        if !self.passes(from, to) {
            return Some(Fate::Cut);
        }
        let usual = self.usual;
        let (at, again) = match self.path(from, to).send(now, &usual, body.len()) {
            Passage::Lost => return Some(Fate::Lost),
            Passage::TooLarge => return Some(Fate::TooLarge),
            Passage::Arrives { at, again } => (at, again),
        };
        let host = self.hosts.get_mut(&to)?;
        if host.arriving.len() + 2 > MAX_IN_FLIGHT {
            return Some(Fate::Overflowed);
        }
        let carried = Carried::Datagram {
            ecn: ecn.map(|ecn| ecn as u8),
            body: Bytes::copy_from_slice(body),
        };
        for (at, again) in std::iter::once((at, false)).chain(again.map(|at| (at, true))) {
            self.sent += 1;
            host.arriving.push(Reverse(Datagram {
                at,
                number: self.sent,
                from,
                again,
                carried: carried.clone(),
            }));
        }
        if let Some(waker) = host.waker.take() {
            waker.wake();
        }
        None
    }

    /// Answers a datagram to where nothing listens.
    fn refuse(&mut self, now: Instant, sender: SocketAddr, unreachable: SocketAddr) {
        let link = self.path(sender, unreachable).link.unwrap_or(self.usual);
        self.sent += 1;
        let number = self.sent;
        let Some(host) = self.hosts.get_mut(&sender) else {
            return;
        };
        if host.arriving.len() >= MAX_IN_FLIGHT {
            return;
        }
        host.arriving.push(Reverse(Datagram {
            at: now + 2 * link.latency,
            number,
            from: unreachable,
            again: false,
            carried: Carried::Unreachable,
        }));
        if let Some(waker) = host.waker.take() {
            waker.wake();
        }
    }

    /// Hands what has arrived to `take`, at most `room` datagrams, which says whether it took one; when there is nothing yet, `waker` is woken by the next send.
    pub(super) fn receive(
        &mut self,
        addr: SocketAddr,
        socket: u64,
        room: usize,
        waker: &Waker,
        mut take: impl FnMut(usize, SocketAddr, &Carried) -> bool,
    ) -> Arrivals {
        let now = Instant::now();
        let mut taken = 0;
        while taken < room {
            let Some(host) = self.host(addr, socket) else { break };
            let Some(Reverse(next)) = host.arriving.peek() else {
                break;
            };
            if next.at > now {
                break;
            }
            let Some(Reverse(datagram)) = host.arriving.pop() else {
                break;
            };
            let fate = match (self.passes(datagram.from, addr), datagram.again) {
                (false, _) => Fate::Cut,
                (true, false) => Fate::Delivered,
                (true, true) => Fate::Duplicated,
            };
            let at = self.since_epoch(now);
            self.trace
                .datagram(at, datagram.from, addr, datagram.carried.len(), fate);
            if fate != Fate::Cut {
                taken += usize::from(take(taken, datagram.from, &datagram.carried));
            }
        }
        if taken > 0 {
            return Arrivals::Taken(taken);
        }
        let Some(host) = self.host(addr, socket) else {
            return Arrivals::Nothing;
        };
        host.waker = Some(waker.clone());
        match host.arriving.peek() {
            Some(Reverse(next)) => Arrivals::Next(next.at),
            None => Arrivals::Nothing,
        }
    }
}

fn pair(a: SocketAddr, b: SocketAddr) -> (SocketAddr, SocketAddr) {
    (a.min(b), a.max(b))
}
