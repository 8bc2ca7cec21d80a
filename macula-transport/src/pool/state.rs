//! The pool's policy: which node is dialed, which connection is handed out, which one makes room (P1, P2).
//!
//! A core: no clock, no lock, no socket. The shell asks, performs what [`PoolState::poll_output`] says, and reports back.
//!
//! **Invariants:**
//! - at most one dial to a peer is under way, and to an address whose peer is not known;
//! - dialed connections and dials together never exceed the limit, and those for peers not half of it;
//! - no network and no peer has more than its limit of the accepted connections;
//! - a peer that dials takes the place of a holder that has more, as [`Shares`] says; among the connections of one holder, the least
//!   recently used idle one goes first; where no holder has to give way, the peer takes the idle place of one that has more than itself;
//! - a connection in use is closed only for a peer that has fewer;
//! - a peer that failed is not dialed again before its pause is over, unless it is now known at another address.
//!
//! Left out: whether a connection is in use. Calls are counted elsewhere, so it is an argument.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, Instant},
};

use macula_wire::{Admission, Holder, Shares};
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

use crate::config::{Limits, PoolConfig};

/// Names a connection within the pool; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnectionId(pub(crate) u64);

/// Names a dial under way; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(u64);

/// How many connections of peers that dial are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AcceptLimits {
    pub(crate) all: usize,
    /// From one network.
    pub(crate) each_network: usize,
    /// Of one peer.
    pub(crate) each_peer: usize,
}

impl AcceptLimits {
    /// Those of an endpoint with memory for so many connections.
    pub(crate) fn new(limits: &Limits, memory_for: usize) -> Self {
        Self {
            all: limits.max_accepted.min(memory_for),
            each_network: limits.max_accepted_per_network,
            each_peer: limits.max_accepted_per_peer,
        }
    }
}

/// Which side made a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Dialed,
    Accepted,
}

/// What is going on over a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    /// A handle to it exists, or calls are running.
    Busy,
    /// It is unused since then.
    IdleSince(Instant),
}

/// The answer to a request for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Use this one.
    Ready(ConnectionId),
    /// A dial is under way: wait for its outcome.
    Join(Ticket),
    /// Dial, and report with this ticket.
    Dial(Ticket),
    /// A dial failed lately: not before this time.
    BackOff(Instant),
    /// Every connection is in use.
    Full,
}

/// Why the pool closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closing {
    /// It made room for another.
    Evicted,
    /// It was unused for too long.
    Idle,
}

/// What the shell must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Close a connection; the pool has forgotten it already.
    Close(ConnectionId, Closing),
    /// Close a connection although it is in use; the pool has forgotten it already.
    Displace(ConnectionId),
    /// Close a connection once nothing runs on it; it is not handed out again.
    Retire(ConnectionId),
}

/// How a dial ended badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DialFailure {
    /// No node answered.
    Unreachable,
    /// The peer said no.
    Refused,
}

/// What the pool has counted since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) opened: u64,
    pub(crate) accepted: u64,
    pub(crate) dial_failures: u64,
    pub(crate) evicted: u64,
    pub(crate) idled: u64,
    pub(crate) aged: u64,
}

/// Whose need a connection is dialed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DialedFor {
    /// This node's own.
    Itself,
    /// A peer's, whose call is passed on.
    Peers,
}

/// A dial under way.
#[derive(Debug)]
struct Dial<P> {
    to: Dialed<P>,
    by: DialedFor,
}

/// Which node is dialed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Dialed<P> {
    /// This one. While it is dialed at an old address it can be dialed at the new one, too.
    Peer { peer: P, addresses: u64 },
    /// The node at this address.
    Anyone { at: u64 },
}

#[derive(Debug)]
struct Entry<P> {
    peer: P,
    origin: Origin,
    /// Of a dialed one: it is this node's own once this node has used it.
    by: DialedFor,
    /// No longer handed out; closed when it is no longer used.
    retired: bool,
    /// When it is next looked at for being idle.
    check_at: Instant,
    /// When it is old.
    old_at: Option<Instant>,
    /// The address it was made to when the node there was not known.
    found_at: Option<u64>,
    /// Whose share an accepted one takes from.
    holder: Option<Holder<P>>,
}

