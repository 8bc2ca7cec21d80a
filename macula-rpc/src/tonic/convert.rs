//! Between gRPC's headers, trailers and statuses and the mesh's.

use std::time::Duration;

use ::tonic::{
    Code,
    codegen::http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE as CONTENT_TYPE_KEY},
    metadata::MetadataMap,
};
use bytes::Bytes;
use macula_transport::{Metadata, Reply};
use macula_wire::{StatusCode, proto::MetadataEntry};
use prost::Message as _;

use crate::{CallError, Cause, Status};

/// Headers that say something of the connection or travel otherwise.
const NOT_CARRIED: [&str; 3] = ["te", "grpc-timeout", "host"];

/// What every request and every reply is, unless it says something else: it is not carried, and put back.
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

fn is_implied(key: &HeaderName, value: &HeaderValue) -> bool {
    key == CONTENT_TYPE_KEY && value == "application/grpc"
}

/// The headers of a reply, as its first message.
#[derive(Clone, PartialEq, prost::Message)]
struct Headers {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<MetadataEntry>,
}

pub(super) fn metadata(headers: &HeaderMap) -> Metadata {
    let carried = headers
        .iter()
        .filter(|(key, value)| !NOT_CARRIED.contains(&key.as_str()) && !is_implied(key, value));
    carried
        .map(|(key, value)| (key.as_str(), Bytes::copy_from_slice(value.as_bytes())))
        .collect()
}

/// The value of a header; faster than a lookup where there are few, as nearly always.
fn find<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h HeaderValue> {
    if headers.len() > 4 {
        return headers.get(name);
    }
    headers
        .iter()
        .find(|(key, _)| key.as_str() == name)
        .map(|(_, value)| value)
}

/// Whether these are the headers of a reply without a body: they have the outcome.
pub(super) fn has_outcome(headers: &HeaderMap) -> bool {
    find(headers, GRPC_STATUS.as_str()).is_some()
}

/// The headers of a request, what is implied among them.
pub(super) fn request_headers(metadata: &Metadata) -> HeaderMap {
    with_implied(headers(metadata.iter()))
}

fn with_implied(mut headers: HeaderMap) -> HeaderMap {
    headers.entry(CONTENT_TYPE_KEY).or_insert(CONTENT_TYPE);
    headers
}

/// What is not a header is left out: it came from a peer.
pub(super) fn headers<'a>(entries: impl Iterator<Item = (&'a str, &'a Bytes)>) -> HeaderMap {
    let read = |(key, value): (&str, &Bytes)| {
        let key = HeaderName::from_bytes(key.as_bytes()).ok()?;
        Some((key, HeaderValue::from_maybe_shared(value.clone()).ok()?))
    };
    let mut headers = HeaderMap::new();
    for (key, value) in entries.filter_map(read) {
        headers.append(key, value);
    }
    headers
}

