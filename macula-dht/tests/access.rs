//! Closed realms in the directory: an unproven record is stored nowhere, returned nowhere, used nowhere (A4, A6).
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod common;

use std::time::Duration;

use common::{
    EPOCH_MS, advertisement,
    bench::{Bench, agreeable, peer},
    contact_of,
    disk::Disk,
    secret,
};
use macula_dht::{Begun, Config, Dht, Event, Outcome, Refusal, Request, Response, StoredRecord, Want};
use macula_wire::{
    Advertisement, Grant, GrantRole, Holder, Issue, Member, Network, Order, Pattern, Patterns, Place, Realm, RealmKey,
    RealmName, SecretKey, ServiceKey, ServiceName, SignedProvider, SignedRevocations, Signer, VerifiedProvider,
};

const NOW: u64 = EPOCH_MS / 1000;
/// The number of the node that issues.
const ISSUER: usize = 900;

fn realm_key() -> RealmKey {
    RealmKey::from_bytes(&[77; 32])
}

fn realm() -> Realm {
    realm_key().realm(RealmName::new("shop").unwrap())
}

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

fn key(text: &str) -> ServiceKey {
    ServiceKey::new(&realm(), &name(text))
}

/// Node `n`, which may provide `shop.*` for so many seconds by the issuer's word.
fn member(n: usize, seconds: u64) -> Member {
    let shop = Patterns::from_iter(["shop.*".parse::<Pattern>().unwrap()]);
    let issue = Issue::new(GrantRole::Node, shop.clone(), Patterns::all());
    let issuer = Grant::new(&realm(), secret(ISSUER).node_id(), NOW..=NOW + 9000).with_issue(issue);
    let issuer = issuer.sign(&realm_key()).unwrap().verify(&realm(), NOW).unwrap();
    let grant = Grant::new(&realm(), secret(n).node_id(), NOW..=NOW + seconds).with_provide(shop);
    let chain = grant.issue(&issuer, &secret(ISSUER)).unwrap();
    chain.verify(&realm(), NOW).unwrap()
}

fn advertised(n: usize) -> Advertisement {
    advertisement(n).with_ttl(Duration::from_secs(600))
}

fn record(n: usize, service: &str, seconds: u64) -> SignedProvider {
    let place = Place::of(&realm(), &name(service), &member(n, seconds)).unwrap();
    let record = VerifiedProvider::sign_at(&secret(n), &place, 1, EPOCH_MS, &advertised(n));
    record.unwrap().to_signed()
}

/// A record that a hostile member made: of the open realm's kind, or with a grant that does not allow it.
fn hostile(n: usize, service: &str) -> Vec<SignedProvider> {
    let open = Realm::new("shop").unwrap();
    let bare = VerifiedProvider::sign(&secret(n), &open.hash(), &key(service), 1, EPOCH_MS, &advertised(n)).unwrap();
    let good = record(n, "shop.cart", 5000);
    let other = RealmKey::from_bytes(&[78; 32]);
    let foreign = Grant::new(
        &other.realm(RealmName::new("shop").unwrap()),
        secret(n).node_id(),
        NOW..=NOW + 5000,
    );
    let foreign = foreign.with_provide(Patterns::all()).sign(&other).unwrap();
    vec![
        bare.to_signed(),
        SignedProvider {
            chain: bytes::Bytes::new(),
            ..good.clone()
        },
        SignedProvider {
            chain: record(n + 1, "shop.cart", 5000).chain,
            ..good.clone()
        },
        SignedProvider {
            chain: foreign.as_bytes().clone(),
            ..good.clone()
        },
        SignedProvider {
            chain: vec![0; 2000].into(),
            ..good
        },
    ]
}

fn closed() -> Bench {
    let mut bench = Bench::new(Config::default());
    bench.dht = Dht::new(
        Config::default(),
        secret(0),
        realm(),
        macula_dht::Memory,
        bench.now,
        EPOCH_MS,
        7,
    );
    bench
}

