//! Calls whose request and reply are streams of messages, at the caller.
//!
//! **Invariant.** Failover applies until the first message of the reply, or until the outcome when there is no message. Up to then the
//! sent messages are kept for the next provider, [`MAX_REPLAY_BYTES`](super::MAX_REPLAY_BYTES) at most. After it, the death of the
//! provider ends the call. With one request, the first message is handed out only once the whole reply has arrived, when its provider
//! had all of it at once and it has at most [`MAX_WHOLE_BYTES`].
//!
//! Nothing is spawned: requests flow while the caller waits for replies.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture, stream};
use macula_select::StopReason;
use macula_transport::{CallRequest, Connection, Metadata, Unknown};
use macula_wire::{ServiceName, StatusCode};
use tracing::Instrument as _;

use super::{
    attempt::{Exchange, Outcome},
    local::{Elsewhere, LocalReplies},
    options::Options,
    replay::Replay,
    shared::{Client, now},
    watch::CallWatch,
};
use crate::{
    CallError, Cause, Decode, Provider, Status,
    error::Attempt,
    observe::Ended,
    streaming::{Asking, MAX_WHOLE_BYTES, MessageStream},
};

/// How long a streaming call may last by default.
const STREAM_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Sends the requests; an error ends the call.
type Pump = BoxFuture<'static, Result<(), CallError>>;

/// A provider's replies, of which the first was read already.
pub(super) struct Opened {
    first: Option<Bytes>,
    replies: macula_transport::Replies,
    pump: Option<Pump>,
}

/// Opens a stream at a provider.
struct Duplex<'a> {
    service: &'a ServiceName,
    /// The requests after the one in the head, if any follow.
    replay: Option<Replay>,
    deadline: Instant,
    /// How many bytes of a whole reply are awaited before its first message is handed out.
    whole_bytes: usize,
}

impl Duplex<'_> {
    /// Opens a call of one request.
    async fn ask(
        &self,
        connection: &Connection,
        request: CallRequest<'_>,
    ) -> Result<Opened, macula_transport::CallError> {
        let mut replies = connection.open_with_only(request).await?;
        let first = replies.first(self.whole_bytes).await?;
        Ok(Opened {
            first,
            replies,
            pump: None,
        })
    }

    /// Opens a call whose requests follow, and sends them until the first reply.
    async fn send(
        &self,
        replay: &Replay,
        connection: &Connection,
        request: CallRequest<'_>,
    ) -> Result<Result<Opened, CallError>, macula_transport::CallError> {
        let (requests, mut replies) = connection.open(request).await?.split();
        let mut pump = Some(replay.clone().pump(requests, self.service.clone()).boxed());
        let first = match next(&mut replies, &mut pump).await {
            Next::Reply(first) => first?,
            Next::Fault(error) => return Ok(Err(error)),
        };
        Ok(Ok(Opened { first, replies, pump }))
    }

    /// Opens a call within the time of the attempt.
    async fn start(
        &self,
        connection: &Connection,
        request: CallRequest<'_>,
        until: Instant,
    ) -> Result<Result<Opened, CallError>, macula_transport::CallError> {
        let allowed = self.deadline.saturating_duration_since(now());
        let request = request.with_timeout(allowed);
        let start = async {
            match &self.replay {
                None => self.ask(connection, request).await.map(Ok),
                Some(replay) => self.send(replay, connection, request).await,
            }
        };
        // The provider may have no room for the stream, so the opening is a part of the attempt.
        let started = tokio::time::timeout_at(until.into(), start).await;
        started.unwrap_or(Err(macula_transport::CallError::Unknown(Unknown::Timeout(allowed))))
    }
}

/// What comes first while replies are read and requests are sent.
enum Next {
    Reply(Result<Option<Bytes>, macula_transport::CallError>),
    /// The requests failed.
    Fault(CallError),
}

/// Waits for the next reply. Meanwhile the requests flow.
async fn next(replies: &mut macula_transport::Replies, pump: &mut Option<Pump>) -> Next {
    while let Some(sending) = pump {
        tokio::select! {
            biased;
            next = replies.next() => return Next::Reply(next),
            sent = sending => {
                *pump = None;
                if let Err(error) = sent {
                    return Next::Fault(error);
                }
            }
        }
    }
    Next::Reply(replies.next().await)
}

