//! The rates at which peers may ask: token buckets for each peer, and for signature checks.
//!
//! A request costs a token, and another for every kibibyte of its reply. So a peer's bucket bounds the bytes it gets out of this
//! node (amplification). Signature checks are the one expensive thing that a peer can cause. All peers share a
//! bucket for them, of which a network gets one part and each other network that asks another; one part more is left for a newcomer. Each
//! check costs the peer [`CHECKED`] tokens of its own too, or
//! [`FORGED`] when the signature is wrong, so that no peer uses up the budget of all.
//!
//! **Invariant:** at most [`RateLimits::peers`] buckets of peers are held, and as many of networks. A full bucket says nothing and
//! is forgotten.

use std::{collections::HashMap, hash::Hash, time::Duration};

use macula_wire::{Network, NodeId};

use crate::{
    clock::{Tick, nanos},
    keyed::Keyed,
};

/// How fast peers may ask.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateLimits {
    /// Tokens that a peer gains in a second.
    pub per_second: f64,
    /// Tokens that a peer can save up.
    pub burst: f64,
    /// The most peers that are told apart; the others share one bucket.
    pub peers: usize,
    /// Signatures checked in a second, shared by the networks that ask; one network alone gets half.
    pub signatures_per_second: f64,
    /// Signatures checked at once after a quiet time, shared in the same way.
    pub signature_burst: f64,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self {
            per_second: 500.0,
            burst: 2000.0,
            peers: 4096,
            signatures_per_second: 4000.0,
            signature_burst: 8000.0,
        }
    }
}

/// The cost of a lookup to the peer it is for, in tokens: about as many requests as this node sends for it.
pub const PEER_LOOKUP_COST: u8 = 20;
/// The cost of a record with a sound signature to the peer that brought it, in tokens: a hand-over brings thousands.
const CHECKED: f32 = 0.25;
/// The cost of a forged record. Honest nodes check the records they pass on.
const FORGED: f32 = 20.0;
/// How long a network counts among those that ask after its bucket is full again, at most, in nanoseconds.
const NETWORKS_EVERY: Tick = 1_000_000_000;
/// The shortest time between two searches for full buckets when there is no room for another, in nanoseconds: a crowd of
/// strangers does not make every request cost a walk through all buckets.
const SWEEP_EVERY: Tick = 10_000_000;
/// The least number of buckets at which full ones are looked for.
const SWEEP_MIN: usize = 14;

#[derive(Debug, Clone, Copy)]
struct Rate {
    per_second: f64,
    burst: f64,
}

#[derive(Debug, Clone, Copy)]
struct TokenBucket {
    tokens: f32,
    since: Tick,
}

impl TokenBucket {
    fn full(rate: Rate, tick: Tick) -> Self {
        Self {
            tokens: rate.burst as f32,
            since: tick,
        }
    }

    fn refill(&mut self, rate: Rate, tick: Tick) {
        let gained = Duration::from_nanos(tick.saturating_sub(self.since)).as_secs_f64() * rate.per_second;
        self.tokens = (f64::from(self.tokens) + gained).min(rate.burst) as f32;
        self.since = tick;
    }

    /// Takes a token if there is one.
    fn take(&mut self, rate: Rate, tick: Tick) -> bool {
        self.refill(rate, tick);
        let has_one = self.tokens >= 1.0;
        self.tokens -= if has_one { 1.0 } else { 0.0 };
        has_one
    }

    /// When it is full again.
    fn full_at(&self, rate: Rate) -> Tick {
        let missing = (rate.burst - f64::from(self.tokens)).max(0.0);
        let wait = Duration::try_from_secs_f64(missing / rate.per_second.max(1e-9)).unwrap_or(Duration::MAX);
        self.since.saturating_add(nanos(wait))
    }
}

/// A bucket for each `K`, all of one rate.
#[derive(Debug)]
struct Buckets<K> {
    rate: Rate,
    most: usize,
    /// By a keyed hash, since peers choose their ids. Nothing depends on the order.
    each: HashMap<K, TokenBucket, Keyed>,
    /// The bucket of all beyond `most`.
    others: TokenBucket,
    /// The number of buckets at which full ones are looked for again.
    sweep_at: usize,
    swept: Option<Tick>,
}

impl<K: Eq + Hash + Copy> Buckets<K> {
    fn new(rate: Rate, most: usize, seed: u64) -> Self {
        Self {
            rate,
            most,
            each: HashMap::with_hasher(Keyed::new(seed)),
            others: TokenBucket::full(rate, 0),
            sweep_at: SWEEP_MIN,
            swept: None,
        }
    }

    fn of(&mut self, tick: Tick, key: &K) -> &mut TokenBucket {
        if !self.each.contains_key(key) {
            let is_due = self.swept.is_none_or(|swept| tick.saturating_sub(swept) >= SWEEP_EVERY);
            if self.each.len() >= self.sweep_at || (is_due && self.each.len() >= self.most) {
                self.sweep(tick);
            }
            if self.each.len() >= self.most {
                return &mut self.others;
            }
        }
        let rate = self.rate;
        self.each.entry(*key).or_insert_with(|| TokenBucket::full(rate, tick))
    }

    fn take(&mut self, tick: Tick, key: &K) -> bool {
        let rate = self.rate;
        self.of(tick, key).take(rate, tick)
    }

    fn sweep(&mut self, tick: Tick) {
        let rate = self.rate;
        self.each.retain(|_, bucket| bucket.full_at(rate) > tick);
        self.swept = Some(tick);
        self.sweep_at = (2 * self.each.len()).max(SWEEP_MIN);
        if self.each.is_empty() || self.each.capacity() > 2 * self.sweep_at {
            self.each.shrink_to(self.each.len());
        }
    }
}

