//! The shell of one call: performs what `macula_select::Call` asks for, and tells it what came of it.
//!
//! No policy lives here. Whom to call, when to give up and what the end is are the core's; dialing, sending and the words of an
//! error are this file's.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use macula_select::{AttemptId, Attempts, Call, CallOptions, Code, Fate, Loss, Output, Refusal, StopReason};
use macula_transport::{CallReply, CallRequest, Connection, DialError, Unknown};
use macula_wire::{NodeId, ServiceName, StatusCode};

use super::{Answer, AnswerSource, Client, builder::Options, services::Balanced};
use crate::{CallError, Cause, Provider, Response, Status, error::Attempt};

/// What is the same for every attempt of a call.
struct Job<'a> {
    client: &'a Client,
    service: &'a ServiceName,
    options: &'a Options,
    payload: Bytes,
    route: bool,
}

/// Makes a call at the providers that `balanced` holds.
pub(super) async fn run(
    client: &Client,
    service: &ServiceName,
    options: &Options,
    payload: Bytes,
    start: Instant,
    balanced: &Arc<Balanced>,
    source: AnswerSource,
) -> Result<Answer, CallError> {
    let job = Job {
        client,
        service,
        options,
        payload,
        route: source == AnswerSource::Router,
    };
    let allowed = options.timeout.unwrap_or(client.shared.defaults.timeout);
    let mut driver = Driver {
        call: Call::new(start, call_options(client, options, allowed)),
        balanced,
        log: Vec::new(),
        response: None,
    };
    let mut flights: Vec<Flight<'_>> = Vec::new();
    let end = loop {
        let now = now();
        match driver.poll(now) {
            Output::Dispatch { attempt, until, .. } => {
                // `poll` has logged whom it chose.
                if let Some(tried) = driver.log.last() {
                    flights.push(Flight {
                        attempt,
                        until,
                        stage: job.dial(Arc::clone(&tried.provider)),
                    });
                }
            }
            Output::Abort { attempt } => flights.retain(|flight| flight.attempt != attempt),
            Output::Wait(at) => {
                let landed = tokio::select! {
                    biased;
                    landed = first_of(&mut flights) => landed,
                    () = tokio::time::sleep_until(at.into()) => {
                        driver.expire_dials(&mut flights);
                        continue;
                    }
                };
                let Flight { attempt, until, .. } = flights.swap_remove(landed.at);
                match landed.event {
                    Event::Dialed(Ok(connection)) => {
                        flights.push(Flight {
                            attempt,
                            until,
                            stage: job.send(connection, until),
                        });
                    }
                    Event::Dialed(Err(error)) => {
                        driver.settle(attempt, Fate::NotSent, Some(Cause::NotSent(Arc::new(error))));
                    }
                    Event::Ended(Ok(reply)) => driver.answered(attempt, reply),
                    Event::Ended(Err(error)) => driver.failed(attempt, error)?,
                }
            }
            Output::Done(end) => break end,
            // Unreachable while the loop ends with Done; a call that is over has nothing to wait for.
            Output::Over => break Err(macula_select::CallError::ServiceNotFound),
        }
    };
    driver.conclude(end, &job, start, allowed, source)
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn call_options(client: &Client, options: &Options, allowed: Duration) -> CallOptions {
    CallOptions {
        strategy: options.strategy,
        max_attempts: options.max_attempts,
        timeout: allowed,
        attempt_timeout: options
            .attempt_timeout
            .unwrap_or(client.shared.defaults.attempt_timeout),
        policy: options.policy.clone(),
        idempotent: options.idempotent,
        hedge: options.hedge,
        backoff: options.backoff,
        affinity: options.affinity,
        ..CallOptions::default()
    }
}

/// An attempt on its way.
struct Flight<'a> {
    attempt: AttemptId,
    until: Instant,
    stage: Stage<'a>,
}

type Dialing<'a> = Pin<Box<dyn Future<Output = Result<Connection, DialError>> + Send + 'a>>;
type Sending<'a> = Pin<Box<dyn Future<Output = Result<CallReply, macula_transport::CallError>> + Send + 'a>>;

