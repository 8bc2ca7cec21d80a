//! tonic's clients and servers on the mesh, after the public descriptions of gRPC's interoperability tests
//! (<https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md>), with a provider being killed between cases.

mod behind;
mod failing;
#[cfg(feature = "testing")]
mod hostile;
mod killed;
mod lane;
mod mounting;
mod pushback;
mod retries;
mod trailers;
#[cfg(feature = "testing")]
mod whole;
mod wide;

use std::{future::pending, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use macula_rpc::{Channel, Client, Provider, Server, StaticResolver, Strategy};
use macula_transport::{Config, Endpoint, Identity, Limits, PeerInfo};
use tokio::{runtime::Runtime, sync::mpsc};
use tonic::{
    Code, Request, Response, Status, Streaming, codec::CompressionEncoding, metadata::MetadataValue,
    service::LayerExt as _,
};

use crate::mesh::caller;

pub(crate) mod schema {
    #![allow(
        clippy::all,
        missing_docs,
        unreachable_pub,
        missing_debug_implementations,
        reason = "generated"
    )]
    include!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/it/gen/macula.conformance.v1.rs"
    ));
}

use schema::{
    EchoStatus, Empty, Reply, StreamRequest, Sum,
    conformance_client::ConformanceClient,
    conformance_server::{Conformance, ConformanceServer},
    nowhere_client::NowhereClient,
};

/// The largest message that the test's server takes: more than gRPC's usual 4 MiB, and than a message of the mesh may have.
const LARGEST: usize = 16 << 20;

#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) events: Events,
}

/// Serves it on two nodes of a mesh in memory, `a` and `b`, and returns the events of its handlers.
#[cfg(feature = "testing")]
pub(crate) fn serve_on_two(mesh: &macula_rpc::testing::Mesh) -> mpsc::UnboundedReceiver<&'static str> {
    let (events, heard) = mpsc::unbounded_channel();
    for name in ["a", "b"] {
        let (name, events) = (name.to_owned(), events.clone());
        let server = mesh.node(&name).server();
        server
            .serve_tonic(ConformanceServer::new(Service { name, events }))
            .unwrap();
    }
    heard
}

/// The events of handlers, for tests that wait for them.
pub(crate) type Events = mpsc::UnboundedSender<&'static str>;

/// Reports when a handler's future or stream is dropped.
struct Dropped(Events);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send("dropped");
    }
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
            let _ = self.events.send("reading");
        }
        // This polls the stream once more.
        requests.trailers().await?;
        Ok(Response::new(Sum {
            bytes,
            provider: self.name.clone(),
        }))
    }

    type FullDuplexStream = Replies;

    async fn full_duplex(&self, request: Request<Streaming<StreamRequest>>) -> Result<Response<Replies>, Status> {
        let provider = self.name.clone();
        let request_metadata = Request::from_parts(request.metadata().clone(), Default::default(), ());
        let requests = request.into_inner();
        let dropped = Dropped(self.events.clone());
        let answers = requests.flat_map(move |request| {
            let _lives_as_long_as_the_stream = &dropped;
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

    async fn sleep(&self, request: Request<Empty>) -> Result<Response<Empty>, Status> {
        if request.metadata().get("x-awake").is_some() {
            return Ok(Response::new(Empty {}));
        }
        let _ = self.events.send("started");
        let _dropped = Dropped(self.events.clone());
        pending().await
    }

    async fn unimplemented(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented("on purpose"))
    }
}

/// The test's service as a generated server, with the layers that the cases need.
fn server(service: Service) -> impl Into<macula_rpc::TonicServices> {
    let generated = ConformanceServer::new(service)
        .max_decoding_message_size(LARGEST)
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip);
    trailers::echo().named_layer(generated)
}

/// A provider with a runtime of its own, so that it can be killed as a process is.
struct Node {
    provider: Provider,
    endpoint: Option<Endpoint>,
    runtime: Option<Runtime>,
}

impl Node {
    async fn start(name: &str, events: Events) -> Self {
        let name = name.into();
        Self::serving(server(Service { name, events })).await
    }

