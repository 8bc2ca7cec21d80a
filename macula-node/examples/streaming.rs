//! Streams: a service that reads any number of requests and answers with any number of replies.
//!
//! `cargo run -p macula-node --example streaming`
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::error::Error;

use bytes::Bytes;
use futures::stream;
use macula_node::{Node, Request, Requests, Status};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // The sum of the numbers so far, after each number. It ends when the caller's numbers end.
    let sums = |request: Request<Requests>| async move {
        let state = (request.into_payload(), 0_i64);
        Ok::<_, Status>(stream::try_unfold(state, |(mut numbers, sum)| async move {
            let Some(number) = numbers.next().await? else {
                return Ok(None);
            };
            let number: i64 = std::str::from_utf8(&number)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| Status::invalid_argument("a message is not a number"))?;
            let sum = sum + number;
            Ok(Some((sum.to_string(), (numbers, sum))))
        }))
    };
    let provider = Node::builder()
        .listen("127.0.0.1:0".parse()?)
        .serve_streaming("math.sums", sums)
        .start()
        .await?;
    provider.join().await?;

    let bootstrap = provider.endpoints()[0].clone().into();
    let caller = Node::builder().client().bootstrap([bootstrap]).start().await?;
    caller.join().await?;

    // The requests are any stream of bytes. Dropping `replies` before its end would cancel the call.
    let numbers = stream::iter(["1", "2", "3", "4"].map(Bytes::from));
    let mut replies = caller.client().request("math.sums").stream(numbers).await?;
    let mut received = Vec::new();
    while let Some(reply) = replies.next().await? {
        println!("{}", String::from_utf8_lossy(&reply));
        received.push(reply);
    }
    assert_eq!(received, ["1", "3", "6", "10"]);

    // An error ends the stream after the messages before it.
    let numbers = stream::iter(["5", "six"].map(Bytes::from));
    let mut replies = caller.client().request("math.sums").stream(numbers).await?;
    assert_eq!(replies.next().await?.as_deref(), Some(b"5".as_slice()));
    println!("{}", replies.next().await.expect_err("six is no number"));

    caller.shutdown().await;
    provider.shutdown().await;
    Ok(())
}
