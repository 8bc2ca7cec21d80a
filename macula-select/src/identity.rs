//! A hash of a provider's key that is the same on every node, platform and release.
//!
//! Rendezvous hashing needs all callers to agree on a provider's identity, so `std`'s hashers (unspecified, or keyed
//! at random) will not do: FNV-1a over little-endian bytes, finished with SplitMix64's mixer because FNV's high bits
//! are weak. It is not a defence against chosen keys; tables that use it compare keys as well.

use std::hash::{Hash, Hasher};

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

struct Fnv1a(u64);

impl Hasher for Fnv1a {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
        }
    }

    fn write_u16(&mut self, value: u16) {
        self.write(&value.to_le_bytes());
    }

    fn write_u32(&mut self, value: u32) {
        self.write(&value.to_le_bytes());
    }

    fn write_u64(&mut self, value: u64) {
        self.write(&value.to_le_bytes());
    }

    fn write_u128(&mut self, value: u128) {
        self.write(&value.to_le_bytes());
    }

    // Lengths hash as 64 bits everywhere, or 32-bit callers would disagree with the rest.
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as i64 as u64);
    }

    fn finish(&self) -> u64 {
        mix(self.0)
    }
}

/// The stable identity of a key.
pub(crate) fn of<K: Hash>(key: &K) -> u64 {
    let mut hasher = Fnv1a(FNV_OFFSET);
    key.hash(&mut hasher);
    hasher.finish()
}

/// The stable identity of a name.
pub(crate) const fn of_name(name: &str) -> u64 {
    let bytes = name.as_bytes();
    let mut hash = FNV_OFFSET;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(FNV_PRIME);
        at += 1;
    }
    mix(hash)
}

/// SplitMix64's finalizer (Steele, Lea and Flood, 2014): every input bit reaches every output bit.
#[inline]
pub(crate) const fn mix(mut bits: u64) -> u64 {
    bits ^= bits >> 30;
    bits = bits.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits ^= bits >> 27;
    bits = bits.wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pinned: a change here would silently move every affinity key of every running mesh.
    #[test]
    fn identities_never_change() {
        assert_eq!(of_name(""), mix(FNV_OFFSET));
        assert_eq!(of(&7u32), mix(raw(&[7, 0, 0, 0])));
        assert_eq!(of(&7u64), mix(raw(&[7, 0, 0, 0, 0, 0, 0, 0])));
        assert_eq!(of(&"a"), mix(raw(&[b'a', 0xff])));
    }

    fn raw(bytes: &[u8]) -> u64 {
        let mut hasher = Fnv1a(FNV_OFFSET);
        hasher.write(bytes);
        hasher.0
    }
}
