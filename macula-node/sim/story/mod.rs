//! A fixed story, measured: a mesh starts, serves calls, loses providers, gets them back, is partitioned, and heals.

mod fleet;
mod report;

use std::{
    collections::BTreeSet,
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use macula_node::Node;
use macula_rpc::{Answer, CallError, StopReason};
use macula_transport::testing::{LinkConditions, Network, Traffic};
use macula_wire::NodeId;
use tokio::{task::JoinSet, time::Instant};

use crate::random::Random;
use fleet::{Fleet, Part, SERVICE};

/// The fewest nodes that can be parted and still have providers on both sides.
const MIN_NODES: usize = 12;
/// The time between two calls of one caller, on average.
const CALL_EVERY: Duration = Duration::from_millis(25);
/// A twentieth of a second is far away for packets and near for people: nodes of one continent.
const LATENCY: Duration = Duration::from_millis(10);
const JITTER: Duration = Duration::from_millis(5);
const LOSS: f64 = 0.001;
/// How long a mesh that has come up is left alone before it is called.
const SETTLING: Duration = Duration::from_secs(5);

/// What the mesh goes through, and for how long.
const PHASES: [(&str, Duration); 5] = [
    ("all well", Duration::from_secs(20)),
    ("a third of the providers killed", Duration::from_secs(20)),
    ("restarted", Duration::from_secs(10)),
    ("a third of the mesh parted", Duration::from_secs(20)),
    ("healed", Duration::from_secs(20)),
];

/// One call, when it was over.
struct Sample {
    phase: usize,
    /// Its start, since the first call.
    at: Duration,
    took: Duration,
    attempts: usize,
    /// Whether it tried a provider that had been killed.
    met_the_dead: bool,
    error: Option<&'static str>,
}

struct Outcome {
    samples: Vec<Sample>,
    /// From the start of the first node until every one had joined.
    joined: Duration,
    providers: usize,
    callers: usize,
    traffic: Traffic,
    trace: u64,
}

/// What the callers share.
struct Book {
    network: Network,
    start: Instant,
    phase: Mutex<usize>,
    dead: Mutex<BTreeSet<NodeId>>,
    samples: Mutex<Vec<Sample>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The error's name, and for a call that was not retried the reason.
fn name(error: &CallError) -> &'static str {
    match error {
        CallError::NotRetried { reason, .. } => match reason {
            StopReason::Definitive => "not_retried: definitive",
            StopReason::Pushback => "not_retried: the provider's pushback",
            StopReason::BudgetExhausted => "not_retried: the retry budget is spent",
            StopReason::Begun => "not_retried: it had begun",
            _ => "not_retried: for a reason of a later version",
        },
        other => other.name(),
    }
}

impl Book {
    fn write(&self, phase: usize, start: Instant, outcome: &Result<Answer, CallError>) {
        let (tried, answered, error) = match outcome {
            Ok(answer) => (answer.failed_attempts(), 1, None),
            Err(error) => (error.attempts(), 0, Some(name(error))),
        };
        let dead = lock(&self.dead);
        let sample = Sample {
            phase,
            at: start - self.start,
            took: start.elapsed(),
            attempts: tried.len() + answered,
            met_the_dead: tried.iter().any(|attempt| dead.contains(&attempt.node_id)),
            error,
        };
        self.network.note(format_args!(
            "call {:?} {:?} {} {}",
            sample.at,
            sample.took,
            sample.attempts,
            error.unwrap_or("ok")
        ));
        lock(&self.samples).push(sample);
    }
}

/// Calls until the story is over; a slow call does not delay the next one.
async fn call(node: Node, book: Arc<Book>, mut random: Random) {
    let mut calls = JoinSet::new();
    loop {
        tokio::time::sleep(random.exponential(CALL_EVERY)).await;
        while calls.try_join_next().is_some() {}
        let phase = *lock(&book.phase);
        if phase == PHASES.len() {
            break;
        }
        let (book, client, start) = (Arc::clone(&book), node.client().clone(), Instant::now());
        calls.spawn(async move {
            let outcome = client.request(SERVICE).send("x").await;
            book.write(phase, start, &outcome);
        });
    }
    calls.join_all().await;
}

/// Runs the story in virtual time, and prints the measurements.
pub(super) fn show(nodes: usize, seed: u64) -> Result<(), Box<dyn Error>> {
    if nodes < MIN_NODES {
        return Err(format!("{nodes} nodes are too few to be parted; give --nodes {MIN_NODES} or more").into());
    }
    let started = std::time::Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    let outcome = runtime.block_on(tell(nodes, seed))?;
    eprintln!("{:.1} s", started.elapsed().as_secs_f64());
    println!("{}", report::document(nodes, seed, &outcome));
    Ok(())
}

async fn tell(nodes: usize, seed: u64) -> Result<Outcome, Box<dyn Error>> {
    let link = LinkConditions::new(LATENCY).with_jitter(JITTER).with_loss(LOSS);
    let network = Network::new(seed).with_link(link);
    let mut fleet = Fleet::start(network.clone(), nodes, seed).await?;
    let joins = fleet.members.iter().filter_map(|member| member.node.as_ref());
    for joined in join_all(joins.map(Node::join)).await {
        joined?;
    }
    let joined = network.elapsed();
    tokio::time::sleep(SETTLING).await;

    let book = Arc::new(Book {
        network: network.clone(),
        start: Instant::now(),
        phase: Mutex::new(0),
        dead: Mutex::default(),
        samples: Mutex::default(),
    });
    let (providers, callers) = (fleet.of(Part::Provider), fleet.of(Part::Caller));
    let mut calling = JoinSet::new();
    let mut random = Random::new(!seed);
    for &n in &callers {
        if let Some(node) = fleet.members[n].node.clone() {
            calling.spawn(call(node, Arc::clone(&book), Random::new(random.next())));
        }
    }
    let third = &providers[..providers.len() / 3];
    for (phase, (name, lasts)) in PHASES.into_iter().enumerate() {
        network.note(name);
        *lock(&book.phase) = phase;
        match phase {
            1 => {
                for &n in third {
                    let id = fleet.members[n].node.as_ref().map(Node::id);
                    lock(&book.dead).extend(id);
                    fleet.kill(n);
                }
            }
            2 => {
                lock(&book.dead).clear();
                for &n in third {
                    fleet.begin(n).await?;
                }
            }
            3 => {
                // Every third node of each part: both sides have directory nodes, providers and callers.
                let aside = [Part::Directory, Part::Provider, Part::Caller].map(|part| fleet.of(part));
                let aside = aside.iter().flat_map(|part| part.iter().step_by(3));
                network.partition(aside.map(|&n| fleet.members[n].addr));
            }
            4 => network.heal(),
            _ => {}
        }
        tokio::time::sleep(lasts).await;
    }
    *lock(&book.phase) = PHASES.len();
    calling.join_all().await;
    let samples = std::mem::take(&mut *lock(&book.samples));
    Ok(Outcome {
        samples,
        joined,
        providers: providers.len(),
        callers: callers.len(),
        traffic: network.traffic(),
        trace: network.trace_hash(),
    })
}
