//! One run: a mesh starts, serves calls, goes through its schedule of faults, heals, and is inspected at rest.

use std::{
    collections::BTreeSet,
    error::Error,
    sync::{OnceLock, PoisonError},
    time::{Duration, Instant},
};

use macula_node::{Node, Strategy};
use macula_rpc::ResolveOptions;
use macula_transport::testing::Network;
use tokio::task::JoinSet;

use crate::{
    fault::Schedule,
    load::{Caller, Plan, Policy, Shape},
    oracle::{self, Broken},
    random::Random,
    schedule::FAULTS_TO,
    truth::{Listed, Rest, Suspicions, Truth},
    world::{Part, World, services},
};

/// How long a mesh that has come up is left alone before it is called.
const SETTLING: Duration = Duration::from_secs(5);
/// The time in which the mesh heals after the last fault.
pub(super) const HEALING: Duration = Duration::from_secs(10);
/// How often each caller asks the directory itself.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Calls of each caller at rest, which go round: enough that one that is not connected yet is dialed meanwhile, and called.
const CALLS_AT_REST: usize = 64;
/// The time after the last node's end in which its tasks must end too.
const FADING: Duration = Duration::from_secs(60);

/// The result of a run.
pub(super) struct Outcome {
    pub(super) broken: Vec<Broken>,
    pub(super) trace: u64,
    pub(super) calls: usize,
    pub(super) failed: usize,
    pub(super) runs: usize,
    /// Virtual time.
    pub(super) lasted: Duration,
    /// Processor time, or on systems that do not tell it real time.
    pub(super) took: Duration,
}

/// Runs a schedule; an error is a failure of the simulation itself.
pub(super) fn run(schedule: &Schedule) -> Result<Outcome, Box<dyn Error>> {
    let started = processor_time();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    let (facts, trace, lasted) = runtime.block_on(async {
        let (truth, network) = live(schedule).await?;
        tokio::time::sleep(FADING).await;
        let (lasted, trace) = (truth.now(), network.trace_hash());
        let mut facts = std::mem::take(&mut *truth.facts());
        facts.rest.tasks = runtime.metrics().num_alive_tasks();
        Ok::<_, Box<dyn Error>>((facts, trace, lasted))
    })?;
    drop(runtime);
    let calls = facts.calls.iter();
    let failed = calls.filter(|call| call.end.as_ref().is_some_and(|(_, ended)| ended.is_failure()));
    Ok(Outcome {
        trace,
        calls: facts.calls.len(),
        failed: failed.count(),
        runs: facts.runs.len(),
        broken: oracle::judge(schedule, &facts),
        lasted,
        took: processor_time().saturating_sub(started),
    })
}

/// The time that this thread has had a processor.
fn processor_time() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = told.and_then(|told| told.split(' ').next()?.parse().ok());
    match nanos {
        Some(nanos) => Duration::from_nanos(nanos),
        None => START.get_or_init(Instant::now).elapsed(),
    }
}

async fn live(schedule: &Schedule) -> Result<(Truth, Network), Box<dyn Error>> {
    let network = Network::new(schedule.seed);
    let truth = Truth::new();
    let mut random = Random::new(!schedule.seed);
    let mut world = World::start(network.clone(), truth.clone(), schedule.nodes, schedule.seed).await?;
    let joining: Vec<Node> = world.nodes().map(|(_, _, node)| node.clone()).collect();
    for joined in futures::future::join_all(joining.iter().map(Node::join)).await {
        joined?;
    }
    drop(joining);
    tokio::time::sleep(SETTLING).await;

    let start = truth.now();
    let healed = truth.at(start + FAULTS_TO);
    let rests = healed + HEALING;
    let mut calling = JoinSet::new();
    for (n, node) in callers(&world) {
        let caller = caller(n, &node, &truth, &network);
        let rate = world.rate(n);
        let rate = move || *rate.lock().unwrap_or_else(PoisonError::into_inner);
        calling.spawn(caller.call_until(rests, Random::new(random.next()), rate));
        calling.spawn(look_until(rests, n, node, truth.clone(), Random::new(random.next())));
    }
    suffer(&mut world, schedule, &truth, start).await?;
    tokio::time::sleep_until(rests).await;
    calling.join_all().await;

    rest(&world, &truth, &network).await;
    world.end().await;
    Ok((truth, network))
}

