//! The driver of one call: it performs the outputs of `macula_select::Call` and reports how each attempt ended.
//!
//! The core decides which provider is called, when to give up and how the call ends; this file dials, sends and waits.
//!
//! **Invariants.** The balancer's lock is held for single steps and never across an await. An attempt ends by itself when its time
//! is up, so a call without a hedge or a pause sets no timer. A call whose first attempt succeeds allocates nothing: it needs only a
//! [`FirstAttempt`], and [`Driver`] takes over from it.

use std::{future::poll_fn, net::SocketAddr, sync::Arc, task::Poll, time::Instant};

use futures::{FutureExt as _, future::BoxFuture};
use macula_select::{AttemptId, Call, Fate, FirstAttempt, Output};
use macula_transport::Connection;
use tracing::{Instrument as _, Span};

use super::{
    attempt::{End, Exchange, Failure, Job, Landed, Tried},
    services::{Balanced, Member, Roster},
    shared::now,
    verdict,
};
use crate::{CallError, Cause, Provider, error::Attempt, observe};

/// A call that succeeded.
pub(super) struct Done<A> {
    pub(super) answer: A,
    pub(super) provider: Option<Arc<Provider>>,
    pub(super) failed_attempts: Vec<Attempt>,
}

/// Makes a call at `providers`, whose health `balanced` knows.
pub(super) async fn run<X: Exchange>(
    job: &Job<'_, X>,
    balanced: &Balanced,
    providers: &Arc<[Provider]>,
) -> Result<Done<X::Answer>, CallError> {
    let mut first = First {
        job,
        balanced,
        attempt: None,
    };
    let Some((provider, open)) = first.start(providers) else {
        let driver = Driver::new(Call::new(job.start, job.call_options()), job, balanced);
        return driver.begin(providers).boxed().await;
    };
    let span = observe::attempt_span(&provider, 1, false);
    // A named future would be moved.
    let Landed { at, end } = if span.is_disabled() {
        first.attempt(&provider, open, &span).await
    } else {
        let work = first.attempt(&provider, open, &span);
        work.instrument(span.clone()).boxed().await
    };
    match end {
        End::Answer(answer) => {
            first.end(Fate::Ok);
            observe::record_attempt(&span, None);
            Ok(Done {
                answer,
                provider: Some(provider),
                failed_attempts: Vec::new(),
            })
        }
        end => {
            let Some(attempt) = first.attempt.take() else {
                unreachable!("the attempt was started");
            };
            let mut driver = Driver::new(attempt.into_call(job.call_options()), job, balanced);
            driver.tried.push(Tried {
                provider,
                cause: None,
                at: None,
                span,
            });
            let output = driver.landed(AttemptId::FIRST, Landed { at, end })?;
            driver.drive(output).boxed().await
        }
    }
}

/// The first attempt while it runs. Dropping it cancels the attempt (F8).
struct First<'a, X: Exchange> {
    job: &'a Job<'a, X>,
    balanced: &'a Balanced,
    attempt: Option<FirstAttempt<Member>>,
}

impl<X: Exchange> First<'_, X> {
    /// Takes over the provider list and chooses from it; `None` when the call ends before any attempt, or has a hedge.
    fn start(&mut self, providers: &Arc<[Provider]>) -> Option<(Arc<Provider>, Option<Connection>)> {
        let job = self.job;
        if job.options.hedge.is_some() {
            return None;
        }
        let options = job.call_options();
        let mut roster = self.balanced.lock();
        roster.reconcile(providers, job.found);
        self.attempt = FirstAttempt::start(job.start, job.found, &mut roster.balancer, &options);
        let attempt = self.attempt.as_ref()?;
        Some(roster.chosen(attempt.started(), *attempt.to(), &job.client.shared.pool))
    }

    fn attempt(
        &self,
        provider: &Provider,
        open: Option<Connection>,
        span: &Span,
    ) -> impl Future<Output = Landed<X::Answer>> + Send {
        let now = self.job.found;
        let attempt = self.attempt.as_ref();
        let (start, until) = attempt.map_or((now, now), |attempt| (attempt.started(), attempt.until()));
        self.job.attempt(provider, open, start, until, span)
    }

    fn end(&mut self, fate: Fate) {
        if let Some(attempt) = self.attempt.take() {
            let (now, started) = (now(), attempt.started());
            let mut roster = self.balanced.lock();
            let name = match fate {
                Fate::Ok => {
                    attempt.succeed(now, &mut roster.balancer);
                    observe::OK
                }
                _ => {
                    attempt.cancel(now, &mut roster.balancer);
                    observe::CANCELLED
                }
            };
            drop(roster);
            let meters = &self.job.known.meters;
            meters.attempt(name, || now.saturating_duration_since(started));
        }
    }
}

