//! Unary calls whose provider dies while the reply is on its way, which takes it many packets: in memory, in paused time.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{FutureExt as _, future::BoxFuture};
use http_body::Frame;
use http_body_util::StreamBody;
use macula_rpc::{
    RetryPolicy, TonicServices,
    testing::{LinkConditions, Mesh, MeshNode},
};
use macula_transport::{CallKind, Handler, IncomingCall, IncomingMessages, NoService, OutgoingMessages, Role};
use prost::Message as _;
use tokio::time::{Instant, sleep};
use tonic::{body::Body, codegen::http};

use super::{
    Arc, Channel, Client, Code, Config, ConformanceClient, ConformanceServer, Duration, Endpoint, Identity, LARGEST,
    Provider, Request, Server, Service, StaticResolver, Status, Strategy, mpsc, request, schema, stream, wants,
};

const NAME: &str = "macula.conformance.v1.Conformance";

/// What a packet takes one way: a connection that has just begun to send gets a few packets through in each two of these.
const LATENCY: Duration = Duration::from_millis(50);

/// A reply of so many bytes is under way for many round trips.
const LARGE: i32 = 1 << 20;

/// When the beginning of a reply has arrived, and its end has not left.
const HALFWAY: Duration = LATENCY.saturating_mul(3);

/// How often a provider's handlers ran.
type Ran = Arc<AtomicUsize>;

fn serve(node: &MeshNode) -> Ran {
    let ran = Ran::default();
    let (events, _) = mpsc::unbounded_channel();
    let service = Service {
        name: node.name().to_owned(),
        events,
    };
    let counted = Arc::clone(&ran);
    let server = ConformanceServer::with_interceptor(service, move |request: Request<()>| {
        counted.fetch_add(1, Relaxed);
        Ok::<_, Status>(request)
    });
    node.server().serve_tonic(server).unwrap();
    ran
}

fn stub(channel: Channel) -> ConformanceClient<Channel> {
    ConformanceClient::new(channel).max_decoding_message_size(LARGEST)
}

/// Two providers far away, the first of which is called while it lives, and their client.
struct Far {
    mesh: Mesh,
    client: Client,
    ran: [(String, Ran); 2],
}

impl Far {
    fn new() -> Self {
        let mesh = Mesh::new(31).with_link(LinkConditions::new(LATENCY));
        let ran = ["a", "b"].map(|name| (name.to_owned(), serve(&mesh.node(name))));
        let client = mesh.node("caller").client_builder().strategy(Strategy::First).build();
        Self { mesh, client, ran }
    }

    fn channel(&self) -> Channel {
        Channel::new(self.client.clone())
    }

    /// How often each provider's handlers have run since this was asked last.
    fn ran(&self) -> [usize; 2] {
        [0, 1].map(|at| self.ran[at].1.swap(0, Relaxed))
    }

    /// Makes the call, and kills the provider while its reply is on its way.
    async fn killed_halfway<T>(&self, call: impl Future<Output = T>) -> T {
        let kill = async {
            sleep(HALFWAY).await;
            assert_eq!(self.ran.iter().map(|(_, ran)| ran.load(Relaxed)).sum::<usize>(), 1);
            let called = self.ran.iter().find(|(_, ran)| ran.load(Relaxed) == 1).unwrap();
            self.mesh.kill(&called.0);
        };
        tokio::join!(call, kill).0
    }
}

/// Has the connections opened, for the calls that follow to take the time of its reply alone.
async fn teach(far: &Far) {
    stub(far.channel()).unary_call(request(0, 0)).await.unwrap();
    far.ran();
}

#[tokio::test(start_paused = true)]
async fn f1_a_unary_call_is_made_elsewhere_when_its_provider_dies_halfway_through_the_reply() {
    for on_lane in [false, true] {
        let far = Far::new();
        let mut stub = stub(far.channel());
        teach(&far).await;
        let beside = match on_lane {
            true => Some(super::lane::beside(&mut stub).await),
            false => None,
        };
        far.ran();
        let reply = far.killed_halfway(stub.unary_call(request(0, LARGE))).await.unwrap();
        assert_eq!(reply.into_inner().body.len(), LARGE as usize);
        let mut ran = far.ran();
        ran.sort_unstable();
        assert_eq!(ran, [1, 1]);
        drop(beside);
    }
}

/// F6: it may have run.
#[tokio::test(start_paused = true)]
async fn f6_a_call_that_must_not_run_twice_is_not_repeated_for_the_rest_of_its_reply() {
    let far = Far::new();
    teach(&far).await;
    let mut stub = stub(far.channel().with_retry_policy(RetryPolicy::NeverProcessed));
    let error = far
        .killed_halfway(stub.unary_call(request(0, LARGE)))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert_eq!(far.ran().iter().sum::<usize>(), 1);
}

