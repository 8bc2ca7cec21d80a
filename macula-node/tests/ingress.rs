//! Programs that know nothing of Macula reach the mesh through a node's ingress (N6).
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod http1;

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
};

use http1::{exchange, post};
use macula_node::{
    Bytes, Limits, Node, NodeBuilder, Request, Requests, Response, Status, TonicServices,
    ingress::{Ingress, IngressConfig, IngressError, Tokens},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{
    body::Body,
    codegen::{BoxFuture, Service, http},
    transport::Channel,
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest as Ask, server_reflection_response::MessageResponse as Told,
};

const TOKEN: &str = "a-token-of-the-tests-0123";

fn local() -> NodeBuilder {
    Node::builder().listen("127.0.0.1:0".parse().unwrap())
}

/// A node in the mesh of `node` with an ingress.
async fn ingress(node: &Node, config: impl FnOnce(IngressConfig) -> IngressConfig) -> (Node, Ingress) {
    let bootstrap = node.endpoints()[0].clone().into();
    let entry = local().bootstrap([bootstrap]).start().await.unwrap();
    entry.join().await.unwrap();
    let listen = IngressConfig::new("127.0.0.1:0".parse().unwrap());
    let ingress = Ingress::bind(&entry, config(listen)).await.unwrap();
    (entry, ingress)
}

async fn echo(request: Request) -> Result<Response<Bytes>, Status> {
    if request.payload().is_empty() {
        return Err(Status::invalid_argument("there is nothing to say"));
    }
    let metadata = request.metadata().clone();
    assert_eq!(metadata.get("authorization"), None, "a token is the ingress's own");
    Ok(Response::new(request.into_payload()).with_metadata(metadata))
}

#[tokio::test]
async fn n6_a_post_calls_a_service_and_its_answer_names_the_provider() {
    let provider = local().serve("demo.echo", echo).start().await.unwrap();
    let (_entry, ingress) = ingress(&provider, |config| config).await;
    let answer = post(
        ingress.local_addr(),
        "/v1/call/demo.echo",
        "\r\nmacula-timeout-ms: 5000\r\nmacula-meta-colour: blue",
        "hello",
    )
    .await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
    assert!(
        answer.head.contains(&format!("macula-provider: {}", provider.id())),
        "{}",
        answer.head
    );
    assert!(answer.head.contains("macula-attempts: 1") && answer.head.contains("macula-meta-colour: blue"));
    let at = ingress.local_addr();
    ingress.close().await;
    assert!(TcpStream::connect(at).await.is_err());
}

#[tokio::test]
async fn n6_errors_are_json_with_a_status_that_proxies_understand() {
    let provider = local().serve("demo.echo", echo).start().await.unwrap();
    let (_entry, ingress) = ingress(&provider, |config| config).await;
    let at = ingress.local_addr();
    let missing = post(at, "/v1/call/demo.missing", "", "x").await;
    assert_eq!(
        (missing.status, missing.json()["error"].as_str()),
        (404, Some("service_not_found"))
    );
    let answered = post(at, "/v1/call/demo.echo", "", "").await;
    assert_eq!(
        (answered.status, answered.json()["status"].as_str()),
        (400, Some("invalid_argument"))
    );
    let provider_id = provider.id().to_string();
    assert_eq!(
        answered.json()["attempts"][0]["provider"].as_str(),
        Some(provider_id.as_str())
    );
    let header = post(at, "/v1/call/demo.echo", "\r\nmacula-timeout-ms: soon", "x").await;
    assert_eq!(
        (header.status, header.json()["error"].as_str()),
        (400, Some("invalid_header"))
    );
    let large = post(
        at,
        "/v1/call/demo.echo",
        "",
        &"x".repeat(macula_node::MAX_MESSAGE_BYTES + 1),
    )
    .await;
    assert_eq!(large.status, 413);
    assert_eq!(post(at, "/elsewhere", "", "").await.status, 404);
    let get = TcpStream::connect(at).await.unwrap();
    assert_eq!(exchange(get, "GET /v1/call/demo.echo HTTP/1.1", "").await.status, 405);
}

async fn countdown(_: Request<Requests>) -> Result<impl futures::Stream<Item = Result<Bytes, Status>>, Status> {
    let words: [&'static [u8]; 3] = [b"two", b"one", b"\xff"];
    let words = words.map(|word| Ok(Bytes::from_static(word)));
    Ok(futures::stream::iter(words))
}

#[tokio::test]
async fn n6_a_streaming_service_answers_with_events() {
    let provider = local()
        .serve_streaming("demo.countdown", countdown)
        .start()
        .await
        .unwrap();
    let (_entry, ingress) = ingress(&provider, |config| config).await;
    let accept = "\r\nAccept: text/event-stream";
    let answer = post(ingress.local_addr(), "/v1/call/demo.countdown", accept, "").await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("text/event-stream"));
    let lines: Vec<_> = answer.body.lines().filter(|line| line.contains(':')).collect();
    assert_eq!(
        lines,
        [
            "data: two",
            "data: one",
            "event: bytes",
            "data: /w==",
            "event: end",
            "data: {}"
        ]
    );
}

/// A unary gRPC method that answers with the kind of service asked for.
#[derive(Clone)]
struct Cart;

impl tonic::server::NamedService for Cart {
    const NAME: &'static str = "shop.Cart";
}

impl tonic::server::UnaryService<HealthCheckRequest> for Cart {
    type Response = HealthCheckResponse;
    type Future = BoxFuture<tonic::Response<HealthCheckResponse>, tonic::Status>;

    fn call(&mut self, _: tonic::Request<HealthCheckRequest>) -> Self::Future {
        let status = ServingStatus::ServiceUnknown.into();
        Box::pin(std::future::ready(Ok(tonic::Response::new(HealthCheckResponse {
            status,
        }))))
    }
}

impl Service<http::Request<Body>> for Cart {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let codec = tonic_prost::ProstCodec::<HealthCheckResponse, HealthCheckRequest>::default();
        Box::pin(async move { Ok(tonic::server::Grpc::new(codec).unary(Cart, request).await) })
    }
}