pub(super) fn header_message(headers: &HeaderMap) -> Bytes {
    let entry = |(key, value): (&HeaderName, &HeaderValue)| MetadataEntry {
        key: key.as_str().to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    let carried = headers.iter().filter(|(key, value)| !is_implied(key, value));
    let message = Headers {
        entries: carried.map(entry).collect(),
    };
    message.encode_to_vec().into()
}

/// The headers of a first message; `None` when it is something else, from a provider that does not speak gRPC here.
pub(super) fn read_header_message(message: Bytes) -> Option<HeaderMap> {
    let message = Headers::decode(message).ok()?;
    let entries = message.entries.iter().map(|entry| (entry.key.as_str(), &entry.value));
    Some(with_implied(headers(entries)))
}

/// gRPC's trailers (or the headers of a reply without a body) as the outcome.
pub(super) fn outcome(trailers: &HeaderMap) -> Reply {
    // The usual one, without the copies of a status.
    if trailers.len() == 1 && find(trailers, GRPC_STATUS.as_str()).is_some_and(|status| status == "0") {
        return Reply::ok(Bytes::new());
    }
    let Some(status) = ::tonic::Status::from_header_map(trailers) else {
        return Reply::error(StatusCode::Unknown, "the service ended without a status");
    };
    reply(&status)
}

/// A status as the outcome.
pub(super) fn reply(status: &::tonic::Status) -> Reply {
    let code = u32::try_from(i32::from(status.code())).map_or(StatusCode::Unknown, StatusCode::from_u32);
    let reply = match code {
        StatusCode::Ok => Reply::ok(Bytes::new()),
        code => Reply::error(code, status.message()),
    };
    reply
        .with_details(Bytes::copy_from_slice(status.details()))
        .with_metadata(metadata(status.metadata().as_ref()))
}

pub(super) fn grpc_status(status: &Status) -> ::tonic::Status {
    ::tonic::Status::with_details_and_metadata(
        code(status.code()),
        status.message(),
        status.details().clone(),
        MetadataMap::from_headers(headers(status.metadata().iter())),
    )
}

fn code(code: StatusCode) -> Code {
    Code::from_i32(i32::try_from(code.as_u32()).unwrap_or(Code::Unknown as i32))
}

/// The outcome as gRPC's trailers.
pub(super) fn trailers(metadata: &Metadata) -> HeaderMap {
    let mut trailers = headers(metadata.iter());
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

/// What a tonic application is told of a call that failed: the service's own status where there is one.
pub(super) fn error(error: &CallError) -> ::tonic::Status {
    // Of several providers the one that did answer says more than those that could not.
    let answered = error.attempts().iter().rev().find_map(|attempt| match &attempt.cause {
        Cause::Answered(status) => Some(status),
        _ => None,
    });
    match (error, answered) {
        (CallError::Answered { status, .. }, _) => grpc_status(status),
        // As a gRPC server that does not have the service.
        (CallError::ServiceNotFound { .. } | CallError::InvalidName(_), _) => {
            ::tonic::Status::unimplemented(error.to_string())
        }
        (CallError::DeadlineExceeded { .. }, _) => ::tonic::Status::deadline_exceeded(error.to_string()),
        (CallError::MetadataTooLarge { .. } | CallError::RequestTooLarge { .. }, _) => {
            ::tonic::Status::resource_exhausted(error.to_string())
        }
        (_, Some(status)) => grpc_status(status),
        _ => ::tonic::Status::unavailable(error.to_string()),
    }
}

/// The time of a `grpc-timeout`, as gRPC over HTTP/2 writes it: at most eight digits and a unit.
pub(super) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = find(headers, "grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &'static str) -> Option<Duration> {
        timeout(&HeaderMap::from_iter([(
            HeaderName::from_static("grpc-timeout"),
            HeaderValue::from_static(text),
        )]))
    }

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(read("100m"), Some(Duration::from_millis(100)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "m", "100", "100x", "-1S", "123456789S"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn headers_survive_their_message_and_other_bytes_do_not_panic() {
        let mut headers = HeaderMap::new();
        headers.append("key", HeaderValue::from_static("one"));
        headers.append("key", HeaderValue::from_static("two"));
        headers.insert(CONTENT_TYPE_KEY, HeaderValue::from_static("application/grpc+proto"));
        assert_eq!(read_header_message(header_message(&headers)), Some(headers));
        assert_eq!(read_header_message(Bytes::from_static(b"\xff\xff")), None);
    }

    #[test]
    fn what_every_message_says_is_not_carried_and_put_back() {
        let usual = HeaderMap::from_iter([(CONTENT_TYPE_KEY, CONTENT_TYPE)]);
        assert!(header_message(&usual).is_empty() && metadata(&usual).is_empty());
        assert_eq!(read_header_message(Bytes::new()), Some(usual.clone()));
        assert_eq!(request_headers(&metadata(&usual)), usual);
        let mut other = usual;
        other.insert(CONTENT_TYPE_KEY, HeaderValue::from_static("application/grpc+json"));
        other.insert("user-agent", HeaderValue::from_static("somebody/1"));
        assert_eq!(request_headers(&metadata(&other)), other);
    }
}
