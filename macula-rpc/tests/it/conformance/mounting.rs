//! How services are mounted and called: routes, layers, interceptors, limits, in this process, at one provider.

use std::task::{Context, Poll};

use macula_rpc::{ServeError, TonicServices};
use tonic::{
    body::Body,
    codegen::{BoxFuture, Service as TowerService, http},
};

use super::{failing::call_no_such_method, *};

const NAME: &str = "macula.conformance.v1.Conformance";

fn service(name: &str) -> Service {
    let name = name.into();
    let (events, _) = mpsc::unbounded_channel();
    Service { name, events }
}

async fn mesh_of(services: impl Into<TonicServices>) -> Mesh {
    let node = Node::serving(services).await;
    Mesh::of(vec![node], Strategy::First, mpsc::unbounded_channel().1).await
}

#[tokio::test]
async fn routes_serve_under_the_names_they_are_given() {
    let routes = tonic::service::Routes::new(ConformanceServer::new(service("routed")));
    let mesh = mesh_of(TonicServices::new().with_routes([NAME], routes)).await;
    let reply = mesh.stub().unary_call(request(10, 20)).await.unwrap().into_inner();
    assert_eq!((reply.body.len(), reply.provider.as_str()), (20, "routed"));
    server_streaming(&mut mesh.stub()).await;
    let error = call_no_such_method(mesh.channel(), "/macula.conformance.v1.Conformance/NoSuch").await;
    assert_eq!(error.code(), Code::Unimplemented);
}

#[tokio::test]
async fn routes_answer_unimplemented_for_a_name_they_do_not_have() {
    let mesh = mesh_of(TonicServices::new().with_routes([NAME], tonic::service::Routes::default())).await;
    let error = mesh.stub().empty_call(Empty {}).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
}

#[test]
fn several_services_are_served_all_or_none() {
    let both = || TonicServices::new().with_routes(["a.B", "a.C"], ConformanceServer::new(service("")));
    let names = |server: &Server| server.services().iter().map(ToString::to_string).collect::<Vec<_>>();
    let server = Server::new();
    let served = server.serve_tonic(both()).unwrap();
    assert_eq!(served, ["a.B".parse().unwrap(), "a.C".parse().unwrap()]);
    assert_eq!(names(&server), ["a.B", "a.C"]);

    let taken =
        server.serve_tonic(TonicServices::new().with_routes(["a.A", "a.C"], ConformanceServer::new(service(""))));
    assert!(matches!(taken, Err(ServeError::AlreadyServed(name)) if name.as_str() == "a.C"));
    let twice = server.serve_tonic(
        both()
            .with_server(ConformanceServer::new(service("")))
            .with_server(ConformanceServer::new(service(""))),
    );
    assert!(matches!(twice, Err(ServeError::AlreadyServed(_))));
    let wrong =
        server.serve_tonic(TonicServices::new().with_routes(["not a name"], ConformanceServer::new(service(""))));
    assert!(matches!(wrong, Err(ServeError::InvalidName(_))));
    assert_eq!(names(&server), ["a.B", "a.C"]);
}

/// A layer whose error is not a status.
#[derive(Clone)]
struct Closed<S>(S);

#[derive(Debug, thiserror::Error)]
#[error("closed on Sundays")]
struct Sunday;

impl<S> TowerService<http::Request<Body>> for Closed<S>
where
    S: TowerService<http::Request<Body>, Response = http::Response<Body>>,
{
    type Response = http::Response<Body>;
    type Error = Sunday;
    type Future = BoxFuture<http::Response<Body>, Sunday>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Sunday>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        Box::pin(std::future::ready(Err(Sunday)))
    }
}

#[tokio::test]
async fn the_error_of_a_layer_is_the_outcome_of_the_call() {
    let layer = tower::layer::layer_fn(Closed);
    let mesh = mesh_of(layer.named_layer(ConformanceServer::new(service("")))).await;
    let error = mesh.stub().empty_call(Empty {}).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Unknown, "closed on Sundays"));
}

