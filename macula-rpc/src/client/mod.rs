//! The caller's side: one line, one result.
//!
//! A call goes in this order: a handler of this process; the providers that the directory's cache or the directory itself
//! gives; and when the directory gives no answer, a router that this node is connected to.

mod builder;
mod duplex;
mod engine;
mod first;
mod flights;
mod forward;
mod here;
mod lent;
mod services;
mod source;
mod verdict;

use std::{
    future::poll_fn,
    sync::{Arc, Weak},
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::FutureExt as _;
use macula_select::{Strategy, Zone};
use macula_transport::{Endpoint, Pool};
use macula_wire::{NameError, ServiceName};
use tracing::Instrument as _;

use crate::{
    CallError, Decode, Encode, Propagate, Provider, Resolve, ResolveError, ResolveOptions, Response, Server, Source,
    error::Attempt,
    observe::{self, PoolMeters},
    request::Request,
};
pub(crate) use builder::Options;
pub use builder::{CallBuilder, ClientBuilder};
pub use duplex::{MAX_REPLAY_BYTES, MAX_WHOLE_BYTES, Replies};
#[cfg(feature = "tonic")]
pub(crate) use here::{Here, Stopped};
pub use services::MAX_SERVICES;
use services::Services;

/// How long a call may take, unless told otherwise (F7).
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one provider is waited for before another is tried, unless told otherwise. A third of [`DEFAULT_TIMEOUT`], so that
/// three attempts fit.
pub const DEFAULT_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

static USUAL: Options = Options::USUAL;

/// Calls services by name. Cheap to clone; clones share connections, provider health and rotation.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    pool: Pool,
    resolver: Arc<dyn Resolve>,
    routers: Option<Arc<dyn Routers>>,
    local: Option<Server>,
    services: Services,
    kept_for_peers: Arc<source::KeptForPeers>,
    defaults: Defaults,
    propagate: Option<Arc<dyn Propagate>>,
    pool_meters: PoolMeters,
}

/// What holds for every call that does not say otherwise (S3).
#[derive(Debug, Clone)]
struct Defaults {
    strategy: Strategy,
    timeout: Duration,
    attempt_timeout: Duration,
    /// The same for streams, whose first message may take long by its nature: only when it was given.
    stream_attempt_timeout: Option<Duration>,
    zone: Option<Zone>,
    budget: macula_select::BudgetConfig,
}

/// The nodes that pass a call on when the directory gives no answer: the bootstrap nodes this node is connected to.
pub trait Routers: Send + Sync + 'static {
    /// The routers to ask, the best first; none when there is none.
    fn routers(&self) -> Vec<Provider>;
}

/// What a successful call brought, its payload as bytes or as a message.
#[derive(Debug, Clone)]
pub struct Answer<T = Bytes> {
    response: Response<T>,
    provider: Option<Arc<Provider>>,
    source: AnswerSource,
    failed_attempts: Vec<Attempt>,
}

/// Which step of a call found who answered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AnswerSource {
    /// A handler of this process: no network.
    Local,
    /// A provider that a directory knew.
    Directory(Source),
    /// A router, which served the call itself or passed it on.
    Router,
}

impl AnswerSource {
    /// The step's name in spans and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Directory(source) => source.name(),
            Self::Router => "router",
        }
    }
}

impl<T> Answer<T> {
    /// The answer's payload.
    #[must_use]
    pub fn payload(&self) -> &T {
        self.response.payload()
    }

    /// The answer with its metadata, taken.
    #[must_use]
    pub fn into_response(self) -> Response<T> {
        self.response
    }

    /// Who answered; `None` for a handler of this process.
    #[must_use]
    pub fn provider(&self) -> Option<&Provider> {
        self.provider.as_deref()
    }

    /// Which step found who answered.
    #[must_use]
    pub fn source(&self) -> AnswerSource {
        self.source
    }

    /// The attempts that failed before the one that answered, in the order of their starts.
    #[must_use]
    pub fn failed_attempts(&self) -> &[Attempt] {
        &self.failed_attempts
    }
}

