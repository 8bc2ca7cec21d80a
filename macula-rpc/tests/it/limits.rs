//! A service's own limit, a full pool of connections, and tower's layers before a service.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use futures::stream;
use macula_rpc::{
    CallError, Cause, Client, Limited, Request, Requests, RetryPolicy, Server, ServiceName, ServiceOptions,
    StaticResolver, Status, StatusCode, Strategy,
};
use macula_transport::{Config, Endpoint, Identity, NoService, PoolConfig};
use tokio::sync::mpsc;

use crate::{
    calls::stuck,
    mesh::{Peer, caller, directory, name, serving},
};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn f5_a_service_at_its_limit_refuses_and_the_call_goes_elsewhere() {
    let (started, mut running) = mpsc::unbounded_channel();
    let stuck = move |_: Request| {
        let _ = started.send(());
        pending::<Result<(), Status>>()
    };
    let peers = [serving(Limited::new(1, stuck)).await, Peer::echo().await];
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let client = builder.strategy(Strategy::First).build();
    let first = tokio::spawn({
        let client = client.clone();
        async move { client.call(name(), "").await }
    });
    running.recv().await.unwrap();
    // Even a call that must not run twice: it has not run once.
    let call = client.request(name()).retry_policy(RetryPolicy::NeverProcessed);
    let answer = call.send("x").await.unwrap();
    assert_eq!(answer.provider().unwrap().node_id, peers[1].id());
    let refused = &answer.failed_attempts()[0];
    assert!(matches!(&refused.cause, Cause::Refused(_)), "{refused}");
    assert!(refused.to_string().contains("runs 1 calls already"), "{refused}");
    first.abort();
}

#[tokio::test]
async fn a_cancelled_or_panicking_call_gives_its_place_back() {
    let (started, mut running) = mpsc::unbounded_channel();
    let handler = move |request: Request| {
        let started = started.clone();
        async move {
            match request.payload().as_ref() {
                b"hang" => {
                    let _ = started.send(());
                    pending::<Result<&str, Status>>().await
                }
                b"panic" => panic!("on purpose"),
                _ => Ok("done"),
            }
        }
    };
    let limited = Arc::new(Limited::new(1, handler));
    let peer = serving(Arc::clone(&limited)).await;
    let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
    let client = builder.build();
    let hung = tokio::spawn({
        let client = client.clone();
        async move { client.call(name(), "hang").await }
    });
    running.recv().await.unwrap();
    hung.abort();
    while limited.running() > 0 {
        tokio::task::yield_now().await;
    }
    client.call(name(), "panic").await.unwrap_err();
    assert_eq!(limited.running(), 0);
    assert_eq!(client.call(name(), "").await.unwrap(), "done");
}

#[tokio::test]
async fn f5_a_streaming_service_at_its_limit_refuses_until_a_stream_has_had_its_last_reply() {
    let echo = async |request: Request<Requests>| {
        let requests = request.into_payload();
        Ok::<_, Status>(stream::try_unfold(requests, async |mut requests| {
            let next = requests.next().await?;
            Ok::<_, Status>(next.map(|message| (message, requests)))
        }))
    };
    let limited = Arc::new(Limited::new(1, echo));
    let full = Peer::bare(Server::new()).await;
    full.server
        .serve_streaming(name(), StreamOf(Arc::clone(&limited)))
        .unwrap();
    let other = Peer::bare(Server::new()).await;
    other.server.serve_streaming(name(), echo).unwrap();
    let peers = [full, other];
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let client = builder.strategy(Strategy::First).build();
    let open = async || {
        let (requests, receiver) = futures::channel::mpsc::unbounded::<bytes::Bytes>();
        requests.unbounded_send("x".into()).unwrap();
        let replies = client.request(name()).stream(receiver).await.unwrap();
        (requests, replies)
    };
    let (requests, mut first) = open().await;
    let (_, second) = open().await;
    let providers = [&first, &second].map(|replies| replies.provider().unwrap().node_id);
    assert_eq!(providers, peers.each_ref().map(Peer::id));
    drop(requests);
    assert_eq!(first.next().await.unwrap().unwrap(), "x");
    assert_eq!(first.next().await.unwrap(), None);
    assert_eq!(limited.running(), 0);
}

/// A handler that is shared with the test.
struct StreamOf<H>(Arc<H>);

impl<H: macula_rpc::StreamHandler> macula_rpc::StreamHandler for StreamOf<H> {
    fn handle(
        &self,
        request: Request<Requests>,
    ) -> futures::future::BoxFuture<'static, Result<macula_rpc::Response<macula_rpc::ReplyStream>, Status>> {
        self.0.handle(request)
    }
}