#[cfg(feature = "tower")]
#[tokio::test]
async fn f5_what_a_layer_sheds_is_refused_and_goes_elsewhere() {
    use macula_rpc::RetryPolicy;

    // A limit of 0, so every call is shed.
    let none = tower::ServiceBuilder::new().load_shed().concurrency_limit(0);
    let full = TonicServices::new().with_routes([NAME], none.service(ConformanceServer::new(service("full"))));
    let mesh = mesh_of(full).await;
    let once = mesh.channel().with_retry_policy(RetryPolicy::NeverProcessed);
    let mut stub = ConformanceClient::new(once);
    let error = stub.empty_call(Empty {}).await.unwrap_err();
    assert!(error.message().contains("refused"), "{error}");
}

/// A layer that speaks HTTP and not gRPC: it lets signed HTTP/2 requests through, and refuses the rest.
#[derive(Clone)]
struct Signed<S>(S);

impl<S> TowerService<http::Request<Body>> for Signed<S>
where
    S: TowerService<http::Request<Body>, Response = http::Response<Body>, Future: Send + 'static, Error: Send>
        + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<http::Response<Body>, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let as_ever = request.version() == http::Version::HTTP_2 && request.headers()["te"] == "trailers";
        let refused = match request.headers().get("authorization").map(http::HeaderValue::as_bytes) {
            _ if !as_ever => http::StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Some(b"me") => return Box::pin(self.0.call(request)),
            Some(b"busy") => http::StatusCode::SERVICE_UNAVAILABLE,
            Some(_) => http::StatusCode::FORBIDDEN,
            None => http::StatusCode::UNAUTHORIZED,
        };
        let mut response = http::Response::new(Body::default());
        *response.status_mut() = refused;
        Box::pin(std::future::ready(Ok(response)))
    }
}

#[tokio::test]
async fn a_layer_that_answers_in_http_means_what_it_means_over_http() {
    let served = || tower::layer::layer_fn(Signed).named_layer(ConformanceServer::new(service("signed")));
    let mesh = mesh_of(served()).await;
    let here = Server::new();
    here.serve_tonic(served()).unwrap();
    let (_endpoint, builder) = caller(StaticResolver::new()).await;
    for channel in [mesh.channel(), Channel::new(builder.local_first(here).build())] {
        let mut stub = ConformanceClient::new(channel);
        for (who, code) in [
            (None, Some(Code::Unauthenticated)),
            (Some("a caller"), Some(Code::PermissionDenied)),
            (Some("busy"), Some(Code::Unavailable)),
            (Some("me"), None),
        ] {
            let mut request = Request::new(Empty {});
            if let Some(who) = who {
                request.metadata_mut().insert("authorization", who.parse().unwrap());
            }
            let answer = stub.empty_call(request).await;
            assert_eq!(answer.as_ref().err().map(Status::code), code, "{answer:?}");
        }
    }
}

#[tokio::test]
async fn an_interceptor_of_the_server_sees_the_peer_and_may_refuse() {
    let refuse = |request: Request<()>| match request.extensions().get::<Arc<PeerInfo>>() {
        Some(_) if request.metadata().get("authorization").is_some() => Ok(request),
        Some(_) => Err(Status::unauthenticated("say who you are")),
        None => Err(Status::internal("no caller is known")),
    };
    let mesh = mesh_of(ConformanceServer::with_interceptor(service("guarded"), refuse)).await;
    let error = mesh.stub().empty_call(Empty {}).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::Unauthenticated, "say who you are")
    );
    let mut known = Request::new(Empty {});
    known.metadata_mut().insert("authorization", "me".parse().unwrap());
    mesh.stub().empty_call(known).await.unwrap();
}