/// Until there is a connection nothing of the call has left this node.
enum Stage<'a> {
    Dialing(Dialing<'a>),
    Sending(Sending<'a>),
}

enum Event {
    Dialed(Result<Connection, DialError>),
    Ended(Result<CallReply, macula_transport::CallError>),
}

struct Landed {
    at: usize,
    event: Event,
}

/// The first of the flights that gets somewhere.
async fn first_of(flights: &mut [Flight<'_>]) -> Landed {
    poll_fn(|cx| {
        for (at, flight) in flights.iter_mut().enumerate() {
            let event = match &mut flight.stage {
                Stage::Dialing(dial) => dial.as_mut().poll(cx).map(Event::Dialed),
                Stage::Sending(call) => call.as_mut().poll(cx).map(Event::Ended),
            };
            if let Poll::Ready(event) = event {
                return Poll::Ready(Landed { at, event });
            }
        }
        Poll::Pending
    })
    .await
}

impl<'a> Job<'a> {
    fn dial(&self, provider: Arc<Provider>) -> Stage<'a> {
        let pool = &self.client.shared.pool;
        match pool.open(&provider.node_id) {
            // The usual case: no dial, no waiting.
            Some(connection) => Stage::Dialing(Box::pin(std::future::ready(Ok(connection)))),
            None => Stage::Dialing(Box::pin(async move {
                pool.get(&provider.node_id, &provider.endpoints).await
            })),
        }
    }

    fn send(&self, connection: Connection, until: Instant) -> Stage<'a> {
        let (service, options, payload, route) = (self.service, self.options, self.payload.clone(), self.route);
        Stage::Sending(Box::pin(async move {
            let mut request = CallRequest::new(service, payload)
                .with_method(&options.method)
                .with_timeout(until.saturating_duration_since(now()))
                .with_route(route);
            if let Some(metadata) = &options.metadata {
                request = request.with_metadata(metadata);
            }
            connection.call(request).await
        }))
    }
}

/// One attempt as it is remembered for the error.
struct Tried {
    provider: Arc<Provider>,
    cause: Option<Cause>,
}

/// The core of a call and what the shell knows beside it. Dropping it cancels the call, so that no lease is lost (F8).
struct Driver<'a> {
    call: Call<NodeId>,
    balanced: &'a Balanced,
    /// By attempt, in the order of dispatch.
    log: Vec<Tried>,
    response: Option<Response>,
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        self.call.cancel(now(), &mut self.balanced.lock().balancer);
    }
}

