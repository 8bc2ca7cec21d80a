//! The pool over real sockets.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::time::Duration;

use common::{
    PATIENCE, Seen, at, client,
    clock::Clock,
    config, connect, echoes, provider,
    proxy::{Faults, Proxy},
    service, until,
};
use futures::FutureExt as _;
use macula_transport::{
    CallError, CallRequest, CloseCode, Config, DialError, Endpoint, FoundConnection, Lost, NoService, NotSent,
    PoolConfig, PoolEvent, Succession, SuccessionError, Unknown,
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
async fn p1_a_dial_reaches_the_intended_node_or_fails() {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_first_contacts_at_one_address_are_one_dial_and_one_connection() {
    let (provider, _events) = provider().await;
    let client = client().await;
    let [address] = at(&provider);
    let pool = client.pool();
    let contacts = futures::future::join_all((0..50).map(|_| pool.first_contact(&address))).await;
    assert!(contacts.iter().all(Result::is_ok));
    pool.first_contact(&address).await.unwrap();
    assert_eq!((client.pool().stats().opened, provider.pool().stats().accepted), (1, 1));
}

#[tokio::test]
async fn every_way_to_an_open_connection_counts_as_its_reuse() {
    let (provider, _events) = provider().await;
    let client = client().await;
    let [address] = at(&provider);
    assert!(client.pool().open(&provider.node_id()).is_none());
    client.pool().first_contact(&address).await.unwrap();
    assert_eq!(client.pool().stats().reused, 0);
    client.pool().first_contact(&address).await.unwrap();
    connect(&client, &provider).await.unwrap();
    assert!(client.pool().open(&provider.node_id()).is_some());
    assert_eq!(client.pool().stats().reused, 3);
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

/// The old name and a record that both keys have signed are all that a dialer needs, and nothing less will do.
#[tokio::test]
async fn a_new_key_is_believed_for_the_word_of_the_old_one_only() {
    let (provider, _events) = provider().await;
    let client = client().await;
    let (old, stranger) = (common::identity(), common::identity());
    let new = provider.identity();
    // A stranger's forgery, put together from parts that the keys did sign.
    let (true_one, foreign) = (
        Succession::new(&old, new).unwrap().to_bytes(),
        Succession::new(&stranger, new).unwrap().to_bytes(),
    );
    let mut forged = foreign;
    forged[..32].copy_from_slice(old.node_id().as_bytes());
    assert_eq!(Succession::verify(&forged), Err(SuccessionError::OldKey));
    // The old key alone does not make its owner of another's.
    let mut claimed = true_one;
    claimed[128..].copy_from_slice(&foreign[128..]);
    assert_eq!(Succession::verify(&claimed), Err(SuccessionError::NewKey));
    let error = client.pool().get(&old.node_id(), &at(&provider)).await.unwrap_err();
    assert!(matches!(error, DialError::WrongNode { .. }), "{error}");

    client.pool().learn(&Succession::verify(&true_one).unwrap());
    let connection = client.pool().get(&old.node_id(), &at(&provider)).await.unwrap();
    assert_eq!(connection.peer().node_id, new.node_id());
    echoes(&connection, "hello").await;
}

/// A peer that still shows the old key is no longer the node: the key may have been stolen.
#[tokio::test]
async fn the_old_key_is_refused_once_its_successor_is_known() {
    let (provider, _events) = provider().await;
    let client = client().await;
    let (old, new) = (provider.identity(), common::identity());
    client.pool().learn(&Succession::new(old, &new).unwrap());
    let error = client.pool().get(&old.node_id(), &at(&provider)).await.unwrap_err();
    assert!(
        matches!(error, DialError::WrongNode { expected, found, .. }
        if expected == new.node_id() && found == old.node_id()),
        "{error}"
    );
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
    // Another key succeeds this one, so the remembered connection is no longer valid.
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
async fn p2_a_request_waits_for_a_place_in_a_full_pool_until_its_time() {
    let pool = PoolConfig {
        max_connections: 1,
        ..PoolConfig::default()
    };
    let client = Endpoint::bind(config().with_pool(pool), NoService).await.unwrap();
    let (first, _events) = provider().await;
    let (second, _events) = provider().await;
    let (third, _events) = provider().await;
    let connection = connect(&client, &first).await.unwrap();
    let pool = client.pool();
    let by = async |to: &Endpoint, until| pool.get_by(&to.node_id(), &at(to), until).await;
    let now = std::time::Instant::now();
    let error = by(&second, now).await.unwrap_err();
    assert!(matches!(error, DialError::PoolFull { max: 1 }), "{error}");

    let until = now + PATIENCE;
    let use_it = async |to: &Endpoint| {
        let connection = by(to, until).await.unwrap();
        echoes(&connection, "hello").await;
    };
    let mut waiting = Box::pin(futures::future::join_all([
        use_it(&second).boxed_local(),
        use_it(&third).boxed_local(),
        use_it(&second).boxed_local(),
        use_it(&third).boxed_local(),
    ]));
    assert!((&mut waiting).now_or_never().is_none());
    // One that gives up leaves its turn to the next.
    let mut gives_up = Box::pin(by(&third, until));
    assert!((&mut gives_up).now_or_never().is_none());
    drop(gives_up);
    drop(connection);
    waiting.await;
    assert_eq!(client.pool().stats().open, 1);
}

#[tokio::test]
async fn p2_unused_connections_are_closed() {
    let clock = Clock::stop();
    let pool = PoolConfig {
        idle_timeout: Duration::from_secs(10),
        ..PoolConfig::default()
    };
    let client = Endpoint::bind(config().with_pool(pool), NoService).await.unwrap();
    let (provider, _events) = provider().await;
    let connection = connect(&client, &provider).await.unwrap();
    echoes(&connection, "hello").await;
    clock.pass(pool.idle_timeout * 2).await;
    assert_eq!(client.pool().stats().open, 1, "a connection with a handle is not idle");
    echoes(&connection, "hello").await;
    drop(connection);
    clock.pass(pool.idle_timeout / 2).await;
    assert_eq!(client.pool().stats().open, 1, "a connection used lately is not idle");
    clock.pass(pool.idle_timeout).await;
    until("the connection is closed", || client.pool().stats().open == 0).await;
    let stats = client.pool().stats();
    assert_eq!((stats.idle_closed, stats.lost), (1, 0));
    until("the peer lets go too", || provider.pool().stats().open == 0).await;
}

/// The accepting side, which makes no calls of its own, knows that the connection is used.
#[tokio::test]
async fn p2_a_connection_that_is_called_over_is_not_idle_for_the_provider() {
    let clock = Clock::stop();
    let pool = PoolConfig {
        idle_timeout: Duration::from_secs(10),
        ..PoolConfig::default()
    };
    let (handler, _events) = common::Service::new();
    let provider = Endpoint::bind(config().with_pool(pool), handler).await.unwrap();
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    for _ in 0..4 {
        clock.pass(pool.idle_timeout * 3 / 4).await;
        echoes(&connection, "alone").await;
    }
    for _ in 0..4 {
        clock.pass(pool.idle_timeout * 3 / 4).await;
        tokio::join!(echoes(&connection, "alone"), echoes(&connection, "on a lane"));
    }
    assert_eq!((connection.lost(), provider.pool().stats().idle_closed), (None, 0));
    clock.pass(pool.idle_timeout * 2).await;
    until("it is idle in the end", || provider.pool().stats().idle_closed == 1).await;
}

/// P2: an old connection gives way to a new one, and fails no call.
#[tokio::test]
async fn p2_an_old_connection_is_replaced_when_its_calls_have_ended() {
    let clock = Clock::stop();
    let pool = PoolConfig {
        max_age: Duration::from_secs(20),
        ..PoolConfig::default()
    };
    let client = Endpoint::bind(config().with_pool(pool), NoService).await.unwrap();
    let (provider, mut events) = provider().await;
    let old = connect(&client, &provider).await.unwrap();
    let name = service("hang");
    let mut call = Box::pin(old.call(CallRequest::new(&name, "").with_timeout(Duration::from_secs(30))));
    tokio::select! {
        result = &mut call => panic!("a hanging call ended: {result:?}"),
        event = events.recv() => assert_eq!(event, Some(Seen::Started)),
    }
    // A tenth more or less, in steps that let the connection be kept open.
    let aged = || client.pool().stats().aged;
    for _ in 0..8 {
        clock.pass(Duration::from_secs(2)).await;
    }
    assert_eq!(aged(), 0, "no connection gets old before nine tenths of its age");
    for _ in 0..4 {
        clock.pass(Duration::from_secs(2)).await;
    }
    assert_eq!(
        (aged(), client.pool().stats().open),
        (1, 1),
        "the old one is still there"
    );
    let new = connect(&client, &provider).await.unwrap();
    echoes(&new, "hello").await;
    assert_eq!((client.pool().stats().opened, old.lost()), (2, None));
    let error = clock.run(Duration::from_secs(1), &mut call).await.unwrap_err();
    assert!(
        matches!(&error, CallError::Unknown(Unknown::Timeout(_))),
        "the call kept its connection to its own end: {error:?}"
    );
    drop(call);
    drop(old);
    let gone = async { until("the old connection is closed", || client.pool().stats().open == 1).await };
    clock.run(Duration::from_secs(1), gone).await;
    assert_eq!((new.lost(), client.pool().stats().lost), (None, 0));
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
async fn an_address_without_a_host_times_out() {
    let clock = Clock::stop();
    let unused = std::net::UdpSocket::bind(common::loopback()).unwrap();
    let client = Endpoint::bind(Config::new(common::identity()), NoService)
        .await
        .unwrap();
    let (pool, absent) = (client.pool(), common::identity().node_id());
    let address = [unused.local_addr().unwrap().try_into().unwrap()];
    let dial = pool.get(&absent, &address);
    let error = clock.run(Duration::from_millis(100), dial).await.unwrap_err();
    assert!(matches!(error, DialError::TimedOut { .. }), "{error}");
    assert_eq!(pool.stats().dial_failures, 1);
    let error = pool.get(&common::identity().node_id(), &[]).await.unwrap_err();
    assert!(matches!(error, DialError::NoAddress), "{error}");
    drop(clock);
    tokio::time::resume();
    let nowhere = "no-such-host.invalid:1".parse().unwrap();
    let error = pool.get(&common::identity().node_id(), &[nowhere]).await.unwrap_err();
    assert!(
        matches!(error, DialError::Resolve { .. } | DialError::NoAddress),
        "{error}"
    );
}

/// P1, RFC 8305, section 5: the next address is tried when one has been silent for a while, and not before.
#[tokio::test]
async fn p1_a_silent_address_holds_up_the_next_one_for_a_moment() {
    let clock = Clock::stop();
    let silent = std::net::UdpSocket::bind(common::loopback()).unwrap();
    let (provider, _events) = provider().await;
    let client = client().await;
    let [there] = at(&provider);
    let addresses = [silent.local_addr().unwrap().try_into().unwrap(), there];
    let (pool, node) = (client.pool(), provider.node_id());
    let mut dial = Box::pin(pool.get(&node, &addresses));
    assert!((&mut dial).now_or_never().is_none());
    clock
        .pass(macula_transport::Timers::default().next_address - Duration::from_millis(10))
        .await;
    assert_eq!(provider.pool().stats().accepted, 0);
    clock.pass(Duration::from_millis(20)).await;
    echoes(&dial.await.unwrap(), "hello").await;
}

/// P1, RFC 8305, section 5: an address that fails does not hold up the next one at all. The clock stands still.
#[tokio::test]
async fn p1_a_failing_address_gives_way_at_once() {
    let _clock = Clock::stop();
    let (provider, _events) = provider().await;
    let (other, _events) = common::provider().await;
    let client = client().await;
    let addresses = [at(&client), at(&other), at(&provider)].concat();
    let connection = client.pool().get(&provider.node_id(), &addresses).await.unwrap();
    assert_eq!(connection.peer().node_id, provider.node_id());
}

/// A slow address that answers in the end wins over a later one that never does.
#[tokio::test]
async fn p1_the_first_address_to_answer_wins() {
    let clock = Clock::stop();
    let (provider, _events) = provider().await;
    let slow = Proxy::new(provider.local_addr(), 1).await;
    slow.set(Faults {
        delay: Duration::from_millis(400),
        ..Faults::default()
    });
    let silent = std::net::UdpSocket::bind(common::loopback()).unwrap();
    let client = client().await;
    let addresses = [
        slow.address.try_into().unwrap(),
        silent.local_addr().unwrap().try_into().unwrap(),
    ];
    let (pool, node) = (client.pool(), provider.node_id());
    let connection = clock
        .run(Duration::from_millis(50), pool.get(&node, &addresses))
        .await
        .unwrap();
    assert_eq!(connection.peer().remote_addr, slow.address);
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

/// Y22: of a connection that is held, the peer's end is told as the peer's, and its calls say why they were not sent.
#[tokio::test]
async fn y22_a_held_connection_says_who_ended_it_and_why_its_calls_are_not_sent() {
    let (provider, _events) = provider().await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    echoes(&connection, "hello").await;
    provider.shutdown(PATIENCE).await;
    until("the end is noticed", || connection.lost().is_some()).await;
    let lost = connection.lost().unwrap();
    assert!(
        matches!(
            &lost,
            Lost::ClosedByPeer {
                code: CloseCode::Shutdown,
                ..
            }
        ),
        "{lost:?}"
    );
    let name = service("echo");
    let error = connection.call(CallRequest::new(&name, "")).await.unwrap_err();
    let CallError::NotSent(reason) = &error else {
        panic!("{error:?}")
    };
    assert_eq!(error.to_string(), format!("the call was not sent: {reason}"));
    let ended = NotSent::Lost(lost.clone());
    assert_eq!(ended.to_string(), format!("the connection had ended: {lost}"));
    assert!(client.pool().open(&provider.node_id()).is_none());
}
