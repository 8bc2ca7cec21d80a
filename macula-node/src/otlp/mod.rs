//! Traces and numbers for an OpenTelemetry collector, as OTLP over gRPC (<https://opentelemetry.io/docs/specs/otlp/>).
//!
//! | goes out | source |
//! |---|---|
//! | spans `rpc.call`, `rpc.attempt` and `rpc.serve`, linked over the network | [`Otlp::layer`] and [`Otlp::propagation`] |
//! | numbers of calls and connections, `macula.rpc.…`, `rpc.…`, `macula.pool.…` | [`Otlp::recorder`] |
//! | numbers of a node, `macula.node.…` | [`Otlp::observe`] |
//!
//! `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_TRACES_SAMPLER`, `OTEL_METRIC_EXPORT_INTERVAL`, `OTEL_SERVICE_NAME` and
//! `OTEL_RESOURCE_ATTRIBUTES` hold as everywhere. The connection to the collector is not encrypted, so it belongs beside the node; it
//! does TLS to what lies behind it.
//!
//! **Invariants.** A call never waits for the collector. Spans that find no room are dropped, and the log says so; numbers are kept, not
//! queued.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use macula_node::{Node, ops::Metrics, otlp::Otlp};
//! use tracing_subscriber::{layer::SubscriberExt as _, util::SubscriberInitExt as _};
//!
//! let otlp = Otlp::open("http://127.0.0.1:4317")?;
//! tracing_subscriber::registry().with(otlp.layer()).init();
//! let _metrics = Metrics::install_beside(otlp.recorder())?; // before the first call
//! let node = Node::builder().propagate(otlp.propagation()).start().await?;
//! otlp.observe(&node);
//! // …
//! node.shutdown().await;
//! otlp.close().await;
//! # Ok(())
//! # }
//! ```

mod numbers;
mod traces;

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use macula_rpc::Propagate;
use opentelemetry::{KeyValue, metrics::MeterProvider as _, trace::TracerProvider as _};
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    metrics::{PeriodicReader, SdkMeterProvider},
    trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider},
};
use tokio::task::JoinHandle;
use tracing::Subscriber;
use tracing_subscriber::{Layer, filter::LevelFilter, registry::LookupSpan};

use self::{numbers::Numbers, traces::Traces};
use crate::Node;

/// The most ended spans that wait for their export. More are dropped.
pub const MAX_WAITING_SPANS: usize = 8192;
/// The most spans of one export.
const MAX_SPANS_SENT: usize = 512;
/// How long a span waits at most while there are fewer.
const SEND_EVERY: Duration = Duration::from_secs(5);
/// How long the collector may take for one export, and for the last one.
const SENT_WITHIN: Duration = Duration::from_secs(5);
/// How often the times of calls are sorted into their buckets. Until then each takes 8 bytes.
const SORT_EVERY: Duration = Duration::from_secs(1);
/// How often the node's own numbers are taken.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The name of what is measured and traced.
const SCOPE: &str = "macula";

