//! The admin interface over its socket (N5): state, events, drain, health and reflection, as a client of another program sees them.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::path::PathBuf;

use futures::stream;
use macula_node::{
    BootstrapAddr, Node, NodeBuilder, Request, Status, Strategy,
    admin::{
        Admin, AdminClient, connect,
        schema::{Build, DrainRequest, Event, State, StateRequest, WatchRequest},
    },
};
use tonic::{Streaming, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

fn builder() -> NodeBuilder {
    Node::builder().listen("127.0.0.1:0".parse().unwrap())
}

fn address(node: &Node) -> BootstrapAddr {
    node.endpoints()[0].clone().into()
}

async fn echo(request: Request) -> Result<macula_node::Bytes, Status> {
    Ok(request.into_payload())
}

async fn broken(_: Request) -> Result<macula_node::Bytes, Status> {
    Err(Status::internal("broken"))
}

/// A node with an admin interface, and a client of it.
struct Watched {
    node: Node,
    admin: Admin,
    client: AdminClient,
    _folder: tempfile::TempDir,
}

async fn watched(node: NodeBuilder) -> Watched {
    let node = node.start().await.unwrap();
    node.join().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let build = Build {
        version: "1.2.3".to_owned(),
        ..Build::default()
    };
    let admin = Admin::serve(&node, build, folder.path().join("admin.sock"))
        .await
        .unwrap();
    let client = connect(admin.path()).await.unwrap();
    Watched {
        node,
        admin,
        client,
        _folder: folder,
    }
}

impl Watched {
    async fn state(&mut self) -> State {
        self.client.get_state(StateRequest {}).await.unwrap().into_inner()
    }

    async fn events(&mut self) -> Streaming<Event> {
        self.client.watch(WatchRequest {}).await.unwrap().into_inner()
    }

    fn path(&self) -> PathBuf {
        self.admin.path().to_path_buf()
    }
}

/// The next event of a kind.
async fn next(events: &mut Streaming<Event>, kind: &str) -> Event {
    loop {
        let event = events
            .message()
            .await
            .unwrap()
            .unwrap_or_else(|| panic!("no {kind} came"));
        if event.kind == kind {
            return event;
        }
    }
}

#[tokio::test]
async fn n5_the_state_shows_identity_peers_records_services_and_limits() {
    let provider = builder().serve("demo.echo", echo).start().await.unwrap();
    provider.join().await.unwrap();
    let watched_node = builder().bootstrap([address(&provider)]).serve("demo.own", echo);
    let mut watched = watched(watched_node).await;
    for _ in 0..3 {
        watched.node.call("demo.echo", "x").await.unwrap();
    }
    provider.call("demo.own", "x").await.unwrap();
    provider.serve("demo.later".parse().unwrap(), echo).await.unwrap();
    let state = watched.state().await;
    assert_eq!(state.node_id, watched.node.id().to_string());
    assert_eq!((state.realm.as_str(), state.role.as_str()), ("default", "node"));
    assert_eq!((state.phase.as_str(), state.pid), ("serving", std::process::id()));
    assert_eq!(state.build.unwrap().version, "1.2.3");
    let addresses = state.addresses.unwrap();
    assert_eq!(addresses.listening, watched.node.local_addr().to_string());
    assert_eq!(addresses.advertised, [watched.node.endpoints()[0].to_string()]);
    let mesh = state.mesh.unwrap();
    assert!(mesh.joined);
    assert_eq!(mesh.contacts[0].node_id, provider.id().to_string());

    let [peer] = &state.peers[..] else {
        panic!("{:?}", state.peers)
    };
    assert_eq!(peer.node_id, provider.id().to_string());
    assert_eq!((peer.opened_by.as_str(), peer.presence.as_str()), ("here", "up"));
    assert!(peer.rtt_us > 0 && peer.sent_packets > 0);

    let records = state.records.unwrap();
    let [own] = &records.published[..] else {
        panic!("{records:?}")
    };
    assert_eq!(own.service, "demo.own");
    assert_eq!(own.acknowledged_by, [provider.id().to_string()]);
    assert!(records.held > 0, "the provider's record is held here");
    assert_eq!((own.refused.len(), own.unreachable), (0, 0));

    let [served] = &state.serves[..] else {
        panic!("{:?}", state.serves)
    };
    let calls = served.calls.as_ref().unwrap();
    assert_eq!(
        (served.service.as_str(), calls.ok, calls.errors, calls.in_flight),
        ("demo.own", 1, 0, 0)
    );
    assert_eq!(calls.latency.iter().map(|bucket| bucket.count).sum::<u64>(), 1);

    let [called] = &state.calls[..] else {
        panic!("{:?}", state.calls)
    };
    assert_eq!(
        (called.service.as_str(), called.calls.as_ref().unwrap().ok),
        ("demo.echo", 3)
    );
    assert!(called.calls.as_ref().unwrap().p50_us.is_some());
    let [standing] = &called.providers[..] else {
        panic!("{called:?}")
    };
    assert_eq!(standing.node_id, provider.id().to_string());
    assert_eq!(
        (standing.state.as_str(), standing.link.as_str(), standing.recent_ok),
        ("ready", "up", 3)
    );
    assert_eq!(state.limits.unwrap().calls_refused_busy, 0);
    assert_eq!(state.left_out, 0);
}

#[tokio::test]
async fn n5_events_tell_of_connections_publications_and_ejections_until_the_end() {
    let mut watched = watched(builder()).await;
    let mut events = watched.events().await;
    let late = builder().bootstrap([address(&watched.node)]).start().await.unwrap();
    late.join().await.unwrap();
    let opened = next(&mut events, "opened").await;
    assert_eq!(opened.node_id, late.id().to_string());
    late.shutdown().await;
    assert_eq!(next(&mut events, "closed").await.node_id, late.id().to_string());

    watched.node.serve("demo.here".parse().unwrap(), echo).await.unwrap();
    assert_eq!(next(&mut events, "published").await.service, "demo.here");
    watched.node.shutdown().await;
    next(&mut events, "draining").await;
    assert_eq!(next(&mut events, "withdrawn").await.service, "demo.here");
    next(&mut events, "left").await;
    assert_eq!(events.message().await.unwrap(), None, "the stream ends with the node");
}

#[tokio::test]
async fn n5_an_ejected_provider_is_an_event_with_its_service_and_node() {
    let failing = builder().serve("demo.half", broken).start().await.unwrap();
    let second = builder()
        .bootstrap([address(&failing)])
        .serve("demo.half", echo)
        .start()
        .await
        .unwrap();
    second.join().await.unwrap();
    let caller = builder().bootstrap([address(&failing)]).strategy(Strategy::RoundRobin);
    let mut watched = watched(caller).await;
    let mut events = watched.events().await;
    for _ in 0..20 {
        watched.node.call("demo.half", "x").await.unwrap();
    }
    let ejected = next(&mut events, "ejected").await;
    assert_eq!(ejected.service, "demo.half");
    assert_eq!(ejected.node_id, failing.id().to_string());
    let state = watched.state().await;
    assert_eq!(
        (state.calls[0].ejections, state.calls[0].calls.as_ref().unwrap().ok),
        (1, 20)
    );
    let standing = state.calls[0]
        .providers
        .iter()
        .find(|it| it.node_id == ejected.node_id)
        .unwrap();
    assert_eq!(standing.state, "ejected");
}

#[tokio::test]
async fn n4_a_drain_that_is_asked_for_shows_its_progress_to_the_end() {
    let (begin, begun) = tokio::sync::oneshot::channel();
    let (finish, finished) = tokio::sync::oneshot::channel::<()>();
    let once = std::sync::Mutex::new(Some((begin, finished)));
    let slow = move |_: Request| {
        let taken = once.lock().unwrap().take();
        async move {
            if let Some((begin, finished)) = taken {
                begin.send(()).unwrap();
                let _ = finished.await;
            }
            Ok::<_, Status>("done")
        }
    };
    let mut watched = watched(builder().serve("demo.slow", slow)).await;
    let caller = Node::builder()
        .client()
        .bootstrap([address(&watched.node)])
        .start()
        .await
        .unwrap();
    caller.join().await.unwrap();
    let call = tokio::spawn(async move { caller.call("demo.slow", "").await });
    begun.await.unwrap();
    let mut progress = watched.client.drain(DrainRequest {}).await.unwrap().into_inner();
    watched.admin.drain_asked().await;
    let node = watched.node.clone();
    let leaving = tokio::spawn(async move { node.shutdown().await });
    let step = progress.message().await.unwrap().unwrap();
    assert_eq!((step.phase.as_str(), step.running_calls), ("draining", 1));
    finish.send(()).unwrap();
    let mut last = step;
    while let Some(step) = progress.message().await.unwrap() {
        last = step;
    }
    assert_eq!((last.phase.as_str(), last.running_calls), ("left", 0));
    assert_eq!(call.await.unwrap().unwrap(), "done");
    leaving.await.unwrap();
    watched.admin.close().await;
}

#[tokio::test]
async fn n5_the_socket_answers_reflection_and_health_for_any_grpc_client() {
    let watched = watched(builder().serve("demo.echo", echo)).await;
    let channel = Endpoint::from_shared(format!("unix:{}", watched.path().display())).unwrap();
    let channel = channel.connect().await.unwrap();
    let ask = |request| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(request),
    };
    let questions = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol(
            "macula.admin.v1.Admin.GetState".to_owned(),
        )),
    ];
    let mut reflection = ServerReflectionClient::new(channel.clone());
    let answers = reflection
        .server_reflection_info(stream::iter(questions))
        .await
        .unwrap();
    let mut answers = answers.into_inner();
    let list = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = list else {
        panic!("{list:?}")
    };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in [
        "macula.admin.v1.Admin",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    ] {
        assert!(names.contains(&name), "{names:?}");
    }
    let schema = answers.message().await.unwrap().unwrap().message_response;
    assert!(
        matches!(schema, Some(MessageResponse::FileDescriptorResponse(_))),
        "{schema:?}"
    );

    let mut health = HealthClient::new(channel);
    for service in ["", "demo.echo"] {
        let service = service.to_owned();
        let answer = health.check(HealthCheckRequest { service }).await.unwrap();
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    }
}

#[tokio::test]
async fn n5_a_socket_without_a_node_says_so() {
    let watched = watched(builder()).await;
    let path = watched.path();
    drop(watched);
    let error = connect(&path).await.unwrap_err();
    assert!(error.to_string().contains("is the node running?"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let dead = folder.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let error = connect(&dead).await.unwrap_err();
    assert!(error.to_string().contains("not running any more"), "{error}");
}
