//! Every kind of pool event, in simulated time, so that each comes at its exact moment.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use macula_transport::{
    CallRequest, CloseCode, Config, Connection, DialError, Endpoint, Handler, Identity, IncomingCall, Lost, NoService,
    PoolConfig, PoolEvent, PoolEvents, Reply, Timers, testing::Network,
};
use macula_wire::{NodeId, SecretKey};
use tokio::time::Instant;

/// Answers with the request, or never.
struct Service;

impl Handler for Service {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        if call.service().as_str() == "hang" {
            return std::future::pending().boxed();
        }
        std::future::ready(Reply::ok(call.into_body())).boxed()
    }
}

const HOUR: Duration = Duration::from_secs(3600);

fn identity(n: u8) -> Identity {
    Identity::from_secret(SecretKey::from_bytes(&[n; SecretKey::LEN]))
}

fn config(network: &Network, n: u8) -> Config {
    Config::new(identity(n))
        .with_network(network)
        .with_listen(([10, 0, 0, n], 9443).into())
}

async fn host(network: &Network, n: u8) -> Endpoint {
    Endpoint::bind(config(network, n), Service).await.unwrap()
}

fn at(n: u8) -> [macula_wire::Address; 1] {
    [std::net::SocketAddr::from(([10, 0, 0, n], 9443)).try_into().unwrap()]
}

async fn connect(from: &Endpoint, n: u8) -> Result<Connection, DialError> {
    from.pool().get(&identity(n).node_id(), &at(n)).await
}

/// The next event, whenever it comes.
async fn next(events: &mut PoolEvents) -> PoolEvent {
    tokio::time::timeout(24 * HOUR, events.next()).await.unwrap().unwrap()
}

async fn opened(events: &mut PoolEvents, n: u8, by_us: bool) {
    let event = next(events).await;
    assert!(
        matches!(event, PoolEvent::Opened { node, dialed } if (node, dialed) == (identity(n).node_id(), by_us)),
        "{event:?}"
    );
}

/// Why the connection to a node ended, as the next event says.
async fn closed(events: &mut PoolEvents, n: u8) -> Lost {
    match next(events).await {
        PoolEvent::Closed { node, reason } if node == identity(n).node_id() => reason,
        other => panic!("not the end of a connection to {n}: {other:?}"),
    }
}

async fn dial_failed(events: &mut PoolEvents) -> (Option<NodeId>, Arc<DialError>) {
    match next(events).await {
        PoolEvent::DialFailed { node, error } => (node, error),
        other => panic!("not a failed dial: {other:?}"),
    }
}

/// Nothing is told that has not happened.
async fn silence(events: &mut PoolEvents) {
    let event = tokio::time::timeout(Duration::from_secs(1), events.next()).await;
    assert!(event.is_err(), "{event:?}");
}

fn by_peer(reason: &Lost) -> (CloseCode, &str) {
    match reason {
        Lost::ClosedByPeer { code, reason } => (*code, reason),
        other => panic!("not closed by the peer: {other:?}"),
    }
}

