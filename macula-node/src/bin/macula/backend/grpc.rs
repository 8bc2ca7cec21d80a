//! `grpc://` services: those of a gRPC server beside the node, in any language.
//!
//! The calls pass through undecoded, with all four kinds of methods. A service is published while the server says that it is well, and
//! withdrawn when the server is lost. Until that is noticed its calls are refused as not started, so they go elsewhere.

use std::{collections::BTreeSet, time::Duration};

use macula_node::{Node, ServiceName, TonicServices};
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::{
    codegen::http::uri::Authority,
    transport::{Channel, Endpoint},
};

use super::look;
use crate::{
    failure::error_line,
    serve::{Kind, Serve},
    sparse::Sparse,
};

/// How often a server is asked how it is.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a connection to a server may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// The gRPC servers whose services the node provides.
pub(crate) struct Backends {
    node: Node,
    running: Vec<Backend>,
}

struct Backend {
    serve: Serve,
    task: JoinHandle<()>,
    /// Dropped, it makes the task withdraw its services and end.
    stop: oneshot::Sender<()>,
}

impl Backends {
    pub(crate) fn new(node: &Node) -> Self {
        Self {
            node: node.clone(),
            running: Vec::new(),
        }
    }

    /// Provides the services of the server that `serve` names, if it names one.
    pub(crate) fn start(&mut self, serve: &Serve) {
        let Kind::Grpc(at) = &serve.kind else {
            return;
        };
        let (stop, stopped) = oneshot::channel();
        let server = Server::new(&self.node, at, serve.name.clone());
        self.running.push(Backend {
            serve: serve.clone(),
            task: tokio::spawn(server.provide(stopped)),
            stop,
        });
    }

    /// Withdraws the services of the server that `serve` names.
    pub(crate) async fn stop(&mut self, serve: &Serve) {
        if let Some(at) = self.running.iter().position(|one| one.serve == *serve) {
            let Backend { task, stop, .. } = self.running.swap_remove(at);
            drop(stop);
            // It has nothing to tell.
            let _ = task.await;
        }
    }

    /// Leaves the services as they are, for the node's own end.
    pub(crate) fn leave(self) {
        for backend in self.running {
            backend.task.abort();
        }
    }
}

/// A gRPC server.
struct Server {
    node: Node,
    at: Authority,
    /// The service that it is used for; all of them without it.
    only: Option<ServiceName>,
    channel: Channel,
    failures: Sparse,
}

impl Server {
    fn new(node: &Node, at: &Authority, only: Option<ServiceName>) -> Self {
        let uri = tonic::codegen::http::Uri::builder()
            .scheme("http")
            .authority(at.clone());
        // An authority and a path of its own make a URI in every case.
        let uri = uri.path_and_query("/").build().unwrap_or_default();
        Self {
            node: node.clone(),
            at: at.clone(),
            only,
            channel: Endpoint::from(uri).connect_timeout(CONNECT_WITHIN).connect_lazy(),
            failures: Sparse::default(),
        }
    }

    /// Provides the server's services while they are well, until `stopped`.
    async fn provide(self, mut stopped: oneshot::Receiver<()>) {
        let (mut known, mut served) = (BTreeSet::new(), BTreeSet::new());
        loop {
            if served.is_empty() {
                known = self.services().await;
            }
            let well = look::well(&self.channel, &known).await;
            for lost in served.difference(&well) {
                tracing::warn!(service = %lost, server = %self.at, "the server of this service is not well; it is withdrawn");
                self.node.withdraw(lost).await;
            }
            served.retain(|service| well.contains(service));
            for service in well {
                if !served.contains(&service) && self.serve(&service).await {
                    served.insert(service);
                }
            }
            tokio::select! {
                _ = &mut stopped => break,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
        for service in &served {
            self.node.withdraw(service).await;
        }
    }

    /// The names of the services to provide.
    async fn services(&self) -> BTreeSet<ServiceName> {
        if let Some(only) = &self.only {
            return BTreeSet::from([only.clone()]);
        }
        match look::services(&self.channel).await {
            Ok(services) => services,
            Err(status) => {
                self.failures.warn(|_| {
                    tracing::warn!(server = %self.at, error = status.message(),
                        "the server's reflection does not name its services; start it, or name a service: NAME=grpc://…");
                });
                BTreeSet::new()
            }
        }
    }

    async fn serve(&self, service: &ServiceName) -> bool {
        let services = TonicServices::new().with_routes([service.as_str()], self.channel.clone());
        match self.node.serve_tonic(services).await {
            Ok(_) => {
                tracing::info!(%service, server = %self.at, "the service is provided");
                true
            }
            Err(error) => {
                self.failures.warn(|_| {
                    tracing::warn!(%service, server = %self.at, error = error_line(&error), "the service cannot be provided");
                });
                false
            }
        }
    }
}
