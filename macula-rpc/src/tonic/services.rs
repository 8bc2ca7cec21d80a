//! gRPC servers by name.

use std::{fmt, sync::Arc};

use ::tonic::{
    body::Body,
    codegen::{
        Service,
        http::{Request, Response},
    },
    server::NamedService,
};
use bytes::Bytes;
use macula_wire::ServiceName;

use super::mount::{BoxError, Mounted};
use crate::{ServeError, Server};

/// gRPC services for [`Server::serve_tonic`], each under its name in the schema.
///
/// One generated server converts into this, with its interceptors (`GreeterServer::with_interceptor`) and layers
/// (`layer.named_layer(GreeterServer::new(…))`, of [`tonic::service::LayerExt`](::tonic::service::LayerExt)). Several servers are added
/// one by one. The mesh finds services by name, and `tonic::service::Routes` does not list its names, so
/// [`TonicServices::with_routes`] takes them.
///
/// ```text
/// server.serve_tonic(GreeterServer::new(greeter))?;
/// server.serve_tonic(TonicServices::new().with_server(GreeterServer::new(greeter)).with_server(RouteGuideServer::new(guide)))?;
/// server.serve_tonic(TonicServices::new().with_routes(["helloworld.Greeter", "routeguide.RouteGuide"], routes))?;
/// ```
#[derive(Clone, Default)]
pub struct TonicServices {
    services: Vec<(String, Arc<Mounted>)>,
}

impl TonicServices {
    /// No services.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a generated server, under its own name.
    #[must_use]
    pub fn with_server<S, B>(self, server: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>> + NamedService + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.with_routes([S::NAME], server)
    }

    /// Adds `tonic::service::Routes`, or any `tower::Service` of gRPC requests. It gets the calls of the named services, and answers
    /// calls of methods that it does not have; `Routes` and generated servers answer *unimplemented*. A `tonic::transport::Channel`
    /// provides the services of another gRPC server; a call is refused, and goes elsewhere, while the channel cannot connect.
    #[must_use]
    pub fn with_routes<S, B>(mut self, names: impl IntoIterator<Item = impl Into<String>>, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let mounted = Arc::new(Mounted::new(service));
        let named = names.into_iter().map(|name| (name.into(), Arc::clone(&mounted)));
        self.services.extend(named);
        self
    }

    /// The services' names, in the order they were added.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.services.iter().map(|(name, _)| name.as_str())
    }
}

impl<S, B> From<S> for TonicServices
where
    S: Service<Request<Body>, Response = Response<B>> + NamedService + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    fn from(server: S) -> Self {
        Self::new().with_server(server)
    }
}

impl fmt::Debug for TonicServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl Server {
    /// Serves gRPC services: a server that tonic has generated, or several as [`TonicServices`]. Each is served under its name in the
    /// schema. Returns the names, to be advertised.
    ///
    /// # Errors
    /// When a name is served already, or is not a service name (letters, digits, `.`, `_`, `-`). Nothing is served then.
    pub fn serve_tonic(&self, services: impl Into<TonicServices>) -> Result<Vec<ServiceName>, ServeError> {
        let named = services.into().services.into_iter();
        let named = named.map(|(name, mounted)| Ok((ServiceName::new(&name)?, mounted)));
        let named = named.collect::<Result<Vec<_>, ServeError>>()?;
        let names = named.iter().map(|(name, _)| name.clone()).collect();
        self.mount(named)?;
        Ok(names)
    }
}
