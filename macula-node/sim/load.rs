//! The workload: calls of every kind, policy and strategy, made at random moments, beside earlier calls that still run.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use futures::stream;
use macula_node::{Attempt, CallBuilder, CallError, Channel, Client, Hedge, RetryPolicy, StopReason, Strategy};
use macula_transport::testing::Network;
use tokio::{task::JoinSet, time::Instant};
use tonic::codegen::http::uri::PathAndQuery;

use crate::{
    random::Random,
    raw_codec::Raw,
    services::{Ask, STREAM, STUB_PATH, Told, UNARY},
    truth::{Called, Cause, Ended, Truth, Try},
};

/// The time between two calls of one caller, on average.
const EVERY: Duration = Duration::from_millis(100);

/// How a call exchanges its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Unary,
    /// So many messages each way.
    Stream(u32),
    Stub,
}

/// How a call may go on when an attempt fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    Transient,
    AnyError,
    NeverProcessed,
    Hedged,
}

impl Policy {
    const ALL: [Self; 4] = [Self::Transient, Self::AnyError, Self::NeverProcessed, Self::Hedged];

    fn retries(self) -> RetryPolicy {
        match self {
            Self::Transient | Self::Hedged => RetryPolicy::Transient,
            Self::AnyError => RetryPolicy::AnyError,
            Self::NeverProcessed => RetryPolicy::NeverProcessed,
        }
    }
}

/// A call before it is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) shape: Shape,
    pub(super) policy: Policy,
    pub(super) strategy: Strategy,
    pub(super) timeout: Duration,
    pub(super) bytes: u32,
    /// When its caller gives it up.
    pub(super) cancel_after: Option<Duration>,
}

impl Plan {
    fn draw(random: &mut Random) -> Self {
        let shape = match random.below(10) {
            0..=5 => Shape::Unary,
            6 | 7 => Shape::Stream(1 + random.below(5) as u32),
            _ => Shape::Stub,
        };
        let strategy = random.pick(&Strategy::ALL);
        let policy = random.pick(&Policy::ALL);
        let timeout = match random.below(10) {
            0 => Duration::from_millis(500),
            1 => Duration::from_secs(2),
            _ => Duration::from_secs(10),
        };
        let bytes = match random.below(50) {
            0 => 200_000,
            1..=4 => 20_000,
            _ => random.below(200) as u32,
        };
        let cancel_after = random
            .percent(3)
            .then(|| random.between(Duration::ZERO, Duration::from_millis(200)));
        Self {
            shape,
            policy,
            strategy,
            timeout,
            bytes,
            cancel_after,
        }
    }

    fn options(&self, builder: CallBuilder, call: u64) -> CallBuilder {
        let builder = builder
            .strategy(self.strategy)
            .retry_policy(self.policy.retries())
            .timeout(self.timeout)
            .affinity(call % 7);
        match self.policy {
            Policy::Hedged => builder.idempotent().hedge(Hedge::AtP95),
            Policy::Transient | Policy::AnyError | Policy::NeverProcessed => builder,
        }
    }

    fn channel(&self, client: Client, call: u64) -> Channel {
        let channel = Channel::new(client)
            .with_strategy(self.strategy)
            .with_retry_policy(self.policy.retries())
            .with_timeout(self.timeout)
            .with_affinity(call % 7);
        match self.policy {
            Policy::Hedged => channel.with_hedge(Hedge::AtP95),
            Policy::Transient | Policy::AnyError | Policy::NeverProcessed => channel,
        }
    }
}

/// A caller of the workload.
pub(super) struct Caller {
    pub(super) member: usize,
    pub(super) client: Client,
    pub(super) truth: Truth,
    pub(super) network: Network,
}

impl Caller {
    /// Calls until the end, and waits for every call. `rate` is how many times as often as usual.
    pub(super) async fn call_until(self, end: Instant, mut random: Random, rate: impl Fn() -> u32) {
        let mut calls = JoinSet::new();
        loop {
            tokio::time::sleep(random.exponential(EVERY / rate())).await;
            while calls.try_join_next().is_some() {}
            if Instant::now() >= end {
                break;
            }
            let plan = Plan::draw(&mut random);
            calls.spawn(self.start(plan));
        }
        calls.join_all().await;
    }

    /// One call, written down from its start to its end.
    pub(super) fn start(&self, plan: Plan) -> impl Future<Output = ()> + Send + use<> {
        let (truth, network, client) = (self.truth.clone(), self.network.clone(), self.client.clone());
        let from = truth.now();
        let mut facts = truth.facts();
        let call = facts.calls.len();
        facts.calls.push(Called {
            plan,
            caller: self.member,
            from,
            end: None,
            tries: Vec::new(),
        });
        drop(facts);
        async move {
            let ask = Ask {
                call: call as u64,
                bytes: plan.bytes,
            };
            let work = make(&client, &plan, ask, from);
            let outcome = match plan.cancel_after {
                Some(after) => tokio::time::timeout(after, work).await.ok(),
                None => Some(work.await),
            };
            let (ended, tries) = outcome.unwrap_or((Ended::Cancelled, Vec::new()));
            let now = truth.now();
            network.note(format_args!("call {call} {} {}", tries.len(), word(&ended)));
            let mut facts = truth.facts();
            facts.calls[call].end = Some((now, ended));
            facts.calls[call].tries = tries;
        }
    }
}

