//! Calls that a handler of this process runs: no network, and otherwise the same.
//!
//! **Invariants.** Such a call counts as running until its last message, so a drain waits for it. It ends at its deadline, which no
//! other code enforces. A panic of the handler fails the call and does not reach the caller. A call that the handler refuses before it
//! has answered is made elsewhere, as the same call (F5).

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use macula_transport::Metadata;
use macula_wire::ServiceName;
use tracing::Instrument as _;

use super::{
    answer::{Answer, AnswerSource},
    options::Options,
    replay::Replay,
    shared::{Client, late, now},
    watch::CallWatch,
};
use crate::{
    CallError, Request, Requests, Status,
    observe::{Ended, Served},
    server::{self, Admitted},
    streaming::{Answers, Asking},
};

/// A call that runs here.
struct Local {
    watch: CallWatch,
    admitted: Admitted,
    allowed: Duration,
    deadline: Option<Instant>,
}

impl Local {
    fn request<T>(&self, options: &Options, payload: T) -> Request<T> {
        let request = Request::local(
            self.admitted.service().clone(),
            options.method.clone(),
            options.metadata.clone().unwrap_or_default(),
            Bytes::new(),
            self.deadline.unwrap_or_else(|| now() + self.allowed),
        );
        request.with_payload(payload)
    }

    /// Runs a part of the handler's code. The deadline or a panic ends it.
    async fn step<T>(&self, work: impl Future<Output = T>) -> Result<T, CallError> {
        let work = AssertUnwindSafe(work.instrument(self.watch.span().clone())).catch_unwind();
        let done = match self.deadline {
            None => work.await,
            // `timeout_at` would poll the work once before it looks at the time.
            Some(deadline) if deadline <= now() => return Err(self.late()),
            Some(deadline) => match tokio::time::timeout_at(deadline.into(), work).await {
                Ok(done) => done,
                Err(_) => return Err(self.late()),
            },
        };
        done.map_err(|panic| self.answered(server::panicked(self.admitted.service(), &panic)))
    }

    fn late(&self) -> CallError {
        late(self.admitted.service(), self.allowed)
    }

    fn answered(&self, status: Status) -> CallError {
        CallError::Answered {
            service: self.admitted.service().clone(),
            status,
            attempts: Vec::new(),
        }
    }

    /// Records the end of the call. A call dropped before its end was cancelled.
    fn end(mut self, ended: Ended) {
        self.watch.found(Some(AnswerSource::Local));
        self.admitted.settle(match ended {
            Ended::Ok => Served::Ok,
            // The handler's future is dropped at the deadline.
            Ended::Cancelled | Ended::Late => Served::Cancelled,
            Ended::Failed(_) => Served::Error,
        });
        self.watch.end(0, ended);
    }

    fn fail(self, error: CallError) -> CallError {
        self.end(Ended::of(&error));
        error
    }

    /// Gives the call up, to be made elsewhere.
    fn refuse(mut self) -> CallWatch {
        self.admitted.settle(Served::Refused);
        self.watch
    }
}

/// A stream that this process does not run, with all of its requests.
pub(super) struct Elsewhere {
    pub(super) watch: CallWatch,
    pub(super) requests: Asking,
}

/// The replies of a stream that runs here.
pub(super) struct LocalReplies {
    first: Option<Bytes>,
    /// Until the last reply.
    rest: Option<(Local, Answers)>,
    metadata: Metadata,
}

impl Client {
    /// Begins a call in this process; gives its observer back when the call may not run here.
    fn begin_here(
        &self,
        watch: CallWatch,
        service: &ServiceName,
        options: &Options,
        allowed: Duration,
    ) -> Result<Local, CallWatch> {
        let server = self.server_here(service, options);
        let server = server.filter(|_| options.may_run_here && options.provider.is_none());
        match server.and_then(|server| server.admit_here(service, &options.method)) {
            Some(admitted) => Ok(Local {
                // A time beyond the clock's range is no deadline.
                deadline: watch.started().checked_add(allowed),
                allowed,
                watch,
                admitted,
            }),
            None => Err(watch),
        }
    }