impl Exchange for Duplex<'_> {
    type Answer = Opened;

    async fn exchange<'a>(
        &'a self,
        connection: &'a Connection,
        request: CallRequest<'a>,
        until: Instant,
    ) -> Result<Outcome<Opened>, macula_transport::CallError> {
        let started = match &self.replay {
            // The call's own end is the attempt's, and needs no other timer.
            None if until >= self.deadline => self.ask(connection, request).await.map(Ok),
            // Boxed to keep the common attempt small.
            _ => self.start(connection, request, until).boxed().await,
        };
        let opened = match started? {
            Ok(opened) => opened,
            Err(error) => return Ok(Outcome::Fault(error)),
        };
        match opened.replies.reply() {
            Some(reply) if opened.first.is_none() && reply.status != StatusCode::Ok => {
                Ok(Outcome::Error(reply.clone()))
            }
            // Messages before an error are the caller's, whether or not they came with it.
            _ => {
                if let Some(replay) = &self.replay {
                    replay.settle();
                }
                Ok(Outcome::Answer(opened))
            }
        }
    }

    fn may_repeat(&self) -> bool {
        self.replay.as_ref().is_none_or(Replay::may_repeat)
    }

    /// A stream of requests has one reader.
    fn may_run_beside(&self) -> bool {
        self.replay.is_none()
    }
}

impl Client {
    /// Opens a streaming call, and waits for the first message of the reply.
    pub(crate) async fn open(
        &self,
        service: &ServiceName,
        options: &mut Options,
        mut requests: Asking,
    ) -> Result<Replies, CallError> {
        let allowed = *options.timeout.get_or_insert(STREAM_TIMEOUT);
        let mut watch = CallWatch::begin(self, service, options);
        let start = watch.started();
        let mut begun = start;
        if self.serves_here(service, options) {
            // Boxed to keep the futures of remote calls small.
            match self.open_here(watch, service, options, allowed, requests).boxed().await {
                Ok(opened) => {
                    return Ok(Replies {
                        service: service.clone(),
                        allowed,
                        start,
                        origin: Origin::Here(opened?),
                    });
                }
                Err(elsewhere) => Elsewhere { watch, requests } = elsewhere,
            }
            // The handler may have taken its time to refuse.
            begun = now();
        }
        let attempt = self.shared.defaults.stream_attempt_timeout.unwrap_or(allowed);
        options.attempt_timeout.get_or_insert(attempt);
        let work = async {
            let (first, rest) = match requests {
                Asking::Only(only) => (only, None),
                Asking::Stream(requests) => at_hand(requests).map_err(|()| CallError::RequestsFailed {
                    service: service.clone(),
                })?,
            };
            if rest.is_some() {
                // A second attempt would need the one stream of requests too.
                options.hedge = None;
            }
            let memory = match options.is_for_peer() {
                true => options.kept_by.clone(),
                false => Some(self.shared.pool.memory().clone()),
            };
            let duplex = Duplex {
                service,
                replay: rest.map(|rest| Replay::new(&first, rest, memory)),
                deadline: start + allowed,
                // A router that held whole replies for its peers would fill its memory.
                whole_bytes: if options.is_for_peer() { 0 } else { MAX_WHOLE_BYTES },
            };
            self.exchange(&watch, begun, service, options, &first, &duplex).await
        };
        let result = if watch.span().is_disabled() {
            work.await
        } else {
            work.instrument(watch.span().clone()).boxed().await
        };
        match result {
            Ok((done, _)) => Ok(Replies {
                service: service.clone(),
                allowed,
                start,
                origin: Origin::Provider {
                    provider: done.provider,
                    opened: done.answer,
                    attempts: done.failed_attempts.len() + 1,
                    watch: Some(watch),
                },
            }),
            Err(error) => {
                watch.end(error.attempts().len(), Ended::of(&error));
                Err(error)
            }
        }
    }
}

