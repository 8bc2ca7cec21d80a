//! One attempt of a call at one provider: the dial, the exchange, and its end.
//!
//! **Invariant.** A failure is converted here, once: the transport's outcome becomes a [`Fate`] for the core and a [`Cause`] for people.

use std::{
    borrow::Cow,
    future::Future,
    net::SocketAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{FutureExt as _, TryFutureExt as _};
use macula_select::{CallOptions, Code, Fate, Link, Loss, Refusal, RetryPolicy};
use macula_transport::{
    CallReply, CallRequest, Connection, DialError, Limits, Lost, Metadata, NotSent, Repeat, Route, Unknown,
};
use macula_wire::{NodeId, ServiceName, StatusCode};
use tracing::Span;

use super::{
    answer::AnswerSource,
    link_state,
    links::{self, Refresher},
    options::Options,
    services::{Balanced, Member, Service},
    shared::{Client, now},
};
use crate::{
    CallError, Cause, Provider, Status, observe,
    trace::{TRACEPARENT, TraceContext},
};

/// A provider's "deadline exceeded" this close to the end of an attempt is the attempt's own timeout: two clocks never agree.
const CLOCK_SLACK: Duration = Duration::from_millis(2);

/// The provider gets this much more time than the attempt has. Otherwise a provider whose clock runs fast answers "too late" just
/// before the call's deadline, and the client tries another provider for nothing.
const TIMER_SLACK: Duration = Duration::from_millis(1);

/// The messages that a call exchanges over a connection.
pub(super) trait Exchange: Sync {
    /// The result of a successful exchange.
    type Answer: Send;

    /// Sends the call and waits, until `until` at most, for the outcome of the attempt.
    fn exchange<'a>(
        &'a self,
        connection: &'a Connection,
        request: CallRequest<'a>,
        until: Instant,
    ) -> impl Future<Output = Result<Outcome<Self::Answer>, macula_transport::CallError>> + Send + 'a;

    /// Whether the requests can be sent again.
    fn may_repeat(&self) -> bool {
        true
    }

    /// Whether the requests can be sent to two providers at once.
    fn may_run_beside(&self) -> bool {
        true
    }
}

/// The outcome of an exchange that the connection survived.
pub(super) enum Outcome<A> {
    /// Success.
    Answer(A),
    /// The provider's error.
    Error(CallReply),
    /// The caller's own requests failed: no provider can serve the call.
    Fault(CallError),
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
        // An async block would hold the request twice.
        connection.call(request).map_ok(|reply| match reply.status {
            StatusCode::Ok => Outcome::Answer(reply),
            _ => Outcome::Error(reply),
        })
    }
}

/// The parts of a call that every attempt shares.
pub(super) struct Job<'a, X> {
    pub(super) client: &'a Client,
    pub(super) service: &'a ServiceName,
    pub(super) known: &'a Arc<Service>,
    pub(super) options: &'a Options,
    pub(super) payload: &'a Bytes,
    pub(super) start: Instant,
    /// When the list of providers was known and the attempts begin.
    pub(super) found: Instant,
    pub(super) source: AnswerSource,
    pub(super) exchange: &'a X,
}

/// The end of an attempt, and the address it was made at.
pub(super) struct Landed<A> {
    pub(super) at: Option<SocketAddr>,
    pub(super) end: End<A>,
}

/// An attempt that was made, for the errors and the span.
pub(super) struct Tried {
    pub(super) provider: Arc<Provider>,
    pub(super) cause: Option<Cause>,
    /// The address that was connected to or dialed.
    pub(super) at: Option<SocketAddr>,
    pub(super) span: Span,
}

/// How an attempt ended.
pub(super) enum End<A> {
    Answer(A),
    Failed(Failure),
    /// The call is wrong at every provider.
    Fault(CallError),
}

/// A failed attempt, for the core and for people.
pub(super) struct Failure {
    pub(super) fate: Fate,
    pub(super) cause: Cause,
    /// The peer says that it restarted: only the old connection is of no use.
    pub(super) restarted: bool,
    /// The state in which the attempt found the link to its provider.
    pub(super) link: Option<Link>,
    /// It was not sent for a reason of this side, which says nothing about its provider.
    pub(super) withheld: bool,
}

/// Whether a request may have been sent already. While it says no, the attempt waits for a dial.
#[derive(Debug, Default)]
pub(super) struct Progress(AtomicBool);

impl Progress {
    pub(super) fn is_sent(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// The provider of an attempt as its balancer knows it.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) balanced: &'a Balanced,
    pub(super) member: Member,
}

impl Tried {
    /// Whether the attempt found no place in the connection pool, which says nothing about its provider.
    pub(super) fn had_no_place(&self) -> bool {
        match &self.cause {
            Some(Cause::NotSent(reason)) => {
                matches!(reason.downcast_ref(), Some(DialError::PoolFull { .. }))
            }
            _ => false,
        }
    }
}

impl<A> End<A> {
    fn failed(fate: Fate, cause: Cause) -> Self {
        Self::Failed(Failure {
            fate,
            cause,
            restarted: false,
            link: None,
            withheld: false,
        })
    }

