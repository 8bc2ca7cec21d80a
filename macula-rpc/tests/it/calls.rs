//! Calls over real connections, with providers known beforehand.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{future::BoxFuture, stream};
use macula_rpc::{
    AnswerSource, Attempt, CallError, Cause, Client, Provider, Request, Requests, Resolve, ResolveError,
    ResolveOptions, Resolved, RetryPolicy, Routers, Server, ServiceName, StaticResolver, Status, StatusCode, Strategy,
};
use macula_transport::Endpoint;
use tokio::sync::{Notify, mpsc};

use crate::mesh::{Peer, caller, directory, name};

#[tokio::test]
async fn a_call_is_one_line() {
    let peers = [Peer::echo().await];
    let (_endpoint, builder) = caller(directory(&peers)).await;
    assert_eq!(builder.build().call("api.compute", "6 x 7").await.unwrap(), "6 x 7");
}

#[tokio::test]
async fn s1_first_goes_to_the_first_of_the_list() {
    let peers = [Peer::echo().await, Peer::echo().await, Peer::echo().await];
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let client = builder.strategy(Strategy::First).build();
    for _ in 0..5 {
        client.call(&name(), "").await.unwrap();
    }
    assert_eq!(peers.each_ref().map(Peer::calls), [5, 0, 0]);
}

#[tokio::test]
async fn s3_the_strategy_of_a_call_goes_before_the_clients() {
    let peers = [Peer::echo().await, Peer::echo().await, Peer::echo().await];
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let client = builder.strategy(Strategy::First).build();
    for _ in 0..6 {
        client
            .request(name())
            .strategy(Strategy::RoundRobin)
            .send("")
            .await
            .unwrap();
    }
    assert_eq!(peers.each_ref().map(Peer::calls), [2, 2, 2]);
}

#[tokio::test]
async fn s5_a_service_without_a_provider_is_not_found() {
    let (_endpoint, builder) = caller(StaticResolver::new()).await;
    let error = builder.build().call("no.such", "").await.unwrap_err();
    assert!(matches!(error, CallError::ServiceNotFound { .. }), "{error}");
    assert!(error.to_string().starts_with("service_not_found"));
}

#[tokio::test]
async fn f1_f2_an_error_goes_to_another_provider_and_never_twice_to_one() {
    let peers = [
        Peer::failing(StatusCode::Internal).await,
        Peer::failing(StatusCode::Unavailable).await,
        Peer::echo().await,
    ];
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let answer = builder
        .strategy(Strategy::First)
        .build()
        .request(name())
        .send("x")
        .await
        .unwrap();
    assert_eq!(answer.provider().unwrap().node_id, peers[2].id());
    assert_eq!(answer.failed_attempts().len(), 2);
    assert_eq!(peers.each_ref().map(Peer::calls), [1, 1, 1]);
}

#[tokio::test]
async fn f3_f4_three_of_three_is_all_providers_failed_and_three_of_five_is_max_attempts_exceeded() {
    let mut peers = Vec::new();
    for _ in 0..5 {
        peers.push(Peer::failing(StatusCode::Internal).await);
    }
    let (_endpoint, builder) = caller(directory(&peers[..3])).await;
    let error = builder.build().call(name(), "").await.unwrap_err();
    assert!(matches!(error, CallError::AllProvidersFailed { .. }), "{error}");
    // F4: the error lists every attempt: provider, endpoint, cause, time.
    let tried: HashSet<_> = error.attempts().iter().map(|attempt| attempt.node_id).collect();
    assert_eq!(tried, peers[..3].iter().map(Peer::id).collect());
    for attempt in sent(&error) {
        let peer = peers.iter().find(|peer| peer.id() == attempt.node_id).unwrap();
        assert_eq!(attempt.endpoint, peer.endpoint.local_addr().try_into().ok());
        assert!(matches!(&attempt.cause, Cause::Answered(status) if status.message() == "on purpose"));
        assert!(attempt.took > Duration::ZERO);
        assert!(error.to_string().contains(&attempt.node_id.short()));
    }

    let (_endpoint, builder) = caller(directory(&peers)).await;
    let error = builder.build().call(name(), "").await.unwrap_err();
    assert!(matches!(error, CallError::MaxAttemptsExceeded { .. }), "{error}");
    assert_eq!(sent(&error).count(), 3, "{error:#?}");
}

