//! How calls end when they, their peers or their way are slow.

use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, join_all};
use macula_wire::{Member, Realm, SecretKey, ServiceName, Signer as _, StatusCode};
use tokio::{sync::mpsc, time::Instant};

use super::{LinkConditions, Network};
use crate::{
    CallError, CallKind, CallRequest, Config, Connection, Endpoint, Handler, Identity, IncomingCall, IncomingMessages,
    Limits, NoService, OutgoingMessages, Reply, Timers, Unknown,
    call::ask::{OpenWith, opening},
};

const PATIENCE: Duration = Duration::from_secs(60);
const LARGE_REPLY: usize = 4 << 20;

/// What a [`Service`] tells.
#[derive(Debug, PartialEq)]
enum Seen {
    /// A call began, with this deadline.
    Began(Instant),
    /// A task of a handler's own had its messages refused.
    Gone,
}

/// Answers `echo` at once, `second` after one and `slow` after ten, `large` with as many bytes as it is told. `stall` streams and reads nothing,
/// `count` counts its requests, `leave` answers and has a task of its own send on; `unsure` panics when asked what it is.
struct Service(mpsc::UnboundedSender<Seen>);

impl Handler for Service {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        let _ = self.0.send(Seen::Began(call.deadline().into()));
        let (pause, large) = match call.service().as_str() {
            "second" => (Duration::from_secs(1), false),
            "slow" => (Duration::from_secs(10), false),
            "large" => (Duration::from_millis(1), true),
            _ => return std::future::ready(Reply::ok(call.into_body())).boxed(),
        };
        async move {
            tokio::time::sleep(pause).await;
            if !large {
                return Reply::ok(call.into_body());
            }
            let bytes = std::str::from_utf8(call.body()).ok().and_then(|text| text.parse().ok());
            Reply::ok(vec![7; bytes.unwrap_or(LARGE_REPLY)])
        }
        .boxed()
    }

    fn kind(&self, call: &IncomingCall) -> CallKind {
        match call.service().as_str() {
            "stall" | "count" | "leave" => CallKind::Streaming,
            "unsure" => panic!("a handler may panic"),
            _ => CallKind::Unary,
        }
    }

    fn stream(
        &self,
        call: IncomingCall,
        mut requests: IncomingMessages,
        mut replies: OutgoingMessages,
    ) -> BoxFuture<'static, Reply> {
        let seen = self.0.clone();
        let _ = seen.send(Seen::Began(call.deadline().into()));
        let name = call.service().clone();
        async move {
            match name.as_str() {
                "count" => {
                    let mut count = 0;
                    loop {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        match requests.next().await {
                            Ok(Some(_)) => count += 1,
                            Ok(None) => return Reply::ok(format!("{count}")),
                            Err(_) => return Reply::error(StatusCode::Cancelled, "the requests have no end"),
                        }
                    }
                }
                "leave" => {
                    tokio::spawn(async move {
                        while replies.send(vec![1; 100_000].into()).await.is_ok() {}
                        let _ = seen.send(Seen::Gone);
                    });
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    Reply::ok("")
                }
                _ => std::future::pending().await,
            }
        }
        .boxed()
    }
}

fn service() -> (Service, mpsc::UnboundedReceiver<Seen>) {
    let (tell, seen) = mpsc::unbounded_channel();
    (Service(tell), seen)
}

async fn host(network: &Network, n: u8, handler: impl Handler, limits: Limits) -> Endpoint {
    let config = Config::new(Identity::from_secret(SecretKey::from_bytes(&[n; SecretKey::LEN])))
        .with_network(network)
        .with_listen(([10, 0, 0, n], 9443).into())
        .with_timers(Timers {
            connect: PATIENCE,
            ..Timers::default()
        })
        .with_limits(limits);
    Endpoint::bind(config, handler).await.unwrap()
}

