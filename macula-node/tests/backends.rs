//! Services whose code is a server beside the node (N6): `grpc://` and `http://`.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, Method, StatusCode as Http},
    response::{
        IntoResponse as _, Response,
        sse::{Event, Sse},
    },
    routing::{any, get},
};
use futures::stream;
use macula_node::{CallError, Cause, Channel, Metadata, Node, ServiceName, StatusCode};
use support::{NodeProcess, complaint, run};
use tokio::{net::TcpListener, runtime::Runtime};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tonic_reflection::server::Builder;

/// A caller in the mesh of a node.
async fn caller(node: &NodeProcess) -> Node {
    let builder = Node::builder().listen("127.0.0.1:0".parse().unwrap());
    let caller = builder
        .bootstrap([node.pinned().parse().unwrap()])
        .start()
        .await
        .unwrap();
    caller.join().await.unwrap();
    caller
}

/// The service of the tests, which answers as a health service does, so that its schema is at hand.
const CART: &str = "shop.Cart";

/// Whether the server is well, by its own word.
#[derive(Clone)]
struct Cart(Arc<AtomicBool>);

#[tonic::async_trait]
impl Health for Cart {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, tonic::Status> {
        let status = match (self.0.load(Ordering::Relaxed), request.get_ref().service.as_str()) {
            (true, CART) => ServingStatus::Serving,
            (false, CART) => ServingStatus::NotServing,
            _ => return Err(tonic::Status::not_found("another service")),
        };
        Ok(tonic::Response::new(HealthCheckResponse { status: status.into() }))
    }

    type WatchStream = stream::Empty<Result<HealthCheckResponse, tonic::Status>>;

