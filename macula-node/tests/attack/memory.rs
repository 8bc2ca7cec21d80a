//! Replies that are not taken (X6). Requests that do not end are attacks of raw bytes: see the tests of macula-transport.

use macula_node::Limits;
use macula_transport::{CallRequest, CallStream};
use macula_wire::ServiceName;

use crate::{PATIENCE, SERVICE, attacker::Attacker, compare, honest, served, until, victim};

/// What the victim may keep for its peers, in bytes.
const MEMORY: u64 = 64 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn x6_replies_that_are_not_taken_stay_within_the_memory() {
    let limits = Limits {
        memory_bytes: MEMORY,
        ..Limits::default()
    };
    let victim = victim(limits).await;
    let honest = honest(&victim).await;
    let calm = served(&honest, 256 << 10).await;
    let echo = ServiceName::new(SERVICE).unwrap();
    let (mut attackers, mut unread) = (Vec::new(), Vec::<CallStream>::new());
    for network in [1, 2] {
        let attacker = Attacker::new(network, &victim).await;
        for _ in 0..30 {
            let request = CallRequest::new(&echo, vec![1; 3 << 20]).with_timeout(PATIENCE);
            let opened = attacker.connection.open(request).await;
            unread.extend(opened.ok());
        }
        attackers.push(attacker);
    }
    // The victim runs a call when its requests have ended.
    let unread: Vec<_> = unread
        .into_iter()
        .map(|call| {
            let (requests, replies) = call.split();
            requests.finish();
            replies
        })
        .collect();
    let memory = || victim.transport_stats().memory;
    until("the memory is full", || memory().refused + memory().evicted > 0).await;
    assert!(memory().used <= memory().charged && memory().charged < MEMORY);
    compare("replies that are not taken", calm, served(&honest, 256 << 10).await);
    drop((unread, attackers));
    until("all of it is given back", || memory().used < MEMORY / 8).await;
}
