//! What follows when an attempt is over: another one, now or later, or the end of the call (F4, F5, F9, L5).

use std::hash::Hash;
use std::time::{Duration, Instant};

use super::{
    AttemptId, Call, CallError, End, Failure, Live, MAX_CALL_TIMEOUT, MAX_FREE_ATTEMPTS, State, StopReason, limit,
};
use crate::balancer::{Balancer, Excluded, Lease};
use crate::clock::nanos;
use crate::fate::{Fate, Loss, Pushback, Refusal};
use crate::provider::Link;

impl Live {
    /// Whether it cannot have been sent yet, and the shell was not asked about that before.
    pub(super) fn waits_for_dial<K: Eq + Hash + Clone>(&self, balancer: &Balancer<K>) -> bool {
        !self.lease.connected
            && !self.recalled
            && match balancer.link_of(self.lease.handle) {
                Some(Link::Idle | Link::Down | Link::Draining) => true,
                Some(Link::Up | Link::Suspected) | None => false,
            }
    }
}

impl<K: Eq + Hash + Clone> Call<K> {
    /// Gives up the attempts whose time is over, and returns whether there were any.
    pub(super) fn time_out(&mut self, now: Instant, balancer: &mut Balancer<K>) -> bool {
        let mut any = false;
        while let Some(live) = self.live.take(|live| live.until <= now) {
            any = true;
            self.aborts.push(live.attempt);
            self.settle(now, balancer, live, Fate::Unknown(Loss::TimedOut));
        }
        any
    }

    /// Takes an attempt that is over out of the books, and decides what follows.
    pub(super) fn settle(&mut self, now: Instant, balancer: &mut Balancer<K>, live: Live, fate: Fate) {
        let Live {
            attempt,
            lease,
            recalled,
            replaced,
            withheld,
            until: _,
        } = live;
        let silent = balancer.is_silent(lease.handle);
        let taken_back = recalled && fate == Fate::NotSent;
        // That says nothing of the provider.
        let verdict = if taken_back || withheld { Fate::Cancelled } else { fate };
        self.close(now, balancer, attempt, lease, (fate, verdict));
        match fate {
            Fate::Ok => return self.end(now, balancer, End::Ok(attempt)),
            Fate::Cancelled => return self.fail(now, balancer, Failure::Cancelled),
            Fate::NotSent => {
                self.sent -= 1;
                self.not_sent += 1;
            }
            Fate::Unknown(_) if silent => {
                self.lost += 1;
                // Made elsewhere already, or free because few are silent.
                if !replaced && !balancer.few_are_silent() {
                    self.owed = Some(attempt);
                }
            }
            Fate::Refused { .. } | Fate::Unknown(_) | Fate::Answered { .. } => self.owed = Some(attempt),
        }
        if taken_back || self.options.policy.retries(&fate) {
            self.fail_over(now, balancer, attempt, fate);
        } else {
            self.fail(now, balancer, Failure::NotRetried(attempt, StopReason::Definitive));
        }
    }

    /// An attempt failed and the policy allows another one.
    fn fail_over(&mut self, now: Instant, balancer: &mut Balancer<K>, attempt: AttemptId, fate: Fate) {
        match self.state {
            State::InFlight => {}
            State::Ready | State::Waiting(_) | State::Ended(_) | State::Exhausted | State::Over => return,
        }
        match fate.pushback() {
            Some(Pushback::Stop) => self.stopped = Some(attempt),
            Some(Pushback::After(wait)) => {
                self.not_before = self.not_before.max(Some(now + wait.min(MAX_CALL_TIMEOUT)));
            }
            None => {}
        }
        if !self.live.is_empty() && !self.all_silent(balancer) {
            return; // another one may still succeed
        }
        // Past the deadline nothing could be tried any more: it does not matter which providers are left.
        if now >= self.deadline {
            return self.fail(now, balancer, Failure::DeadlineExceeded);
        }
        match self.next_start(now, balancer, attempt) {
            Ok(at) if at <= now => self.state = State::Ready,
            Ok(at) => self.state = State::Waiting(at),
            Err(failure) => self.fail_unless_in_flight(now, balancer, failure),
        }
    }

    /// Goes on with a call that has failed with [`CallError::AllProvidersFailed`], after the directory was asked again and the
    /// balancer updated (D12). Returns whether it goes on; poll it then.
    ///
    /// The call may go to an untried provider, and again to one that started nothing (it was not reached, or was draining) when
    /// `renewed` says that it is back. The budget is charged as for any failover.
    #[must_use]
    pub fn resume(&mut self, now: Instant, balancer: &mut Balancer<K>, renewed: impl Fn(&K) -> bool) -> bool {
        let now = self.tick(now);
        match self.state {
            State::Exhausted if now < self.deadline => {}
            State::Exhausted | State::Ready | State::Waiting(_) | State::InFlight | State::Ended(_) | State::Over => {
                return false;
            }
        }
        for attempt in self.attempts.iter_mut() {
            let started_nothing = matches!(
                attempt.fate,
                Fate::NotSent
                    | Fate::Refused {
                        reason: Refusal::Draining,
                        ..
                    }
            );
            attempt.renewed |= started_nothing && renewed(&attempt.provider);
        }
        let Some(last) = self.attempts.last_id() else {
            return false;
        };
        match self.next_start(now, balancer, last) {
            Ok(at) if at <= now => self.state = State::Ready,
            Ok(at) => self.state = State::Waiting(at),
            Err(_) => return false,
        }
        true
    }