impl<X: Exchange> Drop for First<'_, X> {
    fn drop(&mut self) {
        self.end(Fate::Cancelled);
    }
}

/// An attempt under way. Dropping it tells the provider that the attempt is cancelled.
struct Flight<'a, A> {
    attempt: AttemptId,
    until: Instant,
    work: BoxFuture<'a, Landed<A>>,
}

/// A call that needs more than its first attempt. Dropping it cancels the call, so that no lease is lost (F8).
struct Driver<'a, X: Exchange> {
    call: Call<Member>,
    job: &'a Job<'a, X>,
    balanced: &'a Balanced,
    /// The attempts by number.
    tried: Vec<Tried>,
    /// The attempts under way: one, or two while a hedge runs.
    flights: Vec<Flight<'a, X::Answer>>,
    answer: Option<X::Answer>,
    over: bool,
}

impl<X: Exchange> Drop for Driver<'_, X> {
    fn drop(&mut self) {
        if !self.over {
            self.call.cancel(now(), &mut self.balanced.lock().balancer);
            self.count_attempts();
        }
    }
}

impl<'a, X: Exchange> Driver<'a, X> {
    fn new(call: Call<Member>, job: &'a Job<'a, X>, balanced: &'a Balanced) -> Self {
        Self {
            call,
            job,
            balanced,
            tried: Vec::new(),
            flights: Vec::new(),
            answer: None,
            over: false,
        }
    }

    /// Drives a call that has made no attempt yet.
    async fn begin(mut self, providers: &Arc<[Provider]>) -> Result<Done<X::Answer>, CallError> {
        let output = {
            let now = self.job.found;
            let mut roster = self.balanced.lock();
            roster.reconcile(providers, now);
            self.step(now, &mut roster)
        };
        self.drive(output).await
    }

    async fn drive(mut self, mut output: Output<Member>) -> Result<Done<X::Answer>, CallError> {
        loop {
            output = match output {
                Output::Dispatch { .. } => self.poll(),
                // The core asks for this only when it is told the state of links.
                Output::Recall { .. } => self.poll(),
                Output::Abort { attempt } => {
                    self.abort(attempt);
                    self.poll()
                }
                Output::Wait(at) => match self.wait(at).await {
                    Some((attempt, landed)) => self.landed(attempt, landed)?,
                    None => self.poll(),
                },
                Output::Done(end) => return self.conclude(end),
                Output::Over => unreachable!("the loop ends with Done"),
            };
        }
    }

    fn poll(&mut self) -> Output<Member> {
        if !self.job.exchange.may_repeat() {
            self.call.begun();
        }
        self.step(now(), &mut self.balanced.lock())
    }

    /// Asks the core for its next output. A dispatched attempt is set up at once, because the provider list may change with the next
    /// step.
    fn step(&mut self, now: Instant, roster: &mut Roster) -> Output<Member> {
        let output = self.call.poll(now, &mut roster.balancer);
        if let Output::Dispatch {
            attempt,
            to,
            until,
            hedge,
        } = output
        {
            let job = self.job;
            let (provider, open) = roster.chosen(now, to, &job.client.shared.pool);
            let span = observe::attempt_span(&provider, self.tried.len() + 1, hedge);
            let started = self.call.attempts().get(attempt).map_or(now, |it| it.started());
            self.tried.push(Tried {
                provider: Arc::clone(&provider),
                cause: None,
                at: None,
                span: span.clone(),
            });
            let within = span.clone();
            let work = async move { job.attempt(&provider, open, started, until, &span).await };
            self.flights.push(Flight {
                attempt,
                until,
                work: work.instrument(within).boxed(),
            });
        }
        output
    }

