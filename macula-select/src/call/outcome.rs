//! What a call asks the shell to do, and how it ends (F4).

use std::time::Instant;

use thiserror::Error;

use super::attempts::{AttemptId, Attempts};
use crate::fate::Fate;

/// What [`Call::poll`](super::Call::poll) asks for. To be performed, every one.
#[derive(Debug)]
#[must_use = "an output that is not performed is a call that hangs"]
pub enum Output<K> {
    /// Send the call to a provider, and tell its fate with [`Call::on_result`](super::Call::on_result).
    Dispatch {
        /// The provider.
        to: K,
        /// What to call it when reporting.
        attempt: AttemptId,
        /// When the attempt times out; never after the call's deadline. The call sees to it itself; the transport
        /// may tell the provider.
        until: Instant,
        /// Whether another attempt is still in flight: it is slow, or its provider is silent.
        hedge: bool,
    },
    /// Take an attempt back if nothing of it was sent, because its provider is still being dialed and another one is
    /// connected: report [`Fate::NotSent`]. If it was sent, do nothing. Asked once for an attempt.
    Recall {
        /// Which.
        attempt: AttemptId,
    },
    /// Give an attempt up and tell the provider so. Its fate is settled; a result that still comes is ignored.
    Abort {
        /// Which.
        attempt: AttemptId,
    },
    /// Nothing to do before this instant or the next result. It is later than the `now` of the poll.
    Wait(Instant),
    /// The call is over. Comes once.
    Done(Result<Success, CallError<K>>),
    /// The call was over before: there is nothing to do, ever.
    Over,
}

/// A call that succeeded. What was tried before is in [`Call::attempts`](super::Call::attempts): the usual call has no use for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Success {
    /// The attempt whose answer it is.
    pub attempt: AttemptId,
}

/// A call that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CallError<K> {
    /// There was no provider when the call began (S5).
    #[error("service_not_found: no provider is known; check the service's name, and that a node serves it")]
    ServiceNotFound,
    /// Every provider was tried, or is shutting down; or [`MAX_FREE_ATTEMPTS`](crate::MAX_FREE_ATTEMPTS) could not be reached.
    #[error("all_providers_failed: {}; see each attempt for its cause", Failed(.attempts))]
    AllProvidersFailed {
        /// What became of each.
        attempts: Box<Attempts<K>>,
    },
    /// The limit was reached with providers left to try.
    #[error(
        "max_attempts_exceeded: {} of at most {limit} attempts; raise the limit to try the others", Failed(.attempts)
    )]
    MaxAttemptsExceeded {
        /// The limit.
        limit: u32,
        /// What became of each.
        attempts: Box<Attempts<K>>,
    },
    /// The deadline passed, or the wait before the next attempt would have outlasted it.
    #[error("deadline exceeded: {}; allow the call more time, or each attempt less", Failed(.attempts))]
    DeadlineExceeded {
        /// What became of each.
        attempts: Box<Attempts<K>>,
    },
    /// An attempt failed in a way that ends the call, though other providers may be left.
    #[error("not retried: the provider {}; {}", FateOf(.attempts, *.attempt), .reason.advice())]
    NotRetried {
        /// The attempt that ended it.
        attempt: AttemptId,
        /// Why it was the last.
        reason: StopReason,
        /// What became of each.
        attempts: Box<Attempts<K>>,
    },
    /// The caller cancelled it.
    #[error("cancelled by the caller")]
    Cancelled {
        /// What became of each.
        attempts: Box<Attempts<K>>,
    },
}

impl<K> CallError<K> {
    /// Every attempt that was made; `None` if none could be.
    #[must_use]
    pub fn attempts(&self) -> Option<&Attempts<K>> {
        match self {
            Self::ServiceNotFound => None,
            Self::AllProvidersFailed { attempts }
            | Self::MaxAttemptsExceeded { attempts, .. }
            | Self::DeadlineExceeded { attempts }
            | Self::NotRetried { attempts, .. }
            | Self::Cancelled { attempts } => Some(attempts),
        }
    }
}

/// Why a call was not retried though providers may be left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The policy says that this fate is the answer.
    Definitive,
    /// The provider asked that it not be retried.
    Pushback,
    /// Too large a share of calls is being retried already.
    BudgetExhausted,
    /// The call has begun, and the messages exchanged so far cannot be replayed to another provider.
    Begun,
}

impl StopReason {
    /// Its name for metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Definitive => "definitive",
            Self::Pushback => "pushback",
            Self::BudgetExhausted => "budget_exhausted",
            Self::Begun => "begun",
        }
    }

    /// Why there is no further attempt and what to do, for a person.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Definitive => "the retry policy forbids another attempt, for this one may have run",
            Self::Pushback => "the provider asked that the call not be retried; wait before calling again",
            Self::BudgetExhausted => "too many calls to this service are being retried already; look at its providers",
            Self::Begun => "part of the stream was already exchanged and cannot be replayed; call again to start over",
        }
    }
}

struct Failed<'a, K>(&'a Attempts<K>);

impl<K> std::fmt::Display for Failed<'_, K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.0.len(), self.0.last()) {
            (1, Some(last)) => write!(f, "the only attempt {}", last.fate()),
            (count, Some(last)) => write!(f, "{count} attempts, the last {}", last.fate()),
            (_, None) => f.write_str("no attempt was made"),
        }
    }
}

struct FateOf<'a, K>(&'a Attempts<K>, AttemptId);

impl<K> std::fmt::Display for FateOf<'_, K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fate = self.0.get(self.1).map_or(Fate::Cancelled, |attempt| attempt.fate());
        fate.fmt(f)
    }
}
