//! Becoming and staying part of a mesh, where some of the seeds are not there.

#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

mod common;

use std::{collections::BTreeSet, time::Duration};

use common::{
    Net,
    bench::{Bench, agreeable},
    contact_of, key,
};
use macula_dht::{Config, Event, Output, Point, Request, Seed, Want};

fn seed(n: usize) -> Seed {
    Seed::At(contact_of(n).endpoints()[0].clone())
}

/// One address of several leads nowhere, and says so after the others have led into the mesh.
#[test]
fn a_seed_that_is_gone_does_not_make_a_joined_node_join_again_and_again() {
    let mut bench = Bench::new(Config::default());
    bench.dht.bootstrap(bench.now, [seed(1), seed(2)]);
    let (mut joined, mut failed, mut asked) = (0, 0, 0);
    let mut late = Vec::new();
    for _ in 0..600 {
        for id in std::mem::take(&mut late) {
            bench.dht.handle_identified(bench.now, id, []);
        }
        for output in bench.outputs() {
            match output {
                Output::Identify { id, address } => {
                    asked += 1;
                    if contact_of(1).endpoints().contains(&address) {
                        bench.dht.handle_identified(bench.now, id, [contact_of(1)]);
                    } else {
                        late.push(id);
                    }
                }
                Output::Send { id, request, .. } => bench.answer(id, agreeable(&request)),
                Output::Event(Event::Joined { .. }) => joined += 1,
                Output::Event(Event::JoinFailed { .. }) => failed += 1,
                Output::Event(_) => {}
            }
        }
        bench.now += Duration::from_millis(500);
        bench.dht.handle_timeout(bench.now);
    }
    assert_eq!((joined, failed), (1, 0));
    assert!(asked <= 2 + 5, "{asked}");
}

/// Both halves started while the other was out of reach, so no node remembers one of the other half. The list of seeds leads them together.
#[test]
fn meshes_that_never_met_find_each_other_through_their_seeds() {
    let mut net = Net::new(21);
    for n in 0..20 {
        if n % 2 == 1 {
            net.cut.insert(n);
        }
        net.add(Config::default());
    }
    for n in 0..20 {
        net.with(n, |dht, now| dht.bootstrap(now, [seed(0), seed(1)]));
        net.run(Duration::from_millis(300));
    }
    net.run(Duration::from_secs(120));
    net.advertise(3, key("api.compute"));
    net.run(Duration::from_secs(5));
    assert_eq!(net.found(2, key("api.compute"), Want::All), [0; 0], "apart");
    net.cut.clear();
    net.run(Duration::from_secs(300));
    for node in 0..20 {
        assert_eq!(net.found(node, key("api.compute"), Want::All), [3], "from {node}");
    }
}

/// A host name may stand for several nodes: each of them is asked, and one that answers is enough.
#[test]
fn every_node_at_the_address_of_a_seed_is_asked() {
    let mut bench = Bench::new(Config::default());
    bench.dht.bootstrap(bench.now, [seed(1)]);
    let outputs = bench.outputs();
    let [Output::Identify { id, .. }] = outputs[..] else {
        panic!("{outputs:?}")
    };
    bench.dht.handle_identified(bench.now, id, (1..=3).map(contact_of));
    let mut asked = BTreeSet::new();
    let events = bench.run(Duration::from_secs(5), |to, request| {
        asked.insert(*to.node_id());
        (*to == contact_of(3)).then(|| agreeable(request))
    });
    assert_eq!(asked, (1..=3).map(|n| *contact_of(n).node_id()).collect());
    assert!(matches!(events[..], [Event::Joined { contacts: 1 }]), "{events:?}");
}

/// Every bucket that no lookup went through is looked through after a quarter of an hour, and none before.
#[test]
fn buckets_without_a_lookup_are_refreshed() {
    let mut bench = Bench::new(Config::default());
    bench.befriend(1..=60);
    let buckets: BTreeSet<_> = bench.dht.table().bucket_sizes().map(|(bucket, _)| bucket).collect();
    let own = Point::from(bench.dht.node_id());
    let mut refreshed = BTreeSet::new();
    for (minutes, expected) in [(14, BTreeSet::new()), (10, buckets)] {
        bench.run(Duration::from_secs(60 * minutes), |_, request| {
            if let Request::FindNode { target } = request {
                refreshed.insert(own.distance(target).shared_bits());
            }
            Some(agreeable(request))
        });
        assert_eq!(refreshed, expected);
    }
}