/// F7: as for every unary call, the time for one provider is for all of its reply.
#[tokio::test(start_paused = true)]
async fn f7_an_attempts_time_is_for_all_of_a_unary_reply() {
    let far = Far::new();
    teach(&far).await;
    let channel = far.channel().with_attempt_timeout(HALFWAY).with_max_attempts(1);
    let error = stub(channel).unary_call(request(0, LARGE)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    let reply = stub(far.channel()).unary_call(request(0, LARGE)).await.unwrap();
    assert_eq!(reply.into_inner().body.len(), LARGE as usize);
}

/// A reply beyond the limit is a stream: its provider's death ends it.
#[tokio::test(start_paused = true)]
async fn a_reply_of_more_than_is_kept_begins_before_it_is_whole() {
    let far = Far::new();
    teach(&far).await;
    let large = 6 << 20;
    let reply = stub(far.channel()).unary_call(request(0, large)).await.unwrap();
    assert_eq!(reply.into_inner().body.len(), large as usize);
    let far = Far::new();
    teach(&far).await;
    let mut stub = stub(far.channel());
    let error = far
        .killed_halfway(stub.unary_call(request(0, large)))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert_eq!(far.ran().iter().sum::<usize>(), 1);
}

/// A short stream without pauses is retried like a unary call.
#[tokio::test(start_paused = true)]
async fn f1_a_stream_that_was_all_there_at_once_is_as_one_reply() {
    let far = Far::new();
    teach(&far).await;
    let mut stub = stub(far.channel());
    let once = wants(&[10_000, 10_000, 10_000]);
    let replies = far.killed_halfway(stub.streaming_output(once)).await.unwrap();
    let mut replies = replies.into_inner();
    for _ in 0..3 {
        assert_eq!(replies.message().await.unwrap().unwrap().body.len(), 10_000);
    }
    assert_eq!(replies.message().await.unwrap(), None);
}

/// A message as gRPC has it in its bodies.
fn framed(bytes: usize) -> Bytes {
    let reply = schema::Reply {
        body: vec![0; bytes].into(),
        provider: "raw".into(),
    };
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(reply.encoded_len()).unwrap());
    reply.encode(&mut framed).unwrap();
    framed.freeze()
}

/// Each message comes when it is there, however the stream waits for the next.
#[tokio::test(start_paused = true)]
async fn a_stream_that_waits_between_its_messages_gives_each_at_once() {
    let mesh = Mesh::new(32);
    let pause = Duration::from_secs(60);
    let paused = tower::service_fn(move |_: http::Request<Body>| {
        let frames = stream::unfold(0, move |n| async move {
            let frame = match n {
                0..4 => Frame::data(framed(10)),
                4 => Frame::trailers(http::HeaderMap::from_iter([(
                    http::HeaderName::from_static("grpc-status"),
                    http::HeaderValue::from_static("0"),
                )])),
                _ => return None,
            };
            // The first two are there at once.
            if n > 1 {
                sleep(pause).await;
            }
            Some((Ok::<_, Status>(frame), n + 1))
        });
        let body = Body::new(StreamBody::new(Box::pin(frames)));
        std::future::ready(Ok::<_, std::convert::Infallible>(http::Response::new(body)))
    });
    let services = TonicServices::new().with_routes([NAME], paused);
    mesh.node("a").server().serve_tonic(services).unwrap();
    let mut stub = stub(Channel::new(mesh.node("caller").client()));
    let start = Instant::now();
    let mut replies = stub.streaming_output(wants(&[])).await.unwrap().into_inner();
    for n in 0..4_u32 {
        replies.message().await.unwrap().unwrap();
        let pauses = start.elapsed().as_millis() / pause.as_millis();
        assert_eq!(pauses, u128::from(n.saturating_sub(1)));
    }
    assert_eq!(replies.message().await.unwrap(), None);
}

/// A provider that is not of this crate: it gives the beginning of a unary reply, and nothing after it.
struct Begins {
    /// Says that it has the rest.
    says: bool,
}

