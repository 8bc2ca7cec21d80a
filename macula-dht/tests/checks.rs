//! Signatures are checked apart from the core, which decides before and afterwards (X12).

#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

mod common;

use bytes::Bytes;
use common::{
    bench::{Bench, peer, record},
    contact_of, key,
};
use macula_dht::{
    Begun, Checks, Config, Event, MAX_CHECKS_PER_ANSWER, Outcome, Output, Publication, QueryResult, Received, Refusal,
    Reply, Request, RequestId, Response, Role, Want,
};
use macula_wire::SignedProvider;

fn begin_publication(bench: &mut Bench, n: usize, records: Vec<SignedProvider>) -> Checks<Publication> {
    let request = Request::Publish {
        key: key("a.b"),
        records,
    };
    match bench.dht.begin_request(bench.now, &peer(n), Ok(request)) {
        Begun::Checking(checks) => checks,
        Begun::Answered(response) => panic!("{response:?}"),
    }
}

fn begin_answer(bench: &mut Bench, id: RequestId, records: Vec<SignedProvider>) -> Option<Checks<Received>> {
    let response = Response::Providers {
        records,
        closest: Vec::new(),
        more: false,
    };
    let reply = Reply {
        response: Ok(response),
        role: Role::Node,
        ip: None,
    };
    bench.dht.begin_response(bench.now, id, Ok(reply))
}

fn forged(n: usize) -> SignedProvider {
    SignedProvider {
        signature: Bytes::from_static(&[7; 64]),
        ..record(n, key("a.b"), 1)
    }
}

fn held(bench: &Bench) -> usize {
    bench.dht.local_providers(bench.now, &key("a.b")).count()
}

/// Only the second half stores anything, and each record has the outcome of its own check.
#[test]
fn x12_a_publication_is_stored_when_its_signatures_are_checked() {
    let mut bench = Bench::new(Config::default());
    assert_eq!(bench.publish(2, key("a.b"), record(2, key("a.b"), 1)), Outcome::Stored);
    let records = vec![record(2, key("a.b"), 1), forged(3), record(4, key("a.b"), 1)];
    let mut checks = begin_publication(&mut bench, 1, records);
    assert_eq!(checks.left(), 2, "a record that is stored already needs no check");
    assert!(checks.step());
    assert!(!checks.step());
    assert_eq!(held(&bench), 1);
    let Response::Published { outcomes, .. } = bench.dht.finish_request(bench.now, checks) else {
        panic!("it was a publication");
    };
    assert_eq!(
        outcomes,
        [Outcome::Stored, Outcome::Refused(Refusal::Invalid), Outcome::Stored]
    );
    assert_eq!(held(&bench), 2);
}

/// The shell may give a request up when it has too much to do.
#[test]
fn x12_a_publication_that_is_given_up_leaves_nothing() {
    let mut bench = Bench::new(Config::default());
    drop(begin_publication(&mut bench, 1, vec![record(3, key("a.b"), 1)]));
    assert_eq!(held(&bench), 0);
    assert_eq!(bench.publish(1, key("a.b"), record(3, key("a.b"), 1)), Outcome::Stored);
}

/// A lookup waits for the checks of an answer, each of which is bounded.
#[test]
fn x12_a_lookup_goes_on_when_the_signatures_of_an_answer_are_checked() {
    let mut bench = Bench::new(Config::default());
    bench.befriend([1]);
    let query = bench.dht.start_lookup(bench.now, key("a.b"), Want::All).unwrap();
    let (id, ..) = bench.sends()[0];
    let records: Vec<_> = (2..).map(|n| record(n, key("a.b"), 1)).take(40).collect();
    let mut checks = begin_answer(&mut bench, id, records.clone()).unwrap();
    assert_eq!(checks.left(), MAX_CHECKS_PER_ANSWER);
    assert!(
        bench.outputs().is_empty(),
        "nothing is found and no other node is asked before"
    );
    while checks.step() {}
    bench.dht.finish_response(bench.now, checks);
    let outputs = bench.outputs();
    let [Output::Event(Event::Providers { batch, .. }), Output::Send { id, .. }] = &outputs[..] else {
        panic!("{outputs:?}")
    };
    assert_eq!(batch.len(), MAX_CHECKS_PER_ANSWER);
    let rest = begin_answer(&mut bench, *id, records[MAX_CHECKS_PER_ANSWER..].to_vec()).unwrap();
    bench.dht.finish_response(bench.now, rest);
    assert!(bench.outputs().iter().any(|output| matches!(
        output,
        Output::Event(Event::Finished { query: of, result: QueryResult::Found(found), .. })
            if *of == query && found.len() == 40
    )));
}

/// A forged record fails its peer, however late that is known, and a lookup that has ended meanwhile hears nothing.
#[test]
fn x12_a_forgery_that_is_found_later_fails_its_peer() {
    let mut bench = Bench::new(Config::default());
    bench.befriend([1, 2]);
    let query = bench.dht.start_lookup(bench.now, key("a.b"), Want::All).unwrap();
    let asked: Vec<_> = bench.sends().into_iter().map(|(id, to, _)| (id, to)).collect();
    let checks = begin_answer(&mut bench, asked[0].0, vec![forged(3)]).unwrap();
    assert_eq!(bench.dht.counters().misbehaved, 0);
    bench.dht.finish_response(bench.now, checks);
    assert_eq!(bench.dht.counters().misbehaved, 1);
    assert!(matches!(
        bench.outputs()[..],
        [Output::Event(Event::Misbehaved { times: 1, .. })]
    ));
    let checks = begin_answer(&mut bench, asked[1].0, vec![record(3, key("a.b"), 1)]).unwrap();
    bench.dht.drop_query(query);
    bench.dht.finish_response(bench.now, checks);
    assert!(bench.outputs().is_empty());
    assert!(bench.dht.table().iter().any(|known| known == &contact_of(2)));
}
