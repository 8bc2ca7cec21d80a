//! `macula demo`: providers as separate processes, one of them killed, and no call lost.

mod fleet;
mod summary;
mod tally;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use macula_node::{Bytes, Client, Node, NodeId, ServiceName, Strategy};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};

use crate::{
    args::DemoArgs,
    failure::{Failure, print_line, say},
    signals::Signals,
};
use fleet::{Fleet, ProviderProcess};
use summary::Summary;
use tally::{Ended, Phase, Tally};

const SERVICE: &str = "demo.echo";

/// Callers at work at the same time.
const CALLERS: u32 = 8;

/// The calls are spread over this time, so that a person can watch, and so that a provider that comes back is back before
/// they end. Without a kill there is less to watch.
const SPREAD_OVER: Duration = Duration::from_secs(15);
const SPREAD_OVER_WITHOUT_KILL: Duration = Duration::from_secs(4);

/// While the killed provider has not answered again, the last [`LAST_SHARE`]th of the calls are spread over this time: it may
/// take the client a while to try it again.
const SPREAD_LAST_OVER: Duration = Duration::from_secs(25);
const LAST_SHARE: u32 = 6;

/// How long a provider is waited for before another is tried.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(500);

/// How long the client may take to learn all providers from the DHT.
const DISCOVERED_WITHIN: Duration = Duration::from_secs(15);

pub(crate) async fn run(args: DemoArgs) -> Result<(), Failure> {
    if args.providers == 1 && !args.no_kill {
        return Err(Failure::usage(
            "with one provider none is left when it is killed; start more, or add --no-kill",
        ));
    }
    if args.strategy == Strategy::Affinity {
        return Err(Failure::usage(
            "--strategy affinity goes by a key, which these calls have not; choose another strategy",
        ));
    }
    let mut signals = Signals::new()?;
    tokio::select! {
        outcome = demonstrate(&args) => outcome,
        ended = signals.next() => Err(ended),
    }
}

async fn demonstrate(args: &DemoArgs) -> Result<(), Failure> {
    narrate(args, &format!("starting {} providers of {SERVICE} …", args.providers));
    let mut fleet = Fleet::start(args.providers, SERVICE).await?;
    let providers: Vec<_> = fleet
        .providers
        .iter()
        .map(|p| (p.node_id, p.endpoint.clone()))
        .collect();
    let client = join(&fleet).await?;
    narrate(
        args,
        "the client knows one address and has learnt of every provider from the DHT",
    );

    let victim = if args.no_kill {
        None
    } else {
        victim(args, &client, &mut fleet).await?
    };
    let made = make_calls(args, &mut fleet, victim, client.client()).await?;
    let summary = Summary {
        tally: &made.tally,
        providers,
        killed: made.killed,
        stage: made.stage,
        connections_opened: client.connection_stats().opened,
        strategy: args.strategy,
        payload: args.payload,
    };
    if args.json {
        print_line(summary.to_json().context("the summary cannot be written as JSON")?)?;
    } else {
        print_line(&summary)?;
    }
    client.shutdown().await;
    fleet.stop().await;
    match made.tally.failed() {
        0 => Ok(()),
        _ => Err(Failure::shown(1)),
    }
}

/// Takes the provider to kill out of the fleet: one that is called.
async fn victim(args: &DemoArgs, client: &Node, fleet: &mut Fleet) -> anyhow::Result<Option<ProviderProcess>> {
    let first = match args.strategy {
        Strategy::First => client
            .lookup(&ServiceName::new(SERVICE)?)
            .await?
            .first()
            .map(|first| first.node_id),
        _ => None,
    };
    let at = fleet
        .providers
        .iter()
        .position(|provider| Some(provider.node_id) == first);
    let Some(last) = fleet.providers.len().checked_sub(1) else {
        return Ok(None);
    };
    let mut victim = fleet.providers.remove(at.unwrap_or(last));
    victim.bootstrap = fleet.providers.first().map(ProviderProcess::address);
    Ok(Some(victim))
}

fn narrate(args: &DemoArgs, line: &str) {
    if !args.json {
        say(line);
    }
}

