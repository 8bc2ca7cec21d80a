//! The places for calls are shared between peers and networks, and no peer keeps one for longer than the node allows (X5).

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::time::Duration;

use common::{PATIENCE, Seen, Service, clock::Clock, config, connect, echoes, service, until};
use futures::future::{BoxFuture, FutureExt as _};
use macula_transport::{
    CallError, CallKind, CallReply, CallRequest, Connection, Endpoint, Handler, IncomingCall, IncomingMessages, Limits,
    LoadReport, NoService, OutgoingMessages, Reply,
};
use macula_wire::StatusCode;
use tokio::{sync::mpsc, task::JoinHandle};

/// As the other tests' services; `far` is forwarded, and never answered.
struct Services {
    here: Service,
    takes: u32,
}

impl Handler for Services {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        self.here.call(call)
    }

    fn kind(&self, call: &IncomingCall) -> CallKind {
        match call.service().as_str() {
            "far" => CallKind::Forwarded,
            "watch" => CallKind::Streaming,
            _ => CallKind::Unary,
        }
    }

    fn stream(&self, _: IncomingCall, requests: IncomingMessages, _: OutgoingMessages) -> BoxFuture<'static, Reply> {
        let seen = self.here.seen.clone();
        async move {
            let _requests = requests;
            let _ = seen.send(Seen::Started);
            std::future::pending().await
        }
        .boxed()
    }

    fn load(&self) -> Option<LoadReport> {
        Some(LoadReport {
            running: 0,
            capacity: self.takes,
        })
    }
}

async fn provider(limits: Limits, takes: u32) -> (Endpoint, mpsc::UnboundedReceiver<Seen>) {
    let (here, events) = Service::new();
    let services = Services { here, takes };
    let endpoint = Endpoint::bind(config().with_limits(limits), services).await.unwrap();
    (endpoint, events)
}

/// A peer on a network of its own.
async fn peer(network: u8) -> Endpoint {
    let config = config().with_listen(([127, 0, network, 1], 0).into());
    Endpoint::bind(config, NoService).await.unwrap()
}

/// A call that is not answered, once it runs at the provider or has ended.
async fn waits(
    connection: &Connection,
    name: &'static str,
    events: &mut mpsc::UnboundedReceiver<Seen>,
) -> JoinHandle<Result<CallReply, CallError>> {
    let connection = connection.clone();
    let mut call = tokio::spawn(async move {
        let name = service(name);
        connection
            .call(CallRequest::new(&name, "").with_timeout(PATIENCE))
            .await
    });
    tokio::select! {
        _ = events.recv() => {}
        _ = &mut call => panic!("it has ended"),
    }
    call
}

fn gave_way(result: &CallReply) -> bool {
    result.status == StatusCode::ResourceExhausted
}

const EIGHT: Limits = Limits {
    max_message_bytes: 4 << 20,
    max_head_bytes: 16 << 10,
    max_metadata_entries: 128,
    max_concurrent_calls: 1024,
    max_running_calls: 8,
    max_forwarded_calls: 2,
    max_call_time: Duration::from_secs(3600),
    max_streams: 256,
    stream_window: 1_250_000,
    connection_window: 16 << 20,
    max_accepted: 4096,
    max_accepted_per_network: 1024,
    max_accepted_per_peer: 8,
    max_handshakes: 256,
    retry_above: 64,
    socket_buffer_bytes: 4 << 20,
    memory_bytes: 1 << 30,
};

#[tokio::test]
async fn x5_calls_that_wait_for_ever_give_way_to_those_of_other_networks() {
    for name in ["hang", "watch"] {
        let (provider, mut events) = provider(EIGHT, u32::MAX).await;
        let (one, two) = (peer(1).await, peer(1).await);
        let mut crowd = Vec::new();
        for from in [&one, &two] {
            let connection = connect(from, &provider).await.unwrap();
            for _ in 0..4 {
                crowd.push(waits(&connection, name, &mut events).await);
            }
        }
        let honest = peer(2).await;
        let connection = connect(&honest, &provider).await.unwrap();
        for _ in 0..20 {
            echoes(&connection, "served").await;
        }
        // Its share is half of the places, and theirs a quarter each.
        let mut own = Vec::new();
        for _ in 0..4 {
            own.push(waits(&connection, "hang", &mut events).await);
        }
        until("half of theirs have ended", || {
            crowd.iter().filter(|call| call.is_finished()).count() == 4
        })
        .await;
        let (ended, running): (Vec<_>, Vec<_>) = crowd.into_iter().partition(JoinHandle::is_finished);
        for call in ended {
            assert!(gave_way(&call.await.unwrap().unwrap()));
        }
        // Those that have their share already are refused.
        let name = service("hang");
        let refused = connection
            .call(CallRequest::new(&name, "").with_timeout(PATIENCE))
            .await;
        assert!(
            matches!(
                &refused,
                Err(CallError::Refused {
                    status: StatusCode::ResourceExhausted,
                    ..
                })
            ),
            "{refused:?}"
        );
        assert!(own.iter().chain(&running).all(|call| !call.is_finished()));
        own.iter().chain(&running).for_each(JoinHandle::abort);
        echoes(&connection, "room again").await;
    }
}

#[tokio::test]
async fn x5_forwarded_calls_have_places_of_their_own() {
    let (provider, mut events) = provider(EIGHT, u32::MAX).await;
    let router_user = peer(1).await;
    let connection = connect(&router_user, &provider).await.unwrap();
    let far = [
        waits(&connection, "far", &mut events).await,
        waits(&connection, "far", &mut events).await,
    ];
    let name = service("far");
    let refused = connection
        .call(CallRequest::new(&name, "").with_timeout(PATIENCE))
        .await;
    assert!(matches!(refused, Err(CallError::Refused { .. })), "{refused:?}");
    echoes(&connection, "calls that run here have room").await;
    let other = peer(2).await;
    let other = connect(&other, &provider).await.unwrap();
    let _theirs = waits(&other, "far", &mut events).await;
    until("one gave way", || far.iter().any(JoinHandle::is_finished)).await;
}

#[tokio::test]
async fn x5_no_more_calls_of_peers_run_than_the_handler_takes() {
    let (provider, mut events) = provider(Limits::default(), 2).await;
    let client = peer(1).await;
    let connection = connect(&client, &provider).await.unwrap();
    let _running = [
        waits(&connection, "hang", &mut events).await,
        waits(&connection, "hang", &mut events).await,
    ];
    let name = service("echo");
    let refused = connection.call(CallRequest::new(&name, "")).await;
    assert!(matches!(refused, Err(CallError::Refused { .. })), "{refused:?}");
}

#[tokio::test]
async fn x5_a_call_ends_when_the_provider_says_so_whatever_its_caller_asks_for() {
    let clock = Clock::stop();
    let limits = Limits {
        max_call_time: Duration::from_secs(5),
        ..Limits::default()
    };
    let (provider, mut events) = provider(limits, u32::MAX).await;
    let client = peer(1).await;
    let connection = connect(&client, &provider).await.unwrap();
    let asked = Duration::from_secs(24 * 3600);
    for name in ["hang", "watch"] {
        let name = service(name);
        let mut call = Box::pin(connection.call(CallRequest::new(&name, "").with_timeout(asked)));
        assert!((&mut call).now_or_never().is_none());
        events.recv().await.unwrap();
        let reply = clock.run(Duration::from_millis(500), call).await.unwrap();
        assert_eq!(reply.status, StatusCode::DeadlineExceeded);
        // The call of `hang` is dropped.
        while events.recv().now_or_never().flatten().is_some() {}
    }
}
