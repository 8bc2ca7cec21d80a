//! The simulation: Poisson arrivals at clients, each with a balancer of its own, in front of shared servers.
//!
//! Discrete events in the order of time, then of creation. Everything is drawn from one seeded generator, and every
//! event goes into the trace hash.

mod network;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use macula_select::{AttemptId, Balancer, BalancerConfig, Call, CallError, CallOptions, Fate, Output, Provider};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

use crate::cluster::{Mode, SECOND, Server};
use network::Way;

pub(crate) use network::Network;

pub(crate) type Nanos = u64;

/// One attempt, as a server sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Job {
    call: usize,
    life: u32,
    attempt: AttemptId,
}

pub(crate) struct Random(Xoshiro256PlusPlus);

impl Random {
    pub(crate) fn exponential(&mut self, mean: f64) -> Nanos {
        let unit = ((self.0.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        (-unit.ln() * mean) as Nanos
    }

    pub(crate) fn chance(&mut self, share: f64) -> bool {
        ((self.0.next_u64() >> 11) as f64) < share * (1u64 << 53) as f64
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.0.next_u64() % bound as u64) as usize
    }
}

/// What is simulated.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) seconds: u64,
    pub(crate) providers: u16,
    pub(crate) workers: u32,
    pub(crate) service: Nanos,
    pub(crate) queue_limit: usize,
    pub(crate) clients: usize,
    /// Calls a second from then on.
    pub(crate) load: Vec<(Nanos, f64)>,
    /// A provider's mode from then on.
    pub(crate) faults: Vec<(Nanos, u16, Mode)>,
    pub(crate) balancer: BalancerConfig,
    pub(crate) call: CallOptions,
    /// Whether an abort reaches a job that waits in a server's queue.
    pub(crate) aborts_arrive: bool,
    /// Without one, every attempt arrives at once.
    pub(crate) network: Option<Network>,
}

/// What came of it.
pub(crate) struct Outcome {
    /// Latencies of the calls that succeeded, sorted.
    pub(crate) latencies: Vec<Nanos>,
    pub(crate) calls: u64,
    pub(crate) attempts: u64,
    /// Attempts by provider.
    pub(crate) sent: Vec<u64>,
    pub(crate) timeline: Vec<Second>,
    pub(crate) trace: u64,
}

/// One second of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Second {
    /// Calls that began.
    pub(crate) calls: u64,
    /// Calls that succeeded.
    pub(crate) succeeded: u64,
    /// Attempts.
    pub(crate) attempts: u64,
    /// Of these, at provider 0.
    pub(crate) to_first: u64,
}

impl Outcome {
    /// The latency that this share of the successful calls did not exceed, in milliseconds.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let index = ((self.latencies.len() as f64 * share) as usize).min(self.latencies.len().saturating_sub(1));
        self.latencies
            .get(index)
            .map_or(f64::NAN, |latency| *latency as f64 / 1e6)
    }

    pub(crate) fn success(&self) -> f64 {
        self.latencies.len() as f64 / self.calls.max(1) as f64
    }

    pub(crate) fn amplification(&self) -> f64 {
        self.attempts as f64 / self.calls.max(1) as f64
    }

    pub(crate) fn share_of_first(&self) -> f64 {
        self.sent[0] as f64 / self.attempts.max(1) as f64
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    Fault(usize),
    /// A server's worker is done with a job.
    Served(u16, Job),
    /// A fate reaches the client.
    Answer(Job, usize),
    /// A call wants to be polled.
    Timer(usize, u32),
    /// A client's dial of a server is over.
    Dialed(usize, u16),
    /// A client looks whether a server was heard.
    Look(usize, u16),
}

struct Active {
    call: Call<u16>,
    client: usize,
    began: Nanos,
}

struct World {
    setup: Setup,
    origin: Instant,
    now: Nanos,
    sequence: u64,
    events: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    random: Random,
    servers: Vec<Server>,
    clients: Vec<Balancer<u16>>,
    calls: Vec<(u32, Option<Active>)>,
    vacant: Vec<usize>,
    /// By client, then by server.
    ways: Vec<Way>,
    /// Fates on their way to a client.
    fates: Vec<Fate>,
    outcome: Outcome,
}

