//! The DHT at up to a hundred thousand nodes, in virtual time: `cargo xtask sim dht -- --nodes 10000 --seed 1`.
//!
//! Every node is the real core. A round trip takes a log-normal time with a median of 50 ms; one message in 64 is encoded and decoded
//! on its way. The same seed gives the same trace hash.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod net;
mod queue;
mod report;
mod scenarios;

use std::{error::Error, fs, time::Instant};

use net::Net;
use report::{Report, number, text};

/// The options of the command line.
struct Options {
    nodes: usize,
    seed: u64,
    /// Only the scenarios named here; all when empty.
    only: Vec<String>,
}

fn options() -> Result<Options, Box<dyn Error>> {
    let mut options = Options {
        nodes: 1000,
        seed: 1,
        only: Vec::new(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--nodes" => options.nodes = value()?.parse()?,
            "--seed" => options.seed = value()?.parse()?,
            "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
            _ => {
                return Err(format!("{arg} is not an option; there are --nodes N, --seed N, --only SCENARIO,…").into());
            }
        }
    }
    if options.nodes < 100 {
        return Err("a network this small needs no simulation; give --nodes 100 or more".into());
    }
    Ok(options)
}

/// Resident memory, in MiB; 0 where the system does not say.
fn resident(line: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = status
        .lines()
        .find_map(|l| l.strip_prefix(line))
        .map(|l| l.trim().trim_end_matches(" kB").to_owned());
    value.and_then(|kib| kib.trim().parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// The processor time this process has used, in seconds: it measures the speed of one core on a busy machine, too.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    stat.split(' ')
        .next()
        .and_then(|ns| ns.parse::<f64>().ok())
        .unwrap_or(f64::NAN)
        / 1e9
}

fn bar(name: &str, done: usize, of: usize) {
    if done.is_multiple_of(of.div_ceil(40).max(1)) || done == of {
        let filled = 40 * done / of.max(1);
        eprint!(
            "\r{name:<34} [{}{}] {done}/{of}   ",
            "=".repeat(filled),
            " ".repeat(40 - filled)
        );
        if done == of {
            eprintln!();
        }
    }
}

/// Starts this program again with glibc's allocator asking for huge pages.
///
/// Every message goes to another node, so every one is a walk through memory that was not looked at for long. A core remembers
/// where some thousands of pages are; a hundred thousand nodes take 300 000 small pages, or 600 huge ones.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn ask_for_huge_pages() {
    use std::{env, os::unix::process::CommandExt, process::Command};

    const VARIABLE: &str = "GLIBC_TUNABLES";
    const TUNABLE: &str = "glibc.malloc.hugetlb";
    let tunables = env::var(VARIABLE).unwrap_or_default();
    if tunables.contains(TUNABLE) {
        return;
    }
    let tunables = format!("{tunables}:{TUNABLE}=1");
    let again = env::current_exe().map(|program| {
        Command::new(program)
            .args(env::args_os().skip(1))
            .env(VARIABLE, tunables.trim_start_matches(':'))
            .exec()
    });
    // It comes back only when it failed, and then all goes on, more slowly.
    let (Ok(error) | Err(error)) = again;
    eprintln!("goes on without huge pages: {error}");
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn ask_for_huge_pages() {}

fn main() -> Result<(), Box<dyn Error>> {
    let options = options()?;
    ask_for_huge_pages();
    let mut report = Report::default();
    let before = resident("VmRSS:");
    let wall = Instant::now();
    let mut net = Net::ideal(options.seed, options.nodes, |done| {
        bar("making acquaintances", done, options.nodes)
    });
    let made = wall.elapsed();
    let (cpu, count) = (cpu_seconds(), net.messages);
    let mut trace = 0;
    for (name, scenario) in scenarios::ALL {
        if options.only.is_empty() || options.only.iter().any(|only| only == name) {
            scenario(&mut net, &mut report, &mut |done, of| bar(name, done, of));
            trace = net.trace;
        }
    }
    let (elapsed, messages) = (cpu_seconds() - cpu, net.messages - count);
    let memory = resident("VmHWM:") - before;
    report.table(
        "the simulation itself",
        &["measure", "value", "target at 100 000 nodes"],
        vec![
            vec![text("nodes"), number(options.nodes as f64), text("")],
            vec![text("messages"), number(messages as f64), text("")],
            vec![
                text("messages a second of processor time"),
                number(messages as f64 / elapsed),
                text("≥ 500000"),
            ],
            vec![
                text("of them in lookups alone"),
                number(net.lookup_rate),
                text("≥ 500000"),
            ],
            vec![text("peak memory, MiB"), number(memory), text("≤ 2289")],
            vec![
                text("memory a node, KiB"),
                number(memory * 1024.0 / options.nodes as f64),
                text(""),
            ],
            vec![text("building the tables, s"), number(made.as_secs_f64()), text("")],
            vec![
                text("bytes a message (1 in 64 encoded)"),
                number(net.bytes_sampled.1 as f64 / net.bytes_sampled.0.max(1) as f64),
                text(""),
            ],
        ],
    );
    println!(
        "{:#}",
        report.finish(&format!("macula-dht, {} nodes", options.nodes), options.seed, trace)
    );
    Ok(())
}
