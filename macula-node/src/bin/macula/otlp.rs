//! Traces and numbers for a collector (`--otlp`).

use macula_node::{
    Node, NodeBuilder,
    ops::{Metrics, RecorderInstalled},
    otlp::OtlpError,
};
use tracing::Subscriber;
use tracing_subscriber::{Layer, registry::LookupSpan};

/// The way to the collector.
pub(crate) struct Otlp(macula_node::otlp::Otlp);

impl Otlp {
    pub(crate) fn open(collector: &str) -> Result<Self, OtlpError> {
        macula_node::otlp::Otlp::open(collector).map(Self)
    }

    pub(crate) fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        self.0.layer()
    }

    /// Begins to count the calls of this process. Goes before the node's start.
    pub(crate) fn count_calls(&self) -> Result<Metrics, RecorderInstalled> {
        Metrics::install_beside(self.0.recorder())
    }

    pub(crate) fn trace(&self, builder: NodeBuilder) -> NodeBuilder {
        builder.propagate(self.0.propagation())
    }

    pub(crate) fn observe(&self, node: &Node) {
        self.0.observe(node);
    }

    pub(crate) async fn close(self) {
        self.0.close().await;
    }
}
