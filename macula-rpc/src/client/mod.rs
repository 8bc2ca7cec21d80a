//! The caller's side: one line, one result.
//!
//! A call tries in this order: a handler of this process; the providers that the directory's cache or the directory itself gives; and,
//! when the directory gives no answer, a router that this node is connected to.

mod attempt;
mod brief;
mod builder;
mod driver;
mod duplex;
mod forward;
mod links;
mod local;
mod replay;
mod services;
mod verdict;
mod watch;

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

use self::{
    attempt::{Exchange, Job, Unary},
    driver::Done,
    services::Services,
    watch::CallWatch,
};
use crate::{
    CallError, Decode, Encode, Propagate, Provider, Resolve, ResolveError, ResolveOptions, Resolved, Response, Server,
    Source, error::Attempt, observe::Ended,
};
pub(crate) use builder::Options;
pub use builder::{CallBuilder, ClientBuilder};
pub use duplex::{MAX_WHOLE_BYTES, Replies};
pub use replay::MAX_REPLAY_BYTES;
pub use services::MAX_SERVICES;

/// How long a call may take by default (F7).
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one provider may take before another is tried, by default. A third of [`DEFAULT_TIMEOUT`], so that three attempts fit.
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
    kept_for_peers: Arc<replay::KeptForPeers>,
    defaults: Defaults,
    propagate: Option<Arc<dyn Propagate>>,
}

/// The options of a call that does not set its own (S3).
#[derive(Debug, Clone)]
struct Defaults {
    strategy: Strategy,
    timeout: Duration,
    attempt_timeout: Duration,
    /// The same for streams, if it was set. The first message of a stream may take long by its nature.
    stream_attempt_timeout: Option<Duration>,
    zone: Option<Zone>,
    budget: macula_select::BudgetConfig,
}

/// The nodes that forward a call when the directory gives no answer: the bootstrap nodes that this node is connected to.
pub trait Routers: Send + Sync + 'static {
    /// The routers to ask, the best first.
    fn routers(&self) -> Vec<Provider>;
}

/// The answer to a successful call, its payload as bytes or as a message.
#[derive(Debug, Clone)]
pub struct Answer<T = Bytes> {
    response: Response<T>,
    provider: Option<Arc<Provider>>,
    source: AnswerSource,
    failed_attempts: Vec<Attempt>,
}

