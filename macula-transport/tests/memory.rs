//! What peers make a node keep is charged to one budget; when it is full, the largest holder pays, and the others are served (X6).

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{
    PATIENCE, client,
    clock::Clock,
    config, connect, echoes,
    raw::{introduced, introduced_taking, raw_client},
    service, until,
};
use futures::future::{BoxFuture, FutureExt as _, join_all};
use macula_transport::{
    CallError, CallKind, CallRequest, Config, Connection, Endpoint, Handler, IncomingCall, IncomingMessages, Limits,
    OutgoingMessages, Reply, Timers,
};
use macula_wire::{StatusCode, proto};
use tokio::sync::mpsc;

/// The memory of the nodes here, in bytes: some messages of the largest size.
const MEMORY: u64 = 32 << 20;
const MIB: usize = 1 << 20;
/// What an honest caller sends and gets, in bytes: request, reply and the reply before fit into a quarter of the memory.
const HONEST: usize = MIB / 2;

/// As the other tests' services, and `watch`, which streams and never answers.
struct Services(common::Service);

impl Handler for Services {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        self.0.call(call)
    }

    fn kind(&self, call: &IncomingCall) -> CallKind {
        match call.service().as_str() {
            "watch" => CallKind::Streaming,
            _ => CallKind::Unary,
        }
    }

    fn refuses(&self, call: &IncomingCall) -> Option<Reply> {
        let unknown = call.service().as_str().starts_with("unknown");
        unknown.then(|| Reply::refused(StatusCode::Unimplemented, "no such service"))
    }

    fn stream(
        &self,
        _: IncomingCall,
        mut requests: IncomingMessages,
        _: OutgoingMessages,
    ) -> BoxFuture<'static, Reply> {
        async move {
            while let Ok(Some(_)) = requests.next().await {}
            std::future::pending().await
        }
        .boxed()
    }
}

fn limited() -> Config {
    config().with_limits(Limits {
        memory_bytes: MEMORY,
        ..Limits::default()
    })
}

async fn provider() -> (Endpoint, mpsc::UnboundedReceiver<common::Seen>) {
    let (services, events) = common::Service::new();
    (Endpoint::bind(limited(), Services(services)).await.unwrap(), events)
}

/// The start of a call on a stream of its own, and of a message of `announced` bytes.
fn unfinished(name: &str, announced: usize) -> Vec<u8> {
    let head = proto::Head {
        service: name.into(),
        timeout_us: 3_600_000_000,
        ..Default::default()
    };
    let kind = Some(proto::call_frame::Kind::Head(head));
    let head = macula_wire::frame(&proto::CallFrame { call: 0, kind });
    let data = proto::Data {
        payload: Bytes::from(vec![0; announced]),
        ..Default::default()
    };
    let kind = Some(proto::call_frame::Kind::Data(data));
    let data = macula_wire::frame(&proto::CallFrame { call: 0, kind });
    [&[2], &head[..], &data[..data.len() - 1]].concat()
}

/// Sends messages that do not end on many streams of many connections, as far as the node takes them.
struct Flood {
    _endpoints: Vec<quinn::Endpoint>,
    _controls: Vec<quinn::SendStream>,
    connections: Vec<quinn::Connection>,
    streams: Vec<tokio::task::JoinHandle<Vec<(quinn::SendStream, quinn::RecvStream)>>>,
}

impl Flood {
    async fn start(at: &Endpoint, name: &'static str) -> Self {
        let mut flood = Self {
            _endpoints: Vec::new(),
            _controls: Vec::new(),
            connections: Vec::new(),
            streams: Vec::new(),
        };
        for host in 1..=3 {
            // A network of its own.
            let endpoint = quinn::Endpoint::client(([127, 0, host, 1], 0).into()).unwrap();
            let (connection, control) = introduced(&endpoint, at).await;
            let sender = connection.clone();
            flood.streams.push(tokio::spawn(async move {
                let open = async || {
                    let (mut send, recv) = sender.open_bi().await.ok()?;
                    // Fails when the node stops it, which is right.
                    let _ = send.write_all(&unfinished(name, 2 * MIB)).await;
                    Some((send, recv))
                };
                let streams = join_all((0..16).map(|_| open())).await;
                streams.into_iter().flatten().collect()
            }));
            flood._endpoints.push(endpoint);
            flood._controls.push(control);
            flood.connections.push(connection);
        }
        flood
    }
}

