//! Calls whose request and reply are streams of messages, from the caller's side.
//!
//! **Invariant:** failover applies until the first message of the reply (or the outcome, when there is none): up to then the
//! messages sent are kept and sent again to the next provider, as long as they are not more than [`MAX_REPLAY_BYTES`]. After it,
//! a provider that dies ends the call. To a call of one request the first message is here when all of the reply is, if its provider
//! had all of it at once and it has no more than [`MAX_WHOLE_BYTES`].
//!
//! Nothing is spawned: the requests flow while somebody waits for replies, and stop with them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture, stream};
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
use crate::{
    CallError, Cause, Decode, Provider, Status,
    error::Attempt,
    streaming::{Asking, MessageStream},
};

/// Bytes of a streaming call's requests that are kept for another provider, in case the first one fails before it has answered.
/// Each message counts 64 bytes more.
pub const MAX_REPLAY_BYTES: usize = 4 * 1024 * 1024;

/// Bytes of a reply to one request that are waited for before any of it is handed out, when its provider says that it has all of it: a
/// call whose provider dies on the way is then made elsewhere. It is gRPC's usual limit of a message, 4 MiB, and 64 KiB for what is
/// around it. Each message counts 64 bytes more.
pub const MAX_WHOLE_BYTES: usize = 4 * 1024 * 1024 + 64 * 1024;

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
    /// How much of a reply that is there as a whole is waited for.
    whole_bytes: usize,
}

/// A provider's replies from the first on, which is taken.
type Started = (Option<Bytes>, Option<Pump>, macula_transport::Replies);

impl Duplex {
    /// Opens a call of one request, as most are.
    async fn ask(
        &self,
        connection: &Connection,
        request: CallRequest<'_>,
    ) -> Result<Started, macula_transport::CallError> {
        let mut replies = connection.open_with_only(request).await?;
        let first = replies.first(self.whole_bytes).await?;
        Ok((first, None, replies))
    }

    /// Opens a call whose requests follow, and sends them until the first reply.
    async fn send(
        &self,
        source: &Arc<Source>,
        connection: &Connection,
        request: CallRequest<'_>,
    ) -> Result<Result<Started, Failed>, macula_transport::CallError> {
        let (requests, mut replies) = connection.open(request).await?.split();
        let mut sending = Arc::clone(source).pump(requests).boxed();
        tokio::select! {
            biased;
            first = replies.next() => {
                let first = first?;
                return Ok(Ok((first, Some(sending), replies)));
            }
            sent = &mut sending => if let Err(failed) = sent {
                return Ok(Err(failed));
            },
        }
        let first = replies.next().await?;
        Ok(Ok((first, None, replies)))
    }

    /// Opens a call, for as long as the attempt has time.
    async fn start(
        &self,
        connection: &Connection,
        request: CallRequest<'_>,
        until: Instant,
    ) -> Result<Result<Started, Failed>, macula_transport::CallError> {
        let allowed = self.deadline.saturating_duration_since(engine::now());
        let request = request.with_timeout(allowed);
        let start = async {
            match &self.source {
                None => self.ask(connection, request).await.map(Ok),
                Some(source) => self.send(source, connection, request).await,
            }
        };
        // A provider may have no room for the stream: the opening is a part of the attempt.
        let started = tokio::time::timeout_at(until.into(), start).await;
        started.unwrap_or(Err(macula_transport::CallError::Unknown(Unknown::Timeout(allowed))))
    }
}

impl Exchange for Duplex {
    type Answer = Opened;

