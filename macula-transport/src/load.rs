//! How many calls go through an endpoint at a time. Above a few, a task that writes waits a moment for others to join.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Up to this number of calls at a time, each leaves at once.
pub(crate) const SMALL_LOAD: usize = 8;

/// How many calls go through an endpoint at a time.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Calls of ours under way.
    outbound: AtomicUsize,
    /// How many calls of peers came together the last time.
    batch: AtomicUsize,
}

impl Load {
    pub(crate) fn started(&self) {
        self.outbound.fetch_add(1, Relaxed);
    }

    pub(crate) fn ended(&self) {
        self.outbound.fetch_sub(1, Relaxed);
    }

    /// Notes the number of calls of peers that came together.
    pub(crate) fn arrived(&self, calls: usize) {
        if self.batch.load(Relaxed) != calls {
            self.batch.store(calls, Relaxed);
        }
    }

    /// Whether waiting a moment is likely to save packets. A peer's calls come in groups smaller than the number under way.
    pub(crate) fn is_above(&self, calls: usize) -> bool {
        self.outbound.load(Relaxed) > calls || self.batch.load(Relaxed) > calls / 2
    }
}