    /// The next attempt that ends; `None` when `at` passes first.
    async fn wait(&mut self, at: Instant) -> Option<(AttemptId, Landed<X::Answer>)> {
        let ends_by_itself = self.flights.iter().any(|flight| flight.until <= at);
        let flights = &mut self.flights;
        let landing = poll_fn(|cx| {
            let mut each = flights.iter_mut().enumerate();
            let landed = each.find_map(|(place, flight)| match flight.work.poll_unpin(cx) {
                Poll::Ready(landed) => Some((place, landed)),
                Poll::Pending => None,
            });
            match landed {
                Some((place, landed)) => Poll::Ready((flights.remove(place).attempt, landed)),
                None => Poll::Pending,
            }
        });
        if ends_by_itself {
            return Some(landing.await);
        }
        tokio::select! {
            biased;
            landed = landing => Some(landed),
            () = tokio::time::sleep_until(at.into()) => None,
        }
    }

    /// Gives an attempt up: its time is over, or another attempt has answered.
    fn abort(&mut self, attempt: AttemptId) {
        self.flights.retain(|flight| flight.attempt != attempt);
        let known = self.call.attempts().get(attempt);
        let cause = match known.map(|it| (it.fate(), it.elapsed())) {
            Some((Fate::Unknown(_), took)) => Cause::TimedOut(took),
            _ => Cause::Cancelled,
        };
        self.record(attempt, None, Some(cause));
    }

    fn record(&mut self, attempt: AttemptId, at: Option<SocketAddr>, cause: Option<Cause>) {
        if let Some(tried) = self.tried.get_mut(attempt.index()) {
            observe::record_attempt(&tried.span, cause.as_ref());
            tried.span = Span::none();
            tried.cause = cause;
            tried.at = at;
        }
    }

    /// Tells the core how an attempt ended; an error when the call is wrong at every provider.
    fn landed(&mut self, attempt: AttemptId, landed: Landed<X::Answer>) -> Result<Output<Member>, CallError> {
        let now = now();
        let (fate, cause, restarted) = match landed.end {
            End::Answer(answer) => {
                self.answer = Some(answer);
                (Fate::Ok, None, false)
            }
            End::Failed(Failure { fate, cause, restarted }) => (fate, Some(cause), restarted),
            End::Fault(error) => return Err(error),
        };
        self.record(attempt, landed.at, cause);
        if !self.job.exchange.may_repeat() {
            self.call.begun();
        }
        let member = self.call.attempts().get(attempt).map(|it| *it.provider());
        let mut roster = self.balanced.lock();
        self.call.on_result(now, &mut roster.balancer, attempt, fate);
        if let Some(member) = member.filter(|_| restarted) {
            roster.balancer.renew(now, &member);
        }
        Ok(self.step(now, &mut roster))
    }

    fn count_attempts(&self) {
        let meters = &self.job.known.meters;
        for (attempt, tried) in self.call.attempts().iter().zip(&self.tried) {
            let name = match (&tried.cause, attempt.fate()) {
                (Some(cause), _) => cause.name(),
                (None, Fate::Ok) => observe::OK,
                (None, _) => observe::CANCELLED,
            };
            meters.attempt(name, || attempt.elapsed());
        }
    }

    fn conclude(
        mut self,
        end: Result<macula_select::Success, macula_select::CallError<Member>>,
    ) -> Result<Done<X::Answer>, CallError> {
        self.over = true;
        self.count_attempts();
        let attempts = self.call.attempts();
        // A hedge runs beside an attempt; it does not follow one.
        let in_turn = attempts.iter().filter(|attempt| !attempt.is_hedge()).count();
        self.job.known.meters.failovers(in_turn.saturating_sub(1));
        match end {
            Ok(success) => match self.answer.take() {
                Some(answer) => Ok(Done {
                    answer,
                    provider: self
                        .tried
                        .get(success.attempt.index())
                        .map(|tried| Arc::clone(&tried.provider)),
                    failed_attempts: verdict::named(self.call.attempts(), &self.tried, self.job.start),
                }),
                None => unreachable!("the core was told of an answer"),
            },
            Err(error) => {
                if let macula_select::CallError::NotRetried { reason, .. } = &error {
                    self.job.known.meters.stopped(*reason);
                }
                Err(verdict::of(error, self.job, &self.tried))
            }
        }
    }
}
