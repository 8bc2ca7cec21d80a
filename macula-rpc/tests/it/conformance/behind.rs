//! A gRPC server of another process behind a provider, over HTTP/2.

use std::net::SocketAddr;

use macula_rpc::{RetryPolicy, TonicServices};
use tokio::net::TcpListener;
use tonic::transport::{Channel as Http2, Server as Http2Server, server::TcpIncoming};

use super::*;

/// A server without the mesh, which ends when the handle is aborted.
async fn server_at(listener: TcpListener, events: Events) -> tokio::task::AbortHandle {
    let name = "behind".into();
    let serving = Http2Server::builder()
        .add_service(trailers::echo().named_layer(ConformanceServer::new(Service { name, events })))
        .serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(serving).abort_handle()
}

async fn mesh_before(at: SocketAddr, events: mpsc::UnboundedReceiver<&'static str>) -> Mesh {
    let channel = Http2::from_shared(format!("http://{at}")).unwrap().connect_lazy();
    let services = TonicServices::new().with_routes(["macula.conformance.v1.Conformance"], channel);
    Mesh::of(vec![Node::serving(services).await], Strategy::First, events).await
}

#[tokio::test]
async fn n6_a_server_behind_a_channel_answers_all_kinds_of_calls() {
    let (sender, events) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let _server = server_at(listener, sender).await;
    let mut mesh = mesh_before(at, events).await;
    let mut stub = mesh.stub();
    empty_unary(&mut stub).await;
    client_streaming(&mut stub).await;
    server_streaming(&mut stub).await;
    ping_pong(&mut stub).await;
    empty_stream(&mut stub).await;
    custom_metadata(&mut stub).await;
    status_code_and_message(&mut stub).await;

    // A call that its caller gives up ends at the server.
    let mut waiting = mesh.stub();
    let sleeping = tokio::spawn(async move { waiting.sleep(Empty {}).await });
    while mesh.events.recv().await.unwrap() != "started" {}
    sleeping.abort();
    while mesh.events.recv().await.unwrap() != "dropped" {}
}

#[tokio::test]
async fn f5_a_server_that_cannot_be_connected_to_has_not_started_the_call() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    drop(listener);
    let mesh = mesh_before(at, mpsc::unbounded_channel().1).await;
    let once = mesh.channel().with_retry_policy(RetryPolicy::NeverProcessed);
    let error = ConformanceClient::new(once).empty_call(Empty {}).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("refused"), "{error}");
}