/// A caller, a provider of these limits, and the caller's connection to it.
async fn pair(network: &Network, handler: impl Handler, limits: Limits) -> (Endpoint, Endpoint, Connection) {
    let caller = host(network, 1, NoService, limits).await;
    let provider = host(network, 2, handler, limits).await;
    let at = [provider.local_addr().try_into().unwrap()];
    let connection = caller.pool().get(&provider.node_id(), &at).await.unwrap();
    (caller, provider, connection)
}

fn name(service: &str) -> ServiceName {
    service.parse().unwrap()
}

async fn call(connection: &Connection, service: &str, body: Bytes, timeout: Duration) -> Result<Bytes, CallError> {
    let name = name(service);
    let request = CallRequest::new(&name, body).with_timeout(timeout);
    connection.call(request).await.map(|reply| reply.body)
}

fn service_only() -> Service {
    service().0
}

/// A provider shuts down while it runs a call with an answer of `body` bytes.
async fn answered_and_left(link: LinkConditions, service: &str, body: usize) {
    let network = Network::new(1).with_link(link);
    let (_caller, provider, connection) = pair(&network, service_only(), Limits::default()).await;
    let body = Bytes::from(vec![1; body]);
    let (answer, ()) = tokio::join!(call(&connection, service, body.clone(), PATIENCE), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        provider.shutdown(PATIENCE).await;
    });
    assert!(answer.unwrap() == body);
}

#[tokio::test(start_paused = true)]
async fn n4_the_answer_of_a_slow_handler_comes_before_the_farewell() {
    answered_and_left(LinkConditions::new(Duration::from_millis(50)), "slow", 1 << 20).await;
}

#[tokio::test(start_paused = true)]
async fn n4_a_large_answer_on_a_long_way_comes_before_the_farewell() {
    answered_and_left(LinkConditions::new(Duration::from_millis(400)), "second", LARGE_REPLY).await;
}

/// The replies on the lane take twelve seconds, twice as long as a silent peer would be waited for.
#[tokio::test(start_paused = true)]
async fn x1_n4_replies_on_a_lane_are_waited_for_as_long_as_their_caller_takes_them() {
    let network = Network::new(1).with_link(LinkConditions::new(Duration::from_millis(10)).with_bandwidth(40_000));
    let (_caller, provider, connection) = pair(&network, service_only(), Limits::default()).await;
    let calls = join_all((0..30).map(|_| call(&connection, "large", "16000".into(), PATIENCE)));
    let (answers, ()) = tokio::join!(calls, async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        provider.shutdown(PATIENCE).await;
    });
    for answer in answers {
        assert_eq!(answer.unwrap().len(), 16_000);
    }
}

/// More made-up passages at once than are checked in a second.
#[tokio::test(start_paused = true)]
async fn a8_made_up_passages_use_up_only_their_peers_share_of_the_checks() {
    let network = Network::new(1);
    let (flooder, provider, flood) = pair(&network, service_only(), Limits::default()).await;
    let config = Config::new(Identity::generate().unwrap())
        .with_network(&network)
        .with_listen(([10, 0, 9, 1], 9443).into());
    let honest = Endpoint::bind(config, NoService).await.unwrap();
    let at = [provider.local_addr().try_into().unwrap()];
    let connection = honest.pool().get(&provider.node_id(), &at).await.unwrap();
    let echo = name("echo");
    let pass_on = async |connection: &Connection, passage: &Bytes| {
        let request = CallRequest::new(&echo, "x").with_passage(passage.clone());
        match connection.call(request.with_timeout(PATIENCE)).await {
            Ok(reply) => Ok(reply.status),
            Err(CallError::Refused { status, .. }) => Err(status),
            Err(error) => panic!("{error:?}"),
        }
    };
    let passage = |n: u8, router: &Endpoint, signer: u8| {
        let (realm, secret) = (Realm::default(), |n| SecretKey::from_bytes(&[n; SecretKey::LEN]));
        let caller = Member::open(&realm, secret(n).node_id()).unwrap();
        caller.passage(&secret(signer), &realm.hash(), &router.node_id(), &echo, 0)
    };
    let known = passage(7, &flooder, 7);
    assert_eq!(pass_on(&flood, &known).await, Ok(StatusCode::Ok));
    let made_up = passage(8, &flooder, 9);
    let flooded = join_all((0..1_500).map(|_| pass_on(&flood, &made_up))).await;
    let denied = flooded.iter().filter(|it| **it == Ok(StatusCode::PermissionDenied));
    assert_eq!(denied.count(), 1_023, "all checks of a second but one");
    let refused = flooded.iter().filter(|it| **it == Err(StatusCode::ResourceExhausted));
    assert_eq!(refused.count(), 1_500 - 1_023);
    assert_eq!(pass_on(&flood, &known).await, Ok(StatusCode::Ok), "it is checked once");
    let theirs = passage(7, &honest, 7);
    assert_eq!(pass_on(&connection, &theirs).await, Ok(StatusCode::Ok));
}

