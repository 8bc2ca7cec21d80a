//! Peak-EWMA: a latency estimate that rises at once and falls slowly.
//!
//! After Finagle's `PeakEwma`: a sample above the estimate replaces it, one below is blended in by age,
//! `e ← e·w + s·(1 − w)` with `w = exp(−Δt/τ)`. Reading decays too, so a provider that was slow is tried again in
//! time. Two departures: a failure never lowers an estimate, it raises it to a penalty (H4; otherwise a provider that
//! fails fast looks like the fastest one), and a sample that was cut short (cancelled, timed out) may only raise it.
//!
//! `exp` is a fixed polynomial, not libm's: the same inputs give the same bits on every platform.

use std::time::Duration;

use crate::clock::{Nanos, nanos};

/// The longest latency an estimate can show.
pub const MAX_LATENCY: Duration = Duration::from_secs(3600);

/// Below this an estimate does not fall, so that calls in flight still count for providers that were long idle.
const MIN_LATENCY: f32 = 1_000.0;

/// The time constants of latency estimates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatencyConfig {
    /// The time after which an old estimate weighs 1/e. 10 s by default.
    pub decay: Duration,
    /// What a failure counts as, if the estimate is not longer already. 5 s by default.
    pub failure_penalty: Duration,
}

impl Default for LatencyConfig {
    fn default() -> Self {
        Self {
            decay: Duration::from_secs(10),
            failure_penalty: Duration::from_secs(5),
        }
    }
}

/// [`LatencyConfig`] in the units of the arithmetic.
#[derive(Debug, Clone)]
pub(crate) struct Constants {
    /// 1 / (τ · ln 2), per nanosecond: exponents are kept in base 2.
    rate: f32,
    penalty: f32,
}

impl Constants {
    pub(crate) fn new(config: LatencyConfig) -> Self {
        let tau = nanos(config.decay).max(1) as f64;
        Self {
            rate: (std::f64::consts::LOG2_E / tau) as f32,
            penalty: clamp(nanos(config.failure_penalty)),
        }
    }
}

/// One provider's estimate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Estimate {
    /// Nanoseconds; 0 when nothing was measured.
    value: f32,
    stamp: Nanos,
}

impl Estimate {
    pub(crate) const UNMEASURED: Self = Self { value: 0.0, stamp: 0 };

    pub(crate) fn is_measured(&self) -> bool {
        self.value > 0.0
    }

    /// The estimate at `now`, or `typical` if nothing was measured yet.
    #[inline]
    pub(crate) fn read(&self, now: Nanos, typical: f32, constants: &Constants) -> f32 {
        if self.value == 0.0 {
            return typical;
        }
        (self.value * self.decay(now, constants)).max(MIN_LATENCY)
    }

    /// A complete, successful sample.
    #[inline]
    pub(crate) fn observe(&mut self, now: Nanos, sample: Nanos, typical: f32, constants: &Constants) {
        let sample = clamp(sample);
        let weight = self.decay(now, constants);
        self.value = if self.value == 0.0 {
            // An idle provider answers its first call fast; do not let that make it look better than the rest.
            sample.max(typical)
        } else if sample > self.value * weight {
            sample
        } else {
            self.value * weight + sample * (1.0 - weight)
        };
        self.stamp = now;
    }

    /// A sample that was cut short: the truth is at least this long.
    pub(crate) fn observe_at_least(&mut self, now: Nanos, sample: Nanos, constants: &Constants) {
        let sample = clamp(sample);
        if self.is_measured() && sample > self.value * self.decay(now, constants) {
            *self = Self {
                value: sample,
                stamp: now,
            };
        }
    }

    /// A failure.
    pub(crate) fn penalise(&mut self, now: Nanos, sample: Nanos, constants: &Constants) {
        let current = self.value * self.decay(now, constants);
        *self = Self {
            value: current.max(constants.penalty).max(clamp(sample)),
            stamp: now,
        };
    }

