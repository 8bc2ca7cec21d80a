//! The admin interface's messages, made from a node's snapshot and events.
//!
//! **Invariant.** A list has at most [`MAX_ENTRIES`] entries in a message, and the message says how many were left out.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::schema::{
    Access, Addresses, Build, Cache, CallStats, CalledProvider, CalledService, Contact, Event, LatencyBucket, Limits,
    Mesh, ObservedAddress, Peer, PublishedRecord, Records, Refusal, ServedService, State,
};
use crate::{NodeEvent, NodeState, error_line};

/// The most entries of a list, and of all providers of called services together.
const MAX_ENTRIES: usize = 4096;

/// Counts the entries that had no room.
#[derive(Default)]
struct Room {
    left_out: usize,
}

impl Room {
    fn list<T, U>(&mut self, all: &[T], one: impl Fn(&T) -> U) -> Vec<U> {
        self.left_out += all.len().saturating_sub(MAX_ENTRIES);
        all.iter().take(MAX_ENTRIES).map(one).collect()
    }
}

pub(crate) fn state(state: &NodeState, build: Build) -> State {
    let mut room = Room::default();
    let mut providers = MAX_ENTRIES;
    let mut calls = Vec::new();
    for service in state.called.iter().take(MAX_ENTRIES) {
        let shown = service.providers.len().min(providers);
        providers -= shown;
        room.left_out += service.providers.len() - shown;
        calls.push(called(service, shown));
    }
    room.left_out += state.called.len() - calls.len();
    State {
        node_id: state.node_id.to_string(),
        realm: state.realm.to_string(),
        role: state.role.name().to_owned(),
        build: Some(build),
        pid: std::process::id(),
        started_at_ms: unix_ms(state.started),
        uptime_ms: millis(state.uptime),
        phase: state.phase.name().to_owned(),
        mesh: Some(mesh(state, &mut room)),
        addresses: Some(Addresses {
            listening: state.addresses.listening.to_string(),
            advertised: texts(&state.addresses.advertised),
            observed: observed(&state.addresses.observed, &mut room),
        }),
        peers: room.list(&state.connections, peer),
        records: Some(records(state, &mut room)),
        cache: Some(cache(state)),
        serves: room.list(&state.served.services, |(service, stats)| ServedService {
            service: service.to_string(),
            calls: Some(call_stats(stats)),
        }),
        calls,
        forwarded: Some(call_stats(&state.forwarded)),
        limits: Some(limits(state)),
        access: Some(access(state)),
        running_calls: state.served.running as u64,
        left_out: room.left_out as u64,
    }
}

fn mesh(state: &NodeState, room: &mut Room) -> Mesh {
    let error = match &state.join {
        Some(Err(error)) => Some(error_line(error)),
        Some(Ok(_)) | None => None,
    };
    Mesh {
        joined: matches!(state.join, Some(Ok(_))),
        error: error.unwrap_or_default(),
        estimated_nodes: state.directory.network_size.map_or(0, |size| size.round() as u64),
        contacts: room.list(&state.directory.contacts, |contact| Contact {
            node_id: contact.node_id().to_string(),
            addresses: texts(contact.endpoints()),
        }),
        replacements: state.directory.replacements as u64,
    }
}

fn observed(all: &BTreeMap<std::net::SocketAddr, usize>, room: &mut Room) -> Vec<ObservedAddress> {
    let mut all: Vec<_> = all.iter().collect();
    all.sort_by_key(|(_, peers)| std::cmp::Reverse(**peers));
    room.list(&all, |(address, peers)| ObservedAddress {
        address: address.to_string(),
        peers: **peers as u64,
    })
}

fn peer(connection: &crate::ConnectionStats) -> Peer {
    let peer = &connection.peer;
    Peer {
        node_id: peer.node_id.to_string(),
        address: peer.remote_addr.to_string(),
        role: peer.role.name().to_owned(),
        opened_by: connection.opener.name().to_owned(),
        age_ms: millis(
            tokio::time::Instant::now()
                .into_std()
                .saturating_duration_since(connection.since),
        ),
        presence: connection.presence.name().to_owned(),
        rtt_us: micros(connection.rtt),
        sent_packets: connection.sent_packets,
        lost_packets: connection.lost_packets,
        sent_bytes: connection.sent_bytes,
        received_bytes: connection.received_bytes,
        calls_out: connection.calls_out as u64,
        calls_in: connection.calls_in as u64,
        agent: peer.agent.clone(),
    }
}

