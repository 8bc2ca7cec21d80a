//! The requests of a stream: whole at the provider that answers, or not at all.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use macula_rpc::{
    CallError, Client, Hedge, MAX_REPLAY_BYTES, Request, Requests, Status, StopReason, Strategy, testing::Mesh,
};

use crate::mesh::pass;

/// The streams that handlers have read to the end: the node, the messages and the bytes.
type Read = Arc<Mutex<Vec<(&'static str, usize, usize)>>>;

/// Nodes that read a stream to its end and then answer with `outcome` of the number of streams read before.
fn readers(
    names: &[&'static str],
    outcome: impl Fn(usize) -> Result<(), Status> + Clone + Send + Sync + 'static,
) -> (Mesh, Client, Read) {
    let mesh = Mesh::new(11);
    let read = Read::default();
    for &name in names {
        let (read, outcome) = (Arc::clone(&read), outcome.clone());
        mesh.node(name)
            .serve_streaming("text.count", move |mut request: Request<Requests>| {
                let (read, outcome) = (Arc::clone(&read), outcome.clone());
                async move {
                    let (mut messages, mut bytes) = (0, 0);
                    while let Some(message) = request.payload_mut().next().await? {
                        (messages, bytes) = (messages + 1, bytes + message.len());
                    }
                    let before = {
                        let mut read = read.lock().unwrap();
                        read.push((name, messages, bytes));
                        read.len() - 1
                    };
                    if before == 0 {
                        pass(Duration::from_millis(20)).await;
                    }
                    outcome(before)?;
                    Ok::<_, Status>(stream::iter([Ok::<_, Status>(format!("{messages} {bytes}"))]))
                }
            });
    }
    let client = mesh.node("caller").client_builder().strategy(Strategy::First).build();
    (mesh, client, read)
}

/// Messages that come one after another, none with the head, in a stream that must not be polled after its end.
fn late(messages: usize, bytes: usize) -> impl Stream<Item = Bytes> + Send + 'static {
    stream::unfold(0, move |sent| async move {
        pass(Duration::from_millis(1)).await;
        (sent < messages).then(|| (Bytes::from(vec![0; bytes]), sent + 1))
    })
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_requests_is_not_asked_again_after_its_end() {
    let fails_first = |before| match before {
        0 => Err(Status::unavailable("once")),
        _ => Ok(()),
    };
    let (_mesh, client, read) = readers(&["a", "b"], fails_first);
    let nothing = stream::unfold((), |()| async { None::<(Bytes, ())> });
    let mut replies = client.request("text.count").stream(nothing).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "0 0");
    read.lock().unwrap().clear();
    let mut replies = client.request("text.count").stream(late(3, 10)).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "3 30");
    assert_eq!(*read.lock().unwrap(), [("a", 3, 30), ("b", 3, 30)]);
}

/// As for a call of one request, the error is the caller's and not a provider's answer.
#[tokio::test(start_paused = true)]
async fn a_request_of_a_stream_larger_than_its_provider_takes_is_named_as_that() {
    let (_mesh, client, read) = readers(&["a", "b"], |_| Ok(()));
    let requests = late(2, 10).chain(late(1, 5 << 20));
    let error = client.request("text.count").stream(requests).await.unwrap_err();
    assert!(
        matches!(&error, CallError::RequestTooLarge { size, .. } if *size == 5 << 20),
        "{error}"
    );
    assert_eq!(*read.lock().unwrap(), [], "and it completes nowhere");
}

/// F7: a client's attempt timeout holds for streams; without one the first message may take long.
#[tokio::test(start_paused = true)]
async fn f7_a_client_s_time_for_one_provider_is_that_of_its_streams() {
    let mesh = Mesh::new(13);
    mesh.node("a")
        .serve_streaming("text.first", async |_: Request<Requests>| {
            pass(Duration::from_secs(60)).await;
            Ok::<_, Status>(stream::iter([Ok::<_, Status>("slow")]))
        });
    mesh.node("b")
        .serve_streaming("text.first", async |_: Request<Requests>| {
            Ok::<_, Status>(stream::iter([Ok::<_, Status>("fast")]))
        });
    for (given, answers) in [(None, "slow"), (Some(Duration::from_secs(1)), "fast")] {
        let builder = mesh.node("caller").client_builder().strategy(Strategy::First);
        let client = match given {
            Some(timeout) => builder.attempt_timeout(timeout).build(),
            None => builder.build(),
        };
        let mut replies = client.request("text.first").stream(stream::empty()).await.unwrap();
        assert_eq!(replies.next().await.unwrap().unwrap(), answers);
    }
}

/// F10: there is only one stream of requests, and a second attempt would take the rest of it.
#[tokio::test(start_paused = true)]
async fn f10_a_stream_of_requests_is_not_hedged() {
    let (_mesh, client, read) = readers(&["a", "b"], |_| Ok(()));
    for _ in 0..100 {
        client.request("text.count").stream(stream::empty()).await.unwrap();
    }
    for (messages, bytes) in [(6, 1 << 20), (3, 10)] {
        read.lock().unwrap().clear();
        let call = client.request("text.count").idempotent();
        let call = call.hedge(Hedge::After(Duration::from_millis(5)));
        let mut replies = call.stream(late(messages, bytes)).await.unwrap();
        let answer = replies.next().await.unwrap().unwrap();
        assert_eq!(answer, format!("{messages} {}", messages * bytes));
        assert_eq!(*read.lock().unwrap(), [("a", messages, messages * bytes)]);
    }
}