/// A passage that would be denied.
#[tokio::test(start_paused = true)]
async fn a8_a_call_without_a_place_is_refused_before_its_passage_is_checked() {
    let network = Network::new(1);
    let limits = Limits {
        max_running_calls: 1,
        ..Limits::default()
    };
    let (_caller, _provider, connection) = pair(&network, service_only(), limits).await;
    let slow = tokio::spawn({
        let connection = connection.clone();
        async move { call(&connection, "slow", Bytes::new(), PATIENCE).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let echo = name("echo");
    for bytes in [1, 20_000] {
        let request = CallRequest::new(&echo, vec![0; bytes]).with_passage(Bytes::from_static(b"no passage"));
        let refused = connection.call(request).await;
        assert!(
            matches!(refused, Err(CallError::Refused { .. })),
            "{bytes}: {refused:?}"
        );
    }
    slow.await.unwrap().unwrap();
}

/// The seed of a network on which waiting messages block the others for good, if more are sent than the peer assembles.
const SEED: u64 = 2;

/// A call of one request, with the single message of its streamed reply.
async fn open_with_only(connection: &Connection, service: &str, body: Bytes) -> Result<Bytes, CallError> {
    let name = name(service);
    let request = CallRequest::new(&name, body).with_timeout(10 * PATIENCE);
    let reply = connection.open_with_only(request).await?.next().await?;
    Ok(reply.unwrap())
}

/// Calls made at once that do not fit into the connection's window together.
async fn all_come_through(service: &'static str, body: Bytes, seed: u64) {
    all_made_come_through(seed, move |connection| {
        let body = body.clone();
        async move { call(&connection, service, body, 10 * PATIENCE).await }
    })
    .await;
}

async fn all_made_come_through<F>(seed: u64, make: impl Fn(Connection) -> F + Clone + Send + 'static)
where
    F: Future<Output = Result<Bytes, CallError>> + Send,
{
    let limits = Limits {
        connection_window: 1 << 20,
        stream_window: 100 * 1024,
        ..Limits::default()
    };
    let link = LinkConditions::new(Duration::from_millis(5))
        .with_jitter(Duration::from_millis(2))
        .with_loss(0.01);
    let network = Network::new(seed).with_link(link);
    let (_caller, _provider, connection) = pair(&network, service_only(), limits).await;
    let calls = (0..60_u64).map(|n| {
        let (connection, make) = (connection.clone(), make.clone());
        let in_turn = async move {
            for k in 0..2 {
                tokio::time::sleep(Duration::from_millis((7919 * n + 31 * k) % 50)).await;
                make(connection.clone()).await?;
            }
            Ok::<_, CallError>(())
        };
        tokio::spawn(in_turn.boxed())
    });
    for answered in join_all(calls).await {
        answered.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn p5_large_requests_that_wait_for_their_turn_do_not_stop_those_before_them() {
    all_come_through("echo", vec![1; 400 * 1024].into(), SEED).await;
}

#[tokio::test(start_paused = true)]
async fn p5_large_only_requests_that_wait_for_their_turn_do_not_stop_those_before_them() {
    let body = Bytes::from(vec![1; 400 * 1024]);
    all_made_come_through(SEED, move |connection| {
        let body = body.clone();
        async move { open_with_only(&connection, "echo", body).await }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn p5_large_replies_that_wait_for_their_turn_do_not_stop_those_before_them() {
    all_come_through("large", "400000".into(), SEED).await;
}

#[tokio::test(start_paused = true)]
async fn a_large_reply_may_be_under_way_as_long_as_its_call() {
    let network = Network::new(1).with_link(LinkConditions::new(Duration::from_secs(1)));
    let (_caller, _provider, connection) = pair(&network, service_only(), Limits::default()).await;
    let start = Instant::now();
    // Beside each other, so that one goes on the lane.
    let both = join_all((0..2).map(|_| call(&connection, "large", Bytes::new(), PATIENCE))).await;
    for answer in both {
        assert_eq!(answer.unwrap().len(), LARGE_REPLY);
    }
    assert!(start.elapsed() > Timers::default().head);
}

/// A narrow way: 64 KiB in each second, and a minute for the reply.
#[tokio::test(start_paused = true)]
async fn a_large_reply_that_keeps_coming_is_not_given_up() {
    let network = Network::new(1).with_link(LinkConditions::new(Duration::from_millis(500)));
    let limits = Limits {
        stream_window: 64 * 1024,
        ..Limits::default()
    };
    let (_caller, provider, connection) = pair(&network, service_only(), limits).await;
    let both = join_all((0..2).map(|_| call(&connection, "large", Bytes::new(), 3 * PATIENCE))).await;
    for answer in both {
        assert_eq!(answer.unwrap().len(), LARGE_REPLY);
    }
    assert_eq!(provider.stats().slow_streams, 0);
}

#[tokio::test(start_paused = true)]
async fn p3_a_dead_peer_is_out_of_the_pool_with_the_stream_that_waited_for_it() {
    let network = Network::new(1);
    let (caller, provider, connection) = pair(&network, service_only(), Limits::default()).await;
    let stall = name("stall");
    let request = CallRequest::new(&stall, "").with_timeout(Duration::from_secs(1));
    let mut stream = connection.open(request).await.unwrap();
    network.kill(provider.local_addr());
    let error = stream.next().await.unwrap_err();
    assert!(matches!(error, CallError::Unknown(Unknown::Timeout(_))), "{error}");
    drop((stream, connection));
    tokio::time::sleep(2 * Timers::default().probe_grace).await;
    assert!(caller.pool().open(&provider.node_id()).is_none());
}

#[tokio::test(start_paused = true)]
async fn f5_a_stream_whose_handler_may_have_begun_is_not_called_unsent() {
    let network = Network::new(1);
    let (service, mut seen) = service();
    let (_caller, _provider, connection) = pair(&network, service, Limits::default()).await;
    let stall = name("stall");
    let request = CallRequest::new(&stall, vec![1; LARGE_REPLY]).with_timeout(Duration::from_secs(1));
    let error = connection.open(request).await.unwrap_err();
    assert!(matches!(seen.try_recv(), Ok(Seen::Began(_))));
    assert!(matches!(error, CallError::Unknown(Unknown::Timeout(_))), "{error}");
}

#[tokio::test(start_paused = true)]
async fn f7_a_provider_is_told_what_is_left_of_a_call_that_had_to_wait() {
    let network = Network::new(1);
    let (service, mut seen) = service();
    let limits = Limits {
        max_concurrent_calls: 1,
        ..Limits::default()
    };
    let (_caller, _provider, connection) = pair(&network, service, limits).await;
    let timeout = Duration::from_millis(1500);
    let deadline = Instant::now() + timeout;
    let calls = join_all((0..2).map(|_| call(&connection, "second", Bytes::new(), timeout))).await;
    assert!(calls[0].is_ok() && calls[1].is_err());
    for _ in 0..2 {
        let Some(Seen::Began(told)) = seen.recv().await else {
            panic!("no call began")
        };
        assert!(
            told <= deadline + 5 * LinkConditions::default().latency,
            "{:?}",
            told - deadline
        );
    }
}

/// A message that was given up before its first byte was written leaves no gap that looks like an end.
#[tokio::test(start_paused = true)]
async fn requests_of_which_one_was_given_up_have_no_end() {
    let network = Network::new(1);
    let limits = Limits {
        stream_window: 10_000,
        ..Limits::default()
    };
    let (service, mut seen) = service();
    let (_caller, _provider, connection) = pair(&network, service, limits).await;
    let count = name("count");
    let request = CallRequest::new(&count, "").with_timeout(PATIENCE);
    let deadline = Instant::now() + Duration::from_secs(60);
    let head: usize = opening(&request, deadline, OpenWith::First)
        .iter()
        .map(Bytes::len)
        .sum();
    let (mut requests, mut replies) = connection.open(request).await.unwrap().split();
    seen.recv().await.unwrap();
    // Eight bytes go before a payload of this size: the window is full to its last byte.
    requests.send(vec![1; 10_000 - head - 8].into()).await.unwrap();
    assert!(requests.send("more".into()).now_or_never().is_none());
    requests.finish();
    assert_eq!(replies.next().await.unwrap(), None);
    assert_eq!(replies.reply().unwrap().status, StatusCode::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn n4_what_a_handler_left_to_a_task_of_its_own_ends_at_the_deadline() {
    let network = Network::new(1);
    let (service, mut seen) = service();
    let (_caller, provider, connection) = pair(&network, service, Limits::default()).await;
    let leave = name("leave");
    let request = CallRequest::new(&leave, "").with_timeout(Duration::from_secs(5));
    // The caller reads no reply.
    let _stream = connection.open(request).await.unwrap();
    assert!(matches!(seen.recv().await, Some(Seen::Began(_))));
    let drained = tokio::time::timeout(PATIENCE, provider.drain()).await;
    assert!(drained.is_ok(), "the call counts as running for ever");
    assert_eq!(seen.recv().await, Some(Seen::Gone));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_when_asked_what_it_is_answers_so() {
    let network = Network::new(1);
    let (_caller, provider, connection) = pair(&network, service_only(), Limits::default()).await;
    let unsure = name("unsure");
    // Alone on a stream of its own, then beside each other.
    for at_once in [1, 2] {
        let calls = (0..at_once).map(|_| connection.call(CallRequest::new(&unsure, "")));
        for reply in join_all(calls).await {
            assert_eq!(reply.unwrap().status, StatusCode::Internal);
        }
    }
    assert_eq!(provider.stats().handler_panics, 3);
}

/// Unread messages may fill the connection's window, but a ping needs no room in it.
#[tokio::test(start_paused = true)]
async fn p3_a_peer_whose_window_is_full_is_not_taken_for_dead() {
    let network = Network::new(1);
    let limits = Limits {
        connection_window: 64 * 1024,
        ..Limits::default()
    };
    let (_caller, _provider, connection) = pair(&network, service_only(), limits).await;
    let stall = name("stall");
    let request = CallRequest::new(&stall, "").with_timeout(PATIENCE);
    let mut stream = connection.open(request).await.unwrap();
    let fills = stream.send(vec![1; 128 * 1024].into());
    let waited = tokio::time::timeout(3 * Timers::default().dead_after, fills).await;
    assert!(waited.is_err(), "the window is not full");
    assert_eq!(connection.lost(), None);
    drop(stream);
    let answer = call(&connection, "echo", "after it".into(), PATIENCE).await;
    assert_eq!(answer.unwrap(), "after it");
}
