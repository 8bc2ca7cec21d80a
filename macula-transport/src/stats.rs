//! What an endpoint has counted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::share::{memory::MemoryStats, places::PlaceStats};

/// What an endpoint has counted since it was bound. Its fields, and those of its parts, are one number each, for a table of
/// metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections open now, either way.
    pub connections: usize,
    /// Handshakes of peers that failed: no key, an X.509 certificate, another protocol, a bad signature.
    pub rejected_handshakes: u64,
    /// Peers turned away at their introduction: another realm or version, or no introduction at all.
    pub rejected_hellos: u64,
    /// Those of them that had no valid grant of the closed realm.
    pub rejected_grants: u64,
    /// Requests of visitors that were answered.
    pub visits: u64,
    /// Requests of visitors that were not.
    pub rejected_visits: u64,
    /// Connections ended because the peer's grant ended or was revoked.
    pub grants_ended: u64,
    /// Renewed grants of peers that were not valid.
    pub rejected_renewals: u64,
    /// Peers turned away because there were too many connections or handshakes.
    pub rejected_busy: u64,
    /// Peers asked to prove their address first.
    pub retried: u64,
    /// Datagrams that belong to no connection and start none.
    pub foreign_datagrams: u64,
    /// Streams ended because of a frame that was too large, cut short or malformed.
    pub rejected_frames: u64,
    /// Streams ended because the peer was too slow to say what it wants.
    pub slow_streams: u64,
    /// Replies that match no call.
    pub dropped_replies: u64,
    /// Calls of peers that were taken.
    pub calls_taken: u64,
    /// Calls of peers that came over streams which calls share, taken or not.
    pub calls_on_lanes: u64,
    /// Calls of peers that were refused as not started.
    pub calls_refused: u64,
    /// Calls of peers that their grants do not allow, or that were passed on without their caller's leave.
    pub calls_denied: u64,
    /// Calls of peers that were cancelled, or whose deadline passed, before they were answered.
    pub calls_dropped: u64,
    /// Handlers that panicked.
    pub handler_panics: u64,
    /// Times a peer was suspected to be gone.
    pub suspicions: u64,
    /// Reports that a connected peer's address is unreachable.
    pub unreachable_hints: u64,
    /// The memory that peers make the endpoint keep.
    pub memory: MemoryStats,
    /// The places for calls of peers.
    pub places: PlaceStats,
}

macro_rules! counters {
    ($($name:ident),*) => {
        /// The counters behind [`Stats`].
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: Counter),* }

        impl Counters {
            pub(crate) fn snapshot(&self, connections: usize, memory: MemoryStats, places: PlaceStats) -> Stats {
                Stats { connections, memory, places, $($name: self.$name.get()),* }
            }
        }
    };
}

counters!(
    rejected_handshakes,
    rejected_hellos,
    rejected_grants,
    visits,
    rejected_visits,
    grants_ended,
    rejected_renewals,
    rejected_busy,
    retried,
    foreign_datagrams,
    rejected_frames,
    slow_streams,
    dropped_replies,
    calls_taken,
    calls_on_lanes,
    calls_refused,
    calls_denied,
    calls_dropped,
    handler_panics,
    suspicions,
    unreachable_hints
);

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.add_many(1);
    }

    pub(crate) fn add_many(&self, many: usize) {
        self.0.fetch_add(many as u64, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
