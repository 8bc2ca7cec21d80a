//! The clocks of a node, held together over suspensions and jumps (D14).
//!
//! Rust's `Instant` stands still while a machine is suspended. A node's own time does not: it is the `Instant` plus the time that
//! the machine has been suspended since the node started, so that everything with a lifetime ages in its sleep. [`ClockWatch`] finds out
//! from readings of the clocks how long that is, and whether the wall clock was set.

#[cfg(feature = "testing")]
mod simulated;
mod watch;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

#[cfg(feature = "testing")]
pub use self::simulated::SimulatedClock;
pub(crate) use self::watch::{ClockWatch, Jump, Reading};

/// A node's clocks. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Clocks {
    source: TimeSource,
    /// How long the machine has been suspended since the node started, in nanoseconds, at the last look.
    suspended: Arc<AtomicU64>,
}

/// Where readings come from.
#[derive(Debug, Clone)]
pub(crate) enum TimeSource {
    System,
    #[cfg(feature = "testing")]
    Simulated {
        network: macula_transport::testing::Network,
        clock: SimulatedClock,
    },
}

impl Clocks {
    pub(crate) fn new(source: TimeSource) -> Self {
        Self {
            source,
            suspended: Arc::default(),
        }
    }

    /// The node's own time.
    pub(crate) fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std() + self.suspended()
    }

    /// The runtime's time for a moment of the node's own.
    pub(crate) fn on_runtime(&self, at: Instant) -> tokio::time::Instant {
        at.checked_sub(self.suspended()).unwrap_or(at).into()
    }

    pub(crate) fn set_suspended(&self, suspended: Duration) {
        let nanos = u64::try_from(suspended.as_nanos()).unwrap_or(u64::MAX);
        self.suspended.store(nanos, Relaxed);
    }

    pub(crate) fn read(&self) -> Reading {
        self.source.read()
    }

    fn suspended(&self) -> Duration {
        Duration::from_nanos(self.suspended.load(Relaxed))
    }
}

impl TimeSource {
    fn read(&self) -> Reading {
        match self {
            Self::System => read_system(),
            #[cfg(feature = "testing")]
            Self::Simulated { network, clock } => clock.read(network.elapsed()),
        }
    }
}

fn read_system() -> Reading {
    let (ran, passed) = read_monotonic();
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Reading {
        ran,
        passed,
        unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn read_monotonic() -> (Duration, Duration) {
    use rustix::time::{ClockId, clock_gettime};

    let read = |clock| {
        let time = clock_gettime(clock);
        // Neither is negative: both count from the machine's start.
        Duration::new(
            u64::try_from(time.tv_sec).unwrap_or_default(),
            u32::try_from(time.tv_nsec).unwrap_or_default(),
        )
    };
    (read(ClockId::Monotonic), read(ClockId::Boottime))
}

/// Without a clock that counts suspensions one shows as a jump of the wall clock.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn read_monotonic() -> (Duration, Duration) {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let ran = START.get_or_init(Instant::now).elapsed();
    (ran, ran)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn d14_a_nodes_time_goes_on_while_its_machine_sleeps() {
        let clocks = Clocks::new(TimeSource::System);
        let before = clocks.now();
        clocks.set_suspended(Duration::from_secs(600));
        let now = clocks.now();
        assert!(now - before >= Duration::from_secs(600));
        assert!(clocks.on_runtime(now) <= tokio::time::Instant::now());
    }

    #[test]
    fn d14_the_machines_clocks_can_be_read() {
        let (first, second) = (read_system(), read_system());
        assert!(second.ran >= first.ran && second.passed >= first.passed);
        assert!(
            second.passed + Duration::from_secs(1) > second.ran,
            "a machine sleeps while it has been started"
        );
        assert!(second.unix_ms > 1_700_000_000_000);
    }
}
