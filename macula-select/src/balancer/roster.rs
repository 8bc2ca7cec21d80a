//! Every provider in one array, sorted into tiers by swapping across the borders.
//!
//! A uniform draw among the usable providers is then one index in a range, and a provider changes its tier in at most
//! seven swaps, without allocating.

use super::member::Hot;

/// How willingly a provider is used. The order is that of the array, not of preference: it makes the ranges that picks
/// need contiguous (the caller's zone, the other zones, the open connections, everything healthy).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tier {
    /// Healthy, not connected, and in the caller's zone, or zones do not matter.
    IdleLocal,
    /// Healthy, connected, in the caller's zone.
    OpenLocal,
    /// Healthy, connected, in another zone.
    OpenRemote,
    /// Healthy, not connected, in another zone.
    IdleRemote,
    /// Ejected, on probation or held back: used when nothing better is left.
    Sidelined,
    /// Silent: used when only unreachable ones are left beside it.
    Suspected,
    /// Unreachable: used when nothing else is left.
    Down,
    /// Going away: never used.
    Draining,
}

impl Tier {
    pub(crate) const COUNT: usize = 8;

    const ALL: [Self; Self::COUNT] = [
        Self::IdleLocal,
        Self::OpenLocal,
        Self::OpenRemote,
        Self::IdleRemote,
        Self::Sidelined,
        Self::Suspected,
        Self::Down,
        Self::Draining,
    ];
}

/// Tiers that lie beside each other, first and last.
pub(crate) type Tiers = (Tier, Tier);

pub(crate) const LOCAL: Tiers = (Tier::IdleLocal, Tier::OpenLocal);
pub(crate) const REMOTE: Tiers = (Tier::OpenRemote, Tier::IdleRemote);
pub(crate) const OPEN: Tiers = (Tier::OpenLocal, Tier::OpenRemote);
pub(crate) const HEALTHY: Tiers = (Tier::IdleLocal, Tier::IdleRemote);
pub(crate) const SIDELINED: Tiers = (Tier::Sidelined, Tier::Sidelined);
pub(crate) const SUSPECTED: Tiers = (Tier::Suspected, Tier::Suspected);
pub(crate) const DOWN: Tiers = (Tier::Down, Tier::Down);
pub(crate) const DRAINING: Tiers = (Tier::Draining, Tier::Draining);
/// As far as is known, a call that is sent to one of these arrives.
pub(crate) const REACHABLE: Tiers = (Tier::IdleLocal, Tier::Sidelined);
/// A call that is sent to one of these may not arrive.
pub(crate) const SILENT: Tiers = (Tier::Suspected, Tier::Down);
/// All that a pick may choose.
pub(crate) const USABLE: Tiers = (Tier::IdleLocal, Tier::Down);

/// A range of positions in the roster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl Span {
    #[inline]
    pub(crate) fn len(self) -> u32 {
        self.end - self.start
    }

    #[inline]
    pub(crate) fn contains(self, position: u32) -> bool {
        (self.start..self.end).contains(&position)
    }
}

/// Slots by tier.
#[derive(Debug, Clone, Default)]
pub(crate) struct Roster {
    slots: Vec<u32>,
    /// Where each tier but the first begins.
    borders: [u32; Tier::COUNT - 1],
}

impl Roster {
    #[inline]
    pub(crate) fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    #[inline]
    pub(crate) fn slot(&self, position: u32) -> u32 {
        self.slots[position as usize]
    }

    /// The slots at these positions.
    #[inline]
    pub(crate) fn slots(&self, span: Span) -> &[u32] {
        &self.slots[span.start as usize..span.end as usize]
    }

    /// The positions of these tiers.
    #[inline]
    pub(crate) fn span(&self, (first, last): Tiers) -> Span {
        let start = match (first as usize).checked_sub(1) {
            None => 0,
            Some(border) => self.borders[border],
        };
        let end = self.borders.get(last as usize).copied();
        Span {
            start,
            end: end.unwrap_or(self.len()),
        }
    }

    /// How many these tiers hold.
    #[inline]
    pub(crate) fn count(&self, tiers: Tiers) -> u32 {
        self.span(tiers).len()
    }

    #[inline]
    pub(crate) fn tier(&self, position: u32) -> Tier {
        let borders = self.borders.iter().filter(|border| position >= **border).count();
        Tier::ALL[borders]
    }

    pub(crate) fn reserve(&mut self, total: usize) {
        self.slots.reserve_exact(total.saturating_sub(self.slots.len()));
    }

    pub(crate) fn insert(&mut self, hots: &mut [Hot], slot: u32, tier: Tier) {
        hots[slot as usize].position = self.len();
        self.slots.push(slot);
        self.place(hots, slot, tier);
    }

    pub(crate) fn remove(&mut self, hots: &mut [Hot], slot: u32) {
        self.place(hots, slot, Tier::Draining);
        self.swap(hots, hots[slot as usize].position, self.len() - 1);
        self.slots.pop();
    }

    /// Moves a slot to a tier. What else moves stays in its own tier.
    pub(crate) fn place(&mut self, hots: &mut [Hot], slot: u32, tier: Tier) {
        let mut at = self.tier(hots[slot as usize].position) as usize;
        let target = tier as usize;
        while at > target {
            let first = self.borders[at - 1];
            self.swap(hots, hots[slot as usize].position, first);
            self.borders[at - 1] += 1;
            at -= 1;
        }
        while at < target {
            let last = self.borders[at] - 1;
            self.swap(hots, hots[slot as usize].position, last);
            self.borders[at] -= 1;
            at += 1;
        }
    }

    fn swap(&mut self, hots: &mut [Hot], a: u32, b: u32) {
        self.slots.swap(a as usize, b as usize);
        for position in [a, b] {
            hots[self.slots[position as usize] as usize].position = position;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tiers_hold_what_was_placed_in_them(steps in proptest::collection::vec((0u32..12, 0usize..Tier::COUNT + 1), 1..200)) {
            let mut hots = vec![Hot::vacant(); 12];
            let mut roster = Roster::default();
            let mut model: Vec<Option<Tier>> = vec![None; 12];
            for (slot, action) in steps {
                match (Tier::ALL.get(action), model[slot as usize]) {
                    (Some(tier), None) => {
                        roster.insert(&mut hots, slot, *tier);
                        model[slot as usize] = Some(*tier);
                    }
                    (Some(tier), Some(_)) => {
                        roster.place(&mut hots, slot, *tier);
                        model[slot as usize] = Some(*tier);
                    }
                    (None, Some(_)) => {
                        roster.remove(&mut hots, slot);
                        model[slot as usize] = None;
                    }
                    (None, None) => {}
                }
                for tier in Tier::ALL {
                    let span = roster.span((tier, tier));
                    prop_assert_eq!(span.len() as usize, model.iter().filter(|kept| **kept == Some(tier)).count());
                    for position in span.start..span.end {
                        let slot = roster.slot(position);
                        prop_assert_eq!(hots[slot as usize].position, position);
                        prop_assert_eq!(model[slot as usize], Some(tier));
                        prop_assert_eq!(roster.tier(position), tier);
                    }
                }
            }
        }
    }
}
