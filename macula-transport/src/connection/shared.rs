//! What the connections of an endpoint share: its configuration, its counters, its load, and its clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use super::{room::Room, standstill};
use crate::{
    config::Config,
    hush::Hushes,
    load::Load,
    share::{checks::Checks, memory::MemoryBudget, names::Names, places::CallPlaces},
    stats::Counters,
};

/// What the connections of an endpoint share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) counters: Arc<Counters>,
    pub(crate) load: Arc<Load>,
    pub(crate) memory: MemoryBudget,
    pub(crate) places: CallPlaces,
    pub(crate) epoch: Instant,
    /// When a task last looked at the clock, in microseconds since the epoch.
    lately: AtomicU64,
    /// Every packet that came before this was read, in microseconds since the epoch.
    read_before: AtomicU64,
    /// The endpoint takes no further calls.
    draining: AtomicBool,
    /// The callers that wait for a place in the pool.
    pub(crate) room: Room,
    /// What is said of peers without a valid grant.
    pub(crate) hushes: Hushes,
    /// The passages that are checked.
    pub(crate) checks: Checks,
    /// The host names that are looked up.
    pub(crate) names: Names,
}

impl Shared {
    /// `handler_takes` is the number of calls that the handler takes at a time, when it gives one.
    pub(crate) fn new(config: Config, counters: Arc<Counters>, load: Arc<Load>, handler_takes: Option<u32>) -> Self {
        let epoch = tokio::time::Instant::now().into_std();
        Self {
            memory: MemoryBudget::new(config.limits.memory_bytes),
            places: CallPlaces::new(&config.limits, handler_takes),
            config,
            counters,
            load,
            epoch,
            lately: AtomicU64::new(0),
            read_before: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            room: Room::default(),
            hushes: Hushes::default(),
            checks: Checks::new(epoch),
            names: Names::default(),
        }
    }

    /// Notes a look at the clock, for uses that need the time only roughly.
    pub(crate) fn saw_clock(&self, now: Instant) {
        let micros = u64::try_from(now.saturating_duration_since(self.epoch).as_micros()).unwrap_or(u64::MAX);
        self.lately.fetch_max(micros, Relaxed);
    }

    /// Microseconds between the epoch and the last look at the clock. Every call looks once.
    pub(crate) fn lately(&self) -> u64 {
        self.lately.load(Relaxed)
    }

    /// Every packet that came before this was read.
    pub(crate) fn read_all_before(&self, at: Instant) {
        let micros = u64::try_from(at.saturating_duration_since(self.epoch).as_micros()).unwrap_or(u64::MAX);
        self.read_before.fetch_max(micros, Relaxed);
    }

    /// How long a packet that is read now may have waited because the process stood still.
    pub(crate) fn waited(&self, now: Instant) -> Duration {
        let certain = Duration::from_micros(self.read_before.load(Relaxed));
        standstill::waited(certain, now.saturating_duration_since(self.epoch))
    }

    /// Takes no further calls, for good.
    pub(crate) fn drain(&self) {
        self.draining.store(true, SeqCst);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(SeqCst)
    }
}