async fn keeps_within_its_memory_and_serves(name: &'static str) {
    let (provider, _events) = provider().await;
    let honest = client().await;
    let connection = connect(&honest, &provider).await.unwrap();
    let flood = Flood::start(&provider, name).await;
    until("the memory is full", || {
        let memory = provider.stats().memory;
        assert!(memory.used <= memory.charged && memory.budget == MEMORY);
        memory.refused + memory.evicted > 0
    })
    .await;
    for _ in 0..20 {
        echoes(&connection, vec![1; HONEST]).await;
    }
    drop(flood);
    let alone = || provider.stats().memory.used < 1 << 20;
    until("all of it is given back", alone).await;
    echoes(&connection, vec![1; 3 * MIB]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn x6_requests_that_do_not_end_stay_within_the_memory_and_others_are_served() {
    keeps_within_its_memory_and_serves("echo").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn x6_messages_of_streams_that_do_not_end_stay_within_the_memory_and_others_are_served() {
    keeps_within_its_memory_and_serves("watch").await;
}

/// Calls whose replies are not read: the caller permits none of their bytes.
#[tokio::test(flavor = "multi_thread")]
async fn x6_replies_that_are_not_read_stay_within_the_memory_and_others_are_served() {
    let (provider, _events) = provider().await;
    let honest = client().await;
    let connection = connect(&honest, &provider).await.unwrap();
    let (mut floods, mut others) = (Vec::new(), Vec::new());
    for host in 1..=3 {
        let endpoint = quinn::Endpoint::client(([127, 0, host, 1], 0).into()).unwrap();
        let (flooder, control) = introduced(&endpoint, &provider).await;
        for _ in 0..16 {
            let head = proto::Head {
                service: "large".into(),
                timeout_us: 3_600_000_000,
                end: true,
                ..Default::default()
            };
            let kind = Some(proto::call_frame::Kind::Head(head));
            let (mut send, recv) = flooder.open_bi().await.unwrap();
            let call = [&[2], &macula_wire::frame(&proto::CallFrame { call: 0, kind })[..]].concat();
            // The first replies may fill what this side takes, so nothing waits here.
            let _ = send.write_all(&call).await;
            floods.push((send, recv));
        }
        others.push((endpoint, flooder, control));
    }
    until("the memory is full", || {
        let memory = provider.stats().memory;
        assert!(memory.used <= memory.charged);
        memory.refused + memory.evicted > 0
    })
    .await;
    for _ in 0..20 {
        echoes(&connection, vec![1; HONEST]).await;
    }
}

/// A peer that takes nothing from its lane, whose replies are all ready where their calls are read.
#[tokio::test]
async fn x6_replies_that_wait_on_a_lane_are_charged_and_the_lane_ends_where_there_is_no_memory() {
    let (services, _events) = common::Service::new();
    let limits = Limits {
        memory_bytes: 1 << 20,
        ..Limits::default()
    };
    let provider = Endpoint::bind(config().with_limits(limits), services).await.unwrap();
    let endpoint = raw_client();
    let (connection, _control) = introduced_taking(&endpoint, &provider, 1024).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&[3]).await.unwrap();
    let echo = |call| {
        let head = proto::Head {
            service: "echo".into(),
            timeout_us: 3_600_000_000,
            payload: vec![0; 16_000].into(),
            end: true,
            ..Default::default()
        };
        let kind = Some(proto::call_frame::Kind::Head(head));
        macula_wire::frame(&proto::CallFrame { call, kind })
    };
    // The first reply fills what the peer takes; the others wait behind it.
    send.write_all(&echo(1)).await.unwrap();
    until("its call was taken", || provider.stats().calls_taken == 1).await;
    for call in 2..=40 {
        // Fails once the lane has ended.
        let _ = send.write_all(&echo(call)).await;
    }
    until("there is no memory", || provider.stats().memory.refused > 0).await;
    let ended = tokio::time::timeout(PATIENCE, recv.received_reset()).await.unwrap();
    assert_eq!(ended.unwrap().map(quinn::VarInt::into_inner), Some(5));
    until("its memory is given back", || provider.stats().memory.used < 256 << 10).await;
}

#[tokio::test]
async fn x6_a_message_that_does_not_go_on_is_given_up() {
    let clock = Clock::stop();
    for name in ["echo", "watch"] {
        let (provider, _events) = provider().await;
        let endpoint = raw_client();
        let (connection, _control) = introduced(&endpoint, &provider).await;
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        let bytes = unfinished(name, MIB);
        send.write_all(&bytes[..MIB / 2]).await.unwrap();
        until("some of it is kept", || provider.stats().memory.used > 512 << 10).await;
        clock
            .pass(Timers::default().message_idle + Duration::from_millis(20))
            .await;
        until("it is given up", || provider.stats().slow_streams == 1).await;
        until("its memory is given back", || provider.stats().memory.used < 512 << 10).await;
    }
}

#[tokio::test]
async fn x6_a_frame_on_a_lane_that_does_not_go_on_is_charged_and_given_up() {
    /// The first byte of a lane.
    const LANE: u8 = 3;
    let clock = Clock::stop();
    let (provider, _events) = provider().await;
    let endpoint = raw_client();
    let (connection, _control) = introduced(&endpoint, &provider).await;
    let rest = provider.stats().memory.used;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let mut bytes = vec![LANE];
    prost::encode_length_delimiter(20_000, &mut bytes).unwrap();
    bytes.resize(19_000, 0);
    send.write_all(&bytes).await.unwrap();
    until("it is charged", || provider.stats().memory.used >= rest + (32 << 10)).await;
    clock
        .pass(Timers::default().message_idle + Duration::from_millis(20))
        .await;
    until("it is given up", || provider.stats().slow_streams == 1).await;
}

#[tokio::test]
async fn x6_a_call_of_an_unknown_service_is_refused_before_its_request() {
    let (provider, _events) = provider().await;
    let endpoint = raw_client();
    let (connection, _control) = introduced(&endpoint, &provider).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&unfinished("unknown", MIB)[..100]).await.unwrap();
    let reply = recv.read_to_end(1000).await.unwrap();
    let frame: proto::CallFrame = prost::Message::decode_length_delimited(reply.as_slice()).unwrap();
    let Some(proto::call_frame::Kind::Trailers(trailers)) = frame.kind else {
        panic!("{frame:?}");
    };
    assert_eq!(
        (trailers.status, trailers.not_started),
        (StatusCode::Unimplemented as u32, true)
    );
}

/// The one peer there is has no share to take from: it is refused, and keeps the rest of what it has.
#[tokio::test(flavor = "multi_thread")]
async fn x6_a_call_that_finds_no_memory_is_refused_as_not_started() {
    let (provider, mut events) = provider().await;
    let honest = client().await;
    let connection = connect(&honest, &provider).await.unwrap();
    let hang = async |connection: &Connection| {
        let hang = service("hang");
        let request = CallRequest::new(&hang, vec![0; 3 * MIB]).with_timeout(PATIENCE);
        connection.call(request).await
    };
    let calls: Vec<_> = (0..5)
        .map(|_| {
            tokio::spawn({
                let connection = connection.clone();
                async move { hang(&connection).await }
            })
        })
        .collect();
    for _ in 0..5 {
        events.recv().await.unwrap();
    }
    let refused = hang(&connection).await;
    assert!(
        matches!(
            &refused,
            Err(CallError::Refused {
                status: StatusCode::ResourceExhausted,
                ..
            })
        ),
        "{refused:?}"
    );
    assert_eq!(provider.stats().memory.evicted, 0);
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    until("their memory is given back", || provider.stats().memory.used < 1 << 20).await;
    echoes(&connection, vec![1; 3 * MIB]).await;
}

/// A provider with memory for so many connections, and two streams of each.
async fn tiny(connections: u64) -> (Endpoint, mpsc::UnboundedReceiver<common::Seen>) {
    let (services, events) = common::Service::new();
    let limits = Limits {
        memory_bytes: 2 * connections * (64 << 10),
        ..Limits::default()
    };
    let tiny = Endpoint::bind(config().with_limits(limits), services).await.unwrap();
    (tiny, events)
}

/// On a stream of their own, and on the lane.
#[tokio::test]
async fn f5_x6_calls_whose_streams_find_no_memory_are_refused_as_not_started() {
    let (tiny, _events) = tiny(1).await;
    let client = client().await;
    let connection = connect(&client, &tiny).await.unwrap();
    let name = service("hang");
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(connection.open(CallRequest::new(&name, "x")).await.unwrap());
    }
    until("their streams are taken", || tiny.stats().calls_taken == 2).await;
    for bytes in [1, 20_000] {
        let refused = connection
            .call(CallRequest::new(&service("echo"), vec![0; bytes]))
            .await;
        assert!(
            matches!(
                &refused,
                Err(CallError::Refused {
                    status: StatusCode::ResourceExhausted,
                    ..
                })
            ),
            "{bytes}: {refused:?}"
        );
    }
    drop(open);
    tokio::time::timeout(PATIENCE, async {
        while connection.call(CallRequest::new(&service("echo"), "x")).await.is_err() {}
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn x6_a_node_with_no_memory_left_turns_connections_away() {
    let (tiny, mut events) = tiny(3).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let client = client().await;
        let connection = connect(&client, &tiny).await.unwrap();
        // So that none of them is idle.
        let hanging = connection.open(CallRequest::new(&service("hang"), "")).await.unwrap();
        let (requests, replies) = hanging.split();
        requests.finish();
        events.recv().await.unwrap();
        clients.push((client, connection, replies));
    }
    let one_more = client().await;
    assert!(connect(&one_more, &tiny).await.is_err());
    assert_eq!(tiny.stats().rejected_busy, 1);
    echoes(&clients[0].1, "small").await;
}
