//! Options: for a client, and for one call.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use macula_select::{Backoff, BudgetConfig, Hedge, MAX_CALL_TIMEOUT, RetryPolicy, Strategy, Zone};
use macula_transport::{Endpoint, Metadata, Pool};
use macula_wire::{NameError, ServiceName};

use super::{Answer, Client, DEFAULT_ATTEMPT_TIMEOUT, DEFAULT_TIMEOUT, Defaults, Replies, Routers, Services, Shared};
use crate::{
    CallError, Decode, Encode, Provider, Resolve, ResolveOptions, Server, observe::PoolMeters, streaming::Asking,
    trace::Propagate,
};

/// Builds a [`Client`].
#[must_use = "a builder does nothing until it is built"]
pub struct ClientBuilder {
    pool: Pool,
    resolver: Arc<dyn Resolve>,
    routers: Option<Arc<dyn Routers>>,
    local: Option<Server>,
    defaults: Defaults,
    seed: u64,
    propagate: Option<Arc<dyn Propagate>>,
}

impl ClientBuilder {
    pub(super) fn new(endpoint: &Endpoint, resolver: Arc<dyn Resolve>) -> Self {
        // The endpoint's key is random: its bytes start the sequences of two clients in different places.
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
            resolver,
            routers: None,
            local: None,
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

    /// Sends calls through these routers when the directory gives no answer.
    pub fn routers(mut self, routers: impl Routers) -> Self {
        self.routers = Some(Arc::new(routers));
        self
    }

    /// Sets how providers are chosen; [`Strategy::Random`] without it.
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.defaults.strategy = strategy;
        self
    }

    /// Sets how long a call may take; [`DEFAULT_TIMEOUT`] without it. Streams and stubs' calls may last, and are given a timeout one by
    /// one.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.defaults.timeout = timeout.min(MAX_CALL_TIMEOUT);
        self
    }

    /// Sets how long one provider is waited for; [`DEFAULT_ATTEMPT_TIMEOUT`] without it. For the first message of a stream's reply,
    /// and of a stub's, one provider is waited for as long as the call may take without it.
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

    /// Sets how many retries calls may make beyond their first attempts; 20 % of the calls and ten a second without it (F9).
    ///
    /// The default bounds what an outage adds to the load. It also means that when a provider dies with very many calls in
    /// flight, more than a fifth of those of the last ten seconds and ten besides, the rest fail and are not tried elsewhere.
    /// A client whose providers can take such a burst raises [`BudgetConfig::per_second`].
    pub fn retry_budget(mut self, budget: BudgetConfig) -> Self {
        self.defaults.budget = budget;
        self
    }

    /// Sets the seed of every choice at random, for choices that can be replayed.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sends with every call the trace it belongs to, as `traceparent`, unless the call's own metadata has one; without it no
    /// trace is sent. [`W3c`](crate::W3c) does where no exporter has ids of its own.
    pub fn propagate(mut self, propagate: impl Propagate) -> Self {
        self.propagate = Some(Arc::new(propagate));
        self
    }

    /// The client.
    #[must_use]
    pub fn build(self) -> Client {
        Client {
            shared: Arc::new(Shared {
                services: Services::new(self.seed, self.defaults.clone()),
                kept_for_peers: Arc::default(),
                pool: self.pool,
                resolver: self.resolver,
                routers: self.routers,
                local: self.local,
                defaults: self.defaults,
                propagate: self.propagate,
                pool_meters: PoolMeters::new(),
            }),
        }
    }
}

/// What one call says of itself.
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
    pub(super) resolve: ResolveOptions,
    pub(crate) provider: Option<Box<Provider>>,
    pub(super) may_run_here: bool,
    pub(super) may_route: bool,
    /// Whether it is a peer's call that is passed on.
    pub(super) for_peer: bool,
}