    /// When the next attempt may start, paid for if it has to be.
    fn next_start(&mut self, now: Instant, balancer: &mut Balancer<K>, attempt: AttemptId) -> Result<Instant, Failure> {
        let at = balancer.begin_pick(now);
        let excluded = self.exclude_tried(balancer);
        if let Some(failure) = self.exhausted(balancer, excluded) {
            return Err(failure);
        }
        if self.begun {
            return Err(Failure::NotRetried(attempt, StopReason::Begun));
        }
        let Some(owed) = self.owed else { return Ok(now) };
        if let Some(stopped) = self.stopped {
            return Err(Failure::NotRetried(stopped, StopReason::Pushback));
        }
        if !balancer.take_retry(at) {
            return Err(Failure::NotRetried(owed, StopReason::BudgetExhausted));
        }
        self.owed = None;
        self.failovers += 1;
        // The balancer holds a provider that pushed back. The call itself waits only if no other is ready.
        let pushback = self.not_before.take().filter(|_| !balancer.has_ready(excluded));
        let wait = match (pushback, self.options.backoff) {
            (Some(not_before), _) => not_before.saturating_duration_since(now),
            (None, Some(backoff)) => backoff.wait(self.failovers, &mut balancer.rng),
            (None, None) => Duration::ZERO,
        };
        match now + wait {
            at if at >= self.deadline => Err(Failure::DeadlineExceeded),
            at => Ok(at),
        }
    }

    /// F4's table: exhaustion before the limit.
    pub(super) fn exhausted(&self, balancer: &Balancer<K>, excluded: Excluded) -> Option<Failure> {
        if balancer.is_empty() && self.attempts.is_empty() {
            return Some(Failure::ServiceNotFound);
        }
        if !balancer.has_candidates(excluded) {
            return Some(Failure::AllProvidersFailed);
        }
        let limit = limit(&self.options);
        let lost = self.lost_with_provider(balancer);
        // What a dead provider took costs no attempt, as long as a living one is untried (F5).
        let free = if balancer.has_reachable(excluded) { lost } else { 0 };
        if self.not_sent + free >= MAX_FREE_ATTEMPTS {
            return Some(Failure::AllProvidersFailed);
        }
        (self.sent - free >= limit).then_some(Failure::MaxAttemptsExceeded(limit))
    }

    /// Attempts that are over or in flight at a provider that is suspected or down.
    fn lost_with_provider(&self, balancer: &Balancer<K>) -> u32 {
        if !balancer.any_silent() {
            return self.lost;
        }
        let silent = self.live.iter().filter(|live| balancer.is_silent(live.lease.handle));
        self.lost + silent.count() as u32
    }

    /// Whether the providers of all attempts in flight are suspected or down.
    #[inline]
    pub(super) fn all_silent(&self, balancer: &Balancer<K>) -> bool {
        balancer.any_silent() && self.live.iter().all(|live| balancer.is_silent(live.lease.handle))
    }

    /// Whether a second attempt may start though the first may have run.
    pub(super) fn may_run_twice(&self) -> bool {
        self.options.policy.retries(&Fate::Unknown(Loss::ConnectionLost))
    }

    /// Ends the call, unless an attempt at a silent provider may still succeed.
    pub(super) fn fail_unless_in_flight(&mut self, now: Instant, balancer: &mut Balancer<K>, failure: Failure) {
        if self.live.is_empty() {
            self.fail(now, balancer, failure);
        } else {
            self.state = State::InFlight;
        }
    }

    pub(super) fn fail(&mut self, now: Instant, balancer: &mut Balancer<K>, failure: Failure) {
        self.end(now, balancer, End::Failed(failure));
    }

    /// Ends the call; whatever is in flight is given up.
    fn end(&mut self, now: Instant, balancer: &mut Balancer<K>, end: End) {
        self.end_with(now, balancer, end, Fate::Cancelled);
    }

    /// Ends the call once; whatever is in flight is given up and meets this fate.
    pub(super) fn end_with(&mut self, now: Instant, balancer: &mut Balancer<K>, end: End, fate: Fate) {
        match self.state {
            State::Ended(_) | State::Exhausted | State::Over => return,
            State::Ready | State::Waiting(_) | State::InFlight => self.state = State::Ended(end),
        }
        while let Some(live) = self.live.take(|_| true) {
            self.aborts.push(live.attempt);
            self.close(now, balancer, live.attempt, live.lease, (fate, fate));
        }
    }

    /// Writes an attempt's fate into the log and returns its lease with what that says of the provider.
    fn close(
        &mut self,
        now: Instant,
        balancer: &mut Balancer<K>,
        id: AttemptId,
        lease: Lease,
        (fate, mut verdict): (Fate, Fate),
    ) {
        if let Some(attempt) = self.attempts.get_mut(id) {
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
    pub(super) fn conclude(&self, failure: Failure) -> CallError<K> {
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
}
