//! Which providers to dial behind the calls (H5).
//!
//! Three kinds, in this order: those that a pick would have chosen if connected; those that are down, each after a
//! backoff; and, while no provider is connected, any that no call dials already, so that a list of mostly dead providers
//! is searched by several dials at once.
//!
//! **Invariants.** At most [`MAX_DIALS_AT_ONCE`](super::MAX_DIALS_AT_ONCE) dials at once and one every
//! [`DIAL_EVERY`](super::DIAL_EVERY) after that; none while the
//! service is not called.

use std::hash::Hash;
use std::time::{Duration, Instant};

use super::Balancer;
use super::roster::{DOWN, HEALTHY, OPEN};
use crate::clock::{NEVER, Nanos, nanos};
use crate::provider::Link;

/// The longest time between two dials of a provider that is down, if [`DIAL_EVERY`](super::DIAL_EVERY) leaves room.
pub const MAX_REDIAL: Duration = Duration::from_secs(2);

/// The wait before the first redial.
const FIRST_REDIAL: Duration = Duration::from_millis(100);
/// Each further wait is so many times longer.
const REDIAL_FACTOR: f64 = 1.6;
/// Waits are up to so much shorter or longer, so that callers do not dial in step.
const REDIAL_JITTER: f64 = 0.2;
/// Dials after which the wait grows no more.
const MAX_COUNTED_DIALS: u8 = 16;
/// Seconds until a provider that is not down is dialed again if the outcome was never told.
const DIAL_SECONDS: u16 = 2;

impl<K: Eq + Hash + Clone> Balancer<K> {
    /// The next provider to dial, not for a call but behind the calls. Tell the outcome with [`Balancer::link`].
    ///
    /// Give such a dial a second: a provider that is down is dialed again after 0.1 s, then 1.6 times as long each time,
    /// up to [`MAX_REDIAL`], whether or not the dial before is over.
    #[must_use]
    pub fn poll_dial(&mut self, now: Instant) -> Option<K> {
        let now = self.clock.tick(now);
        if !self.dials.may_dial(now) {
            return None;
        }
        let next = self
            .next_wanted(now)
            .or_else(|| self.next_down(now))
            .or_else(|| self.next_unconnected(now));
        let Some(slot) = next else {
            self.dials.not_before(self.next_redial(now));
            return None;
        };
        self.dials.dialed(now);
        let cold = &mut self.cold[slot as usize];
        cold.dials = (cold.dials + 1).min(MAX_COUNTED_DIALS);
        cold.dialed_at = second(now);
        if cold.link == Link::Down {
            self.cold[slot as usize].hold = self.redial_at(now, slot);
        }
        self.cold[slot as usize].key.clone()
    }

    /// When [`Balancer::poll_dial`] may have something next; it may be over already. `None`: not before the next pick or
    /// the next [`Balancer::link`].
    #[must_use]
    pub fn next_dial(&self) -> Option<Instant> {
        let in_use = self.dials.in_use(self.clock.latest());
        in_use.then(|| self.clock.instant(self.dials.next())).flatten()
    }

    /// A pick would have taken this provider were it connected.
    pub(super) fn want(&mut self, now: Nanos, slot: u32) {
        if self.dials.has_room_for(slot) && self.may_dial(now, slot) {
            self.dials.push_wanted(now, slot);
        }
    }

    /// When a provider that is found down at this moment is dialed again.
    pub(super) fn redial_at(&mut self, now: Nanos, slot: u32) -> Nanos {
        let growth = (0..self.cold[slot as usize].dials).fold(1.0, |growth, _| growth * REDIAL_FACTOR);
        let jitter = 1.0 + REDIAL_JITTER * (2.0 * self.rng.unit() - 1.0);
        let wait = FIRST_REDIAL.mul_f64(growth * jitter);
        now.saturating_add(nanos(wait.min(MAX_REDIAL)))
    }

    fn next_wanted(&mut self, now: Nanos) -> Option<u32> {
        while let Some(slot) = self.dials.pop_wanted() {
            if self.may_dial(now, slot) {
                return Some(slot);
            }
        }
        None
    }

    fn next_down(&self, now: Nanos) -> Option<u32> {
        let next = self.slots(DOWN).min_by_key(|slot| self.cold[*slot as usize].hold)?;
        (self.cold[next as usize].hold <= now).then_some(next)
    }

    fn next_unconnected(&self, now: Nanos) -> Option<u32> {
        if self.roster.count(OPEN) > 0 {
            return None;
        }
        self.slots(HEALTHY).find(|slot| self.may_dial(now, *slot))
    }

    /// Whether it is not connected, no call dials it, and it was not dialed just now.
    fn may_dial(&self, now: Nanos, slot: u32) -> bool {
        let cold = &self.cold[slot as usize];
        let recently = cold.dials > 0 && second(now).wrapping_sub(cold.dialed_at) < DIAL_SECONDS;
        cold.link == Link::Idle && self.hot[slot as usize].in_flight == 0 && !recently
    }

    /// The moment after which one that cannot be dialed now may be.
    fn next_redial(&self, now: Nanos) -> Nanos {
        let down = self.slots(DOWN).map(|slot| self.cold[slot as usize].hold).min();
        let unconnected = (self.roster.count(OPEN) == 0 && self.roster.count(HEALTHY) > 0)
            .then(|| now + nanos(Duration::from_secs(u64::from(DIAL_SECONDS))));
        down.into_iter().chain(unconnected).min().unwrap_or(NEVER)
    }
}

fn second(now: Nanos) -> u16 {
    (now / 1_000_000_000) as u16
}
