//! Numbers that go to the recorder of the `metrics` facade.
//!
//! A handle is asked of the recorder once and kept, so a call costs additions and no lookup. Install the recorder before the first
//! call.

use std::{sync::OnceLock, time::Duration};

use macula_transport::Pool;
use macula_wire::ServiceName;
use metrics::{
    Counter, Histogram, Label, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use super::Method;

/// The most values of a counter's label: the errors of a call are the longest list.
const MAX_VALUES: usize = 24;

/// The labels that the numbers of a service, or of one of its methods, share.
#[derive(Debug)]
pub(super) struct Labels(Vec<Label>);

impl Labels {
    pub(super) fn new(service: &ServiceName, method: &Method) -> Self {
        let mut labels = vec![Label::new("rpc.service", service.to_string())];
        if *method != Method::None {
            labels.push(Label::new("rpc.method", method.as_str().to_owned()));
        }
        Self(labels)
    }
}

/// Counters that differ by the value of one label, each made when it is first needed.
#[derive(Debug)]
pub(super) struct Counters {
    name: &'static str,
    label: &'static str,
    by_value: [OnceLock<(&'static str, Counter)>; MAX_VALUES],
}

impl Counters {
    pub(super) fn new(name: &'static str, label: &'static str) -> Self {
        Self {
            name,
            label,
            by_value: [const { OnceLock::new() }; MAX_VALUES],
        }
    }

    pub(super) fn add(&self, labels: &Labels, value: &'static str) {
        for place in &self.by_value {
            let (known, counter) = place.get_or_init(|| {
                let mut labels = labels.0.clone();
                labels.push(Label::from_static_parts(self.label, value));
                (value, counter!(self.name, labels))
            });
            if *known == value {
                counter.increment(1);
                return;
            }
        }
        debug_assert!(false, "{} has more values than {MAX_VALUES}", self.name);
    }
}

/// A counter without a label of its own.
#[derive(Debug)]
pub(super) struct Total(&'static str, OnceLock<Counter>);

impl Total {
    pub(super) fn new(name: &'static str) -> Self {
        Self(name, OnceLock::new())
    }

    pub(super) fn add(&self, labels: &Labels, count: usize) {
        let counter = self.1.get_or_init(|| counter!(self.0, labels.0.clone()));
        counter.increment(count as u64);
    }
}

/// A histogram of times, in seconds.
#[derive(Debug)]
pub(super) struct Seconds(&'static str, OnceLock<Histogram>);

impl Seconds {
    pub(super) fn new(name: &'static str) -> Self {
        Self(name, OnceLock::new())
    }

    pub(super) fn record(&self, labels: &Labels, took: impl FnOnce() -> Duration) {
        let seconds = self.1.get_or_init(|| histogram!(self.0, labels.0.clone()));
        seconds.record(took().as_secs_f64());
    }
}

/// Shows the connection pool as gauges and counters.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
pub(super) fn show(pool: &Pool) {
    let stats = pool.stats();
    gauge!("macula.pool.connections").set(stats.open as f64);
    counter!("macula.pool.opened").absolute(stats.opened);
    counter!("macula.pool.accepted").absolute(stats.accepted);
    counter!("macula.pool.reused").absolute(stats.reused);
    counter!("macula.pool.dial_failures").absolute(stats.dial_failures);
    counter!("macula.pool.evicted").absolute(stats.evicted);
    counter!("macula.pool.lost").absolute(stats.lost);
}

/// Tells the recorder of the `metrics` facade the meaning and the unit of each number that this crate records. Call it once, after the
/// recorder was installed.
pub fn describe_metrics() {
    for (name, meaning) in [
        ("macula.rpc.calls", "Calls that this process has made, by their outcome"),
        (
            "macula.rpc.lookups",
            "Lists of providers that calls took, by their source",
        ),
        ("macula.rpc.attempts", "Attempts of calls, by their fate"),
        (
            "macula.rpc.not_retried",
            "Failed attempts that no other followed, by the reason",
        ),
        ("macula.rpc.failovers", "Attempts after the first of a call"),
        (
            "macula.rpc.served",
            "Calls that this process has served, by their outcome",
        ),
        ("macula.pool.opened", "Connections that this process has opened"),
        ("macula.pool.accepted", "Connections that peers have opened"),
        ("macula.pool.reused", "Calls that found an open connection"),
        ("macula.pool.dial_failures", "Dials that have failed"),
        ("macula.pool.evicted", "Connections that were closed for others"),
        ("macula.pool.lost", "Connections that were lost"),
    ] {
        describe_counter!(name, meaning);
    }
    describe_gauge!("macula.pool.connections", "Open connections");
    for (name, meaning) in [
        (
            "rpc.client.call.duration",
            "How long the calls took that this process has made",
        ),
        (
            "rpc.server.call.duration",
            "How long the calls took that this process has served",
        ),
        ("macula.rpc.attempt.duration", "How long attempts took"),
    ] {
        describe_histogram!(name, Unit::Seconds, meaning);
    }
}
