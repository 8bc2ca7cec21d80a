//! Attacks of the table in SECURITY.md against real nodes, with honest callers beside them.
//!
//! Each attack is measured against the same honest calls without it: as many are served. Afterwards nothing of it is left. With
//! `-- --nocapture --test-threads 1` each prints the share of honest calls and their 99th percentile without and with the attack.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed unwrap fails the test, and the figures are for a person"
)]

mod attacker;
mod crowds;
#[cfg(feature = "ingress")]
mod ingress;
mod memory;
mod names;
mod records;
#[cfg(feature = "tonic")]
mod replies;
mod runs;
mod strangers;

#[cfg(feature = "ingress")]
#[path = "../http1/mod.rs"]
mod http1;

use std::{
    future::pending,
    time::{Duration, Instant},
};

use macula_node::{BootstrapAddr, Bytes, Limits, Node, NodeBuilder, Request, Status};

/// The service that honest callers call.
const SERVICE: &str = "demo.echo";
/// A service that never answers.
const SILENT: &str = "demo.silent";
/// How many honest calls are made beside an attack.
const CALLS: usize = 100;
/// Longer than anything here takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node on a loopback network of its own, not yet started.
fn builder(network: u8, limits: Limits) -> NodeBuilder {
    Node::builder()
        .listen(([127, 0, network, 1], 0).into())
        .transport(move |config| config.with_limits(limits))
}

/// The node that is attacked, not yet started.
fn serving(limits: Limits) -> NodeBuilder {
    builder(0, limits)
        .serve(SERVICE, async |request: Request| {
            Ok::<Bytes, Status>(request.into_payload())
        })
        .serve(SILENT, async |_: Request| pending::<Result<Bytes, Status>>().await)
}

/// The node that is attacked.
async fn victim(limits: Limits) -> Node {
    serving(limits).start().await.unwrap()
}

fn way_to(node: &Node) -> BootstrapAddr {
    format!("{}@{}", node.id(), node.local_addr()).parse().unwrap()
}

/// A client that asks the victim for providers, from a network where no attacker is.
async fn honest(victim: &Node) -> Node {
    let node = builder(200, Limits::default())
        .client()
        .bootstrap([way_to(victim)])
        .start()
        .await
        .unwrap();
    node.join().await.unwrap();
    node
}

/// The honest calls that were served, and the time that all but one of them took at most.
#[derive(Debug, Clone, Copy)]
struct Served {
    calls: usize,
    p99: Duration,
}

/// Makes [`CALLS`] honest calls of `bytes` each.
async fn served(honest: &Node, bytes: usize) -> Served {
    let (mut calls, mut took) = (0, Vec::new());
    for _ in 0..CALLS {
        let payload = Bytes::from(vec![7; bytes]);
        let began = Instant::now();
        let answer = honest.call(SERVICE, payload.clone()).await;
        took.push(began.elapsed());
        calls += usize::from(answer.is_ok_and(|answer| answer == payload));
    }
    took.sort_unstable();
    let p99 = took[CALLS - 2];
    Served { calls, p99 }
}

/// All honest calls are served beside the attack, as without it.
fn compare(attack: &str, calm: Served, attacked: Served) {
    println!(
        "{attack}: {} and {} of {CALLS} calls, p99 {:.1?} and {:.1?}",
        calm.calls, attacked.calls, calm.p99, attacked.p99
    );
    assert_eq!((calm.calls, attacked.calls), (CALLS, CALLS), "{attack}");
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "never happened: {what}");
        tokio::task::yield_now().await;
    }
}
