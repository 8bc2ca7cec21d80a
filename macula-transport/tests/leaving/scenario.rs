//! Two providers that leave and come back, and a caller whose calls must not run twice: a call is made again only when its attempt is
//! reported as not sent or refused.
#![allow(dead_code, reason = "the tests and the simulation each use their part of this")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, join_all};
use macula_transport::{
    CallError, CallKind, CallRequest, Config, Endpoint, Handler, Identity, IncomingCall, IncomingMessages, NoService,
    OutgoingMessages, PoolConfig, Reply,
    testing::{LinkConditions, Network},
};
use macula_wire::{SecretKey, ServiceName, StatusCode};
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

/// Longer than any call here waits.
const PATIENCE: Duration = Duration::from_secs(30);
/// The providers' numbers.
const PROVIDERS: [u8; 2] = [2, 3];

/// What happens to a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It shuts down in order, within so much time, and a new one takes its place.
    Leaves(Duration),
    /// It is killed, and a new one takes its place.
    Killed,
    /// It is dropped with all it has under way, and a new one takes its place.
    Dropped,
}

/// One run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) link: LinkConditions,
    pub(crate) calls: u32,
    /// From the start of one call to that of the next.
    pub(crate) pace: Duration,
    pub(crate) reply_bytes: usize,
    /// How long a handler takes.
    pub(crate) work: Duration,
    /// What happens, when, and to which of the two.
    pub(crate) fates: Vec<(Duration, usize, Fate)>,
    pub(crate) pool: PoolConfig,
}

/// What became of the calls of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) answered: u32,
    /// Calls of which it is not known whether they ran.
    pub(crate) unknown: u32,
    /// Calls that no attempt was made for, or only such as did not run.
    pub(crate) unserved: u32,
    /// Attempts reported as not sent or refused.
    pub(crate) promised: u32,
    /// Attempts that ran although they were reported as not sent or refused.
    pub(crate) broken_promises: u32,
    /// Calls that ran more than once.
    pub(crate) ran_twice: u32,
}

impl Found {
    pub(crate) fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.unknown += other.unknown;
        self.unserved += other.unserved;
        self.promised += other.promised;
        self.broken_promises += other.broken_promises;
        self.ran_twice += other.ran_twice;
    }
}

/// How often each attempt ran: by call, then by attempt.
type Runs = Arc<Mutex<BTreeMap<(u32, u32), u32>>>;

struct Service {
    runs: Runs,
    reply: Bytes,
    work: Duration,
}

impl Service {
    fn ran(&self, body: &[u8]) {
        let number = |at: usize| u32::from_le_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        *runs.entry((number(0), number(4))).or_default() += 1;
    }
}

impl Handler for Service {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        self.ran(call.body());
        let (reply, work) = (Reply::ok(self.reply.clone()), self.work);
        if work.is_zero() {
            return std::future::ready(reply).boxed();
        }
        async move {
            tokio::time::sleep(work).await;
            reply
        }
        .boxed()
    }

    fn kind(&self, call: &IncomingCall) -> CallKind {
        match call.service().as_str() {
            "stream" => CallKind::Streaming,
            _ => CallKind::Unary,
        }
    }

    fn stream(
        &self,
        _: IncomingCall,
        mut requests: IncomingMessages,
        mut replies: OutgoingMessages,
    ) -> BoxFuture<'static, Reply> {
        if let Some(body) = requests.take_only() {
            self.ran(&body);
        }
        let (reply, work) = (self.reply.clone(), self.work);
        async move {
            tokio::time::sleep(work).await;
            // The outcome says what became of the message.
            let _ = replies.gather(reply).await;
            Reply::ok("")
        }
        .boxed()
    }
}

async fn host(network: &Network, n: u8, handler: impl Handler, pool: PoolConfig) -> Endpoint {
    let identity = Identity::from_secret(SecretKey::from_bytes(&[n; SecretKey::LEN]));
    let config = Config::new(identity)
        .with_network(network)
        .with_pool(pool)
        .with_listen(([10, 0, 0, n], 9443).into());
    match Endpoint::bind(config, handler).await {
        Ok(endpoint) => endpoint,
        Err(error) => panic!("a host cannot be bound in memory: {error}"),
    }
}

/// What became of an attempt.
enum Attempt {
    Answered,
    /// It did not run, or so its caller is told.
    NotRun,
    Unknown,
}

/// Makes one attempt: over the lane or beside it, with one reply or several.
async fn attempt(caller: &Endpoint, n: u8, call: u32, attempt: u32) -> Attempt {
    let node = Identity::from_secret(SecretKey::from_bytes(&[n; SecretKey::LEN])).node_id();
    let Ok(at) = std::net::SocketAddr::from(([10, 0, 0, n], 9443)).try_into() else {
        return Attempt::NotRun;
    };
    let Ok(connection) = caller.pool().get(&node, &[at]).await else {
        return Attempt::NotRun;
    };
    let body = [call.to_le_bytes(), attempt.to_le_bytes()].concat();
    let service: ServiceName = match if call.is_multiple_of(3) { "stream" } else { "unary" }.parse() {
        Ok(service) => service,
        Err(_) => return Attempt::NotRun,
    };
    let request = CallRequest::new(&service, body).with_timeout(Duration::from_secs(10));
    let answered = if call.is_multiple_of(3) {
        let read = async {
            let mut replies = connection.open_with_only(request).await?;
            while replies.next().await?.is_some() {}
            Ok(replies.reply().map(|reply| reply.status))
        };
        read.await
    } else {
        connection.call(request).await.map(|reply| Some(reply.status))
    };
    match answered {
        Ok(Some(StatusCode::Ok)) => Attempt::Answered,
        Ok(_) | Err(CallError::Unknown(_)) => Attempt::Unknown,
        Err(_) => Attempt::NotRun,
    }
}

