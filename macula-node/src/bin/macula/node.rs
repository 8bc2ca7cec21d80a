//! `macula node`.

use std::{collections::BTreeSet, convert::Infallible, path::PathBuf, sync::Arc, time::Duration};

use macula_node::{Limits, MAX_BOOTSTRAP, MAX_ENDPOINTS, Node, admin::Admin, ingress::Ingress, ops::Ops};
use serde_json::json;
use tokio::{
    io::AsyncReadExt,
    signal::unix::{Signal, SignalKind, signal},
};

use crate::{
    args::{Cli, Command, NodeArgs},
    backend::Backends,
    door,
    exec::{self, Environment},
    failure::{Failure, cause_first, print_line, say},
    identity::{self, Taken, default_file, user_folder},
    limits, line, membership, mesh,
    notify::Manager,
    otlp::Otlp,
    own, reload,
    serve::Kind,
    signals::Signals,
};

pub(crate) async fn run(args: NodeArgs, otlp: Option<Otlp>) -> Result<(), Failure> {
    // Before anything starts: a signal during the start ends the node in order, too.
    let mut signals = Signals::new()?;
    let hangups = signal(SignalKind::hangup());
    let hangups = hangups.map_err(|error| Failure::other(format!("signals cannot be received: {error}")))?;
    let manager = Manager::of_environment();
    let serving = async {
        let taken = take_identity(&args)?;
        let metrics = door::count_calls(&args.ops, otlp.as_ref())?;
        let node = start(&args, taken.as_ref(), otlp.as_ref()).await?;
        // That of the data folder, which the node itself has read.
        let of_folder = args.admin.folder.as_ref().filter(|_| taken.is_none());
        let held = of_folder.and_then(|folder| identity::hold(&folder.join("identity")));
        if let Some(otlp) = &otlp {
            otlp.observe(&node);
        }
        let mut backends = Backends::new(&node);
        args.serve.iter().for_each(|service| backends.start(service));
        let ops = door::open_ops(&args.ops, &node, metrics.clone()).await?;
        let admin = own::serve(&args.admin, &node).await?;
        let ingress = door::open_ingress(&args.ingress, &node).await?;
        join(&args, &node).await;
        announce(&args, &node, ingress.as_ref(), ops.as_ref())?;
        Ok::<_, Failure>((node, (taken, held), admin, ingress, ops, metrics, backends))
    };
    let (node, _taken, admin, ingress, ops, _metrics, mut backends) = tokio::select! {
        started = serving => started?,
        _ = signals.next() => return Ok(()),
    };
    manager.ready();
    let until_stdin_closes = args.until_stdin_closes;
    tokio::select! {
        _ = signals.next() => {}
        () = stdin_closed(), if until_stdin_closes => {}
        () = drain_asked(admin.as_ref()) => {}
        never = reloads(&node, &mut backends, &manager, hangups, args) => match never {},
        () = limits::watch(&node) => {}
        () = signs_of_life(&manager) => {}
    }
    manager.stopping();
    match node.running_calls() {
        0 => {}
        running => tracing::warn!(
            running,
            "the node leaves when its running calls have ended; a second signal ends it at once"
        ),
    }
    backends.leave();
    let leaving = async {
        // Its requests are calls of this node, so they end first.
        if let Some(ingress) = ingress {
            ingress.close().await;
        }
        node.shutdown().await;
    };
    tokio::select! {
        () = leaving => {}
        () = signs_of_life(&manager) => {}
        // Asked twice: now.
        _ = signals.next() => {
            tracing::warn!(running = node.running_calls(), "the node ends at once; calls that still run are lost");
            return Ok(());
        }
    }
    if let Some(admin) = admin {
        admin.close().await;
    }
    if let Some(ops) = ops {
        ops.close().await;
    }
    if let Some(otlp) = otlp {
        otlp.close().await;
    }
    Ok(())
}

/// Reads the configuration again at each SIGHUP.
async fn reloads(
    node: &Node,
    backends: &mut Backends,
    manager: &Manager,
    mut hangups: Signal,
    mut args: NodeArgs,
) -> Infallible {
    loop {
        if hangups.recv().await.is_none() {
            // No further one comes.
            std::future::pending::<()>().await;
        }
        manager.reloading();
        // What is wrong in it was said.
        if let Ok(Cli {
            command: Command::Node(now),
            ..
        }) = line::parse()
        {
            args = reload::apply(node, backends, args, *now).await;
        }
        manager.ready();
    }
}

/// Tells the service manager that this program is alive, as often as it wants to hear it.
async fn signs_of_life(manager: &Manager) {
    match manager.sign_every() {
        None => std::future::pending().await,
        Some(every) => loop {
            manager.alive();
            tokio::time::sleep(every).await;
        },
    }
}

/// Waits until `macula drain` asks for the node's end.
async fn drain_asked(admin: Option<&Admin>) {
    match admin {
        Some(admin) => admin.drain_asked().await,
        None => std::future::pending().await,
    }
}

