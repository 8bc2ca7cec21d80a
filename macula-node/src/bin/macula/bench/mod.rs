//! `macula bench`: calls a service at a rate or as fast as it answers, and shows how it did.
//!
//! An open loop starts each call at the time that the rate gives it, and counts its latency from that time: a service that stalls
//! does not slow the load down, so its stall shows (Gil Tene's coordinated omission). A closed loop keeps a number of calls in
//! flight and measures throughput.

mod load;
mod log;
mod summary;

use std::{io::IsTerminal, path::PathBuf, time::Duration};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use macula_node::{MAX_MESSAGE_BYTES, Node, ServiceName, Strategy};

use crate::{
    args::{MeshArgs, duration},
    failure::{Failure, print_line},
    mesh,
    signals::Signals,
};
use load::{Load, Pace};
use log::CallLog;

/// How often the progress bar is drawn.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// The service's name.
    service: ServiceName,
    #[command(flatten)]
    mesh: MeshArgs,
    /// Starts so many calls a second, whether or not earlier ones have ended; without it, --concurrency calls are always in flight.
    #[arg(long, value_name = "CALLS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// How many calls are in flight: always, or at most when there is a --rate [default: 64, or 65536 with --rate].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    concurrency: Option<u32>,
    /// How long calls are started.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// The size of each request, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=MAX_MESSAGE_BYTES as i64))]
    payload: u32,
    /// How a provider is chosen, as for `macula call`.
    #[arg(long, value_name = "STRATEGY", default_value = "random", env = "MACULA_STRATEGY")]
    strategy: Strategy,
    /// How long a whole call may take, like `2s` or `500ms`.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    timeout: Duration,
    /// Writes a JSON object for each call to this file: when it started, how it ended, and what was tried.
    #[arg(long, value_name = "FILE")]
    calls: Option<PathBuf>,
    /// Prints the summary as one JSON object.
    #[arg(long)]
    json: bool,
}

impl BenchArgs {
    fn pace(&self) -> Pace {
        match self.rate {
            Some(rate) => Pace::Open {
                every: Duration::from_secs(1) / rate,
                at_most: self.concurrency.unwrap_or(65_536),
            },
            None => Pace::Closed {
                in_flight: self.concurrency.unwrap_or(64),
            },
        }
    }
}

pub(crate) async fn run(args: BenchArgs) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let mut log = args.calls.as_deref().map(CallLog::create).transpose()?;
    let node = tokio::select! {
        node = mesh::client(&args.mesh, None) => node?,
        ended = signals.next() => return Err(ended),
    };
    let outcome = measure(&args, &node, log.as_mut(), &mut signals).await;
    node.shutdown().await;
    outcome
}

async fn measure(
    args: &BenchArgs,
    node: &Node,
    mut log: Option<&mut CallLog>,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let mut load = Load::start(args, node);
    let bar = progress(args);
    let mut redraw = tokio::time::interval(PROGRESS_EVERY);
    // An interrupted run shows what it has measured, and its exit code says that it was interrupted.
    let mut interrupted = None;
    loop {
        tokio::select! {
            biased;
            ended = signals.next(), if interrupted.is_none() => {
                interrupted = Some(ended);
                load.stop();
            }
            _ = redraw.tick() => {
                bar.set_position(load.elapsed().min(args.duration).as_millis() as u64);
                bar.set_message(load.so_far());
            }
            call = load.next() => {
                let Some(call) = call else { break };
                if let Some(log) = log.as_mut() {
                    log.write(&call)?;
                }
            }
        }
    }
    bar.finish_and_clear();
    if let Some(log) = log {
        log.finish()?;
    }
    let summary = load.summary(node.connection_stats());
    match args.json {
        true => print_line(summary.to_json())?,
        false => print_line(&summary)?,
    }
    match interrupted {
        Some(failure) => Err(failure),
        None if summary.failed() == 0 => Ok(()),
        None => Err(Failure::shown(1)),
    }
}

/// A bar on a terminal, and nothing elsewhere.
fn progress(args: &BenchArgs) -> ProgressBar {
    if args.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{wide_bar} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(args.duration.as_millis() as u64).with_style(style)
}
