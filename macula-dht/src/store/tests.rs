use std::{sync::LazyLock, time::Duration};

use macula_wire::{Advertisement, Realm, SecretKey, Signer};
use proptest::prelude::*;

use super::*;

const NODES: u8 = 6;
const KEYS: u8 = 3;
const EPOCH_MS: u64 = 1_000_000_000;

fn key(n: u8) -> ServiceKey {
    ServiceKey::from_bytes([n; 32])
}

fn node(n: u8) -> SecretKey {
    SecretKey::from_bytes(&[n + 1; 32])
}

/// A record of `n` under `k`: sequence number `seq`, issued `seq` seconds after the epoch.
fn record(n: u8, k: u8, seq: u8, ttl: u64, withdrawn: bool, metadata: &str) -> VerifiedProvider {
    let (signer, realm, ttl) = (node(n), Realm::default().hash(), Duration::from_secs(ttl));
    let issued = EPOCH_MS + u64::from(seq) * 1000;
    if withdrawn {
        return VerifiedProvider::sign_withdrawal(&signer, &realm, &key(k), seq.into(), issued, ttl).unwrap();
    }
    let endpoint = format!("203.0.113.{n}:443").parse().unwrap();
    let advertisement = Advertisement::new([endpoint])
        .with_ttl(ttl)
        .with_metadata("m", metadata.to_owned());
    VerifiedProvider::sign(&signer, &realm, &key(k), seq.into(), issued, &advertisement).unwrap()
}

/// Every record the properties draw from, signed once: signing takes most of the time.
static POOL: LazyLock<Vec<VerifiedProvider>> = LazyLock::new(|| {
    let mut pool = Vec::new();
    for (n, k) in (0..NODES).flat_map(|n| (0..KEYS).map(move |k| (n, k))) {
        for seq in 0..4 {
            // Two contents at each number: ties happen when an identity is used twice.
            pool.push(record(n, k, seq, 20 + u64::from(3 - seq) * 30, false, "a"));
            pool.push(record(n, k, seq, 40, false, "bb"));
        }
        pool.push(record(n, k, 2, 120, true, ""));
    }
    pool
});

fn some_record() -> impl Strategy<Value = VerifiedProvider> {
    any::<prop::sample::Index>().prop_map(|index| POOL[index.index(POOL.len())].clone())
}

fn from(subnet: u8) -> Contact {
    Contact::new(node(99).node_id(), []).observed_at([198, 51, subnet, 1].into())
}

fn store(start: Instant) -> ProviderStore {
    ProviderStore::new(Clock::new(start, EPOCH_MS), StoreLimits::default(), 1)
}

/// Everything held, as bytes.
fn contents(store: &ProviderStore) -> Vec<(ServiceKey, Vec<u8>, u64)> {
    let lists = store.order.iter().map(|key| (key, &store.keys[key]));
    let slots = lists.flat_map(|(key, entry)| entry.stored(&store.records).map(move |stored| (key, stored)));
    slots
        .map(|(key, s)| (*key, s.record.body().to_vec(), s.retain))
        .collect()
}