fn records(state: &NodeState, room: &mut Room) -> Records {
    let directory = &state.directory;
    Records {
        held: directory.held.records as u64,
        held_keys: directory.held.keys as u64,
        held_bytes: directory.held.bytes as u64,
        max_keys: directory.limits.keys as u64,
        max_bytes: directory.limits.bytes as u64,
        published: room.list(&directory.published, |own| {
            let report = own.last.as_ref().map(|(report, _)| report);
            let refused = report.into_iter().flat_map(|report| &report.refused);
            PublishedRecord {
                service: own.service.to_string(),
                acknowledged_by: texts(&own.holders),
                refused: refused
                    .map(|(node, reason)| Refusal {
                        node_id: node.to_string(),
                        reason: reason.to_string(),
                    })
                    .collect(),
                unreachable: report.map_or(0, |report| report.unreachable as u64),
                age_ms: own.last.as_ref().map(|(_, age)| millis(*age)),
            }
        }),
    }
}

fn cache(state: &NodeState) -> Cache {
    let (directory, counters) = (&state.directory, &state.directory.stats.cache);
    Cache {
        entries: directory.cached as u64,
        max_entries: directory.max_cached as u64,
        hits: counters.hits,
        negative_hits: counters.negative_hits,
        stale: counters.stale,
        misses: counters.misses,
        evictions: counters.evictions,
    }
}

fn call_stats(stats: &crate::CallStats) -> CallStats {
    let quantile = |share| stats.latency.quantile(share).map(micros);
    let counted = stats.latency.buckets().filter(|(_, count)| *count > 0);
    CallStats {
        in_flight: stats.in_flight,
        ok: stats.ok,
        errors: stats.errors,
        refused: stats.refused,
        cancelled: stats.cancelled,
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
        total_us: micros(stats.latency.total()),
        latency: counted
            .map(|(below, count)| LatencyBucket {
                below_us: micros(below),
                count,
            })
            .collect(),
    }
}

fn called(service: &crate::CalledService, shown: usize) -> CalledService {
    let spent = &service.balancer.spending;
    CalledService {
        service: service.service.to_string(),
        calls: Some(call_stats(&service.calls)),
        recent_calls: spent.calls,
        recent_retries: spent.retries,
        recent_hedges: spent.hedges,
        ejections: service.balancer.ejections,
        providers: service.providers.iter().take(shown).map(called_provider).collect(),
    }
}

fn called_provider(standing: &crate::CalledProvider) -> CalledProvider {
    let provider = &standing.provider;
    CalledProvider {
        node_id: provider.node_id.to_string(),
        addresses: texts(&provider.endpoints),
        zone: provider.zone.clone().unwrap_or_default(),
        weight: provider.weight,
        state: standing.state.name().to_owned(),
        link: standing.link.name().to_owned(),
        in_flight: u64::from(standing.in_flight),
        latency_us: standing.latency.map(micros),
        recent_ok: u64::from(standing.recent.ok),
        recent_failed: u64::from(standing.recent.failed),
        consecutive_failures: u64::from(standing.consecutive_failures),
        ejections: u64::from(standing.ejections),
    }
}

fn limits(state: &NodeState) -> Limits {
    let (refusals, transport) = (&state.served.refusals, &state.transport);
    let dht = &state.directory.stats.dht;
    Limits {
        max_concurrent_calls: state.served.max_running as u64,
        calls_refused_busy: transport.places.refused,
        calls_refused_draining: refusals.draining,
        calls_not_served: refusals.not_served,
        rejected_handshakes: transport.rejected_handshakes,
        rejected_hellos: transport.rejected_hellos,
        rejected_busy: transport.rejected_busy,
        rejected_frames: transport.rejected_frames,
        slow_streams: transport.slow_streams,
        dropped_replies: transport.dropped_replies,
        handler_panics: transport.handler_panics,
        suspicions: transport.suspicions,
        evicted_connections: state.pool.evicted,
        dial_failures: state.pool.dial_failures,
        rate_limited: dht.rate_limited,
        records_refused: dht.refused,
    }
}

fn access(state: &NodeState) -> Access {
    let transport = &state.transport;
    Access {
        rejected_grants: transport.rejected_grants,
        grants_ended: transport.grants_ended,
        rejected_renewals: transport.rejected_renewals,
        calls_denied: transport.calls_denied,
        calls_not_admitted: state.served.not_admitted,
        records_unproven: state.directory.stats.dht.unproven,
        revocations_refused: state.refused_revocations,
        joins_refused: state.refused_joins,
        revoked: state.revoked.map(|node_id| node_id.to_string()).unwrap_or_default(),
    }
}

pub(crate) fn event(event: &NodeEvent) -> Event {
    Event {
        at_ms: unix_ms(SystemTime::now()),
        kind: event.kind().to_owned(),
        service: event.service().map(ToString::to_string).unwrap_or_default(),
        node_id: event.node().map(|node| node.to_string()).unwrap_or_default(),
        text: event.to_string(),
        missed: match event {
            NodeEvent::Missed(count) => *count,
            _ => 0,
        },
    }
}

fn texts<T: ToString>(all: &[T]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, millis)
}