async fn hang(connection: &Connection, timeout: Duration) {
    let name = "hang".parse().unwrap();
    let request = CallRequest::new(&name, Bytes::new()).with_timeout(timeout);
    connection.call(request).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn p2_a_connection_is_told_on_both_sides_when_it_opens_and_when_it_makes_room() {
    let network = Network::new(1);
    let pool = PoolConfig {
        max_connections: 1,
        ..PoolConfig::default()
    };
    let caller = Endpoint::bind(config(&network, 1).with_pool(pool), NoService)
        .await
        .unwrap();
    let (first, _second) = (host(&network, 2).await, host(&network, 3).await);
    let (mut here, mut there) = (caller.pool().events(), first.pool().events());
    drop(connect(&caller, 2).await.unwrap());
    opened(&mut here, 2, true).await;
    opened(&mut there, 1, false).await;
    drop(connect(&caller, 2).await.unwrap());
    silence(&mut here).await;

    drop(connect(&caller, 3).await.unwrap());
    assert_eq!(closed(&mut here, 2).await, Lost::ClosedHere(CloseCode::Retired));
    opened(&mut here, 3, true).await;
    let reason = closed(&mut there, 1).await;
    assert_eq!(
        by_peer(&reason),
        (CloseCode::Retired, "the connection made room for another")
    );
}

#[tokio::test(start_paused = true)]
async fn p2_an_idle_connection_is_told_when_its_time_is_up_and_an_old_one_when_it_has_nothing_to_do() {
    let network = Network::new(1);
    // Of two sides that find a connection idle, the more patient one is told.
    let patient = PoolConfig {
        idle_timeout: 3 * HOUR,
        ..PoolConfig::default()
    };
    let provider = config(&network, 2).with_pool(patient);
    let provider = Endpoint::bind(provider, Service).await.unwrap();
    let caller = host(&network, 1).await;
    let (mut here, mut there) = (caller.pool().events(), provider.pool().events());
    drop(connect(&caller, 2).await.unwrap());
    let start = Instant::now();
    opened(&mut here, 2, true).await;
    opened(&mut there, 1, false).await;
    assert_eq!(closed(&mut here, 2).await, Lost::ClosedHere(CloseCode::Retired));
    let idle = start.elapsed();
    let timeout = PoolConfig::default().idle_timeout;
    assert!(idle >= timeout && idle < timeout + Duration::from_secs(1), "{idle:?}");
    let reason = closed(&mut there, 1).await;
    assert_eq!(by_peer(&reason), (CloseCode::Retired, "the connection was idle"));

    // A connection in use gets old instead, and ends when its last handle is dropped.
    let held = connect(&caller, 2).await.unwrap();
    opened(&mut here, 2, true).await;
    opened(&mut there, 1, false).await;
    tokio::time::sleep(2 * PoolConfig::default().max_age).await;
    assert_eq!(caller.pool().stats().aged, 1);
    silence(&mut here).await;
    drop(held);
    assert_eq!(closed(&mut here, 2).await, Lost::ClosedHere(CloseCode::Retired));
    let reason = closed(&mut there, 1).await;
    assert_eq!(by_peer(&reason), (CloseCode::Retired, "nothing is left to do"));
}

#[tokio::test(start_paused = true)]
async fn p3_a_dead_peer_is_told_by_its_silence_and_a_restarted_one_by_its_word() {
    let network = Network::new(1);
    let caller = host(&network, 1).await;
    let mut here = caller.pool().events();
    // While a call waits.
    let provider = host(&network, 2).await;
    let connection = connect(&caller, 2).await.unwrap();
    opened(&mut here, 2, true).await;
    network.kill(provider.local_addr());
    hang(&connection, HOUR).await;
    assert_eq!(closed(&mut here, 2).await, Lost::ClosedHere(CloseCode::Unresponsive));
    drop((connection, provider));

    // While nothing waits.
    let provider = host(&network, 2).await;
    drop(connect(&caller, 2).await.unwrap());
    opened(&mut here, 2, true).await;
    network.kill(provider.local_addr());
    let start = Instant::now();
    assert_eq!(closed(&mut here, 2).await, Lost::TimedOut);
    assert!(start.elapsed() <= Timers::default().idle + Duration::from_secs(1));
    drop(provider);

    // The node restarts with its old key.
    let provider = host(&network, 2).await;
    let connection = connect(&caller, 2).await.unwrap();
    opened(&mut here, 2, true).await;
    network.kill(provider.local_addr());
    let _restarted = host(&network, 2).await;
    let start = Instant::now();
    hang(&connection, HOUR).await;
    assert_eq!(closed(&mut here, 2).await, Lost::Restarted);
    assert!(start.elapsed() <= Duration::from_secs(2));
    silence(&mut here).await;
}

#[tokio::test(start_paused = true)]
async fn the_end_of_an_endpoint_is_told_to_its_peers_and_ends_its_own_events() {
    let network = Network::new(1);
    let caller = host(&network, 1).await;
    let mut here = caller.pool().events();
    // At once.
    let provider = host(&network, 2).await;
    drop(connect(&caller, 2).await.unwrap());
    opened(&mut here, 2, true).await;
    drop(provider);
    assert_eq!(by_peer(&closed(&mut here, 2).await).0, CloseCode::Aborted);
    silence(&mut here).await;

    // In order, with nothing under way.
    let provider = host(&network, 2).await;
    let mut there = provider.pool().events();
    drop(connect(&caller, 2).await.unwrap());
    opened(&mut here, 2, true).await;
    opened(&mut there, 1, false).await;
    provider.shutdown(HOUR).await;
    assert_eq!(by_peer(&closed(&mut here, 2).await).0, CloseCode::Shutdown);
    assert_eq!(closed(&mut there, 1).await, Lost::ClosedHere(CloseCode::Shutdown));
    drop(provider);
    assert!(tokio::time::timeout(HOUR, there.next()).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_failed_dial_is_reported_with_its_node_and_a_dial_never_made_is_not() {
    let network = Network::new(1);
    let (caller, _other) = (host(&network, 1).await, host(&network, 3).await);
    let mut here = caller.pool().events();
    // No host is at the address.
    connect(&caller, 2).await.unwrap_err();
    let (node, error) = dial_failed(&mut here).await;
    assert_eq!(node, Some(identity(2).node_id()));
    assert!(matches!(*error, DialError::TimedOut { .. }), "{error:?}");
    let error = connect(&caller, 2).await.unwrap_err();
    assert!(matches!(error, DialError::BackingOff { .. }), "{error:?}");
    silence(&mut here).await;
    // Another node is at the address.
    caller.pool().get(&identity(4).node_id(), &at(3)).await.unwrap_err();
    let (node, error) = dial_failed(&mut here).await;
    assert_eq!(node, Some(identity(4).node_id()));
    assert!(matches!(*error, DialError::WrongNode { .. }), "{error:?}");
    // A first contact expects no particular node, and no host is at the address.
    let [nowhere] = at(5);
    caller.pool().first_contact(&nowhere).await.unwrap_err();
    let (node, error) = dial_failed(&mut here).await;
    assert_eq!(node, None);
    assert!(matches!(*error, DialError::TimedOut { .. }), "{error:?}");
    // Many at once are one dial.
    let [first, second] = [connect(&caller, 6), connect(&caller, 6)];
    let (first, second) = tokio::join!(first, second);
    assert!(first.is_err() && second.is_err());
    dial_failed(&mut here).await;
    silence(&mut here).await;
}

/// A slow watcher learns how many events it missed, and holds up no dial.
#[tokio::test(start_paused = true)]
async fn a_slow_watcher_is_told_how_much_it_missed() {
    let network = Network::new(1);
    let caller = host(&network, 1).await;
    let (mut slow, pool) = (caller.pool().events(), caller.pool());
    let absent = (0..300_u16).map(|n| {
        let mut bytes = [9; SecretKey::LEN];
        bytes[..2].copy_from_slice(&n.to_le_bytes());
        Identity::from_secret(SecretKey::from_bytes(&bytes)).node_id()
    });
    for node in absent {
        // Without an address, a dial fails at once.
        pool.get(&node, &[]).await.unwrap_err();
    }
    let PoolEvent::Missed(missed) = next(&mut slow).await else {
        panic!("nothing was missed")
    };
    let mut kept = 0;
    while missed + kept < 300 {
        dial_failed(&mut slow).await;
        kept += 1;
    }
    assert_eq!(kept, 256);
    silence(&mut slow).await;
    // And goes on.
    let _provider = host(&network, 2).await;
    drop(connect(&caller, 2).await.unwrap());
    opened(&mut slow, 2, true).await;
}
