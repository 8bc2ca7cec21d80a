//! Calls through a router, when the caller reaches no directory.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, ready},
    stream,
};
use macula_rpc::{
    CallError, Client, Provider, Request, Requests, Resolve, ResolveError, ResolveOptions, Resolved, RetryPolicy,
    Routers, ServiceName, Status, StatusCode, testing::Mesh,
};
use macula_transport::{Config, Endpoint, Identity, NoService};
use tokio::sync::mpsc;

/// A directory that gives no answer.
struct Down;

impl Resolve for Down {
    fn resolve<'a>(&'a self, _: &'a ServiceName, _: ResolveOptions) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        ready(Err(ResolveError::Unreachable)).boxed()
    }
}

struct Via(Provider);

impl Routers for Via {
    fn routers(&self) -> Vec<Provider> {
        vec![self.0.clone()]
    }
}

/// A mesh with a router, and a client that knows no other node.
pub(crate) async fn routed() -> (Mesh, Client, (Client, Endpoint)) {
    let mesh = Mesh::new(21);
    let router = mesh.node("router");
    let onward = router.client_builder().strategy(macula_rpc::Strategy::First).build();
    router.server().route_through(&onward);
    router.serve("router.itself", async |_: Request| Ok::<_, Status>(""));
    let known = onward
        .providers(&"router.itself".parse().unwrap(), ResolveOptions::default())
        .await
        .unwrap();
    let config = Config::new(Identity::generate().unwrap()).with_network(mesh.network());
    let endpoint = Endpoint::bind(config, NoService).await.unwrap();
    let client = Client::builder(&endpoint, Down).routers(Via(known[0].clone())).build();
    (mesh, client, (onward, endpoint))
}

#[tokio::test(start_paused = true)]
async fn f1_streams_go_through_a_router_and_fail_over_there() {
    let (mesh, client, _kept) = routed().await;
    let refuse =
        async |_: Request<Requests>| Err::<stream::Empty<Result<Bytes, Status>>, _>(Status::unavailable("not now"));
    mesh.node("a").serve_streaming("text.upper", refuse);
    mesh.node("b")
        .serve_streaming("text.upper", async |request: Request<Requests>| {
            let requests = request.into_payload();
            Ok::<_, Status>(stream::try_unfold(requests, async |mut requests| {
                let next = requests.next().await?;
                Ok::<_, Status>(next.map(|message| (message.to_ascii_uppercase(), requests)))
            }))
        });
    // Each request is sent when the reply to the one before has come: both ways at once.
    let (next, mut waiting) = mpsc::unbounded_channel::<Bytes>();
    let requests = stream::poll_fn(move |cx| waiting.poll_recv(cx));
    next.send("one".into()).unwrap();
    let mut replies = client.request("text.upper").stream(requests).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "ONE");
    for (request, reply) in [("two", "TWO"), ("", ""), ("three", "THREE")] {
        next.send(request.into()).unwrap();
        assert_eq!(replies.next().await.unwrap().unwrap(), reply);
    }
    drop(next);
    assert_eq!(replies.next().await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn f8_a_stream_that_is_dropped_is_cancelled_behind_the_router() {
    struct Dropped(mpsc::UnboundedSender<()>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }

    let (mesh, client, _kept) = routed().await;
    let (gone, mut news) = mpsc::unbounded_channel();
    mesh.node("a")
        .serve_streaming("text.forever", move |_: Request<Requests>| {
            let dropped = Dropped(gone.clone());
            async move {
                let first = stream::iter([Ok::<_, Status>("first")]);
                Ok::<_, Status>(first.chain(stream::once(async move {
                    let _dropped = dropped;
                    pending().await
                })))
            }
        });
    let mut replies = client.request("text.forever").stream(stream::pending()).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "first");
    drop(replies);
    news.recv().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn f6_what_a_provider_says_through_a_router_is_what_it_says() {
    let (mesh, client, _kept) = routed().await;
    for node in ["a", "b"] {
        mesh.node(node)
            .serve_streaming("text.fail", async |_: Request<Requests>| {
                let words = Status::new(StatusCode::DataLoss, "lost it").with_details("rich");
                Ok::<_, Status>(stream::iter([Ok("one"), Err(words)]))
            });
    }
    let mut replies = client.request("text.fail").stream(stream::empty()).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "one");
    let error = replies.next().await.unwrap_err();
    assert!(
        matches!(&error, CallError::Answered { status, .. } if status.message() == "lost it" && status.details() == "rich"),
        "{error}"
    );
    let missing = client.request("no.such").stream(stream::empty()).await.unwrap_err();
    assert!(matches!(missing, CallError::ServiceNotFound { .. }), "{missing}");
}

