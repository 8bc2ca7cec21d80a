//! Whole networks of cores in memory.

mod common;

use std::{collections::BTreeSet, time::Duration};

use common::{EPOCH_MS, Net, contact_of, key};
use macula_dht::{Config, Event, Point, QueryResult, Role, Seed, Want};

fn sorted(mut nodes: Vec<usize>) -> Vec<usize> {
    nodes.sort_unstable();
    nodes
}

/// D1, D6: providers that published from anywhere are found from anywhere, in one order.
#[test]
fn d6_any_node_finds_every_provider() {
    let mut net = Net::joined(1, 200);
    let key = key("api.compute");
    for provider in [3, 77, 150] {
        net.advertise(provider, key);
    }
    net.run(Duration::from_secs(5));
    for provider in [3, 77, 150] {
        let acknowledged = net.nodes[provider].events.iter().find_map(|event| match event {
            Event::Advertised {
                acknowledged,
                refused,
                unreachable,
                ..
            } => {
                assert!(refused.is_empty() && *unreachable == 0, "{refused:?}");
                Some(*acknowledged)
            }
            _ => None,
        });
        assert!(acknowledged.unwrap() >= 19);
    }
    let expected = net.found(0, key, Want::All);
    assert_eq!(sorted(expected.clone()), [3, 77, 150]);
    for node in (0..200).step_by(7) {
        assert_eq!(
            net.found(node, key, Want::All),
            expected,
            "the order is the same everywhere"
        );
    }
}

/// In a static network without loss a lookup finds exactly the k closest.
#[test]
fn lookups_are_exact_in_a_static_network() {
    let mut net = Net::joined(2, 300);
    for _ in 0..20 {
        let target = Point::from_bytes(&std::array::from_fn(|_| net.rng.next() as u8));
        let node = net.rng.below(300);
        let query = net.with(node, |dht, now| dht.start_find_node(now, target).unwrap());
        let (QueryResult::Nodes(closest), stats) = net.finish(node, query) else {
            panic!("nodes")
        };
        let mut expected: Vec<_> = net.nodes.iter().map(|n| *n.contact.node_id()).collect();
        expected.retain(|id| id != net.nodes[node].contact.node_id());
        expected.sort_by_key(|id| Point::from(id).distance(&target));
        let closest: Vec<_> = closest.iter().map(|c| *c.node_id()).collect();
        assert_eq!(closest, expected[..20]);
        assert!(stats.hops <= 6, "{stats:?}");
    }
}

/// D3: a withdrawn provider is gone from everywhere at once, and the others stay.
#[test]
fn d3_a_withdrawal_removes_one_provider_everywhere() {
    let mut net = Net::joined(3, 120);
    let key = key("api.compute");
    net.advertise(5, key);
    net.advertise(6, key);
    net.run(Duration::from_secs(5));
    net.with(5, |dht, now| dht.withdraw(now, key));
    net.run(Duration::from_secs(5));
    let withdrawn = net.nodes[5].events.iter().find_map(|event| match event {
        Event::Withdrawn {
            acknowledged,
            unacknowledged,
            ..
        } => Some((*acknowledged, *unacknowledged)),
        _ => None,
    });
    assert!(matches!(withdrawn, Some((19.., 0))), "{withdrawn:?}");
    for node in 0..120 {
        assert_eq!(net.found(node, key, Want::All), [6]);
    }
}

/// A node that came after a publication, and was handed the record, hears of its withdrawal too.
#[test]
fn d3_a_newcomer_that_was_handed_a_record_hears_of_its_withdrawal() {
    let mut net = Net::joined(11, 3);
    let key = key("api.compute");
    net.advertise(1, key);
    net.run(Duration::from_secs(1));
    let newcomer = net.add(Config::default());
    net.bootstrap(newcomer, 0);
    net.run(Duration::from_secs(5));
    let shown = |net: &mut Net| net.with(newcomer, |dht, now| dht.local_providers(now, &key).count());
    assert_eq!(shown(&mut net), 1);
    net.with(1, |dht, now| dht.withdraw(now, key));
    net.run(Duration::from_secs(3));
    assert_eq!(shown(&mut net), 0);
}

/// D4, D5: a provider that dies is forgotten when its record expires; those that live are published again.
#[test]
fn d5_the_living_are_kept_and_the_dead_forgotten() {
    let mut net = Net::joined(4, 60);
    let key = key("api.compute");
    for provider in [1, 2] {
        let advertisement = common::advertisement(provider).with_ttl(Duration::from_secs(90));
        net.with(provider, |dht, now| dht.advertise(now, key, advertisement).unwrap());
    }
    net.run(Duration::from_secs(5));
    net.kill(1);
    net.run(Duration::from_secs(20));
    assert_eq!(sorted(net.found(9, key, Want::All)), [1, 2]);
    net.run(Duration::from_secs(75));
    assert_eq!(net.found(9, key, Want::All), [2]);
    // Every max(10, ttl - 60) s: 30 s here.
    let published = net.count_events(2, |event| matches!(event, Event::Advertised { .. }));
    assert!((3..=4).contains(&published), "{published}");
}

