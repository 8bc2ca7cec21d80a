//! Publishing to peers that answer anything, and without a peer.

#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

mod common;

use std::{collections::BTreeSet, time::Duration};

use common::{
    EPOCH_MS, advertisement,
    bench::{Bench, agreeable, peer, record},
    contact_of, key, secret,
};
use macula_dht::{Config, Contact, Dht, Event, MAX_JOBS, Memory, Outcome, Point, Refusal, Request, Response};
use macula_wire::{Realm, SignedProvider, VerifiedProvider};

/// All of the services are due at the same moment, and the publication of each is over at once, since there is no peer to ask.
#[test]
fn a_lone_node_publishes_any_number_of_services() {
    let mut bench = Bench::new(Config::default());
    for n in 0..20_000 {
        let service = key(&format!("service.n{n}"));
        bench.dht.advertise(bench.now, service, advertisement(0)).unwrap();
    }
    let events = bench.run(Duration::from_secs(81), |_, _| None);
    let published = events.iter().filter_map(|event| match event {
        Event::Advertised { key, .. } => Some(*key),
        _ => None,
    });
    assert_eq!(published.collect::<BTreeSet<_>>().len(), 20_000);
}

/// A node of 4 096 services and a holder with default limits: one sweep publishes all of them, and none is refused.
#[test]
fn y9_one_sweep_publishes_4096_services() {
    let mut holder = Bench::new(Config::default());
    let mut bench = Bench::with_secret(Config::default(), secret(1));
    bench.now = holder.now;
    bench.befriend([2]);
    for n in 0..4096 {
        let service = key(&format!("service.n{n}"));
        bench.dht.advertise(bench.now, service, advertisement(1)).unwrap();
    }
    let (mut acknowledged, mut rounds) = (0, 0);
    while acknowledged < 4096 {
        let events = bench.step(|now, request| {
            holder.now = now;
            holder.ask(1, request)
        });
        for event in events {
            let Event::Advertised {
                acknowledged: holders,
                refused,
                ..
            } = event
            else {
                continue;
            };
            assert_eq!((holders, &refused[..]), (1, &[][..]), "after {acknowledged} services");
            acknowledged += 1;
        }
        rounds += 1;
        assert!(rounds < 100_000, "the sweep has no end");
    }
    assert_eq!(holder.dht.store().usage().records, 4096);
}

/// Publishes to peers 1 to 20, of which the first always refuses in the same way. Counts the publications that an honest one gets in an hour.
fn publications_in_an_hour(refusal: Refusal, newer: Option<SignedProvider>) -> (usize, Bench) {
    let mut bench = Bench::new(Config::default());
    bench.befriend(1..=20);
    bench.dht.advertise(bench.now, key("a.b"), advertisement(0)).unwrap();
    let mut published = 0;
    bench.run(Duration::from_secs(3600), |to, request| match request {
        Request::Publish { .. } if *to == contact_of(1) => Some(Response::Published {
            outcomes: vec![Outcome::Refused(refusal)],
            newer: newer.clone().into_iter().collect(),
        }),
        Request::Publish { .. } if *to == contact_of(2) => {
            published += 1;
            Some(agreeable(request))
        }
        _ => Some(agreeable(request)),
    });
    (published, bench)
}

/// D5: one publication every 240 s. A holder that is busy, or says so, must not have the others flooded.
#[test]
fn a_holder_that_is_always_busy_does_not_make_a_flood() {
    let (published, _) = publications_in_an_hour(Refusal::Busy, None);
    assert!((15..=24).contains(&published), "{published}");
}

/// A holder that claims to know a newer record, with no proof or a wrong one, neither makes a flood nor moves the numbers.
#[test]
fn x12_a_holder_that_says_stale_without_proof_drives_no_numbers() {
    let other_key = record(0, key("c.d"), u64::MAX);
    let other_node = record(1, key("a.b"), u64::MAX);
    let mut forged = record(0, key("a.b"), u64::MAX);
    forged.signature = record(0, key("a.b"), 1).signature;
    for proof in [None, Some(other_key), Some(other_node), Some(forged)] {
        let (published, bench) = publications_in_an_hour(Refusal::Stale, proof);
        assert!((15..=24).contains(&published), "{published}");
        let mut own = bench.dht.local_providers(bench.now, &key("a.b"));
        let ahead = own
            .next()
            .map(|record| record.seq().abs_diff(record.advertised_at_ms()));
        assert_eq!(ahead, Some(0), "the number is the time");
    }
}

/// A proof that this node signed is believed, and one more publication is above it.
#[test]
fn x12_a_proven_newer_record_is_superseded_by_the_next_publication() {
    let ahead = EPOCH_MS + 365 * 86_400_000;
    let proof = record(0, key("a.b"), ahead);
    let (_, bench) = publications_in_an_hour(Refusal::Stale, Some(proof));
    let mut own = bench.dht.local_providers(bench.now, &key("a.b"));
    let seq = own.next().map_or(0, VerifiedProvider::seq);
    assert!((ahead + 1..ahead + 40).contains(&seq), "{seq}");
}

