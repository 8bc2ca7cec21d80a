//! The end of a call in words: the core's error, with the names, addresses and causes of the attempts.

use std::time::Instant;

use macula_select::{Attempts, Fate, StopReason};
use macula_wire::{Address, StatusCode};

use super::{
    answer::AnswerSource,
    attempt::{Exchange, Job, Tried},
    services::Member,
};
use crate::{CallError, Cause, error::Attempt};

/// The caller's error for the core's.
pub(super) fn of<X: Exchange>(error: macula_select::CallError<Member>, job: &Job<'_, X>, tried: &[Tried]) -> CallError {
    use macula_select::CallError as Core;

    let service = job.service.clone();
    let name = |attempts: &Attempts<Member>| named(attempts, tried, job.start);
    match error {
        Core::ServiceNotFound => CallError::ServiceNotFound { service },
        Core::AllProvidersFailed { attempts } => exhausted(job, name(&attempts)),
        Core::MaxAttemptsExceeded { attempts, .. } => CallError::MaxAttemptsExceeded {
            service,
            attempts: name(&attempts),
        },
        Core::DeadlineExceeded { attempts } => CallError::DeadlineExceeded {
            service,
            allowed: job.allowed(),
            attempts: name(&attempts),
        },
        Core::NotRetried {
            attempt,
            reason,
            attempts,
        } => {
            let attempts = name(&attempts);
            match tried.get(attempt.index()).and_then(|tried| tried.cause.as_ref()) {
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
        // Only dropping the call's future cancels it, and then nothing is returned.
        other => CallError::NotRetried {
            service,
            reason: StopReason::Definitive,
            attempts: other.attempts().map(name).unwrap_or_default(),
        },
    }
}

/// The error of a call that every provider failed.
fn exhausted<X: Exchange>(job: &Job<'_, X>, attempts: Vec<Attempt>) -> CallError {
    let service = job.service.clone();
    let not_found = |tried: &Attempt| matches!(&tried.cause, Cause::Refused(s) if s.code() == StatusCode::NotFound);
    // A router refuses like this when its directory lists no provider.
    if job.source == AnswerSource::Router && attempts.iter().all(not_found) {
        return CallError::ServiceNotFound { service };
    }
    let too_large = attempts.iter().map(|tried| match tried.cause {
        Cause::TooLarge { size, limit } => Some((limit, size)),
        _ => None,
    });
    match too_large
        .collect::<Option<Vec<_>>>()
        .and_then(|limits| limits.into_iter().max())
    {
        Some((limit, size)) => CallError::RequestTooLarge { size, limit },
        None => CallError::AllProvidersFailed { service, attempts },
    }
}

/// Where an attempt was made: the address connected to, or else the provider's preferred endpoint.
fn endpoint(tried: &Tried) -> Option<Address> {
    let at = tried.at.and_then(|at| Address::try_from(at).ok());
    at.or_else(|| tried.provider.endpoints.first().cloned())
}

/// The attempts that failed, with names, addresses and causes.
pub(super) fn named(attempts: &Attempts<Member>, tried: &[Tried], start: Instant) -> Vec<Attempt> {
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
    attempts.iter().zip(tried).filter_map(name).collect()
}
