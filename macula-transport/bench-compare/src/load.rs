//! One load: so many callers, so large a message, for so long.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::stacks::{Stack, Worker};

/// What is sent, and how.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Load {
    #[arg(long)]
    pub(crate) address: String,
    /// Bytes of a request and of its reply.
    #[arg(long)]
    pub(crate) size: usize,
    /// Calls at a time.
    #[arg(long)]
    pub(crate) in_flight: usize,
    /// How long is measured, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    pub(crate) millis: u64,
}

/// What a load measured.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) calls_per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    /// CPU time of the client for one call.
    pub(crate) cpu_us: f64,
    /// Peak memory of the client.
    pub(crate) peak_mib: f64,
    pub(crate) calls: f64,
}

const WARM_UP: Duration = Duration::from_millis(300);

impl Load {
    pub(crate) async fn run(&self, stack: Stack) -> Result<Measured> {
        let client: Arc<dyn crate::stacks::Echo> = stack.connect(&self.address).await?.into();
        let body = Bytes::from(vec![0x5a; self.size]);
        let warm_until = Instant::now() + WARM_UP;
        let until = warm_until + Duration::from_millis(self.millis);
        let workers: Vec<_> = (0..self.in_flight)
            .map(|_| {
                let (client, body) = (client.clone(), body.clone());
                let worker = Worker {
                    warm_until,
                    until,
                    times: Vec::with_capacity(1 << 14),
                };
                tokio::spawn(async move { client.run(body, worker).await })
            })
            .collect();
        tokio::time::sleep_until(warm_until.into()).await;
        let cpu_before = cpu_seconds(std::process::id())?;
        let mut times = Vec::new();
        for worker in workers {
            times.append(&mut worker.await??.times);
        }
        let cpu = cpu_seconds(std::process::id())? - cpu_before;
        times.sort_unstable();
        let calls = times.len().max(1) as f64;
        let quantile = |q: f64| {
            let at = ((times.len() as f64 * q) as usize).min(times.len().saturating_sub(1));
            times.get(at).map_or(0.0, |&nanos| f64::from(nanos) / 1000.0)
        };
        Ok(Measured {
            calls_per_second: calls / (self.millis as f64 / 1000.0),
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            cpu_us: cpu * 1e6 / calls,
            peak_mib: peak_mib(std::process::id())?,
            calls,
        })
    }
}

/// CPU time of a process so far, in seconds: the kernel counts it in hundredths.
pub(crate) fn cpu_seconds(process: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The second field is the program's name in brackets and may hold anything.
    let fields: Vec<_> = stat
        .rsplit_once(')')
        .context("no process statistics")?
        .1
        .split_whitespace()
        .collect();
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|text| text.parse::<f64>().ok())
            .context("no process statistics")
    };
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

pub(crate) fn peak_mib(process: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("no memory statistics")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
