//! `macula node`.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use macula_node::{Identity, MAX_BOOTSTRAP, MAX_ENDPOINTS, Node};
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::{
    args::NodeArgs,
    exec::{self, Environment, Exec},
    failure::{Failure, chain, print_line, say},
    mesh,
    serve::{Kind, echo},
    signals::Signals,
};

pub(crate) async fn run(args: NodeArgs) -> Result<(), Failure> {
    // Before anything starts: a signal during the start ends the node in order, too.
    let mut signals = Signals::new()?;
    let serving = async {
        let node = start(&args).await?;
        announce(&args, &node)?;
        Ok::<_, Failure>(node)
    };
    let node = tokio::select! {
        node = serving => node?,
        _ = signals.next() => return Ok(()),
    };
    tokio::select! {
        _ = signals.next() => {}
        () = stdin_closed(), if args.until_stdin_closes => {}
    }
    tokio::select! {
        () = node.shutdown() => {}
        // Asked twice: now.
        _ = signals.next() => {}
    }
    Ok(())
}

async fn start(args: &NodeArgs) -> Result<Node, Failure> {
    let environment = Arc::new(Environment::new(&args.exec_env));
    check(args, &environment)?;
    let mut builder = Node::builder()
        .realm(args.mesh.realm.clone())
        .listen(args.listen)
        .advertise(args.advertise.clone())
        .bootstrap(args.mesh.bootstrap.clone())
        .weight(args.weight)
        .ttl(Duration::from_secs(args.ttl));
    if let Some(zone) = &args.zone {
        builder = builder.zone(zone);
    }
    if let Some(file) = &args.identity {
        builder = builder.identity(Identity::load_or_generate(file).map_err(|error| Failure::other(chain(&error)))?);
    }
    if let Some(folder) = &args.data {
        builder = builder.data(folder);
    }
    for service in &args.serve {
        builder = match &service.kind {
            Kind::Echo => builder.serve(service.name.clone(), echo),
            Kind::Exec(command) => {
                let exec = Exec::new(command, &environment);
                builder.serve(service.name.clone(), move |request| exec.clone().call(request))
            }
        };
    }
    let node = builder.start().await?;
    // A node whose bootstrap nodes are not up yet serves what it has and goes on trying.
    match node.join().await {
        Ok(report) => mesh::show_trusted(&report),
        Err(error) => say(&format!("{}; trying on", chain(&error))),
    }
    Ok(node)
}

/// What the command line's form alone does not rule out.
fn check(args: &NodeArgs, environment: &Environment) -> Result<(), Failure> {
    let names: BTreeSet<_> = args.serve.iter().map(|service| &service.name).collect();
    if names.len() < args.serve.len() {
        return Err(Failure::usage("two --serve have the same name; give each service one"));
    }
    if args.advertise.len() > MAX_ENDPOINTS {
        return Err(Failure::usage(format!(
            "at most {MAX_ENDPOINTS} --advertise can be published; leave some out"
        )));
    }
    if args.mesh.bootstrap.len() > MAX_BOOTSTRAP {
        return Err(Failure::usage(format!(
            "{MAX_BOOTSTRAP} --bootstrap are enough; leave some out"
        )));
    }
    for service in &args.serve {
        if let Kind::Exec(command) = &service.kind {
            exec::check(command, environment)
                .map_err(|error| Failure::usage(format!("--serve {}=exec:{command}: {error}", service.name)))?;
        }
    }
    Ok(())
}

fn announce(args: &NodeArgs, node: &Node) -> Result<(), Failure> {
    let endpoints: Vec<_> = node.endpoints().iter().map(ToString::to_string).collect();
    if !args.json {
        return print_line(format!("ready: {} at {}", node.id(), endpoints.join(" ")));
    }
    let services: Vec<_> = args.serve.iter().map(|service| service.name.as_str()).collect();
    print_line(json!({
        "node_id": node.id().to_string(),
        "endpoint": endpoints.first(),
        "endpoints": endpoints,
        "realm": args.mesh.realm.as_str(),
        "services": services,
    }))
}

/// Waits until standard input is closed, and discards what comes before.
async fn stdin_closed() {
    let (mut stdin, mut buffer) = (tokio::io::stdin(), [0; 256]);
    while let Ok(1..) = stdin.read(&mut buffer).await {}
}
