//! A caller: a node that provides nothing, finds a service by its name and calls it.
//!
//! `cargo run -p macula-node --example caller`
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::error::Error;
use std::time::Duration;

use macula_node::{CallError, Node, Request, RetryPolicy, Status, Strategy};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Somewhere in the mesh, a provider.
    let upper = |request: Request| async move { Ok::<_, Status>(request.payload().to_ascii_uppercase()) };
    let provider = Node::builder()
        .listen("127.0.0.1:0".parse()?)
        .serve("text.upper", upper)
        .start()
        .await?;
    provider.join().await?;

    // One address is enough to find every node.
    let bootstrap = provider.endpoints()[0].clone().into();
    let caller = Node::builder().client().bootstrap([bootstrap]).start().await?;
    caller.join().await?;

    // The short way, with the default timeout, retries and strategy.
    assert_eq!(caller.call("text.upper", "hello mesh").await?, "HELLO MESH");

    // The long way. `NeverProcessed` is for calls that must not run twice.
    let answer = caller
        .client()
        .request("text.upper")
        .timeout(Duration::from_secs(5))
        .attempt_timeout(Duration::from_secs(2))
        .max_attempts(2)
        .strategy(Strategy::RoundRobin)
        .retry_policy(RetryPolicy::NeverProcessed)
        .send("hello again")
        .await?;
    let provider_id = answer.provider().map(|it| it.node_id);
    println!("{provider_id:?} answered {:?}", answer.payload());
    assert_eq!(provider_id, Some(provider.id()));

    // An error says what happened and what was tried.
    match caller.call("text.lower", "HELLO").await {
        Err(error @ CallError::ServiceNotFound { .. }) => println!("{error}"),
        other => panic!("nothing provides text.lower, and yet: {other:?}"),
    }

    caller.shutdown().await;
    provider.shutdown().await;
    Ok(())
}
