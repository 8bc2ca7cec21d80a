//! How a handler says that a call failed.

use std::fmt;

use bytes::Bytes;
use macula_wire::StatusCode;

/// A handler's error: a gRPC status code, a message for a person, and details for a program.
///
/// The code decides whether the caller tries another provider (F6): the caller's own faults (`invalid_argument`,
/// `not_found` and their kind) are final under the default policy, everything else is tried elsewhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Status {
    code: StatusCode,
    message: String,
    details: Bytes,
    not_started: bool,
}

impl Status {
    /// A status with this code and message.
    #[must_use]
    pub fn new(code: StatusCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: Bytes::new(),
            not_started: false,
        }
    }

    /// The request is wrong, whatever the provider.
    #[must_use]
    pub fn invalid_argument(message: impl Into<String>) -> Self {
        Self::new(StatusCode::InvalidArgument, message)
    }

    /// What was asked for does not exist.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NotFound, message)
    }

    /// The provider failed.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::Internal, message)
    }

    /// The provider cannot serve now; another may.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::Unavailable, message)
    }

    /// The provider did not start the call and another should have it: `resource_exhausted`, marked as refused, so that it
    /// is safe to try elsewhere even for a call that must not run twice (F5).
    #[must_use]
    pub fn refused(message: impl Into<String>) -> Self {
        Self::refused_with(StatusCode::ResourceExhausted, message)
    }

    pub(crate) fn refused_with(code: StatusCode, message: impl Into<String>) -> Self {
        Self {
            not_started: true,
            ..Self::new(code, message)
        }
    }

    pub(crate) fn into_parts(self) -> (StatusCode, String, Bytes, bool) {
        (self.code, self.message, self.details, self.not_started)
    }

    /// Whether the provider says that it did not start the call.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.not_started
    }

    /// Adds details for a program, as gRPC's `grpc-status-details-bin`.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<Bytes>) -> Self {
        self.details = details.into();
        self
    }

    /// The code.
    #[must_use]
    pub fn code(&self) -> StatusCode {
        self.code
    }

    /// The message for a person.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The details for a program; empty when there are none.
    #[must_use]
    pub fn details(&self) -> &Bytes {
        &self.details
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() {
            write!(f, "{}", self.code)
        } else {
            write!(f, "{}: {}", self.code, self.message)
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({self})")
    }
}

impl std::error::Error for Status {}