/// The step of the directory's order that gave the answering provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AnswerSource {
    /// A handler of this process: no network.
    Local,
    /// A provider that a directory listed.
    Directory(Source),
    /// A router, which served the call itself or forwarded it.
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

    /// The provider that answered; `None` for a handler of this process.
    #[must_use]
    pub fn provider(&self) -> Option<&Provider> {
        self.provider.as_deref()
    }

    /// The step of the directory's order that gave the provider.
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
    /// The same answer with its payload read as a message. When the message cannot be read, no other provider is tried: the call
    /// has run.
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
    /// [`CallError`] says how the call failed, and lists every attempt.
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

    /// Calls `service` with a message and reads the answer as a message.
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

    /// The providers of `service`, in the directory's order.
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

    /// Whether this process serves `service` itself.
    fn serves_here(&self, service: &ServiceName) -> bool {
        self.shared.local.as_ref().is_some_and(|server| server.serves(service))
    }

    pub(crate) fn downgrade(&self) -> WeakClient {
        WeakClient(Arc::downgrade(&self.shared))
    }

    /// Makes the call that `options` describe.
    async fn run(&self, service: &ServiceName, options: &Options, payload: &Bytes) -> Result<Answer, CallError> {
        let mut watch = CallWatch::begin(self, service, options);
        let mut now = watch.started();
        if self.serves_here(service) {
            // Boxed to keep the futures of remote calls small.
            match self.call_here(watch, service, options, payload).boxed().await {
                Ok(result) => return result,
                Err(refused) => watch = refused,
            }
            // The handler may have taken its time to refuse.
            now = self::now();
        }
        // A named future would be moved.
        let result = if watch.span().is_disabled() {
            self.exchange(&watch, now, service, options, payload, &Unary).await
        } else {
            let work = self.exchange(&watch, now, service, options, payload, &Unary);
            work.instrument(watch.span().clone()).boxed().await
        };
        match result {
            Ok((done, source)) => {
                watch.end(done.failed_attempts.len() + 1, Ended::Ok);
                Ok(Answer {
                    response: Response::new(done.answer.body).with_metadata(done.answer.metadata),
                    provider: done.provider,
                    source,
                    failed_attempts: done.failed_attempts,
                })
            }
            Err(error) => {
                watch.end(error.attempts().len(), Ended::of(&error));
                Err(error)
            }
        }
    }

    /// Finds the providers and makes the call at one of them.
    async fn exchange<X: Exchange>(
        &self,
        watch: &CallWatch,
        now: Instant,
        service: &ServiceName,
        options: &Options,
        payload: &Bytes,
        exchange: &X,
    ) -> Result<(Done<X::Answer>, AnswerSource), CallError> {
        let at_hand = match options.provider {
            None => self.shared.resolver.at_hand(service, options.resolve),
            Some(_) => None,
        };
        let Candidates { providers, source, at } = match at_hand {
            Some(resolved) => Candidates::of(resolved, now),
            // Boxed to keep the futures of calls with a list at hand small.
            None => self.find(watch, now, service, options).boxed().await?,
        };
        watch.found(Some(source));
        let job = Job {
            client: self,
            service,
            known: watch.known(),
            options,
            payload,
            start: watch.started(),
            found: at,
            source,
            exchange,
        };
        let alone;
        let balanced = match source {
            // The outcome at one given provider tells nothing about the others.
            _ if options.provider.is_some() => {
                alone = Box::new(self.shared.services.alone());
                &*alone
            }
            AnswerSource::Router => self.shared.services.routers(),
            AnswerSource::Local | AnswerSource::Directory(_) => &watch.known().balanced,
        };
        Ok((driver::run(&job, balanced, &providers).await?, source))
    }

    /// The providers to call: the directory's, or the routers when the directory gives no answer.
    async fn find(
        &self,
        watch: &CallWatch,
        now: Instant,
        service: &ServiceName,
        options: &Options,
    ) -> Result<Candidates, CallError> {
        if let Some(provider) = &options.provider {
            return Ok(Candidates {
                providers: [Provider::clone(provider)].into(),
                source: AnswerSource::Directory(Source::Static),
                at: now,
            });
        }
        let mut lookup = self.shared.resolver.resolve(service, options.resolve);
        // An answer that is ready at once needs no timer, and no time has passed.
        let (resolved, at) = match poll_fn(|cx| Poll::Ready(lookup.poll_unpin(cx))).await {
            Poll::Ready(resolved) => (resolved, now),
            Poll::Pending => {
                let allowed = options.timeout.unwrap_or(self.shared.defaults.timeout);
                // The lookup's time is the call's time.
                let lookup = tokio::time::timeout_at((watch.started() + allowed).into(), lookup);
                let resolved = lookup.await.map_err(|_| late(service, allowed))?;
                (resolved, self::now())
            }
        };
        let reason = match resolved {
            Ok(resolved) => return Ok(Candidates::of(resolved, at)),
            Err(reason) => reason,
        };
        let routers = self.shared.routers.as_ref().filter(|_| options.may_route);
        match routers.map(|routers| routers.routers()) {
            Some(routers) if !routers.is_empty() => {
                tracing::debug!(%service, %reason, "the directory gives no answer; a router is asked");
                Ok(Candidates {
                    providers: routers.into(),
                    source: AnswerSource::Router,
                    at,
                })
            }
            _ => {
                watch.found(None);
                Err(CallError::Unresolved {
                    service: service.clone(),
                    source: reason,
                })
            }
        }
    }
}

/// The providers that may be called, and when they were known.
struct Candidates {
    providers: Arc<[Provider]>,
    source: AnswerSource,
    at: Instant,
}

impl Candidates {
    fn of(resolved: Resolved, at: Instant) -> Self {
        Self {
            providers: resolved.providers,
            source: AnswerSource::Directory(resolved.source),
            at,
        }
    }
}

/// The time on the clock that calls are timed by, which tests may pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn late(service: &ServiceName, allowed: Duration) -> CallError {
    CallError::DeadlineExceeded {
        service: service.clone(),
        allowed,
        attempts: Vec::new(),
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("defaults", &self.shared.defaults)
            .finish_non_exhaustive()
    }
}
