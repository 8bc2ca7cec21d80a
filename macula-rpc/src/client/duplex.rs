//! Calls whose request and reply are streams of messages, from the caller's side.
//!
//! **Invariant:** failover applies until the first message of the reply (or the outcome, when there is none): up to then the
//! messages sent are kept and sent again to the next provider, as long as they are not more than [`MAX_REPLAY_BYTES`]. After it,
//! a provider that dies ends the call.
//!
//! Nothing is spawned: the requests flow while somebody waits for replies, and stop with them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use macula_select::StopReason;
use macula_transport::{CallReply, CallRequest, Connection, Metadata, Unknown};
use macula_wire::{ServiceName, StatusCode};
use tracing::Instrument as _;

use super::{
    Client, Watched,
    builder::Options,
    engine::{self, Exchange, Outcome},
    here,
    source::{Failed, Source},
};
use crate::{CallError, Cause, Provider, Status, error::Attempt, streaming::MessageStream};

/// Bytes of a streaming call's requests that are kept for another provider, in case the first one fails before it has answered.
/// Each message counts 64 bytes more.
pub const MAX_REPLAY_BYTES: usize = 4 * 1024 * 1024;

/// How long a streaming call may last, unless told otherwise.
const STREAM_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Sends the requests that follow.
type Pump = BoxFuture<'static, Result<(), Failed>>;

/// A provider's stream, from its first message on.
pub(super) struct Opened {
    first: Option<Bytes>,
    replies: macula_transport::Replies,
    pump: Option<Pump>,
}

/// Opens a stream at a provider.
struct Duplex {
    /// What follows the request in the head; `None` when nothing does.
    source: Option<Arc<Source>>,
    deadline: Instant,
}

impl Exchange for Duplex {
    type Answer = Opened;

    async fn exchange<'a>(
        &'a self,
        connection: &'a Connection,
        request: CallRequest<'a>,
        until: Instant,
    ) -> Result<Outcome<Opened>, macula_transport::CallError> {
        let allowed = self.deadline.saturating_duration_since(engine::now());
        let request = request.with_timeout(allowed);
        let started = async {
            let (mut sending, mut replies) = match &self.source {
                None => (None, connection.open_with_only(request).await?),
                Some(source) => {
                    let (requests, replies) = connection.open(request).await?.split();
                    (Some(Arc::clone(source).pump(requests).boxed()), replies)
                }
            };
            if let Some(pump) = &mut sending {
                tokio::select! {
                    biased;
                    first = replies.next() => {
                        let first = first?;
                        return Ok(Some((first, sending, replies)));
                    }
                    sent = pump => if sent.is_err() {
                        return Ok(None);
                    },
                }
            }
            let first = replies.next().await?;
            Ok(Some((first, None, replies)))
        };
        // A provider may have no room for the stream: the opening is a part of the attempt.
        let Ok(started) = tokio::time::timeout_at(until.into(), started).await else {
            return Err(macula_transport::CallError::Unknown(Unknown::Timeout(allowed)));
        };
        let started: Option<(_, Option<Pump>, _)> = started?;
        let Some((first, sending, replies)) = started else {
            return Ok(Outcome::NoRequests);
        };
        match replies.reply() {
            Some(reply) if reply.status != StatusCode::Ok => Ok(Outcome::Error(reply.clone())),
            _ => {
                if let Some(source) = &self.source {
                    source.settle();
                }
                Ok(Outcome::Answer(Opened {
                    first,
                    replies,
                    pump: sending,
                }))
            }
        }
    }

    fn may_repeat(&self) -> bool {
        self.source.as_ref().is_none_or(|source| source.may_repeat())
    }
}

