//! One call: which attempts it makes, when it gives one up, and how it ends.
//!
//! **The contract.** [`Call::poll`] until it says [`Output::Wait`], performing what it asks; then sleep until that
//! instant, the next result, or news of a provider's link, whichever is first; tell results with [`Call::on_result`]; begin
//! again. It ends with one [`Output::Done`]. A caller that loses interest must [`Call::cancel`], or the providers look busy
//! until the attempts time out.
//!
//! **Invariants.** A provider is tried at most once. No attempt starts at or after the deadline. While a call that
//! must not run twice has an attempt in flight, and after one whose fate is unknown, there is no other. A call that may
//! run twice has an attempt in flight at a provider that is not suspected, as long as one is untried and the budget allows
//! it. When it is done, every lease has been reported and every attempt still in flight aborted.
//!
//! It moves no payload and holds no connection: the shell finds both by [`AttemptId`].

mod attempts;
mod failover;
mod few;
mod first;
#[cfg(test)]
mod laws;
mod options;
mod outcome;

use std::hash::Hash;
use std::time::Instant;

pub use attempts::{Attempt, AttemptId, Attempts};
pub use first::FirstAttempt;
pub use options::{CallOptions, Hedge, MAX_CALL_TIMEOUT};
pub use outcome::{CallError, Output, StopReason, Success};

use crate::balancer::{Balancer, Choice, Excluded, Lease, ProbeConsent};
use crate::clock::Nanos;
use crate::fate::{Fate, Loss};
use few::Few;
use options::DEFAULT_MAX_ATTEMPTS;

/// Attempts outside [`CallOptions::max_attempts`]: not sent, or lost with a dead provider. Each costs a dial, so a call stops after
/// these.
pub const MAX_FREE_ATTEMPTS: u32 = 16;