/// The attempts that were sent. An attempt that waits for a dial is taken back when another provider is connected first (H5), which
/// costs none (F5).
fn sent(error: &CallError) -> impl Iterator<Item = &Attempt> {
    let attempts = error.attempts().iter();
    attempts.filter(|attempt| !matches!(attempt.cause, Cause::NotSent(_)))
}

#[tokio::test]
async fn f5_a_provider_that_cannot_be_reached_costs_no_attempt() {
    let gone = Peer::echo().await;
    let absent = gone.provider();
    gone.endpoint.shutdown(Duration::ZERO).await;
    drop(gone);
    let peer = Peer::echo().await;
    let resolver = StaticResolver::new().with_service(name(), [absent.clone(), peer.provider()]);
    let (_endpoint, builder) = caller(resolver).await;
    let call = builder
        .strategy(Strategy::First)
        .build()
        .request(name())
        .max_attempts(1);
    let answer = call
        .attempt_timeout(Duration::from_millis(200))
        .send("x")
        .await
        .unwrap();
    assert_eq!(answer.provider().unwrap().node_id, peer.id());
    let failed = &answer.failed_attempts()[0];
    assert_eq!(failed.node_id, absent.node_id);
    assert!(matches!(failed.cause, Cause::NotSent(_)), "{failed}");
}

#[tokio::test]
async fn f5_a_node_that_does_not_serve_the_service_refuses() {
    let other = Peer::bare(Server::new()).await;
    let peer = Peer::echo().await;
    let resolver = StaticResolver::new().with_service(name(), [other.provider(), peer.provider()]);
    let (_endpoint, builder) = caller(resolver).await;
    let call = builder
        .strategy(Strategy::First)
        .build()
        .request(name())
        .retry_policy(RetryPolicy::NeverProcessed);
    let answer = call.send("x").await.unwrap();
    assert!(matches!(answer.failed_attempts()[0].cause, Cause::Refused(_)));
}

#[tokio::test]
async fn f6_the_callers_own_fault_is_final() {
    let peers = [Peer::failing(StatusCode::InvalidArgument).await, Peer::echo().await];
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let error = builder
        .strategy(Strategy::First)
        .build()
        .call(name(), "")
        .await
        .unwrap_err();
    assert!(matches!(&error, CallError::Answered { status, .. } if status.code() == StatusCode::InvalidArgument));
    assert_eq!(peers[1].calls(), 0);
}

#[tokio::test]
async fn f6_under_any_error_every_error_response_is_retried() {
    let peers = [Peer::failing(StatusCode::InvalidArgument).await, Peer::echo().await];
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let call = builder
        .strategy(Strategy::First)
        .build()
        .request(name())
        .retry_policy(RetryPolicy::AnyError);
    assert_eq!(call.send("x").await.unwrap().payload(), "x");
}

#[tokio::test]
async fn f6_a_call_that_may_have_run_is_not_repeated_when_it_must_not() {
    let peers = [Peer::failing(StatusCode::Internal).await, Peer::echo().await];
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let call = builder
        .strategy(Strategy::First)
        .build()
        .request(name())
        .retry_policy(RetryPolicy::NeverProcessed);
    let error = call.send("x").await.unwrap_err();
    assert!(matches!(&error, CallError::Answered { .. }), "{error}");
    assert_eq!(peers[1].calls(), 0);
}