/// `package shop; service Cart {}` as a descriptor set.
fn schema() -> Vec<u8> {
    let file = b"\x0a\x0ashop.proto\x12\x04shop\x32\x06\x0a\x04Cart";
    [&[0x0a, u8::try_from(file.len()).unwrap()], file.as_slice()].concat()
}

async fn connect(ingress: &Ingress) -> Channel {
    let at = format!("http://{}", ingress.local_addr());
    Channel::from_shared(at).unwrap().connect().await.unwrap()
}

async fn ask_cart(channel: Channel) -> Result<ServingStatus, tonic::Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/shop.Cart/Check");
    let request = tonic::Request::new(HealthCheckRequest::default());
    let answer = client.unary(request, path, codec).await?;
    Ok(answer.into_inner().status())
}

#[tokio::test]
async fn n6_grpc_reaches_services_of_the_mesh_and_the_nodes_health() {
    let cart = || TonicServices::new().with_server(Cart);
    let provider = local().serve_tonic(cart()).start().await.unwrap();
    let (_entry, ingress) = ingress(&provider, |config| config).await;
    let channel = connect(&ingress).await;
    assert_eq!(ask_cart(channel.clone()).await.unwrap(), ServingStatus::ServiceUnknown);
    let health = HealthClient::new(channel.clone())
        .check(HealthCheckRequest::default())
        .await;
    assert_eq!(health.unwrap().into_inner().status(), ServingStatus::Serving);
    assert_eq!(
        check(&channel, "shop.Cart").await.unwrap(),
        ServingStatus::Serving,
        "another node serves it"
    );
    let unknown = check(&channel, "shop.Missing").await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    let mut missing = tonic::client::Grpc::new(channel);
    missing.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/shop.Missing/Check");
    let error = missing
        .unary(tonic::Request::new(HealthCheckRequest::default()), path, codec)
        .await;
    assert_eq!(error.unwrap_err().code(), tonic::Code::Unimplemented);
}

async fn check(channel: &Channel, service: &str) -> Result<ServingStatus, tonic::Status> {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = HealthClient::new(channel.clone()).check(request).await?;
    Ok(answer.into_inner().status())
}