/// Late publications lose their places in this node's own store to services that came meanwhile: peers are told all the same.
#[test]
fn a_service_whose_place_was_lost_is_still_published_and_withdrawn() {
    let mut config = Config::default();
    config.store.local_records = MAX_JOBS + 2;
    let mut bench = Bench::new(config);
    bench.befriend(1..=3);
    let short = || advertisement(0).with_ttl(Duration::from_secs(20));
    let services: Vec<_> = (0..=MAX_JOBS).map(|n| key(&format!("service.n{n}"))).collect();
    for service in &services {
        bench.dht.advertise(bench.now, *service, short()).unwrap();
    }
    bench.run(Duration::from_secs(1), |_, request| Some(agreeable(request)));
    // The shell sleeps for a day: all have expired, and all but one can be published again at once.
    bench.now += Duration::from_secs(86_400);
    bench.dht.handle_timeout(bench.now);
    for late in ["late.one", "late.two"] {
        bench.dht.advertise(bench.now, key(late), advertisement(0)).unwrap();
    }
    let another = bench.dht.advertise(bench.now, key("one.more"), advertisement(0));
    assert!(another.is_err(), "D10: the cap holds");
    let events = bench.run(Duration::from_secs(3), |_, request| Some(agreeable(request)));
    let told = |events: &[Event]| {
        events
            .iter()
            .filter(|e| matches!(e, Event::Advertised { acknowledged: 3, .. }))
            .count()
    };
    assert_eq!(told(&events), MAX_JOBS + 3);
    assert_eq!(bench.dht.store().usage().local, MAX_JOBS + 2);
    for service in &services {
        bench.dht.withdraw(bench.now, *service);
    }
    let events = bench.run(Duration::from_secs(3), |_, request| Some(agreeable(request)));
    let withdrawn = events
        .iter()
        .filter(|e| matches!(e, Event::Withdrawn { acknowledged: 3, .. }));
    assert_eq!(withdrawn.count(), services.len());
}

/// D3: a holder that takes a node for a newcomer among the closest hands it the record, though it is not one of them, and names it
/// in answers. The publisher, which never sent it anything, tells it of the withdrawal.
#[test]
fn d3_a_node_beyond_the_closest_that_was_handed_a_record_hears_of_its_withdrawal() {
    let service = key("a.b");
    let point = Point::from(&service);
    let mut by_distance: Vec<_> = (1..=30).collect();
    by_distance.sort_by_key(|n| Point::from(contact_of(*n).node_id()).distance(&point));
    let (closest, beyond) = by_distance.split_at(20);
    let mut bench = Bench::new(Config::default());
    bench.befriend(closest.iter().copied());
    bench.dht.advertise(bench.now, service, advertisement(0)).unwrap();
    let mut told = Vec::new();
    let mut peers = |to: &Contact, request: &Request| {
        match request {
            Request::Publish { .. } => told.push(to.clone()),
            Request::FindNode { .. } => return Some(Response::Nodes(vec![contact_of(beyond[0])])),
            Request::Ping | Request::FindProviders { .. } => {}
        }
        Some(agreeable(request))
    };
    bench.run(Duration::from_secs(60), &mut peers);
    bench.dht.withdraw(bench.now, service);
    bench.run(Duration::from_secs(3), &mut peers);
    let times = |n: usize| told.iter().filter(|to| **to == contact_of(n)).count();
    assert!(closest.iter().all(|n| times(*n) == 2), "published and withdrawn");
    assert_eq!(times(beyond[0]), 1, "withdrawn");
}

/// A round that takes longer than the time to the next is not begun a second time: a withdrawal ends the one it knows of, and a
/// live record would be sent after it.
#[test]
fn d3_nothing_live_is_sent_after_a_withdrawal_however_slow_the_publication() {
    let mut bench = Bench::new(Config {
        hard_timeout: Duration::from_secs(15),
        ..Config::default()
    });
    bench.befriend(1..=4);
    let service = key("a.b");
    let short = advertisement(0).with_ttl(Duration::from_secs(20));
    bench.dht.advertise(bench.now, service, short).unwrap();
    let told_within = |bench: &mut Bench, seconds| {
        let mut told = Vec::new();
        bench.run(Duration::from_secs(seconds), |to, request| {
            if let Request::Publish { records, .. } = request {
                let record = records[0].verify(&Realm::default().hash(), &service).unwrap();
                told.push(record.is_withdrawn());
            }
            // The others are found out to be dead by the hard timeout only.
            (*to == contact_of(1)).then(|| agreeable(request))
        });
        told
    };
    assert!(told_within(&mut bench, 22).contains(&false), "published");
    bench.dht.withdraw(bench.now, service);
    let told = told_within(&mut bench, 60);
    assert!(!told.is_empty() && !told.contains(&false), "{told:?}");
}

/// A newcomer that is to hold very much gets all of it, since no more is sent than a peer may.
#[test]
fn thousands_of_records_are_handed_over_at_the_rate_a_peer_takes_them() {
    let mut holder = Bench::new(Config::default());
    for n in 0..5000 {
        let service = key(&format!("service.n{n}"));
        let publisher = 1 + n % 5;
        let taken = holder.publish(publisher, service, record(publisher, service, 1));
        assert_eq!(taken, Outcome::Stored);
        // All publishers are of one network, which gets half of the signature checks.
        holder.now += Duration::from_millis(1);
    }
    holder.outputs();
    let mut newcomer = Dht::new(
        Config::default(),
        secret(9),
        Realm::default(),
        Memory,
        holder.now,
        EPOCH_MS,
        1,
    );
    holder.dht.add_contact(holder.now, contact_of(9));
    for _ in 0..2000 {
        for (id, _, request) in holder.sends() {
            let response = newcomer.handle_request(holder.now, &peer(0), Ok(request));
            holder.answer(id, response);
        }
        holder.now += Duration::from_millis(20);
        holder.dht.handle_timeout(holder.now);
    }
    assert_eq!(newcomer.store().usage().records, 5000);
}
