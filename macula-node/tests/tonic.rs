//! tonic's clients and servers on real nodes, and what a node answers about itself: health and reflection.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use futures::{StreamExt as _, stream};
use macula_node::{Channel, Node, NodeBuilder, Provider, Request, ServiceName, StartError, Status, TonicServices};
use tonic::Code;
use tonic_health::{
    ServingStatus,
    pb::{
        HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus as Wire,
        health_client::HealthClient,
    },
    server::{HealthReporter, health_reporter},
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest as Ask, server_reflection_response::MessageResponse as Told,
};

fn local() -> NodeBuilder {
    Node::builder().listen("127.0.0.1:0".parse().unwrap())
}

async fn echo(request: Request) -> Result<macula_node::Bytes, Status> {
    Ok(request.into_payload())
}

/// A node that calls, in the mesh of `node`.
async fn caller(node: &Node) -> Node {
    let bootstrap = node.endpoints()[0].clone().into();
    let caller = Node::builder().client().bootstrap([bootstrap]).start().await.unwrap();
    caller.join().await.unwrap();
    caller
}

/// A channel from one node to another.
fn channel(from: &Node, to: &Node) -> Channel {
    let provider = Provider::new(to.id(), to.endpoints().iter().cloned());
    Channel::new(from.client().clone()).with_provider(provider)
}

async fn check(health: &mut HealthClient<Channel>, service: &str) -> Result<Wire, Code> {
    let service = service.to_owned();
    let answer = health.check(HealthCheckRequest { service }).await;
    answer
        .map(|response| response.into_inner().status())
        .map_err(|status| status.code())
}

async fn watch(health: &mut HealthClient<Channel>, service: &str) -> tonic::Streaming<HealthCheckResponse> {
    let service = service.to_owned();
    health.watch(HealthCheckRequest { service }).await.unwrap().into_inner()
}

/// The next that a watcher is told; `None` at the end.
async fn status(watched: &mut tonic::Streaming<HealthCheckResponse>) -> Option<Wire> {
    watched.message().await.unwrap().map(|response| response.status())
}

/// A gRPC service of an application's: the health service is one like any other when an application provides it.
fn application() -> (HealthReporter, impl Into<TonicServices>) {
    let (reporter, server) = health_reporter();
    (
        reporter,
        TonicServices::new().with_routes(["shop.Stock", "shop.Orders"], server),
    )
}

#[tokio::test]
async fn a_nodes_health_follows_what_it_serves() {
    let node = local().serve("api.compute", echo).start().await.unwrap();
    let caller = caller(&node).await;
    let mut health = HealthClient::new(channel(&caller, &node));
    assert_eq!(check(&mut health, "").await, Ok(Wire::Serving));
    assert_eq!(check(&mut health, "api.compute").await, Ok(Wire::Serving));
    assert_eq!(check(&mut health, "api.later").await, Err(Code::NotFound));
    let later: ServiceName = "api.later".parse().unwrap();
    node.serve(later.clone(), echo).await.unwrap();
    assert_eq!(check(&mut health, "api.later").await, Ok(Wire::Serving));
    node.withdraw(&later).await;
    assert_eq!(check(&mut health, "api.later").await, Err(Code::NotFound));
}

/// `grpc.health.v1`: a watch of what is unknown is answered so and stays open; each change is told, and nothing else.
#[tokio::test]
async fn a_watcher_of_an_unknown_service_is_told_when_it_appears() {
    let node = local().serve("api.compute", echo).start().await.unwrap();
    let caller = caller(&node).await;
    let mut health = HealthClient::new(channel(&caller, &node));
    let mut watched = watch(&mut health, "api.later").await;
    assert_eq!(status(&mut watched).await, Some(Wire::ServiceUnknown));
    let (later, other): (ServiceName, ServiceName) = ("api.later".parse().unwrap(), "api.other".parse().unwrap());
    node.serve(other, echo).await.unwrap();
    node.serve(later.clone(), echo).await.unwrap();
    assert_eq!(status(&mut watched).await, Some(Wire::Serving));
    node.withdraw(&later).await;
    assert_eq!(status(&mut watched).await, Some(Wire::ServiceUnknown));
    node.serve(later, echo).await.unwrap();
    assert_eq!(status(&mut watched).await, Some(Wire::Serving));
    let leaving = tokio::spawn(async move { node.shutdown().await });
    assert_eq!(status(&mut watched).await, Some(Wire::NotServing));
    assert_eq!(status(&mut watched).await, None);
    leaving.await.unwrap();
}

