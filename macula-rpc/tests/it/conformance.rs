//! tonic's clients and servers on the mesh, after the public descriptions of gRPC's interoperability tests
//! (<https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md>), with a provider being killed between cases.

use std::{future::pending, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use macula_rpc::{Channel, Client, Provider, Server, StaticResolver, Strategy};
use macula_transport::{Config, Endpoint, Identity, PeerInfo};
use tokio::sync::mpsc;
use tonic::{Code, Request, Response, Status, Streaming, codec::CompressionEncoding, metadata::MetadataValue};

use crate::mesh::caller;

pub(crate) mod schema {
    #![allow(
        clippy::all,
        missing_docs,
        unreachable_pub,
        missing_debug_implementations,
        reason = "generated"
    )]
    include!("gen/macula.conformance.v1.rs");
}

use schema::{
    EchoStatus, Empty, Reply, StreamRequest, Sum,
    conformance_client::ConformanceClient,
    conformance_server::{Conformance, ConformanceServer},
    nowhere_client::NowhereClient,
};

#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) sleeping: mpsc::UnboundedSender<&'static str>,
}

/// The status that a request asks to be answered with, unless it is none or ok.
fn asked(status: Option<&EchoStatus>) -> Result<(), Status> {
    match status {
        Some(status) if status.code != 0 => Err(Status::with_details(
            Code::from_i32(status.code),
            &status.message,
            "rich details".into(),
        )),
        _ => Ok(()),
    }
}

/// Sends the caller's metadata back, in the headers and in the trailers of a reply.
fn with_metadata<T, U>(request: &Request<T>, mut response: Response<U>) -> Response<U> {
    if let Some(value) = request.metadata().get("x-echo-initial") {
        response.metadata_mut().insert("x-echo-initial", value.clone());
    }
    if let Some(value) = request.metadata().get_bin("x-echo-bin") {
        response.metadata_mut().insert_bin("x-echo-bin", value.clone());
    }
    response
}

type Replies = stream::BoxStream<'static, Result<Reply, Status>>;

#[tonic::async_trait]
impl Conformance for Service {
    async fn empty_call(&self, request: Request<Empty>) -> Result<Response<Empty>, Status> {
        Ok(with_metadata(&request, Response::new(Empty {})))
    }

    async fn unary_call(&self, request: Request<schema::Request>) -> Result<Response<Reply>, Status> {
        // The peer's identity, proved by the connection, is an extension.
        let known = request.extensions().get::<Arc<PeerInfo>>().is_some();
        asked(request.get_ref().status.as_ref())?;
        let reply = Reply {
            body: vec![0; request.get_ref().reply_bytes as usize].into(),
            provider: if known {
                self.name.clone()
            } else {
                "a stranger called".into()
            },
        };
        Ok(with_metadata(&request, Response::new(reply)))
    }

    type StreamingOutputStream = Replies;

    async fn streaming_output(&self, request: Request<StreamRequest>) -> Result<Response<Replies>, Status> {
        let provider = self.name.clone();
        let reply = move |bytes: i32| {
            Ok(Reply {
                body: vec![0; bytes as usize].into(),
                provider: provider.clone(),
            })
        };
        Ok(Response::new(
            stream::iter(request.into_inner().reply_bytes).map(reply).boxed(),
        ))
    }

    async fn streaming_input(&self, request: Request<Streaming<schema::Request>>) -> Result<Response<Sum>, Status> {
        let mut requests = request.into_inner();
        let mut bytes = 0;
        while let Some(request) = requests.message().await? {
            bytes += request.body.len() as i64;
        }
        Ok(Response::new(Sum { bytes }))
    }

    type FullDuplexStream = Replies;

