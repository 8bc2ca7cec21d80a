//! How much extra load retries and hedges may make (F9, F10).
//!
//! Over the last ten seconds, retries stay within `ratio × calls + per_second × 10 s` and hedges within
//! `hedge_ratio × calls`, after Finagle's `RetryBudget`. A budget belongs to a service, not to a call and not to a
//! process: it lives in the [`Balancer`](crate::Balancer), where all calls to the service meet, so one service's outage
//! cannot spend the retries of the others. An attempt that was *not sent* made no load and is not counted. Neither is
//! one that was lost with a silent provider, while at most half of the providers are silent (L5).

use std::time::Duration;

use crate::clock::Nanos;
use crate::window::{BUCKETS, Cursor};

/// The limits of a retry budget.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BudgetConfig {
    /// Retries allowed per call. 0.2 by default: an outage makes at most 1.2× the load.
    pub ratio: f64,
    /// Retries a second allowed in any case, so that a small or seldom called service can fail over too. 10 by default, as in
    /// Finagle and Linkerd.
    pub per_second: f64,
    /// Hedges allowed per call. 0.05 by default.
    pub hedge_ratio: f64,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self {
            ratio: 0.2,
            per_second: 10.0,
            hedge_ratio: 0.05,
        }
    }
}

impl BudgetConfig {
    /// The time over which a budget is kept.
    pub const WINDOW: Duration = Duration::from_secs(BUCKETS as u64);
}

/// What a budget counted in its window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spending {
    /// Calls that began.
    pub calls: u64,
    /// Retries that were allowed.
    pub retries: u64,
    /// Hedges that were allowed.
    pub hedges: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Budget {
    config: BudgetConfig,
    cursor: Cursor,
    buckets: [Bucket; BUCKETS],
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    calls: u32,
    retries: u32,
    hedges: u32,
}

impl Budget {
    pub(crate) fn new(config: BudgetConfig) -> Self {
        Self {
            config,
            cursor: Cursor::default(),
            buckets: [Bucket::default(); BUCKETS],
        }
    }

    /// A call began.
    #[inline]
    pub(crate) fn call(&mut self, now: Nanos) {
        let bucket = self.current(now);
        bucket.calls = bucket.calls.saturating_add(1);
    }

    /// Takes a retry from the budget, if there is one.
    pub(crate) fn try_retry(&mut self, now: Nanos) -> bool {
        let spent = self.spending(now);
        let reserve = self.config.per_second * BUCKETS as f64;
        let allowed = (spent.retries + 1) as f64 <= self.config.ratio * spent.calls as f64 + reserve;
        if allowed {
            self.current(now).retries += 1;
        }
        allowed
    }

    /// Takes a hedge from the budget, if there is one.
    pub(crate) fn try_hedge(&mut self, now: Nanos) -> bool {
        let spent = self.spending(now);
        let allowed = (spent.hedges + 1) as f64 <= self.config.hedge_ratio * spent.calls as f64;
        if allowed {
            self.current(now).hedges += 1;
        }
        allowed
    }

    pub(crate) fn spending(&self, now: Nanos) -> Spending {
        self.cursor
            .live(now)
            .map(|at| self.buckets[at])
            .fold(Spending::default(), |sum, bucket| Spending {
                calls: sum.calls + u64::from(bucket.calls),
                retries: sum.retries + u64::from(bucket.retries),
                hedges: sum.hedges + u64::from(bucket.hedges),
            })
    }

    #[inline]
    fn current(&mut self, now: Nanos) -> &mut Bucket {
        let buckets = &mut self.buckets;
        let current = self.cursor.advance(now, |stale| buckets[stale] = Bucket::default());
        &mut self.buckets[current]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Laws 24 and 27, F9: at every moment what was allowed stays within the ratio and the reserve.
        #[test]
        fn f9_retries_and_hedges_stay_within_the_budget(
            steps in proptest::collection::vec((0u64..900, 0u8..5), 1..600),
            ratio in 0.0..0.5f64,
            per_second in 0.0..2.0f64,
        ) {
            let config = BudgetConfig { ratio, per_second, hedge_ratio: 0.05 };
            let mut budget = Budget::new(config);
            let mut now = 0;
            let (mut calls, mut retries, mut hedges) = (Vec::new(), Vec::new(), Vec::new());
            for (milliseconds, kind) in steps {
                now += milliseconds * 1_000_000;
                let recent = |all: &[u64]| all.iter().filter(|at| *at / 1_000_000_000 + 10 > now / 1_000_000_000).count() as f64;
                match kind {
                    0..2 => { budget.call(now); calls.push(now); }
                    2..4 => {
                        let room = recent(&retries) + 1.0 <= ratio * recent(&calls) + per_second * 10.0;
                        prop_assert_eq!(budget.try_retry(now), room);
                        if room { retries.push(now); }
                    }
                    _ => {
                        let room = recent(&hedges) + 1.0 <= 0.05 * recent(&calls);
                        prop_assert_eq!(budget.try_hedge(now), room);
                        if room { hedges.push(now); }
                    }
                }
            }
            prop_assert!(hedges.len() as f64 <= 0.05 * calls.len() as f64);
        }
    }
}