/// Serves `api.compute` with a handler that never answers, and tells when it starts and when it is dropped.
pub(crate) async fn stuck() -> (Peer, mpsc::UnboundedReceiver<&'static str>) {
    struct Dropped(mpsc::UnboundedSender<&'static str>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.send("dropped");
        }
    }

    let peer = Peer::bare(Server::new()).await;
    let (events, seen) = mpsc::unbounded_channel();
    let handler = move |_request: Request| {
        let _ = events.send("started");
        let dropped = Dropped(events.clone());
        async move {
            let _dropped = dropped;
            std::future::pending::<Result<Bytes, Status>>().await
        }
    };
    peer.server.serve(name(), handler).unwrap();
    (peer, seen)
}

#[tokio::test]
async fn f7_an_attempt_that_times_out_goes_elsewhere_and_a_deadline_ends_the_call() {
    let (hung, mut seen) = stuck().await;
    let peer = Peer::echo().await;
    let resolver = StaticResolver::new().with_service(name(), [hung.provider(), peer.provider()]);
    let (_endpoint, builder) = caller(resolver).await;
    let client = builder.strategy(Strategy::First).build();
    let answer = client
        .request(name())
        .attempt_timeout(Duration::from_millis(100))
        .send("x")
        .await
        .unwrap();
    assert!(matches!(answer.failed_attempts()[0].cause, Cause::TimedOut(_)));
    // The provider stopped working.
    assert_eq!(seen.recv().await, Some("started"));
    assert_eq!(seen.recv().await, Some("dropped"));

    let error = client
        .request(name())
        .timeout(Duration::from_millis(100))
        .send("x")
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::DeadlineExceeded { .. }), "{error}");
    assert_eq!(seen.recv().await, Some("started"));
    assert_eq!(seen.recv().await, Some("dropped"));
}

#[tokio::test]
async fn f8_a_dropped_call_is_cancelled_at_the_provider() {
    let (peer, mut seen) = stuck().await;
    let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
    let client = builder.build();
    let call = tokio::spawn(async move { client.call(name(), "x").await });
    assert_eq!(seen.recv().await, Some("started"));
    call.abort();
    assert_eq!(seen.recv().await, Some("dropped"));
}

#[tokio::test]
async fn a_local_handler_is_called_without_the_network() {
    let peers = [Peer::echo().await];
    let (endpoint, builder) = caller(directory(&peers)).await;
    let here = Server::new();
    here.serve(name(), |request: Request| async move {
        assert!(request.peer().is_none());
        Ok::<_, Status>("here")
    })
    .unwrap();
    let client = builder.local_first(here.clone()).build();
    let answer = client.request(name()).send("x").await.unwrap();
    assert_eq!(
        (answer.payload().as_ref(), answer.source()),
        (&b"here"[..], AnswerSource::Local)
    );
    assert_eq!(endpoint.pool().stats().opened, 0);

    let answer = client.request(name()).remote_only().send("x").await.unwrap();
    assert_eq!(answer.payload(), "x");

    // Calls of a withdrawn service, or refused by a drain, go elsewhere.
    here.drain().await;
    assert_eq!(client.call(name(), "x").await.unwrap(), "x");
    here.withdraw(&name());
    assert_eq!(client.call(name(), "x").await.unwrap(), "x");
}

#[tokio::test]
async fn a_panicking_handler_fails_its_own_call_only() {
    let peer = Peer::with(|payload| {
        if payload == "boom" {
            panic!("on purpose")
        } else {
            Ok(payload)
        }
    })
    .await;
    let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
    let client = builder.build();
    let error = client.call(name(), "boom").await.unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
    assert!(
        !error.to_string().contains("on purpose"),
        "what a panic says stays at home: {error}"
    );
    assert_eq!(client.call(name(), "fine").await.unwrap(), "fine");
}

