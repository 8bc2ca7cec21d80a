//! Calls over a network that loses, delays, reorders, doubles and corrupts, and one that is cut and heals.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::time::Duration;

use common::{
    PATIENCE, client, config, echoes, provider,
    proxy::{Faults, Proxy},
    service, until,
};
use macula_transport::{CallError, CallRequest, Connection, Endpoint, NoService, Timers};

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
    let (provider, _events) = provider().await;
    let timers = Timers {
        connect: Duration::from_millis(200),
        probe_after: Duration::from_millis(50),
        dead_after: Duration::from_millis(500),
        ..Timers::default()
    };
    let client = Endpoint::bind(config().with_timers(timers), NoService).await.unwrap();
    let proxy = Proxy::new(provider.local_addr(), 6).await;
    let connection = reach(&client, &provider, &proxy).await;
    all_are_answered(&connection).await;

    proxy.set(Faults {
        cut: true,
        ..Faults::default()
    });
    let name = service("echo");
    let heal = async {
        tokio::task::yield_now().await;
        proxy.set(Faults::default());
    };
    let (reply, ()) = tokio::join!(
        connection.call(CallRequest::new(&name, "x").with_timeout(PATIENCE)),
        heal
    );
    assert_eq!(reply.unwrap().body, "x");

    proxy.set(Faults {
        cut: true,
        ..Faults::default()
    });
    let error = connection
        .call(CallRequest::new(&name, "x").with_timeout(PATIENCE))
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::Unknown(_)), "{error:?}");
    until("the connection is out of the pool", || client.pool().stats().open == 0).await;
    let address = [proxy.address.try_into().unwrap()];
    client.pool().get(&provider.node_id(), &address).await.unwrap_err();
    proxy.set(Faults::default());
    all_are_answered(&reach(&client, &provider, &proxy).await).await;
}