#[derive(Debug)]
struct Failing<F> {
    /// Of the addresses that failed.
    addresses: u64,
    until: Instant,
    pause: Duration,
    cause: F,
}

/// How many failing peers are remembered; beyond it the one that may soonest be dialed again is forgotten.
const MAX_FAILING: usize = 4096;
/// How much longer each pause is than the one before.
const BACKOFF_FACTOR: f64 = 1.6;
/// How far a connection's greatest age varies, either way: connections made together do not end together.
const AGE_SPREAD: f64 = 0.1;
/// How far a pause varies, either way.
const BACKOFF_SPREAD: f64 = 0.2;

/// The pool's policy. `P` names a peer, `F` says why a dial failed.
#[derive(Debug)]
pub(crate) struct PoolState<P, F> {
    config: PoolConfig,
    limits: AcceptLimits,
    /// The accepted connections.
    accepted: Shares<P>,
    entries: BTreeMap<ConnectionId, Entry<P>>,
    /// The connection that is handed out for a peer.
    current: BTreeMap<P, ConnectionId>,
    /// The dials under way.
    dials: BTreeMap<Ticket, Dial<P>>,
    failing: BTreeMap<P, Failing<F>>,
    outputs: VecDeque<Output>,
    next: u64,
    rng: SplitMix64,
    counts: Counts,
}

/// A number for a set of addresses, to see whether a peer is known at new ones.
pub(crate) fn fingerprint<A: Hash>(addresses: &[A]) -> u64 {
    let mut hasher = DefaultHasher::new();
    addresses.hash(&mut hasher);
    hasher.finish()
}

impl<P: Ord + Clone, F> PoolState<P, F> {
    pub(crate) fn new(config: PoolConfig, limits: AcceptLimits, seed: u64) -> Self {
        Self {
            config,
            limits,
            accepted: Shares::new(limits.all as u64),
            entries: BTreeMap::new(),
            current: BTreeMap::new(),
            dials: BTreeMap::new(),
            failing: BTreeMap::new(),
            outputs: VecDeque::new(),
            next: 0,
            rng: SplitMix64::seed_from_u64(seed),
            counts: Counts::default(),
        }
    }

    /// A connection to `peer`, or the step that must come first.
    pub(crate) fn get(
        &mut self,
        now: Instant,
        peer: &P,
        addresses: u64,
        by: DialedFor,
        activity: impl Fn(ConnectionId) -> Activity,
    ) -> Answer {
        if let Some(&connection) = self.current.get(peer) {
            if by == DialedFor::Itself
                && let Some(entry) = self.entries.get_mut(&connection)
            {
                entry.by = by;
            }
            return Answer::Ready(connection);
        }
        let dial = Dialed::Peer {
            peer: peer.clone(),
            addresses,
        };
        if let Some(ticket) = self.dial_under_way(&dial, by) {
            return Answer::Join(ticket);
        }
        if let Some(failing) = self
            .failing
            .get(peer)
            .filter(|it| it.addresses == addresses && now < it.until)
        {
            return Answer::BackOff(failing.until);
        }
        self.start_dial(dial, by, activity)
    }

    /// The connection that is handed out for `peer`, if one is open.
    pub(crate) fn current(&self, peer: &P) -> Option<ConnectionId> {
        self.current.get(peer).copied()
    }

    /// The other connections that may be handed out for the peer of `connection`.
    pub(crate) fn others(&self, connection: ConnectionId) -> impl Iterator<Item = ConnectionId> {
        let peer = self.entries.get(&connection).map(|entry| &entry.peer);
        let others = self
            .entries
            .iter()
            .filter(move |(id, entry)| **id != connection && !entry.retired && Some(&entry.peer) == peer);
        others.map(|(&id, _)| id)
    }