    #[inline]
    fn decay(&self, now: Nanos, constants: &Constants) -> f32 {
        exp2_negative(now.saturating_sub(self.stamp) as f32 * constants.rate)
    }
}

#[inline]
fn clamp(sample: Nanos) -> f32 {
    sample.min(MAX_LATENCY.as_nanos() as u64) as f32 + 1.0
}

/// 2 to the power of −x for x ≥ 0, within 0.4 %: the integer part becomes the exponent's bits, the fraction a parabola
/// through 1, √½ and ½. Continuous and never rising.
#[inline]
fn exp2_negative(x: f32) -> f32 {
    let x = x.min(126.0);
    let whole = x as u32;
    let fraction = x - whole as f32;
    let power = f32::from_bits((127 - whole) << 23);
    power * (1.0 - fraction * (0.671_572_9 - fraction * 0.171_572_9))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Nanos = 1_000_000_000;

    #[test]
    fn the_exponential_is_close_and_never_rises() {
        let mut last = 1.0f32;
        for step in 0..200_000 {
            let x = step as f32 / 1_000.0;
            let (ours, exact) = (exp2_negative(x), (-x).exp2());
            assert!(ours <= last, "rises at {x}");
            assert!(
                x > 126.0 || (ours - exact).abs() <= 0.004 * exact,
                "{x}: {ours} for {exact}"
            );
            last = ours;
        }
    }

    #[test]
    fn it_rises_at_once_and_falls_slowly() {
        let constants = Constants::new(LatencyConfig::default());
        let mut estimate = Estimate::UNMEASURED;
        estimate.observe(0, 10_000_000, 0.0, &constants);
        estimate.observe(1, 90_000_000, 0.0, &constants);
        assert!(estimate.read(1, 0.0, &constants) >= 90e6);
        estimate.observe(SECOND, 10_000_000, 0.0, &constants);
        assert!(estimate.read(SECOND, 0.0, &constants) > 80e6);
        let later = estimate.read(11 * SECOND, 0.0, &constants);
        assert!((25e6..35e6).contains(&later), "{later}");
    }

    #[test]
    fn h4_a_fast_failure_is_a_penalty() {
        let constants = Constants::new(LatencyConfig::default());
        let mut estimate = Estimate::UNMEASURED;
        estimate.observe(0, 10_000_000, 0.0, &constants);
        estimate.penalise(1, 1_000, &constants);
        assert!(estimate.read(1, 0.0, &constants) >= 5e9);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Observe(u64),
        AtLeast(u64),
        Penalise(u64),
    }

    proptest! {
        /// Law 30: estimates stay finite and bounded, and reading changes nothing.
        #[test]
        fn estimates_are_finite_and_bounded(
            steps in proptest::collection::vec((any::<u64>(), prop_oneof![
                any::<u64>().prop_map(Step::Observe), any::<u64>().prop_map(Step::AtLeast), any::<u64>().prop_map(Step::Penalise),
            ]), 1..100),
            decay in any::<u64>(), penalty in any::<u64>(),
        ) {
            let constants = Constants::new(LatencyConfig {
                decay: Duration::from_nanos(decay), failure_penalty: Duration::from_nanos(penalty),
            });
            let mut estimate = Estimate::UNMEASURED;
            for (now, step) in steps {
                let before = estimate.read(now, 1.0, &constants);
                prop_assert_eq!(before.to_bits(), estimate.read(now, 1.0, &constants).to_bits());
                match step {
                    Step::Observe(sample) => estimate.observe(now, sample, 1.0, &constants),
                    Step::AtLeast(sample) => {
                        estimate.observe_at_least(now, sample, &constants);
                        prop_assert!(estimate.read(now, 1.0, &constants) >= before, "a censored sample lowered it");
                    }
                    Step::Penalise(sample) => estimate.penalise(now, sample, &constants),
                }
                let value = estimate.read(now, 1.0, &constants);
                prop_assert!((1.0..=3.7e12).contains(&value), "{}", value);
            }
        }
    }
}
