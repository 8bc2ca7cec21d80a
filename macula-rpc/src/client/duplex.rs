//! Calls whose request and reply are streams of messages, from the caller's side.
//!
//! **Invariant:** failover applies until the first message of the reply (or the outcome, when there is none): up to then the
//! messages sent are kept and sent again to the next provider, as long as they are not more than [`MAX_REPLAY_BYTES`]. After it,
//! a provider that dies ends the call.
//!
//! Nothing is spawned: the requests flow while somebody waits for replies, and stop with them.

use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use macula_select::StopReason;
use macula_transport::{CallReply, CallRequest, Connection, Metadata, Unknown};
use macula_wire::{ServiceName, StatusCode};
use tokio::sync::Mutex;

use super::{
    Client, Watched,
    brief::Method,
    builder::Options,
    engine::{self, Exchange, Outcome},
    here,
    services::Service,
};
use crate::{
    CallError, Cause, Provider, Status,
    error::Attempt,
    streaming::{Asking, MessageStream},
};

/// Bytes of a streaming call's requests that are kept for another provider, in case the first one fails before it has answered.
pub const MAX_REPLAY_BYTES: usize = 4 * 1024 * 1024;

/// How long a streaming call may last, unless told otherwise.
const STREAM_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// The requests of a call, which may be sent more than once.
struct Source {
    rest: MessageStream,
    /// Those taken from `rest` so far, while they may be needed again.
    kept: Vec<Bytes>,
    bytes: usize,
    spent: Arc<AtomicBool>,
}

impl Source {
    /// The message with this number, if there is one; an error when the caller's stream failed.
    async fn get(&mut self, at: usize) -> Result<Option<Bytes>, ()> {
        if let Some(kept) = self.kept.get(at) {
            return Ok(Some(kept.clone()));
        }
        let Some(message) = self.rest.next().await.transpose()? else {
            return Ok(None);
        };
        if !self.spent.load(Relaxed) {
            self.bytes += message.len();
            if self.bytes > MAX_REPLAY_BYTES {
                self.spent.store(true, Relaxed);
                self.kept = Vec::new();
            } else {
                self.kept.push(message.clone());
            }
        }
        Ok(Some(message))
    }
}

/// Sends the requests to a provider, and no more than there is room for.
async fn pump(source: Arc<Mutex<Source>>, mut requests: macula_transport::Requests) {
    // An earlier attempt's pump is gone with its attempt.
    let mut source = source.lock().await;
    let mut at = 0;
    loop {
        match source.get(at).await {
            Ok(Some(message)) => {
                at += 1;
                // The replies say why nothing more can be sent.
                if requests.send(message).await.is_err() {
                    return;
                }
                if requests.is_stopped() {
                    return requests.finish();
                }
            }
            Ok(None) => return requests.finish(),
            // Dropping the requests unfinished cancels the call.
            Err(()) => return,
        }
    }
}

/// A provider's stream, from its first message on.
pub(super) struct Opened {
    first: Option<Bytes>,
    replies: macula_transport::Replies,
    pump: Option<BoxFuture<'static, ()>>,
}

/// Opens a stream at a provider.
struct Duplex<'a> {
    /// What follows the request in the head; `None` when nothing does.
    rest: Option<Rest>,
    deadline: Instant,
    known: &'a Service,
    method: Method,
}

/// The requests after the first.
struct Rest {
    source: Arc<Mutex<Source>>,
    spent: Arc<AtomicBool>,
}

/// A provider's replies from the first on, which is taken.
type Started = (Option<Bytes>, Option<BoxFuture<'static, ()>>, macula_transport::Replies);

impl Duplex<'_> {
    /// Opens a call of one request, as most are.
    async fn ask(
        &self,
        connection: &Connection,
        request: CallRequest<'_>,
    ) -> Result<Started, macula_transport::CallError> {
        let request = request.with_brief_reply(self.known.brief.contains(self.method));
        let mut replies = connection.open_with_only(request).await?;
        let first = replies.next().await?;
        Ok((first, None, replies))
    }

    /// Opens a call whose requests follow, and sends them until the first reply.
    async fn send(
        &self,
        rest: &Rest,
        connection: &Connection,
        request: CallRequest<'_>,
    ) -> Result<Started, macula_transport::CallError> {
        let (requests, mut replies) = connection.open(request).await?.split();
        let mut sending = pump(Arc::clone(&rest.source), requests).boxed();
        tokio::select! {
            biased;
            first = replies.next() => {
                let first = first?;
                return Ok((first, Some(sending), replies));
            }
            () = &mut sending => {}
        }
        let first = replies.next().await?;
        Ok((first, None, replies))
    }

    /// Opens a call, for as long as the attempt has time.
    async fn start(
        &self,
        connection: &Connection,
        request: CallRequest<'_>,
        until: Instant,
    ) -> Result<Started, macula_transport::CallError> {
        let allowed = self.deadline.saturating_duration_since(engine::now());
        let request = request.with_timeout(allowed);
        let start = async {
            match &self.rest {
                None => self.ask(connection, request).await,
                Some(rest) => self.send(rest, connection, request).await,
            }
        };
        // A provider may have no room for the stream: the opening is a part of the attempt.
        let started = tokio::time::timeout_at(until.into(), start).await;
        started.unwrap_or(Err(macula_transport::CallError::Unknown(Unknown::Timeout(allowed))))
    }
}

