//! The settings of a node.

use std::time::Duration;

use crate::{Diversity, RateLimits, Role, StoreLimits};

/// The shortest time that can be waited for: a timer of zero would be due before it is set.
const SHORTEST: Duration = Duration::from_millis(1);
/// The longest time that can be waited for.
const LONGEST: Duration = Duration::from_secs(86_400);

/// The settings of a [`Dht`](crate::Dht). The defaults are meant for a service mesh on ordinary networks.
///
/// A time below a millisecond or above a day counts as that.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// This node's role in the mesh.
    pub role: Role,
    /// After this long without an answer, one more peer is asked in parallel.
    pub soft_timeout: Duration,
    /// After this long without an answer, a request has failed.
    pub hard_timeout: Duration,
    /// How many contacts of one public subnet the routing table takes.
    pub diversity: Diversity,
    /// How much the store holds.
    pub store: StoreLimits,
    /// How fast peers may ask.
    pub rates: RateLimits,
    /// A bucket that no lookup went through for this long is refreshed.
    pub refresh_interval: Duration,
    /// An entry that was not heard of for this long is pinged before a newcomer may have its place.
    pub stale_after: Duration,
    /// How long to wait before another attempt to join; doubles up to [`Config::max_join_backoff`], with jitter.
    pub join_backoff: Duration,
    /// The longest wait between two attempts to join.
    pub max_join_backoff: Duration,
    /// How long a seed that is known by address only may take to tell its id.
    pub identify_timeout: Duration,
    /// How long changes are gathered before they are committed to the backend.
    pub commit_interval: Duration,
}

impl Config {
    /// The same settings, with every time within bounds.
    pub(crate) fn bounded(mut self) -> Self {
        for time in [
            &mut self.soft_timeout,
            &mut self.hard_timeout,
            &mut self.refresh_interval,
            &mut self.stale_after,
            &mut self.join_backoff,
            &mut self.max_join_backoff,
            &mut self.identify_timeout,
            &mut self.commit_interval,
        ] {
            *time = (*time).clamp(SHORTEST, LONGEST);
        }
        self
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            role: Role::Node,
            soft_timeout: Duration::from_millis(250),
            hard_timeout: Duration::from_secs(2),
            diversity: Diversity::default(),
            store: StoreLimits::default(),
            rates: RateLimits::default(),
            refresh_interval: Duration::from_secs(15 * 60),
            stale_after: Duration::from_secs(60),
            join_backoff: Duration::from_millis(500),
            max_join_backoff: Duration::from_secs(30),
            identify_timeout: Duration::from_secs(5),
            commit_interval: Duration::from_secs(1),
        }
    }
}
