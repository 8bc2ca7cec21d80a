//! The services that a client calls, at one moment: for people and dashboards. A look at them counts as no call.

use std::{sync::Arc, time::Duration};

use macula_select::{Counts, Link, ProviderState, Stats};
use macula_wire::ServiceName;

use crate::{Provider, observe::CallStats};

/// A service that a client has called.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CalledService {
    /// Its name.
    pub service: ServiceName,
    /// The calls so far, those that this process answered itself among them.
    pub calls: CallStats,
    /// The balancer, with the retries of the last ten seconds.
    pub balancer: Stats,
    /// The providers in the directory's order.
    pub providers: Vec<CalledProvider>,
}

/// A provider as one service's calls know it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CalledProvider {
    /// The provider.
    pub provider: Arc<Provider>,
    /// Where it stands.
    pub state: ProviderState,
    /// The way to it.
    pub link: Link,
    /// Calls in flight.
    pub in_flight: u32,
    /// The latency that it is expected to have; `None` when nothing was measured.
    pub latency: Option<Duration>,
    /// Successes and failures of the last ten seconds.
    pub recent: Counts,
    /// Failures in a row.
    pub consecutive_failures: u32,
    /// Ejections that are not forgiven yet.
    pub ejections: u32,
}