impl Options {
    /// What a call asks for that says nothing else.
    pub(super) const USUAL: Self = Self {
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
        resolve: ResolveOptions { force_refresh: false },
        provider: None,
        may_run_here: true,
        may_route: true,
        for_peer: false,
    };
}

impl Default for Options {
    fn default() -> Self {
        Self::USUAL
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

    /// The call is made now: what is left until its deadline is its timeout.
    fn start(&mut self) {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(super::engine::now());
            let timeout = self.options.timeout.unwrap_or(MAX_CALL_TIMEOUT);
            self.options.timeout = Some(timeout.min(left));
        }
    }

    /// Sets how long the whole call may take from its start, lookup and failover included; a day at most.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = Some(timeout.min(MAX_CALL_TIMEOUT));
        self
    }

    /// Sets when the whole call is over, whenever it starts; the earlier one holds if there is a [`CallBuilder::timeout`] too. A
    /// call whose deadline has passed is not made.
    ///
    /// A handler's own calls end with the call it answers:
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

    /// Sets how long one provider is waited for before another is tried.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.options.attempt_timeout = Some(timeout.min(MAX_CALL_TIMEOUT));
        self
    }

    /// Sets how many providers are tried at most; without it 3, or all if there are fewer (F3).
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

    /// Sends a second attempt beside a slow first one (F10); heeded only for calls that are declared
    /// [`CallBuilder::idempotent`], and not for streams of requests, of which there is one.
    pub fn hedge(mut self, hedge: Hedge) -> Self {
        self.options.hedge = Some(hedge);
        self
    }

    /// Waits between attempts; without it the next one starts at once (F9).
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

    /// Sets what travels beside the payload.
    pub fn metadata(mut self, metadata: Metadata) -> Self {
        self.options.metadata = Some(metadata);
        self
    }

    /// Asks the directory itself, not its cache (D7).
    pub fn force_refresh(mut self) -> Self {
        self.options.resolve = self.options.resolve.with_force_refresh(true);
        self
    }

    /// Passes over a handler of this process: the call goes to a provider that the directory gives.
    pub fn remote_only(mut self) -> Self {
        self.options.may_run_here = false;
        self
    }

    /// Calls this provider and nobody else, whatever the directory says: for what concerns one node, such as its health.
    pub fn provider(mut self, provider: Provider) -> Self {
        self.options.provider = Some(Box::new(provider));
        self
    }

    /// Makes the call. Dropping the future cancels it, on the wire too (F8).
    ///
    /// # Errors
    /// What became of the call, with everything that was tried: see [`CallError`].
    pub async fn send(mut self, payload: impl Into<Bytes>) -> Result<Answer, CallError> {
        let payload = payload.into();
        self.start();
        self.client.run(&self.service?, &self.options, &payload).await
    }

    /// Makes a streaming call: sends the messages of `requests` as they come and as the provider has room, and gives the replies
    /// once the first one is there. Without a timeout it may last a day.
    ///
    /// Another provider is tried until the first message of the reply, as long as what was sent is at most
    /// [`MAX_REPLAY_BYTES`](crate::MAX_REPLAY_BYTES).
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
    /// What became of the call, with everything that was tried: see [`CallError`].
    pub async fn stream(mut self, requests: impl Stream<Item = Bytes> + Send + 'static) -> Result<Replies, CallError> {
        self.start();
        let Self {
            client,
            service,
            mut options,
            ..
        } = self;
        let requests = Asking::Stream(Box::pin(requests.map(Ok).fuse()));
        client.open(&service?, &mut options, requests).await
    }

    /// Makes the call with a message, and reads the answer as another: `send_typed::<Req, Res>`.
    ///
    /// # Errors
    /// As [`CallBuilder::send`]; and [`CallError::Unencodable`] or [`CallError::Undecodable`] when a message cannot be written
    /// or read.
    pub async fn send_typed<Req: Encode, Res: Decode>(mut self, request: Req) -> Result<Answer<Res>, CallError> {
        self.start();
        let service = self.service?;
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
