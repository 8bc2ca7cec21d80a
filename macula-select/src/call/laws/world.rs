//! A balancer, calls, and a model of each call that objects to whatever breaks a law.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::super::{AttemptId, Call, CallError, CallOptions, Output, StopReason};
use crate::balancer::{Balancer, BalancerConfig, Event, MAX_DIALS_AT_ONCE, ProviderState, RestoreReason};
use crate::fate::{Fate, Pushback};
use crate::policy::RetryPolicy;
use crate::provider::{Link, Provider};
use crate::window::Counts;

/// Everything that a story is about.
#[derive(Clone)]
pub(super) struct World {
    pub(super) balancer: Balancer<u32>,
    pub(super) now: Instant,
    /// The latest time there was: the clock may be set back.
    latest: Instant,
    pub(super) members: BTreeSet<u32>,
    pub(super) draining: BTreeSet<u32>,
    pub(super) calls: Vec<Watched>,
}

/// A call, and what an onlooker knows of it.
#[derive(Clone)]
pub(super) struct Watched {
    call: Call<u32>,
    options: CallOptions,
    deadline: Instant,
    /// The providers it was sent to, in order.
    tried: Vec<u32>,
    pub(super) live: Vec<AttemptId>,
    /// Attempts that were sent, or still may be.
    sent: u32,
    /// Of these, ended while their providers were silent.
    lost: u32,
    /// Attempts that it wanted to take back.
    recalled: Vec<AttemptId>,
    /// Whether an attempt ended in doubt.
    doubt: bool,
    /// The last fate that came back, and whose it was.
    last: Option<(AttemptId, Fate)>,
    /// Whether a provider asked for a pause since the last dispatch.
    pushed_back: bool,
    /// Whether a provider asked that it not be retried.
    stopped: bool,
    cancelled: bool,
    waits: Option<Instant>,
    /// Whether it was polled past its deadline before it had ended.
    overdue: bool,
    pub(super) done: bool,
}

impl World {
    pub(super) fn new(config: BalancerConfig, members: u32, seed: u64) -> Self {
        let now = Instant::now();
        let mut world = Self {
            balancer: Balancer::new(config, seed),
            now,
            latest: now,
            members: BTreeSet::new(),
            draining: BTreeSet::new(),
            calls: Vec::new(),
        };
        world.update((0..members).collect());
        world
    }

    /// Begins a call and lets it do what it does at once.
    pub(super) fn call(&mut self, options: CallOptions) {
        let call = Call::new(self.now, options.clone());
        self.calls.push(Watched {
            deadline: call.deadline(),
            call,
            options,
            tried: Vec::new(),
            live: Vec::new(),
            sent: 0,
            lost: 0,
            recalled: Vec::new(),
            doubt: false,
            last: None,
            pushed_back: false,
            stopped: false,
            cancelled: false,
            waits: None,
            overdue: false,
            done: false,
        });
        self.run();
    }

    pub(super) fn update(&mut self, members: BTreeSet<u32>) {
        self.draining.retain(|key| members.contains(key));
        self.balancer
            .update(self.now, members.iter().copied().map(Provider::new));
        self.members = members;
        self.run();
    }

    pub(super) fn link(&mut self, key: u32, link: Link) {
        let before = self.state(key);
        self.balancer.link(self.now, &key, link);
        match link {
            Link::Draining if self.members.contains(&key) => {
                self.draining.insert(key);
            }
            Link::Up | Link::Down => {
                self.draining.remove(&key);
            }
            Link::Idle | Link::Suspected | Link::Draining => {}
        }
        if before == Some(ProviderState::Down) {
            let is = self.state(key);
            let back = matches!(link, Link::Up | Link::Draining);
            assert_eq!(is == before, !back, "H5: a provider that is down came back by {link:?}");
        }
        if link == Link::Up && self.members.contains(&key) {
            let state = self.state(key);
            assert!(before == Some(ProviderState::Suspected) || before == state || state == Some(ProviderState::Ready));
        }
        self.run();
    }

    pub(super) fn renew(&mut self, key: u32) {
        self.balancer.renew(self.now, &key);
        self.draining.remove(&key);
        self.run();
    }

