//! gRPC servers as services of the mesh.

use std::{array::IntoIter, fmt, iter::Flatten, sync::Arc};

use ::tonic::{
    body::Body,
    codegen::{
        Service,
        http::{self, HeaderMap, Request, Response, Uri, uri::PathAndQuery},
    },
    server::NamedService,
};
use bytes::Bytes;
use futures::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture, stream};
use http_body::Frame;
use http_body_util::{BodyExt as _, BodyStream, Full, StreamBody};
use macula_transport::Metadata;
use macula_wire::{ServiceName, StatusCode};

use super::{channel::RequestsFailed, convert, headers};
use crate::{
    MAX_WHOLE_BYTES, Requests, ServeError, Server, Status,
    streaming::{Answers, Asking},
};

/// Bytes of gRPC's that are sent as one message: far below the limit of a message, so that large gRPC messages flow.
const PIECE_BYTES: usize = 256 * 1024;

/// The error of a layer.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

type Responding = BoxFuture<'static, Result<Response<Body>, ::tonic::Status>>;

/// A server of gRPC calls, its type forgotten.
pub(crate) struct Mounted {
    call: Box<dyn Fn(Request<Body>) -> Responding + Send + Sync>,
}

impl Mounted {
    fn new<S, B>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let call = move |request| -> Responding {
            let mut service = service.clone();
            Box::pin(async move {
                // The servers themselves answer with statuses: an error is a layer's.
                let ready = std::future::poll_fn(|cx| service.poll_ready(cx)).await;
                ready.map_err(|error| not_started(error.into()))?;
                let response = service.call(request).await.map_err(|error| failed(error.into()))?;
                Ok(response.map(Body::new))
            })
        };
        Self { call: Box::new(call) }
    }
}

/// A layer has not let a call through, so the call is safe to make elsewhere (F5).
#[derive(Debug, thiserror::Error)]
#[error("the call was not started")]
struct NotStarted(#[source] BoxError);

fn not_started(error: BoxError) -> ::tonic::Status {
    let mut status = ::tonic::Status::unavailable(format!("the service is not ready: {error}"));
    status.set_source(Arc::new(NotStarted(error)));
    status
}

fn is_not_started(status: &::tonic::Status) -> bool {
    std::error::Error::source(status).is_some_and(|source| source.is::<NotStarted>())
}

/// A layer's error, such as a time limit's, or that it sheds load.
fn failed(error: BoxError) -> ::tonic::Status {
    #[cfg(feature = "tower")]
    if error.is::<::tower::load_shed::error::Overloaded>() {
        let mut status = ::tonic::Status::resource_exhausted("the service runs as many calls as its limit allows");
        status.set_source(Arc::new(NotStarted(error)));
        return status;
    }
    ::tonic::Status::from_error(error)
}

/// gRPC services, each under the name it has in its schema: what [`Server::serve_tonic`] serves.
///
/// One generated server converts into this, with its interceptors (`GreeterServer::with_interceptor`) and layers
/// (`layer.named_layer(GreeterServer::new(…))`, of [`tonic::service::LayerExt`](::tonic::service::LayerExt)). Several servers are added
/// one by one. The mesh finds services by name, and `tonic::service::Routes` does not list its names, so
/// [`TonicServices::with_routes`] takes them.
///
/// ```text
/// server.serve_tonic(GreeterServer::new(greeter))?;
/// server.serve_tonic(TonicServices::new().with_server(GreeterServer::new(greeter)).with_server(RouteGuideServer::new(guide)))?;
/// server.serve_tonic(TonicServices::new().with_routes(["helloworld.Greeter", "routeguide.RouteGuide"], routes))?;
/// ```
#[derive(Clone, Default)]
pub struct TonicServices {
    services: Vec<(String, Arc<Mounted>)>,
}

impl TonicServices {
    /// No services.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a generated server, under its own name.
    #[must_use]
    pub fn with_server<S, B>(self, server: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>> + NamedService + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.with_routes([S::NAME], server)
    }

    /// Adds `tonic::service::Routes`, or any `tower::Service` of gRPC requests. It gets the calls of the named services, and answers
    /// calls of methods that it does not have; `Routes` and generated servers answer *unimplemented*.
    #[must_use]
    pub fn with_routes<S, B>(mut self, names: impl IntoIterator<Item = impl Into<String>>, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let mounted = Arc::new(Mounted::new(service));
        let named = names.into_iter().map(|name| (name.into(), Arc::clone(&mounted)));
        self.services.extend(named);
        self
    }

    /// The services' names, in the order they were added.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.services.iter().map(|(name, _)| name.as_str())
    }
}