#[tokio::test]
async fn n4_a_draining_server_finishes_what_runs_and_refuses_what_comes() {
    let peer = Peer::bare(Server::new()).await;
    let (started, mut running) = mpsc::unbounded_channel();
    let release = Arc::new(Notify::new());
    let gate = Arc::clone(&release);
    peer.server
        .serve(name(), move |request: Request| {
            let (gate, started) = (Arc::clone(&gate), started.clone());
            async move {
                let _ = started.send(());
                gate.notified().await;
                Ok::<_, Status>(request.into_payload())
            }
        })
        .unwrap();
    let (_endpoint, builder) = caller(StaticResolver::new().with_service(name(), [peer.provider()])).await;
    let client = builder.build();
    let first = tokio::spawn({
        let client = client.clone();
        async move { client.call(name(), "first").await }
    });
    running.recv().await.unwrap();
    let server = peer.server.clone();
    let drained = tokio::spawn(async move { server.drain().await });
    // The drain begins at its first poll; until then calls are taken.
    let refused = loop {
        match client
            .request(name())
            .attempt_timeout(Duration::from_millis(50))
            .send("second")
            .await
        {
            Err(error) if matches!(error.attempts(), [tried] if matches!(tried.cause, Cause::Refused(_))) => {
                break error;
            }
            other => drop(other),
        }
    };
    assert!(refused.to_string().contains("shutting down"), "{refused}");
    assert!(!drained.is_finished());
    release.notify_waiters();
    assert_eq!(first.await.unwrap().unwrap(), "first");
    drained.await.unwrap();
}

#[tokio::test]
async fn a_server_at_its_limit_refuses() {
    let peer = Peer::bare(Server::with_max_concurrent_calls(0)).await;
    peer.server
        .serve(name(), |_: Request| async { Ok::<_, Status>("") })
        .unwrap();
    let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
    let error = builder.build().call(name(), "").await.unwrap_err();
    assert!(matches!(&error.attempts()[0].cause, Cause::Refused(_)), "{error}");
}

/// A directory that never answers.
pub(crate) struct Down;

impl Resolve for Down {
    fn resolve<'a>(
        &'a self,
        _service: &'a ServiceName,
        _options: ResolveOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        Box::pin(std::future::ready(Err(ResolveError::Unreachable)))
    }
}

pub(crate) struct Via(pub(crate) Vec<Provider>);

impl Routers for Via {
    fn routers(&self) -> Vec<Provider> {
        self.0.clone()
    }
}

#[tokio::test]
async fn with_the_directory_down_a_router_serves_the_call_or_passes_it_on_once() {
    // The router serves nothing itself, but its directory knows a provider.
    let provider = Peer::echo().await;
    let router = Peer::bare(Server::new()).await;
    let onward = Client::builder(&router.endpoint, directory(std::slice::from_ref(&provider))).build();
    router.server.route_through(&onward);

    let (_endpoint, builder) = caller(Down).await;
    let client = builder.routers(Via(vec![router.provider()])).build();
    let answer = client.request(name()).send("x").await.unwrap();
    assert_eq!(
        (answer.payload().as_ref(), answer.source()),
        (&b"x"[..], AnswerSource::Router)
    );
    assert_eq!(provider.calls(), 1);

    let error = client.call("no.such", "x").await.unwrap_err();
    assert!(matches!(error, CallError::ServiceNotFound { .. }), "{error}");

    // Once: a router whose own directory is down does not forward the call to another router.
    let lost = Peer::bare(Server::new()).await;
    let nowhere = Client::builder(&lost.endpoint, Down)
        .routers(Via(vec![router.provider()]))
        .build();
    lost.server.route_through(&nowhere);
    let (_endpoint, builder) = caller(Down).await;
    let error = builder
        .routers(Via(vec![lost.provider()]))
        .build()
        .call(name(), "x")
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::AllProvidersFailed { .. }), "{error}");
    assert_eq!(provider.calls(), 1);
}