/// The collector's address is not usable.
#[derive(Debug, thiserror::Error)]
#[error("telemetry cannot be sent to {collector}: write the collector's address as http://HOST:PORT")]
pub struct OtlpError {
    collector: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// A way to a collector. Close it after the node's shutdown: what was not sent by then is lost.
#[derive(Debug)]
pub struct Otlp {
    spans: SdkTracerProvider,
    meters: SdkMeterProvider,
    numbers: Numbers,
    looking: Mutex<Vec<JoinHandle<()>>>,
}

impl Otlp {
    /// Opens a way to the collector at `http://HOST:PORT`. It is connected to when there is something to send, and a collector that is
    /// away is tried again.
    ///
    /// # Errors
    /// When it is no such address.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn open(collector: &str) -> Result<Self, OtlpError> {
        let unusable = |source: Box<dyn std::error::Error + Send + Sync>| OtlpError {
            collector: collector.to_owned(),
            source,
        };
        if !collector.starts_with("http://") {
            return Err(unusable("it does not begin with http://".into()));
        }
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(collector);
        let exporter = exporter.with_timeout(SENT_WITHIN).build();
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(MAX_WAITING_SPANS)
            .with_max_export_batch_size(MAX_SPANS_SENT)
            .with_scheduled_delay(SEND_EVERY)
            .build();
        let spans = BatchSpanProcessor::builder(exporter.map_err(|error| unusable(error.into()))?);
        let spans = SdkTracerProvider::builder()
            .with_span_processor(spans.with_batch_config(batches).build())
            .with_resource(resource())
            .build();
        let exporter = MetricExporter::builder().with_tonic().with_endpoint(collector);
        let exporter = exporter.with_timeout(SENT_WITHIN).build();
        let reader = PeriodicReader::builder(exporter.map_err(|error| unusable(error.into()))?).build();
        let meters = SdkMeterProvider::builder()
            .with_reader(reader)
            .with_resource(resource())
            .build();
        let numbers = Numbers::new(meters.meter(SCOPE));
        let sorted = numbers.clone();
        let sorting = tokio::spawn(async move {
            let mut due = tokio::time::interval(SORT_EVERY);
            loop {
                due.tick().await;
                sorted.sort();
            }
        });
        Ok(Self {
            spans,
            meters,
            numbers,
            looking: Mutex::new(vec![sorting]),
        })
    }

    /// A layer for the process's subscriber: it sends spans of the level info and above, with their fields as attributes.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.spans.tracer(SCOPE))
            // Each would be an attribute of every span.
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            // Parents are tracing's.
            .with_context_activation(false)
            .with_filter(LevelFilter::INFO)
    }

    /// Links the spans of both ends of a call, for [`NodeBuilder::propagate`](crate::NodeBuilder::propagate).
    #[must_use]
    pub fn propagation(&self) -> impl Propagate + use<> {
        Traces
    }

    /// A recorder for the `metrics` facade, for [`Metrics::install_beside`](crate::ops::Metrics::install_beside).
    #[must_use]
    pub fn recorder(&self) -> impl metrics::Recorder + Send + Sync + use<> {
        self.numbers.recorder()
    }

    /// Sends the numbers of `node`, too. One node of a process can be observed.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn observe(&self, node: &Node) {
        let (numbers, node) = (self.numbers.clone(), node.clone());
        let looking = tokio::spawn(async move {
            let mut due = tokio::time::interval(LOOK_EVERY);
            loop {
                due.tick().await;
                numbers.look(&node.state().await);
            }
        });
        self.looking().push(looking);
    }

    fn looking(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.looking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the rest, within a few seconds.
    pub async fn close(self) {
        self.numbers.sort();
        let (spans, meters) = (self.spans.clone(), self.meters.clone());
        // Both wait for their threads.
        let closing = tokio::task::spawn_blocking(move || {
            let spans = spans.shutdown_with_timeout(SENT_WITHIN);
            spans.and(meters.shutdown_with_timeout(SENT_WITHIN))
        });
        let closed = tokio::time::timeout(2 * SENT_WITHIN, closing).await;
        if let Ok(Ok(Err(error))) = closed {
            tracing::warn!(%error, "the last traces and numbers did not reach the collector");
        }
    }
}

impl Drop for Otlp {
    fn drop(&mut self) {
        self.looking().iter().for_each(JoinHandle::abort);
    }
}

/// The facts about this process, beside those that the environment names.
fn resource() -> Resource {
    let system = rustix::system::uname();
    let facts = [
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("process.pid", i64::from(std::process::id())),
        KeyValue::new("host.name", system.nodename().to_string_lossy().into_owned()),
    ];
    let named = std::env::var_os("OTEL_SERVICE_NAME").is_some_and(|name| !name.is_empty());
    let resource = match named {
        true => Resource::builder(),
        false => Resource::builder().with_service_name(SCOPE),
    };
    resource.with_attributes(facts).build()
}
