//! The ops port: a TCP port where an orchestrator and Prometheus ask a node how it is (N5).
//!
//! | path | answers |
//! |---|---|
//! | `/livez` | 200 while the node's process answers |
//! | `/readyz` | 200 when the node is in the mesh, its services are published and it does not drain; else 503 with the reasons |
//! | `/metrics` | numbers in Prometheus' text format: those of the node, and with [`Metrics`] those of its calls |
//! | `/` | a page that shows the mesh as this node sees it, live; for the node's own host, and elsewhere with one of the [`Tokens`] |
//!
//! Nothing here changes the node. On loopback every program of this host can read it. Beyond loopback every host that reaches the port can
//! read all but the page: it learns the names of this node's services and how busy they are. The page shows peers and their addresses, too.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use macula_node::{Node, ops::{Metrics, Ops, OpsConfig}};
//!
//! let metrics = Metrics::install()?; // before the first call
//! let node = Node::builder().start().await?;
//! let config = OpsConfig::new("127.0.0.1:9090".parse()?).metrics(metrics);
//! let ops = Ops::bind(&node, config).await?;
//! // curl http://127.0.0.1:9090/readyz
//! node.shutdown().await;
//! ops.close().await;
//! # Ok(())
//! # }
//! ```

mod metrics;
mod numbers;
mod page;
mod probes;

use std::{io, net::SocketAddr, sync::Arc};

use axum::{extract::State, http::header, response::IntoResponse, routing::get};
use tokio::sync::watch;

#[cfg(feature = "otlp")]
pub(crate) use self::{metrics::BUCKETS, numbers::record_state};
pub use self::{
    metrics::{Metrics, RecorderInstalled},
    numbers::MAX_SERVICE_LABELS,
};
pub use crate::listener::{
    HEADERS_WITHIN, MAX_CONNECTIONS, MAX_HEADER_BYTES, MAX_STREAMS, MIN_TOKEN_BYTES, Tokens, TokensError,
};
use crate::{
    Node,
    listener::{Listener, Plain},
};

/// Where an ops port listens, and which hosts see its page.
#[derive(Debug, Clone)]
pub struct OpsConfig {
    listen: SocketAddr,
    metrics: Option<Metrics>,
    tokens: Option<Tokens>,
}

impl OpsConfig {
    /// Listens at `listen`; port 0 takes a free one.
    #[must_use]
    pub const fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            metrics: None,
            tokens: None,
        }
    }

    /// Shows the numbers of this process's calls, too.
    #[must_use]
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Answers the page to other hosts that bring one of these tokens, as `Bearer` or as the password of any user (`Basic`), which a
    /// browser asks a person for. The connection is not encrypted: only a private network may lie between.
    #[must_use]
    pub fn tokens(mut self, tokens: Tokens) -> Self {
        self.tokens = Some(tokens);
        self
    }
}

/// The ops port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("the ops port cannot listen at {0}")]
pub struct OpsError(SocketAddr, #[source] io::Error);

/// An ops port, open. Dropping it closes it at once; [`Ops::close`] closes it in order.
#[derive(Debug)]
pub struct Ops {
    listener: Listener,
    /// Ends the streams of events, which would keep the port open.
    stop: watch::Sender<bool>,
}

impl Ops {
    /// Opens a port that tells about `node`. Close it after the node's shutdown, so that probes see the node
    /// drain.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn bind(node: &Node, config: OpsConfig) -> Result<Self, OpsError> {
        let OpsConfig {
            listen,
            metrics,
            tokens,
        } = config;
        let (stop, stopped) = watch::channel(false);
        let asked = Arc::new(Asked {
            node: node.clone(),
            metrics,
            stopped,
        });
        let app = page::routes(tokens)
            .route("/livez", get(async || probes::LIVE))
            .route("/readyz", get(readyz))
            .route("/metrics", get(scrape))
            .with_state(asked);
        let bound = Listener::bind("ops", listen, MAX_CONNECTIONS, Plain, app).await;
        let listener = bound.map_err(|error| OpsError(listen, error))?;
        Ok(Self { listener, stop })
    }

    /// Where it listens.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Takes no further requests and finishes the running ones, within 30 s.
    pub async fn close(self) {
        self.stop.send_replace(true);
        self.listener.close().await;
    }
}

/// The sources of the answers.
#[derive(Debug)]
struct Asked {
    node: Node,
    metrics: Option<Metrics>,
    stopped: watch::Receiver<bool>,
}

async fn readyz(State(asked): State<Arc<Asked>>) -> impl IntoResponse {
    probes::readiness(&asked.node.state().await)
}

async fn scrape(State(asked): State<Arc<Asked>>) -> impl IntoResponse {
    let mut text = numbers::text(&asked.node.state().await);
    if let Some(metrics) = &asked.metrics {
        text.push_str(&metrics.text());
    }
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        text,
    )
}
