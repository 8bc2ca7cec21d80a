//! Deadlines, cancellation, and providers that die in the middle of a call.

use bytes::Bytes;
use macula_transport::CallRequest;

use super::*;

#[tokio::test]
async fn a_method_and_a_service_that_nobody_has_are_unimplemented() {
    let mesh = Mesh::start(1).await;
    let mut nowhere = NowhereClient::new(mesh.channel());
    assert_eq!(nowhere.call(Empty {}).await.unwrap_err().code(), Code::Unimplemented);
    let error = call_no_such_method(mesh.channel(), "/macula.conformance.v1.Conformance/NoSuch").await;
    assert_eq!(error.code(), Code::Unimplemented);
}

/// The status of a call whose path no schema has.
pub(super) async fn call_no_such_method(channel: Channel, path: &'static str) -> Status {
    let mut raw = tonic::client::Grpc::new(channel);
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
    raw.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<Empty, Empty>::default();
    raw.unary(Request::new(Empty {}), path, codec).await.unwrap_err()
}

#[tokio::test]
async fn f7_a_timeout_on_a_sleeping_server_ends_both_sides() {
    let mut mesh = Mesh::start(1).await;
    let mut request = Request::new(Empty {});
    request.set_timeout(Duration::from_millis(100));
    let error = mesh.stub().sleep(request).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert_eq!(mesh.events.recv().await, Some("started"));
    assert_eq!(mesh.events.recv().await, Some("dropped"));
}

/// F7: the provider stops by itself, also for a caller that never says that it has stopped waiting.
#[tokio::test]
async fn f7_the_server_ends_a_call_at_its_deadline_whatever_its_caller_does() {
    let mut mesh = Mesh::start(1).await;
    let provider = &mesh.nodes[0].provider;
    let connection = mesh.endpoint.pool().get(&provider.node_id, &provider.endpoints).await;
    let service = "macula.conformance.v1.Conformance".parse().unwrap();
    // The request of `Sleep` as gRPC frames it: not compressed, and of no bytes.
    let request = CallRequest::new(&service, Bytes::from_static(&[0; 5]))
        .with_method("Sleep")
        .with_timeout(Duration::from_millis(100));
    let connection = connection.unwrap();
    let (requests, _never_read) = connection.open(request).await.unwrap().split();
    requests.finish();
    assert_eq!(mesh.events.recv().await, Some("started"));
    assert_eq!(mesh.events.recv().await, Some("dropped"));
}

#[tokio::test]
async fn f7_a_stream_ends_at_its_deadline_too() {
    let mut mesh = Mesh::start(1).await;
    let mut request = Request::new(stream::iter([wants(&[1])]).chain(stream::pending()));
    request.set_timeout(Duration::from_millis(200));
    let mut replies = mesh.stub().full_duplex(request).await.unwrap().into_inner();
    assert!(replies.message().await.unwrap().is_some());
    assert_eq!(replies.message().await.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(mesh.events.recv().await, Some("dropped"));
}

#[tokio::test]
async fn f8_cancel_after_begin_reaches_the_server() {
    let mut mesh = Mesh::start(1).await;
    let mut stub = mesh.stub();
    let call = tokio::spawn(async move { stub.sleep(Empty {}).await });
    assert_eq!(mesh.events.recv().await, Some("started"));
    call.abort();
    assert_eq!(mesh.events.recv().await, Some("dropped"));
}

#[tokio::test]
async fn f8_cancel_after_the_first_response_reaches_the_server() {
    let mut mesh = Mesh::start(1).await;
    let requests = stream::iter([wants(&[31_415])]).chain(stream::pending());
    let mut replies = mesh.stub().full_duplex(requests).await.unwrap().into_inner();
    assert_eq!(replies.message().await.unwrap().unwrap().body.len(), 31_415);
    drop(replies);
    assert_eq!(mesh.events.recv().await, Some("dropped"));
    // The connection goes on.
    empty_unary(&mut mesh.stub()).await;
}

/// F1: the messages sent to a provider that died are sent again, from the first one on.
#[tokio::test]
async fn f1_a_stream_fails_over_when_its_provider_dies_before_it_has_answered() {
    let mut mesh = Mesh::start(2).await;
    let mut stub = ConformanceClient::new(mesh.channel().with_attempt_timeout(Duration::from_millis(500)));
    let (requests, mut waiting) = mpsc::unbounded_channel();
    let outgoing = stream::poll_fn(move |cx| waiting.poll_recv(cx));
    let call = tokio::spawn(async move { stub.streaming_input(outgoing).await });
    requests.send(request(1_000, 0)).unwrap();
    assert_eq!(mesh.events.recv().await, Some("reading"));
    mesh.nodes.remove(0).kill().await;
    requests.send(request(2_000, 0)).unwrap();
    drop(requests);
    let sum = call.await.unwrap().unwrap().into_inner();
    assert_eq!((sum.bytes, sum.provider.as_str()), (3_000, "1"));
}

#[tokio::test]
async fn f1_after_the_first_message_a_streams_provider_is_not_replaced() {
    let mut mesh = Mesh::start(2).await;
    let requests = stream::iter([wants(&[1])]).chain(stream::pending());
    let mut replies = mesh.stub().full_duplex(requests).await.unwrap().into_inner();
    assert_eq!(replies.message().await.unwrap().unwrap().provider, "0");
    mesh.nodes.remove(0).stop().await;
    assert_eq!(replies.message().await.unwrap_err().code(), Code::Unavailable);
    // The next call goes to the provider that is left.
    let reply = mesh.stub().unary_call(request(0, 0)).await.unwrap();
    assert_eq!(reply.into_inner().provider, "1");
}

/// F6: a status that another provider may not give is tried elsewhere.
#[tokio::test]
async fn f6_a_status_is_final_or_tried_elsewhere_by_its_code() {
    let mesh = Mesh::start(2).await;
    let asking = |code: Code| schema::Request {
        status: Some(EchoStatus {
            code: code as i32,
            message: "asked for".into(),
        }),
        ..request(0, 0)
    };
    let mut stub = mesh.stub();
    for code in [Code::InvalidArgument, Code::Unavailable] {
        let error = stub.unary_call(asking(code)).await.unwrap_err();
        assert_eq!((error.code(), error.message()), (code, "asked for"));
    }
    let opened = mesh.endpoint.pool().stats().opened;
    assert_eq!(opened, 2, "the second status was taken to both providers");
}

/// S2: for stubs as for any call.
#[tokio::test]
async fn s2_calls_and_streams_are_spread_over_the_providers() {
    let mesh = Mesh::with(3, Strategy::RoundRobin).await;
    let mut stub = mesh.stub();
    let mut answered = std::collections::BTreeMap::<String, u32>::new();
    for _ in 0..6 {
        let reply = stub.unary_call(request(0, 0)).await.unwrap().into_inner();
        *answered.entry(reply.provider).or_default() += 1;
    }
    for _ in 0..6 {
        let mut replies = stub.streaming_output(wants(&[1])).await.unwrap().into_inner();
        let reply = replies.message().await.unwrap().unwrap();
        *answered.entry(reply.provider).or_default() += 1;
    }
    assert_eq!(answered.values().copied().collect::<Vec<_>>(), [4, 4, 4]);
}