#[cfg(feature = "tower")]
mod tower {
    use std::{convert::Infallible, future::pending, time::Duration};

    use macula_rpc::{CallError, Cause, Request, Status, StatusCode, Strategy, TowerHandler};
    use tokio::sync::mpsc;
    use tower::{ServiceBuilder, service_fn};

    use crate::mesh::{Peer, caller, directory, name, serving};

    #[tokio::test]
    async fn a_tower_service_is_a_handler() {
        let service = service_fn(async |request: Request| Ok::<_, Infallible>(request.into_payload()));
        let peer = serving(TowerHandler::new(service)).await;
        let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
        assert_eq!(builder.build().call(name(), "x").await.unwrap(), "x");
    }

    #[tokio::test]
    async fn what_tower_sheds_is_refused_and_goes_elsewhere() {
        let (started, mut running) = mpsc::unbounded_channel();
        let stuck = service_fn(move |_: Request| {
            let _ = started.send(());
            pending::<Result<(), Status>>()
        });
        let layered = ServiceBuilder::new().load_shed().concurrency_limit(1).service(stuck);
        let peers = [serving(TowerHandler::new(layered)).await, Peer::echo().await];
        let (_endpoint, builder) = caller(directory(&peers)).await;
        let client = builder.strategy(Strategy::First).build();
        let first = tokio::spawn({
            let client = client.clone();
            async move { client.call(name(), "").await }
        });
        running.recv().await.unwrap();
        let answer = client.request(name()).send("x").await.unwrap();
        assert!(matches!(answer.failed_attempts()[0].cause, Cause::Refused(_)));
        first.abort();
    }

