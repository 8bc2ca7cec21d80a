//! Lanes: long-lived streams on which small calls go back and forth.
//!
//! A stream per call costs a packet, a wake-up and a table entry per call; a lane costs a few bytes, and everything that is ready
//! leaves in one write. The caller opens a lane and sends HEAD and CANCEL on it; the provider answers with DATA and TRAILERS, call by
//! call in any order. Only what fits [`INLINE_BYTES`](super::frame::INLINE_BYTES) travels here: a larger request takes a stream of its
//! own, and a reply that outgrows the lane continues on a stream that the provider opens.
//!
//! [`calls`] and [`state`] are cores. [`caller`] and [`provider`] drive them over a stream.

pub(crate) mod caller;
mod calls;
pub(crate) mod provider;
mod state;

pub(crate) use calls::{CallId, MAX_CALLS};

/// What the fuzz targets drive.
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzed {
    pub(crate) use super::state::{Answered, Asked, CallerLane, ProviderLane, read_reply, read_request};
}