fn held(bench: &Bench, service: &str) -> usize {
    bench.dht.local_providers(bench.now, &key(service)).count()
}

fn revocation(n: usize) -> SignedRevocations {
    SignedRevocations::sign(&realm(), &realm_key(), [Order::revoke(secret(n).node_id(), NOW)]).unwrap()
}

#[test]
fn a4_a_holder_takes_proven_records_and_no_others() {
    let mut bench = closed();
    for record in hostile(1, "shop.cart") {
        assert_eq!(
            bench.publish(1, key("shop.cart"), record),
            Outcome::Refused(Refusal::Invalid)
        );
    }
    // A right to another service is none to this one.
    let elsewhere = record(1, "shop.cart", 5000);
    assert_eq!(
        bench.publish(1, key("payments"), elsewhere),
        Outcome::Refused(Refusal::Invalid)
    );
    assert_eq!((held(&bench, "shop.cart"), bench.dht.counters().refused), (0, 6));
    assert_eq!(
        bench.publish(1, key("shop.cart"), record(1, "shop.cart", 5000)),
        Outcome::Stored
    );
    let request = Request::FindProviders {
        key: key("shop.cart"),
        after: None,
    };
    let Response::Providers { records, .. } = bench.ask(2, request) else {
        panic!("the holder answers");
    };
    assert_eq!(
        records,
        [record(1, "shop.cart", 5000)],
        "the proof travels with the record"
    );
}

#[test]
fn a4_a_lookup_uses_no_unproven_record_whatever_its_holder_says() {
    for (n, unproven) in hostile(1, "shop.cart").into_iter().enumerate() {
        let mut bench = closed();
        bench.befriend([5, 6]);
        let query = bench.dht.start_lookup(bench.now, key("shop.cart"), Want::All).unwrap();
        let liar = *contact_of(5).node_id();
        let events = bench.run(Duration::from_secs(20), |to, request| {
            let Request::FindProviders { .. } = request else {
                return Some(agreeable(request));
            };
            let records = match *to.node_id() == liar {
                true => vec![unproven.clone()],
                false => vec![record(3, "shop.cart", 5000)],
            };
            Some(Response::Providers {
                records,
                closest: Vec::new(),
                more: false,
            })
        });
        let found = events.iter().filter_map(|event| match event {
            Event::Providers { query: of, batch } if *of == query => Some(batch.iter().map(|record| *record.node_id())),
            _ => None,
        });
        let found: Vec<_> = found.flatten().collect();
        assert_eq!(found, [secret(3).node_id()], "case {n}");
        assert!(bench.dht.counters().misbehaved >= 1);
    }
}

#[test]
fn a4_a_record_ends_with_its_grant() {
    let mut bench = closed();
    assert_eq!(
        bench.publish(1, key("shop.cart"), record(1, "shop.cart", 100)),
        Outcome::Stored
    );
    bench.run(Duration::from_secs(99), |_, request| Some(agreeable(request)));
    assert_eq!(held(&bench, "shop.cart"), 1);
    bench.run(Duration::from_secs(1), |_, request| Some(agreeable(request)));
    assert_eq!(held(&bench, "shop.cart"), 0, "long before its own 600 s");
    assert_eq!(
        bench.publish(1, key("shop.cart"), record(1, "shop.cart", 100)),
        Outcome::Refused(Refusal::Invalid)
    );
}

