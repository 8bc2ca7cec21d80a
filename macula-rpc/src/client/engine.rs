//! The shell of one call: performs what `macula_select::Call` asks for, and tells it what came of it.
//!
//! No policy lives here. Whom to call, when to give up and what the end is are the core's; dialing and sending are this file's,
//! and the words of an error are `verdict.rs`'s.
//!
//! **Invariants.** The balancer's lock is held for single steps and never across an await: one step chooses the first provider,
//! one takes in how an attempt ended and says what follows. An attempt ends by itself when its time is up, so a call that needs
//! neither a hedge nor a pause has no timer of its own. Most calls need no more than `first.rs`; what is here begins when a first
//! attempt has failed, or is to have another beside it.

use std::{
    future::Future,
    net::SocketAddr,
    num::NonZeroU32,
    ops::ControlFlow,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{FutureExt as _, TryFutureExt as _};
use macula_select::{AttemptId, Call, CallOptions, Code, Fate, FirstAttempt, Loss, Output, Refusal, RetryPolicy};
use macula_transport::{CallReply, CallRequest, Connection, DialError, Limits, Lost, Metadata, Repeat, Route, Unknown};
use macula_wire::{ServiceName, StatusCode};
use tracing::{Instrument as _, Span};

use super::{
    AnswerSource, Client,
    builder::Options,
    flights::Flights,
    services::{Balanced, Member, Service, State},
    source::Failed,
    verdict,
};
use crate::{
    CallError, Cause, Provider, Status,
    error::Attempt,
    observe,
    trace::{TRACEPARENT, TraceContext},
};

/// How much before the end of its time a provider's "deadline exceeded" is taken for that end: two clocks are never the same.
const CLOCK_SLACK: Duration = Duration::from_millis(2);

/// How much longer than its attempt a call is let run on the wire: a provider's "too late" that comes a moment before the
/// call's deadline, by clocks that are not quite the same, would look like a provider that failed in time for another.
const TIMER_SLACK: Duration = Duration::from_millis(1);

/// What is done with a connection once there is one.
pub(super) trait Exchange: Sync {
    /// What it brings.
    type Answer: Send;

    /// Sends the call and waits, until `until` at most, for what settles the attempt.
    fn exchange<'a>(
        &'a self,
        connection: &'a Connection,
        request: CallRequest<'a>,
        until: Instant,
    ) -> impl Future<Output = Result<Outcome<Self::Answer>, macula_transport::CallError>> + Send + 'a;

    /// Whether what has been sent can be sent again.
    fn may_repeat(&self) -> bool {
        true
    }
}

/// What a provider said.
pub(super) enum Outcome<A> {
    /// Success.
    Answer(A),
    /// Its error.
    Error(CallReply),
    /// Nothing: the caller's own requests failed, and the call is over.
    NoRequests(Failed),
}

/// One request, one reply.
pub(super) struct Unary;

impl Exchange for Unary {
    type Answer = CallReply;

    fn exchange<'a>(
        &'a self,
        connection: &'a Connection,
        request: CallRequest<'a>,
        _until: Instant,
    ) -> impl Future<Output = Result<Outcome<CallReply>, macula_transport::CallError>> + Send + 'a {
        // No block of its own: it would hold the request twice.
        connection.call(request).map_ok(|reply| match reply.status {
            StatusCode::Ok => Outcome::Answer(reply),
            _ => Outcome::Error(reply),
        })
    }
}

/// What is the same for every attempt of a call.
pub(super) struct Job<'a, X> {
    pub(super) client: &'a Client,
    pub(super) service: &'a ServiceName,
    pub(super) known: &'a Service,
    pub(super) options: &'a Options,
    pub(super) payload: &'a Bytes,
    pub(super) start: Instant,
    /// When it was known who may be called: the attempts begin.
    pub(super) found: Instant,
    pub(super) source: AnswerSource,
    pub(super) exchange: &'a X,
}

/// A call that succeeded.
pub(super) struct Done<A> {
    pub(super) answer: A,
    pub(super) provider: Option<Arc<Provider>>,
    pub(super) failed_attempts: Vec<Attempt>,
}

