//! The operations that have targets: BENCHMARKS.md has the targets and the measurements.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use macula_dht::{
    CacheLimits, Clock, Config, Contact, Dht, DirectoryCache, Diversity, Memory, Origin, Peer, Point, ProviderStore,
    Request, Response, Role, RoutingTable, StoreLimits,
};
use macula_wire::{Advertisement, NodeId, Realm, SecretKey, ServiceKey, Signer, VerifiedProvider};

/// The records the large store holds, and those it is refreshed with.
const RECORDS: u32 = 1_000_000;
const PROVIDERS_PER_KEY: u32 = 16;
/// A node stores a record right after having verified it. Records made by the ten thousand and stored later would have left the
/// caches by then, and fetching them back is no part of storing them.
const HOT: BatchSize = BatchSize::NumIterations(64);

fn noise(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn id(state: &mut u64) -> [u8; 32] {
    let mut id = [0; 32];
    for chunk in id.chunks_exact_mut(8) {
        chunk.copy_from_slice(&noise(state).to_be_bytes());
    }
    id
}

fn contact(state: &mut u64) -> Contact {
    Contact::new(NodeId::from_bytes(id(state)), "10.0.0.1:4433".parse())
}

/// A table that has seen a network of a hundred thousand nodes: 13 full buckets or so.
fn full_table() -> RoutingTable {
    let (mut state, now) = (1, Instant::now());
    let mut table = RoutingTable::new(NodeId::from_bytes(id(&mut state)), Diversity::default(), now);
    for _ in 0..100_000 {
        table.insert(now, contact(&mut state), Duration::from_secs(60));
    }
    table
}

/// Signs without signing: a benchmark of a store needs a million records, and a verified one is only had from a signer.
struct Quick(NodeId);

impl Signer for Quick {
    fn node_id(&self) -> NodeId {
        self.0
    }

    fn sign(&self, _: &[u8]) -> [u8; 64] {
        [7; 64]
    }
}

fn record(n: u32, seq: u64) -> VerifiedProvider {
    let (mut key_state, mut node_state) = (u64::from(n / PROVIDERS_PER_KEY) << 32, u64::from(n % 10_000) << 40 | 1);
    let key = ServiceKey::from_bytes(id(&mut key_state));
    let signer = Quick(NodeId::from_bytes(id(&mut node_state)));
    let endpoint = "https://node1.example:4433".parse();
    let advertisement = Advertisement::new(endpoint);
    let signed = VerifiedProvider::sign(&signer, &Realm::default().hash(), &key, seq, 0, &advertisement);
    signed.unwrap_or_else(|error| panic!("{error}"))
}

fn routing(criterion: &mut Criterion) {
    let table = full_table();
    let mut state = 99;
    let name = format!("routing/closest 20 of {}", table.len());
    criterion.bench_function(&name, |bencher| {
        bencher.iter_batched(
            || Point::from_bytes(&id(&mut state)),
            |target| {
                table
                    .closest(&target, 20)
                    .fold(0, |sum, contact| sum ^ contact.node_id().as_bytes()[31])
            },
            BatchSize::SmallInput,
        );
    });
}

fn store(criterion: &mut Criterion) {
    let now = Instant::now();
    let limits = StoreLimits {
        keys: 1 << 20,
        bytes: 1 << 30,
        ..StoreLimits::default()
    };
    let mut store = ProviderStore::new(Clock::new(now, 0), limits, 1);
    let from = contact(&mut 5);
    for n in 0..RECORDS {
        store
            .insert(now, record(n, 1), Origin::Remote(&from))
            .unwrap_or_else(|error| panic!("{error}"));
    }
    let (mut seq, mut state) = (1, 11);
    criterion.bench_function("store/upsert among 1 000 000 records", |bencher| {
        bencher.iter_batched(
            || {
                seq += 1;
                record((noise(&mut state) % u64::from(RECORDS)) as u32, seq)
            },
            |record| store.insert(now, record, Origin::Remote(&from)),
            HOT,
        );
    });
    criterion.bench_function("store/read 16 providers", |bencher| {
        bencher.iter_batched(
            || *record((noise(&mut state) % u64::from(RECORDS)) as u32, 1).key(),
            |key| store.get(now, &key).fold(0, |sum, provider| sum + provider.seq()),
            BatchSize::SmallInput,
        );
    });
}

fn serving(criterion: &mut Criterion) {
    let now = Instant::now();
    let rates = macula_dht::RateLimits {
        per_second: 1e9,
        burst: 1e9,
        ..macula_dht::RateLimits::default()
    };
    let config = Config {
        rates,
        ..Config::default()
    };
    let mut dht = Dht::new(
        config,
        SecretKey::from_bytes(&[1; 32]),
        Realm::default(),
        Memory,
        now,
        0,
        1,
    );
    let mut state = 3;
    for _ in 0..1000 {
        dht.add_contact(now, contact(&mut state));
        while let Some(macula_dht::Output::Send { id, .. }) = dht.poll_output() {
            let reply = macula_dht::Reply {
                response: Ok(Response::Pong),
                role: Role::Node,
                ip: None,
            };
            dht.handle_response(now, id, Ok(reply));
        }
    }
    let peer = Peer {
        contact: contact(&mut state),
        role: Role::Client,
    };
    criterion.bench_function("serve/find node, bytes to bytes", |bencher| {
        bencher.iter_batched(
            || {
                Request::FindNode {
                    target: Point::from_bytes(&id(&mut state)),
                }
                .encode()
            },
            |bytes| dht.handle_request(now, &peer, Request::decode(bytes)).encode(),
            BatchSize::SmallInput,
        );
    });
    let signer = SecretKey::from_bytes(&[2; 32]);
    let realm = Realm::default();
    let key = ServiceKey::from_bytes([3; 32]);
    let advertisement = Advertisement::new("https://node1.example:4433".parse());
    let signed = VerifiedProvider::sign(&signer, &realm.hash(), &key, 1, 0, &advertisement)
        .unwrap_or_else(|error| panic!("{error}"))
        .to_signed();
    criterion.bench_function("record/verify", |bencher| {
        bencher.iter(|| black_box(&signed).verify(&realm.hash(), &key));
    });
}

fn cache(criterion: &mut Criterion) {
    let now = Instant::now();
    let mut cache = DirectoryCache::new(Clock::new(now, 0), CacheLimits::default());
    let keys: Vec<_> = (0..1000).map(|n| *record(n * PROVIDERS_PER_KEY, 1).key()).collect();
    for (n, key) in (0..).zip(&keys) {
        cache.insert(now, key, vec![record(n * PROVIDERS_PER_KEY, 1)]);
    }
    let mut state = 1;
    criterion.bench_function("cache/hit among 1000 keys", |bencher| {
        bencher.iter_batched(
            || keys[(noise(&mut state) % 1000) as usize],
            |key| cache.get(now, &key),
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(targets, routing, store, serving, cache);
criterion_main!(targets);