/// One call to a service.
///
/// Always poll it with the same [`Balancer`], the one of its service.
///
/// ```
/// use macula_select::{Balancer, BalancerConfig, Call, CallOptions, Fate, Output, Provider};
/// use std::time::Instant;
///
/// let now = Instant::now();
/// let mut balancer = Balancer::new(BalancerConfig::default(), 7);
/// balancer.update(now, [Provider::new("a"), Provider::new("b")]);
///
/// let mut call = Call::new(now, CallOptions::default());
/// let mut tried = 0;
/// let success = loop {
///     match call.poll(now, &mut balancer) {
///         Output::Dispatch { to: _, attempt, .. } => {
///             tried += 1;
///             let fate = if tried == 1 { Fate::NotSent } else { Fate::Ok };
///             call.on_result(now, &mut balancer, attempt, fate);
///         }
///         Output::Abort { .. } | Output::Recall { .. } => {}
///         Output::Wait(_) => unreachable!("every attempt was answered"),
///         Output::Done(result) => break result?,
///         Output::Over => unreachable!("it is polled once after it is done"),
///     }
/// };
/// assert_eq!(call.attempts().len(), 2);
/// assert_eq!(call.attempts().get(success.attempt).map(|it| it.fate()), Some(Fate::Ok));
/// # Ok::<(), macula_select::CallError<&str>>(())
/// ```
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
#[must_use = "poll it to its end or cancel it, or its providers look busy until its attempts time out"]
pub struct Call<K> {
    options: CallOptions,
    started: Instant,
    deadline: Instant,
    /// The latest time seen: the caller's clock may step back.
    latest: Instant,
    attempts: Attempts<K>,
    /// Attempts in flight, oldest first.
    live: Few<Live>,
    /// Attempts to be aborted, oldest first.
    aborts: Few<AttemptId>,
    /// Attempts that were sent, or still may be.
    sent: u32,
    /// Attempts that were not sent.
    not_sent: u32,
    /// Of those that were sent, lost with a provider that was suspected or down.
    lost: u32,
    /// Failovers so far, for the backoff.
    failovers: u32,
    hedged: bool,
    /// Whether an attempt was a probe.
    probed: bool,
    /// An attempt that failed while another was in flight, and that a retry has to be paid for.
    owed: Option<AttemptId>,
    /// The attempt whose provider asked that the call not be retried.
    stopped: Option<AttemptId>,
    /// Whether the request can no longer be repeated.
    begun: bool,
    /// The latest moment before which a provider does not want the next attempt.
    not_before: Option<Instant>,
    state: State,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Live {
    attempt: AttemptId,
    lease: Lease,
    until: Instant,
    /// Whether the shell was asked to take it back if it was not sent.
    recalled: bool,
    /// Whether the next attempt was started because this one's provider is silent.
    replaced: bool,
    /// Whether it was not sent for a reason of the caller's own.
    withheld: bool,
}

impl Live {
    fn new(attempt: AttemptId, lease: Lease, until: Instant) -> Self {
        Self {
            attempt,
            lease,
            until,
            recalled: false,
            replaced: false,
            withheld: false,
        }
    }
}

/// An attempt that was just dispatched.
struct Sent<K> {
    to: K,
    attempt: AttemptId,
    until: Instant,
}

impl<K> Sent<K> {
    fn dispatch(self, hedge: bool) -> Output<K> {
        Output::Dispatch {
            to: self.to,
            attempt: self.attempt,
            until: self.until,
            hedge,
        }
    }
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
enum State {
    /// The next attempt may start now.
    Ready,
    /// The next attempt may start then.
    Waiting(Instant),
    /// Attempts are in flight.
    InFlight,
    /// It ended, and the shell has to be told.
    Ended(End),
    /// The shell was told that every provider was tried, and may resume the call.
    Exhausted,
    /// The shell was told.
    Over,
}

/// How a call ends, before it is told.
#[derive(Debug, Clone, Copy)]
enum End {
    Ok(AttemptId),
    Failed(Failure),
}

#[derive(Debug, Clone, Copy)]
enum Failure {
    ServiceNotFound,
    AllProvidersFailed,
    MaxAttemptsExceeded(u32),
    DeadlineExceeded,
    NotRetried(AttemptId, StopReason),
    Cancelled,
}

impl<K: Eq + Hash + Clone> Call<K> {
    /// A call that begins now.
    pub fn new(now: Instant, options: CallOptions) -> Self {
        Self {
            started: now,
            deadline: deadline(&options, now),
            latest: now,
            attempts: Attempts::new(),
            live: Few::new(),
            aborts: Few::new(),
            sent: 0,
            not_sent: 0,
            lost: 0,
            failovers: 0,
            hedged: false,
            probed: false,
            owed: None,
            stopped: None,
            begun: false,
            not_before: None,
            state: State::Ready,
            options,
        }
    }

    /// When it gives up. Tell the provider, so that it stops too (F7).
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// When it began.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The attempts so far, and all of them when it is over.
    #[must_use]
    pub fn attempts(&self) -> &Attempts<K> {
        &self.attempts
    }

    /// What to do next. Poll it again as well when the link of a provider changes that it waits for
    /// ([`Balancer::link`]).
    pub fn poll(&mut self, now: Instant, balancer: &mut Balancer<K>) -> Output<K> {
        let now = self.tick(now);
        loop {
            if let Some(attempt) = self.aborts.take(|_| true) {
                return Output::Abort { attempt };
            }
            match self.state {
                State::Exhausted | State::Over => return Output::Over,
                State::Ended(End::Ok(attempt)) => {
                    self.state = State::Over;
                    return Output::Done(Ok(Success { attempt }));
                }
                State::Ended(End::Failed(failure)) => {
                    self.state = match failure {
                        Failure::AllProvidersFailed => State::Exhausted,
                        Failure::ServiceNotFound
                        | Failure::MaxAttemptsExceeded(_)
                        | Failure::DeadlineExceeded
                        | Failure::NotRetried(..)
                        | Failure::Cancelled => State::Over,
                    };
                    return Output::Done(Err(self.conclude(failure)));
                }
                State::Ready | State::Waiting(_) | State::InFlight if now >= self.deadline => {
                    // Whatever else could be said of the call by now, this is why it ends.
                    self.end_with(
                        now,
                        balancer,
                        End::Failed(Failure::DeadlineExceeded),
                        Fate::Unknown(Loss::TimedOut),
                    );
                }
                State::Ready | State::Waiting(_) | State::InFlight => {
                    if !self.time_out(now, balancer)
                        && let Some(output) = self.go_on(now, balancer)
                    {
                        return output;
                    }
                }
            }
        }
    }