/// An error comes after the messages before it, even when a router has both at once, and no other provider is asked.
#[tokio::test(start_paused = true)]
async fn f6_a_message_before_an_error_goes_through_a_router_that_has_both() {
    let (mesh, client, (onward, _endpoint)) = routed().await;
    let asked = Arc::new(AtomicUsize::new(0));
    for node in ["a", "b"] {
        let asked = Arc::clone(&asked);
        mesh.node(node)
            .serve_streaming("text.fail", move |mut request: Request<Requests>| {
                let asked = Arc::clone(&asked);
                async move {
                    let last = match request.payload_mut().next().await?.unwrap_or_default().as_ref() {
                        b"hang" => return Ok(stream::iter(vec![Ok("one")]).chain(stream::pending()).boxed()),
                        b"fail" => Err(Status::unavailable("after all")),
                        _ => Ok("two"),
                    };
                    asked.fetch_add(1, SeqCst);
                    Ok::<_, Status>(stream::iter(vec![Ok("one"), last]).boxed())
                }
            });
    }
    let ask = |client: &Client, what: &'static str| {
        let call = client.request("text.fail").timeout(Duration::from_secs(60));
        call.stream(stream::iter([Bytes::from(what)]))
    };
    // The router's own call beside has the lane used.
    let _beside = ask(&onward, "hang").await.unwrap();
    asked.store(0, SeqCst);
    let mut replies = ask(&client, "fail").await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "one");
    let error = replies.next().await.unwrap_err();
    assert!(
        matches!(&error, CallError::Answered { status, .. } if status.message() == "after all"),
        "{error}"
    );
    assert_eq!(asked.load(SeqCst), 1);
}

/// Large requests and replies, which are in pieces on their way, arrive as the one message that they are.
#[tokio::test(start_paused = true)]
async fn a_large_unary_call_goes_through_a_router_whole() {
    let (mesh, client, _kept) = routed().await;
    mesh.node("a").serve("text.echo", async |request: Request| {
        Ok::<_, Status>(request.into_payload())
    });
    for bytes in [0, 1, 20_000, 3 << 20] {
        let payload = Bytes::from_iter((0..bytes).map(|n: u32| n as u8));
        let call = client.request("text.echo").retry_policy(RetryPolicy::NeverProcessed);
        assert_eq!(
            call.timeout(Duration::from_secs(60))
                .send(payload.clone())
                .await
                .unwrap()
                .payload(),
            &payload
        );
        // Several at a time take another way than a lone one.
        let several = (0..4).map(|_| client.call("text.echo", payload.clone()));
        for answer in futures::future::join_all(several).await {
            assert_eq!(answer.unwrap(), payload);
        }
    }
}

#[cfg(feature = "tonic")]
#[tokio::test(start_paused = true)]
async fn stubs_go_through_a_router() {
    use std::collections::BTreeSet;

    use macula_rpc::Channel;
    use tonic::Code;

    use crate::conformance::{
        schema::{self, Empty, StreamRequest, conformance_client::ConformanceClient},
        serve_on_two,
    };

    let (mesh, client, _kept) = routed().await;
    let _heard = serve_on_two(&mesh);
    let channel = Channel::new(client).with_timeout(Duration::from_secs(60));
    let mut stub = ConformanceClient::new(channel.with_attempt_timeout(Duration::from_secs(5)));
    let request = |bytes: usize, reply_bytes| schema::Request {
        reply_bytes,
        body: vec![0; bytes].into(),
        status: None,
    };
    let mut providers = BTreeSet::new();
    for killed in [None, Some("a")] {
        if let Some(node) = killed {
            mesh.kill(node);
        }
        assert_eq!(stub.empty_call(Empty {}).await.unwrap().into_inner(), Empty {});
        let reply = stub.unary_call(request(300_000, 200_000)).await.unwrap().into_inner();
        assert_eq!(reply.body.len(), 200_000);
        providers.insert(reply.provider);
        let sum = stub
            .streaming_input(stream::iter([1, 2, 3].map(|n| request(n, 0))))
            .await
            .unwrap();
        assert_eq!(sum.into_inner().bytes, 6);
        let sizes = StreamRequest {
            reply_bytes: vec![3, 100_000],
            ..StreamRequest::default()
        };
        let mut replies = stub.streaming_output(sizes.clone()).await.unwrap().into_inner();
        assert_eq!(replies.message().await.unwrap().unwrap().body.len(), 3);
        assert_eq!(replies.message().await.unwrap().unwrap().body.len(), 100_000);
        assert_eq!(replies.message().await.unwrap(), None);
        let mut replies = stub.full_duplex(stream::iter([sizes])).await.unwrap().into_inner();
        assert_eq!(replies.message().await.unwrap().unwrap().body.len(), 3);
    }
    assert_eq!(providers.len(), 2);
    let status = schema::EchoStatus {
        code: 5,
        message: "no such thing".into(),
    };
    let asking = schema::Request {
        status: Some(status),
        ..request(0, 0)
    };
    let error = stub.unary_call(asking).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::NotFound, "no such thing"));
    assert_eq!(error.details(), b"rich details");
    assert_eq!(
        stub.unimplemented(Empty {}).await.unwrap_err().code(),
        Code::Unimplemented
    );
}
