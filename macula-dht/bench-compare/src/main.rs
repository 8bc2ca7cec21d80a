//! The same operations on macula-dht, rust-libp2p's kad and mainline, in one run and by turns.
//!
//! What can be compared through public interfaces is: the k closest of a routing table that has seen a hundred thousand
//! nodes, and, for the two that keep lists of providers, storing a fresh record of a provider that is known, and reading a list.
//! They do not do the same work: libp2p's store takes unsigned records and sorts nothing, mainline's table prefers ids that fit
//! their address. Signatures, which only macula-dht's records have, are left out on all sides.

use std::{
    fs,
    hint::black_box,
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_kad::{
    Behaviour, KBucketKey, ProviderRecord, RecordKey,
    store::{MemoryStore, MemoryStoreConfig, RecordStore as _},
};
use macula_dht::{Clock, Contact, Diversity, Origin, Point, ProviderStore, RoutingTable, StoreLimits};
use macula_wire::{Advertisement, NodeId, Realm, ServiceKey, Signer, VerifiedProvider};

const SEEN: usize = 100_000;
const RECORDS: usize = 500_000;
const PROVIDERS_PER_KEY: usize = 16;
const PUBLISHERS: usize = 10_000;
const ROUNDS: usize = 7;
const OPERATIONS: usize = 50_000;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes
            .chunks_exact_mut(8)
            .for_each(|chunk| chunk.copy_from_slice(&self.next().to_be_bytes()));
        bytes
    }
}

/// Signs with constant bytes: no signature is verified here, because signing is not part of the comparison.
struct Unchecked(NodeId);

impl Signer for Unchecked {
    fn node_id(&self) -> NodeId {
        self.0
    }

    fn sign(&self, _: &[u8]) -> [u8; 64] {
        [7; 64]
    }
}

/// Something measured: its name, and what does one batch of operations and says how long they took.
struct Case<'a> {
    operation: &'static str,
    library: &'static str,
    batch: Box<dyn FnMut(&mut Rng) -> Duration + 'a>,
    nanos: Vec<f64>,
}

fn case<'a>(operation: &'static str, library: &'static str, batch: impl FnMut(&mut Rng) -> Duration + 'a) -> Case<'a> {
    Case {
        operation,
        library,
        batch: Box::new(batch),
        nanos: Vec::new(),
    }
}

fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap_or(0.0) * 1024.0
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let now = Instant::now();
    let mut rng = Rng(1);

    let mut ours = RoutingTable::new(NodeId::from_bytes(rng.bytes()), Diversity::default(), now);
    let endpoint: macula_wire::Address = "10.0.0.1:4433".parse()?;
    for _ in 0..SEEN {
        ours.insert(
            now,
            Contact::new(NodeId::from_bytes(rng.bytes()), [endpoint.clone()]),
            Duration::from_secs(60),
        );
    }
    let address: Multiaddr = "/ip4/10.0.0.1/udp/4433/quic-v1".parse()?;
    let own = PeerId::random();
    let mut libp2p = Behaviour::new(own, MemoryStore::new(own));
    for _ in 0..SEEN {
        libp2p.add_address(&PeerId::random(), address.clone());
    }
    let mut mainline = mainline::RoutingTable::new(mainline::Id::random());
    for _ in 0..SEEN {
        let [a, b, c, d, ..] = rng.bytes();
        mainline.add(mainline::Node::new(
            mainline::Id::random(),
            SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), 4433),
        ));
    }
    let contacts = [
        ours.len(),
        libp2p.kbuckets().map(|bucket| bucket.num_entries()).sum(),
        mainline.size(),
    ];

    let keys: Vec<_> = (0..RECORDS / PROVIDERS_PER_KEY).map(|_| rng.bytes()).collect();
    let nodes: Vec<_> = (0..PUBLISHERS).map(|_| rng.bytes()).collect();
    let peers: Vec<_> = (0..PUBLISHERS).map(|_| PeerId::random()).collect();
    let realm = Realm::default().hash();
    let advertisement = Advertisement::new([endpoint.clone()]);
    let publisher = |n: usize| (n / PROVIDERS_PER_KEY * 7 + n % PROVIDERS_PER_KEY * 613) % PUBLISHERS;
    let record = |n: usize, seq: u64| {
        let (key, signer) = (
            ServiceKey::from_bytes(keys[n / PROVIDERS_PER_KEY]),
            Unchecked(NodeId::from_bytes(nodes[publisher(n)])),
        );
        VerifiedProvider::sign(&signer, &realm, &key, seq, 0, &advertisement)
    };
    let theirs = |n: usize| {
        ProviderRecord::new(
            RecordKey::new(&keys[n / PROVIDERS_PER_KEY]),
            peers[publisher(n)],
            vec![address.clone()],
        )
    };

    let limits = StoreLimits {
        keys: 1 << 20,
        bytes: 1 << 30,
        ..StoreLimits::default()
    };
    let mut store = ProviderStore::new(Clock::new(now, 0), limits, 1);
    let from = Contact::new(NodeId::from_bytes(rng.bytes()), [endpoint]);
    let before = resident();
    for n in 0..RECORDS {
        store.insert(now, record(n, 1)?, Origin::Remote(&from))?;
    }
    let our_weight = (resident() - before) / RECORDS as f64;
    let config = MemoryStoreConfig {
        max_provided_keys: 1 << 20,
        ..MemoryStoreConfig::default()
    };
    let mut memory_store = MemoryStore::with_config(own, config);
    let before = resident();
    for n in 0..RECORDS {
        memory_store
            .add_provider(theirs(n))
            .map_err(|error| error.to_string())?;
    }
    let their_weight = (resident() - before) / RECORDS as f64;

    let (store, memory_store) = (std::cell::RefCell::new(store), std::cell::RefCell::new(memory_store));
    let mut seq = 1;
    let mut cases = [
        case("20 closest contacts", "macula-dht", |rng| {
            let targets: Vec<_> = (0..OPERATIONS).map(|_| Point::from_bytes(&rng.bytes())).collect();
            let start = Instant::now();
            for target in &targets {
                black_box(ours.closest(target, 20).count());
            }
            start.elapsed()
        }),
        case("20 closest contacts", "libp2p-kad", |_| {
            let targets: Vec<_> = (0..OPERATIONS).map(|_| KBucketKey::from(PeerId::random())).collect();
            let start = Instant::now();
            for target in &targets {
                black_box(libp2p.get_closest_local_peers(target).take(20).count());
            }
            start.elapsed()
        }),
        case("20 closest contacts", "mainline", |_| {
            let targets: Vec<_> = (0..OPERATIONS / 10).map(|_| mainline::Id::random()).collect();
            let start = Instant::now();
            for target in targets {
                black_box(mainline.closest(target).len());
            }
            start.elapsed() * 10
        }),
        case("store a fresh record", "macula-dht", |rng| {
            seq += 1;
            let records = (0..OPERATIONS)
                .map(|_| record(rng.next() as usize % RECORDS, seq))
                .collect::<Result<Vec<_>, _>>();
            let records = records.unwrap_or_default();
            let mut store = store.borrow_mut();
            let start = Instant::now();
            for record in records {
                let _ = black_box(store.insert(now, record, Origin::Remote(&from)));
            }
            start.elapsed()
        }),
        case("store a fresh record", "libp2p-kad", |rng| {
            let records: Vec<_> = (0..OPERATIONS).map(|_| theirs(rng.next() as usize % RECORDS)).collect();
            let mut store = memory_store.borrow_mut();
            let start = Instant::now();
            for record in records {
                let _ = black_box(store.add_provider(record));
            }
            start.elapsed()
        }),
        case("read 16 providers", "macula-dht", |rng| {
            let wanted: Vec<_> = (0..OPERATIONS)
                .map(|_| ServiceKey::from_bytes(keys[rng.next() as usize % keys.len()]))
                .collect();
            let store = store.borrow();
            let start = Instant::now();
            for key in &wanted {
                // As a reply would hold them: copies that outlive the store.
                black_box(store.get(now, key).cloned().collect::<Vec<_>>());
            }
            start.elapsed()
        }),
        case("read 16 providers", "libp2p-kad", |rng| {
            let wanted: Vec<_> = (0..OPERATIONS)
                .map(|_| RecordKey::new(&keys[rng.next() as usize % keys.len()]))
                .collect();
            let store = memory_store.borrow();
            let start = Instant::now();
            for key in &wanted {
                black_box(store.providers(key));
            }
            start.elapsed()
        }),
    ];
    for round in 0..ROUNDS {
        for case in &mut cases {
            case.nanos
                .push((case.batch)(&mut rng).as_nanos() as f64 / OPERATIONS as f64);
        }
        eprintln!("round {} of {ROUNDS}", round + 1);
    }
    let rows: Vec<_> = cases
        .iter_mut()
        .map(|case| {
            case.nanos.sort_unstable_by(f64::total_cmp);
            serde_json::json!([
                case.operation,
                case.library,
                case.nanos[ROUNDS / 2].round(),
                case.nanos[0].round()
            ])
        })
        .collect();
    let report = serde_json::json!({
        "title": "macula-dht beside rust-libp2p's kad and mainline",
        "seed": 1,
        "tables": [
            { "name": "operations", "columns": ["operation", "library", "median ns", "best ns"], "rows": rows },
            {
                "name": "memory of half a million provider records",
                "columns": ["library", "bytes a record", "signed"],
                "rows": [["macula-dht", our_weight.round(), "yes"], ["libp2p-kad", their_weight.round(), "no"]],
            },
            {
                "name": "contacts kept of a hundred thousand offered",
                "columns": ["library", "contacts"],
                "rows": [["macula-dht", contacts[0]], ["libp2p-kad", contacts[1]], ["mainline", contacts[2]]],
            },
        ],
        "plots": [],
        "trace_hash": null,
        "notes": [
            "mainline's peer store is not public, so only its routing table is measured.",
            "mainline keeps at most 20 contacts for each distance, in ids of 160 bits.",
        ],
    });
    println!("{report:#}");
    Ok(())
}
