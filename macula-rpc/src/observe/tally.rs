//! The calls of one service: how many, how they ended, and how long they took. Always on, without a recorder.
//!
//! **Invariant.** What is kept does not grow with the calls. The buckets are made at the first answer.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Buckets for each power of two: a bucket is at most a quarter wider than it is long.
const STEPS: u64 = 4;
/// The shortest time that has a bucket of its own is 1 µs, and from 2^26 µs (67 s) on all share the last.
const POWERS: u64 = 26;
/// Buckets of a [`Latency`].
pub const LATENCY_BUCKETS: usize = (STEPS * POWERS) as usize;

/// How a call ended, as far as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    Ok,
    Error,
    Refused,
    Cancelled,
}

/// The numbers of one service.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    begun: AtomicU64,
    ok: AtomicU64,
    error: AtomicU64,
    refused: AtomicU64,
    cancelled: AtomicU64,
    micros: AtomicU64,
    buckets: OnceLock<Box<[AtomicU64]>>,
}

/// The calls of one service since this process began to count them.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CallStats {
    /// Calls under way.
    pub in_flight: u64,
    /// Calls that succeeded.
    pub ok: u64,
    /// Calls that failed, at their deadline among them.
    pub errors: u64,
    /// Calls that were not started.
    pub refused: u64,
    /// Calls that were given up by their caller.
    pub cancelled: u64,
    /// How long those took that succeeded or failed.
    pub latency: Latency,
}

/// A distribution of times in buckets that grow by at most a quarter, from 1 µs to 67 s.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Latency {
    /// The count in each bucket, or nothing at all.
    counts: Vec<u64>,
    total: Duration,
}

impl Tally {
    pub(crate) fn begin(&self) {
        self.begun.fetch_add(1, Relaxed);
    }

    pub(crate) fn end(&self, how: Counted, took: Duration) {
        let count = match how {
            Counted::Ok => &self.ok,
            Counted::Error => &self.error,
            Counted::Refused => &self.refused,
            Counted::Cancelled => &self.cancelled,
        };
        count.fetch_add(1, Relaxed);
        if matches!(how, Counted::Ok | Counted::Error) {
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            self.micros.fetch_add(micros, Relaxed);
            let buckets = self
                .buckets
                .get_or_init(|| (0..LATENCY_BUCKETS).map(|_| AtomicU64::new(0)).collect());
            buckets[bucket(micros)].fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn stats(&self) -> CallStats {
        // The ends are read before the beginnings, so that a call that ends meanwhile counts as under way.
        let [ok, errors, refused, cancelled] =
            [&self.ok, &self.error, &self.refused, &self.cancelled].map(|count| count.load(Relaxed));
        let ended = ok + errors + refused + cancelled;
        let counts = self.buckets.get().map(|buckets| buckets.iter());
        CallStats {
            in_flight: self.begun.load(Relaxed).saturating_sub(ended),
            ok,
            errors,
            refused,
            cancelled,
            latency: Latency {
                counts: counts.into_iter().flatten().map(|count| count.load(Relaxed)).collect(),
                total: Duration::from_micros(self.micros.load(Relaxed)),
            },
        }
    }
}

/// The bucket of a time in microseconds.
fn bucket(micros: u64) -> usize {
    let micros = micros.max(1);
    let power = u64::from(micros.ilog2());
    // The first powers of two hold fewer microseconds than steps, so they leave some steps empty.
    let step = ((micros - (1 << power)) * STEPS) >> power;
    ((power * STEPS + step) as usize).min(LATENCY_BUCKETS - 1)
}

/// The first time beyond a bucket, in microseconds.
fn end_of(bucket: usize) -> u64 {
    let (power, step) = (bucket as u64 / STEPS, bucket as u64 % STEPS);
    // Rounded up: a bucket that is narrower than a microsecond ends at the next one.
    (1 << power) + ((step + 1) << power).div_ceil(STEPS)
}

impl Latency {
    /// A distribution from its [`Latency::buckets`]; empty ones may be left out.
    #[must_use]
    pub fn from_buckets(buckets: impl IntoIterator<Item = (Duration, u64)>, total: Duration) -> Self {
        let mut counts = vec![0; LATENCY_BUCKETS];
        for (end, count) in buckets {
            let last = u64::try_from(end.as_micros()).unwrap_or(u64::MAX).saturating_sub(1);
            counts[bucket(last)] += count;
        }
        Self { counts, total }
    }

    /// How many times were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All of them added up, to the microsecond.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.total
    }

    /// The time that a share of them, 0 to 1, did not exceed, at most a quarter too long; `None` when there are none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        let rank = ((count as f64 * share).ceil() as u64).clamp(1, count.max(1));
        let mut below = 0;
        let found = self.counts.iter().position(|here| {
            below += here;
            below >= rank
        })?;
        (count > 0).then(|| Duration::from_micros(end_of(found)))
    }

    /// The counts bucket by bucket, each with the time that it ends before, ascending. At most [`LATENCY_BUCKETS`].
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let ends = (0..).map(|bucket| Duration::from_micros(end_of(bucket)));
        ends.zip(self.counts.iter().copied())
    }

    /// The times that were counted after `earlier` was.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = earlier.counts.iter().copied().chain(std::iter::repeat(0));
        Self {
            counts: self
                .counts
                .iter()
                .zip(before)
                .map(|(now, before)| now.saturating_sub(before))
                .collect(),
            total: self.total.saturating_sub(earlier.total),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_tally_counts_calls_by_their_end() {
        let tally = Tally::default();
        for how in [
            Counted::Ok,
            Counted::Ok,
            Counted::Error,
            Counted::Refused,
            Counted::Cancelled,
        ] {
            tally.begin();
            tally.end(how, Duration::from_millis(3));
        }
        tally.begin();
        let stats = tally.stats();
        assert_eq!((stats.ok, stats.errors, stats.refused, stats.cancelled), (2, 1, 1, 1));
        assert_eq!((stats.in_flight, stats.latency.count()), (1, 3));
        assert_eq!(stats.latency.total(), Duration::from_millis(9));
        assert_eq!(stats.latency.since(&stats.latency).count(), 0);
        assert_eq!(Latency::default().quantile(0.5), None);
    }

    proptest! {
        #[test]
        fn a_time_lies_in_its_bucket_and_that_is_at_most_a_quarter_wider(micros in 1..1_u64 << POWERS) {
            let here = bucket(micros);
            prop_assert!(micros < end_of(here));
            prop_assert!(here == 0 || micros + 1 >= end_of(here - 1), "{micros} is not before {}", end_of(here - 1));
            prop_assert!(end_of(here) - 1 <= micros + micros / 4, "{micros} is said to be {}", end_of(here));
        }

        #[test]
        fn a_quantile_is_a_time_that_so_many_did_not_exceed(times in prop::collection::vec(1..5_000_000_u64, 1..100), share in 0.0..=1.0) {
            let tally = Tally::default();
            for micros in &times {
                tally.end(Counted::Ok, Duration::from_micros(*micros));
            }
            let found = tally.stats().latency.quantile(share).unwrap().as_micros() as u64;
            let within = times.iter().filter(|micros| **micros < found).count();
            prop_assert!(within as f64 >= share * times.len() as f64);
            let latency = tally.stats().latency;
            prop_assert_eq!(Latency::from_buckets(latency.buckets(), latency.total()), latency);
        }
    }
}
