//! A node of the mesh, by name.

use std::sync::{Arc, PoisonError, Weak};

use futures::future::{BoxFuture, ready};
use macula_wire::{NameError, NodeId, ServiceName};

use super::mesh::{Mesh, Presence, Shared};
use crate::{
    Client, ClientBuilder, Handler, Provider, Resolve, ResolveError, ResolveOptions, Resolved, Server, Source,
    StreamHandler,
};

/// A node of a [`Mesh`]. Cheap to clone; it keeps the mesh alive, and is the same node after a restart.
#[derive(Debug, Clone)]
pub struct MeshNode {
    mesh: Mesh,
    name: String,
}

impl MeshNode {
    pub(super) fn new(mesh: Mesh, name: &str) -> Self {
        Self {
            mesh,
            name: name.to_owned(),
        }
    }

    /// The node's name in the mesh.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's identity, as answers and attempts show it.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.mesh.with(&self.name, |node| node.id())
    }

    /// The node's server, for `serve_tonic`, `withdraw` and the like. The directory lists the served services.
    #[must_use]
    pub fn server(&self) -> Server {
        self.mesh.with(&self.name, |node| node.server.clone())
    }

    /// Serves `service` from now on, where every client of the mesh finds it.
    ///
    /// # Panics
    /// When the name is not a service name, or is served already.
    #[track_caller]
    pub fn serve<S>(&self, service: S, handler: impl Handler) -> &Self
    where
        S: TryInto<ServiceName>,
        NameError: From<S::Error>,
    {
        expect(self.server().serve(name(service), handler));
        self
    }

    /// Serves `service` with a handler whose requests and replies are streams.
    ///
    /// # Panics
    /// As [`MeshNode::serve`].
    #[track_caller]
    pub fn serve_streaming<S>(&self, service: S, handler: impl StreamHandler) -> &Self
    where
        S: TryInto<ServiceName>,
        NameError: From<S::Error>,
    {
        expect(self.server().serve_streaming(name(service), handler));
        self
    }

    /// A client that calls from this node, with default options. A node does not dial itself. Use
    /// `client_builder().local_first(node.server())` for a node that serves its own calls, as nodes of `macula-node` do.
    ///
    /// # Panics
    /// When the node does not run.
    #[must_use]
    #[track_caller]
    pub fn client(&self) -> Client {
        self.client_builder().build()
    }

    /// A client that calls from this node, before it is built.
    ///
    /// # Panics
    /// When the node does not run.
    #[track_caller]
    pub fn client_builder(&self) -> ClientBuilder {
        let directory = MeshDirectory(Arc::downgrade(&self.mesh.shared));
        self.mesh.with(&self.name, |node| match &node.presence {
            Presence::Running(endpoint) => Client::builder(endpoint, directory),
            Presence::Killed | Presence::Left => {
                panic!("the node {:?} does not run; Mesh::restart starts it again", self.name)
            }
        })
    }
}

#[track_caller]
fn name<S>(service: S) -> ServiceName
where
    S: TryInto<ServiceName>,
    NameError: From<S::Error>,
{
    match service.try_into() {
        Ok(name) => name,
        Err(error) => panic!("{}", NameError::from(error)),
    }
}

#[track_caller]
fn expect(served: Result<(), crate::ServeError>) {
    if let Err(error) = served {
        panic!("{error}");
    }
}

/// The directory of the mesh: every node that serves a service is its provider. It does not keep the mesh alive, because a handler
/// may hold a client.
struct MeshDirectory(Weak<Shared>);

impl Resolve for MeshDirectory {
    fn resolve<'a>(
        &'a self,
        service: &'a ServiceName,
        _: ResolveOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        let answer = match self.0.upgrade() {
            Some(mesh) => mesh.providers(service),
            None => Err(ResolveError::Closed),
        };
        Box::pin(ready(answer))
    }
}

impl Shared {
    fn providers(&self, service: &ServiceName) -> Result<Resolved, ResolveError> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if nodes.directory_lost {
            return Err(ResolveError::Unreachable);
        }
        let listed = nodes.by_name.values().filter(|node| match node.presence {
            // A killed provider has not withdrawn its services.
            Presence::Running(_) | Presence::Killed => node.server.serves(service),
            Presence::Left => false,
        });
        let providers: Vec<Provider> = listed
            .filter_map(|node| Some(Provider::new(node.id(), [node.addr.try_into().ok()?])))
            .collect();
        let known = nodes.answers.entry(service.clone()).or_default();
        if **known != *providers {
            // The same list while nothing changes, because clients compare the pointers.
            *known = providers.into();
        }
        Ok(Resolved {
            providers: Arc::clone(known),
            source: Source::Static,
        })
    }
}
