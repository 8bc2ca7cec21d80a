//! The services of this process: handed to the transport for peers, and to the client for calls that need no network.
//!
//! **Invariant:** a call that is refused has not reached its handler, so it is safe to make elsewhere (F5); and every call
//! that has reached one is counted until its future is gone, so a drain waits for all of them and for nothing else.

use std::{
    borrow::Borrow,
    collections::HashMap,
    future::{Future, poll_fn},
    panic::AssertUnwindSafe,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Instant,
};

use futures::{FutureExt as _, future::BoxFuture};
use macula_transport::{CallKind, IncomingCall, IncomingMessages, LoadReport, OutgoingMessages, Reply, Route};
use macula_wire::{NameError, ServiceName, StatusCode};
use tokio::sync::Notify;
use tracing::{Instrument as _, Span};

use crate::{
    Handler, Request, Response, Status, StreamHandler,
    client::{Client, WeakClient},
    handler::SharedHandler,
    keyed::Keyed,
    observe::{self, ServedMeters},
    streaming,
    trace::{Propagate, TraceContext},
};

/// Services running at a time in one process, unless told otherwise: more calls are refused, and go elsewhere.
pub const DEFAULT_MAX_CONCURRENT_CALLS: usize = 16_384;

/// A service cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Another handler has the name.
    #[error("{0} is served already; withdraw it first")]
    AlreadyServed(ServiceName),
    /// The name is not one of the mesh's.
    #[error("the service cannot be served: {0}")]
    InvalidName(#[from] NameError),
}

/// The services of this process. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    services: RwLock<HashMap<ServiceName, Arc<Served>, Keyed>>,
    /// Whether a service that streams was ever served: until then no call need be asked whether it does.
    streams: AtomicBool,
    max_concurrent: usize,
    running: AtomicUsize,
    draining: AtomicBool,
    idle: Notify,
    router: OnceLock<WeakClient>,
    propagate: OnceLock<Box<dyn Propagate>>,
}

/// A service and what is counted of it.
struct Served {
    name: ServiceName,
    kind: Kind,
    meters: ServedMeters,
}

/// How a service exchanges its messages.
enum Kind {
    Unary(SharedHandler),
    Streaming(Arc<dyn StreamHandler>),
    #[cfg(feature = "tonic")]
    Tonic(Arc<crate::tonic::Mounted>),
}

/// What answers a stream of this process.
pub(crate) enum OpenHere {
    /// Messages as they come, with messages as they come.
    Streaming(Arc<dyn StreamHandler>),
    /// The requests as one, with one reply: as over the network.
    Unary(SharedHandler),
}

impl Default for Server {
    fn default() -> Self {
        Self::new()
    }
}

impl Server {
    /// A server without services that runs [`DEFAULT_MAX_CONCURRENT_CALLS`] at a time.
    #[must_use]
    pub fn new() -> Self {
        Self::with_max_concurrent_calls(DEFAULT_MAX_CONCURRENT_CALLS)
    }

