//! The end of a call in words: the core's verdict with the names, endpoints and causes that the shell knows.

use std::time::{Duration, Instant};

use macula_select::{Attempts, Fate, StopReason};
use macula_wire::{Address, StatusCode};

use super::{
    AnswerSource,
    engine::{Job, Log, Tried},
    services::Member,
};
use crate::{CallError, Cause, error::Attempt};

/// What the caller is told.
pub(super) fn of<X>(
    error: macula_select::CallError<Member>,
    job: &Job<'_, X>,
    log: &Log,
    allowed: Duration,
) -> CallError {
    use macula_select::CallError as Core;

    let service = job.service.clone();
    let name = |attempts: &Attempts<Member>| named(attempts, log, job.start);
    match error {
        Core::ServiceNotFound => CallError::ServiceNotFound { service },
        Core::AllProvidersFailed { attempts } => {
            let attempts = name(&attempts);
            let unknown =
                |tried: &Attempt| matches!(&tried.cause, Cause::Refused(s) if s.code() == StatusCode::NotFound);
            // Routers say so when the directory they reach knows nobody.
            if job.source == AnswerSource::Router && attempts.iter().all(unknown) {
                CallError::ServiceNotFound { service }
            } else {
                CallError::AllProvidersFailed { service, attempts }
            }
        }
        Core::MaxAttemptsExceeded { attempts, .. } => CallError::MaxAttemptsExceeded {
            service,
            attempts: name(&attempts),
        },
        Core::DeadlineExceeded { attempts } => CallError::DeadlineExceeded {
            service,
            allowed,
            attempts: name(&attempts),
        },
        Core::NotRetried {
            attempt,
            reason,
            attempts,
        } => {
            let attempts = name(&attempts);
            match log.get(attempt).and_then(|tried| tried.cause.as_ref()) {
                Some(Cause::Answered(status)) if reason == StopReason::Definitive => CallError::Answered {
                    service,
                    status: status.clone(),
                    attempts,
                },
                _ => CallError::NotRetried {
                    service,
                    reason,
                    attempts,
                },
            }
        }
        // Only dropping the call's future cancels it, and then nobody is told.
        other => CallError::NotRetried {
            service,
            reason: StopReason::Definitive,
            attempts: other.attempts().map(name).unwrap_or_default(),
        },
    }
}

/// Where an attempt was made: the address connected to, or else the provider's preferred endpoint.
fn endpoint(tried: &Tried) -> Option<Address> {
    let at = tried.at.and_then(|at| Address::try_from(at).ok());
    at.or_else(|| tried.provider.endpoints.first().cloned())
}

/// The core's attempts with names, endpoints and causes; those that succeeded are left out.
pub(super) fn named(attempts: &Attempts<Member>, log: &Log, start: Instant) -> Vec<Attempt> {
    if attempts.iter().all(|attempt| attempt.fate() == Fate::Ok) {
        return Vec::new();
    }
    let name = |(attempt, tried): (&macula_select::Attempt<Member>, &Tried)| {
        let derived = match attempt.fate() {
            Fate::Ok => return None,
            Fate::Cancelled => Cause::Cancelled,
            _ => Cause::TimedOut(attempt.elapsed()),
        };
        Some(Attempt {
            node_id: tried.provider.node_id,
            endpoint: endpoint(tried),
            started: attempt.started().saturating_duration_since(start),
            took: attempt.elapsed(),
            cause: tried.cause.clone().unwrap_or(derived),
        })
    };
    attempts.iter().zip(log.iter()).filter_map(name).collect()
}
