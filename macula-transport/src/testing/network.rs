//! The network: hosts, the paths between them, and cuts.

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
    LinkConditions, Traffic,
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
    usual: LinkConditions,
    hosts: BTreeMap<SocketAddr, Host>,
    /// Where a process was killed on a machine that lives.
    refusing: BTreeSet<SocketAddr>,
    /// The address of each socket that is bound.
    places: BTreeMap<u64, SocketAddr>,
    addresses: u32,
    sockets: u64,
    paths: BTreeMap<(SocketAddr, SocketAddr), Path>,
    /// From the first address nothing arrives at the second.
    cuts: BTreeSet<(SocketAddr, SocketAddr)>,
    /// Hosts on the other side of a partition, by side.
    sides: BTreeMap<SocketAddr, usize>,
    sent: u64,
    trace: Trace,
}

/// The host at an address.
#[derive(Debug)]
struct Host {
    /// Tells the socket that is bound now from one that was.
    socket: u64,
    arriving: BinaryHeap<Reverse<Datagram>>,
    waker: Option<Waker>,
    /// Set while the host is paused: the datagrams that it has sent since.
    held: Option<Vec<Held>>,
}

/// A datagram of a host that is paused.
#[derive(Debug)]
struct Held {
    to: SocketAddr,
    ecn: Option<EcnCodepoint>,
    body: Bytes,
}

/// A datagram under way. In the order of arrival, and of sending for those that arrive together.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Datagram {
    at: Instant,
    number: u64,
    from: SocketAddr,
    ecn: Option<u8>,
    fate: Fate,
    body: Bytes,
}

/// A datagram that has arrived.
pub(super) struct RecvFrom<'a> {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) ecn: Option<EcnCodepoint>,
    pub(super) body: &'a Bytes,
}

/// The result of a socket's look for datagrams.
pub(super) enum Arrivals {
    /// The number that was taken.
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
            usual: LinkConditions::default(),
            hosts: BTreeMap::new(),
            refusing: BTreeSet::new(),
            places: BTreeMap::new(),
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
    pub fn with_link(self, link: LinkConditions) -> Self {
        self.set_usual_link(link);
        self
    }

    /// Sets the link between hosts that have none of their own, from now on.
    pub fn set_usual_link(&self, link: LinkConditions) {
        self.lock().usual = link;
    }

    /// Sets the link between two hosts, both ways, from now on.
    pub fn set_link(&self, a: SocketAddr, b: SocketAddr, link: LinkConditions) {
        let mut state = self.lock();
        state.path(a, b).link = Some(link);
        state.path(b, a).link = Some(link);
    }

    /// Sets the link from one host to another, in this direction only, from now on; `None` for the usual one.
    pub fn set_link_one_way(&self, from: SocketAddr, to: SocketAddr, link: Option<LinkConditions>) {
        self.lock().path(from, to).link = link;
    }

    /// Keeps two hosts from hearing each other. What is under way between them is lost.
    pub fn cut(&self, a: SocketAddr, b: SocketAddr) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Keeps one host from being heard by another, which it still hears. What is under way is lost.
    pub fn cut_one_way(&self, from: SocketAddr, to: SocketAddr) {
        let mut state = self.lock();
        state.note(format_args!("cut {from} {to}"));
        state.cuts.insert((from, to));
    }

    /// Undoes the cut between two hosts, in both directions.
    pub fn restore(&self, a: SocketAddr, b: SocketAddr) {
        self.restore_one_way(a, b);
        self.restore_one_way(b, a);
    }

