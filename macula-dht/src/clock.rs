//! The two clocks a directory needs, held together.
//!
//! Expiry runs on the monotonic clock; the dates in records are wall-clock time. A [`Clock`] ties the two at one moment. When the
//! wall clock is set, [`Clock::set`] ties them again, and no expiry that was computed before moves (D14).
//!
//! **Invariant:** between two ties, a later reading of one record never gives a later expiry than `issued + ttl`, so no chain of
//! holders and caches prolongs it (D4).

use std::time::{Duration, Instant};

use macula_wire::VerifiedProvider;

/// How far into the future a record may be dated: the clock error between two nodes that is tolerated.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Nanoseconds since a clock's origin: compact, exact, and enough for five centuries.
pub(crate) type Tick = u64;

/// Monotonic and wall-clock time, tied together.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Where ticks are counted from.
    origin: Instant,
    /// The last moment at which both clocks were read.
    tied: Instant,
    unix_ms: u64,
}

impl Clock {
    /// A clock for which it is `now` on the monotonic clock and `unix_ms` milliseconds after the Unix epoch.
    #[must_use]
    pub fn new(now: Instant, unix_ms: u64) -> Self {
        Self {
            origin: now,
            tied: now,
            unix_ms,
        }
    }

    /// Ties the clocks again: at `now` it is `unix_ms` milliseconds after the Unix epoch, whatever was said before.
    pub fn set(&mut self, now: Instant, unix_ms: u64) {
        self.tied = now;
        self.unix_ms = unix_ms;
    }

    /// The wall-clock time at `now`, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn unix_ms(&self, now: Instant) -> u64 {
        match now.checked_duration_since(self.tied) {
            Some(later) => self.unix_ms.saturating_add(millis(later)),
            None => self.unix_ms,
        }
    }

    /// How long `record` is still valid for a node that receives it at `now`: `min(ttl, issued + ttl - now)`, and no longer than its
    /// node's grant. A withdrawal outlives the grant, as it must outlive what it supersedes.
    ///
    /// # Errors
    /// When the record is no longer valid, or dated too far ahead.
    pub fn validity(&self, now: Instant, record: &VerifiedProvider) -> Result<Duration, DateError> {
        let validity = self.check_dates(now, record.advertised_at_ms(), record.ttl())?;
        let Some(end) = record.granted_until().filter(|_| !record.is_withdrawn()) else {
            return Ok(validity);
        };
        let (end_ms, now_ms) = (end.saturating_mul(1000), self.unix_ms(now));
        match end_ms.checked_sub(now_ms) {
            None | Some(0) => Err(DateError::Expired {
                by: Duration::from_millis(now_ms - end_ms),
            }),
            Some(left) => Ok(validity.min(Duration::from_millis(left))),
        }
    }

    pub(crate) fn check_dates(&self, now: Instant, issued_ms: u64, ttl: Duration) -> Result<Duration, DateError> {
        let now_ms = self.unix_ms(now);
        let latest_ms = now_ms.saturating_add(millis(MAX_CLOCK_SKEW));
        if issued_ms > latest_ms {
            let by = Duration::from_millis(issued_ms - now_ms);
            return Err(DateError::FromTheFuture { by });
        }
        let end_ms = issued_ms.saturating_add(millis(ttl));
        if end_ms <= now_ms {
            let by = Duration::from_millis(now_ms - end_ms);
            return Err(DateError::Expired { by });
        }
        Ok(ttl.min(Duration::from_millis(end_ms - now_ms)))
    }

    pub(crate) fn tick(&self, now: Instant) -> Tick {
        nanos(now.saturating_duration_since(self.origin))
    }

    pub(crate) fn instant(&self, tick: Tick) -> Instant {
        self.origin + Duration::from_nanos(tick)
    }
}

/// The dates of a record rule it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DateError {
    /// The record's validity is over.
    #[error("the record expired {by:?} ago; if it is fresh, the clock of its publisher or of this node is wrong")]
    Expired {
        /// How long ago.
        by: Duration,
    },
    /// The record is dated more than [`MAX_CLOCK_SKEW`] ahead.
    #[error("the record is dated {by:?} ahead; the clock of its publisher or of this node is wrong")]
    FromTheFuture {
        /// How far.
        by: Duration,
    },
}

impl DateError {
    /// How far the date is off.
    #[must_use]
    pub fn by(&self) -> Duration {
        match self {
            Self::Expired { by } | Self::FromTheFuture { by } => *by,
        }
    }
}

/// Whole milliseconds, saturating.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Nanoseconds, saturating.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d4_validity_is_the_lesser_of_received_and_issued() {
        let now = Instant::now();
        let clock = Clock::new(now, 1_000_000);
        let ttl = Duration::from_secs(20);
        let at = |issued| clock.check_dates(now, issued, ttl);
        let expired = |ms| {
            Err(DateError::Expired {
                by: Duration::from_millis(ms),
            })
        };
        let ahead = |ms| {
            Err(DateError::FromTheFuture {
                by: Duration::from_millis(ms),
            })
        };
        assert_eq!(at(1_000_000), Ok(ttl));
        assert_eq!(at(1_030_000), Ok(ttl), "a publisher whose clock is ahead gains nothing");
        assert_eq!(at(990_000), Ok(Duration::from_secs(10)));
        assert_eq!(at(980_000), expired(0));
        assert_eq!(at(980_001), Ok(Duration::from_millis(1)));
        assert_eq!(at(1_060_001), ahead(60_001));
        assert_eq!(at(u64::MAX), ahead(u64::MAX - 1_000_000));
        assert_eq!(at(0), expired(980_000));
    }

    #[test]
    fn an_instant_before_the_origin_is_the_origin() {
        let early = Instant::now();
        let clock = Clock::new(early + Duration::from_secs(5), 7);
        assert_eq!((clock.tick(early), clock.unix_ms(early)), (0, 7));
    }

    #[test]
    fn d14_a_wall_clock_that_is_set_moves_no_tick() {
        let start = Instant::now();
        let mut clock = Clock::new(start, 5_000_000);
        let now = start + Duration::from_secs(10);
        let tick = clock.tick(now);
        clock.set(now, 1_000);
        assert_eq!((clock.tick(now), clock.unix_ms(now)), (tick, 1_000));
        assert_eq!(clock.unix_ms(now + Duration::from_secs(1)), 2_000);
        assert_eq!(clock.instant(tick), now);
    }
}
