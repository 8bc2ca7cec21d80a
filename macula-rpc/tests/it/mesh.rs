//! Nodes on loopback, for the tests.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use bytes::Bytes;
use macula_rpc::{
    Client, ClientBuilder, Handler, NodeId, Provider, Request, Resolve, Server, ServiceName, StaticResolver, Status,
    StatusCode,
};
use macula_transport::{Config, Endpoint, Identity, NoService};

/// Lets simulated time pass: it stands still while a task has something to do, and then goes on at once.
#[cfg(feature = "testing")]
pub(crate) async fn pass(time: std::time::Duration) {
    tokio::time::sleep_until(tokio::time::Instant::now() + time).await;
}

pub(crate) fn name() -> ServiceName {
    "api.compute".parse().unwrap()
}

/// A provider in this process, with a connection endpoint of its own.
pub(crate) struct Peer {
    pub(crate) endpoint: Endpoint,
    pub(crate) server: Server,
    pub(crate) calls: Arc<AtomicUsize>,
}

impl Peer {
    /// A node that serves nothing yet.
    pub(crate) async fn bare(server: Server) -> Self {
        let config = Config::new(Identity::generate().unwrap()).with_listen("127.0.0.1:0".parse().unwrap());
        let endpoint = Endpoint::bind(config, server.clone()).await.unwrap();
        Self {
            endpoint,
            server,
            calls: Arc::default(),
        }
    }

    /// A provider of `api.compute` that counts its calls and answers with `outcome`.
    pub(crate) async fn with(outcome: impl Fn(Bytes) -> Result<Bytes, Status> + Clone + Send + Sync + 'static) -> Self {
        let peer = Self::bare(Server::new()).await;
        let calls = Arc::clone(&peer.calls);
        let handler = move |request: Request| {
            calls.fetch_add(1, SeqCst);
            let outcome = outcome(request.into_payload());
            async move { outcome }
        };
        peer.server.serve(name(), handler).unwrap();
        peer
    }

    pub(crate) async fn echo() -> Self {
        Self::with(Ok).await
    }

    pub(crate) async fn failing(code: StatusCode) -> Self {
        Self::with(move |_| Err(Status::new(code, "on purpose"))).await
    }

    pub(crate) fn id(&self) -> NodeId {
        self.endpoint.node_id()
    }

    pub(crate) fn provider(&self) -> Provider {
        Provider::new(self.id(), [self.endpoint.local_addr().try_into().unwrap()])
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }
}

pub(crate) fn directory(peers: &[Peer]) -> StaticResolver {
    StaticResolver::new().with_service(name(), peers.iter().map(Peer::provider))
}

/// A client's builder and the endpoint it calls from.
pub(crate) async fn caller(resolver: impl Resolve) -> (Endpoint, ClientBuilder) {
    let endpoint = Endpoint::bind(Config::new(Identity::generate().unwrap()), NoService)
        .await
        .unwrap();
    let builder = Client::builder(&endpoint, resolver);
    (endpoint, builder)
}

/// A provider of `api.compute` with this handler.
pub(crate) async fn serving(handler: impl Handler) -> Peer {
    let peer = Peer::bare(Server::new()).await;
    peer.server.serve(name(), handler).unwrap();
    peer
}