    /// Undoes a cut in this direction.
    pub fn restore_one_way(&self, from: SocketAddr, to: SocketAddr) {
        let mut state = self.lock();
        state.note(format_args!("restore {from} {to}"));
        state.cuts.remove(&(from, to));
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

    /// Takes a host off the network, as a pulled plug does. It sends and receives no more, datagrams under way to it are lost, and no
    /// ICMP report tells of it. Its address is free for another host.
    pub fn kill(&self, host: SocketAddr) {
        let mut state = self.lock();
        state.note(format_args!("kill {host}"));
        state.remove(host);
        state.refusing.remove(&host);
    }

    /// Kills a host's process on a machine that lives, as `kill -9` does. Unlike with [`Network::kill`], a datagram sent there is answered
    /// with ICMP's "port unreachable" after the link's time, until another host takes the address.
    pub fn kill_process(&self, host: SocketAddr) {
        let mut state = self.lock();
        state.note(format_args!("kill process {host}"));
        state.remove(host);
        state.refusing.insert(host);
    }

    /// Stops a host as SIGSTOP and a suspended machine do, as seen from outside: it receives nothing and sends nothing until
    /// [`Network::resume`]. Datagrams to it wait meanwhile, and its own leave when it resumes.
    ///
    /// Its tasks still run, so its own timers are on time; those of a process that was stopped are late.
    pub fn pause(&self, host: SocketAddr) {
        let mut state = self.lock();
        state.note(format_args!("pause {host}"));
        if let Some(host) = state.hosts.get_mut(&host) {
            host.held.get_or_insert_default();
        }
    }

    /// Lets a paused host go on.
    pub fn resume(&self, host: SocketAddr) {
        let mut state = self.lock();
        state.note(format_args!("resume {host}"));
        let Some(paused) = state.hosts.get_mut(&host) else {
            return;
        };
        let (socket, held) = (paused.socket, paused.held.take());
        if let Some(waker) = paused.waker.take() {
            waker.wake();
        }
        for Held { to, ecn, body } in held.into_iter().flatten() {
            state.send(socket, to, ecn, &body);
        }
    }

    /// Gives a running host another address, as a network does that assigns a new lease or a new mapping. The host is not told: its
    /// connections go on from the new address, and datagrams to the old one go nowhere.
    ///
    /// Does nothing when no host has the first address or one has the second.
    pub fn move_host(&self, from: SocketAddr, to: SocketAddr) {
        let mut state = self.lock();
        state.note(format_args!("move {from} {to}"));
        if !state.hosts.contains_key(&to)
            && let Some(host) = state.hosts.remove(&from)
        {
            state.places.insert(host.socket, to);
            state.hosts.insert(to, host);
        }
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

    /// The fates of the datagrams so far, counted.
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
            held: None,
        };
        state.hosts.insert(addr, host);
        state.places.insert(socket, addr);
        state.refusing.remove(&addr);
        state.note(format_args!("bind {addr}"));
        Ok((addr, socket))
    }

    /// A socket is gone.
    pub(super) fn unbind(&self, socket: u64) {
        let mut state = self.lock();
        if let Some(addr) = state.places.remove(&socket) {
            state.hosts.remove(&addr);
        }
    }

    /// The address of a socket, unless its host was killed.
    pub(super) fn place(&self, socket: u64) -> Option<SocketAddr> {
        self.lock().places.get(&socket).copied()
    }
}

