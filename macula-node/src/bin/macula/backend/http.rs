//! `http://` services: each call is a request to an HTTP server beside the node.
//!
//! | of the call | of the request |
//! |---|---|
//! | service and method | the path of the service, and `/METHOD` after it |
//! | metadata `http-method` | the method, `POST` without it |
//! | other metadata | headers, unless they are of the connection |
//! | request, or stream of requests | the body |
//! | caller and time left | `macula-caller`, a node id, and `macula-timeout-ms` |
//!
//! The answer's body is the reply: one message up to [`MAX_MESSAGE_BYTES`]. A longer body, and one of `text/event-stream`, is a stream with
//! a message for each piece that arrives. The answer's headers are the reply's metadata. A status that is no success is the call's
//! outcome, by the mapping of google.rpc.Code that the ingress uses the other way round. A server that cannot be connected to has not
//! started the call.

use std::time::Instant;

use axum::body::Body;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use http_body_util::BodyExt as _;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use macula_node::{
    Bytes, MAX_MESSAGE_BYTES, Metadata, ReplyStream, Request, Requests, Response, Status, StatusCode, StreamHandler,
};
use tonic::codegen::http::{self, HeaderName, HeaderValue, Method, Uri, header};

/// The metadata that names the method of the request.
const METHOD: &str = "http-method";
/// The longest text of a failed answer that its caller is sent, in bytes.
const MAX_TEXT_BYTES: usize = 1024;
/// Headers of the connection, or that are made here.
const NOT_CARRIED: [&str; 13] = [
    "connection",
    "content-length",
    "expect",
    "host",
    METHOD,
    "keep-alive",
    "macula-caller",
    "macula-timeout-ms",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A service of an HTTP server.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    at: Uri,
    client: Client<HttpConnector, Body>,
}

impl Http {
    pub(crate) fn new(at: Uri) -> Self {
        let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        Self { at, client }
    }

    /// Makes the request that a call asks for.
    async fn call(self, call: Request<Requests>) -> Result<Response<ReplyStream>, Status> {
        let request = request(&self.at, call)?;
        let answer = self.client.request(request).await;
        let answer = answer.map_err(|error| match error.is_connect() {
            true => Status::refused("the service's HTTP server cannot be reached"),
            false => Status::unavailable("the service's HTTP server ended the request"),
        })?;
        let (parts, mut body) = answer.into_parts();
        if !parts.status.is_success() {
            return Err(outcome(parts.status, &text(body).await));
        }
        let metadata = metadata(&parts.headers);
        let kind = parts.headers.get(header::CONTENT_TYPE);
        let streams = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let (whole, beyond) = match streams {
            true => (Bytes::new(), None),
            false => read(&mut body).await?,
        };
        let whole = Some(whole).filter(|whole| !whole.is_empty());
        let first = stream::iter(whole.into_iter().chain(beyond).map(Ok));
        let rest = stream::unfold(body, async |mut body| {
            let piece = piece(&mut body).await.transpose()?;
            Some((piece, body))
        });
        Ok(Response::new(first.chain(rest).boxed()).with_metadata(metadata))
    }
}

impl StreamHandler for Http {
    fn handle(&self, call: Request<Requests>) -> BoxFuture<'static, Result<Response<ReplyStream>, Status>> {
        Box::pin(self.clone().call(call))
    }
}

fn request(at: &Uri, call: Request<Requests>) -> Result<http::Request<Body>, Status> {
    let asked = call.metadata().get(METHOD);
    let method = asked.map_or(Ok(Method::POST), |name| Method::from_bytes(name));
    let method = method.map_err(|_| Status::invalid_argument(format!("the metadata {METHOD} is no method of HTTP")))?;
    let mut request = http::Request::builder().method(method).uri(uri(at, call.method())?);
    for (name, value) in call.metadata().iter() {
        let pair = (HeaderName::try_from(name), HeaderValue::from_bytes(value));
        // Metadata that HTTP cannot carry is for other handlers.
        if let (Ok(name), Ok(value)) = pair
            && !NOT_CARRIED.contains(&name.as_str())
        {
            request = request.header(name, value);
        }
    }
    if let Some(peer) = call.peer() {
        request = request.header("macula-caller", peer.node_id.to_string());
    }
    let left = call.deadline().saturating_duration_since(Instant::now());
    request = request.header("macula-timeout-ms", left.as_millis().to_string());
    let body = body(call.into_payload());
    request
        .body(body)
        .map_err(|_| Status::invalid_argument("the call's metadata is not one of an HTTP request"))
}

