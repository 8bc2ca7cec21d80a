//! A wall clock that is wrong, and set right while the node runs (D14).

#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

mod common;

use std::time::Duration;

use common::{
    EPOCH_MS, advertisement,
    bench::{Bench, record},
    key, secret,
};
use macula_dht::{CacheLimits, Cached, Clock, Config, DirectoryCache, Outcome, Refusal};
use macula_wire::{Realm, ServiceKey, SignedProvider, VerifiedProvider};

const HOUR: Duration = Duration::from_secs(3600);
const HOUR_MS: u64 = 3_600_000;

/// The record of `n`, dated by a clock that shows `unix_ms`.
fn dated(n: usize, key: ServiceKey, unix_ms: u64) -> SignedProvider {
    let signed = VerifiedProvider::sign(
        &secret(n),
        &Realm::default().hash(),
        &key,
        unix_ms,
        unix_ms,
        &advertisement(n),
    );
    signed.unwrap().to_signed()
}

#[test]
fn d14_a_refusal_says_by_how_much_and_ends_when_the_clock_is_set() {
    let (mut bench, service) = (Bench::new(Config::default()), key("clock.slow"));
    let right = dated(2, service, EPOCH_MS + HOUR_MS);
    let ahead = Outcome::Refused(Refusal::FromTheFuture { by: HOUR });
    assert_eq!(bench.publish(2, service, right.clone()), ahead);
    bench.dht.set_clock(bench.now, EPOCH_MS + HOUR_MS);
    assert_eq!(bench.publish(2, service, right), Outcome::Stored);
    assert_eq!(bench.dht.local_providers(bench.now, &service).count(), 1);
}

/// D4: a record that only a wrong clock took for fresh is not shown once the clock is right.
#[test]
fn d14_records_that_the_right_clock_rules_out_are_dropped() {
    let (mut bench, service) = (Bench::new(Config::default()), key("clock.slow"));
    assert_eq!(bench.publish(2, service, record(2, service, 1)), Outcome::Stored);
    assert_eq!(bench.publish(3, service, dated(3, service, EPOCH_MS)), Outcome::Stored);
    bench.dht.set_clock(bench.now, EPOCH_MS + 1_000);
    assert_eq!(
        bench.dht.local_providers(bench.now, &service).count(),
        2,
        "a small step drops none"
    );
    bench.dht.set_clock(bench.now, EPOCH_MS + HOUR_MS);
    assert_eq!(bench.dht.local_providers(bench.now, &service).count(), 0);
    assert_eq!(bench.dht.store().usage().records, 0);
}

#[test]
fn d14_a_cached_list_is_asked_again_when_the_clock_is_set() {
    let (now, service) = (std::time::Instant::now(), key("clock.cached"));
    let mut cache = DirectoryCache::new(Clock::new(now, EPOCH_MS), CacheLimits::default());
    let found = dated(2, service, EPOCH_MS).verify(&Realm::default().hash(), &service);
    cache.insert(now, &service, vec![found.unwrap()]);
    assert!(matches!(cache.get(now, &service), Cached::Hit(_)));
    let mut clock = cache.clock();
    clock.set(now, EPOCH_MS + 5_000);
    cache.set_clock(now, clock);
    assert!(matches!(cache.get(now, &service), Cached::Stale(found, _) if found.len() == 1));
}
