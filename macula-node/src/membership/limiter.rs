//! How often others may ask: a token bucket for each network of strangers, and for each member.
//!
//! A core: the time is an argument. At most [`MAX_ASKERS`] are told apart; the others share one bucket.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// The most networks or members that are told apart.
const MAX_ASKERS: usize = 1024;
/// How many requests one may make at once after a quiet time.
const BURST: f64 = 32.0;
/// How many requests one may make in a second for long.
const PER_SECOND: f64 = 2.0;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn refilled(self, now: Instant) -> f64 {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * PER_SECOND;
        (self.left + gained).min(BURST)
    }

    fn take(&mut self, now: Instant) -> bool {
        let left = self.refilled(now);
        let has_one = left >= 1.0;
        *self = Self {
            left: if has_one { left - 1.0 } else { left },
            at: now,
        };
        has_one
    }
}

/// The buckets of all that ask.
#[derive(Debug)]
pub(super) struct Limiter<K> {
    each: BTreeMap<K, Bucket>,
    others: Bucket,
}

impl<K: Ord> Limiter<K> {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            each: BTreeMap::new(),
            others: Bucket { left: BURST, at: now },
        }
    }

    /// Whether a request of `asker` may be answered now.
    pub(super) fn admit(&mut self, asker: K, now: Instant) -> bool {
        if !self.each.contains_key(&asker) && self.each.len() >= MAX_ASKERS {
            // A full bucket says nothing. One look a refill time is enough: the walk must not cost each stranger's request.
            if now.saturating_duration_since(self.others.at) > Duration::from_secs(1) {
                self.each.retain(|_, bucket| bucket.refilled(now) < BURST);
            }
            if self.each.len() >= MAX_ASKERS {
                return self.others.take(now);
            }
        }
        let bucket = self.each.entry(asker).or_insert(Bucket { left: BURST, at: now });
        bucket.take(now)
    }
}

#[cfg(test)]
mod tests {
    use macula_wire::Network;

    use super::*;

    fn network(n: u16) -> Network {
        let [a, b] = n.to_be_bytes();
        Network::V4([10, a, b])
    }

    #[test]
    fn a7_a_network_that_asks_too_often_waits_and_another_does_not() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        let admitted = (0..100).filter(|_| limiter.admit(network(1), start)).count();
        assert_eq!(admitted, 32);
        assert!(limiter.admit(network(2), start));
        let later = start + Duration::from_secs(5);
        let admitted = (0..100).filter(|_| limiter.admit(network(1), later)).count();
        assert_eq!(admitted, 10);
    }

    #[test]
    fn a7_a_crowd_of_networks_takes_no_more_memory_than_it_may() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        for n in 0..5000 {
            limiter.admit(network(n), start);
        }
        assert_eq!(limiter.each.len(), MAX_ASKERS);
        assert!(!limiter.admit(network(4999), start), "the crowd shares one bucket");
        assert!(limiter.admit(network(4999), start + Duration::from_secs(60)));
    }
}