    async fn full_duplex(&self, request: Request<Streaming<StreamRequest>>) -> Result<Response<Replies>, Status> {
        let provider = self.name.clone();
        let request_metadata = Request::from_parts(request.metadata().clone(), Default::default(), ());
        let requests = request.into_inner();
        let answers = requests.flat_map(move |request| {
            let request = match request {
                Ok(request) => request,
                Err(status) => return stream::iter(vec![Err(status)]),
            };
            if let Err(status) = asked(request.status.as_ref()) {
                return stream::iter(vec![Err(status)]);
            }
            let reply = |bytes: &i32| {
                Ok(Reply {
                    body: vec![0; *bytes as usize].into(),
                    provider: provider.clone(),
                })
            };
            stream::iter(request.reply_bytes.iter().map(reply).collect::<Vec<_>>())
        });
        Ok(with_metadata(&request_metadata, Response::new(answers.boxed())))
    }

    async fn sleep(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        struct Dropped(mpsc::UnboundedSender<&'static str>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                let _ = self.0.send("dropped");
            }
        }
        let _ = self.sleeping.send("started");
        let _dropped = Dropped(self.sleeping.clone());
        pending().await
    }

    async fn unimplemented(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented("on purpose"))
    }
}

/// A provider that can be killed: its connections end at once, and nobody listens any more.
struct Node {
    provider: Provider,
    endpoint: Endpoint,
}

impl Node {
    async fn start(name: &str, sleeping: mpsc::UnboundedSender<&'static str>) -> Self {
        let service = Service {
            name: name.into(),
            sleeping,
        };
        let server = Server::new();
        let mounted = ConformanceServer::new(service)
            .accept_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Gzip);
        assert_eq!(
            server.serve_tonic(mounted).unwrap().as_str(),
            "macula.conformance.v1.Conformance"
        );
        let config = Config::new(Identity::generate().unwrap()).with_listen("127.0.0.1:0".parse().unwrap());
        let endpoint = Endpoint::bind(config, server).await.unwrap();
        let provider = Provider::new(endpoint.node_id(), [endpoint.local_addr().try_into().unwrap()]);
        Self { provider, endpoint }
    }

    async fn kill(self) {
        self.endpoint.shutdown(Duration::ZERO).await;
    }
}

struct Mesh {
    nodes: Vec<Node>,
    client: Client,
    _endpoint: Endpoint,
    sleeping: mpsc::UnboundedReceiver<&'static str>,
}

impl Mesh {
    async fn start(providers: usize) -> Self {
        let (events, sleeping) = mpsc::unbounded_channel();
        let mut nodes = Vec::new();
        for name in 0..providers {
            nodes.push(Node::start(&name.to_string(), events.clone()).await);
        }
        let service = "macula.conformance.v1.Conformance".parse().unwrap();
        let directory = StaticResolver::new().with_service(service, nodes.iter().map(|node| node.provider.clone()));
        let (endpoint, builder) = caller(directory).await;
        let client = builder.strategy(Strategy::First).build();
        Self {
            nodes,
            client,
            _endpoint: endpoint,
            sleeping,
        }
    }

    fn stub(&self) -> ConformanceClient<Channel> {
        ConformanceClient::new(Channel::new(self.client.clone()))
    }
}

fn request(bytes: usize, reply_bytes: i32) -> schema::Request {
    schema::Request {
        reply_bytes,
        body: vec![0; bytes].into(),
        status: None,
    }
}

fn wants(reply_bytes: &[i32]) -> StreamRequest {
    StreamRequest {
        reply_bytes: reply_bytes.to_vec(),
        body: Default::default(),
        status: None,
    }
}

async fn empty_unary(stub: &mut ConformanceClient<Channel>) {
    assert_eq!(stub.empty_call(Empty {}).await.unwrap().into_inner(), Empty {});
}

async fn large_unary(stub: &mut ConformanceClient<Channel>) {
    let reply = stub.unary_call(request(271_828, 314_159)).await.unwrap().into_inner();
    assert_eq!(reply.body.len(), 314_159);
    assert_ne!(reply.provider, "a stranger called");
}

async fn client_streaming(stub: &mut ConformanceClient<Channel>) {
    let requests = [27_182, 8, 1_828, 45_904].map(|bytes| request(bytes, 0));
    let sum = stub.streaming_input(stream::iter(requests)).await.unwrap().into_inner();
    assert_eq!(sum.bytes, 74_922);
}