#[tokio::test]
async fn n6_a_watch_of_health_ends_when_the_ingress_closes() {
    let cart = TonicServices::new().with_server(Cart);
    let provider = local().serve_tonic(cart).start().await.unwrap();
    let (_entry, ingress) = ingress(&provider, |config| config).await;
    let mut client = HealthClient::new(connect(&ingress).await);
    let mut watches = Vec::new();
    for (service, expected) in [
        ("", ServingStatus::Serving),
        ("shop.Cart", ServingStatus::Serving),
        ("shop.Missing", ServingStatus::ServiceUnknown),
    ] {
        let service = service.to_owned();
        let mut watch = client.watch(HealthCheckRequest { service }).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), expected);
        watches.push(watch);
    }
    // Were they kept, the ingress would be open for its 30 s.
    let (ends, ()) = tokio::join!(
        futures::future::join_all(watches.iter_mut().map(tonic::Streaming::message)),
        ingress.close()
    );
    assert!(ends.iter().all(|end| matches!(end, Ok(None))), "{ends:?}");
}

#[tokio::test]
async fn n6_reflection_shows_the_schema_of_a_service_elsewhere_in_the_mesh() {
    let provider = local()
        .reflect(schema())
        .serve_tonic(TonicServices::new().with_server(Cart));
    let provider = provider.start().await.unwrap();
    let (_entry, ingress) = ingress(&provider, |config| config).await;
    let mut client = ServerReflectionClient::new(connect(&ingress).await);
    let question = |message_request| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(message_request),
    };
    let asked = [
        question(Ask::FileContainingSymbol("shop.Cart".into())),
        question(Ask::FileByFilename("shop.proto".into())),
        question(Ask::FileContainingSymbol("grpc.health.v1.Health".into())),
        question(Ask::FileContainingSymbol("shop.Missing".into())),
        question(Ask::ListServices(String::new())),
    ];
    let answers = client
        .server_reflection_info(futures::stream::iter(asked))
        .await
        .unwrap();
    let mut answers = answers.into_inner();
    let mut told = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        told.push(answer.message_response.unwrap());
    }
    assert!(
        told[..3]
            .iter()
            .all(|told| matches!(told, Told::FileDescriptorResponse(_))),
        "{told:?}"
    );
    assert!(matches!(&told[3], Told::ErrorResponse(_)));
    assert!(matches!(&told[4], Told::ListServicesResponse(_)));
}

#[tokio::test]
async fn n6_a_provider_that_is_lost_costs_a_client_of_the_ingress_no_call() {
    let answered = Arc::new(AtomicU32::new(0));
    let counted = |answered: &Arc<AtomicU32>| {
        let answered = Arc::clone(answered);
        move |request: Request| {
            answered.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Ok::<_, Status>(request.into_payload()))
        }
    };
    let stays = local().serve("demo.count", counted(&answered)).start().await.unwrap();
    let bootstrap = stays.endpoints()[0].clone().into();
    let goes = local()
        .bootstrap([bootstrap])
        .serve("demo.count", counted(&answered))
        .start()
        .await
        .unwrap();
    goes.join().await.unwrap();
    let (_entry, ingress) = ingress(&stays, |config| config).await;
    let mut goes = Some(goes);
    for call in 0..40 {
        if call == 20 {
            // Its sockets are gone at once.
            drop(goes.take());
        }
        let answer = post(ingress.local_addr(), "/v1/call/demo.count", "", "x").await;
        assert_eq!(answer.status, 200, "call {call}: {}", answer.body);
    }
    assert!(answered.load(Ordering::Relaxed) >= 40);
}

#[tokio::test]
async fn n6_an_ingress_that_others_can_reach_needs_tls_and_tokens() {
    let node = local().serve("demo.echo", echo).start().await.unwrap();
    let everywhere: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let tokens = Tokens::new([TOKEN]).unwrap();
    for config in [
        IngressConfig::new(everywhere),
        IngressConfig::new(everywhere).tokens(tokens.clone()),
        IngressConfig::new(everywhere).tls("cert.pem", "key.pem"),
    ] {
        let error = Ingress::bind(&node, config).await.unwrap_err();
        assert!(matches!(error, IngressError::Unguarded(_)), "{error}");
    }
    let (_entry, ingress) = ingress(&node, |config| config.tokens(tokens)).await;
    let at = ingress.local_addr();
    let refused = post(at, "/v1/call/demo.echo", "", "x").await;
    assert_eq!(refused.status, 401);
    assert!(refused.head.contains("www-authenticate: bearer"));
    let with_token = format!("\r\nAuthorization: Bearer {TOKEN}");
    assert_eq!(post(at, "/v1/call/demo.echo", &with_token, "x").await.status, 200);
    let error = ask_cart(connect(&ingress).await).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unauthenticated);
}

