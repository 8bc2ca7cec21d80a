//! The limits of what peers can do to a node: one core, and a peer that sends anything.

#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

mod common;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use common::{
    EPOCH_MS, advertisement,
    bench::{Bench, peer, record},
    contact_of, key, secret,
};
use macula_dht::{
    Config, Contact, Counters, Declined, Dht, Event, Memory, Outcome, Output, Peer, QueryResult, RateLimits, Refusal,
    Reply, Request, RequestFailed, Response, Role, Seed, Want,
};
use macula_wire::{Address, Realm, ServiceKey, VerifiedProvider};
use proptest::prelude::*;

#[test]
fn contacts_enter_only_after_they_answered_us() {
    let mut bench = Bench::new(Config::default());
    bench.ask(1, Request::Ping);
    assert!(bench.dht.table().is_empty(), "a request proves nothing");
    let sends = bench.sends();
    assert!(matches!(&sends[..], [(_, to, Request::Ping)] if *to == contact_of(1)));
    bench.answer(sends[0].0, Response::Pong);
    assert_eq!(bench.dht.table().len(), 1);

    let client = Peer {
        role: Role::Client,
        ..peer(2)
    };
    assert_eq!(
        bench.dht.handle_request(bench.now, &client, Ok(Request::Ping)),
        Response::Pong
    );
    assert!(bench.sends().is_empty(), "clients are not even asked");
}

#[test]
fn a_stranger_is_probed_once_and_few_at_a_time() {
    let mut bench = Bench::new(Config::default());
    for _ in 0..3 {
        for n in 1..100 {
            bench.ask(n, Request::Ping);
        }
    }
    assert_eq!(bench.sends().len(), 16);
}

/// Strangers of one subnet that answer no pings leave places for others.
#[test]
fn one_subnet_does_not_take_all_the_probes() {
    let mut bench = Bench::new(Config::default());
    let mut meet = |n: usize, ip: [u8; 4]| {
        let address = Address::try_from(SocketAddr::from((ip, 4433))).unwrap();
        let contact = Contact::new(*contact_of(n).node_id(), [address]).observed_at(ip.into());
        let peer = Peer {
            contact,
            role: Role::Node,
        };
        let _ = bench.dht.handle_request(bench.now, &peer, Ok(Request::Ping));
        bench.sends().len()
    };
    let probed: usize = (1..40).map(|n| meet(n, [203, 0, 113, 7])).sum();
    assert_eq!(probed, 2);
    assert_eq!(meet(50, [198, 51, 100, 1]), 1);
}

/// A setting of zero is no reason for timers that are due before they are set.
#[test]
fn times_of_zero_count_as_the_shortest() {
    let zero = Duration::ZERO;
    let config = Config {
        soft_timeout: zero,
        hard_timeout: zero,
        join_backoff: zero,
        max_join_backoff: zero,
        ..Config::default()
    };
    let mut bench = Bench::new(config);
    bench.dht.bootstrap(bench.now, [contact_of(1).into()]);
    for _ in 0..20 {
        bench.outputs();
        bench.now = bench.dht.poll_timeout().unwrap();
        bench.dht.handle_timeout(bench.now);
        assert!(bench.dht.poll_timeout() > Some(bench.now));
    }
}

#[test]
fn unasked_replies_change_nothing() {
    let mut bench = Bench::new(Config::default());
    bench.befriend(1..4);
    let query = bench.dht.start_lookup(bench.now, key("a.b"), Want::All).unwrap();
    let sends = bench.sends();
    let (id, ..) = sends[0];
    // An answer of another kind is a failure, not an answer.
    bench.answer(id, Response::Pong);
    // The right one comes too late.
    bench.answer(
        id,
        Response::Providers {
            records: vec![record(1, key("a.b"), 1)],
            closest: vec![],
            more: false,
        },
    );
    let Counters {
        misbehaved, unexpected, ..
    } = bench.dht.counters();
    assert_eq!((misbehaved, unexpected), (1, 1));
    for (id, ..) in &sends[1..] {
        bench.dht.handle_response(bench.now, *id, Err(RequestFailed::Lost));
    }
    let outputs = bench.outputs();
    assert!(
        matches!(&outputs[..], [Output::Event(Event::Finished { query: of, result: QueryResult::Unreachable, .. })] if *of == query)
    );
}

