//! Records that are made up or forged (X4, X12).

use std::time::{SystemTime, UNIX_EPOCH};

use macula_dht::{MAX_PUBLISH_RECORDS, Outcome, Refusal, Request, Response};
use macula_node::{Limits, Node, Realm, StoreLimits};
use macula_wire::{Advertisement, SecretKey, ServiceKey, ServiceName, SignedProvider, VerifiedProvider};
use tokio::task::JoinSet;

use crate::{SERVICE, attacker::Attacker, builder, compare, honest, served, serving, until, victim, way_to};

fn key(service: &str) -> ServiceKey {
    ServiceKey::new(&Realm::default(), &service.parse::<ServiceName>().unwrap())
}

/// The record of a provider that does not exist, at a port where nothing listens.
fn made_up(n: u16, service: &str) -> SignedProvider {
    let mut secret = [7; 32];
    secret[..2].copy_from_slice(&n.to_be_bytes());
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let nowhere = Advertisement::new(["127.0.99.1:9".parse().unwrap()]);
    let signer = SecretKey::from_bytes(&secret);
    let record = VerifiedProvider::sign(
        &signer,
        &Realm::default().hash(),
        &key(service),
        now_ms,
        now_ms,
        &nowhere,
    );
    record.unwrap().to_signed()
}

fn outcomes(response: Option<Response>) -> Vec<Outcome> {
    match response {
        Some(Response::Published { outcomes, .. }) => outcomes,
        other => panic!("{other:?}"),
    }
}

/// One stranger fills the list of a service. Callers go on with the provider that answers, and another honest one still enters.
#[tokio::test(flavor = "multi_thread")]
async fn x4_made_up_providers_neither_fail_calls_nor_keep_an_honest_provider_out() {
    let victim = victim(Limits::default()).await;
    let honest = honest(&victim).await;
    let calm = served(&honest, 64).await;
    let attacker = Attacker::new(1, &victim).await;
    let all: Vec<_> = (0..300).map(|n| made_up(n, SERVICE)).collect();
    let mut stored = 0;
    for records in all.chunks(MAX_PUBLISH_RECORDS) {
        let (key, records) = (key(SERVICE), records.to_vec());
        let taken = outcomes(attacker.ask(&Request::Publish { key, records }).await);
        stored += taken.iter().filter(|outcome| **outcome == Outcome::Stored).count();
    }
    assert!(stored >= 200, "{stored} made-up providers are listed");
    let listed = honest.lookup(&SERVICE.parse().unwrap()).await.unwrap();
    assert!(listed.len() > stored / 2, "the caller knows {} of them", listed.len());
    compare("made-up providers", calm, served(&honest, 64).await);
    let late = builder(2, Limits::default())
        .bootstrap([way_to(&victim)])
        .start()
        .await
        .unwrap();
    late.join().await.unwrap();
    let echo = async |request: macula_node::Request| Ok::<_, macula_node::Status>(request.into_payload());
    let published = late.serve(SERVICE.parse().unwrap(), echo).await.unwrap();
    assert!(published.acknowledged >= 1, "{published}");
}

/// Strangers publish under names of their own until the store is full, and go on. The services of honest nodes enter and stay.
#[tokio::test(flavor = "multi_thread")]
async fn x7_a_store_that_strangers_fill_takes_and_keeps_what_honest_nodes_publish() {
    const KEYS: usize = 64;
    let limits = StoreLimits {
        keys: KEYS,
        ..StoreLimits::default()
    };
    let victim = serving(Limits::default()).store_limits(limits).start().await.unwrap();
    let honest = honest(&victim).await;
    let calm = served(&honest, 64).await;
    let mut attackers = Vec::new();
    for network in [1, 1, 2, 2] {
        attackers.push(Attacker::new(network, &victim).await);
    }
    let flood = async |from: u16| {
        for n in from..from + 400 {
            let service = format!("made.up.{n}");
            let request = Request::Publish {
                key: key(&service),
                records: vec![made_up(n, &service)],
            };
            attackers[usize::from(n) % attackers.len()].ask(&request).await;
        }
    };
    flood(0).await;
    let held = || victim.directory_stats().records;
    assert!(held() >= KEYS && victim.directory_stats().dht.refused > 0, "{}", held());
    let late = builder(3, Limits::default())
        .bootstrap([way_to(&victim)])
        .start()
        .await
        .unwrap();
    late.join().await.unwrap();
    let services = [0, 1, 2, 3].map(|n| format!("their.{n}").parse::<ServiceName>().unwrap());
    for service in &services {
        let echo = async |request: macula_node::Request| Ok::<_, macula_node::Status>(request.into_payload());
        let published = late.serve(service.clone(), echo).await.unwrap();
        assert!(published.acknowledged >= 1, "{published}");
    }
    flood(400).await;
    compare("records that fill the store", calm, served(&honest, 64).await);
    for service in &services {
        let found = honest.lookup(service).await.unwrap();
        assert_eq!(
            found.iter().map(|it| it.node_id).collect::<Vec<_>>(),
            [late.id()],
            "{service}"
        );
    }
}

/// Strangers have the victim check signatures as fast as it lets them.
#[tokio::test(flavor = "multi_thread")]
async fn x12_forged_records_hold_up_neither_calls_nor_lookups() {
    let victim = victim(Limits::default()).await;
    let honest = honest(&victim).await;
    let calm = served(&honest, 64).await;
    let mut flood = JoinSet::new();
    for network in [1, 1, 2, 2] {
        let attacker = Attacker::new(network, &victim).await;
        flood.spawn(async move {
            let forged = |n| SignedProvider {
                signature: vec![7; 64].into(),
                ..made_up(n, "their.forgery")
            };
            let records: Vec<_> = (0..MAX_PUBLISH_RECORDS as u16).map(forged).collect();
            let request = Request::Publish {
                key: key("their.forgery"),
                records,
            };
            loop {
                attacker.ask(&request).await;
            }
        });
    }
    let refused = |victim: &Node| victim.directory_stats().dht.refused;
    until("forged records are refused", || refused(&victim) > 0).await;
    compare("forged records", calm, served(&honest, 64).await);
    for n in 0..20 {
        let service = format!("demo.own{n}").parse().unwrap();
        assert!(honest.lookup(&service).await.unwrap().is_empty());
    }
    assert_eq!(victim.directory_stats().dht.stored, 0);
    flood.shutdown().await;
    let honest_record = Request::Publish {
        key: key("demo.own"),
        records: vec![made_up(1, "demo.own")],
    };
    let other = Attacker::new(3, &victim).await;
    // It may have to wait until tokens for signatures are there again.
    loop {
        match outcomes(other.ask(&honest_record).await)[..] {
            [Outcome::Stored] => break,
            [Outcome::Refused(Refusal::Busy)] => tokio::task::yield_now().await,
            ref other => panic!("{other:?}"),
        }
    }
}
