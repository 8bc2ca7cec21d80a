//! One provider: an echo over the mesh, and health checks over plain HTTP/2.

use std::{
    net::SocketAddr,
    sync::{Arc, Once},
};

use anyhow::{Context as _, Result};
use macula_node::{BootstrapAddr, Node, Request, Status, StatusCode};
use macula_transport::Identity;
use macula_wire::SecretKey;
use tonic::service::interceptor::InterceptedService;

/// The service over the mesh.
pub(crate) const ECHO: &str = "bench.echo";
/// What a provider prints at the first call of each door.
pub(crate) const MESH: &str = "called over the mesh";
pub(crate) const TCP: &str = "called over TCP";

/// The identity of a provider. What is measured is calls, and this key guards nothing.
fn identity(key: u8) -> Identity {
    Identity::from_secret(SecretKey::from_bytes(&[key; SecretKey::LEN]))
}

/// Serves until the process ends. Prints both addresses when callers can find it, and each door at its first call.
pub(crate) async fn serve(key: u8, mesh: &str, tcp: &str, bootstrap: &str, well: bool) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(tcp).await?;
    let tcp = listener.local_addr()?;
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let (_reporter, health) = tonic_health::server::health_reporter();
    let first = Arc::new(Once::new());
    let answer = move |request: tonic::Request<()>| {
        first.call_once(|| println!("{TCP}"));
        match well {
            true => Ok(request),
            false => Err(tonic::Status::unavailable("told to fail")),
        }
    };
    let health = InterceptedService::new(health, answer);
    let router = tonic::transport::Server::builder().add_service(health);
    tokio::spawn(router.serve_with_incoming(incoming));

    let listen: SocketAddr = mesh.parse()?;
    let bootstrap: BootstrapAddr = bootstrap.parse().context("the bootstrap node's address")?;
    let first = Arc::new(Once::new());
    let node = Node::builder()
        .identity(identity(key))
        .listen(listen)
        .bootstrap([bootstrap])
        .serve(ECHO, move |request: Request| {
            first.call_once(|| println!("{MESH}"));
            async move {
                match well {
                    true => Ok(request.into_payload()),
                    false => Err(Status::new(StatusCode::Unavailable, "told to fail")),
                }
            }
        })
        .start()
        .await?;
    node.join().await?;
    println!("{} {tcp}", node.local_addr());
    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?
        .recv()
        .await;
    node.shutdown().await;
    Ok(())
}
