//! What one call asks for.

use std::time::Duration;

use crate::backoff::Backoff;
use crate::balancer::Locality;
use crate::policy::RetryPolicy;
use crate::strategy::Strategy;

/// The longest timeout of a call; longer ones are clamped to it.
pub const MAX_CALL_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Attempts of a call by default, if there are as many providers (F3).
pub(crate) const DEFAULT_MAX_ATTEMPTS: u32 = 3;

/// How a call is to be made.
///
/// ```
/// use macula_select::{CallOptions, RetryPolicy};
/// use std::time::Duration;
///
/// let payment = CallOptions { policy: RetryPolicy::NeverProcessed, ..CallOptions::default() };
/// let lookup = CallOptions { idempotent: true, timeout: Duration::from_millis(500), ..CallOptions::default() };
/// ```
#[derive(Debug, Clone)]
pub struct CallOptions {
    /// The strategy of this call; `None` is as the balancer is configured.
    pub strategy: Option<Strategy>,
    /// Attempts that may be sent, hedges included. `None`, the default, is `min(3, providers)`. An attempt that was *not
    /// sent* does not count, nor, while a living provider is untried, one at a provider that is suspected or down (F5).
    /// 0 sends nothing at all.
    pub max_attempts: Option<u32>,
    /// From the call's beginning to its deadline. 10 s by default, at most [`MAX_CALL_TIMEOUT`].
    pub timeout: Duration,
    /// The time one attempt may take, cut short by the deadline. 3 s by default, so that three providers that hang
    /// fit into the default timeout.
    pub attempt_timeout: Duration,
    /// Which fates are worth another provider.
    pub policy: RetryPolicy,
    /// Declares that the call may run twice at once without harm. `false` by default. Only such calls are hedged.
    pub idempotent: bool,
    /// When to send a second attempt beside a slow first one. `None`, the default, is never.
    pub hedge: Option<Hedge>,
    /// Waiting between attempts. `None`, the default, is not to wait.
    pub backoff: Option<Backoff>,
    /// The key of [`Strategy::Affinity`]: calls with the same key go to the same provider.
    pub affinity: Option<u64>,
    /// Whether to stay in the caller's zone.
    pub locality: Locality,
}

impl Default for CallOptions {
    fn default() -> Self {
        Self {
            strategy: None,
            max_attempts: None,
            timeout: Duration::from_secs(10),
            attempt_timeout: Duration::from_secs(3),
            policy: RetryPolicy::default(),
            idempotent: false,
            hedge: None,
            backoff: None,
            affinity: None,
            locality: Locality::default(),
        }
    }
}

/// When a second attempt is sent beside the first (F10). At most once in a call, and within the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hedge {
    /// After the 95th percentile of the service's recent latencies, once 20 of them are known.
    AtP95,
    /// After this long.
    After(Duration),
}
