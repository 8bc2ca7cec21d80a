//! A snapshot of a balancer, for dashboards and tests. Reading it changes nothing.

use std::time::Duration;

use crate::budget::Spending;
use crate::provider::Link;
use crate::window::Counts;

/// A balancer at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Providers in the set.
    pub providers: u32,
    /// Of these, used freely.
    pub ready: u32,
    /// Ejected or on probation.
    pub ejected: u32,
    /// Of those used freely, connected.
    pub open: u32,
    /// Silent.
    pub suspected: u32,
    /// Unreachable.
    pub down: u32,
    /// Going away.
    pub draining: u32,
    /// Leases that were issued.
    pub issued: u64,
    /// Leases that were reported.
    pub reported: u64,
    /// Leases whose deadline passed without a report: dropped, most likely.
    pub lost: u64,
    /// Picks that disregarded health.
    pub panic_picks: u64,
    /// Probes that were sent.
    pub probes: u64,
    /// Ejections.
    pub ejections: u64,
    /// Ejections that the cap forbade.
    pub ejections_capped: u64,
    /// Events that were not read in time.
    pub events_lost: u64,
    /// Calls, retries and hedges of the last ten seconds.
    pub spending: Spending,
    /// The 95th percentile of recent successes, once 20 are known.
    pub p95: Option<Duration>,
}

impl Stats {
    /// Leases that are out.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.issued - self.reported - self.lost
    }
}

/// Where a provider stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProviderState {
    /// Used freely.
    Ready,
    /// Held back by a pushback, or because it is overloaded or draining.
    Held,
    /// Silent: other providers are preferred.
    Suspected,
    /// Unreachable: not picked while another provider is untried.
    Down,
    /// Put aside for failing.
    Ejected,
    /// Waits for a call that finds out whether it works again.
    HalfOpen,
    /// A probe is out.
    Probing,
    /// Going away.
    Draining,
}

impl ProviderState {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Ready,
        Self::Held,
        Self::Suspected,
        Self::Down,
        Self::Ejected,
        Self::HalfOpen,
        Self::Probing,
        Self::Draining,
    ];

    /// Its name for metrics and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Held => "held",
            Self::Suspected => "suspected",
            Self::Down => "down",
            Self::Ejected => "ejected",
            Self::HalfOpen => "half_open",
            Self::Probing => "probing",
            Self::Draining => "draining",
        }
    }
}

/// One provider at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct ProviderStats<'a, K> {
    /// The provider.
    pub provider: &'a K,
    /// Where it stands.
    pub state: ProviderState,
    /// The way to it.
    pub link: Link,
    /// Calls in flight.
    pub in_flight: u32,
    /// The latency estimate; `None` if nothing was measured.
    pub latency: Option<Duration>,
    /// Successes and failures of the last ten seconds.
    pub counts: Counts,
    /// Failures in a row.
    pub consecutive_failures: u32,
    /// Ejections that are not forgiven yet.
    pub ejections: u32,
    /// The weight in force, as a share of the configured one, `(0, 1]`.
    pub ramp: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_in_the_list_at_the_place_of_its_variant() {
        for (at, state) in ProviderState::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, at);
        }
        // The last variant: a new one after it does not compile here until the list has it.
        match ProviderState::Draining {
            ProviderState::Ready
            | ProviderState::Held
            | ProviderState::Suspected
            | ProviderState::Down
            | ProviderState::Ejected
            | ProviderState::HalfOpen
            | ProviderState::Probing
            | ProviderState::Draining => assert_eq!(ProviderState::ALL.len(), 8),
        }
    }
}
