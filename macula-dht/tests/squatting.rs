//! Many identities of one party against one key: as providers in its list, and as nodes around it.

#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

mod common;

use std::time::{Duration, Instant};

use common::{
    EPOCH_MS, Net, advertisement,
    bench::{Bench, record},
    contact_of, key, secret,
};
use macula_dht::{
    CacheLimits, Cached, Clock, Config, DirectoryCache, Event, Outcome, Peer, Point, QueryResult, Refusal, Request,
    Response, Role, Want,
};
use macula_wire::{Realm, ServiceKey, SignedProvider, VerifiedProvider};

/// The record of `n` as of `after` the start.
fn record_at(n: usize, key: ServiceKey, after: Duration) -> VerifiedProvider {
    let at = EPOCH_MS + after.as_millis() as u64;
    VerifiedProvider::sign(&secret(n), &Realm::default().hash(), &key, at, at, &advertisement(n)).unwrap()
}

fn publish_from(bench: &mut Bench, n: usize, ip: [u8; 4], key: ServiceKey, record: SignedProvider) -> Outcome {
    let peer = Peer {
        contact: contact_of(n).observed_at(ip.into()),
        role: Role::Node,
    };
    let records = vec![record];
    match bench
        .dht
        .handle_request(bench.now, &peer, Ok(Request::Publish { key, records }))
    {
        Response::Published { outcomes, .. } => outcomes[0],
        other => panic!("{other:?}"),
    }
}

/// As many Sybils of one subnet as a key has places take them all and renew every minute. An honest provider comes later.
fn squat(sybils: usize) {
    let mut config = Config::default();
    config.store.providers_per_key = sybils;
    let mut bench = Bench::new(config);
    let (start, service, honest) = (bench.now, key("api.compute"), 500);
    for minute in 0..12 {
        let after = Duration::from_secs(60 * minute);
        bench.now = start + after;
        bench.dht.handle_timeout(bench.now);
        for n in 1..=sybils {
            let record = record_at(n, service, after).to_signed();
            publish_from(&mut bench, n, [203, 0, 113, n as u8], service, record);
        }
        if minute == 0 {
            assert_eq!(
                bench.dht.local_providers(bench.now, &service).count(),
                sybils,
                "all places are taken"
            );
        }
        if minute % 4 == 1 {
            let record = record_at(honest, service, after).to_signed();
            let taken = publish_from(&mut bench, honest, [198, 51, 100, 1], service, record);
            assert_eq!(taken, Outcome::Stored, "minute {minute}");
        }
        let mut shown = bench.dht.local_providers(bench.now, &service);
        let is_shown = shown.any(|p| p.node_id() == contact_of(honest).node_id());
        assert!(is_shown || minute == 0, "minute {minute}");
    }
}

#[test]
fn twenty_sybils_cannot_squat_a_key_by_renewing() {
    squat(20);
}

#[test]
fn a_hundred_sybils_cannot_squat_a_key_by_renewing() {
    squat(100);
}

/// One address under ever new ids against a key whose places honest providers of many subnets hold.
#[test]
fn one_address_cannot_evict_a_key_by_varying_its_id() {
    let mut config = Config::default();
    config.store.providers_per_key = 20;
    let mut bench = Bench::new(config);
    let service = key("api.compute");
    for n in 1..=20 {
        let taken = publish_from(&mut bench, n, [198, 51, n as u8, 1], service, record(n, service, 1));
        assert_eq!(taken, Outcome::Stored);
    }
    for n in 100..200 {
        let refused = publish_from(&mut bench, n, [203, 0, 113, 7], service, record(n, service, 1));
        assert_eq!(refused, Outcome::Refused(Refusal::KeyFull));
    }
    let held = bench.dht.local_providers(bench.now, &service);
    assert!(
        held.into_iter()
            .all(|p| (1..=20).any(|n| contact_of(n).node_id() == p.node_id()))
    );
    assert_eq!(bench.dht.local_providers(bench.now, &service).count(), 20);
}

/// Nodes nearer to a key than all others answer everything, store nothing and name only each other. The publication goes to the
/// region that k nodes take up on average, and a search asks there.
fn surround(liars: usize) {
    let mut net = Net::joined(31, 120);
    let service = key("api.compute");
    let seekers = [0, 17, 40, 63, 99];
    // A node that has looked up a few points knows the size of the network.
    for node in seekers.into_iter().chain([5]) {
        for _ in 0..12 {
            let target = Point::from_bytes(&std::array::from_fn(|_| net.rng.next() as u8));
            let query = net.with(node, |dht, now| dht.start_find_node(now, target).unwrap());
            net.finish(node, query);
        }
        let size = net.nodes[node].dht.network_size().unwrap();
        assert!((60.0..240.0).contains(&size), "{size} of 120");
    }
    net.add_liars(service, liars);
    net.run(Duration::from_secs(10));
    net.advertise(5, service);
    net.run(Duration::from_secs(10));
    let acknowledged = net.nodes[5].events.iter().find_map(|event| match event {
        Event::Advertised { acknowledged, .. } => Some(*acknowledged),
        _ => None,
    });
    assert!(acknowledged > Some(20), "more than the k closest: {acknowledged:?}");
    for node in seekers {
        assert_eq!(net.found(node, service, Want::First), [5], "from {node}");
    }
}

