//! The router's part: a call that a peer asks to have passed on, once.
//!
//! **Invariants.** A call is passed on message by message, whether it has one of them or many, so a stub's calls and streams go
//! through a router as unary calls do; neither side gets ahead of the other. What peers make up costs this client nothing of what it
//! knows of the services it calls itself.

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use macula_select::RetryPolicy;
use macula_transport::{IncomingCall, IncomingMessages, OutgoingMessages, Repeat, Reply, Route};
use macula_wire::StatusCode;

use super::{Client, builder::Options};
use crate::{
    CallError, Cause, Status,
    streaming::{self, Asking},
};

/// The most providers tried for a peer, however many it asks for: its one call is this many here.
const MAX_ROUTED_ATTEMPTS: u32 = 8;

impl Client {
    /// Passes a peer's call on to a provider that the directory gives, and to another when the first fails and the caller would
    /// try another. It is not passed on again from there.
    pub(crate) async fn forward(
        &self,
        call: IncomingCall,
        route: Route,
        requests: IncomingMessages,
        mut replies: OutgoingMessages,
    ) -> Reply {
        let mut options = Options {
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
            for_peer: true,
            ..Options::default()
        };
        let mut provider = match self.open(call.service(), &mut options, passed_on(requests)).await {
            Ok(provider) => provider,
            Err(error) => return verdict(error).into_reply(),
        };
        // What is here as a whole is passed on as that.
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
                Err(error) => return verdict(error).into_reply(),
            }
        }
    }
}

/// The requests of a peer as this client's own.
fn passed_on(mut requests: IncomingMessages) -> Asking {
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

/// What the caller is told of a call that could not be passed on; a provider's pushback with it, which is its caller's to honour too.
fn verdict(error: CallError) -> Status {
    match error {
        CallError::Answered { status, .. } => status,
        CallError::ServiceNotFound { .. } => Status::refused_with(StatusCode::NotFound, error.to_string()),
        CallError::DeadlineExceeded { .. } => Status::new(StatusCode::DeadlineExceeded, error.to_string()),
        // They name no attempts, and a provider may have begun with what there was.
        CallError::RequestsFailed { .. } => Status::new(StatusCode::Cancelled, error.to_string()),
        CallError::RequestTooLarge { .. } | CallError::MetadataTooLarge { .. } => {
            Status::new(StatusCode::ResourceExhausted, error.to_string())
        }
        // Safe to try elsewhere only when no provider can have run it.
        _ if error
            .attempts()
            .iter()
            .all(|tried| matches!(tried.cause, Cause::NotSent(_) | Cause::Refused(_))) =>
        {
            let asked = error.attempts().last().and_then(|tried| tried.cause.pushback());
            Status::refused_with(StatusCode::Unavailable, error.to_string()).with_pushback_of(asked)
        }
        // Of several providers the one that did answer says more than those that could not.
        _ => {
            let answered = error.attempts().iter().rev().find_map(|tried| match &tried.cause {
                Cause::Answered(status) => Some(status.clone()),
                _ => None,
            });
            answered.unwrap_or_else(|| Status::unavailable(error.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F6: what ends a call that a provider may have begun is its end, too, for whoever asked the router.
    #[test]
    fn f6_what_may_have_run_is_not_passed_back_as_not_started() {
        let service: macula_wire::ServiceName = "api.upload".parse().unwrap();
        for (error, code) in [
            (CallError::RequestsFailed { service }, StatusCode::Cancelled),
            (
                CallError::RequestTooLarge { size: 9, limit: 8 },
                StatusCode::ResourceExhausted,
            ),
            (CallError::MetadataTooLarge { size: 9 }, StatusCode::ResourceExhausted),
        ] {
            let status = verdict(error);
            assert_eq!((status.code(), status.is_refused()), (code, false), "{status}");
        }
    }
}
