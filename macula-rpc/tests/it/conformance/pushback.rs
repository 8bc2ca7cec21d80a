//! gRPC's pushback, `grpc-retry-pushback-ms` (gRFC A6), in both directions.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use macula_rpc::{CallError, Pushback, StopReason};
use tonic::metadata::MetadataMap;

use super::*;

const TRAILER: &str = "grpc-retry-pushback-ms";

/// A generated server that is unavailable with this pushback, and the number of its calls.
async fn unavailable(asked: &'static str) -> (Node, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let refuse = {
        let calls = Arc::clone(&calls);
        move |_: Request<()>| -> Result<Request<()>, Status> {
            calls.fetch_add(1, SeqCst);
            let mut trailers = MetadataMap::new();
            trailers.insert(TRAILER, asked.parse().unwrap());
            Err(Status::with_metadata(Code::Unavailable, "later", trailers))
        }
    };
    let service = Service {
        name: "unavailable".into(),
        events: mpsc::unbounded_channel().0,
    };
    let node = Node::serving(ConformanceServer::with_interceptor(service, refuse)).await;
    (node, calls)
}

/// That server first, and then a server that answers.
async fn mesh(asked: &'static str) -> (Mesh, Arc<AtomicUsize>) {
    let (events, received) = mpsc::unbounded_channel();
    let (first, calls) = unavailable(asked).await;
    let nodes = vec![first, Node::start("1", events).await];
    (Mesh::of(nodes, Strategy::First, received).await, calls)
}

#[tokio::test]
async fn f9_a_generated_server_that_asks_for_time_is_left_in_peace_so_long() {
    let (mesh, calls) = mesh("20000").await;
    for _ in 0..3 {
        let reply = mesh.stub().unary_call(request(0, 0)).await.unwrap().into_inner();
        assert_eq!(reply.provider, "1");
    }
    assert_eq!(calls.load(SeqCst), 1);
}

#[tokio::test]
async fn f9_a_generated_server_that_forbids_the_next_try_ends_the_call() {
    for asked in ["-1", "soon"] {
        let (mesh, calls) = mesh(asked).await;
        let error = mesh.stub().unary_call(request(0, 0)).await.unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::Unavailable, "later"));
        assert_eq!(error.metadata().get(TRAILER).unwrap(), "-1");
        assert_eq!(error.metadata().get_all(TRAILER).iter().count(), 1);

        let service: macula_rpc::ServiceName = "macula.conformance.v1.Conformance".parse().unwrap();
        let call = mesh.client.request(service).method("UnaryCall");
        let error = call.stream(stream::empty()).await.unwrap_err();
        assert!(
            matches!(
                &error,
                CallError::NotRetried {
                    reason: StopReason::Pushback,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(error.attempts()[0].cause.pushback(), Some(Pushback::Never));
        assert_eq!(calls.load(SeqCst), 2);
    }
}

/// A provider that is not a tonic application answers a stub with an error, and with a refusal.
#[tokio::test]
async fn f9_a_providers_pushback_reaches_a_generated_client_as_its_trailer() {
    use macula_rpc::Status;

    let asked = Pushback::After(Duration::from_millis(1500));
    for status in [Status::unavailable("later"), Status::refused("full")] {
        let status = status.with_pushback(asked);
        let server = Server::new();
        let service: macula_rpc::ServiceName = "macula.conformance.v1.Conformance".parse().unwrap();
        let handler = move |_: macula_rpc::Request| std::future::ready(Err::<Bytes, _>(status.clone()));
        server.serve(service.clone(), handler).unwrap();
        let config = Config::new(Identity::generate().unwrap()).with_listen("127.0.0.1:0".parse().unwrap());
        let endpoint = Endpoint::bind(config, server).await.unwrap();
        let provider = Provider::new(endpoint.node_id(), [endpoint.local_addr().try_into().unwrap()]);
        let (_endpoint, builder) = caller(StaticResolver::new().with_service(service, [provider])).await;
        let error = ConformanceClient::new(Channel::new(builder.build()))
            .empty_call(Empty {})
            .await;
        let error = error.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert_eq!(error.metadata().get(TRAILER).unwrap(), "1500");
    }
}
