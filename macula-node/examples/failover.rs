//! Failover, seen from the caller: two of three providers fail, and the call succeeds all the same.
//!
//! `cargo run -p macula-node --example failover`
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::error::Error;
use std::time::Duration;

use macula_node::{BootstrapAddr, Node, Request, Status};

#[derive(Debug, Clone, Copy)]
enum Mood {
    Well,
    Overloaded,
    Silent,
}

/// A provider of `demo.work`; its handler captures how it behaves.
async fn provider(mood: Mood, bootstrap: Option<BootstrapAddr>) -> Result<Node, Box<dyn Error>> {
    let work = move |_request: Request| async move {
        match mood {
            Mood::Well => Ok("done"),
            // Refused: the work has not begun, so it may run elsewhere whatever the retry policy.
            Mood::Overloaded => Err(Status::refused("too many calls at once")),
            Mood::Silent => std::future::pending().await,
        }
    };
    let node = Node::builder().listen("127.0.0.1:0".parse()?).bootstrap(bootstrap);
    let node = node.serve("demo.work", work).start().await?;
    node.join().await?;
    Ok(node)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let first = provider(Mood::Overloaded, None).await?;
    let bootstrap: BootstrapAddr = first.endpoints()[0].clone().into();
    let second = provider(Mood::Silent, Some(bootstrap.clone())).await?;
    let third = provider(Mood::Well, Some(bootstrap.clone())).await?;
    let caller = Node::builder().client().bootstrap([bootstrap]).start().await?;
    caller.join().await?;

    for call in 1..=5 {
        // A silent provider costs one attempt's time. Health makes that rare: the next calls avoid it.
        let request = caller
            .client()
            .request("demo.work")
            .attempt_timeout(Duration::from_secs(1));
        let answer = request.send("").await?;
        assert_eq!(answer.payload(), "done");
        assert_eq!(answer.provider().map(|it| it.node_id), Some(third.id()));
        println!(
            "call {call}: answered after {} failed attempts",
            answer.failed_attempts().len()
        );
        for attempt in answer.failed_attempts() {
            println!("  {} after {:?}: {}", attempt.node_id, attempt.took, attempt.cause);
        }
    }

    // Without the provider that works the error lists every attempt.
    third.shutdown().await;
    let request = caller
        .client()
        .request("demo.work")
        .attempt_timeout(Duration::from_secs(1));
    let error = request.send("").await.expect_err("no provider works");
    assert!(!error.attempts().is_empty());
    println!("{error}");

    for node in [caller, second, first] {
        node.shutdown().await;
    }
    Ok(())
}
