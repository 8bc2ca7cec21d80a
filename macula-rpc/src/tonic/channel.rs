//! What a generated client calls through.

use std::{
    fmt,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use ::tonic::{
    body::Body,
    codegen::{
        Service,
        http::{HeaderMap, Request, Response},
    },
};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use macula_select::{Backoff, Hedge, MAX_CALL_TIMEOUT, RetryPolicy, Strategy};
use macula_wire::ServiceName;
use tokio::time::Instant;

use super::{
    about::About,
    convert,
    headers::{self, HeaderLimits, HeadersError},
    requests::{RequestsFailed, requests},
};
use crate::{
    CallError, Client, Provider,
    client::{Options, Replies},
    streaming::Asking,
};

/// A channel for clients that tonic has generated, in place of `tonic::transport::Channel`. Calls go to the mesh's providers of the
/// client's service. One channel serves all services. Cheap to clone.
///
/// ```text
/// let mut greeter = GreeterClient::new(macula_rpc::Channel::new(client));
/// let reply = greeter.say_hello(HelloRequest { name: "mesh".into() }).await?;
/// ```
///
/// As in tonic, a call has no deadline unless the request has a timeout. An attempt has the call's time unless an attempt timeout is
/// set here or for the client, so a service that takes long is not called twice.
#[derive(Clone)]
pub struct Channel {
    client: Client,
    options: Options,
    /// The service that questions are about when they do not name one.
    about: Option<ServiceName>,
}

impl Channel {
    /// A channel that calls with `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        let options = Options {
            policy: RetryPolicy::Unavailable,
            ..Options::default()
        };
        Self {
            client,
            options,
            about: None,
        }
    }

    /// Sets the timeout of calls whose request has none.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = Some(timeout);
        self
    }

    /// Sets how long one provider may take before another is tried: until the whole reply to a unary call has arrived, up to
    /// [`MAX_WHOLE_BYTES`](crate::MAX_WHOLE_BYTES), or the headers of a larger reply or of a stream.
    #[must_use]
    pub fn with_attempt_timeout(mut self, timeout: Duration) -> Self {
        self.options.attempt_timeout = Some(timeout);
        self
    }

    /// Sets how many providers are tried at most.
    #[must_use]
    pub fn with_max_attempts(mut self, attempts: u32) -> Self {
        self.options.max_attempts = Some(attempts);
        self
    }

    /// Sets how the provider is chosen.
    #[must_use]
    pub fn with_strategy(mut self, strategy: Strategy) -> Self {
        self.options.strategy = Some(strategy);
        self
    }

    /// Sets which failures are tried elsewhere (F6). By default, [`RetryPolicy::Unavailable`], a call that may have run is made again, and
    /// of a handler's errors only *unavailable* is not the answer. [`RetryPolicy::NeverProcessed`] is for services whose calls must not run
    /// twice.
    #[must_use]
    pub fn with_retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.options.policy = policy;
        self
    }

    /// Waits between attempts (F9). By default the next one starts at once.
    #[must_use]
    pub fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.options.backoff = Some(backoff);
        self
    }

    /// Declares that calls may run twice at once without harm, and sends a second attempt beside a slow first one (F10). A call with
    /// more than one request is not hedged, because there is only one stream of requests; nor is a call that the retry policy
    /// forbids to run twice.
    #[must_use]
    pub fn with_hedge(mut self, hedge: Hedge) -> Self {
        self.options.idempotent = true;
        self.options.hedge = Some(hedge);
        self
    }

    /// Sends calls with the same key to the same provider, with [`Strategy::Affinity`].
    #[must_use]
    pub fn with_affinity(mut self, key: u64) -> Self {
        self.options.affinity = Some(key);
        self
    }

    /// Calls this provider and no other, without the directory: for questions about one node, such as its health.
    #[must_use]
    pub fn with_provider(mut self, provider: Provider) -> Self {
        self.options.provider = Some(Box::new(provider));
        self
    }

    /// Names the service that health checks of a server as a whole and reflection are about.
    ///
    /// Every node answers `grpc.health.v1.Health` and `grpc.reflection.v1.ServerReflection` for its own services, and neither is published.
    /// So a question goes to a provider of the service that it is about, chosen like the provider of any call. A health check names that
    /// service, and a stream of reflection does when its first question is for a symbol; then this name is not needed. To ask one
    /// particular node, see [`Channel::with_provider`].
    #[must_use]
    pub fn with_service(mut self, service: ServiceName) -> Self {
        self.about = Some(service);
        self
    }

    /// The service whose provider answers a question; `None` when the service that is asked is published like any other.
    async fn asked_about(
        &self,
        about: About,
        service: &ServiceName,
        asking: &mut Asking,
    ) -> Result<Option<ServiceName>, ::tonic::Status> {
        let is_provided = async |name| {
            let provided = self.client.is_provided(name).await;
            provided.map_err(|error| convert::error(&error))
        };
        // With a name at hand the headers of the answer need not wait for the first question.
        let is_needed = about == About::Health || self.about.is_none();
        let first = if is_needed { asking.first().await } else { None };
        let named: Vec<_> = first.iter().flat_map(|first| about.names(first)).collect();
        for name in &named {
            if is_provided(name).await? {
                return Ok(Some(name.clone()));
            }
        }
        if self.about.is_some() || is_provided(service).await? {
            return Ok(self.about.clone());
        }
        Err(match named.first() {
            Some(name) => ::tonic::Status::not_found(format!("no provider serves {name}")),
            None => ::tonic::Status::unimplemented(format!(
                "{service} is asked about no service in particular: give the channel a service (`with_service`) or a node (`with_provider`)"
            )),
        })
    }

    /// Finds the service whose provider answers a question, within the call's time.
    async fn ask_about(
        &mut self,
        about: About,
        service: &ServiceName,
        asking: &mut Asking,
    ) -> Result<(), ::tonic::Status> {
        let allowed = self.options.timeout.unwrap_or(MAX_CALL_TIMEOUT);
        let until = Instant::now() + allowed;
        let found = tokio::time::timeout_at(until, self.asked_about(about, service, asking)).await;
        let late = || ::tonic::Status::deadline_exceeded(format!("{service}: no provider to ask within {allowed:?}"));
        self.options.about = found.map_err(|_| late())??.map(Box::new);
        if self.options.timeout.is_some() {
            self.options.timeout = Some(until.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }

    async fn call(mut self, request: Request<Body>) -> Result<Response<Body>, ::tonic::Status> {
        let (service, method) = match path(request.uri().path()) {
            Ok(path) => path,
            Err(status) => return Err(status),
        };
        self.options.method = method;
        let asked = convert::timeout(request.headers()).or(self.options.timeout);
        self.options.timeout = asked.map(|timeout| timeout.min(MAX_CALL_TIMEOUT));
        let (parts, body) = request.into_parts();
        self.options.metadata = Some(headers::to_metadata(&parts.headers));
        let failed = RequestsFailed::default();
        let mut asking = requests(body, &failed);
        if let (Some(about), None) = (About::of(&service), &self.options.provider) {
            // Boxed to keep the future of every other call small.
            self.ask_about(about, &service, &mut asking).boxed().await?;
        }
        let Self {
            client, mut options, ..
        } = self;
        let mut replies = client
            .open(&service, &mut options, asking)
            .await
            .map_err(|error| failed.status(&error))?;
        let first = replies.next().await.map_err(|error| failed.status(&error))?;
        let mut response = Response::new(body_of(replies, failed));
        let limits = HeaderLimits::of_own(client.limits());
        match first.map(|message| headers::read_message(message, limits)) {
            Some(Ok(headers)) => *response.headers_mut() = headers,
            Some(Err(HeadersError::NotHeaders)) => {
                let words = format!("{service} is served, but not as gRPC");
                return Err(::tonic::Status::unimplemented(words));
            }
            Some(Err(error @ HeadersError::TooLarge(_))) => return Err(convert::too_large("headers", error)),
            None => {}
        }
        Ok(response)
    }
}

/// The service and the method of a path, `/package.Service/Method`.
fn path(path: &str) -> Result<(ServiceName, String), ::tonic::Status> {
    let wrong = || ::tonic::Status::unimplemented(format!("{path} is not the path of a gRPC method"));
    let (service, method) = path
        .strip_prefix('/')
        .and_then(|rest| rest.split_once('/'))
        .ok_or_else(wrong)?;
    Ok((ServiceName::new(service).map_err(|_| wrong())?, method.to_owned()))
}

/// A reply that has arrived as a whole.
struct Whole(Option<Replies>, RequestsFailed);

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = ::tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ::tonic::Status>>> {
        let Self(whole, failed) = &mut *self;
        let Some(replies) = whole else {
            return Poll::Ready(None);
        };
        let next = ready!(pin!(replies.next()).poll(cx));
        if let Ok(Some(message)) = next {
            return Poll::Ready(Some(Ok(Frame::data(message))));
        }
        let end = end_of(replies, failed, next.err().as_ref());
        *whole = None;
        Poll::Ready(Some(end))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

/// The outcome as trailers.
fn end_of(
    replies: &Replies,
    failed: &RequestsFailed,
    error: Option<&CallError>,
) -> Result<Frame<Bytes>, ::tonic::Status> {
    let Some(error) = error else {
        return convert::trailers(&replies.metadata()).map(Frame::trailers);
    };
    let mut trailers = HeaderMap::new();
    failed.status(error).add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}

/// The messages of a reply, and its outcome as trailers.
fn body_of(replies: Replies, failed: RequestsFailed) -> Body {
    if replies.are_whole() {
        return Body::new(Whole(Some(replies), failed).boxed_unsync());
    }
    let frames = stream::unfold(Some((replies, failed)), async |replies| {
        let (mut replies, failed) = replies?;
        Some(match replies.next().await {
            Ok(Some(message)) => (Ok(Frame::<Bytes>::data(message)), Some((replies, failed))),
            next => (end_of(&replies, &failed, next.err().as_ref()), None),
        })
    });
    // A body may be asked again after its end.
    Body::new(StreamBody::new(frames.fuse()).boxed_unsync())
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = ::tonic::Status;
    type Future = BoxFuture<'static, Result<Response<Body>, ::tonic::Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ::tonic::Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().call(request))
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
