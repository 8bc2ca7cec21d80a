use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const STALE: Duration = Duration::from_secs(60);

fn contact(id: [u8; 32], ip: Option<[u8; 4]>) -> Contact {
    let contact = Contact::new(NodeId::from_bytes(id), ["node:1".parse().unwrap()]);
    ip.map_or(contact.clone(), |ip| contact.observed_at(ip.into()))
}

/// Ids crowded around `own`, so that deep buckets fill too.
fn near(own: [u8; 32]) -> impl Strategy<Value = [u8; 32]> {
    (0..24_usize, any::<[u64; 4]>())
        .prop_map(move |(bits, noise)| Point::from_bytes(&own).diverging_at(bits, noise).to_bytes())
}

fn brute_force(table: &RoutingTable, target: &Point, count: usize) -> Vec<NodeId> {
    let mut all: Vec<_> = table.iter().map(|c| *c.node_id()).collect();
    all.sort_by_key(|id| Point::from(id).distance(target));
    all.truncate(count);
    all
}

fn check_invariants(table: &RoutingTable) {
    let mut seen = BTreeSet::new();
    let mut subnets = std::collections::BTreeMap::<_, usize>::new();
    let mut entries = 0;
    for (index, bucket) in table.indices().zip(&table.buckets) {
        assert!(!bucket.is_empty());
        assert!(
            bucket.entries.is_sorted_by_key(|entry| entry.seen),
            "the least recently seen first"
        );
        assert!(bucket.entries.len() <= K && bucket.replacements.len() <= REPLACEMENTS);
        let mut of_bucket = std::collections::BTreeMap::<_, usize>::new();
        for entry in &bucket.entries {
            entries += 1;
            if entry.contact.subnet().is_limited() {
                *subnets.entry(entry.contact.subnet()).or_default() += 1;
                *of_bucket.entry(entry.contact.subnet()).or_default() += 1;
            }
        }
        assert!(of_bucket.values().all(|&n| n <= table.diversity.per_bucket));
        let mut waiting = std::collections::BTreeMap::<_, usize>::new();
        for contact in bucket.replacements.iter().filter(|c| c.subnet().is_limited()) {
            *waiting.entry(contact.subnet()).or_default() += 1;
        }
        assert!(waiting.values().all(|&n| n <= table.diversity.per_bucket));
        let entries = bucket.entries.iter().map(|entry| &entry.contact);
        for contact in entries.chain(&bucket.replacements) {
            let id = contact.node_id();
            assert_eq!(
                table.own.distance(&id.into()).shared_bits(),
                index,
                "in the right bucket"
            );
            assert!(seen.insert(*id), "once");
            assert_ne!(Point::from(id), table.own);
        }
    }
    assert_eq!(table.len(), entries);
    assert!(subnets.values().all(|&n| n <= table.diversity.per_table));
}

#[derive(Debug, Clone)]
enum Op {
    Insert([u8; 32], Option<[u8; 4]>),
    Answer(prop::sample::Index),
    Fail(prop::sample::Index),
    Wait(u64),
}

fn op(own: [u8; 32]) -> impl Strategy<Value = Op> {
    let ip = prop::option::of((0..3_u8, any::<u8>()).prop_map(|(net, host)| [203, 0, net, host]));
    prop_oneof![
        6 => (near(own), ip).prop_map(|(id, ip)| Op::Insert(id, ip)),
        1 => any::<prop::sample::Index>().prop_map(Op::Answer),
        2 => any::<prop::sample::Index>().prop_map(Op::Fail),
        1 => (0..200_u64).prop_map(Op::Wait),
    ]
}

proptest! {
    #[test]
    fn table_laws_hold_after_every_operation(
        (own, ops, targets) in any::<[u8; 32]>().prop_flat_map(|own| {
            (Just(own), prop::collection::vec(op(own), 0..300), prop::collection::vec(near(own), 4))
        })
    ) {
        let mut now = Instant::now();
        let mut table = RoutingTable::new(NodeId::from_bytes(own), Diversity::default(), now);
        for op in ops {
            match op {
                Op::Insert(id, ip) => {
                    let before: BTreeSet<_> = table.iter().map(|c| *c.node_id()).collect();
                    let wanted = table.wants(&contact(id, ip));
                    let insertion = table.insert(now, contact(id, ip), STALE);
                    let after: BTreeSet<_> = table.iter().map(|c| *c.node_id()).collect();
                    prop_assert!(before.is_subset(&after), "a newcomer evicted a live entry");
                    if wanted {
                        let taken = matches!(insertion, Insertion::Added | Insertion::Waiting { .. });
                        prop_assert!(taken, "{insertion:?}");
                    }
                }
                Op::Answer(index) if !table.is_empty() => {
                    let id = *table.iter().nth(index.index(table.len())).unwrap().node_id();
                    table.note_answer(now, &id);
                }
                Op::Fail(index) if !table.is_empty() => {
                    let id = *table.iter().nth(index.index(table.len())).unwrap().node_id();
                    table.note_failure(&id);
                }
                Op::Answer(_) | Op::Fail(_) => {}
                Op::Wait(seconds) => now += Duration::from_secs(seconds),
            }
            check_invariants(&table);
        }
        for target in targets.iter().chain([&own]) {
            let target = Point::from_bytes(target);
            for count in [1, 3, K, 1000] {
                let closest: Vec<_> = table.closest(&target, count).map(|c| *c.node_id()).collect();
                prop_assert_eq!(closest, brute_force(&table, &target, count));
            }
            let own_distance = Point::from_bytes(&own).distance(&target);
            let closer = table.iter().filter(|c| Point::from(c.node_id()).distance(&target) < own_distance).count();
            prop_assert_eq!(table.closer_than_self(&target, usize::MAX), closer);
        }
    }
}