    /// A server that runs at most `max` calls at a time and refuses the rest.
    #[must_use]
    pub fn with_max_concurrent_calls(max: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                services: RwLock::default(),
                streams: AtomicBool::new(false),
                max_concurrent: max,
                running: AtomicUsize::new(0),
                draining: AtomicBool::new(false),
                idle: Notify::new(),
                router: OnceLock::new(),
                propagate: OnceLock::new(),
            }),
        }
    }

    /// Serves `service` with `handler` from now on.
    ///
    /// # Errors
    /// When the name is served already.
    pub fn serve(&self, service: ServiceName, handler: impl Handler) -> Result<(), ServeError> {
        self.insert([(service, Kind::Unary(Arc::new(handler)))])
    }

    /// Serves `service` with a handler whose requests and replies are streams, from now on.
    ///
    /// # Errors
    /// When the name is served already.
    pub fn serve_streaming(&self, service: ServiceName, handler: impl StreamHandler) -> Result<(), ServeError> {
        self.insert([(service, Kind::Streaming(Arc::new(handler)))])
    }

    /// Serves all of these from now on, or none.
    #[cfg(feature = "tonic")]
    pub(crate) fn mount(&self, services: Vec<(ServiceName, Arc<crate::tonic::Mounted>)>) -> Result<(), ServeError> {
        let services = services.into_iter();
        self.insert(services.map(|(service, mounted)| (service, Kind::Tonic(mounted))))
    }

    /// The gRPC service of this name and leave to call it once, when it is one and takes calls.
    #[cfg(feature = "tonic")]
    pub(crate) fn mounted(&self, service: &ServiceName) -> Option<(Arc<crate::tonic::Mounted>, Admitted)> {
        let served = self.served(service)?;
        let mounted = match &served.kind {
            Kind::Tonic(mounted) => Arc::clone(mounted),
            Kind::Unary(_) | Kind::Streaming(_) => return None,
        };
        Some((mounted, Admitted::new(served, self.admit().ok()?)))
    }

    /// The service of this name and leave to open it once as a stream, when it is no gRPC service and takes calls.
    pub(crate) fn open(&self, service: &ServiceName) -> Option<(OpenHere, Admitted)> {
        let served = self.served(service)?;
        let open = match &served.kind {
            Kind::Streaming(handler) => OpenHere::Streaming(Arc::clone(handler)),
            Kind::Unary(handler) => OpenHere::Unary(Arc::clone(handler)),
            #[cfg(feature = "tonic")]
            Kind::Tonic(_) => return None,
        };
        Some((open, Admitted::new(served, self.admit().ok()?)))
    }

    fn insert(&self, kinds: impl IntoIterator<Item = (ServiceName, Kind)>) -> Result<(), ServeError> {
        let mut services = self.shared.services.write().unwrap_or_else(PoisonError::into_inner);
        let mut fresh = HashMap::new();
        for (name, kind) in kinds {
            let meters = ServedMeters::new(&name);
            if services.contains_key(&name) || fresh.contains_key(&name) {
                return Err(ServeError::AlreadyServed(name));
            }
            fresh.insert(name.clone(), Arc::new(Served { name, kind, meters }));
        }
        if fresh.values().any(|served| !matches!(served.kind, Kind::Unary(_))) {
            // Set before the services can be seen: a call of one of them is asked about.
            self.shared.streams.store(true, Ordering::SeqCst);
        }
        services.extend(fresh);
        Ok(())
    }

    /// Stops serving `service`: running calls finish, new ones are refused. Withdrawing what is not served is fine (D5).
    pub fn withdraw(&self, service: &ServiceName) {
        self.shared
            .services
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(service);
    }

    /// The services served now, sorted by name.
    #[must_use]
    pub fn services(&self) -> Vec<ServiceName> {
        let services = self.shared.services.read().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<_> = services.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// Whether `service` is served here.
    #[must_use]
    pub fn serves(&self, service: &ServiceName) -> bool {
        let services = self.shared.services.read().unwrap_or_else(PoisonError::into_inner);
        services.contains_key(service)
    }

    /// How many calls are running.
    #[must_use]
    pub fn running(&self) -> usize {
        self.shared.running.load(Ordering::SeqCst)
    }

    /// Passes calls that peers ask to have routed, and that nobody serves here, on through `client`, once.
    ///
    /// The first client given stays. It is not kept alive by this.
    pub fn route_through(&self, client: &Client) {
        // A second router would be a misuse without consequence: calls are routed all the same.
        let _ = self.shared.router.set(client.downgrade());
    }

    /// Tells the spans of served calls which trace they belong to, by `propagate`. The first one given stays.
    ///
    /// Without it, too, the calls that a handler makes belong to the trace of the call it answers.
    pub fn propagate(&self, propagate: impl Propagate) {
        // A second one would be a misuse without consequence: traces go on all the same.
        let _ = self.shared.propagate.set(Box::new(propagate));
    }

    /// Refuses new calls from now on, and waits until the running ones are done (N4).
    pub async fn drain(&self) {
        self.shared.draining.store(true, Ordering::SeqCst);
        loop {
            let idle = self.shared.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.running() == 0 {
                return;
            }
            idle.await;
        }
    }

    fn served(&self, service: &ServiceName) -> Option<Arc<Served>> {
        self.shared
            .services
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(service)
            .cloned()
    }

    /// Admits a call, or says why not.
    fn admit(&self) -> Result<Running, Status> {
        // Counted before the flag is read: a drain either sees this call or has set the flag before it.
        let running = Running::start(&self.shared);
        if self.shared.draining.load(Ordering::SeqCst) {
            return Err(Status::refused_with(
                StatusCode::Unavailable,
                "the node is shutting down",
            ));
        }
        if self.running() > self.shared.max_concurrent {
            let limit = self.shared.max_concurrent;
            return Err(Status::refused(format!(
                "the node runs {limit} calls already, as many as it may"
            )));
        }
        Ok(running)
    }

    /// Runs a call of this process when the service is served here; `None` when it is not.
    pub(crate) fn call_local<F: FnOnce() -> Request>(
        &self,
        service: &ServiceName,
        request: F,
    ) -> Option<impl Future<Output = Result<Response, Status>> + use<F>> {
        let served = self.served(service).filter(|served| match served.kind {
            Kind::Unary(_) | Kind::Streaming(_) => true,
            #[cfg(feature = "tonic")]
            Kind::Tonic(_) => false,
        })?;
        let admitted = self.admit();
        let request = request();
        Some(async move {
            let _running = admitted?;
            served.run(request, &Span::none(), None).await
        })
    }

    /// The client that passes this call on, when it may be and somebody does, and how.
    fn router_of(&self, call: &IncomingCall) -> Option<(Client, Route)> {
        let route = call.route()?;
        Some((self.shared.router.get()?.upgrade()?, route))
    }

    /// The span of a peer's call, and the trace it belongs to.
    fn seen(&self, call: &IncomingCall) -> (Span, Option<TraceContext>) {
        let span = observe::serve_span(call);
        let context = TraceContext::of(call.metadata());
        if let (Some(context), Some(propagate)) = (context, self.shared.propagate.get()) {
            propagate.incoming(&span, context);
        }
        (span, context)
    }
}

