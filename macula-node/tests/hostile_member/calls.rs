//! Calls without right, by every way there is (A5), and the end of a right while its call runs (A3).

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::{StreamExt as _, stream};
use macula_node::{
    Bytes, CallError, Channel, Client, Grant, Node, Provider, Request, Requests, ServiceName, Status, StatusCode,
    TonicServices,
};
use macula_rpc::StaticResolver;
use macula_transport::{CallRequest, Connection, Route, testing::Network};
use tokio::sync::watch;
use tonic::{
    body::Body,
    codegen::{Body as HttpBody, BoxFuture, Service, StdError, http},
};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::{
    BAD, OPEN, SAFE, START, attacker::Attacker, builder, chain, echo, identity, key, log::Log, patterns, provider,
    realm,
};

const FEED: &str = "shop.feed";

/// A unary gRPC service, which counts its calls.
#[derive(Clone)]
pub(crate) struct Pay(pub(crate) Arc<AtomicUsize>);

impl tonic::server::NamedService for Pay {
    const NAME: &'static str = "shop.Pay";
}

impl tonic::server::UnaryService<HealthCheckRequest> for Pay {
    type Response = HealthCheckResponse;
    type Future = BoxFuture<tonic::Response<HealthCheckResponse>, tonic::Status>;

    fn call(&mut self, _: tonic::Request<HealthCheckRequest>) -> Self::Future {
        self.0.fetch_add(1, SeqCst);
        Box::pin(std::future::ready(Ok(tonic::Response::new(
            HealthCheckResponse::default(),
        ))))
    }
}

impl Service<http::Request<Body>> for Pay {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let codec = tonic_prost::ProstCodec::<HealthCheckResponse, HealthCheckRequest>::default();
        let pay = self.clone();
        Box::pin(async move { Ok(tonic::server::Grpc::new(codec).unary(pay, request).await) })
    }
}

/// Calls [`Pay`] as a generated client does.
pub(crate) async fn ask_pay<C>(channel: C) -> Result<HealthCheckResponse, tonic::Status>
where
    C: tonic::client::GrpcService<Body>,
    C::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <C::ResponseBody as HttpBody>::Error: Into<StdError>,
{
    let mut client = tonic::client::Grpc::new(channel);
    assert!(client.ready().await.is_ok());
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/shop.Pay/Check");
    let request = tonic::Request::new(HealthCheckRequest::default());
    Ok(client.unary(request, path, codec).await?.into_inner())
}

fn denied(error: &CallError) {
    match error {
        CallError::Answered { status, .. } => assert_eq!(status.code(), StatusCode::PermissionDenied, "{status}"),
        other => panic!("not denied: {other:?}"),
    }
}

/// The error of a stream, which comes when it is opened or in place of its first message.
async fn stream_error(client: &Client, service: &str) -> CallError {
    let requests = stream::iter([Bytes::from_static(b"x")]);
    match client.request(service).remote_only().stream(requests).await {
        Ok(mut replies) => replies.next().await.unwrap_err(),
        Err(error) => error,
    }
}

async fn raw_call(connection: &Connection, service: &str, route: Option<Route>, passage: Bytes) -> StatusCode {
    let service: ServiceName = service.parse().unwrap();
    let request = CallRequest::new(&service, "x").with_route(route).with_passage(passage);
    connection.call(request).await.unwrap().status
}

/// A provider whose handlers count their calls.
async fn counting(network: &Network, counted: &Arc<AtomicUsize>) -> Node {
    let count = |counted: &Arc<AtomicUsize>| {
        let counted = Arc::clone(counted);
        move |_: Request| {
            counted.fetch_add(1, SeqCst);
            std::future::ready(Ok::<_, Status>("answered"))
        }
    };
    let fed = Arc::clone(counted);
    let feed = move |_: Request<Requests>| {
        fed.fetch_add(1, SeqCst);
        std::future::ready(Ok::<_, Status>(stream::iter([Ok::<_, Status>("news")])))
    };
    let node = builder(network, 1)
        .serve(OPEN, echo)
        .serve(SAFE, count(counted))
        .serve_streaming(FEED, feed)
        .serve_tonic(TonicServices::new().with_server(Pay(Arc::clone(counted))));
    node.start().await.unwrap()
}