fn own() -> NodeId {
    NodeId::from_bytes([0; 32])
}

/// An id of bucket 0, the farthest.
fn far(n: u8) -> [u8; 32] {
    let mut id = [0x80; 32];
    id[31] = n;
    id
}

fn full_bucket(now: Instant) -> RoutingTable {
    let mut table = RoutingTable::new(own(), Diversity::default(), now);
    for n in 0..20 {
        assert_eq!(table.insert(now, contact(far(n), None), STALE), Insertion::Added);
    }
    table
}

#[test]
fn the_node_itself_never_enters() {
    let mut table = RoutingTable::new(own(), Diversity::default(), Instant::now());
    assert_eq!(
        table.insert(Instant::now(), contact([0; 32], None), STALE),
        Insertion::Refused
    );
    assert!(!table.wants(&contact([0; 32], None)));
}

#[test]
fn the_least_recently_seen_is_pinged_once_before_it_goes() {
    let start = Instant::now();
    let mut table = full_bucket(start);
    assert_eq!(
        table.insert(start, contact(far(50), None), STALE),
        Insertion::Waiting { ping: None },
        "seen just now"
    );
    let later = start + STALE;
    let ping = Some(contact(far(0), None));
    assert_eq!(
        table.insert(later, contact(far(51), None), STALE),
        Insertion::Waiting { ping }
    );
    assert_eq!(
        table.insert(later, contact(far(52), None), STALE),
        Insertion::Waiting { ping: None },
        "asked already"
    );
    // It answers, and the next one in line is asked for the next newcomer.
    table.note_answer(later, &NodeId::from_bytes(far(0)));
    assert!(table.contains(&NodeId::from_bytes(far(0))));
    let ping = Some(contact(far(1), None));
    assert_eq!(
        table.insert(later, contact(far(53), None), STALE),
        Insertion::Waiting { ping }
    );
    // That one does not: the most recent newcomer has its place.
    assert_eq!(
        table.note_failure(&NodeId::from_bytes(far(1))),
        Some(contact(far(1), None))
    );
    assert!(table.contains(&NodeId::from_bytes(far(53))) && table.len() == K);
    // When that one answered is not known any more, so it is the next to be asked.
    let ping = Some(contact(far(53), None));
    assert_eq!(
        table.insert(later, contact(far(54), None), STALE),
        Insertion::Waiting { ping }
    );
}

#[test]
fn a_failing_contact_without_a_replacement_stays_for_three_failures() {
    let now = Instant::now();
    let mut table = RoutingTable::new(own(), Diversity::default(), now);
    table.insert(now, contact(far(1), None), STALE);
    let id = NodeId::from_bytes(far(1));
    assert_eq!(table.note_failure(&id), None);
    assert_eq!(table.note_failure(&id), None);
    assert_eq!(table.note_failure(&id), Some(contact(far(1), None)));
    assert!(table.is_empty() && table.bucket_sizes().next().is_none());
}

#[test]
fn one_subnet_takes_two_places_of_a_bucket_and_ten_of_the_table() {
    let now = Instant::now();
    let mut table = RoutingTable::new(own(), Diversity::default(), now);
    let mut added = Vec::new();
    for bucket in 0..8 {
        let mut of_bucket = 0;
        for n in 0..5 {
            let mut id = [0; 32];
            id[0] = 0x80 >> bucket;
            id[31] = n;
            of_bucket += usize::from(table.insert(now, contact(id, Some([203, 0, 113, n])), STALE) == Insertion::Added);
        }
        added.push(of_bucket);
    }
    assert_eq!(added, [2, 2, 2, 2, 2, 0, 0, 0]);
}

/// A full bucket of contacts without an address, and one in 203.0.113.0/24 at its end.
fn bucket_with_one_of_a_subnet(now: Instant, diversity: Diversity) -> RoutingTable {
    let mut table = RoutingTable::new(own(), diversity, now);
    for n in 0..20 {
        let ip = (n == 19).then_some([203, 0, 113, n]);
        assert_eq!(table.insert(now, contact(far(n), ip), STALE), Insertion::Added);
    }
    table
}

