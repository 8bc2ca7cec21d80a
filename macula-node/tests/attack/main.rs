//! Attacks of the table in SECURITY.md against real nodes, with honest callers beside them.
//!
//! Each attack is measured against the same honest calls without it: as many are served. Afterwards nothing of it is left.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod attacker;
mod crowds;
mod memory;
mod names;

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
const CALLS: usize = 30;
/// Longer than anything here takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node on a loopback network of its own, not yet started.
fn builder(network: u8, limits: Limits) -> NodeBuilder {
    Node::builder()
        .listen(([127, 0, network, 1], 0).into())
        .transport(move |config| config.with_limits(limits))
}

/// The node that is attacked.
async fn victim(limits: Limits) -> Node {
    builder(0, limits)
        .serve(SERVICE, async |request: Request| {
            Ok::<Bytes, Status>(request.into_payload())
        })
        .serve(SILENT, async |_: Request| pending::<Result<Bytes, Status>>().await)
        .start()
        .await
        .unwrap()
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

/// How many honest calls of `bytes` each are served.
async fn served(honest: &Node, bytes: usize) -> usize {
    let mut served = 0;
    for _ in 0..CALLS {
        let payload = Bytes::from(vec![7; bytes]);
        let answer = honest.call(SERVICE, payload.clone()).await;
        served += usize::from(answer.is_ok_and(|answer| answer == payload));
    }
    served
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "never happened: {what}");
        tokio::task::yield_now().await;
    }
}
