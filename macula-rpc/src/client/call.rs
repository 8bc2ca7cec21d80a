//! A call: in this process, at a provider that the directory gives, or through a router.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
    time::Instant,
};

use bytes::Bytes;
use futures::FutureExt as _;
use macula_transport::Endpoint;
use macula_wire::{NameError, ServiceName};
use tracing::Instrument as _;

use super::{
    answer::{Answer, AnswerSource},
    attempt::{Exchange, Job, Unary},
    builder::{CallBuilder, ClientBuilder},
    driver::{self, Done},
    options::Options,
    shared::{Client, late, now},
    watch::CallWatch,
};
use crate::{
    CallError, Decode, Encode, Provider, Resolve, ResolveError, ResolveOptions, Resolved, Response, Source,
    observe::Ended,
};

static USUAL: Options = Options::USUAL;

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

    /// Whether this process or a provider that the directory lists serves `service`.
    #[cfg(feature = "tonic")]
    pub(crate) async fn is_provided(&self, service: &ServiceName) -> Result<bool, CallError> {
        if self.serves_here(service, &USUAL) {
            return Ok(true);
        }
        let found = self.providers(service, ResolveOptions::default()).await;
        let found = found.map_err(|source| CallError::Unresolved {
            service: service.clone(),
            source,
        })?;
        Ok(!found.is_empty())
    }

    /// Makes the call that `options` describe.
    pub(super) async fn run(
        &self,
        service: &ServiceName,
        options: &Options,
        payload: &Bytes,
    ) -> Result<Answer, CallError> {
        let mut watch = CallWatch::begin(self, service, options);
        let mut begun = watch.started();
        if self.serves_here(service, options) {
            // Boxed to keep the futures of remote calls small.
            match self.call_here(watch, service, options, payload).boxed().await {
                Ok(result) => return result,
                Err(refused) => watch = refused,
            }
            // The handler may have taken its time to refuse.
            begun = now();
        }
        // Awaited in place, because a future in a variable would be copied.
        let result = if watch.span().is_disabled() {
            self.exchange(&watch, begun, service, options, payload, &Unary).await
        } else {
            let work = self.exchange(&watch, begun, service, options, payload, &Unary);
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
    pub(super) async fn exchange<X: Exchange>(
        &self,
        watch: &CallWatch,
        now: Instant,
        service: &ServiceName,
        options: &Options,
        payload: &Bytes,
        exchange: &X,
    ) -> Result<(Done<X::Answer>, AnswerSource), CallError> {
        if !self.shared.follows_links.load(Relaxed) {
            self.follow_links();
        }
        let at_hand = match options.provider {
            None => self
                .shared
                .resolver
                .at_hand(options.listed_as(service), options.resolve),
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
            // The outcome at one given provider tells nothing about the others, and a question about a service tells nothing about its
            // calls.
            _ if options.provider.is_some() || options.about.is_some() => {
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
        let mut lookup = self
            .shared
            .resolver
            .resolve(options.listed_as(service), options.resolve);
        // An answer that is ready at once needs no timer, and no time has passed.
        let (resolved, at) = match poll_fn(|cx| Poll::Ready(lookup.poll_unpin(cx))).await {
            Poll::Ready(resolved) => (resolved, now),
            Poll::Pending => {
                let allowed = options.timeout.unwrap_or(self.shared.defaults.timeout);
                // The lookup's time is the call's time.
                let lookup = tokio::time::timeout_at((watch.started() + allowed).into(), lookup);
                let resolved = lookup.await.map_err(|_| late(service, allowed))?;
                (resolved, super::shared::now())
            }
        };
        let reason = match resolved {
            Ok(resolved) => return Ok(Candidates::of(resolved, at)),
            Err(reason) => reason,
        };
        // A router would look for the providers of the service that is called.
        let may_route = options.may_route && options.about.is_none();
        let routers = self.shared.routers.as_ref().filter(|_| may_route);
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
