//! Between gRPC's headers, trailers and statuses and the mesh's.

use std::time::Duration;

use ::tonic::{
    Code,
    codegen::http::{self, HeaderMap, HeaderName, HeaderValue},
    metadata::MetadataMap,
};
use bytes::Bytes;
use macula_select::MAX_CALL_TIMEOUT;
use macula_transport::{Metadata, Pushback};
use macula_wire::StatusCode;

use super::headers::{self, HeadersError};
use crate::{CallError, Status};

/// The trailer with the pause before the next try, in milliseconds. A negative number, or no number, forbids the next try (gRFC A6).
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The value of a header; faster than a lookup in the usual short list.
fn find<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h HeaderValue> {
    if headers.len() > 4 {
        return headers.get(name);
    }
    headers
        .iter()
        .find(|(key, _)| key.as_str() == name)
        .map(|(_, value)| value)
}

/// Whether these are the headers of a reply without a body, which hold its outcome.
pub(super) fn has_outcome(headers: &HeaderMap) -> bool {
    find(headers, GRPC_STATUS.as_str()).is_some()
}

/// The metadata of gRPC's trailers, or of the headers of a reply without a body; an error unless their status is ok.
pub(super) fn outcome(trailers: &HeaderMap) -> Result<Metadata, Status> {
    // The common outcome, without the copies that a status makes.
    if trailers.len() == 1 && find(trailers, GRPC_STATUS.as_str()).is_some_and(|status| status == "0") {
        return Ok(Metadata::new());
    }
    match ::tonic::Status::from_header_map(trailers) {
        None => Err(Status::new(StatusCode::Unknown, "the service ended without a status")),
        Some(status) if status.code() == Code::Ok => Ok(headers::to_metadata(status.metadata().as_ref())),
        Some(error) => Err(self::status(&error)),
    }
}

/// The outcome of a reply without a gRPC status, by its HTTP status
/// (<https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>).
pub(super) fn http_outcome(status: http::StatusCode) -> Status {
    let code = match status.as_u16() {
        400 => StatusCode::Internal,
        401 => StatusCode::Unauthenticated,
        403 => StatusCode::PermissionDenied,
        404 => StatusCode::Unimplemented,
        429 | 502..=504 => StatusCode::Unavailable,
        _ => StatusCode::Unknown,
    };
    Status::new(
        code,
        format!("the service answered with the HTTP status {status} and no gRPC status"),
    )
}

pub(super) fn code_of(status: &::tonic::Status) -> StatusCode {
    u32::try_from(i32::from(status.code())).map_or(StatusCode::Unknown, StatusCode::from_u32)
}

/// A gRPC status as the mesh's.
pub(super) fn status(status: &::tonic::Status) -> Status {
    let mut trailers = status.metadata().clone().into_headers();
    let asked = trailers.remove(PUSHBACK).map(|asked| pushback(&asked));
    Status::new(code_of(status), status.message())
        .with_pushback_of(asked)
        .with_details(Bytes::copy_from_slice(status.details()))
        .with_metadata(headers::to_metadata(&trailers))
}

fn pushback(trailer: &HeaderValue) -> Pushback {
    let asked = trailer.to_str().ok().and_then(|text| text.trim().parse().ok());
    asked.map_or(Pushback::Never, |ms| Pushback::After(Duration::from_millis(ms)))
}

/// Writes the pushback as a trailer that fits callers which count milliseconds in 32 bits.
fn put_pushback(asked: Option<Pushback>, trailers: &mut HeaderMap) {
    let ms = match asked {
        None => return,
        Some(Pushback::Never) => -1,
        Some(Pushback::After(pause)) => i32::try_from(pause.as_millis()).unwrap_or(i32::MAX),
    };
    trailers.insert(PUSHBACK, ms.into());
}

/// A mesh status as gRPC's. Metadata over the limit is left out, and the message says so.
pub(super) fn grpc_status(status: &Status) -> ::tonic::Status {
    let (mut trailers, message) = match headers::from_metadata(status.metadata()) {
        Ok(trailers) => (trailers, status.message().to_owned()),
        Err(error) => (HeaderMap::new(), format!("{} (left out: {error})", status.message())),
    };
    put_pushback(status.pushback(), &mut trailers);
    ::tonic::Status::with_details_and_metadata(
        code(status.code()),
        message,
        status.details().clone(),
        MetadataMap::from_headers(trailers),
    )
}

fn code(code: StatusCode) -> Code {
    Code::from_i32(i32::try_from(code.as_u32()).unwrap_or(Code::Unknown as i32))
}

/// The trailers of a call that succeeded.
pub(super) fn trailers(metadata: &Metadata) -> Result<HeaderMap, ::tonic::Status> {
    let mut trailers = headers::from_metadata(metadata).map_err(|error| too_large("trailers", error))?;
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    Ok(trailers)
}