proptest! {
    /// D1, D2, D9: merging is commutative, associative and idempotent.
    #[test]
    fn merging_gives_the_same_in_any_order_and_any_number_of_times(
        records in prop::collection::vec(some_record(), 1..30),
        order in any::<u64>(),
    ) {
        let start = Instant::now();
        let mut shuffled = records.clone();
        let mut rng = crate::rng::Rng::new(order);
        for at in (1..shuffled.len()).rev() {
            shuffled.swap(at, rng.below(at as u64 + 1) as usize);
        }
        let [mut one, mut other] = [store(start), store(start)];
        for record in &records {
            let _ = one.insert(start, record.clone(), Origin::Remote(&from(1)));
        }
        for record in shuffled.iter().chain(&records) {
            let _ = other.insert(start, record.clone(), Origin::Remote(&from(1)));
        }
        prop_assert_eq!(contents(&one), contents(&other));
    }

    /// D4, D9: nothing expired is visible; after a newer record or a withdrawal nothing older is; one record a key and node.
    #[test]
    fn nothing_expired_or_superseded_is_visible_in_any_order_of_delivery(
        steps in prop::collection::vec((some_record(), 0..20_u64, any::<bool>()), 1..60),
    ) {
        let start = Instant::now();
        let mut store = store(start);
        let mut now = start;
        let mut delivered = BTreeMap::new();
        for (record, wait, expire) in steps {
            now += Duration::from_secs(wait);
            let now_ms = EPOCH_MS + (now - start).as_millis() as u64;
            let issued_end = record.advertised_at_ms() + record.ttl().as_millis() as u64;
            let place = (*record.key(), *record.node_id());
            let taken = store.insert(now, record.clone(), Origin::Remote(&from(1)));
            prop_assert_eq!(matches!(taken, Err(InsertError::Dates(_))), issued_end <= now_ms);
            if issued_end > now_ms {
                let received_end = now_ms + record.ttl().as_millis() as u64;
                let end = if record.is_withdrawn() { u64::MAX } else { issued_end.min(received_end) };
                delivered.entry(place).or_insert_with(Vec::new).push(((record.seq(), record.is_withdrawn()), end));
            }
            if expire {
                store.expire(now);
                prop_assert!(store.poll_timeout().is_none_or(|at| at > now));
            }
            for k in 0..KEYS {
                let mut seen = BTreeSet::new();
                for shown in store.get(now, &key(k)) {
                    let end = shown.advertised_at_ms() + shown.ttl().as_millis() as u64;
                    prop_assert!(end > now_ms, "expired");
                    prop_assert!(!shown.is_withdrawn());
                    prop_assert!(seen.insert(*shown.node_id()), "one record a node");
                    // A newer record counts for as long as it is valid, a withdrawal for ever.
                    let mut others = delivered[&(key(k), *shown.node_id())].iter();
                    prop_assert!(others.all(|&(rank, end)| rank <= (shown.seq(), false) || end <= now_ms), "superseded");
                }
                prop_assert!(store.get(now, &key(k)).is_sorted_by_key(|r| key(k).rank(r.node_id())), "in the list's order");
            }
        }
    }

    /// D10: every cap holds after every step, and usage equals a recount; local records stay.
    #[test]
    fn caps_hold_after_every_step_of_any_sequence(
        steps in prop::collection::vec((some_record(), 0..3_u8, 0..8_u64), 1..80),
    ) {
        let start = Instant::now();
        let limits = StoreLimits {
            providers_per_key: 4,
            keys: 2,
            bytes: 7 * 512,
            records_per_publisher: 2,
            local_records: 2,
        };
        let mut store = ProviderStore::new(Clock::new(start, EPOCH_MS), limits, 1);
        let own = node(0).node_id();
        let mut now = start;
        for (record, subnet, wait) in steps {
            now += Duration::from_secs(wait);
            let is_own = *record.node_id() == own;
            let contact = from(subnet);
            let locals = |store: &ProviderStore| -> Vec<_> {
                let held = (0..KEYS).filter_map(|k| store.held(&key(k), &own));
                held.map(|r| (*r.key(), r.seq(), r.body().clone())).collect()
            };
            if !is_own {
                store.expire(now);
            }
            let before = locals(&store);
            let _ = store.insert(now, record, if is_own { Origin::Local } else { Origin::Remote(&contact) });
            if !is_own {
                prop_assert_eq!(before, locals(&store), "remote traffic touched a local record");
            }
            let mut recount = Usage::default();
            let mut publishers = BTreeMap::<_, u32>::new();
            for entry in store.keys.values() {
                prop_assert!(!entry.slots.is_empty() && entry.slots.len() <= limits.providers_per_key);
                let remote = entry.stored(&store.records).filter(|stored| !stored.is_local()).count();
                prop_assert_eq!(remote, entry.remote);
                recount.keys += usize::from(remote > 0);
                recount.records += remote;
                recount.local += entry.slots.len() - remote;
                for stored in entry.stored(&store.records).filter(|stored| !stored.is_local()) {
                    recount.bytes += size_of(stored.record.body().len());
                    *publishers.entry(*stored.record.node_id()).or_default() += 1;
                }
            }
            prop_assert_eq!(store.usage(), recount);
            prop_assert_eq!(store.records.len(), recount.records + recount.local);
            for (key, entry) in &store.keys {
                for stored in entry.stored(&store.records) {
                    prop_assert_eq!(stored.record.key(), key, "a slot leads to another key's record");
                    let found = store.records.find(key, stored.record.node_id());
                    prop_assert!(found.is_some(), "fingerprints of a few records differ");
                }
            }
            prop_assert_eq!(&store.publishers, &publishers);
            let mut holders = BTreeMap::new();
            for entry in store.keys.values() {
                let mut places = BTreeMap::<_, u64>::new();
                for stored in entry.stored(&store.records) {
                    let Some(id) = stored.holder else { continue };
                    *holders.entry(id).or_insert(0) += stored.size();
                    *places.entry(*store.holders.holder(id)).or_default() += 1;
                }
                if let Some(shares) = &entry.shares {
                    prop_assert_eq!(shares.holders(), places.len());
                    prop_assert!(places.iter().all(|(holder, count)| shares.holds(holder) == *count));
                }
            }
            prop_assert_eq!(store.holders.count(), (holders.len(), recount.records));
            prop_assert_eq!(store.holders.bytes(), holders.values().sum::<usize>());
            prop_assert!(recount.keys <= limits.keys && recount.bytes <= limits.bytes);
            prop_assert!(recount.local <= limits.local_records);
            prop_assert!(publishers.values().all(|&n| n as usize <= limits.records_per_publisher));
            let due: BTreeSet<_> = store.keys.iter().map(|(key, entry)| (entry.due, *key)).collect();
            prop_assert_eq!(&store.due, &due);
            prop_assert_eq!(&store.order, &store.keys.keys().copied().collect());
        }
        store.expire(now + Duration::from_secs(86_400));
        prop_assert_eq!(store.usage(), Usage::default());
        prop_assert!(store.keys.is_empty() && store.due.is_empty() && store.publishers.is_empty());
    }

    /// D3: withdrawing one provider leaves the others byte-identical.
    #[test]
    fn withdrawing_one_leaves_the_others_byte_identical(gone in 0..NODES) {
        let start = Instant::now();
        let mut store = store(start);
        for n in 0..NODES {
            store.insert(start, record(n, 0, 1, 100, false, "a"), Origin::Remote(&from(n))).unwrap();
        }
        let others = |store: &ProviderStore| -> Vec<_> {
            let all = store.get(start, &key(0)).filter(|r| *r.node_id() != node(gone).node_id());
            all.map(VerifiedProvider::to_signed).collect()
        };
        let before = others(&store);
        store.insert(start, record(gone, 0, 2, 120, true, ""), Origin::Remote(&from(9))).unwrap();
        prop_assert_eq!(before, others(&store));
        prop_assert_eq!(store.get(start, &key(0)).count(), usize::from(NODES) - 1);
    }

    /// D9: a record with any bit flipped is not one.
    #[test]
    fn any_flipped_bit_changes_nothing(index: prop::sample::Index, bit: prop::sample::Index) {
        let original = &POOL[index.index(POOL.len())];
        let mut signed = original.to_signed();
        let bit = bit.index(8 * (signed.body.len() + 64));
        let (body, signature) = (signed.body.to_vec(), signed.signature.to_vec());
        let mut all = [body, signature].concat();
        all[bit / 8] ^= 1 << (bit % 8);
        signed.signature = all.split_off(signed.body.len()).into();
        signed.body = all.into();
        prop_assert!(signed.verify(&Realm::default().hash(), original.key()).is_err());
        prop_assert!(original.to_signed().verify(&Realm::new("other").unwrap().hash(), original.key()).is_err());
    }
}

