//! What happened between two states of a node.

use std::time::Duration;

use macula_node::{
    Latency, Presence,
    admin::schema::{CallStats, CalledProvider, State},
};

/// The node, and what happened since the state before.
#[derive(Debug, Clone, Default)]
pub(super) struct Frame {
    pub(super) node_id: String,
    pub(super) phase: String,
    pub(super) uptime_ms: u64,
    pub(super) peers: usize,
    pub(super) suspected: usize,
    pub(super) known_nodes: usize,
    pub(super) running: u64,
    pub(super) refused: u64,
    /// Ejections since the node was started.
    pub(super) ejections: u64,
    pub(super) services: Vec<Service>,
}

/// Which way a service's calls go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// This node serves them.
    In,
    /// This node makes them.
    Out,
}

/// A service's calls in the meantime.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) way: Way,
    /// Calls that ended, a second.
    pub(super) rate: f64,
    /// Of these, failed.
    pub(super) errors: f64,
    pub(super) in_flight: u64,
    pub(super) p50_us: Option<u64>,
    pub(super) p99_us: Option<u64>,
    pub(super) ejections: u64,
    /// The providers of a service that this node calls.
    pub(super) providers: Vec<CalledProvider>,
}

impl Frame {
    /// What happened from one state to a later one.
    pub(super) fn between(before: &State, now: &State) -> Self {
        let seconds = now.uptime_ms.saturating_sub(before.uptime_ms) as f64 / 1_000.0;
        let limits = |state: &State| {
            state
                .limits
                .map_or(0, |it| it.calls_refused_busy + it.calls_refused_draining)
        };
        let served = now.serves.iter().map(|service| {
            let earlier = before.serves.iter().find(|it| it.service == service.service);
            let earlier = earlier.and_then(|it| it.calls.as_ref());
            let calls = service.calls.clone().unwrap_or_default();
            Service::new(&service.service, Way::In, earlier, &calls, seconds)
        });
        let called = now.calls.iter().map(|service| {
            let earlier = before.calls.iter().find(|it| it.service == service.service);
            let earlier = earlier.and_then(|it| it.calls.as_ref());
            let calls = service.calls.clone().unwrap_or_default();
            Service {
                ejections: service.ejections,
                providers: service.providers.clone(),
                ..Service::new(&service.service, Way::Out, earlier, &calls, seconds)
            }
        });
        Self {
            node_id: now.node_id.clone(),
            phase: now.phase.clone(),
            uptime_ms: now.uptime_ms,
            peers: now.peers.len(),
            suspected: now
                .peers
                .iter()
                .filter(|peer| peer.presence == Presence::Suspected.name())
                .count(),
            known_nodes: now.mesh.as_ref().map_or(0, |mesh| mesh.contacts.len()),
            running: now.running_calls,
            refused: limits(now).saturating_sub(limits(before)),
            ejections: now.calls.iter().map(|service| service.ejections).sum(),
            services: served.chain(called).collect(),
        }
    }
}

impl Service {
    fn new(name: &str, way: Way, before: Option<&CallStats>, now: &CallStats, seconds: f64) -> Self {
        let none = CallStats::default();
        let before = before.unwrap_or(&none);
        let rate = |count: fn(&CallStats) -> u64| match seconds {
            0.0 => 0.0,
            seconds => count(now).saturating_sub(count(before)) as f64 / seconds,
        };
        let latency = latency(now).since(&latency(before));
        let quantile = |share| {
            let time = latency.quantile(share)?;
            u64::try_from(time.as_micros()).ok()
        };
        Self {
            name: name.to_owned(),
            way,
            rate: rate(|calls| calls.ok + calls.errors),
            errors: rate(|calls| calls.errors),
            in_flight: now.in_flight,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            ejections: 0,
            providers: Vec::new(),
        }
    }
}

/// The distribution that a node sent.
fn latency(calls: &CallStats) -> Latency {
    let buckets = calls
        .latency
        .iter()
        .map(|bucket| (Duration::from_micros(bucket.below_us), bucket.count));
    Latency::from_buckets(buckets, Duration::from_micros(calls.total_us))
}

#[cfg(test)]
mod tests {
    use macula_node::admin::schema::LatencyBucket;

    use super::*;
    use crate::sample;

    #[test]
    fn rates_and_latencies_are_those_of_the_meantime() {
        let before = sample::state();
        let mut now = sample::state();
        now.uptime_ms += 2_000;
        let calls = now.serves[0].calls.as_mut().unwrap();
        calls.ok += 90;
        calls.errors += 10;
        calls.latency = vec![
            LatencyBucket {
                below_us: 1_024,
                count: 99,
            },
            LatencyBucket {
                below_us: 16_384,
                count: 1,
            },
        ];
        let frame = Frame::between(&before, &now);
        let served = &frame.services[0];
        assert_eq!((served.name.as_str(), served.way), ("text.upper", Way::In));
        assert_eq!((served.rate, served.errors), (50.0, 5.0));
        assert_eq!((served.p50_us, served.p99_us), (Some(1_024), Some(1_024)));
        let called = &frame.services[1];
        assert_eq!((called.rate, called.p50_us, called.providers.len()), (0.0, None, 2));
        assert_eq!((frame.peers, frame.suspected, frame.ejections), (2, 1, 1));
        let same = Frame::between(&now, &now);
        assert_eq!(same.services[0].rate, 0.0, "no time has passed");
    }
}