/// Every way of the attacker to services outside its grant: none reaches a handler.
#[tokio::test(start_paused = true)]
async fn a5_no_way_of_calling_gets_round_a_grant() {
    let (network, log) = (Network::new(31), Log::start());
    let counted = Arc::default();
    let provider = counting(&network, &counted).await;
    let router = builder(&network, 2).start().await.unwrap();
    router.join().await.unwrap();
    let attacker = Attacker::new(&network).await;
    let direct = attacker.connect(&provider).await;

    // Straight to the provider, alone and beside others on a shared stream.
    assert_eq!(
        raw_call(&direct, SAFE, None, Bytes::new()).await,
        StatusCode::PermissionDenied
    );
    let beside = (0..20).map(|_| raw_call(&direct, SAFE, None, Bytes::new()));
    for status in futures::future::join_all(beside).await {
        assert_eq!(status, StatusCode::PermissionDenied);
    }
    // With its own leave, as if it were a router of itself.
    let own = direct.passage(&SAFE.parse().unwrap());
    assert_eq!(raw_call(&direct, SAFE, None, own).await, StatusCode::PermissionDenied);
    let denied_here = provider.transport_stats().calls_denied;
    assert_eq!(denied_here, 22);

    // Through a router whose own grant allows it: without leave, with leave for another service, and with leave for this one.
    let way = attacker.connect(&router).await;
    let leaves = [
        Bytes::new(),
        way.passage(&OPEN.parse().unwrap()),
        way.passage(&SAFE.parse().unwrap()),
    ];
    for leave in leaves {
        let status = raw_call(&way, SAFE, Some(Route::default()), leave).await;
        assert_eq!(status, StatusCode::PermissionDenied);
    }
    assert_eq!(router.transport_stats().calls_denied, 3);
    let leave = way.passage(&OPEN.parse().unwrap());
    assert_eq!(
        raw_call(&way, OPEN, Some(Route::default()), leave).await,
        StatusCode::Ok
    );

    // As a stream, and by a generated client.
    let here = Provider::new(provider.id(), provider.endpoints().iter().cloned());
    let mut known = StaticResolver::new();
    for service in [SAFE, FEED, "shop.Pay"] {
        known = known.with_service(service.parse().unwrap(), [here.clone()]);
    }
    let client = Client::builder(&attacker.endpoint, known).build();
    denied(&client.call(SAFE, "x").await.unwrap_err());
    denied(&stream_error(&client, FEED).await);
    let status = ask_pay(Channel::new(client)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::PermissionDenied, "{status}");
    assert_eq!(provider.transport_stats().calls_denied, denied_here + 3);

    assert_eq!(counted.load(SeqCst), 0, "a handler ran");
    let lines = log.lines(&["a call was denied", &identity(BAD).node_id().to_string()]);
    assert_eq!(lines.len(), 2, "once by the provider and once by the router: {lines:?}");
}

