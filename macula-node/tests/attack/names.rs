//! Lookups of made-up names (X10).

use macula_node::{Limits, Node};
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
    let taken = || victim.transport_stats().calls_taken;
    let before = taken();
    let attack = tokio::task::spawn_blocking({
        let victim = victim.clone();
        move || flood(&victim)
    });
    until("its calls are taken", || taken() > before).await;
    compare("calls of made-up names", calm, served(&honest, 64).await);
    // Its own lookups find room beside those of the attacker.
    let own = victim.lookup(&"demo.own".parse().unwrap()).await.unwrap();
    assert!(own.is_empty());
    attack.await.unwrap();
    assert_eq!(victim.directory_stats().known_nodes, 3, "no node was given up");
}

/// Makes the attacker's calls on a runtime of its own: signing them must not stand before the work of the victim, as it would not from
/// another host.
fn flood(victim: &Node) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(async {
        let attacker = Attacker::new(1, victim).await;
        let mut calls = JoinSet::new();
        for n in 0..1500 {
            attacker.call(&mut calls, &format!("made.up.{n}"), Some(Route::default()));
        }
        while calls.join_next().await.is_some() {}
    });
}