/// The path of the service, and the method as its last segment.
fn uri(at: &Uri, method: &str) -> Result<Uri, Status> {
    if method.is_empty() {
        return Ok(at.clone());
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    if !method.bytes().all(is_plain) || method.bytes().all(|byte| byte == b'.') {
        let words = "a method of an HTTP service has letters, digits, `-`, `.`, `_` and `~` only";
        return Err(Status::new(StatusCode::Unimplemented, words));
    }
    let path = format!("{}/{method}", at.path().trim_end_matches('/'));
    let mut parts = at.clone().into_parts();
    parts.path_and_query = path.parse().ok();
    Uri::from_parts(parts).map_err(|_| Status::new(StatusCode::Unimplemented, "the method makes no path"))
}

/// The requests as a body. One that is there already has its length told, because not every server reads a body without it.
fn body(requests: Requests) -> Body {
    let mut messages = stream::unfold(requests, async |mut requests| {
        let message = requests.next().await.transpose()?;
        Some((message, requests))
    })
    .fuse()
    .boxed();
    let mut ready = Vec::new();
    while ready.len() < 2 {
        match messages.next().now_or_never() {
            Some(None) => {
                let only = match ready.pop() {
                    None => Some(Bytes::new()),
                    Some(Ok(only)) if ready.is_empty() => Some(only),
                    Some(other) => {
                        ready.push(other);
                        None
                    }
                };
                match only {
                    Some(only) => return Body::from(only),
                    None => break,
                }
            }
            Some(Some(message)) => ready.push(message),
            None => break,
        }
    }
    let all = stream::iter(ready).chain(messages);
    Body::from_stream(all.map(|message| message.map_err(|gone| std::io::Error::other(gone.to_string()))))
}

/// The next piece of a body.
async fn piece(body: &mut (impl http_body::Body<Data = Bytes> + Unpin)) -> Result<Option<Bytes>, Status> {
    while let Some(frame) = body.frame().await {
        match frame.map(|frame| frame.into_data()) {
            Ok(Ok(data)) if !data.is_empty() => return Ok(Some(data)),
            // Nothing, or trailers.
            Ok(_) => {}
            Err(_) => return Err(Status::unavailable("the service's HTTP server ended its answer early")),
        }
    }
    Ok(None)
}

/// A body up to the limit of a message, and the piece that goes beyond it.
async fn read(body: &mut (impl http_body::Body<Data = Bytes> + Unpin)) -> Result<(Bytes, Option<Bytes>), Status> {
    let mut whole = Vec::new();
    while let Some(data) = piece(body).await? {
        if whole.len() + data.len() > MAX_MESSAGE_BYTES {
            return Ok((whole.into(), Some(data)));
        }
        whole.extend_from_slice(&data);
    }
    Ok((whole.into(), None))
}

/// The beginning of a failed answer, for people.
async fn text(mut body: impl http_body::Body<Data = Bytes> + Unpin) -> String {
    let mut text = Vec::new();
    while let (true, Ok(Some(data))) = (text.len() < MAX_TEXT_BYTES, piece(&mut body).await) {
        text.extend_from_slice(&data);
    }
    text.truncate(MAX_TEXT_BYTES);
    String::from_utf8_lossy(&text).trim().to_owned()
}

fn metadata(headers: &http::HeaderMap) -> Metadata {
    let carried = headers.iter().filter(|(name, _)| !NOT_CARRIED.contains(&name.as_str()));
    carried
        .map(|(name, value)| (name.as_str(), Bytes::copy_from_slice(value.as_bytes())))
        .collect()
}

/// The outcome of an answer that is no success (google.rpc.Code).
fn outcome(status: http::StatusCode, text: &str) -> Status {
    let code = match status.as_u16() {
        401 => StatusCode::Unauthenticated,
        403 => StatusCode::PermissionDenied,
        404 => StatusCode::NotFound,
        409 => StatusCode::AlreadyExists,
        429 => StatusCode::ResourceExhausted,
        400..=499 => StatusCode::InvalidArgument,
        501 => StatusCode::Unimplemented,
        502 | 503 => StatusCode::Unavailable,
        504 => StatusCode::DeadlineExceeded,
        500..=599 => StatusCode::Internal,
        // Redirections are not followed: their targets are for the caller.
        _ => StatusCode::Unknown,
    };
    let words = match text {
        "" => format!("HTTP status {status}"),
        text => format!("HTTP status {status}: {text}"),
    };
    Status::new(code, words)
}
