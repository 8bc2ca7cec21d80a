//! How a search goes on where an honest network would have ended it: one core, and peers that know nothing.

#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]
mod common;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use common::{EPOCH_MS, contact_of, key, secret};
use macula_dht::{Config, Dht, Event, Memory, Output, QueryResult, Reply, Request, Response, Role, Want};
use macula_wire::{Realm, SecretKey};

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

/// Looks up what nobody provides. Returns how often each peer was asked, and the most requests that waited at a time.
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

/// When k peers say that there is nothing, two further paths ask, and none of them asks whom the other has asked.
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

/// In a network no larger than k everybody has been asked, and nobody is asked twice.
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
