//! Plain HTTP: `POST /v1/call/SERVICE[/METHOD]` with the request as the body.
//!
//! | header of the request | |
//! |---|---|
//! | `macula-timeout-ms` | how long the call may take, in milliseconds; 10 s without it, as any call |
//! | `macula-retry` | `transient` (the default), `unavailable`, `any_error`, or `never_processed` for calls that must not run twice (F6) |
//! | `macula-meta-NAME` | metadata `NAME` for the handler |
//! | `Accept: text/event-stream` | the service streams: each message is an event (WHATWG server-sent events) |
//!
//! The answer's body is the reply. `macula-provider` names the provider, `macula-attempts` says how many were tried, and the reply's
//! metadata comes as `macula-meta-NAME`. An error is a JSON object: `error` is its name, `message` is for people, `status` is the
//! handler's code when a handler answered, and `attempts` lists what was tried.
//!
//! Events carry text as it is. A message that is not UTF-8 is an event `bytes` in base64. The last event is `end`, or `error` with the
//! JSON object.

use std::{collections::HashMap, convert::Infallible, time::Duration};

use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode as Http, header},
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _, stream};
use macula_rpc::{Answer, CallBuilder, CallError, Client, Metadata, RetryPolicy};
use macula_select::MAX_CALL_TIMEOUT;
use macula_transport::{Memory, MemoryCharge};
use macula_wire::ServiceName;

use super::error::Failure;
use crate::MAX_MESSAGE_BYTES;

/// How long the body of a request may take to arrive.
pub const BODY_WITHIN: Duration = Duration::from_secs(60);
const TIMEOUT: &str = "macula-timeout-ms";
const RETRY: &str = "macula-retry";
const METADATA: &str = "macula-meta-";

/// What calls are made with.
#[derive(Clone)]
pub(super) struct Calls {
    pub(super) client: Client,
    /// Keeps the bodies of requests.
    pub(super) memory: Memory,
}

/// Makes the call that a request asks for.
pub(super) async fn call(
    State(calls): State<Calls>,
    Path(path): Path<HashMap<String, String>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    match answer(&calls, &path, &headers, body).await {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    }
}

async fn answer(
    Calls { client, memory }: &Calls,
    path: &HashMap<String, String>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let name = path.get("service").map(String::as_str).unwrap_or_default();
    let service = ServiceName::new(name).map_err(|error| Failure::from(&CallError::InvalidName(error)))?;
    let mut call = options(client.request(&service), headers)?;
    if let Some(method) = path.get("method") {
        call = call.method(method);
    }
    let payload = tokio::time::timeout(BODY_WITHIN, gather(memory, body)).await;
    // The call keeps the payload for further attempts, so it stays charged until the call ends.
    let (payload, _charge) = payload.map_err(|_| {
        let message = format!("the request's body did not arrive within {BODY_WITHIN:?}");
        Failure::request(Http::REQUEST_TIMEOUT, "request_too_slow", message)
    })??;
    if accepts_events(headers) {
        let replies = call.stream(stream::once(async { payload })).await;
        let replies = replies.map_err(|error| Failure::from(&error))?;
        return Ok(Sse::new(events(replies.into_stream()))
            .keep_alive(KeepAlive::default())
            .into_response());
    }
    let answer = call.send(payload).await.map_err(|error| Failure::from(&error))?;
    Ok(respond(answer))
}

/// Reads a body. It is charged to this node's memory for its own calls before it is kept (X6).
async fn gather(memory: &Memory, body: Body) -> Result<(Bytes, Option<MemoryCharge>), Failure> {
    let too_large = || {
        let message = format!("the request's body was cut off, or has more than {MAX_MESSAGE_BYTES} bytes");
        Failure::request(Http::PAYLOAD_TOO_LARGE, "request_too_large", message)
    };
    let mut chunks = body.into_data_stream();
    let (mut gathered, mut charge) = (BytesMut::new(), None);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| too_large())?;
        if gathered.len() + chunk.len() > MAX_MESSAGE_BYTES {
            return Err(too_large());
        }
        let has_room = match &mut charge {
            None => {
                charge = memory.charge(chunk.len());
                charge.is_some()
            }
            Some(charge) => charge.grow(chunk.len()),
        };
        if !has_room {
            let message = "this node has no memory left for the request's body; try again later";
            return Err(Failure::request(Http::SERVICE_UNAVAILABLE, "out_of_memory", message));
        }
        gathered.extend_from_slice(&chunk);
    }
    Ok((gathered.freeze(), charge))
}

