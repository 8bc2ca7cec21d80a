//! Why a call failed, with everything that was tried.

use std::{fmt, time::Duration};

use macula_select::StopReason;
use macula_transport::Pushback;
use macula_wire::{Address, NameError, NodeId, ServiceName};

use crate::{CodecError, ResolveError, Status};

/// The names of errors that several types share.
pub(crate) mod name {
    pub(crate) const ANSWERED: &str = "answered";
    pub(crate) const DEADLINE_EXCEEDED: &str = "deadline_exceeded";
    pub(crate) const REQUEST_TOO_LARGE: &str = "request_too_large";
}

/// One try of a call at one provider, in the order of their starts (F4).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Attempt {
    /// The provider tried.
    pub node_id: NodeId,
    /// The address that was connected to or dialed, or else the provider's preferred endpoint.
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
    /// The call was not sent: there was no connection, or no stream on it. Safe to try elsewhere.
    #[error("could not be reached")]
    NotSent(#[source] std::sync::Arc<dyn std::error::Error + Send + Sync>),
    /// The request is larger than this provider takes, and was not sent. Another provider may take it.
    #[error("takes requests of at most {limit} bytes, and this one has {size}")]
    TooLarge {
        /// The request's size, in bytes.
        size: usize,
        /// The most that the provider takes, in bytes.
        limit: usize,
    },
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
    /// The attempt was cancelled because the call was over.
    #[error("was cancelled")]
    Cancelled,
}

impl Cause {
    /// The cause's name for programs, metrics and spans.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NotSent(_) => "not_sent",
            Self::TooLarge { .. } => name::REQUEST_TOO_LARGE,
            Self::Refused(_) => "refused",
            Self::TimedOut(_) => "timed_out",
            Self::Lost(_) => "lost",
            Self::Answered(_) => name::ANSWERED,
            Self::Cancelled => "cancelled",
        }
    }

    /// When to try again, if the provider has said so (F9).
    #[must_use]
    pub fn pushback(&self) -> Option<Pushback> {
        match self {
            Self::Refused(status) | Self::Answered(status) => status.pushback(),
            Self::NotSent(_) | Self::TooLarge { .. } | Self::TimedOut(_) | Self::Lost(_) | Self::Cancelled => None,
        }
    }
}

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The directory lists no provider of the service (S5).
    #[error(
        "service_not_found: no node provides {service}; check the name and the realm, and that a provider is running"
    )]
    ServiceNotFound {
        /// The service called.
        service: ServiceName,
    },
    /// Every provider was tried and failed (F4).
    #[error("all_providers_failed: {service}: {}", InOneLine(.attempts))]
    AllProvidersFailed {
        /// The service called.
        service: ServiceName,
        /// What was tried.
        attempts: Vec<Attempt>,
    },
    /// As many providers as the call may try failed, and untried ones are left (F4).
    #[error("max_attempts_exceeded: {service}: {}; untried providers are left, allow more attempts to reach them", InOneLine(.attempts))]
    MaxAttemptsExceeded {
        /// The service called.
        service: ServiceName,
        /// What was tried.
        attempts: Vec<Attempt>,
    },
    /// The call's deadline passed (F7).
    #[error("deadline_exceeded: {service}: no answer within {allowed:?}{}", InParentheses(.attempts))]
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
        /// The handler's status.
        status: Status,
        /// What was tried, the answering provider last; empty when a local handler answered.
        attempts: Vec<Attempt>,
    },
    /// An attempt failed, and no other followed, though untried providers may be left: the call may have run and must not run
    /// twice (F6), the provider asked for no further try, too many calls are being retried already (F9), or part of a stream was
    /// already exchanged.
    #[error("not_retried: {service}: {}; {}", InOneLine(.attempts), .reason.advice())]
    NotRetried {
        /// The service called.
        service: ServiceName,
        /// Why there was no further attempt.
        reason: StopReason,
        /// What was tried.
        attempts: Vec<Attempt>,
    },
    /// The caller's own stream of requests failed. The call was cancelled and not tried elsewhere.
    #[error("{service} was cancelled: the caller's stream of requests failed before its end")]
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
    /// The call's metadata has more bytes or entries than a call may carry. Nothing was sent.
    #[error(
        "the call's metadata is too large: names and metadata have {size} bytes and {entries} entries, and this node sends at most \
         {max_size} bytes and {max_entries} entries; raise `Limits::max_head_bytes` and `Limits::max_metadata_entries` on both sides"
    )]
    MetadataTooLarge {
        /// The size of the call without its payload, in bytes.
        size: usize,
        /// The number of metadata entries.
        entries: usize,
        /// The most bytes of a call beside its payload.
        max_size: usize,
        /// The most metadata entries of a call.
        max_entries: usize,
    },
    /// The request is larger than a message may be, or than every provider takes. Nothing was sent.
    #[error("the request has {size} bytes, and a message at most {limit}; send it in parts, as a stream")]
    RequestTooLarge {
        /// The request's size, in bytes.
        size: usize,
        /// The most a request may have, in bytes.
        limit: usize,
    },
    /// The options ask for a hedge, and do not say that the call may run twice. Nothing was sent (F10).
    #[error(
        "{service} was not called: a hedged call may run twice; declare it idempotent, and choose a retry policy that \
         allows a second run"
    )]
    NotHedged {
        /// The service called.
        service: ServiceName,
    },
    /// The request's message could not be written. Nothing was sent.
    #[error("{service} was not called: the request cannot be written: {source}")]
    Unencodable {
        /// The service called.
        service: ServiceName,
        /// What the format says.
        source: CodecError,
    },
    /// The call ran, and its answer is not the expected message. It is not tried elsewhere.
    #[error("{service} answered{}, and the message cannot be read: {source}; do both sides use one schema?", By(.node_id))]
    Undecodable {
        /// The service called.
        service: ServiceName,
        /// The provider; `None` for a handler of this process.
        node_id: Option<NodeId>,
        /// What the format says.
        source: CodecError,
    },
}