fn callers(world: &World) -> Vec<(usize, Node)> {
    let nodes = world.nodes().filter(|(_, part, _)| *part == Part::Caller);
    nodes.map(|(n, _, node)| (n, node.clone())).collect()
}

fn caller(member: usize, node: &Node, truth: &Truth, network: &Network) -> Caller {
    Caller {
        member,
        client: node.client().clone(),
        truth: truth.clone(),
        network: network.clone(),
    }
}

/// Begins and ends each fault at its time.
async fn suffer(world: &mut World, schedule: &Schedule, truth: &Truth, start: Duration) -> Result<(), Box<dyn Error>> {
    let mut events: Vec<(Duration, bool, usize)> = Vec::new();
    for (n, fault) in schedule.faults.iter().enumerate() {
        let at = fault.at.min(FAULTS_TO);
        events.push((at, false, n));
        events.push(((at + fault.lasts).min(FAULTS_TO), true, n));
    }
    // The end of a fault comes after its start, and an event of an earlier fault before one of a later.
    events.sort_by_key(|&(at, ends, n)| (at, n, ends));
    for (at, ends, n) in events {
        tokio::time::sleep_until(truth.at(start + at)).await;
        if ends {
            world.heal(&schedule.faults[n]).await?;
        } else {
            world.strike(&schedule.faults[n]).await?;
        }
    }
    Ok(())
}

/// Asks the directory itself for each service, and looks at the node's connections, now and then.
async fn look_until(end: tokio::time::Instant, caller: usize, node: Node, truth: Truth, mut random: Random) {
    loop {
        tokio::time::sleep(random.exponential(LOOK_EVERY)).await;
        if tokio::time::Instant::now() >= end {
            return;
        }
        let open = node.connection_stats().open;
        let most = truth.facts().most_connections.max(open);
        truth.facts().most_connections = most;
        let suspicions = Suspicions {
            caller,
            at: truth.now(),
            count: node.transport_stats().suspicions,
        };
        truth.facts().suspicions.push(suspicions);
        for service in services() {
            let from = truth.now();
            let options = ResolveOptions::default().with_force_refresh(true);
            // An unreachable directory yields no list to judge.
            if let Ok(found) = node.client().providers(&service, options).await {
                let list = found.iter().map(|it| (it.node_id, it.endpoints.to_vec())).collect();
                let to = truth.now();
                truth.facts().lists.push(Listed { from, to, list });
            }
        }
    }
}

/// What each caller finds and reaches when everything has healed.
async fn rest(world: &World, truth: &Truth, network: &Network) {
    let mut seen = Rest {
        from: truth.now(),
        ..Rest::default()
    };
    let providers = world.nodes().filter(|(_, part, _)| *part == Part::Provider);
    seen.live = providers.map(|(_, _, node)| node.id()).collect();
    for (n, node) in callers(world) {
        for service in services() {
            let options = ResolveOptions::default().with_force_refresh(true);
            let found = node.client().providers(&service, options).await;
            let found = found.map(|found| found.iter().map(|it| it.node_id).collect::<BTreeSet<_>>());
            seen.found.push((n, found.map_err(|error| error.to_string())));
        }
        let caller = caller(n, &node, truth, network);
        for _ in 0..CALLS_AT_REST {
            let plan = Plan {
                shape: Shape::Unary,
                policy: Policy::Transient,
                strategy: Strategy::RoundRobin,
                timeout: Duration::from_secs(10),
                bytes: 8,
                cancel_after: None,
            };
            caller.start(plan).await;
        }
    }
    truth.facts().rest = seen;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Fault, Kind};

    #[test]
    fn the_same_schedule_gives_the_same_trace_and_another_seed_another() {
        let of = |seed| {
            let fault = Fault {
                at: Duration::from_secs(3),
                lasts: Duration::from_secs(2),
                who: vec![2],
                kind: Kind::Kill,
            };
            let schedule = Schedule {
                seed,
                nodes: 7,
                faults: vec![fault],
            };
            run(&schedule).unwrap().trace
        };
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }
}