/// The options that the headers name.
fn options(mut call: CallBuilder, headers: &HeaderMap) -> Result<CallBuilder, Failure> {
    let wrong = |name: &str, right: &str| {
        let message = format!("the header {name} is not {right}");
        Failure::request(Http::BAD_REQUEST, "invalid_header", message)
    };
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    if let Some(millis) = text(TIMEOUT) {
        let millis = millis.parse().ok().filter(|&millis| millis > 0);
        let timeout = Duration::from_millis(millis.ok_or_else(|| wrong(TIMEOUT, "a number of milliseconds"))?);
        call = call.timeout(timeout.min(MAX_CALL_TIMEOUT));
    }
    if let Some(policy) = text(RETRY) {
        call = call.retry_policy(match policy {
            "transient" => RetryPolicy::Transient,
            "unavailable" => RetryPolicy::Unavailable,
            "any_error" => RetryPolicy::AnyError,
            "never_processed" => RetryPolicy::NeverProcessed,
            _ => return Err(wrong(RETRY, "transient, unavailable, any_error or never_processed")),
        });
    }
    let mut metadata = Metadata::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(METADATA).filter(|key| !key.is_empty()) {
            metadata.push(key, Bytes::copy_from_slice(value.as_bytes()));
        }
    }
    Ok(if metadata.is_empty() {
        call
    } else {
        call.metadata(metadata)
    })
}

fn accepts_events(headers: &HeaderMap) -> bool {
    let mut accepted = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    accepted.any(|accepted| {
        accepted
            .split(',')
            .any(|kind| kind.trim().starts_with("text/event-stream"))
    })
}

fn respond(answer: Answer) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    let attempts = answer.failed_attempts().len() + 1;
    headers.insert("macula-attempts", HeaderValue::from(attempts));
    let provider = answer.provider().map(|provider| provider.node_id.to_string());
    if let Some(Ok(provider)) = provider.map(HeaderValue::try_from) {
        headers.insert("macula-provider", provider);
    }
    let (payload, metadata) = answer.into_response().into_parts();
    for (key, value) in metadata.iter() {
        // Metadata whose name or value HTTP cannot carry is for callers of the mesh alone.
        let name = HeaderName::try_from(format!("{METADATA}{key}"));
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value))
            && headers.try_append(name, value).is_err()
        {
            // The map is full, which `append` would answer with a panic (X9).
            break;
        }
    }
    (headers, payload).into_response()
}

/// The messages of a reply as events, and its end as the last.
fn events(
    replies: impl Stream<Item = Result<Bytes, CallError>> + Send,
) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    let end = stream::once(async { None });
    let ended = std::sync::atomic::AtomicBool::new(false);
    replies.map(Some).chain(end).filter_map(move |reply| {
        let event = match reply {
            Some(Ok(message)) => Some(event(&message)),
            Some(Err(error)) => {
                ended.store(true, std::sync::atomic::Ordering::Relaxed);
                let told = Failure::from(&error).into_json();
                Some(Event::default().event("error").data(told.to_string()))
            }
            None if ended.load(std::sync::atomic::Ordering::Relaxed) => None,
            None => Some(Event::default().event("end").data("{}")),
        };
        std::future::ready(event.map(Ok))
    })
}

fn event(message: &[u8]) -> Event {
    match std::str::from_utf8(message) {
        // A carriage return would end a line of the event, and with it the text.
        Ok(text) if !text.contains('\r') => Event::default().data(text),
        Ok(_) | Err(_) => Event::default().event("bytes").data(STANDARD.encode(message)),
    }
}
