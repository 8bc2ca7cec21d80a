//! How fast peers may ask: a token bucket for each, one for all unknown ones together, and one for signatures.
//!
//! A request costs a token, and another for every kibibyte of its reply, so what a peer gets out of this node is bounded by
//! its bucket whatever it asks (amplification). Signature checks, the one expensive thing a peer can cause, have a bucket of
//! their own that all peers share; each costs the peer [`CHECKED`] tokens of its own too, and [`FORGED`] when the signature turns
//! out wrong, so that no peer uses up what is everybody's.
//!
//! **Invariant:** at most [`RateLimits::peers`] buckets are held. A bucket that is full again says nothing and is forgotten.

use std::{collections::HashMap, time::Duration};

use macula_wire::NodeId;

use crate::{
    clock::{Tick, nanos},
    keyed::Keyed,
};

/// How fast peers may ask.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateLimits {
    /// Tokens a peer gains in a second.
    pub per_second: f64,
    /// Tokens a peer can save up.
    pub burst: f64,
    /// The most peers that are told apart; the others share one bucket.
    pub peers: usize,
    /// Signatures checked in a second.
    pub signatures_per_second: f64,
    /// Signatures checked at once after a quiet time.
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

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f32,
    since: Tick,
}

impl Bucket {
    fn full(burst: f64, tick: Tick) -> Self {
        Self {
            tokens: burst as f32,
            since: tick,
        }
    }

    fn refill(&mut self, rate: f64, burst: f64, tick: Tick) {
        let gained = Duration::from_nanos(tick.saturating_sub(self.since)).as_secs_f64() * rate;
        self.tokens = (f64::from(self.tokens) + gained).min(burst) as f32;
        self.since = tick;
    }

    /// When it is full again.
    fn full_at(&self, rate: f64, burst: f64) -> Tick {
        let missing = (burst - f64::from(self.tokens)).max(0.0);
        let wait = Duration::try_from_secs_f64(missing / rate.max(1e-9)).unwrap_or(Duration::MAX);
        self.since.saturating_add(nanos(wait))
    }
}

/// The buckets.
#[derive(Debug)]
pub(crate) struct Limiter {
    limits: RateLimits,
    /// By a keyed hash, since peers choose their ids. Nothing depends on the order.
    peers: HashMap<NodeId, Bucket, Keyed>,
    /// That of all peers beyond [`RateLimits::peers`].
    others: Bucket,
    signatures: Bucket,
    /// The number of buckets at which full ones are looked for again.
    sweep_at: usize,
    swept: Option<Tick>,
}

/// What a lookup on behalf of a peer costs it, in tokens: about as many requests as this node sends for it.
pub const PEER_LOOKUP_COST: u8 = 20;
/// What a record with a sound signature costs the peer that brought it, in tokens: a hand-over brings thousands.
const CHECKED: f32 = 0.25;
/// What a forged one costs. Honest nodes check what they pass on.
const FORGED: f32 = 20.0;
/// The shortest time between two searches for full buckets when there is no room for another, in nanoseconds: a crowd of
/// strangers does not make every request cost a walk through all buckets.
const SWEEP_EVERY: Tick = 10_000_000;
/// The least number of buckets at which full ones are looked for.
const SWEEP_MIN: usize = 14;

impl Limiter {
    pub(crate) fn new(limits: RateLimits, seed: u64) -> Self {
        Self {
            limits,
            peers: HashMap::with_hasher(Keyed::new(seed)),
            others: Bucket::full(limits.burst, 0),
            signatures: Bucket::full(limits.signature_burst, 0),
            sweep_at: SWEEP_MIN,
            swept: None,
        }
    }

    /// Whether `peer` may ask now.
    pub(crate) fn admit(&mut self, tick: Tick, peer: &NodeId) -> bool {
        let (rate, burst) = (self.limits.per_second, self.limits.burst);
        let bucket = self.bucket(tick, peer);
        bucket.refill(rate, burst, tick);
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }

    /// Whether a lookup may be started for `peer` now.
    pub(crate) fn admit_lookup(&mut self, tick: Tick, peer: &NodeId) -> bool {
        let admitted = self.admit(tick, peer);
        if admitted {
            self.bucket(tick, peer).tokens -= f32::from(PEER_LOOKUP_COST) - 1.0;
        }
        admitted
    }

    /// Charges `peer` for a reply of `bytes`; its bucket may go below zero.
    pub(crate) fn charge(&mut self, tick: Tick, peer: &NodeId, bytes: usize) {
        self.bucket(tick, peer).tokens -= (bytes / 1024) as f32;
    }

    /// Charges `peer` for a signature that was checked.
    pub(crate) fn charge_signature(&mut self, tick: Tick, peer: &NodeId, sound: bool) {
        self.bucket(tick, peer).tokens -= if sound { CHECKED } else { FORGED };
    }

    /// Whether another signature may be checked now.
    pub(crate) fn admit_signature(&mut self, tick: Tick) -> bool {
        self.signatures
            .refill(self.limits.signatures_per_second, self.limits.signature_burst, tick);
        if self.signatures.tokens < 1.0 {
            return false;
        }
        self.signatures.tokens -= 1.0;
        true
    }

    /// Forgets buckets that are full again.
    pub(crate) fn sweep(&mut self, tick: Tick) {
        let (rate, burst) = (self.limits.per_second, self.limits.burst);
        self.peers.retain(|_, bucket| bucket.full_at(rate, burst) > tick);
        self.swept = Some(tick);
        self.sweep_at = (2 * self.peers.len()).max(SWEEP_MIN);
        if self.peers.is_empty() || self.peers.capacity() > 2 * self.sweep_at {
            self.peers.shrink_to(self.peers.len());
        }
    }

    fn bucket(&mut self, tick: Tick, peer: &NodeId) -> &mut Bucket {
        if !self.peers.contains_key(peer) {
            let is_due = self.swept.is_none_or(|swept| tick.saturating_sub(swept) >= SWEEP_EVERY);
            if self.peers.len() >= self.sweep_at || (is_due && self.peers.len() >= self.limits.peers) {
                self.sweep(tick);
            }
            if self.peers.len() >= self.limits.peers {
                return &mut self.others;
            }
        }
        self.peers
            .entry(*peer)
            .or_insert_with(|| Bucket::full(self.limits.burst, tick))
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
                signatures_per_second: 1.0,
                signature_burst: 2.0,
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
        assert_eq!(limiter.peers.len(), 20);
        assert!(
            (100..120).all(|n| limiter.admit(SECOND, &peer(n))),
            "all are full again after a second"
        );
        assert!(limiter.peers.len() <= 20);
    }

    #[test]
    fn signatures_have_a_budget_of_their_own() {
        let mut limiter = limiter();
        let admitted = |limiter: &mut Limiter, tick| (0..10).filter(|_| limiter.admit_signature(tick)).count();
        assert_eq!(admitted(&mut limiter, 0), 2);
        assert_eq!(admitted(&mut limiter, SECOND), 1);
    }
}
