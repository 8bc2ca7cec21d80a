//! Clocks that a simulation sets, suspends and starts wrong.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::Reading;

/// The wall clock of the network in memory when its first host comes, in milliseconds since the Unix epoch.
const START_MS: u64 = 1_700_000_000_000;

/// The clocks of one machine on a network in memory. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct SimulatedClock(Arc<Mutex<Offsets>>);

#[derive(Debug, Default)]
struct Offsets {
    suspended: Duration,
    wall_ms: i64,
}

impl SimulatedClock {
    /// Clocks that show the network's own time.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the wall clock forth by so many milliseconds, or back by a negative number.
    pub fn step(&self, by_ms: i64) {
        let mut offsets = self.lock();
        offsets.wall_ms = offsets.wall_ms.saturating_add(by_ms);
    }

    /// Suspends the machine for this time: its monotonic clock stands still, its wall clock does not. To the network no time passes.
    pub fn suspend(&self, time: Duration) {
        self.lock().suspended += time;
    }

    pub(super) fn read(&self, elapsed: Duration) -> Reading {
        let offsets = self.lock();
        let passed = elapsed + offsets.suspended;
        let unix_ms = START_MS.saturating_add(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX));
        Reading {
            ran: elapsed,
            passed,
            unix_ms: unix_ms.saturating_add_signed(offsets.wall_ms),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Offsets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
