//! Calls of one small request share a stream with others.

use super::*;

/// A call under way until what is returned is dropped: what is called meanwhile is not alone.
pub(super) async fn beside(stub: &mut ConformanceClient<Channel>) -> Streaming<Reply> {
    let requests = stream::iter([wants(&[1])]).chain(stream::pending());
    let mut beside = stub.full_duplex(requests).await.unwrap().into_inner();
    assert!(beside.message().await.unwrap().is_some());
    beside
}

impl Mesh {
    fn on_lanes(&self) -> u64 {
        let endpoints = self.nodes.iter().filter_map(|node| node.endpoint.as_ref());
        endpoints.map(|endpoint| endpoint.stats().calls_on_lanes).sum()
    }
}

#[tokio::test]
async fn every_case_passes_beside_other_calls() {
    let mesh = Mesh::start(1).await;
    let mut stub = mesh.stub();
    let _beside = beside(&mut stub).await;
    macro_rules! cases {
        ($($case:ident: $on_lane:literal),* $(,)?) => {$(
            let before = mesh.on_lanes();
            $case(&mut stub).await;
            assert_eq!(mesh.on_lanes() - before, $on_lane, stringify!($case));
        )*};
    }
    cases! {
        empty_unary: 1,
        large_unary: 0,
        client_streaming: 0,
        server_streaming: 1,
        ping_pong: 0,
        empty_stream: 0,
        custom_metadata: 2,
        status_code_and_message: 2,
        special_status_message: 1,
        unimplemented_method: 1,
        compressed_unary: 1,
    }
}

/// The size of the request decides, whatever the reply's.
#[tokio::test]
async fn large_requests_have_streams_and_large_replies_come_all_the_same() {
    let mesh = Mesh::start(1).await;
    let mut stub = mesh.stub();
    let _beside = beside(&mut stub).await;
    let before = mesh.on_lanes();
    for (asked, bytes, on_lanes) in [(0, 10, 1), (0, 100_000, 2), (100_000, 10, 2), (0, 10, 3)] {
        let reply = stub.unary_call(request(asked, bytes)).await.unwrap().into_inner();
        assert_eq!((reply.body.len(), mesh.on_lanes() - before), (bytes as usize, on_lanes));
    }
}

#[tokio::test]
async fn f7_a_timeout_on_a_sleeping_server_ends_both_sides_on_a_lane() {
    let mut mesh = Mesh::start(1).await;
    let mut stub = mesh.stub();
    let _beside = beside(&mut stub).await;
    let before = mesh.on_lanes();
    let mut request = Request::new(Empty {});
    request.set_timeout(Duration::from_millis(100));
    let error = stub.sleep(request).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert_eq!(mesh.events.recv().await, Some("started"));
    assert_eq!(mesh.events.recv().await, Some("dropped"));
    assert_eq!(mesh.on_lanes() - before, 1);
}

/// A provider's time is up before the call's.
#[tokio::test]
async fn f7_an_attempt_on_a_lane_ends_at_its_time_and_another_provider_is_tried() {
    let mut mesh = Mesh::start(2).await;
    let mut patient = mesh.stub();
    let _beside = beside(&mut patient).await;
    let before = mesh.on_lanes();
    let mut stub = ConformanceClient::new(mesh.channel().with_attempt_timeout(Duration::from_millis(100)));
    let call = tokio::spawn(async move { stub.sleep(Empty {}).await });
    for expected in ["started", "dropped", "started"] {
        assert_eq!(mesh.events.recv().await, Some(expected));
    }
    call.abort();
    assert_eq!(mesh.events.recv().await, Some("dropped"));
    // Alone at the other, it had a stream of its own there.
    assert_eq!(mesh.on_lanes() - before, 1);
}

#[tokio::test]
async fn f8_cancel_after_begin_reaches_the_server_on_a_lane() {
    let mut mesh = Mesh::start(1).await;
    let mut stub = mesh.stub();
    let _beside = beside(&mut stub).await;
    let before = mesh.on_lanes();
    let call = tokio::spawn(async move { stub.sleep(Empty {}).await });
    assert_eq!(mesh.events.recv().await, Some("started"));
    call.abort();
    assert_eq!(mesh.events.recv().await, Some("dropped"));
    assert_eq!(mesh.on_lanes() - before, 1);
    empty_unary(&mut mesh.stub()).await;
}

/// F1: on a lane a provider that dies costs no call.
#[tokio::test]
async fn f1_calls_on_a_lane_fail_over_when_their_provider_ends() {
    let mut mesh = Mesh::start(2).await;
    let mut stub = mesh.stub();
    let _beside = beside(&mut stub).await;
    let call = tokio::spawn(async move { stub.sleep(Empty {}).await });
    assert_eq!(mesh.events.recv().await, Some("started"));
    mesh.nodes.remove(0).stop().await;
    // It has begun at the other.
    while mesh.events.recv().await != Some("started") {}
    call.abort();
    while mesh.events.recv().await != Some("dropped") {}
}

/// Many at a time, small and large: each has its own reply.
#[tokio::test]
async fn calls_of_many_kinds_beside_each_other_get_each_their_own() {
    let mesh = Mesh::start(2).await;
    let calls = (0..300_usize).map(|n| {
        let mut stub = mesh.stub();
        async move {
            match n % 3 {
                0 => {
                    let reply = stub.unary_call(request(n, n as i32)).await.unwrap();
                    assert_eq!(reply.into_inner().body.len(), n);
                }
                1 => {
                    let bytes = if n % 2 == 0 { 20_000 } else { 1 };
                    let reply = stub.unary_call(request(n, bytes)).await.unwrap();
                    assert_eq!(reply.into_inner().body.len(), bytes as usize);
                }
                _ => {
                    let sizes = [n as i32, 9_000 * (n as i32 % 2), 9_000];
                    let mut replies = stub.streaming_output(wants(&sizes)).await.unwrap().into_inner();
                    for size in sizes {
                        assert_eq!(replies.message().await.unwrap().unwrap().body.len(), size as usize);
                    }
                    assert_eq!(replies.message().await.unwrap(), None);
                }
            }
        }
    });
    futures::future::join_all(calls).await;
    assert!(mesh.on_lanes() > 0);
}