impl CallError {
    /// The attempts in the order of their starts; none when the call made none.
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
            | Self::NotHedged { .. }
            | Self::Unencodable { .. }
            | Self::Undecodable { .. } => &[],
        }
    }

    /// The last status that a provider answered with, if one did: it says more than a provider that could not be reached.
    pub(crate) fn last_answer(&self) -> Option<&Status> {
        self.attempts().iter().rev().find_map(|attempt| match &attempt.cause {
            Cause::Answered(status) => Some(status),
            _ => None,
        })
    }

    /// The error's name for programs, metrics and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ServiceNotFound { .. } => "service_not_found",
            Self::AllProvidersFailed { .. } => "all_providers_failed",
            Self::MaxAttemptsExceeded { .. } => "max_attempts_exceeded",
            Self::DeadlineExceeded { .. } => name::DEADLINE_EXCEEDED,
            Self::Answered { .. } => name::ANSWERED,
            Self::NotRetried { .. } => "not_retried",
            Self::RequestsFailed { .. } => "requests_failed",
            Self::Unresolved { .. } => "unresolved",
            Self::InvalidName(_) => "invalid_name",
            Self::MetadataTooLarge { .. } => "metadata_too_large",
            Self::RequestTooLarge { .. } => name::REQUEST_TOO_LARGE,
            Self::NotHedged { .. } => "not_hedged",
            Self::Unencodable { .. } => "unencodable",
            Self::Undecodable { .. } => "undecodable",
        }
    }
}

/// A measured time without the digits that a person does not read.
const fn to_millis(time: Duration) -> Duration {
    Duration::new(time.as_secs(), time.subsec_millis() * 1_000_000)
}

/// The peer that answered, if a peer did.
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
struct InOneLine<'a>(&'a [Attempt]);

impl fmt::Display for InOneLine<'_> {
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
struct InParentheses<'a>(&'a [Attempt]);

impl fmt::Display for InParentheses<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(f, " ({})", InOneLine(self.0))
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.node_id.short())?;
        if let Some(endpoint) = &self.endpoint {
            write!(f, " at {endpoint}")?;
        }
        let mut last = self.cause.to_string();
        write!(f, " {last}")?;
        let mut source = std::error::Error::source(&self.cause);
        while let Some(error) = source {
            let text = error.to_string();
            // Some texts have their cause in them.
            if !last.ends_with(&text) {
                write!(f, ": {text}")?;
                last = text;
            }
            source = error.source();
        }
        Ok(())
    }
}
