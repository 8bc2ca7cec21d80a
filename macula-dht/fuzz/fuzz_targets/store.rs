//! Sequences of insertions, waits and reads against a model that keeps everything it was ever given.
#![no_main]

use std::{
    collections::BTreeMap,
    sync::LazyLock,
    time::{Duration, Instant},
};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use macula_dht::{Clock, Contact, InsertError, Origin, ProviderStore, StoreLimits};
use macula_wire::{Advertisement, NodeId, Realm, SecretKey, ServiceKey, VerifiedProvider};

const EPOCH_MS: u64 = 1_000_000_000;

#[derive(Debug, Arbitrary)]
enum Step {
    Insert { record: u8, subnet: u8, local: bool },
    Wait { seconds: u8 },
    Expire,
}

fn key(n: u8) -> ServiceKey {
    ServiceKey::from_bytes([n; 32])
}

/// Four providers, two keys, four numbers; the highest is a withdrawal that outlives the rest.
static POOL: LazyLock<Vec<VerifiedProvider>> = LazyLock::new(|| {
    let realm = Realm::default().hash();
    let sign = |n: u8| {
        let (signer, key, seq) = (
            SecretKey::from_bytes(&[n % 4 + 1; 32]),
            key(n / 4 % 2),
            u64::from(n / 8),
        );
        let issued = EPOCH_MS + seq * 10_000;
        if seq == 3 {
            return VerifiedProvider::sign_withdrawal(&signer, &realm, &key, seq, issued, Duration::from_secs(200));
        }
        let endpoint = "node:1".parse().expect("an endpoint");
        let advertisement = Advertisement::new([endpoint]).with_ttl(Duration::from_secs(20 + 40 * (3 - seq)));
        VerifiedProvider::sign(&signer, &realm, &key, seq, issued, &advertisement)
    };
    (0..32).map(|n| sign(n).expect("a valid record")).collect()
});

fuzz_target!(|steps: Vec<Step>| {
    let start = Instant::now();
    let limits = StoreLimits {
        providers_per_key: 3,
        bytes: 4 * 512,
        records_per_publisher: 2,
        ..StoreLimits::default()
    };
    let mut store = ProviderStore::new(Clock::new(start, EPOCH_MS), limits, 7);
    let own = *POOL[0].node_id();
    let mut now = start;
    // The records that were taken and not evicted: sequence number and end of each.
    let mut model: BTreeMap<(ServiceKey, NodeId), Vec<(u64, u64)>> = BTreeMap::new();
    for step in steps.into_iter().take(500) {
        match step {
            Step::Wait { seconds } => now += Duration::from_secs(seconds.into()),
            Step::Expire => {
                store.expire(now);
                assert!(store.poll_timeout().is_none_or(|at| at > now));
            }
            Step::Insert { record, subnet, local } => {
                let record = POOL[usize::from(record) % POOL.len()].clone();
                let from = Contact::new(own, []).observed_at([198, 51, subnet % 4, 1].into());
                let local = local && *record.node_id() == own;
                let place = (*record.key(), *record.node_id());
                let end = record.advertised_at_ms() + record.ttl().as_millis() as u64;
                let seq = record.seq();
                let held = store.held(&place.0, &place.1).map(VerifiedProvider::seq);
                let taken = store.insert(now, record, if local { Origin::Local } else { Origin::Remote(&from) });
                match taken {
                    Ok(_) => model.entry(place).or_default().push((seq, end)),
                    Err(InsertError::Stale { stored_seq }) => assert_eq!(Some(stored_seq), held),
                    Err(_) => {}
                }
            }
        }
        let now_ms = EPOCH_MS + (now - start).as_millis() as u64;
        let usage = store.usage();
        assert!(usage.bytes <= limits.bytes);
        for key in [key(0), key(1)] {
            let shown: Vec<_> = store.get(now, &key).collect();
            assert!(shown.len() <= limits.providers_per_key);
            assert!(shown.is_sorted_by(|a, b| key.rank(a.node_id()) < key.rank(b.node_id())));
            for record in shown {
                assert!(!record.is_withdrawn());
                assert!(
                    record.advertised_at_ms() + record.ttl().as_millis() as u64 > now_ms,
                    "expired"
                );
                assert!(
                    model[&(key, *record.node_id())]
                        .iter()
                        .any(|(seq, _)| *seq == record.seq()),
                    "never taken"
                );
            }
        }
    }
});