/// The buckets.
#[derive(Debug)]
pub(crate) struct Limiter {
    peers: Buckets<NodeId>,
    /// The signature checks of each network.
    networks: Buckets<Network>,
    /// The signature checks of all networks.
    signature_rate: Rate,
    signatures: TokenBucket,
}

impl Limiter {
    pub(crate) fn new(limits: RateLimits, seed: u64) -> Self {
        let asking = Rate {
            per_second: limits.per_second,
            burst: limits.burst,
        };
        let signature_rate = Rate {
            per_second: limits.signatures_per_second,
            burst: limits.signature_burst,
        };
        Self {
            peers: Buckets::new(asking, limits.peers, seed),
            networks: Buckets::new(signature_rate, limits.peers, seed),
            signature_rate,
            signatures: TokenBucket::full(signature_rate, 0),
        }
    }

    /// Whether `peer` may ask now.
    pub(crate) fn admit(&mut self, tick: Tick, peer: &NodeId) -> bool {
        self.peers.take(tick, peer)
    }

    /// Whether a lookup may be started for `peer` now.
    pub(crate) fn admit_lookup(&mut self, tick: Tick, peer: &NodeId) -> bool {
        let admitted = self.admit(tick, peer);
        if admitted {
            self.peers.of(tick, peer).tokens -= f32::from(PEER_LOOKUP_COST) - 1.0;
        }
        admitted
    }

    /// Charges `peer` for a reply of `bytes`; its bucket may go below zero.
    pub(crate) fn charge(&mut self, tick: Tick, peer: &NodeId, bytes: usize) {
        self.peers.of(tick, peer).tokens -= (bytes / 1024) as f32;
    }

    /// Charges `peer` for a signature that was checked.
    pub(crate) fn charge_signature(&mut self, tick: Tick, peer: &NodeId, sound: bool) {
        self.peers.of(tick, peer).tokens -= if sound { CHECKED } else { FORGED };
    }

    /// Whether another signature may be checked now for a peer of `network`.
    pub(crate) fn admit_signature(&mut self, tick: Tick, network: Network) -> bool {
        if self
            .networks
            .swept
            .is_none_or(|swept| tick.saturating_sub(swept) >= NETWORKS_EVERY)
        {
            self.networks.sweep(tick);
        }
        let known = self.networks.each.contains_key(&network);
        // One part for each network that asks, and one for a newcomer. So the parts never add up to all of it.
        let parts = (self.networks.each.len() + usize::from(!known) + 1) as f64;
        self.networks.rate = Rate {
            per_second: self.signature_rate.per_second / parts,
            burst: (self.signature_rate.burst / parts).max(1.0),
        };
        self.networks.take(tick, &network) && self.signatures.take(self.signature_rate, tick)
    }

    /// Forgets buckets that are full again.
    pub(crate) fn sweep(&mut self, tick: Tick) {
        self.peers.sweep(tick);
        self.networks.sweep(tick);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Tick = 1_000_000_000;

    fn limiter() -> Limiter {
        Limiter::new(
            RateLimits {
                per_second: 2.0,
                burst: 4.0,
                peers: 20,
                signatures_per_second: 2.0,
                signature_burst: 4.0,
            },
            1,
        )
    }

    fn peer(n: u8) -> NodeId {
        NodeId::from_bytes([n; 32])
    }

    #[test]
    fn a_peer_that_asks_too_fast_waits_and_others_do_not() {
        let mut limiter = limiter();
        let admitted = (0..10).filter(|_| limiter.admit(0, &peer(1))).count();
        assert_eq!(admitted, 4);
        assert!(limiter.admit(0, &peer(2)));
        assert!(limiter.admit(SECOND, &peer(1)) && limiter.admit(SECOND, &peer(1)));
        assert!(!limiter.admit(SECOND, &peer(1)));
    }

    #[test]
    fn large_replies_cost_more() {
        let mut limiter = limiter();
        assert!(limiter.admit(0, &peer(1)));
        limiter.charge(0, &peer(1), 16 * 1024);
        assert!(!limiter.admit(SECOND, &peer(1)));
        assert!(limiter.admit(8 * SECOND, &peer(1)));
    }

    #[test]
    fn peers_beyond_the_limit_share_one_bucket_until_others_are_forgotten() {
        let mut limiter = limiter();
        assert!((0..20).all(|n| limiter.admit(0, &peer(n))));
        let admitted = (100..200).filter(|&n| limiter.admit(0, &peer(n))).count();
        assert_eq!(admitted, 4);
        assert_eq!(limiter.peers.each.len(), 20);
        assert!(
            (100..120).all(|n| limiter.admit(SECOND, &peer(n))),
            "all are full again after a second"
        );
        assert!(limiter.peers.each.len() <= 20);
    }

    /// Networks that take all they can leave some to each newcomer, and all together get no more than there is.
    #[test]
    fn x12_a_network_does_not_use_up_the_signature_checks_of_all() {
        let mut limiter = limiter();
        let network = |n| Network::V4([203, 0, n]);
        let mut admitted = |n, tick| (0..10).filter(|_| limiter.admit_signature(tick, network(n))).count();
        assert_eq!((admitted(1, 0), admitted(2, 0), admitted(3, 0)), (2, 1, 1));
        assert_eq!(admitted(4, 0), 0, "no more than there is");
        let mut flood = 0;
        for second in 1..20 {
            flood += admitted(1, second * SECOND) + admitted(2, second * SECOND);
        }
        assert!(flood < 2 * 19, "a part is left");
        assert_eq!(admitted(5, 20 * SECOND), 1, "a newcomer is not kept out");
    }
}