#[test]
fn one_subnet_does_not_fill_the_replacement_cache() {
    let now = Instant::now();
    let mut table = full_bucket(now);
    for n in 100..120 {
        let newcomer = contact(far(n), Some([203, 0, 113, n]));
        assert_eq!(table.wants(&newcomer), n < 102);
        let waits = table.insert(now, newcomer, STALE) == Insertion::Waiting { ping: None };
        assert_eq!(waits, n < 102, "two of a subnet");
    }
    assert_eq!(table.replacements().count(), 2);
    assert!(table.wants(&contact(far(150), Some([198, 51, 100, 1]))));
}

/// Newcomers that a bucket does not take cannot thin it out.
#[test]
fn an_entry_stays_when_diversity_admits_none_of_those_that_wait() {
    let now = Instant::now();
    let diversity = Diversity {
        per_bucket: 1,
        per_table: 1,
    };
    let mut table = full_bucket(now);
    table.diversity = diversity;
    assert_eq!(
        table.insert(now, contact(far(50), Some([203, 0, 113, 50])), STALE),
        Insertion::Waiting { ping: None }
    );
    // Its subnet's only place is taken by then, in another bucket.
    let mut near = [0; 32];
    near[0] = 0x40;
    assert_eq!(
        table.insert(now, contact(near, Some([203, 0, 113, 51])), STALE),
        Insertion::Added
    );
    assert_eq!(table.note_failure(&NodeId::from_bytes(far(0))), None);
    assert_eq!(table.len(), K + 1);
}

#[test]
fn a_contact_that_diversity_does_not_admit_does_not_wait() {
    let now = Instant::now();
    let diversity = Diversity {
        per_bucket: 1,
        per_table: 10,
    };
    let mut table = bucket_with_one_of_a_subnet(now, diversity);
    let newcomer = contact(far(50), Some([203, 0, 113, 50]));
    assert!(!table.wants(&newcomer));
    assert_eq!(table.insert(now, newcomer, STALE), Insertion::Refused);
    assert_eq!(table.replacements().count(), 0);
}

/// A bucket's age counts from the lookup that last went through it, and that is the only bucket it counts for.
#[test]
fn a_lookup_refreshes_the_bucket_its_target_falls_into() {
    let start = Instant::now();
    let mut table = RoutingTable::new(own(), Diversity::default(), start);
    let mut near = [0; 32];
    near[1] = 0x10;
    table.insert(start, contact(far(1), None), STALE);
    table.insert(start + Duration::from_secs(10), contact(near, None), STALE);
    let ages = |table: &RoutingTable, secs| -> Vec<_> {
        let now = start + Duration::from_secs(secs);
        table.ages(now).map(|(bucket, age)| (bucket, age.as_secs())).collect()
    };
    assert_eq!(
        ages(&table, 30),
        [(0, 30), (11, 20)],
        "counted from when each came to be"
    );
    table.note_lookup(start + Duration::from_secs(30), &table.point_in(11, &[0xff; 32]));
    assert_eq!(ages(&table, 40), [(0, 40), (11, 10)]);
    // An empty bucket, and this node itself, have no age to be set back.
    table.note_lookup(start + Duration::from_secs(40), &table.point_in(200, &[1; 32]));
    table.note_lookup(start + Duration::from_secs(40), &own().into());
    assert_eq!(ages(&table, 40), [(0, 40), (11, 10)]);
    assert_eq!(table.bucket_sizes().collect::<Vec<_>>(), [(0, 1), (11, 1)]);
}

/// Ids that agree in the 64 bits an entry keeps of them are still told apart.
#[test]
fn closest_is_exact_among_ids_that_share_their_first_half() {
    let now = Instant::now();
    let mut table = RoutingTable::new(own(), Diversity::default(), now);
    for n in 0..20 {
        let mut id = [0x80; 32];
        id[31] = n * 7;
        table.insert(now, contact(id, None), STALE);
    }
    let mut target = [0x80; 32];
    target[31] = 50;
    let target = Point::from_bytes(&target);
    let closest: Vec<_> = table.closest(&target, K).map(|c| *c.node_id()).collect();
    assert_eq!(closest, brute_force(&table, &target, K));
}

proptest! {
    /// For any noise a point of a bucket is one whose node belongs there.
    #[test]
    fn a_point_in_a_bucket_belongs_to_it(own: [u8; 32], bucket in 0..256_usize, noise: [u8; 32]) {
        let table = RoutingTable::new(NodeId::from_bytes(own), Diversity::default(), Instant::now());
        let point = table.point_in(bucket, &noise);
        prop_assert_eq!(table.index_of(&NodeId::from_bytes(point.to_bytes())), Some(bucket));
        prop_assert_eq!(table.point_in(256 + bucket, &noise), table.point_in(255, &noise), "the last is the nearest");
    }
}
