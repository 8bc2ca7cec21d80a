//! Why a call failed, with everything that was tried.

use std::{fmt, time::Duration};

use macula_select::StopReason;
use macula_transport::Pushback;
use macula_wire::{Address, NameError, NodeId, ServiceName};

use crate::{CodecError, ResolveError, Status};

/// One try of a call at one provider, in the order of their starts (F4).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Attempt {
    /// The provider tried.
    pub node_id: NodeId,
    /// Where it was tried: the address connected to, or dialed in vain; its preferred endpoint when the attempt did not get so far.
    pub endpoint: Option<Address>,
    /// When the attempt started, from the start of the call.
    pub started: Duration,
    /// How long it took.
    pub took: Duration,
    /// Why it failed.
    pub cause: Cause,
}

/// Why an attempt failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The call never left: no connection, or no stream on it. Safe to try elsewhere.
    #[error("could not be reached")]
    NotSent(#[source] std::sync::Arc<dyn std::error::Error + Send + Sync>),
    /// The provider did not start the call. Safe to try elsewhere.
    #[error("refused the call ({0})")]
    Refused(Status),
    /// The provider did not answer in time. It may have run the call.
    #[error("did not answer within {:?}", to_millis(*.0))]
    TimedOut(Duration),
    /// The connection was lost after the call was sent. The provider may have run it.
    #[error("was lost during the call")]
    Lost(#[source] std::sync::Arc<dyn std::error::Error + Send + Sync>),
    /// The handler answered with an error.
    #[error("answered {0}")]
    Answered(Status),
    /// The attempt was given up because the call was over.
    #[error("was cancelled")]
    Cancelled,
}

impl Cause {
    /// The cause's name for programs, metrics and spans.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NotSent(_) => "not_sent",
            Self::Refused(_) => "refused",
            Self::TimedOut(_) => "timed_out",
            Self::Lost(_) => "lost",
            Self::Answered(_) => "answered",
            Self::Cancelled => "cancelled",
        }
    }

    /// When to try again, if the provider has said so (F9).
    #[must_use]
    pub fn pushback(&self) -> Option<Pushback> {
        match self {
            Self::Refused(status) | Self::Answered(status) => status.pushback(),
            Self::NotSent(_) | Self::TimedOut(_) | Self::Lost(_) | Self::Cancelled => None,
        }
    }
}

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// Nobody provides the service (S5).
    #[error(
        "service_not_found: nobody provides {service}; check the name and the realm, and that a provider is running"
    )]
    ServiceNotFound {
        /// The service called.
        service: ServiceName,
    },
    /// Every provider was tried and failed (F4).
    #[error("all_providers_failed: {service}: {}", Tried(.attempts))]
    AllProvidersFailed {
        /// The service called.
        service: ServiceName,
        /// What was tried.
        attempts: Vec<Attempt>,
    },
    /// As many providers as allowed were tried and failed, and others are left (F4).
    #[error("max_attempts_exceeded: {service}: {}; others are left, allow more attempts to try them", Tried(.attempts))]
    MaxAttemptsExceeded {
        /// The service called.
        service: ServiceName,
        /// What was tried.
        attempts: Vec<Attempt>,
    },
    /// The call's deadline passed (F7).
    #[error("deadline_exceeded: {service}: no answer within {allowed:?}{}", AfterTried(.attempts))]
    DeadlineExceeded {
        /// The service called.
        service: ServiceName,
        /// How long the call was allowed to take.
        allowed: Duration,
        /// What was tried.
        attempts: Vec<Attempt>,
    },
    /// A provider answered with an error that the retry policy takes as the call's own (F6).
    #[error("{service} answered {status}")]
    Answered {
        /// The service called.
        service: ServiceName,
        /// The handler's answer.
        status: Status,
        /// What was tried, the answering provider last; empty when a local handler answered.
        attempts: Vec<Attempt>,
    },
    /// An attempt failed and was not followed by another, though other providers may be left: the call may have run and must
    /// not run twice (F6), the provider asked not to be asked again, too many calls are being retried already (F9), or the call is
    /// a stream of which too much was sent, or something received.
    #[error("not_retried: {service}: {}; {}", Tried(.attempts), advice(*.reason))]
    NotRetried {
        /// The service called.
        service: ServiceName,
        /// Why there was no further attempt.
        reason: StopReason,
        /// What was tried.
        attempts: Vec<Attempt>,
    },
    /// The caller's own stream of requests failed. The call was cancelled, and not made elsewhere.
    #[error("{service} was given up: the stream of requests failed before its end")]
    RequestsFailed {
        /// The service called.
        service: ServiceName,
    },
    /// The directory gave no answer, and there is no router to ask.
    #[error("{service} could not be looked up, and no router is connected: {source}")]
    Unresolved {
        /// The service called.
        service: ServiceName,
        /// Why the directory gave no answer.
        source: ResolveError,
    },
    /// The service's name is not valid.
    #[error("not a service name: {0}")]
    InvalidName(#[from] NameError),
    /// The call's metadata is larger than the head of a message may be, or has too many entries.
    #[error(
        "the call's metadata is too large with {size} bytes: a message may have {} bytes and {} entries beside its payload",
        macula_transport::MAX_HEAD_BYTES,
        macula_transport::MAX_METADATA_ENTRIES
    )]
    MetadataTooLarge {
        /// The head's size, in bytes.
        size: usize,
    },
    /// The request is larger than a message may be.
    #[error("the request has {size} bytes, more than the {limit} a message may have; send it in parts")]
    RequestTooLarge {
        /// The request's size, in bytes.
        size: usize,
        /// The most a request may have, in bytes.
        limit: usize,
    },
    /// The request's message could not be written. Nothing was sent.
    #[error("{service} was not called: the request cannot be written: {source}")]
    Unencodable {
        /// The service called.
        service: ServiceName,
        /// What the format says.
        source: CodecError,
    },
    /// The call succeeded, and its answer is not the message expected.
    #[error("{service} answered{} what is not the message expected: {source}; do both sides use one schema?", By(.node_id))]
    Undecodable {
        /// The service called.
        service: ServiceName,
        /// Who answered; `None` for a handler of this process.
        node_id: Option<NodeId>,
        /// What the format says.
        source: CodecError,
    },
}