    /// Dials whatever is to be dialed, with this outcome.
    pub(super) fn dial(&mut self, outcome: Link) {
        let mut dialed = 0;
        while let Some(key) = self.balancer.poll_dial(self.now) {
            dialed += 1;
            assert!(dialed <= MAX_DIALS_AT_ONCE, "more dials at once than allowed");
            assert!(self.usable_now().contains(&key), "{key} is gone or drains");
            self.balancer.link(self.now, &key, outcome);
        }
        let next = self.balancer.next_dial();
        assert!(
            next.is_none_or(|next| next > self.now.min(self.latest)),
            "a dial is due and was not given"
        );
        self.run();
    }

    fn usable_now(&self) -> BTreeSet<u32> {
        self.members.difference(&self.draining).copied().collect()
    }

    fn state(&self, key: u32) -> Option<ProviderState> {
        let mut states = self.states().into_iter();
        states.find(|(other, _)| *other == key).map(|(_, state)| state)
    }

    fn is_silent(&self, key: u32) -> bool {
        matches!(self.state(key), Some(ProviderState::Suspected | ProviderState::Down))
    }

    /// The providers of a call's attempts in flight.
    fn in_flight_at(&self, index: usize) -> Vec<u32> {
        let watched = &self.calls[index];
        watched
            .live
            .iter()
            .map(|attempt| watched.tried[attempt.index()])
            .collect()
    }

    /// Moves the clock, back too.
    pub(super) fn set_clock(&mut self, now: Instant) {
        self.now = now;
        self.latest = self.latest.max(now);
        self.run();
    }

