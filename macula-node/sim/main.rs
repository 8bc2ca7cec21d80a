//! The whole mesh at dozens of nodes, over real QUIC on a network in memory, in virtual time:
//! `cargo xtask sim mesh -- --nodes 48 --seed 1`.
//!
//! Every node is a [`macula_node::Node`] with its directory, pool, selection and transport; only the wire is not there. Providers are killed and
//! restarted, the mesh is parted and healed, while callers keep calling. The same seed gives the same trace hash.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod fleet;
mod report;
mod story;

use std::{error::Error, time::Instant};

/// The fewest nodes that can be parted and still have providers on both sides.
const MIN_NODES: usize = 12;

fn options() -> Result<(usize, u64), Box<dyn Error>> {
    let (mut nodes, mut seed) = (48, 1);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--nodes" => nodes = value()?.parse()?,
            "--seed" => seed = value()?.parse()?,
            _ => return Err(format!("{arg} is not an option; there are --nodes N and --seed N").into()),
        }
    }
    if nodes < MIN_NODES {
        return Err(format!("{nodes} nodes are too few to be parted; give --nodes {MIN_NODES} or more").into());
    }
    Ok((nodes, seed))
}

fn main() -> Result<(), Box<dyn Error>> {
    let (nodes, seed) = options()?;
    let started = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    let outcome = runtime.block_on(story::tell(nodes, seed))?;
    eprintln!("{:.1} s", started.elapsed().as_secs_f64());
    println!("{}", report::document(nodes, seed, &outcome));
    Ok(())
}
