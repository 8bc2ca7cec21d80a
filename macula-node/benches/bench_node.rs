//! What it costs to find a provider: the DHT asked over the network, and the directory's cache.
//!
//! `cargo xtask bench node`: nodes in one process, over real sockets on loopback, and a caller that is none of the holders. One
//! JSON document on standard output.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use macula_node::{Node, Request, ServiceName, Status};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Nodes of the mesh beside the caller: more than hold a record.
const NODES: usize = 32;
/// Those that provide the service.
const PROVIDERS: usize = 3;
/// Lookups and calls of each kind; the kinds take turns. No more than what the nodes let one caller ask in a row.
const TIMES: usize = 200;

async fn node(bootstrap: Option<&Node>) -> Result<Node, Failure> {
    let builder = Node::builder().listen("127.0.0.1:0".parse()?);
    join(builder, bootstrap).await
}

async fn join(builder: macula_node::NodeBuilder, bootstrap: Option<&Node>) -> Result<Node, Failure> {
    let known = bootstrap.map(|node| node.endpoints()[0].clone().into());
    let node = builder.bootstrap(known).start().await?;
    node.join().await?;
    Ok(node)
}

/// Lookups that follow each other, of which only the mean is taken: one alone is lost in the time of the clock, and pays for the
/// processor's caches that the DHT has filled.
const IN_A_ROW: u32 = 500;

/// Microseconds at a part of the sorted times.
fn quantile(times: &[Duration], part: f64) -> Value {
    let at = (times.len() as f64 * part) as usize;
    let time = times
        .get(at.min(times.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default();
    json!((time.as_secs_f64() * 1e8).round() / 100.0)
}

async fn measure() -> Result<Value, Failure> {
    let service: ServiceName = "bench.echo".parse()?;
    let first = node(None).await?;
    let others = try_join_all((1..NODES).map(|_| node(Some(&first)))).await?;
    for provider in others.iter().take(PROVIDERS) {
        let echo = |request: Request| async move { Ok::<_, Status>(request.into_payload()) };
        provider.serve(service.clone(), echo).await?;
    }
    let caller = join(Node::builder().client(), Some(&first)).await?;
    eprintln!("{NODES} nodes, {PROVIDERS} providers");

    let kinds = [
        "lookup, the DHT asked",
        "lookup, from the cache, after the DHT was asked",
        "lookup, from the cache, 500 in a row",
        "call, the DHT asked first",
        "call, provider from the cache",
    ];
    let mut times: [Vec<Duration>; 5] = Default::default();
    let before = caller.directory_stats();
    for at in 0..=TIMES {
        for (kind, times) in times.iter_mut().enumerate() {
            let start = Instant::now();
            match kind {
                0 => drop(caller.lookup(&service).await?),
                1 => drop(caller.providers(&service).await?),
                2 => {
                    for _ in 0..IN_A_ROW {
                        drop(caller.providers(&service).await?);
                    }
                }
                3 => drop(caller.client().request(&service).force_refresh().send("x").await?),
                _ => drop(caller.call(&service, "x").await?),
            }
            // The first of each opens connections.
            if at > 0 {
                times.push(start.elapsed() / if kind == 2 { IN_A_ROW } else { 1 });
            }
        }
    }
    let after = caller.directory_stats();
    let mut rows = Vec::new();
    for (kind, mut times) in kinds.into_iter().zip(times) {
        times.sort_unstable();
        let row = json!([kind, quantile(&times, 0.5), quantile(&times, 0.95)]);
        eprintln!("{row}");
        rows.push(row);
    }
    let found = caller.providers(&service).await?.len();
    let asked = (after.dht.sent - before.dht.sent) as f64 / (2 * TIMES) as f64;
    eprintln!("{asked:.1} requests a lookup; {:?}", after.dht);
    Ok(json!({
        "title": "node: the DHT and the directory's cache",
        "seed": null,
        "tables": [{
            "name": "finding a provider, and calling it, microseconds",
            "columns": ["what", "p50", "p95"],
            "rows": rows,
        }],
        "plots": [],
        "trace_hash": null,
        "notes": [
            format!("{NODES} nodes in one process, on loopback; {found} providers found with {asked:.1} requests a lookup; a network's delay comes on top"),
        ],
    }))
}

fn main() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(measure())?;
    println!("{report}");
    Ok(())
}
