//! The router's part: a call that a peer asks to have passed on, once.

use macula_select::RetryPolicy;
use macula_transport::IncomingCall;
use macula_wire::StatusCode;

use super::{Client, builder::Options};
use crate::{CallError, Cause, Response, Status};

impl Client {
    /// Passes a peer's call on to a provider that the directory gives. It is not passed on again from there.
    pub(crate) async fn forward(&self, call: IncomingCall) -> Result<Response, Status> {
        let options = Options {
            timeout: Some(call.deadline().saturating_duration_since(super::engine::now())),
            // Whether it may run twice is the caller's to say, who hears of everything that may have run.
            policy: RetryPolicy::NeverProcessed,
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

/// What the caller is told of a call that could not be passed on.
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
            Status::refused_with(StatusCode::Unavailable, error.to_string())
        }
        _ => Status::unavailable(error.to_string()),
    }
}
