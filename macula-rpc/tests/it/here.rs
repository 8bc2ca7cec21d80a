//! Streams that this process serves itself, and those that it refuses.

use bytes::Bytes;
#[cfg(feature = "metrics")]
use futures::{FutureExt as _, future::BoxFuture};
use futures::{StreamExt as _, stream};
use macula_rpc::{
    CallError, Client, MAX_REPLAY_BYTES, Metadata, Replies, Request, Requests, Response, Server, StaticResolver,
    Status, StatusCode,
};
use macula_transport::Endpoint;

use crate::mesh::{Peer, caller, directory, name};

type Answers = stream::BoxStream<'static, Result<Bytes, Status>>;

/// Answers with the requests, joined.
async fn join(mut request: Request<Requests>) -> Result<Answers, Status> {
    let mut all = Vec::new();
    while let Some(message) = request.payload_mut().next().await? {
        all.push(message);
    }
    Ok(stream::iter([Ok(all.join(&b' ').into())]).boxed())
}

/// Reads two requests, and then refuses.
async fn refuse(mut request: Request<Requests>) -> Result<Answers, Status> {
    for _ in 0..2 {
        request.payload_mut().next().await?;
    }
    Err(Status::refused("not here"))
}

/// Refuses in place of the first reply.
async fn refuse_late(request: Request<Requests>) -> Result<Answers, Status> {
    let refused = refuse(request).await.err().map(Err);
    Ok(stream::iter(refused).boxed())
}

/// A client of a process with this server, in a mesh with another provider that joins its requests.
async fn at_home(here: &Server) -> (Client, Peer, Endpoint) {
    let elsewhere = Peer::bare(Server::new()).await;
    elsewhere.server.serve_streaming(name(), join).unwrap();
    let (endpoint, builder) = caller(directory(std::slice::from_ref(&elsewhere))).await;
    (builder.local_first(here.clone()).build(), elsewhere, endpoint)
}

fn words() -> impl futures::Stream<Item = Bytes> + Send + 'static {
    stream::iter(["to", "be", "refused"].map(Bytes::from))
}

async fn said(replies: &mut Replies) -> Bytes {
    let first = replies.next().await.unwrap().unwrap_or_default();
    assert_eq!(replies.next().await.unwrap(), None);
    first
}

/// As over the network, the requests are joined, and there is one reply with its metadata.
#[tokio::test]
async fn a_stream_to_a_service_of_this_process_that_has_one_reply_needs_no_network() {
    let server = Server::new();
    let shout = async |request: Request| {
        let metadata = [("who", "here")].into_iter().collect();
        Ok::<_, Status>(Response::new(request.payload().to_ascii_uppercase()).with_metadata(metadata))
    };
    server.serve(name(), shout).unwrap();
    let (endpoint, builder) = caller(StaticResolver::new()).await;
    let client = builder.local_first(server.clone()).build();
    let mut replies = client.request(name()).stream(words()).await.unwrap();
    assert_eq!(replies.metadata(), Metadata::new());
    assert_eq!(said(&mut replies).await, "TOBEREFUSED");
    assert_eq!(replies.metadata().get("who").unwrap(), "here");
    assert!(replies.provider().is_none());
    let mut replies = client.request(name()).stream(stream::empty()).await.unwrap();
    assert_eq!(said(&mut replies).await, "");
    assert_eq!((endpoint.pool().stats().opened, server.running()), (0, 0));

    let megabyte = Bytes::from(vec![0; 1 << 20]);
    let error = client.request(name()).stream(stream::iter(vec![megabyte; 5])).await;
    let error = error.unwrap_err();
    assert!(
        matches!(&error, CallError::Answered { status, .. } if status.code() == StatusCode::ResourceExhausted),
        "{error}"
    );
}

