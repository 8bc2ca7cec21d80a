//! Success and failure by the second, over the last ten (H1).
//!
//! Whole-second buckets forget exactly: what happened more than ten seconds ago weighs nothing, unlike in a decaying
//! average. A bucket that reaches 65 535 of a kind halves both its counts, so the *ratio* stays and 40 bytes suffice.

use crate::clock::Nanos;

/// Buckets in a window, one second each.
pub(crate) const BUCKETS: usize = 10;

const SECOND: Nanos = 1_000_000_000;

/// Which of ten one-second buckets is current, and which have gone stale.
///
/// Shared by everything that counts over a sliding window; the counts themselves belong to the user.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cursor {
    second: u32,
}

impl Cursor {
    /// Moves to the second of `now`, calling `clear` with each bucket that began again, and returns the current one.
    #[inline]
    pub(crate) fn advance(&mut self, now: Nanos, mut clear: impl FnMut(usize)) -> usize {
        let second = second(now);
        if second > self.second {
            let stale = (second - self.second).min(BUCKETS as u32);
            for offset in 1..=stale {
                clear((second - stale + offset) as usize % BUCKETS);
            }
            self.second = second;
        }
        self.second as usize % BUCKETS
    }

    /// The buckets that still count at `now`.
    pub(crate) fn live(&self, now: Nanos) -> impl Iterator<Item = usize> + use<> {
        let oldest = (second(now) + 1).saturating_sub(BUCKETS as u32);
        let newest = self.second;
        // A bucket holds the newest second congruent to it that is not after `newest`.
        (0..BUCKETS as u32)
            .filter_map(move |age| newest.checked_sub(age))
            .filter(move |second| *second >= oldest)
            .map(|second| second as usize % BUCKETS)
    }
}

/// Truncated to 32 bits: 136 years of seconds.
#[inline]
fn second(now: Nanos) -> u32 {
    (now / SECOND) as u32
}

/// What happened in the last ten seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Attempts that succeeded.
    pub ok: u32,
    /// Attempts that failed.
    pub failed: u32,
}

impl Counts {
    /// The share that succeeded, 1 if there were none.
    #[must_use]
    pub fn success_rate(&self) -> f64 {
        let total = u64::from(self.ok) + u64::from(self.failed);
        if total == 0 {
            1.0
        } else {
            f64::from(self.ok) / total as f64
        }
    }
}

/// A provider's successes and failures.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Window {
    cursor: Cursor,
    buckets: [[u16; 2]; BUCKETS],
}

impl Window {
    #[inline]
    pub(crate) fn record(&mut self, now: Nanos, ok: bool) {
        let buckets = &mut self.buckets;
        let current = self.cursor.advance(now, |stale| buckets[stale] = [0; 2]);
        let counts = &mut self.buckets[current];
        if counts[usize::from(ok)] == u16::MAX {
            counts[0] /= 2;
            counts[1] /= 2;
        }
        counts[usize::from(ok)] += 1;
    }

    pub(crate) fn counts(&self, now: Nanos) -> Counts {
        self.cursor.live(now).fold(Counts::default(), |sum, bucket| Counts {
            failed: sum.failed + u32::from(self.buckets[bucket][0]),
            ok: sum.ok + u32::from(self.buckets[bucket][1]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[test]
    fn a_full_bucket_keeps_its_ratio() {
        let mut window = Window::default();
        for n in 0..400_000u32 {
            window.record(0, n % 4 != 0);
        }
        let rate = window.counts(0).success_rate();
        assert!((rate - 0.75).abs() < 0.001, "{rate}");
    }

    proptest! {
        /// H1: the window agrees with a list of everything that ever happened.
        #[test]
        fn h1_counts_are_those_of_the_last_ten_seconds(steps in proptest::collection::vec((0u64..4_000, any::<bool>()), 1..200)) {
            let mut window = Window::default();
            let mut all: VecDeque<(u64, bool)> = VecDeque::new();
            let mut now = 0;
            for (milliseconds, ok) in steps {
                now += milliseconds * 1_000_000;
                // Reading is pure, and right before as after the write.
                for _ in 0..2 {
                    let expected = |kind: bool| {
                        all.iter().filter(|(at, ok)| at / SECOND + 10 > now / SECOND && *ok == kind).count() as u32
                    };
                    prop_assert_eq!(window.counts(now), Counts { ok: expected(true), failed: expected(false) });
                    window.record(now, ok);
                    all.push_back((now, ok));
                }
            }
        }
    }
}