async fn server_streaming(stub: &mut ConformanceClient<Channel>) {
    let sizes = [31_415, 9, 2_653, 58_979];
    let mut replies = stub.streaming_output(wants(&sizes)).await.unwrap().into_inner();
    for size in sizes {
        assert_eq!(replies.message().await.unwrap().unwrap().body.len(), size as usize);
    }
    assert_eq!(replies.message().await.unwrap(), None);
}

async fn ping_pong(stub: &mut ConformanceClient<Channel>) {
    let (requests, mut waiting) = mpsc::unbounded_channel();
    let outgoing = stream::poll_fn(move |cx| waiting.poll_recv(cx));
    requests.send(wants(&[31_415])).unwrap();
    let mut replies = stub.full_duplex(outgoing).await.unwrap().into_inner();
    assert_eq!(replies.message().await.unwrap().unwrap().body.len(), 31_415);
    for size in [9, 2_653, 58_979] {
        requests.send(wants(&[size])).unwrap();
        assert_eq!(replies.message().await.unwrap().unwrap().body.len(), size as usize);
    }
    drop(requests);
    assert_eq!(replies.message().await.unwrap(), None);
}

async fn empty_stream(stub: &mut ConformanceClient<Channel>) {
    let mut replies = stub.full_duplex(stream::empty()).await.unwrap().into_inner();
    assert_eq!(replies.message().await.unwrap(), None);
}

async fn custom_metadata(stub: &mut ConformanceClient<Channel>) {
    let mut with = Request::new(request(1, 1));
    with.metadata_mut()
        .insert("x-echo-initial", "initial value".parse().unwrap());
    let binary = MetadataValue::from_bytes(b"\x00\xab\xff");
    with.metadata_mut().insert_bin("x-echo-bin", binary.clone());
    let reply = stub.unary_call(with).await.unwrap();
    assert_eq!(reply.metadata().get("x-echo-initial").unwrap(), "initial value");
    assert_eq!(reply.metadata().get_bin("x-echo-bin").unwrap(), binary);

    let mut with = Request::new(stream::iter([wants(&[1])]));
    with.metadata_mut()
        .insert("x-echo-initial", "initial value".parse().unwrap());
    let replies = stub.full_duplex(with).await.unwrap();
    assert_eq!(replies.metadata().get("x-echo-initial").unwrap(), "initial value");
}

async fn status_code_and_message(stub: &mut ConformanceClient<Channel>) {
    let status = Some(EchoStatus {
        code: Code::InvalidArgument as i32,
        message: "test status message".into(),
    });
    let error = stub
        .unary_call(schema::Request {
            status: status.clone(),
            ..request(0, 0)
        })
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::InvalidArgument, "test status message")
    );
    assert_eq!(error.details(), b"rich details");

    let requests = stream::iter([StreamRequest { status, ..wants(&[]) }]);
    let mut replies = stub.full_duplex(requests).await.unwrap().into_inner();
    let error = replies.message().await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::InvalidArgument, "test status message")
    );
    assert_eq!(error.details(), b"rich details");
}

async fn special_status_message(stub: &mut ConformanceClient<Channel>) {
    let message = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n";
    let status = Some(EchoStatus {
        code: Code::NotFound as i32,
        message: message.into(),
    });
    let error = stub
        .unary_call(schema::Request {
            status,
            ..request(0, 0)
        })
        .await
        .unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::NotFound, message));
}

async fn unimplemented_method(stub: &mut ConformanceClient<Channel>) {
    assert_eq!(
        stub.unimplemented(Empty {}).await.unwrap_err().code(),
        Code::Unimplemented
    );
}

async fn compressed_unary(stub: &mut ConformanceClient<Channel>) {
    let mut stub = stub
        .clone()
        .send_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Gzip);
    let reply = stub.unary_call(request(271_828, 314_159)).await.unwrap();
    assert_eq!(reply.metadata().get("grpc-encoding").unwrap(), "gzip");
    assert_eq!(reply.into_inner().body.len(), 314_159);
}

