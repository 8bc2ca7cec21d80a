//! Calls that this process serves itself: no network, and otherwise the same.
//!
//! **Invariant:** such a call counts as running until its last message is there, so a drain waits for it; it ends at its
//! deadline, which nobody else enforces; a panic of the handler is its failure and not the caller's; and a call that the handler
//! refuses before it has answered is made elsewhere, as the same call (F5).

use std::{panic::AssertUnwindSafe, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{FutureExt as _, StreamExt as _, stream};
use macula_transport::{Limits, Metadata};
use macula_wire::{ServiceName, StatusCode};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{Client, Watched, builder::Options, late, lent::Lent};
use crate::{
    CallError, Request, Requests, Status, observe,
    server::{self, Admitted, OpenHere},
    streaming::{Answers, Asking},
};

/// A call that runs here.
pub(crate) struct Here {
    client: Client,
    pub(crate) service: ServiceName,
    watched: Option<Watched>,
    deadline: Option<Instant>,
    admitted: Admitted,
}

/// Why a piece of a handler's code has brought nothing.
pub(crate) enum Stopped {
    /// The call's deadline has passed.
    Late,
    Panicked,
}

impl Here {
    /// Starts a call that may take as long as its timeout says, or else as long as it likes.
    pub(crate) fn start(client: &Client, service: &ServiceName, options: &Options, admitted: Admitted) -> Self {
        let watched = Watched::start(client, service, options);
        // What cannot be reached is no deadline.
        let deadline = options.timeout.and_then(|allowed| watched.start.checked_add(allowed));
        Self {
            client: client.clone(),
            service: service.clone(),
            watched: Some(watched),
            deadline: deadline.map(Instant::from_std),
            admitted,
        }
    }

    /// Runs a piece of the handler's code: not past the deadline, and not past a panic.
    pub(crate) async fn step<T>(&self, work: impl Future<Output = T>) -> Result<T, Stopped> {
        let span = self.watched.as_ref().map(|watched| watched.span.clone());
        let work = AssertUnwindSafe(work.instrument(span.unwrap_or_else(tracing::Span::none))).catch_unwind();
        let done = match self.deadline {
            None => work.await,
            // The timer itself would look at the work first.
            Some(deadline) if deadline <= Instant::now() => return Err(Stopped::Late),
            Some(deadline) => tokio::time::timeout_at(deadline, work)
                .await
                .map_err(|_| Stopped::Late)?,
        };
        done.map_err(|panic| {
            server::panicked(&self.service, &panic);
            Stopped::Panicked
        })
    }

    /// Says how the call ended: nothing, or the error's name. What is dropped before its end was cancelled.
    pub(crate) fn end(&mut self, error: Option<&'static str>) {
        if let Some(watched) = self.watched.take() {
            watched.found_here();
            watched.end(&self.client, 0, error);
            match error {
                None => self.admitted.settle(observe::OK),
                // The handler's work is dropped at its deadline.
                Some("deadline_exceeded") => {}
                Some(_) => self.admitted.settle(observe::ERROR),
            }
        }
    }

    /// Gives the call up, which goes on elsewhere.
    fn leave(mut self) -> Option<Watched> {
        self.admitted.settle(observe::REFUSED);
        self.watched.take()
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        if let Some(watched) = &self.watched {
            watched.found_here();
        }
    }
}

/// A call that is to be made elsewhere.
pub(super) struct Elsewhere {
    /// All of its requests.
    pub(super) requests: Asking,
    /// The call as it is seen from outside, when it was begun here.
    pub(super) begun: Option<Watched>,
}

/// The replies of a streaming call that runs here.
pub(super) struct Replies {
    first: Option<Bytes>,
    /// Until the last reply.
    rest: Option<(Here, Answers)>,
    metadata: Metadata,
    allowed: Duration,
}

impl Client {
    /// Opens a streaming call here, and waits for the first message of its reply; gives the call back when nobody serves it
    /// here, or whoever does refuses it.
    pub(super) async fn open_here(
        &self,
        service: &ServiceName,
        options: &Options,
        allowed: Duration,
        requests: Asking,
    ) -> Result<Result<Replies, CallError>, Elsewhere> {
        let local = self.shared.local.as_ref();
        let local = local.filter(|_| options.may_run_here && options.provider.is_none());
        let Some((handler, admitted)) = local.and_then(|server| server.open(service)) else {
            return Err(Elsewhere { requests, begun: None });
        };
        let mut call = Here::start(self, service, options, admitted);
        let deadline = call.deadline.unwrap_or_else(|| Instant::now() + allowed).into_std();
        let metadata = options.metadata.clone().unwrap_or_default();
        let request = Request::local(
            service.clone(),
            options.method.clone(),
            metadata,
            Bytes::new(),
            deadline,
        );
        let lent = Lent::new(requests.into_stream());
        let requests = Requests::here(lent.reader());
        let mut replies = Replies {
            first: None,
            rest: None,
            metadata: Metadata::new(),
            allowed,
        };
        let unary = matches!(handler, OpenHere::Unary(_));
        // A refusal in place of the first reply is one as well.
        let started = async {
            let mut answers = match handler {
                OpenHere::Streaming(handler) => handler.handle(request.with_payload(requests)).await?,
                OpenHere::Unary(handler) => {
                    let payload = whole(requests).await?;
                    let (reply, metadata) = handler.handle(request.with_payload(payload)).await?.into_parts();
                    replies.metadata = metadata;
                    // Over the network, too, an empty reply is none.
                    stream::iter((!reply.is_empty()).then_some(Ok(reply))).boxed()
                }
            };
            let first = answers.next().await.transpose()?;
            Ok::<_, Status>((first, answers))
        };
        Ok(match call.step(started).await {
            Ok(Ok((first, answers))) => {
                lent.keep_no_more();
                match first {
                    Some(_) if !unary => (replies.first, replies.rest) = (first, Some((call, answers))),
                    // The only one: whoever takes it may not ask whether there is another.
                    _ => {
                        replies.first = first;
                        call.end(None);
                    }
                }
                Ok(replies)
            }
            Ok(Err(status)) if status.is_refused() => match lent.take_back() {
                Some(requests) => {
                    let (requests, begun) = (Asking::Stream(requests), call.leave());
                    return Err(Elsewhere { requests, begun });
                }
                None => Err(replies.failed(call, Ok(status))),
            },
            Ok(Err(status)) => Err(replies.failed(call, Ok(status))),
            Err(stopped) => Err(replies.failed(call, Err(stopped))),
        })
    }
}

/// The requests as the one of a handler that does not stream.
async fn whole(mut requests: Requests) -> Result<Bytes, Status> {
    let limit = Limits::default().max_message_bytes;
    let first = requests.next().await?.unwrap_or_default();
    let mut pieces = BytesMut::new();
    while let Some(next) = requests.next().await? {
        if pieces.is_empty() {
            pieces.extend_from_slice(&first);
        }
        if pieces.len() + next.len() > limit {
            let words = format!("the request has more than {limit} bytes, the most a message may have");
            return Err(Status::new(StatusCode::ResourceExhausted, words));
        }
        pieces.extend_from_slice(&next);
    }
    Ok(if pieces.is_empty() { first } else { pieces.freeze() })
}

impl Replies {
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let Some((call, answers)) = &mut self.rest else {
            return Ok(None);
        };
        let next = call.step(answers.next()).await;
        if let Ok(Some(Ok(message))) = next {
            return Ok(Some(message));
        }
        // What the handler holds goes with its last reply.
        let Some((mut call, _)) = self.rest.take() else {
            return Ok(None);
        };
        match next {
            Ok(Some(Err(status))) => Err(self.failed(call, Ok(status))),
            Err(stopped) => Err(self.failed(call, Err(stopped))),
            Ok(_) => {
                call.end(None);
                Ok(None)
            }
        }
    }

    /// What travels beside the outcome, once the last reply was read.
    pub(super) fn metadata(&self) -> Metadata {
        match (&self.first, &self.rest) {
            (None, None) => self.metadata.clone(),
            _ => Metadata::new(),
        }
    }

    fn failed(&self, mut call: Here, why: Result<Status, Stopped>) -> CallError {
        let answered = |status| CallError::Answered {
            service: call.service.clone(),
            status,
            attempts: Vec::new(),
        };
        let error = match why {
            Ok(status) => answered(status),
            Err(Stopped::Late) => late(&call.service, self.allowed),
            Err(Stopped::Panicked) => answered(server::panic_status()),
        };
        call.end(Some(error.name()));
        error
    }
}
