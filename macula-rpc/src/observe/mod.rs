//! The observer of calls: spans through `tracing`, numbers through `metrics`.
//!
//! Names are those of OpenTelemetry's semantic conventions for RPC where there is one, and begin with `macula.` elsewhere. Without a
//! subscriber a span is one relaxed load and a compare; without the feature `metrics` every meter is an empty function. Neither
//! allocates.
//!
//! **Invariant.** A peer cannot add a label: a method is a label only when this process named it, up to [`MAX_METHODS`] of a service,
//! and any other is [`OTHER`].

mod meters;
mod methods;
#[cfg_attr(not(feature = "metrics"), path = "unrecorded.rs")]
mod recorded;
mod spans;
mod tally;

pub(crate) use meters::{Meters, PoolMeters, ServedMeters};
pub use methods::MAX_METHODS;
pub(crate) use methods::{Method, MethodNames, OTHER};
#[cfg(feature = "metrics")]
pub use recorded::describe_metrics;
pub(crate) use spans::{
    attempt_span, call_span, record_attempt, record_end, record_peer, record_served, record_step, serve_span,
};
pub use tally::{CallStats, LATENCY_BUCKETS, Latency};

use crate::{CallError, error::name};

/// The name of a success.
pub(crate) const OK: &str = "ok";
/// The name of a call or attempt whose future was dropped.
pub(crate) const CANCELLED: &str = "cancelled";

/// How a call ended for its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Ok,
    Cancelled,
    /// At the call's deadline.
    Late,
    /// With the error of this name.
    Failed(&'static str),
}

impl Ended {
    pub(crate) const fn of(error: &CallError) -> Self {
        match error {
            CallError::DeadlineExceeded { .. } => Self::Late,
            error => Self::Failed(error.name()),
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ok => OK,
            Self::Cancelled => CANCELLED,
            Self::Late => name::DEADLINE_EXCEEDED,
            Self::Failed(name) => name,
        }
    }
}

/// How a call ended at its provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Served {
    Ok,
    Error,
    /// The handler did not take the call.
    Refused,
    Cancelled,
}

impl Served {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => OK,
            Self::Error => "error",
            Self::Refused => "refused",
            Self::Cancelled => CANCELLED,
        }
    }
}
