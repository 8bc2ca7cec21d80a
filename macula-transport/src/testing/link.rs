//! A link's delay, loss and limits.

use std::time::Duration;

/// The way from one host to another: how long it takes, and how much of it fails.
///
/// Chances are between 0 and 1; a value outside counts as the nearer of the two.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkConditions {
    pub(super) latency: Duration,
    pub(super) jitter: Duration,
    pub(super) loss: f64,
    pub(super) duplicate: f64,
    pub(super) reorder: f64,
    pub(super) corruption: f64,
    pub(super) bytes_per_second: Option<u64>,
    pub(super) max_datagram_bytes: usize,
}

impl LinkConditions {
    /// A link that carries every datagram of up to 1 472 bytes (what Ethernet leaves to UDP) in exactly this time, one way.
    #[must_use]
    pub const fn new(latency: Duration) -> Self {
        Self {
            latency,
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            corruption: 0.0,
            bytes_per_second: None,
            max_datagram_bytes: 1472,
        }
    }

    /// Sets how long the link takes, one way.
    #[must_use]
    pub const fn with_latency(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    /// Sets how much longer than its latency the link may take, uniformly. Jitter alone reorders nothing: the link is a queue.
    #[must_use]
    pub const fn with_jitter(mut self, jitter: Duration) -> Self {
        self.jitter = jitter;
        self
    }

    /// Sets the chance that a datagram is lost.
    #[must_use]
    pub const fn with_loss(mut self, chance: f64) -> Self {
        self.loss = chance;
        self
    }

    /// Sets the chance that a datagram arrives twice, the second time one latency later.
    #[must_use]
    pub const fn with_duplicates(mut self, chance: f64) -> Self {
        self.duplicate = chance;
        self
    }

    /// Sets the chance that a datagram takes one latency more, so that those sent after it arrive before it.
    #[must_use]
    pub const fn with_reordering(mut self, chance: f64) -> Self {
        self.reorder = chance;
        self
    }

    /// Sets the chance that one byte of a datagram arrives changed.
    #[must_use]
    pub const fn with_corruption(mut self, chance: f64) -> Self {
        self.corruption = chance;
        self
    }

    /// Sets how many bytes the link carries in a second, at least 1. Datagrams wait for their turn, for [`MAX_QUEUE`](super::MAX_QUEUE)
    /// at most; a datagram that would wait longer is lost. Without it the link carries any number at once.
    #[must_use]
    pub const fn with_bandwidth(mut self, bytes_per_second: u64) -> Self {
        self.bytes_per_second = Some(if bytes_per_second == 0 { 1 } else { bytes_per_second });
        self
    }

    /// Sets the largest datagram the link carries, in bytes; QUIC needs 1 200. Larger ones are lost.
    #[must_use]
    pub const fn with_max_datagram_bytes(mut self, bytes: usize) -> Self {
        self.max_datagram_bytes = bytes;
        self
    }
}

impl Default for LinkConditions {
    /// One millisecond each way, and nothing lost.
    fn default() -> Self {
        Self::new(Duration::from_millis(1))
    }
}
