//! One peer among others: it gets its share of a node, and no more when others want theirs.

#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

mod common;

use common::{
    bench::{Bench, record},
    contact_of, key,
};
use macula_dht::{Config, Outcome, Peer, Refusal, Request, Response, Role};
use macula_wire::{NodeId, ServiceKey, SignedProvider};

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
        Response::Published(outcomes) => outcomes[0],
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
