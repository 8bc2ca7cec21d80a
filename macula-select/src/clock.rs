//! Time as the core sees it: nanoseconds since the first instant it was told, never running backward.
//!
//! The caller's clock may repeat itself or step back (law 31); the core then simply stands still. Eight bytes instead
//! of an `Instant`'s sixteen keep the per-provider state small, and integers are cheaper to compare.

use std::time::{Duration, Instant};

/// Nanoseconds since a clock's origin.
pub(crate) type Nanos = u64;

/// A moment that is never reached; the core's own "no timer".
pub(crate) const NEVER: Nanos = Nanos::MAX;

/// Converts the caller's instants, clamping them to be monotone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clock {
    origin: Option<Instant>,
    latest: Nanos,
}

impl Clock {
    /// The moment `now`, or the latest one seen if `now` lies before it.
    #[inline]
    pub(crate) fn tick(&mut self, now: Instant) -> Nanos {
        let origin = *self.origin.get_or_insert(now);
        self.latest = self.latest.max(nanos(now.saturating_duration_since(origin)));
        self.latest
    }

    /// The latest moment seen.
    #[inline]
    pub(crate) fn latest(&self) -> Nanos {
        self.latest
    }

    /// The caller's instant for a moment of this clock, if there is one.
    pub(crate) fn instant(&self, at: Nanos) -> Option<Instant> {
        if at == NEVER {
            return None;
        }
        self.origin?.checked_add(Duration::from_nanos(at))
    }
}

/// A duration in nanoseconds, saturating after 584 years.
#[inline]
pub(crate) fn nanos(duration: Duration) -> Nanos {
    duration
        .as_secs()
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::from(duration.subsec_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_steps_back_stands_still() {
        let start = Instant::now();
        let mut clock = Clock::default();
        assert_eq!(clock.tick(start + Duration::from_secs(5)), 0);
        assert_eq!(clock.tick(start + Duration::from_secs(7)), 2_000_000_000);
        assert_eq!(clock.tick(start), 2_000_000_000);
        assert_eq!(clock.instant(2_000_000_000), Some(start + Duration::from_secs(7)));
        assert_eq!(clock.instant(NEVER), None);
    }

    #[test]
    fn the_longest_duration_saturates() {
        assert_eq!(nanos(Duration::MAX), u64::MAX);
    }
}