impl Exchange for Duplex<'_> {
    type Answer = Opened;

    async fn exchange<'a>(
        &'a self,
        connection: &'a Connection,
        request: CallRequest<'a>,
        until: Instant,
    ) -> Result<Outcome<Opened>, macula_transport::CallError> {
        let started = if self.rest.is_none() && until >= self.deadline {
            // The call's own end is the attempt's, and needs no other timer.
            self.ask(connection, request).await
        } else {
            // Boxed, so that an attempt that needs less is not as large.
            self.start(connection, request, until).boxed().await
        };
        let (first, sending, replies) = started?;
        note(self.known, self.method, &replies);
        match replies.reply() {
            Some(reply) if reply.status != StatusCode::Ok => Ok(Outcome::Error(reply.clone())),
            _ => Ok(Outcome::Answer(Opened {
                first,
                replies,
                pump: sending,
            })),
        }
    }

    fn may_repeat(&self) -> bool {
        self.rest.as_ref().is_none_or(|rest| !rest.spent.load(Relaxed))
    }
}

/// Remembers how a method's reply was. One that failed may have been brief for that.
fn note(known: &Service, method: Method, replies: &macula_transport::Replies) {
    let succeeded = replies.reply().is_some_and(|reply| reply.status == StatusCode::Ok);
    match replies.is_brief() {
        Some(true) if succeeded => known.brief.note(method, true),
        Some(false) => known.brief.note(method, false),
        Some(true) | None => {}
    }
}

impl Client {
    /// Opens a streaming call, and waits for the first message of its reply.
    pub(crate) async fn open(
        &self,
        service: &ServiceName,
        options: &mut Options,
        mut requests: Asking,
    ) -> Result<Replies, CallError> {
        let allowed = *options.timeout.get_or_insert(STREAM_TIMEOUT);
        if self.shared.local.is_some() {
            // Boxed, so that calls of others are not as large.
            match self.open_here(service, options, allowed, requests).boxed().await {
                Ok(opened) => {
                    return Ok(Replies {
                        service: service.clone(),
                        allowed,
                        start: engine::now(),
                        provider: None,
                        opened: From::Here(opened?),
                    });
                }
                Err(rest) => requests = rest,
            }
        }
        self.open_there(service, options, allowed, requests).await
    }

    /// Opens a streaming call at one of the providers.
    async fn open_there(
        &self,
        service: &ServiceName,
        options: &mut Options,
        allowed: Duration,
        requests: Asking,
    ) -> Result<Replies, CallError> {
        options.attempt_timeout.get_or_insert(allowed);
        let watched = Watched::start(self, service, options);
        let known = Arc::clone(&watched.known);
        let method = Method::new(&options.method);
        let work = async {
            let (first, rest) = match requests {
                #[cfg(feature = "tonic")]
                Asking::Only(only) => (only, None),
                Asking::Stream(requests) => at_hand(requests).map_err(|()| cancelled(service))?,
            };
            let rest = rest.map(|rest| {
                let spent = Arc::new(AtomicBool::new(false));
                let source = Source {
                    rest,
                    kept: Vec::new(),
                    bytes: first.len(),
                    spent: Arc::clone(&spent),
                };
                Rest {
                    source: Arc::new(Mutex::new(source)),
                    spent,
                }
            });
            let duplex = Duplex {
                rest,
                deadline: watched.start + allowed,
                known: &watched.known,
                method,
            };
            self.exchange(&watched, watched.start, service, options, &first, &duplex)
                .await
        };
        let result = {
            let mut work = pin!(work);
            // As in `Client::run`.
            poll_fn(|cx| {
                let _entered = watched.span.enter();
                work.as_mut().poll(cx)
            })
            .await
        };
        let (attempts, error) = match &result {
            Ok((done, _)) => (done.failed_attempts.len() + 1, None),
            Err(error) => (error.attempts().len(), Some(error.name())),
        };
        let start = watched.start;
        watched.end(self, attempts, error);
        let (done, _source) = result?;
        Ok(Replies {
            service: service.clone(),
            allowed,
            start,
            provider: done.provider,
            opened: From::Provider {
                opened: done.answer,
                known,
                method,
            },
        })
    }
}

