//! Calls that this process serves itself: no network, and otherwise the same.
//!
//! **Invariant:** such a call counts as running until its last message has been read, so a drain waits for it; it ends at its
//! deadline, which nobody else enforces; and a panic of the handler is its failure and not the caller's.

use std::{panic::AssertUnwindSafe, time::Duration};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use macula_wire::ServiceName;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::{Client, Watched, builder::Options, late};
use crate::{
    CallError, Request, Requests, Status,
    server::{self, Running},
    streaming::{Answers, Asking},
};

/// A call that runs here.
pub(crate) struct Here {
    client: Client,
    pub(crate) service: ServiceName,
    watched: Option<Watched>,
    deadline: Option<Instant>,
    _running: Running,
}

/// Why a piece of a handler's code has brought nothing.
pub(crate) enum Stopped {
    /// The call's deadline has passed.
    Late,
    Panicked,
}

impl Here {
    /// Starts a call that may take as long as its timeout says, or else as long as it likes.
    pub(crate) fn start(client: &Client, service: &ServiceName, options: &Options, running: Running) -> Self {
        let watched = Watched::start(client, service, options);
        watched.found_here();
        // What cannot be reached is no deadline.
        let deadline = options.timeout.and_then(|allowed| watched.start.checked_add(allowed));
        Self {
            client: client.clone(),
            service: service.clone(),
            watched: Some(watched),
            deadline: deadline.map(Instant::from_std),
            _running: running,
        }
    }

    /// Runs a piece of the handler's code: not past the deadline, and not past a panic.
    pub(crate) async fn step<T>(&self, work: impl Future<Output = T>) -> Result<T, Stopped> {
        let span = self.watched.as_ref().map(|watched| watched.span.clone());
        let work = AssertUnwindSafe(work.instrument(span.unwrap_or_else(tracing::Span::none))).catch_unwind();
        let done = match self.deadline {
            None => work.await,
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
            watched.end(&self.client, 0, error);
        }
    }
}

/// The replies of a streaming call that runs here.
pub(super) struct Replies {
    first: Option<Bytes>,
    /// Until the last reply.
    rest: Option<(Here, Answers)>,
    allowed: Duration,
}

impl Client {
    /// Opens a streaming call here, and waits for the first message of its reply; gives the requests back when nobody streams
    /// it here, or takes no further calls.
    pub(super) async fn open_here(
        &self,
        service: &ServiceName,
        options: &Options,
        allowed: Duration,
        requests: Asking,
    ) -> Result<Result<Replies, CallError>, Asking> {
        let local = self.shared.local.as_ref();
        let local = local.filter(|_| options.may_run_here && options.provider.is_none());
        let Some((handler, running)) = local.and_then(|server| server.streaming(service)) else {
            return Err(requests);
        };
        let call = Here::start(self, service, options, running);
        let deadline = call.deadline.unwrap_or_else(|| Instant::now() + allowed).into_std();
        let metadata = options.metadata.clone().unwrap_or_default();
        let request = Request::local(
            service.clone(),
            options.method.clone(),
            metadata,
            Bytes::new(),
            deadline,
        );
        let request = request.with_payload(Requests::here(requests.into_stream()));
        let answers = call.step(async { handler.handle(request).await }).await;
        let mut replies = Replies {
            first: None,
            rest: None,
            allowed,
        };
        Ok(match answers {
            Ok(Ok(answers)) => {
                replies.rest = Some((call, answers));
                match replies.next().await {
                    Ok(first) => {
                        replies.first = first;
                        Ok(replies)
                    }
                    Err(error) => Err(error),
                }
            }
            Ok(Err(status)) => Err(replies.failed(call, Ok(status))),
            Err(stopped) => Err(replies.failed(call, Err(stopped))),
        })
    }
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