impl Driver<'_> {
    /// Polls the core, and logs whom it dispatches to: under one lock, because the list may change with the next.
    fn poll(&mut self, now: Instant) -> Output<NodeId> {
        let mut state = self.balanced.lock();
        let output = self.call.poll(now, &mut state.balancer);
        if let Output::Dispatch { to, .. } = &output {
            self.log.push(Tried {
                provider: state.provider(to),
                cause: None,
            });
        }
        output
    }

    fn settle(&mut self, attempt: AttemptId, fate: Fate, cause: Option<Cause>) {
        if let Some(tried) = self.log.get_mut(attempt.index()) {
            tried.cause = cause;
        }
        self.call
            .on_result(now(), &mut self.balanced.lock().balancer, attempt, fate);
    }

    /// Reports dials that took all of an attempt's time: nothing was sent, which is more than the core's "timed out" says.
    fn expire_dials(&mut self, flights: &mut Vec<Flight<'_>>) {
        let now = now();
        flights.retain(|flight| {
            let late = matches!(flight.stage, Stage::Dialing(_)) && flight.until <= now;
            if late {
                let started = self
                    .call
                    .attempts()
                    .get(flight.attempt)
                    .map_or(now, macula_select::Attempt::started);
                let took = now.saturating_duration_since(started);
                self.settle(
                    flight.attempt,
                    Fate::NotSent,
                    Some(Cause::NotSent(Arc::new(NoConnection(took)))),
                );
            }
            !late
        });
    }

    fn answered(&mut self, attempt: AttemptId, reply: CallReply) {
        if reply.status == StatusCode::Ok {
            self.response = Some(Response::new(reply.body).with_metadata(reply.metadata));
            return self.settle(attempt, Fate::Ok, None);
        }
        let code = Code::from_number(reply.status.as_u32());
        let fate = Fate::Answered {
            code,
            pushback: reply.pushback.map(pushback),
        };
        let status = Status::new(reply.status, reply.message).with_details(reply.details);
        self.settle(attempt, fate, Some(Cause::Answered(status)));
    }

    /// Settles an attempt without an answer; an error when no provider could have taken the request.
    fn failed(&mut self, attempt: AttemptId, error: macula_transport::CallError) -> Result<(), CallError> {
        use macula_transport::CallError as Transport;

        let (fate, cause) = match error {
            Transport::NotSent(reason) => (Fate::NotSent, Cause::NotSent(Arc::new(reason))),
            Transport::Refused {
                status,
                message,
                pushback: asked,
            } => {
                let fate = Fate::Refused {
                    reason: refusal(status),
                    pushback: asked.map(pushback),
                };
                (fate, Cause::Refused(Status::new(status, message)))
            }
            Transport::Unknown(Unknown::Timeout(after)) => (Fate::Unknown(Loss::TimedOut), Cause::TimedOut(after)),
            Transport::Unknown(reason) => (Fate::Unknown(Loss::ConnectionLost), Cause::Lost(Arc::new(reason))),
            Transport::TooLarge { bytes, limit } => return Err(CallError::RequestTooLarge { size: bytes, limit }),
            Transport::HeadTooLarge { bytes } => return Err(CallError::MetadataTooLarge { size: bytes }),
            other => (Fate::Unknown(Loss::ConnectionLost), Cause::Lost(Arc::new(other))),
        };
        self.settle(attempt, fate, Some(cause));
        Ok(())
    }

    fn conclude(
        &mut self,
        end: Result<macula_select::Success<NodeId>, macula_select::CallError<NodeId>>,
        job: &Job<'_>,
        start: Instant,
        allowed: Duration,
        source: AnswerSource,
    ) -> Result<Answer, CallError> {
        use macula_select::CallError as Core;

        let service = job.service.clone();
        let log = std::mem::take(&mut self.log);
        let name = |attempts: &Attempts<NodeId>| named(attempts, &log, start);
        let error = match end {
            Ok(success) => {
                let provider = log
                    .get(success.attempt.index())
                    .map(|tried| Arc::clone(&tried.provider));
                let failed_attempts = name(&success.attempts);
                let response = self.response.take().unwrap_or_default();
                return Ok(Answer {
                    response,
                    provider,
                    source,
                    failed_attempts,
                });
            }
            Err(error) => error,
        };
        Err(match error {
            Core::ServiceNotFound => CallError::ServiceNotFound { service },
            Core::AllProvidersFailed { attempts } => {
                let attempts = name(&attempts);
                let unknown =
                    |tried: &Attempt| matches!(&tried.cause, Cause::Refused(s) if s.code() == StatusCode::NotFound);
                // Routers say so when the directory they reach knows nobody.
                if source == AnswerSource::Router && attempts.iter().all(unknown) {
                    CallError::ServiceNotFound { service }
                } else {
                    CallError::AllProvidersFailed { service, attempts }
                }
            }
            Core::MaxAttemptsExceeded { attempts, .. } => CallError::MaxAttemptsExceeded {
                service,
                attempts: name(&attempts),
            },
            Core::DeadlineExceeded { attempts } => CallError::DeadlineExceeded {
                service,
                allowed,
                attempts: name(&attempts),
            },
            Core::NotRetried {
                attempt,
                reason,
                attempts,
            } => {
                let attempts = name(&attempts);
                match log.get(attempt.index()).and_then(|tried| tried.cause.as_ref()) {
                    Some(Cause::Answered(status)) if reason == StopReason::Definitive => CallError::Answered {
                        service,
                        status: status.clone(),
                        attempts,
                    },
                    _ => CallError::NotRetried {
                        service,
                        reason,
                        attempts,
                    },
                }
            }
            // Only dropping the call's future cancels it, and then nobody is told.
            other => CallError::NotRetried {
                service,
                reason: StopReason::Definitive,
                attempts: other.attempts().map(name).unwrap_or_default(),
            },
        })
    }
}

/// The core's attempts with names, endpoints and causes; those that succeeded are left out.
fn named(attempts: &Attempts<NodeId>, log: &[Tried], start: Instant) -> Vec<Attempt> {
    let name = |(attempt, tried): (&macula_select::Attempt<NodeId>, &Tried)| {
        let derived = match attempt.fate() {
            Fate::Ok => return None,
            Fate::Cancelled => Cause::Cancelled,
            _ => Cause::TimedOut(attempt.elapsed()),
        };
        Some(Attempt {
            node_id: *attempt.provider(),
            endpoint: tried.provider.endpoints.first().cloned(),
            started: attempt.started().saturating_duration_since(start),
            took: attempt.elapsed(),
            cause: tried.cause.clone().unwrap_or(derived),
        })
    };
    attempts.iter().zip(log).filter_map(name).collect()
}

fn pushback(asked: macula_transport::Pushback) -> macula_select::Pushback {
    match asked {
        macula_transport::Pushback::After(time) => macula_select::Pushback::After(time),
        macula_transport::Pushback::Never => macula_select::Pushback::Stop,
    }
}

fn refusal(status: StatusCode) -> Refusal {
    match status {
        StatusCode::Unimplemented | StatusCode::NotFound => Refusal::NoSuchService,
        StatusCode::Unavailable => Refusal::Draining,
        _ => Refusal::Overloaded,
    }
}

/// No connection within an attempt's time.
#[derive(Debug, thiserror::Error)]
#[error("no connection within {0:?}")]
struct NoConnection(Duration);