/// The message that travels with the head, empty when none is ready, and the messages that follow; `None` when none can follow.
fn at_hand(mut requests: MessageStream) -> Result<(Bytes, Option<MessageStream>), ()> {
    let first = match requests.next().now_or_never() {
        // An empty message in the head would count as no message.
        Some(Some(first)) if first.as_ref().is_ok_and(Bytes::is_empty) => {
            return Ok((Bytes::new(), Some(stream::iter([first]).chain(requests).boxed())));
        }
        Some(Some(first)) => first?,
        Some(None) | None => return Ok((Bytes::new(), Some(requests))),
    };
    // Send the end in the head too; a unary call always knows it.
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
    origin: Origin,
}

/// Where replies come from.
enum Origin {
    Provider {
        provider: Option<Arc<Provider>>,
        opened: Opened,
        attempts: usize,
        /// Until the end of the call.
        watch: Option<CallWatch>,
    },
    Here(LocalReplies),
}

impl Replies {
    /// The next message; `None` after the last one of a call that succeeded. Meanwhile the requests flow.
    ///
    /// # Errors
    /// When the call failed, after the messages that came before it did.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        if let Origin::Here(replies) = &mut self.origin {
            return replies.next().await;
        }
        let next = self.read().await;
        match &next {
            Ok(Some(_)) => {}
            Ok(None) => self.end(Ended::Ok),
            Err(error) => self.end(Ended::of(error)),
        }
        next
    }

    /// Records the end of a call at a provider.
    fn end(&mut self, ended: Ended) {
        if let Origin::Provider { watch, attempts, .. } = &mut self.origin
            && let Some(watch) = watch.take()
        {
            watch.end(*attempts, ended);
        }
    }

    async fn read(&mut self) -> Result<Option<Bytes>, CallError> {
        let Origin::Provider { opened, .. } = &mut self.origin else {
            return Ok(None);
        };
        if let Some(first) = opened.first.take() {
            return Ok(Some(first));
        }
        let error = match next(&mut opened.replies, &mut opened.pump).await {
            Next::Reply(Ok(Some(message))) => return Ok(Some(message)),
            Next::Reply(Ok(None)) => {
                opened.pump = None;
                return match opened.replies.reply() {
                    Some(reply) if reply.status != StatusCode::Ok => {
                        let status = Status::from_reply(reply.clone());
                        Err(self.answered(status))
                    }
                    _ => Ok(None),
                };
            }
            Next::Reply(Err(error)) => error,
            Next::Fault(error) => return Err(error),
        };
        opened.pump = None;
        Err(self.lost(error))
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

    /// The messages as a stream of a message type. A message that cannot be read ends the stream and the call.
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

    /// The metadata of the outcome; empty before [`Replies::next`] has returned `None`.
    #[must_use]
    pub fn metadata(&self) -> Metadata {
        match &self.origin {
            Origin::Provider { opened, .. } => {
                let reply = opened.replies.reply();
                reply.map(|reply| reply.metadata.clone()).unwrap_or_default()
            }
            Origin::Here(replies) => replies.metadata(),
        }
    }

    /// Whether all remaining replies have arrived.
    pub(crate) fn are_whole(&self) -> bool {
        match &self.origin {
            Origin::Provider { opened, .. } => opened.replies.is_here(),
            Origin::Here(_) => false,
        }
    }

    /// The provider that answers; `None` for a handler of this process.
    #[must_use]
    pub fn provider(&self) -> Option<&Provider> {
        match &self.origin {
            Origin::Provider { provider, .. } => provider.as_deref(),
            Origin::Here(_) => None,
        }
    }

    fn answered(&self, status: Status) -> CallError {
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
        let attempt = |provider: &Provider| Attempt {
            node_id: provider.node_id,
            endpoint: provider.endpoints.first().cloned(),
            started: Duration::ZERO,
            took: now().saturating_duration_since(self.start),
            cause,
        };
        self.provider().map(attempt).into_iter().collect()
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        // Unary callers never poll past the first reply, so a drop may follow a success.
        if let Origin::Provider { opened, .. } = &self.origin
            && opened
                .replies
                .reply()
                .is_some_and(|reply| reply.status == StatusCode::Ok)
        {
            self.end(Ended::Ok);
        }
    }
}

impl std::fmt::Debug for Replies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replies")
            .field("service", &self.service)
            .field("provider", &self.provider())
            .finish_non_exhaustive()
    }
}
