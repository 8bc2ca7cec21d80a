//! The options of calls: those of one call, and the client's.

use std::time::Duration;

use bytes::Bytes;
use macula_select::{Backoff, Hedge, RetryPolicy, Strategy, Zone};
use macula_transport::{Memory, Metadata};
use macula_wire::ServiceName;

use crate::{Provider, ResolveOptions};

/// How long a call may take by default (F7).
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one provider may take before another is tried, by default. A third of [`DEFAULT_TIMEOUT`], so that three attempts fit.
pub const DEFAULT_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

/// The options of a call that does not set its own (S3).
#[derive(Debug, Clone)]
pub(super) struct Defaults {
    pub(super) strategy: Strategy,
    pub(super) timeout: Duration,
    pub(super) attempt_timeout: Duration,
    /// The same for streams, if it was set. The first message of a stream may take long by its nature.
    pub(super) stream_attempt_timeout: Option<Duration>,
    pub(super) zone: Option<Zone>,
    pub(super) budget: macula_select::BudgetConfig,
}

/// The options of one call.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) timeout: Option<Duration>,
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) max_attempts: Option<u32>,
    pub(crate) strategy: Option<Strategy>,
    pub(crate) policy: RetryPolicy,
    pub(crate) idempotent: bool,
    pub(crate) hedge: Option<Hedge>,
    pub(crate) backoff: Option<Backoff>,
    pub(crate) affinity: Option<u64>,
    pub(crate) method: String,
    pub(crate) metadata: Option<Metadata>,
    pub(crate) resolve: ResolveOptions,
    pub(crate) provider: Option<Box<Provider>>,
    /// The service whose providers are called, when the call is a question about it: its health, or its reflection.
    pub(crate) about: Option<Box<ServiceName>>,
    pub(crate) may_run_here: bool,
    pub(crate) may_route: bool,
    /// The leave of the peer whose call is forwarded; `None` for this node's own calls.
    pub(crate) passage: Option<Bytes>,
    /// Where the kept requests of a forwarded call are charged.
    pub(crate) kept_by: Option<Memory>,
}

impl Options {
    /// The options of a call that sets none.
    pub(crate) const USUAL: Self = Self {
        timeout: None,
        attempt_timeout: None,
        max_attempts: None,
        strategy: None,
        policy: RetryPolicy::Transient,
        idempotent: false,
        hedge: None,
        backoff: None,
        affinity: None,
        method: String::new(),
        metadata: None,
        resolve: ResolveOptions {
            force_refresh: false,
            asker: None,
        },
        provider: None,
        about: None,
        may_run_here: true,
        may_route: true,
        passage: None,
        kept_by: None,
    };
}

impl Options {
    /// The service by which the directory lists the providers of a call of `service`.
    pub(super) fn listed_as<'a>(&'a self, service: &'a ServiceName) -> &'a ServiceName {
        self.about.as_deref().unwrap_or(service)
    }

    /// Whether the call is a peer's and is forwarded.
    pub(crate) fn is_for_peer(&self) -> bool {
        self.passage.is_some()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::USUAL
    }
}
