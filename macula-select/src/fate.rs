//! How an attempt ended (F5), in the terms that selection and failover need.
//!
//! The balancer reads a fate as a verdict about the *provider*, the call as a reason to try another one. Payloads and
//! error texts stay with the caller, which finds them by attempt.

use std::fmt;
use std::time::Duration;

/// How one attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It succeeded.
    Ok,
    /// Nothing reached the provider: dialing failed, no stream could be opened. Safe to repeat, costs no attempt.
    NotSent,
    /// The provider says that it did not start it. Safe to repeat.
    Refused {
        /// Why.
        reason: Refusal,
        /// When the provider wants to be asked again.
        pushback: Option<Pushback>,
    },
    /// It was sent and no answer came: it may have run.
    Unknown(Loss),
    /// The handler ran and answered with an error.
    Answered {
        /// The kind of error.
        code: Code,
        /// When the provider wants to be asked again.
        pushback: Option<Pushback>,
    },
    /// The caller gave it up. Says nothing about the provider.
    Cancelled,
}

impl Fate {
    /// Refused, without pushback.
    #[must_use]
    pub const fn refused(reason: Refusal) -> Self {
        Self::Refused { reason, pushback: None }
    }

    /// Answered with an error, without pushback.
    #[must_use]
    pub const fn answered(code: Code) -> Self {
        Self::Answered { code, pushback: None }
    }

    /// The provider's wish for the next attempt, if it told one.
    #[must_use]
    pub const fn pushback(&self) -> Option<Pushback> {
        match self {
            Self::Refused { pushback, .. } | Self::Answered { pushback, .. } => *pushback,
            Self::Ok | Self::NotSent | Self::Unknown(_) | Self::Cancelled => None,
        }
    }

    /// What this says about the provider's health.
    pub(crate) const fn verdict(&self) -> Verdict {
        match self {
            Self::Ok => Verdict::Success,
            Self::Answered { code, .. } if code.is_callers_fault() => Verdict::Success,
            // Shedding and draining are a provider that works and says so; ejecting it would take capacity away
            // exactly when there is too little.
            Self::Refused {
                reason: Refusal::Overloaded | Refusal::Draining,
                ..
            }
            | Self::Cancelled => Verdict::Neutral,
            Self::Refused {
                reason: Refusal::NoSuchService,
                ..
            }
            | Self::NotSent
            | Self::Unknown(_)
            | Self::Answered { .. } => Verdict::Failure,
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("succeeded"),
            Self::NotSent => f.write_str("could not be reached"),
            Self::Refused {
                reason: Refusal::Overloaded,
                ..
            } => f.write_str("refused: overloaded"),
            Self::Refused {
                reason: Refusal::Draining,
                ..
            } => f.write_str("refused: shutting down"),
            Self::Refused {
                reason: Refusal::NoSuchService,
                ..
            } => f.write_str("refused: does not serve this"),
            Self::Unknown(Loss::TimedOut) => f.write_str("did not answer in time"),
            Self::Unknown(Loss::ConnectionLost) => f.write_str("was lost while it worked"),
            Self::Answered { code, .. } => write!(f, "answered {code}"),
            Self::Cancelled => f.write_str("was cancelled"),
        }
    }
}

/// What a fate says about the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Success,
    Failure,
    Neutral,
}

/// Why a provider did not start an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// It has too much to do. Not held against its health; its pushback is honoured.
    Overloaded,
    /// It is shutting down. Not held against its health; others are preferred for a while.
    Draining,
    /// It does not serve this service: what the directory says of it is stale. A failure.
    NoSuchService,
}

/// How an answer got lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Loss {
    /// The attempt's timeout passed.
    TimedOut,
    /// The connection broke after the attempt was sent.
    ConnectionLost,
}

/// A server's wish for when the call is tried again.
///
/// As in gRPC's retry design (proposal A6): a delay replaces the computed backoff of the next attempt, once, and
/// a negative one means that the call is not to be retried. The provider is left in peace for that long; the call waits
/// only when no other provider is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pushback {
    /// Try again after this long, not sooner.
    After(Duration),
    /// Do not retry.
    Stop,
}

