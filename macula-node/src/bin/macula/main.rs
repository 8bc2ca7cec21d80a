//! `macula`: runs a node of the mesh, and calls, lists and shows from the command line.

mod args;
mod bench;
mod call;
mod config;
mod demo;
mod drain;
mod exec;
mod failure;
mod health;
mod id;
mod identity;
mod init;
mod known;
mod mesh;
mod node;
mod own;
mod providers;
#[cfg(test)]
mod sample;
mod serve;
mod signals;
mod status;
mod table;
mod version;
mod watch;

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use clap::FromArgMatches;
use tracing::Level;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    args::{Cli, Command},
    failure::Failure,
};

fn main() -> ExitCode {
    let cli = match parse() {
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
    start_logging(&cli.command);
    keep_damage_quiet();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Reads the command line, the environment, and the configuration file if there is one.
fn parse() -> Result<Cli, ExitCode> {
    let typed = args::command();
    let read = |command: clap::Command| {
        let matches = command.try_get_matches()?;
        Cli::from_arg_matches(&matches)
    };
    let Some(file) = config::named(&typed) else {
        return read(typed).map_err(|error| failure::usage(&error));
    };
    let command = config::with_file(typed.clone(), &file);
    let command = command.map_err(|error| Failure::usage(failure::chain(&error)).report())?;
    read(command).map_err(|error| match read(typed) {
        // The command line is right, so the file is wrong.
        Ok(_) => failure::usage_in(&file, &error),
        Err(error) => failure::usage(&error),
    })
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

/// Logs to standard error at the levels of `RUST_LOG`; without it, a node logs warnings, and other commands only errors, since they
/// print their failures themselves.
fn start_logging(command: &Command) {
    let level = match command {
        Command::Node(_) => Level::WARN,
        Command::Demo(_)
        | Command::Call(_)
        | Command::Bench(_)
        | Command::Providers(_)
        | Command::Health(_)
        | Command::Id(_)
        | Command::Status(_)
        | Command::Watch(_)
        | Command::Drain(_)
        | Command::Version(_) => Level::ERROR,
    };
    let filter = EnvFilter::builder()
        .with_default_directive(level.into())
        .from_env_lossy();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    tracing_subscriber::registry().with(filter).with(lines).init();
}

fn run(command: Command) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::other(format!("the threads of this program could not be started: {error}")))?;
    let result = runtime.block_on(async {
        match command {
            Command::Node(args) => node::run(args).await,
            Command::Demo(args) => demo::run(args).await,
            Command::Call(args) => call::run(args).await,
            Command::Bench(args) => bench::run(args).await,
            Command::Providers(args) => providers::run(args).await,
            Command::Health(args) => health::run(args).await,
            Command::Id(args) => id::run(&args),
            Command::Status(args) => status::run(args).await,
            Command::Watch(args) => watch::run(args).await,
            Command::Drain(args) => drain::run(args).await,
            Command::Version(args) => version::run(&args),
        }
    });
    // Long enough to drop the tasks, and to kill with them the commands of running calls. Not for ever: a read of standard input cannot
    // be cancelled, and would wait for a key.
    runtime.shutdown_timeout(Duration::from_millis(300));
    result
}