/// N4: a watcher learns of a drain before its calls are refused, while the running ones finish.
#[tokio::test]
async fn n4_a_watcher_learns_that_a_node_drains() {
    let (started, begun) = tokio::sync::oneshot::channel();
    let (finish, finished) = tokio::sync::oneshot::channel::<()>();
    let parts = std::sync::Mutex::new(Some((started, finished)));
    let slow = move |_: Request| {
        let parts = parts.lock().unwrap().take();
        async move {
            let (started, finished) = parts.unwrap();
            started.send(()).unwrap();
            finished.await.unwrap();
            Ok::<_, Status>("done")
        }
    };
    let node = local().serve("api.slow", slow).start().await.unwrap();
    let caller = caller(&node).await;
    let mut health = HealthClient::new(channel(&caller, &node));
    let mut watched = watch(&mut health, "api.slow").await;
    assert_eq!(status(&mut watched).await, Some(Wire::Serving));

    let running = tokio::spawn({
        let caller = caller.clone();
        async move { caller.call("api.slow", "").await }
    });
    begun.await.unwrap();
    let leaving = tokio::spawn({
        let node = node.clone();
        async move { node.shutdown().await }
    });
    assert_eq!(status(&mut watched).await, Some(Wire::NotServing));
    // It is asked while it drains, and answers.
    assert_eq!(check(&mut health, "").await, Ok(Wire::NotServing));
    finish.send(()).unwrap();
    assert_eq!(running.await.unwrap().unwrap(), "done");
    leaving.await.unwrap();
    assert_eq!(status(&mut watched).await, None);
}

#[tokio::test]
async fn health_is_asked_of_a_node_and_not_published() {
    let node = local().serve("api.compute", echo).start().await.unwrap();
    let caller = caller(&node).await;
    let name = "grpc.health.v1.Health".parse().unwrap();
    assert!(caller.lookup(&name).await.unwrap().is_empty());
    let mut anywhere = HealthClient::new(Channel::new(caller.client().clone()));
    assert_eq!(check(&mut anywhere, "").await, Err(Code::Unimplemented));
}

/// An application that has its own answers for its own: the node's gives way.
#[tokio::test]
async fn an_applications_own_health_service_goes_first() {
    let (reporter, server) = health_reporter();
    reporter.set_service_status("theirs", ServingStatus::NotServing).await;
    let node = local().serve_tonic(server).start().await.unwrap();
    let caller = caller(&node).await;
    for channel in [channel(&caller, &node), Channel::new(caller.client().clone())] {
        let mut health = HealthClient::new(channel);
        assert_eq!(check(&mut health, "theirs").await, Ok(Wire::NotServing));
    }
}

/// Z1: the channel of a service's stubs answers its health and its reflection.
#[tokio::test]
async fn z1_a_question_about_a_service_goes_to_one_of_its_providers() {
    let stock: ServiceName = "shop.Stock".parse().unwrap();
    let schema = tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET;
    let (_, services) = application();
    let first = local().reflect(schema).serve_tonic(services).start().await.unwrap();
    let bootstrap: Vec<_> = vec![first.endpoints()[0].clone().into()];
    let (_, services) = application();
    let second = local().reflect(schema).bootstrap(bootstrap).serve_tonic(services);
    let second = second.start().await.unwrap();
    second.join().await.unwrap();
    let caller = caller(&first).await;
    assert_eq!(caller.lookup(&stock).await.unwrap().len(), 2);

    let stubs = Channel::new(caller.client().clone());
    let mut health = HealthClient::new(stubs.clone());
    assert_eq!(check(&mut health, "shop.Stock").await, Ok(Wire::Serving));
    assert_eq!(check(&mut health, "shop.Other").await, Err(Code::NotFound));
    let of_stock = stubs.clone().with_service(stock.clone());
    assert_eq!(
        check(&mut HealthClient::new(of_stock.clone()), "").await,
        Ok(Wire::Serving)
    );

    let symbol = Ask::FileContainingSymbol("shop.Stock".into());
    let told = reflect_by(stubs, [symbol, Ask::ListServices(String::new())]).await;
    assert_eq!(told[0], Err(Code::NotFound), "the schema has no such service");
    let own = ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"];
    let all = ["shop.Orders", "shop.Stock", own[0], own[1]];
    let told = reflect_by(of_stock, [Ask::ListServices(String::new())]).await;
    assert_eq!(listed(&told[0]), all);

    // Each provider answers for its own services, and a process for those that it serves itself.
    let mut here = HealthClient::new(Channel::new(second.client().clone()));
    second.withdraw(&"shop.Orders".parse().unwrap()).await;
    assert_eq!(check(&mut here, "shop.Stock").await, Ok(Wire::Serving));
    assert_eq!(check(&mut here, "shop.Orders").await, Ok(Wire::Serving));

    // A question goes on to the next provider, as a call does.
    first.shutdown().await;
    for _ in 0..4 {
        assert_eq!(check(&mut health, "shop.Stock").await, Ok(Wire::Serving));
    }
}

