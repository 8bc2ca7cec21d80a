//! A tower layer before a service: limits and timeouts from tower, and one written here that counts calls.
//!
//! `cargo run -p macula-rpc --features tower --example tower_layer`

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use macula_rpc::{Client, Provider, Request, Server, StaticResolver, Status, TowerHandler};
use macula_transport::{Config, Endpoint, Identity, NoService};
use tower::layer::layer_fn;
use tower::{Service, ServiceBuilder, service_fn};

/// Counts the calls that reach the service inside.
#[derive(Clone)]
struct Counted<S> {
    inner: S,
    calls: Arc<AtomicU64>,
}

impl<S: Service<Request>> Service<Request> for Counted<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> S::Future {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.inner.call(request)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let calls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&calls);
    // A call over the limit is refused: it has not run, so the client tries another provider at once.
    let layered = ServiceBuilder::new()
        .load_shed()
        .concurrency_limit(32)
        .timeout(Duration::from_secs(1))
        .layer(layer_fn(move |inner| Counted {
            inner,
            calls: Arc::clone(&counted),
        }))
        .service(service_fn(async |request: Request| {
            Ok::<_, Status>(request.into_payload())
        }));
    let server = Server::new();
    server.serve("text.echo".parse()?, TowerHandler::new(layered))?;
    let listen = Config::new(Identity::generate()?).with_listen("127.0.0.1:0".parse()?);
    let provider = Endpoint::bind(listen, server).await?;

    let known = Provider::new(provider.node_id(), [provider.local_addr().try_into()?]);
    let directory = StaticResolver::new().with_service("text.echo".parse()?, [known]);
    let endpoint = Endpoint::bind(Config::new(Identity::generate()?), NoService).await?;
    let client = Client::builder(&endpoint, directory).build();
    for word in ["one", "two", "three"] {
        assert_eq!(client.call("text.echo", word).await?, word);
    }
    assert_eq!(calls.load(Ordering::Relaxed), 3);
    Ok(())
}
