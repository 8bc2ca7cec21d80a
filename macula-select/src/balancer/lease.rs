//! One pick, to be reported once.

use crate::clock::Nanos;

/// A provider's slot in one of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handle {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// The right to use one provider once.
///
/// It counts as a call in flight from the pick until [`Balancer::report`](crate::Balancer::report) consumes it. It
/// cannot be copied, so it cannot be reported twice; one that is dropped counts as in flight for ever.
#[derive(Debug, PartialEq, Eq)]
// Only the exhaustive tests copy leases, with the whole world they are part of.
#[cfg_attr(test, derive(Clone))]
#[must_use = "report it, or the provider looks busy for ever"]
pub struct Lease {
    pub(crate) handle: Handle,
    /// The probe's epoch, 0 if it is none.
    pub(crate) probe: u32,
    pub(crate) started: Nanos,
}

impl Lease {
    /// Whether its fate decides if an ejected provider is restored.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.probe != 0
    }
}