/// Half of a network dies at once: published services are still found.
#[test]
fn providers_are_found_with_half_of_the_network_dead() {
    let mut net = Net::joined(5, 200);
    let key = key("api.compute");
    net.advertise(0, key);
    net.run(Duration::from_secs(5));
    let mut dead = BTreeSet::new();
    while dead.len() < 100 {
        dead.insert(1 + net.rng.below(199));
    }
    for &node in &dead {
        net.kill(node);
    }
    let living: Vec<_> = (1..200).filter(|n| !dead.contains(n)).collect();
    for &node in living.iter().step_by(5) {
        assert_eq!(net.found(node, key, Want::First), [0]);
    }
}

/// D14: the caller's clock is wrong. That is no reason to say that there is no provider.
#[test]
fn d14_a_lookup_by_a_wrong_clock_says_by_how_much_it_is_off() {
    let mut net = Net::new(7);
    let (provider, service) = (net.add(Config::default()), key("api.compute"));
    net.advertise(provider, service);
    for hours in [-2_i64, 2] {
        let caller = net.add(Config::default());
        net.bootstrap(caller, provider);
        net.run(Duration::from_secs(2));
        let unix_ms = EPOCH_MS.saturating_add_signed(hours * 3_600_000);
        net.with(caller, |dht, now| dht.set_clock(now, unix_ms));
        match net.find(caller, service, Want::First).0 {
            QueryResult::Misdated(error) => {
                assert!(error.by() > Duration::from_secs(3000), "{error}");
                assert!(error.to_string().contains("clock"), "{error}");
            }
            other => panic!("{hours} h: {other:?}"),
        }
        assert_eq!(net.find(caller, key("api.none"), Want::First).0, QueryResult::NotFound);
    }
}

#[test]
fn silent_nodes_are_unreachable_and_an_empty_table_is_not_found() {
    let mut net = Net::new(6);
    let lone = net.add(Config::default());
    let service = key("api.compute");
    assert_eq!(net.find(lone, service, Want::First).0, QueryResult::NotFound);
    // A lone node serves from its own store.
    net.advertise(lone, service);
    assert_eq!(net.found(lone, service, Want::All), [lone]);

    let other = net.add(Config::default());
    net.bootstrap(other, lone);
    net.run(Duration::from_secs(2));
    assert_eq!(net.found(other, service, Want::First), [lone]);
    net.kill(lone);
    assert_eq!(
        net.find(other, key("api.other"), Want::First).0,
        QueryResult::Unreachable
    );
}

#[test]
fn a_client_looks_up_and_publishes_but_enters_no_table() {
    let mut net = Net::joined(7, 40);
    let client = net.add(Config {
        role: Role::Client,
        ..Config::default()
    });
    net.bootstrap(client, 4);
    net.run(Duration::from_secs(10));
    net.advertise(client, key("api.compute"));
    net.run(Duration::from_secs(5));
    assert_eq!(net.found(17, key("api.compute"), Want::First), [client]);
    let id = *contact_of(client).node_id();
    assert!(net.nodes.iter().all(|node| !node.dht.table().contains(&id)));
}

/// N3: a node that lost the mesh keeps its records, and joins again by itself.
#[test]
fn n3_a_cut_off_node_rejoins_by_itself() {
    let mut net = Net::joined(8, 30);
    let lost = 12;
    net.advertise(3, key("api.compute"));
    net.run(Duration::from_secs(5));
    net.cut.insert(lost);
    for _ in 0..30 {
        let key = key("api.other");
        net.with(lost, |dht, now| dht.start_lookup(now, key, Want::All).unwrap());
        net.run(Duration::from_secs(10));
    }
    assert!(net.nodes[lost].dht.table().is_empty());
    net.cut.clear();
    net.run(Duration::from_secs(60));
    assert_eq!(net.found(lost, key("api.compute"), Want::First), [3]);
    assert!(net.nodes[lost].dht.table().len() > 10);
}

#[test]
fn a_seed_may_be_an_address_alone() {
    let mut net = Net::joined(9, 10);
    let node = net.add(Config::default());
    let seed = Seed::At(net.nodes[2].contact.endpoints()[0].clone());
    net.with(node, |dht, now| dht.bootstrap(now, [seed]));
    net.run(Duration::from_secs(5));
    assert_eq!(net.count_events(node, |event| matches!(event, Event::Joined { .. })), 1);
    assert!(net.nodes[node].dht.table().len() >= 9);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let run = |seed| {
        let mut net = Net::joined(seed, 50);
        net.advertise(7, key("api.compute"));
        net.run(Duration::from_secs(400));
        (net.trace, net.sent)
    };
    assert_eq!(run(10), run(10));
    assert_ne!(run(10).0, run(11).0);
}

