//! One direction between two hosts, with randomness of its own: traffic elsewhere does not change what happens here.

use std::{net::SocketAddr, time::Duration};

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

use super::LinkConditions;

/// The longest that a datagram waits for a link's [bandwidth](LinkConditions::with_bandwidth).
pub const MAX_QUEUE: Duration = Duration::from_millis(250);

/// A source of numbers that a seed repeats (SplitMix64; Steele, Lea and Flood, 2014).
#[derive(Debug, Clone)]
pub(super) struct Random(SplitMix64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(SplitMix64::seed_from_u64(seed))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number in 0..1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The fate of a datagram on this path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passage {
    Lost,
    TooLarge,
    /// The queue of the link is full.
    Overflowed,
    /// It arrives, and perhaps once more.
    Arrives {
        at: Instant,
        again: Option<Instant>,
        /// Where a byte of it changes: this position, modulo the length.
        corrupt: Option<usize>,
    },
}

#[derive(Debug)]
pub(super) struct Path {
    /// The link, when it is not the network's usual one.
    pub(super) link: Option<LinkConditions>,
    random: Random,
    /// When the last datagram that kept its place in the queue arrives.
    last: Option<Instant>,
    /// When the link has carried everything that was sent so far.
    idle_at: Option<Instant>,
}

impl Path {
    pub(super) fn new(mut seed: u64, from: SocketAddr, to: SocketAddr) -> Self {
        for addr in [from, to] {
            let bits = match addr.ip() {
                std::net::IpAddr::V4(ip) => u64::from(ip.to_bits()),
                std::net::IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64 ^ ip.to_bits() as u64,
            };
            seed = Random::new(seed ^ bits.rotate_left(16) ^ u64::from(addr.port())).next();
        }
        Self {
            link: None,
            random: Random::new(seed),
            last: None,
            idle_at: None,
        }
    }

    /// Sends a datagram of `bytes` at `now`. A link always draws the same amount of randomness.
    pub(super) fn send(&mut self, now: Instant, usual: &LinkConditions, bytes: usize) -> Passage {
        let link = self.link.unwrap_or(*usual);
        let lost = self.random.fraction() < link.loss;
        let duplicated = self.random.fraction() < link.duplicate;
        let reordered = self.random.fraction() < link.reorder;
        let jitter = link.jitter.mul_f64(self.random.fraction());
        // A link that corrupts nothing draws no numbers for it.
        let corrupt = (link.corruption > 0.0)
            .then(|| (self.random.fraction() < link.corruption, self.random.next() as usize))
            .and_then(|(corrupt, position)| corrupt.then_some(position));
        if bytes > link.max_datagram_bytes {
            return Passage::TooLarge;
        }
        if lost {
            return Passage::Lost;
        }
        let mut sent = now;
        if let Some(rate) = link.bytes_per_second {
            let start = self.idle_at.map_or(now, |idle_at| idle_at.max(now));
            if start - now > MAX_QUEUE {
                return Passage::Overflowed;
            }
            sent = start + Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / rate);
            self.idle_at = Some(sent);
        }
        let later = link.latency.max(Duration::from_millis(1));
        let mut at = sent + link.latency + jitter;
        if reordered {
            at += later;
        } else {
            at = self.last.map_or(at, |last| at.max(last));
            self.last = Some(at);
        }
        Passage::Arrives {
            at,
            again: duplicated.then(|| at + later),
            corrupt,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(n: u8) -> SocketAddr {
        ([10, 0, 0, n], 9443).into()
    }

    fn arrivals(seed: u64, link: &LinkConditions, count: u64) -> Vec<Passage> {
        let start = Instant::now();
        let mut path = Path::new(seed, addr(1), addr(2));
        (0..count)
            .map(|n| path.send(start + Duration::from_micros(n), link, 1200))
            .collect()
    }

    #[test]
    fn chances_are_what_they_say() {
        let link = LinkConditions::new(Duration::from_millis(5))
            .with_loss(0.25)
            .with_duplicates(0.5);
        let fates = arrivals(1, &link, 10_000);
        let lost = fates.iter().filter(|fate| **fate == Passage::Lost).count();
        let twice = fates
            .iter()
            .filter(|fate| matches!(fate, Passage::Arrives { again: Some(_), .. }))
            .count();
        assert!((2_300..2_700).contains(&lost), "{lost}");
        assert!((3_550..3_950).contains(&twice), "{twice}");
    }

    #[test]
    fn jitter_alone_reorders_nothing_and_reordering_does() {
        let at = |link: &LinkConditions| -> Vec<Instant> {
            arrivals(2, link, 1_000)
                .into_iter()
                .filter_map(|fate| match fate {
                    Passage::Arrives { at, .. } => Some(at),
                    Passage::Lost | Passage::TooLarge | Passage::Overflowed => None,
                })
                .collect()
        };
        let link = LinkConditions::new(Duration::from_millis(5)).with_jitter(Duration::from_millis(5));
        assert!(at(&link).is_sorted());
        assert!(!at(&link.with_reordering(0.1)).is_sorted());
    }

    #[test]
    fn bandwidth_spaces_datagrams_and_a_full_queue_loses_them() {
        let link = LinkConditions::new(Duration::from_millis(5)).with_bandwidth(120_000);
        let fates = arrivals(3, &link, 100);
        let at: Vec<Instant> = fates
            .iter()
            .filter_map(|fate| match fate {
                Passage::Arrives { at, .. } => Some(*at),
                Passage::Lost | Passage::TooLarge | Passage::Overflowed => None,
            })
            .collect();
        // Ten milliseconds each: 25 fit into the queue beside the first.
        assert!((25..=27).contains(&at.len()), "{}", at.len());
        assert!(at.windows(2).all(|two| two[1] - two[0] == Duration::from_millis(10)));
        assert_eq!(fates.last(), Some(&Passage::Overflowed));
    }

    #[test]
    fn corruption_is_as_frequent_as_it_says() {
        let link = LinkConditions::new(Duration::from_millis(5)).with_corruption(0.25);
        let corrupt = arrivals(4, &link, 10_000)
            .iter()
            .filter(|fate| matches!(fate, Passage::Arrives { corrupt: Some(_), .. }))
            .count();
        assert!((2_300..2_700).contains(&corrupt), "{corrupt}");
    }

    #[test]
    fn directions_and_seeds_draw_their_own_numbers() {
        let first = |seed, from, to| Path::new(seed, addr(from), addr(to)).random.next();
        let all = [first(1, 1, 2), first(1, 2, 1), first(2, 1, 2), first(1, 1, 3)];
        for (n, one) in all.iter().enumerate() {
            assert!(!all[n + 1..].contains(one));
        }
        assert_eq!(first(1, 1, 2), first(1, 1, 2));
    }
}
