//! `macula`: runs a node of the mesh, and calls, lists and shows from the command line.

mod args;
mod backend;
mod bench;
mod call;
mod config;
mod demo;
mod door;
mod drain;
mod exec;
mod failure;
mod health;
mod id;
mod identity;
mod init;
mod known;
mod limits;
mod line;
mod logging;
mod membership;
mod mesh;
mod node;
mod notify;
mod origins;
#[cfg_attr(not(feature = "otlp"), path = "no_otlp.rs")]
mod otlp;
mod own;
mod papers;
mod ping;
mod providers;
mod realm;
mod reload;
#[cfg(test)]
mod sample;
mod serve;
mod services;
mod signals;
mod sparse;
mod status;
mod table;
mod target;
mod top;
mod version;
mod watch;

use std::{process::ExitCode, time::Duration};

use tracing::Level;

use crate::{
    args::{Cli, Command},
    failure::{Failure, cause_first},
    otlp::Otlp,
};

fn main() -> ExitCode {
    let cli = match line::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    if let Command::Node(args) = &cli.command
        && init::is_wanted(args.init)
    {
        return init::run().unwrap_or_else(|error| {
            Failure::other(format!("the node could not be started under process 1: {error}")).report()
        });
    }
    keep_damage_quiet();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Keeps panics of redb from standard error: redb panics on some damaged files, and the directory reports those as damaged itself.
fn keep_damage_quiet() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let is_redb = |place: &std::panic::Location<'_>| place.file().contains("/redb-");
        if panic.location().is_some_and(is_redb) {
            tracing::debug!(%panic, "a check of the directory's file failed");
        } else {
            say(panic);
        }
    }));
}

/// Logs to standard error: a node at the levels it is told, other commands only errors, since they print their failures themselves. The
/// spans of a node go to its collector, too.
fn start_logging(command: &Command) -> Result<Option<Otlp>, Failure> {
    match command {
        Command::Node(args) => {
            let otlp = args.ops.otlp.as_deref().map(Otlp::open).transpose();
            let otlp = otlp.map_err(|error| Failure::usage(cause_first(&error)))?;
            logging::start(Some(&args.log), Level::WARN, args.log_format, otlp.as_ref());
            return Ok(otlp);
        }
        Command::Demo(_)
        | Command::Call(_)
        | Command::Bench(_)
        | Command::Providers(_)
        | Command::Health(_)
        | Command::Id(_)
        | Command::Status(_)
        | Command::Services(_)
        | Command::Ping(_)
        | Command::Top(_)
        | Command::Watch(_)
        | Command::Drain(_)
        | Command::Config(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Version(_)
        | Command::Realm(_)
        | Command::Join(_) => logging::start(None, Level::ERROR, logging::LogFormat::Text, None),
    }
    Ok(None)
}

fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { config, command } = cli;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::other(format!("the threads of this program could not be started: {error}")))?;
    let result = runtime.block_on(async {
        let otlp = start_logging(&command)?;
        match command {
            Command::Node(args) => node::run(*args, otlp).await,
            Command::Demo(args) => demo::run(args).await,
            Command::Call(args) => call::run(args).await,
            Command::Bench(args) => bench::run(args).await,
            Command::Providers(args) => providers::run(args).await,
            Command::Health(args) => health::run(args).await,
            Command::Id(args) => id::run(&args),
            Command::Status(args) => status::run(args).await,
            Command::Services(args) => services::run(args).await,
            Command::Ping(args) => ping::run(args).await,
            Command::Top(args) => top::run(args).await,
            Command::Watch(args) => watch::run(args).await,
            Command::Drain(args) => drain::run(args).await,
            Command::Config(args) => origins::run(&args, config.as_deref()),
            Command::Completions(args) => papers::completions(&args),
            Command::Man(args) => papers::man(&args),
            Command::Version(args) => version::run(&args),
            Command::Realm(args) => realm::run(args).await,
            Command::Join(args) => membership::join(args).await,
        }
    });
    // Long enough to drop the tasks, and to kill with them the commands of running calls. Not for ever: a read of standard input cannot
    // be cancelled, and would wait for a key.
    runtime.shutdown_timeout(Duration::from_millis(300));
    result
}
