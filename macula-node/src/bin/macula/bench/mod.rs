//! `macula bench`: calls a service at a rate or as fast as it answers, and shows how it did.
//!
//! An open loop starts each call at the time that the rate gives it, and counts its latency from that time: a service that stalls
//! does not slow the load down, so its stall shows (Gil Tene's coordinated omission). A closed loop keeps a number of calls in
//! flight and measures throughput.

mod load;
mod log;
mod summary;

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, TryStreamExt as _, future::join_all, stream};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use macula_node::Node;

use crate::{
    args::BenchArgs,
    failure::{Failure, cause_first, print_line, say},
    mesh,
    signals::Signals,
};
use load::{Load, Pace};
use log::CallLog;
use summary::Summary;

/// How often the progress bar is drawn.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// How often a run says how it is doing where there is no terminal: in the log of a container.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Clients that join at the same time.
const MAX_JOINING: usize = 16;

fn pace(args: &BenchArgs) -> Pace {
    match args.rate {
        Some(rate) => Pace::Open {
            every: Duration::from_secs(1) / rate,
            at_most: args.concurrency.unwrap_or(65_536),
        },
        None => Pace::Closed {
            in_flight: args.concurrency.unwrap_or(64),
        },
    }
}

pub(crate) async fn run(args: BenchArgs) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let mut log = args.calls.as_deref().map(CallLog::create).transpose()?;
    let nodes = tokio::select! {
        nodes = clients(&args) => nodes?,
        ended = signals.next() => return Err(ended),
    };
    let outcome = measure(&args, &nodes, log.as_mut(), &mut signals).await;
    join_all(nodes.iter().map(Node::shutdown)).await;
    outcome
}

/// The nodes that call. They join at most [`MAX_JOINING`] at once: a crowd of handshakes is not measured here.
async fn clients(args: &BenchArgs) -> Result<Vec<Node>, Failure> {
    let joining = (0..args.clients).map(|_| mesh::client(&args.reach, None));
    stream::iter(joining).buffer_unordered(MAX_JOINING).try_collect().await
}

async fn measure(
    args: &BenchArgs,
    nodes: &[Node],
    mut log: Option<&mut CallLog>,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let lookups = look_up(args, &nodes[0]).await?;
    let mut load = Load::start(args, pace(args), nodes);
    let bar = progress(args);
    let mut redraw = tokio::time::interval(PROGRESS_EVERY);
    let mut told = Instant::now();
    let tells = !args.json && !std::io::stderr().is_terminal();
    // An interrupted run waits for the calls in flight, shows its measurements, and its exit code says that it was interrupted. The second
    // interruption gives those calls up.
    let mut interrupted = None;
    let mut gave_up = false;
    loop {
        tokio::select! {
            biased;
            ended = signals.next(), if !gave_up => {
                if interrupted.replace(ended).is_none() {
                    load.stop();
                } else {
                    load.give_up();
                    gave_up = true;
                }
            }
            _ = redraw.tick() => {
                bar.set_position(load.elapsed().min(args.duration).as_millis() as u64);
                bar.set_message(load.so_far());
                if tells && told.elapsed() >= TELL_EVERY {
                    told = Instant::now();
                    say(&load.so_far());
                }
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
    let (counts, lasted) = load.into_counts();
    let summary = Summary {
        counts,
        lasted,
        lookups,
        connections_opened: nodes.iter().map(|node| node.connection_stats().opened).sum(),
    };
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

/// Measures lookups in the directory, in microseconds.
async fn look_up(args: &BenchArgs, node: &Node) -> Result<Histogram<u64>, Failure> {
    let mut lookups = load::histogram();
    for _ in 0..args.lookups {
        let asked = Instant::now();
        let found = node.lookup(&args.service).await;
        found.map_err(|error| Failure::other(cause_first(&error)))?;
        lookups.saturating_record(u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    Ok(lookups)
}

/// A bar on a terminal, and nothing elsewhere, where [`measure`] writes lines.
fn progress(args: &BenchArgs) -> ProgressBar {
    if args.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{wide_bar} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(args.duration.as_millis() as u64).with_style(style)
}
