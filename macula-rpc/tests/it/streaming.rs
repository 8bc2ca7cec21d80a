//! Streams of messages: both ways, with failover until the first reply, cancellation and flow control.

use std::{future::pending, time::Duration};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _, channel::mpsc, stream};
use macula_rpc::{
    AnswerSource, CallError, Cause, Client, MAX_REPLAY_BYTES, Request, Requests, Server, StaticResolver, Status,
    StatusCode, Strategy,
};
use macula_transport::Endpoint;

use crate::mesh::{Peer, caller, directory, name};

type Answers = stream::BoxStream<'static, Result<Bytes, Status>>;

/// Answers every message with itself, and ends with the caller's stream.
async fn echo(request: Request<Requests>) -> Result<Answers, Status> {
    let requests = request.into_payload();
    let next = async |mut requests: Requests| match requests.next().await {
        Ok(Some(message)) => Some((Ok(message), requests)),
        Ok(None) => None,
        Err(gone) => Some((Err(gone), requests)),
    };
    Ok(stream::unfold(requests, next).boxed())
}

async fn refuse(_: Request<Requests>) -> Result<Answers, Status> {
    Err(Status::unavailable("not today"))
}

async fn streaming(handler: impl macula_rpc::StreamHandler) -> Peer {
    let peer = Peer::bare(Server::new()).await;
    peer.server.serve_streaming(name(), handler).unwrap();
    peer
}

#[tokio::test]
async fn messages_go_both_ways_and_each_side_ends_its_own() {
    let peer = streaming(echo).await;
    let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
    let (mut requests, receiver) = mpsc::channel(1);
    requests.try_send(Bytes::from("one")).unwrap();
    let mut replies = builder.build().request(name()).stream(receiver).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "one");
    requests.send("two".into()).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "two");
    drop(requests);
    assert_eq!(replies.next().await.unwrap(), None);
    assert_eq!(replies.provider().unwrap().node_id, peer.id());
}

#[tokio::test]
async fn f1_a_stream_fails_over_until_its_first_reply_with_all_its_requests() {
    let peers = [streaming(refuse).await, streaming(echo).await];
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let client = builder.strategy(Strategy::First).build();
    let requests = stream::iter((0..5_u8).map(|n| Bytes::from(vec![n])));
    let mut replies = client.request(name()).stream(requests).await.unwrap();
    for n in 0..5_u8 {
        assert_eq!(replies.next().await.unwrap().unwrap()[..], [n]);
    }
    assert_eq!(replies.next().await.unwrap(), None);
    assert_eq!(replies.provider().unwrap().node_id, peers[1].id());
}

#[tokio::test]
async fn requests_that_are_too_large_to_keep_are_not_sent_again() {
    async fn read_all(mut request: Request<Requests>) -> Result<Answers, Status> {
        while request.payload_mut().next().await?.is_some() {}
        Err(Status::unavailable("read, and not answered"))
    }

    let peers = [streaming(read_all).await, streaming(echo).await];
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let client = builder.strategy(Strategy::First).build();
    let megabyte = Bytes::from(vec![0; 1 << 20]);
    let requests = stream::iter(vec![megabyte; MAX_REPLAY_BYTES / (1 << 20) + 1]);
    let error = client.request(name()).stream(requests).await.unwrap_err();
    assert!(matches!(error, CallError::NotRetried { .. }), "{error}");
    assert_eq!(error.attempts().len(), 1, "{error}");
}

#[tokio::test]
async fn an_error_after_replies_is_the_outcome_and_is_not_retried() {
    async fn one_and_out(_: Request<Requests>) -> Result<Answers, Status> {
        let out = Status::new(StatusCode::OutOfRange, "that was all");
        Ok(stream::iter([Ok(Bytes::from("one")), Err(out)]).boxed())
    }

    let peers = [streaming(one_and_out).await, streaming(echo).await];
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let client = builder.strategy(Strategy::First).build();
    let mut replies = client.request(name()).stream(stream::empty()).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "one");
    let error = replies.next().await.unwrap_err();
    assert!(
        matches!(&error, CallError::Answered { status, .. } if status.message() == "that was all"),
        "{error}"
    );
}

