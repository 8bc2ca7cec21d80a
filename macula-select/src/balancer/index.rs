//! Which slot a key lives in: open addressing over slot numbers.
//!
//! The keys and their hashes stay with the members, so an entry costs four bytes; a `HashMap` would hold every key a
//! second time. Nothing iterates it, so no order leaks into any output. Removal rebuilds it, once per update.

const EMPTY: u32 = u32::MAX;

#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    /// A power of two long, never more than two thirds full.
    table: Vec<u32>,
}

impl Index {
    /// The slot with this hash for which `is_it` holds.
    pub(crate) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        if self.table.is_empty() {
            return None;
        }
        self.probe(hash)
            .map(|at| self.table[at])
            .take_while(|slot| *slot != EMPTY)
            .find(|slot| is_it(*slot))
    }

    /// Adds a slot that is not in it. There must be room: see [`Index::rebuild`].
    pub(crate) fn insert(&mut self, hash: u64, slot: u32) {
        let free = self.probe(hash).find(|at| self.table[*at] == EMPTY);
        debug_assert!(free.is_some(), "the index is full");
        if let Some(at) = free {
            self.table[at] = slot;
        }
    }

    /// Whether `members` fit.
    pub(crate) fn has_room_for(&self, members: usize) -> bool {
        members * 3 <= self.table.len() * 2
    }

    /// Starts over with room for `members`, holding those given.
    pub(crate) fn rebuild(&mut self, members: usize, entries: impl Iterator<Item = (u64, u32)>) {
        let size = (members * 3).div_ceil(2).next_power_of_two().max(8);
        if self.table.len() == size {
            self.table.fill(EMPTY);
        } else {
            self.table = vec![EMPTY; size];
        }
        for (hash, slot) in entries {
            self.insert(hash, slot);
        }
    }

    fn probe(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let size = self.table.len();
        let start = hash as usize;
        (0..size).map(move |step| start.wrapping_add(step) & (size - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colliding_hashes_are_told_apart() {
        let mut index = Index::default();
        assert_eq!(index.find(1, |_| true), None);
        index.rebuild(9, [(7, 0), (7, 1), (8, 2)].into_iter());
        index.insert(7, 3);
        for slot in [0, 1, 3] {
            assert_eq!(index.find(7, |at| at == slot), Some(slot));
        }
        assert_eq!(index.find(8, |at| at == 2), Some(2));
        assert_eq!(index.find(7, |at| at == 9), None);
        assert!(index.has_room_for(9) && !index.has_room_for(11));
    }
}
