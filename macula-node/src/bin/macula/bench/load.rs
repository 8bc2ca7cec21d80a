//! The calls: started by pace, counted as they end.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures::stream;
use hdrhistogram::Histogram;
use macula_node::{Answer, Attempt, Bytes, CallBuilder, CallError, Client, Node, NodeId, ServiceName, Strategy};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
    time::Instant,
};

use crate::args::BenchArgs;

/// Calls that have ended and are not counted yet. A full queue holds calls back, and never loses one.
const MAX_UNCOUNTED: usize = 4096;

/// When calls start.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pace {
    /// At a rate, whether or not earlier calls have ended.
    Open { every: Duration, at_most: u32 },
    /// When an earlier one ends.
    Closed { in_flight: u32 },
}

/// One call that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// When it was due, from the start of the run.
    pub(super) due: Duration,
    /// When it was due, by the wall clock.
    pub(super) at: SystemTime,
    /// From when it was due to its end.
    pub(super) took: Duration,
    /// Messages of the reply.
    pub(super) replies: u64,
    pub(super) outcome: Result<Answered, CallError>,
}

/// A call that succeeded.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) provider: Option<NodeId>,
    /// Where the provider list was found; a stream does not say.
    source: Option<&'static str>,
    pub(super) failed_attempts: Vec<Attempt>,
}

impl From<Answer> for Answered {
    fn from(answer: Answer) -> Self {
        Self {
            provider: answer.provider().map(|provider| provider.node_id),
            source: Some(answer.source().name()),
            failed_attempts: answer.failed_attempts().to_vec(),
        }
    }
}

/// What is counted of one provider.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) answered: u64,
    /// Attempts that ended without its answer.
    pub(super) failed_attempts: u64,
    pub(super) latency: Histogram<u64>,
}

impl Default for Share {
    fn default() -> Self {
        Self {
            answered: 0,
            failed_attempts: 0,
            latency: histogram(),
        }
    }
}

/// Everything counted so far.
#[derive(Debug)]
pub(super) struct Counts {
    pub(super) latency: Histogram<u64>,
    pub(super) ok: u64,
    pub(super) attempts: u64,
    pub(super) errors: BTreeMap<&'static str, u64>,
    /// Where the answered calls found the provider list.
    pub(super) found_in: BTreeMap<&'static str, u64>,
    /// The first call that was answered: it looked the list up and opened a connection.
    pub(super) first_us: Option<u64>,
    /// Calls that were answered after an attempt had failed.
    pub(super) failed_over: Histogram<u64>,
    pub(super) providers: BTreeMap<NodeId, Share>,
}

/// Microseconds to 0.1 %, up to a day.
pub(super) fn histogram() -> Histogram<u64> {
    let bounded = Histogram::new_with_bounds(1, 86_400_000_000, 3);
    bounded.unwrap_or_else(|_| unreachable!("the bounds are constants that the histogram takes"))
}

impl Counts {
    fn new() -> Self {
        Self {
            latency: histogram(),
            ok: 0,
            attempts: 0,
            errors: BTreeMap::new(),
            found_in: BTreeMap::new(),
            first_us: None,
            failed_over: histogram(),
            providers: BTreeMap::new(),
        }
    }

    fn add(&mut self, call: &Ended) {
        let us = u64::try_from(call.took.as_micros()).unwrap_or(u64::MAX);
        self.latency.saturating_record(us);
        let failed = match &call.outcome {
            Ok(answer) => {
                self.ok += 1;
                self.attempts += 1;
                self.first_us.get_or_insert(us);
                if let Some(source) = answer.source {
                    *self.found_in.entry(source).or_default() += 1;
                }
                if !answer.failed_attempts.is_empty() {
                    self.failed_over.saturating_record(us);
                }
                if let Some(provider) = answer.provider {
                    let share = self.providers.entry(provider).or_default();
                    share.answered += 1;
                    share.latency.saturating_record(us);
                }
                &answer.failed_attempts[..]
            }
            Err(error) => {
                *self.errors.entry(error.name()).or_default() += 1;
                error.attempts()
            }
        };
        self.attempts += failed.len() as u64;
        for attempt in failed {
            self.providers.entry(attempt.node_id).or_default().failed_attempts += 1;
        }
    }
}

/// A run of calls.
#[derive(Debug)]
pub(super) struct Load {
    plan: Arc<Plan>,
    start: Instant,
    lasts: Duration,
    starter: JoinHandle<()>,
    ended: mpsc::Receiver<Ended>,
    counts: Counts,
    /// When the last call ended.
    over: Duration,
}

/// What every call of a run has in common.
#[derive(Debug)]
struct Plan {
    /// One for each node; calls take them in turn.
    clients: Vec<Client>,
    started: AtomicUsize,
    service: ServiceName,
    strategy: Strategy,
    timeout: Duration,
    payload: Bytes,
    /// The messages of each call, when it is a stream.
    messages: Option<u32>,
    start: Instant,
    started_at: SystemTime,
    /// No further call is to begin.
    stopped: AtomicBool,
}

