//! Fair shares of one limited resource: a newcomer takes from the largest holder.
//!
//! A resource is anything that peers can use up: connections, call slots, bytes, records. [`Shares`] counts how much each
//! holder has. A holder is a peer within a network, so the resource is divided in two steps: between networks first, then
//! between the peers of a network. One host with many identities gets the share of one network.
//!
//! **The rule** is max-min fairness (Bertsekas and Gallager, *Data Networks*, 2nd edition, 1992, section 6.5.2). While the
//! resource has room, every request is granted, however much its holder has. When it is full, the largest holder gives way as
//! long as it keeps more than the newcomer gets; this is the buffer stealing of McKenney, *Stochastic Fairness Queueing*, 1990.
//! Repeating that step leads to the allocation in which a holder can gain only from a holder that has no more than itself.
//!
//! **Laws**, for `n` networks and a capacity `c`:
//! - all holders together never hold more than `c`;
//! - a request is refused only when no other network holds more than the newcomer's network would, and no other peer of that
//!   network holds more than the newcomer would;
//! - so a request that keeps its network within `c / n` is refused only for the sake of peers of the same network;
//! - a holder that gives way always has more than the newcomer gets, so two holders never take turns.
//!
//! `Shares` decides and does nothing else. The owner of the resource evicts an item of the holder that gives way, reports it
//! with [`Shares::release`], and asks again. There is no clock here: the owner passes a number that grows with time.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

/// The addresses that one party usually owns together: an IPv4 /24 or an IPv6 /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Network {
    /// The address is not known. All such peers count as one network.
    Unknown,
    /// The first 24 bits of an IPv4 address.
    V4([u8; 3]),
    /// The first 64 bits of an IPv6 address.
    V6([u8; 8]),
}

impl Network {
    /// The network of an address. An IPv4-mapped IPv6 address counts as its IPv4 address.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let [a, b, c, _] = ip.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(ip) => Self::V6(prefix(ip)),
        }
    }
}

impl From<Option<IpAddr>> for Network {
    fn from(ip: Option<IpAddr>) -> Self {
        ip.map_or(Self::Unknown, Self::of)
    }
}

fn prefix(ip: Ipv6Addr) -> [u8; 8] {
    let [a, b, c, d, e, f, g, h, ..] = ip.octets();
    [a, b, c, d, e, f, g, h]
}

/// A holder: a peer within its network.
///
/// `P` tells peers apart: a [`NodeId`](crate::NodeId) once it is proven, an address before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder<P> {
    /// The network.
    pub network: Network,
    /// The peer in it.
    pub peer: P,
}

impl<P> Holder<P> {
    /// The holder `peer` in `network`.
    pub fn new(network: Network, peer: P) -> Self {
        Self { network, peer }
    }
}

/// The answer to a request for a part of the resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Admission<P> {
    /// The amount is charged to the holder.
    Granted,
    /// Nothing is charged yet. Evict something of this holder, release it, and ask again.
    Evict(Holder<P>),
    /// Nothing is charged. The newcomer has its share, or asks for more than there is.
    Refused,
}

/// How much a peer or a network holds, and its place in the order of eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    amount: u64,
    /// When it last got something.
    at: u64,
    /// Tells entries of the same amount and time apart.
    serial: u64,
}

/// The order of eviction: the largest is last, and of equals the one that got something longest ago.
type Rank = (u64, Reverse<u64>, Reverse<u64>);

impl Held {
    fn rank(&self) -> Rank {
        (self.amount, Reverse(self.at), Reverse(self.serial))
    }
}

/// How much each holder has of one resource.
///
/// Amounts are in units that the owner chooses. A holder has at least one unit, so there are never more holders than
/// [`Shares::capacity`], and memory is bounded by it: about 200 bytes a holder. Count large resources in large units, such as
/// memory in KiB. Every operation takes O(log n) for n holders.
///
/// ```
/// use macula_wire::{Admission, Holder, Network, Shares};
///
/// let mut slots = Shares::new(3);
/// let flooder = Holder::new(Network::V4([203, 0, 113]), "flooder");
/// let honest = Holder::new(Network::V4([198, 51, 100]), "honest");
///
/// // While there is room, a holder may take everything.
/// for at in 0..3 {
///     assert_eq!(slots.admit(&flooder, 1, at), Admission::Granted);
/// }
/// // Then it gives way, and cannot take the place back.
/// assert_eq!(slots.admit(&honest, 1, 3), Admission::Evict(flooder));
/// slots.release(&flooder, 1);
/// assert_eq!(slots.admit(&honest, 1, 3), Admission::Granted);
/// assert_eq!(slots.admit(&flooder, 1, 4), Admission::Refused);
/// ```
#[derive(Debug, Clone)]
pub struct Shares<P> {
    capacity: u64,
    used: u64,
    networks: BTreeMap<Network, Held>,
    networks_by_rank: BTreeMap<Rank, Network>,
    peers: BTreeMap<Holder<P>, Held>,
    /// The peers of each network by rank.
    peers_by_rank: BTreeMap<(Network, Rank), P>,
    serial: u64,
}

impl<P: Ord + Clone> Shares<P> {
    /// A resource of `capacity` units, all of them free.
    #[must_use]
    pub fn new(capacity: u64) -> Self {
        Self {
            capacity,
            used: 0,
            networks: BTreeMap::new(),
            networks_by_rank: BTreeMap::new(),
            peers: BTreeMap::new(),
            peers_by_rank: BTreeMap::new(),
            serial: 0,
        }
    }

