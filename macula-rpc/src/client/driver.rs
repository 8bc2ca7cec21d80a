//! The driver of one call: it performs the outputs of `macula_select::Call` and reports how each attempt ended.
//!
//! The core decides which provider is called, when to give up and how the call ends; this file dials, sends and waits.
//!
//! **Invariants.** The balancer's lock is held for single steps and never across an await. An attempt ends by itself when its time
//! is up, so a call without a hedge or a pause sets no timer. A call whose first attempt succeeds allocates nothing: it needs only a
//! [`FirstAttempt`], and [`Driver`] takes over from it.

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Instant,
};

use futures::{FutureExt as _, future::BoxFuture};
use macula_select::{AttemptId, Call, Fate, FirstAttempt, Output, Refusal};
use macula_transport::Connection;
use tokio::sync::futures::Notified;
use tracing::{Instrument as _, Span};

use super::{
    attempt::{End, Exchange, Failure, Job, Landed, Progress, Tried, Way},
    links,
    refresh::ASK_EVERY,
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
    // News that come from now on wake this call.
    let news = balanced.news().notified();
    let Some(Chosen {
        provider,
        open,
        way,
        times,
    }) = first.start(providers)
    else {
        let driver = Driver::new(Call::new(job.start, job.call_options()), job, balanced);
        return driver.begin(providers).boxed().await;
    };
    let span = observe::attempt_span(&provider, 1, false);
    let progress = Progress::default();
    let work = job.attempt(&provider, open, times, &span, way, &progress);
    let tried = Tried {
        provider: Arc::clone(&provider),
        cause: None,
        at: None,
        span: span.clone(),
    };
    if span.is_disabled() {
        first.finish(pin!(work), news, tried, &progress).await
    } else {
        let mut work = work.instrument(span.clone()).boxed();
        first.finish(Pin::new(&mut work), news, tried, &progress).boxed().await
    }
}

/// A provider that was chosen for an attempt, and the connection to it if one is open.
struct Chosen<'a> {
    provider: Arc<Provider>,
    open: Option<Connection>,
    way: Way<'a>,
    /// When the attempt starts, and when it ends by itself.
    times: (Instant, Instant),
}

/// The first attempt while it runs. Dropping it cancels the attempt (F8).
struct First<'a, X: Exchange> {
    job: &'a Job<'a, X>,
    balanced: &'a Balanced,
    attempt: Option<FirstAttempt<Member>>,
}

impl<'a, X: Exchange> First<'a, X> {
    /// Takes over the provider list and chooses from it; `None` when the call ends before any attempt, or has a hedge.
    fn start(&mut self, providers: &Arc<[Provider]>) -> Option<Chosen<'a>> {
        let job = self.job;
        if job.options.hedge.is_some() {
            return None;
        }
        let (options, pool) = (job.call_options(), &job.client.shared.pool);
        let mut roster = self.balanced.lock();
        roster.reconcile(providers, job.found, pool);
        self.attempt = FirstAttempt::start(job.start, job.found, &mut roster.balancer, &options);
        let wants_dial = roster.wants_dial();
        let chosen = self.attempt.as_ref().map(|attempt| {
            let member = *attempt.to();
            let (provider, open) = roster.chosen(attempt.started(), member, pool);
            Chosen {
                provider,
                open,
                way: Way {
                    balanced: self.balanced,
                    member,
                },
                times: (attempt.started(), attempt.until()),
            }
        });
        drop(roster);
        if wants_dial {
            links::dial_behind(self.balanced, pool, job.asker());
        }
        chosen
    }

    /// Waits for the attempt. When it fails, or its provider falls silent while it waits, a [`Driver`] goes on with the call.
    async fn finish<F>(
        mut self,
        mut work: Pin<&mut F>,
        news: Notified<'_>,
        tried: Tried,
        progress: &Progress,
    ) -> Result<Done<X::Answer>, CallError>
    where
        F: Future<Output = Landed<X::Answer>> + Send,
    {
        let mut news = pin!(news);
        let landed = loop {
            tokio::select! {
                biased;
                landed = work.as_mut() => break Some(landed),
                () = news.as_mut() => {
                    news.set(self.balanced.news().notified());
                    if self.is_stalled() {
                        break None;
                    }
                }
            }
        };
        if let Some(Landed {
            end: End::Answer(answer),
            ..
        }) = landed
        {
            self.end(Fate::Ok);
            observe::record_attempt(&tried.span, None);
            return Ok(Done {
                answer,
                provider: Some(tried.provider),
                failed_attempts: Vec::new(),
            });
        }
        let Some(attempt) = self.attempt.take() else {
            unreachable!("the attempt was started");
        };
        let until = attempt.until();
        let mut driver = Driver::new(attempt.into_call(self.job.call_options()), self.job, self.balanced);
        driver.tried.push(tried);
        let output = match landed {
            Some(landed) => driver.landed(AttemptId::FIRST, landed)?,
            None => {
                driver.flights.push(Flight {
                    attempt: AttemptId::FIRST,
                    until,
                    sent: Sent::First(progress),
                    work: Box::pin(work),
                });
                driver.poll()
            }
        };
        driver.drive(output).boxed().await
    }

    fn is_stalled(&self) -> bool {
        let attempt = self.attempt.as_ref();
        attempt.is_some_and(|attempt| attempt.is_stalled(&self.balanced.lock().balancer))
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

/// Whether an attempt under way may have sent its request.
enum Sent<'a> {
    First(&'a Progress),
    Later(Arc<Progress>),
}

impl Sent<'_> {
    fn is_sent(&self) -> bool {
        match self {
            Self::First(progress) => progress.is_sent(),
            Self::Later(progress) => progress.is_sent(),
        }
    }
}

