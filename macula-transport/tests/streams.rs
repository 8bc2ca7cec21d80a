//! Calls whose request and reply are streams of messages, and how they meet with unary ones.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{PATIENCE, Seen, client, connect, echoes, node, service};
use futures::future::{BoxFuture, FutureExt as _};
use macula_transport::{
    CallError, CallKind, CallRequest, Handler, IncomingCall, IncomingMessages, OutgoingMessages, Reply, Unknown,
};
use macula_wire::StatusCode;
use tokio::sync::mpsc;

/// `each` answers every message with itself, `count` with the number of messages, `first` with the first one and an end, `flood`
/// without end; every other method is unary.
struct Streams(common::Service);

impl Handler for Streams {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        self.0.call(call)
    }

    fn kind(&self, call: &IncomingCall) -> CallKind {
        match call.service().as_str() {
            "each" | "count" | "first" | "flood" => CallKind::Streaming,
            _ => CallKind::Unary,
        }
    }

    fn stream(
        &self,
        call: IncomingCall,
        mut requests: IncomingMessages,
        mut replies: OutgoingMessages,
    ) -> BoxFuture<'static, Reply> {
        let seen = self.0.seen.clone();
        async move {
            match call.service().as_str() {
                "each" => loop {
                    match requests.next().await {
                        Ok(Some(message)) => {
                            if replies.send(message).await.is_err() {
                                return Reply::error(StatusCode::Cancelled, "");
                            }
                        }
                        Ok(None) => return Reply::ok("the end"),
                        Err(_) => return Reply::error(StatusCode::Cancelled, ""),
                    }
                },
                "count" => {
                    let mut count = 0_u32;
                    while let Ok(Some(_)) = requests.next().await {
                        count += 1;
                    }
                    Reply::ok(count.to_string())
                }
                "first" => {
                    let first = requests.next().await.unwrap().unwrap();
                    replies.send(first).await.unwrap();
                    Reply::error(StatusCode::OutOfRange, "no more than one")
                }
                _ => {
                    let _ = seen.send(Seen::Started);
                    let _dropped = common::Watched(seen);
                    while replies.send(vec![0; 100_000].into()).await.is_ok() {}
                    Reply::error(StatusCode::Cancelled, "")
                }
            }
        }
        .boxed()
    }
}

async fn streams() -> (macula_transport::Endpoint, mpsc::UnboundedReceiver<Seen>) {
    let (handler, events) = common::Service::new();
    (node(Streams(handler)).await, events)
}

#[tokio::test]
async fn messages_go_both_ways_while_the_call_lasts() {
    let (provider, _events) = streams().await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    let name = service("each");
    let mut call = connection
        .open(CallRequest::new(&name, "").with_timeout(PATIENCE))
        .await
        .unwrap();
    for size in [0, 1, 20_000, 4 << 20] {
        let message = Bytes::from(vec![size as u8; size]);
        call.send(message.clone()).await.unwrap();
        assert_eq!(call.next().await.unwrap().unwrap(), message);
    }
    let (requests, mut replies) = call.split();
    requests.finish();
    assert_eq!(replies.next().await.unwrap().unwrap(), "the end");
    assert_eq!(replies.next().await.unwrap(), None);
    assert_eq!(replies.reply().unwrap().status, StatusCode::Ok);
    assert_eq!(replies.next().await.unwrap(), None);
}

#[tokio::test]
async fn an_only_request_is_one_message_whatever_its_size_and_the_replies_stream() {
    let (provider, _events) = streams().await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    let name = service("each");
    for size in [0, 1, 20_000, 4 << 20] {
        let message = Bytes::from(vec![size as u8; size]);
        let request = CallRequest::new(&name, message.clone()).with_timeout(PATIENCE);
        let mut replies = connection.open_with_only(request).await.unwrap();
        assert_eq!(replies.next().await.unwrap().unwrap(), message);
        assert_eq!(replies.next().await.unwrap().unwrap(), "the end");
        assert_eq!(replies.next().await.unwrap(), None);
    }
}

