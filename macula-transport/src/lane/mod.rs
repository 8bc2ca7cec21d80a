//! Lanes: long-lived streams on which small unary calls go back and forth.
//!
//! A stream per call costs a packet, a wake-up and a table entry per call; a lane costs a few bytes, and everything that is ready
//! leaves in one write. The caller opens a lane and sends HEAD and CANCEL on it; the provider answers with TRAILERS in any order.
//! Only what fits [`INLINE_BYTES`](crate::codec::INLINE_BYTES) travels here: a larger request takes a stream of its own, a larger
//! reply comes on a stream that the provider opens for it. So does a reply of [`several`] messages that is not all there at once.
//!
//! [`calls`] and [`state`] are cores, as are the frames and the outbox they use: no clock, no lock, no socket, no quinn type. [`caller`],
//! [`provider`] and [`several`] drive them over a stream.

pub(crate) mod caller;
mod calls;
mod plain;
pub(crate) mod provider;
pub(crate) mod several;
mod state;

pub(crate) use calls::{CallId, MAX_CALLS};

/// What the fuzz targets drive.
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzed {
    pub(crate) use super::state::{Asked, CallerLane, ProviderLane, read_reply, read_request};
}
