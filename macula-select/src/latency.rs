//! Peak-EWMA: a latency estimate that rises at once and falls slowly.
//!
//! After Finagle's `PeakEwma`: a sample above the estimate replaces it, one below is blended in by age,
//! `e ← e·w + s·(1 − w)` with `w = exp(−Δt/τ)`. Reading decays too, so a provider that was slow is tried again in
//! time. Two departures: a failure never lowers an estimate, it raises it to a penalty (H4; otherwise a provider that
//! fails fast looks like the fastest one), and a sample that was cut short (cancelled, timed out) may only raise it.
//!
//! **Forward decay** (Cormode, Shkapenyuk, Srivastava and Xu, 2009): instead of shrinking every estimate as time
//! passes, new ones are written in a unit that grows, `2^(t / (τ ln 2))`. Estimates then compare as they are stored,
//! and a pick computes no exponential per candidate. The unit is reset every 512 doublings.
//!
//! The exponential is a fixed polynomial, not libm's: the same inputs give the same bits on every platform.

use std::time::Duration;

use crate::clock::{Nanos, nanos};

/// The longest latency an estimate can show.
pub const MAX_LATENCY: Duration = Duration::from_secs(3600);

/// Below this an estimate does not fall, so that calls in flight still count for providers that were long idle.
const MIN_LATENCY: f64 = 1_000.0;

/// Doublings of the unit after which it is reset; twice as many still fit into an `f64`.
const MAX_DOUBLINGS: f64 = 512.0;

/// The time constants of latency estimates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatencyConfig {
    /// The time after which an old estimate weighs 1/e. 10 s by default.
    pub decay: Duration,
    /// What a failure counts as, times the share of the last ten seconds' attempts that failed, if the estimate is not
    /// longer already. 5 s by default.
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

/// The growing unit in which estimates are written.
#[derive(Debug, Clone)]
pub(crate) struct Decay {
    /// When the unit was one nanosecond.
    epoch: Nanos,
    /// Doublings of the unit per nanosecond.
    rate: f64,
    penalty: f64,
    /// The unit is constant for `2^grain` nanoseconds, at most a thousandth of τ, and remembered.
    grain: u32,
    remembered: (Nanos, Unit),
}

/// The unit at one moment: so many estimate units make a nanosecond.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Unit(f64);

impl Decay {
    pub(crate) fn new(config: LatencyConfig) -> Self {
        let tau = nanos(config.decay).max(1_000_000);
        Self {
            epoch: 0,
            rate: std::f64::consts::LOG2_E / tau as f64,
            penalty: clamp(nanos(config.failure_penalty)),
            grain: (tau / 1_000).ilog2(),
            remembered: (0, Unit(1.0)),
        }
    }

    /// The unit at `now`.
    pub(crate) fn unit(&self, now: Nanos) -> Unit {
        Unit(exp2(self.doublings(now)))
    }

    /// The unit at `now`, if it is the one that was asked for last.
    #[inline]
    pub(crate) fn remembered(&self, now: Nanos) -> Option<Unit> {
        (now >> self.grain == self.remembered.0).then_some(self.remembered.1)
    }

    pub(crate) fn remember(&mut self, now: Nanos) -> Unit {
        self.remembered = (now >> self.grain, self.unit(now));
        self.remembered.1
    }

    /// Whether the unit has grown so large that all estimates should be rebased.
    pub(crate) fn is_worn(&self, now: Nanos) -> bool {
        self.doublings(now) > MAX_DOUBLINGS
    }

    /// Resets the unit. Every estimate is to be rebased by what this returns.
    pub(crate) fn reset(&mut self, now: Nanos) -> Unit {
        let old = self.unit(now);
        self.epoch = (now >> self.grain) << self.grain;
        self.remember(now);
        old
    }

    /// What is left of a weight of one after this time.
    #[inline]
    fn remains(&self, elapsed: Nanos) -> f64 {
        1.0 / exp2(elapsed as i64 as f64 * self.rate)
    }

    #[inline]
    fn doublings(&self, now: Nanos) -> f64 {
        ((now >> self.grain) << self.grain).saturating_sub(self.epoch) as f64 * self.rate
    }
}

/// One provider's estimate, in units; 0 when nothing was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate(f64);

impl Estimate {
    pub(crate) const UNMEASURED: Self = Self(0.0);