    fn not_sent(reason: impl std::error::Error + Send + Sync + 'static, link: Option<Link>) -> Self {
        Self::Failed(Failure {
            fate: Fate::NotSent,
            cause: Cause::NotSent(Arc::new(reason)),
            restarted: false,
            link,
            withheld: false,
        })
    }

    fn withheld(cause: Cause, link: Option<Link>) -> Self {
        Self::Failed(Failure {
            fate: Fate::NotSent,
            cause,
            restarted: false,
            link,
            withheld: true,
        })
    }
}

/// Whether an attempt goes on at its provider over a new connection.
enum Again {
    No,
    /// The connection ended before the provider had started the call.
    NotSent,
    /// The provider restarted, and the call may run twice.
    Restarted,
}

/// No connection within an attempt's time.
#[derive(Debug, thiserror::Error)]
#[error("no connection within {0:?}")]
struct NoConnection(Duration);

/// A directory named a node that may not provide the service (A4).
#[derive(Debug, thiserror::Error)]
#[error("the grant of node {0} does not let it provide {1}")]
struct NotProvided(NodeId, ServiceName);

impl<X: Exchange> Job<'_, X> {
    /// How long the whole call may take.
    pub(super) fn allowed(&self) -> Duration {
        self.options.timeout.unwrap_or(self.client.shared.defaults.timeout)
    }

    /// How long one provider may take.
    fn attempt_timeout(&self) -> Duration {
        let default = self.client.shared.defaults.attempt_timeout;
        self.options.attempt_timeout.unwrap_or(default)
    }

