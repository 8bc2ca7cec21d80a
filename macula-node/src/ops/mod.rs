//! The ops port: a TCP port where an orchestrator and Prometheus ask a node how it is (N5).
//!
//! | path | answers |
//! |---|---|
//! | `/livez` | 200 while the node's process answers |
//! | `/readyz` | 200 when the node is in the mesh, its services are published and it does not drain; else 503 with the reasons |
//! | `/metrics` | numbers in Prometheus' text format: those of the node, and with [`Metrics`] those of its calls |
//! | `/` | a page that shows the mesh as this node sees it, live; for the node's own host only |
//!
//! Nothing here changes the node, and nothing needs a token. On loopback every program of this host can read it. Beyond loopback every
//! host that reaches the port can read all but the page: it learns the names of this node's services and how busy they are.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use macula_node::{Node, ops::{Metrics, Ops}};
//!
//! let metrics = Metrics::install()?; // before the first call
//! let node = Node::builder().start().await?;
//! let ops = Ops::bind(&node, "127.0.0.1:9090".parse()?, Some(metrics)).await?;
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
pub use crate::listener::{HEADERS_WITHIN, MAX_CONNECTIONS, MAX_HEADER_BYTES, MAX_STREAMS};
use crate::{
    Node,
    listener::{Listener, Plain},
};

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
    /// Opens a port that tells about `node`; port 0 takes a free one. Close it after the node's shutdown, so that probes see the node
    /// drain.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn bind(node: &Node, listen: SocketAddr, metrics: Option<Metrics>) -> Result<Self, OpsError> {
        let (stop, stopped) = watch::channel(false);
        let asked = Arc::new(Asked {
            node: node.clone(),
            metrics,
            stopped,
        });
        let app = page::routes()
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
