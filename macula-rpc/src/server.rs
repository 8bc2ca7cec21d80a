//! The services of this process: the transport hands them the calls of peers, and the client the calls that need no network.
//!
//! **Invariant.** A refused call has not reached its handler, so it is safe to make elsewhere (F5). A call that has reached its handler
//! is counted until its future is dropped, so a drain waits for exactly these calls.

use std::{
    collections::HashMap,
    future::poll_fn,
    panic::AssertUnwindSafe,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::BoxFuture};
use macula_transport::{Access, CallKind, IncomingCall, IncomingMessages, LoadReport, OutgoingMessages, Reply, Route};
use macula_wire::{NameError, ServiceName, StatusCode};
use tokio::sync::Notify;
use tracing::{Instrument as _, Span};

use crate::{
    Handler, Request, Response, ServiceOptions, Status, StreamHandler,
    allow::Guard,
    client::{Client, WeakClient},
    keyed::Keyed,
    observe::{self, CallStats, Method, MethodNames, Served, ServedMeters},
    streaming::{self, Kind},
    trace::{Propagate, TraceContext},
};

/// Calls that a server runs at a time by default. It refuses more, and their callers go elsewhere.
pub const DEFAULT_MAX_CONCURRENT_CALLS: usize = 16_384;

/// A service cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Another handler has the name.
    #[error("{0} is served already; withdraw it first")]
    AlreadyServed(ServiceName),
    /// The service whose methods are named is not served.
    #[error("{0} is not served; serve it before its methods are named")]
    NotServed(ServiceName),
    /// The name is not a service name.
    #[error("the service cannot be served: {0}")]
    InvalidName(#[from] NameError),
}

/// The services of this process. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    services: RwLock<HashMap<ServiceName, Arc<Entry>, Keyed>>,
    /// By service, served or not.
    options: RwLock<HashMap<ServiceName, Arc<ServiceOptions>>>,
    /// Whether a streaming service was ever served. Until then every call is unary, and its kind needs no lookup.
    streams: AtomicBool,
    /// Whether a service was ever given a time. Until then no call looks for its own.
    times: AtomicBool,
    max_concurrent: usize,
    running: AtomicUsize,
    draining: AtomicBool,
    refused_draining: AtomicU64,
    refused_unknown: AtomicU64,
    idle: Notify,
    router: OnceLock<WeakClient>,
    propagate: OnceLock<Box<dyn Propagate>>,
}

/// Calls that a server refused by itself. The transport refuses those beyond the places there are, and counts them in its
/// [`Stats`](macula_transport::Stats).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusals {
    /// It was shutting down.
    pub draining: u64,
    /// It does not serve the service.
    pub not_served: u64,
}

/// A service and its numbers.
struct Entry {
    name: ServiceName,
    kind: Kind,
    methods: MethodNames,
    meters: ServedMeters,
    guard: Guard,
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

    /// A server that runs at most `max` calls of peers at a time, of which each peer has its share, and refuses the rest. Calls of
    /// this process run here while fewer than `max` calls run.
    ///
    /// The transport divides the places: it reads their number when the server becomes the handler of an endpoint.
    #[must_use]
    pub fn with_max_concurrent_calls(max: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                services: RwLock::default(),
                options: RwLock::default(),
                streams: AtomicBool::new(false),
                times: AtomicBool::new(false),
                max_concurrent: max,
                running: AtomicUsize::new(0),
                draining: AtomicBool::new(false),
                refused_draining: AtomicU64::new(0),
                refused_unknown: AtomicU64::new(0),
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

    /// Sets the options of a service, such as the callers that it admits and the time of a call, from now on. They outlast the service's
    /// handler, so set them before it is served.
    pub fn configure(&self, service: ServiceName, options: ServiceOptions) {
        if options.max_time.is_some() {
            self.shared.times.store(true, Ordering::SeqCst);
        }
        let options = Arc::new(options);
        let mut all = self.shared.options.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(served) = self.served(&service) {
            served.guard.set(&options);
        }
        all.insert(service, options);
    }

    /// How many calls of a service its [options](Server::configure) have denied since it was served. Calls that the callers' grants do
    /// not allow are denied earlier, and counted in the transport's statistics.
    #[must_use]
    pub fn denied(&self, service: &ServiceName) -> u64 {
        self.served(service).map_or(0, |served| served.guard.denied())
    }

    /// Names methods of a served service, so that metrics and spans show them. Methods without a name here are shown as `_OTHER`,
    /// because callers choose the names in their calls; so are names beyond [`MAX_METHODS`](crate::MAX_METHODS) of a service.
    ///
    /// # Errors
    /// When the service is not served.
    pub fn name_methods<'a>(
        &self,
        service: &ServiceName,
        methods: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), ServeError> {
        let served = self.served(service);
        let served = served.ok_or_else(|| ServeError::NotServed(service.clone()))?;
        for method in methods {
            let _label = served.methods.learn(method);
        }
        Ok(())
    }

