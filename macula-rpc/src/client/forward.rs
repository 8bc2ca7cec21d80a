//! The router's part: it forwards a peer's call, once.
//!
//! **Invariants.** A call is forwarded message by message, whether it has one or many, so streams and stubs' calls go through a router
//! as unary calls do, and neither side gets ahead of the other. Service names that peers make up evict nothing that this client knows
//! of the services it calls itself.

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use macula_select::RetryPolicy;
use macula_transport::{IncomingCall, IncomingMessages, OutgoingMessages, Repeat, Reply, Route};
use macula_wire::StatusCode;

use super::{
    options::Options,
    shared::{Client, now},
};
use crate::{
    Asker, CallError, Cause, ResolveOptions, Status,
    streaming::{self, Asking},
};

/// The most providers tried for a peer's call, however many it asks for.
const MAX_ROUTED_ATTEMPTS: u32 = 8;

impl Client {
    /// Forwards a peer's call to a provider that the directory gives, and to another when the first fails and the caller's policy
    /// allows it. The provider does not forward the call again.
    pub(crate) async fn forward(
        &self,
        call: IncomingCall,
        route: Route,
        requests: IncomingMessages,
        mut replies: OutgoingMessages,
    ) -> Reply {
        if call.passage().is_empty() {
            let message =
                "the call carries no leave to pass it on; its caller has no valid grant, or is of an older version";
            return Status::new(StatusCode::PermissionDenied, message).into_reply();
        }
        let mut options = Options {
            timeout: Some(call.deadline().saturating_duration_since(now())),
            // The caller says whether the call may run twice.
            policy: match route.repeat {
                Repeat::Transient => RetryPolicy::Transient,
                Repeat::Unavailable => RetryPolicy::Unavailable,
                Repeat::AnyError => RetryPolicy::AnyError,
                _ => RetryPolicy::NeverProcessed,
            },
            attempt_timeout: route.attempt_timeout,
            max_attempts: route.max_attempts.map(|max| max.get().min(MAX_ROUTED_ATTEMPTS)),
            method: call.method().to_owned(),
            metadata: Some(call.metadata().clone()),
            may_run_here: false,
            may_route: false,
            passage: Some(call.passage().clone()),
            resolve: ResolveOptions::default()
                .with_asker(Asker::new(call.peer().node_id, call.peer().remote_addr.ip())),
            kept_by: requests.memory(),
            ..Options::default()
        };
        let mut provider = match self.open(call.service(), &mut options, forwarded(requests)).await {
            Ok(provider) => provider,
            Err(error) => return status_of(error).into_reply(),
        };
        // A whole reply is forwarded as a whole. Of any other reply nothing is kept.
        let whole = provider.are_whole();
        let mut first = true;
        loop {
            match provider.next().await {
                Ok(Some(message)) => {
                    let sent = match whole {
                        true => streaming::gather(&mut replies, message, std::mem::take(&mut first)).await,
                        false => streaming::send(&mut replies, message).await,
                    };
                    if let Err(status) = sent {
                        return status.into_reply();
                    }
                }
                Ok(None) => return Reply::ok(Bytes::new()).with_metadata(provider.metadata()),
                Err(error) => return status_of(error).into_reply(),
            }
        }
    }
}

/// A peer's requests as this client's own.
fn forwarded(mut requests: IncomingMessages) -> Asking {
    if let Some(only) = requests.take_only() {
        return Asking::Only(only);
    }
    let messages = stream::unfold(Some(requests), async |requests| {
        let mut requests = requests?;
        match requests.next().await {
            Ok(Some(message)) => Some((Ok(message), Some(requests))),
            Ok(None) => None,
            Err(_) => Some((Err(()), None)),
        }
    });
    Asking::Stream(Box::pin(messages.fuse()))
}

/// The status of a call that failed behind this router. A provider's pushback goes with it, because the caller must honour it too.
fn status_of(error: CallError) -> Status {
    match error {
        CallError::Answered { status, .. } => status,
        CallError::ServiceNotFound { .. } => Status::refused_with(StatusCode::NotFound, error.to_string()),
        CallError::DeadlineExceeded { .. } => Status::new(StatusCode::DeadlineExceeded, error.to_string()),
        // These errors list no attempts, and a provider may have begun with the first requests.
        CallError::RequestsFailed { .. } => Status::new(StatusCode::Cancelled, error.to_string()),
        CallError::RequestTooLarge { .. } | CallError::MetadataTooLarge { .. } => {
            Status::new(StatusCode::ResourceExhausted, error.to_string())
        }
        // Safe to try elsewhere only when no provider can have run it.
        _ if error.attempts().iter().all(|tried| {
            matches!(
                tried.cause,
                Cause::NotSent(_) | Cause::TooLarge { .. } | Cause::Refused(_)
            )
        }) =>
        {
            let asked = error.attempts().last().and_then(|tried| tried.cause.pushback());
            Status::refused_with(StatusCode::Unavailable, error.to_string()).with_pushback_of(asked)
        }
        _ => match error.last_answer() {
            Some(status) => status.clone(),
            None => Status::unavailable(error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F6: an error that ends a call which a provider may have begun ends it for the router's caller too.
    #[test]
    fn f6_what_may_have_run_is_not_passed_back_as_not_started() {
        let service: macula_wire::ServiceName = "api.upload".parse().unwrap();
        for (error, code) in [
            (CallError::RequestsFailed { service }, StatusCode::Cancelled),
            (
                CallError::RequestTooLarge { size: 9, limit: 8 },
                StatusCode::ResourceExhausted,
            ),
            (
                CallError::MetadataTooLarge {
                    size: 9,
                    entries: 1,
                    max_size: 8,
                    max_entries: 1,
                },
                StatusCode::ResourceExhausted,
            ),
        ] {
            let status = status_of(error);
            assert_eq!((status.code(), status.is_refused()), (code, false), "{status}");
        }
    }
}