#[tokio::test]
async fn a_provider_that_dies_after_its_first_reply_ends_the_call() {
    let peer = streaming(echo).await;
    let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
    let (mut requests, receiver) = mpsc::channel(1);
    requests.try_send(Bytes::from("one")).unwrap();
    let mut replies = builder.build().request(name()).stream(receiver).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "one");
    peer.endpoint.shutdown(Duration::ZERO).await;
    let error = replies.next().await.unwrap_err();
    assert!(matches!(&error.attempts()[0].cause, Cause::Lost(_)), "{error}");
}

#[tokio::test]
async fn f8_dropped_replies_cancel_the_call_at_the_provider() {
    let (seen, mut events) = tokio::sync::mpsc::unbounded_channel();
    let peer = streaming(move |mut request: Request<Requests>| {
        let seen = seen.clone();
        async move {
            let first = request.payload_mut().next().await?.unwrap_or_default();
            let rest = stream::unfold(request, move |mut request| {
                let seen = seen.clone();
                async move {
                    let gone = request.payload_mut().next().await;
                    let _ = seen.send(gone.is_err());
                    pending::<Option<(Result<Bytes, Status>, Request<Requests>)>>().await
                }
            });
            Ok::<_, Status>(stream::iter([Ok(first)]).chain(rest))
        }
    })
    .await;
    let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
    let (mut requests, receiver) = mpsc::channel(1);
    requests.try_send(Bytes::from("one")).unwrap();
    let mut replies = builder.build().request(name()).stream(receiver).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "one");
    drop(replies);
    // The handler gets the error, or is dropped first.
    assert!(events.recv().await.unwrap_or(true));
}

#[tokio::test]
async fn f7_a_streams_deadline_ends_it() {
    async fn one_then_nothing(_: Request<Requests>) -> Result<Answers, Status> {
        Ok(stream::iter([Ok(Bytes::from("one"))]).chain(stream::pending()).boxed())
    }

    let peer = streaming(one_then_nothing).await;
    let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
    let call = builder.build().request(name()).timeout(Duration::from_millis(100));
    let mut replies = call.stream(stream::pending()).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "one");
    let error = replies.next().await.unwrap_err();
    // Either clock may be first: the caller's, or the provider's, which then answers.
    let late = match &error {
        CallError::DeadlineExceeded { .. } => true,
        CallError::Answered { status, .. } => status.code() == StatusCode::DeadlineExceeded,
        _ => false,
    };
    assert!(late, "{error}");
}

#[tokio::test]
async fn a_panicking_stream_fails_its_own_call_only() {
    async fn panics(mut request: Request<Requests>) -> Result<Answers, Status> {
        match request.payload_mut().next().await? {
            Some(message) if message == "boom" => panic!("on purpose"),
            _ => Ok(stream::iter([Ok(Bytes::from("fine"))]).boxed()),
        }
    }

    let peer = streaming(panics).await;
    let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
    let client = builder.build();
    let boom = stream::iter([Bytes::from("boom")]);
    let error = client.request(name()).stream(boom).await.unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
    let mut replies = client.request(name()).stream(stream::empty()).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "fine");
}

#[tokio::test]
async fn one_request_and_one_reply_is_a_stream_too() {
    let peer = streaming(echo).await;
    let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
    assert_eq!(builder.build().call(name(), "x").await.unwrap(), "x");
}

/// A client in the process of a streaming service that no directory lists.
async fn at_home(handler: impl macula_rpc::StreamHandler) -> (Server, Client, Endpoint) {
    let server = Server::new();
    server.serve_streaming(name(), handler).unwrap();
    let (endpoint, builder) = caller(StaticResolver::new()).await;
    (server.clone(), builder.local_first(server).build(), endpoint)
}

#[tokio::test]
async fn a_stream_of_this_process_needs_no_network() {
    let (_server, client, endpoint) = at_home(echo).await;
    let (mut requests, receiver) = mpsc::channel(1);
    requests.try_send(Bytes::from("one")).unwrap();
    let mut replies = client.request(name()).stream(receiver).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "one");
    requests.send("two".into()).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "two");
    drop(requests);
    assert_eq!(replies.next().await.unwrap(), None);
    assert!(replies.provider().is_none());
    // One request and one reply is a stream here too.
    let answer = client.request(name()).send("x").await.unwrap();
    assert_eq!(
        (answer.payload().as_ref(), answer.source()),
        (&b"x"[..], AnswerSource::Local)
    );
    assert_eq!(endpoint.pool().stats().opened, 0);

    let elsewhere = client.request(name()).remote_only().stream(stream::empty()).await;
    assert!(matches!(elsewhere, Err(CallError::ServiceNotFound { .. })));
}

