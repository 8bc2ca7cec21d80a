//! The effects of one side of a stream on the other: its pace, its end, and its loss. Paused time: a second passes when no task has anything left to do.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _, channel::mpsc, stream};
use macula_rpc::{
    CallError, Client, Provider, Replies, Request, Requests, Server, StaticResolver, Status, StatusCode, Strategy,
    StreamHandler, testing::Mesh,
};
use macula_transport::{Config, Endpoint, Identity, Limits, NoService, testing::Network};
use tokio::sync::{Notify, oneshot};

use crate::mesh::{name, pass};

const MESSAGE: usize = 64 << 10;
/// The bytes that may be under way in a stream: the transport's window, and a message that waits for room at either end.
const UNDER_WAY: usize = 1_250_000 + 4 * MESSAGE;

type Answers = stream::BoxStream<'static, Result<Bytes, Status>>;

fn serving(handler: impl StreamHandler) -> (Mesh, Client) {
    let mesh = Mesh::new(1);
    mesh.node("a").serve_streaming(name(), handler);
    let client = mesh.node("caller").client();
    (mesh, client)
}

/// Until no task has anything left to do.
async fn settled() {
    pass(Duration::from_secs(1)).await;
}

/// Megabytes of messages, and how many of them were taken.
fn megabytes(count: usize) -> (Arc<AtomicUsize>, stream::BoxStream<'static, Bytes>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&taken);
    let messages = stream::iter(0..count * (1 << 20) / MESSAGE).map(move |_| {
        counter.fetch_add(1, SeqCst);
        Bytes::from(vec![7; MESSAGE])
    });
    (taken, messages.boxed())
}

async fn rest(replies: &mut Replies) -> usize {
    let mut count = 0;
    while replies.next().await.unwrap().is_some() {
        count += 1;
    }
    count
}

/// Tells when it is dropped.
struct Guard(Option<oneshot::Sender<()>>);

