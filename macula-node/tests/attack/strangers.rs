//! Strangers in an open realm: they relay, provide and announce (X2, X3, X12).

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use macula_dht::{Request, Response};
use macula_node::{Bytes, Limits, ServiceOptions, Status, StatusCode};
use macula_transport::{CallRequest, Route};
use macula_wire::ServiceName;

use crate::{PATIENCE, SERVICE, attacker::Attacker, builder, compare, honest, served, until, victim, way_to};

/// A provider that admits the victim alone is not reached through the victim.
#[tokio::test(flavor = "multi_thread")]
async fn x2_a_router_lends_no_stranger_its_name() {
    let victim = victim(Limits::default()).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let service: ServiceName = "their.safe".parse().unwrap();
    let provider = builder(10, Limits::default())
        .bootstrap([way_to(&victim)])
        .configure(service.clone(), ServiceOptions::new().allow(victim.id()))
        .serve(service.clone(), move |_: macula_node::Request| {
            counted.fetch_add(1, Relaxed);
            std::future::ready(Ok::<_, Status>(Bytes::new()))
        })
        .start()
        .await
        .unwrap();
    provider.join().await.unwrap();
    let attacker = Attacker::new(1, &victim).await;
    let routed = CallRequest::new(&service, "")
        .with_timeout(PATIENCE)
        .with_route(Some(Route::default()))
        .with_passage(attacker.connection.passage(&service));
    let reply = attacker.connection.call(routed).await.unwrap();
    assert_eq!(reply.status, StatusCode::PermissionDenied, "{reply:?}");
    assert_eq!(runs.load(Relaxed), 0);
    victim.call("their.safe", "").await.unwrap();
    assert_eq!(runs.load(Relaxed), 1);
}

/// A stranger provides the service of others with all the weight there is, and answers every call with an error.
#[tokio::test(flavor = "multi_thread")]
async fn x3_a_stranger_of_great_weight_costs_no_call() {
    let victim = victim(Limits::default()).await;
    let honest = honest(&victim).await;
    let calm = served(&honest, 64).await;
    let stranger = builder(1, Limits::default())
        .bootstrap([way_to(&victim)])
        .weight(u32::MAX)
        .serve(SERVICE, async |_: macula_node::Request| {
            Err::<Bytes, _>(Status::new(StatusCode::Unavailable, "never"))
        })
        .start()
        .await
        .unwrap();
    stranger.join().await.unwrap();
    let listed = honest.lookup(&SERVICE.parse().unwrap()).await.unwrap();
    let weight = |id| listed.iter().find(|it| it.node_id == id).map(|it| it.weight);
    assert_eq!((weight(victim.id()), weight(stranger.id())), (Some(1), Some(8)));
    compare("a provider of great weight that fails", calm, served(&honest, 64).await);
}

/// A stranger says that it listens where another host is. The victim asks others back, and never sends anything there.
#[tokio::test(flavor = "multi_thread")]
async fn x12_a_stranger_has_no_packet_sent_to_another_host() {
    let victim = victim(Limits::default()).await;
    let other_host = UdpSocket::bind("127.0.99.1:0").unwrap();
    other_host.set_nonblocking(true).unwrap();
    let there = other_host.local_addr().unwrap();
    let liar = Attacker::announcing(1, &victim, [there.try_into().unwrap()]).await;
    assert!(matches!(liar.ask(&Request::Ping).await, Some(Response::Pong)));
    // One that comes later and tells the truth is asked back, and enters the table.
    let honest = builder(2, Limits::default())
        .bootstrap([way_to(&victim)])
        .start()
        .await
        .unwrap();
    honest.join().await.unwrap();
    until("the victim knows the honest node", || {
        victim.directory_stats().known_nodes == 1
    })
    .await;
    let received = other_host.recv(&mut [0; 2048]);
    assert!(received.is_err(), "the other host was sent {received:?}");
}
