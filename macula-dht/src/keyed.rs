//! Hashes that peers cannot predict, for tables whose keys they choose.

use std::hash::BuildHasher;

use siphasher::sip::SipHasher13;

use crate::rng::Rng;

/// SipHash-1-3 with a key of this process (Aumasson and Bernstein, *SipHash: a fast short-input PRF*, 2012).
#[derive(Debug, Clone)]
pub(crate) struct Keyed([u64; 2]);

impl Keyed {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        Self([rng.next(), rng.next()])
    }
}

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0[0], self.0[1])
    }
}