impl Guard {
    fn new() -> (Self, oneshot::Receiver<()>) {
        let (dropped, hears) = oneshot::channel();
        (Self(Some(dropped)), hears)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(dropped) = self.0.take() {
            let _ = dropped.send(());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_does_not_read_holds_the_callers_messages_back() {
    let goes_on = Arc::new(Notify::new());
    let gate = Arc::clone(&goes_on);
    let (_mesh, client) = serving(move |mut request: Request<Requests>| {
        let gate = Arc::clone(&gate);
        async move {
            let first = request.payload_mut().next().await?.unwrap_or_default();
            let counted = async move {
                gate.notified().await;
                let mut count = 1;
                while request.payload_mut().next().await?.is_some() {
                    count += 1;
                }
                Ok(Bytes::from(count.to_string()))
            };
            Ok::<_, Status>(
                stream::iter([Ok(first.slice(..1))])
                    .chain(stream::once(counted))
                    .boxed(),
            )
        }
    });
    let (taken, messages) = megabytes(16);
    let mut replies = client.request(name()).stream(messages).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap().len(), 1);
    let next = replies.next();
    tokio::pin!(next);
    tokio::select! {
        biased;
        _ = &mut next => panic!("the handler waits"),
        () = settled() => {}
    }
    let sent = taken.load(SeqCst) * MESSAGE;
    assert!(
        sent <= UNDER_WAY,
        "the provider took {sent} bytes from the caller although the handler reads none"
    );
    goes_on.notify_one();
    assert_eq!(next.await.unwrap().unwrap(), "256");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_does_not_read_holds_the_handlers_messages_back() {
    let (taken, messages) = megabytes(16);
    let messages = std::sync::Mutex::new(Some(messages));
    let (_mesh, client) = serving(move |_: Request<Requests>| {
        let messages = messages.lock().unwrap().take().unwrap();
        async move { Ok::<_, Status>(messages.map(Ok::<_, Status>).boxed()) }
    });
    let mut replies = client.request(name()).stream(stream::empty()).await.unwrap();
    settled().await;
    let sent = taken.load(SeqCst) * MESSAGE;
    assert!(sent <= UNDER_WAY, "{sent} bytes were sent to a caller who reads none");
    assert_eq!(rest(&mut replies).await, 256);
}

/// A stream that waits does not hold up others on its connection.
#[tokio::test(start_paused = true)]
async fn p5_unread_streams_do_not_hold_up_others() {
    let (mesh, client) = serving(async |_: Request<Requests>| {
        let (_taken, messages) = megabytes(4);
        Ok::<_, Status>(messages.map(Ok::<_, Status>).boxed())
    });
    mesh.node("a").serve("text.echo", async |request: Request| {
        Ok::<_, Status>(request.into_payload())
    });
    let mut unread = Vec::new();
    for _ in 0..4 {
        unread.push(client.request(name()).stream(stream::empty()).await.unwrap());
    }
    settled().await;
    assert_eq!(client.call("text.echo", "hello").await.unwrap(), "hello");
    for replies in &mut unread {
        assert_eq!(rest(replies).await, 64);
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_answers_after_the_callers_last_message() {
    let (_mesh, client) = serving(async |mut request: Request<Requests>| {
        let mut bytes = 0;
        while let Some(message) = request.payload_mut().next().await? {
            bytes += message.len();
        }
        Ok::<_, Status>(stream::iter([
            Ok::<_, Status>(bytes.to_string()),
            Ok("and that was it".into()),
        ]))
    });
    let (mut requests, receiver) = mpsc::channel(0);
    let call = client.request(name()).stream(receiver);
    let (replies, ()) = tokio::join!(call, async {
        for word in ["one", "two", "three"] {
            requests.send(word.into()).await.unwrap();
        }
        requests.close_channel();
    });
    let mut replies = replies.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "11");
    assert_eq!(replies.next().await.unwrap().unwrap(), "and that was it");
    assert_eq!(replies.next().await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_has_said_all_ends_the_call_and_the_callers_messages_with_it() {
    let (_mesh, client) =
        serving(async |_: Request<Requests>| Ok::<_, Status>(stream::iter([Ok::<_, Status>("enough")])));
    let (guard, dropped) = Guard::new();
    let endless = stream::unfold(guard, |guard| async {
        tokio::task::yield_now().await;
        Some((Bytes::from(vec![1; MESSAGE]), guard))
    });
    let mut replies = client.request(name()).stream(endless).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "enough");
    assert_eq!(replies.next().await.unwrap(), None);
    // Its source is dropped although the caller still holds the replies.
    dropped.await.unwrap();
    drop(replies);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_fails_in_the_middle_ends_the_callers_messages_too() {
    let (_mesh, client) = serving(async |mut request: Request<Requests>| {
        let first = request.payload_mut().next().await?.unwrap_or_default();
        let then = async move {
            request.payload_mut().next().await?;
            Err(Status::new(StatusCode::DataLoss, "the second was unreadable"))
        };
        Ok::<_, Status>(stream::iter([Ok(first)]).chain(stream::once(then)).boxed())
    });
    let (guard, dropped) = Guard::new();
    let endless = stream::unfold(guard, |guard| async { Some((Bytes::from(vec![1; MESSAGE]), guard)) });
    let mut replies = client.request(name()).stream(endless).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap().len(), MESSAGE);
    let error = replies.next().await.unwrap_err();
    assert!(
        matches!(&error, CallError::Answered { status, .. } if status.code() == StatusCode::DataLoss),
        "{error}"
    );
    drop(replies);
    dropped.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn f8_a_dropped_call_drops_the_handlers_work_whatever_it_waits_for() {
    let guards = Arc::new(std::sync::Mutex::new(Vec::new()));
    let watch = Arc::clone(&guards);
    let (mesh, client) = serving(move |request: Request<Requests>| {
        let (guard, dropped) = Guard::new();
        watch.lock().unwrap().push(dropped);
        async move {
            let endless = stream::unfold((request, guard), |held| async {
                Some((Ok(Bytes::from(vec![1; MESSAGE])), held))
            });
            Ok::<_, Status>(endless.boxed())
        }
    });
    let watch = Arc::clone(&guards);
    mesh.node("a").serve("hangs", move |_: Request| {
        let (guard, dropped) = Guard::new();
        watch.lock().unwrap().push(dropped);
        async move {
            let _held = guard;
            pending::<Result<Bytes, Status>>().await
        }
    });

    // A handler that sends to a caller that does not read, and one that waits for a message that never comes.
    let replies = client.request(name()).stream(stream::pending()).await.unwrap();
    let call = client.call("hangs", "");
    tokio::select! {
        biased;
        _ = call => panic!("it answers never"),
        () = settled() => {}
    }
    drop(replies);
    let guards = std::mem::take(&mut *guards.lock().unwrap());
    assert_eq!(guards.len(), 2);
    for dropped in guards {
        dropped.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_above_the_limit_is_an_error_that_says_so_either_way() {
    let large = || Bytes::from(vec![0; (4 << 20) + 1]);
    let (mesh, client) = serving(async |mut request: Request<Requests>| {
        request.payload_mut().next().await?;
        Ok::<_, Status>(stream::iter([Ok::<_, Status>("read")]))
    });
    let error = client
        .request(name())
        .stream(stream::iter([large()]))
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::RequestTooLarge { .. }), "{error}");

    mesh.node("a")
        .serve_streaming("large.reply", async |_: Request<Requests>| {
            Ok::<_, Status>(stream::iter([Ok::<_, Status>(vec![0_u8; (4 << 20) + 1])]))
        });
    let error = client.request("large.reply").stream(stream::empty()).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("has 4194305 bytes; its caller takes messages of at most 4194304"),
        "{error}"
    );
    // The connection still works.
    let fits = stream::iter([Bytes::from(vec![0; 4 << 20])]);
    let mut replies = client.request(name()).stream(fits).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "read");
}

/// An empty message is a message, at any place in the stream.
#[tokio::test(start_paused = true)]
async fn empty_messages_arrive_as_such() {
    let (_mesh, client) = serving(async |request: Request<Requests>| {
        let next = async |mut requests: Requests| Some((requests.next().await.transpose()?, requests));
        let answers: Answers = stream::unfold(request.into_payload(), next).boxed();
        Ok::<_, Status>(answers)
    });
    let words = ["", "one", "", ""];
    let mut replies = client
        .request(name())
        .stream(stream::iter(words.map(Bytes::from)))
        .await
        .unwrap();
    for word in words {
        assert_eq!(replies.next().await.unwrap().unwrap(), word);
    }
    assert_eq!(replies.next().await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_panics_after_its_first_reply_ends_with_that_and_alone() {
    let (_mesh, client) = serving(async |mut request: Request<Requests>| {
        let first = request.payload_mut().next().await?.unwrap_or_default();
        let then = async move {
            match request.payload_mut().next().await? {
                Some(message) if message == "boom" => panic!("on purpose"),
                other => Ok(other.unwrap_or_default()),
            }
        };
        Ok::<_, Status>(stream::iter([Ok(first)]).chain(stream::once(then)).boxed())
    });
    let words = |second: &'static str| stream::iter(["hello".into(), second.into()]);
    let mut dies = client.request(name()).stream(words("boom")).await.unwrap();
    let mut lives = client.request(name()).stream(words("fine")).await.unwrap();
    assert_eq!(dies.next().await.unwrap().unwrap(), "hello");
    let error = dies.next().await.unwrap_err();
    assert!(error.to_string().contains("the handler panicked"), "{error}");
    assert_eq!(lives.next().await.unwrap().unwrap(), "hello");
    assert_eq!(lives.next().await.unwrap().unwrap(), "fine");
}

/// F7: a provider that has no room for a stream costs the time of an attempt, and not that of the call.
#[tokio::test(start_paused = true)]
async fn f7_a_stream_that_finds_no_room_is_opened_elsewhere() {
    let network = Network::new(1);
    let mut nodes = Vec::new();
    for calls in [1, 2] {
        let server = Server::new();
        let never = async |_: Request<Requests>| {
            pending::<()>().await;
            Ok::<_, Status>(stream::empty::<Result<Bytes, Status>>())
        };
        let answer = async |_: Request<Requests>| Ok::<_, Status>(stream::iter([Ok::<_, Status>("answer")]));
        match calls {
            1 => server.serve_streaming(name(), never).unwrap(),
            _ => server.serve_streaming(name(), answer).unwrap(),
        }
        let config = Config::new(Identity::generate().unwrap())
            .with_network(&network)
            .with_limits(Limits {
                max_concurrent_calls: calls,
                ..Limits::default()
            });
        nodes.push(Endpoint::bind(config, server).await.unwrap());
    }
    let providers = nodes
        .iter()
        .map(|node| Provider::new(node.node_id(), [node.local_addr().try_into().unwrap()]));
    let directory = StaticResolver::new().with_service(name(), providers);
    let config = Config::new(Identity::generate().unwrap()).with_network(&network);
    let endpoint = Endpoint::bind(config, NoService).await.unwrap();
    let client = Client::builder(&endpoint, directory).strategy(Strategy::First).build();
    let waits = tokio::spawn(client.request(name()).stream(stream::pending()));
    settled().await;
    let start = tokio::time::Instant::now();
    let call = client
        .request(name())
        .timeout(Duration::from_secs(60))
        .attempt_timeout(Duration::from_secs(1));
    let replies = call.stream(stream::iter(["request".into()])).await.unwrap();
    assert_eq!(replies.provider().unwrap().node_id, nodes[1].node_id());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    waits.abort();
}