#[test]
fn forged_records_in_an_answer_fail_the_peer_and_not_the_lookup() {
    let mut bench = Bench::new(Config::default());
    bench.befriend(1..3);
    let service = key("a.b");
    bench.dht.start_lookup(bench.now, service, Want::All).unwrap();
    let sends = bench.sends();
    assert_eq!(sends.len(), 2);
    let of_another_key = record(5, key("c.d"), 1);
    let mut forged = record(6, service, 1);
    forged.signature = Bytes::from_static(&[1; 64]);
    for bad in [of_another_key, forged] {
        let honest = record(7, service, 1);
        let closest = vec![contact_of(90)];
        bench.answer(
            sends[0].0,
            Response::Providers {
                records: vec![bad, honest],
                closest,
                more: false,
            },
        );
    }
    bench.answer(
        sends[1].0,
        Response::Providers {
            records: vec![record(8, service, 1)],
            closest: vec![],
            more: false,
        },
    );
    let found = bench.outputs().into_iter().find_map(|output| match output {
        Output::Event(Event::Finished {
            result: QueryResult::Found(found),
            ..
        }) => Some(found),
        _ => None,
    });
    let found: Vec<_> = found.unwrap().iter().map(|p| *p.node_id()).collect();
    assert_eq!(
        found,
        [*contact_of(8).node_id()],
        "what else a liar says counts for nothing"
    );
}

/// A peer that always has another page is left alone after some.
#[test]
fn endless_pages_come_to_an_end() {
    let mut bench = Bench::new(Config::default());
    bench.befriend([1]);
    let service = key("a.b");
    bench.dht.start_lookup(bench.now, service, Want::All).unwrap();
    let mut pages = 0;
    while let Some((id, _, Request::FindProviders { .. })) = bench.sends().pop() {
        pages += 1;
        assert!(pages < 100);
        bench.answer(
            id,
            Response::Providers {
                records: vec![record(5, service, 1)],
                closest: vec![],
                more: true,
            },
        );
    }
    assert!(pages <= 32, "{pages}");
}

#[test]
fn d9_replays_older_numbers_and_forgeries_change_nothing() {
    let mut bench = Bench::new(Config::default());
    let service = key("a.b");
    assert_eq!(bench.publish(1, service, record(1, service, 5)), Outcome::Stored);
    assert_eq!(
        bench.publish(2, service, record(1, service, 5)),
        Outcome::Stored,
        "a replay is there already"
    );
    assert_eq!(
        bench.publish(2, service, record(1, service, 4)),
        Outcome::Refused(Refusal::Stale)
    );
    assert_eq!(
        bench.publish(2, key("c.d"), record(1, service, 9)),
        Outcome::Refused(Refusal::Invalid)
    );
    let mut forged = record(1, service, 9);
    forged.signature = record(1, service, 8).signature;
    assert_eq!(bench.publish(2, service, forged), Outcome::Refused(Refusal::Invalid));
    let other_realm = Realm::new("other").unwrap().hash();
    let foreign = VerifiedProvider::sign(&secret(1), &other_realm, &service, 9, EPOCH_MS, &advertisement(1)).unwrap();
    assert_eq!(
        bench.publish(2, service, foreign.to_signed()),
        Outcome::Refused(Refusal::Invalid)
    );
    let held: Vec<_> = bench
        .dht
        .local_providers(bench.now, &service)
        .map(VerifiedProvider::seq)
        .collect();
    assert_eq!(held, [5]);
}

/// Junk under our own key, in our own name, or in such numbers that everything is full, does not stop us from advertising.
#[test]
fn junk_does_not_block_our_own_advertisement() {
    let mut config = Config::default();
    config.store.providers_per_key = 4;
    config.store.keys = 1;
    let mut bench = Bench::new(config);
    let service = key("a.b");
    for n in 1..30 {
        let mut junk = record(n, service, u64::MAX);
        bench.publish(n, service, junk.clone());
        junk.body = record(0, service, u64::MAX).body;
        bench.publish(n, service, junk);
        bench.publish(n, service, record(0, service, u64::MAX - 1));
    }
    bench.dht.advertise(bench.now, service, advertisement(0)).unwrap();
    bench.dht.advertise(bench.now, key("c.d"), advertisement(0)).unwrap();
    let own = *bench.dht.node_id();
    for service in [service, key("c.d")] {
        assert!(
            bench
                .dht
                .local_providers(bench.now, &service)
                .any(|p| *p.node_id() == own)
        );
    }
    for n in 30..60 {
        bench.publish(n, service, record(n, service, 1));
    }
    assert!(
        bench
            .dht
            .local_providers(bench.now, &service)
            .any(|p| *p.node_id() == own),
        "a node evicts not itself"
    );
}