pub(crate) fn run(setup: Setup) -> Outcome {
    let origin = Instant::now();
    let servers = (0..setup.providers)
        .map(|_| Server::new(setup.workers, setup.service, setup.queue_limit))
        .collect();
    let clients = (0..setup.clients).map(|client| {
        let mut balancer = Balancer::new(
            setup.balancer.clone(),
            setup.seed.wrapping_mul(1_000_003) + client as u64,
        );
        balancer.update(origin, (0..setup.providers).map(Provider::new));
        balancer
    });
    let mut world = World {
        origin,
        now: 0,
        sequence: 0,
        events: BinaryHeap::new(),
        random: Random(Xoshiro256PlusPlus::seed_from_u64(setup.seed)),
        servers,
        clients: clients.collect(),
        calls: Vec::new(),
        vacant: Vec::new(),
        ways: std::iter::repeat_with(Way::default)
            .take(setup.clients * usize::from(setup.providers))
            .collect(),
        fates: Vec::new(),
        outcome: Outcome {
            latencies: Vec::new(),
            calls: 0,
            attempts: 0,
            sent: vec![0; usize::from(setup.providers)],
            timeline: vec![Second::default(); setup.seconds as usize],
            trace: 0xcbf2_9ce4_8422_2325,
        },
        setup,
    };
    for fault in 0..world.setup.faults.len() {
        world.at(world.setup.faults[fault].0, Event::Fault(fault));
    }
    world.at(0, Event::Arrival);
    world.run();
    world.outcome.latencies.sort_unstable();
    world.outcome
}

