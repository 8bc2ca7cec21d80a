use macula_wire::{Advertisement, Realm, SecretKey};

use super::*;

struct Fixture {
    start: Instant,
    key: ServiceKey,
    cache: DirectoryCache,
}

impl Fixture {
    fn new() -> Self {
        let start = Instant::now();
        let key = ServiceKey::new(&Realm::default(), &"api.compute".parse().unwrap());
        Self {
            start,
            key,
            cache: DirectoryCache::new(Clock::new(start, 0), CacheLimits::default()),
        }
    }

    fn record(&self, node: u8, issued_secs: u64, ttl_secs: u64) -> VerifiedProvider {
        let advertisement = Advertisement::new(["node:1".parse().unwrap()]).with_ttl(Duration::from_secs(ttl_secs));
        let signer = SecretKey::from_bytes(&[node; 32]);
        let realm = Realm::default().hash();
        VerifiedProvider::sign(&signer, &realm, &self.key, 1, issued_secs * 1000, &advertisement).unwrap()
    }

    fn at(&self, secs: u64) -> Instant {
        self.start + Duration::from_secs(secs)
    }

    fn get(&mut self, secs: u64) -> Cached {
        self.cache.get(self.at(secs), &self.key.clone())
    }

    fn insert(&mut self, secs: u64, providers: Vec<VerifiedProvider>) {
        self.cache.insert(self.at(secs), &self.key.clone(), providers);
    }
}

#[test]
fn d7_an_answer_is_fresh_for_60_s_and_served_for_30_more_while_one_caller_refreshes() {
    let mut f = Fixture::new();
    assert!(matches!(f.get(0), Cached::Miss(Flight::Lead)));
    f.insert(0, vec![f.record(1, 0, 300)]);
    assert!(matches!(f.get(59), Cached::Hit(p) if p.len() == 1));
    assert!(matches!(f.get(60), Cached::Stale(_, Flight::Lead)));
    assert!(matches!(f.get(61), Cached::Stale(_, Flight::Follow)));
    f.insert(62, vec![f.record(1, 62, 300)]);
    assert!(matches!(f.get(121), Cached::Hit(_)));
    assert!(matches!(f.get(152), Cached::Miss(Flight::Lead)));
    let counters = f.cache.counters();
    assert_eq!((counters.hits, counters.stale, counters.misses), (2, 2, 2));
}

#[test]
fn d12_a_list_that_has_changed_is_asked_again_after_2_s_and_ever_less_often_while_it_stays() {
    let mut f = Fixture::new();
    let both = |f: &Fixture| vec![f.record(1, 0, 300), f.record(2, 0, 300)];
    f.insert(0, both(&f));
    f.insert(10, vec![f.record(1, 0, 300)]);
    assert!(matches!(f.get(11), Cached::Hit(p) if p.len() == 1));
    assert!(matches!(f.get(12), Cached::Stale(_, Flight::Lead)));
    f.insert(12, both(&f));
    assert!(matches!(f.get(14), Cached::Stale(..)), "it has changed again");
    let mut at = 14;
    for fresh in [4, 8, 16, 32, 60, 60] {
        f.insert(at, both(&f));
        assert!(matches!(f.get(at + fresh - 1), Cached::Hit(_)), "{fresh} s");
        at += fresh;
        assert!(matches!(f.get(at), Cached::Stale(..)), "{fresh} s");
    }
}

#[test]
fn d12_the_first_providers_after_an_empty_answer_are_a_change() {
    let mut f = Fixture::new();
    f.insert(0, vec![]);
    assert!(matches!(f.get(5), Cached::Miss(Flight::Lead)));
    f.insert(5, vec![f.record(1, 0, 300)]);
    assert!(matches!(f.get(7), Cached::Stale(_, Flight::Lead)));
}

#[test]
fn d7_an_empty_answer_is_fresh_for_5_s() {
    let mut f = Fixture::new();
    f.insert(0, vec![]);
    assert!(matches!(f.get(4), Cached::Negative));
    assert!(matches!(f.get(5), Cached::Miss(Flight::Lead)));
}

#[test]
fn d4_a_record_is_never_served_at_or_after_its_expiry() {
    let mut f = Fixture::new();
    f.insert(0, vec![f.record(1, 0, 20), f.record(2, 0, 300)]);
    assert!(matches!(f.get(19), Cached::Hit(p) if p.len() == 2));
    assert!(matches!(f.get(20), Cached::Stale(p, Flight::Lead) if p.len() == 1));
    f.insert(21, vec![f.record(1, 2, 20)]);
    assert!(matches!(f.get(21), Cached::Hit(_)));
    assert!(
        matches!(f.get(22), Cached::Miss(Flight::Lead)),
        "an answer that ran out is not a negative one"
    );
}

#[test]
fn d4_a_record_that_arrives_expired_or_withdrawn_is_not_kept() {
    let mut f = Fixture::new();
    let signer = SecretKey::from_bytes(&[3; 32]);
    let (realm, ttl) = (Realm::default().hash(), Duration::from_secs(300));
    let gone = VerifiedProvider::sign_withdrawal(&signer, &realm, &f.key, 2, 0, ttl).unwrap();
    f.insert(30, vec![f.record(1, 0, 20), gone]);
    assert!(matches!(f.get(30), Cached::Negative));
}

