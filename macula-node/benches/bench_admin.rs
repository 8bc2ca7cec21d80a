//! What the admin interface costs a busy node: calls a second without it, with it, and while clients watch and ask for the state.
//!
//! `cargo run --release -p macula-node --features admin --example bench_admin`: a provider and a caller in one process over loopback, 64
//! calls of 64 bytes in flight. The three kinds take turns in short slices, so that a machine that is busy elsewhere slows all of them.
//! One JSON document on standard output.
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use futures::future::join_all;
use macula_node::{
    Bytes, Node, Request, Status,
    admin::{
        Admin, connect,
        schema::{Build, StateRequest, WatchRequest},
    },
};
use serde_json::json;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const SLICE: Duration = Duration::from_secs(1);
/// Slices of each kind.
const TURNS: usize = 25;
const IN_FLIGHT: usize = 64;
/// Between two questions for the state, as `macula top` asks.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What is looked at during a slice.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Without,
    Served,
    Watched,
}

/// Watches a node and asks for its state, until it is aborted.
async fn look(path: PathBuf) -> Result<(), Failure> {
    let mut client = connect(&path).await?;
    let mut events = client.watch(WatchRequest {}).await?.into_inner();
    let mut ask = tokio::time::interval(ASK_EVERY);
    loop {
        tokio::select! {
            event = events.message() => drop(event?),
            _ = ask.tick() => drop(client.get_state(StateRequest {}).await?),
        }
    }
}

/// Calls a second over one slice.
async fn calls(caller: &Node) -> Result<f64, Failure> {
    let (start, body) = (Instant::now(), Bytes::from_static(&[7; 64]));
    let callers = (0..IN_FLIGHT).map(async |_| {
        let mut done = 0_u32;
        while start.elapsed() < SLICE {
            caller.call("bench.echo", body.clone()).await?;
            done += 1;
        }
        Ok::<_, Failure>(done)
    });
    let done: Result<Vec<_>, _> = join_all(callers).await.into_iter().collect();
    Ok(f64::from(done?.iter().sum::<u32>()) / start.elapsed().as_secs_f64())
}

async fn measure() -> Result<(), Failure> {
    let echo = |request: Request| async move { Ok::<_, Status>(request.into_payload()) };
    let provider = Node::builder()
        .listen("127.0.0.1:0".parse()?)
        .serve("bench.echo", echo)
        .start()
        .await?;
    provider.join().await?;
    let bootstrap = provider.endpoints()[0].clone().into();
    let caller = Node::builder()
        .listen("127.0.0.1:0".parse()?)
        .bootstrap([bootstrap])
        .start()
        .await?;
    caller.join().await?;
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let kinds = [Kind::Without, Kind::Served, Kind::Watched];
    let mut rates: [Vec<f64>; 3] = Default::default();
    calls(&caller).await?;
    for _ in 0..TURNS {
        for (kind, rates) in kinds.iter().zip(&mut rates) {
            let served = match kind {
                Kind::Without => None,
                Kind::Served | Kind::Watched => Some((
                    Admin::serve(&provider, Build::default(), at("provider.sock")).await?,
                    Admin::serve(&caller, Build::default(), at("caller.sock")).await?,
                )),
            };
            let watchers = match (kind, &served) {
                (Kind::Watched, Some((a, b))) => [a, b].map(|admin| tokio::spawn(look(admin.path().into()))).into(),
                _ => Vec::new(),
            };
            let rate = calls(&caller).await?;
            for watcher in watchers {
                if watcher.is_finished() {
                    return watcher.await?;
                }
                watcher.abort();
            }
            rates.push(rate);
        }
    }
    let medians = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2].round()
    });
    let [without, served, watched] = medians;
    let cost = |rate: f64| ((without - rate) / without * 1000.0).round() / 10.0;
    println!(
        "{}",
        json!({
            "calls_per_second": { "without": without, "served": served, "watched": watched },
            "cost_percent": { "served": cost(served), "watched": cost(watched) },
            "slices": TURNS,
        })
    );
    Ok(())
}

fn main() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure())
}
