//! What a call shows of itself: spans through `tracing`, numbers through `metrics`.
//!
//! Names are those of OpenTelemetry's semantic conventions for RPC where there is one, and begin with `macula.` where there is
//! none. Without a subscriber a span is one relaxed load and a compare; without the feature `metrics` every meter is a function
//! with nothing in it. Neither allocates.

#[cfg(feature = "metrics")]
mod meters;
#[cfg(not(feature = "metrics"))]
#[path = "silent.rs"]
mod meters;
mod spans;

pub(crate) use meters::{Meters, PoolMeters, ServedMeters};
pub(crate) use spans::{
    attempt_span, call_span, record_attempt, record_end, record_peer, record_served, record_step, serve_span,
};

/// The name of an outcome that is no error.
pub(crate) const OK: &str = "ok";
/// The outcome of a call whose future was dropped.
pub(crate) const CANCELLED: &str = "cancelled";
/// The outcome of a served call that failed.
pub(crate) const ERROR: &str = "error";
/// The outcome of a served call that the handler did not take.
pub(crate) const REFUSED: &str = "refused";
