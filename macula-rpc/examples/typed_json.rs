//! Typed messages in JSON: the types are checked on both sides, and a message that does not fit is an error of its own.
//!
//! `cargo run -p macula-rpc --features json --example typed_json`
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::error::Error;

use macula_rpc::{Client, Json, Provider, Request, Server, StaticResolver, Status, typed};
use macula_transport::{Config, Endpoint, Identity, NoService};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    item: String,
    count: u32,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Receipt {
    item: String,
    cents: u32,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let server = Server::new();
    let price = 250;
    let order = move |request: Request<Json<Order>>| async move {
        let Json(Order { item, count }) = request.into_payload();
        let cents = count
            .checked_mul(price)
            .ok_or_else(|| Status::invalid_argument("too many"))?;
        Ok::<_, Status>(Json(Receipt { item, cents }))
    };
    server.serve("shop.order".parse()?, typed(order))?;
    let listen = Config::new(Identity::generate()?).with_listen("127.0.0.1:0".parse()?);
    let provider = Endpoint::bind(listen, server).await?;

    let known = Provider::new(provider.node_id(), [provider.local_addr().try_into()?]);
    let directory = StaticResolver::new().with_service("shop.order".parse()?, [known]);
    let endpoint = Endpoint::bind(Config::new(Identity::generate()?), NoService).await?;
    let client = Client::builder(&endpoint, directory).build();

    let order = Order {
        item: "tea".to_owned(),
        count: 3,
    };
    let Json(receipt): Json<Receipt> = client.call_typed("shop.order", Json(order)).await?;
    println!("{receipt:?}");
    let expected = Receipt {
        item: "tea".to_owned(),
        cents: 750,
    };
    assert_eq!(receipt, expected);

    // A request of another shape is the caller's fault, and no other provider is tried.
    let wrong = client.call_typed::<_, Json<Receipt>>("shop.order", Json("tea")).await;
    println!("{}", wrong.expect_err("a text is no order"));
    Ok(())
}
