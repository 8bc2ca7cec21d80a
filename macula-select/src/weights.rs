//! A Fenwick tree of weights: change one, or draw one in proportion, in O(log n) (Fenwick, 1994).
//!
//! Unlike an alias table it takes ejections, slow starts and restorations one by one, without a rebuild.

/// Weights by slot.
#[derive(Debug, Clone, Default)]
pub(crate) struct Weights {
    /// `tree[i]` sums the `lowbit(i + 1)` slots that end at `i`.
    tree: Vec<u64>,
    total: u64,
}

impl Weights {
    /// The sum of all weights.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    pub(crate) fn reserve(&mut self, slots: usize) {
        self.tree.reserve_exact(slots.saturating_sub(self.tree.len()));
    }

    /// Makes it `slots` long, all new ones of weight 0.
    pub(crate) fn grow(&mut self, slots: usize) {
        while self.tree.len() < slots {
            let index = self.tree.len() + 1;
            let first = index - lowbit(index);
            let sum = self.prefix(index - 1) - self.prefix(first);
            self.tree.push(sum);
        }
    }

    /// The weight of a slot.
    pub(crate) fn get(&self, slot: usize) -> u64 {
        self.prefix(slot + 1) - self.prefix(slot)
    }

    /// Changes the weight of a slot; returns whether it was another one.
    pub(crate) fn set(&mut self, slot: usize, weight: u64) -> bool {
        let old = self.get(slot);
        if old == weight {
            return false;
        }
        self.total = self.total - old + weight;
        let mut index = slot + 1;
        while index <= self.tree.len() {
            let sum = &mut self.tree[index - 1];
            *sum = *sum - old + weight;
            index += lowbit(index);
        }
        true
    }

    /// The slot that the point falls to, for a point below [`Weights::total`].
    #[inline]
    pub(crate) fn locate(&self, mut point: u64) -> usize {
        let mut before = 0;
        let mut step = self.tree.len().checked_ilog2().map_or(0, |bits| 1 << bits);
        while step > 0 {
            let next = before + step;
            if next <= self.tree.len() && self.tree[next - 1] <= point {
                point -= self.tree[next - 1];
                before = next;
            }
            step >>= 1;
        }
        before.min(self.tree.len().saturating_sub(1))
    }

    fn prefix(&self, mut slots: usize) -> u64 {
        let mut sum = 0;
        while slots > 0 {
            sum += self.tree[slots - 1];
            slots -= lowbit(slots);
        }
        sum
    }
}

fn lowbit(index: usize) -> usize {
    index & index.wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_point_falls_to_the_slot_that_owns_it(
            sizes in proptest::collection::vec(1usize..20, 1..4),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), 0u64..9), 0..60),
        ) {
            let mut weights = Weights::default();
            let mut plain: Vec<u64> = Vec::new();
            for grown in sizes {
                plain.resize(plain.len() + grown, 0);
                weights.grow(plain.len());
                for (slot, weight) in &changes {
                    let slot = slot.index(plain.len());
                    plain[slot] = *weight;
                    weights.set(slot, *weight);
                }
            }
            let owners: Vec<usize> =
                plain.iter().enumerate().flat_map(|(slot, weight)| std::iter::repeat_n(slot, *weight as usize)).collect();
            prop_assert_eq!(weights.total(), owners.len() as u64);
            for (point, owner) in owners.iter().enumerate() {
                prop_assert_eq!(weights.locate(point as u64), *owner);
            }
        }
    }
}
