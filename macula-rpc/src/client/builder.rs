//! The builders of a client and of a call.

use std::{
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use macula_select::{Backoff, BudgetConfig, Hedge, MAX_CALL_TIMEOUT, RetryPolicy, Strategy, Zone};
use macula_transport::{Access, Endpoint, Metadata, Pool};
use macula_wire::{NameError, ServiceName};

use super::{
    answer::Answer,
    duplex::Replies,
    options::{DEFAULT_ATTEMPT_TIMEOUT, DEFAULT_TIMEOUT, Defaults, Options},
    services::Services,
    shared::{Client, Routers, Shared, now},
};
use crate::{CallError, Decode, Encode, Provider, Resolve, Server, streaming::Asking, trace::Propagate};

/// Builds a [`Client`].
#[must_use = "a builder does nothing until it is built"]
pub struct ClientBuilder {
    pool: Pool,
    access: Access,
    resolver: Arc<dyn Resolve>,
    routers: Option<Arc<dyn Routers>>,
    local: Option<Server>,
    inspection: Option<Server>,
    defaults: Defaults,
    seed: u64,
    propagate: Option<Arc<dyn Propagate>>,
}

impl ClientBuilder {
    pub(super) fn new(endpoint: &Endpoint, resolver: Arc<dyn Resolve>) -> Self {
        // The endpoint's key is random, so two clients start their random sequences in different places.
        let seed = endpoint
            .node_id()
            .as_bytes()
            .chunks_exact(8)
            .fold(0, |seed: u64, chunk| {
                let mut word = [0; 8];
                word.copy_from_slice(chunk);
                seed.rotate_left(17) ^ u64::from_le_bytes(word)
            });
        let defaults = Defaults {
            strategy: Strategy::default(),
            timeout: DEFAULT_TIMEOUT,
            attempt_timeout: DEFAULT_ATTEMPT_TIMEOUT,
            stream_attempt_timeout: None,
            zone: None,
            budget: BudgetConfig::default(),
        };
        Self {
            pool: endpoint.pool(),
            access: endpoint.access().clone(),
            resolver,
            routers: None,
            local: None,
            inspection: None,
            defaults,
            seed,
            propagate: None,
        }
    }

    /// Runs calls of services that `server` serves in this process, without the network.
    pub fn local_first(mut self, server: Server) -> Self {
        self.local = Some(server);
        self
    }

    /// Answers questions about the services of [`ClientBuilder::local_first`], their health and their schemas, with the services of
    /// `server`, unless the application serves them itself.
    pub fn inspected_by(mut self, server: Server) -> Self {
        self.inspection = Some(server);
        self
    }

    /// Sends calls through these routers when the directory gives no answer.
    pub fn routers(mut self, routers: impl Routers) -> Self {
        self.routers = Some(Arc::new(routers));
        self
    }

    /// Sets how providers are chosen. The default is [`Strategy::Random`].
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.defaults.strategy = strategy;
        self
    }

    /// Sets how long a call may take. The default is [`DEFAULT_TIMEOUT`]. Streams and stubs' calls have no timeout unless each sets one.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.defaults.timeout = timeout.min(MAX_CALL_TIMEOUT);
        self
    }

    /// Sets how long one provider may take. The default is [`DEFAULT_ATTEMPT_TIMEOUT`]; for the first message of the reply to a
    /// stream or to a stub's call it is the time of the call.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.defaults.attempt_timeout = timeout.min(MAX_CALL_TIMEOUT);
        self.defaults.stream_attempt_timeout = Some(self.defaults.attempt_timeout);
        self
    }

    /// Sets where this client runs: providers of the same zone are preferred.
    pub fn zone(mut self, zone: &str) -> Self {
        self.defaults.zone = Some(Zone::named(zone));
        self
    }

    /// Sets how many retries calls may make beyond their first attempts. The default is 20 % of the calls and ten a second (F9).
    ///
    /// The budget bounds the load that an outage adds. When a provider dies with more calls in flight than the budget allows, the
    /// rest fail as `not_retried`. A client whose providers can take such a burst raises [`BudgetConfig::per_second`].
    pub fn retry_budget(mut self, budget: BudgetConfig) -> Self {
        self.defaults.budget = budget;
        self
    }

    /// Sets the seed of all random choices, so that a run can be repeated.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sends the trace of every call as `traceparent`, unless the call's own metadata has one. [`W3c`](crate::W3c) makes the ids
    /// where no exporter does.
    pub fn propagate(mut self, propagate: impl Propagate) -> Self {
        self.propagate = Some(Arc::new(propagate));
        self
    }

    /// The client.
    #[must_use]
    pub fn build(self) -> Client {
        let events = self.pool.events();
        Client {
            shared: Arc::new(Shared {
                services: Services::new(self.seed, self.defaults.clone(), self.pool.clone()),
                pool: self.pool,
                access: self.access,
                resolver: self.resolver,
                routers: self.routers,
                local: self.local,
                inspection: self.inspection,
                defaults: self.defaults,
                propagate: self.propagate,
                follows_links: AtomicBool::new(false),
                pool_events: Mutex::new(Some(events)),
            }),
        }
    }
}

/// One call, before it is made.
#[must_use = "a call is made by `send`"]
pub struct CallBuilder {
    client: Client,
    service: Result<ServiceName, NameError>,
    pub(super) options: Options,
    deadline: Option<Instant>,
}

impl CallBuilder {
    pub(super) fn new(client: Client, service: Result<ServiceName, NameError>) -> Self {
        Self {
            client,
            service,
            options: Options::default(),
            deadline: None,
        }
    }