/// A bad program on a node that it shares: the node's own services are no nearer to it than those of others.
#[tokio::test(start_paused = true)]
async fn a5_a_program_on_a_shared_node_calls_only_what_the_node_may_call() {
    let (network, log) = (Network::new(32), Log::start());
    let counted = Arc::default();
    let _elsewhere = counting(&network, &counted).await;
    let grant = Grant::new(&realm(), identity(BAD).node_id(), START..=START + crate::DAY)
        .with_role(macula_node::GrantRole::Node)
        .with_provide(patterns(&["*"]))
        .with_call(patterns(&["demo.*"]));
    let fed = Arc::clone(&counted);
    let shared = builder(&network, BAD)
        .membership(macula_node::Membership {
            realm: realm(),
            chain: grant.sign(&key()).unwrap(),
            issuers: Vec::new(),
        })
        .serve(OPEN, echo)
        .serve(SAFE, echo)
        .serve_streaming(FEED, move |_: Request<Requests>| {
            fed.fetch_add(1, SeqCst);
            std::future::ready(Ok::<_, Status>(stream::iter([Ok::<_, Status>("news")])))
        })
        .serve_tonic(TonicServices::new().with_server(Pay(Arc::clone(&counted))));
    let shared = shared.start().await.unwrap();
    shared.join().await.unwrap();
    assert_eq!(shared.call(OPEN, "x").await.unwrap(), "x");
    denied(&shared.call(SAFE, "x").await.unwrap_err());
    let requests = stream::iter([Bytes::from_static(b"x")]);
    let opened = shared.client().request(FEED).stream(requests).await;
    denied(&opened.err().unwrap());
    let status = ask_pay(Channel::new(shared.client().clone())).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::PermissionDenied, "{status}");
    denied(&stream_error(shared.client(), FEED).await);
    assert_eq!(counted.load(SeqCst), 0, "a handler ran");
    assert_eq!(log.lines(&["a call was denied", "the node's own grant"]).len(), 3);
}

/// The attacker's grant ends while it reads a stream without end.
#[tokio::test(start_paused = true)]
async fn a3_a_grant_that_ends_ends_the_stream_that_it_allowed() {
    let (network, log) = (Network::new(33), Log::start());
    let running = watch::Sender::new(0_usize);
    let seen = running.clone();
    let ticks = move |_: Request<Requests>| {
        let running = Running::new(&seen);
        let ticks = each(Duration::from_secs(1)).map(move |()| {
            let _ = &running;
            Ok::<_, Status>("tick")
        });
        std::future::ready(Ok::<_, Status>(ticks))
    };
    let honest = provider(&network, 1).await;
    let node = builder(&network, 2).serve_streaming("demo.ticks", ticks);
    let node = node.start().await.unwrap();
    node.join().await.unwrap();
    let attacker = Attacker::with(&network, &chain(BAD, START, 600, &["demo.*"])).await;
    let here = Provider::new(node.id(), node.endpoints().iter().cloned());
    let known = StaticResolver::new().with_service("demo.ticks".parse().unwrap(), [here]);
    let client = Client::builder(&attacker.endpoint, known).build();
    let call = client.request("demo.ticks").timeout(Duration::from_secs(3000));
    let mut replies = call.stream(stream::iter([Bytes::from_static(b"x")])).await.unwrap();
    let mut ticks = 0;
    let error = loop {
        match replies.next().await {
            Ok(Some(_)) => ticks += 1,
            Ok(None) => panic!("the stream ended as if it were whole"),
            Err(error) => break error,
        }
    };
    assert!((590..=600).contains(&ticks), "{ticks} ticks in 600 s");
    assert!(error.to_string().contains("ended"), "{error}");
    running.subscribe().wait_for(|&running| running == 0).await.unwrap();
    assert_eq!(node.transport_stats().grants_ended, 1);
    let bad = identity(BAD).node_id().to_string();
    assert_eq!(log.lines(&["ends with its peer's grant", &bad]).len(), 1);
    assert!(honest.call(OPEN, "x").await.is_ok());
}

/// Counts the streams that run.
struct Running(watch::Sender<usize>);

impl Running {
    fn new(running: &watch::Sender<usize>) -> Self {
        running.send_modify(|running| *running += 1);
        Self(running.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}

/// One item each `every`, without end.
fn each(every: Duration) -> impl futures::Stream<Item = ()> {
    let ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
    stream::unfold(ticks, async |mut ticks| {
        ticks.tick().await;
        Some(((), ticks))
    })
}
