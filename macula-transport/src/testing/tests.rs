//! The real endpoint on a network in memory.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, join_all};
use macula_wire::{SecretKey, StatusCode};
use tokio::time::Instant;

use super::{LinkConditions, Network};
use crate::{
    CallError, CallRequest, Config, Connection, Endpoint, Handler, Identity, IncomingCall, Lost, NoService, Reply,
    Unknown,
};

/// Answers with the request, or never.
pub(super) struct Service;

impl Handler for Service {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        if call.service().as_str() == "hang" {
            return std::future::pending().boxed();
        }
        std::future::ready(Reply::ok(call.into_body())).boxed()
    }
}

pub(super) fn identity(n: u8) -> Identity {
    Identity::from_secret(SecretKey::from_bytes(&[n; SecretKey::LEN]))
}

pub(super) async fn host(network: &Network, n: u8, handler: impl Handler) -> Endpoint {
    let config = Config::new(identity(n))
        .with_network(network)
        .with_listen(([10, 0, 0, n], 9443).into());
    Endpoint::bind(config, handler).await.unwrap()
}

pub(super) async fn connect(from: &Endpoint, to: &Endpoint) -> Connection {
    let at = [to.local_addr().try_into().unwrap()];
    from.pool().get(&to.node_id(), &at).await.unwrap()
}

pub(super) async fn call(
    connection: &Connection,
    service: &str,
    body: Bytes,
    timeout: Duration,
) -> Result<Bytes, CallError> {
    let name = service.parse().unwrap();
    let reply = connection
        .call(CallRequest::new(&name, body).with_timeout(timeout))
        .await?;
    assert_eq!(reply.status, StatusCode::Ok);
    Ok(reply.body)
}

pub(super) const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(start_paused = true)]
async fn a_call_takes_the_links_time_and_no_other() {
    let network = Network::new(1).with_link(LinkConditions::new(Duration::from_millis(20)));
    let (caller, provider) = (host(&network, 1, NoService).await, host(&network, 2, Service).await);
    let connection = connect(&caller, &provider).await;
    let start = Instant::now();
    let answer = call(&connection, "echo", "hello".into(), PATIENCE).await.unwrap();
    assert_eq!((answer, start.elapsed()), ("hello".into(), Duration::from_millis(40)));
}

#[tokio::test(start_paused = true)]
async fn a_long_timeout_takes_no_real_time() {
    let network = Network::new(1);
    let (caller, provider) = (host(&network, 1, NoService).await, host(&network, 2, Service).await);
    let connection = connect(&caller, &provider).await;
    let start = Instant::now();
    let error = call(&connection, "hang", Bytes::new(), Duration::from_secs(3600))
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::Unknown(Unknown::Timeout(_))), "{error}");
    assert!(start.elapsed() >= Duration::from_secs(3600));
}

/// Everything below the pool copes with a bad link.
#[tokio::test(start_paused = true)]
async fn a_bad_link_delays_and_loses_no_call() {
    let link = LinkConditions::new(Duration::from_millis(10))
        .with_jitter(Duration::from_millis(10))
        .with_loss(0.05)
        .with_duplicates(0.05)
        .with_reordering(0.05);
    let network = Network::new(2).with_link(link);
    let (caller, provider) = (host(&network, 1, NoService).await, host(&network, 2, Service).await);
    let connection = connect(&caller, &provider).await;
    for bytes in [10, 1_000, 100_000] {
        let body = Bytes::from(vec![7; bytes]);
        let calls = (0..20).map(|_| call(&connection, "echo", body.clone(), PATIENCE));
        for answer in join_all(calls).await {
            assert!(answer.unwrap() == body);
        }
    }
    let traffic = network.traffic();
    assert!(traffic.lost > 0 && traffic.duplicated > 0, "{traffic:?}");
}

