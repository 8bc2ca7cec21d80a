//! How a search goes on where an honest network would have ended it: one core, and peers that know nothing.

#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]
mod common;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use common::{
    EPOCH_MS, advertisement,
    bench::{Bench, agreeable, record},
    contact_of, key, secret,
};
use macula_dht::{Config, Dht, Event, Memory, Output, QueryResult, Reply, Request, Response, Role, Want};
use macula_wire::{Realm, SecretKey, SignedProvider, VerifiedProvider};

/// A node that knows `count` others.
fn acquainted(now: Instant, count: usize) -> Dht<SecretKey> {
    let mut dht = Dht::new(Config::default(), secret(0), Realm::default(), Memory, now, EPOCH_MS, 7);
    for n in 1..=count {
        dht.add_contact(now, contact_of(n));
        while let Some(output) = dht.poll_output() {
            if let Output::Send { id, .. } = output {
                dht.handle_response(
                    now,
                    id,
                    Ok(Reply {
                        response: Ok(Response::Pong),
                        role: Role::Node,
                        ip: None,
                    }),
                );
            }
        }
    }
    dht
}

/// Looks up a service without a provider. Returns how often each peer was asked, and the most requests that waited at a time.
fn search_in_vain(dht: &mut Dht<SecretKey>, now: Instant) -> (BTreeMap<String, usize>, usize) {
    let query = dht.start_lookup(now, key("no.such"), Want::First).unwrap();
    let (mut asked, mut waiting, mut most, mut ends) = (BTreeMap::new(), Vec::new(), 0, 0);
    loop {
        while let Some(output) = dht.poll_output() {
            match output {
                Output::Send {
                    id,
                    to,
                    request: Request::FindProviders { .. },
                } => {
                    *asked.entry(to.node_id().to_string()).or_default() += 1;
                    waiting.push(id);
                }
                Output::Event(Event::Finished { query: of, result, .. }) => {
                    assert_eq!((of, result), (query, QueryResult::NotFound));
                    ends += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        most = most.max(waiting.len());
        let Some(id) = waiting.pop() else { break };
        let response = Response::Providers {
            records: Vec::new(),
            closest: Vec::new(),
            more: false,
        };
        dht.handle_response(
            now,
            id,
            Ok(Reply {
                response: Ok(response),
                role: Role::Node,
                ip: None,
            }),
        );
    }
    assert_eq!(ends, 1);
    (asked, most)
}

/// When k peers say that there is nothing, two further paths ask, and neither asks a peer that the other has asked.
#[test]
fn a_search_in_vain_goes_again_on_disjoint_paths() {
    let now = Instant::now();
    let mut dht = acquainted(now, 200);
    let (asked, most) = search_in_vain(&mut dht, now);
    // Once at first, and once on one of the two paths.
    assert!(asked.values().all(|&times| times <= 2), "{asked:?}");
    assert!(asked.len() > 20 && asked.values().sum::<usize>() > 40, "{asked:?}");
    assert!(most <= 2 * macula_dht::ALPHA, "{most}");
}

/// In a network no larger than k every node is asked once.
#[test]
fn a_small_network_is_asked_once() {
    let now = Instant::now();
    let mut dht = acquainted(now, 15);
    let (asked, most) = search_in_vain(&mut dht, now);
    assert_eq!((asked.len(), asked.values().sum::<usize>()), (15, 15));
    assert!(most <= macula_dht::ALPHA);
}

/// A peer that is slow makes room for another after 250 ms, and has failed after 2 s.
#[test]
fn soft_and_hard_timeouts() {
    let start = Instant::now();
    let mut dht = acquainted(start, 15);
    dht.start_lookup(start, key("a.b"), Want::First).unwrap();
    let sends = |dht: &mut Dht<SecretKey>| std::iter::from_fn(|| dht.poll_output()).count();
    assert_eq!(sends(&mut dht), 3, "alpha");
    let soft = start + Duration::from_millis(250);
    assert_eq!(dht.poll_timeout(), Some(soft));
    dht.handle_timeout(soft - Duration::from_millis(1));
    assert_eq!(sends(&mut dht), 0);
    dht.handle_timeout(soft);
    assert_eq!(sends(&mut dht), 3, "one more for each that is slow");
    let failed = dht.counters().failed;
    dht.handle_timeout(start + Duration::from_secs(2));
    assert_eq!(dht.counters().failed, failed + 3);
}

fn providers(records: Vec<SignedProvider>, more: bool) -> Response {
    Response::Providers {
        records,
        closest: Vec::new(),
        more,
    }
}

/// D4: a record that was valid when it was found may have expired when the slowest peer answers.
#[test]
fn d4_a_record_that_expires_during_a_search_is_not_in_its_result() {
    let mut bench = Bench::new(Config::default());
    bench.befriend(1..=3);
    let service = key("a.b");
    let record = |n: usize, ttl| {
        let advertisement = advertisement(n).with_ttl(Duration::from_secs(ttl));
        VerifiedProvider::sign(
            &secret(n),
            &Realm::default().hash(),
            &service,
            1,
            EPOCH_MS,
            &advertisement,
        )
        .unwrap()
        .to_signed()
    };
    bench.now += Duration::from_secs(19);
    bench.dht.start_lookup(bench.now, service, Want::All).unwrap();
    let events = bench.run(Duration::from_secs(5), |to, _| {
        (*to != contact_of(2)).then(|| providers(vec![record(50, 20), record(51, 30)], false))
    });
    let Some(Event::Finished {
        result: QueryResult::Found(found),
        ..
    }) = events.last()
    else {
        panic!("{events:?}")
    };
    let found: Vec<_> = found.iter().map(|p| *p.node_id()).collect();
    assert_eq!(found, [*contact_of(51).node_id()]);
}

/// Each of a few peers has providers without end: they cost so many signatures and so much memory, and no more.
#[test]
fn a_search_takes_no_more_providers_than_a_list_may_have_from_each_peer() {
    let mut config = Config::default();
    config.store.providers_per_key = 4;
    let mut bench = Bench::new(config);
    bench.befriend(1..=3);
    let service = key("a.b");
    bench.dht.start_lookup(bench.now, service, Want::All).unwrap();
    let mut next = 100;
    let events = bench.run(Duration::from_secs(10), |_, _| {
        let page = (next..next + 20).map(|n| record(n, service, 1)).collect();
        next += 20;
        Some(providers(page, true))
    });
    let Some(Event::Finished {
        result: QueryResult::Found(found),
        ..
    }) = events.last()
    else {
        panic!("{events:?}")
    };
    assert!(found.len() <= 3 * 256, "{}", found.len());
    assert!(next <= 100 + 3 * (256 + 20), "{next}");
}

/// Peers that name only dead nodes crowd the others out of one lookup, and not out of the search.
#[test]
fn a_search_that_is_led_to_the_dead_goes_another_way() {
    let mut bench = Bench::new(Config::default());
    bench.befriend(1..=200);
    let service = key("a.b");
    let point = macula_dht::Point::from(service);
    let known: Vec<_> = bench.dht.table().closest(&point, 40).cloned().collect();
    // The sixteen closest lie; only one that is not among the twenty closest knows the provider.
    let (liars, holder) = (known[..16].to_vec(), known[30].clone());
    let mut made_up = 0_u32;
    bench.dht.start_lookup(bench.now, service, Want::First).unwrap();
    let events = bench.run(Duration::from_secs(120), |to, request| {
        if liars.contains(to) {
            let closest = (0..20).map(|_| {
                made_up += 1;
                let mut id = *service.as_bytes();
                id[28..].copy_from_slice(&made_up.to_be_bytes());
                let endpoint = "192.0.2.1:1".parse().unwrap();
                macula_dht::Contact::new(macula_wire::NodeId::from_bytes(id), [endpoint])
            });
            return Some(Response::Providers {
                records: Vec::new(),
                closest: closest.collect(),
                more: false,
            });
        }
        if *to == holder {
            return Some(providers(vec![record(7, service, 1)], false));
        }
        (1..=200).any(|n| *to == contact_of(n)).then(|| agreeable(request))
    });
    let finished = events.iter().find_map(|event| match event {
        Event::Finished { result, stats, .. } => Some((result, stats)),
        _ => None,
    });
    assert!(matches!(finished, Some((QueryResult::Found(_), _))), "{finished:?}");
}

/// A search for at least so many ends when they are found, one for at least none with the first; neither asks on.
#[test]
fn a_search_ends_with_as_many_providers_as_were_wanted() {
    for (want, wanted) in [(0, 1), (1, 1), (3, 3)] {
        let mut bench = Bench::new(Config::default());
        bench.befriend(1..=20);
        let service = key("a.b");
        let (mut asked, mut next) = (0, 50);
        bench.dht.start_lookup(bench.now, service, Want::AtLeast(want)).unwrap();
        let events = bench.run(Duration::from_secs(5), |_, _| {
            (asked, next) = (asked + 1, next + 1);
            Some(providers(vec![record(next, service, 1)], false))
        });
        let Some(Event::Finished {
            result: QueryResult::Found(found),
            ..
        }) = events.last()
        else {
            panic!("{events:?}")
        };
        assert_eq!(found.len(), wanted);
        assert!(asked <= wanted + macula_dht::ALPHA, "{asked}");
    }
}