    /// Checks the options, and makes the time left until the deadline the timeout.
    fn start(&mut self) -> Result<ServiceName, CallError> {
        let service = self.service.clone()?;
        let options = &mut self.options;
        let may_run_twice = options.idempotent && !matches!(options.policy, RetryPolicy::NeverProcessed);
        if options.hedge.is_some() && !may_run_twice {
            return Err(CallError::NotHedged { service });
        }
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(now());
            options.timeout = Some(options.timeout.unwrap_or(MAX_CALL_TIMEOUT).min(left));
        }
        Ok(service)
    }

    /// Sets how long the whole call may take from its start, lookup and failover included; a day at most.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = Some(timeout.min(MAX_CALL_TIMEOUT));
        self
    }

    /// Sets the time at which the whole call is over. With a [`CallBuilder::timeout`] too, the earlier of the two holds. A call whose
    /// deadline has passed is not made.
    ///
    /// A handler passes its caller's deadline on to its own calls:
    ///
    /// ```
    /// use macula_rpc::{CallError, Client, Request, Response};
    ///
    /// async fn onward(client: &Client, request: Request) -> Result<Response, CallError> {
    ///     let call = client.request("shop.price").deadline(request.deadline());
    ///     Ok(call.send(request.into_payload()).await?.into_response())
    /// }
    /// ```
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets how long one provider may take before another is tried.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.options.attempt_timeout = Some(timeout.min(MAX_CALL_TIMEOUT));
        self
    }

    /// Sets how many providers are tried at most. The default is 3, or all if there are fewer (F3).
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.options.max_attempts = Some(attempts);
        self
    }

    /// Sets how the provider is chosen.
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.options.strategy = Some(strategy);
        self
    }

    /// Sets which failures are tried elsewhere (F6).
    pub fn retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.options.policy = policy;
        self
    }

    /// Declares that the call may run twice at once without harm.
    pub fn idempotent(mut self) -> Self {
        self.options.idempotent = true;
        self
    }

    /// Sends a second attempt beside a slow first one (F10). The call must be declared [`CallBuilder::idempotent`] and its retry
    /// policy must allow a second run; otherwise it fails with [`CallError::NotHedged`]. A call with a stream of requests is not
    /// hedged, because there is only one such stream.
    pub fn hedge(mut self, hedge: Hedge) -> Self {
        self.options.hedge = Some(hedge);
        self
    }

    /// Waits between attempts. By default the next one starts at once (F9).
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.options.backoff = Some(backoff);
        self
    }

    /// Sends calls with the same key to the same provider, with [`Strategy::Affinity`].
    pub fn affinity(mut self, key: u64) -> Self {
        self.options.affinity = Some(key);
        self
    }

    /// Sets the method within the service.
    pub fn method(mut self, method: impl Into<String>) -> Self {
        self.options.method = method.into();
        self
    }

    /// Sets the metadata, which travels beside the payload.
    pub fn metadata(mut self, metadata: Metadata) -> Self {
        self.options.metadata = Some(metadata);
        self
    }

    /// Asks the directory itself and not its cache (D7).
    pub fn force_refresh(mut self) -> Self {
        self.options.resolve = self.options.resolve.with_force_refresh(true);
        self
    }

    /// Skips a handler of this process: the call goes to a provider that the directory gives.
    pub fn remote_only(mut self) -> Self {
        self.options.may_run_here = false;
        self
    }

    /// Calls this provider and no other, without the directory: for questions about one node, such as its health.
    pub fn provider(mut self, provider: Provider) -> Self {
        self.options.provider = Some(Box::new(provider));
        self
    }

    /// Makes the call. Dropping the future cancels it, on the wire too (F8).
    ///
    /// # Errors
    /// [`CallError`] says how the call failed, and lists every attempt.
    pub async fn send(mut self, payload: impl Into<Bytes>) -> Result<Answer, CallError> {
        let payload = payload.into();
        let service = self.start()?;
        self.client.run(&service, &self.options, &payload).await
    }

    /// Makes a streaming call: sends the messages of `requests` as they come and as the provider has room, and returns the replies
    /// once the first one has arrived. Without a timeout the call may last a day.
    ///
    /// Another provider is tried until the first message of the reply, as long as at most
    /// [`MAX_REPLAY_BYTES`](crate::MAX_REPLAY_BYTES) were sent.
    ///
    /// ```no_run
    /// # async fn example(client: macula_rpc::Client) -> Result<(), macula_rpc::CallError> {
    /// use futures::stream;
    ///
    /// let call = client.request("text.count");
    /// let mut replies = call.stream(stream::iter(["some".into(), "words".into()])).await?;
    /// while let Some(reply) = replies.next().await? {
    ///     assert_eq!(reply, "9");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`CallError`] says how the call failed, and lists every attempt.
    pub async fn stream(mut self, requests: impl Stream<Item = Bytes> + Send + 'static) -> Result<Replies, CallError> {
        let service = self.start()?;
        let requests = Asking::Stream(Box::pin(requests.map(Ok).fuse()));
        self.client.open(&service, &mut self.options, requests).await
    }

    /// Makes the call with a message, and reads the answer as a message: `send_typed::<Req, Res>`.
    ///
    /// # Errors
    /// As [`CallBuilder::send`]; and [`CallError::Unencodable`] or [`CallError::Undecodable`] when a message cannot be written
    /// or read.
    pub async fn send_typed<Req: Encode, Res: Decode>(mut self, request: Req) -> Result<Answer<Res>, CallError> {
        let service = self.start()?;
        let payload = match request.encode() {
            Ok(payload) => payload,
            Err(source) => return Err(CallError::Unencodable { service, source }),
        };
        let answer = self.client.run(&service, &self.options, &payload).await?;
        answer.decode(service)
    }
}

impl std::fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("defaults", &self.defaults)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for CallBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallBuilder")
            .field("service", &self.service)
            .field("options", &self.options)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