    /// A connection to the node at an address: the one that was made to it before, or the step that must come first.
    pub(crate) fn get_anyone(&mut self, at: u64, activity: impl Fn(ConnectionId) -> Activity) -> Answer {
        let found = self
            .entries
            .iter()
            .find(|(_, it)| it.found_at == Some(at) && !it.retired);
        if let Some((&connection, _)) = found {
            return Answer::Ready(connection);
        }
        let dial = Dialed::Anyone { at };
        match self.dial_under_way(&dial, DialedFor::Itself) {
            Some(ticket) => Answer::Join(ticket),
            None => self.start_dial(dial, DialedFor::Itself, activity),
        }
    }

    /// Dials are few: the table is no larger than the pool.
    fn dial_under_way(&mut self, to: &Dialed<P>, by: DialedFor) -> Option<Ticket> {
        let (&ticket, dial) = self.dials.iter_mut().find(|(_, dial)| dial.to == *to)?;
        if by == DialedFor::Itself {
            dial.by = by;
        }
        Some(ticket)
    }

    fn start_dial(&mut self, to: Dialed<P>, by: DialedFor, activity: impl Fn(ConnectionId) -> Activity) -> Answer {
        let for_peers = |entry: &Entry<P>| entry.origin == Origin::Dialed && entry.by == DialedFor::Peers;
        if by == DialedFor::Peers {
            let dials = self.dials.values().filter(|dial| dial.by == by).count();
            let dialed = self.entries.values().filter(|entry| for_peers(entry)).count();
            if dialed + dials >= self.config.max_connections.div_ceil(2) && !self.make_room(&activity, for_peers) {
                return Answer::Full;
            }
        }
        let dialed = self
            .entries
            .values()
            .filter(|entry| entry.origin == Origin::Dialed)
            .count();
        if dialed + self.dials.len() >= self.config.max_connections
            && !self.make_room(&activity, |entry| entry.origin == Origin::Dialed)
        {
            return Answer::Full;
        }
        let ticket = Ticket(self.fresh());
        self.dials.insert(ticket, Dial { to, by });
        Answer::Dial(ticket)
    }

    /// A dial has succeeded. The connection is `peer`'s, whichever node was dialed.
    ///
    /// When the peer dialed us in the meantime, both connections stay until one is idle; the older one is handed out, unless it is retired.
    pub(crate) fn dialed(&mut self, now: Instant, ticket: Ticket, peer: P) -> ConnectionId {
        let dial = self.dials.remove(&ticket);
        let by = dial.as_ref().map_or(DialedFor::Itself, |dial| dial.by);
        let found_at = match dial.map(|dial| dial.to) {
            Some(Dialed::Anyone { at }) => Some(at),
            Some(Dialed::Peer { .. }) | None => None,
        };
        self.counts.opened += 1;
        let connection = self.insert(now, peer, Origin::Dialed, found_at, None);
        if let Some(entry) = self.entries.get_mut(&connection) {
            entry.by = by;
        }
        connection
    }

    /// A dial has failed; the peer, when it was named, is left alone for a while.
    pub(crate) fn dial_failed(&mut self, now: Instant, ticket: Ticket, failure: DialFailure, cause: F) {
        self.counts.dial_failures += 1;
        let Some(Dialed::Peer { peer, addresses }) = self.dials.remove(&ticket).map(|dial| dial.to) else {
            return;
        };
        let longest = match failure {
            DialFailure::Unreachable => self.config.max_backoff,
            DialFailure::Refused => self.config.max_refused_backoff,
        };
        let before = self.failing.get(&peer).filter(|failing| failing.addresses == addresses);
        let pause = match before {
            Some(failing) => failing.pause.mul_f64(BACKOFF_FACTOR).min(longest),
            None => self.config.first_backoff.min(longest),
        };
        let spread = 1.0 + BACKOFF_SPREAD * (2.0 * self.random() - 1.0);
        let until = now + pause.mul_f64(spread).min(longest);
        if self.failing.len() >= MAX_FAILING && !self.failing.contains_key(&peer) {
            let soonest = self
                .failing
                .iter()
                .min_by_key(|(_, failing)| failing.until)
                .map(|(peer, _)| peer.clone());
            soonest.and_then(|peer| self.failing.remove(&peer));
        }
        self.failing.insert(
            peer,
            Failing {
                addresses,
                until,
                pause,
                cause,
            },
        );
    }

