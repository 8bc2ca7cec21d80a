//! Traces and numbers reach an OpenTelemetry collector (N5).
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use macula_node::{Bytes, Node, NodeBuilder, Request, Status, ops::Metrics, otlp::Otlp};
use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{KeyValue, any_value::Value},
    metrics::v1::{Metric, metric::Data, number_data_point},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use support::{NodeProcess, macula, run, stderr};
use tokio::net::TcpListener;
use tonic::transport::server::{Server, TcpIncoming};
use tracing_subscriber::{layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// What a collector was sent.
#[derive(Default)]
struct Received {
    resources: Vec<KeyValue>,
    spans: Vec<Span>,
    metrics: Vec<Metric>,
}

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Received>>);

impl Collector {
    /// Listens on loopback; where.
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = format!("http://{}", listener.local_addr().unwrap());
        let server = Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .add_service(MetricsServiceServer::new(collector.clone()));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        (collector, at)
    }

    fn take(&self) -> Received {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let mut received = self.0.lock().unwrap();
        for sent in request.into_inner().resource_spans {
            received.resources.extend(sent.resource.unwrap().attributes);
            received
                .spans
                .extend(sent.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
        Ok(tonic::Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, tonic::Status> {
        let mut received = self.0.lock().unwrap();
        for sent in request.into_inner().resource_metrics {
            received
                .metrics
                .extend(sent.scope_metrics.into_iter().flat_map(|scope| scope.metrics));
        }
        Ok(tonic::Response::new(Default::default()))
    }
}

/// Attributes as text.
fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| match attribute.value.clone().unwrap().value.unwrap() {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(truth) => truth.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|it| (it.key.clone(), text(it))).collect()
}

fn local() -> NodeBuilder {
    Node::builder().listen("127.0.0.1:0".parse().unwrap())
}

async fn echo(request: Request) -> Result<Bytes, Status> {
    match request.payload().is_empty() {
        true => Err(Status::invalid_argument("there is nothing to say")),
        false => Ok(request.into_payload()),
    }
}

// One test, because a process has one recorder and one subscriber.
#[tokio::test(flavor = "multi_thread")]
async fn n5_a_collector_gets_the_spans_of_both_ends_and_the_numbers_of_calls() {
    let (collector, at) = Collector::start().await;
    let otlp = Otlp::open(&at).unwrap();
    tracing_subscriber::registry().with(otlp.layer()).init();
    let _metrics = Metrics::install_beside(otlp.recorder()).unwrap();
    let provider = local().propagate(otlp.propagation()).serve("demo.echo", echo);
    let provider = provider.start().await.unwrap();
    let bootstrap = provider.endpoints()[0].clone();
    let caller = local().propagate(otlp.propagation()).bootstrap([bootstrap.into()]);
    let caller = caller.start().await.unwrap();
    caller.join().await.unwrap();
    otlp.observe(&caller);
    let service = "demo.echo".parse().unwrap();
    while caller.lookup(&service).await.unwrap().is_empty() {}
    for _ in 0..3 {
        assert_eq!(caller.call("demo.echo", "hello").await.unwrap(), "hello");
    }
    caller.call("demo.echo", "").await.unwrap_err();
    caller.shutdown().await;
    provider.shutdown().await;
    otlp.close().await;
    let received = collector.take();

    let resource = texts(&received.resources);
    assert_eq!(resource["service.name"], "macula");
    assert_eq!(resource["process.pid"], std::process::id().to_string());
    let of_kind = |kind: SpanKind, within: &dyn Fn(&Span) -> bool| {
        let so = received
            .spans
            .iter()
            .filter(|span| span.kind == kind as i32 && within(span));
        so.cloned().collect::<Vec<_>>()
    };
    let served = of_kind(SpanKind::Server, &|span| span.name == "demo.echo");
    assert_eq!(served.len(), 4, "{:?}", received.spans);
    for serve in &served {
        let parent_of = |span: &Span| {
            let mut parents = received.spans.iter().filter(|it| it.span_id == span.parent_span_id);
            parents.next().cloned().unwrap()
        };
        let attempt = parent_of(serve);
        let call = parent_of(&attempt);
        assert_eq!(
            (attempt.name.as_str(), call.name.as_str()),
            ("rpc.attempt", "demo.echo")
        );
        assert!(call.parent_span_id.is_empty() && call.trace_id == serve.trace_id);
        let fields = texts(&attempt.attributes);
        assert_eq!(fields["macula.node_id"], provider.id().to_string());
        assert_eq!(
            (&*fields["macula.attempt"], &*fields["network.transport"]),
            ("1", "quic")
        );
        assert_eq!(texts(&call.attributes)["rpc.service"], "demo.echo");
        assert_eq!(texts(&serve.attributes)["macula.peer"], caller.id().to_string());
    }
    let failed = of_kind(SpanKind::Server, &|span| {
        span.status
            .as_ref()
            .is_some_and(|status| status.code() == StatusCode::Error)
    });
    assert_eq!(failed.len(), 1);
    assert_eq!(texts(&failed[0].attributes)["error.type"], "invalid_argument");

    let data = |name: &str| {
        let of_name = received.metrics.iter().rev().find(|metric| metric.name == name);
        of_name.unwrap_or_else(|| panic!("no {name}")).clone()
    };
    let Some(Data::Sum(calls)) = data("macula.rpc.calls").data else {
        panic!("calls are counted");
    };
    let count = |outcome: &str| {
        let mut of_outcome = calls.data_points.iter().filter(|point| {
            let labels = texts(&point.attributes);
            labels["rpc.service"] == "demo.echo" && labels["outcome"] == outcome
        });
        of_outcome.next().unwrap().value
    };
    assert_eq!(count("ok"), Some(number_data_point::Value::AsInt(3)));
    assert!(calls.is_monotonic);
    let duration = data("rpc.client.call.duration");
    assert_eq!(duration.unit, "s");
    let Some(Data::Histogram(durations)) = duration.data else {
        panic!("times have buckets");
    };
    assert_eq!(durations.data_points.iter().map(|point| point.count).sum::<u64>(), 4);
    let ready = data("macula.node.ready");
    assert!(matches!(ready.data, Some(Data::Gauge(_))) && !ready.description.is_empty());
}

#[test]
fn n5_the_program_sends_what_it_does_to_a_collector() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (collector, at) = runtime.block_on(Collector::start());
    let mut command = macula();
    command.env("OTEL_SERVICE_NAME", "shop");
    let mut node = NodeProcess::spawn(command, "127.0.0.1:0", &["--serve", "demo.echo=echo", "--otlp", &at]);
    let called = run(&["call", "demo.echo", "hello", "--bootstrap", &node.pinned()]);
    assert!(called.status.success(), "{}", stderr(&called));
    node.signal(rustix::process::Signal::TERM);
    assert_eq!(node.wait(), Some(0));
    let received = collector.take();
    assert!(received.spans.iter().any(|span| span.name == "demo.echo"));
    assert_eq!(texts(&received.resources)["service.name"], "shop");
    assert!(received.metrics.iter().any(|metric| metric.name == "macula.rpc.served"));

    let wrong = run(&["node", "--otlp", "somewhere"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", stderr(&wrong));
}
