//! The numbers of calls, and their labels.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use macula_select::StopReason;
use macula_transport::Pool;
use macula_wire::ServiceName;

use super::{
    Ended, MAX_METHODS, Method, MethodNames, Served,
    recorded::{Counters, Labels, Seconds, Total, show},
    tally::{CallStats, Counted, Tally},
};

/// How often the pool's numbers are shown at most.
const POOL_EVERY: Duration = Duration::from_secs(1);

fn since(start: Instant) -> Duration {
    tokio::time::Instant::now().into_std().saturating_duration_since(start)
}

/// The calls of one method: how many, by outcome, and how long they took.
#[derive(Debug)]
struct MethodMeters {
    labels: Labels,
    calls: Counters,
    seconds: Seconds,
}

/// The calls of a service by method.
#[derive(Debug)]
struct ByMethod {
    service: ServiceName,
    calls: &'static str,
    seconds: &'static str,
    none: OnceLock<Box<MethodMeters>>,
    other: OnceLock<Box<MethodMeters>>,
    known: Box<[OnceLock<Box<MethodMeters>>]>,
}

impl ByMethod {
    fn new(service: &ServiceName, calls: &'static str, seconds: &'static str) -> Self {
        // Without a recorder's feature there is nothing to keep.
        let known = if cfg!(feature = "metrics") { MAX_METHODS } else { 0 };
        Self {
            service: service.clone(),
            calls,
            seconds,
            none: OnceLock::new(),
            other: OnceLock::new(),
            known: (0..known).map(|_| OnceLock::new()).collect(),
        }
    }

    fn count(&self, method: &Method, outcome: &'static str, took: Duration) {
        let place = match method {
            Method::None => Some(&self.none),
            Method::Other => Some(&self.other),
            Method::Known(at, _) => self.known.get(*at),
        };
        let Some(place) = place.filter(|_| cfg!(feature = "metrics")) else {
            return;
        };
        let meters = place.get_or_init(|| {
            Box::new(MethodMeters {
                labels: Labels::new(&self.service, method),
                calls: Counters::new(self.calls, "outcome"),
                seconds: Seconds::new(self.seconds),
            })
        });
        meters.calls.add(&meters.labels, outcome);
        meters.seconds.record(&meters.labels, || took);
    }
}

/// The numbers of a client's calls of one service.
#[derive(Debug)]
pub(crate) struct Meters {
    tally: Tally,
    methods: MethodNames,
    calls: ByMethod,
    labels: Labels,
    lookups: Counters,
    attempts: Counters,
    attempt_seconds: Seconds,
    stops: Counters,
    failovers: Total,
    pool: Arc<PoolMeters>,
}

impl Meters {
    pub(crate) fn new(service: &ServiceName, pool: &Arc<PoolMeters>) -> Self {
        Self {
            tally: Tally::default(),
            methods: MethodNames::default(),
            calls: ByMethod::new(service, "macula.rpc.calls", "rpc.client.call.duration"),
            labels: Labels::new(service, &Method::None),
            lookups: Counters::new("macula.rpc.lookups", "source"),
            attempts: Counters::new("macula.rpc.attempts", "fate"),
            attempt_seconds: Seconds::new("macula.rpc.attempt.duration"),
            stops: Counters::new("macula.rpc.not_retried", "reason"),
            failovers: Total::new("macula.rpc.failovers"),
            pool: Arc::clone(pool),
        }
    }

    /// The label of a method that this process calls.
    pub(crate) fn method(&self, name: &str) -> Method {
        match cfg!(feature = "metrics") {
            true => self.methods.learn(name),
            false => Method::None,
        }
    }

    /// A call began.
    pub(crate) fn begin(&self) {
        self.tally.begin();
    }

    /// A call ended.
    pub(crate) fn call(&self, method: &Method, ended: Ended, start: Instant) {
        let took = since(start);
        self.tally.end(
            match ended {
                Ended::Ok => Counted::Ok,
                Ended::Cancelled => Counted::Cancelled,
                Ended::Late | Ended::Failed(_) => Counted::Error,
            },
            took,
        );
        self.calls.count(method, ended.name(), took);
        self.pool.show(start);
    }

    /// The calls so far.
    pub(crate) fn stats(&self) -> CallStats {
        self.tally.stats()
    }

    /// A step of the directory's order gave the providers; `none` when no step did.
    pub(crate) fn lookup(&self, step: &'static str) {
        self.lookups.add(&self.labels, step);
    }

    /// An attempt ended in this way.
    pub(crate) fn attempt(&self, name: &'static str, took: impl FnOnce() -> Duration) {
        self.attempts.add(&self.labels, name);
        self.attempt_seconds.record(&self.labels, took);
    }

    /// A call went on to this number of further providers.
    pub(crate) fn failovers(&self, count: usize) {
        if count > 0 {
            self.failovers.add(&self.labels, count);
        }
    }

    /// A failed attempt was not followed by another.
    pub(crate) fn stopped(&self, reason: StopReason) {
        self.stops.add(&self.labels, reason.name());
    }
}

/// The numbers of a provider's calls of one service.
#[derive(Debug)]
pub(crate) struct ServedMeters {
    tally: Tally,
    calls: ByMethod,
}

impl ServedMeters {
    pub(crate) fn new(service: &ServiceName) -> Self {
        Self {
            tally: Tally::default(),
            calls: ByMethod::new(service, "macula.rpc.served", "rpc.server.call.duration"),
        }
    }

    /// A call begins; its time.
    pub(crate) fn begin(&self) -> Instant {
        self.tally.begin();
        tokio::time::Instant::now().into_std()
    }

    /// A handler has ended.
    pub(crate) fn served(&self, method: &Method, served: Served, start: Instant) {
        let took = since(start);
        self.tally.end(
            match served {
                Served::Ok => Counted::Ok,
                Served::Error => Counted::Error,
                Served::Refused => Counted::Refused,
                Served::Cancelled => Counted::Cancelled,
            },
            took,
        );
        self.calls.count(method, served.name(), took);
    }

    /// The calls so far.
    pub(crate) fn stats(&self) -> CallStats {
        self.tally.stats()
    }
}

/// The numbers of the connection pool, shown beside calls, at most once in [`POOL_EVERY`].
#[derive(Debug)]
pub(crate) struct PoolMeters {
    pool: Pool,
    epoch: Instant,
    /// Milliseconds since the epoch at which they are shown next.
    next: AtomicU64,
}

impl PoolMeters {
    pub(crate) fn new(pool: Pool) -> Self {
        Self {
            pool,
            epoch: tokio::time::Instant::now().into_std(),
            next: AtomicU64::new(0),
        }
    }

    fn show(&self, now: Instant) {
        if !cfg!(feature = "metrics") {
            return;
        }
        let at = u64::try_from(now.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX);
        let next = self.next.load(Relaxed);
        let after = at.saturating_add(POOL_EVERY.as_millis() as u64);
        if at >= next && self.next.compare_exchange(next, after, Relaxed, Relaxed).is_ok() {
            show(&self.pool);
        }
    }
}
