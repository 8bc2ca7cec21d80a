//! Rendezvous hashing with bounded load: calls with the same key go to the same provider.
//!
//! Highest random weight (Thaler and Ravishankar, 1998), weighted as `w / −ln h` (Schindelhauer and Schomaker,
//! 2005): when a provider leaves, only its own keys move, each to its second choice. A provider whose calls in flight
//! exceed a multiple of the average is passed over (Mirrokni, Thorup and Zadimoghaddam, 2018), so that one hot key
//! cannot sink it. All callers agree, because the hash is a fixed one of the provider's key.

use std::hash::Hash;

use super::Balancer;
use super::pick::Region;
use crate::identity;

impl<K: Eq + Hash + Clone> Balancer<K> {
    #[inline(never)]
    pub(super) fn by_affinity(&self, region: Region, key: u64) -> Option<u32> {
        let bound = self.affinity_bound(region);
        let key = identity::mix(key);
        let mut within: Option<(f64, u32)> = None;
        let mut beyond: Option<(f64, u32)> = None;
        for position in region.positions() {
            let slot = self.roster.slot(position);
            let hot = &self.hot[slot as usize];
            if hot.mark == self.mark {
                continue;
            }
            let cold = &self.cold[slot as usize];
            let score = score(key, cold.identity, f64::from(cold.weight));
            let best = if hot.in_flight < bound {
                &mut within
            } else {
                &mut beyond
            };
            if best.is_none_or(|(highest, _)| score > highest) {
                *best = Some((score, slot));
            }
        }
        within.or(beyond).map(|(_, slot)| slot)
    }

    /// The calls in flight at which a provider takes no more.
    fn affinity_bound(&self, region: Region) -> u32 {
        let config = &self.config.affinity;
        let average = f64::from(self.leases.out() + 1) / f64::from(region.free().max(1));
        ((config.max_load.max(1.0) * average).ceil() as u32)
            .max(config.always)
            .max(1)
    }
}

fn score(key: u64, identity: u64, weight: f64) -> f64 {
    let hash = identity::mix(identity ^ key);
    // In (0, 1): never 0, whose logarithm is infinite, and never 1, whose logarithm divides by zero.
    let unit = ((hash >> 12) as f64 + 0.5) * (1.0 / (1u64 << 52) as f64);
    weight / -unit.ln()
}