#[test]
fn d2_a_newer_record_of_a_listed_node_takes_its_entry_and_moves_no_other() {
    let start = Instant::now();
    let mut store = store(start);
    let mut insert = |record| store.insert(start, record, Origin::Remote(&from(1))).unwrap();
    for n in 0..3 {
        insert(record(n, 0, 1, 60, false, "old"));
    }
    let order = |store: &ProviderStore| -> Vec<_> {
        let listed = store.get(start, &key(0));
        listed.map(|stored| (*stored.node_id(), stored.seq())).collect()
    };
    let before = order(&store);
    store
        .insert(start, record(1, 0, 2, 60, false, "new"), Origin::Remote(&from(1)))
        .unwrap();
    let renewed = node(1).node_id();
    let expected: Vec<_> = before
        .iter()
        .map(|&(id, seq)| (id, if id == renewed { 2 } else { seq }))
        .collect();
    assert_eq!((before.len(), order(&store)), (3, expected));
}

#[test]
fn d3_an_empty_list_frees_the_key() {
    let start = Instant::now();
    let mut store = store(start);
    store
        .insert(start, record(0, 0, 1, 20, false, "a"), Origin::Remote(&from(1)))
        .unwrap();
    store.expire(start + Duration::from_secs(21));
    assert_eq!((store.usage(), store.poll_timeout()), (Usage::default(), None));
    assert!(store.keys.is_empty());
}