    /// The next moment at which anything is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let waits = self
            .calls
            .iter()
            .filter(|watched| !watched.done)
            .filter_map(|watched| watched.waits);
        waits.chain(self.balancer.poll_timeout()).min()
    }

    pub(super) fn result(&mut self, index: usize, attempt: AttemptId, fate: Fate) {
        let before = self.states();
        let counts = self.counts();
        while self.balancer.poll_event().is_some() {}
        let silent = self.calls[index]
            .tried
            .get(attempt.index())
            .is_some_and(|key| self.is_silent(*key));
        let watched = &mut self.calls[index];
        let was_live = watched.live.contains(&attempt);
        let lease = watched.call.live.iter().find(|live| live.attempt == attempt);
        let probe = lease.map_or((0, 0), |live| {
            (live.lease.probe, self.balancer.current_epoch(live.lease.handle))
        });
        let provider = watched.tried.get(attempt.index()).copied();
        let issued = self.balancer.stats();
        watched.call.on_result(self.now, &mut self.balancer, attempt, fate);
        if was_live {
            watched.live.retain(|live| *live != attempt);
            watched.last = Some((attempt, fate));
            watched.pushed_back |= matches!(fate.pushback(), Some(Pushback::After(_)));
            watched.stopped |= watched.options.policy.retries(&fate) && fate.pushback() == Some(Pushback::Stop);
            watched.doubt |= matches!(fate, Fate::Unknown(_) | Fate::Answered { .. });
            watched.sent -= u32::from(fate == Fate::NotSent);
            watched.lost += u32::from(silent && matches!(fate, Fate::Unknown(_)));
        } else {
            assert_eq!(self.balancer.stats(), issued, "law 10: a straggler changed something");
        }
        if fate == Fate::Cancelled {
            assert_eq!(self.counts(), counts, "law 14: a cancellation counted");
        }
        let capped: Vec<u32> = std::iter::from_fn(|| self.balancer.poll_event())
            .filter_map(|event| match event {
                Event::Restored {
                    provider,
                    reason: RestoreReason::CapExceeded,
                } => Some(provider),
                _ => None,
            })
            .collect();
        let after = self.states();
        for ((key, was), (_, is)) in before.iter().zip(&after) {
            let left = matches!(was, ProviderState::HalfOpen | ProviderState::Probing)
                && matches!(is, ProviderState::Ready | ProviderState::Ejected);
            if left && !capped.contains(key) {
                assert_eq!(provider, Some(*key), "law 16: another provider's report decided");
                assert!(
                    probe.0 != 0 && probe.0 == probe.1,
                    "law 16: not the current probe decided"
                );
            }
        }
        self.run();
    }

    pub(super) fn cancel(&mut self, index: usize) {
        let counts = self.counts();
        let watched = &mut self.calls[index];
        watched.call.cancel(self.now, &mut self.balancer);
        watched.cancelled |= !watched.done;
        assert_eq!(watched.call.live.iter().count(), 0, "law 13: a lease was kept");
        assert_eq!(self.counts(), counts, "law 14: a cancellation counted");
        self.run();
    }

    /// Polls every call until it waits, and checks what has to hold then.
    fn run(&mut self) {
        for index in 0..self.calls.len() {
            while self.step(index) {}
            // Half of those that it wants back were not sent yet.
            while let Some(attempt) = self.calls[index].recalled.pop() {
                if attempt.index() % 2 == 0 && self.calls[index].live.contains(&attempt) {
                    self.result(index, attempt, Fate::NotSent);
                }
            }
        }
        let live: usize = self.calls.iter().map(|watched| watched.live.len()).sum();
        let stats = self.balancer.stats();
        assert_eq!(
            stats.in_flight(),
            live as u64,
            "law 2: leases issued = reported + in flight"
        );
        self.check_cap();
        self.check_probes();
    }

    /// One poll. Whether there may be more to do.
    fn step(&mut self, index: usize) -> bool {
        self.balancer.handle_timeout(self.now);
        let before = self.states();
        let latest = self.calls[index].call.latest.max(self.now);
        let overdue = latest >= self.calls[index].deadline && !self.calls[index].has_ended();
        self.calls[index].overdue |= overdue;
        let in_flight = self.in_flight_at(index);
        let silent = match self.balancer.any_silent() {
            true => in_flight.iter().filter(|key| self.is_silent(**key)).count(),
            false => 0,
        };
        let (silent, all_silent) = (silent as u32, silent == in_flight.len());
        let connected = self.links();
        let output = self.calls[index].call.poll(self.now, &mut self.balancer);
        let usable = self.usable(index);
        let links = &connected;
        let watched = &mut self.calls[index];
        assert!(
            !watched.done || matches!(output, Output::Over),
            "law 1: {output:?} after the end"
        );
        match output {
            Output::Dispatch {
                to,
                attempt,
                until,
                hedge,
            } => {
                assert!(usable.contains(&to), "laws 3, 21: {to} was tried, is gone or drains");
                assert!(latest < watched.deadline, "law 11: dispatched past the deadline");
                assert!(
                    until <= watched.deadline && until <= latest + watched.options.attempt_timeout,
                    "law 12"
                );
                let never_twice = matches!(watched.options.policy, RetryPolicy::NeverProcessed);
                assert!(
                    !(never_twice && watched.doubt),
                    "law 7: dispatched though the call may have run"
                );
                assert!(!never_twice || watched.live.is_empty(), "law 8: two in flight");
                assert_eq!(hedge, !watched.live.is_empty(), "a second attempt in flight is a hedge");
                assert!(
                    !hedge || watched.options.idempotent || all_silent,
                    "law 27: hedged without consent"
                );
                assert!(watched.live.len() < 2 || all_silent);
                assert_eq!(attempt.index(), watched.tried.len());
                watched.tried.push(to);
                watched.live.push(attempt);
                watched.sent += 1;
                watched.waits = None;
                watched.pushed_back &= hedge;
                assert!(!watched.stopped, "law 26: dispatched though a provider asked to stop");
                let limit = watched.options.max_attempts.unwrap_or(3);
                assert!(
                    watched.sent - watched.lost - silent <= limit,
                    "law 4: {} of {limit} attempts",
                    watched.sent
                );
                let state = |key| before.iter().find(|(other, _)| *other == key).map(|(_, state)| *state);
                let ready = |key: &u32| state(*key) == Some(ProviderState::Ready);
                let open = |key: &u32| links.contains(&(*key, Link::Up));
                if state(to) == Some(ProviderState::Ejected) {
                    assert!(
                        !usable.iter().any(ready),
                        "law 20: {to} is ejected and healthy ones are left"
                    );
                }
                if !open(&to) {
                    let better = usable.iter().any(|key| ready(key) && open(key));
                    assert!(!better, "H5: {to} has to be dialed and another is connected");
                }
                if state(to) == Some(ProviderState::Suspected) {
                    let better =
                        |key: &u32| !matches!(state(*key), Some(ProviderState::Suspected | ProviderState::Down));
                    assert!(!usable.iter().any(better), "L3: {to} is suspected and others are left");
                }
                if state(to) == Some(ProviderState::Down) {
                    let better = |key: &u32| state(*key) != Some(ProviderState::Down);
                    assert!(!usable.iter().any(better), "H5: {to} is down and others are left");
                }
                true
            }
            Output::Recall { attempt } => {
                let to = watched.tried[attempt.index()];
                assert!(watched.live.contains(&attempt), "{attempt} is not in flight");
                assert!(!links.contains(&(to, Link::Up)), "{to} is connected");
                assert!(usable.iter().any(|key| links.contains(&(*key, Link::Up))));
                watched.recalled.push(attempt);
                true
            }
            Output::Abort { attempt } => {
                assert!(watched.live.contains(&attempt), "{attempt} is not in flight");
                watched.live.retain(|live| *live != attempt);
                let to = watched.tried[attempt.index()];
                let silent = |state| matches!(state, ProviderState::Suspected | ProviderState::Down);
                watched.lost += u32::from(before.iter().any(|(key, state)| *key == to && silent(*state)));
                if !watched.call_is_ending() {
                    watched.last = Some((attempt, Fate::Unknown(crate::fate::Loss::TimedOut)));
                    watched.doubt = true;
                }
                true
            }
            Output::Wait(until) => {
                assert!(until > latest, "law 35: a wait that is over already");
                assert!(
                    latest < watched.deadline && until <= watched.deadline,
                    "law 11: not done past the deadline"
                );
                let pauses = watched.options.backoff.is_some() || watched.pushed_back;
                assert!(!watched.live.is_empty() || pauses, "law 19: it waits for nothing");
                watched.waits = Some(until);
                false
            }
            Output::Done(result) => {
                watched.done = true;
                assert!(watched.live.is_empty(), "law 13: attempts were not aborted");
                watched.check_end(&result, &usable, self.members.is_empty(), latest);
                true
            }
            Output::Over => {
                assert!(watched.done, "law 1: over without an end");
                false
            }
        }
    }

    /// The providers that a call may still be sent to.
    fn usable(&self, index: usize) -> BTreeSet<u32> {
        let tried = &self.calls[index].tried;
        self.members
            .difference(&self.draining)
            .filter(|key| !tried.contains(key))
            .copied()
            .collect()
    }

    fn states(&self) -> Vec<(u32, ProviderState)> {
        self.balancer
            .providers()
            .map(|provider| (*provider.provider, provider.state))
            .collect()
    }

    fn links(&self) -> Vec<(u32, Link)> {
        self.balancer
            .providers()
            .map(|provider| (*provider.provider, provider.link))
            .collect()
    }

    fn counts(&self) -> Vec<Counts> {
        self.balancer.providers().map(|provider| provider.counts).collect()
    }

    fn check_cap(&self) {
        let put_aside = self.states().into_iter().filter(|(_, state)| {
            matches!(
                state,
                ProviderState::Ejected | ProviderState::HalfOpen | ProviderState::Probing
            )
        });
        let down = self
            .states()
            .iter()
            .filter(|(_, state)| *state == ProviderState::Down)
            .count();
        let serving = self.members.len() - self.draining.len() - down;
        let put_aside = put_aside.count();
        assert!(
            put_aside == 0 || put_aside < serving,
            "law 18: all {serving} are ejected"
        );
    }

    fn check_probes(&self) {
        let timeout = self.balancer.config().health.probe_timeout;
        let mut probed = BTreeSet::new();
        for watched in &self.calls {
            for live in watched.call.live.iter().filter(|live| live.lease.is_probe()) {
                let started = watched.call.attempts.get(live.attempt).map(|attempt| attempt.started);
                let fresh = started.is_some_and(|started| started + timeout > self.latest);
                let handle = live.lease.handle;
                assert!(
                    !fresh || probed.insert((handle.slot, handle.generation)),
                    "law 15: two probes at once"
                );
            }
        }
    }
}