impl<S, B> From<S> for TonicServices
where
    S: Service<Request<Body>, Response = Response<B>> + NamedService + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    fn from(server: S) -> Self {
        Self::new().with_server(server)
    }
}

impl fmt::Debug for TonicServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl Server {
    /// Serves gRPC services: a server that tonic has generated, or several as [`TonicServices`]. Each is served under its name in the
    /// schema. Returns the names, to be advertised.
    ///
    /// # Errors
    /// When a name is served already, or is not a service name (letters, digits, `.`, `_`, `-`). Nothing is served then.
    pub fn serve_tonic(&self, services: impl Into<TonicServices>) -> Result<Vec<ServiceName>, ServeError> {
        let named = services.into().services.into_iter();
        let named = named.map(|(name, mounted)| Ok((ServiceName::new(&name)?, mounted)));
        let named = named.collect::<Result<Vec<_>, ServeError>>()?;
        let names = named.iter().map(|(name, _)| name.clone()).collect();
        self.mount(named)?;
        Ok(names)
    }
}

impl Mounted {
    /// Answers a call.
    pub(crate) async fn open(&self, request: crate::Request<Requests>) -> Result<Answers, Status> {
        let answer = (self.call)(http_request(request)?);
        match answer.await {
            Ok(response) => GrpcReply::of(response),
            Err(status) if is_not_started(&status) => {
                Err(Status::refused_with(convert::code_of(&status), status.message()))
            }
            Err(status) => Err(convert::status(&status)),
        }
    }
}

/// A call as tonic's servers read it over HTTP/2.
fn http_request(request: crate::Request<Requests>) -> Result<Request<Body>, Status> {
    let (call, mut requests) = request.replace_payload(());
    let body = match requests.take_only() {
        Some(only) => Body::new(Full::new(only)),
        None => {
            // Fused, because `tonic::Streaming::trailers` reads once more after the end.
            let frames = stream::unfold(requests, async |mut requests| match requests.next().await {
                Ok(Some(message)) => Some((Ok(Frame::<Bytes>::data(message)), requests)),
                Ok(None) => None,
                Err(gone) => Some((Err(convert::grpc_status(&gone)), requests)),
            });
            Body::new(StreamBody::new(frames.fuse()).boxed_unsync())
        }
    };
    let mut headers = headers::of_request(call.metadata())
        .map_err(|error| Status::new(StatusCode::ResourceExhausted, format!("the request has {error}")))?;
    let now = tokio::time::Instant::now().into_std();
    convert::set_timeout(&mut headers, call.deadline().saturating_duration_since(now));
    // Layers may expect it, as over HTTP/2.
    headers.insert("te", http::HeaderValue::from_static("trailers"));
    let mut request = Request::new(body);
    *request.uri_mut() = uri(&call)?;
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = headers;
    if let Some(peer) = call.shared_peer() {
        request.extensions_mut().insert(Arc::clone(peer));
    }
    Ok(request)
}

/// The path of a call's method.
fn uri(call: &crate::Request<()>) -> Result<Uri, Status> {
    let (service, method) = (call.service().as_str(), call.method());
    let mut path = String::with_capacity(2 + service.len() + method.len());
    for piece in ["/", service, "/", method] {
        path.push_str(piece);
    }
    // A URI without scheme and authority needs no further parsing.
    let path = PathAndQuery::from_maybe_shared(Bytes::from(path));
    path.map(Uri::from)
        .map_err(|_| Status::new(StatusCode::Unimplemented, "the method's name cannot stand in a path"))
}

/// A reply in pieces: its headers, then its body.
pub(crate) struct GrpcReply {
    headers: Option<Bytes>,
    /// Frames of the body that were ready at once.
    ready: Flatten<IntoIter<Option<Given>, 2>>,
    whole: bool,
    body: Body,
    /// The part of the last frame that is not sent yet.
    data: Bytes,
    /// The trailers' metadata, once the body has ended.
    trailers: Option<Metadata>,
}

impl GrpcReply {
    /// The reply of a response; an error is the outcome.
    fn of(response: Response<Body>) -> Result<Answers, Status> {
        let (parts, mut body) = response.into_parts();
        // A reply without a body has its outcome in the headers.
        if convert::has_outcome(&parts.headers) {
            return Ok(Answers::One(None, convert::outcome(&parts.headers)?));
        }
        // A layer's answer that is not one of gRPC's, such as a refusal for want of a token.
        if parts.status != http::StatusCode::OK {
            return Err(convert::http_outcome(parts.status));
        }
        let (ready, whole) = ready(&mut body);
        let headers = headers::message(&parts.headers);
        let headers = headers.map_err(|error| convert::status(&convert::too_large("headers", error)))?;
        Ok(Answers::Grpc(Box::new(Self {
            headers: Some(headers),
            ready: ready.into_iter().flatten(),
            whole,
            body,
            data: Bytes::new(),
            trailers: None,
        })))
    }

