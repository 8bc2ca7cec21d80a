//! A node of the mesh, by name.

use std::sync::Arc;

use macula_wire::{NameError, NodeId, ServiceName};

use super::{Mesh, directory::MeshDirectory, mesh::Presence};
use crate::{Client, ClientBuilder, Handler, Server, StreamHandler};

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

    /// The node's identity: what a call's answer and its attempts name it by.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.mesh.with(&self.name, |node| node.id())
    }

    /// The node's services: for what [`MeshNode::serve`] does not do, such as `serve_tonic` and `withdraw`. The directory
    /// lists what is served.
    #[must_use]
    pub fn server(&self) -> Server {
        self.mesh.with(&self.name, |node| node.server.clone())
    }

    /// Serves `service` from now on, and for every client of the mesh to find.
    ///
    /// # Panics
    /// When the name is not one of a service, or is served already.
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

    /// A client that calls from this node, with the defaults of every client. A node does not dial itself, so what it serves is called at
    /// others; one that is to serve its own calls, as a node of `macula-node` does, has
    /// `client_builder().local_first(node.server())`.
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