/// Makes a call whose first attempt is to be chosen, or, when it is given, goes on from what that brought.
pub(super) async fn run<X: Exchange>(
    job: &Job<'_, X>,
    options: CallOptions,
    balanced: &Balanced,
    providers: &Arc<[Provider]>,
    first: Option<(FirstAttempt<Member>, Tried, Landed<X::Answer>)>,
) -> Result<Done<X::Answer>, CallError> {
    let begin = |attempt: Begin| {
        let span = attempt.span.clone();
        let work = async move {
            let Begin {
                provider,
                open,
                start,
                until,
                span,
            } = attempt;
            job.attempt(&provider, open, start, until, &span).await
        };
        work.instrument(span)
    };
    let (mut driver, mut output) = match first {
        None => {
            let mut driver = Driver::new(Call::new(job.start, options), job, balanced);
            let output = driver.begin(providers);
            (driver, output)
        }
        Some((first, tried, landed)) => {
            let mut driver = Driver::new(first.into_call(options), job, balanced);
            driver.log.push(tried);
            let output = driver.landed(AttemptId::FIRST, landed)?;
            (driver, output)
        }
    };
    let place = pin!(None);
    let mut flights = Flights::new(place);
    loop {
        let at = match driver.perform(output, &mut flights, begin) {
            ControlFlow::Continue(at) => at,
            ControlFlow::Break(end) => return end,
        };
        let landed = if flights.until().is_some_and(|until| until <= at) {
            Some(flights.next().await)
        } else {
            let pause = tokio::time::sleep_until(at.into());
            // Boxed: only a call that hedges or backs off has a timer of its own.
            select(flights.next(), Box::pin(pause)).await
        };
        output = match landed {
            Some((attempt, landed)) => driver.landed(attempt, landed)?,
            None => driver.poll(),
        };
    }
}

/// What a call waits for, or how it ended.
type Next<A> = ControlFlow<Result<Done<A>, CallError>, Instant>;

/// The work's result; `None` when the pause is over first.
async fn select<T>(work: impl Future<Output = T>, pause: impl Future<Output = ()>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = pause => None,
    }
}

pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// What an attempt brought, and the address it was made at, as far as there was one.
pub(super) type Landed<A> = (Option<SocketAddr>, Result<Outcome<A>, Failure>);

/// Why an attempt brought no status.
pub(super) enum Failure {
    Dial(DialError),
    NoConnection,
    Call(macula_transport::CallError),
}

/// No connection within an attempt's time.
#[derive(Debug, thiserror::Error)]
#[error("no connection within {0:?}")]
struct NoConnection(Duration);

/// An attempt that is to be made.
struct Begin {
    provider: Arc<Provider>,
    /// The connection to it, if one is open.
    open: Option<Connection>,
    start: Instant,
    /// When it is over at the latest.
    until: Instant,
    span: Span,
}

impl<'a, X: Exchange> Job<'a, X> {
    /// How long the whole call may take.
    pub(super) fn allowed(&self) -> Duration {
        self.options.timeout.unwrap_or(self.client.shared.defaults.timeout)
    }

    pub(super) fn call_options(&self) -> CallOptions {
        let (options, allowed) = (self.options, self.allowed());
        CallOptions {
            strategy: options.strategy,
            max_attempts: options.max_attempts,
            timeout: allowed,
            attempt_timeout: match self.source {
                // It has providers to try one after another, within the time for each. A router that is gone is noticed by its
                // connection.
                AnswerSource::Router => allowed,
                AnswerSource::Local | AnswerSource::Directory(_) => self.attempt_timeout(),
            },
            policy: options.policy.clone(),
            idempotent: options.idempotent,
            hedge: options.hedge,
            backoff: options.backoff,
            affinity: options.affinity,
            ..CallOptions::default()
        }
    }

    /// How long one provider is waited for.
    fn attempt_timeout(&self) -> Duration {
        let default = self.client.shared.defaults.attempt_timeout;
        self.options.attempt_timeout.unwrap_or(default)
    }