impl Answer {
    /// The same answer with its payload read as a message. Nothing else is tried when it cannot be: the call has run.
    fn decode<T: Decode>(self, service: ServiceName) -> Result<Answer<T>, CallError> {
        let node_id = self.provider.as_ref().map(|provider| provider.node_id);
        match self.response.decode() {
            Ok(response) => Ok(Answer {
                response,
                provider: self.provider,
                source: self.source,
                failed_attempts: self.failed_attempts,
            }),
            Err(source) => Err(CallError::Undecodable {
                service,
                node_id,
                source,
            }),
        }
    }
}

/// A client that does not keep the client alive.
pub(crate) struct WeakClient(Weak<Shared>);

impl WeakClient {
    pub(crate) fn upgrade(&self) -> Option<Client> {
        self.0.upgrade().map(|shared| Client { shared })
    }
}

impl Client {
    /// Starts a client that finds providers with `resolver` and connects to them from `endpoint`.
    pub fn builder(endpoint: &Endpoint, resolver: impl Resolve) -> ClientBuilder {
        ClientBuilder::new(endpoint, Arc::new(resolver))
    }

    /// Calls `service` with `payload` and answers with the response's payload.
    ///
    /// # Errors
    /// What became of the call, with everything that was tried: see [`CallError`].
    pub async fn call<S>(&self, service: S, payload: impl Into<Bytes>) -> Result<Bytes, CallError>
    where
        S: TryInto<ServiceName>,
        NameError: From<S::Error>,
    {
        let service = service.try_into().map_err(NameError::from)?;
        let payload = payload.into();
        let answer = self.run(&service, &USUAL, &payload).await?;
        Ok(answer.into_response().into_parts().0)
    }

    /// Calls `service` with a message and reads the answer as another.
    ///
    /// ```no_run
    /// # #[cfg(feature = "json")]
    /// # async fn example(client: macula_rpc::Client) -> Result<(), macula_rpc::CallError> {
    /// use macula_rpc::Json;
    ///
    /// let Json(sum): Json<i64> = client.call_typed("math.sum", Json([6, 36])).await?;
    /// assert_eq!(sum, 42);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Client::call`], and when a message cannot be written or read.
    pub async fn call_typed<Req, Res>(
        &self,
        service: impl TryInto<ServiceName, Error: Into<NameError>>,
        request: Req,
    ) -> Result<Res, CallError>
    where
        Req: Encode,
        Res: Decode,
    {
        let service = service.try_into().map_err(Into::into);
        let answer = CallBuilder::new(self.clone(), service).send_typed(request).await?;
        Ok(answer.into_response().into_parts().0)
    }

    /// A call of `service` whose options are set one by one; [`CallBuilder::send`] makes it.
    pub fn request<S>(&self, service: S) -> CallBuilder
    where
        S: TryInto<ServiceName>,
        NameError: From<S::Error>,
    {
        CallBuilder::new(self.clone(), service.try_into().map_err(NameError::from))
    }

    /// The providers of `service`, in the directory's order; none when nobody provides it.
    ///
    /// # Errors
    /// When the directory gives no answer.
    pub async fn providers(
        &self,
        service: &ServiceName,
        options: ResolveOptions,
    ) -> Result<Arc<[Provider]>, ResolveError> {
        let resolver = &self.shared.resolver;
        Ok(match resolver.at_hand(service, options) {
            Some(known) => known.providers,
            None => resolver.resolve(service, options).await?.providers,
        })
    }

    /// The services of this process, when calls of them need no network.
    #[cfg(feature = "tonic")]
    pub(crate) fn local(&self) -> Option<&Server> {
        self.shared.local.as_ref()
    }

    pub(crate) fn downgrade(&self) -> WeakClient {
        WeakClient(Arc::downgrade(&self.shared))
    }