    /// An estimate of so many nanoseconds.
    pub(crate) fn of(unit: Unit, nanos: f64) -> Self {
        Self(nanos.max(MIN_LATENCY) * unit.0)
    }

    pub(crate) fn is_measured(self) -> bool {
        self.0 > 0.0
    }

    /// The estimate in nanoseconds, or `typical` if nothing was measured yet.
    pub(crate) fn nanos(self, unit: Unit, typical: f64) -> f64 {
        self.weigh(unit, typical) / unit.0
    }

    /// The estimate in units, for comparing. `typical` is in nanoseconds.
    #[inline]
    pub(crate) fn weigh(self, unit: Unit, typical: f64) -> f64 {
        let floor = if self.is_measured() { MIN_LATENCY } else { typical } * unit.0;
        if self.0 > floor { self.0 } else { floor }
    }

    /// A complete, successful sample, `since` the one before.
    #[inline]
    pub(crate) fn observe(&mut self, unit: Unit, decay: &Decay, since: Nanos, sample: Nanos, typical: f64) {
        let sample = clamp(sample) * unit.0;
        self.0 = if !self.is_measured() {
            // An idle provider answers its first call fast; do not let that make it look better than the rest.
            sample.max(typical * unit.0)
        } else if sample >= self.0 {
            sample
        } else {
            // The old estimate has shrunk to its share by itself, as the unit grew.
            self.0 + sample * (1.0 - decay.remains(since))
        };
    }

    /// A sample that was cut short, the `in_a_row`-th of them: the truth is at least this long.
    ///
    /// The most likely mean of a memoryless wait is the time waited over the answers that came. A row of samples without
    /// one therefore counts as their sum, or hedging would hide a slow provider by never letting it finish.
    ///
    /// Returns whether the estimate rose: it is then as fresh as a complete sample makes it.
    pub(crate) fn observe_at_least(&mut self, unit: Unit, sample: Nanos, in_a_row: u8) -> bool {
        let sample = clamp(sample.saturating_mul(u64::from(in_a_row))) * unit.0;
        let rose = self.is_measured() && sample > self.0;
        if rose {
            self.0 = sample;
        }
        rose
    }

    /// A refusal or caller's error took no work. It holds the estimate at its value of the observation `since` ago (at least the
    /// typical latency, at most twice that), so a provider that refuses everything does not look fast, and an old spike is forgotten.
    pub(crate) fn observe_no_work(&mut self, unit: Unit, decay: &Decay, since: Nanos, sample: Nanos, typical: f64) {
        let before = (self.0 / decay.remains(since)).min(2.0 * typical * unit.0);
        self.0 = self.0.max(before).max(clamp(sample).max(typical) * unit.0);
    }

    /// A failure, `share` of the recent attempts having failed.
    ///
    /// The penalty is what a failure costs the caller, so its share of it is what to expect of the provider. In full it
    /// would put a provider out of use for a minute for one error in ten thousand.
    pub(crate) fn penalise(&mut self, unit: Unit, decay: &Decay, sample: Nanos, share: f64) {
        self.0 = self.0.max((decay.penalty * share).max(clamp(sample)) * unit.0);
    }

    /// The same estimate after the unit was reset from `old`. One that decayed to nothing stays a measured one.
    pub(crate) fn rebase(&mut self, old: Unit) {
        if self.is_measured() {
            self.0 = (self.0 / old.0).max(MIN_LATENCY);
        }
    }
}

#[inline]
fn clamp(sample: Nanos) -> f64 {
    sample.min(MAX_LATENCY.as_nanos() as u64) as i64 as f64 + 1.0
}

