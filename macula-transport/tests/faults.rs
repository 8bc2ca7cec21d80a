//! Calls over a network that loses, delays, reorders, doubles and corrupts, and one that is cut and heals.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::time::Duration;

use common::{
    PATIENCE, client,
    clock::Clock,
    echoes, provider,
    proxy::{Faults, Proxy},
    service, until,
};
use futures::FutureExt as _;
use macula_transport::{CallError, CallRequest, CloseCode, Connection, Endpoint, Lost, Timers, Unknown};

/// Small and large calls, many at a time; all of them answered.
async fn all_are_answered(connection: &Connection) {
    let calls = (0..200_usize).map(|n| {
        let size = match n % 20 {
            0 => 100_000,
            1 => 17_000,
            _ => n,
        };
        echoes(connection, vec![n as u8; size])
    });
    futures::future::join_all(calls).await;
}

async fn over(faults: Faults, seed: u64) {
    let (provider, _events) = provider().await;
    let client = client().await;
    let proxy = Proxy::new(provider.local_addr(), seed).await;
    proxy.set(faults);
    let connection = reach(&client, &provider, &proxy).await;
    all_are_answered(&connection).await;
    assert_eq!(client.stats().dropped_replies, 0);
    assert_eq!(
        (client.stats().rejected_frames, provider.stats().rejected_frames),
        (0, 0)
    );
}