/// A node that joins among the closest to a key gets its records without waiting for the publisher.
#[test]
fn a_newcomer_is_handed_what_it_is_to_hold() {
    let mut net = Net::joined(12, 80);
    let key = key("api.compute");
    net.advertise(3, key);
    net.run(Duration::from_secs(5));
    for _ in 0..60 {
        let n = net.add(Config::default());
        let seed = net.rng.below(80);
        net.bootstrap(n, seed);
        net.run(Duration::from_millis(500));
    }
    net.run(Duration::from_secs(20));
    let mut closest: Vec<_> = (0..140).filter(|n| *n != 3).collect();
    closest.sort_by_key(|n| Point::from(net.nodes[*n].contact.node_id()).distance(&key.into()));
    assert!(closest[..20].iter().any(|n| *n >= 80), "newcomers among the closest");
    let holding = |n: &&usize| net.nodes[**n].dht.store().get(net.now, &key).next().is_some();
    let held = closest[..20].iter().filter(holding).count();
    assert!(held >= 19, "{held} of the 20 closest hold it");
    let handed: u64 = net.nodes.iter().map(|n| n.dht.counters().handed_over).sum();
    assert!(handed > 0);
}

/// Many services are published again in one sweep: lookups for regions, not for keys.
#[test]
fn many_services_are_one_sweep_through_the_key_space() {
    let mut net = Net::joined(13, 150);
    let services: Vec<_> = (0..300).map(|n| key(&format!("service.n{n}"))).collect();
    for &service in &services {
        let ad = common::advertisement(9).with_ttl(Duration::from_secs(120));
        net.with(9, |dht, now| dht.advertise(now, service, ad).unwrap());
    }
    net.run(Duration::from_secs(30));
    let before = net.nodes[9].dht.counters().sent;
    net.nodes[9].events.clear();
    net.run(Duration::from_secs(60));
    let advertised = net.count_events(9, |event| matches!(event, Event::Advertised { .. }));
    assert_eq!(advertised, 300);
    for event in &net.nodes[9].events {
        let Event::Advertised {
            acknowledged,
            refused,
            unreachable,
            ..
        } = event
        else {
            continue;
        };
        assert!(
            *acknowledged >= 20 && refused.is_empty() && *unreachable == 0,
            "{event:?}"
        );
    }
    // 20 requests store each; a lookup of its own would add more than 20 again.
    let sent = net.nodes[9].dht.counters().sent - before;
    assert!(sent < 300 * 20 + 300 * 4, "{sent}");
    for service in services.iter().step_by(29) {
        let mut closest: Vec<_> = (0..150).filter(|n| *n != 9).collect();
        closest.sort_by_key(|n| Point::from(net.nodes[*n].contact.node_id()).distance(&(*service).into()));
        let now = net.now;
        let missing = closest[..20]
            .iter()
            .filter(|n| net.nodes[**n].dht.store().get(now, service).next().is_none());
        assert_eq!(missing.count(), 0, "the k closest hold it");
    }
}

/// Two halves that lost each other find back together, without being told to.
#[test]
fn a_partition_heals() {
    let mut net = Net::joined(14, 40);
    net.cut = (0..20).collect();
    // Both go on for long enough to forget the other.
    for _ in 0..25 {
        for node in 0..40 {
            net.with(node, |dht, now| {
                dht.start_lookup(now, key("no.such"), Want::All).unwrap()
            });
        }
        net.run(Duration::from_secs(15));
    }
    net.cut.clear();
    net.run(Duration::from_secs(300));
    net.advertise(2, key("api.compute"));
    net.run(Duration::from_secs(5));
    for node in 20..40 {
        assert_eq!(net.found(node, key("api.compute"), Want::All), [2], "from {node}");
    }
}

/// One list of seeds for every node of a mesh names the first node to itself.
#[test]
fn a_node_that_is_its_own_only_seed_is_a_mesh_of_one() {
    let mut net = Net::new(15);
    let node = net.add(Config::default());
    let seed = Seed::At(net.nodes[node].contact.endpoints()[0].clone());
    net.with(node, |dht, now| dht.bootstrap(now, [seed]));
    net.run(Duration::from_secs(60));
    assert_eq!(
        net.count_events(node, |event| matches!(event, Event::Joined { contacts: 0 })),
        1
    );
    assert_eq!(
        net.count_events(node, |event| matches!(event, Event::JoinFailed { .. })),
        0
    );
    assert_eq!(net.find(node, key("api.compute"), Want::First).0, QueryResult::NotFound);
}

/// A node that drains many services at once is told of each, and does not send everything in one go.
#[test]
fn many_services_are_withdrawn_a_few_at_a_time() {
    let mut net = Net::joined(16, 30);
    let services: Vec<_> = (0..100).map(|n| key(&format!("service.n{n}"))).collect();
    for &service in &services {
        net.advertise(4, service);
    }
    net.run(Duration::from_secs(20));
    net.with(4, |dht, now| {
        services.iter().for_each(|service| dht.withdraw(now, *service))
    });
    net.run(Duration::from_secs(20));
    let complete = |event: &Event| {
        matches!(
            event,
            Event::Withdrawn {
                acknowledged: 20..,
                unacknowledged: 0,
                ..
            }
        )
    };
    assert_eq!(net.count_events(4, complete), 100);
    assert!(
        services
            .iter()
            .all(|service| net.found(11, *service, Want::All).is_empty())
    );
}