#[test]
fn a_node_far_from_a_key_refuses_it() {
    let mut bench = Bench::new(Config::default());
    let service = key("a.b");
    bench.befriend(1..400);
    // Keys for which fewer than 2k of the known nodes are closer are ours to hold, the others are not.
    let mut refused = 0;
    for n in 0..40 {
        let service = key(&format!("service{n}"));
        let closer = bench.dht.table().closer_than_self(&service.into(), 40);
        let outcome = bench.publish(1, service, record(1, service, 1));
        assert_eq!(outcome == Outcome::Refused(Refusal::NotResponsible), closer >= 40);
        refused += usize::from(closer >= 40);
    }
    assert!(refused > 0);
    let _ = service;
}

#[test]
fn a_peer_that_asks_too_fast_is_declined_and_others_are_served() {
    let rates = RateLimits {
        per_second: 10.0,
        burst: 20.0,
        ..RateLimits::default()
    };
    let mut bench = Bench::new(Config {
        rates,
        ..Config::default()
    });
    let declined = (0..50)
        .filter(|_| bench.ask(1, Request::Ping) == Response::Declined(Declined::RateLimited))
        .count();
    assert_eq!(declined, 30);
    assert_eq!(bench.ask(2, Request::Ping), Response::Pong);
    bench.now += Duration::from_secs(1);
    assert_eq!(bench.ask(1, Request::Ping), Response::Pong);
}

/// Amplification: the bytes that a peer gets out of a node in a second are bounded for all requests.
#[test]
fn bytes_to_one_peer_are_bounded() {
    let rates = RateLimits {
        per_second: 100.0,
        burst: 200.0,
        ..RateLimits::default()
    };
    let mut bench = Bench::new(Config {
        rates,
        ..Config::default()
    });
    bench.befriend(1..60);
    let service = key("a.b");
    for n in 100..200 {
        let realm = Realm::default().hash();
        let big = advertisement(n).with_metadata("m", vec![7; 800]);
        let record = VerifiedProvider::sign(&secret(n), &realm, &service, 1, EPOCH_MS, &big).unwrap();
        bench.publish(n, service, record.to_signed());
    }
    let mut bytes = 0;
    for _ in 0..1000 {
        let response = bench
            .ask(
                1,
                Request::FindProviders {
                    key: service,
                    after: None,
                },
            )
            .encode();
        assert!(response.len() <= 16 * 1024);
        bytes += response.len();
    }
    // Two hundred tokens, one a request and one a kibibyte, and one reply may overdraw.
    assert!(bytes <= (200 + 16) * 1024 + 1000 * 8, "{bytes}");
}

/// Junk signatures use up their own budget and nothing else.
#[test]
fn signature_checks_are_rate_limited_and_come_last() {
    let rates = RateLimits {
        // All peers are of one network, which gets half.
        signatures_per_second: 2.0,
        signature_burst: 6.0,
        ..RateLimits::default()
    };
    let mut bench = Bench::new(Config {
        rates,
        ..Config::default()
    });
    let service = key("a.b");
    for seq in 10..13 {
        let mut junk = record(1, service, seq);
        junk.signature = Bytes::from_static(&[9; 64]);
        assert_eq!(bench.publish(1, service, junk), Outcome::Refused(Refusal::Invalid));
    }
    assert_eq!(
        bench.publish(2, service, record(2, service, 1)),
        Outcome::Refused(Refusal::Busy)
    );
    // A record that is refused without a look at its signature still gets its answer.
    let expired = VerifiedProvider::sign(
        &secret(3),
        &Realm::default().hash(),
        &service,
        1,
        EPOCH_MS - 400_000,
        &advertisement(3),
    );
    let outcome = bench.publish(3, service, expired.unwrap().to_signed());
    assert!(
        matches!(outcome, Outcome::Refused(Refusal::Expired { .. })),
        "{outcome:?}"
    );
    assert_eq!(bench.ask(1, Request::Ping), Response::Pong);
    bench.now += Duration::from_secs(1);
    assert_eq!(bench.publish(2, service, record(2, service, 1)), Outcome::Stored);
    assert_eq!(
        bench.publish(2, service, record(2, service, 1)),
        Outcome::Stored,
        "known: no signature is checked"
    );
}

