//! What the connections of an endpoint share: its configuration, its counters, its load, and its clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst},
    },
    time::Instant,
};

use super::room::Room;
use crate::{config::Config, hush::Hush, load::Load, stats::Counters};

/// What the connections of an endpoint share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) counters: Arc<Counters>,
    pub(crate) load: Arc<Load>,
    pub(crate) epoch: Instant,
    /// When a task last looked at the clock, in microseconds since the epoch.
    lately: AtomicU64,
    /// The endpoint takes no further calls.
    draining: AtomicBool,
    /// The callers that wait for a place in the pool.
    pub(crate) room: Room,
    /// What is said of peers without a valid grant.
    pub(crate) hush: Hush,
}

impl Shared {
    pub(crate) fn new(config: Config, counters: Arc<Counters>, load: Arc<Load>) -> Self {
        Self {
            config,
            counters,
            load,
            epoch: tokio::time::Instant::now().into_std(),
            lately: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            room: Room::default(),
            hush: Hush::default(),
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

    /// Takes no further calls, for good.
    pub(crate) fn drain(&self) {
        self.draining.store(true, SeqCst);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(SeqCst)
    }
}