    /// Admits a call of this process, when the service is served here and there is room.
    pub(crate) fn admit_here(&self, service: &ServiceName, method: &str) -> Option<Admitted> {
        let running = self.admit().ok()?;
        if self.running() > self.shared.max_concurrent {
            return None;
        }
        let mut admitted = Admitted::new(self.served(service)?, running);
        admitted.method = admitted.served.methods.find(method);
        Some(admitted)
    }

    fn insert(&self, kinds: impl IntoIterator<Item = (ServiceName, Kind)>) -> Result<(), ServeError> {
        // In this order, as in `configure`: no service is served without its options.
        let options = self.shared.options.read().unwrap_or_else(PoisonError::into_inner);
        let mut services = self.shared.services.write().unwrap_or_else(PoisonError::into_inner);
        let mut fresh = HashMap::new();
        for (name, kind) in kinds {
            let meters = ServedMeters::new(&name);
            if services.contains_key(&name) || fresh.contains_key(&name) {
                return Err(ServeError::AlreadyServed(name));
            }
            let (methods, guard) = (MethodNames::default(), Guard::default());
            if let Some(options) = options.get(&name) {
                guard.set(options);
            }
            fresh.insert(
                name.clone(),
                Arc::new(Entry {
                    name,
                    kind,
                    methods,
                    meters,
                    guard,
                }),
            );
        }
        if fresh.values().any(|served| !matches!(served.kind, Kind::Unary(_))) {
            // Set before a call can find the services.
            self.shared.streams.store(true, Ordering::SeqCst);
        }
        services.extend(fresh);
        Ok(())
    }

    /// Stops serving `service`: running calls finish, new ones are refused. A service that is not served is no error (D5).
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

    /// The services served now with their calls, sorted by name. A service that is withdrawn and served again counts again.
    #[must_use]
    pub fn served_calls(&self) -> Vec<(ServiceName, CallStats)> {
        let services = self.shared.services.read().unwrap_or_else(PoisonError::into_inner);
        let mut calls: Vec<_> = services
            .iter()
            .map(|(name, entry)| (name.clone(), entry.meters.stats()))
            .collect();
        calls.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        calls
    }

    /// Calls that are refused for each reason of the server itself, so far.
    #[must_use]
    pub fn refusals(&self) -> Refusals {
        Refusals {
            draining: self.shared.refused_draining.load(Ordering::Relaxed),
            not_served: self.shared.refused_unknown.load(Ordering::Relaxed),
        }
    }