#[test]
fn twenty_nodes_around_a_key_cannot_hide_its_providers() {
    surround(20);
}

#[test]
fn a_hundred_nodes_around_a_key_cannot_hide_its_providers() {
    surround(100);
}

/// An attacker that knows a node's id can crowd the space around it, where the node looks when it joins and when it refreshes its
/// deepest buckets. So the density there does not count for the network's size, by which the node tells crowds.
#[test]
fn nodes_around_a_nodes_own_id_do_not_make_it_think_the_network_larger() {
    let mut net = Net::joined(31, 120);
    let newcomer = net.add(Config::default());
    let id = *net.nodes[newcomer].dht.node_id();
    net.add_liars(ServiceKey::from_bytes(*id.as_bytes()), 40);
    net.run(Duration::from_secs(10));
    net.bootstrap(newcomer, 0);
    net.run(Duration::from_secs(10));
    for minutes in [0, 70] {
        net.run(Duration::from_secs(60 * minutes));
        if let Some(size) = net.nodes[newcomer].dht.network_size() {
            assert!((60.0..400.0).contains(&size), "{size} of 160 after {minutes} min");
        }
    }
    assert!(
        net.nodes[newcomer].dht.network_size().is_some(),
        "it has looked elsewhere by now"
    );
}

/// D8: a record signed for one realm is not valid in another, even where its key is known there.
#[test]
fn d8_a_service_of_another_realm_is_invisible() {
    let mut bench = Bench::new(Config::default());
    let other = Realm::new("other").unwrap();
    let name = "api.compute".parse().unwrap();
    let foreign_key = ServiceKey::new(&other, &name);
    assert_ne!(bench.dht.key(&name), foreign_key);
    let foreign = VerifiedProvider::sign(&secret(1), &other.hash(), &foreign_key, 1, EPOCH_MS, &advertisement(1));
    let foreign = foreign.unwrap().to_signed();
    assert_eq!(
        bench.publish(2, foreign_key, foreign.clone()),
        Outcome::Refused(Refusal::Invalid)
    );
    bench.befriend([1]);
    bench.dht.start_lookup(bench.now, foreign_key, Want::All).unwrap();
    let events = bench.run(Duration::from_secs(5), |_, _| {
        Some(Response::Providers {
            records: vec![foreign.clone()],
            closest: Vec::new(),
            more: false,
        })
    });
    assert!(
        matches!(
            &events[..],
            [
                Event::Misbehaved { .. },
                Event::Finished {
                    result: QueryResult::Unreachable,
                    ..
                }
            ]
        ),
        "the lookup counted an answer that it must ignore: {events:?}"
    );
}

/// D4: however late a record is passed on, to a holder, a searcher or a cache, it is over when its publisher said.
#[test]
fn d4_passing_a_record_on_does_not_prolong_it() {
    let start = Instant::now();
    let service = key("api.compute");
    let advertisement = advertisement(1).with_ttl(Duration::from_secs(20));
    let record = VerifiedProvider::sign(
        &secret(1),
        &Realm::default().hash(),
        &service,
        1,
        EPOCH_MS,
        &advertisement,
    )
    .unwrap();
    let mut cache = DirectoryCache::new(Clock::new(start, EPOCH_MS), CacheLimits::default());
    let at = |ms| start + Duration::from_millis(ms);
    cache.insert(at(19_500), &service, vec![record.clone()]);
    assert!(matches!(cache.get(at(19_999), &service), Cached::Hit(_)));
    assert!(matches!(cache.get(at(20_000), &service), Cached::Miss(_)));

    let mut bench = Bench::new(Config::default());
    let start = bench.now;
    bench.now = start + Duration::from_millis(19_500);
    assert_eq!(bench.publish(2, service, record.to_signed()), Outcome::Stored);
    bench.now = start + Duration::from_millis(19_999);
    assert_eq!(bench.dht.local_providers(bench.now, &service).count(), 1);
    bench.now = start + Duration::from_secs(20);
    assert_eq!(
        bench.dht.local_providers(bench.now, &service).count(),
        0,
        "with no timer run"
    );
    let told = bench.ask(
        3,
        Request::FindProviders {
            key: service,
            after: None,
        },
    );
    assert!(matches!(told, Response::Providers { records, .. } if records.is_empty()));
    let outcome = bench.publish(2, service, record.to_signed());
    assert!(
        matches!(outcome, Outcome::Refused(Refusal::Expired { .. })),
        "{outcome:?}"
    );
}
