//! What is kept per provider, in two parts: what every pick reads, and the rest.
//!
//! A pick at ten thousand providers is a cache miss per candidate, so the part it reads is 32 bytes, two to a line.

use crate::clock::Nanos;
use crate::latency::Estimate;
use crate::provider::Link;
use crate::window::Window;

/// A weight of one, in the units of effective weights.
pub(crate) const WEIGHT_UNIT: u32 = 16;

/// What a pick reads.
#[derive(Debug, Clone)]
pub(crate) struct Hot {
    pub(crate) latency: Estimate,
    /// Cost per call in flight: the inverse of weight and slow-start share, times the reported load's factor.
    pub(crate) multiplier: f64,
    pub(crate) in_flight: u32,
    /// Its place in the roster.
    pub(crate) position: u32,
    /// Excluded from the pick that has this number.
    pub(crate) mark: u32,
    /// Counts the lives of this slot: leases of earlier ones touch nothing.
    pub(crate) generation: u32,
}

impl Hot {
    pub(crate) fn vacant() -> Self {
        Self {
            latency: Estimate::UNMEASURED,
            multiplier: 1.0,
            in_flight: 0,
            position: 0,
            mark: 0,
            generation: 0,
        }
    }
}

/// Where a provider's circuit breaker stands (H2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Circuit {
    /// Closed: used freely.
    Closed,
    /// Open: ejected until then.
    Open,
    /// Half open: waits for a call to carry the probe, since then.
    HalfOpen,
    /// Half open: a probe is out, and given up then.
    Probing,
}

/// What only reports, updates and timers touch.
///
/// All fields lie in one struct, so that a report reads two lines of memory.
#[derive(Debug, Clone)]
pub(crate) struct Cold<K> {
    /// `None` in a vacant slot.
    pub(crate) key: Option<K>,
    pub(crate) identity: u64,
    /// The moment that goes with [`Circuit`].
    pub(crate) until: Nanos,
    /// Held back until then, 0 if it is not. A provider that is down is dialed again then.
    pub(crate) hold: Nanos,
    /// When it joined or was last restored.
    pub(crate) since: Nanos,
    /// When its latency was last observed.
    pub(crate) observed: Nanos,
    /// Counts probes: only the latest may decide.
    pub(crate) epoch: u16,
    /// The weight in sixteenths, reduced by slow start.
    pub(crate) effective: u32,
    /// Failures in a row, as far as they can be counted.
    pub(crate) consecutive: u16,
    /// The second of the last load report.
    pub(crate) load_at: u32,
    pub(crate) weight: u16,
    /// Reported load in percent.
    pub(crate) load: u8,
    pub(crate) ejections: u8,
    /// Samples in a row that were cut short.
    pub(crate) cut_short: u8,
    /// Default holds in a row, without a success between them.
    pub(crate) refusals: u8,
    pub(crate) circuit: Circuit,
    pub(crate) link: Link,
    /// Dials asked for since the last connection.
    pub(crate) dials: u8,
    /// The second of the last of them, in its last sixteen bits.
    pub(crate) dialed_at: u16,
    pub(crate) remote: bool,
    pub(crate) ramping: bool,
    pub(crate) window: Window,
}

impl<K> Cold<K> {
    pub(crate) fn vacant() -> Self {
        Self {
            key: None,
            identity: 0,
            until: 0,
            hold: 0,
            since: 0,
            observed: 0,
            epoch: 0,
            effective: 0,
            consecutive: 0,
            load_at: 0,
            weight: 1,
            load: 0,
            ejections: 0,
            cut_short: 0,
            refusals: 0,
            circuit: Circuit::Closed,
            link: Link::Idle,
            dials: 0,
            dialed_at: 0,
            remote: false,
            ramping: false,
            window: Window::default(),
        }
    }
}