fn not_served(service: &ServiceName) -> Status {
    Status::refused_with(StatusCode::Unimplemented, format!("{service} is not served here"))
}

impl Served {
    /// Runs the handler in a span and a trace. Its panic is its own failure and nobody else's.
    async fn run(&self, request: Request, span: &Span, context: Option<TraceContext>) -> Result<Response, Status> {
        let mut counted = Counted::start(self);
        let (mut request, mut answer) = (Some(request), None);
        // One poll does what a stack of wrapping futures would: each of those is as large as all that it wraps, and is moved.
        let outcome = poll_fn(|cx| {
            let _entered = span.enter();
            let mut work = || {
                if let Some(request) = request.take() {
                    answer = Some(match &self.kind {
                        Kind::Unary(handler) => handler.handle(request),
                        Kind::Streaming(handler) => streaming::serve_one(handler, request),
                        #[cfg(feature = "tonic")]
                        Kind::Tonic(_) => Box::pin(std::future::ready(Err(not_served(&self.name)))),
                    });
                }
                match &mut answer {
                    Some(answer) => answer.poll_unpin(cx),
                    None => Poll::Pending,
                }
            };
            let polled = std::panic::catch_unwind(AssertUnwindSafe(|| match context {
                None => work(),
                Some(context) => context.sync_scope(work),
            }));
            polled.unwrap_or_else(|panic| Poll::Ready(Err(panicked(&self.name, &panic))))
        })
        .await;
        counted.outcome = match &outcome {
            Ok(_) => observe::OK,
            Err(status) if status.is_refused() => observe::REFUSED,
            Err(_) => observe::ERROR,
        };
        outcome
    }

    /// Begins a peer's call that streams.
    fn begin(
        &self,
        call: IncomingCall,
        requests: IncomingMessages,
        replies: OutgoingMessages,
    ) -> BoxFuture<'static, Reply> {
        match &self.kind {
            Kind::Streaming(handler) => streaming::serve(Arc::clone(handler), call, requests, replies).boxed(),
            #[cfg(feature = "tonic")]
            Kind::Tonic(mounted) => mounted.open(call, requests, replies),
            // It was replaced since the transport asked.
            Kind::Unary(_) => std::future::ready(not_served(&self.name).into_reply()).boxed(),
        }
    }

    /// As [`Served::run`], for what was begun.
    async fn stream(&self, mut answer: BoxFuture<'static, Reply>, span: &Span, context: Option<TraceContext>) -> Reply {
        let mut counted = Counted::start(self);
        let reply = poll_fn(|cx| {
            let _entered = span.enter();
            let mut work = || answer.poll_unpin(cx);
            let polled = std::panic::catch_unwind(AssertUnwindSafe(|| match context {
                None => work(),
                Some(context) => context.sync_scope(work),
            }));
            polled.unwrap_or_else(|panic| Poll::Ready(panicked(&self.name, &panic).into_reply()))
        })
        .await;
        counted.outcome = match reply.status() {
            StatusCode::Ok => observe::OK,
            _ if reply.is_refused() => observe::REFUSED,
            _ => observe::ERROR,
        };
        reply
    }
}

/// A call counted when it ends, however it does.
struct Counted<S: Borrow<Served>> {
    served: S,
    since: Option<Instant>,
    outcome: &'static str,
}

impl<S: Borrow<Served>> Counted<S> {
    fn start(served: S) -> Self {
        Self {
            since: served.borrow().meters.start(),
            served,
            outcome: observe::CANCELLED,
        }
    }
}

impl<S: Borrow<Served>> Drop for Counted<S> {
    fn drop(&mut self) {
        self.served.borrow().meters.served(self.outcome, self.since);
    }
}