    /// One attempt, which ends by itself at `until`.
    pub(super) async fn attempt(
        &self,
        provider: &Provider,
        open: Option<Connection>,
        start: Instant,
        until: Instant,
        span: &Span,
    ) -> Landed<X::Answer> {
        // The usual case: no dial, no waiting.
        let (connection, now) = match open {
            Some(connection) => (connection, start),
            None => match self.dial(provider, until).boxed().await {
                Ok(connection) => (connection, now()),
                Err(failure) => {
                    let at = match &failure {
                        Failure::Dial(error) => error.addr(),
                        Failure::NoConnection | Failure::Call(_) => None,
                    };
                    return (at, Err(failure));
                }
            },
        };
        let at = connection.peer().remote_addr;
        observe::record_peer(span, at);
        let traced = self.traced(span);
        let metadata = traced.as_ref().or(self.options.metadata.as_ref());
        let mut request = CallRequest::new(self.service, self.payload.clone())
            .with_method(&self.options.method)
            .with_timeout(until.saturating_duration_since(now) + TIMER_SLACK)
            .with_start(now)
            .with_route(self.route());
        if let Some(metadata) = metadata {
            request = request.with_metadata(metadata);
        }
        let exchanged = self.exchange.exchange(&connection, request, until).await;
        (Some(at), exchanged.map_err(Failure::Call))
    }

    async fn dial(&self, provider: &Provider, until: Instant) -> Result<Connection, Failure> {
        let dial = self.client.shared.pool.get(&provider.node_id, &provider.endpoints);
        match tokio::time::timeout_at(until.into(), dial).await {
            Ok(dialed) => dialed.map_err(Failure::Dial),
            Err(_) => Err(Failure::NoConnection),
        }
    }

    /// How a router may pass the call on: as this client would make it.
    fn route(&self) -> Option<Route> {
        (self.source == AnswerSource::Router).then(|| Route {
            repeat: match self.options.policy {
                RetryPolicy::Transient => Repeat::Transient,
                RetryPolicy::AnyError => Repeat::AnyError,
                // What only this process can decide is left to it.
                _ => Repeat::NeverProcessed,
            },
            max_attempts: self.options.max_attempts.and_then(NonZeroU32::new),
            attempt_timeout: Some(self.attempt_timeout()),
        })
    }

    /// The call's metadata with the trace it belongs to, when traces are sent and the caller has given none.
    fn traced(&self, span: &Span) -> Option<Metadata> {
        let propagate = self.client.shared.propagate.as_ref()?;
        let given = self.options.metadata.as_ref();
        if given.is_some_and(|metadata| metadata.get(TRACEPARENT).is_some()) {
            return None;
        }
        let context = propagate.outgoing(span, TraceContext::current())?;
        let mut metadata = given.cloned().unwrap_or_default();
        metadata.push(TRACEPARENT, context.to_string());
        Some(metadata)
    }
}

/// One attempt as it is remembered.
pub(super) struct Tried {
    pub(super) provider: Arc<Provider>,
    pub(super) cause: Option<Cause>,
    /// The address connected to, or dialed in vain.
    pub(super) at: Option<SocketAddr>,
    pub(super) span: Span,
}

impl Tried {
    /// An attempt that begins, within the call's span.
    pub(super) fn new(provider: Arc<Provider>, number: usize, hedge: bool) -> Self {
        Self {
            span: observe::attempt_span(&provider, number, hedge),
            provider,
            cause: None,
            at: None,
        }
    }
}

/// The attempts, by number; the first, usually the only one, without an allocation.
#[derive(Default)]
pub(super) struct Log {
    first: Option<Tried>,
    more: Vec<Tried>,
}

impl Log {
    fn push(&mut self, tried: Tried) {
        match self.first {
            None => self.first = Some(tried),
            Some(_) => self.more.push(tried),
        }
    }

    pub(super) fn get(&self, attempt: AttemptId) -> Option<&Tried> {
        match attempt.index().checked_sub(1) {
            None => self.first.as_ref(),
            Some(at) => self.more.get(at),
        }
    }