    /// What to do next in a call that has not ended. `None` if that changed, and is to be looked at again.
    #[inline]
    fn go_on(&mut self, now: Instant, balancer: &mut Balancer<K>) -> Option<Output<K>> {
        match self.state {
            State::Ended(_) | State::Exhausted | State::Over => None,
            State::Waiting(at) if at > now => Some(Output::Wait(self.earliest(Some(at)))),
            State::Ready | State::Waiting(_) => {
                let beside = !self.live.is_empty();
                self.start(now, balancer).map(|sent| sent.dispatch(beside))
            }
            State::InFlight => {
                if let Some(attempt) = self.recall(now, balancer) {
                    return Some(Output::Recall { attempt });
                }
                if let Some(sent) = self.start_beside_silent(now, balancer) {
                    return Some(sent.dispatch(true));
                }
                let hedge_at = self.hedge_at(balancer);
                if hedge_at.is_some_and(|at| at <= now) {
                    return self.start_hedge(now, balancer).map(|sent| sent.dispatch(true));
                }
                Some(Output::Wait(self.earliest(hedge_at)))
            }
        }
    }

    /// Tells how an attempt ended.
    ///
    /// Results of attempts that were aborted, or reported before, change nothing. [`Fate::Cancelled`] ends the call, as
    /// [`Call::cancel`] does.
    pub fn on_result(&mut self, now: Instant, balancer: &mut Balancer<K>, attempt: AttemptId, fate: Fate) {
        let now = self.tick(now);
        if let Some(live) = self.live.take(|live| live.attempt == attempt) {
            self.settle(now, balancer, live, fate);
        }
    }

    /// Tells that an attempt was not sent for a reason of the caller's own, such as no room for one more connection. It ends as
    /// [`Fate::NotSent`] and says nothing about the provider's health.
    pub fn on_withheld(&mut self, now: Instant, balancer: &mut Balancer<K>, attempt: AttemptId) {
        let now = self.tick(now);
        if let Some(mut live) = self.live.take(|live| live.attempt == attempt) {
            live.withheld = true;
            self.settle(now, balancer, live, Fate::NotSent);
        }
    }

    /// Ends the call: every attempt in flight is given up.
    ///
    /// The leases are returned at once; [`Call::poll`] says what to abort.
    pub fn cancel(&mut self, now: Instant, balancer: &mut Balancer<K>) {
        let now = self.tick(now);
        match self.state {
            State::Ended(_) | State::Exhausted | State::Over => {}
            State::Ready | State::Waiting(_) | State::InFlight => self.fail(now, balancer, Failure::Cancelled),
        }
    }

    /// The request can no longer be repeated: no further attempt starts, and one that fails is the last.
    pub fn begun(&mut self) {
        self.begun = true;
    }