/// 2 to the power of x for x ≥ 0, within 0.4 %: the integer part becomes the exponent's bits, the fraction a parabola
/// through 1, √2 and 2. Continuous and rising; constant beyond 1 000.
#[inline]
fn exp2(x: f64) -> f64 {
    let x = x.min(1_000.0);
    let whole = x as i32;
    let fraction = x - f64::from(whole);
    f64::from_bits(((1023 + whole) as u64) << 52) * (1.0 + fraction * (0.656_854_25 + fraction * 0.343_145_75))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Nanos = 1_000_000_000;

    /// An estimate with what a balancer keeps beside it.
    struct Tracked {
        decay: Decay,
        estimate: Estimate,
        stamp: Nanos,
    }

    impl Tracked {
        fn new(config: LatencyConfig) -> Self {
            Self {
                decay: Decay::new(config),
                estimate: Estimate::UNMEASURED,
                stamp: 0,
            }
        }

        fn unit(&mut self, now: Nanos) -> Unit {
            if self.decay.is_worn(now) {
                let old = self.decay.reset(now);
                self.estimate.rebase(old);
            }
            self.decay.unit(now)
        }

        fn read(&mut self, now: Nanos) -> f64 {
            let unit = self.unit(now);
            self.estimate.nanos(unit, 1.0)
        }

        fn observe(&mut self, now: Nanos, sample: Nanos) {
            let unit = self.unit(now);
            self.estimate
                .observe(unit, &self.decay, now.saturating_sub(self.stamp), sample, 1.0);
            self.stamp = now;
        }
    }

    #[test]
    fn the_exponential_is_close_and_never_falls() {
        let mut last = 1.0f64;
        for step in 0..1_100_000 {
            let x = f64::from(step) / 1_000.0;
            let (ours, exact) = (exp2(x), x.exp2());
            assert!(ours >= last * (1.0 - 1e-12), "falls at {x}");
            assert!(
                x > 1_000.0 || (ours - exact).abs() <= 0.004 * exact,
                "{x}: {ours} for {exact}"
            );
            last = ours;
        }
    }

    #[test]
    fn it_rises_at_once_and_falls_slowly() {
        let mut tracked = Tracked::new(LatencyConfig::default());
        tracked.observe(0, 10_000_000);
        tracked.observe(1, 90_000_000);
        assert!(tracked.read(1) >= 90e6);
        tracked.observe(SECOND, 10_000_000);
        assert!(tracked.read(SECOND) > 80e6);
        let later = tracked.read(11 * SECOND);
        assert!((25e6..35e6).contains(&later), "{later}");
    }

    #[test]
    fn h4_a_fast_failure_is_a_penalty() {
        let mut tracked = Tracked::new(LatencyConfig::default());
        tracked.observe(0, 10_000_000);
        let unit = tracked.unit(1);
        tracked.estimate.penalise(unit, &tracked.decay, 1_000, 1.0);
        assert!(tracked.read(1) >= 5e9);
    }

    #[test]
    fn an_estimate_survives_the_reset_of_its_unit() {
        let mut tracked = Tracked::new(LatencyConfig {
            decay: Duration::from_secs(1),
            ..LatencyConfig::default()
        });
        for second in 0..2_000 {
            tracked.observe(second * SECOND, 50_000_000);
            let value = tracked.read(second * SECOND);
            assert!((value - 50e6).abs() < 1e6, "{value} at {second} s");
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Observe(u64),
        AtLeast(u64),
        Penalise(u64),
    }

    /// Times of every order of magnitude.
    fn spans() -> impl Strategy<Value = Nanos> {
        prop_oneof![0..1_000_000u64, 0..100_000_000_000u64, any::<u64>()]
    }

    proptest! {
        /// Law 30: estimates stay finite and bounded, and reading changes nothing.
        #[test]
        fn estimates_are_finite_and_bounded(
            mut steps in proptest::collection::vec((spans(), prop_oneof![
                spans().prop_map(Step::Observe), spans().prop_map(Step::AtLeast), spans().prop_map(Step::Penalise),
            ]), 1..100),
            decay in spans(), penalty in spans(),
        ) {
            steps.sort_by_key(|(now, _)| *now);
            let mut tracked = Tracked::new(LatencyConfig {
                decay: Duration::from_nanos(decay), failure_penalty: Duration::from_nanos(penalty),
            });
            for (now, step) in steps {
                let before = tracked.read(now);
                prop_assert_eq!(before.to_bits(), tracked.read(now).to_bits());
                let unit = tracked.unit(now);
                match step {
                    Step::Observe(sample) => tracked.observe(now, sample),
                    Step::AtLeast(sample) => {
                        let rose = tracked.estimate.observe_at_least(unit, sample, 1);
                        prop_assert!(rose || tracked.read(now).to_bits() == before.to_bits());
                        prop_assert!(tracked.read(now) >= before, "a censored sample lowered it");
                    }
                    Step::Penalise(sample) => {
                        tracked.estimate.penalise(unit, &tracked.decay, sample, 0.5);
                        prop_assert!(tracked.read(now) >= before, "a failure lowered it");
                    }
                }
                let value = tracked.read(now);
                prop_assert!((1.0..=3.7e12).contains(&value), "{}", value);
            }
        }
    }
}