#[tokio::test]
async fn without_directory_and_router_the_error_says_what_to_check() {
    let (_endpoint, builder) = caller(Down).await;
    let error = builder.build().call(name(), "x").await.unwrap_err();
    assert!(matches!(error, CallError::Unresolved { .. }));
    assert!(error.to_string().contains("bootstrap"), "{error}");
}

#[tokio::test]
async fn a_request_above_the_limit_is_refused_here() {
    let peers = [Peer::echo().await];
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let error = builder
        .build()
        .call(name(), vec![0; 4 * 1024 * 1024 + 1])
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::RequestTooLarge { .. }), "{error}");
    assert_eq!(peers[0].calls(), 0);
}

#[tokio::test]
async fn what_travels_beside_the_payload_arrives() {
    let peer = Peer::bare(Server::new()).await;
    let echo = |request: Request| async move {
        let mut metadata = request.metadata().clone();
        metadata.push("method", request.method().to_owned());
        Ok::<_, Status>(macula_rpc::Response::new("").with_metadata(metadata))
    };
    peer.server.serve(name(), echo).unwrap();
    let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
    let metadata = [("trace", "abc")].into_iter().collect();
    let answer = builder
        .build()
        .request(name())
        .method("Sum")
        .metadata(metadata)
        .send("")
        .await
        .unwrap();
    let (_, back) = answer.into_response().into_parts();
    assert_eq!(back.get("trace").unwrap(), "abc");
    assert_eq!(back.get("method").unwrap(), "Sum");
}

#[test]
fn a_name_is_served_once() {
    let server = Server::new();
    let handler = |_: Request| async { Ok::<_, Status>("") };
    server.serve(name(), handler).unwrap();
    assert!(
        server
            .serve(name(), handler)
            .unwrap_err()
            .to_string()
            .contains("withdraw")
    );
    server.withdraw(&name());
    // D5: withdrawing an unknown service is fine.
    server.withdraw(&name());
    server.serve(name(), handler).unwrap();
    assert_eq!(server.services(), [name()]);
}

/// F6: a router does not run a call twice when its caller may not.
#[tokio::test]
async fn f6_a_routed_call_runs_once_and_its_answer_is_the_providers() {
    let providers = [
        Peer::failing(StatusCode::Internal).await,
        Peer::failing(StatusCode::Internal).await,
    ];
    let router = Peer::bare(Server::new()).await;
    let onward = Client::builder(&router.endpoint, directory(&providers)).build();
    router.server.route_through(&onward);
    let (_endpoint, builder) = caller(Down).await;
    let client = builder.routers(Via(vec![router.provider()])).build();
    let call = client.request(name()).retry_policy(RetryPolicy::NeverProcessed);
    let error = call.send("x").await.unwrap_err();
    assert!(
        matches!(&error, CallError::Answered { status, .. } if status.code() == StatusCode::Internal),
        "{error}"
    );
    assert_eq!(providers[0].calls() + providers[1].calls(), 1);
}

/// A client that reaches no directory, and a router whose client takes these providers in their order.
async fn routed(providers: &[Peer]) -> (Endpoint, Client, (Peer, Client)) {
    let router = Peer::bare(Server::new()).await;
    let resolver = StaticResolver::new().with_service(name(), providers.iter().map(Peer::provider));
    let onward = Client::builder(&router.endpoint, resolver)
        .strategy(Strategy::First)
        .build();
    router.server.route_through(&onward);
    let (endpoint, builder) = caller(Down).await;
    let client = builder.routers(Via(vec![router.provider()])).build();
    (endpoint, client, (router, onward))
}