impl Load {
    pub(super) fn start(args: &BenchArgs, pace: Pace, nodes: &[Node]) -> Self {
        let (done, ended) = mpsc::channel(MAX_UNCOUNTED);
        let start = Instant::now();
        let plan = Arc::new(Plan {
            clients: nodes.iter().map(|node| node.client().clone()).collect(),
            started: AtomicUsize::new(0),
            service: args.service.clone(),
            strategy: args.strategy,
            timeout: args.timeout,
            payload: Bytes::from(vec![b'm'; args.payload as usize]),
            messages: args.messages,
            start,
            started_at: SystemTime::now(),
            stopped: AtomicBool::new(false),
        });
        let until = start + args.duration;
        let starter = match pace {
            Pace::Open { every, at_most } => tokio::spawn(open_loop(Arc::clone(&plan), every, at_most, until, done)),
            Pace::Closed { in_flight } => tokio::spawn(closed_loop(Arc::clone(&plan), in_flight, until, done)),
        };
        Self {
            plan,
            start,
            lasts: args.duration,
            starter,
            ended,
            counts: Counts::new(),
            over: Duration::ZERO,
        }
    }

    /// Starts no further calls. Those in flight end by themselves and are counted.
    pub(super) fn stop(&mut self) {
        self.starter.abort();
        self.plan.stopped.store(true, Ordering::Relaxed);
    }

    /// Gives up the calls in flight.
    pub(super) fn give_up(&mut self) {
        self.ended.close();
    }

    /// The next call to end, counted; `None` when all have.
    pub(super) async fn next(&mut self) -> Option<Ended> {
        let call = self.ended.recv().await?;
        self.counts.add(&call);
        self.over = self.elapsed();
        Some(call)
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// One line for the progress bar.
    pub(super) fn so_far(&self) -> String {
        let failed: u64 = self.counts.errors.values().sum();
        format!("{} answered, {failed} failed", self.counts.ok)
    }

    /// Everything counted, and how long the run has lasted.
    pub(super) fn into_counts(self) -> (Counts, Duration) {
        let lasted = self.over.max(self.lasts.min(self.start.elapsed()));
        (self.counts, lasted)
    }
}

impl Plan {
    /// Makes one call that was due at `due`.
    async fn call(&self, due: Instant) -> Ended {
        let turn = self.started.fetch_add(1, Ordering::Relaxed) % self.clients.len();
        let call = self.clients[turn]
            .request(&self.service)
            .strategy(self.strategy)
            .timeout(self.timeout);
        let mut replies = 0;
        let outcome = match self.messages {
            Some(messages) => self.stream(call, messages, &mut replies).await,
            None => call.send(self.payload.clone()).await.map(|answer| {
                replies = 1;
                answer.into()
            }),
        };
        let since_start = due.saturating_duration_since(self.start);
        Ended {
            due: since_start,
            at: self.started_at + since_start,
            took: due.elapsed(),
            replies,
            outcome,
        }
    }

    async fn stream(&self, call: CallBuilder, messages: u32, replies: &mut u64) -> Result<Answered, CallError> {
        let requests = stream::iter(vec![self.payload.clone(); messages as usize]);
        let mut stream = call.stream(requests).await?;
        while stream.next().await?.is_some() {
            *replies += 1;
        }
        Ok(Answered {
            provider: stream.provider().map(|provider| provider.node_id),
            source: None,
            failed_attempts: Vec::new(),
        })
    }
}

async fn open_loop(plan: Arc<Plan>, every: Duration, at_most: u32, until: Instant, done: mpsc::Sender<Ended>) {
    let places = Arc::new(Semaphore::new(at_most as usize));
    let mut due = plan.start;
    while due < until {
        tokio::time::sleep_until(due).await;
        // Calls that wait for a place are late, and their latency says so: it counts from when they were due.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        tokio::spawn(one_call(Arc::clone(&plan), due, place, done.clone()));
        due += every;
    }
}

async fn one_call(plan: Arc<Plan>, due: Instant, place: OwnedSemaphorePermit, done: mpsc::Sender<Ended>) {
    tokio::select! {
        biased;
        () = done.closed() => {}
        ended = plan.call(due) => {
            drop(place);
            // A closed queue means that the run was stopped.
            let _ = done.send(ended).await;
        }
    }
}

async fn closed_loop(plan: Arc<Plan>, in_flight: u32, until: Instant, done: mpsc::Sender<Ended>) {
    for _ in 0..in_flight {
        let (plan, done) = (Arc::clone(&plan), done.clone());
        tokio::spawn(async move {
            while Instant::now() < until && !plan.stopped.load(Ordering::Relaxed) {
                let call = tokio::select! {
                    biased;
                    () = done.closed() => return,
                    call = plan.call(Instant::now()) => call,
                };
                if done.send(call).await.is_err() {
                    return;
                }
            }
        });
    }
}
