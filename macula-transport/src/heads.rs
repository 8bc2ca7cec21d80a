//! How much of a call or a reply may be no payload: names, metadata, a failure's message and details.

/// What every node takes of a call or a reply beside its payload, in bytes: names, metadata, a failure's message and details.
/// [`Limits::max_head_bytes`](crate::Limits::max_head_bytes) allows more.
pub const DEFAULT_HEAD_BYTES: usize = 16 * 1024;
/// How many metadata entries of a call or a reply every node takes.
/// [`Limits::max_metadata_entries`](crate::Limits::max_metadata_entries) allows more.
pub const DEFAULT_METADATA_ENTRIES: usize = 128;
/// The most that [`Limits::max_head_bytes`](crate::Limits::max_head_bytes) allows.
pub const MAX_HEAD_BYTES: usize = 1 << 20;
/// The most that [`Limits::max_metadata_entries`](crate::Limits::max_metadata_entries) allows.
pub const MAX_METADATA_ENTRIES: usize = 8192;

/// How much of a call or a reply may be no payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeadLimits {
    pub(crate) bytes: usize,
    pub(crate) entries: usize,
}

impl HeadLimits {
    /// What every node takes, and the most that travels on a lane.
    pub(crate) const LEAST: Self = Self {
        bytes: DEFAULT_HEAD_BYTES,
        entries: DEFAULT_METADATA_ENTRIES,
    };

    pub(crate) fn holds(self, (bytes, entries): (usize, usize)) -> bool {
        bytes <= self.bytes && entries <= self.entries
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.min(other.bytes),
            entries: self.entries.min(other.entries),
        }
    }
}