#[tokio::test(start_paused = true)]
async fn f6_a_final_answer_to_an_upload_that_cannot_be_repeated_is_that_answer() {
    let too_many = MAX_REPLAY_BYTES / (1 << 20) + 1;
    let (_mesh, client, read) = readers(&["a", "b"], |_| Err(Status::invalid_argument("no thanks")));
    let error = client
        .request("text.count")
        .stream(late(too_many, 1 << 20))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, CallError::Answered { status, .. } if status.message() == "no thanks"),
        "{error}"
    );
    assert_eq!(read.lock().unwrap().len(), 1);

    let (_mesh, client, read) = readers(&["a", "b"], |_| Err(Status::unavailable("not now")));
    let error = client
        .request("text.count")
        .stream(late(too_many, 1 << 20))
        .await
        .unwrap_err();
    assert!(
        matches!(
            &error,
            CallError::NotRetried {
                reason: StopReason::Begun,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(read.lock().unwrap().len(), 1);
}

#[cfg(feature = "tonic")]
mod stubs {
    use macula_rpc::Channel;
    use tokio::sync::mpsc;
    use tonic::Code;

    use super::*;
    use crate::conformance::{
        schema::{Request, StreamRequest, conformance_client::ConformanceClient},
        serve_on_two,
    };

    fn stub() -> (Mesh, ConformanceClient<Channel>, mpsc::UnboundedReceiver<&'static str>) {
        let mesh = Mesh::new(12);
        let heard = serve_on_two(&mesh);
        let stub = ConformanceClient::new(Channel::new(mesh.node("caller").client()));
        (mesh, stub, heard)
    }

    fn sized(bytes: usize) -> Request {
        Request {
            body: vec![0; bytes].into(),
            ..Request::default()
        }
    }

    /// The messages before a failure are not a whole request, and no provider may take them for one.
    #[tokio::test(start_paused = true)]
    async fn requests_that_fail_midway_are_the_applications_own_error_and_complete_nowhere() {
        let (mesh, stub, mut heard) = stub();
        let mut stub = stub.max_encoding_message_size(1000);
        let sizes = [10, 20, 5000, 30];
        let late = stream::iter(sizes).then(async |bytes| {
            pass(Duration::from_millis(50)).await;
            sized(bytes)
        });
        let error = stub.streaming_input(late).await.unwrap_err();
        assert_eq!(error.code(), Code::OutOfRange, "{error}");
        assert!(error.message().contains("the limit is: 1000 bytes"), "{error}");
        let at_once = stub.streaming_input(stream::iter(sizes.map(sized))).await.unwrap_err();
        assert_eq!(at_once.code(), Code::OutOfRange, "{at_once}");
        let only = stub.unary_call(sized(5000)).await.unwrap_err();
        assert_eq!(only.code(), Code::OutOfRange, "{only}");
        // Two messages were read at one provider, and none at another.
        assert_eq!(
            (heard.recv().await, heard.recv().await),
            (Some("reading"), Some("reading"))
        );
        drop(mesh);
        drop(stub);
        assert_eq!(heard.recv().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_fail_after_the_first_reply_end_the_call_with_their_error() {
        let (_mesh, stub, _heard) = stub();
        let mut stub = stub.max_encoding_message_size(1000);
        let asking = |bytes: usize| StreamRequest {
            reply_bytes: vec![7],
            body: vec![0; bytes].into(),
            status: None,
        };
        let late = stream::iter([10, 5000]).then(move |bytes| async move {
            pass(Duration::from_millis(50)).await;
            asking(bytes)
        });
        let mut replies = stub.full_duplex(late).await.unwrap().into_inner();
        assert_eq!(replies.message().await.unwrap().unwrap().body.len(), 7);
        let error = replies.message().await.unwrap_err();
        assert_eq!(error.code(), Code::OutOfRange, "{error}");
    }

    /// As bodies over HTTP/2: `Streaming::trailers` polls once more after the end, and so do loops.
    #[tokio::test(start_paused = true)]
    async fn a_stream_may_be_read_again_after_its_end_on_both_sides() {
        let (mesh, mut remote, _heard) = stub();
        let home = mesh.node("a");
        let mut local = ConformanceClient::new(Channel::new(home.client_builder().local_first(home.server()).build()));
        for stub in [&mut remote, &mut local] {
            let request = StreamRequest {
                reply_bytes: vec![1, 2],
                ..StreamRequest::default()
            };
            let mut replies = stub.streaming_output(request).await.unwrap().into_inner();
            while replies.message().await.unwrap().is_some() {}
            for _ in 0..3 {
                assert_eq!(replies.message().await.unwrap(), None);
            }
            replies.trailers().await.unwrap();
            // The handler reads to the end, and then the trailers, of which a caller sends none.
            let sum = stub.streaming_input(stream::iter([1, 2].map(sized))).await.unwrap();
            assert_eq!(sum.into_inner().bytes, 3);
        }
    }
}
