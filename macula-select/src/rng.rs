//! The one source of chance: xoshiro256++ (Blackman and Vigna, 2018), seeded by the caller.
//!
//! A named generator is part of the contract: the same seed and the same inputs give the same choices, on every
//! platform and in every release. It is not fit for secrets, and nothing here is secret.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

/// A seeded generator with the few draws that selection needs.
#[derive(Debug, Clone)]
pub(crate) struct Rng(Xoshiro256PlusPlus);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// 64 random bits.
    #[inline]
    pub(crate) fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number in `0..bound`; 0 when `bound` is 0.
    ///
    /// Multiply-shift of 32 random bits (Lemire, 2019) without the rejection step: the bias is at most
    /// `bound / 2^32`, a millionth and a half at [`crate::MAX_PROVIDERS`], far below what any test of the shares can see.
    #[inline]
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        scale(self.0.next_u64() >> 32, bound)
    }

    /// Two different numbers in `0..bound`, every ordered pair equally likely. `bound` is at least 2.
    #[inline]
    pub(crate) fn pair(&mut self, bound: u32) -> (u32, u32) {
        debug_assert!(bound >= 2);
        let bits = self.0.next_u64();
        let first = scale(bits >> 32, bound);
        let second = scale(bits & u64::from(u32::MAX), bound - 1);
        (first, second + u32::from(second >= first))
    }

    /// A number in `0..bound` for bounds beyond 32 bits; 0 when `bound` is 0.
    #[inline]
    pub(crate) fn below_u64(&mut self, bound: u64) -> u64 {
        ((u128::from(self.0.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A fraction in `[0, 1)`, 53 bits of it.
    #[inline]
    pub(crate) fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

#[inline]
fn scale(bits: u64, bound: u32) -> u32 {
    ((bits * u64::from(bound)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::Rng;

    #[test]
    fn draws_stay_below_their_bound() {
        let mut rng = Rng::new(1);
        for bound in 1..200 {
            assert!(rng.below(bound) < bound);
            assert!(rng.below_u64(u64::from(bound)) < u64::from(bound));
        }
        assert_eq!(rng.below(0), 0);
        assert!((0..1000).all(|_| (0.0..1.0).contains(&rng.unit())));
    }

    #[test]
    fn pairs_are_two_different_numbers() {
        let mut rng = Rng::new(2);
        for _ in 0..1000 {
            let (a, b) = rng.pair(2);
            assert_ne!(a, b);
            assert!(a < 2 && b < 2);
        }
    }

    /// χ² over the 90 ordered pairs of ten, 89 degrees of freedom, p = 0.001 at 135.9.
    #[test]
    fn every_ordered_pair_is_equally_likely() {
        let mut rng = Rng::new(3);
        let mut counts = [[0u32; 10]; 10];
        for _ in 0..90_000 {
            let (a, b) = rng.pair(10);
            counts[a as usize][b as usize] += 1;
        }
        let pairs = (0..10)
            .flat_map(|a| (0..10).map(move |b| (a, b)))
            .filter(|(a, b)| a != b);
        let chi: f64 = pairs
            .map(|(a, b): (usize, usize)| (f64::from(counts[a][b]) - 1e3).powi(2) / 1e3)
            .sum();
        assert!(chi < 135.9, "χ² = {chi}");
    }
}