/// A killed peer says nothing: it is the transport's own probe that notices, and a restarted one that tells.
#[tokio::test(start_paused = true)]
async fn p3_a_killed_peer_is_noticed_by_its_silence_and_a_restarted_one_by_its_reset() {
    let network = Network::new(3);
    let (caller, provider) = (host(&network, 1, NoService).await, host(&network, 2, Service).await);
    let connection = connect(&caller, &provider).await;
    let waits = call(&connection, "hang", Bytes::new(), PATIENCE);
    let (error, at) = tokio::join!(async { (waits.await.unwrap_err(), Instant::now()) }, async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        network.kill(provider.local_addr());
        Instant::now()
    });
    let (error, noticed) = error;
    assert!(matches!(error, CallError::Unknown(Unknown::Lost(_))), "{error}");
    let silence = noticed - at;
    assert!(silence <= crate::Timers::default().dead_after, "{silence:?}");

    let provider = host(&network, 2, Service).await;
    let connection = connect(&caller, &provider).await;
    network.kill(provider.local_addr());
    let _restarted = host(&network, 2, Service).await;
    let start = Instant::now();
    let error = call(&connection, "hang", Bytes::new(), PATIENCE).await.unwrap_err();
    assert!(
        matches!(error, CallError::Unknown(Unknown::Lost(Lost::Restarted))),
        "{error:?}"
    );
    assert!(start.elapsed() <= Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_is_cut_is_silent_until_it_is_healed() {
    let network = Network::new(4);
    let (caller, provider) = (host(&network, 1, NoService).await, host(&network, 2, Service).await);
    let other = host(&network, 3, Service).await;
    let (near, far) = (connect(&caller, &other).await, connect(&caller, &provider).await);
    let short = Duration::from_millis(100);
    let here = caller.local_addr();
    for (cut, heal) in [
        (
            Box::new(|| network.cut(here, provider.local_addr())) as Box<dyn Fn()>,
            Box::new(|| network.restore(here, provider.local_addr())) as Box<dyn Fn()>,
        ),
        (
            Box::new(|| network.partition([provider.local_addr()])),
            Box::new(|| network.heal()),
        ),
    ] {
        cut();
        assert!(call(&far, "echo", Bytes::new(), short).await.is_err());
        assert!(call(&near, "echo", Bytes::new(), short).await.is_ok());
        heal();
        assert!(call(&far, "echo", Bytes::new(), PATIENCE).await.is_ok());
    }
}

/// P5: however many calls wait for a provider that is slow, far away or silent, those to another take their link's time.
#[tokio::test(start_paused = true)]
async fn p5_calls_to_one_provider_are_not_delayed_by_another() {
    let network = Network::new(6);
    let caller = host(&network, 1, NoService).await;
    let (slow, far, cut) = (
        host(&network, 2, Service).await,
        host(&network, 3, Service).await,
        host(&network, 4, Service).await,
    );
    let near = host(&network, 5, Service).await;
    network.set_link(
        caller.local_addr(),
        far.local_addr(),
        LinkConditions::new(Duration::from_millis(400)),
    );
    let others = [
        connect(&caller, &slow).await,
        connect(&caller, &far).await,
        connect(&caller, &cut).await,
    ];
    let connection = connect(&caller, &near).await;
    network.cut(caller.local_addr(), cut.local_addr());
    let waiting = others.iter().flat_map(|other| {
        let small = (0..2_000).map(move |_| call(other, "hang", Bytes::new(), PATIENCE).boxed());
        small.chain((0..20).map(move |_| call(other, "echo", vec![7; 1 << 20].into(), PATIENCE).boxed()))
    });
    let calls = async {
        for _ in 0..1_000 {
            let start = Instant::now();
            call(&connection, "echo", "hello".into(), PATIENCE).await.unwrap();
            assert_eq!(start.elapsed(), Duration::from_millis(2));
        }
    };
    tokio::select! {
        biased;
        _ = join_all(waiting) => panic!("the provider answers no call"),
        () = calls => {}
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_belongs_to_one_host_until_it_is_gone() {
    let network = Network::new(5);
    let first = host(&network, 1, NoService).await;
    let taken = Config::new(identity(2))
        .with_network(&network)
        .with_listen(first.local_addr());
    assert!(Endpoint::bind(taken.clone(), NoService).await.is_err());
    network.kill(first.local_addr());
    let second = Endpoint::bind(taken, NoService).await.unwrap();
    // The end of the one that was killed takes nothing from the one that is there now.
    drop(first);
    let next = Endpoint::bind(Config::new(identity(3)).with_network(&network), Service)
        .await
        .unwrap();
    tokio::time::sleep(PATIENCE).await;
    assert_ne!(next.local_addr(), second.local_addr());
    let connection = connect(&next, &second).await;
    assert_eq!(connection.peer().node_id, second.node_id());
}

/// Handshakes, lanes, streams, losses, a kill, a restart and a drain; every id and key but the nodes' own is another each time.
async fn story(seed: u64) -> (u64, super::Traffic) {
    let link = LinkConditions::new(Duration::from_millis(7))
        .with_jitter(Duration::from_millis(9))
        .with_loss(0.02)
        .with_duplicates(0.02)
        .with_reordering(0.02);
    let network = Network::new(seed).with_link(link);
    let mut hosts = Vec::new();
    for n in 1..=5 {
        hosts.push(Arc::new(host(&network, n, Service).await));
    }
    let talk = async |n: usize, hosts: &[Arc<Endpoint>]| {
        let here = hosts[n].clone();
        let others = hosts.iter().filter(|other| other.node_id() != here.node_id());
        join_all(others.map(async |other| {
            let at = [other.local_addr().try_into().unwrap()];
            let Ok(connection) = here.pool().get(&other.node_id(), &at).await else {
                return;
            };
            for bytes in [10, 2_000, 60_000] {
                let calls = (0..4).map(|_| call(&connection, "echo", vec![1; bytes].into(), Duration::from_secs(2)));
                join_all(calls).await;
            }
        }))
        .await;
    };
    join_all((0..5).map(|n| talk(n, &hosts))).await;
    network.kill(hosts[4].local_addr());
    hosts[4] = Arc::new(host(&network, 5, Service).await);
    join_all((0..5).map(|n| talk(n, &hosts))).await;
    join_all(hosts.iter().map(|host| host.shutdown(PATIENCE))).await;
    (network.trace_hash(), network.traffic())
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    let run = |seed| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(story(seed))
    };
    let first = run(11);
    assert!(first.1.delivered > 1_000, "{:?}", first.1);
    for _ in 0..3 {
        assert_eq!(run(11), first);
    }
    assert_ne!(run(12).0, first.0);
}
