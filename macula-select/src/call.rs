//! One call: which attempts it makes, when it gives one up, and how it ends.
//!
//! **The contract.** [`Call::poll`] until it says [`Output::Wait`], performing what it asks; then sleep until that
//! instant or the next result, whichever is first; tell results with [`Call::on_result`]; begin again. It ends
//! with one [`Output::Done`]. A caller who loses interest must [`Call::cancel`], or the providers look busy until the
//! attempts time out.
//!
//! **Invariants.** A provider is tried at most once. No attempt starts at or after the deadline. While a call that
//! must not run twice has an attempt in flight, and after one whose fate is unknown, there is no other. When it is
//! done, every lease has been reported and every attempt still in flight aborted.
//!
//! It moves no payload and holds no connection: the shell finds both by [`AttemptId`].

mod attempts;
mod first;
#[cfg(test)]
mod laws;
mod options;
mod outcome;

use std::hash::Hash;
use std::time::{Duration, Instant};

pub use attempts::{Attempt, AttemptId, Attempts};
pub use first::FirstAttempt;
pub use options::{CallOptions, Hedge, MAX_CALL_TIMEOUT};
pub use outcome::{CallError, Output, StopReason, Success};

use crate::balancer::{Balancer, Choice, Excluded, Lease, ProbeConsent};
use crate::clock::{Nanos, nanos};
use crate::fate::{Fate, Loss, Pushback};
use options::DEFAULT_MAX_ATTEMPTS;

/// Attempts of a call in flight at once: a first one and its hedge.
const MAX_IN_FLIGHT: usize = 2;

/// Attempts of a call that may turn out not to have been sent. They cost no attempt, and each costs time and a dial.
pub const MAX_NOT_SENT: u32 = 16;

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
///         Output::Abort { .. } => {}
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
    live: [Option<Live>; MAX_IN_FLIGHT],
    /// Attempts to be aborted, oldest first.
    aborts: [Option<AttemptId>; MAX_IN_FLIGHT],
    /// Attempts that count against the limit.
    counted: u32,
    /// Attempts that were not sent.
    not_sent: u32,
    /// Failovers so far, for the backoff.
    failovers: u32,
    hedged: bool,
    /// Whether an attempt was a probe.
    probed: bool,
    /// An attempt that failed while another was in flight, and that a retry has to be paid for.
    owed: Option<AttemptId>,
    /// The attempt whose provider asked that the call not be retried.
    stopped: Option<AttemptId>,
    /// Whether what was sent cannot be sent again.
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
}

/// An attempt that was just dispatched.
struct Sent<K> {
    to: K,
    attempt: AttemptId,
    until: Instant,
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
            live: [const { None }; MAX_IN_FLIGHT],
            aborts: [None; MAX_IN_FLIGHT],
            counted: 0,
            not_sent: 0,
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

