//! The whole comparison: every stack in every case, in rounds, so that whatever else the machine does meets all alike.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;
use serde_json::json;

use crate::{
    Runtime,
    extras::Extra,
    load::{Measured, cpu_seconds, peak_mib},
    stacks::Stack,
};

/// What is compared.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Plan {
    /// Rounds, of which the median is taken.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each load is measured, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    millis: u64,
    /// Only these stacks.
    #[arg(long, value_enum, value_delimiter = ',')]
    stacks: Vec<Stack>,
    /// Bytes of a request.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 1024, 65_536])]
    sizes: Vec<usize>,
    /// Calls at a time.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 256])]
    in_flight: Vec<usize>,
    /// How tokio runs.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "multi,current")]
    runtimes: Vec<Runtime>,
    /// Leave out what is measured of macula-transport alone.
    #[arg(long)]
    no_extras: bool,
    /// Only these of what is measured of macula-transport alone.
    #[arg(long, value_enum, value_delimiter = ',')]
    extras: Vec<Extra>,
    /// Leave out the comparison.
    #[arg(long)]
    only_extras: bool,
}

type Case = (usize, usize, Runtime);

/// One load and its server's share.
#[derive(Debug, Clone, Copy)]
struct Sample {
    client: Measured,
    server_cpu_us: f64,
    server_peak_mib: f64,
}

/// A server in a process of its own, which ends when this is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
}

impl Server {
    pub(crate) fn start(stack: Stack, runtime: Runtime) -> Result<Self> {
        Self::start_at(stack, runtime, "127.0.0.1:0")
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn start_at(stack: Stack, runtime: Runtime, listen: &str) -> Result<Self> {
        let mut child = itself()?
            .args(["serve", &name(stack), "--runtime", &name(runtime), "--listen", listen])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("no standard output")?;
        let mut address = String::new();
        BufReader::new(stdout).read_line(&mut address)?;
        anyhow::ensure!(!address.is_empty(), "the server of {} did not start", stack.name());
        Ok(Self {
            child,
            address: address.trim().to_owned(),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn itself() -> Result<Command> {
    Ok(Command::new(std::env::current_exe()?))
}

fn name(value: impl clap::ValueEnum) -> String {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}

impl Plan {
    pub(crate) fn run(&self) -> Result<()> {
        let stacks = if self.stacks.is_empty() {
            Stack::value_variants()
        } else {
            &self.stacks
        };
        let mut samples: BTreeMap<(Case, Stack), Vec<Sample>> = BTreeMap::new();
        for round in 0..if self.only_extras { 0 } else { self.rounds } {
            for &size in &self.sizes {
                for &in_flight in &self.in_flight {
                    for &runtime in &self.runtimes {
                        for &stack in stacks {
                            eprintln!(
                                "round {} of {}: {size} B x {in_flight}, {runtime:?}, {}",
                                round + 1,
                                self.rounds,
                                stack.name()
                            );
                            let sample = self.measure(stack, (size, in_flight, runtime))?;
                            samples
                                .entry(((size, in_flight, runtime), stack))
                                .or_default()
                                .push(sample);
                        }
                    }
                }
            }
        }
        let mut document = self.document(&samples);
        if let (false, Some(tables)) = (self.no_extras, document["tables"].as_array_mut()) {
            tables.extend(crate::extras::tables(&self.extras)?);
        }
        println!("{document}");
        Ok(())
    }

    fn measure(&self, stack: Stack, (size, in_flight, runtime): Case) -> Result<Sample> {
        let server = Server::start(stack, runtime)?;
        let process = server.child.id();
        let before = cpu_seconds(process)?;
        let output = itself()?
            .args([
                "load",
                &name(stack),
                "--runtime",
                &name(runtime),
                "--address",
                &server.address,
            ])
            .args(["--size", &size.to_string(), "--in-flight", &in_flight.to_string()])
            .args(["--millis", &self.millis.to_string()])
            .stderr(Stdio::inherit())
            .output()?;
        anyhow::ensure!(output.status.success(), "the load on {} failed", stack.name());
        let client: Measured = serde_json::from_slice(&output.stdout)?;
        // The server also worked during the warm-up, at the same rate.
        let share = self.millis as f64 / (self.millis as f64 + 300.0);
        Ok(Sample {
            client,
            server_cpu_us: (cpu_seconds(process)? - before) * share * 1e6 / client.calls,
            server_peak_mib: peak_mib(process)?,
        })
    }

    fn document(&self, samples: &BTreeMap<(Case, Stack), Vec<Sample>>) -> serde_json::Value {
        let median = |case: Case, stack: Stack, of: fn(&Sample) -> f64| {
            let mut values: Vec<f64> = samples.get(&(case, stack)).into_iter().flatten().map(of).collect();
            values.sort_unstable_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        let cases: std::collections::BTreeSet<Case> = samples.keys().map(|&(case, _)| case).collect();
        let mut tables = Vec::new();
        let mut plots = Vec::new();
        for &runtime in &self.runtimes {
            let mut rows = Vec::new();
            for &case in cases.iter().filter(|case| case.2 == runtime) {
                let own = median(case, Stack::Macula, |sample| sample.client.calls_per_second);
                for stack in Stack::value_variants() {
                    let Some(calls) = median(case, *stack, |sample| sample.client.calls_per_second) else {
                        continue;
                    };
                    let of = |of| round(median(case, *stack, of).unwrap_or_default());
                    rows.push(json!([
                        format!("{} B x {}", case.0, case.1),
                        stack.name(),
                        calls.round(),
                        of(|sample| sample.client.p50_us),
                        of(|sample| sample.client.p99_us),
                        of(|sample| sample.client.p999_us),
                        of(|sample| sample.client.cpu_us + sample.server_cpu_us),
                        of(|sample| sample.client.peak_mib + sample.server_peak_mib),
                        own.map_or(0.0, |own| round(own / calls)),
                    ]));
                }
            }
            tables.push(json!({
                "name": format!("unary echo, {} runtime, medians of {}", name(runtime), self.rounds),
                "columns": ["case", "stack", "calls/s", "p50 us", "p99 us", "p99.9 us", "CPU us/call", "peak MiB", "macula's calls/s to it"],
                "rows": rows,
            }));
            for &size in &self.sizes {
                let series: Vec<_> = Stack::value_variants()
                    .iter()
                    .map(|&stack| {
                        let point = |&in_flight: &usize| {
                            let case = (size, in_flight, runtime);
                            median(case, stack, |sample| sample.client.calls_per_second).map(|calls| json!([in_flight, calls.round()]))
                        };
                        json!({ "name": stack.name(), "points": self.in_flight.iter().filter_map(point).collect::<Vec<_>>() })
                    })
                    .collect();
                plots.push(json!({
                    "name": format!("rpc-{size}-{}", name(runtime)),
                    "title": format!("Unary echo of {size} B, {} runtime", name(runtime)),
                    "x_label": "calls at a time", "y_label": "calls/s", "x_log": true, "y_log": true,
                    "series": series,
                }));
            }
        }
        json!({
            "title": "Unary echo over loopback, client and server as processes",
            "seed": 0, "tables": tables, "plots": plots, "trace_hash": null,
            "notes": [
                format!("{} ms a load after 300 ms of warm-up; every stack and case interleaved; CPU and memory of both processes", self.millis),
            ],
        })
    }
}

pub(crate) fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
