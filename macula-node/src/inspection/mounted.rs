//! Health and reflection as tonic's own crates have them, told what this node serves.

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
use tonic_health::{ServingStatus, server::HealthReporter};
use tonic_reflection::server::{Builder, Error};

/// Questions about itself that a node answers at a time, watched health among them: more are refused.
pub(super) const MAX_CALLS: usize = 1024;

/// The name of the node as a whole in `grpc.health.v1`.
const WHOLE: &str = "";

/// What the node serves about itself.
#[derive(Debug, Clone)]
pub(crate) struct Inspection {
    server: Server,
    health: HealthReporter,
}

impl Inspection {
    /// Answers for what `served` has; `schemas` are the encoded descriptor sets that reflection shows.
    pub(crate) fn new(served: &Server, schemas: Vec<Bytes>) -> Result<Self, Error> {
        let (health, health_server) = tonic_health::server::health_reporter();
        let server = Server::with_max_concurrent_calls(MAX_CALLS);
        let reflection = Reflection {
            served: served.clone(),
            own: Arc::new([health_name(&health_server), Reflection::NAME]),
            schemas: schemas.into(),
        };
        // What is wrong with a schema is said at the start, and not to who asks.
        reflection.builder().build_v1()?;
        let services = TonicServices::new().with_server(health_server).with_server(reflection);
        server
            .serve_tonic(services)
            .unwrap_or_else(|error| unreachable!("two names of gRPC's own: {error}"));
        Ok(Self { server, health })
    }

    /// The server that answers calls of `service`, when it is one of those about the node.
    pub(crate) fn server_of(&self, service: &ServiceName) -> Option<&Server> {
        // The prefix spares every other call the look into a table.
        (service.as_str().starts_with("grpc.") && self.server.serves(service)).then_some(&self.server)
    }

    /// `service` is served from now on.
    pub(crate) async fn serving(&self, service: &ServiceName) {
        self.health.set_service_status(service, ServingStatus::Serving).await;
    }

    /// `service` is not served any more: unknown, and whoever watches it is told so by the end of the stream.
    pub(crate) async fn withdrawn(&self, service: &ServiceName) {
        self.health.clone().clear_service_status(service.as_str()).await;
    }

    /// The node finishes what runs and takes nothing new (N4).
    pub(crate) async fn draining(&self, services: &[ServiceName]) {
        for name in services.iter().map(ServiceName::as_str).chain([WHOLE]) {
            self.health.set_service_status(name, ServingStatus::NotServing).await;
        }
    }

    /// The node is about to close its connections: ends what watches it.
    pub(crate) async fn ended(&self, services: &[ServiceName]) {
        for name in services.iter().map(ServiceName::as_str).chain([WHOLE]) {
            self.health.clone().clear_service_status(name).await;
        }
    }
}

fn health_name<S: NamedService>(_: &S) -> &'static str {
    S::NAME
}

/// Server reflection of what is served now: tonic's has a list of names for ever, so each stream of questions gets its own.
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
            // They were good at the start.
            Err(error) => {
                let status = Status::internal(format!("the schemas of this node cannot be shown: {error}"));
                Box::pin(std::future::ready(Ok(status.into_http())))
            }
        }
    }
}
