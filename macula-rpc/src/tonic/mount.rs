//! gRPC servers as services of the mesh.

use std::{fmt, sync::Arc};

use ::tonic::{
    body::Body,
    codegen::{
        Service,
        http::{HeaderMap, Request, Response, Uri, uri::PathAndQuery},
    },
    server::NamedService,
};
use bytes::Bytes;
use futures::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture, stream};
use http_body::Frame;
use http_body_util::{BodyExt as _, BodyStream, Full, StreamBody};
use macula_transport::{IncomingCall, IncomingMessages, OutgoingMessages, Reply};
use macula_wire::{ServiceName, StatusCode};

use super::{channel::RequestsFailed, convert, headers};
use crate::{MAX_WHOLE_BYTES, ServeError, Server, streaming::Asking};

/// The most of gRPC's bytes that are sent as one message: far below what a message may have, so that large ones flow.
const PIECE_BYTES: usize = 256 * 1024;

/// What layers fail with.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

type Answer = BoxFuture<'static, Result<Response<Body>, ::tonic::Status>>;

/// A server of gRPC calls, its type forgotten.
pub(crate) struct Mounted {
    call: Box<dyn Fn(Request<Body>) -> Answer + Send + Sync>,
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
        let call = move |request| -> Answer {
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

    /// Answers a request, from this process or from elsewhere.
    pub(crate) fn call(&self, request: Request<Body>) -> Answer {
        (self.call)(request)
    }
}

/// Why a layer has not let a call through: it is safe to make elsewhere (F5).
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
        let mut status = ::tonic::Status::resource_exhausted("the service runs as many calls as it may");
        status.set_source(Arc::new(NotStarted(error)));
        return status;
    }
    ::tonic::Status::from_error(error)
}

/// gRPC services, each under the name it has in its schema: what [`Server::serve_tonic`] serves.
///
/// One generated server is one already, with its interceptors (`GreeterServer::with_interceptor`) and layers
/// (`layer.named_layer(GreeterServer::new(…))`, of [`tonic::service::LayerExt`](::tonic::service::LayerExt)). Several are added
/// one by one. What routes by itself, such as `tonic::service::Routes`, does not tell the names it has, and the mesh finds
/// services by name; so [`TonicServices::with_routes`] is told them.
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

    /// Adds what serves several gRPC services, or one whose type has lost its name: `tonic::service::Routes`, or any
    /// `tower::Service` of gRPC requests in layers of one's own. It gets the calls of the services named, and answers those of
    /// methods it does not have as it likes: `Routes` and generated servers say *unimplemented*.
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
    /// Serves gRPC services: a server that tonic has generated, or several as [`TonicServices`]. Each is served under the name
    /// it has in its schema; the names are returned: what is to be advertised.
    ///
    /// # Errors
    /// When a name is served already, or is not one of the mesh's (letters, digits, `.`, `_`, `-`). Nothing is served then.
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
    /// Answers a peer's call.
    pub(crate) fn open(
        &self,
        call: IncomingCall,
        mut requests: IncomingMessages,
        replies: OutgoingMessages,
    ) -> BoxFuture<'static, Reply> {
        let Some(uri) = uri(&call) else {
            let words = "the method's name cannot stand in a path";
            return Box::pin(std::future::ready(Reply::error(StatusCode::Unimplemented, words)));
        };
        let body = match requests.take_only() {
            // A unary call's.
            Some(only) => Body::new(Full::new(only)),
            None => {
                // Fused: whoever reads to the end may read once more, as `tonic::Streaming::trailers` does.
                let frames = stream::unfold(requests, async |mut requests| match requests.next().await {
                    Ok(Some(message)) => Some((Ok(Frame::<Bytes>::data(message)), requests)),
                    Ok(None) => None,
                    Err(gone) => Some((Err(::tonic::Status::cancelled(gone.to_string())), requests)),
                });
                Body::new(StreamBody::new(frames.fuse()).boxed_unsync())
            }
        };
        let mut request = Request::new(body);
        *request.uri_mut() = uri;
        *request.method_mut() = ::tonic::codegen::http::Method::POST;
        *request.version_mut() = ::tonic::codegen::http::Version::HTTP_2;
        match headers::of_request(call.metadata()) {
            Ok(headers) => *request.headers_mut() = headers,
            Err(error) => {
                let words = format!("the request has {error}");
                return Box::pin(std::future::ready(Reply::error(StatusCode::ResourceExhausted, words)));
            }
        }
        let left = call
            .deadline()
            .saturating_duration_since(tokio::time::Instant::now().into_std());
        convert::set_timeout(request.headers_mut(), left);
        // As over HTTP/2, where layers may look for it.
        let te = ::tonic::codegen::http::HeaderValue::from_static("trailers");
        request.headers_mut().insert("te", te);
        request.extensions_mut().insert(Arc::clone(call.peer()));
        let answer = (self.call)(request);
        Box::pin(async move {
            match answer.await {
                Ok(response) => send(response, replies).await,
                Err(status) if is_not_started(&status) => {
                    let code = convert::code_of(&status);
                    Reply::refused(code, status.message())
                }
                Err(status) => convert::reply(&status),
            }
        })
    }
}