impl CallError {
    /// What was tried, in the order of the attempts' starts; empty when the call never got that far.
    #[must_use]
    pub fn attempts(&self) -> &[Attempt] {
        match self {
            Self::AllProvidersFailed { attempts, .. }
            | Self::MaxAttemptsExceeded { attempts, .. }
            | Self::DeadlineExceeded { attempts, .. }
            | Self::Answered { attempts, .. }
            | Self::NotRetried { attempts, .. } => attempts,
            Self::ServiceNotFound { .. }
            | Self::RequestsFailed { .. }
            | Self::Unresolved { .. }
            | Self::InvalidName(_)
            | Self::MetadataTooLarge { .. }
            | Self::RequestTooLarge { .. }
            | Self::Unencodable { .. }
            | Self::Undecodable { .. } => &[],
        }
    }

    /// The error's name for programs, metrics and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ServiceNotFound { .. } => "service_not_found",
            Self::AllProvidersFailed { .. } => "all_providers_failed",
            Self::MaxAttemptsExceeded { .. } => "max_attempts_exceeded",
            Self::DeadlineExceeded { .. } => "deadline_exceeded",
            Self::Answered { .. } => "answered",
            Self::NotRetried { .. } => "not_retried",
            Self::RequestsFailed { .. } => "requests_failed",
            Self::Unresolved { .. } => "unresolved",
            Self::InvalidName(_) => "invalid_name",
            Self::MetadataTooLarge { .. } => "metadata_too_large",
            Self::RequestTooLarge { .. } => "request_too_large",
            Self::Unencodable { .. } => "unencodable",
            Self::Undecodable { .. } => "undecodable",
        }
    }
}

/// A measured time as a person reads it.
const fn to_millis(time: Duration) -> Duration {
    Duration::new(time.as_secs(), time.subsec_millis() * 1_000_000)
}

const fn advice(reason: StopReason) -> &'static str {
    match reason {
        StopReason::Pushback => "the provider asked that the call not be retried; wait before calling again",
        StopReason::BudgetExhausted => {
            "too many calls to this service are being retried already; look at its providers"
        }
        StopReason::Begun => "it had begun, and what was sent or received of it is not to be had again",
        _ => "it may have run, and the retry policy forbids a second run",
    }
}

/// Who answered, when it was a peer.
struct By<'a>(&'a Option<NodeId>);

impl fmt::Display for By<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(node_id) => write!(f, " (from {})", node_id.short()),
            None => Ok(()),
        }
    }
}

/// The attempts, in one line.
struct Tried<'a>(&'a [Attempt]);

impl fmt::Display for Tried<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("nothing was tried"),
            attempts => attempts.iter().enumerate().try_for_each(|(at, attempt)| {
                if at > 0 {
                    f.write_str("; ")?;
                }
                attempt.fmt(f)
            }),
        }
    }
}

/// The attempts in parentheses, when there are any.
struct AfterTried<'a>(&'a [Attempt]);

impl fmt::Display for AfterTried<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(f, " ({})", Tried(self.0))
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.node_id.short())?;
        if let Some(endpoint) = &self.endpoint {
            write!(f, " at {endpoint}")?;
        }
        write!(f, " {}", self.cause)?;
        let mut source = std::error::Error::source(&self.cause);
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
