//! `macula node`.

use std::time::Duration;

use macula_node::{Identity, Node};
use serde_json::json;
use tokio::{
    io::AsyncReadExt,
    signal::unix::{SignalKind, signal},
};

use crate::{
    args::NodeArgs,
    failure::{Failure, chain},
    mesh,
    serve::{Exec, Kind, echo},
};

pub(crate) async fn run(args: NodeArgs) -> Result<(), Failure> {
    let watch = |kind| signal(kind).map_err(|error| Failure::other(format!("signals cannot be received: {error}")));
    // Before anything starts: a signal during the start ends the node in order, too.
    let (mut interrupt, mut terminate) = (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?);
    let serving = async {
        let node = start(&args).await?;
        announce(&args, &node);
        Ok::<_, Failure>(node)
    };
    let node = tokio::select! {
        node = serving => node?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = stdin_closed(), if args.until_stdin_closes => {}
    }
    tokio::select! {
        () = node.shutdown() => {}
        // Asked twice: now.
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

async fn start(args: &NodeArgs) -> Result<Node, Failure> {
    let mut builder = Node::builder()
        .realm(args.mesh.realm.clone())
        .listen(args.listen)
        .advertise(args.advertise.clone())
        .bootstrap(args.mesh.bootstrap.clone())
        .ttl(Duration::from_secs(args.ttl));
    if let Some(file) = &args.identity {
        builder = builder.identity(Identity::load_or_generate(file).map_err(|error| Failure::other(chain(&error)))?);
    }
    for service in &args.serve {
        builder = match &service.kind {
            Kind::Echo => builder.serve(service.name.clone(), echo),
            Kind::Exec(command) => {
                let exec = Exec::new(command);
                builder.serve(service.name.clone(), move |request| exec.clone().call(request))
            }
        };
    }
    let node = builder.start().await?;
    // A node whose bootstrap nodes are not up yet serves what it has and goes on trying.
    match node.join().await {
        Ok(report) => mesh::show_trusted(&report),
        Err(error) => eprintln!("macula: {}; trying on", chain(&error)),
    }
    Ok(node)
}

fn announce(args: &NodeArgs, node: &Node) {
    let endpoints: Vec<_> = node.endpoints().iter().map(ToString::to_string).collect();
    if args.json {
        let services: Vec<_> = args.serve.iter().map(|service| service.name.as_str()).collect();
        println!(
            "{}",
            json!({
                "node_id": node.id().to_string(),
                "endpoint": endpoints.first(),
                "endpoints": endpoints,
                "realm": args.mesh.realm.as_str(),
                "services": services,
            })
        );
    } else {
        println!("ready: {} at {}", node.id(), endpoints.join(" "));
    }
}

/// Waits until standard input is closed, and discards what comes before.
async fn stdin_closed() {
    let (mut stdin, mut buffer) = (tokio::io::stdin(), [0; 256]);
    while let Ok(1..) = stdin.read(&mut buffer).await {}
}