impl Handler for Begins {
    fn call(&self, _: IncomingCall) -> BoxFuture<'static, macula_transport::Reply> {
        unreachable!("it streams")
    }

    fn kind(&self, _: &IncomingCall) -> CallKind {
        CallKind::Streaming
    }

    fn stream(
        &self,
        _: IncomingCall,
        _: IncomingMessages,
        mut replies: OutgoingMessages,
    ) -> BoxFuture<'static, macula_transport::Reply> {
        let says = self.says;
        async move {
            match says {
                true => replies.gather_whole(Bytes::new()).await.unwrap(),
                false => replies.gather(Bytes::new()).await.unwrap(),
            }
            replies.send(framed(100).slice(..50)).await.unwrap();
            std::future::pending().await
        }
        .boxed()
    }
}

/// A provider that begins a reply and does not end it, one that answers, and what calls the first of them first.
struct Beginning {
    channel: Channel,
    answered: mpsc::UnboundedReceiver<()>,
    _nodes: [Endpoint; 3],
}

async fn beginning(says: bool) -> Beginning {
    let mesh = Mesh::new(33);
    let config = || Config::new(Identity::generate().unwrap()).with_network(mesh.network());
    let provides = || config().with_role(Role::Node);
    let begins = Endpoint::bind(provides(), Begins { says }).await.unwrap();
    let (events, _) = mpsc::unbounded_channel();
    let (answers, answered) = mpsc::unbounded_channel();
    let name = "answers".into();
    let service = ConformanceServer::with_interceptor(Service { name, events }, move |request: Request<()>| {
        answers.send(()).unwrap();
        Ok::<_, Status>(request)
    });
    let server = Server::new();
    server.serve_tonic(service).unwrap();
    let answers = Endpoint::bind(provides(), server).await.unwrap();
    let provider = |node: &Endpoint| Provider::new(node.node_id(), [node.local_addr().try_into().unwrap()]);
    let directory = StaticResolver::new().with_service(NAME.parse().unwrap(), [provider(&begins), provider(&answers)]);
    let caller = Endpoint::bind(config(), NoService).await.unwrap();
    let client = Client::builder(&caller, directory).strategy(Strategy::First).build();
    Beginning {
        channel: Channel::new(client),
        answered,
        _nodes: [begins, answers, caller],
    }
}

/// F7: a provider that says that its reply is whole, and does not send it, gets as much time as a silent one.
#[tokio::test(start_paused = true)]
async fn f7_a_provider_that_does_not_send_the_reply_it_has_loses_the_call() {
    let mut beginning = beginning(true).await;
    let channel = beginning.channel.clone().with_attempt_timeout(Duration::from_secs(1));
    let reply = stub(channel).unary_call(request(0, 10)).await.unwrap();
    assert_eq!(reply.into_inner().provider, "answers");
    beginning.answered.try_recv().unwrap();

    // If the attempt's time is the call's, no time is left for a second attempt.
    let mut beginning = self::beginning(true).await;
    let mut in_time = Request::new(request(0, 10));
    in_time.set_timeout(Duration::from_secs(5));
    let error = stub(beginning.channel.clone()).unary_call(in_time).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert!(beginning.answered.try_recv().is_err());
}

/// The reply of a provider that does not say so, as one of an earlier version, begins with its first message: there its call stays.
#[tokio::test(start_paused = true)]
async fn a_provider_that_says_nothing_of_the_rest_keeps_the_call_it_has_begun_to_answer() {
    let mut beginning = beginning(false).await;
    let channel = beginning.channel.clone().with_attempt_timeout(Duration::from_secs(1));
    let mut in_time = Request::new(request(0, 10));
    in_time.set_timeout(Duration::from_secs(5));
    let start = Instant::now();
    let error = stub(channel).unary_call(in_time).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert!(start.elapsed() >= Duration::from_secs(5));
    assert!(beginning.answered.try_recv().is_err());
}

/// A router passes on what is there at once as that, and keeps nothing of what is larger.
#[tokio::test(start_paused = true)]
async fn unary_calls_go_through_a_router_whatever_their_replies_size() {
    let (mesh, client, _kept) = crate::routed::routed().await;
    let ran = serve(&mesh.node("a"));
    let mut stub = stub(Channel::new(client));
    for bytes in [0, 10, 20_000, LARGE, 6 << 20, 10] {
        let reply = stub.unary_call(request(0, bytes)).await.unwrap().into_inner();
        assert_eq!((reply.body.len(), reply.provider.as_str()), (bytes as usize, "a"));
    }
    let mut replies = stub
        .streaming_output(wants(&[10, 10_000, 100_000, 10]))
        .await
        .unwrap()
        .into_inner();
    for bytes in [10, 10_000, 100_000, 10] {
        assert_eq!(replies.message().await.unwrap().unwrap().body.len(), bytes);
    }
    assert_eq!(replies.message().await.unwrap(), None);
    assert_eq!(ran.load(Relaxed), 7);
}