/// Runs a plan, in a paused runtime.
pub(crate) async fn run(plan: &Plan) -> Found {
    let network = Network::new(plan.seed).with_link(plan.link);
    let runs = Runs::default();
    let serve = async |at: usize| {
        let service = Service {
            runs: runs.clone(),
            reply: vec![7; plan.reply_bytes].into(),
            work: plan.work,
        };
        host(&network, PROVIDERS[at], service, PoolConfig::default()).await
    };
    let caller = host(&network, 1, NoService, plan.pool).await;
    let providers = async {
        let mut hosts = [serve(0).await, serve(1).await];
        let start = tokio::time::Instant::now();
        for &(when, at, fate) in &plan.fates {
            tokio::time::sleep_until(start + when).await;
            match fate {
                Fate::Leaves(grace) => hosts[at].shutdown(grace).await,
                Fate::Killed => network.kill(hosts[at].local_addr()),
                Fate::Dropped => {}
            }
            // The address is free once the other is gone from it.
            network.kill(hosts[at].local_addr());
            hosts[at] = serve(at).await;
        }
        hosts
    };
    let calls = join_all((0..plan.calls).map(|call| {
        let caller = &caller;
        async move {
            tokio::time::sleep(plan.pace * call).await;
            let mut promised = Vec::new();
            for attempt_number in 0..6 {
                let n = PROVIDERS[(call + attempt_number) as usize % PROVIDERS.len()];
                match attempt(caller, n, call, attempt_number).await {
                    Attempt::Answered => return (promised, Attempt::Answered),
                    Attempt::Unknown => return (promised, Attempt::Unknown),
                    Attempt::NotRun => promised.push((call, attempt_number)),
                }
            }
            (promised, Attempt::NotRun)
        }
    }));
    let (hosts, ended) = tokio::join!(providers, calls);
    // What is still under way arrives.
    tokio::time::sleep(PATIENCE).await;
    drop(hosts);
    let runs = runs.lock().unwrap_or_else(PoisonError::into_inner);
    let mut found = Found::default();
    for (call, (promised, end)) in (0_u32..).zip(ended) {
        match end {
            Attempt::Answered => found.answered += 1,
            Attempt::Unknown => found.unknown += 1,
            Attempt::NotRun => found.unserved += 1,
        }
        found.promised += promised.len() as u32;
        found.broken_promises += promised.iter().filter(|attempt| runs.contains_key(attempt)).count() as u32;
        let ran: u32 = runs.range((call, 0)..=(call, u32::MAX)).map(|(_, times)| times).sum();
        found.ran_twice += u32::from(ran > 1);
    }
    found
}

/// Runs a plan in a runtime of its own whose clock is paused.
pub(crate) fn run_alone(plan: &Plan) -> Found {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(run(plan)),
        Err(error) => panic!("no runtime: {error}"),
    }
}

/// Numbers drawn from a seed (SplitMix64).
struct Draw(SplitMix64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64() % bound
    }

    fn millis(&mut self, bound: u64) -> Duration {
        Duration::from_millis(self.below(bound))
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize].clone()
    }
}

/// The plan of a seed: long ways, losses, large replies, providers that leave, die and come back, connections that get old, idle and
/// make room.
pub(crate) fn drawn(seed: u64) -> Plan {
    let mut draw = Draw(SplitMix64::seed_from_u64(seed));
    let link = LinkConditions::new(Duration::from_millis(1) + draw.millis(150))
        .with_jitter(draw.millis(20))
        .with_loss(draw.of(&[0.0, 0.0, 0.01, 0.05]))
        .with_reordering(draw.of(&[0.0, 0.02]));
    let calls = 30;
    let pace = draw.millis(40) + Duration::from_millis(1);
    let mut fates = Vec::new();
    let mut at = Duration::ZERO;
    for turn in 0..3 {
        at += draw.millis(1 + (pace.as_millis() as u64) * u64::from(calls) / 2);
        let grace = draw.of(&[PATIENCE, PATIENCE, Duration::from_millis(100), Duration::ZERO]);
        let fate = draw.of(&[Fate::Leaves(grace), Fate::Leaves(grace), Fate::Killed, Fate::Dropped]);
        fates.push((at, turn % 2, fate));
    }
    let pool = PoolConfig {
        max_connections: draw.of(&[1, 2, 256]),
        idle_timeout: draw.of(&[Duration::from_millis(50), Duration::from_secs(90)]),
        max_age: draw.of(&[Duration::from_millis(300), Duration::from_secs(3600)]),
        ..PoolConfig::default()
    };
    Plan {
        seed,
        link,
        calls,
        pace,
        reply_bytes: draw.of(&[0, 1_000, 16 * 1024, 60_000, 300_000]),
        work: draw.of(&[Duration::ZERO, Duration::from_millis(5), Duration::from_millis(300)]),
        fates,
        pool,
    }
}
