//! A provider: a node that serves two services and leaves in order.
//!
//! `cargo run -p macula-node --example provider`. A real provider waits for a signal where this one calls itself.
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use macula_node::{Node, Request, Status};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // What a handler shares with the rest of the program, it captures. Each call clones it into a future of its own.
    let served = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&served);
    let count = move |_request: Request| {
        let counter = Arc::clone(&counter);
        async move {
            let calls = counter.fetch_add(1, Ordering::Relaxed) + 1;
            Ok::<_, Status>(format!("call {calls}"))
        }
    };

    // An error says whose fault it is: an invalid argument is the caller's, so no other provider is tried.
    let half = |request: Request| async move {
        let number: u64 = std::str::from_utf8(request.payload())
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Status::invalid_argument("the payload is not a number"))?;
        Ok::<_, Status>((number / 2).to_string())
    };

    let node = Node::builder()
        .listen("127.0.0.1:0".parse()?)
        .serve("demo.count", count)
        .serve("demo.half", half)
        .start()
        .await?;
    node.join().await?;
    println!("{} listens on {}", node.id(), node.endpoints()[0]);

    // A service of this process is called without a network.
    assert_eq!(node.call("demo.count", "").await?, "call 1");
    assert_eq!(node.call("demo.half", "42").await?, "21");
    println!("{}", node.call("demo.half", "x").await.expect_err("x is no number"));
    assert_eq!(served.load(Ordering::Relaxed), 1);

    // Withdraws both services, refuses new calls so that they go elsewhere, and finishes the running ones.
    node.shutdown().await;
    Ok(())
}