/// The owner's clock is ahead: its withdrawal still outlives every record it supersedes, however late the record arrives.
#[test]
fn a_withdrawal_outlives_what_it_supersedes_despite_skew() {
    let start = Instant::now();
    let mut store = store(start);
    // Issued 50 s ahead of this clock.
    store
        .insert(start, record(0, 0, 51, 20, true, ""), Origin::Remote(&from(1)))
        .unwrap();
    for second in 0..75 {
        let now = start + Duration::from_secs(second);
        store.expire(now);
        let _ = store.insert(now, record(0, 0, 50, 20, false, "a"), Origin::Remote(&from(1)));
        assert_eq!(store.get(now, &key(0)).count(), 0, "{second} s");
    }
}

/// A short-lived record that replaced a long-lived one hides it even after it has expired itself.
#[test]
fn an_older_record_does_not_come_back_when_the_newer_one_expires() {
    let start = Instant::now();
    let mut store = store(start);
    let old = record(0, 0, 1, 300, false, "a");
    store.insert(start, old.clone(), Origin::Remote(&from(1))).unwrap();
    store
        .insert(start, record(0, 0, 2, 20, false, "a"), Origin::Remote(&from(1)))
        .unwrap();
    let now = start + Duration::from_secs(60);
    store.expire(now);
    assert_eq!(
        store.insert(now, old, Origin::Remote(&from(1))),
        Err(InsertError::Stale { stored_seq: 2 })
    );
    assert_eq!(store.get(now, &key(0)).count(), 0);
}

#[test]
fn a_refresh_succeeds_at_full_capacity() {
    let start = Instant::now();
    let limits = StoreLimits {
        providers_per_key: 2,
        keys: 1,
        bytes: 2 * size_of(record(0, 0, 1, 100, false, "a").body().len()),
        records_per_publisher: 1,
        local_records: 0,
    };
    let mut store = ProviderStore::new(Clock::new(start, EPOCH_MS), limits, 1);
    for n in 0..2 {
        store
            .insert(start, record(n, 0, 1, 100, false, "a"), Origin::Remote(&from(n)))
            .unwrap();
    }
    let newcomer = store.insert(start, record(2, 0, 1, 100, false, "a"), Origin::Remote(&from(2)));
    assert_eq!(newcomer, Err(InsertError::KeyFull));
    for n in 0..2 {
        let refreshed = store.insert(start, record(n, 0, 3, 100, false, "a"), Origin::Remote(&from(n)));
        assert_eq!(refreshed, Ok(Inserted::Replaced));
    }
}