    pub(super) fn call_options(&self) -> CallOptions {
        let (options, allowed) = (self.options, self.allowed());
        CallOptions {
            strategy: options.strategy,
            max_attempts: options.max_attempts,
            timeout: allowed,
            attempt_timeout: match self.source {
                // A router tries several providers within this time. The connection tells when the router itself is gone.
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

    /// Makes an attempt, which ends by itself at `until`. A connection that ends before the provider has started the call, or because
    /// the provider restarted, is dialed again once (H6).
    pub(super) async fn attempt(
        &self,
        provider: &Provider,
        open: Option<Connection>,
        (start, until): (Instant, Instant),
        span: &Span,
        way: Way<'_>,
        progress: &Progress,
    ) -> Landed<X::Answer> {
        let first = match open {
            Some(connection) => {
                progress.0.store(true, Relaxed);
                match self.exchange_on(&connection, (start, start), until, span, way).await {
                    Ok(landed) => return landed,
                    Err(error) => error,
                }
            }
            None => Again::No,
        };
        if let Again::Restarted = first {
            way.balanced.lock().balancer.renew(now(), &way.member);
        }
        self.attempt_by_dial(provider, (start, until), span, way, progress)
            .boxed()
            .await
    }

    async fn attempt_by_dial(
        &self,
        provider: &Provider,
        (start, until): (Instant, Instant),
        span: &Span,
        way: Way<'_>,
        progress: &Progress,
    ) -> Landed<X::Answer> {
        let connection = match self.dial(provider, until, way).await {
            Some(Ok(connection)) => connection,
            Some(Err(error)) => {
                let at = error.addr();
                let link = Some(links::after_dial(&error));
                let end = match error {
                    DialError::PoolFull { .. } => End::withheld(Cause::NotSent(Arc::new(error)), link),
                    error => End::not_sent(error, link),
                };
                return Landed { at, end };
            }
            None => {
                let end = End::not_sent(NoConnection(since(start)), Some(Link::Down));
                return Landed { at: None, end };
            }
        };
        // Set before anything is sent, so that a call that wants to take the attempt back sees that it is too late.
        progress.0.store(true, Relaxed);
        links::tell(
            way.balanced,
            now(),
            &way.member,
            link_state::over(connection.presence()),
        );
        match self.exchange_once(&connection, (start, now()), until, span).await {
            (at, Ok(end)) => Landed { at, end },
            (at, Err(error)) => Landed {
                at,
                end: self.failed(error, since(start)),
            },
        }
    }

    /// Sends the call on a connection that was open already. An error is the reason to dial the provider again.
    async fn exchange_on(
        &self,
        connection: &Connection,
        times: (Instant, Instant),
        until: Instant,
        span: &Span,
        way: Way<'_>,
    ) -> Result<Landed<X::Answer>, Again> {
        let (start, _) = times;
        let (at, result) = self.exchange_once(connection, times, until, span).await;
        let end = match result {
            Ok(end) => end,
            Err(error) => match self.again(&error, way) {
                Again::No => self.failed(error, since(start)),
                again => return Err(again),
            },
        };
        Ok(Landed { at, end })
    }

    /// Sends the call on a connection. The attempt began at `start`, and the call is sent at `now`.
    async fn exchange_once(
        &self,
        connection: &Connection,
        (start, now): (Instant, Instant),
        until: Instant,
        span: &Span,
    ) -> (Option<SocketAddr>, Result<End<X::Answer>, macula_transport::CallError>) {
        let peer = connection.peer();
        let at = peer.remote_addr;
        observe::record_peer(span, at);
        // A router passes the call on, and a provider that the caller names is the caller's choice.
        let is_listed = self.source != AnswerSource::Router && self.options.provider.is_none();
        let listed_as = self.options.listed_as(self.service);
        if is_listed && !peer.may_provide(listed_as) {
            let reason = NotProvided(peer.node_id, listed_as.clone());
            return (Some(at), Ok(End::not_sent(reason, None)));
        }
        let traced = self.traced(span);
        let metadata = traced.as_ref().or(self.options.metadata.as_ref());
        let mut request = CallRequest::new(self.service, self.payload.clone())
            .with_method(&self.options.method)
            .with_timeout(until.saturating_duration_since(now) + TIMER_SLACK)
            .with_start(now)
            .with_route(self.route())
            .with_passage(self.passage(connection));
        if let Some(metadata) = metadata {
            request = request.with_metadata(metadata);
        }
        let result = self
            .exchange
            .exchange(connection, request, until)
            .await
            .map(|outcome| match outcome {
                Outcome::Answer(answer) => End::Answer(answer),
                Outcome::Error(reply) => self.answered(reply, since(start)),
                Outcome::Fault(error) => End::Fault(error),
            });
        (Some(at), result)
    }

    /// Whether the same provider may be asked again over a new connection.
    fn again(&self, error: &macula_transport::CallError, way: Way<'_>) -> Again {
        use macula_transport::CallError as Error;

        let may_run_twice = || self.options.policy.retries(&Fate::Unknown(Loss::ConnectionLost));
        // A dial to a peer that may be gone takes long; another provider is faster.
        let is_only_one = || way.balanced.lock().balancer.len() == 1;
        match error {
            _ if !self.exchange.may_repeat() => Again::No,
            Error::NotSent(NotSent::Lost(lost)) if lost.peer_is_there() || is_only_one() => Again::NotSent,
            Error::Unknown(Unknown::Lost(Lost::Restarted)) if may_run_twice() => Again::Restarted,
            _ => Again::No,
        }
    }

    /// A connection to the provider; `None` when there is none in time.
    async fn dial(&self, provider: &Provider, until: Instant, way: Way<'_>) -> Option<Result<Connection, DialError>> {
        let pool = match self.options.resolve.asker {
            None => Cow::Borrowed(&self.client.shared.pool),
            Some(_) => Cow::Owned(self.client.shared.pool.for_peers()),
        };
        let is_last = || way.balanced.lock().balancer.is_last_reachable(&way.member);
        let dial = async {
            let mut may_wait = true;
            loop {
                match pool.get_by(&provider.node_id, &provider.endpoints, until).await {
                    // A dial failed a moment ago. The provider may be back by the time of the next one.
                    Err(DialError::BackingOff { retry_in, .. })
                        if now() + retry_in < until && (may_wait || is_last()) =>
                    {
                        may_wait = false;
                        tokio::time::sleep(retry_in).await;
                    }
                    // Nothing listens there now. A call with no other choice waits for a process that starts again.
                    Err(DialError::Unreachable { .. }) if is_last() => {}
                    dialed => return dialed,
                }
            }
        };
        tokio::time::timeout_at(until.into(), dial).await.ok()
    }

    /// Asks the directory again behind this call; `None` when its list is not the directory's, or is another service's.
    pub(super) fn asker(&self) -> Option<Refresher> {
        let is_own = self.options.provider.is_none() && self.options.about.is_none();
        let is_listed = matches!(self.source, AnswerSource::Directory(_)) && is_own;
        is_listed.then(|| Refresher::new(self.client, self.service, self.known))
    }

    /// The leave by which this node, or the router that it asks, passes the call on; empty for a call that goes straight to its provider.
    fn passage(&self, connection: &Connection) -> Bytes {
        match &self.options.passage {
            Some(passage) => passage.clone(),
            None if self.source == AnswerSource::Router => connection.passage(self.service),
            None => Bytes::new(),
        }
    }

    /// How a router may pass the call on: as this client would make it.
    fn route(&self) -> Option<Route> {
        (self.source == AnswerSource::Router).then(|| Route {
            repeat: match self.options.policy {
                RetryPolicy::Transient => Repeat::Transient,
                RetryPolicy::Unavailable => Repeat::Unavailable,
                RetryPolicy::AnyError => Repeat::AnyError,
                // Only this process can evaluate a custom policy.
                _ => Repeat::NeverProcessed,
            },
            max_attempts: self.options.max_attempts.and_then(NonZeroU32::new),
            attempt_timeout: Some(self.attempt_timeout()),
        })
    }

    /// The call's metadata with its trace, when the client sends traces and the caller gave none.
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

    fn answered<A>(&self, reply: CallReply, took: Duration) -> End<A> {
        let call_ends = self.start.checked_add(self.allowed());
        let up = took + CLOCK_SLACK >= self.attempt_timeout() || call_ends.is_some_and(|at| now() + CLOCK_SLACK >= at);
        if reply.status == StatusCode::DeadlineExceeded && up {
            return timed_out(took);
        }
        let fate = Fate::Answered {
            code: Code::from_number(reply.status.as_u32()),
            pushback: reply.pushback().map(|asked| self.pushback(asked)),
        };
        End::failed(fate, Cause::Answered(Status::from_reply(reply)))
    }

    /// Converts a transport error of an attempt that took this long.
    fn failed<A>(&self, error: macula_transport::CallError, took: Duration) -> End<A> {
        use macula_transport::CallError as Error;

        match error {
            // Another provider may take metadata of this size.
            Error::NotSent(reason @ NotSent::HeadTooLarge { .. }) => {
                End::withheld(Cause::NotSent(Arc::new(reason)), None)
            }
            Error::NotSent(reason) => {
                let link = match &reason {
                    NotSent::Lost(lost) => Some(link_state::after(lost)),
                    _ => None,
                };
                End::not_sent(reason, link)
            }
            Error::Refused {
                status,
                message,
                pushback,
            } => {
                let fate = Fate::Refused {
                    reason: self.refusal(status),
                    pushback: pushback.map(|asked| self.pushback(asked)),
                };
                let status = Status::new(status, message).with_pushback_of(pushback);
                End::failed(fate, Cause::Refused(status))
            }
            Error::Unknown(Unknown::Timeout(_)) => timed_out(took),
            // The caller asked in the wrong way, for every provider as for this one.
            Error::Unknown(reason @ Unknown::Streamed) => {
                let status = Status::new(StatusCode::FailedPrecondition, reason.to_string());
                End::failed(Fate::answered(Code::FailedPrecondition), Cause::Answered(status))
            }
            Error::Unknown(reason) => {
                let link = match &reason {
                    Unknown::Lost(lost) => Some(link_state::after(lost)),
                    _ => None,
                };
                End::Failed(Failure {
                    fate: Fate::Unknown(Loss::ConnectionLost),
                    restarted: matches!(reason, Unknown::Lost(Lost::Restarted)),
                    cause: Cause::Lost(Arc::new(reason)),
                    link,
                    withheld: false,
                })
            }
            // Another provider may take a message of this size.
            Error::TooLarge { bytes, limit } if bytes <= Limits::default().max_message_bytes => {
                End::withheld(Cause::TooLarge { size: bytes, limit }, None)
            }
            Error::TooLarge { bytes, limit } => End::Fault(CallError::RequestTooLarge { size: bytes, limit }),
            Error::HeadTooLarge {
                bytes,
                entries,
                max_bytes,
                max_entries,
            } => End::Fault(CallError::MetadataTooLarge {
                size: bytes,
                entries,
                max_size: max_bytes,
                max_entries,
            }),
            other => End::failed(Fate::Unknown(Loss::ConnectionLost), Cause::Lost(Arc::new(other))),
        }
    }

    fn pushback(&self, asked: macula_transport::Pushback) -> macula_select::Pushback {
        match asked {
            // A provider behind the router asked. Another router would call that provider at once, and the router itself has
            // room.
            _ if self.source == AnswerSource::Router => macula_select::Pushback::Stop,
            macula_transport::Pushback::After(time) => macula_select::Pushback::After(time),
            macula_transport::Pushback::Never => macula_select::Pushback::Stop,
        }
    }

    fn refusal(&self, status: StatusCode) -> Refusal {
        match status {
            // A router that finds no provider is healthy: `NoSuchService` would count as its failure.
            StatusCode::NotFound if self.source == AnswerSource::Router => Refusal::Overloaded,
            StatusCode::Unimplemented | StatusCode::NotFound => Refusal::NoSuchService,
            StatusCode::Unavailable => Refusal::Draining,
            _ => Refusal::Overloaded,
        }
    }
}

fn since(start: Instant) -> Duration {
    now().saturating_duration_since(start)
}

fn timed_out<A>(took: Duration) -> End<A> {
    End::failed(Fate::Unknown(Loss::TimedOut), Cause::TimedOut(took))
}