#[tokio::test]
async fn errors_of_a_stream_of_this_process_are_its_outcome() {
    async fn as_told(mut request: Request<Requests>) -> Result<Answers, Status> {
        match request.payload_mut().next().await?.unwrap_or_default().as_ref() {
            b"refuse" => refuse(request).await,
            b"panic" => panic!("on purpose"),
            _ => {
                let out = Status::new(StatusCode::OutOfRange, "that was all");
                Ok(stream::iter([Ok(Bytes::from("one")), Err(out)]).boxed())
            }
        }
    }

    let (server, client, _endpoint) = at_home(as_told).await;
    let told = async |what: &'static str| client.request(name()).stream(stream::iter([what.into()])).await;
    let code = |error: CallError| match error {
        CallError::Answered { status, .. } => status.code(),
        other => panic!("{other}"),
    };
    assert_eq!(code(told("refuse").await.unwrap_err()), StatusCode::Unavailable);
    assert_eq!(code(told("panic").await.unwrap_err()), StatusCode::Internal);
    let mut replies = told("one").await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "one");
    assert_eq!(code(replies.next().await.unwrap_err()), StatusCode::OutOfRange);
    assert_eq!(replies.next().await.unwrap(), None);
    let error = client.call(name(), "one").await.unwrap_err();
    assert_eq!(code(error), StatusCode::OutOfRange);
    assert_eq!(server.running(), 0);
}

/// F7, N4: a stream of this process ends at its deadline, and a drain waits for it.
#[tokio::test]
async fn f7_n4_a_stream_of_this_process_has_a_deadline_and_holds_up_a_drain() {
    let (server, client, _endpoint) = at_home(echo).await;
    let request = || stream::iter([Bytes::from("one")]).chain(stream::pending());
    let call = client.request(name()).timeout(Duration::from_millis(100));
    let mut late = call.stream(request()).await.unwrap();
    let replies = client.request(name()).stream(request()).await.unwrap();
    assert_eq!(server.running(), 2);
    assert_eq!(late.next().await.unwrap().unwrap(), "one");
    let error = late.next().await.unwrap_err();
    assert!(matches!(error, CallError::DeadlineExceeded { .. }), "{error}");

    let mut drained = std::pin::pin!(server.drain());
    assert!(futures::poll!(&mut drained).is_pending());
    let refused = client.request(name()).stream(stream::empty()).await;
    assert!(matches!(refused, Err(CallError::ServiceNotFound { .. })));
    drop(replies);
    drained.await;
}

#[tokio::test]
async fn replies_are_a_stream_as_bytes_and_as_messages() {
    let peer = streaming(echo).await;
    let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
    let client = builder.build();
    let words = || stream::iter(["one".into(), Bytes::from_static(b"\xff"), "three".into()]);
    let all = client.request(name()).stream(words()).await.unwrap().into_stream();
    let all: Vec<Bytes> = all.map(Result::unwrap).collect().await;
    assert_eq!(all, [&b"one"[..], b"\xff", b"three"]);
    // Bytes that are no message of the type end the stream with an error.
    let typed = client
        .request(name())
        .stream(words())
        .await
        .unwrap()
        .into_typed::<String>();
    let typed: Vec<_> = typed.collect().await;
    assert!(
        matches!(&typed[..], [Ok(one), Err(CallError::Undecodable { .. })] if one == "one"),
        "{typed:?}"
    );
}

/// A unary caller does not wait for messages that it would throw away.
#[tokio::test]
async fn a_typed_stream_ends_its_call_with_a_message_that_cannot_be_read() {
    let peer = streaming(async |_: Request<Requests>| {
        let one = stream::iter([Ok::<_, Status>(Bytes::from_static(b"\xff"))]);
        Ok::<_, Status>(one.chain(stream::pending()))
    })
    .await;
    let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
    let client = builder.build();
    let replies = client.request(name()).stream(stream::empty()).await.unwrap();
    let mut typed = Box::pin(replies.into_typed::<String>());
    assert!(matches!(typed.next().await, Some(Err(CallError::Undecodable { .. }))));
    assert!(typed.next().await.is_none());
    while peer.server.running() > 0 {
        tokio::task::yield_now().await;
    }
}
