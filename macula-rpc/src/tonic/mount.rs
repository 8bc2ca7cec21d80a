//! gRPC servers as services of the mesh: the calls, and their replies in pieces.

use std::{array::IntoIter, iter::Flatten, sync::Arc};

use ::tonic::{
    ConnectError,
    body::Body,
    codegen::{
        Service,
        http::{self, HeaderMap, Request, Response, Uri, uri::PathAndQuery},
    },
};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use macula_transport::Metadata;
use macula_wire::StatusCode;

use super::{
    convert,
    headers::{self, HeaderLimits},
};
use crate::{
    Requests, Status,
    streaming::{Answers, MAX_WHOLE_BYTES},
};

/// Bytes of gRPC's that are sent as one message: far below the limit of a message, so that large gRPC messages flow.
pub(super) const PIECE_BYTES: usize = 256 * 1024;

/// The error of a layer.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

type Responding = BoxFuture<'static, Result<Response<Body>, ::tonic::Status>>;

/// A server of gRPC calls, its type forgotten.
pub(crate) struct Mounted {
    call: Box<dyn Fn(Request<Body>) -> Responding + Send + Sync>,
}

impl Mounted {
    pub(super) fn new<S, B>(service: S) -> Self
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

/// Whether the service is a channel to another server that could not connect: it has sent nothing.
fn is_unconnected(error: &BoxError) -> bool {
    let first: &(dyn std::error::Error + 'static) = error.as_ref();
    std::iter::successors(Some(first), |error| error.source()).any(|error| error.is::<ConnectError>())
}

/// A layer's error, such as a time limit's, or that it sheds load.
fn failed(error: BoxError) -> ::tonic::Status {
    if is_unconnected(&error) {
        return not_started(error);
    }
    #[cfg(feature = "tower")]
    if error.is::<::tower::load_shed::error::Overloaded>() {
        let mut status = ::tonic::Status::resource_exhausted("the service runs as many calls as its limit allows");
        status.set_source(Arc::new(NotStarted(error)));
        return status;
    }
    ::tonic::Status::from_error(error)
}

impl Mounted {
    /// Answers a call.
    pub(crate) async fn open(&self, request: crate::Request<Requests>) -> Result<Answers, Status> {
        let limits = HeaderLimits::of_peer(request.peer());
        let answer = (self.call)(http_request(request)?);
        match answer.await {
            Ok(response) => GrpcReply::of(response, limits),
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
    fn of(response: Response<Body>, limits: HeaderLimits) -> Result<Answers, Status> {
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
        let headers = headers::message(&parts.headers, limits);
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
