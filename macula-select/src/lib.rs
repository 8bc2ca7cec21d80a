#![doc = include_str!("../README.md")]

mod backoff;
mod balancer;
mod budget;
mod call;
mod clock;
mod fate;
mod identity;
mod latency;
mod policy;
mod provider;
mod quantile;
mod rng;
mod strategy;
mod weights;
mod window;

pub mod guide;

pub use backoff::Backoff;
pub use balancer::{
    AffinityConfig, Balancer, BalancerConfig, Changes, DEFAULT_LEASE, DIAL_EVERY, EjectionReason, Event, ForeignLease,
    HealthConfig, Lease, Locality, LocalityConfig, MAX_DIALS_AT_ONCE, MAX_EVENTS, MAX_REDIAL, PickContext, PickError,
    ProbeConsent, ProviderState, ProviderStats, RestoreReason, Stats,
};
pub use budget::{BudgetConfig, Spending};
pub use call::{
    Attempt, AttemptId, Attempts, Call, CallError, CallOptions, FirstAttempt, Hedge, MAX_CALL_TIMEOUT,
    MAX_FREE_ATTEMPTS, Output, StopReason, Success,
};
pub use fate::{Code, Fate, Loss, Pushback, Refusal};
pub use latency::{LatencyConfig, MAX_LATENCY};
pub use policy::RetryPolicy;
pub use provider::{Link, MAX_PROVIDERS, MAX_WEIGHT, Provider, Zone};
pub use strategy::{ParseStrategyError, Strategy};
pub use window::Counts;
