//! One peer among others: it gets its share of a node, and no more when others want theirs.

#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

mod common;

use std::time::{Duration, Instant};

use common::{
    EPOCH_MS, advertisement,
    bench::{Bench, agreeable, peer, record},
    contact_of,
    disk::Disk,
    key, secret,
};
use macula_dht::{
    ALPHA, Config, Contact, Dht, Event, MAX_PEER_LOOKUPS, MAX_PEER_REQUESTS, MAX_QUERIES, Outcome, Output,
    PEER_LOOKUP_COST, Peer, PeerLookupError, QueryResult, Refusal, Request, RequestFailed, Response, Role, Want,
};
use macula_wire::{
    Address, Advertisement, NodeId, Realm, SecretKey, ServiceKey, SignedProvider, Signer, VerifiedProvider,
};

/// The bytes of a store that is soon full.
const BYTES: usize = 64 * 1024;

/// Delivers a record as the node `by` at `ip`.
fn deliver(bench: &mut Bench, by: usize, ip: [u8; 4], key: ServiceKey, record: SignedProvider) -> Outcome {
    let peer = Peer {
        contact: contact_of(by).observed_at(ip.into()),
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

fn shows(bench: &Bench, key: ServiceKey, n: usize) -> bool {
    let node: NodeId = *contact_of(n).node_id();
    bench.dht.local_providers(bench.now, &key).any(|p| *p.node_id() == node)
}

/// One peer of a private network delivers made-up records until a key is full. Its neighbours still publish there.
#[test]
fn x4_a_peer_that_fills_a_key_gives_way_to_the_providers_themselves() {
    let mut config = Config::default();
    config.store.providers_per_key = 32;
    let mut bench = Bench::new(config);
    let service = key("api.compute");
    let (flooder, same_network) = ([10, 0, 0, 1], |n: usize| [10, 0, 0, 100 + n as u8]);
    for n in 1..4 {
        assert_eq!(
            deliver(&mut bench, n, same_network(n), service, record(n, service, 1)),
            Outcome::Stored
        );
    }
    for n in 100..129 {
        assert_eq!(
            deliver(&mut bench, 99, flooder, service, record(n, service, 1)),
            Outcome::Stored
        );
    }
    assert_eq!(bench.dht.local_providers(bench.now, &service).count(), 32);
    for n in 4..20 {
        assert_eq!(
            deliver(&mut bench, n, same_network(n), service, record(n, service, 1)),
            Outcome::Stored,
            "{n}"
        );
    }
    assert!(
        (1..20).all(|n| shows(&bench, service, n)),
        "an honest provider gave way"
    );
    for n in 200..230 {
        let refused = deliver(&mut bench, 99, flooder, service, record(n, service, 1));
        assert_eq!(refused, Outcome::Refused(Refusal::KeyFull), "the flooder has its share");
    }
    assert!((1..20).all(|n| shows(&bench, service, n)));
}

/// A flooder that is the first to pass on a provider's record does not take it along when it gives way.
#[test]
fn x4_a_record_counts_for_its_provider_once_the_provider_delivers_it() {
    let mut config = Config::default();
    config.store.providers_per_key = 8;
    let mut bench = Bench::new(config);
    let service = key("api.compute");
    let flooder = [203, 0, 113, 9];
    assert_eq!(
        deliver(&mut bench, 99, flooder, service, record(1, service, 1)),
        Outcome::Stored
    );
    assert_eq!(
        deliver(&mut bench, 1, [198, 51, 100, 1], service, record(1, service, 1)),
        Outcome::Stored
    );
    // Passing it on again takes nothing back.
    assert_eq!(
        deliver(&mut bench, 99, flooder, service, record(1, service, 1)),
        Outcome::Stored
    );
    assert_eq!(
        deliver(&mut bench, 99, flooder, service, record(1, service, 2)),
        Outcome::Stored
    );
    for n in 100..107 {
        assert_eq!(
            deliver(&mut bench, 99, flooder, service, record(n, service, 1)),
            Outcome::Stored
        );
    }
    for n in 2..5 {
        let ip = [198, 51, n as u8, 1];
        assert_eq!(
            deliver(&mut bench, n, ip, service, record(n, service, 1)),
            Outcome::Stored
        );
        assert!(shows(&bench, service, 1), "the provider's own record gave way");
    }
}

/// Four connections of one network fill the store with records under keys of their own. Other peers still publish.
#[test]
fn x7_a_full_store_takes_from_the_peers_that_delivered_most() {
    let mut config = Config::default();
    config.store.bytes = BYTES;
    let mut bench = Bench::new(config);
    let mut full = false;
    for n in 0..400 {
        let (by, service) = (100 + n % 4, key(&format!("junk{n}")));
        let outcome = deliver(&mut bench, by, [203, 0, 113, 1], service, record(1000 + n, service, 1));
        full |= outcome == Outcome::Refused(Refusal::StoreFull);
    }
    assert!(full, "the store has room for all of it");
    let honest = |n: usize| (n, [198, 51, n as u8, 1], key(&format!("honest{n}")));
    for (n, ip, service) in (1..40).map(honest) {
        assert_eq!(
            deliver(&mut bench, n, ip, service, record(n, service, 1)),
            Outcome::Stored,
            "{n}"
        );
    }
    for n in 400..500 {
        let service = key(&format!("junk{n}"));
        deliver(&mut bench, 100, [203, 0, 113, 1], service, record(1000 + n, service, 1));
    }
    assert!((1..40).map(honest).all(|(n, _, service)| shows(&bench, service, n)));
    assert!(bench.dht.store().usage().bytes <= BYTES);
}

/// The same with keys: the flooder takes them all, and a newcomer gets one nevertheless.
#[test]
fn x7_a_store_without_a_free_key_takes_from_the_peers_that_delivered_most() {
    let mut config = Config::default();
    config.store.keys = 20;
    let mut bench = Bench::new(config);
    for n in 0..30 {
        let service = key(&format!("junk{n}"));
        deliver(&mut bench, 99, [10, 0, 0, 1], service, record(1000 + n, service, 1));
    }
    assert_eq!(bench.dht.store().usage().keys, 20);
    for n in 1..10 {
        let service = key(&format!("honest{n}"));
        assert_eq!(
            deliver(&mut bench, n, [10, 0, 0, 2], service, record(n, service, 1)),
            Outcome::Stored,
            "{n}"
        );
    }
    assert_eq!(bench.dht.store().usage().keys, 20);
    assert!((1..10).all(|n| shows(&bench, key(&format!("honest{n}")), n)));
}

/// A node too busy to send its requests keeps its contacts, and says of a lookup that it knows nothing.
#[test]
fn x10_a_request_that_was_not_sent_is_no_failure_of_the_peer() {
    let mut bench = Bench::new(Config::default());
    bench.befriend(1..20);
    for n in 0..200 {
        let query = bench
            .dht
            .start_lookup(bench.now, key(&format!("made.up{n}")), Want::First)
            .unwrap();
        let mut result = None;
        while result.is_none() {
            for output in bench.outputs() {
                match output {
                    Output::Send { id, .. } => {
                        bench.dht.handle_response(bench.now, id, Err(RequestFailed::NotSent));
                    }
                    Output::Event(Event::Finished {
                        query: of,
                        result: ended,
                        ..
                    }) if of == query => result = Some(ended),
                    Output::Event(_) | Output::Identify { .. } => {}
                }
            }
        }
        assert_eq!(result, Some(QueryResult::Busy));
    }
    assert_eq!(bench.dht.table().len(), 19);
    assert_eq!(
        (bench.dht.counters().failed, bench.dht.counters().not_sent),
        (0, 200 * 19)
    );
}

/// Nine thousand lookups in six seconds for calls that a peer wants routed: it gets those that it may ask for.
#[test]
fn x10_lookups_for_a_peer_have_a_budget() {
    let mut bench = Bench::new(Config::default());
    bench.befriend(1..20);
    let mut started = 0;
    for n in 0..9000 {
        let service = key(&format!("made.up{n}"));
        let lookup = bench.dht.start_lookup_for(bench.now, &peer(50), service, Want::First);
        started += usize::from(lookup.is_ok());
        assert!(matches!(lookup, Ok(_) | Err(PeerLookupError::TooFast)));
        bench.run(Duration::from_micros(667), |_, request| Some(agreeable(request)));
    }
    let most = (2000 + 6 * 500) / usize::from(PEER_LOOKUP_COST);
    assert!((most - 10..=most + 10).contains(&started), "{started}");
    assert_eq!(bench.dht.table().len(), 19);
}

/// One network asks under many ids. Another peer takes a lookup from it, and this node's own lookups have their reserve.
#[test]
fn x10_lookups_for_peers_leave_a_reserve_and_are_shared() {
    let mut bench = Bench::new(Config::default());
    bench.befriend([1]);
    let at = |n: usize, ip: [u8; 4]| Peer {
        contact: contact_of(n).observed_at(ip.into()),
        role: Role::Node,
    };
    let mut first = None;
    for n in 0..2 * MAX_PEER_LOOKUPS {
        let service = key(&format!("made.up{n}"));
        let lookup = bench
            .dht
            .start_lookup_for(bench.now, &at(100 + n, [203, 0, 113, 1]), service, Want::All);
        first = first.or(lookup.ok());
        let refused = n >= MAX_PEER_LOOKUPS;
        assert_eq!(lookup.err(), refused.then_some(PeerLookupError::ShareTaken));
    }
    bench.outputs();
    let honest = at(50, [198, 51, 100, 1]);
    assert!(
        bench
            .dht
            .start_lookup_for(bench.now, &honest, key("a.b"), Want::All)
            .is_ok()
    );
    let gave_way = bench.outputs().into_iter().find_map(|output| match output {
        Output::Event(Event::Finished { query, result, .. }) => Some((query, result)),
        _ => None,
    });
    assert_eq!(
        gave_way.map(|(query, result)| (Some(query), result)),
        Some((first, QueryResult::Busy))
    );
    for n in 0..MAX_QUERIES - MAX_PEER_LOOKUPS {
        let own = bench
            .dht
            .start_lookup(bench.now, key(&format!("own.service{n}")), Want::All);
        assert!(own.is_ok(), "{n}");
    }
}

/// Lookups of the first node of a mesh end at once, and take no place afterwards.
#[test]
fn x10_a_lookup_that_ends_at_once_gives_its_place_back() {
    let mut bench = Bench::new(Config::default());
    for n in 0..2 * MAX_PEER_LOOKUPS {
        let lookup = bench
            .dht
            .start_lookup_for(bench.now, &peer(n + 1), key("made.up"), Want::All);
        assert!(lookup.is_ok(), "{n}: {lookup:?}");
        assert!(matches!(bench.outputs()[..], [Output::Event(Event::Finished { .. })]));
    }
}

/// Peers' lookups meet silent contacts. This node's own requests are sent nevertheless, and other networks' too.
#[test]
fn x10_requests_for_peers_leave_a_reserve() {
    let mut bench = Bench::new(Config::default());
    bench.befriend(1..20);
    let mut sent = 0;
    for n in 0..MAX_PEER_LOOKUPS {
        let by = Peer {
            contact: contact_of(100 + n).observed_at([203, 0, 113, 1].into()),
            role: Role::Node,
        };
        let _ = bench
            .dht
            .start_lookup_for(bench.now, &by, key(&format!("made.up{n}")), Want::All);
        sent += bench.sends().len();
    }
    assert_eq!(sent, MAX_PEER_REQUESTS / 2, "one network has its part");
    let other = Peer {
        contact: contact_of(50).observed_at([198, 51, 100, 1].into()),
        role: Role::Node,
    };
    let lookup = bench.dht.start_lookup_for(bench.now, &other, key("a.b"), Want::All);
    assert!(lookup.is_ok() && bench.sends().len() == ALPHA);
    bench
        .dht
        .start_lookup(bench.now, key("own.service"), Want::All)
        .unwrap();
    assert_eq!(bench.sends().len(), ALPHA);
}

/// A node that was too busy to ask all it should have does not say that there is no provider.
#[test]
fn x10_a_lookup_that_was_sent_in_part_is_no_word_that_there_is_nothing() {
    let mut bench = Bench::new(Config::default());
    bench.befriend(1..20);
    let query = bench.dht.start_lookup(bench.now, key("a.b"), Want::All).unwrap();
    let (mut answered, mut result) = (false, None);
    while result.is_none() {
        for output in bench.outputs() {
            match output {
                Output::Send { id, request, .. } if !answered => {
                    answered = true;
                    bench.answer(id, agreeable(&request));
                }
                Output::Send { id, .. } => bench.dht.handle_response(bench.now, id, Err(RequestFailed::NotSent)),
                Output::Event(Event::Finished {
                    query: of, result: end, ..
                }) if of == query => result = Some(end),
                Output::Event(_) | Output::Identify { .. } => {}
            }
        }
    }
    assert!(answered);
    assert_eq!(result, Some(QueryResult::Busy));
}

/// A record that grows finds room as a new one does: at the cost of the peer that delivered most.
#[test]
fn x7_a_record_that_grows_takes_from_the_peers_that_delivered_most() {
    let mut config = Config::default();
    config.store.bytes = BYTES;
    let mut bench = Bench::new(config);
    let service = key("honest");
    assert_eq!(
        deliver(&mut bench, 1, [198, 51, 100, 1], service, record(1, service, 1)),
        Outcome::Stored
    );
    for n in 0..400 {
        let junk = key(&format!("junk{n}"));
        deliver(&mut bench, 100, [203, 0, 113, 1], junk, record(1000 + n, junk, 1));
    }
    let grown = advertisement(1).with_metadata("text", vec![7; 500]);
    let grown = VerifiedProvider::sign(&secret(1), &Realm::default().hash(), &service, 2, EPOCH_MS, &grown).unwrap();
    assert_eq!(
        deliver(&mut bench, 1, [198, 51, 100, 1], service, grown.to_signed()),
        Outcome::Stored
    );
    assert_eq!(bench.dht.store().held(&service, &secret(1).node_id()), Some(&grown));
    assert!(bench.dht.store().usage().bytes <= BYTES);
}

/// A flooder filled the store before the restart. Its records still count for it, and not for the providers that it made up.
#[test]
fn x7_a_restart_does_not_hide_the_peer_that_delivered_most() {
    let (disk, now) = (Disk::default(), Instant::now());
    let mut config = Config::default();
    config.store.bytes = BYTES;
    let node = |disk: &Disk| {
        Dht::<SecretKey, _>::new(
            config.clone(),
            secret(0),
            Realm::default(),
            disk.clone(),
            now,
            EPOCH_MS,
            7,
        )
    };
    let publish = |dht: &mut Dht<SecretKey, Disk>, by: usize, ip: [u8; 4], n: usize| {
        let service = key(&format!("service{n}"));
        let contact = contact_of(by).observed_at(ip.into());
        let peer = Peer {
            contact,
            role: Role::Node,
        };
        let records = vec![record(n, service, 1)];
        match dht.handle_request(now, &peer, Ok(Request::Publish { key: service, records })) {
            Response::Published { outcomes, .. } => outcomes[0],
            other => panic!("{other:?}"),
        }
    };
    let mut before = node(&disk);
    for n in 1000..1400 {
        publish(&mut before, 99, [203, 0, 113, 1], n);
    }
    before.flush(now);
    let mut after = node(&disk);
    assert_eq!(after.store().usage().records, before.store().usage().records);
    for n in 1..40 {
        assert_eq!(publish(&mut after, n, [198, 51, n as u8, 1], n), Outcome::Stored, "{n}");
    }
}

/// A stranger that announces the address of another host does not make this node send anything there.
#[test]
fn x12_a_stranger_is_probed_only_where_it_was_seen() {
    let mut bench = Bench::new(Config::default());
    let mut probes = |endpoints: &[&str]| {
        let endpoints = endpoints.iter().map(|endpoint| endpoint.parse().unwrap());
        let contact = Contact::new(*contact_of(1).node_id(), endpoints).observed_at([203, 0, 113, 5].into());
        let stranger = Peer {
            contact,
            role: Role::Node,
        };
        let _ = bench.dht.handle_request(bench.now, &stranger, Ok(Request::Ping));
        let sends = bench.sends();
        sends
            .iter()
            .flat_map(|(_, to, _)| to.endpoints().iter().map(Address::port))
            .collect::<Vec<_>>()
    };
    assert_eq!(probes(&["198.51.100.7:53"]), []);
    assert_eq!(probes(&["198.51.100.7:53", "203.0.113.5:4433"]), [4433]);
}

/// A peer on a public address names a node on a private one: nothing is sent there.
#[test]
fn x12_private_addresses_named_by_a_public_peer_are_not_dialed() {
    let mut bench = Bench::new(Config::default());
    let namer = Contact::new(*contact_of(1).node_id(), ["203.0.113.5:4433".parse().unwrap()]);
    bench.dht.add_contact(bench.now, namer);
    let (id, ..) = bench.sends().remove(0);
    bench.answer(id, Response::Pong);
    bench.dht.start_lookup(bench.now, key("a.b"), Want::All).unwrap();
    let (id, ..) = bench.sends().remove(0);
    let at = |n: usize, address: &str| Contact::new(*contact_of(n).node_id(), [address.parse().unwrap()]);
    let closest = vec![
        at(2, "192.168.0.1:53"),
        at(3, "127.0.0.1:53"),
        at(4, "198.51.100.7:4433"),
    ];
    bench.answer(
        id,
        Response::Providers {
            records: Vec::new(),
            closest,
            more: false,
        },
    );
    let asked: Vec<_> = bench.sends().into_iter().map(|(_, to, _)| to).collect();
    assert_eq!(asked, [at(4, "198.51.100.7:4433")]);
}

/// A record that names 127.0.0.1 would make each caller send packets to a port of its own host.
#[test]
fn x12_records_with_loopback_addresses_of_other_hosts_are_neither_stored_nor_used() {
    let service = key("a.b");
    let record = |n: usize, address: &str| {
        let advertised = Advertisement::new(["203.0.113.7:4433".parse().unwrap(), address.parse().unwrap()]);
        let realm = Realm::default().hash();
        let record = VerifiedProvider::sign(&secret(n), &realm, &service, 1, EPOCH_MS, &advertised);
        record.unwrap().to_signed()
    };
    let (public, here) = ([203, 0, 113, 5], [127, 0, 0, 1]);
    let (loopback, private) = (record(2, "127.0.0.1:22"), record(3, "10.0.0.1:4433"));
    let mut bench = Bench::new(Config::default());
    let mut published = |by, record: &SignedProvider| deliver(&mut bench, 1, by, service, record.clone());
    assert_eq!(published(public, &loopback), Outcome::Refused(Refusal::Loopback));
    assert_eq!(published(here, &loopback), Outcome::Stored);
    assert_eq!(published(public, &private), Outcome::Stored);

    let mut bench = Bench::new(Config::default());
    let holder = Contact::new(*contact_of(1).node_id(), ["203.0.113.5:4433".parse().unwrap()]);
    bench.dht.add_contact(bench.now, holder);
    let (id, ..) = bench.sends().remove(0);
    bench.answer(id, Response::Pong);
    bench.dht.start_lookup(bench.now, service, Want::All).unwrap();
    let (id, ..) = bench.sends().remove(0);
    bench.answer(
        id,
        Response::Providers {
            records: vec![loopback, private],
            closest: Vec::new(),
            more: false,
        },
    );
    let found = bench.outputs().into_iter().filter_map(|output| match output {
        Output::Event(Event::Providers { batch, .. }) => Some(batch),
        _ => None,
    });
    let found: Vec<_> = found.flatten().map(|record| *record.node_id()).collect();
    assert_eq!(found, [*contact_of(3).node_id()]);
}