    async fn serving(services: impl Into<macula_rpc::TonicServices>) -> Self {
        Self::within(Limits::default(), services).await
    }

    async fn within(limits: Limits, services: impl Into<macula_rpc::TonicServices>) -> Self {
        let server = Server::new();
        let served = server.serve_tonic(services).unwrap();
        assert_eq!(served, ["macula.conformance.v1.Conformance".parse().unwrap()]);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let config = Config::new(Identity::generate().unwrap())
            .with_listen("127.0.0.1:0".parse().unwrap())
            .with_limits(limits);
        let endpoint = runtime.spawn(Endpoint::bind(config, server)).await.unwrap().unwrap();
        let provider = Provider::new(endpoint.node_id(), [endpoint.local_addr().try_into().unwrap()]);
        Self {
            provider,
            endpoint: Some(endpoint),
            runtime: Some(runtime),
        }
    }

    /// Ends the provider as SIGKILL does: it says nothing, and everything sent to it is lost.
    async fn kill(mut self) {
        let runtime = self.runtime.take().unwrap();
        let stopped = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(10)));
        stopped.await.unwrap();
        // Without its drivers the endpoint cannot close its connections. The socket closes with the runtime.
        drop(self.endpoint.take());
    }

    /// Ends the provider as a failing process does that closes its connections.
    async fn stop(mut self) {
        self.endpoint.take().unwrap().shutdown(Duration::ZERO).await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A runtime must not be shut down within another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Mesh {
    nodes: Vec<Node>,
    client: Client,
    endpoint: Endpoint,
    events: mpsc::UnboundedReceiver<&'static str>,
}

impl Mesh {
    async fn start(providers: usize) -> Self {
        Self::with(providers, Strategy::First).await
    }

    async fn with(providers: usize, strategy: Strategy) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let mut nodes = Vec::new();
        for name in 0..providers {
            nodes.push(Node::start(&name.to_string(), sender.clone()).await);
        }
        Self::of(nodes, strategy, events).await
    }

    async fn of(nodes: Vec<Node>, strategy: Strategy, events: mpsc::UnboundedReceiver<&'static str>) -> Self {
        let service = "macula.conformance.v1.Conformance".parse().unwrap();
        let directory = StaticResolver::new().with_service(service, nodes.iter().map(|node| node.provider.clone()));
        let (endpoint, builder) = caller(directory).await;
        // Every provider is connected, so that the strategy alone decides (H5).
        for node in &nodes {
            let provider = &node.provider;
            endpoint
                .pool()
                .get(&provider.node_id, &provider.endpoints)
                .await
                .unwrap();
        }
        let client = builder.strategy(strategy).build();
        Self {
            nodes,
            client,
            endpoint,
            events,
        }
    }

    fn channel(&self) -> Channel {
        Channel::new(self.client.clone())
    }

    fn stub(&self) -> ConformanceClient<Channel> {
        ConformanceClient::new(self.channel())
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
    with.metadata_mut().insert_bin(trailers::KEY, binary.clone());
    let reply = stub.unary_call(with).await.unwrap();
    // A unary reply's trailers are with its headers.
    assert_eq!(reply.metadata().get_bin(trailers::KEY).unwrap(), binary);
    assert_eq!(reply.metadata().get("x-echo-initial").unwrap(), "initial value");
    assert_eq!(reply.metadata().get_bin("x-echo-bin").unwrap(), binary);

    let mut with = Request::new(stream::iter([wants(&[1])]));
    with.metadata_mut()
        .insert("x-echo-initial", "initial value".parse().unwrap());
    with.metadata_mut().insert_bin(trailers::KEY, binary.clone());
    let replies = stub.full_duplex(with).await.unwrap();
    assert_eq!(replies.metadata().get("x-echo-initial").unwrap(), "initial value");
    assert!(replies.metadata().get_bin(trailers::KEY).is_none());
    let mut replies = replies.into_inner();
    while replies.message().await.unwrap().is_some() {}
    let trailers = replies.trailers().await.unwrap().unwrap();
    assert_eq!(trailers.get_bin(trailers::KEY).unwrap(), binary);
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