/// F6: a router retries the failures that its caller retries.
#[tokio::test]
async fn f6_a_router_fails_over_as_its_caller_would() {
    for (code, policy, calls) in [
        (StatusCode::Internal, RetryPolicy::Transient, [1, 1]),
        (StatusCode::InvalidArgument, RetryPolicy::Transient, [1, 0]),
        (StatusCode::Internal, RetryPolicy::Unavailable, [1, 0]),
        (StatusCode::Unavailable, RetryPolicy::Unavailable, [1, 1]),
        (StatusCode::InvalidArgument, RetryPolicy::AnyError, [1, 1]),
        (StatusCode::Internal, RetryPolicy::NeverProcessed, [1, 0]),
        // A predicate does not travel, so the router runs nothing twice.
        (StatusCode::Internal, RetryPolicy::custom(|_| true), [1, 0]),
    ] {
        let providers = [Peer::failing(code).await, Peer::echo().await];
        let (_endpoint, client, _router) = routed(&providers).await;
        let outcome = client.request(name()).retry_policy(policy.clone()).send("x").await;
        assert_eq!(
            providers.each_ref().map(Peer::calls),
            calls,
            "{code:?} {policy:?} {outcome:?}"
        );
        match outcome {
            Ok(answer) => assert_eq!((answer.payload().as_ref(), calls[1]), (&b"x"[..], 1)),
            Err(error) => {
                let last = error.attempts().last().unwrap();
                assert!(
                    matches!(&last.cause, Cause::Answered(status) if status.code() == code),
                    "{error}"
                );
            }
        }
    }
}

/// F3: a limit of one attempt holds at the router too.
#[tokio::test]
async fn f3_a_router_tries_no_more_providers_than_its_caller_allows() {
    let providers = [Peer::failing(StatusCode::Internal).await, Peer::echo().await];
    let (_endpoint, client, _router) = routed(&providers).await;
    let error = client.request(name()).max_attempts(1).send("x").await.unwrap_err();
    assert_eq!(providers.each_ref().map(Peer::calls), [1, 0], "{error}");
}

/// F1, F7: the time for one attempt is the time for one provider, of which a router may try several.
#[tokio::test]
async fn f1_a_router_fails_over_from_a_provider_that_does_not_answer() {
    let hung = Peer::bare(Server::new()).await;
    let never = |_: Request| std::future::pending::<Result<Bytes, Status>>();
    hung.server.serve(name(), never).unwrap();
    let providers = [hung, Peer::echo().await];
    let (_endpoint, client, _router) = routed(&providers).await;
    let call = client.request(name()).attempt_timeout(Duration::from_millis(200));
    assert_eq!(call.send("x").await.unwrap().payload(), "x");
}

/// F4: an attempt names the address it was made at, not the provider's preferred one.
#[tokio::test]
async fn f4_an_attempt_names_the_address_connected_to() {
    let peer = Peer::failing(StatusCode::Internal).await;
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let unanswered = silent.local_addr().unwrap().try_into().unwrap();
    let at = peer.provider().endpoints[0].clone();
    let provider = Provider::new(peer.id(), [unanswered, at.clone()]);
    let resolver = StaticResolver::new().with_service(name(), [provider]);
    let (_endpoint, builder) = caller(resolver).await;
    let error = builder.build().call(name(), "x").await.unwrap_err();
    assert_eq!(error.attempts()[0].endpoint.as_ref(), Some(&at), "{error}");
    assert!(error.to_string().contains(&at.to_string()), "{error}");
}

/// A node that serves nothing and takes messages of at most so many bytes.
async fn takes_at_most(max_message_bytes: usize) -> (macula_transport::Endpoint, Provider) {
    let limits = macula_transport::Limits {
        max_message_bytes,
        ..macula_transport::Limits::default()
    };
    let config = macula_transport::Config::new(macula_transport::Identity::generate().unwrap())
        .with_listen("127.0.0.1:0".parse().unwrap())
        .with_limits(limits);
    let small = macula_transport::Endpoint::bind(config, Server::new()).await.unwrap();
    let provider = Provider::new(small.node_id(), [small.local_addr().try_into().unwrap()]);
    (small, provider)
}