    async fn watch(
        &self,
        _: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<Self::WatchStream>, tonic::Status> {
        Ok(tonic::Response::new(stream::empty()))
    }
}

/// `package shop; service Cart {}` as a descriptor set.
fn schema() -> Vec<u8> {
    let file = b"\x0a\x0ashop.proto\x12\x04shop\x32\x06\x0a\x04Cart";
    [&[0x0a, u8::try_from(file.len()).unwrap()], file.as_slice()].concat()
}

/// A gRPC server that knows nothing of the mesh: health, reflection, and `shop.Cart`. It ends, with its connections, when dropped.
struct GrpcServer {
    at: SocketAddr,
    runtime: Option<Runtime>,
}

impl GrpcServer {
    async fn start(at: &str, well: &Arc<AtomicBool>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (at, well) = (at.to_owned(), Arc::clone(well));
        let bound = runtime.spawn(async move {
            let listener = TcpListener::bind(at).await.unwrap();
            let at = listener.local_addr().unwrap();
            tokio::spawn(async move { axum::serve(listener, routes(well)).await.unwrap() });
            at
        });
        Self {
            at: bound.await.unwrap(),
            runtime: Some(runtime),
        }
    }
}

impl Drop for GrpcServer {
    fn drop(&mut self) {
        // A runtime must not be shut down within another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn routes(well: Arc<AtomicBool>) -> Router {
    let schema = schema();
    let reflection = Builder::configure().register_encoded_file_descriptor_set(&schema);
    let cart = HealthServer::new(Cart(well));
    let to_cart = cart.clone();
    // `shop.Cart/Check` is answered by the same code as the health service's.
    let cart_route = any(move |request: axum::extract::Request| {
        let mut cart = to_cart.clone();
        async move {
            let (mut parts, body) = request.into_parts();
            parts.uri = "/grpc.health.v1.Health/Check".parse().unwrap();
            let request = axum::http::Request::from_parts(parts, tonic::body::Body::new(body));
            tonic::codegen::Service::call(&mut cart, request)
                .await
                .unwrap()
                .map(Body::new)
        }
    });
    let routes = tonic::service::Routes::new(cart).add_service(reflection.build_v1().unwrap());
    routes.into_axum_router().route("/shop.Cart/Check", cart_route)
}

async fn ask_cart(caller: &Node) -> Result<ServingStatus, tonic::Status> {
    let mut client = tonic::client::Grpc::new(Channel::new(caller.client().clone()));
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let path = axum::http::uri::PathAndQuery::from_static("/shop.Cart/Check");
    let request = HealthCheckRequest { service: CART.into() };
    let answer = client.unary(tonic::Request::new(request), path, codec).await?;
    Ok(answer.into_inner().status())
}

/// Looks the providers of `shop.Cart` up until there are so many.
async fn wait_for_providers(caller: &Node, count: usize) {
    let service: ServiceName = CART.parse().unwrap();
    let is_there = async || caller.lookup(&service).await.is_ok_and(|found| found.len() == count);
    // A node that is asked too fast declines some of the lookups.
    while !is_there().await {}
}

#[tokio::test]
async fn n6_a_grpc_server_is_provided_while_it_is_well_and_again_when_it_comes_back() {
    let well = Arc::new(AtomicBool::new(true));
    let server = GrpcServer::start("127.0.0.1:0", &well).await;
    let at = server.at.to_string();
    let serve = format!("grpc://{at}");
    let node = NodeProcess::start(&["--serve", &serve]);
    assert_eq!(node.ready["services"][0], serve.as_str());
    let caller = caller(&node).await;
    wait_for_providers(&caller, 1).await;
    assert_eq!(ask_cart(&caller).await.unwrap(), ServingStatus::Serving);

    // Its own word withdraws it, and publishes it again.
    well.store(false, Ordering::Relaxed);
    wait_for_providers(&caller, 0).await;
    well.store(true, Ordering::Relaxed);
    wait_for_providers(&caller, 1).await;

    drop(server);
    wait_for_providers(&caller, 0).await;
    let error = ask_cart(&caller).await.unwrap_err();
    assert!(
        matches!(error.code(), tonic::Code::Unimplemented | tonic::Code::Unavailable),
        "{error}"
    );
    let _server = GrpcServer::start(&at, &well).await;
    wait_for_providers(&caller, 1).await;
    assert_eq!(ask_cart(&caller).await.unwrap(), ServingStatus::Serving);
}

#[tokio::test]
async fn n6_a_named_service_of_a_grpc_server_is_provided_alone() {
    let well = Arc::new(AtomicBool::new(true));
    let server = GrpcServer::start("127.0.0.1:0", &well).await;
    let node = NodeProcess::start(&["--serve", &format!("{CART}=grpc://{}", server.at)]);
    let caller = caller(&node).await;
    wait_for_providers(&caller, 1).await;
    assert_eq!(ask_cart(&caller).await.unwrap(), ServingStatus::Serving);
    // The node's own health knows the service, and not the server's.
    let provider = caller.providers(&CART.parse().unwrap()).await.unwrap()[0].clone();
    let mut health = HealthClient::new(Channel::new(caller.client().clone()).with_provider(provider));
    let asked = health.check(HealthCheckRequest { service: CART.into() }).await;
    assert_eq!(asked.unwrap().into_inner().status(), ServingStatus::Serving);
}

/// Answers with what it was asked.
async fn page(method: Method, headers: HeaderMap, uri: axum::http::Uri, body: Bytes) -> Response {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("-")
            .to_owned()
    };
    match &body[..] {
        b"missing" => return (Http::NOT_FOUND, "no such page\n").into_response(),
        b"busy" => return Http::SERVICE_UNAVAILABLE.into_response(),
        b"large" => return "x".repeat(5 << 20).into_response(),
        _ => {}
    }
    let told = format!(
        "{method} {} {} {} {}",
        uri.path(),
        text("colour"),
        text("content-length"),
        String::from_utf8_lossy(&body)
    );
    ([("answer-colour", text("colour"))], told).into_response()
}

async fn ticks() -> impl axum::response::IntoResponse {
    let events = ["one", "two"].map(|word| Ok::<_, std::convert::Infallible>(Event::default().data(word)));
    Sse::new(stream::iter(events))
}

/// A node that provides `web.page` and `web.ticks` of an HTTP server.
async fn web() -> (NodeProcess, Node) {
    let routes = Router::new()
        .route("/page", any(page))
        .route("/page/{method}", any(page))
        .route("/ticks", get(ticks));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    let (page, ticks) = (
        format!("web.page=http://{at}/page"),
        format!("web.ticks=http://{at}/ticks"),
    );
    let node = NodeProcess::start(&["--serve", &page, "--serve", &ticks]);
    let caller = caller(&node).await;
    (node, caller)
}

fn metadata(entries: &[(&'static str, &'static str)]) -> Metadata {
    entries.iter().copied().collect()
}

#[tokio::test]
async fn n6_an_http_server_answers_calls() {
    let (_node, caller) = web().await;
    let client = caller.client();
    let call = || client.request("web.page");
    let answer = call()
        .metadata(metadata(&[("colour", "blue")]))
        .send("hello")
        .await
        .unwrap();
    let (payload, told) = answer.into_response().into_parts();
    assert_eq!(payload, "POST /page blue 5 hello");
    assert_eq!(told.get("answer-colour").unwrap(), "blue");
    assert_eq!(told.get("content-length"), None);

    let put = metadata(&[("http-method", "PUT")]);
    let answer = call().method("set").metadata(put).send("").await.unwrap();
    assert_eq!(answer.payload(), "PUT /page/set - - ");

    // Requests that come one after another are a body of unknown length.
    let requests = stream::iter(["a", "b", "c"].map(axum::body::Bytes::from));
    let mut replies = call().stream(requests).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "POST /page - - abc");
    assert_eq!(replies.next().await.unwrap(), None);

