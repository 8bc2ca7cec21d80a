//! From a fingerprint to a place: open addressing with linear probing, so that finding a record is one cache line.
//!
//! **Invariants:** at most three quarters of the cells are in use; a fingerprint is reached from its home cell without passing
//! an empty one (removal shifts back what follows; Knuth, *The Art of Computer Programming* 6.4, algorithm R). Fingerprints come
//! from a keyed hash, so that no peer chooses which cells are crowded.

/// A cell: the fingerprint in the upper half, the place in the lower.
const EMPTY: u64 = u64::MAX;
const MIN_CELLS: usize = 8;

/// Places by fingerprint, one a fingerprint.
#[derive(Debug, Default)]
pub(super) struct Index {
    cells: Vec<u64>,
    len: usize,
}

impl Index {
    pub(super) fn get(&self, fingerprint: u32) -> Option<u32> {
        self.cell_of(fingerprint).map(|cell| self.cells[cell] as u32)
    }

    /// Adds a fingerprint that is not there. `place` is less than [`u32::MAX`].
    pub(super) fn add(&mut self, fingerprint: u32, place: u32) {
        if 4 * (self.len + 1) > 3 * self.cells.len() {
            self.resize((2 * self.cells.len()).max(MIN_CELLS));
        }
        self.put(u64::from(fingerprint) << 32 | u64::from(place));
        self.len += 1;
    }

    /// Lets a fingerprint that is there lead to another place.
    pub(super) fn set(&mut self, fingerprint: u32, place: u32) {
        if let Some(cell) = self.cell_of(fingerprint) {
            self.cells[cell] = u64::from(fingerprint) << 32 | u64::from(place);
        }
    }

    pub(super) fn remove(&mut self, fingerprint: u32) {
        let Some(mut hole) = self.cell_of(fingerprint) else {
            return;
        };
        let mask = self.cells.len() - 1;
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            if self.cells[at] == EMPTY {
                break;
            }
            // A cell with its home after the hole stays. A cell that had to pass the hole fills it.
            let from_home = at.wrapping_sub(self.home(self.cells[at])) & mask;
            if from_home >= at.wrapping_sub(hole) & mask {
                self.cells[hole] = self.cells[at];
                hole = at;
            }
        }
        self.cells[hole] = EMPTY;
        self.len -= 1;
        if self.cells.len() > MIN_CELLS && 8 * self.len < self.cells.len() {
            self.resize(self.cells.len() / 2);
        }
    }

    fn cell_of(&self, fingerprint: u32) -> Option<usize> {
        let mask = self.cells.len().checked_sub(1)?;
        let mut at = fingerprint as usize & mask;
        while self.cells[at] != EMPTY {
            if (self.cells[at] >> 32) as u32 == fingerprint {
                return Some(at);
            }
            at = (at + 1) & mask;
        }
        None
    }

    fn home(&self, cell: u64) -> usize {
        (cell >> 32) as usize & (self.cells.len() - 1)
    }

    fn put(&mut self, cell: u64) {
        let mut at = self.home(cell);
        while self.cells[at] != EMPTY {
            at = (at + 1) & (self.cells.len() - 1);
        }
        self.cells[at] = cell;
    }

    fn resize(&mut self, cells: usize) {
        let old = std::mem::replace(&mut self.cells, vec![EMPTY; cells]);
        old.into_iter()
            .filter(|cell| *cell != EMPTY)
            .for_each(|cell| self.put(cell));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Fingerprints that share their homes, added, moved and removed in any order.
        #[test]
        fn it_agrees_with_a_map(steps in prop::collection::vec((0..40_u32, 0..3_u32, 0..3_u8, any::<u16>()), 0..400)) {
            let (mut index, mut model) = (Index::default(), BTreeMap::new());
            for (home, tag, action, place) in steps {
                let (fingerprint, place) = (tag << 20 | home, place.into());
                match action {
                    0 if !model.contains_key(&fingerprint) => {
                        index.add(fingerprint, place);
                        model.insert(fingerprint, place);
                    }
                    1 => {
                        index.remove(fingerprint);
                        model.remove(&fingerprint);
                    }
                    _ => {
                        index.set(fingerprint, place);
                        model.entry(fingerprint).and_modify(|known| *known = place);
                    }
                }
                prop_assert_eq!(index.len, model.len());
                for fingerprint in (0..40).flat_map(|home| (0..3).map(move |tag| tag << 20 | home)) {
                    prop_assert_eq!(index.get(fingerprint), model.get(&fingerprint).copied());
                }
            }
        }
    }
}
