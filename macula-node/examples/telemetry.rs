//! Traces exported to an OpenTelemetry collector. A small collector in this process prints the spans that it is sent.
//!
//! `cargo run -p macula-node --features otlp --example telemetry`. A real collector usually listens at `http://127.0.0.1:4317`.
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::{
    collections::BTreeSet,
    error::Error,
    sync::{Arc, Mutex, PoisonError},
};

use macula_node::{Node, Request, Status, otlp::Otlp};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use tokio::net::TcpListener;
use tonic::transport::server::{Server, TcpIncoming};
use tracing_subscriber::{layer::SubscriberExt as _, util::SubscriberInitExt as _};

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let scopes = request.into_inner().resource_spans.into_iter();
        let spans = scopes.flat_map(|it| it.scope_spans).flat_map(|it| it.spans);
        let mut received = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        received.extend(spans);
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let collector = Collector::default();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let otlp = Otlp::open(&format!("http://{}", listener.local_addr()?))?;
    let server = Server::builder().add_service(TraceServiceServer::new(collector.clone()));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));

    // Before the first call. `propagation` carries the trace from the caller to the handler.
    tracing_subscriber::registry().with(otlp.layer()).init();
    let provider = Node::builder()
        .listen("127.0.0.1:0".parse()?)
        .propagate(otlp.propagation())
        .serve("demo.hello", |_: Request| async { Ok::<_, Status>("hello") })
        .start()
        .await?;
    provider.join().await?;
    let bootstrap = provider.endpoints()[0].clone().into();
    let caller = Node::builder().client().bootstrap([bootstrap]);
    let caller = caller.propagate(otlp.propagation()).start().await?;
    caller.join().await?;
    caller.call("demo.hello", "").await?;

    caller.shutdown().await;
    provider.shutdown().await;
    // Sends the spans that wait.
    otlp.close().await;
    let spans = collector.0.lock().unwrap_or_else(PoisonError::into_inner);
    spans.iter().for_each(|span| println!("{}", span.name));
    let traces: BTreeSet<_> = spans.iter().map(|span| &span.trace_id).collect();
    // The call, its attempt, and the handler at the other node: one trace.
    assert_eq!((spans.len(), traces.len()), (3, 1));
    Ok(())
}