/// All peers share the budget for signatures, and no peer uses it up.
#[test]
fn one_peers_junk_signatures_do_not_keep_others_from_publishing() {
    let mut bench = Bench::new(Config::default());
    let service = key("a.b");
    let mut junk = record(1, service, 10);
    junk.signature = Bytes::from_static(&[9; 64]);
    for n in 0..100 {
        for _ in 0..100 {
            let records = vec![junk.clone(); 12];
            bench.ask(1, Request::Publish { key: service, records });
        }
        assert_eq!(
            bench.publish(2, service, record(n + 2, service, 1)),
            Outcome::Stored,
            "{n}"
        );
        bench.now += Duration::from_millis(50);
    }
    assert_eq!(bench.ask(1, Request::Ping), Response::Declined(Declined::RateLimited));
}

/// D10: the publisher learns of a refusal and its reason.
#[test]
fn d10_the_publisher_sees_each_refusal() {
    let mut bench = Bench::new(Config::default());
    bench.befriend(1..4);
    let service = key("a.b");
    bench.dht.advertise(bench.now, service, advertisement(0)).unwrap();
    for (id, ..) in bench.sends() {
        bench.answer(id, Response::Nodes(vec![]));
    }
    let sends = bench.sends();
    assert_eq!(sends.len(), 3);
    bench.answer(
        sends[0].0,
        Response::Published {
            outcomes: vec![Outcome::Stored],
            newer: Vec::new(),
        },
    );
    bench.answer(
        sends[1].0,
        Response::Published {
            outcomes: vec![Outcome::Refused(Refusal::KeyFull)],
            newer: Vec::new(),
        },
    );
    bench
        .dht
        .handle_response(bench.now, sends[2].0, Err(RequestFailed::Unreachable));
    let events = bench.outputs();
    let [
        Output::Event(Event::Advertised {
            acknowledged: 1,
            refused,
            unreachable: 1,
            ..
        }),
    ] = &events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!(refused[..], [(*sends[1].1.node_id(), Refusal::KeyFull)]);
}

/// A clock that was set back makes new records look old; the publisher finds a number that counts.
#[test]
fn a_publisher_whose_clock_was_set_back_catches_up() {
    let mut holder = Bench::new(Config::default());
    let mut dht = Dht::new(
        Config::default(),
        secret(1),
        Realm::default(),
        Memory,
        holder.now,
        EPOCH_MS,
        1,
    );
    let service = key("a.b");
    // Its last process published with a clock half an hour ahead.
    assert_eq!(
        holder.publish(1, service, record(1, service, EPOCH_MS + 1_800_000)),
        Outcome::Stored
    );
    dht.bootstrap(holder.now, [Seed::from(contact_of(0))]);
    dht.advertise(holder.now, service, advertisement(1)).unwrap();
    let mut rounds = 0;
    let acknowledged = loop {
        while let Some(output) = dht.poll_output() {
            if let Output::Send { id, request, .. } = output {
                let response = holder.ask(1, request);
                let reply = Reply {
                    response: Ok(response),
                    role: Role::Node,
                    ip: None,
                };
                dht.handle_response(holder.now, id, Ok(reply));
            } else if let Output::Event(Event::Advertised {
                acknowledged, refused, ..
            }) = output
            {
                if acknowledged == 1 {
                    break;
                }
                assert!(refused.iter().all(|(_, refusal)| *refusal == Refusal::Stale));
                rounds += 1;
            }
        }
        let seq = holder
            .dht
            .local_providers(holder.now, &service)
            .next()
            .map(VerifiedProvider::seq);
        if seq > Some(EPOCH_MS + 1_800_000) || rounds > 20 {
            break seq;
        }
        holder.now = dht.poll_timeout().unwrap();
        holder.dht.handle_timeout(holder.now);
        dht.handle_timeout(holder.now);
    };
    assert!(acknowledged > Some(EPOCH_MS + 1_800_000));
    assert_eq!(rounds, 1, "the holder's proof names the number");
}

#[derive(Debug, Clone)]
enum Input {
    Request(usize, Vec<u8>),
    Known(usize, u8),
    Reply(u64, u8),
    Raw(u64, Vec<u8>),
    Fail(u64),
    Lookup(u8),
    Advertise(u8),
    Withdraw(u8),
    Contact(usize),
    Wait(u64),
}

fn input() -> impl Strategy<Value = Input> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..80);
    prop_oneof![
        (1..40_usize, bytes()).prop_map(|(n, bytes)| Input::Request(n, bytes)),
        (1..40_usize, any::<u8>()).prop_map(|(n, kind)| Input::Known(n, kind)),
        (0..200_u64, any::<u8>()).prop_map(|(id, kind)| Input::Reply(id, kind)),
        (0..200_u64, bytes()).prop_map(|(id, bytes)| Input::Raw(id, bytes)),
        (0..200_u64).prop_map(Input::Fail),
        any::<u8>().prop_map(Input::Lookup),
        any::<u8>().prop_map(Input::Advertise),
        any::<u8>().prop_map(Input::Withdraw),
        (1..40_usize).prop_map(Input::Contact),
        // Now and then a day.
        prop_oneof![0..3_000_u64, Just(86_400_000)].prop_map(Input::Wait),
    ]
}