    /// What to do next.
    pub fn poll(&mut self, now: Instant, balancer: &mut Balancer<K>) -> Output<K> {
        let now = self.tick(now);
        loop {
            if let Some(attempt) = self.next_abort() {
                return Output::Abort { attempt };
            }
            match self.state {
                State::Over => return Output::Over,
                State::Ended(End::Ok(attempt)) => {
                    self.state = State::Over;
                    return Output::Done(Ok(Success { attempt }));
                }
                State::Ended(End::Failed(failure)) => {
                    self.state = State::Over;
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
                State::Waiting(at) if at > now => return Output::Wait(at.min(self.deadline)),
                State::Ready | State::Waiting(_) => {
                    if let Some(Sent { to, attempt, until }) = self.start(now, balancer) {
                        return Output::Dispatch {
                            to,
                            attempt,
                            until,
                            hedge: false,
                        };
                    }
                }
                State::InFlight => {
                    if self.time_out(now, balancer) {
                        continue;
                    }
                    let hedge_at = self.hedge_at(balancer);
                    if hedge_at.is_some_and(|at| at <= now) {
                        if let Some(Sent { to, attempt, until }) = self.start_hedge(now, balancer) {
                            return Output::Dispatch {
                                to,
                                attempt,
                                until,
                                hedge: true,
                            };
                        }
                        continue;
                    }
                    let until = self.live.iter().flatten().map(|live| live.until).chain(hedge_at).min();
                    return Output::Wait(until.map_or(self.deadline, |until| until.min(self.deadline)));
                }
            }
        }
    }

    /// Tells how an attempt ended.
    ///
    /// Results of attempts that were aborted, or reported before, change nothing. [`Fate::Cancelled`] ends the call, as
    /// [`Call::cancel`] does.
    pub fn on_result(&mut self, now: Instant, balancer: &mut Balancer<K>, attempt: AttemptId, fate: Fate) {
        let now = self.tick(now);
        let place = self
            .live
            .iter_mut()
            .find(|live| live.as_ref().is_some_and(|live| live.attempt == attempt));
        let Some(live) = place.and_then(Option::take) else {
            return;
        };
        self.settle(now, balancer, live, fate);
    }

    /// Ends the call: every attempt in flight is given up.
    ///
    /// The leases are returned at once; [`Call::poll`] says what to abort.
    pub fn cancel(&mut self, now: Instant, balancer: &mut Balancer<K>) {
        let now = self.tick(now);
        match self.state {
            State::Ended(_) | State::Over => {}
            State::Ready | State::Waiting(_) | State::InFlight => self.fail(now, balancer, Failure::Cancelled),
        }
    }

    /// What was sent cannot be sent again: no attempt starts from now on, and one that fails is the last.
    pub fn begun(&mut self) {
        self.begun = true;
    }

    /// Starts the next attempt, or ends the call.
    fn start(&mut self, now: Instant, balancer: &mut Balancer<K>) -> Option<Sent<K>> {
        let at = balancer.begin_pick(now);
        let excluded = self.exclude_tried(balancer);
        if let Some(failure) = self.exhausted(balancer, excluded) {
            self.fail(now, balancer, failure);
            return None;
        }
        match self.attempts.enumerate().last() {
            None => balancer.budget.call(at),
            // Said while the next attempt waited for its time.
            Some((last, _)) if self.begun => {
                self.fail(now, balancer, Failure::NotRetried(last, StopReason::Begun));
                return None;
            }
            Some(_) => {}
        }
        let sent = self.dispatch(now, at, balancer, excluded, false);
        if sent.is_none() {
            self.fail(now, balancer, Failure::AllProvidersFailed);
        }
        sent
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
        });
        self.counted += 1;
        self.state = State::InFlight;
        let live = Live { attempt, lease, until };
        match self.live.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(live),
            None => unreachable!("a hedge is sent beside one attempt, anything else beside none"),
        }
        Some(Sent { to, attempt, until })
    }

    fn probe_consent(&self, hedge: bool) -> Option<ProbeConsent> {
        match self.probed {
            true => None,
            false => probe_consent(&self.options, self.counted, hedge),
        }
    }

    fn limit(&self) -> u32 {
        limit(&self.options)
    }

    fn exclude_tried(&self, balancer: &mut Balancer<K>) -> Excluded {
        let mut excluded = Excluded::default();
        for attempt in self.attempts.iter() {
            balancer.exclude_tried(attempt.handle, &attempt.provider, &mut excluded);
        }
        excluded
    }

    /// F4's table: exhaustion before the limit.
    fn exhausted(&self, balancer: &Balancer<K>, excluded: Excluded) -> Option<Failure> {
        if balancer.is_empty() && self.attempts.is_empty() {
            return Some(Failure::ServiceNotFound);
        }
        if self.not_sent >= MAX_NOT_SENT || !balancer.has_candidates(excluded) {
            return Some(Failure::AllProvidersFailed);
        }
        let limit = self.limit();
        (self.counted >= limit).then_some(Failure::MaxAttemptsExceeded(limit))
    }

    /// When a hedge is due, if one may still be sent.
    fn hedge_at(&self, balancer: &mut Balancer<K>) -> Option<Instant> {
        let hedge = self.options.hedge?;
        if self.hedged || self.begun || !self.options.idempotent || self.options.policy.never_twice() {
            return None;
        }
        let after = match hedge {
            Hedge::AtP95 => balancer.p95()?,
            Hedge::After(after) => after,
        };
        let first = self.live.iter().flatten().next()?;
        let at = self.attempts.get(first.attempt)?.started + after.min(MAX_CALL_TIMEOUT);
        (at < self.deadline).then_some(at)
    }

    /// Gives up the attempts whose time is over, and returns whether there were any.
    fn time_out(&mut self, now: Instant, balancer: &mut Balancer<K>) -> bool {
        let mut any = false;
        for place in 0..MAX_IN_FLIGHT {
            if let Some(live) = self.live[place].take_if(|live| live.until <= now) {
                any = true;
                self.abort_later(live.attempt);
                self.settle(now, balancer, live, Fate::Unknown(Loss::TimedOut));
            }
        }
        any
    }

    /// Takes an attempt that is over out of the books, and decides what follows.
    fn settle(&mut self, now: Instant, balancer: &mut Balancer<K>, live: Live, fate: Fate) {
        self.close(now, balancer, &live.attempt, live.lease, fate);
        match fate {
            Fate::Ok => self.end(now, balancer, End::Ok(live.attempt)),
            Fate::Cancelled => self.fail(now, balancer, Failure::Cancelled),
            Fate::NotSent | Fate::Refused { .. } | Fate::Unknown(_) | Fate::Answered { .. } => {
                if fate == Fate::NotSent {
                    self.counted -= 1;
                    self.not_sent += 1;
                }
                if self.options.policy.retries(&fate) {
                    self.fail_over(now, balancer, live.attempt, fate);
                } else {
                    self.fail(now, balancer, Failure::NotRetried(live.attempt, StopReason::Definitive));
                }
            }
        }
    }

    /// An attempt failed and the policy allows another one.
    fn fail_over(&mut self, now: Instant, balancer: &mut Balancer<K>, attempt: AttemptId, fate: Fate) {
        match self.state {
            State::InFlight => {}
            State::Ready | State::Waiting(_) | State::Ended(_) | State::Over => return,
        }
        match fate.pushback() {
            Some(Pushback::Stop) => self.stopped = Some(attempt),
            Some(Pushback::After(wait)) => {
                self.not_before = self.not_before.max(Some(now + wait.min(MAX_CALL_TIMEOUT)));
            }
            None => {}
        }
        if fate != Fate::NotSent {
            self.owed = Some(attempt);
        }
        if self.live.iter().any(Option::is_some) {
            return; // the other one may still succeed
        }
        // Past the deadline nothing could be tried any more: whether somebody is left does not matter.
        if now >= self.deadline {
            return self.fail(now, balancer, Failure::DeadlineExceeded);
        }
        let at = balancer.begin_pick(now);
        let excluded = self.exclude_tried(balancer);
        if let Some(failure) = self.exhausted(balancer, excluded) {
            return self.fail(now, balancer, failure);
        }
        if self.begun {
            return self.fail(now, balancer, Failure::NotRetried(attempt, StopReason::Begun));
        }
        let Some(owed) = self.owed.take() else {
            self.state = State::Ready;
            return;
        };
        if let Some(stopped) = self.stopped {
            return self.fail(now, balancer, Failure::NotRetried(stopped, StopReason::Pushback));
        }
        if !balancer.take_retry(at) {
            return self.fail(now, balancer, Failure::NotRetried(owed, StopReason::BudgetExhausted));
        }
        self.failovers += 1;
        // Whoever pushed back is held by the balancer. The call itself waits only if nobody else is ready.
        let pushback = self.not_before.take().filter(|_| !balancer.has_ready(excluded));
        let wait = match (pushback, self.options.backoff) {
            (Some(not_before), _) => not_before.saturating_duration_since(now),
            (None, Some(backoff)) => backoff.wait(self.failovers, &mut balancer.rng),
            (None, None) => Duration::ZERO,
        };
        if wait.is_zero() {
            self.state = State::Ready;
        } else if now + wait >= self.deadline {
            self.fail(now, balancer, Failure::DeadlineExceeded);
        } else {
            self.state = State::Waiting(now + wait);
        }
    }

    fn fail(&mut self, now: Instant, balancer: &mut Balancer<K>, failure: Failure) {
        self.end(now, balancer, End::Failed(failure));
    }

    /// Ends the call; whatever is in flight is given up.
    fn end(&mut self, now: Instant, balancer: &mut Balancer<K>, end: End) {
        self.end_with(now, balancer, end, Fate::Cancelled);
    }

    /// Ends the call once; whatever is in flight is given up and meets this fate.
    fn end_with(&mut self, now: Instant, balancer: &mut Balancer<K>, end: End, fate: Fate) {
        match self.state {
            State::Ended(_) | State::Over => return,
            State::Ready | State::Waiting(_) | State::InFlight => self.state = State::Ended(end),
        }
        for place in 0..MAX_IN_FLIGHT {
            if let Some(live) = self.live[place].take() {
                self.abort_later(live.attempt);
                self.close(now, balancer, &live.attempt, live.lease, fate);
            }
        }
    }

    /// Writes an attempt's end into the log and returns its lease.
    fn close(&mut self, now: Instant, balancer: &mut Balancer<K>, id: &AttemptId, lease: Lease, fate: Fate) {
        let mut verdict = fate;
        if let Some(attempt) = self.attempts.get_mut(*id) {
            let elapsed = now.saturating_duration_since(attempt.started);
            attempt.elapsed = nanos(elapsed);
            attempt.fate = fate;
            if fate == Fate::Unknown(Loss::TimedOut) && now >= self.deadline && !self.had_its_time(elapsed) {
                // The others took the time. It shows how long this one takes at least, and no fault of its own.
                verdict = Fate::Cancelled;
            }
        }
        balancer.take_back(now, lease, verdict);
    }

    /// Whether an attempt that took so long had all the time that an attempt of this call may have.
    fn had_its_time(&self, elapsed: Duration) -> bool {
        let whole_call = self.attempts.len() == 1 && self.options.attempt_timeout >= self.options.timeout;
        whole_call || elapsed >= self.options.attempt_timeout
    }

    #[cold]
    fn conclude(&self, failure: Failure) -> CallError<K> {
        let attempts = Box::new(self.attempts.clone());
        match failure {
            Failure::ServiceNotFound => CallError::ServiceNotFound,
            Failure::AllProvidersFailed => CallError::AllProvidersFailed { attempts },
            Failure::MaxAttemptsExceeded(limit) => CallError::MaxAttemptsExceeded { limit, attempts },
            Failure::DeadlineExceeded => CallError::DeadlineExceeded { attempts },
            Failure::NotRetried(attempt, reason) => CallError::NotRetried {
                attempt,
                reason,
                attempts,
            },
            Failure::Cancelled => CallError::Cancelled { attempts },
        }
    }

    fn abort_later(&mut self, attempt: AttemptId) {
        if let Some(place) = self.aborts.iter_mut().find(|place| place.is_none()) {
            *place = Some(attempt);
        }
    }

    #[inline]
    fn next_abort(&mut self) -> Option<AttemptId> {
        let next = self.aborts[0].take()?;
        self.aborts.swap(0, 1);
        Some(next)
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
/// A call of a single attempt is reluctant only: where all calls are like that, nobody would ever be restored.
fn probe_consent(options: &CallOptions, counted: u32, hedge: bool) -> Option<ProbeConsent> {
    let limit = limit(options);
    let last = counted + 1 >= limit;
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
