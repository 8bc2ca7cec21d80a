//! The router's part: a call that a peer asks to have passed on, once.

use macula_select::RetryPolicy;
use macula_transport::{IncomingCall, Repeat, Route};
use macula_wire::StatusCode;

use super::{Client, builder::Options};
use crate::{CallError, Cause, Response, Status};

/// The most providers tried for a peer, however many it asks for: its one call is this many here.
const MAX_ROUTED_ATTEMPTS: u32 = 8;

impl Client {
    /// Passes a peer's call on to a provider that the directory gives, and to another when the first fails and the caller would
    /// try another. It is not passed on again from there.
    pub(crate) async fn forward(&self, call: IncomingCall, route: Route) -> Result<Response, Status> {
        let options = Options {
            timeout: Some(call.deadline().saturating_duration_since(super::engine::now())),
            // Whether it may run twice is the caller's to say.
            policy: match route.repeat {
                Repeat::Transient => RetryPolicy::Transient,
                Repeat::AnyError => RetryPolicy::AnyError,
                _ => RetryPolicy::NeverProcessed,
            },
            attempt_timeout: route.attempt_timeout,
            max_attempts: route.max_attempts.map(|max| max.get().min(MAX_ROUTED_ATTEMPTS)),
            method: call.method().to_owned(),
            metadata: Some(call.metadata().clone()),
            may_run_here: false,
            may_route: false,
            ..Options::default()
        };
        let call = call.into_parts();
        self.run(&call.service, &options, &call.body)
            .await
            .map(super::Answer::into_response)
            .map_err(verdict)
    }
}

/// What the caller is told of a call that could not be passed on; a provider's pushback with it, which is its caller's to honour too.
fn verdict(error: CallError) -> Status {
    match error {
        CallError::Answered { status, .. } => status,
        CallError::ServiceNotFound { .. } => Status::refused_with(StatusCode::NotFound, error.to_string()),
        CallError::DeadlineExceeded { .. } => Status::new(StatusCode::DeadlineExceeded, error.to_string()),
        // Safe to try elsewhere only when no provider can have run it.
        _ if error
            .attempts()
            .iter()
            .all(|tried| matches!(tried.cause, Cause::NotSent(_) | Cause::Refused(_))) =>
        {
            let asked = error.attempts().last().and_then(|tried| tried.cause.pushback());
            Status::refused_with(StatusCode::Unavailable, error.to_string()).with_pushback_of(asked)
        }
        // What the caller would have had as the cause of its last attempt.
        _ => match error.attempts().last().map(|tried| &tried.cause) {
            Some(Cause::Answered(status)) => status.clone(),
            _ => Status::unavailable(error.to_string()),
        },
    }
}
