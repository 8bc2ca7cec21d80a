//! The callers: each makes calls at a fixed rate, whatever became of the calls before.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use macula_node::{BootstrapAddr, Node};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
};
use tonic::{
    Code,
    transport::{Channel, Endpoint, channel::Change},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{fleet::Fleet, provider::ECHO};

/// What a call may take at every caller: the default of Macula's.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Attempts of tonic's caller that retries.
const ATTEMPTS: usize = 3;
/// Changes of addresses that wait to be taken.
const MAX_CHANGES: usize = 64;

/// A call that has ended.
struct Called {
    from: Instant,
    took: Duration,
    ok: bool,
}

/// What one caller saw.
pub(crate) struct Seen {
    pub(crate) caller: &'static str,
    pub(crate) calls: usize,
    /// Although a provider lived during all of the call.
    pub(crate) failed: usize,
    /// While none lived.
    pub(crate) excused: usize,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) longest_ms: f64,
    pub(crate) over_a_second: usize,
    /// When the provider that came back last was first called, after it was ready.
    pub(crate) first_traffic: Option<Duration>,
    /// How often a provider was suspected.
    pub(crate) suspicions: Option<u64>,
}

/// The three callers of a scenario.
pub(crate) struct Callers {
    stop: Arc<AtomicBool>,
    runs: Vec<(&'static str, JoinHandle<Vec<Called>>)>,
    changes: mpsc::Sender<Change<usize, Endpoint>>,
    known: BTreeMap<usize, String>,
    nodes: Vec<Node>,
}

impl Callers {
    /// Starts them; the calls over the mesh are made by so many clients in turn.
    pub(crate) async fn start(
        bootstrap: BootstrapAddr,
        clients: usize,
        addresses: &BTreeMap<usize, String>,
        rate: f64,
    ) -> Result<Self> {
        let mut nodes = Vec::new();
        for _ in 0..clients {
            let node = Node::builder().client().bootstrap([bootstrap.clone()]).start().await?;
            node.join().await?;
            nodes.push(node);
        }
        let (channel, changes) = Channel::balance_channel::<usize>(MAX_CHANGES);
        let stop = Arc::new(AtomicBool::new(false));
        let every = Duration::from_secs_f64(1.0 / rate);
        let mut callers = Self {
            stop: Arc::clone(&stop),
            runs: Vec::new(),
            changes,
            known: BTreeMap::new(),
            nodes,
        };
        callers.set_addresses(addresses).await;
        let clients: Vec<_> = callers.nodes.iter().map(|node| node.client().clone()).collect();
        let turn = AtomicUsize::new(0);
        let mesh = move || {
            let client = clients[turn.fetch_add(1, Relaxed) % clients.len()].clone();
            async move { client.call(ECHO, "hello").await.is_ok() }
        };
        let once = {
            let channel = channel.clone();
            move || check(channel.clone(), 1)
        };
        let retried = move || check(channel.clone(), ATTEMPTS);
        callers.runs = vec![
            ("macula", tokio::spawn(call_until(Arc::clone(&stop), every, mesh))),
            (
                "tonic balanced",
                tokio::spawn(call_until(Arc::clone(&stop), every, once)),
            ),
            (
                "tonic balanced, retry on UNAVAILABLE",
                tokio::spawn(call_until(stop, every, retried)),
            ),
        ];
        Ok(callers)
    }

    /// Tells tonic's channel where the providers are now.
    pub(crate) async fn set_addresses(&mut self, addresses: &BTreeMap<usize, String>) {
        for (&provider, address) in addresses {
            if self.known.get(&provider) == Some(address) {
                continue;
            }
            let Ok(endpoint) = Endpoint::from_shared(format!("http://{address}")) else {
                continue;
            };
            let endpoint = endpoint.connect_timeout(Duration::from_secs(3)).tcp_nodelay(true);
            self.known.insert(provider, address.clone());
            // Fails when the channel is gone, and with it the calls.
            let _ = self.changes.send(Change::Insert(provider, endpoint)).await;
        }
    }

    /// Waits for every call, and sums them up. Times count from the first fault on.
    pub(crate) async fn end(self, first_fault: Instant, fleet: &Fleet) -> Result<Vec<Seen>> {
        self.stop.store(true, Relaxed);
        let mut seen = Vec::new();
        for (caller, run) in self.runs {
            seen.push(sum_up(caller, &run.await?, first_fault, &fleet.gaps)?);
        }
        let (first, nodes) = (fleet.first_calls(), self.nodes.iter());
        for seen in &mut seen {
            seen.first_traffic = first.tcp;
        }
        if let Some(macula) = seen.first_mut() {
            macula.first_traffic = first.mesh;
            macula.suspicions = Some(nodes.map(|node| node.transport_stats().suspicions).sum());
        }
        let ends: JoinSet<()> = self
            .nodes
            .into_iter()
            .map(|node| async move { node.shutdown().await })
            .collect();
        ends.join_all().await;
        Ok(seen)
    }
}

/// Calls at a fixed rate until told to stop, and waits for every call.
async fn call_until<F>(stop: Arc<AtomicBool>, every: Duration, call: impl Fn() -> F) -> Vec<Called>
where
    F: Future<Output = bool> + Send + 'static,
{
    let mut due = tokio::time::interval(every);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let mut calls = JoinSet::new();
    while !stop.load(Relaxed) {
        let from = due.tick().await.into_std();
        let call = call();
        calls.spawn(async move {
            let ok = call.await;
            let took = from.elapsed();
            Called { from, took, ok }
        });
    }
    calls.join_all().await
}

/// One call over tonic's channel, made again after UNAVAILABLE as often as there are attempts.
async fn check(channel: Channel, attempts: usize) -> bool {
    let calls = async {
        for left in (0..attempts).rev() {
            let mut client = HealthClient::new(channel.clone());
            match client.check(HealthCheckRequest::default()).await {
                Ok(_) => return true,
                Err(status) if status.code() == Code::Unavailable && left > 0 => {}
                Err(_) => return false,
            }
        }
        false
    };
    tokio::time::timeout(TIMEOUT, calls).await.unwrap_or(false)
}

fn sum_up(
    caller: &'static str,
    calls: &[Called],
    first_fault: Instant,
    gaps: &[(Instant, Option<Instant>)],
) -> Result<Seen> {
    let unserved = |call: &Called| {
        let overlaps = |&(from, to): &(Instant, Option<Instant>)| {
            call.from + call.took >= from && to.is_none_or(|to| call.from <= to)
        };
        gaps.iter().any(overlaps)
    };
    let served = calls.iter().filter(|call| call.from >= first_fault && !unserved(call));
    let mut times: Vec<f64> = served.map(|call| call.took.as_secs_f64() * 1e3).collect();
    times.sort_unstable_by(f64::total_cmp);
    let Some(&longest_ms) = times.last() else {
        bail!("{caller} made no call");
    };
    let quantile = |q: f64| {
        times
            .get((times.len() as f64 * q) as usize)
            .copied()
            .unwrap_or(longest_ms)
    };
    let count = |is: &dyn Fn(&Called) -> bool| calls.iter().filter(|call| is(call)).count();
    Ok(Seen {
        caller,
        calls: calls.len(),
        failed: count(&|call| !call.ok && !unserved(call)),
        excused: count(&|call| !call.ok && unserved(call)),
        p50_ms: quantile(0.5),
        p99_ms: quantile(0.99),
        longest_ms,
        over_a_second: times.iter().filter(|ms| **ms > 1_000.0).count(),
        first_traffic: None,
        suspicions: None,
    })
}
