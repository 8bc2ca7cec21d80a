//! Metrics in Prometheus' format and a span for each call, attempt and served call.
//!
//! `cargo run -p macula-rpc --features metrics --example observability`
//!
//! `tracing-opentelemetry` has a layer that sends the same spans to a collector: add it where the layer for the terminal is.
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::error::Error;

use macula_rpc::{Client, Provider, Request, Server, StaticResolver, Status, W3c};
use macula_transport::{Config, Endpoint, Identity, NoService};
use metrics_exporter_prometheus::PrometheusBuilder;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::prelude::*;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Install both before the first call.
    let metrics = PrometheusBuilder::new().install_recorder()?;
    let terminal = tracing_subscriber::fmt::layer().with_span_events(FmtSpan::CLOSE);
    let only_calls = tracing_subscriber::filter::Targets::new().with_target("macula_rpc", tracing::Level::INFO);
    tracing_subscriber::registry()
        .with(terminal.with_filter(only_calls))
        .init();

    let server = Server::new();
    server.serve("demo.hello".parse()?, |_: Request| async { Ok::<_, Status>("hello") })?;
    // Both sides name the trace's context alike, so one trace spans caller and provider.
    server.propagate(W3c);
    let listen = Config::new(Identity::generate()?).with_listen("127.0.0.1:0".parse()?);
    let provider = Endpoint::bind(listen, server).await?;

    let known = Provider::new(provider.node_id(), [provider.local_addr().try_into()?]);
    let directory = StaticResolver::new().with_service("demo.hello".parse()?, [known]);
    let endpoint = Endpoint::bind(Config::new(Identity::generate()?), NoService).await?;
    let client = Client::builder(&endpoint, directory).propagate(W3c).build();
    client.call("demo.hello", "").await?;
    assert_eq!(
        client
            .call("demo.typo", "")
            .await
            .expect_err("nothing provides it")
            .name(),
        "service_not_found"
    );

    // What an HTTP endpoint for Prometheus would answer.
    let page = metrics.render();
    println!("{page}");
    for name in ["macula_rpc_calls", "macula_rpc_attempts", "rpc_client_call_duration"] {
        assert!(page.contains(name), "{name} is missing");
    }
    Ok(())
}