    async fn exchange<'a>(
        &'a self,
        connection: &'a Connection,
        request: CallRequest<'a>,
        until: Instant,
    ) -> Result<Outcome<Opened>, macula_transport::CallError> {
        let started = match &self.source {
            // The call's own end is the attempt's, and needs no other timer.
            None if until >= self.deadline => self.ask(connection, request).await.map(Ok),
            // Boxed, so that an attempt that needs less is not as large.
            _ => self.start(connection, request, until).boxed().await,
        };
        let (first, sending, replies) = match started? {
            Ok(started) => started,
            Err(failed) => return Ok(Outcome::NoRequests(failed)),
        };
        match replies.reply() {
            // What came before it is the caller's, whether or not it came with it.
            Some(reply) if first.is_none() && reply.status != StatusCode::Ok => Ok(Outcome::Error(reply.clone())),
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
        requests: Asking,
    ) -> Result<Replies, CallError> {
        let allowed = *options.timeout.get_or_insert(STREAM_TIMEOUT);
        if self.shared.local.as_ref().is_some_and(|server| server.serves(service)) {
            // Boxed, so that calls of others are not as large.
            match self.open_here(service, options, allowed, requests).boxed().await {
                Ok(opened) => {
                    return Ok(Replies {
                        service: service.clone(),
                        allowed,
                        start: engine::now(),
                        provider: None,
                        opened: From::Here(opened?),
                        seen: None,
                    });
                }
                Err(here::Elsewhere { requests, begun }) => {
                    return self.open_there(service, options, allowed, requests, begun).await;
                }
            }
        }
        self.open_there(service, options, allowed, requests, None).await
    }

    /// Opens a streaming call at one of the providers; it may have `begun` in this process, where it was refused.
    async fn open_there(
        &self,
        service: &ServiceName,
        options: &mut Options,
        allowed: Duration,
        requests: Asking,
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
        let deadline = watched.start + allowed;
        let work = async {
            let (first, rest) = match requests {
                Asking::Only(only) => (only, None),
                Asking::Stream(requests) => at_hand(requests).map_err(|()| Failed::Stream.error(service))?,
            };
            if rest.is_some() {
                // There is one stream of requests, and a second attempt beside the first would need another.
                options.hedge = None;
            }
            let room = options.for_peer.then(|| Arc::clone(&self.shared.kept_for_peers));
            let duplex = Duplex {
                source: rest.map(|rest| Arc::new(Source::new(&first, rest, room))),
                deadline,
                // Replies that are kept for peers would fill a router.
                whole_bytes: if options.for_peer { 0 } else { MAX_WHOLE_BYTES },
            };
            self.exchange(&watched, now, service, options, &first, &duplex).await
        };
        let result = if watched.span.is_disabled() {
            work.await
        } else {
            work.instrument(watched.span.clone()).boxed().await
        };
        let (done, _source) = match result {
            Ok(opened) => opened,
            Err(error) => {
                watched.end(self, error.attempts().len(), Some(error.name()));
                return Err(error);
            }
        };
        Ok(Replies {
            service: service.clone(),
            allowed,
            start: watched.start,
            provider: done.provider,
            opened: From::Provider(done.answer),
            seen: Some(Seen {
                watched,
                client: self.clone(),
                attempts: done.failed_attempts.len() + 1,
            }),
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

/// The replies of a streaming call. Dropping them before their end cancels the call.
pub struct Replies {
    service: ServiceName,
    allowed: Duration,
    start: Instant,
    provider: Option<Arc<Provider>>,
    opened: From,
    /// Until its end, for one that is not of this process, which sees to it itself.
    seen: Option<Seen>,
}

/// A call that is over with its last reply, as it is seen from outside.
struct Seen {
    watched: Watched,
    client: Client,
    attempts: usize,
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
        let next = self.read().await;
        match &next {
            Ok(Some(_)) => {}
            Ok(None) => self.end(None),
            Err(error) => self.end(Some(error.name())),
        }
        next
    }

    /// Says how the call ended: nothing, or the error's name. What is dropped before its end was cancelled.
    fn end(&mut self, error: Option<&'static str>) {
        if let Some(seen) = self.seen.take() {
            seen.watched.end(&seen.client, seen.attempts, error);
        }
    }

    async fn read(&mut self) -> Result<Option<Bytes>, CallError> {
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
                        if let Err(failed) = sent {
                            return Err(failed.error(&self.service));
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

    /// The messages as a stream, which ends with the call, or with its error.
    ///
    /// ```no_run
    /// # async fn example(replies: macula_rpc::Replies) -> Result<(), macula_rpc::CallError> {
    /// use futures::TryStreamExt;
    ///
    /// let all: Vec<_> = replies.into_stream().try_collect().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, CallError>> + Send {
        let messages = stream::unfold(Some(self), async |replies| {
            let mut replies = replies?;
            match replies.next().await.transpose()? {
                Ok(message) => Some((Ok(message), Some(replies))),
                Err(error) => Some((Err(error), None)),
            }
        });
        messages.fuse()
    }

    /// The messages as a stream of messages of their own type. One that cannot be read ends it, and the call.
    pub fn into_typed<T: Decode + Send>(self) -> impl Stream<Item = Result<T, CallError>> + Send {
        let messages = stream::unfold(Some(self), async |replies| {
            let mut replies = replies?;
            let error = match replies.next().await.transpose()?.map(T::decode) {
                Ok(Ok(message)) => return Some((Ok(message), Some(replies))),
                Ok(Err(source)) => CallError::Undecodable {
                    service: replies.service.clone(),
                    node_id: replies.provider().map(|it| it.node_id),
                    source,
                },
                Err(error) => error,
            };
            Some((Err(error), None))
        });
        messages.fuse()
    }

    /// What travels beside the outcome; empty before [`Replies::next`] has given `None`.
    #[must_use]
    pub fn metadata(&self) -> Metadata {
        match &self.opened {
            From::Provider(opened) => {
                let reply = opened.replies.reply();
                reply.map(|reply| reply.metadata.clone()).unwrap_or_default()
            }
            From::Here(replies) => replies.metadata(),
        }
    }

    /// Whether all that is left of them has arrived.
    pub(crate) fn are_whole(&self) -> bool {
        match &self.opened {
            From::Provider(opened) => opened.replies.is_here(),
            From::Here(_) => false,
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

impl Drop for Replies {
    fn drop(&mut self) {
        // Whoever takes one reply of a call that has one may not ask whether there is another.
        if let From::Provider(opened) = &self.opened
            && opened
                .replies
                .reply()
                .is_some_and(|reply| reply.status == StatusCode::Ok)
        {
            self.end(None);
        }
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