/// F5: a refused call has not run, so it is safe elsewhere, with all of its requests.
#[tokio::test]
async fn f5_a_stream_that_this_process_refuses_is_opened_elsewhere_with_all_its_requests() {
    for handler in 0..3 {
        let server = Server::new();
        match handler {
            0 => server.serve_streaming(name(), refuse),
            1 => server.serve_streaming(name(), refuse_late),
            _ => server.serve(name(), async |_: Request| Err::<Bytes, _>(Status::refused("not here"))),
        }
        .unwrap();
        let (client, elsewhere, _endpoint) = at_home(&server).await;
        let mut replies = client.request(name()).stream(words()).await.unwrap();
        assert_eq!(replies.provider().unwrap().node_id, elsewhere.id());
        assert_eq!(
            (said(&mut replies).await.as_ref(), server.running()),
            (&b"to be refused"[..], 0)
        );
    }
}

/// Requests that the handler read and that were not kept cannot be sent elsewhere.
#[tokio::test]
async fn a_stream_refused_after_more_than_is_kept_fails_with_the_refusal() {
    let server = Server::new();
    server.serve_streaming(name(), refuse).unwrap();
    let (client, _elsewhere, _endpoint) = at_home(&server).await;
    let large = Bytes::from(vec![0; MAX_REPLAY_BYTES]);
    let requests = stream::iter([large, Bytes::from("more")]);
    let error = client.request(name()).stream(requests).await.unwrap_err();
    assert!(
        matches!(&error, CallError::Answered { status, .. } if status.is_refused()),
        "{error}"
    );
}

/// F5, N4: a process that is full or leaves sends its own streams elsewhere, as it does its other calls.
#[tokio::test]
async fn n4_a_process_that_is_full_or_drains_opens_its_streams_elsewhere() {
    for drains in [false, true] {
        let server = Server::with_max_concurrent_calls(usize::from(drains));
        server.serve_streaming(name(), refuse).unwrap();
        if drains {
            server.drain().await;
        }
        let (client, elsewhere, _endpoint) = at_home(&server).await;
        let mut replies = client.request(name()).stream(words()).await.unwrap();
        assert_eq!(replies.provider().unwrap().node_id, elsewhere.id());
        assert_eq!(said(&mut replies).await, "to be refused");
    }
}

/// A refused call that goes elsewhere counts once, under the step that answered it. Served calls of this process count as those of peers do.
#[cfg(feature = "metrics")]
#[tokio::test]
async fn streams_of_this_process_are_counted_once_wherever_they_end() {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    type Streaming = fn(Request<Requests>) -> BoxFuture<'static, Result<Answers, Status>>;
    let counted = async |handler: Option<Streaming>| {
        let recorder = DebuggingRecorder::new();
        let snapshots = recorder.snapshotter();
        let _guard = metrics::set_default_local_recorder(&recorder);
        let server = Server::new();
        match handler {
            Some(handler) => server.serve_streaming(name(), handler).unwrap(),
            None => server.serve(name(), async |_: Request| Ok::<_, Status>("one")).unwrap(),
        }
        let (client, _elsewhere, _endpoint) = at_home(&server).await;
        let mut replies = client.request(name()).stream(words()).await.unwrap();
        match handler {
            Some(_) => assert_eq!(said(&mut replies).await, "to be refused"),
            // A caller of one reply does not ask for another.
            None => assert_eq!(replies.next().await.unwrap().unwrap(), "one"),
        }
        drop(replies);
        let counted = snapshots.snapshot().into_vec().into_iter();
        let counted = counted.filter_map(|(key, _, _, value)| {
            let name = key.key().name().strip_prefix("macula.rpc.")?.to_owned();
            let label = key.key().labels().nth(1)?.value().to_owned();
            match value {
                DebugValue::Counter(count) if name != "attempts" => Some((format!("{name} {label}"), count)),
                _ => None,
            }
        });
        let mut counted: Vec<_> = counted.collect();
        counted.sort_unstable();
        counted
    };
    let once = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), 1)).collect::<Vec<_>>();
    let served = once(&["calls ok", "lookups local", "served ok"]);
    assert_eq!(counted(Some(|request| join(request).boxed())).await, served);
    assert_eq!(counted(None).await, served);
    let elsewhere = counted(Some(|request| refuse(request).boxed())).await;
    assert_eq!(
        elsewhere,
        once(&["calls ok", "lookups static", "served ok", "served refused"])
    );
}