    /// Makes the call that `call` describes.
    async fn run(&self, service: &ServiceName, call: &Options, payload: &Bytes) -> Result<Answer, CallError> {
        let watched = Watched::start(self, service, call);
        // Made where it is awaited: a future that has a name before is moved.
        let result = if watched.span.is_disabled() {
            self.make(&watched, service, call, payload).await
        } else {
            let work = self.make(&watched, service, call, payload);
            work.instrument(watched.span.clone()).boxed().await
        };
        let (attempts, error) = match &result {
            Ok(answer) => {
                let remote = usize::from(answer.provider.is_some());
                (answer.failed_attempts.len() + remote, None)
            }
            Err(error) => (error.attempts().len(), Some(error.name())),
        };
        watched.end(self, attempts, error);
        result
    }

    /// In this process, or else at one of the providers.
    async fn make(
        &self,
        watched: &Watched,
        service: &ServiceName,
        call: &Options,
        payload: &Bytes,
    ) -> Result<Answer, CallError> {
        let mut now = watched.start;
        let local = self.shared.local.as_ref();
        if call.may_run_here && local.is_some_and(|server| server.serves(service)) {
            // Boxed, so that calls of others are not as large.
            if let Some(outcome) = self.run_local(watched, service, call, payload).boxed().await {
                return outcome;
            }
            // A handler may take its time to refuse.
            now = engine::now();
        }
        let (done, source) = self
            .exchange(watched, now, service, call, payload, &engine::Unary)
            .await?;
        Ok(Answer {
            response: Response::new(done.answer.body).with_metadata(done.answer.metadata),
            provider: done.provider,
            source,
            failed_attempts: done.failed_attempts,
        })
    }

    /// Finds the providers and makes the call at one of them.
    async fn exchange<X: engine::Exchange>(
        &self,
        watched: &Watched,
        now: Instant,
        service: &ServiceName,
        call: &Options,
        payload: &Bytes,
        exchange: &X,
    ) -> Result<(engine::Done<X::Answer>, AnswerSource), CallError> {
        let at_hand = match call.provider {
            None => self.shared.resolver.at_hand(service, call.resolve),
            Some(_) => None,
        };
        let found = match at_hand {
            Some(resolved) => Found {
                providers: resolved.providers,
                source: AnswerSource::Directory(resolved.source),
                at: now,
            },
            // Boxed, so that a call that need not look is not as large as one that looks.
            None => self.find(watched, now, service, call).boxed().await?,
        };
        let source = found.source;
        observe::record_step(&watched.span, source.name());
        watched.known.meters.lookup(source.name());
        let job = engine::Job {
            client: self,
            service,
            known: &watched.known,
            options: call,
            payload,
            start: watched.start,
            found: found.at,
            source,
            exchange,
        };
        let alone;
        let balanced = match source {
            // What becomes of a call of one provider says nothing of the others, and nothing is chosen.
            _ if call.provider.is_some() => {
                // Boxed: few calls have one, and every call's future would be as large.
                alone = Box::new(self.shared.services.alone());
                &*alone
            }
            AnswerSource::Router => self.shared.services.routers(),
            AnswerSource::Local | AnswerSource::Directory(_) => &watched.known.balanced,
        };
        Ok((first::run(&job, balanced, &found.providers).await?, source))
    }

    /// Who may be called: those the directory gives, or the routers when it gives no answer.
    async fn find(
        &self,
        watched: &Watched,
        now: Instant,
        service: &ServiceName,
        call: &Options,
    ) -> Result<Found, CallError> {
        if let Some(provider) = &call.provider {
            return Ok(Found {
                providers: [Provider::clone(provider)].into(),
                source: AnswerSource::Directory(Source::Static),
                at: now,
            });
        }
        let mut lookup = self.shared.resolver.resolve(service, call.resolve);
        // An answer that comes without waiting needs no timer, and no time has passed.
        let (resolved, at) = match poll_fn(|cx| Poll::Ready(lookup.poll_unpin(cx))).await {
            Poll::Ready(resolved) => (resolved, now),
            Poll::Pending => {
                let allowed = call.timeout.unwrap_or(self.shared.defaults.timeout);
                // The directory's time is the call's time.
                let lookup = tokio::time::timeout_at((watched.start + allowed).into(), lookup);
                let resolved = lookup.await.map_err(|_| late(service, allowed))?;
                (resolved, engine::now())
            }
        };
        let reason = match resolved {
            Ok(resolved) => {
                return Ok(Found {
                    providers: resolved.providers,
                    source: AnswerSource::Directory(resolved.source),
                    at,
                });
            }
            Err(reason) => reason,
        };
        let routers = self.shared.routers.as_ref().filter(|_| call.may_route);
        match routers.map(|routers| routers.routers()) {
            Some(routers) if !routers.is_empty() => {
                tracing::debug!(%service, %reason, "the directory gives no answer; a router is asked");
                Ok(Found {
                    providers: routers.into(),
                    source: AnswerSource::Router,
                    at,
                })
            }
            _ => {
                watched.known.meters.lookup("none");
                Err(CallError::Unresolved {
                    service: service.clone(),
                    source: reason,
                })
            }
        }
    }