    /// Why the last dial to `peer` failed, while that is remembered.
    pub(crate) fn failure(&self, peer: &P) -> Option<&F> {
        self.failing.get(peer).map(|failing| &failing.cause)
    }

    /// A peer has dialed us; `None` when there are as many such connections as are taken, and no holder has to give way.
    pub(crate) fn accepted(
        &mut self,
        now: Instant,
        holder: Holder<P>,
        activity: impl Fn(ConnectionId) -> Activity,
    ) -> Option<ConnectionId> {
        let held = |it: &Entry<P>, by: &Holder<P>| it.holder.as_ref() == Some(by);
        let of_peer = |it: &Entry<P>| it.holder.as_ref().is_some_and(|it| it.peer == holder.peer);
        let in_network = |it: &Entry<P>| it.holder.as_ref().is_some_and(|it| it.network == holder.network);
        let room = if self.entries.values().filter(|it| of_peer(it)).count() >= self.limits.each_peer {
            self.displace(&activity, of_peer)
        } else if self.accepted.network_holds(holder.network) >= self.limits.each_network as u64 {
            // A network that has its share makes room among its own.
            match self.accepted.victim_within(&holder, 1) {
                Some(largest) => self.displace(&activity, |it| held(it, &largest)),
                None => self.make_room(&activity, in_network),
            }
        } else if !self.accepted.fits(1) {
            match self.accepted.victim(&holder, 1) {
                Some(largest) => self.displace(&activity, |it| held(it, &largest)),
                None => {
                    let may_replace = |it: &Holder<P>| self.accepted.may_replace(&holder, it);
                    let idle = self.idlest(&activity, |it| it.holder.as_ref().is_some_and(may_replace));
                    self.evict_idle(idle)
                }
            }
        } else {
            true
        };
        if !room || self.accepted.admit(&holder, 1, self.next) != Admission::Granted {
            return None;
        }
        self.counts.accepted += 1;
        Some(self.insert(now, holder.peer.clone(), Origin::Accepted, None, Some(holder)))
    }

    fn insert(
        &mut self,
        now: Instant,
        peer: P,
        origin: Origin,
        found_at: Option<u64>,
        holder: Option<Holder<P>>,
    ) -> ConnectionId {
        let connection = ConnectionId(self.fresh());
        // A connected node is there: it may be dialed again at once when this connection ends.
        self.failing.remove(&peer);
        self.current.entry(peer.clone()).or_insert(connection);
        let check_at = now + self.config.idle_timeout;
        let old_at = match origin {
            Origin::Dialed => Some(
                now + self
                    .config
                    .max_age
                    .mul_f64(1.0 + AGE_SPREAD * (2.0 * self.random() - 1.0)),
            ),
            Origin::Accepted => None,
        };
        self.entries.insert(
            connection,
            Entry {
                peer,
                origin,
                by: DialedFor::Itself,
                retired: false,
                check_at,
                old_at,
                found_at,
                holder,
            },
        );
        connection
    }

    /// A connection has ended, or is being closed by the shell.
    pub(crate) fn closed(&mut self, connection: ConnectionId) {
        if let Some(entry) = self.entries.remove(&connection) {
            if let Some(holder) = &entry.holder {
                self.accepted.release(holder, 1);
            }
            self.replace(&entry.peer, connection);
        }
    }

    /// The peer takes no further calls on a connection: it is not handed out again.
    pub(crate) fn retired(&mut self, connection: ConnectionId) {
        if let Some(entry) = self.entries.get_mut(&connection) {
            entry.retired = true;
            let peer = entry.peer.clone();
            self.replace(&peer, connection);
        }
    }

    /// Hands out another connection of `peer` in place of `connection`, if there is one.
    fn replace(&mut self, peer: &P, connection: ConnectionId) {
        if self.current.get(peer) == Some(&connection) {
            let other = self
                .entries
                .iter()
                .find(|(_, entry)| entry.peer == *peer && !entry.retired)
                .map(|(&id, _)| id);
            match other {
                Some(other) => self.current.insert(peer.clone(), other),
                None => self.current.remove(peer),
            };
        }
    }