/// Starts a client that knows the first provider's address only, and waits until it has learnt of the others.
async fn join(fleet: &Fleet) -> anyhow::Result<Node> {
    let bootstrap = fleet.providers.first().context("no provider was started")?.address();
    let client = Node::builder().client().bootstrap([bootstrap.parse()?]).start().await?;
    client.join().await?;
    let service = ServiceName::new(SERVICE)?;
    let everyone = async {
        let mut pause = tokio::time::interval(Duration::from_millis(50));
        loop {
            pause.tick().await;
            if client.lookup(&service).await?.len() == fleet.providers.len() {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(DISCOVERED_WITHIN, everyone)
        .await
        .with_context(|| format!("the client did not learn of every provider within {DISCOVERED_WITHIN:?}"))??;
    Ok(client)
}

/// The state that the callers share.
struct Work {
    client: Client,
    service: ServiceName,
    strategy: Strategy,
    payload: Bytes,
    calls: u32,
    phase: AtomicU8,
    schedule: Mutex<Schedule>,
    spread_over: Duration,
}

/// The next call and its time.
struct Schedule {
    next: u32,
    due: Instant,
}

impl Work {
    fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Acquire))]
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// When the next call is due; `None` when there is none.
    fn next_due(&self) -> Option<Instant> {
        let mut schedule = self.schedule.lock().unwrap_or_else(PoisonError::into_inner);
        if schedule.next >= self.calls {
            return None;
        }
        let last = self.calls / LAST_SHARE;
        let pause = match self.phase() {
            Phase::Down if last > 0 && schedule.next >= self.calls - last => SPREAD_LAST_OVER / last,
            Phase::Before | Phase::Down | Phase::Back => self.spread_over / self.calls,
        };
        schedule.next += 1;
        let due = schedule.due;
        schedule.due += pause;
        Some(due)
    }

    /// Makes calls when they are due until none is left.
    async fn caller(self: Arc<Self>, ended: mpsc::Sender<(Phase, Ended)>) {
        while let Some(due) = self.next_due() {
            tokio::time::sleep_until(due).await;
            let call = self.call().await;
            // A call that was under way when the provider was killed belongs to the failover.
            if ended.send((self.phase(), call)).await.is_err() {
                return;
            }
        }
    }

    async fn call(&self) -> Ended {
        let call = self
            .client
            .request(&self.service)
            .strategy(self.strategy)
            .attempt_timeout(ATTEMPT_TIMEOUT);
        let start = Instant::now();
        let outcome = call.send(self.payload.clone()).await;
        let took = start.elapsed();
        match outcome {
            Ok(answer) => Ended {
                by: answer.provider().map(|provider| provider.node_id),
                attempts: 1 + u32::try_from(answer.failed_attempts().len()).unwrap_or(u32::MAX),
                took,
            },
            Err(error) => {
                say(&format!("a call failed: {error}"));
                Ended {
                    by: None,
                    attempts: u32::try_from(error.attempts().len()).unwrap_or(u32::MAX),
                    took,
                }
            }
        }
    }
}

/// The results of the calls and of the kill.
struct Made {
    tally: Tally,
    stage: Stage,
    killed: Option<NodeId>,
}

async fn make_calls(
    args: &DemoArgs,
    fleet: &mut Fleet,
    mut victim: Option<ProviderProcess>,
    client: &Client,
) -> anyhow::Result<Made> {
    let work = Arc::new(Work {
        client: client.clone(),
        service: ServiceName::new(SERVICE)?,
        strategy: args.strategy,
        payload: (0..args.payload).map(|at| (at % 251) as u8).collect(),
        calls: args.calls,
        phase: AtomicU8::new(Phase::Before as u8),
        schedule: Mutex::new(Schedule {
            next: 0,
            due: Instant::now(),
        }),
        spread_over: if args.no_kill {
            SPREAD_OVER_WITHOUT_KILL
        } else {
            SPREAD_OVER
        },
    });
    let (ended, mut endings) = mpsc::channel(1024);
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS.min(args.calls) {
        callers.spawn(Arc::clone(&work).caller(ended.clone()));
    }
    drop(ended);

    let ids: Vec<_> = fleet
        .providers
        .iter()
        .chain(&victim)
        .map(|provider| provider.node_id)
        .collect();
    let bar = progress_bar(args);
    let mut tally = Tally::default();
    let killed = victim.as_ref().map(|victim| victim.node_id);
    let mut stage = Stage::Alive;
    let mut restarting = JoinSet::new();
    loop {
        tokio::select! {
            Some(restarted) = restarting.join_next() => {
                fleet.providers.push(restarted.context("the restart was given up")??);
            }
            ending = endings.recv() => {
                let Some((phase, call)) = ending else { break };
                tally.add(phase, call);
                bar.set_position(tally.calls());
                bar.set_message(counts(&ids, &tally, stage));
                match (stage, &mut victim) {
                    (Stage::Alive, Some(victim)) if tally.calls() >= u64::from(args.calls / 3) => {
                        work.enter(Phase::Down);
                        victim.kill().await?;
                        stage = Stage::Killed;
                    }
                    (Stage::Killed, slot) if tally.calls() >= u64::from(args.calls / 2) => {
                        if let Some(victim) = slot.take() {
                            restarting.spawn(victim.restart(SERVICE));
                        }
                        stage = Stage::Restarted;
                    }
                    (Stage::Restarted, _) if call.by.is_some() && call.by == killed => {
                        work.enter(Phase::Back);
                        stage = Stage::Back;
                    }
                    _ => {}
                }
            }
        }
    }
    bar.finish_and_clear();
    while let Some(restarted) = restarting.join_next().await {
        fleet.providers.push(restarted.context("the restart was given up")??);
    }
    // Killed and never started again, when there were too few calls.
    fleet.providers.extend(victim);
    while let Some(caller) = callers.join_next().await {
        caller.context("a caller ended early")?;
    }
    Ok(Made {
        tally,
        stage,
        killed: killed.filter(|_| stage != Stage::Alive),
    })
}

/// The state of the provider that is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Alive,
    Killed,
    Restarted,
    /// It has answered a call again.
    Back,
}

impl Stage {
    const fn note(self) -> &'static str {
        match self {
            Self::Alive => "",
            Self::Killed => " (killed)",
            Self::Restarted => " (restarted)",
            Self::Back => " (back)",
        }
    }
}

fn progress_bar(args: &DemoArgs) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} calls  {msg}");
    // The template is a constant. If it were wrong, the plain style would show that.
    ProgressBar::new(args.calls.into()).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// The calls that each provider has answered, the killed one last.
fn counts(ids: &[NodeId], tally: &Tally, stage: Stage) -> String {
    let counts: Vec<_> = ids
        .iter()
        .map(|id| format!("{} {}", id.short(), tally.answered_by(id)))
        .collect();
    format!("{}{}", counts.join("  "), stage.note())
}