    /// Runs a call of one request and one reply here, or gives it back.
    pub(super) async fn call_here(
        &self,
        watch: CallWatch,
        service: &ServiceName,
        options: &Options,
        payload: &Bytes,
    ) -> Result<Result<Answer, CallError>, CallWatch> {
        let allowed = options.timeout.unwrap_or(self.shared.defaults.timeout);
        let local = self.begin_here(watch, service, options, allowed)?;
        if let Err(denied) = local.admitted.check_own(&self.shared.access) {
            let error = local.answered(denied);
            return Ok(Err(local.fail(error)));
        }
        let request = local.request(options, payload.clone());
        let error = match local.step(async { local.admitted.kind().call(request).await }).await {
            Ok(Ok(response)) => {
                local.end(Ended::Ok);
                return Ok(Ok(Answer {
                    response,
                    provider: None,
                    source: AnswerSource::Local,
                    failed_attempts: Vec::new(),
                }));
            }
            Ok(Err(status)) if status.is_refused() => return Err(local.refuse()),
            Ok(Err(status)) => local.answered(status),
            Err(error) => error,
        };
        Ok(Err(local.fail(error)))
    }

    /// Opens a stream here, and waits for the first message of the reply; or gives the call back.
    pub(super) async fn open_here(
        &self,
        watch: CallWatch,
        service: &ServiceName,
        options: &Options,
        allowed: Duration,
        requests: Asking,
    ) -> Result<Result<LocalReplies, CallError>, Elsewhere> {
        let local = match self.begin_here(watch, service, options, allowed) {
            Ok(local) => local,
            Err(watch) => return Err(Elsewhere { watch, requests }),
        };
        if let Err(denied) = local.admitted.check_own(&self.shared.access) {
            let error = local.answered(denied);
            return Ok(Err(local.fail(error)));
        }
        let replay = Replay::new(&Bytes::new(), requests.into_stream(), None);
        let request = local.request(options, Requests::here(replay.reader().boxed()));
        // A refusal in place of the first reply is a refusal too.
        let started = local.step(async {
            let mut answers = local.admitted.kind().open(request).await?;
            let first = answers.next().await?;
            Ok::<_, Status>((first, answers))
        });
        let error = match started.await {
            Ok(Ok((first, answers))) => {
                replay.settle();
                let metadata = answers.metadata();
                let rest = if first.is_none() || answers.are_over() {
                    // A caller of one reply may not ask whether there is another.
                    local.end(Ended::Ok);
                    None
                } else {
                    Some((local, answers))
                };
                return Ok(Ok(LocalReplies { first, rest, metadata }));
            }
            Ok(Err(status)) => match replay.take_back().filter(|_| status.is_refused()) {
                Some(requests) => {
                    return Err(Elsewhere {
                        watch: local.refuse(),
                        requests: Asking::Stream(requests),
                    });
                }
                None => local.answered(status),
            },
            Err(error) => error,
        };
        Ok(Err(local.fail(error)))
    }
}

impl LocalReplies {
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let Some((local, answers)) = &mut self.rest else {
            return Ok(None);
        };
        let next = local.step(answers.next()).await;
        if let Ok(Ok(Some(message))) = next {
            return Ok(Some(message));
        }
        // The handler's stream is dropped with its last reply.
        let Some((local, answers)) = self.rest.take() else {
            return Ok(None);
        };
        let error = match next {
            Ok(Ok(_)) => {
                self.metadata = answers.metadata();
                local.end(Ended::Ok);
                return Ok(None);
            }
            Ok(Err(status)) => local.answered(status),
            Err(error) => error,
        };
        Err(local.fail(error))
    }

    /// The metadata of the outcome, once the last reply was read.
    pub(super) fn metadata(&self) -> Metadata {
        match (&self.first, &self.rest) {
            (None, None) => self.metadata.clone(),
            _ => Metadata::new(),
        }
    }
}