/// The key that the node is told to use, or the user's own if there is one; otherwise the data folder has it, or it is new.
fn take_identity(args: &NodeArgs) -> Result<Option<(PathBuf, Taken)>, Failure> {
    let of_user = || default_file().filter(|file| args.admin.folder.is_none() && file.exists());
    let file = args.identity.clone().or_else(of_user);
    file.map(|file| identity::take(&file).map(|taken| (file, taken)))
        .transpose()
}

async fn start(args: &NodeArgs, taken: Option<&(PathBuf, Taken)>, otlp: Option<&Otlp>) -> Result<Node, Failure> {
    let environment = Arc::new(Environment::new(&args.exec_env));
    check(args)?;
    let realm = args.mesh.realm.clone();
    let mut builder = membership::apply(&args.mesh.access, realm, Node::builder())?
        .listen(args.listen)
        .advertise(args.advertise.clone())
        .bootstrap(args.mesh.bootstrap.clone())
        .weight(args.weight)
        .ttl(Duration::from_secs(args.ttl))
        .drain_time(args.drain_time);
    if let Some(zone) = &args.zone {
        builder = builder.zone(zone);
    }
    if let Some((file, taken)) = taken {
        builder = builder
            .identity(taken.identity.clone())
            .grant_file(membership::grant_file(file));
    }
    if let Some(life) = args.grant_life {
        builder = builder.grant_life(Duration::from_secs(life));
    }
    if let Some(folder) = &args.admin.folder {
        builder = builder.data(folder);
    }
    if let Some(mebibytes) = args.memory {
        let limits = Limits {
            memory_bytes: mebibytes << 20,
            ..Limits::default()
        };
        builder = builder.transport(move |config| config.with_limits(limits));
    }
    if let Some(otlp) = otlp {
        builder = otlp.trace(builder);
    }
    for service in &args.serve {
        builder = service.add_to(builder, &args.service, &environment);
    }
    Ok(builder.start().await?)
}

/// Waits for the mesh. A node whose bootstrap nodes are not up yet serves its own services and goes on trying.
async fn join(args: &NodeArgs, node: &Node) {
    match node.join().await {
        Ok(report) => {
            tracing::info!(contacts = report.contacts, "joined the mesh");
            let folder = args.admin.folder.clone().or_else(user_folder);
            mesh::show_trusted(&report, folder.as_deref());
        }
        Err(error) => say(&format!("{}; trying on", cause_first(&error))),
    }
}

/// Checks the options beyond their form.
pub(crate) fn check(args: &NodeArgs) -> Result<(), Failure> {
    let names: Vec<_> = args.serve.iter().map(ToString::to_string).collect();
    let distinct: BTreeSet<_> = names.iter().map(String::as_str).collect();
    if distinct.len() < names.len() {
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
    if let Some(setting) = args
        .service
        .iter()
        .find(|setting| !distinct.contains(setting.service.as_str()))
    {
        return Err(Failure::usage(format!(
            "--service {}: there is no --serve of that name",
            setting.service
        )));
    }
    if let Some(wrong) = args.serve.iter().find_map(|service| service.misfit(&args.service)) {
        return Err(Failure::usage(format!("--service: {wrong}")));
    }
    let environment = Environment::new(&args.exec_env);
    for service in &args.serve {
        if let Kind::Exec(command) = &service.kind {
            exec::check(command, &environment)
                .map_err(|error| Failure::usage(format!("--serve {service}=exec:{command}: {error}")))?;
        }
    }
    Ok(())
}

fn announce(args: &NodeArgs, node: &Node, ingress: Option<&Ingress>, ops: Option<&Ops>) -> Result<(), Failure> {
    let endpoints: Vec<_> = node.endpoints().iter().map(ToString::to_string).collect();
    let services: Vec<_> = args.serve.iter().map(ToString::to_string).collect();
    if !args.json {
        let services = match services[..] {
            [] => "no service".to_owned(),
            _ => services.join(" "),
        };
        let ingress = ingress.map_or(String::new(), |it| format!("; ingress at {}", it.local_addr()));
        let ops = ops.map_or(String::new(), |it| format!("; ops at {}", it.local_addr()));
        return print_line(format!(
            "ready: {} at {} serves {services}{ingress}{ops}",
            node.id(),
            endpoints.join(" ")
        ));
    }
    print_line(json!({
        "node_id": node.id().to_string(),
        "endpoint": endpoints.first(),
        "endpoints": endpoints,
        "realm": node.access().realm().to_string(),
        "services": services,
        "ingress": ingress.map(|it| it.local_addr().to_string()),
        "ops": ops.map(|it| it.local_addr().to_string()),
    }))
}

/// Waits until standard input is closed; its content is discarded.
async fn stdin_closed() {
    let (mut stdin, mut buffer) = (tokio::io::stdin(), [0; 256]);
    while let Ok(1..) = stdin.read(&mut buffer).await {}
}
