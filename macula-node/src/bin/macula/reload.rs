//! SIGHUP: the configuration is read again, and what can change does.
//!
//! Services, their settings and the log's levels change while the node runs. What a running node cannot change is named, and takes effect
//! at its next start. A configuration that is wrong changes nothing.

use std::{fmt::Debug, sync::Arc};

use macula_node::{Node, ServiceName};
use tracing::Level;

use crate::{
    args::{AccessArgs, AdminArgs, MeshArgs, NodeArgs},
    backend::Backends,
    exec::Environment,
    failure::error_line,
    logging, node,
    serve::{Kind, Serve, Setting},
};

/// What is different in a new configuration.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    log: bool,
    /// Services to withdraw, with those to be served again.
    withdraw: Vec<Serve>,
    serve: Vec<Serve>,
    /// Options that a running node cannot change.
    restart: Vec<&'static str>,
}

/// Applies a new configuration to a node that runs with `before`; gives the one that it runs with now.
pub(crate) async fn apply(node: &Node, backends: &mut Backends, before: NodeArgs, now: NodeArgs) -> NodeArgs {
    if let Err(wrong) = node::check(&now) {
        // It says what is wrong by itself.
        let _ = wrong.report();
        tracing::error!("the new configuration is wrong; the node goes on with the old one");
        return before;
    }
    let plan = plan(&before, &now);
    if plan.log {
        logging::set(Some(&now.log), Level::WARN);
    }
    let environment = Arc::new(Environment::new(&now.exec_env));
    for service in &plan.withdraw {
        backends.stop(service).await;
        if let Some(name) = &service.name {
            node.withdraw(name).await;
        }
    }
    for service in &plan.serve {
        backends.start(service);
        if let Err(error) = service.serve_at(node, &now.service, &environment).await {
            tracing::error!(%service, error = error_line(&error), "a service is not served any more");
        }
    }
    for option in &plan.restart {
        tracing::warn!(option, "this option cannot change while the node runs; start it again");
    }
    let names = |services: &mut dyn Iterator<Item = &Serve>| {
        let names: Vec<_> = services.map(ToString::to_string).collect();
        names.join(" ")
    };
    let ended = plan
        .withdraw
        .iter()
        .filter(|old| plan.serve.iter().all(|fresh| fresh.to_string() != old.to_string()));
    tracing::warn!(
        served = names(&mut plan.serve.iter()),
        withdrawn = names(&mut ended.into_iter()),
        log = now.log,
        "the configuration was read again"
    );
    NodeArgs {
        serve: now.serve,
        service: now.service,
        exec_env: now.exec_env,
        log: now.log,
        ..before
    }
}

fn plan(before: &NodeArgs, now: &NodeArgs) -> Plan {
    // Every option is named, so that the compiler asks what a new one means here.
    let NodeArgs {
        mesh:
            MeshArgs {
                bootstrap,
                realm,
                access: AccessArgs { grant, token },
            },
        listen,
        advertise,
        identity,
        admin: AdminArgs { admin, folder },
        serve,
        service,
        log,
        log_format,
        exec_env,
        ingress,
        ops,
        zone,
        weight,
        memory,
        ttl,
        drain_time,
        grant_life,
        // How the node was started.
        json: _,
        init: _,
        until_stdin_closes: _,
    } = before;
    let settings = |all: &[Setting], name: Option<&ServiceName>| {
        let own = all.iter().filter(|setting| Some(&setting.service) == name);
        own.map(|setting| setting.rule.clone()).collect::<Vec<_>>()
    };
    let is_same = |old: &Serve, new: &Serve| {
        let environment = !matches!(new.kind, Kind::Exec(_)) || *exec_env == now.exec_env;
        old == new && environment && settings(service, old.name.as_ref()) == settings(&now.service, new.name.as_ref())
    };
    let is_kept = |one: &Serve, others: &[Serve], same: &dyn Fn(&Serve, &Serve) -> bool| {
        others.iter().any(|other| same(one, other))
    };
    let gone = serve.iter().filter(|old| !is_kept(old, &now.serve, &is_same));
    let fresh = now
        .serve
        .iter()
        .filter(|new| !is_kept(new, serve, &|new, old| is_same(old, new)));
    let fixed = [
        ("bootstrap", differs(bootstrap, &now.mesh.bootstrap)),
        ("realm", differs(realm, &now.mesh.realm)),
        ("listen", differs(listen, &now.listen)),
        ("advertise", differs(advertise, &now.advertise)),
        ("identity", differs(identity, &now.identity)),
        ("admin", differs(admin, &now.admin.admin)),
        ("data", differs(folder, &now.admin.folder)),
        ("log-format", differs(log_format, &now.log_format)),
        ("ingress", differs(ingress, &now.ingress)),
        ("ops", differs(&ops.ops, &now.ops.ops)),
        ("otlp", differs(&ops.otlp, &now.ops.otlp)),
        ("zone", differs(zone, &now.zone)),
        ("weight", differs(weight, &now.weight)),
        ("memory", differs(memory, &now.memory)),
        ("ttl", differs(ttl, &now.ttl)),
        ("drain-time", differs(drain_time, &now.drain_time)),
        ("grant", differs(grant, &now.mesh.access.grant)),
        ("token", differs(token, &now.mesh.access.token)),
        ("grant-life", differs(grant_life, &now.grant_life)),
    ];
    Plan {
        log: *log != now.log,
        withdraw: gone.cloned().collect(),
        serve: fresh.cloned().collect(),
        restart: fixed
            .into_iter()
            .filter(|(_, differs)| *differs)
            .map(|(name, _)| name)
            .collect(),
    }
}

fn differs<T: Debug>(before: &T, now: &T) -> bool {
    format!("{before:?}") != format!("{now:?}")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(words: &[&str]) -> NodeArgs {
        let line = ["macula", "node"].iter().chain(words);
        match Cli::try_parse_from(line).unwrap().command {
            Command::Node(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_differs_changes_and_what_cannot_is_named() {
        let before = args(&["--serve", "a=echo", "--serve", "b=exec:cat", "--serve", "c=echo"]);
        assert_eq!(plan(&before, &before), Plan::default());
        let now = args(&[
            "--serve",
            "b=exec:cat",
            "--service",
            "b:timeout=5s",
            "--serve",
            "c=echo",
            "--serve",
            "d=echo",
            "--log",
            "info",
            "--zone",
            "eu",
            "--listen",
            "127.0.0.1:0",
        ]);
        let plan = plan(&before, &now);
        let names = |services: &[Serve]| services.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(plan.log);
        assert_eq!(names(&plan.withdraw), ["a", "b"]);
        assert_eq!(names(&plan.serve), ["b", "d"]);
        assert_eq!(plan.restart, ["listen", "zone"]);
    }

    #[test]
    fn a_new_environment_concerns_commands_alone() {
        let before = args(&["--serve", "a=echo", "--serve", "b=exec:cat"]);
        let now = args(&["--serve", "a=echo", "--serve", "b=exec:cat", "--exec-env", "A=1"]);
        let plan = plan(&before, &now);
        assert_eq!(plan.serve.iter().map(ToString::to_string).collect::<Vec<_>>(), ["b"]);
    }
}
