//! Finds out from readings of the clocks how long the machine has been suspended, and whether its wall clock was set.
//!
//! **Invariant:** after each [`ClockWatch::look`] the wall clock differs by less than [`MAX_DRIFT`] from the wall clock of the last tie plus
//! the time passed since. A look that finds a larger difference reports a [`Jump`] and ties the two again.

use std::time::Duration;

/// How far the wall clock may drift from the time passed before the two are tied again. Records forgive a minute. On Linux a clock
/// that is slewed shows no drift, because the monotonic clock is slewed with it (clock_gettime(2)).
const MAX_DRIFT: Duration = Duration::from_secs(1);
/// The shortest suspension that is noticed: below it is only the time between two readings.
const MIN_SLEEP: Duration = Duration::from_millis(100);

/// One look at the clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    /// How long the machine has run, without suspensions (`CLOCK_MONOTONIC`).
    pub(crate) ran: Duration,
    /// How long ago it was started, with suspensions (`CLOCK_BOOTTIME`).
    pub(crate) passed: Duration,
    /// The wall clock, in milliseconds since the Unix epoch.
    pub(crate) unix_ms: u64,
}

impl Reading {
    fn slept(&self) -> Duration {
        self.passed.saturating_sub(self.ran)
    }
}

/// The clocks have jumped since the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Jump {
    /// How long the machine was suspended.
    pub(crate) slept: Duration,
    /// By how much the wall clock was set forth, in milliseconds; negative when it was set back.
    pub(crate) stepped_ms: i64,
}

/// Watches the clocks. Time enters through [`ClockWatch::look`] only.
#[derive(Debug, Clone)]
pub(crate) struct ClockWatch {
    /// The time that the machine had slept before the watch began.
    before: Duration,
    /// The time that the machine has slept since then.
    suspended: Duration,
    /// The reading at which wall clock and time passed were tied.
    tied: Reading,
}

impl ClockWatch {
    pub(crate) fn new(first: Reading) -> Self {
        Self {
            before: first.slept(),
            suspended: Duration::ZERO,
            tied: first,
        }
    }

    /// How long the machine has been suspended since the watch began.
    pub(crate) fn suspended(&self) -> Duration {
        self.suspended
    }

    /// The wall clock at the last tie, in milliseconds since the Unix epoch.
    pub(crate) fn unix_ms(&self) -> u64 {
        self.tied.unix_ms
    }

    /// Takes in a reading; `None` when nothing but time has passed.
    pub(crate) fn look(&mut self, reading: Reading) -> Option<Jump> {
        let slept = reading.slept().saturating_sub(self.before + self.suspended);
        let woke = slept >= MIN_SLEEP;
        let passed = reading.passed.saturating_sub(self.tied.passed);
        let expected = i128::from(self.tied.unix_ms) + passed.as_millis() as i128;
        let drift = i128::from(reading.unix_ms) - expected;
        if !woke && drift.unsigned_abs() < MAX_DRIFT.as_millis() {
            return None;
        }
        if woke {
            self.suspended += slept;
        }
        self.tied = reading;
        let limited = drift.clamp(i64::MIN.into(), i64::MAX.into());
        Some(Jump {
            slept: if woke { slept } else { Duration::ZERO },
            stepped_ms: i64::try_from(limited).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Reading = Reading {
        ran: Duration::from_secs(50),
        passed: Duration::from_secs(80),
        unix_ms: 1_700_000_000_000,
    };

    /// What happens to a machine between two looks.
    #[derive(Debug, Clone, Copy)]
    enum Happens {
        Runs(u64),
        Sleeps(u64),
        Steps(i64),
        Slews(i64),
    }

    fn happens() -> impl Strategy<Value = Happens> {
        prop_oneof![
            (1..5000_u64).prop_map(Happens::Runs),
            (1..10_000_000_u64).prop_map(Happens::Sleeps),
            (-100_000_000..100_000_000_i64).prop_map(Happens::Steps),
            (-50..50_i64).prop_map(Happens::Slews),
        ]
    }

    fn after(reading: Reading, happens: Happens) -> Reading {
        let mut next = reading;
        match happens {
            Happens::Runs(ms) => {
                next.ran += Duration::from_millis(ms);
                next.passed += Duration::from_millis(ms);
                next.unix_ms += ms;
            }
            Happens::Sleeps(ms) => {
                next.passed += Duration::from_millis(ms);
                next.unix_ms += ms;
            }
            Happens::Steps(ms) | Happens::Slews(ms) => next.unix_ms = next.unix_ms.saturating_add_signed(ms),
        }
        next
    }

    proptest! {
        /// After any series of events the watch knows the time slept, and the wall clock to a second.
        #[test]
        fn d14_the_watch_knows_the_time(events in prop::collection::vec(happens(), 0..40)) {
            let (mut watch, mut reading, mut slept) = (ClockWatch::new(START), START, Duration::ZERO);
            for event in events {
                reading = after(reading, event);
                if let Happens::Sleeps(ms) = event {
                    slept += Duration::from_millis(ms);
                }
                let jump = watch.look(reading);
                prop_assert!(slept - watch.suspended() < MIN_SLEEP);
                let expected = watch.tied.unix_ms as i128 + (reading.passed - watch.tied.passed).as_millis() as i128;
                prop_assert!((i128::from(reading.unix_ms) - expected).unsigned_abs() < MAX_DRIFT.as_millis());
                match event {
                    Happens::Sleeps(ms) if ms >= 100 => prop_assert!(jump.is_some()),
                    Happens::Steps(ms) if ms.abs() >= 2000 => prop_assert!(jump.is_some()),
                    Happens::Runs(_) => prop_assert!(jump.is_none()),
                    Happens::Sleeps(_) | Happens::Steps(_) | Happens::Slews(_) => {}
                }
                prop_assert_eq!(watch.look(reading), None, "a jump is said once");
            }
        }
    }

    #[test]
    fn d14_a_sleep_is_no_step_and_a_step_no_sleep() {
        let mut watch = ClockWatch::new(START);
        let awake = after(START, Happens::Sleeps(600_000));
        let slept = Duration::from_secs(600);
        assert_eq!(watch.look(awake), Some(Jump { slept, stepped_ms: 0 }));
        let set = after(awake, Happens::Steps(-3_600_000));
        let stepped_ms = -3_600_000;
        let slept = Duration::ZERO;
        assert_eq!(watch.look(set), Some(Jump { slept, stepped_ms }));
        assert_eq!(
            (watch.suspended(), watch.unix_ms()),
            (Duration::from_secs(600), set.unix_ms)
        );
    }
}
