//! Lookups of made-up names (X10).

use macula_node::Limits;
use macula_transport::Route;
use tokio::task::JoinSet;

use crate::{attacker::Attacker, builder, compare, honest, served, until, victim, way_to};

#[tokio::test(flavor = "multi_thread")]
async fn x10_made_up_names_neither_empty_the_routing_table_nor_take_all_lookups() {
    let victim = victim(Limits::default()).await;
    let mut others = Vec::new();
    for network in [10, 11, 12] {
        let other = builder(network, Limits::default())
            .bootstrap([way_to(&victim)])
            .start()
            .await
            .unwrap();
        other.join().await.unwrap();
        others.push(other);
    }
    until("the victim knows them", || victim.directory_stats().known_nodes == 3).await;
    let honest = honest(&victim).await;
    let calm = served(&honest, 64).await;
    let attacker = Attacker::new(1, &victim).await;
    let mut calls = JoinSet::new();
    for n in 0..1500 {
        attacker.call(&mut calls, &format!("made.up.{n}"), Some(Route::default()));
    }
    let forwarded = || victim.transport_stats().places.forwarded_taken;
    until("its calls are forwarded", || forwarded() > 0).await;
    compare("calls of made-up names", calm, served(&honest, 64).await);
    // Its own lookups find room beside those of the attacker.
    let own = victim.lookup(&"demo.own".parse().unwrap()).await.unwrap();
    assert!(own.is_empty());
    while calls.join_next().await.is_some() {}
    assert_eq!(victim.directory_stats().known_nodes, 3, "no node was given up");
}