/// The kind of a handler's error, numbered as gRPC's status codes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// The call was cancelled, typically by the caller.
    Cancelled = 1,
    /// Something failed, and nothing more is known.
    Unknown = 2,
    /// The request is wrong in every state of the system.
    InvalidArgument = 3,
    /// The deadline passed before the call was done.
    DeadlineExceeded = 4,
    /// The requested entity does not exist.
    NotFound = 5,
    /// The entity to create exists.
    AlreadyExists = 6,
    /// The caller may not do this.
    PermissionDenied = 7,
    /// Something has run out: a quota, or space.
    ResourceExhausted = 8,
    /// The system is not in the state the call needs.
    FailedPrecondition = 9,
    /// The call was aborted, typically for a conflict.
    Aborted = 10,
    /// The request goes past a valid range.
    OutOfRange = 11,
    /// The provider does not have this method.
    Unimplemented = 12,
    /// The provider is broken.
    Internal = 13,
    /// The provider cannot serve now.
    Unavailable = 14,
    /// Data is lost or corrupted.
    DataLoss = 15,
    /// The caller is not known.
    Unauthenticated = 16,
}

impl Code {
    /// Every code, by number.
    pub const ALL: [Self; 16] = [
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// The code with gRPC's number, 1 to 16; any other number reads as [`Code::Unknown`].
    #[must_use]
    pub fn from_number(number: u32) -> Self {
        Self::ALL
            .into_iter()
            .find(|code| *code as u32 == number)
            .unwrap_or(Self::Unknown)
    }

    /// Whether another provider would answer the same, because the fault is in the request (F6).
    #[must_use]
    pub const fn is_callers_fault(self) -> bool {
        match self {
            Self::InvalidArgument
            | Self::NotFound
            | Self::AlreadyExists
            | Self::PermissionDenied
            | Self::Unauthenticated
            | Self::FailedPrecondition
            | Self::OutOfRange => true,
            Self::Cancelled
            | Self::Unknown
            | Self::DeadlineExceeded
            | Self::ResourceExhausted
            | Self::Aborted
            | Self::Unimplemented
            | Self::Internal
            | Self::Unavailable
            | Self::DataLoss => false,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown error",
            Self::InvalidArgument => "invalid argument",
            Self::DeadlineExceeded => "deadline exceeded",
            Self::NotFound => "not found",
            Self::AlreadyExists => "already exists",
            Self::PermissionDenied => "permission denied",
            Self::ResourceExhausted => "resource exhausted",
            Self::FailedPrecondition => "failed precondition",
            Self::Aborted => "aborted",
            Self::OutOfRange => "out of range",
            Self::Unimplemented => "unimplemented",
            Self::Internal => "internal error",
            Self::Unavailable => "unavailable",
            Self::DataLoss => "data loss",
            Self::Unauthenticated => "unauthenticated",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_carry_grpc_numbers() {
        for (index, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, index + 1);
            assert_eq!(Code::from_number(code as u32), code);
        }
        assert_eq!(Code::from_number(0), Code::Unknown);
        assert_eq!(Code::from_number(99), Code::Unknown);
    }

    #[test]
    fn f8_a_cancellation_says_nothing_about_the_provider() {
        assert_eq!(Fate::Cancelled.verdict(), Verdict::Neutral);
    }

    #[test]
    fn a_caller_at_fault_met_a_working_provider() {
        assert_eq!(Fate::answered(Code::NotFound).verdict(), Verdict::Success);
        assert_eq!(Fate::answered(Code::Internal).verdict(), Verdict::Failure);
    }

    #[test]
    fn shedding_is_not_sickness() {
        assert_eq!(Fate::refused(Refusal::Overloaded).verdict(), Verdict::Neutral);
        assert_eq!(Fate::refused(Refusal::NoSuchService).verdict(), Verdict::Failure);
    }
}
