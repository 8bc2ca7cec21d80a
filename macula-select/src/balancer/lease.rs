//! One pick, to be reported once.

use thiserror::Error;

use super::leases::Ticket;
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
/// cannot be copied, so it cannot be reported twice. One that is dropped counts as in flight until the deadline of its
/// pick ([`PickContext::timeout`](crate::PickContext::timeout)), then as lost.
#[derive(Debug, PartialEq, Eq)]
// Only the exhaustive tests copy leases, with the whole world they are part of.
#[cfg_attr(test, derive(Clone))]
#[must_use = "report it, or the provider looks busy until the deadline"]
pub struct Lease {
    /// The balancer that issued it.
    pub(super) issuer: u32,
    pub(super) ticket: Ticket,
    pub(crate) handle: Handle,
    /// Whether the provider was connected at the pick.
    pub(crate) connected: bool,
    /// The probe's epoch, 0 if it is none.
    pub(crate) probe: u16,
    pub(super) started: Nanos,
}

impl Lease {
    /// Whether its fate decides if an ejected provider is restored.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.probe != 0
    }
}

/// A lease that was reported to a balancer that did not issue it. Nothing has changed, and the lease is still good.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("this balancer did not issue the lease; report it to the one that did")]
pub struct ForeignLease(pub Lease);
