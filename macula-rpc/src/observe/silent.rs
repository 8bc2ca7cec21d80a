//! The meters without the feature `metrics`: nothing, for nothing.

use std::time::{Duration, Instant};

use macula_select::{Fate, StopReason};
use macula_transport::Pool;
use macula_wire::ServiceName;

/// What a client would count of one service.
#[derive(Debug)]
pub(crate) struct Meters;

impl Meters {
    pub(crate) fn new(_service: &ServiceName) -> Self {
        Self
    }

    pub(crate) fn call(&self, _outcome: &'static str, _since: Instant) {}

    pub(crate) fn lookup(&self, _step: &'static str) {}

    pub(crate) fn attempt(&self, _fate: &Fate, _took: impl FnOnce() -> Duration) {}

    pub(crate) fn failovers(&self, _count: usize) {}

    pub(crate) fn stopped(&self, _reason: StopReason) {}
}

/// What a provider would count of one service.
#[derive(Debug)]
pub(crate) struct ServedMeters;

impl ServedMeters {
    pub(crate) fn new(_service: &ServiceName) -> Self {
        Self
    }

    pub(crate) fn start(&self) -> Option<Instant> {
        None
    }

    pub(crate) fn served(&self, _outcome: &'static str, _since: Option<Instant>) {}
}

/// What would be shown of the connection pool.
#[derive(Debug)]
pub(crate) struct PoolMeters;

impl PoolMeters {
    pub(crate) fn new() -> Self {
        Self
    }

    pub(crate) fn show(&self, _pool: &Pool, _now: Instant) {}
}