/// Dials until the network lets one through.
async fn reach(client: &Endpoint, provider: &Endpoint, proxy: &Proxy) -> Connection {
    let dialing = async {
        loop {
            match client
                .pool()
                .get(&provider.node_id(), &[proxy.address.try_into().unwrap()])
                .await
            {
                Ok(connection) => return connection,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, dialing).await.unwrap()
}

#[tokio::test]
async fn every_call_survives_loss() {
    over(
        Faults {
            loss: 0.05,
            ..Faults::default()
        },
        1,
    )
    .await;
}

#[tokio::test]
async fn every_call_survives_delay_and_reordering() {
    let faults = Faults {
        delay: Duration::from_millis(2),
        jitter: Duration::from_millis(8),
        ..Faults::default()
    };
    over(faults, 2).await;
}

#[tokio::test]
async fn every_call_survives_duplication() {
    over(
        Faults {
            duplicate: 0.5,
            ..Faults::default()
        },
        3,
    )
    .await;
}

#[tokio::test]
async fn every_call_survives_corruption() {
    over(
        Faults {
            corrupt: 0.05,
            ..Faults::default()
        },
        4,
    )
    .await;
}

#[tokio::test]
async fn every_call_survives_all_of_it_at_once() {
    let faults = Faults {
        loss: 0.02,
        duplicate: 0.02,
        corrupt: 0.02,
        delay: Duration::from_millis(1),
        jitter: Duration::from_millis(3),
        cut: false,
    };
    over(faults, 5).await;
}

/// A short cut costs time and no call; a long one costs the connection, and the next one is made when the network heals.
#[tokio::test]
async fn p3_a_cut_network_heals() {
    let clock = Clock::stop();
    let step = Duration::from_millis(20);
    let (provider, _events) = provider().await;
    let client = client().await;
    let proxy = Proxy::new(provider.local_addr(), 6).await;
    let connection = clock.run(step, reach(&client, &provider, &proxy)).await;
    clock.run(step, all_are_answered(&connection)).await;

    let cut = Faults {
        cut: true,
        ..Faults::default()
    };
    proxy.set(cut);
    let name = service("echo");
    let mut call = Box::pin(connection.call(CallRequest::new(&name, "x").with_timeout(PATIENCE)));
    assert!((&mut call).now_or_never().is_none());
    // Half of what it takes to give a silent peer up.
    for _ in 0..30 {
        clock.pass(Duration::from_millis(100)).await;
        assert!((&mut call).now_or_never().is_none(), "nothing passes");
    }
    proxy.set(Faults::default());
    assert_eq!(clock.run(step, call).await.unwrap().body, "x");

    proxy.set(cut);
    let before = tokio::time::Instant::now();
    let error = clock
        .run(
            step,
            connection.call(CallRequest::new(&name, "x").with_timeout(PATIENCE)),
        )
        .await
        .unwrap_err();
    assert!(
        matches!(
            &error,
            CallError::Unknown(Unknown::Lost(Lost::ClosedHere(CloseCode::Unresponsive)))
        ),
        "{error:?}"
    );
    let timers = Timers::default();
    let silence = before.elapsed();
    // The clock goes in steps, which the looks at the silence may miss by one each.
    assert!(
        silence >= timers.dead_after && silence <= timers.dead_after + timers.probe_after + 2 * step,
        "given up after {silence:?}"
    );
    until("the connection is out of the pool", || client.pool().stats().open == 0).await;
    let (pool, address) = (client.pool(), [proxy.address.try_into().unwrap()]);
    clock
        .run(step, pool.get(&provider.node_id(), &address))
        .await
        .unwrap_err();
    proxy.set(Faults::default());
    let connection = clock.run(step, reach(&client, &provider, &proxy)).await;
    clock.run(step, all_are_answered(&connection)).await;
}

/// P3: a dead peer is out of the pool when the attempt that waited for it ends, a grace for its answer included.
#[tokio::test]
async fn p3_a_dead_peer_is_out_of_the_pool_with_one_attempt() {
    let clock = Clock::stop();
    let (provider, _events) = provider().await;
    let client = client().await;
    let proxy = Proxy::new(provider.local_addr(), 7).await;
    let timers = Timers::default();
    for attempt in [100, 400, 1000, 3000].map(Duration::from_millis) {
        let connection = clock.run(attempt, reach(&client, &provider, &proxy)).await;
        echoes(&connection, "hello").await;
        proxy.set(Faults {
            cut: true,
            ..Faults::default()
        });
        let name = service("echo");
        let began = tokio::time::Instant::now();
        let call = connection.call(CallRequest::new(&name, "x").with_timeout(attempt));
        let error = clock.run(Duration::from_millis(10), call).await.unwrap_err();
        assert!(matches!(error, CallError::Unknown(Unknown::Timeout(_))), "{error:?}");
        let gone = async { until("it is out of the pool", || client.pool().stats().open == 0).await };
        clock.run(Duration::from_millis(10), gone).await;
        let took = began.elapsed();
        assert!(
            took <= attempt + timers.probe_grace + Duration::from_millis(100),
            "{took:?} for an attempt of {attempt:?}"
        );
        assert_eq!(connection.lost(), Some(Lost::ClosedHere(CloseCode::Unresponsive)));
        proxy.set(Faults::default());
    }
}

/// P3: a process that was stopped or asleep heard no peer. The silence is its own, so it probes its peers before it gives them up.
#[tokio::test]
async fn p3_a_process_that_stood_still_keeps_its_connections() {
    let clock = Clock::stop();
    let (provider, _events) = provider().await;
    let client = client().await;
    let connection = common::connect(&client, &provider).await.unwrap();
    let timers = Timers::default();
    let name = service("hang");
    let mut long = Box::pin(connection.call(CallRequest::new(&name, "").with_timeout(PATIENCE)));
    let short = connection.call(CallRequest::new(&name, "").with_timeout(timers.dead_after));
    let mut short = Box::pin(short);
    assert!((&mut long).now_or_never().is_none());
    assert!((&mut short).now_or_never().is_none());
    // The calls are acknowledged, and the watch sees it: from here on, nothing is heard.
    clock.pass(timers.probe_after / 4).await;
    clock.pass(timers.probe_after).await;
    clock.pass(2 * timers.dead_after).await;
    let error = short.await.unwrap_err();
    assert!(matches!(error, CallError::Unknown(Unknown::Timeout(_))), "{error:?}");
    for _ in 0..10 {
        clock.pass(timers.probe_after).await;
        echoes(&connection, "still there").await;
    }
    assert_eq!(connection.lost(), None);
    assert!((&mut long).now_or_never().is_none());
}