/// What travels with the head: a message that is there already; and what follows, `None` when that is surely nothing.
fn at_hand(mut requests: MessageStream) -> Result<(Bytes, Option<MessageStream>), ()> {
    let first = match requests.next().now_or_never() {
        // In the head it would be taken for none.
        Some(Some(first)) if first.as_ref().is_ok_and(Bytes::is_empty) => {
            return Ok((Bytes::new(), Some(stream::iter([first]).chain(requests).boxed())));
        }
        Some(Some(first)) => first?,
        Some(None) | None => return Ok((Bytes::new(), Some(requests))),
    };
    // And so does the end after it, of which a unary call's only request is sure at once.
    Ok(match requests.next().now_or_never() {
        Some(None) => (first, None),
        Some(Some(second)) => (first, Some(stream::iter([second]).chain(requests).boxed())),
        None => (first, Some(requests)),
    })
}

fn cancelled(service: &ServiceName) -> CallError {
    CallError::NotRetried {
        service: service.clone(),
        reason: StopReason::Definitive,
        attempts: Vec::new(),
    }
}

/// The replies of a streaming call. Dropping them before their end cancels the call.
pub struct Replies {
    service: ServiceName,
    allowed: Duration,
    start: Instant,
    provider: Option<Arc<Provider>>,
    opened: From,
}

/// Where replies come from.
enum From {
    Provider {
        opened: Opened,
        known: Arc<Service>,
        method: Method,
    },
    Here(here::Replies),
}

impl Replies {
    /// The next message; `None` after the last one of a call that succeeded. Meanwhile the requests flow.
    ///
    /// # Errors
    /// When the call failed, after the messages that came before it did.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        let (Opened { first, replies, pump }, known, method) = match &mut self.opened {
            From::Provider { opened, known, method } => (opened, known, *method),
            From::Here(replies) => return replies.next().await,
        };
        if let Some(first) = first.take() {
            return Ok(Some(first));
        }
        let next = loop {
            match pump {
                None => break replies.next().await,
                Some(sending) => tokio::select! {
                    biased;
                    next = replies.next() => break next,
                    () = sending => *pump = None,
                },
            }
        };
        match next {
            Ok(Some(message)) => return Ok(Some(message)),
            Ok(None) => *pump = None,
            Err(error) => return Err(self.lost(error)),
        }
        note(known, method, replies);
        match replies.reply() {
            Some(reply) if reply.status != StatusCode::Ok => {
                let reply = reply.clone();
                Err(self.answered(&reply))
            }
            _ => Ok(None),
        }
    }

    /// What travels beside the outcome; empty before [`Replies::next`] has given `None`.
    #[must_use]
    pub fn metadata(&self) -> Metadata {
        let reply = match &self.opened {
            From::Provider { opened, .. } => opened.replies.reply(),
            From::Here(_) => None,
        };
        reply.map(|reply| reply.metadata.clone()).unwrap_or_default()
    }

    /// Whether all that is left of them has arrived.
    #[cfg(feature = "tonic")]
    pub(crate) fn are_whole(&self) -> bool {
        match &self.opened {
            From::Provider { opened, .. } => opened.replies.is_brief() == Some(true),
            From::Here(_) => false,
        }
    }

    /// Who answers; `None` for a handler of this process.
    #[must_use]
    pub fn provider(&self) -> Option<&Provider> {
        self.provider.as_deref()
    }

    fn answered(&self, reply: &CallReply) -> CallError {
        let status = Status::new(reply.status, reply.message())
            .with_details(reply.details().clone())
            .with_metadata(reply.metadata.clone());
        CallError::Answered {
            service: self.service.clone(),
            attempts: self.attempt(Cause::Answered(status.clone())),
            status,
        }
    }

    fn lost(&self, error: macula_transport::CallError) -> CallError {
        match error {
            macula_transport::CallError::Unknown(Unknown::Timeout(_)) => CallError::DeadlineExceeded {
                service: self.service.clone(),
                allowed: self.allowed,
                attempts: self.attempt(Cause::TimedOut(self.allowed)),
            },
            error => CallError::NotRetried {
                service: self.service.clone(),
                reason: StopReason::Definitive,
                attempts: self.attempt(Cause::Lost(Arc::new(error))),
            },
        }
    }

    fn attempt(&self, cause: Cause) -> Vec<Attempt> {
        let provider = self.provider.iter();
        provider
            .map(|provider| Attempt {
                node_id: provider.node_id,
                endpoint: provider.endpoints.first().cloned(),
                started: Duration::ZERO,
                took: engine::now().saturating_duration_since(self.start),
                cause: cause.clone(),
            })
            .collect()
    }
}

impl std::fmt::Debug for Replies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replies")
            .field("service", &self.service)
            .field("provider", &self.provider)
            .finish_non_exhaustive()
    }
}