    /// Starts the next attempt, or ends the call if none is in flight.
    fn start(&mut self, now: Instant, balancer: &mut Balancer<K>) -> Option<Sent<K>> {
        let beside = !self.live.is_empty();
        if beside && !self.all_silent(balancer) {
            // Heard again while the next attempt waited for its time.
            self.state = State::InFlight;
            return None;
        }
        let at = balancer.begin_pick(now);
        let excluded = self.exclude_tried(balancer);
        if let Some(failure) = self.exhausted(balancer, excluded) {
            self.fail_unless_in_flight(now, balancer, failure);
            return None;
        }
        match self.attempts.enumerate().last() {
            None => balancer.budget.call(at),
            // Said while the next attempt waited for its time.
            Some((last, _)) if self.begun => {
                self.fail_unless_in_flight(now, balancer, Failure::NotRetried(last, StopReason::Begun));
                return None;
            }
            Some(_) => {}
        }
        let sent = self.dispatch(now, at, balancer, excluded, beside);
        if sent.is_none() {
            self.fail_unless_in_flight(now, balancer, Failure::AllProvidersFailed);
        }
        sent
    }

    /// Starts the next attempt beside those in flight if their providers are all silent (L2).
    fn start_beside_silent(&mut self, now: Instant, balancer: &mut Balancer<K>) -> Option<Sent<K>> {
        if !self.all_silent(balancer) || self.is_last_attempt() || !self.may_run_twice() {
            return None;
        }
        // Its replacement has failed, and `settle` has decided what follows.
        if self.live.iter().all(|live| live.replaced) {
            return None;
        }
        let at = balancer.begin_pick(now);
        let excluded = self.exclude_tried(balancer);
        if !balancer.has_reachable(excluded) || self.exhausted(balancer, excluded).is_some() {
            return None;
        }
        // Many silent providers may be alive and overloaded: then this is a retry like any other (L5). So it is if another
        // attempt has failed.
        let free = self.owed.is_none() && balancer.few_are_silent();
        if !free && !balancer.take_retry(at) {
            return None;
        }
        self.owed = None;
        self.dispatch(now, at, balancer, excluded, true)
    }

    /// An attempt to be taken back because it waits for a dial while another provider is connected and untried (H5).
    fn recall(&mut self, now: Instant, balancer: &mut Balancer<K>) -> Option<AttemptId> {
        if !balancer.any_open() {
            return None;
        }
        let waiting = self.live.iter().find(|live| live.waits_for_dial(balancer))?.attempt;
        balancer.begin_pick(now);
        let excluded = self.exclude_tried(balancer);
        if self.begun || !balancer.has_open(excluded) {
            return None;
        }
        let live = self.live.iter_mut().find(|live| live.attempt == waiting)?;
        live.recalled = true;
        Some(waiting)
    }

    fn start_hedge(&mut self, now: Instant, balancer: &mut Balancer<K>) -> Option<Sent<K>> {
        self.hedged = true;
        let at = balancer.begin_pick(now);
        let excluded = self.exclude_tried(balancer);
        if self.exhausted(balancer, excluded).is_some() || !balancer.budget.try_hedge(at) {
            return None;
        }
        self.dispatch(now, at, balancer, excluded, true)
    }

    fn dispatch(
        &mut self,
        now: Instant,
        at: Nanos,
        balancer: &mut Balancer<K>,
        excluded: Excluded,
        hedge: bool,
    ) -> Option<Sent<K>> {
        // This attempt replaces those in flight, which are silent or hedged.
        self.live.iter_mut().for_each(|live| live.replaced = true);
        let until = attempt_until(&self.options, now, self.deadline);
        let times = Times { now, at, until };
        let (to, lease) = choose(&self.options, self.probe_consent(hedge), times, balancer, excluded)?;
        self.probed |= lease.is_probe();
        let attempt = self.attempts.push(Attempt {
            provider: to.clone(),
            handle: lease.handle,
            started: now,
            elapsed: 0,
            fate: Fate::Cancelled,
            hedge,
            renewed: false,
        });
        self.sent += 1;
        self.state = State::InFlight;
        self.live.push(Live::new(attempt, lease, until));
        Some(Sent { to, attempt, until })
    }

    fn probe_consent(&self, hedge: bool) -> Option<ProbeConsent> {
        match self.probed {
            true => None,
            false => probe_consent(&self.options, self.sent, hedge),
        }
    }