#[test]
fn a6_a_revocation_drops_the_nodes_records_and_takes_no_new_ones() {
    let mut bench = closed();
    for n in [1, 2] {
        assert_eq!(
            bench.publish(n, key("shop.cart"), record(n, "shop.cart", 5000)),
            Outcome::Stored
        );
    }
    assert_eq!(bench.dht.revoke(bench.now, &revocation(1)), Ok(true));
    assert_eq!(bench.dht.revoke(bench.now, &revocation(1)), Ok(false), "a replay");
    let left: Vec<_> = bench
        .dht
        .local_providers(bench.now, &key("shop.cart"))
        .map(|it| *it.node_id())
        .collect();
    assert_eq!(left, [secret(2).node_id()]);
    assert_eq!(
        bench.publish(1, key("shop.cart"), record(1, "shop.cart", 5000)),
        Outcome::Refused(Refusal::Invalid)
    );
    // Its issuer's revocation is its own.
    assert_eq!(bench.dht.revoke(bench.now, &revocation(ISSUER)), Ok(true));
    assert_eq!(held(&bench, "shop.cart"), 0);
}

#[test]
fn a4_a_node_publishes_only_what_its_grant_lets_it_provide() {
    let mut bench = closed();
    let refused = |bench: &mut Bench, service: &str| {
        let advertised = bench.dht.advertise_service(bench.now, &name(service), advertised(0));
        advertised.unwrap_err().to_string()
    };
    refused(&mut bench, "shop.cart");
    let grant = member(0, 1000).chain().unwrap().clone();
    bench.dht.set_grant(bench.now, &grant).unwrap();
    refused(&mut bench, "payments");
    assert!(
        bench.dht.advertise(bench.now, key("shop.cart"), advertised(0)).is_err(),
        "a key proves nothing"
    );
    bench
        .dht
        .advertise_service(bench.now, &name("shop.cart"), advertised(0))
        .unwrap();
    assert_eq!(held(&bench, "shop.cart"), 1);
    // Without a new grant the service ends with the old one, and the user hears of it.
    let events = bench.run(Duration::from_secs(2000), |_, request| Some(agreeable(request)));
    let told = |event: &Event| matches!(event, Event::NotAdvertised { key: of, .. } if *of == key("shop.cart"));
    assert!(events.iter().any(told));
    assert_eq!(held(&bench, "shop.cart"), 0);
}

#[test]
fn a4_a_store_on_disk_is_believed_no_more_than_a_stranger() {
    let disk = Disk::default();
    let stored = |n: usize, record: SignedProvider| StoredRecord {
        key: key("shop.cart"),
        node: secret(n).node_id(),
        record,
        deliverer: Holder::new(Network::Unknown, secret(9).node_id()),
        expires_ms: EPOCH_MS + 500_000,
        held_until_ms: EPOCH_MS + 500_000,
    };
    let forged = hostile(1, "shop.cart").into_iter().map(|record| stored(1, record));
    disk.keep(forged.chain([stored(2, record(2, "shop.cart", 5000))]));
    let now = std::time::Instant::now();
    let dht = Dht::<SecretKey, _>::new(Config::default(), secret(0), realm(), disk, now, EPOCH_MS, 7);
    let kept: Vec<_> = dht
        .local_providers(now, &key("shop.cart"))
        .map(|it| *it.node_id())
        .collect();
    assert_eq!(kept, [secret(2).node_id()]);
}

/// A grant that is revoked while the signatures are checked counts as revoked.
#[test]
fn a6_a_revocation_during_the_check_of_a_record_holds() {
    let mut bench = closed();
    let request = Request::Publish {
        key: key("shop.cart"),
        records: vec![record(1, "shop.cart", 5000), record(2, "shop.cart", 5000)],
    };
    let Begun::Checking(mut checks) = bench.dht.begin_request(bench.now, &peer(3), Ok(request)) else {
        panic!("two records are to be checked")
    };
    while checks.step() {}
    assert!(bench.dht.revoke(bench.now, &revocation(1)).unwrap());
    let response = bench.dht.finish_request(bench.now, checks);
    let outcomes = [Outcome::Refused(Refusal::Invalid), Outcome::Stored];
    assert!(
        matches!(&response, Response::Published { outcomes: seen, .. } if seen[..] == outcomes),
        "{response:?}"
    );
    assert_eq!(held(&bench, "shop.cart"), 1);
}