#[tokio::test]
async fn y8_a_request_over_every_providers_limit_fails_with_the_largest_limit() {
    let (small, larger) = (takes_at_most(64 << 10).await, takes_at_most(128 << 10).await);
    let resolver = StaticResolver::new().with_service(name(), [small.1, larger.1]);
    let (_endpoint, builder) = caller(resolver).await;
    let nothing = macula_rpc::BudgetConfig {
        ratio: 0.0,
        per_second: 0.0,
        ..macula_rpc::BudgetConfig::default()
    };
    let error = builder
        .retry_budget(nothing)
        .build()
        .call(name(), vec![7; 1 << 20])
        .await;
    let error = error.unwrap_err();
    assert!(
        matches!(error, CallError::RequestTooLarge { size, limit } if (size, limit) == (1 << 20, 128 << 10)),
        "{error}"
    );
}

#[tokio::test]
async fn y8_a_reply_over_the_limit_runs_its_handler_once() {
    let calls = Arc::new(AtomicUsize::new(0));
    let mut peers = Vec::new();
    for _ in 0..3 {
        let peer = Peer::bare(Server::new()).await;
        let calls = Arc::clone(&calls);
        let large = move |_: Request<Requests>| {
            calls.fetch_add(1, SeqCst);
            async { Ok::<_, Status>(stream::iter([Ok::<_, Status>(vec![0; (4 << 20) + 1])])) }
        };
        peer.server.serve_streaming(name(), large).unwrap();
        peers.push(peer);
    }
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let client = builder.build();
    let streamed = client.request(name()).stream(stream::empty()).await.unwrap_err();
    let unary = client.call(name(), "").await.unwrap_err();
    for error in [streamed, unary] {
        assert!(
            matches!(&error, CallError::Answered { status, .. } if status.code() == StatusCode::OutOfRange),
            "{error}"
        );
        assert!(error.to_string().contains("at most 4194304"), "{error}");
    }
    assert_eq!(calls.load(SeqCst), 2);
}

#[tokio::test]
async fn y23_the_error_of_a_users_own_directory_reaches_the_caller() {
    struct Broken;

    impl macula_rpc::Resolve for Broken {
        fn resolve<'a>(
            &'a self,
            _: &'a macula_rpc::ServiceName,
            _: macula_rpc::ResolveOptions,
        ) -> futures::future::BoxFuture<'a, Result<macula_rpc::Resolved, macula_rpc::ResolveError>> {
            let error = macula_rpc::ResolveError::custom(std::io::Error::other("the table is locked"));
            Box::pin(std::future::ready(Err(error)))
        }
    }

    let (_endpoint, builder) = caller(Broken).await;
    let error = builder.build().call(name(), "").await.unwrap_err();
    assert!(matches!(&error, CallError::Unresolved { .. }), "{error}");
    assert!(error.to_string().contains("the table is locked"), "{error}");
}

/// A provider that takes less than the others is skipped.
#[tokio::test]
async fn a_provider_that_takes_only_small_requests_does_not_fail_the_call() {
    let (_small, known) = takes_at_most(64 << 10).await;
    let peer = Peer::echo().await;
    let resolver = StaticResolver::new().with_service(name(), [known, peer.provider()]);
    let (_endpoint, builder) = caller(resolver).await;
    let client = builder.strategy(Strategy::First).build();
    let answer = client.request(name()).send(vec![7; 100_000]).await.unwrap();
    assert_eq!(answer.failed_attempts()[0].cause.name(), "request_too_large");
    assert_eq!(answer.provider().unwrap().node_id, peer.id());
}

#[tokio::test]
async fn a_timeout_of_for_ever_is_cut_to_a_day() {
    let peers = [Peer::echo().await];
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let call = builder.build().request(name());
    let call = call.timeout(Duration::MAX).attempt_timeout(Duration::MAX);
    assert_eq!(call.send("x").await.unwrap().payload(), "x");
}
