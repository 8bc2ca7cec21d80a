//! gRPC over HTTP/2: every request passes through to the mesh as it is.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use axum::{
    body::Body,
    http::{HeaderMap, Request, StatusCode as Http, header},
    response::{IntoResponse as _, Response},
};
use futures::future::BoxFuture;
use macula_rpc::Channel;
use tokio::sync::watch;
use tonic::{codegen::Service, server::NamedService as _, service::Routes};
use tonic_health::pb::health_server::HealthServer;

use super::{error::Failure, health::MeshHealth, reflection::Reflection};
use crate::Node;

/// Whether the request is gRPC's.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("application/grpc"))
}

/// A refusal as gRPC answers it: a response without a body whose headers are the trailers.
pub(super) fn refusal(status: tonic::Status) -> Response {
    status.into_http()
}

/// Answers health and reflection itself, and passes everything else to the mesh.
#[derive(Clone)]
pub(super) struct Gateway {
    own: Routes,
    mesh: Channel,
}

impl Gateway {
    pub(super) fn new(node: &Node, mesh: Channel, stopped: watch::Receiver<bool>) -> Self {
        let health = MeshHealth::new(node.inner.inspection.health(), node.clone(), stopped);
        let own = Routes::new(HealthServer::new(health)).add_service(Reflection::new(node).into_server());
        Self {
            own: own.prepare(),
            mesh,
        }
    }
}

/// Whether the path is of health or reflection.
fn is_own(path: &str) -> bool {
    let service = path.strip_prefix('/').and_then(|rest| rest.split('/').next());
    service.is_some_and(|service| service == HealthServer::<()>::NAME || service == Reflection::NAME)
}

impl Service<Request<Body>> for Gateway {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { own, mesh } = self.clone();
        Box::pin(async move { Ok(answer(own, mesh, request).await) })
    }
}

async fn answer(mut own: Routes, mut mesh: Channel, request: Request<Body>) -> Response {
    if !is_grpc(request.headers()) {
        let path = request.uri().path();
        let message = format!("nothing is at {path}: POST to /v1/call/SERVICE, or send gRPC");
        return Failure::request(Http::NOT_FOUND, "no_such_path", message).into_response();
    }
    let request = request.map(tonic::body::Body::new);
    if is_own(request.uri().path()) {
        return match own.call(request).await {
            Ok(response) => response.map(Body::new),
            Err(never) => match never {},
        };
    }
    match mesh.call(request).await {
        Ok(response) => response.map(Body::new),
        Err(status) => refusal(status),
    }
}