    /// Whether no attempt may start any more: what was sent cannot be sent again, or a provider asked for that.
    fn is_last_attempt(&self) -> bool {
        self.begun || self.stopped.is_some()
    }

    fn exclude_tried(&self, balancer: &mut Balancer<K>) -> Excluded {
        let mut excluded = Excluded::default();
        for attempt in self.attempts.iter().filter(|attempt| !attempt.renewed) {
            balancer.exclude_tried(attempt.handle, &attempt.provider, &mut excluded);
        }
        excluded
    }

    /// When a hedge is due, if one may still be sent.
    fn hedge_at(&self, balancer: &mut Balancer<K>) -> Option<Instant> {
        let hedge = self.options.hedge?;
        if self.hedged || self.is_last_attempt() || !self.options.idempotent || self.options.policy.never_twice() {
            return None;
        }
        let after = match hedge {
            Hedge::AtP95 => balancer.p95()?,
            Hedge::After(after) => after,
        };
        let mut live = self.live.iter();
        let (Some(first), None) = (live.next(), live.next()) else {
            return None;
        };
        let at = self.attempts.get(first.attempt)?.started + after.min(MAX_CALL_TIMEOUT);
        (at < self.deadline).then_some(at)
    }

    /// When something is to be done if no result comes before.
    fn earliest(&self, other: Option<Instant>) -> Instant {
        let timeouts = self.live.iter().map(|live| live.until);
        timeouts.chain(other).fold(self.deadline, Instant::min)
    }

    #[inline]
    fn tick(&mut self, now: Instant) -> Instant {
        self.latest = self.latest.max(now);
        self.latest
    }
}

/// The most attempts. The default needs no look at the number of providers: when they are fewer, exhaustion is found first.
fn limit(options: &CallOptions) -> u32 {
    options.max_attempts.unwrap_or(DEFAULT_MAX_ATTEMPTS)
}

/// A probe may well fail, so it should be a call that can go on elsewhere, and one such risk is enough for a call.
///
/// A call of a single attempt is reluctant only: where all calls are like that, no provider would ever be restored.
fn probe_consent(options: &CallOptions, sent: u32, hedge: bool) -> Option<ProbeConsent> {
    let limit = limit(options);
    let last = sent + 1 >= limit;
    if last && limit > 1 {
        None
    } else if hedge || last || options.policy.never_twice() {
        Some(ProbeConsent::Reluctant)
    } else {
        Some(ProbeConsent::Willing)
    }
}

/// When an attempt starts, by the caller's clock and the balancer's, and when it is over.
struct Times {
    now: Instant,
    at: Nanos,
    until: Instant,
}

/// Picks for an attempt.
#[inline]
fn choose<K: Eq + Hash + Clone>(
    options: &CallOptions,
    probe: Option<ProbeConsent>,
    Times { now, at, until }: Times,
    balancer: &mut Balancer<K>,
    excluded: Excluded,
) -> Option<(K, Lease)> {
    let choice = Choice {
        strategy: options.strategy,
        affinity: options.affinity,
        locality: options.locality,
        probe,
        timeout: until - now,
    };
    let lease = balancer.choose(at, choice, excluded).ok()?;
    let Some(to) = balancer.provider(&lease).cloned() else {
        balancer.take_back(now, lease, Fate::Cancelled);
        return None;
    };
    Some((to, lease))
}

/// When an attempt that starts now is over.
#[inline]
fn attempt_until(options: &CallOptions, now: Instant, deadline: Instant) -> Instant {
    (now + options.attempt_timeout.min(MAX_CALL_TIMEOUT)).min(deadline)
}

/// When a call that began then gives up.
#[inline]
fn deadline(options: &CallOptions, began: Instant) -> Instant {
    began + options.timeout.min(MAX_CALL_TIMEOUT)
}