    /// Whether the whole body is ready, and small.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    /// The trailers' metadata; `None` before the end.
    pub(crate) fn trailers(&self) -> Option<&Metadata> {
        self.trailers.as_ref()
    }

    /// The next piece; `None` after the last one. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        if let Some(headers) = self.headers.take() {
            return Ok(Some(headers));
        }
        loop {
            if !self.data.is_empty() {
                return Ok(Some(self.data.split_to(self.data.len().min(PIECE_BYTES))));
            }
            if self.trailers.is_some() {
                return Ok(None);
            }
            let frame = match self.ready.next() {
                Some(frame) => frame,
                None => self.body.frame().await,
            };
            let Some(frame) = frame else {
                // The body ended without an outcome.
                self.trailers = Some(convert::outcome(&HeaderMap::new())?);
                return Ok(None);
            };
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => self.data = data,
                Ok(Err(frame)) => {
                    self.trailers = Some(convert::outcome(&frame.into_trailers().unwrap_or_default())?);
                }
                Err(status) => return Err(convert::status(&status)),
            }
        }
    }
}

/// A frame of a body, or its end.
type Given = Option<Result<Frame<Bytes>, ::tonic::Status>>;

/// The frames of a body that are ready at once, up to two, and whether the body ends with them. A unary call's body does: tonic gives it
/// as one frame and the trailers.
fn ready(body: &mut Body) -> ([Option<Given>; 2], bool) {
    let first = body.frame().now_or_never();
    let data = |given: &Given| match given {
        Some(Ok(frame)) => frame.data_ref().map(Bytes::len),
        _ => None,
    };
    match first.as_ref().and_then(data) {
        // A body may not be polled after its end.
        None => ([first, None], false),
        Some(bytes) => {
            let second = body.frame().now_or_never();
            let ended = second.as_ref().is_some_and(|second| data(second).is_none());
            ([first, second], ended && bytes <= MAX_WHOLE_BYTES)
        }
    }
}

/// Bytes in pieces of [`PIECE_BYTES`]; nothing when there are none.
fn cut(mut data: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let next = data.split_to(data.len().min(PIECE_BYTES));
        (!next.is_empty()).then_some(next)
    })
}

/// The requests of a body: at once when there is only one, as in a unary call, else in pieces. A failure is noted.
pub(super) fn requests(mut body: Body, failed: &RequestsFailed) -> Asking {
    let Some(frame) = body.frame().now_or_never() else {
        return Asking::Stream(pieces(body, failed).fuse().boxed());
    };
    let first = match frame {
        // A body may not be polled after its end.
        None => return Asking::Stream(stream::empty().boxed()),
        Some(Ok(frame)) if is_one_piece(&frame) => match body.frame().now_or_never() {
            Some(None) => return Asking::Only(frame.into_data().unwrap_or_default()),
            Some(Some(second)) => vec![Ok(frame), second],
            None => vec![Ok(frame)],
        },
        Some(frame) => vec![frame],
    };
    let first: Vec<_> = first.into_iter().flat_map(|frame| in_pieces(frame, failed)).collect();
    Asking::Stream(stream::iter(first).chain(pieces(body, failed)).fuse().boxed())
}

fn is_one_piece(frame: &Frame<Bytes>) -> bool {
    let data = frame.data_ref();
    data.is_some_and(|data| (1..=PIECE_BYTES).contains(&data.len()))
}

/// The data of a body in pieces.
fn pieces(body: Body, failed: &RequestsFailed) -> impl Stream<Item = Result<Bytes, ()>> + use<> {
    let failed = failed.clone();
    BodyStream::new(body).flat_map(move |frame| stream::iter(in_pieces(frame, &failed)))
}

fn in_pieces(
    frame: Result<Frame<Bytes>, ::tonic::Status>,
    failed: &RequestsFailed,
) -> impl Iterator<Item = Result<Bytes, ()>> + use<> {
    let (data, error) = match frame.map(Frame::into_data) {
        Ok(data) => (data.unwrap_or_default(), None),
        Err(status) => {
            failed.note(status);
            (Bytes::new(), Some(Err(())))
        }
    };
    cut(data).map(Ok).chain(error)
}