/// F7: as over HTTP/2, the metadata has the remaining time of a call with a deadline.
#[tokio::test]
async fn f7_a_handler_sees_how_much_time_its_caller_has() {
    let (told, mut seen) = mpsc::unbounded_channel();
    let tell = move |request: Request<()>| {
        let timeout = request.metadata().get("grpc-timeout");
        let micros = timeout.map(|it| {
            // gRPC's digits and unit: a long time is in milliseconds.
            let (digits, unit) = it.to_str().unwrap().split_at(it.len() - 1);
            digits.parse::<u64>().unwrap() * if unit == "m" { 1000 } else { 1 }
        });
        told.send(micros).unwrap();
        Ok(request)
    };
    let served = ConformanceServer::with_interceptor(service("told"), tell);
    let mesh = mesh_of(served.clone()).await;
    let here = Server::new();
    here.serve_tonic(served).unwrap();
    let (_endpoint, builder) = caller(StaticResolver::new()).await;
    let local = builder.local_first(here).build();
    for channel in [mesh.channel(), Channel::new(local)] {
        ConformanceClient::new(channel.clone())
            .empty_call(Empty {})
            .await
            .unwrap();
        // Its caller sets no deadline; a provider sets its own, of an hour, for calls of peers.
        let own = seen.recv().await.unwrap();
        assert!(own.is_none_or(|micros| micros > 3_000_000_000), "{own:?}");
        let mut request = Request::new(Empty {});
        request.set_timeout(Duration::from_secs(50));
        ConformanceClient::new(channel.clone())
            .empty_call(request)
            .await
            .unwrap();
        let left = seen.recv().await.unwrap().unwrap();
        assert!((1_000_000..=50_001_000).contains(&left), "{left}");
        let channel = channel.with_timeout(Duration::from_secs(50));
        ConformanceClient::new(channel).empty_call(Empty {}).await.unwrap();
        assert!(seen.recv().await.unwrap().is_some());
    }
}

#[tokio::test]
async fn interceptors_and_message_limits_work_as_over_http() {
    let mesh = Mesh::start(1).await;
    let mut stub = ConformanceClient::with_interceptor(mesh.channel(), |mut request: Request<()>| {
        request
            .metadata_mut()
            .insert("x-echo-initial", "intercepted".parse().unwrap());
        Ok(request)
    });
    let reply = stub.empty_call(Empty {}).await.unwrap();
    assert_eq!(reply.metadata().get("x-echo-initial").unwrap(), "intercepted");

    let mut small = mesh.stub().max_decoding_message_size(1_000);
    assert_eq!(
        small.unary_call(request(0, 2_000)).await.unwrap_err().code(),
        Code::OutOfRange
    );
    let too_large = mesh.stub().unary_call(request(LARGEST, 0)).await.unwrap_err();
    assert_eq!(too_large.code(), Code::OutOfRange);
}

#[tokio::test]
async fn layers_of_the_client_go_around_the_channel() {
    let mesh = Mesh::start(1).await;
    let add = |mut request: http::Request<Body>| {
        let layered = http::HeaderValue::from_static("layered");
        request.headers_mut().insert("x-echo-initial", layered);
        request
    };
    let channel = tower::ServiceBuilder::new()
        .concurrency_limit(4)
        .map_request(add)
        .service(mesh.channel());
    let reply = ConformanceClient::new(channel).empty_call(Empty {}).await.unwrap();
    assert_eq!(reply.metadata().get("x-echo-initial").unwrap(), "layered");
}

/// Above the mesh's own limit for a message: gRPC's bytes go in pieces.
#[tokio::test]
async fn messages_of_more_than_4_mib_go_both_ways() {
    let mesh = Mesh::start(1).await;
    let mut large = mesh.stub().max_decoding_message_size(LARGEST);
    let reply = large.unary_call(request(5 << 20, 9 << 20)).await.unwrap().into_inner();
    assert_eq!(reply.body.len(), 9 << 20);

    let with_body = StreamRequest {
        body: vec![0; 5 << 20].into(),
        ..wants(&[6 << 20, 7 << 20])
    };
    let requests = stream::iter([with_body.clone(), with_body]);
    let mut replies = large.full_duplex(requests).await.unwrap().into_inner();
    for size in [6, 7, 6, 7] {
        assert_eq!(replies.message().await.unwrap().unwrap().body.len(), size << 20);
    }
    assert_eq!(replies.message().await.unwrap(), None);
}

/// A mesh without providers whose client serves the stub itself.
async fn alone() -> (Server, Client, Endpoint, mpsc::UnboundedReceiver<&'static str>) {
    let (events, received) = mpsc::unbounded_channel();
    let local = Server::new();
    let name = "here".into();
    local.serve_tonic(server(Service { name, events })).unwrap();
    let (endpoint, builder) = caller(StaticResolver::new()).await;
    (local.clone(), builder.local_first(local).build(), endpoint, received)
}