    /// Asks for `amount` units for `holder`; 0 counts as 1.
    ///
    /// `at` is a number that does not fall from call to call, such as a time. Of two equally large holders the one that was
    /// granted something longer ago gives way first.
    ///
    /// After [`Admission::Evict`] the owner evicts, calls [`Shares::release`] and asks again. That ends: each round frees at
    /// least one unit. A request for much more than the newcomer's share may end with [`Admission::Refused`] after larger
    /// holders were brought down to its size.
    pub fn admit(&mut self, holder: &Holder<P>, amount: u64, at: u64) -> Admission<P> {
        let amount = amount.max(1);
        if self.fits(amount) {
            self.charge(holder, amount, at);
            return Admission::Granted;
        }
        match self.victim(holder, amount) {
            Some(victim) => Admission::Evict(victim),
            None => Admission::Refused,
        }
    }

    /// The holder that gives way for `amount` units of `newcomer` when the resource is full; 0 counts as 1.
    ///
    /// `None` when no holder has to give way. [`Shares::admit`] asks this only when there is no room; an owner with a further
    /// limit of its own asks it when that limit is reached.
    #[must_use]
    pub fn victim(&self, newcomer: &Holder<P>, amount: u64) -> Option<Holder<P>> {
        let amount = amount.max(1);
        if amount > self.capacity {
            return None;
        }
        let network_gets = self.network_holds(newcomer.network) + amount;
        if let Some((_, largest)) = self.networks_by_rank.last_key_value()
            && *largest != newcomer.network
            && self.network_holds(*largest) > network_gets
        {
            return self.largest_peer(*largest);
        }
        self.victim_within(newcomer, amount)
    }

    /// As [`Shares::victim`], among the peers of the newcomer's own network: for a network that has a limit of its own.
    #[must_use]
    pub fn victim_within(&self, newcomer: &Holder<P>, amount: u64) -> Option<Holder<P>> {
        let amount = amount.max(1);
        let largest = self.largest_peer(newcomer.network)?;
        (self.holds(&largest) > self.holds(newcomer) + amount).then_some(largest)
    }

    /// Whether `newcomer` may have a unit that `holder` does not need, such as an idle one, although no holder has to give way. It may
    /// when it holds less, and so ends up with no more than `holder` had.
    #[must_use]
    pub fn may_replace(&self, newcomer: &Holder<P>, holder: &Holder<P>) -> bool {
        if newcomer.network == holder.network {
            newcomer.peer == holder.peer || self.holds(newcomer) < self.holds(holder)
        } else {
            self.network_holds(newcomer.network) < self.network_holds(holder.network)
        }
    }

    /// Whether `amount` units are free.
    #[must_use]
    pub fn fits(&self, amount: u64) -> bool {
        amount <= self.capacity - self.used
    }

    /// Gives back `amount` units of `holder`; more than it holds counts as all it holds.
    pub fn release(&mut self, holder: &Holder<P>, amount: u64) {
        let amount = amount.min(self.holds(holder));
        if amount == 0 {
            return;
        }
        let at = self.peers.get(holder).map_or(0, |held| held.at);
        self.set_peer(holder, self.holds(holder) - amount, at);
        let network_at = self.networks.get(&holder.network).map_or(0, |held| held.at);
        self.set_network(holder.network, self.network_holds(holder.network) - amount, network_at);
        self.used -= amount;
    }

    /// The units there are.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The units that are held.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used
    }

    /// The units that `holder` holds.
    #[must_use]
    pub fn holds(&self, holder: &Holder<P>) -> u64 {
        self.peers.get(holder).map_or(0, |held| held.amount)
    }

    /// The units that all peers of `network` hold.
    #[must_use]
    pub fn network_holds(&self, network: Network) -> u64 {
        self.networks.get(&network).map_or(0, |held| held.amount)
    }

    /// The number of holders.
    #[must_use]
    pub fn holders(&self) -> usize {
        self.peers.len()
    }

    /// The largest holder of the network that holds most; `None` when nothing is held.
    #[must_use]
    pub fn largest(&self) -> Option<Holder<P>> {
        let (_, network) = self.networks_by_rank.last_key_value()?;
        self.largest_peer(*network)
    }

    fn largest_peer(&self, network: Network) -> Option<Holder<P>> {
        let last = (network, (u64::MAX, Reverse(0), Reverse(0)));
        let first = (network, (0, Reverse(u64::MAX), Reverse(u64::MAX)));
        let (_, peer) = self.peers_by_rank.range(first..=last).next_back()?;
        Some(Holder::new(network, peer.clone()))
    }

    fn charge(&mut self, holder: &Holder<P>, amount: u64, at: u64) {
        self.used += amount;
        self.set_peer(holder, self.holds(holder) + amount, at);
        self.set_network(holder.network, self.network_holds(holder.network) + amount, at);
    }

    fn set_peer(&mut self, holder: &Holder<P>, amount: u64, at: u64) {
        if let Some(before) = self.peers.remove(holder) {
            self.peers_by_rank.remove(&(holder.network, before.rank()));
        }
        if amount > 0 {
            let held = self.entry(amount, at);
            self.peers_by_rank
                .insert((holder.network, held.rank()), holder.peer.clone());
            self.peers.insert(holder.clone(), held);
        }
    }

    fn set_network(&mut self, network: Network, amount: u64, at: u64) {
        if let Some(before) = self.networks.remove(&network) {
            self.networks_by_rank.remove(&before.rank());
        }
        if amount > 0 {
            let held = self.entry(amount, at);
            self.networks_by_rank.insert(held.rank(), network);
            self.networks.insert(network, held);
        }
    }

    fn entry(&mut self, amount: u64, at: u64) -> Held {
        self.serial += 1;
        Held {
            amount,
            at,
            serial: self.serial,
        }
    }
}