    /// Runs the call in this process; `None` when nobody serves it here, or whoever does refuses it.
    async fn run_local(
        &self,
        watched: &Watched,
        service: &ServiceName,
        call: &Options,
        payload: &Bytes,
    ) -> Option<Result<Answer, CallError>> {
        let server = self
            .shared
            .local
            .as_ref()
            .filter(|_| call.may_run_here && call.provider.is_none())?;
        let allowed = call.timeout.unwrap_or(self.shared.defaults.timeout);
        if allowed.is_zero() && server.serves(service) {
            watched.found_here();
            return Some(Err(late(service, allowed)));
        }
        let deadline = watched.start + allowed;
        let work = server.call_local(service, || {
            let metadata = call.metadata.clone().unwrap_or_default();
            Request::local(
                service.clone(),
                call.method.clone(),
                metadata,
                payload.clone(),
                deadline,
            )
        })?;
        let outcome = match tokio::time::timeout_at(deadline.into(), work).await {
            Ok(Ok(response)) => Ok(Answer {
                response,
                provider: None,
                source: AnswerSource::Local,
                failed_attempts: Vec::new(),
            }),
            Ok(Err(status)) if status.is_refused() => return None,
            Ok(Err(status)) => Err(CallError::Answered {
                service: service.clone(),
                status,
                attempts: Vec::new(),
            }),
            Err(_) => Err(late(service, allowed)),
        };
        watched.found_here();
        Some(outcome)
    }
}

/// Who may be called, and when that was known.
struct Found {
    providers: Arc<[Provider]>,
    source: AnswerSource,
    at: Instant,
}

fn late(service: &ServiceName, allowed: Duration) -> CallError {
    CallError::DeadlineExceeded {
        service: service.clone(),
        allowed,
        attempts: Vec::new(),
    }
}

/// A call as it is seen from outside: its span, its time and its outcome. Dropped before its end, it was cancelled.
pub(crate) struct Watched {
    pub(crate) start: Instant,
    known: Arc<services::Service>,
    pub(crate) span: tracing::Span,
    outcome: &'static str,
}

impl Watched {
    pub(crate) fn start(client: &Client, service: &ServiceName, call: &Options) -> Self {
        Self {
            start: engine::now(),
            known: match call.for_peer {
                false => client.shared.services.of(service),
                true => client.shared.services.for_peers(service),
            },
            span: observe::call_span(service, &call.method),
            outcome: observe::CANCELLED,
        }
    }

    /// A handler of this process has the call.
    pub(crate) fn found_here(&self) {
        observe::record_step(&self.span, AnswerSource::Local.name());
        self.known.meters.lookup(AnswerSource::Local.name());
    }

    pub(crate) fn end(mut self, client: &Client, attempts: usize, error: Option<&'static str>) {
        observe::record_end(&self.span, attempts, error);
        self.outcome = error.unwrap_or(observe::OK);
        client.shared.pool_meters.show(&client.shared.pool, self.start);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.known.meters.call(self.outcome, self.start);
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("defaults", &self.shared.defaults)
            .finish_non_exhaustive()
    }
}