#[tokio::test]
async fn a_stub_of_this_process_needs_no_network() {
    let (_server, client, endpoint, _events) = alone().await;
    let mut stub = ConformanceClient::new(Channel::new(client));
    empty_unary(&mut stub).await;
    server_streaming(&mut stub).await;
    ping_pong(&mut stub).await;
    status_code_and_message(&mut stub).await;
    compressed_unary(&mut stub).await;
    assert_eq!(endpoint.pool().stats().opened, 0);
}

/// F7: the mesh enforces the deadline, which tonic leaves to its HTTP/2 server.
#[tokio::test]
async fn f7_a_deadline_holds_in_this_process_too() {
    let (_server, client, _endpoint, mut events) = alone().await;
    let mut stub = ConformanceClient::new(Channel::new(client).with_timeout(Duration::from_millis(100)));
    assert_eq!(stub.sleep(Empty {}).await.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(events.recv().await, Some("started"));
    assert_eq!(events.recv().await, Some("dropped"));

    let requests = stream::iter([wants(&[1])]).chain(stream::pending());
    let mut replies = stub.full_duplex(requests).await.unwrap().into_inner();
    assert!(replies.message().await.unwrap().is_some());
    assert_eq!(replies.message().await.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(events.recv().await, Some("dropped"));
}

/// N4: calls of this process count as running too, and a server that drains takes no more of them.
#[tokio::test]
async fn n4_a_drain_waits_for_the_streams_of_this_process() {
    let (server, client, _endpoint, _events) = alone().await;
    let mut stub = ConformanceClient::new(Channel::new(client));
    let replies = stub.full_duplex(stream::pending()).await.unwrap();
    assert_eq!(server.running(), 1);
    let mut drained = std::pin::pin!(server.drain());
    assert!(futures::poll!(&mut drained).is_pending());
    assert_eq!(stub.empty_call(Empty {}).await.unwrap_err().code(), Code::Unimplemented);
    drop(replies);
    drained.await;
}

/// F5, N4: a process that is full or leaves sends its stubs' calls and streams to other providers.
#[tokio::test]
async fn n4_a_process_that_is_full_or_drains_sends_its_stubs_calls_elsewhere() {
    let mesh = Mesh::start(1).await;
    let name: macula_rpc::ServiceName = NAME.parse().unwrap();
    for drains in [false, true] {
        let local = Server::with_max_concurrent_calls(usize::from(drains));
        local
            .serve_tonic(ConformanceServer::new(self::service("here")))
            .unwrap();
        if drains {
            local.drain().await;
        }
        let elsewhere = mesh.nodes[0].provider.clone();
        let directory = StaticResolver::new().with_service(name.clone(), [elsewhere]);
        let (_endpoint, builder) = caller(directory).await;
        let mut stub = ConformanceClient::new(Channel::new(builder.local_first(local.clone()).build()));
        let reply = stub.unary_call(request(10, 20)).await.unwrap().into_inner();
        assert_eq!((reply.body.len(), reply.provider.as_str()), (20, "0"));
        server_streaming(&mut stub).await;
        ping_pong(&mut stub).await;
        assert_eq!(local.running(), 0);
    }
}

#[tokio::test]
async fn a_channel_to_one_provider_calls_nobody_else() {
    let mut mesh = Mesh::with(2, Strategy::RoundRobin).await;
    let second = mesh.nodes[1].provider.clone();
    let channel = mesh.channel().with_provider(second);
    let mut stub = ConformanceClient::new(channel.with_attempt_timeout(Duration::from_millis(500)));
    for _ in 0..3 {
        let reply = stub.unary_call(request(0, 0)).await.unwrap().into_inner();
        assert_eq!(reply.provider, "1");
    }
    mesh.nodes.remove(1).stop().await;
    assert_eq!(stub.empty_call(Empty {}).await.unwrap_err().code(), Code::Unavailable);
    empty_unary(&mut mesh.stub()).await;
}
