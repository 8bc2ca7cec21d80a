//! A node's state for the tests of pages: with something in each part.

use macula_node::Phase;
use macula_node::admin::schema::{
    Access, Addresses, Build, Cache, CallStats, CalledProvider, CalledService, Contact, Limits, Mesh, ObservedAddress,
    Peer, PublishedRecord, Records, Refusal, ServedService, State,
};

fn id(byte: u8) -> String {
    format!("{byte:02x}").repeat(32)
}

fn address(byte: u8) -> String {
    format!("https://10.0.0.{byte}:9443")
}

pub(crate) fn state() -> State {
    State {
        node_id: id(1),
        realm: "shop".to_owned(),
        role: "node".to_owned(),
        build: Some(Build {
            version: "0.1.0".to_owned(),
            ..Build::default()
        }),
        pid: 7,
        started_at_ms: 1_700_000_000_000,
        uptime_ms: 3_665_000,
        phase: Phase::Serving.name().to_owned(),
        mesh: Some(Mesh {
            joined: true,
            error: String::new(),
            estimated_nodes: 3,
            contacts: [2, 3]
                .map(|byte| Contact {
                    node_id: id(byte),
                    addresses: vec![address(byte)],
                })
                .to_vec(),
            replacements: 0,
        }),
        addresses: Some(Addresses {
            listening: "0.0.0.0:9443".to_owned(),
            advertised: vec![address(1)],
            observed: vec![ObservedAddress {
                address: "203.0.113.1:9443".to_owned(),
                peers: 2,
            }],
        }),
        peers: vec![
            Peer {
                node_id: id(2),
                address: "10.0.0.2:9443".to_owned(),
                opened_by: "here".to_owned(),
                age_ms: 3_600_000,
                presence: "up".to_owned(),
                rtt_us: 340,
                sent_packets: 1_000,
                calls_out: 1,
                ..Peer::default()
            },
            Peer {
                node_id: id(3),
                address: "10.0.0.3:9443".to_owned(),
                opened_by: "peer".to_owned(),
                age_ms: 59_000,
                presence: "suspected".to_owned(),
                rtt_us: 1_900,
                sent_packets: 1_000,
                lost_packets: 25,
                calls_in: 2,
                ..Peer::default()
            },
        ],
        records: Some(Records {
            held: 12,
            held_keys: 5,
            held_bytes: 4_096,
            max_keys: 65_536,
            max_bytes: 64 << 20,
            published: vec![PublishedRecord {
                service: "text.upper".to_owned(),
                acknowledged_by: vec![id(2), id(4)],
                refused: vec![Refusal {
                    node_id: id(3),
                    reason: "the record expired 3600s ago by the node's clock".to_owned(),
                }],
                unreachable: 0,
                age_ms: Some(100_000),
            }],
        }),
        cache: Some(Cache {
            entries: 2,
            max_entries: 65_536,
            hits: 80,
            negative_hits: 4,
            stale: 6,
            misses: 10,
            evictions: 0,
        }),
        serves: vec![ServedService {
            service: "text.upper".to_owned(),
            calls: Some(CallStats {
                in_flight: 2,
                ok: 1_000,
                errors: 10,
                refused: 5,
                p50_us: Some(800),
                p99_us: Some(12_000),
                ..CallStats::default()
            }),
        }],
        calls: vec![called()],
        forwarded: Some(CallStats::default()),
        limits: Some(Limits {
            max_concurrent_calls: 16_384,
            calls_refused_busy: 5,
            ..Limits::default()
        }),
        access: Some(Access {
            calls_denied: 7,
            revocations_refused: 1,
            ..Access::default()
        }),
        running_calls: 2,
        left_out: 0,
    }
}

fn called() -> CalledService {
    CalledService {
        service: "text.count".to_owned(),
        calls: Some(CallStats {
            ok: 500,
            errors: 1,
            p50_us: Some(1_200),
            p99_us: Some(9_000),
            ..CallStats::default()
        }),
        recent_calls: 40,
        recent_retries: 3,
        recent_hedges: 0,
        ejections: 1,
        providers: vec![
            CalledProvider {
                node_id: id(2),
                addresses: vec![address(2)],
                state: "ready".to_owned(),
                link: "up".to_owned(),
                in_flight: 1,
                latency_us: Some(1_100),
                recent_ok: 30,
                ..CalledProvider::default()
            },
            CalledProvider {
                node_id: id(3),
                addresses: vec![address(3)],
                state: "ejected".to_owned(),
                link: "down".to_owned(),
                recent_ok: 1,
                recent_failed: 9,
                consecutive_failures: 9,
                ejections: 1,
                ..CalledProvider::default()
            },
        ],
    }
}
