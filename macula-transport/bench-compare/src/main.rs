//! Unary echo over macula-transport and over what else there is: client and server as processes of their own, every stack and
//! case interleaved in one run, medians of several rounds.
//!
//! Without a subcommand it starts itself once for each server and each load, and prints one JSON document.

mod certificate;
mod extras;
mod irpc_stack;
mod libp2p_stack;
mod load;
mod macula;
mod measure;
mod proxy;
mod raw_quinn;
mod stacks;
mod tarpc_stack;
mod tonic_stack;

use std::io::Write as _;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};

use crate::stacks::Stack;

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    plan: measure::Plan,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves until standard input ends; prints its address when it is ready.
    Serve {
        #[arg(value_enum)]
        stack: Stack,
        #[arg(long, value_enum, default_value = "multi")]
        runtime: Runtime,
        /// Where to listen, for the stacks that can be told.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: std::net::SocketAddr,
    },
    /// Calls a server and prints what was measured, as JSON.
    Load {
        #[arg(value_enum)]
        stack: Stack,
        #[arg(long, value_enum, default_value = "multi")]
        runtime: Runtime,
        #[command(flatten)]
        load: load::Load,
    },
}

/// How tokio runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Runtime {
    /// As many threads as there are cores.
    Multi,
    /// One thread.
    Current,
}

impl Runtime {
    pub(crate) fn build(self) -> Result<tokio::runtime::Runtime> {
        let mut builder = match self {
            Self::Multi => tokio::runtime::Builder::new_multi_thread(),
            Self::Current => tokio::runtime::Builder::new_current_thread(),
        };
        builder.enable_all().build().context("cannot start a runtime")
    }
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Serve { stack, runtime, listen }) => runtime.build()?.block_on(async {
            let address = stack.serve(listen).await?;
            println!("{address}");
            std::io::stdout().flush()?;
            wait_for_end().await;
            Ok(())
        }),
        Some(Command::Load { stack, runtime, load }) => {
            let measured = runtime.build()?.block_on(load.run(stack))?;
            println!("{}", serde_json::to_string(&measured)?);
            Ok(())
        }
        None => cli.plan.run(),
    }
}

/// Waits for the end of standard input, which comes when the parent process ends.
async fn wait_for_end() {
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = ended.send(());
    });
    let _ = end.await;
}