#[tokio::test]
async fn every_case_passes_with_a_provider_killed_between_cases() {
    let mut mesh = Mesh::start(4).await;
    // Nobody refuses a dial to a killed provider: it takes as long as an attempt may.
    let channel = Channel::new(mesh.client.clone()).with_attempt_timeout(Duration::from_millis(500));
    let mut stub = ConformanceClient::new(channel);
    let mut cases = 0;
    macro_rules! cases {
        ($($case:ident),* $(,)?) => {$(
            $case(&mut stub).await;
            cases += 1;
            // With `first` it is the one in use that dies; the last one stays.
            if cases % 3 == 0 && mesh.nodes.len() > 1 {
                mesh.nodes.remove(0).kill().await;
            }
        )*};
    }
    cases!(
        empty_unary,
        large_unary,
        client_streaming,
        server_streaming,
        ping_pong,
        empty_stream,
        custom_metadata,
        status_code_and_message,
        special_status_message,
        unimplemented_method,
        compressed_unary,
    );
    assert_eq!((cases, mesh.nodes.len()), (11, 1));
}

#[tokio::test]
async fn a_method_and_a_service_that_nobody_has_are_unimplemented() {
    let mesh = Mesh::start(1).await;
    let mut nowhere = NowhereClient::new(Channel::new(mesh.client.clone()));
    assert_eq!(nowhere.call(Empty {}).await.unwrap_err().code(), Code::Unimplemented);
    let mut raw = tonic::client::Grpc::new(Channel::new(mesh.client.clone()));
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/macula.conformance.v1.Conformance/NoSuch");
    raw.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<Empty, Empty>::default();
    let error = raw.unary(Request::new(Empty {}), path, codec).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
}

#[tokio::test]
async fn f7_a_timeout_on_a_sleeping_server_ends_both_sides() {
    let mut mesh = Mesh::start(1).await;
    let mut request = Request::new(Empty {});
    request.set_timeout(Duration::from_millis(100));
    let error = mesh.stub().sleep(request).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert_eq!(mesh.sleeping.recv().await, Some("started"));
    assert_eq!(mesh.sleeping.recv().await, Some("dropped"));
}

#[tokio::test]
async fn f8_cancel_after_begin_reaches_the_server() {
    let mut mesh = Mesh::start(1).await;
    let mut stub = mesh.stub();
    let call = tokio::spawn(async move { stub.sleep(Empty {}).await });
    assert_eq!(mesh.sleeping.recv().await, Some("started"));
    call.abort();
    assert_eq!(mesh.sleeping.recv().await, Some("dropped"));
}

#[tokio::test]
async fn f8_cancel_after_the_first_response() {
    let mesh = Mesh::start(1).await;
    let requests = stream::iter([wants(&[31_415])]).chain(stream::pending());
    let mut replies = mesh.stub().full_duplex(requests).await.unwrap().into_inner();
    assert_eq!(replies.message().await.unwrap().unwrap().body.len(), 31_415);
    drop(replies);
    // The connection goes on.
    empty_unary(&mut mesh.stub()).await;
}

#[tokio::test]
async fn a_stub_of_this_process_needs_no_network() {
    let (events, _sleeping) = mpsc::unbounded_channel();
    let server = Server::new();
    let service = Service {
        name: "here".into(),
        sleeping: events,
    };
    server.serve_tonic(ConformanceServer::new(service)).unwrap();
    let (endpoint, builder) = caller(StaticResolver::new()).await;
    let client = builder.local_first(server).build();
    empty_unary(&mut ConformanceClient::new(Channel::new(client))).await;
    assert_eq!(endpoint.pool().stats().opened, 0);
}

#[tokio::test]
async fn interceptors_and_message_limits_work_as_over_http() {
    let mesh = Mesh::start(1).await;
    let channel = Channel::new(mesh.client.clone());
    let mut stub = ConformanceClient::with_interceptor(channel, |mut request: Request<()>| {
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
    // Above the mesh's own limit for a message: gRPC's bytes go in pieces.
    let mut large = mesh.stub().max_decoding_message_size(16 << 20);
    let reply = large.unary_call(request(0, 9 << 20)).await.unwrap().into_inner();
    assert_eq!(reply.body.len(), 9 << 20);
}