    fn get_mut(&mut self, attempt: AttemptId) -> Option<&mut Tried> {
        match attempt.index().checked_sub(1) {
            None => self.first.as_mut(),
            Some(at) => self.more.get_mut(at),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Tried> {
        self.first.iter().chain(&self.more)
    }

    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }
}

/// The core of a call and what the shell knows beside it. Dropping it cancels the call, so that no lease is lost (F8).
struct Driver<'a, X: Exchange> {
    call: Call<Member>,
    job: &'a Job<'a, X>,
    balanced: &'a Balanced,
    log: Log,
    /// The open connection to the provider that was just chosen.
    open: Option<Connection>,
    answer: Option<X::Answer>,
    over: bool,
}

impl<X: Exchange> Drop for Driver<'_, X> {
    fn drop(&mut self) {
        if !self.over {
            self.call.cancel(now(), &mut self.balanced.lock().balancer);
            for attempt in self.call.attempts().iter() {
                self.job.known.meters.attempt(&attempt.fate(), || attempt.elapsed());
            }
        }
    }
}

impl<'a, X: Exchange> Driver<'a, X> {
    fn new(call: Call<Member>, job: &'a Job<'a, X>, balanced: &'a Balanced) -> Self {
        Self {
            call,
            job,
            balanced,
            log: Log::default(),
            open: None,
            answer: None,
            over: false,
        }
    }

    /// Takes over the provider list and chooses the first provider.
    fn begin(&mut self, providers: &Arc<[Provider]>) -> Output<Member> {
        let now = self.job.found;
        let mut state = self.balanced.lock();
        state.reconcile(providers, now);
        let output = self.call.poll(now, &mut state.balancer);
        self.note(now, &mut state, &output);
        output
    }

    fn poll(&mut self) -> Output<Member> {
        let now = now();
        if !self.job.exchange.may_repeat() {
            self.call.begun();
        }
        let mut state = self.balanced.lock();
        let output = self.call.poll(now, &mut state.balancer);
        self.note(now, &mut state, &output);
        output
    }

    /// Logs whom the core dispatches to: under the lock of its choice, because the list may change with the next.
    fn note(&mut self, now: Instant, state: &mut State, output: &Output<Member>) {
        if let Output::Dispatch { to, hedge, .. } = output {
            let Some((provider, open)) = state.provider(now, *to, &self.job.client.shared.pool) else {
                unreachable!("the balancer chooses among the list's members");
            };
            self.open = open;
            self.log.push(Tried::new(provider, self.log.len() + 1, *hedge));
        }
    }

    /// Does what the core says until there is something to wait for.
    fn perform<F: Future<Output = Landed<X::Answer>>>(
        &mut self,
        mut output: Output<Member>,
        flights: &mut Flights<'_, F>,
        begin: impl Fn(Begin) -> F,
    ) -> Next<X::Answer> {
        loop {
            output = match output {
                Output::Dispatch { attempt, until, .. } => {
                    let start = self.call.attempts().get(attempt).map(macula_select::Attempt::started);
                    // Whoever dispatches has logged whom to.
                    if let Some(tried) = self.log.get(attempt) {
                        let attempted = Begin {
                            provider: Arc::clone(&tried.provider),
                            open: self.open.take(),
                            start: start.unwrap_or(self.job.found),
                            until,
                            span: tried.span.clone(),
                        };
                        flights.launch(attempt, until, || begin(attempted));
                    }
                    match self.job.options.hedge {
                        // The attempt's own end is all there is to wait for.
                        None => return ControlFlow::Continue(until),
                        Some(_) => self.poll(),
                    }
                }
                // Only asked for when links are told, which this shell does not do yet.
                Output::Recall { .. } => self.poll(),
                Output::Abort { attempt } => {
                    flights.abort(attempt);
                    self.aborted(attempt);
                    self.poll()
                }
                Output::Wait(at) => return ControlFlow::Continue(at),
                Output::Done(end) => return ControlFlow::Break(self.conclude(end)),
                // Unreachable while the loop ends with Done; a call that is over has nothing to wait for.
                Output::Over => {
                    let nobody = Err(macula_select::CallError::ServiceNotFound);
                    return ControlFlow::Break(self.conclude(nobody));
                }
            };
        }
    }

