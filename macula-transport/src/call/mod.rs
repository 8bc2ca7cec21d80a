//! # How a call travels
//!
//! A call is HEAD, DATA* from the caller, and DATA*, TRAILERS from the provider: see [`frame`]. A reply is messages and an outcome,
//! always; TRAILERS are the outcome, with the last message in them.
//!
//! ```text
//!   caller                                                       provider
//!
//!   ask ── lone call, or large request ──▶ stream of its own ──▶ answer ──▶ handler
//!    │                                       ◀── reply ─────────────┘
//!    │
//!    └─── small request beside others ───▶ lane ─────────────▶ lane/provider ──▶ handler
//!                                           ◀── small reply ────────┤
//!         ask::reply_stream ◀── stream that the provider opens ◀────┘ a reply that outgrows the lane
//! ```
//!
//! - [`ask`] checks a call against the limits and the peer's credit, and chooses its way.
//! - A **stream of its own** carries one call. The caller ends its half with its last request, the provider with TRAILERS.
//! - A **lane** carries small calls, one after another, in frames that name their call: see [`lane`].
//! - [`answer`] lets a call in, at the [gate](crate::connection::gate), and begins its handler; streams and lanes alike.
//! - [`reply`] takes the handler's messages. A reply to a call on a lane starts there, when it may, and continues on a stream when it
//!   outgrows the lane: one that starts with the lane and the call it belongs to.
//! - [`replies`] and [`messages`] are the halves that callers and handlers hold.
//! - [`outcome`] decides how a call without a reply ended: not sent, refused or unknown.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

pub(crate) mod answer;
pub(crate) mod ask;
pub(crate) mod connection;
pub(crate) mod frame;
pub(crate) mod handler;
pub(crate) mod lane;
pub(crate) mod messages;
mod outbox;
pub(crate) mod outcome;
mod passages;
pub(crate) mod replies;
pub(crate) mod reply;
pub(crate) mod types;

/// The longest timeout of a call. Longer ones are cut to it, so that no deadline overflows.
const MAX_CALL_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
/// A request or reply above this size, in bytes, is large. Smaller ones fit in a connection's window together, on as many streams as a
/// peer may open.
const LARGE_BYTES: usize = 66 * 1024;
/// How many large requests, and how many large replies, are written to a peer at a time. With more, each takes longer, and together
/// they take more of the peer's memory.
const MAX_LARGE_SENDS: usize = 12;

/// Permits to write messages of more than [`LARGE_BYTES`] to a peer, in one direction of its calls.
#[derive(Debug)]
struct LargeSends(Semaphore);

impl Default for LargeSends {
    fn default() -> Self {
        Self(Semaphore::new(MAX_LARGE_SENDS))
    }
}

impl LargeSends {
    /// Waits for the turn of a message of this size, in bytes. The turn ends when the permit is dropped.
    async fn turn(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        match bytes > LARGE_BYTES {
            true => self.0.acquire().await.ok(),
            false => None,
        }
    }
}
/// Why a call is refused for which there is no memory.
const NO_MEMORY: &str = "the node has no memory left for the call; try again later";
