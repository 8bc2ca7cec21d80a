//! Callers that wait for a place in a full pool.
//!
//! **Invariant:** whenever a connection is no longer in use or is gone, one caller that waits looks again, and one that does not need the
//! place wakes the next.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::sync::{Notify, futures::Notified};

/// Wakes those that wait for a place.
#[derive(Debug, Default)]
pub(crate) struct Room {
    waiting: AtomicUsize,
    freed: Notify,
}

impl Room {
    /// Whether anyone waits. One look at a number, because each call asks.
    pub(crate) fn is_wanted(&self) -> bool {
        self.waiting.load(SeqCst) > 0
    }

    /// A place may be free.
    pub(crate) fn freed(&self) {
        if self.is_wanted() {
            self.freed.notify_one();
        }
    }

    /// Waits from now on.
    pub(crate) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, SeqCst);
        Waiting(self)
    }
}

/// A caller that waits, until it is dropped.
#[derive(Debug)]
pub(crate) struct Waiting<'a>(&'a Room);

impl Waiting<'_> {
    /// Ready when a place may be free; take it before looking whether one is, and enable it.
    pub(crate) fn next(&self) -> Notified<'_> {
        self.0.freed.notified()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
        // It may leave a place that it was woken for.
        self.0.freed();
    }
}
