//! Taking turns: round robin, and weighted round robin by static strides.
//!
//! **Round robin** rotates over the *whole* list and skips the providers that cannot be used; the next turn begins after the
//! one chosen. A counter modulo the usable ones would jump whenever one drops out (S2).
//!
//! **Static stride** (gRPC proposal A58) walks the list round by round; in round *r* the provider of weight *w* is
//! taken if `(w·r + offset) mod max ≥ max − w`, which happens in `w / max` of the rounds, evenly spread, and never more
//! than one off. It needs no heap and no per-pick state but the place in the list.
//!
//! The ring is in the order of joining: providers keep their place when the caller's list is permuted, and when others
//! leave or join.

use super::roster::Span;
use crate::identity;

#[derive(Debug, Clone, Default)]
pub(crate) struct Rotation {
    ring: Vec<u32>,
    /// The place whose turn it is in round robin.
    turn: u32,
    /// The place whose turn it is in weighted round robin, and in which round.
    stride: u32,
    round: u32,
    /// The largest effective weight of a region, `None` when it has to be looked up again.
    pub(super) heaviest: Option<(Span, u32)>,
}

impl Rotation {
    pub(crate) fn reserve(&mut self, total: usize) {
        self.ring.reserve_exact(total.saturating_sub(self.ring.len()));
    }

    pub(crate) fn join(&mut self, slot: u32) {
        self.ring.push(slot);
    }

    /// Keeps those for which `stays` holds. Whose turn it was stays so, or it passes to the next.
    pub(crate) fn retain(&mut self, stays: impl Fn(u32) -> bool) {
        let gone = |until: u32| {
            self.ring
                .iter()
                .take(until as usize)
                .filter(|slot| !stays(**slot))
                .count() as u32
        };
        let (turn, stride) = (self.turn - gone(self.turn), self.stride - gone(self.stride));
        self.ring.retain(|slot| stays(*slot));
        let wrap = |at: u32| if at as usize >= self.ring.len() { 0 } else { at };
        (self.turn, self.stride) = (wrap(turn), wrap(stride));
    }

    pub(crate) fn weights_changed(&mut self) {
        self.heaviest = None;
    }

    /// The next one at or after the turn for which `usable` holds.
    #[inline]
    pub(super) fn next(&mut self, usable: impl Fn(u32) -> bool) -> Option<u32> {
        let length = self.ring.len() as u32;
        let mut at = self.turn;
        for _ in 0..length {
            let slot = *self.ring.get(at as usize)?;
            at += 1;
            if at == length {
                at = 0;
            }
            if usable(slot) {
                self.turn = at;
                return Some(slot);
            }
        }
        None
    }

    /// The next one in proportion to its weight, at most `max`. `None` if two rounds found none: the heaviest ones
    /// are excluded from this pick.
    pub(super) fn next_weighted(
        &mut self,
        max: u32,
        usable: impl Fn(u32) -> bool,
        weight: impl Fn(u32) -> u32,
    ) -> Option<u32> {
        let length = self.ring.len() as u32;
        for _ in 0..length.saturating_mul(2) {
            let slot = *self.ring.get(self.stride as usize)?;
            let round = self.round;
            self.stride += 1;
            if self.stride == length {
                self.stride = 0;
                self.round = self.round.wrapping_add(1);
            }
            if usable(slot) {
                let weight = u64::from(weight(slot).min(max));
                // Offsets keep equal light weights from all being due in the same round.
                let offset = identity::mix(u64::from(slot)) % u64::from(max);
                if (weight * u64::from(round) + offset) % u64::from(max) >= u64::from(max) - weight {
                    return Some(slot);
                }
            }
        }
        None
    }
}
