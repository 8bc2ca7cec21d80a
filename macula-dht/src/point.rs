//! Points of the key space and the XOR distance between them (Maymounkov and Mazières, *Kademlia*, 2002).

use std::fmt;

use macula_wire::{NodeId, ServiceKey};

/// The number of bits of a point.
pub(crate) const BITS: usize = 256;

/// A place in the 256-bit key space, where node ids and service keys live side by side.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point([u64; 4]);

impl Point {
    /// The first point.
    pub(crate) const MIN: Self = Self([0; 4]);

    /// The point with these bytes, most significant first.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_be_bytes(*chunk);
        }
        Self(words)
    }

    /// The bytes of the point, most significant first.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    /// The XOR distance to `other`.
    #[must_use]
    pub fn distance(&self, other: &Self) -> Distance {
        Distance([
            self.0[0] ^ other.0[0],
            self.0[1] ^ other.0[1],
            self.0[2] ^ other.0[2],
            self.0[3] ^ other.0[3],
        ])
    }

    /// The first (or last) point that shares the first `bits` bits with this one.
    pub(crate) fn with_tail(&self, bits: usize, ones: bool) -> Self {
        let tail = Distance::within(bits).0;
        Self(std::array::from_fn(|word| {
            if ones {
                self.0[word] | tail[word]
            } else {
                self.0[word] & !tail[word]
            }
        }))
    }

    /// The next point; `None` after the last.
    pub(crate) fn successor(&self) -> Option<Self> {
        let mut words = self.0;
        for word in words.iter_mut().rev() {
            *word = word.wrapping_add(1);
            if *word != 0 {
                return Some(Self(words));
            }
        }
        None
    }

    /// The number, most significant word first.
    pub(crate) fn words(&self) -> [u64; 4] {
        self.0
    }

    /// The most significant 64 bits.
    pub(crate) fn head(&self) -> u64 {
        self.0[0]
    }

    /// The point that shares exactly the first `bits` bits with this one and takes the rest from `noise`.
    pub(crate) fn diverging_at(&self, bits: usize, noise: [u64; 4]) -> Self {
        let mut words = [0; 4];
        for (at, word) in words.iter_mut().enumerate() {
            let kept = bits.saturating_sub(64 * at).min(64);
            let mask = if kept == 0 { 0 } else { u64::MAX << (64 - kept) };
            *word = self.0[at] & mask | noise[at] & !mask;
        }
        if bits < BITS {
            let (at, bit) = (bits / 64, 1 << (63 - bits % 64));
            words[at] = words[at] & !bit | !self.0[at] & bit;
        }
        Self(words)
    }
}

impl From<&NodeId> for Point {
    fn from(node: &NodeId) -> Self {
        Self::from_bytes(node.as_bytes())
    }
}

impl From<NodeId> for Point {
    fn from(node: NodeId) -> Self {
        Self::from_bytes(node.as_bytes())
    }
}

impl From<&ServiceKey> for Point {
    fn from(key: &ServiceKey) -> Self {
        Self::from_bytes(key.as_bytes())
    }
}

impl From<ServiceKey> for Point {
    fn from(key: ServiceKey) -> Self {
        Self::from_bytes(key.as_bytes())
    }
}

impl fmt::Debug for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Point({:016x}…)", self.0[0])
    }
}

/// The XOR of two points, ordered as a 256-bit number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Distance([u64; 4]);

impl Distance {
    /// The greatest distance.
    pub(crate) const MAX: Self = Self([u64::MAX; 4]);

    /// The number of leading bits two points share: 256 for a point and itself.
    #[must_use]
    pub fn shared_bits(&self) -> usize {
        let mut shared = 0;
        for word in self.0 {
            shared += word.leading_zeros() as usize;
            if word != 0 {
                break;
            }
        }
        shared
    }

    /// The greatest distance of two points that share `bits` bits.
    pub(crate) fn within(bits: usize) -> Self {
        Self(std::array::from_fn(|word| match bits.saturating_sub(64 * word) {
            0 => u64::MAX,
            kept if kept >= 64 => 0,
            kept => u64::MAX >> kept,
        }))
    }

    /// The most significant 64 bits.
    pub(crate) fn head(&self) -> u64 {
        self.0[0]
    }

    /// The number, most significant word first.
    pub(crate) fn words(&self) -> &[u64; 4] {
        &self.0
    }

    /// The distance as a share of the key space, 0 to 1.
    #[must_use]
    pub fn fraction(&self) -> f64 {
        // A float holds 53 bits of a 256-bit number; the tail matters only for the tiniest shares.
        const WORD: f64 = 18_446_744_073_709_551_616.0;
        self.0.iter().rev().fold(0.0, |tail, &word| (word as f64 + tail) / WORD)
    }

    /// The distance that is this share of the key space, clamped to 0 and 1.
    pub(crate) fn from_fraction(share: f64) -> Self {
        const WORD: f64 = 18_446_744_073_709_551_616.0;
        if share >= 1.0 {
            return Self::MAX;
        }
        let mut rest = share.max(0.0);
        Self(std::array::from_fn(|_| {
            rest *= WORD;
            let word = rest as u64;
            rest -= word as f64;
            word
        }))
    }
}

impl fmt::Debug for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Distance({:016x}…)", self.0[0])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_round_trip(bytes: [u8; 32]) {
            prop_assert_eq!(Point::from_bytes(&bytes).to_bytes(), bytes);
        }

        #[test]
        fn distances_order_as_the_xored_bytes(a: [u8; 32], b: [u8; 32], c: [u8; 32]) {
            let xor = |x: [u8; 32], y: [u8; 32]| -> [u8; 32] { std::array::from_fn(|i| x[i] ^ y[i]) };
            let [pa, pb, pc] = [a, b, c].map(|bytes| Point::from_bytes(&bytes));
            prop_assert_eq!(pa.distance(&pb).cmp(&pa.distance(&pc)), xor(a, b).cmp(&xor(a, c)));
        }

        #[test]
        fn diverging_points_share_exactly_the_asked_bits(bytes: [u8; 32], noise: [u64; 4], bits in 0..=256_usize) {
            let point = Point::from_bytes(&bytes);
            prop_assert_eq!(point.distance(&point.diverging_at(bits, noise)).shared_bits(), bits);
        }

        #[test]
        fn the_greatest_distance_within_a_prefix_shares_just_that(bits in 0..=255_usize, bytes: [u8; 32], noise: [u64; 4]) {
            prop_assert_eq!(Distance::within(bits).shared_bits(), bits);
            let point = Point::from_bytes(&bytes);
            prop_assert!(point.distance(&point.diverging_at(bits, noise)) <= Distance::within(bits));
        }

        #[test]
        fn fractions_round_trip(share in 0.0..1.0_f64) {
            let back = Distance::from_fraction(share).fraction();
            prop_assert!((back - share).abs() <= share * 1e-12, "{} {}", share, back);
        }
    }
}
