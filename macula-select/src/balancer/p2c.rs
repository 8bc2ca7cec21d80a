//! Power of two choices: draw two, use the cheaper (Mitzenmacher, 2001).
//!
//! The cost is `latency × (in flight + 1) × multiplier` (peak-EWMA) or `(in flight + 1) × multiplier` (least loaded).
//! Among four or fewer all are compared: with so few, two draws miss the best one too often, and a scan costs the same.

use std::hash::Hash;

use super::Balancer;
use super::member::Hot;
use super::pick::Region;
use crate::clock::Nanos;

/// Up to so many candidates are all compared.
const SCAN_UP_TO: u32 = 4;

impl<K: Eq + Hash + Clone> Balancer<K> {
    #[inline]
    pub(super) fn peak_ewma(&mut self, now: Nanos, region: Region) -> Option<u32> {
        let unit = self.unit(now);
        let typical = self.newcomer.nanos(unit, self.typical).min(self.typical);
        self.cheaper(region, |hot| {
            hot.latency.weigh(unit, typical) * hot.multiplier * f64::from(hot.in_flight + 1)
        })
    }

    #[inline]
    pub(super) fn least_loaded(&mut self, region: Region) -> Option<u32> {
        self.cheaper(region, |hot| hot.multiplier * f64::from(hot.in_flight + 1))
    }

    #[inline]
    fn cheaper(&mut self, region: Region, cost: impl Fn(&Hot) -> f64) -> Option<u32> {
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
        Some(if cost(&self.hot[second as usize]) < cost(&self.hot[first as usize]) {
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

    /// The cheapest of at most four candidates, ties falling evenly.
    ///
    /// Which one is cheapest is a coin toss, and a mispredicted branch costs more than the rest of the pick: so cost, a
    /// random tie breaker and the place go into one number, cost uppermost, and the smallest is found without branches.
    /// Positive floats order as their bits do.
    #[inline]
    fn cheapest(&mut self, region: Region, cost: impl Fn(&Hot) -> f64) -> Option<u32> {
        let ties = self.rng.bits();
        let rank = |place: u32, hot: &Hot| {
            let tie = (ties >> (16 * place)) & 0xffff;
            cost(hot).to_bits() & !0x3_ffff | tie << 2 | u64::from(place)
        };
        if region.excluded == 0 {
            let slots = self.roster.slots(region.span());
            let ranks = (0..)
                .zip(slots)
                .map(|(place, slot)| rank(place, &self.hot[*slot as usize]));
            let least = ranks.min()?;
            return slots.get((least & 3) as usize).copied();
        }
        let mut slots = [0; SCAN_UP_TO as usize];
        let mut least = None;
        for (place, slot) in (0..).zip(self.candidates(region)).take(slots.len()) {
            slots[place as usize] = slot;
            let rank = rank(place, &self.hot[slot as usize]);
            least = Some(least.map_or(rank, |least: u64| least.min(rank)));
        }
        least.map(|least| slots[(least & 3) as usize])
    }
}