impl Watched {
    /// The providers it was sent to and how far it came.
    pub(super) fn story(&self) -> (Vec<u32>, u32, bool) {
        (self.tried.clone(), self.sent, self.done)
    }

    fn has_ended(&self) -> bool {
        matches!(
            self.call.state,
            super::super::State::Ended(_) | super::super::State::Exhausted | super::super::State::Over
        )
    }

    fn call_is_ending(&self) -> bool {
        self.has_ended() && !matches!(self.last, Some((_, Fate::Unknown(_)))) && self.call.latest < self.deadline
    }

    /// Laws 5, 6, 9, 10: the end is the one that the model expects.
    fn check_end(
        &self,
        result: &Result<super::super::Success, CallError<u32>>,
        usable: &BTreeSet<u32>,
        no_providers: bool,
        now: Instant,
    ) {
        let limit = self.options.max_attempts.unwrap_or(3);
        let log = match result {
            Ok(_) => Some(self.call.attempts()),
            Err(error) => error.attempts(),
        };
        let logged: Vec<u32> = log
            .into_iter()
            .flat_map(|log| log.iter())
            .map(|attempt| *attempt.provider())
            .collect();
        assert_eq!(logged, self.tried, "F4: the log has every attempt");
        match result {
            Ok(success) => {
                assert_eq!(
                    self.last,
                    Some((success.attempt, Fate::Ok)),
                    "law 10: the first ok wins"
                );
                assert_eq!(
                    self.call.attempts().get(success.attempt).map(|attempt| attempt.fate()),
                    Some(Fate::Ok)
                );
            }
            Err(CallError::Cancelled { .. }) => {
                assert!(self.cancelled || matches!(self.last, Some((_, Fate::Cancelled))));
            }
            Err(CallError::ServiceNotFound) => assert!(no_providers && self.tried.is_empty(), "S5"),
            Err(CallError::AllProvidersFailed { .. }) => {
                assert!(usable.is_empty(), "law 5: {usable:?} are left");
                assert!(!no_providers || !self.tried.is_empty(), "S5");
            }
            Err(CallError::MaxAttemptsExceeded { limit: said, .. }) => {
                assert!(!usable.is_empty(), "law 5: exhaustion is checked first");
                assert!(self.sent >= limit && *said == limit, "law 5: the limit was not reached");
            }
            Err(CallError::DeadlineExceeded { .. }) => {
                let waiting = self.options.backoff.is_some() || self.pushed_back;
                assert!(now >= self.deadline || waiting, "law 11: ended too early");
            }
            Err(CallError::NotRetried {
                attempt,
                reason,
                attempts,
            }) => {
                let fate = attempts.get(*attempt).map(|attempt| attempt.fate());
                match reason {
                    StopReason::Definitive => {
                        assert_eq!(
                            fate.as_ref().map(|fate| self.options.policy.retries(fate)),
                            Some(false),
                            "law 9"
                        );
                    }
                    StopReason::Pushback => {
                        assert_eq!(fate.and_then(|fate| fate.pushback()), Some(Pushback::Stop), "law 26");
                    }
                    StopReason::BudgetExhausted => {
                        assert!(fate.is_some_and(|fate| self.options.policy.retries(&fate)), "law 24");
                    }
                    StopReason::Begun => panic!("this shell can always send again, and never says otherwise"),
                }
                let definitive = *reason == StopReason::Definitive;
                assert!(
                    definitive || (!usable.is_empty() && self.sent - self.lost < limit),
                    "law 5: exhaustion is checked first"
                );
            }
        }
    }
}

/// A health configuration in which one failure ejects and everything passes quickly.
pub(super) fn touchy() -> BalancerConfig {
    let mut config = BalancerConfig::default();
    config.health.consecutive_failures = 1;
    config.health.base_ejection = Duration::from_millis(400);
    config.health.probe_timeout = Duration::from_millis(700);
    config.health.slow_start = Duration::ZERO;
    config.budget.per_second = 1_000.0;
    config.budget.hedge_ratio = 1_000.0;
    config
}