    for (body, code) in [("missing", StatusCode::NotFound), ("busy", StatusCode::Unavailable)] {
        let error = call().send(body).await.unwrap_err();
        let Cause::Answered(status) = &error.attempts().last().unwrap().cause else {
            panic!("{error}");
        };
        assert_eq!(status.code(), code);
    }
    let CallError::Answered { status, .. } = call().send("missing").await.unwrap_err() else {
        panic!("a definitive answer is the outcome");
    };
    assert_eq!(status.message(), "HTTP status 404 Not Found: no such page");
    let error = call().method("../other").send("").await.unwrap_err();
    assert!(error.to_string().contains("letters"), "{error}");
}

#[tokio::test]
async fn n6_long_answers_and_events_of_an_http_server_are_streams() {
    let (_node, caller) = web().await;
    let client = caller.client();
    let open = async |service: &str, metadata: Metadata, body: &'static str| {
        let call = client.request(service).metadata(metadata);
        let mut replies = call
            .stream(stream::iter([axum::body::Bytes::from(body)]))
            .await
            .unwrap();
        let mut pieces = Vec::new();
        while let Some(piece) = replies.next().await.unwrap() {
            pieces.push(piece);
        }
        pieces
    };
    let get = || metadata(&[("http-method", "GET")]);
    let events = open("web.ticks", get(), "").await;
    assert_eq!(events.concat(), b"data: one\n\ndata: two\n\n");
    let large = open("web.page", Metadata::new(), "large").await;
    assert_eq!(large.iter().map(Bytes::len).sum::<usize>(), 5 << 20);
    assert!(large.len() > 1);
}

#[test]
fn a_server_that_is_written_wrongly_is_a_usage_error() {
    for (serve, word) in [
        ("shop.Cart=grpc://nowhere", "grpc://HOST:PORT"),
        ("a=https://127.0.0.1/", "http://HOST:PORT/PATH"),
    ] {
        let output = run(&["node", "--listen", "127.0.0.1:0", "--serve", serve]);
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(word), "{said}");
    }
    let settings = ["--serve", "a=grpc://127.0.0.1:1", "--service", "a:concurrency=2"];
    let output = run(&[&["node", "--listen", "127.0.0.1:0"], &settings[..]].concat());
    assert!(complaint(&output).contains("only its timeout can be set"));
}