pub(crate) fn panicked(service: &ServiceName, panic: &Box<dyn std::any::Any + Send>) -> Status {
    let what = panic
        .downcast_ref::<&str>()
        .copied()
        .or(panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(%service, panic = what.unwrap_or("without a message"), "a handler panicked");
    panic_status()
}

/// What the caller of a handler that panicked is told: what the panic said may be nobody's business outside.
pub(crate) fn panic_status() -> Status {
    Status::internal("the handler panicked")
}

impl macula_transport::Handler for Server {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        let running = match self.admit() {
            Ok(running) => running,
            Err(status) => return std::future::ready(status.into_reply()).boxed(),
        };
        let Some(served) = self.served(call.service()) else {
            return std::future::ready(not_served(call.service()).into_reply()).boxed();
        };
        let (span, context) = self.seen(&call);
        let request = Request::remote(call);
        Box::pin(async move {
            let _running = running;
            let outcome = served.run(request, &span, context).await;
            if let Err(status) = &outcome {
                observe::record_served(&span, status.code());
            }
            reply(outcome)
        })
    }

    fn load(&self) -> Option<LoadReport> {
        let whole = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Some(LoadReport {
            running: whole(self.running()),
            capacity: whole(self.shared.max_concurrent),
        })
    }

    fn kind(&self, call: &IncomingCall) -> CallKind {
        // What is passed on has as many messages as it has, which its provider knows.
        if call.route().is_some() && self.router_of(call).is_some() && !self.serves(call.service()) {
            return CallKind::Streaming;
        }
        if !self.shared.streams.load(Ordering::SeqCst) {
            return CallKind::Unary;
        }
        let services = self.shared.services.read().unwrap_or_else(PoisonError::into_inner);
        match services.get(call.service()).map(|served| &served.kind) {
            None | Some(Kind::Unary(_)) => CallKind::Unary,
            Some(_) => CallKind::Streaming,
        }
    }

    fn stream(
        &self,
        call: IncomingCall,
        requests: IncomingMessages,
        replies: OutgoingMessages,
    ) -> BoxFuture<'static, Reply> {
        let running = match self.admit() {
            Ok(running) => running,
            Err(status) => return std::future::ready(status.into_reply()).boxed(),
        };
        let Some(served) = self.served(call.service()) else {
            let Some((client, route)) = self.router_of(&call) else {
                return std::future::ready(not_served(call.service()).into_reply()).boxed();
            };
            let (span, context) = self.seen(&call);
            return Box::pin(async move {
                let _running = running;
                let work = client.forward(call, route, requests, replies).instrument(span.clone());
                let reply = match context {
                    None => work.await,
                    Some(context) => context.scope(work).await,
                };
                if reply.status() != StatusCode::Ok {
                    observe::record_served(&span, reply.status());
                }
                reply
            });
        };
        let (span, context) = self.seen(&call);
        // Of a handler only its clone runs before the future does, and the transport takes care of what panics there.
        let answer = served.begin(call, requests, replies);
        Box::pin(async move {
            let _running = running;
            let reply = served.stream(answer, &span, context).await;
            if reply.status() != StatusCode::Ok {
                observe::record_served(&span, reply.status());
            }
            reply
        })
    }
}

fn reply(outcome: Result<Response, Status>) -> Reply {
    match outcome {
        Ok(response) => {
            let (payload, metadata) = response.into_parts();
            Reply::ok(payload).with_metadata(metadata)
        }
        Err(status) => status.into_reply(),
    }
}

/// A call of this process that may run, counted among those that do and, when it ends, among those that did.
pub(crate) struct Admitted {
    counted: Counted<Arc<Served>>,
    _running: Running,
}

impl Admitted {
    fn new(served: Arc<Served>, running: Running) -> Self {
        Self {
            counted: Counted::start(served),
            _running: running,
        }
    }

    /// Says what the call came to; one that is dropped before was cancelled.
    pub(crate) fn settle(&mut self, outcome: &'static str) {
        self.counted.outcome = outcome;
    }
}

/// One running call, counted while it lives.
struct Running(Arc<Shared>);

impl Running {
    fn start(shared: &Arc<Shared>) -> Self {
        shared.running.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Sequentially consistent with the drain's flag: one of the two sees the other.
        if self.0.running.fetch_sub(1, Ordering::SeqCst) == 1 && self.0.draining.load(Ordering::SeqCst) {
            self.0.idle.notify_waiters();
        }
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("services", &self.services())
            .field("running", &self.running())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use macula_transport::Handler as _;

    use super::*;

    #[tokio::test]
    async fn a_server_says_how_busy_it_is() {
        let server = Server::with_max_concurrent_calls(2);
        let load = |running| Some(LoadReport { running, capacity: 2 });
        assert_eq!(server.load(), load(0));
        let running = server.admit().unwrap();
        assert_eq!(server.load(), load(1));
        let last = server.admit().unwrap();
        assert!(server.admit().is_err());
        assert_eq!(server.load(), load(2));
        drop((running, last));
        assert_eq!(server.load(), load(0));
    }
}
