//! A node with settings of its own: identity, realm, limits, timeouts, and services that come and go while it runs.
//!
//! `cargo run -p macula-node --example custom_node`
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::error::Error;
use std::time::Duration;

use macula_node::{Identity, Node, Realm, Request, Status, Strategy};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // The node's key is its name. `Identity::load_or_generate` keeps it in a file over a restart.
    let identity = Identity::generate()?;
    let id = identity.node_id();

    let node = Node::builder()
        .identity(identity)
        // Services of one realm are invisible in another.
        .realm(Realm::new("shop")?)
        .listen("127.0.0.1:0".parse()?)
        // What the directory says about this provider.
        .zone("fra1")
        .weight(4)
        .ttl(Duration::from_secs(60))
        // How this node serves, and how it calls others.
        .max_concurrent_calls(256)
        .strategy(Strategy::PeakEwma)
        .calls(|calls| {
            calls
                .timeout(Duration::from_secs(5))
                .attempt_timeout(Duration::from_secs(1))
        })
        .start()
        .await?;
    node.join().await?;
    assert_eq!(node.id(), id);

    // A service may be added while the node runs. The report says which nodes hold the record.
    let greet = |request: Request| async move {
        let name = String::from_utf8_lossy(request.payload()).into_owned();
        Ok::<_, Status>(format!("hello {name}"))
    };
    let service = "shop.greet".parse()?;
    let report = node.serve(service, greet).await?;
    println!("{report:?}");

    let service = "shop.greet".parse()?;
    let providers = node.lookup(&service).await?;
    assert_eq!(providers[0].node_id, id);
    assert_eq!((providers[0].weight, providers[0].zone.as_deref()), (4, Some("fra1")));
    assert_eq!(node.call("shop.greet", "world").await?, "hello world");

    // The same for leaving: from now on no lookup finds it.
    node.withdraw(&service).await;
    assert!(node.call("shop.greet", "world").await.is_err());

    println!("{:?}", node.connection_stats());
    node.shutdown().await;
    Ok(())
}