    /// An attempt was given up by the core: its time was up, or another one has answered.
    fn aborted(&mut self, attempt: AttemptId) {
        let fate = self.call.attempts().get(attempt).map(macula_select::Attempt::fate);
        let took = self.call.attempts().get(attempt).map(macula_select::Attempt::elapsed);
        if let Some(tried) = self.log.get_mut(attempt) {
            let cause = match fate {
                Some(Fate::Unknown(_)) => Cause::TimedOut(took.unwrap_or_default()),
                _ => Cause::Cancelled,
            };
            observe::record_attempt(&tried.span, Some(&cause));
            tried.span = Span::none();
            tried.cause = Some(cause);
        }
    }

    /// Tells the core how an attempt ended, and gives what follows; an error when no provider could take the request.
    fn landed(&mut self, attempt: AttemptId, (at, landed): Landed<X::Answer>) -> Result<Output<Member>, CallError> {
        let now = now();
        let known = self.call.attempts().get(attempt);
        let (started, member) = (known.map(|it| it.started()), known.map(|it| *it.provider()));
        let took = now.saturating_duration_since(started.unwrap_or(now));
        let (fate, cause) = match landed {
            Ok(Outcome::Answer(answer)) => {
                self.answer = Some(answer);
                (Fate::Ok, None)
            }
            Ok(Outcome::Error(reply)) => {
                let (fate, cause) = self.answered(reply, took);
                (fate, Some(cause))
            }
            Ok(Outcome::NoRequests(failed)) => return Err(failed.error(self.job.service)),
            Err(failure) => {
                let (fate, cause) = failed(failure, took, self.job.source)?;
                (fate, Some(cause))
            }
        };
        // A restarted peer says so itself: it is there, on its port, and only the old connection is of no use.
        let restarted = matches!(&cause, Some(Cause::Lost(reason)) if is_restart(reason.as_ref()));
        if let Some(tried) = self.log.get_mut(attempt) {
            observe::record_attempt(&tried.span, cause.as_ref());
            tried.span = Span::none();
            tried.cause = cause;
            tried.at = at;
        }
        if !self.job.exchange.may_repeat() {
            self.call.begun();
        }
        let mut state = self.balanced.lock();
        self.call.on_result(now, &mut state.balancer, attempt, fate);
        if let Some(member) = member.filter(|_| restarted) {
            state.balancer.renew(now, &member);
        }
        let output = self.call.poll(now, &mut state.balancer);
        self.note(now, &mut state, &output);
        Ok(output)
    }

    fn answered(&self, reply: CallReply, took: Duration) -> (Fate, Cause) {
        // A provider that stops at the end of the attempt's time says what this node's clock says a moment later.
        let up = took + CLOCK_SLACK >= self.job.attempt_timeout() || now() + CLOCK_SLACK >= self.call.deadline();
        if reply.status == StatusCode::DeadlineExceeded && up {
            return (Fate::Unknown(Loss::TimedOut), Cause::TimedOut(took));
        }
        let fate = Fate::Answered {
            code: Code::from_number(reply.status.as_u32()),
            pushback: reply.pushback().map(|asked| pushback(asked, self.job.source)),
        };
        (fate, Cause::Answered(Status::from_reply(reply)))
    }

    fn conclude(
        &mut self,
        end: Result<macula_select::Success, macula_select::CallError<Member>>,
    ) -> Result<Done<X::Answer>, CallError> {
        self.over = true;
        let (attempts, meters) = (self.call.attempts(), &self.job.known.meters);
        // A hedge goes beside an attempt, and not on from one.
        let one_after_another = attempts.iter().filter(|attempt| !attempt.is_hedge()).count();
        meters.failovers(one_after_another.saturating_sub(1));
        for attempt in attempts.iter() {
            meters.attempt(&attempt.fate(), || attempt.elapsed());
        }
        match end {
            Ok(success) => match self.answer.take() {
                Some(answer) => Ok(Done {
                    answer,
                    provider: self.log.get(success.attempt).map(|tried| Arc::clone(&tried.provider)),
                    failed_attempts: verdict::named(attempts, &self.log, self.job.start),
                }),
                None => unreachable!("the core says ok when it was told so, which is when there is an answer"),
            },
            Err(error) => {
                if let macula_select::CallError::NotRetried { reason, .. } = &error {
                    self.job.known.meters.stopped(*reason);
                }
                Err(verdict::of(error, self.job, &self.log, self.job.allowed()))
            }
        }
    }
}

