//! Errors of plain HTTP: a status line that proxies understand, and a JSON body for people and programs.

use axum::{
    http::{HeaderName, HeaderValue, StatusCode as Http, header},
    response::{IntoResponse, Response},
};
use macula_rpc::{Attempt, CallError};
use macula_wire::StatusCode;
use serde_json::{Value, json};

/// What a client without a token is told.
pub(super) const NO_TOKEN: &str = "this ingress wants a token: send `Authorization: Bearer TOKEN`";

/// An error as it is answered.
#[derive(Debug)]
pub(super) struct Failure {
    status: Http,
    body: Box<Value>,
    header: Option<Box<(HeaderName, HeaderValue)>>,
}

impl Failure {
    /// The request itself is wrong.
    pub(super) fn request(status: Http, name: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            body: json!({"error": name, "message": message.into(), "attempts": []}).into(),
            header: None,
        }
    }

    /// The same as one line, for a stream that has begun.
    pub(super) fn into_json(self) -> Value {
        *self.body
    }
}

/// The request brings no token.
pub(super) fn unauthorized() -> Failure {
    Failure {
        header: Some(Box::new((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")))),
        ..Failure::request(Http::UNAUTHORIZED, "unauthenticated", NO_TOKEN)
    }
}

impl From<&CallError> for Failure {
    fn from(error: &CallError) -> Self {
        let (status, answered) = match error {
            CallError::Answered { status, .. } => (of_code(status.code()), Some(status)),
            CallError::ServiceNotFound { .. } => (Http::NOT_FOUND, None),
            CallError::InvalidName(_) | CallError::RequestsFailed { .. } | CallError::NotHedged { .. } => {
                (Http::BAD_REQUEST, None)
            }
            CallError::DeadlineExceeded { .. } => (Http::GATEWAY_TIMEOUT, None),
            CallError::MetadataTooLarge { .. } => (Http::REQUEST_HEADER_FIELDS_TOO_LARGE, None),
            CallError::RequestTooLarge { .. } => (Http::PAYLOAD_TOO_LARGE, None),
            CallError::Undecodable { .. } => (Http::BAD_GATEWAY, None),
            CallError::Unencodable { .. } => (Http::INTERNAL_SERVER_ERROR, None),
            // Providers failed or could not be reached; a later try may do better.
            _ => (Http::SERVICE_UNAVAILABLE, None),
        };
        let attempts: Vec<_> = error.attempts().iter().map(attempt).collect();
        Self {
            status,
            body: json!({
                "error": error.name(),
                "message": error.to_string(),
                "status": answered.map(|status| status.code().name()),
                "attempts": attempts,
            })
            .into(),
            header: None,
        }
    }
}

/// One attempt, in the words of `macula call --json`.
fn attempt(attempt: &Attempt) -> Value {
    json!({
        "provider": attempt.node_id.to_string(),
        "endpoint": attempt.endpoint.as_ref().map(ToString::to_string),
        "cause": attempt.cause.to_string(),
    })
}

/// The status line for a handler's status code, as Google's APIs map them (google.rpc.Code).
fn of_code(code: StatusCode) -> Http {
    match code {
        StatusCode::Ok => Http::OK,
        StatusCode::InvalidArgument | StatusCode::FailedPrecondition | StatusCode::OutOfRange => Http::BAD_REQUEST,
        StatusCode::Unauthenticated => Http::UNAUTHORIZED,
        StatusCode::PermissionDenied => Http::FORBIDDEN,
        StatusCode::NotFound => Http::NOT_FOUND,
        StatusCode::AlreadyExists | StatusCode::Aborted => Http::CONFLICT,
        StatusCode::ResourceExhausted => Http::TOO_MANY_REQUESTS,
        // nginx's number for a client that went away; HTTP has none.
        StatusCode::Cancelled => Http::from_u16(499).unwrap_or(Http::INTERNAL_SERVER_ERROR),
        StatusCode::Unimplemented => Http::NOT_IMPLEMENTED,
        StatusCode::Unavailable => Http::SERVICE_UNAVAILABLE,
        StatusCode::DeadlineExceeded => Http::GATEWAY_TIMEOUT,
        StatusCode::Unknown | StatusCode::Internal | StatusCode::DataLoss => Http::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        (
            self.status,
            headers,
            self.header.map(|header| [*header]),
            format!("{}\n", self.body),
        )
            .into_response()
    }
}