    /// How many calls are run at a time at most.
    #[must_use]
    pub fn max_concurrent_calls(&self) -> usize {
        self.shared.max_concurrent
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

    /// Forwards the calls that peers want routed, and that are not served here, through `client`, once.
    ///
    /// The first client stays. The server does not keep it alive.
    pub fn route_through(&self, client: &Client) {
        // A second router changes nothing: calls are routed all the same.
        let _ = self.shared.router.set(client.downgrade());
    }

    /// Links the spans of served calls to their callers' traces by `propagate`. The first one stays.
    ///
    /// Without it, too, a handler's own calls belong to the trace of the call that it answers.
    pub fn propagate(&self, propagate: impl Propagate) {
        // A second one changes nothing: traces are continued all the same.
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

    fn served(&self, service: &ServiceName) -> Option<Arc<Entry>> {
        self.shared
            .services
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(service)
            .cloned()
    }

    /// Admits a call unless the server drains. The transport has already bounded how many calls of peers run.
    fn admit(&self) -> Result<Running, Status> {
        // Counted before the flag is read: either the drain sees this call, or this call sees the flag.
        let running = Running::start(&self.shared);
        if self.shared.draining.load(Ordering::SeqCst) {
            self.shared.refused_draining.fetch_add(1, Ordering::Relaxed);
            return Err(Status::refused_with(
                StatusCode::Unavailable,
                "the node is shutting down",
            ));
        }
        Ok(running)
    }

    /// The client that forwards this call, and the route; `None` unless the call may be forwarded and is not served here.
    fn router_of(&self, call: &IncomingCall) -> Option<(Client, Route)> {
        let route = call.route().filter(|_| !self.serves(call.service()))?;
        Some((self.shared.router.get()?.upgrade()?, route))
    }

    /// The span of a peer's call, and its trace.
    fn seen(&self, call: &IncomingCall, method: &Method) -> (Span, Option<TraceContext>) {
        let span = observe::serve_span(call, method);
        let context = TraceContext::of(call.metadata());
        if let (Some(context), Some(propagate)) = (context, self.shared.propagate.get()) {
            propagate.incoming(&span, context);
        }
        (span, context)
    }

    /// Refuses a call of a service that is not served here.
    fn unknown(&self, service: &ServiceName) -> Status {
        self.shared.refused_unknown.fetch_add(1, Ordering::Relaxed);
        Status::refused_with(StatusCode::Unimplemented, format!("{service} is not served here"))
    }

    /// Admits a peer's call to the service that it names.
    fn admit_peer(&self, call: &IncomingCall) -> Result<PeerCall, Status> {
        let running = self.admit()?;
        let served = self.served(call.service());
        let served = served.ok_or_else(|| self.unknown(call.service()))?;
        served.guard.admit_peer(call.peer(), call.service())?;
        let mut admitted = Admitted::new(served, running);
        admitted.method = admitted.served.methods.find(call.method());
        let (span, context) = self.seen(call, &admitted.method);
        Ok(PeerCall {
            admitted,
            span,
            context,
        })
    }
}

/// A peer's call that runs, in its span and its trace.
struct PeerCall {
    admitted: Admitted,
    span: Span,
    context: Option<TraceContext>,
}

impl PeerCall {
    /// Runs the handler's future. A panic is the handler's own failure and reaches no other call.
    async fn run<T: Reported>(mut self, start: impl FnOnce(&Kind) -> BoxFuture<'static, T>) -> T {
        let (mut start, mut answer) = (Some(start), None);
        // One poll in place of a stack of wrapping futures, each as large as everything within it.
        let outcome = poll_fn(|cx| {
            let _entered = self.span.enter();
            let mut work = || {
                if let Some(start) = start.take() {
                    answer = Some(start(self.admitted.kind()));
                }
                match &mut answer {
                    Some(answer) => answer.poll_unpin(cx),
                    None => Poll::Pending,
                }
            };
            let polled = std::panic::catch_unwind(AssertUnwindSafe(|| match self.context {
                None => work(),
                Some(context) => context.sync_scope(work),
            }));
            polled.unwrap_or_else(|panic| Poll::Ready(T::failed(panicked(self.admitted.service(), &panic))))
        })
        .await;
        let (code, refused) = outcome.status();
        if code != StatusCode::Ok {
            observe::record_served(&self.span, code);
        }
        self.admitted.settle(match code {
            StatusCode::Ok => Served::Ok,
            _ if refused => Served::Refused,
            _ => Served::Error,
        });
        outcome
    }
}

/// The outcome of a handler.
trait Reported {
    /// The status code, and whether the handler refused the call.
    fn status(&self) -> (StatusCode, bool);

    fn failed(status: Status) -> Self;
}

impl Reported for Result<Response, Status> {
    fn status(&self) -> (StatusCode, bool) {
        match self {
            Ok(_) => (StatusCode::Ok, false),
            Err(status) => (status.code(), status.is_refused()),
        }
    }

    fn failed(status: Status) -> Self {
        Err(status)
    }
}

impl Reported for Reply {
    fn status(&self) -> (StatusCode, bool) {
        (Reply::status(self), self.is_refused())
    }

    fn failed(status: Status) -> Self {
        status.into_reply()
    }
}

/// Logs a handler's panic, and gives the status for its caller. The panic's message stays in this process.
pub(crate) fn panicked(service: &ServiceName, panic: &Box<dyn std::any::Any + Send>) -> Status {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or(panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(%service, panic = message.unwrap_or("without a message"), "a handler panicked");
    Status::internal("the handler panicked")
}

impl macula_transport::Handler for Server {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        let admitted = match self.admit_peer(&call) {
            Ok(admitted) => admitted,
            Err(status) => return std::future::ready(status.into_reply()).boxed(),
        };
        let limit = call.peer().max_message_bytes;
        let request = Request::remote(call);
        Box::pin(async move {
            match admitted.run(|kind| kind.call(request)).await {
                Ok(response) if response.payload().len() > limit => {
                    streaming::too_large(response.payload().len(), limit).into_reply()
                }
                Ok(response) => {
                    let (payload, metadata) = response.into_parts();
                    Reply::ok(payload).with_metadata(metadata)
                }
                Err(status) => status.into_reply(),
            }
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
        // Only its provider knows how many messages a forwarded call has.
        if self.router_of(call).is_some() {
            return CallKind::Forwarded;
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

    fn max_time(&self, call: &IncomingCall) -> Option<Duration> {
        if !self.shared.times.load(Ordering::SeqCst) {
            return None;
        }
        self.served(call.service())?.guard.max_time()
    }

    fn refuses(&self, call: &IncomingCall) -> Option<Reply> {
        let known = self.serves(call.service()) || self.router_of(call).is_some();
        (!known).then(|| self.unknown(call.service()).into_reply())
    }

    fn stream(
        &self,
        call: IncomingCall,
        requests: IncomingMessages,
        replies: OutgoingMessages,
    ) -> BoxFuture<'static, Reply> {
        if let Some((client, route)) = self.router_of(&call) {
            return self.forward(client, route, call, requests, replies);
        }
        let admitted = match self.admit_peer(&call) {
            Ok(admitted) => admitted,
            Err(status) => return std::future::ready(status.into_reply()).boxed(),
        };
        let work = admitted.run(|kind| kind.clone().serve(call, requests, replies).boxed());
        work.boxed()
    }
}

impl Server {
    /// Forwards a peer's call through this node's client.
    fn forward(
        &self,
        client: Client,
        route: Route,
        call: IncomingCall,
        requests: IncomingMessages,
        replies: OutgoingMessages,
    ) -> BoxFuture<'static, Reply> {
        let running = match self.admit() {
            Ok(running) => running,
            Err(status) => return std::future::ready(status.into_reply()).boxed(),
        };
        let (span, context) = self.seen(&call, &MethodNames::default().find(call.method()));
        Box::pin(async move {
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
        })
    }
}

/// A call that may run. It counts as running while it lives, and as served, with its outcome, when it ends. Dropped before its end, it
/// was cancelled.
pub(crate) struct Admitted {
    served: Arc<Entry>,
    method: Method,
    since: Instant,
    outcome: Served,
    _running: Running,
}

impl Admitted {
    fn new(served: Arc<Entry>, running: Running) -> Self {
        Self {
            since: served.meters.begin(),
            served,
            method: Method::None,
            outcome: Served::Cancelled,
            _running: running,
        }
    }

    pub(crate) fn kind(&self) -> &Kind {
        &self.served.kind
    }

    pub(crate) fn service(&self) -> &ServiceName {
        &self.served.name
    }

    /// Checks that this node itself may make the call, which is one of this process.
    pub(crate) fn check_own(&self, access: &Access) -> Result<(), Status> {
        let own = access.member().ok_or_else(|| {
            Status::new(
                StatusCode::PermissionDenied,
                "this node has no grant of its closed realm",
            )
        })?;
        self.served.guard.admit_own(&own, &self.served.name)
    }

    pub(crate) fn settle(&mut self, outcome: Served) {
        self.outcome = outcome;
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.served.meters.served(&self.method, self.outcome, self.since);
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
        // Sequentially consistent with the drain's flag, so one of the two sees the other.
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
        assert_eq!(server.load(), load(2));
        drop((running, last));
        assert_eq!(server.load(), load(0));
    }
}
