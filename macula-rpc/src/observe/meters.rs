//! Numbers through the `metrics` facade.
//!
//! Each number's handle is asked of the recorder once for a service and kept, so a call costs additions and no lookup. Install
//! the recorder before the first call.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use macula_select::{Fate, Loss, StopReason};
use macula_transport::Pool;
use macula_wire::ServiceName;
use metrics::{Counter, Histogram, counter, gauge, histogram};

/// How often the gauges of the pool are set at most.
const POOL_EVERY: Duration = Duration::from_secs(1);

/// The time on the clock that calls are timed by, which tests may pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn since_now(since: Instant) -> Duration {
    now().saturating_duration_since(since)
}

/// Counters that differ by one label, each made when it is first needed.
#[derive(Debug)]
struct Family<const N: usize> {
    name: &'static str,
    label: &'static str,
    values: [&'static str; N],
    service: ServiceName,
    counters: [OnceLock<Counter>; N],
}

impl<const N: usize> Family<N> {
    fn new(name: &'static str, label: &'static str, values: [&'static str; N], service: &ServiceName) -> Self {
        Self {
            name,
            label,
            values,
            service: service.clone(),
            counters: [const { OnceLock::new() }; N],
        }
    }

    fn add(&self, value: &'static str) {
        let Some(at) = self.values.iter().position(|known| *known == value) else {
            debug_assert!(false, "{value} is not a value of {}", self.name);
            return;
        };
        self.counters[at]
            .get_or_init(|| counter!(self.name, "rpc.service" => self.service.to_string(), self.label => value))
            .increment(1);
    }
}

/// What a client counts of one service.
#[derive(Debug)]
pub(crate) struct Meters {
    service: ServiceName,
    calls: Family<{ OUTCOMES.len() }>,
    lookups: Family<{ STEPS.len() }>,
    attempts: Family<{ FATES.len() }>,
    stops: Family<{ STOPS.len() }>,
    failovers: OnceLock<Counter>,
    call_seconds: OnceLock<Histogram>,
    attempt_seconds: OnceLock<Histogram>,
}

const OUTCOMES: [&str; 15] = [
    super::OK,
    super::CANCELLED,
    "service_not_found",
    "all_providers_failed",
    "max_attempts_exceeded",
    "deadline_exceeded",
    "answered",
    "not_retried",
    "requests_failed",
    "unresolved",
    "invalid_name",
    "metadata_too_large",
    "request_too_large",
    "unencodable",
    "undecodable",
];
const STEPS: [&str; 7] = ["local", "cache", "dht", "router", "static", "dns", "none"];
const FATES: [&str; 7] = [
    "ok",
    "not_sent",
    "refused",
    "timed_out",
    "lost",
    "answered",
    "cancelled",
];
const STOPS: [&str; 4] = ["budget_exhausted", "pushback", "begun", "definitive"];

impl Meters {
    pub(crate) fn new(service: &ServiceName) -> Self {
        Self {
            calls: Family::new("macula.rpc.calls", "outcome", OUTCOMES, service),
            lookups: Family::new("macula.rpc.lookups", "source", STEPS, service),
            attempts: Family::new("macula.rpc.attempts", "fate", FATES, service),
            stops: Family::new("macula.rpc.not_retried", "reason", STOPS, service),
            service: service.clone(),
            failovers: OnceLock::new(),
            call_seconds: OnceLock::new(),
            attempt_seconds: OnceLock::new(),
        }
    }

    /// A call ended.
    pub(crate) fn call(&self, outcome: &'static str, since: Instant) {
        self.calls.add(outcome);
        self.call_seconds
            .get_or_init(|| histogram!("rpc.client.call.duration", "rpc.service" => self.service.to_string()))
            .record(since_now(since).as_secs_f64());
    }

    /// A step of the directory's order gave the providers; `none` when none did.
    pub(crate) fn lookup(&self, step: &'static str) {
        self.lookups.add(step);
    }

    /// An attempt ended.
    pub(crate) fn attempt(&self, fate: &Fate, took: impl FnOnce() -> Duration) {
        self.attempts.add(match fate {
            Fate::Ok => "ok",
            Fate::NotSent => "not_sent",
            Fate::Refused { .. } => "refused",
            Fate::Unknown(Loss::TimedOut) => "timed_out",
            Fate::Unknown(Loss::ConnectionLost) => "lost",
            Fate::Answered { .. } => "answered",
            Fate::Cancelled => "cancelled",
        });
        self.attempt_seconds
            .get_or_init(|| histogram!("macula.rpc.attempt.duration", "rpc.service" => self.service.to_string()))
            .record(took().as_secs_f64());
    }

    /// A call went on to so many further providers.
    pub(crate) fn failovers(&self, count: usize) {
        if count > 0 {
            self.failovers
                .get_or_init(|| counter!("macula.rpc.failovers", "rpc.service" => self.service.to_string()))
                .increment(count as u64);
        }
    }

    /// A failed attempt was not followed by another.
    pub(crate) fn stopped(&self, reason: StopReason) {
        self.stops.add(match reason {
            StopReason::BudgetExhausted => "budget_exhausted",
            StopReason::Pushback => "pushback",
            StopReason::Begun => "begun",
            _ => "definitive",
        });
    }
}

/// What a provider counts of one service.
#[derive(Debug)]
pub(crate) struct ServedMeters {
    service: ServiceName,
    served: Family<{ SERVED.len() }>,
    seconds: OnceLock<Histogram>,
}

const SERVED: [&str; 4] = [super::OK, super::ERROR, super::REFUSED, super::CANCELLED];

impl ServedMeters {
    pub(crate) fn new(service: &ServiceName) -> Self {
        Self {
            served: Family::new("macula.rpc.served", "outcome", SERVED, service),
            service: service.clone(),
            seconds: OnceLock::new(),
        }
    }

    /// A handler is about to run; what to give [`ServedMeters::served`].
    pub(crate) fn start(&self) -> Option<Instant> {
        Some(now())
    }

    /// A handler has ended.
    pub(crate) fn served(&self, outcome: &'static str, since: Option<Instant>) {
        self.served.add(outcome);
        let took = since.map_or(Duration::ZERO, since_now);
        self.seconds
            .get_or_init(|| histogram!("rpc.server.call.duration", "rpc.service" => self.service.to_string()))
            .record(took.as_secs_f64());
    }
}

/// The gauges of the connection pool, set beside calls, at most once in [`POOL_EVERY`].
#[derive(Debug)]
pub(crate) struct PoolMeters {
    epoch: Instant,
    /// Milliseconds since the epoch from which on they are set again.
    next: AtomicU64,
}

impl PoolMeters {
    pub(crate) fn new() -> Self {
        Self {
            epoch: now(),
            next: AtomicU64::new(0),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub(crate) fn show(&self, pool: &Pool, now: Instant) {
        let at = u64::try_from(now.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX);
        let next = self.next.load(Relaxed);
        let after = at.saturating_add(POOL_EVERY.as_millis() as u64);
        if at < next || self.next.compare_exchange(next, after, Relaxed, Relaxed).is_err() {
            return;
        }
        let stats = pool.stats();
        gauge!("macula.pool.connections").set(stats.open as f64);
        counter!("macula.pool.opened").absolute(stats.opened);
        counter!("macula.pool.accepted").absolute(stats.accepted);
        counter!("macula.pool.reused").absolute(stats.reused);
        counter!("macula.pool.dial_failures").absolute(stats.dial_failures);
        counter!("macula.pool.evicted").absolute(stats.evicted);
        counter!("macula.pool.lost").absolute(stats.lost);
    }
}
