//! The node's snapshot as numbers, made again for each scrape: a node that is not scraped pays nothing.
//!
//! **Invariant.** The number of labels is bounded: a peer is never one, and of services the first [`MAX_SERVICE_LABELS`] are.

use std::{collections::BTreeMap, ops::AddAssign};

use metrics::{Label, Unit, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::PrometheusBuilder;

use super::probes::reasons;
use crate::{NodeState, Phase, Presence, ProviderState};

/// Services that have a label of their own in the numbers of a snapshot; the rest are added up as `_OTHER`.
pub const MAX_SERVICE_LABELS: usize = 256;
/// The label of the other services.
const OTHER: &str = "_OTHER";

/// The node's numbers in Prometheus' text format.
pub(super) fn text(state: &NodeState) -> String {
    let recorder = PrometheusBuilder::new().with_recommended_naming(true).build_recorder();
    metrics::with_local_recorder(&recorder, || record_state(state));
    recorder.handle().render()
}

/// Gives the node's numbers to the recorder of the moment.
pub(crate) fn record_state(state: &NodeState) {
    node(state);
    directory(state);
    services(state);
    limits(state);
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn float(count: impl TryInto<u64>) -> f64 {
    count.try_into().map_or(f64::INFINITY, |count| count as f64)
}

fn show(name: &'static str, meaning: &'static str, value: f64) {
    describe_gauge!(name, meaning);
    gauge!(name).set(value);
}

fn count(name: &'static str, meaning: &'static str, count: u64) {
    describe_counter!(name, meaning);
    counter!(name).absolute(count);
}

fn node(state: &NodeState) {
    describe_gauge!("macula.node.info", "Always 1; the labels tell about the node");
    let labels = [
        ("node_id", state.node_id.to_string()),
        ("realm", state.realm.to_string()),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    gauge!("macula.node.info", &labels).set(1.0);
    describe_gauge!(
        "macula.node.uptime",
        Unit::Seconds,
        "The time since the node was started"
    );
    gauge!("macula.node.uptime").set(state.uptime.as_secs_f64());
    let is = |truth| if truth { 1.0 } else { 0.0 };
    show(
        "macula.node.ready",
        "Whether the node is in the mesh, published, and does not drain",
        is(reasons(state).is_empty()),
    );
    show(
        "macula.node.joined",
        "Whether the node is in the mesh",
        is(state.phase == Phase::Serving),
    );
    show(
        "macula.node.draining",
        "Whether the node leaves",
        is(matches!(state.phase, Phase::Draining | Phase::Left)),
    );
    describe_gauge!(
        "macula.node.peers",
        "Open connections to other nodes, by what is known of the peer"
    );
    for (presence, name) in [(Presence::Up, "up"), (Presence::Suspected, "suspected")] {
        let so = state.connections.iter().filter(|peer| peer.presence == presence);
        gauge!("macula.node.peers", "presence" => name).set(float(so.count()));
    }
    show(
        "macula.node.calls_running",
        "Calls of services that run here now",
        float(state.served.running),
    );
    show(
        "macula.node.calls_max",
        "Calls of services that run here at a time at most",
        float(state.served.max_running),
    );
    describe_gauge!(
        "macula.node.memory_used",
        Unit::Bytes,
        "What peers make the node keep now"
    );
    gauge!("macula.node.memory_used").set(float(state.transport.memory.used));
    describe_gauge!(
        "macula.node.memory_budget",
        Unit::Bytes,
        "What peers may make the node keep piece by piece"
    );
    gauge!("macula.node.memory_budget").set(float(state.transport.memory.charged));
}

fn directory(state: &NodeState) {
    let directory = &state.directory;
    show(
        "macula.node.contacts",
        "Nodes in the routing table",
        float(directory.contacts.len()),
    );
    show(
        "macula.node.mesh_nodes",
        "An estimate of the nodes in the mesh; 0 while there is none",
        directory.network_size.unwrap_or_default(),
    );
    show(
        "macula.node.records_held",
        "Records of others that the node holds",
        float(directory.held.records),
    );
    describe_gauge!("macula.node.records_held_size", Unit::Bytes, "Their size");
    gauge!("macula.node.records_held_size").set(float(directory.held.bytes));
    describe_gauge!("macula.node.records_max_size", Unit::Bytes, "The most they may have");
    gauge!("macula.node.records_max_size").set(float(directory.limits.bytes));
    let published = directory.published.iter().filter(|own| own.last.is_some());
    show(
        "macula.node.records_published",
        "Services of this node that are published",
        float(published.clone().count()),
    );
    show(
        "macula.node.records_unpublished",
        "Services of this node that are not published yet",
        float(directory.published.len() - published.count()),
    );
    let holders = directory.published.iter();
    by_service(
        "macula.node.service_holders",
        "Other nodes that hold the record of a service of this node",
        holders.map(|own| (own.service.as_str(), float(own.holders.len()))),
    );
    show(
        "macula.node.cache_entries",
        "Services whose providers are in the cache",
        float(directory.cached),
    );
    show(
        "macula.node.cache_max_entries",
        "The most services in the cache",
        float(directory.max_cached),
    );
    let cache = &directory.stats.cache;
    describe_counter!("macula.node.cache_lookups", "Lookups, by the cache's answer");
    for (answer, times) in [
        ("hit", cache.hits),
        ("negative_hit", cache.negative_hits),
        ("stale", cache.stale),
        ("miss", cache.misses),
    ] {
        counter!("macula.node.cache_lookups", "answer" => answer).absolute(times);
    }
    count(
        "macula.node.cache_evictions",
        "Services that left the cache for others",
        cache.evictions,
    );
}

fn services(state: &NodeState) {
    let ejections = state.called.iter();
    let ejections = ejections.map(|called| (called.service.as_str(), called.balancer.ejections));
    describe_counter!(
        "macula.node.ejections",
        "Providers of a called service that were taken out because they failed"
    );
    for (service, times) in bounded(ejections) {
        counter!("macula.node.ejections", "service" => service.to_owned()).absolute(times);
    }
    for provider_state in ProviderState::ALL {
        let so = state.called.iter().map(|called| {
            let so = called.providers.iter().filter(|one| one.state == provider_state);
            (called.service.as_str(), float(so.count()))
        });
        describe_gauge!(
            "macula.node.providers",
            "Providers of a called service, by their state for this caller"
        );
        for (service, providers) in bounded(so) {
            let labels = vec![
                Label::new("service", service.to_owned()),
                Label::from_static_parts("state", provider_state.name()),
            ];
            gauge!("macula.node.providers", labels).set(providers);
        }
    }
}

fn limits(state: &NodeState) {
    let (transport, dht) = (&state.transport, &state.directory.stats.dht);
    describe_counter!(
        "macula.node.limits_reached",
        "How often a limit was reached, or a peer was turned away"
    );
    for (limit, times) in [
        ("calls", transport.places.refused),
        ("calls_draining", state.served.refusals.draining),
        ("calls_not_served", state.served.refusals.not_served),
        ("calls_denied", transport.calls_denied),
        ("calls_not_admitted", state.served.not_admitted),
        ("memory", transport.memory.refused + transport.memory.evicted),
        ("connections", transport.rejected_busy + state.pool.evicted),
        ("handshakes", transport.rejected_handshakes),
        ("introductions", transport.rejected_hellos),
        ("grants", transport.rejected_grants),
        ("grants_ended", transport.grants_ended),
        ("grant_renewals", transport.rejected_renewals),
        ("frames", transport.rejected_frames),
        ("slow_streams", transport.slow_streams),
        ("directory_rate", dht.rate_limited),
        ("records", dht.refused),
        ("records_unproven", dht.unproven),
        ("revocations", state.refused_revocations),
        ("joins", state.refused_joins),
    ] {
        counter!("macula.node.limits_reached", "limit" => limit).absolute(times);
    }
    count(
        "macula.node.suspicions",
        "How often a peer fell silent while calls waited",
        transport.suspicions,
    );
    count(
        "macula.node.dial_failures",
        "Dials that have failed",
        state.pool.dial_failures,
    );
    count(
        "macula.node.connections_lost",
        "Connections that were lost",
        state.pool.lost,
    );
    count(
        "macula.node.handler_panics",
        "Handlers that panicked",
        transport.handler_panics,
    );
    count(
        "macula.node.dropped_replies",
        "Replies that came when their calls no longer waited",
        transport.dropped_replies,
    );
}

fn by_service<'a>(name: &'static str, meaning: &'static str, services: impl Iterator<Item = (&'a str, f64)>) {
    describe_gauge!(name, meaning);
    for (service, value) in bounded(services) {
        gauge!(name, "service" => service.to_owned()).set(value);
    }
}

/// The values of the first services, and the rest added up.
fn bounded<'a, T: AddAssign + Default>(services: impl Iterator<Item = (&'a str, T)>) -> BTreeMap<&'a str, T> {
    let mut values = BTreeMap::<_, T>::new();
    for (at, (service, value)) in services.enumerate() {
        let label = if at < MAX_SERVICE_LABELS { service } else { OTHER };
        *values.entry(label).or_default() += value;
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n5_services_beyond_the_labels_are_added_up() {
        let names: Vec<_> = (0..MAX_SERVICE_LABELS + 3).map(|n| format!("s{n}")).collect();
        let values = bounded(names.iter().map(|name| (name.as_str(), 2_u64)));
        assert_eq!(values.len(), MAX_SERVICE_LABELS + 1);
        assert_eq!((values["s0"], values[OTHER]), (2, 6));
    }
}