/// An attempt was taken back before anything was sent: another provider is connected.
#[derive(Debug, thiserror::Error)]
#[error("it was still being dialed when another provider was connected")]
struct TakenBack;

/// An attempt was given up because its provider no longer acknowledged anything.
#[derive(Debug, thiserror::Error)]
#[error("the provider fell silent")]
struct FellSilent;

/// An attempt under way. Dropping it tells the provider that the attempt is cancelled.
struct Flight<'a, A> {
    attempt: AttemptId,
    until: Instant,
    sent: Sent<'a>,
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
    /// The directory was asked again for this call.
    asked_anew: bool,
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
            asked_anew: false,
            over: false,
        }
    }

    /// Drives a call that has made no attempt yet.
    async fn begin(mut self, providers: &Arc<[Provider]>) -> Result<Done<X::Answer>, CallError> {
        let output = {
            let now = self.job.found;
            let mut roster = self.balanced.lock();
            roster.reconcile(providers, now, &self.job.client.shared.pool);
            self.step(now, &mut roster)
        };
        self.drive(output).await
    }

    async fn drive(mut self, mut output: Output<Member>) -> Result<Done<X::Answer>, CallError> {
        loop {
            output = match output {
                Output::Dispatch { .. } => self.poll(),
                Output::Recall { attempt } => self.recall(attempt),
                Output::Abort { attempt } => {
                    self.abort(attempt);
                    self.poll()
                }
                Output::Wait(_) => {
                    let news = self.balanced.news().notified();
                    // This poll sees the news until now; later news wake it.
                    match self.poll() {
                        Output::Wait(at) => match self.wait(at, news).await {
                            Some((attempt, landed)) => self.landed(attempt, landed)?,
                            None => self.poll(),
                        },
                        output => output,
                    }
                }
                Output::Done(Err(macula_select::CallError::AllProvidersFailed { .. }))
                    if self.wait_again() || self.ask_anew().await =>
                {
                    self.poll()
                }
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
            if hedge && !self.job.exchange.may_run_beside() {
                self.give_up_silent(now, roster, attempt);
            }
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
            let way = Way {
                balanced: self.balanced,
                member: to,
            };
            let progress = Arc::new(Progress::default());
            let sent = Sent::Later(Arc::clone(&progress));
            let times = (started, until);
            let work = async move { job.attempt(&provider, open, times, &span, way, &progress).await };
            self.flights.push(Flight {
                attempt,
                until,
                sent,
                work: work.instrument(within).boxed(),
            });
        }
        output
    }

    /// Gives up the attempts at silent providers, because the next one needs the requests that they hold.
    fn give_up_silent(&mut self, now: Instant, roster: &mut Roster, next: AttemptId) {
        for flight in std::mem::take(&mut self.flights) {
            if flight.attempt == next {
                continue;
            }
            self.record(flight.attempt, None, Some(Cause::Lost(Arc::new(FellSilent))));
            let lost = Fate::Unknown(macula_select::Loss::ConnectionLost);
            self.call.on_result(now, &mut roster.balancer, flight.attempt, lost);
        }
    }

    /// Takes an attempt back unless its request may have been sent.
    fn recall(&mut self, attempt: AttemptId) -> Output<Member> {
        let waits = self
            .flights
            .iter()
            .position(|flight| flight.attempt == attempt && !flight.sent.is_sent());
        if let Some(place) = waits {
            self.flights.remove(place);
            self.record(attempt, None, Some(Cause::NotSent(Arc::new(TakenBack))));
            let now = now();
            self.call
                .on_result(now, &mut self.balanced.lock().balancer, attempt, Fate::NotSent);
        }
        self.poll()
    }

    /// Goes back to the providers for which there was no place in the pool. Returns whether the call goes on.
    fn wait_again(&mut self) -> bool {
        let mut roster = self.balanced.lock();
        let without_place: Vec<Member> = self
            .tried
            .iter()
            .filter(|tried| tried.had_no_place())
            .filter_map(|tried| roster.member(&tried.provider.node_id))
            .collect();
        let waits = |member: &Member| without_place.contains(member);
        !without_place.is_empty() && self.call.resume(now(), &mut roster.balancer, waits)
    }

    /// Asks the directory again, once, when every known provider was tried (D12). Returns whether the call goes on.
    async fn ask_anew(&mut self) -> bool {
        let job = self.job;
        let Some(asker) = job.asker().filter(|_| !self.asked_anew) else {
            return false;
        };
        self.asked_anew = true;
        // A call that has lasted for long needs a newer answer than one from its beginning.
        let since = now().checked_sub(ASK_EVERY).map_or(job.found, |at| at.max(job.found));
        let asked = tokio::time::timeout_at(self.call.deadline().into(), asker.ask(since)).await;
        let Ok(Ok(Some(list))) = asked else { return false };
        let pool = &job.client.shared.pool;
        let now = now();
        let mut roster = self.balanced.lock();
        roster.reconcile(&list, now, pool);
        let renewed: Vec<Member> = self
            .tried
            .iter()
            .filter(|tried| {
                let listed = list.iter().find(|provider| provider.node_id == tried.provider.node_id);
                let is_refused = matches!(tried.cause, Some(Cause::Refused(_)));
                listed.is_some_and(|listed| {
                    let is_open = || pool.open(&listed.node_id).is_some();
                    listed.endpoints != tried.provider.endpoints || (!is_refused && is_open())
                })
            })
            .filter_map(|tried| roster.member(&tried.provider.node_id))
            .collect();
        self.call
            .resume(now, &mut roster.balancer, |member| renewed.contains(member))
    }

    /// The next attempt that ends; `None` when `at` passes first, or news arrive.
    async fn wait(&mut self, at: Instant, news: Notified<'_>) -> Option<(AttemptId, Landed<X::Answer>)> {
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
        tokio::select! {
            biased;
            landed = landing => Some(landed),
            () = news => None,
            () = tokio::time::sleep_until(at.into()), if !ends_by_itself => None,
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
        let (fate, cause, restarted, link, withheld) = match landed.end {
            End::Answer(answer) => {
                self.answer = Some(answer);
                (Fate::Ok, None, false, None, false)
            }
            End::Failed(Failure {
                fate,
                cause,
                restarted,
                link,
                withheld,
            }) => (fate, Some(cause), restarted, link, withheld),
            End::Fault(error) => return Err(error),
        };
        self.record(attempt, landed.at, cause);
        if !self.job.exchange.may_repeat() {
            self.call.begun();
        }
        let member = self.call.attempts().get(attempt).map(|it| *it.provider());
        let mut roster = self.balanced.lock();
        if let (Some(member), Some(link)) = (&member, link) {
            // Told before the result, so that a retry after a lost provider is not charged (L5).
            roster.balancer.link(now, member, link);
        }
        if withheld {
            self.call.on_withheld(now, &mut roster.balancer, attempt);
        } else {
            self.call.on_result(now, &mut roster.balancer, attempt, fate);
        }
        if let Some(member) = member.filter(|_| restarted) {
            roster.balancer.renew(now, &member);
        }
        let output = self.step(now, &mut roster);
        drop(roster);
        let is_leaving = matches!(
            fate,
            Fate::Refused {
                reason: Refusal::Draining,
                ..
            }
        );
        if link.is_some() || is_leaving {
            let asker = self.job.asker();
            if let Some(asker) = &asker {
                asker.ask(self.job.found);
            }
            self.balanced.news().notify_waiters();
            links::dial_behind(self.balanced, &self.job.client.shared.pool, asker);
        }
        Ok(output)
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