impl State {
    fn remove(&mut self, host: SocketAddr) {
        if let Some(host) = self.hosts.remove(&host) {
            self.places.remove(&host.socket);
        }
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
        self.sides.get(&from) == self.sides.get(&to) && !self.cuts.contains(&(from, to))
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
    pub(super) fn send(&mut self, socket: u64, to: SocketAddr, ecn: Option<EcnCodepoint>, body: &[u8]) {
        let Some(&from) = self.places.get(&socket) else { return };
        if let Some(held) = self.hosts.get_mut(&from).and_then(|host| host.held.as_mut()) {
            if held.len() < MAX_IN_FLIGHT {
                let body = Bytes::copy_from_slice(body);
                held.push(Held { to, ecn, body });
            }
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
            return Some(Fate::NoHost);
        }
        if !self.passes(from, to) {
            return Some(Fate::Cut);
        }
        let usual = self.usual;
        let (at, again, corrupt) = match self.path(from, to).send(now, &usual, body.len()) {
            Passage::Lost => return Some(Fate::Lost),
            Passage::TooLarge => return Some(Fate::TooLarge),
            Passage::Overflowed => return Some(Fate::Overflowed),
            Passage::Arrives { at, again, corrupt } => (at, again, corrupt),
        };
        let host = self.hosts.get_mut(&to)?;
        if host.arriving.len() + 2 > MAX_IN_FLIGHT {
            return Some(Fate::Overflowed);
        }
        let (body, first) = match corrupt {
            Some(position) if !body.is_empty() => {
                let mut body = body.to_vec();
                let len = body.len();
                body[position % len] ^= 1 << (position % 8);
                (body.into(), Fate::Corrupted)
            }
            _ => (Bytes::copy_from_slice(body), Fate::Delivered),
        };
        for (at, fate) in std::iter::once((at, first)).chain(again.map(|at| (at, Fate::Duplicated))) {
            self.sent += 1;
            host.arriving.push(Reverse(Datagram {
                at,
                number: self.sent,
                from,
                ecn: ecn.map(|ecn| ecn as u8),
                fate,
                body: body.clone(),
            }));
        }
        if let Some(waker) = host.waker.take() {
            waker.wake();
        }
        None
    }

    /// Answers a datagram to where nothing listens.
    fn refuse(&mut self, now: Instant, sender: SocketAddr, unreachable: SocketAddr) {
        let usual = self.usual;
        let latency = self.path(sender, unreachable).link.unwrap_or(usual).latency;
        self.sent += 1;
        let number = self.sent;
        let Some(host) = self
            .hosts
            .get_mut(&sender)
            .filter(|host| host.arriving.len() < MAX_IN_FLIGHT)
        else {
            return;
        };
        host.arriving.push(Reverse(Datagram {
            at: now + 2 * latency,
            number,
            from: unreachable,
            ecn: None,
            fate: Fate::Unreachable,
            body: Bytes::new(),
        }));
        if let Some(waker) = host.waker.take() {
            waker.wake();
        }
    }

    /// Hands the datagrams that have arrived to `take`, at most `room` of them, and the addresses where nothing listens to `unreachable`.
    /// When there is nothing yet, the next send wakes `waker`.
    pub(super) fn receive(
        &mut self,
        socket: u64,
        room: usize,
        waker: &Waker,
        mut take: impl FnMut(usize, &RecvFrom<'_>),
        mut unreachable: impl FnMut(SocketAddr),
    ) -> Arrivals {
        let Some(&addr) = self.places.get(&socket) else {
            return Arrivals::Nothing;
        };
        let now = Instant::now();
        let mut taken = 0;
        while taken < room {
            let Some(datagram) = self.hosts.get_mut(&addr).and_then(|host| host.take_arrived(now)) else {
                break;
            };
            let fate = match self.passes(datagram.from, addr) {
                true => datagram.fate,
                false => Fate::Cut,
            };
            let at = self.since_epoch(now);
            self.trace.datagram(at, datagram.from, addr, datagram.body.len(), fate);
            if fate == Fate::Unreachable {
                unreachable(datagram.from);
            } else if fate != Fate::Cut {
                let ecn = datagram.ecn.and_then(EcnCodepoint::from_bits);
                let arrived = RecvFrom {
                    from: datagram.from,
                    to: addr,
                    ecn,
                    body: &datagram.body,
                };
                take(taken, &arrived);
                taken += 1;
            }
        }
        if taken > 0 {
            return Arrivals::Taken(taken);
        }
        let Some(host) = self.hosts.get_mut(&addr) else {
            return Arrivals::Nothing;
        };
        match &mut host.waker {
            Some(known) => known.clone_from(waker),
            unset => *unset = Some(waker.clone()),
        }
        match host.arriving.peek() {
            Some(Reverse(next)) if host.held.is_none() => Arrivals::Next(next.at),
            _ => Arrivals::Nothing,
        }
    }
}

impl Host {
    /// The next datagram that has arrived, unless the host is paused.
    fn take_arrived(&mut self, now: Instant) -> Option<Datagram> {
        if self.held.is_some() || self.arriving.peek()?.0.at > now {
            return None;
        }
        self.arriving.pop().map(|Reverse(datagram)| datagram)
    }
}
