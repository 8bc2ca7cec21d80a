//! Which fates are worth another provider (F6).

use std::fmt;
use std::sync::Arc;

use crate::fate::{Code, Fate};

/// Decides, fate by fate, whether a call goes on to another provider.
///
/// A policy says what *may* be retried; attempts, budget, deadline and the providers that are left say whether it is.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum RetryPolicy {
    /// Not sent, refused, unknown, and handler errors that are not the caller's own fault
    /// ([`Code::is_callers_fault`](crate::Code::is_callers_fault)). The default.
    #[default]
    Transient,
    /// Not sent, refused, unknown, and the handler's [`Code::Unavailable`], which gRPC keeps for failures that are worth another try. The
    /// default of generated clients: a handler's other errors are the answer.
    Unavailable,
    /// Every error.
    AnyError,
    /// Only what certainly did not run: not sent and refused. For calls that must not run twice; such a call is never
    /// hedged, and an *unknown* fate ends it.
    NeverProcessed,
    /// What the predicate says. It is not asked about [`Fate::Ok`] and [`Fate::Cancelled`].
    Custom(Arc<dyn Fn(&Fate) -> bool + Send + Sync>),
}

impl RetryPolicy {
    /// A policy of the caller's own.
    ///
    /// ```
    /// use macula_select::{Code, Fate, RetryPolicy};
    /// let only_unavailable =
    ///     RetryPolicy::custom(|fate| matches!(fate, Fate::NotSent | Fate::Answered { code: Code::Unavailable, .. }));
    /// assert!(only_unavailable.retries(&Fate::NotSent));
    /// assert!(!only_unavailable.retries(&Fate::answered(Code::Internal)));
    /// ```
    #[must_use]
    pub fn custom(predicate: impl Fn(&Fate) -> bool + Send + Sync + 'static) -> Self {
        Self::Custom(Arc::new(predicate))
    }

    /// Whether an attempt that ended so may be followed by another.
    #[must_use]
    pub fn retries(&self, fate: &Fate) -> bool {
        let answered = match fate {
            Fate::Ok | Fate::Cancelled => return false,
            Fate::NotSent | Fate::Refused { .. } | Fate::Unknown(_) => None,
            Fate::Answered { code, .. } => Some(*code),
        };
        match self {
            Self::Transient => answered.is_none_or(|code| !code.is_callers_fault()),
            Self::Unavailable => answered.is_none_or(|code| code == Code::Unavailable),
            Self::AnyError => true,
            Self::NeverProcessed => matches!(fate, Fate::NotSent | Fate::Refused { .. }),
            Self::Custom(predicate) => predicate(fate),
        }
    }

    /// Whether the call must not run twice.
    pub(crate) fn never_twice(&self) -> bool {
        matches!(self, Self::NeverProcessed)
    }
}

impl fmt::Debug for RetryPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transient => "Transient",
            Self::Unavailable => "Unavailable",
            Self::AnyError => "AnyError",
            Self::NeverProcessed => "NeverProcessed",
            Self::Custom(_) => "Custom(..)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fate::{Loss, Refusal};

    const UNSURE: Fate = Fate::Unknown(Loss::TimedOut);

    #[test]
    fn f6_transient_spares_the_callers_own_faults() {
        for code in Code::ALL {
            assert_eq!(
                RetryPolicy::Transient.retries(&Fate::answered(code)),
                !code.is_callers_fault(),
                "{code}"
            );
        }
        for fate in [Fate::NotSent, Fate::refused(Refusal::Overloaded), UNSURE] {
            assert!(RetryPolicy::Transient.retries(&fate));
        }
    }

    #[test]
    fn f6_unavailable_takes_every_other_error_of_a_handler_for_the_answer() {
        for code in Code::ALL {
            let is_retried = RetryPolicy::Unavailable.retries(&Fate::answered(code));
            assert_eq!(is_retried, code == Code::Unavailable, "{code}");
        }
        for fate in [Fate::NotSent, Fate::refused(Refusal::Overloaded), UNSURE] {
            assert!(RetryPolicy::Unavailable.retries(&fate));
        }
    }

    #[test]
    fn f6_any_error_retries_every_error() {
        for code in Code::ALL {
            assert!(RetryPolicy::AnyError.retries(&Fate::answered(code)));
        }
    }

    #[test]
    fn f6_never_processed_retries_only_what_did_not_run() {
        assert!(RetryPolicy::NeverProcessed.retries(&Fate::NotSent));
        assert!(RetryPolicy::NeverProcessed.retries(&Fate::refused(Refusal::Draining)));
        assert!(!RetryPolicy::NeverProcessed.retries(&UNSURE));
        assert!(!RetryPolicy::NeverProcessed.retries(&Fate::answered(Code::Unavailable)));
    }

    #[test]
    fn success_and_cancellation_are_never_retried() {
        let always = RetryPolicy::custom(|_| true);
        assert!(!always.retries(&Fate::Ok));
        assert!(!always.retries(&Fate::Cancelled));
        assert!(always.retries(&UNSURE));
    }
}