#[tokio::test]
async fn n6_a_guarded_ingress_answers_over_tls() {
    let node = local().serve("demo.echo", echo).start().await.unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["mesh.example".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&certificate, pem("CERTIFICATE", made.cert.der())).unwrap();
    std::fs::write(&key, pem("PRIVATE KEY", &made.signing_key.serialize_der())).unwrap();
    let config = IngressConfig::new("0.0.0.0:0".parse().unwrap())
        .tls(certificate, key)
        .tokens(Tokens::new([TOKEN]).unwrap());
    let ingress = Ingress::bind(&node, config).await.unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let at = SocketAddr::new([127, 0, 0, 1].into(), ingress.local_addr().port());
    let stream = TcpStream::connect(at).await.unwrap();
    let stream = connector
        .connect("mesh.example".try_into().unwrap(), stream)
        .await
        .unwrap();
    let head = format!("POST /v1/call/demo.echo HTTP/1.1\r\nAuthorization: Bearer {TOKEN}");
    let answer = exchange(stream, &head, "hello").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
    // Without TLS there is no answer at all.
    let mut plain = TcpStream::connect(at).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"));
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        STANDARD.encode(der)
    )
}

#[tokio::test]
async fn x6_bodies_that_find_no_memory_are_refused_and_leave_none_taken() {
    const LARGE: usize = 3 << 20;
    let limits = Limits {
        memory_bytes: 32 << 20,
        ..Limits::default()
    };
    let node = local()
        .transport(move |config| config.with_limits(limits))
        .serve("demo.echo", echo)
        .start()
        .await
        .unwrap();
    let listen = IngressConfig::new("127.0.0.1:0".parse().unwrap());
    let ingress = Ingress::bind(&node, listen).await.unwrap();
    let at = ingress.local_addr();
    // An eighth of the memory is for the node's own calls: there is room for one of these bodies.
    let mut halfway = TcpStream::connect(at).await.unwrap();
    let head = format!("POST /v1/call/demo.echo HTTP/1.1\r\nHost: mesh\r\nContent-Length: {LARGE}\r\n\r\n");
    halfway.write_all(head.as_bytes()).await.unwrap();
    halfway.write_all(&vec![b'a'; LARGE - 1]).await.unwrap();
    let is_taken = || node.transport_stats().memory.used >= (LARGE - 1) as u64;
    while !is_taken() {
        tokio::task::yield_now().await;
    }
    let refused = post(at, "/v1/call/demo.echo", "", &"b".repeat(LARGE)).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(refused.json()["error"], "out_of_memory");
    let small = post(at, "/v1/call/demo.echo", "", "hello").await;
    assert_eq!((small.status, small.body.as_str()), (200, "hello"));
    drop(halfway);
    while is_taken() {
        tokio::task::yield_now().await;
    }
    let large = post(at, "/v1/call/demo.echo", "", &"b".repeat(LARGE)).await;
    assert_eq!(large.status, 200, "{}", large.head);
}

#[tokio::test]
async fn x8_a_body_that_does_not_arrive_is_given_up() {
    let node = local().serve("demo.echo", echo).start().await.unwrap();
    let listen = IngressConfig::new("127.0.0.1:0".parse().unwrap());
    let ingress = Ingress::bind(&node, listen).await.unwrap();
    let mut stream = TcpStream::connect(ingress.local_addr()).await.unwrap();
    let head = "POST /v1/call/demo.echo HTTP/1.1\r\nHost: mesh\r\nContent-Length: 5\r\n\r\nhel";
    stream.write_all(head.as_bytes()).await.unwrap();
    // From here on the time passes as soon as nothing else is to be done.
    tokio::time::pause();
    let mut answer = vec![0; 1024];
    let read = stream.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn x8_a_connection_without_a_request_is_given_up() {
    let node = local().start().await.unwrap();
    let listen = IngressConfig::new("127.0.0.1:0".parse().unwrap());
    let ingress = Ingress::bind(&node, listen).await.unwrap();
    for said in ["", "PRI * HTTP/2.0", "POST / HTTP/1.1"] {
        let mut stream = TcpStream::connect(ingress.local_addr()).await.unwrap();
        stream.write_all(said.as_bytes()).await.unwrap();
        tokio::time::pause();
        // It ends, with or without an answer that says so.
        let _ = stream.read_to_end(&mut Vec::new()).await;
        tokio::time::resume();
    }
}
