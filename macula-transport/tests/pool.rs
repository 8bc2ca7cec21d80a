//! The pool over real sockets.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::time::Duration;

use common::{PATIENCE, Seen, at, client, config, connect, echoes, provider, service, until};
use macula_transport::{
    CallRequest, CloseCode, Config, DialError, Endpoint, FoundConnection, Lost, NoService, PoolConfig, PoolEvent,
    Succession,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_concurrent_dials_are_one_dial() {
    let (provider, _events) = provider().await;
    let client = client().await;
    let connections = futures::future::join_all((0..100).map(|_| connect(&client, &provider))).await;
    for connection in &connections {
        echoes(connection.as_ref().unwrap(), "hello").await;
    }
    assert_eq!((client.pool().stats().opened, provider.pool().stats().accepted), (1, 1));
    echoes(&connect(&client, &provider).await.unwrap(), "again").await;
    let stats = client.pool().stats();
    assert!(stats.opened == 1 && stats.reused >= 1, "{stats:?}");
}

#[tokio::test]
async fn p1_the_peer_is_who_was_dialed_or_nobody() {
    let (provider, _events) = provider().await;
    let client = client().await;
    let wrong = common::identity().node_id();
    let error = client.pool().get(&wrong, &at(&provider)).await.unwrap_err();
    assert!(
        matches!(error, DialError::WrongNode { expected, found, .. }
        if expected == wrong && found == provider.node_id()),
        "{error}"
    );
    until("the provider counts the failed handshake", || {
        provider.stats().rejected_handshakes == 1
    })
    .await;
    echoes(
        &connect(&client, &provider).await.unwrap(),
        "the right one is still served",
    )
    .await;
    let error = client.pool().get(&wrong, &at(&provider)).await.unwrap_err();
    assert!(matches!(error, DialError::BackingOff { .. }), "{error}");
}

#[tokio::test]
async fn a_first_contact_finds_the_id_and_is_pooled_under_it() {
    let (provider, _events) = provider().await;
    let client = client().await;
    let [address] = at(&provider);
    let connection = client.pool().first_contact(&address).await.unwrap();
    assert_eq!(connection.peer().node_id, provider.node_id());
    echoes(&connect(&client, &provider).await.unwrap(), "hello").await;
    assert_eq!(client.pool().stats().opened, 1);
    let error = provider.pool().first_contact(&address).await.unwrap_err();
    assert!(matches!(error, DialError::Myself { .. }), "{error}");
}

#[tokio::test]
async fn a_node_with_a_new_key_is_reached_by_its_old_name() {
    let (provider, _events) = provider().await;
    let client = client().await;
    let old = common::identity();
    assert!(matches!(
        client.pool().get(&old.node_id(), &at(&provider)).await,
        Err(DialError::WrongNode { .. })
    ));
    let older = common::identity();
    client.pool().learn(&Succession::new(&older, &old).unwrap());
    client
        .pool()
        .learn(&Succession::new(&old, provider.identity()).unwrap());
    let connection = client.pool().get(&older.node_id(), &at(&provider)).await.unwrap();
    assert_eq!(connection.peer().node_id, provider.node_id());
    assert!(client.pool().open(&old.node_id()).is_some());
    // Keys that name each other lead nowhere, and end.
    client
        .pool()
        .learn(&Succession::new(provider.identity(), &older).unwrap());
    assert!(client.pool().open(&provider.node_id()).is_some());
}

#[tokio::test]
async fn a_connection_found_again_is_the_one_that_the_pool_has_now() {
    let (provider, _events) = provider().await;
    let client = client().await;
    let (pool, id) = (client.pool(), provider.node_id());
    let mut found = FoundConnection::default();
    assert!(pool.open_again(&id, &mut found).is_none());
    drop(pool.get(&id, &at(&provider)).await.unwrap());
    for _ in 0..3 {
        let connection = pool.open_again(&id, &mut found).unwrap();
        assert_eq!(connection.peer().node_id, id);
    }
    // Another key in the place of this one: what was found before is not given any more.
    let (other, _events) = self::provider().await;
    drop(pool.get(&other.node_id(), &at(&other)).await.unwrap());
    pool.learn(&Succession::new(provider.identity(), other.identity()).unwrap());
    let connection = pool.open_again(&id, &mut found).unwrap();
    assert_eq!(connection.peer().node_id, other.node_id());
    drop(connection);
    // Nor is one that has ended.
    other.shutdown(PATIENCE).await;
    until("the ended connection is not found again", || {
        pool.open_again(&id, &mut found).is_none()
    })
    .await;
}

#[tokio::test]
async fn p2_idle_connections_make_room_and_busy_ones_do_not() {
    let pool = PoolConfig {
        max_connections: 1,
        ..PoolConfig::default()
    };
    let client = Endpoint::bind(config().with_pool(pool), NoService).await.unwrap();
    let (first, mut events) = provider().await;
    let (second, _events) = provider().await;
    let connection = connect(&client, &first).await.unwrap();
    let name = service("hang");
    let call = connection.call(CallRequest::new(&name, "").with_timeout(PATIENCE));
    let rest = async {
        assert_eq!(events.recv().await, Some(Seen::Started));
        let error = connect(&client, &second).await.unwrap_err();
        assert!(matches!(error, DialError::PoolFull { max: 1 }), "{error}");
    };
    tokio::select! {
        result = call => panic!("a hanging call ended: {result:?}"),
        () = rest => {}
    }
    drop(connection);
    echoes(&connect(&client, &second).await.unwrap(), "hello").await;
    assert_eq!((client.pool().stats().evicted, client.pool().stats().open), (1, 1));
    until("the evicted peer lets go too", || first.pool().stats().open == 0).await;
}

#[tokio::test]
async fn p2_unused_connections_are_closed() {
    let pool = PoolConfig {
        idle_timeout: Duration::from_millis(20),
        ..PoolConfig::default()
    };
    let client = Endpoint::bind(config().with_pool(pool), NoService).await.unwrap();
    let (provider, _events) = provider().await;
    let connection = connect(&client, &provider).await.unwrap();
    echoes(&connection, "hello").await;
    assert_eq!(
        client.pool().stats().open,
        1,
        "a connection that somebody holds is not idle"
    );
    drop(connection);
    until("the connection is closed", || client.pool().stats().open == 0).await;
    assert_eq!(client.pool().stats().idle_closed, 1);
    until("the peer lets go too", || provider.pool().stats().open == 0).await;
}

/// The accepting side, which makes no calls of its own, knows that the connection is used.
#[tokio::test]
async fn p2_a_connection_that_is_called_over_is_not_idle_for_the_provider() {
    let pool = PoolConfig {
        idle_timeout: Duration::from_millis(700),
        ..PoolConfig::default()
    };
    let (handler, _events) = common::Service::new();
    let provider = Endpoint::bind(config().with_pool(pool), handler).await.unwrap();
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    let started = std::time::Instant::now();
    while started.elapsed() < 3 * pool.idle_timeout {
        echoes(&connection, "alone").await;
        tokio::join!(echoes(&connection, "on a lane"), echoes(&connection, "on a lane"));
    }
    assert_eq!((connection.lost(), provider.pool().stats().idle_closed), (None, 0));
}

#[tokio::test]
async fn p2_all_is_closed_at_shutdown() {
    let (provider, _events) = provider().await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    client.shutdown(PATIENCE).await;
    assert!(connection.lost().is_some());
    assert!(matches!(connect(&client, &provider).await, Err(DialError::ShutDown)));
    until("the provider lets go", || provider.pool().stats().open == 0).await;
}

#[tokio::test]
async fn nobody_at_the_address_is_told_so() {
    let unused = std::net::UdpSocket::bind(common::loopback()).unwrap();
    let timers = macula_transport::Timers {
        connect: Duration::from_millis(100),
        ..Default::default()
    };
    let client = Endpoint::bind(Config::new(common::identity()).with_timers(timers), NoService)
        .await
        .unwrap();
    let address = unused.local_addr().unwrap().try_into().unwrap();
    let error = client
        .pool()
        .get(&common::identity().node_id(), &[address])
        .await
        .unwrap_err();
    assert!(matches!(error, DialError::TimedOut { .. }), "{error}");
    assert_eq!(client.pool().stats().dial_failures, 1);
    let error = client.pool().get(&common::identity().node_id(), &[]).await.unwrap_err();
    assert!(matches!(error, DialError::NoAddress), "{error}");
    let nowhere = "no-such-host.invalid:1".parse().unwrap();
    let error = client
        .pool()
        .get(&common::identity().node_id(), &[nowhere])
        .await
        .unwrap_err();
    assert!(
        matches!(error, DialError::Resolve { .. } | DialError::NoAddress),
        "{error}"
    );
}

#[tokio::test]
async fn a_dial_goes_on_to_the_address_that_answers() {
    let silent = std::net::UdpSocket::bind(common::loopback()).unwrap();
    let (provider, _events) = provider().await;
    let client = client().await;
    let [there] = at(&provider);
    let addresses = [silent.local_addr().unwrap().try_into().unwrap(), there];
    echoes(
        &client.pool().get(&provider.node_id(), &addresses).await.unwrap(),
        "hello",
    )
    .await;
}

#[tokio::test]
async fn a_port_in_use_is_told_so() {
    let (provider, _events) = provider().await;
    let taken = Config::new(common::identity()).with_listen(provider.local_addr());
    let error = Endpoint::bind(taken, NoService).await.unwrap_err();
    assert!(error.to_string().contains("cannot listen"), "{error}");
}

#[tokio::test]
async fn an_ended_connection_says_why() {
    let (provider, _events) = provider().await;
    let client = client().await;
    let mut events = client.pool().events();
    let connection = connect(&client, &provider).await.unwrap();
    let node = provider.node_id();
    assert!(matches!(events.next().await, Some(PoolEvent::Opened { node: of, dialed: true }) if of == node));
    assert_eq!(connection.lost(), None);
    drop(provider);
    until("the end is noticed", || connection.lost().is_some()).await;
    assert!(matches!(
        connection.lost(),
        Some(Lost::ClosedByPeer {
            code: CloseCode::Aborted,
            ..
        })
    ));
    assert!(matches!(events.next().await, Some(PoolEvent::Closed { node: of, .. }) if of == node));
}
