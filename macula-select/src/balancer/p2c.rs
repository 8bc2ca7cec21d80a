//! Power of two choices: draw two, use the cheaper (Mitzenmacher, 2001).
//!
//! The cost is `latency × (in flight + 1) × multiplier` (peak-EWMA) or `(in flight + 1) × multiplier` (least loaded). Among
//! four or fewer all are compared: with so few, two draws miss the best one too often, and a scan costs the same.

use std::hash::Hash;

use super::Balancer;
use super::member::Hot;
use super::pick::Region;
use crate::clock::Nanos;

/// Up to so many candidates are all compared.
const SCAN_UP_TO: u32 = 4;

impl<K: Eq + Hash + Clone> Balancer<K> {
    pub(super) fn peak_ewma(&mut self, now: Nanos, region: Region) -> Option<u32> {
        self.cheaper(region, |balancer, hot| {
            (hot.in_flight + 1) as f32 * hot.multiplier * hot.latency.read(now, balancer.typical, &balancer.constants)
        })
    }

    pub(super) fn least_loaded(&mut self, region: Region) -> Option<u32> {
        self.cheaper(region, |_, hot| (hot.in_flight + 1) as f32 * hot.multiplier)
    }

    #[inline]
    fn cheaper(&mut self, region: Region, cost: impl Fn(&Self, &Hot) -> f32) -> Option<u32> {
        if region.free() <= SCAN_UP_TO {
            return self.cheapest(region, cost);
        }
        let (first, second) = if region.excluded == 0 {
            let (first, second) = self.rng.pair(region.len());
            (
                self.roster.slot(region.start() + first),
                self.roster.slot(region.start() + second),
            )
        } else {
            self.two_of(region)?
        };
        let (hot_first, hot_second) = (&self.hot[first as usize], &self.hot[second as usize]);
        Some(if cost(self, hot_second) < cost(self, hot_first) {
            second
        } else {
            first
        })
    }

    /// Two different candidates of a region that has excluded ones, every ordered pair equally likely.
    fn two_of(&mut self, region: Region) -> Option<(u32, u32)> {
        let first = self.draw(region)?;
        let mark = std::mem::replace(&mut self.hot[first as usize].mark, self.mark);
        let second = self.draw(region.without_one());
        self.hot[first as usize].mark = mark;
        Some((first, second?))
    }

    /// The cheapest candidate; the scan begins anywhere, so that ties fall evenly.
    fn cheapest(&mut self, region: Region, cost: impl Fn(&Self, &Hot) -> f32) -> Option<u32> {
        let length = region.len();
        let mut at = self.rng.below(length);
        let mut best = None;
        let mut least = f32::INFINITY;
        for _ in 0..length {
            let slot = self.roster.slot(region.start() + at);
            at += 1;
            if at == length {
                at = 0;
            }
            let hot = &self.hot[slot as usize];
            if hot.mark == self.mark {
                continue;
            }
            let cost = cost(self, hot);
            if best.is_none() || cost < least {
                (best, least) = (Some(slot), cost);
            }
        }
        best
    }
}