/// The status of a call whose reply has more headers or trailers than are read or sent.
pub(super) fn too_large(list: &str, error: HeadersError) -> ::tonic::Status {
    ::tonic::Status::resource_exhausted(format!("the reply's {list}: {error}"))
}

/// The application's status for a call that failed: the service's own, if a provider answered.
pub(super) fn error(error: &CallError) -> ::tonic::Status {
    match error {
        CallError::Answered { status, .. } => return grpc_status(status),
        // A gRPC server without the service answers the same.
        CallError::ServiceNotFound { .. } | CallError::InvalidName(_) => {
            return ::tonic::Status::unimplemented(error.to_string());
        }
        CallError::DeadlineExceeded { .. } => return ::tonic::Status::deadline_exceeded(error.to_string()),
        CallError::MetadataTooLarge { .. } | CallError::RequestTooLarge { .. } => {
            return ::tonic::Status::resource_exhausted(error.to_string());
        }
        _ => {}
    }
    if let Some(status) = error.last_answer() {
        return grpc_status(status);
    }
    let mut trailers = HeaderMap::new();
    let last = error.attempts().last();
    put_pushback(last.and_then(|attempt| attempt.cause.pushback()), &mut trailers);
    let trailers = MetadataMap::from_headers(trailers);
    ::tonic::Status::with_metadata(Code::Unavailable, error.to_string(), trailers)
}

/// A call with this much time left has no deadline of its own: the wire gives such a call the longest time there is, and its handler
/// sees no timeout.
const NO_DEADLINE: Duration = MAX_CALL_TIMEOUT.saturating_sub(Duration::from_secs(60));

/// Tells a handler how much time its caller has, in the header that tonic's handlers read.
pub(super) fn set_timeout(headers: &mut HeaderMap, left: Duration) {
    headers.remove("grpc-timeout");
    if left >= NO_DEADLINE {
        return;
    }
    // Eight digits: up to 100 s in microseconds, and anything shorter than a day in milliseconds.
    let text = match left.as_micros() {
        micros @ ..100_000_000 => format!("{micros}u"),
        _ => format!("{}m", left.as_millis()),
    };
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert("grpc-timeout", value);
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

    /// gRFC A6: a number is a pause, and anything else forbids the next try.
    #[test]
    fn f9_pushback_is_read_and_written_as_grpc_says() {
        let after = |ms| Pushback::After(Duration::from_millis(ms));
        for (text, asked) in [
            ("0", after(0)),
            ("1500", after(1500)),
            ("-1", Pushback::Never),
            ("", Pushback::Never),
            ("soon", Pushback::Never),
            ("99999999999999999999", Pushback::Never),
        ] {
            assert_eq!(pushback(&HeaderValue::from_static(text)), asked, "{text:?}");
        }
        let mut trailers = HeaderMap::new();
        put_pushback(None, &mut trailers);
        assert!(trailers.is_empty());
        for (asked, text) in [
            (after(1500), "1500"),
            (after(u64::MAX), "2147483647"),
            (Pushback::Never, "-1"),
        ] {
            put_pushback(Some(asked), &mut trailers);
            assert_eq!(trailers[PUSHBACK], text);
        }
    }

    #[test]
    fn the_time_left_is_told_in_eight_digits() {
        for (left, told) in [
            (Duration::ZERO, Some(Duration::ZERO)),
            (
                Duration::from_nanos(99_999_999_999),
                Some(Duration::from_micros(99_999_999)),
            ),
            (Duration::from_secs(100), Some(Duration::from_secs(100))),
            (Duration::from_secs(86_000), Some(Duration::from_secs(86_000))),
            (MAX_CALL_TIMEOUT, None),
            (Duration::MAX, None),
        ] {
            let mut headers =
                HeaderMap::from_iter([(HeaderName::from_static("grpc-timeout"), HeaderValue::from_static("1S"))]);
            set_timeout(&mut headers, left);
            assert_eq!(timeout(&headers), told, "{left:?} {headers:?}");
        }
    }

    #[test]
    fn x9_a_status_with_too_much_metadata_keeps_its_code_and_says_that_metadata_is_missing() {
        let metadata: Metadata = (0..40_000).map(|at| (format!("x-{at}"), "v")).collect();
        let status = grpc_status(&Status::new(StatusCode::NotFound, "no such thing").with_metadata(metadata.clone()));
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.metadata().is_empty());
        assert!(
            status.message().starts_with("no such thing (left out: more than "),
            "{status}"
        );
        assert_eq!(trailers(&metadata).unwrap_err().code(), Code::ResourceExhausted);
    }
}
