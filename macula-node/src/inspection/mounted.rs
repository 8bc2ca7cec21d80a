//! The health service, and tonic's reflection service with the names of this node's services.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use macula_rpc::{Server, TonicServices};
use macula_wire::ServiceName;
use tonic::{
    Status,
    body::Body,
    codegen::{
        BoxFuture, Service,
        http::{Request, Response},
    },
    server::NamedService,
};
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::server::{Builder, Error};

use super::health::Statuses;

/// Questions about itself that a node answers at a time, watched health among them: more are refused.
pub(super) const MAX_CALLS: usize = 1024;

/// The services about the node itself.
#[derive(Debug, Clone)]
pub(crate) struct Inspection {
    server: Server,
    statuses: Statuses,
}

impl Inspection {
    /// Answers about the services of `served`. Reflection shows `schemas`, which are encoded descriptor sets.
    pub(crate) fn new(served: &Server, schemas: Vec<Bytes>) -> Result<Self, Error> {
        let statuses = Statuses::new();
        let health_server = HealthServer::new(statuses.clone());
        let server = Server::with_max_concurrent_calls(MAX_CALLS);
        let reflection = Reflection {
            served: served.clone(),
            own: Arc::new([HealthServer::<Statuses>::NAME, Reflection::NAME]),
            schemas: schemas.into(),
        };
        // A wrong schema fails the start, and not a later question.
        reflection.builder().build_v1()?;
        let services = TonicServices::new().with_server(health_server).with_server(reflection);
        server
            .serve_tonic(services)
            .unwrap_or_else(|error| unreachable!("two names of gRPC's own: {error}"));
        Ok(Self { server, statuses })
    }

    /// The server that answers calls of `service`, when it is one of those about the node.
    pub(crate) fn server_of(&self, service: &ServiceName) -> Option<&Server> {
        // The prefix spares every other call the look into a table.
        (service.as_str().starts_with("grpc.") && self.server.serves(service)).then_some(&self.server)
    }

    /// The health service, to be served elsewhere too.
    #[cfg(any(feature = "admin", feature = "ingress"))]
    pub(crate) fn health(&self) -> impl tonic_health::pb::health_server::Health + use<> {
        self.statuses.clone()
    }

    /// The services about the node, to be called by the node itself.
    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// `service` is served from now on.
    pub(crate) fn serving(&self, service: &ServiceName) {
        self.statuses.serving(service);
    }

    /// `service` is no longer served. Its watchers are told that it is unknown.
    pub(crate) fn withdrawn(&self, service: &ServiceName) {
        self.statuses.withdrawn(service);
    }

    /// The node finishes its running calls and takes no new ones (N4).
    pub(crate) fn draining(&self, services: &[ServiceName]) {
        self.statuses.draining(services);
    }

    /// The node is about to close its connections: ends every watch.
    pub(crate) fn ended(&self) {
        self.statuses.ended();
    }
}

/// Server reflection of the services of this moment. tonic's server keeps the list it was built with, so each stream gets a new one.
#[derive(Clone)]
struct Reflection {
    served: Server,
    own: Arc<[&'static str; 2]>,
    schemas: Arc<[Bytes]>,
}

impl Reflection {
    fn builder(&self) -> Builder<'_> {
        let builder = Builder::configure().register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        let builder = self.schemas.iter().fold(builder, |builder, schema| {
            builder.register_encoded_file_descriptor_set(schema)
        });
        let served = self.served.services();
        let names = served.iter().map(ServiceName::as_str).chain(self.own.iter().copied());
        names.fold(builder, |builder, name| builder.with_service_name(name))
    }
}

impl NamedService for Reflection {
    const NAME: &'static str = "grpc.reflection.v1.ServerReflection";
}

impl Service<Request<Body>> for Reflection {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.builder().build_v1() {
            Ok(mut server) => Box::pin(async move { server.call(request).await }),
            // The schemas were checked at the start.
            Err(error) => {
                let status = Status::internal(format!("the schemas of this node cannot be shown: {error}"));
                Box::pin(std::future::ready(Ok(status.into_http())))
            }
        }
    }
}
