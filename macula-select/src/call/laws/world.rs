//! A balancer, calls, and a model of each call that objects to whatever breaks a law.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::super::{AttemptId, Call, CallError, CallOptions, Output, StopReason};
use crate::balancer::{Balancer, BalancerConfig, ProviderState};
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
    /// Whom it was sent to, in order.
    tried: Vec<u32>,
    pub(super) live: Vec<AttemptId>,
    counted: u32,
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
            counted: 0,
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

    pub(super) fn set_link(&mut self, key: u32, link: Link) {
        self.balancer.set_link(self.now, &key, link);
        if !self.members.contains(&key) || link != Link::Draining {
            self.draining.remove(&key);
        } else {
            self.draining.insert(key);
        }
        self.run();
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
        let watched = &mut self.calls[index];
        let was_live = watched.live.contains(&attempt);
        let lease = watched.call.live.iter().flatten().find(|live| live.attempt == attempt);
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
            watched.counted -= u32::from(fate == Fate::NotSent);
        } else {
            assert_eq!(self.balancer.stats(), issued, "law 10: a straggler changed something");
        }
        if fate == Fate::Cancelled {
            assert_eq!(self.counts(), counts, "law 14: a cancellation counted");
        }
        let after = self.states();
        for ((key, was), (_, is)) in before.iter().zip(&after) {
            let left = matches!(was, ProviderState::HalfOpen | ProviderState::Probing)
                && matches!(is, ProviderState::Ready | ProviderState::Ejected);
            if left {
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
        assert_eq!(
            watched.call.live.iter().flatten().count(),
            0,
            "law 13: a lease was kept"
        );
        assert_eq!(self.counts(), counts, "law 14: a cancellation counted");
        self.run();
    }

    /// Polls every call until it waits, and checks what has to hold then.
    fn run(&mut self) {
        for index in 0..self.calls.len() {
            while self.step(index) {}
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
        let output = self.calls[index].call.poll(self.now, &mut self.balancer);
        let usable = self.usable(index);
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
                assert!(!hedge || watched.options.idempotent, "law 27: hedged without consent");
                assert!(watched.live.len() < 2);
                assert_eq!(attempt.index(), watched.tried.len());
                watched.tried.push(to);
                watched.live.push(attempt);
                watched.counted += 1;
                watched.waits = None;
                watched.pushed_back &= hedge;
                assert!(!watched.stopped, "law 26: dispatched though a provider asked to stop");
                let limit = watched.options.max_attempts.unwrap_or(3);
                assert!(
                    watched.counted <= limit,
                    "law 4: {} of {limit} attempts",
                    watched.counted
                );
                let state = |key| before.iter().find(|(other, _)| *other == key).map(|(_, state)| *state);
                if state(to) == Some(ProviderState::Ejected) {
                    let healthy = usable.iter().any(|key| state(*key) == Some(ProviderState::Ready));
                    assert!(!healthy, "law 20: {to} is ejected and healthy ones are left");
                }
                true
            }
            Output::Abort { attempt } => {
                assert!(watched.live.contains(&attempt), "{attempt} is not in flight");
                watched.live.retain(|live| *live != attempt);
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

    /// Whom a call may still be sent to.
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
        let serving = self.members.len() - self.draining.len();
        assert!(
            put_aside.count() <= serving / 2,
            "law 18: more than half of {serving} are ejected"
        );
    }

    fn check_probes(&self) {
        let timeout = self.balancer.config().health.probe_timeout;
        let mut probed = BTreeSet::new();
        for watched in &self.calls {
            for live in watched.call.live.iter().flatten().filter(|live| live.lease.is_probe()) {
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
    /// Whom it was sent to and how far it came.
    pub(super) fn story(&self) -> (Vec<u32>, u32, bool) {
        (self.tried.clone(), self.counted, self.done)
    }

    fn has_ended(&self) -> bool {
        matches!(
            self.call.state,
            super::super::State::Ended(_) | super::super::State::Over
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
        nobody: bool,
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
            Err(CallError::ServiceNotFound) => assert!(nobody && self.tried.is_empty(), "S5"),
            Err(CallError::AllProvidersFailed { .. }) => {
                assert!(usable.is_empty(), "law 5: {usable:?} are left");
                assert!(!nobody || !self.tried.is_empty(), "S5");
            }
            Err(CallError::MaxAttemptsExceeded { limit: said, .. }) => {
                assert!(!usable.is_empty(), "law 5: exhaustion is checked first");
                assert_eq!(
                    (self.counted, *said),
                    (limit, limit),
                    "law 5: the limit was not reached"
                );
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
                    definitive || (!usable.is_empty() && self.counted < limit),
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
