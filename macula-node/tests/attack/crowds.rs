//! Calls and connections that are held for ever (X5, X8).

use std::future::pending;

use macula_node::{Bytes, Limits, Request, Status};
use macula_transport::Route;
use tokio::task::JoinSet;

use crate::{SERVICE, SILENT, attacker::Attacker, builder, compare, honest, served, until, victim, way_to};

#[tokio::test(flavor = "multi_thread")]
async fn x5_calls_of_a_silent_service_leave_places_for_others() {
    let limits = Limits {
        max_running_calls: 64,
        ..Limits::default()
    };
    let victim = victim(limits).await;
    let honest = honest(&victim).await;
    let calm = served(&honest, 64).await;
    let (mut attackers, mut calls) = (Vec::new(), JoinSet::new());
    for network in [1, 1, 2, 2] {
        attackers.push(Attacker::new(network, &victim).await);
    }
    for attacker in &attackers {
        (0..40).for_each(|_| attacker.call(&mut calls, SILENT, None));
    }
    let places = || victim.transport_stats().places;
    until("every place is taken", || places().refused + places().ended > 0).await;
    compare("calls of a silent service", calm, served(&honest, 64).await);
    assert!(places().taken <= places().places);
    calls.shutdown().await;
    drop(attackers);
    // The honest connection keeps a place for its next call.
    until("every place is free", || places().taken <= 1).await;
}

/// The attacker's own node provides the service that the victim's router waits for.
#[tokio::test(flavor = "multi_thread")]
async fn x5_routed_calls_to_a_silent_node_leave_places_for_others() {
    let limits = Limits {
        max_forwarded_calls: 8,
        ..Limits::default()
    };
    let victim = victim(limits).await;
    let honest = honest(&victim).await;
    let calm = served(&honest, 64).await;
    let silent = builder(1, Limits::default())
        .bootstrap([way_to(&victim)])
        .serve("their.silent", async |_: Request| {
            pending::<Result<Bytes, Status>>().await
        })
        .start()
        .await
        .unwrap();
    silent.join().await.unwrap();
    let attacker = Attacker::new(1, &victim).await;
    let mut calls = JoinSet::new();
    (0..40).for_each(|_| attacker.call(&mut calls, "their.silent", Some(Route::default())));
    let places = || victim.transport_stats().places;
    until("every place is taken", || places().refused > 0).await;
    assert!(places().forwarded_taken <= places().forwarded_places);
    compare("routed calls to a silent node", calm, served(&honest, 64).await);
    calls.shutdown().await;
    drop(attacker);
    until("every place is free", || places().forwarded_taken == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn x8_connections_that_are_held_do_not_keep_others_out() {
    let limits = Limits {
        max_accepted: 8,
        ..Limits::default()
    };
    let alone = victim(limits).await;
    let calm = served(&honest(&alone).await, 64).await;
    let victim = victim(limits).await;
    let (mut attackers, mut calls) = (Vec::new(), JoinSet::new());
    for network in [1, 2, 3, 4, 1, 2, 3, 4] {
        let attacker = Attacker::new(network, &victim).await;
        attacker.call(&mut calls, SILENT, None);
        attackers.push(attacker);
    }
    until("all of them hold a call", || victim.transport_stats().calls_taken >= 8).await;
    let honest = honest(&victim).await;
    compare("connections that are held", calm, served(&honest, 64).await);
    assert!(victim.connection_stats().evicted >= 1);
    assert!(honest.providers(&SERVICE.parse().unwrap()).await.is_ok());
    calls.shutdown().await;
    drop(attackers);
    until("only the honest one is left", || {
        victim.transport_stats().connections <= 2
    })
    .await;
}