fn service(n: u8) -> ServiceKey {
    key(&format!("service{}", n % 4))
}

/// Plays inputs to a core, and returns a hash of everything that came out.
fn play(inputs: &[Input]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let start = Instant::now();
    let mut hasher = DefaultHasher::new();
    let mut dht = Dht::new(
        Config::default(),
        secret(0),
        Realm::default(),
        Memory,
        start,
        EPOCH_MS,
        3,
    );
    let mut now = start;
    let mut ids = Vec::new();
    let mut finished = std::collections::BTreeSet::new();
    for input in inputs {
        let id = |n: &u64| ids.get((*n as usize) % ids.len().max(1)).copied();
        match input {
            Input::Request(n, bytes) => {
                let request = Request::decode(Bytes::copy_from_slice(bytes));
                dht.handle_request(now, &peer(*n), request).encode().hash(&mut hasher);
            }
            Input::Known(n, kind) => {
                let key = service(*kind);
                let request = match kind % 4 {
                    0 => Request::Ping,
                    1 => Request::FindNode { target: key.into() },
                    2 => Request::FindProviders {
                        key,
                        after: Some(*contact_of(*n).node_id()),
                    },
                    _ => Request::Publish {
                        key,
                        records: vec![record(*n, key, (*kind).into())],
                    },
                };
                let response = dht.handle_request(now, &peer(*n), Ok(request)).encode();
                assert!(response.len() <= 16 * 1024);
                response.hash(&mut hasher);
            }
            Input::Reply(n, kind) => {
                let contacts: Vec<_> = (0..usize::from(*kind % 30)).map(|n| contact_of(n + 40)).collect();
                let response = match kind % 4 {
                    0 => Response::Pong,
                    1 => Response::Nodes(contacts),
                    2 => Response::Providers {
                        records: vec![record(3, service(*kind), 1)],
                        closest: contacts,
                        more: *kind > 128,
                    },
                    _ => Response::Published {
                        outcomes: vec![Outcome::Stored],
                        newer: Vec::new(),
                    },
                };
                let reply = Reply {
                    response: Ok(response),
                    role: Role::Node,
                    ip: None,
                };
                if let Some(id) = id(n) {
                    dht.handle_response(now, id, Ok(reply));
                }
            }
            Input::Raw(n, bytes) => {
                let response = Response::decode(Bytes::copy_from_slice(bytes));
                if let Some(id) = id(n) {
                    dht.handle_response(
                        now,
                        id,
                        Ok(Reply {
                            response,
                            role: Role::Client,
                            ip: None,
                        }),
                    );
                }
            }
            Input::Fail(n) => {
                if let Some(id) = id(n) {
                    dht.handle_response(now, id, Err(RequestFailed::TimedOut));
                }
            }
            Input::Lookup(n) => {
                let _ = dht.start_lookup(now, service(*n), if n % 2 == 0 { Want::All } else { Want::First });
            }
            Input::Advertise(n) => dht.advertise(now, service(*n), advertisement(0)).unwrap(),
            Input::Withdraw(n) => dht.withdraw(now, service(*n)),
            Input::Contact(n) => dht.add_contact(now, contact_of(*n)),
            Input::Wait(ms) => {
                now += Duration::from_millis(*ms);
                dht.handle_timeout(now);
                assert!(dht.poll_timeout().is_none_or(|at| at > now));
            }
        }
        while let Some(output) = dht.poll_output() {
            match output {
                Output::Send { id, to, request } => {
                    ids.push(id);
                    (id, to.node_id(), request.encode()).hash(&mut hasher);
                }
                Output::Identify { .. } => panic!("no seed was given"),
                Output::Event(Event::Finished { query, .. }) => {
                    assert!(finished.insert(query), "two final events");
                    query.hash(&mut hasher);
                }
                Output::Event(event) => format!("{event:?}").hash(&mut hasher),
            }
        }
    }
    hasher.finish()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No input panics, a lookup ends once, clock jumps of a day are harmless, and the same inputs give the same outputs.
    #[test]
    fn any_inputs_are_survived_and_give_the_same_outputs(inputs in prop::collection::vec(input(), 0..150)) {
        prop_assert_eq!(play(&inputs), play(&inputs));
    }
}