/// Twenty Sybils of one subnet fill a key and renew; an honest newcomer still gets in, and stays.
#[test]
fn sybils_of_one_subnet_cannot_squat_a_key_by_renewing() {
    let start = Instant::now();
    let limits = StoreLimits {
        providers_per_key: 4,
        ..StoreLimits::default()
    };
    let mut store = ProviderStore::new(Clock::new(start, EPOCH_MS), limits, 1);
    let honest = node(5).node_id();
    for n in 0..4 {
        store
            .insert(start, record(n, 0, 1, 100, false, "a"), Origin::Remote(&from(1)))
            .unwrap();
    }
    store
        .insert(start, record(5, 0, 1, 100, false, "a"), Origin::Remote(&from(2)))
        .unwrap();
    for seq in 2..50 {
        for n in 0..5 {
            let _ = store.insert(start, record(n, 0, seq, 100, false, "a"), Origin::Remote(&from(1)));
        }
        assert!(store.get(start, &key(0)).any(|r| *r.node_id() == honest));
    }
}

/// One address that publishes under ever new ids evicts only its own records.
#[test]
fn one_subnet_cannot_evict_others_by_varying_its_id() {
    let start = Instant::now();
    let limits = StoreLimits {
        providers_per_key: 4,
        ..StoreLimits::default()
    };
    let mut store = ProviderStore::new(Clock::new(start, EPOCH_MS), limits, 1);
    for n in 0..4 {
        store
            .insert(start, record(n, 0, 1, 100, false, "a"), Origin::Remote(&from(n)))
            .unwrap();
    }
    for n in 10..40 {
        let refused = store.insert(start, record(n, 0, 1, 200, false, "a"), Origin::Remote(&from(9)));
        assert_eq!(refused, Err(InsertError::KeyFull));
    }
    assert!((0..4).all(|n| store.held(&key(0), &node(n).node_id()).is_some()));
}

/// Remote records fill everything; this node's own are neither refused nor evicted.
#[test]
fn d10_own_records_are_reserved() {
    let start = Instant::now();
    let limits = StoreLimits {
        providers_per_key: 2,
        keys: 1,
        bytes: 1024,
        ..StoreLimits::default()
    };
    let mut store = ProviderStore::new(Clock::new(start, EPOCH_MS), limits, 1);
    for n in 0..2 {
        store
            .insert(start, record(n, 0, 1, 100, false, "a"), Origin::Remote(&from(n)))
            .unwrap();
    }
    store
        .insert(start, record(4, 0, 1, 20, false, "a"), Origin::Local)
        .unwrap();
    store
        .insert(start, record(4, 1, 1, 20, false, "a"), Origin::Local)
        .unwrap();
    assert_eq!(store.usage().local, 2);
    for n in 10..30 {
        let _ = store.insert(start, record(n, 0, 1, 300, false, "a"), Origin::Remote(&from(n)));
        let forged = record(4, 0, 9, 300, false, "a");
        let _ = store.insert(start, forged, Origin::Remote(&from(n)));
    }
    assert_eq!(
        store.held(&key(0), &node(4).node_id()).map(VerifiedProvider::seq),
        Some(1)
    );
}

#[test]
fn pages_go_on_after_the_last_provider() {
    let start = Instant::now();
    let mut store = store(start);
    for n in 0..20 {
        store
            .insert(start, record(n, 0, 1, 100, n % 5 == 0, "a"), Origin::Remote(&from(n)))
            .unwrap();
    }
    let all: Vec<_> = store.page(start, &key(0), None).map(|r| *r.node_id()).collect();
    assert_eq!(all.len(), 20, "withdrawals are told too");
    for (at, node) in all.iter().enumerate() {
        let rest: Vec<_> = store.page(start, &key(0), Some(node)).map(|r| *r.node_id()).collect();
        assert_eq!(rest, all[at + 1..]);
    }
    let stranger = node(200).node_id();
    let rest = store.page(start, &key(0), Some(&stranger)).count();
    let later = all.iter().filter(|n| key(0).rank(n) > key(0).rank(&stranger)).count();
    assert_eq!(rest, later, "one that has gone meanwhile still marks its place");
}