    #[tokio::test]
    async fn the_errors_of_a_tower_service_arrive_as_what_they_mean() {
        let service = service_fn(async |request: Request| match request.payload().as_ref() {
            b"status" => Err(Status::not_found("nothing here")),
            b"slow" => pending().await,
            _ => Ok("fine"),
        });
        let layered = ServiceBuilder::new()
            .timeout(Duration::from_millis(10))
            .service(service);
        let peer = serving(TowerHandler::new(layered)).await;
        let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
        let client = builder.build();
        let error = client.call(name(), "status").await.unwrap_err();
        assert!(
            matches!(&error, CallError::Answered { status, .. } if status.message() == "nothing here"),
            "{error}"
        );
        let error = client.call(name(), "slow").await.unwrap_err();
        assert!(
            matches!(&error.attempts()[0].cause, Cause::Answered(s) if s.code() == StatusCode::DeadlineExceeded),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_service_that_cannot_get_ready_has_not_started_the_call() {
        #[derive(Clone)]
        struct NeverReady;

        impl tower::Service<Request> for NeverReady {
            type Response = ();
            type Error = Status;
            type Future = std::future::Ready<Result<(), Status>>;

            fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Status>> {
                std::task::Poll::Ready(Err(Status::internal("out of order")))
            }

            fn call(&mut self, _: Request) -> Self::Future {
                std::future::ready(Ok(()))
            }
        }

        let peer = serving(TowerHandler::new(NeverReady)).await;
        let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
        let error = builder.build().call(name(), "").await.unwrap_err();
        assert!(matches!(&error.attempts()[0].cause, Cause::Refused(_)), "{error}");
    }
}

/// F6: only the code decides whether a call runs again elsewhere, not the size of the rest.
#[tokio::test]
async fn f6_a_final_status_that_says_too_much_is_final_all_the_same() {
    let mut peers = Vec::new();
    for _ in 0..3 {
        peers.push(
            Peer::with(|what| {
                let wrong = Status::invalid_argument("wrong ✓ ".repeat(3_000));
                Err(match &what[..] {
                    b"message" => wrong,
                    b"details" => Status::invalid_argument("wrong").with_details(vec![0; 20_000]),
                    b"bytes" => Status::invalid_argument("wrong")
                        .with_metadata([("key", vec![0; 20_000])].into_iter().collect()),
                    _ => Status::invalid_argument("wrong")
                        .with_metadata((0..1000).map(|n| (format!("k{n}"), "v")).collect()),
                })
            })
            .await,
        );
    }
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let client = builder.build();
    for what in ["message", "details", "bytes", "entries"] {
        let before: usize = peers.iter().map(Peer::calls).sum();
        let error = client.call(name(), what).await.unwrap_err();
        let CallError::Answered { status, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(status.code(), StatusCode::InvalidArgument);
        assert!(status.message().starts_with("wrong"), "{status}");
        assert!(
            status.message().len() < 2_000 && status.message().contains("at most 16384 bytes"),
            "{status}"
        );
        assert_eq!(peers.iter().map(Peer::calls).sum::<usize>(), before + 1, "{what}");
    }
}

/// F6: the caller asks in the wrong way for every provider, so one answer is final.
#[tokio::test]
async fn f6_a_call_of_a_service_that_streams_its_reply_runs_once() {
    let calls = Arc::new(AtomicUsize::new(0));
    let mut peers = Vec::new();
    for _ in 0..3 {
        let peer = Peer::bare(Server::new()).await;
        let calls = Arc::clone(&calls);
        let two = move |_: Request<Requests>| {
            calls.fetch_add(1, SeqCst);
            async { Ok::<_, Status>(stream::iter(["one", "two"].map(Ok::<_, Status>))) }
        };
        peer.server.serve_streaming(name(), two).unwrap();
        peers.push(peer);
    }
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let error = builder.build().call(name(), "").await.unwrap_err();
    assert!(
        matches!(&error, CallError::Answered { status, .. } if status.code() == StatusCode::FailedPrecondition),
        "{error}"
    );
    assert!(error.to_string().contains("open the call as a stream"), "{error}");
    assert_eq!(calls.load(SeqCst), 1);
}

#[tokio::test]
async fn p2_a_call_waits_for_a_place_in_a_full_pool_and_blames_no_provider() {
    let (busy, mut seen) = stuck().await;
    let peer = Peer::echo().await;
    let pool = PoolConfig {
        max_connections: 1,
        ..PoolConfig::default()
    };
    let config = Config::new(Identity::generate().unwrap()).with_pool(pool);
    let endpoint = Endpoint::bind(config, NoService).await.unwrap();
    let other: ServiceName = "api.other".parse().unwrap();
    peer.server
        .serve(other.clone(), |request: Request| async move {
            Ok::<_, Status>(request.into_payload())
        })
        .unwrap();
    let resolver = StaticResolver::new()
        .with_service(name(), [busy.provider()])
        .with_service(other.clone(), [peer.provider()]);
    let client = Client::builder(&endpoint, resolver).build();
    let holding = tokio::spawn({
        let client = client.clone();
        async move { client.call(name(), "x").await }
    });
    assert_eq!(seen.recv().await, Some("started"));

    // Longer than an attempt may take: the wait for a place is no provider's fault, so the call goes on waiting.
    let call = client
        .request(other.clone())
        .attempt_timeout(Duration::from_millis(5))
        .timeout(Duration::from_millis(60));
    let error = call.send("x").await.unwrap_err();
    assert!(error.attempts().len() > 1, "{error}");
    let first = error.attempts()[0].to_string();
    assert!(first.contains("connections of the pool"), "{first}");

    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.call(other, "x").await }
    });
    tokio::task::yield_now().await;
    holding.abort();
    assert_eq!(waiting.await.unwrap().unwrap(), "x");
}

#[tokio::test]
async fn x5_a_service_ends_a_call_at_its_own_time_whatever_the_caller_asks_for() {
    let (started, mut running) = mpsc::unbounded_channel();
    let peer = serving(move |request: Request| {
        let _ = started.send(request.deadline().saturating_duration_since(Instant::now()));
        pending::<Result<(), Status>>()
    })
    .await;
    let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
    let client = builder.attempt_timeout(HOUR).build();
    let call = || client.request(name()).timeout(HOUR).send("");
    let mut first = Box::pin(call());
    let until = running_until(&mut first, &mut running).await;
    assert!(until > HOUR / 2, "{until:?}");
    drop(first);
    let options = ServiceOptions::new().max_time(Duration::from_millis(20));
    peer.server.configure(name(), options);
    let error = call().await.unwrap_err();
    assert!(running.recv().await.unwrap() <= Duration::from_millis(20));
    let answered = error.attempts().iter().find_map(|attempt| match &attempt.cause {
        Cause::Answered(status) => Some(status.code()),
        _ => None,
    });
    assert_eq!(answered, Some(StatusCode::DeadlineExceeded), "{error:?}");
}

/// Polls a call until its handler runs; gives the time that the handler has.
async fn running_until(
    call: &mut (impl Future<Output: std::fmt::Debug> + Unpin),
    running: &mut mpsc::UnboundedReceiver<Duration>,
) -> Duration {
    tokio::select! {
        until = running.recv() => until.unwrap(),
        ended = call => panic!("{ended:?}"),
    }
}