/// The fate of an attempt without a status; an error when no provider could have taken the request.
fn failed(failure: Failure, took: Duration, source: AnswerSource) -> Result<(Fate, Cause), CallError> {
    use macula_transport::CallError as Transport;

    Ok(match failure {
        Failure::Dial(error) => (Fate::NotSent, Cause::NotSent(Arc::new(error))),
        Failure::NoConnection => (Fate::NotSent, Cause::NotSent(Arc::new(NoConnection(took)))),
        Failure::Call(Transport::NotSent(reason)) => (Fate::NotSent, Cause::NotSent(Arc::new(reason))),
        Failure::Call(Transport::Refused {
            status,
            message,
            pushback: asked,
        }) => {
            let fate = Fate::Refused {
                reason: refusal(status, source),
                pushback: asked.map(|asked| pushback(asked, source)),
            };
            (
                fate,
                Cause::Refused(Status::new(status, message).with_pushback_of(asked)),
            )
        }
        Failure::Call(Transport::Unknown(Unknown::Timeout(_))) => {
            (Fate::Unknown(Loss::TimedOut), Cause::TimedOut(took))
        }
        // The caller's own fault, whoever it asks, as in this process.
        Failure::Call(Transport::Unknown(reason @ Unknown::Streamed)) => {
            let fate = Fate::Answered {
                code: Code::FailedPrecondition,
                pushback: None,
            };
            let status = Status::new(StatusCode::FailedPrecondition, reason.to_string());
            (fate, Cause::Answered(status))
        }
        Failure::Call(Transport::Unknown(reason)) => {
            (Fate::Unknown(Loss::ConnectionLost), Cause::Lost(Arc::new(reason)))
        }
        // One provider that takes less than the rest is passed over; the call is only wrong when nobody would take it.
        Failure::Call(error @ Transport::TooLarge { bytes, .. }) if bytes <= Limits::default().max_message_bytes => {
            (Fate::NotSent, Cause::NotSent(Arc::new(error)))
        }
        Failure::Call(Transport::TooLarge { bytes, limit }) => {
            return Err(CallError::RequestTooLarge { size: bytes, limit });
        }
        Failure::Call(Transport::HeadTooLarge { bytes }) => return Err(CallError::MetadataTooLarge { size: bytes }),
        Failure::Call(other) => (Fate::Unknown(Loss::ConnectionLost), Cause::Lost(Arc::new(other))),
    })
}

fn pushback(asked: macula_transport::Pushback, source: AnswerSource) -> macula_select::Pushback {
    match asked {
        // It is a provider's, whom another router would call again at once; and it is not the router that is to be spared.
        _ if source == AnswerSource::Router => macula_select::Pushback::Stop,
        macula_transport::Pushback::After(time) => macula_select::Pushback::After(time),
        macula_transport::Pushback::Never => macula_select::Pushback::Stop,
    }
}

fn is_restart(reason: &(dyn std::error::Error + 'static)) -> bool {
    matches!(reason.downcast_ref(), Some(Unknown::Lost(Lost::Restarted)))
}

fn refusal(status: StatusCode, source: AnswerSource) -> Refusal {
    match status {
        // A router that finds nobody is a router that works.
        StatusCode::NotFound if source == AnswerSource::Router => Refusal::Overloaded,
        StatusCode::Unimplemented | StatusCode::NotFound => Refusal::NoSuchService,
        StatusCode::Unavailable => Refusal::Draining,
        _ => Refusal::Overloaded,
    }
}