impl World {
    fn run(&mut self) {
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            self.now = at;
            self.note(at);
            match event {
                Event::Arrival => self.arrive(),
                Event::Fault(fault) => {
                    let (_, provider, mode) = self.setup.faults[fault];
                    self.change(provider, mode);
                }
                Event::Served(provider, job) => {
                    if let Some((next, time)) = self.servers[usize::from(provider)].finish(&mut self.random) {
                        self.at(self.now + time, Event::Served(provider, next));
                    }
                    let fate = self.servers[usize::from(provider)].result(&mut self.random);
                    if let Some(fate) = self.servers[usize::from(provider)].reply(job, fate) {
                        self.answer(job, fate);
                    }
                }
                Event::Answer(job, fate) => self.answer(job, self.fates[fate]),
                Event::Dialed(client, provider) => self.dialed(client, provider),
                Event::Look(client, provider) => self.look(client, provider),
                Event::Timer(call, life) => {
                    if self.calls[call].0 == life {
                        self.drive(call);
                    }
                }
            }
        }
    }

    fn arrive(&mut self) {
        let rate = self
            .setup
            .load
            .iter()
            .rev()
            .find(|(from, _)| *from <= self.now)
            .map_or(0.0, |(_, rate)| *rate);
        let next = self.now + self.random.exponential(SECOND as f64 / rate);
        if next < self.setup.seconds * SECOND {
            self.at(next, Event::Arrival);
        }
        let client = self.random.below(self.clients.len());
        let call = self.vacant.pop().unwrap_or_else(|| {
            self.calls.push((0, None));
            self.calls.len() - 1
        });
        self.calls[call].1 = Some(Active {
            call: Call::new(self.instant(), self.setup.call.clone()),
            client,
            began: self.now,
        });
        self.outcome.calls += 1;
        self.second().calls += 1;
        self.drive(call);
    }

    fn answer(&mut self, job: Job, fate: Fate) {
        let now = self.instant();
        let (life, active) = &mut self.calls[job.call];
        if *life != job.life {
            return;
        }
        if let Some(active) = active {
            let to = active
                .call
                .attempts()
                .get(job.attempt)
                .map(|attempt| *attempt.provider());
            active
                .call
                .on_result(now, &mut self.clients[active.client], job.attempt, fate);
            if let Some(to) = to {
                self.forget(to, job);
            }
            self.drive(job.call);
        }
    }

    /// Polls a call until it waits.
    fn drive(&mut self, index: usize) {
        let now = self.instant();
        loop {
            let (life, active) = &mut self.calls[index];
            let (life, Some(active)) = (*life, active) else { return };
            match active.call.poll(now, &mut self.clients[active.client]) {
                Output::Dispatch { to, attempt, .. } => self.dispatch(
                    to,
                    Job {
                        call: index,
                        life,
                        attempt,
                    },
                ),
                Output::Recall { attempt } => {
                    let to = active.call.attempts().get(attempt).map(|attempt| *attempt.provider());
                    let job = Job {
                        call: index,
                        life,
                        attempt,
                    };
                    if to.is_some_and(|to| self.take_back(to, job)) {
                        self.answer(job, Fate::NotSent);
                    }
                }
                Output::Abort { attempt } => {
                    let to = active.call.attempts().get(attempt).map(|attempt| *attempt.provider());
                    let job = Job {
                        call: index,
                        life,
                        attempt,
                    };
                    if let Some(to) = to {
                        self.forget(to, job);
                        if self.setup.aborts_arrive {
                            self.servers[usize::from(to)].cancel(job);
                        }
                    }
                }
                Output::Wait(until) => {
                    let at = until.duration_since(self.origin).as_nanos() as Nanos;
                    return self.at(at, Event::Timer(index, life));
                }
                Output::Done(result) => {
                    let began = active.began;
                    self.calls[index] = (life + 1, None);
                    self.vacant.push(index);
                    return self.finish(began, result.is_ok(), result.err());
                }
                Output::Over => unreachable!("a call that is over is forgotten"),
            }
        }
    }

    fn dispatch(&mut self, to: u16, job: Job) {
        self.note(u64::from(to));
        self.send(to, job);
        let client = self.client_of(job);
        self.dial_behind(client);
    }

    /// The client whose attempt this is.
    fn client_of(&self, job: Job) -> usize {
        self.calls[job.call].1.as_ref().map_or(0, |active| active.client)
    }

    fn count_attempt(&mut self, to: u16) {
        self.outcome.attempts += 1;
        self.outcome.sent[usize::from(to)] += 1;
        let second = self.second();
        second.attempts += 1;
        second.to_first += u64::from(to == 0);
    }

    fn answer_later(&mut self, job: Job, fate: Fate, after: Nanos) {
        let index = self.fates.iter().position(|known| *known == fate).unwrap_or_else(|| {
            self.fates.push(fate);
            self.fates.len() - 1
        });
        self.at(self.now + after, Event::Answer(job, index));
    }

    /// Polls every call of a client: a link of its has changed.
    fn drive_all_of(&mut self, client: usize) {
        for index in 0..self.calls.len() {
            if self.calls[index]
                .1
                .as_ref()
                .is_some_and(|active| active.client == client)
            {
                self.drive(index);
            }
        }
    }

    fn finish(&mut self, began: Nanos, ok: bool, error: Option<CallError<u16>>) {
        if ok {
            self.outcome.latencies.push(self.now - began);
            self.second().succeeded += 1;
        }
        self.note(
            error
                .and_then(|error| error.attempts().map(|attempts| attempts.len() as u64))
                .unwrap_or(0),
        );
    }

    fn second(&mut self) -> &mut Second {
        let last = self.outcome.timeline.len() - 1;
        &mut self.outcome.timeline[((self.now / SECOND) as usize).min(last)]
    }

    fn at(&mut self, at: Nanos, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, event)));
    }

    fn instant(&self) -> Instant {
        self.origin + Duration::from_nanos(self.now)
    }

    fn note(&mut self, value: u64) {
        self.outcome.trace = (self.outcome.trace ^ value).wrapping_mul(0x0000_0100_0000_01b3);
    }
}
