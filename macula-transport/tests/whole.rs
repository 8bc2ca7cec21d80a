//! Replies whose provider says that it has all of them: nothing is handed out before the end is here, as far as there is room.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{PATIENCE, client, connect, node, service};
use futures::future::{BoxFuture, FutureExt as _};
use macula_transport::{
    CallError, CallKind, CallRequest, Endpoint, Handler, IncomingCall, IncomingMessages, OutgoingMessages, Replies,
    Reply, Unknown,
};
use macula_wire::StatusCode;

/// Answers with as many messages, each of so many bytes, as the method asks for, `3x100` say. `whole` says that they are there;
/// `breaks` says so, and sends them without an end; `fails` says so, and ends with an error.
struct Gives;

impl Handler for Gives {
    fn call(&self, _: IncomingCall) -> BoxFuture<'static, Reply> {
        unreachable!("everything streams")
    }

    fn kind(&self, _: &IncomingCall) -> CallKind {
        CallKind::Streaming
    }

    fn stream(
        &self,
        call: IncomingCall,
        _: IncomingMessages,
        mut replies: OutgoingMessages,
    ) -> BoxFuture<'static, Reply> {
        async move {
            let (count, bytes) = call.method().split_once('x').unwrap();
            let message = Bytes::from(vec![7; bytes.parse().unwrap()]);
            for n in 0..count.parse().unwrap() {
                let sent = match n == 0 && call.service().as_str() != "plain" {
                    true => replies.gather_whole(message.clone()).await,
                    false => replies.gather(message.clone()).await,
                };
                if sent.is_err() {
                    break;
                }
            }
            match call.service().as_str() {
                "breaks" => {
                    let _ = replies.flush().await;
                    std::future::pending().await
                }
                "fails" => Reply::error(StatusCode::Internal, "after all of it"),
                _ => Reply::ok(""),
            }
        }
        .boxed()
    }
}

struct Test {
    provider: Endpoint,
    caller: Endpoint,
}

impl Test {
    async fn start() -> Self {
        Self {
            provider: node(Gives).await,
            caller: client().await,
        }
    }

    /// Opens a call, on the stream that calls share when it is `beside` another.
    async fn open(&self, name: &str, method: &str, timeout: Duration, beside: bool) -> Replies {
        let connection = connect(&self.caller, &self.provider).await.unwrap();
        let name = service(name);
        let padding = if beside { 1 } else { 20_000 };
        let request = CallRequest::new(&name, vec![b'x'; padding])
            .with_method(method)
            .with_timeout(timeout);
        connection.open_with_only(request).await.unwrap()
    }
}

/// Reads the rest of a reply: the number of its messages, and its outcome.
async fn rest(replies: &mut Replies, bytes: usize) -> (usize, StatusCode) {
    let mut count = 0;
    while let Some(message) = replies.next().await.unwrap() {
        assert_eq!(message.len(), bytes);
        assert!(replies.reply().is_none() || replies.is_here());
        count += 1;
    }
    (count, replies.reply().unwrap().status)
}

#[tokio::test]
async fn a_reply_that_is_there_as_a_whole_begins_when_all_of_it_is_here() {
    let test = Test::start().await;
    let _beside = test.open("breaks", "1x1", PATIENCE, false).await;
    for (name, outcome) in [("whole", StatusCode::Ok), ("fails", StatusCode::Internal)] {
        for (count, bytes) in [(1, 10), (3, 10), (3, 20_000), (40, 20_000), (2, 0)] {
            // Of the second kind are those that move from the stream that calls share.
            for beside in [false, true] {
                let mut replies = test.open(name, &format!("{count}x{bytes}"), PATIENCE, beside).await;
                let first = replies.first(1 << 20).await.unwrap().unwrap();
                assert_eq!(first.len(), bytes);
                assert!(replies.is_here(), "{name} {count}x{bytes} {beside}");
                assert_eq!(rest(&mut replies, bytes).await, (count - 1, outcome));
            }
        }
    }
    let mut none = test.open("whole", "0x0", PATIENCE, false).await;
    assert_eq!(none.first(1 << 20).await.unwrap(), None);
    assert_eq!(none.reply().unwrap().status, StatusCode::Ok);
}

/// Nor does the time of a reply that has begun count for more than its call's.
#[tokio::test]
async fn a_reply_without_the_end_it_was_to_have_fails_as_if_it_had_not_begun() {
    let test = Test::start().await;
    for method in ["1x10", "3x20000"] {
        let mut replies = test.open("breaks", method, Duration::from_millis(200), false).await;
        let error = replies.first(1 << 20).await.unwrap_err();
        assert!(matches!(error, CallError::Unknown(Unknown::Timeout(_))), "{error:?}");
    }
}

/// A reply above the caller's room is read message by message, although its provider calls it whole.
#[tokio::test]
async fn a_whole_reply_of_more_than_there_is_room_for_goes_on_as_any_other() {
    let test = Test::start().await;
    for (method, bytes, room) in [("64x65536", 65_536, 1 << 20), ("100000x0", 0, 1 << 16)] {
        let count: usize = method.split_once('x').unwrap().0.parse().unwrap();
        for name in ["whole", "breaks"] {
            let mut replies = test.open(name, method, PATIENCE, false).await;
            assert_eq!(replies.first(room).await.unwrap().unwrap().len(), bytes);
            assert!(!replies.is_here());
            if name == "whole" {
                assert_eq!(rest(&mut replies, bytes).await, (count - 1, StatusCode::Ok));
            }
        }
    }
    // Without room the reply begins at once, like one that is not called whole.
    for (name, room) in [("breaks", 0), ("plain", 1 << 20)] {
        let mut replies = test.open(name, "3x20000", PATIENCE, false).await;
        assert_eq!(replies.first(room).await.unwrap().unwrap().len(), 20_000);
    }
}
