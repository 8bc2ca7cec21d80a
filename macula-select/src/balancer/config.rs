//! The knobs of a balancer, each with its default and the reason for it.

use std::time::Duration;

use crate::budget::BudgetConfig;
use crate::latency::LatencyConfig;
use crate::provider::Zone;
use crate::strategy::Strategy;

/// How a balancer chooses and judges.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BalancerConfig {
    /// The strategy of picks that name none.
    pub strategy: Strategy,
    /// When a provider is put aside, and for how long.
    pub health: HealthConfig,
    /// How latencies are estimated.
    pub latency: LatencyConfig,
    /// How much extra load retries and hedges may make.
    pub budget: BudgetConfig,
    /// Staying in the caller's zone.
    pub locality: LocalityConfig,
    /// Load bounds of [`Strategy::Affinity`].
    pub affinity: AffinityConfig,
}

/// The circuit breaker of each provider (H2, H3).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HealthConfig {
    /// Failures in a row that open it, however fast they come. 5 by default, at most 65 535; 0 never opens it for that.
    pub consecutive_failures: u32,
    /// The success rate below which it opens. 0.5 by default.
    pub min_success_rate: f64,
    /// Attempts in ten seconds below which the success rate says nothing. 20 by default.
    pub min_volume: u32,
    /// The first ejection; each further one doubles it. 5 s by default. Jitter shortens it by up to half, so that
    /// callers do not come back together.
    pub base_ejection: Duration,
    /// The longest ejection. 300 s by default.
    pub max_ejection: Duration,
    /// Each such time without an ejection forgets one. 60 s by default.
    pub forgive_after: Duration,
    /// The share of the reachable providers that may be ejected at once, rounded down. 0.5 by default, so that at least half
    /// serve: beyond that the fault is more likely an overload than the providers. All but one may be out while those
    /// that remain succeed and refuse nothing.
    pub max_ejected: f64,
    /// When a probe that was not reported is given up and another may be sent. 10 s by default.
    pub probe_timeout: Duration,
    /// How long a provider waits for a call that can afford to be its probe (one that may be retried) before any call
    /// will do. 5 s by default.
    pub probe_patience: Duration,
    /// How long a refusal by a draining provider puts it aside. 2 s by default.
    pub draining_hold: Duration,
    /// The longest pushback that is honoured. 30 s by default.
    pub max_hold: Duration,
    /// The time over which a new or restored provider comes to its full share of weighted and p2c picks, from a tenth.
    /// 10 s by default; zero turns it off.
    pub slow_start: Duration,
    /// How long a server's load report counts. 10 s by default.
    pub load_ttl: Duration,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            min_success_rate: 0.5,
            min_volume: 20,
            base_ejection: Duration::from_secs(5),
            max_ejection: Duration::from_secs(300),
            forgive_after: Duration::from_secs(60),
            max_ejected: 0.5,
            probe_timeout: Duration::from_secs(10),
            probe_patience: Duration::from_secs(5),
            draining_hold: Duration::from_secs(2),
            max_hold: Duration::from_secs(30),
            slow_start: Duration::from_secs(10),
            load_ttl: Duration::from_secs(10),
        }
    }
}

/// Zone preference with spill-over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LocalityConfig {
    /// The caller's own zone. `None`, the default: all zones are equal.
    pub zone: Option<Zone>,
    /// How much more than their normal share the local providers are assumed to bear. 1.4 by default: with 72 % of them
    /// healthy everything still stays local, with 36 % half of it leaves. As Envoy's overprovisioning factor.
    pub overprovision: f64,
    /// Calls in flight per healthy local provider, on average, above which further calls leave the zone. 64 by
    /// default.
    pub spill_above: u32,
}

impl Default for LocalityConfig {
    fn default() -> Self {
        Self {
            zone: None,
            overprovision: 1.4,
            spill_above: 64,
        }
    }
}

/// Bounds on how much load one affinity key may pull to one provider.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AffinityConfig {
    /// A provider is passed over while its calls in flight exceed this multiple of the average. 1.25 by default.
    pub max_load: f64,
    /// Calls in flight that every provider may have in any case. 4 by default: a handful says nothing about load, and
    /// moving a key costs the cache that affinity is for.
    pub always: u32,
}

impl Default for AffinityConfig {
    fn default() -> Self {
        Self {
            max_load: 1.25,
            always: 4,
        }
    }
}
