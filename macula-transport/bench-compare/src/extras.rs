//! What else is measured of macula-transport: connections, memory, fairness and loss.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::ValueEnum;
use futures::future::join_all;
use serde_json::{Value, json};

use crate::{
    Runtime,
    load::{Load, Measured},
    macula::{self, Client},
    measure::{Server, round},
    proxy,
    stacks::{Echo as _, Stack, Worker},
};

/// What is measured of macula-transport alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Extra {
    /// A new connection and an open one.
    Connections,
    /// A server that is killed and started again.
    Restart,
    /// Connections and calls that wait.
    Memory,
    /// Small calls beside large ones.
    Fairness,
    /// A network that loses datagrams.
    Loss,
}

/// Each measurement as a table: those named, or all of them.
pub(crate) fn tables(named: &[Extra]) -> Result<Vec<Value>> {
    let named = if named.is_empty() {
        Extra::value_variants()
    } else {
        named
    };
    let runtime = Runtime::Multi.build()?;
    runtime.block_on(async {
        let mut tables = Vec::new();
        for extra in named {
            tables.push(match extra {
                Extra::Connections => connections().await?,
                Extra::Restart => restart().await?,
                Extra::Memory => memory().await?,
                Extra::Fairness => fairness().await?,
                Extra::Loss => loss().await?,
            });
        }
        Ok(tables)
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_nanos() as f64 / 1000.0
}

/// A call on a new connection beside one on an open connection.
async fn connections() -> Result<Value> {
    eprintln!("connections");
    let server = Server::start(Stack::Macula, Runtime::Multi)?;
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        let endpoint = macula::endpoint().await?;
        let started = Instant::now();
        let client = Client::on(endpoint, &server.address).await?;
        client.call(Bytes::from_static(b"x")).await?;
        cold.push(micros(started));
        for _ in 0..20 {
            let started = Instant::now();
            client.call(Bytes::from_static(b"x")).await?;
            warm.push(micros(started));
        }
    }
    let (cold, warm) = (median(cold), median(warm));
    Ok(json!({
        "name": "a call on a new connection and on an open one",
        "columns": ["", "p50 us"],
        "rows": [["handshake, introduction and first call", round(cold)], ["call on the open connection", round(warm)], ["gain of reuse", round(cold / warm)]],
    }))
}

/// From the moment a killed server serves again to the first call that it answers.
async fn restart() -> Result<Value> {
    eprintln!("restart");
    let endpoint = Arc::new(macula::endpoint().await?);
    let mut server = Server::start_at(Stack::Macula, Runtime::Multi, "127.0.0.1:0")?;
    let mut times = Vec::new();
    for _ in 0..5 {
        let port = server.address.split_once('@').context("no address")?.1.to_owned();
        let address = server.address.clone();
        Client::shared(&endpoint, &address)
            .await?
            .call(Bytes::from_static(b"x"))
            .await?;
        drop(server);
        server = Server::start_at(Stack::Macula, Runtime::Multi, &port)?;
        let started = Instant::now();
        loop {
            let call = async {
                Client::shared(&endpoint, &address)
                    .await?
                    .call_within(Bytes::from_static(b"x"), Duration::from_millis(500))
                    .await
            };
            if call.await.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        times.push(micros(started) / 1000.0);
    }
    Ok(json!({
        "name": "a server killed and started again on its port",
        "columns": ["", "ms"],
        "rows": [["ready to first answered call, median of 5", round(median(times.clone()))], ["the longest", round(times.iter().copied().fold(0.0, f64::max))]],
    }))
}

/// Memory of a server for connections and calls that wait.
async fn memory() -> Result<Value> {
    const CONNECTIONS: usize = 1000;
    const CALLS: usize = 100;
    eprintln!("memory: {CONNECTIONS} connections, {} calls", CONNECTIONS * CALLS);
    let server = Server::start(Stack::Macula, Runtime::Multi)?;
    let process = server.process();
    let empty = resident_kib(process)?;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(Arc::new(Client::on(macula::endpoint().await?, &server.address).await?));
    }
    let connected = resident_kib(process)?;
    let own_before = resident_kib(std::process::id())?;
    let calls: Vec<_> = clients
        .iter()
        .flat_map(|client| (0..CALLS).map(|_| client.clone()))
        .map(|client| tokio::spawn(async move { client.hang().await }))
        .collect();
    while macula::waiting(&clients[0]).await? < (CONNECTIONS * CALLS) as u64 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (waiting, own) = (resident_kib(process)?, resident_kib(std::process::id())?);
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    let per = |kib: f64, n: usize| round(kib / n as f64);
    Ok(json!({
        "name": format!("memory at {CONNECTIONS} connections and {} calls", CONNECTIONS * CALLS),
        "columns": ["", "KiB"],
        "rows": [
            ["server, an idle connection", per(connected - empty, CONNECTIONS)],
            ["server, a call that waits", per(waiting - connected, CONNECTIONS * CALLS)],
            ["client, a call that waits", per(own - own_before, CONNECTIONS * CALLS)],
        ],
    }))
}

fn resident_kib(process: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no memory statistics")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// Small calls alone, and beside large ones on the same connection.
async fn fairness() -> Result<Value> {
    eprintln!("fairness");
    let mut rows = Vec::new();
    let (mut alone, mut beside, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..5 {
        let server = Server::start(Stack::Macula, Runtime::Multi)?;
        let client = Arc::new(Client::on(macula::endpoint().await?, &server.address).await?);
        alone.push(small_calls(&client).await?);
        let transfers = Arc::new(AtomicU64::new(0));
        let transfer = {
            let (client, count) = (client.clone(), transfers.clone());
            tokio::spawn(async move {
                let body = Bytes::from(vec![1; 4 << 20]);
                while client.call(body.clone()).await.is_ok() {
                    count.fetch_add(1, Relaxed);
                }
            })
        };
        let before = transfers.load(Relaxed);
        let started = Instant::now();
        beside.push(small_calls(&client).await?);
        rates.push(4.194304 * (transfers.load(Relaxed) - before) as f64 / started.elapsed().as_secs_f64());
        transfer.abort();
    }
    for (name, of) in [("p50 us", 0), ("p99 us", 1)] {
        let pick = |values: &[[f64; 2]]| median(values.iter().map(|value| value[of]).collect());
        let (alone, beside) = (pick(&alone), pick(&beside));
        rows.push(json!([name, round(alone), round(beside), round(beside / alone)]));
    }
    rows.push(json!(["echoed beside, MB/s", null, round(median(rates)), null]));
    Ok(json!({
        "name": "16 callers of 64 B alone, and beside 4 MiB echoes on the same connection",
        "columns": ["", "alone", "beside", "ratio"], "rows": rows,
    }))
}

async fn small_calls(client: &Arc<Client>) -> Result<[f64; 2]> {
    let warm_until = Instant::now() + Duration::from_millis(100);
    let until = warm_until + Duration::from_millis(800);
    let workers = (0..16).map(|_| {
        let (client, worker) = (
            client.clone(),
            Worker {
                warm_until,
                until,
                times: Vec::new(),
            },
        );
        tokio::spawn(async move { client.run(Bytes::from(vec![2; 64]), worker).await })
    });
    let mut times = Vec::new();
    for worker in join_all(workers).await {
        times.append(&mut worker??.times);
    }
    times.sort_unstable();
    let at = |q: f64| {
        times
            .get((times.len() as f64 * q) as usize)
            .map_or(0.0, |&nanos| f64::from(nanos) / 1000.0)
    };
    Ok([at(0.5), at(0.99)])
}

/// A lane and a stream per call over a network of 10 ms round trip that loses datagrams.
async fn loss() -> Result<Value> {
    let mut rows = Vec::new();
    for loss in [0.0, 0.001, 0.01, 0.05] {
        for stack in [Stack::Macula, Stack::Quinn] {
            eprintln!("loss of {} %, {}", loss * 100.0, stack.name());
            let server = Server::start(stack, Runtime::Multi)?;
            let (prefix, address) = server
                .address
                .rsplit_once('@')
                .map_or(("", server.address.as_str()), |(node, at)| (node, at));
            let front = proxy::start(address.parse()?, Duration::from_millis(5), loss).await?;
            let address = if prefix.is_empty() {
                front.to_string()
            } else {
                format!("{prefix}@{front}")
            };
            let measured: Measured = Load {
                address,
                size: 64,
                in_flight: 64,
                millis: 3000,
            }
            .run(stack)
            .await?;
            rows.push(json!([
                format!("{} %", loss * 100.0),
                stack.name(),
                measured.calls_per_second.round(),
                round(measured.p50_us / 1000.0),
                round(measured.p99_us / 1000.0),
                round(measured.p999_us / 1000.0),
            ]));
        }
    }
    Ok(json!({
        "name": "64 B x 64 over 10 ms of round trip with loss",
        "columns": ["loss", "stack", "calls/s", "p50 ms", "p99 ms", "p99.9 ms"], "rows": rows,
    }))
}