fn word(ended: &Ended) -> &'static str {
    match ended {
        Ended::Answered { .. } => "answered",
        Ended::Garbled(_) => "garbled",
        Ended::Failed { name, .. } => name,
        Ended::Cancelled => "cancelled",
    }
}

type Outcome = (Ended, Vec<Try>);

async fn make(client: &Client, plan: &Plan, ask: Ask, from: Duration) -> Outcome {
    match plan.shape {
        Shape::Unary => unary(client, plan, ask, from).await,
        Shape::Stream(messages) => streaming(client, plan, ask, from, messages).await,
        Shape::Stub => stub(client, plan, ask).await,
    }
}

async fn unary(client: &Client, plan: &Plan, ask: Ask, from: Duration) -> Outcome {
    let call = plan.options(client.request(UNARY), ask.call);
    match call.send(ask.encode()).await {
        Ok(answer) => {
            let by = answer.provider().map(|provider| provider.node_id);
            let tries = tries(answer.failed_attempts(), from);
            let ended = match read(answer.payload(), ask, 0) {
                Ok(run) => Ended::Answered {
                    runs: [run].into(),
                    messages: 1,
                    by,
                },
                Err(text) => Ended::Garbled(text),
            };
            (ended, tries)
        }
        Err(error) => failed(&error, from),
    }
}

async fn streaming(client: &Client, plan: &Plan, ask: Ask, from: Duration, messages: u32) -> Outcome {
    let call = plan.options(client.request(STREAM), ask.call);
    let requests: Vec<Bytes> = (0..messages).map(|_| ask.encode()).collect();
    let mut replies = match call.stream(stream::iter(requests)).await {
        Ok(replies) => replies,
        Err(error) => return failed(&error, from),
    };
    let (mut runs, mut count) = (BTreeSet::new(), 0);
    loop {
        match replies.next().await {
            Ok(Some(reply)) => match read(&reply, ask, count) {
                Ok(run) => {
                    runs.insert(run);
                    count += 1;
                }
                Err(text) => return (Ended::Garbled(text), Vec::new()),
            },
            Ok(None) => break,
            Err(error) => return failed(&error, from),
        }
    }
    let by = replies.provider().map(|provider| provider.node_id);
    let ended = Ended::Answered {
        runs,
        messages: count as usize,
        by,
    };
    (ended, Vec::new())
}

async fn stub(client: &Client, plan: &Plan, ask: Ask) -> Outcome {
    let mut grpc = tonic::client::Grpc::new(plan.channel(client.clone(), ask.call));
    let path = PathAndQuery::from_static(STUB_PATH);
    let request = tonic::Request::new(ask.encode());
    let ended = match grpc.unary(request, path, Raw).await {
        Ok(answer) => match read(answer.get_ref(), ask, 0) {
            Ok(run) => Ended::Answered {
                runs: [run].into(),
                messages: 1,
                by: None,
            },
            Err(text) => Ended::Garbled(text),
        },
        Err(status) => Ended::Failed {
            name: name_of(&status),
            text: status.to_string(),
        },
    };
    (ended, Vec::new())
}

/// The name of the call's own error, with which a stub's status begins.
fn name_of(status: &tonic::Status) -> &'static str {
    const NAMES: [&str; 7] = [
        "all_providers_failed",
        "max_attempts_exceeded",
        "deadline_exceeded",
        "not_retried",
        "service_not_found",
        "unresolved",
        "begun",
    ];
    let known = NAMES.iter().find(|name| status.message().starts_with(**name));
    match known {
        Some(&"not_retried") if status.message().contains("too many calls") => "budget_exhausted",
        Some(name) => name,
        None => "answered",
    }
}

/// The run that gave an answer.
fn read(payload: &Bytes, ask: Ask, at: u32) -> Result<u64, String> {
    match Told::decode(payload.clone()) {
        Some(told) if told.call == ask.call && told.at == at => Ok(told.run),
        told => Err(format!("{} bytes, {told:?}, where message {at} was due", payload.len())),
    }
}

fn failed(error: &CallError, from: Duration) -> Outcome {
    let name = match error {
        CallError::NotRetried { reason, .. } => match reason {
            StopReason::BudgetExhausted => "budget_exhausted",
            StopReason::Begun => "begun",
            _ => error.name(),
        },
        error => error.name(),
    };
    let ended = Ended::Failed {
        name,
        text: error.to_string(),
    };
    (ended, tries(error.attempts(), from))
}

fn tries(attempts: &[Attempt], from: Duration) -> Vec<Try> {
    let tries = attempts.iter().map(|attempt| Try {
        id: attempt.node_id,
        endpoint: attempt.endpoint.clone(),
        from: from + attempt.started,
        took: attempt.took,
        cause: match attempt.cause {
            macula_node::Cause::NotSent(_) => Cause::NotSent,
            macula_node::Cause::Refused(_) => Cause::Refused,
            macula_node::Cause::TimedOut(_) => Cause::TimedOut,
            macula_node::Cause::Lost(_) => Cause::Lost,
            macula_node::Cause::Answered(_) => Cause::Answered,
            _ => Cause::Cancelled,
        },
    });
    tries.collect()
}
