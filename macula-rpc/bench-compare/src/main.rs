//! Unary echo through tonic's stubs over HTTP/2 with mutual TLS and over the mesh, and beside them the mesh's own client and the
//! bare transport: client and server as processes of their own, every case interleaved in one run, medians of several rounds.
//!
//! Without arguments it starts itself once for each server and each load, and prints one JSON document.

mod echo;
mod stacks;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::stacks::Stack;

/// Rounds of each case; the medians are of these.
const ROUNDS: usize = 5;
const WARM_UP: Duration = Duration::from_millis(200);
const MEASURED: Duration = Duration::from_millis(600);
/// Bytes of a message, and calls at a time.
const CASES: [(usize, usize); 5] = [(64, 1), (64, 64), (64, 256), (1024, 64), (65_536, 64)];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match args[..] {
        ["serve", stack] => runtime()?.block_on(async {
            println!("{}", Stack::named(stack)?.serve().await?);
            std::io::stdout().flush()?;
            // The parent holds the other end of standard input, so its end stops this server.
            tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
            Ok(())
        }),
        ["load", stack, address, size, in_flight] => {
            let load = load(Stack::named(stack)?, address, size.parse()?, in_flight.parse()?);
            println!("{}", runtime()?.block_on(load)?);
            Ok(())
        }
        [] => compare(),
        _ => bail!("it takes no arguments"),
    }
}

/// Calls per second, and the median and 99th percentile of their times in microseconds, as text.
async fn load(stack: Stack, address: &str, size: usize, in_flight: usize) -> Result<String> {
    let client = Arc::new(stack.connect(address).await?);
    let body = Bytes::from(vec![0x5a; size]);
    let warm = Instant::now() + WARM_UP;
    let workers: Vec<_> = (0..in_flight)
        .map(|_| {
            let (client, body) = (Arc::clone(&client), body.clone());
            tokio::spawn(async move {
                let mut times = Vec::with_capacity(1 << 14);
                loop {
                    let start = Instant::now();
                    if start > warm + MEASURED {
                        return Ok::<_, anyhow::Error>(times);
                    }
                    client.call(body.clone()).await?;
                    if start >= warm {
                        times.push(start.elapsed().as_secs_f64() * 1e6);
                    }
                }
            })
        })
        .collect();
    let mut times = Vec::new();
    for worker in workers {
        times.extend(worker.await??);
    }
    times.sort_unstable_by(f64::total_cmp);
    let quantile = |q: f64| {
        times
            .get((times.len() as f64 * q) as usize)
            .copied()
            .unwrap_or_default()
    };
    let rate = times.len() as f64 / MEASURED.as_secs_f64();
    Ok(format!("{rate} {} {}", quantile(0.5), quantile(0.99)))
}

/// A server in a process of its own; it ends when its standard input does.
struct Serving {
    process: Child,
    address: String,
}

impl Serving {
    fn start(stack: Stack) -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["serve", stack.name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        BufReader::new(process.stdout.take().context("no output")?).read_line(&mut address)?;
        let address = address.trim().to_owned();
        Ok(Self { process, address })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        // It has ended, or never started.
        let _ = self.process.wait();
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn round(value: f64) -> Value {
    json!((value * 100.0).round() / 100.0)
}

fn compare() -> Result<()> {
    let servers = Stack::ALL.map(|stack| Ok::<_, anyhow::Error>((stack, Serving::start(stack)?)));
    let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    let mut rows = Vec::new();
    for (size, in_flight) in CASES {
        let mut rounds = vec![Vec::new(); servers.len()];
        for _ in 0..ROUNDS {
            for ((stack, server), rounds) in servers.iter().zip(&mut rounds) {
                let output = Command::new(std::env::current_exe()?)
                    .args(["load", stack.name(), &server.address])
                    .args([size.to_string(), in_flight.to_string()])
                    .stderr(Stdio::inherit())
                    .output()?;
                let text = String::from_utf8(output.stdout)?;
                let measured: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
                let [rate, p50, p99] = measured[..] else {
                    bail!("a load of {} failed", stack.name());
                };
                rounds.push([rate, p50, p99]);
            }
        }
        let of = |rounds: &[[f64; 3]], at: usize| median(rounds.iter().map(|it| it[at]).collect());
        let base = of(&rounds[0], 0);
        for ((stack, _), rounds) in servers.iter().zip(&rounds) {
            let rate = of(rounds, 0);
            eprintln!(
                "{size} B x {in_flight}: {} {rate:.0}/s, {:.2} x",
                stack.name(),
                rate / base
            );
            rows.push(json!([
                size,
                in_flight,
                stack.name(),
                round(rate),
                round(of(rounds, 1)),
                round(of(rounds, 2)),
                round(rate / base),
            ]));
        }
    }
    let report = json!({
        "title": "rpc: tonic's stubs over the mesh and over HTTP/2 with TLS",
        "seed": null,
        "tables": [{
            "name": "unary echo, client and server as processes",
            "columns": ["bytes", "in flight", "stack", "calls/s", "p50, us", "p99, us", "times tonic + TLS"],
            "rows": rows,
        }],
        "plots": [],
        "trace_hash": null,
        "notes": ["mutual TLS 1.3 on both; multi-thread runtimes; goal: stubs over macula at least 2 x at 64 B x 64"],
    });
    println!("{report}");
    Ok(())
}