#[tokio::test]
async fn generated_servers_are_found_called_and_withdrawn_as_any_service() {
    let (reporter, services) = application();
    reporter.set_service_status("shop", ServingStatus::Serving).await;
    let node = local().start().await.unwrap();
    let served = node.serve_tonic(services).await.unwrap();
    let names: Vec<_> = served.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["shop.Stock", "shop.Orders"]);
    let caller = caller(&node).await;
    let providers = caller.lookup(&served[1].0).await.unwrap();
    assert_eq!(providers.iter().map(|it| it.node_id).collect::<Vec<_>>(), [node.id()]);

    let mut grpc = tonic::client::Grpc::new(Channel::new(caller.client().clone()));
    let mut call = async |path: &'static str| {
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
        grpc.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let service = "shop".to_owned();
        let answer = grpc.unary(tonic::Request::new(HealthCheckRequest { service }), path, codec);
        answer.await.map(|_| ()).map_err(|status| status.code())
    };
    // The server here knows one path; that it says so shows that it was asked.
    assert_eq!(call("/shop.Stock/Check").await, Err(Code::Unimplemented));

    let (_, again) = application();
    assert!(node.serve_tonic(again).await.is_err());
    for (name, _) in &served {
        node.withdraw(name).await;
        assert!(caller.lookup(name).await.unwrap().is_empty());
    }
}

async fn reflect(from: &Node, to: &Node, asked: impl IntoIterator<Item = Ask>) -> Vec<Result<Told, Code>> {
    reflect_by(channel(from, to), asked).await
}

async fn reflect_by(channel: Channel, asked: impl IntoIterator<Item = Ask>) -> Vec<Result<Told, Code>> {
    let question = |ask| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(ask),
    };
    let asked: Vec<_> = asked.into_iter().map(question).collect();
    let mut client = ServerReflectionClient::new(channel);
    let answers = client.server_reflection_info(stream::iter(asked)).await.unwrap();
    let told = answers.into_inner().map(|answer| match answer {
        Ok(answer) => Ok(answer.message_response.unwrap()),
        Err(status) => Err(status.code()),
    });
    told.collect().await
}

fn listed(told: &Result<Told, Code>) -> Vec<&str> {
    match told {
        Ok(Told::ListServicesResponse(list)) => list.service.iter().map(|it| it.name.as_str()).collect(),
        other => panic!("{other:?} is no list"),
    }
}

#[tokio::test]
async fn reflection_lists_what_is_served_now_and_shows_its_schemas() {
    let own = ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"];
    let list = || Ask::ListServices(String::new());
    let node = local().serve("api.compute", echo).start().await.unwrap();
    let caller = caller(&node).await;
    let told = reflect(&caller, &node, [list()]).await;
    assert_eq!(listed(&told[0]), ["api.compute", own[0], own[1]]);

    let (_, services) = application();
    node.serve_tonic(services).await.unwrap();
    let symbol = |name: &str| Ask::FileContainingSymbol(name.into());
    let asked = [list(), symbol("grpc.health.v1.Health"), symbol("shop.Stock")];
    let told = reflect(&caller, &node, asked).await;
    assert_eq!(
        listed(&told[0]),
        ["api.compute", "shop.Orders", "shop.Stock", own[0], own[1]]
    );
    assert!(matches!(&told[1], Ok(Told::FileDescriptorResponse(files)) if files.file_descriptor_proto.len() == 1));
    assert_eq!(told[2], Err(Code::NotFound), "its schema was not given");
}

#[tokio::test]
async fn a_schema_given_is_shown_and_a_wrong_one_is_refused_at_the_start() {
    let schema = tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET;
    let node = local().reflect(schema).start().await.unwrap();
    let caller = caller(&node).await;
    let symbol = Ask::FileContainingSymbol("grpc.reflection.v1alpha.ServerReflection".into());
    let told = reflect(&caller, &node, [symbol]).await;
    assert!(matches!(&told[0], Ok(Told::FileDescriptorResponse(_))));
    let wrong = local().reflect(&b"\xff\xff"[..]).start().await;
    assert!(matches!(wrong, Err(StartError::Schema(_))));
}
