//! A seeded hash for tables of names and node ids, fast for short keys.
//!
//! Each word of a key is folded in by the high and low halves of a 64 by 64 bit product, as in wyhash
//! (<https://github.com/wangyi-fudan/wyhash>). The seed is random for each process, so a peer cannot prepare colliding names, and the
//! tables are bounded. No behaviour depends on the order of iteration.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::LazyLock,
};

static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0_u8));

/// Makes the hashers of one table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keyed(u64);

impl Default for Keyed {
    fn default() -> Self {
        Self(*SEED)
    }
}

impl BuildHasher for Keyed {
    type Hasher = Folding;

    fn build_hasher(&self) -> Folding {
        Folding(self.0)
    }
}

/// The state of a hash.
#[derive(Debug)]
pub(crate) struct Folding(u64);

/// The odd fraction of the golden ratio, whose multiples are spread evenly.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Folding {
    fn fold(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * u128::from(SPREAD ^ self.0.rotate_left(32));
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }
}

impl Hasher for Folding {
    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for chunk in &mut words {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            self.fold(u64::from_le_bytes(word));
        }
        let rest = words.remainder();
        let mut word = [0; 8];
        word[..rest.len()].copy_from_slice(rest);
        // The length tells keys apart that differ only in trailing zeros.
        self.fold(u64::from_le_bytes(word) ^ (bytes.len() as u64) << 56);
    }

    fn write_u8(&mut self, byte: u8) {
        self.fold(u64::from(byte));
    }

    fn write_u64(&mut self, word: u64) {
        self.fold(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.fold(word as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_that_differ_little_differ_much_in_their_hashes() {
        let keyed = Keyed::default();
        let names = (0..20_000).map(|at| format!("service.{at}"));
        let hashes: HashSet<u64> = names.map(|name| keyed.hash_one(name.as_str())).collect();
        assert_eq!(hashes.len(), 20_000);
        // Tables use the lowest bits and the highest seven.
        let (low, high): (HashSet<_>, HashSet<_>) = hashes.iter().map(|hash| (hash & 0xfff, hash >> 57)).unzip();
        assert!(low.len() > 4_000 && high.len() == 128, "{} {}", low.len(), high.len());
    }

    #[test]
    fn a_hash_goes_by_the_seed_and_the_length() {
        assert_ne!(Keyed(1).hash_one("api.compute"), Keyed(2).hash_one("api.compute"));
        let hash = |bytes: &[u8]| {
            let mut hasher = Keyed(7).build_hasher();
            hasher.write(bytes);
            hasher.finish()
        };
        assert_ne!(hash(b"a"), hash(b"a\0"));
    }
}