    /// Closes the least recently used idle connection `among` some, if one is idle.
    fn make_room(&mut self, activity: &impl Fn(ConnectionId) -> Activity, among: impl Fn(&Entry<P>) -> bool) -> bool {
        let idle = self.idlest(activity, among);
        self.evict_idle(idle)
    }

    /// The least recently used idle connection `among` some.
    fn idlest(
        &self,
        activity: &impl Fn(ConnectionId) -> Activity,
        among: impl Fn(&Entry<P>) -> bool,
    ) -> Option<ConnectionId> {
        let idle = self.entries.iter().filter(|(_, entry)| among(entry));
        let idle = idle.filter_map(|(&connection, _)| match activity(connection) {
            Activity::IdleSince(since) => Some((since, connection)),
            Activity::Busy => None,
        });
        idle.min().map(|(_, connection)| connection)
    }

    fn evict_idle(&mut self, idle: Option<ConnectionId>) -> bool {
        let Some(connection) = idle else {
            return false;
        };
        self.counts.evicted += 1;
        self.close(connection, Closing::Evicted);
        true
    }

    /// Closes the least recently used idle connection `among` some, or the oldest when all are in use.
    fn displace(&mut self, activity: &impl Fn(ConnectionId) -> Activity, among: impl Fn(&Entry<P>) -> bool) -> bool {
        if self.make_room(activity, &among) {
            return true;
        }
        let Some((&oldest, _)) = self.entries.iter().find(|(_, entry)| among(entry)) else {
            return false;
        };
        self.counts.evicted += 1;
        self.closed(oldest);
        self.outputs.push_back(Output::Displace(oldest));
        true
    }

    fn close(&mut self, connection: ConnectionId, why: Closing) {
        self.closed(connection);
        self.outputs.push_back(Output::Close(connection, why));
    }

    /// Closes connections that have been idle for too long. Early or repeated calls are harmless.
    pub(crate) fn handle_timeout(&mut self, now: Instant, activity: impl Fn(ConnectionId) -> Activity) {
        let due: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.check_at <= now)
            .map(|(&connection, _)| connection)
            .collect();
        for connection in due {
            let idle_until = match activity(connection) {
                Activity::Busy => now + self.config.idle_timeout,
                Activity::IdleSince(since) => since + self.config.idle_timeout,
            };
            if idle_until <= now {
                self.counts.idled += 1;
                self.close(connection, Closing::Idle);
            } else if let Some(entry) = self.entries.get_mut(&connection) {
                entry.check_at = idle_until;
            }
        }
        let old: Vec<_> = self
            .entries
            .iter_mut()
            .filter(|(_, entry)| entry.old_at.is_some_and(|at| at <= now))
            .map(|(&connection, entry)| {
                entry.old_at = None;
                connection
            })
            .collect();
        for connection in old {
            self.counts.aged += 1;
            self.retired(connection);
            self.outputs.push_back(Output::Retire(connection));
        }
        self.failing.retain(|_, failing| now < failing.until + failing.pause);
        debug_assert!(
            self.poll_timeout().is_none_or(|at| at > now),
            "a handled timeout leaves none due"
        );
    }

    /// When [`PoolState::handle_timeout`] next has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let idle = self.entries.values().map(|entry| entry.check_at);
        let failing = self.failing.values().map(|failing| failing.until + failing.pause);
        let old = self.entries.values().filter_map(|entry| entry.old_at);
        idle.chain(old).chain(failing).min()
    }

    /// What the shell must do next; drain it after every call.
    #[must_use]
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Which side made a connection; `None` when the pool has forgotten it.
    pub(crate) fn origin(&self, id: ConnectionId) -> Option<Origin> {
        self.entries.get(&id).map(|entry| entry.origin)
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// How many connections there are, dialed and accepted.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A number in 0..1.
    fn random(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
