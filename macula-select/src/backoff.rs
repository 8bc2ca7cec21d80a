//! How long a call waits between attempts, when asked to (F9).
//!
//! Full jitter (Brooker, "Exponential Backoff and Jitter", 2015): uniform in `[0, min(max, base × 2ⁿ)]`, which
//! spreads callers that failed together over the whole interval. The first failover never waits: another provider is
//! another machine, and waiting would only add to the caller's latency.

use std::time::Duration;

use crate::rng::Rng;

/// Exponential backoff with full jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The upper bound of the first wait, which comes before the second failover. 25 ms by default.
    pub base: Duration,
    /// The upper bound of any wait. 1 s by default.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(25),
            max: Duration::from_secs(1),
        }
    }
}

impl Backoff {
    /// The longest wait before failover number `failover`, counted from 1.
    #[must_use]
    pub fn ceiling(&self, failover: u32) -> Duration {
        match failover {
            0 | 1 => Duration::ZERO,
            _ => {
                let factor = 1u32.checked_shl(failover - 2).unwrap_or(u32::MAX);
                self.base.saturating_mul(factor).min(self.max)
            }
        }
    }

    pub(crate) fn wait(&self, failover: u32, rng: &mut Rng) -> Duration {
        let ceiling = self.ceiling(failover);
        if ceiling.is_zero() {
            ceiling
        } else {
            ceiling.mul_f64(rng.unit()).min(ceiling)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Backoff, Duration, Rng};
    use proptest::prelude::{any, prop_assert, proptest};

    #[test]
    fn f9_the_first_failover_is_immediate_and_ceilings_double() {
        let backoff = Backoff {
            base: Duration::from_millis(10),
            max: Duration::from_millis(35),
        };
        let ceilings: Vec<u128> = (0..6).map(|n| backoff.ceiling(n).as_millis()).collect();
        assert_eq!(ceilings, [0, 0, 10, 20, 35, 35]);
        assert_eq!(backoff.ceiling(u32::MAX), backoff.max);
    }

    /// Law 26: jitter is uniform. χ² over 20 cells, 19 degrees of freedom, p = 0.001 at 43.8.
    #[test]
    fn f9_jitter_is_uniform() {
        let backoff = Backoff {
            base: Duration::from_millis(100),
            max: Duration::from_secs(1),
        };
        let mut rng = Rng::new(7);
        let mut cells = [0u32; 20];
        for _ in 0..20_000 {
            let share = backoff.wait(3, &mut rng).as_secs_f64() / 0.2;
            cells[(share * 20.0) as usize] += 1;
        }
        let chi: f64 = cells
            .iter()
            .map(|seen| (f64::from(*seen) - 1000.0).powi(2) / 1000.0)
            .sum();
        assert!(chi < 43.8, "χ² = {chi}, {cells:?}");
    }

    proptest! {
        /// Law 26: every wait lies between nothing and its ceiling.
        #[test]
        fn f9_jitter_stays_below_its_ceiling(base in 0u64..10_000, max in 0u64..100_000, n in 0u32..100, seed in any::<u64>()) {
            let backoff = Backoff { base: Duration::from_millis(base), max: Duration::from_millis(max) };
            let wait = backoff.wait(n, &mut Rng::new(seed));
            prop_assert!(wait <= backoff.ceiling(n) && backoff.ceiling(n) <= backoff.max);
        }
    }
}
