//! `--otlp` in a program that was built without it.

use std::convert::Infallible;

use macula_node::{
    Node, NodeBuilder,
    ops::{Metrics, RecorderInstalled},
};
use tracing::Subscriber;
use tracing_subscriber::{Layer, layer::Identity};

/// This program sends nothing to collectors.
#[derive(Debug, thiserror::Error)]
#[error("--otlp: this program was built without it; build macula-node with the feature `otlp`")]
pub(crate) struct NotBuilt;

/// There is none.
pub(crate) struct Otlp(Infallible);

impl Otlp {
    pub(crate) fn open(_collector: &str) -> Result<Self, NotBuilt> {
        Err(NotBuilt)
    }

    pub(crate) fn layer<S: Subscriber>(&self) -> impl Layer<S> + Send + Sync + use<S> {
        Identity::new()
    }

    pub(crate) fn count_calls(&self) -> Result<Metrics, RecorderInstalled> {
        match self.0 {}
    }

    pub(crate) fn trace(&self, _builder: NodeBuilder) -> NodeBuilder {
        match self.0 {}
    }

    pub(crate) fn observe(&self, _node: &Node) {
        match self.0 {}
    }

    pub(crate) async fn close(self) {
        match self.0 {}
    }
}