impl Client {
    /// Opens a streaming call, and waits for the first message of its reply.
    pub(crate) async fn open(
        &self,
        service: &ServiceName,
        options: &mut Options,
        requests: MessageStream,
    ) -> Result<Replies, CallError> {
        let allowed = *options.timeout.get_or_insert(STREAM_TIMEOUT);
        if self.shared.local.is_some() {
            // Boxed, so that calls of others are not as large.
            let opened = match self.open_here(service, options, allowed, requests).boxed().await {
                Ok(opened) => opened?,
                Err(here::Elsewhere { requests, begun }) => {
                    return self.open_there(service, options, allowed, requests, begun).await;
                }
            };
            return Ok(Replies {
                service: service.clone(),
                allowed,
                start: engine::now(),
                provider: None,
                opened: From::Here(opened),
            });
        }
        self.open_there(service, options, allowed, requests, None).await
    }

    /// Opens a streaming call at one of the providers; it may have `begun` in this process, where it was refused.
    async fn open_there(
        &self,
        service: &ServiceName,
        options: &mut Options,
        allowed: Duration,
        mut requests: MessageStream,
        begun: Option<Watched>,
    ) -> Result<Replies, CallError> {
        let attempt = self.shared.defaults.stream_attempt_timeout.unwrap_or(allowed);
        options.attempt_timeout.get_or_insert(attempt);
        let (watched, now) = match begun {
            // A handler may have taken its time to refuse.
            Some(watched) => (watched, engine::now()),
            None => {
                let watched = Watched::start(self, service, options);
                let start = watched.start;
                (watched, start)
            }
        };
        let work = async {
            // A message that is there already travels with the head.
            let first = match requests.next().now_or_never() {
                // In the head it would be taken for none.
                Some(Some(Ok(first))) if first.is_empty() => {
                    requests = stream::iter([Ok(first)]).chain(requests).boxed();
                    Bytes::new()
                }
                Some(Some(Ok(first))) => first,
                Some(Some(Err(()))) => return Err(requests_failed(service)),
                Some(None) | None => Bytes::new(),
            };
            // And so does the end after it, of which a unary call's only request is sure at once.
            let only = match first.is_empty() {
                true => false,
                false => match requests.next().now_or_never() {
                    Some(None) => true,
                    Some(Some(second)) => {
                        requests = stream::iter([second]).chain(requests).boxed();
                        false
                    }
                    None => false,
                },
            };
            if !only {
                // There is one stream of requests, and a second attempt beside the first would need another.
                options.hedge = None;
            }
            let room = options.for_peer.then(|| Arc::clone(&self.shared.kept_for_peers));
            let source = (!only).then(|| Source::new(&first, requests, room));
            let duplex = Duplex {
                source: source.map(Arc::new),
                deadline: watched.start + allowed,
            };
            self.exchange(&watched, now, service, options, &first, &duplex).await
        };
        let result = work.instrument(watched.span.clone()).await;
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
            opened: From::Provider(done.answer),
        })
    }
}

fn requests_failed(service: &ServiceName) -> CallError {
    CallError::RequestsFailed {
        service: service.clone(),
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
    Provider(Opened),
    Here(here::Replies),
}

impl Replies {
    /// The next message; `None` after the last one of a call that succeeded. Meanwhile the requests flow.
    ///
    /// # Errors
    /// When the call failed, after the messages that came before it did.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        let Opened { first, replies, pump } = match &mut self.opened {
            From::Provider(opened) => opened,
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
                    sent = sending => {
                        *pump = None;
                        if sent.is_err() {
                            return Err(requests_failed(&self.service));
                        }
                    }
                },
            }
        };
        match next {
            Ok(Some(message)) => return Ok(Some(message)),
            Ok(None) => *pump = None,
            Err(error) => {
                *pump = None;
                return Err(self.lost(error));
            }
        }
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
        match &self.opened {
            From::Provider(opened) => opened
                .replies
                .reply()
                .map(|reply| reply.metadata.clone())
                .unwrap_or_default(),
            From::Here(replies) => replies.metadata(),
        }
    }

    /// Who answers; `None` for a handler of this process.
    #[must_use]
    pub fn provider(&self) -> Option<&Provider> {
        self.provider.as_deref()
    }

    fn answered(&self, reply: &CallReply) -> CallError {
        let status = Status::from_reply(reply.clone());
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
                reason: StopReason::Begun,
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