#[test]
fn d7_force_refresh_skips_the_cache_but_joins_a_lookup_under_way() {
    let mut f = Fixture::new();
    f.insert(0, vec![f.record(1, 0, 300)]);
    let (now, key) = (f.at(1), f.key);
    assert_eq!(f.cache.force_refresh(now, &key), Flight::Lead);
    assert_eq!(f.cache.force_refresh(now, &key), Flight::Follow);
    assert!(matches!(f.get(1), Cached::Hit(_)));
    f.cache.abandon(&key);
    assert_eq!(f.cache.force_refresh(now, &key), Flight::Lead);
}

#[test]
fn a_lost_leader_blocks_a_key_for_no_longer_than_a_flight() {
    let mut f = Fixture::new();
    assert!(matches!(f.get(0), Cached::Miss(Flight::Lead)));
    assert!(matches!(f.get(9), Cached::Miss(Flight::Follow)));
    assert!(matches!(f.get(10), Cached::Miss(Flight::Lead)));
}

#[test]
fn the_least_recently_used_key_makes_room() {
    let start = Instant::now();
    let mut cache = DirectoryCache::new(
        Clock::new(start, 0),
        CacheLimits {
            keys: 2,
            ..CacheLimits::default()
        },
    );
    let key = |n| ServiceKey::from_bytes([n; 32]);
    cache.insert(start, &key(1), vec![]);
    cache.insert(start, &key(2), vec![]);
    assert!(matches!(cache.get(start, &key(1)), Cached::Negative));
    cache.insert(start, &key(3), vec![]);
    assert_eq!((cache.len(), cache.counters().evictions), (2, 1));
    assert!(matches!(cache.get(start, &key(1)), Cached::Negative));
    assert!(matches!(cache.get(start, &key(2)), Cached::Miss(Flight::Lead)));
}

/// D7: `at_hand` serves the same answers as `get`, and tells no caller to look the key up.
#[test]
fn d7_what_is_at_hand_is_counted_and_refreshed_and_what_is_not_leaves_no_trace() {
    let mut f = Fixture::new();
    let key = f.key;
    assert!(f.cache.at_hand(f.at(0), &key).is_none());
    assert_eq!((f.cache.counters(), f.cache.len()), (CacheCounters::default(), 0));
    assert!(matches!(f.get(0), Cached::Miss(Flight::Lead)));
    assert!(
        f.cache.at_hand(f.at(0), &key).is_none(),
        "it is looked up, and not known yet"
    );

    f.insert(0, vec![f.record(1, 0, 300)]);
    let mut at_hand = |secs| f.cache.at_hand(f.start + Duration::from_secs(secs), &key);
    assert!(matches!(at_hand(59), Some(Cached::Hit(p)) if p.len() == 1));
    assert!(matches!(at_hand(60), Some(Cached::Stale(_, Flight::Lead))));
    assert!(
        matches!(at_hand(89), Some(Cached::Stale(_, Flight::Lead))),
        "the first never reported"
    );
    assert!(matches!(at_hand(89), Some(Cached::Stale(_, Flight::Follow))));
    assert!(at_hand(90).is_none());
    f.insert(90, vec![]);
    assert!(matches!(f.cache.at_hand(f.at(94), &key), Some(Cached::Negative)));
    assert!(f.cache.at_hand(f.at(95), &key).is_none());
    let counters = f.cache.counters();
    assert_eq!(
        (counters.hits, counters.stale, counters.negative_hits, counters.misses),
        (1, 3, 1, 1)
    );
}

#[test]
fn a_key_that_is_hit_again_and_again_stays_while_others_come_and_go() {
    let start = Instant::now();
    let limits = CacheLimits {
        keys: 4,
        ..CacheLimits::default()
    };
    let mut cache = DirectoryCache::new(Clock::new(start, 0), limits);
    let key = |n| ServiceKey::from_bytes([n; 32]);
    cache.insert(start, &key(0), vec![]);
    for other in 1..100 {
        assert!(cache.at_hand(start, &key(0)).is_some());
        cache.insert(start, &key(other), vec![]);
        assert_eq!(cache.len(), usize::from(other).min(3) + 1);
    }
    assert_eq!(cache.counters().evictions, 96);
    // With every key used again, one goes all the same.
    for other in [0, 97, 98, 99] {
        assert!(cache.at_hand(start, &key(other)).is_some());
    }
    cache.insert(start, &key(100), vec![]);
    assert_eq!((cache.len(), cache.counters().evictions), (4, 97));
}

#[test]
fn d1_providers_come_in_the_order_of_the_key() {
    let mut f = Fixture::new();
    f.insert(0, (1..20).map(|node| f.record(node, 0, 300)).collect());
    let Cached::Hit(providers) = f.get(0) else {
        panic!("a fresh answer")
    };
    assert!(providers.is_sorted_by_key(|p| f.key.rank(p.node_id())));
}

#[test]
fn d14_what_has_expired_by_a_clock_that_was_set_is_not_given_again() {
    let mut f = Fixture::new();
    let set = |f: &mut Fixture, ahead: i64| {
        let now = f.at(1);
        let mut clock = f.cache.clock();
        clock.set(now, clock.unix_ms(now).saturating_add_signed(ahead * 1_000));
        f.cache.set_clock(now, clock);
    };
    set(&mut f, 10_000);
    f.insert(1, vec![f.record(1, 10_001, 300), f.record(2, 10_001, 30)]);
    set(&mut f, 100);
    assert!(
        matches!(f.get(1), Cached::Stale(p, _) if p.len() == 1),
        "the one that lasts"
    );
    // A clock that is set back proves nothing of what is known, and prolongs nothing.
    set(&mut f, -3_600);
    assert!(matches!(f.get(1), Cached::Stale(p, _) if p.len() == 1));
    set(&mut f, 2 * 3_600);
    assert!(matches!(f.get(1), Cached::Miss(_)));
}