/// The path of a call's method.
fn uri(call: &IncomingCall) -> Option<Uri> {
    let (service, method) = (call.service().as_str(), call.method());
    let mut path = String::with_capacity(2 + service.len() + method.len());
    for piece in ["/", service, "/", method] {
        path.push_str(piece);
    }
    // Nothing before the path needs to be looked for.
    PathAndQuery::from_maybe_shared(Bytes::from(path)).ok().map(Uri::from)
}

/// Sends a response, and gives its outcome.
async fn send(response: Response<Body>, mut replies: OutgoingMessages) -> Reply {
    let (parts, mut body) = response.into_parts();
    // A reply without a body has its outcome in the headers.
    if convert::has_outcome(&parts.headers) {
        return convert::outcome(&parts.headers);
    }
    // A layer's answer that is none of gRPC's, such as a refusal for want of a token.
    if parts.status != ::tonic::codegen::http::StatusCode::OK {
        return convert::http_outcome(parts.status);
    }
    let gone = |gone: &macula_transport::Gone| Reply::error(StatusCode::Cancelled, gone.to_string());
    let (start, whole) = start(&mut body);
    let headers = match headers::message(&parts.headers) {
        Ok(headers) => headers,
        Err(error) => return convert::reply(&convert::too_large("headers", error)),
    };
    let sent = match whole {
        true => replies.gather_whole(headers).await,
        false => replies.gather(headers).await,
    };
    if let Err(error) = sent {
        return gone(&error);
    }
    let mut start = start.into_iter().flatten();
    loop {
        // What is ready at once, all of a unary call's reply, is one write.
        let frame = match start.next().or_else(|| body.frame().now_or_never()) {
            Some(frame) => frame,
            None => {
                if let Err(error) = replies.flush().await {
                    return gone(&error);
                }
                body.frame().await
            }
        };
        let Some(frame) = frame else {
            return convert::outcome(&HeaderMap::new());
        };
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => {
                for piece in cut(data) {
                    if let Err(error) = replies.gather(piece).await {
                        return gone(&error);
                    }
                }
            }
            // Nothing comes after the trailers.
            Ok(Err(frame)) => return convert::outcome(&frame.into_trailers().unwrap_or_default()),
            Err(status) => return convert::reply(&status),
        }
    }
}

/// What a body gives when it is asked: a frame, or its end.
type Given = Option<Result<Frame<Bytes>, ::tonic::Status>>;

/// The frames of a body that are there at once, up to two, and whether the body is at its end with them. A unary call's is, which tonic
/// gives as one frame and the trailers; and so is a stream's whose messages are all there and few.
fn start(body: &mut Body) -> ([Option<Given>; 2], bool) {
    let first = body.frame().now_or_never();
    let data = |given: &Given| match given {
        Some(Ok(frame)) => frame.data_ref().map(Bytes::len),
        _ => None,
    };
    match first.as_ref().and_then(data) {
        // A body may not be asked after its end.
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

/// The requests of a body: at once when there is only one, as in a unary call, else in pieces. Why they failed is noted.
pub(super) fn requests(mut body: Body, failed: &RequestsFailed) -> Asking {
    let Some(frame) = body.frame().now_or_never() else {
        return Asking::Stream(pieces(body, failed).fuse().boxed());
    };
    let first = match frame {
        // Not every body can be asked again after its end.
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