#[tokio::test]
async fn requests_are_counted_and_the_body_is_the_first() {
    let (provider, _events) = streams().await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    let name = service("count");
    let call = connection
        .open(CallRequest::new(&name, "one").with_timeout(PATIENCE))
        .await
        .unwrap();
    let (mut requests, mut replies) = call.split();
    for _ in 0..100 {
        requests.send("another".into()).await.unwrap();
    }
    let error = requests.send(vec![0; (4 << 20) + 1].into()).await.unwrap_err();
    assert!(matches!(error, CallError::TooLarge { .. }), "{error}");
    requests.finish();
    assert_eq!(replies.next().await.unwrap().unwrap(), "101");
}

#[tokio::test]
async fn the_outcome_comes_after_the_messages() {
    let (provider, _events) = streams().await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    let name = service("first");
    let mut call = connection
        .open(CallRequest::new(&name, "a").with_timeout(PATIENCE))
        .await
        .unwrap();
    call.send("b".into()).await.unwrap();
    assert_eq!(call.next().await.unwrap().unwrap(), "a");
    assert_eq!(call.next().await.unwrap(), None);
    let (_requests, replies) = call.split();
    assert_eq!(replies.reply().unwrap().status, StatusCode::OutOfRange);
}

#[tokio::test]
async fn unary_and_streaming_ends_meet() {
    let (provider, _events) = streams().await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    // A unary caller of streaming handlers, alone on its stream and beside others on a lane.
    for together in [1, 4] {
        let calls = (0..together).map(|_| async {
            let name = service("count");
            let reply = connection
                .call(CallRequest::new(&name, "x").with_timeout(PATIENCE))
                .await
                .unwrap();
            assert_eq!(reply.body, "1");
            let name = service("first");
            let reply = connection
                .call(CallRequest::new(&name, "x").with_timeout(PATIENCE))
                .await
                .unwrap();
            assert_eq!((reply.status, reply.body), (StatusCode::OutOfRange, "x".into()));
        });
        futures::future::join_all(calls).await;
    }
    let name = service("each");
    let error = connection
        .call(CallRequest::new(&name, "x").with_timeout(PATIENCE))
        .await;
    assert!(matches!(error, Err(CallError::Unknown(Unknown::Streamed))), "{error:?}");
    // A streaming caller of a unary handler.
    let name = service("echo");
    let call = connection
        .open(CallRequest::new(&name, "").with_timeout(PATIENCE))
        .await
        .unwrap();
    let (mut requests, mut replies) = call.split();
    requests.send("hello ".into()).await.unwrap();
    requests.send("there".into()).await.unwrap();
    requests.finish();
    assert_eq!(replies.next().await.unwrap().unwrap(), "hello there");
    assert_eq!(replies.next().await.unwrap(), None);
}

/// F8, for streams: a handler whose caller has left is stopped.
#[tokio::test]
async fn f8_dropping_a_stream_cancels_it_at_the_provider() {
    let (provider, mut events) = streams().await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    let name = service("flood");
    let mut call = connection
        .open(CallRequest::new(&name, "").with_timeout(PATIENCE))
        .await
        .unwrap();
    assert_eq!(call.next().await.unwrap().unwrap().len(), 100_000);
    assert_eq!(events.recv().await, Some(Seen::Started));
    drop(call);
    assert_eq!(events.recv().await, Some(Seen::Dropped));
    echoes(&connection, "the connection is as good as before").await;
}

#[tokio::test]
async fn f7_a_stream_ends_at_its_deadline_on_both_sides() {
    let (provider, mut events) = streams().await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    let name = service("flood");
    let request = CallRequest::new(&name, "").with_timeout(Duration::from_millis(100));
    let mut call = connection.open(request).await.unwrap();
    let error = loop {
        match call.next().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, CallError::Unknown(Unknown::Timeout(_))), "{error:?}");
    assert_eq!(events.recv().await, Some(Seen::Started));
    assert_eq!(
        events.recv().await,
        Some(Seen::Dropped),
        "the provider ends it though the caller still holds it"
    );
}
