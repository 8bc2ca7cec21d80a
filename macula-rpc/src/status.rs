//! The error of a handler.

use std::fmt::{self, Write as _};

use bytes::Bytes;
use macula_transport::{CallReply, Metadata, Pushback, Reply};
use macula_wire::StatusCode;

/// A handler's error: a gRPC status code, a message for a person, and details for a program.
///
/// The code decides whether the caller tries another provider (F6): the codes of a caller's own fault, such as `invalid_argument` and
/// `not_found`, are final under the default policy, and other errors are tried elsewhere.
#[derive(Clone, PartialEq)]
pub struct Status {
    code: StatusCode,
    message: String,
    /// Boxed because few statuses have one, and results stay small.
    extra: Option<Box<Extra>>,
    not_started: bool,
}

/// The optional parts of a status.
#[derive(Clone, PartialEq, Default)]
struct Extra {
    details: Bytes,
    metadata: Metadata,
    pushback: Option<Pushback>,
}

static NO_DETAILS: Bytes = Bytes::new();
static NO_METADATA: Metadata = Metadata::new();

impl Status {
    /// A status with this code and message.
    #[must_use]
    pub fn new(code: StatusCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            extra: None,
            not_started: false,
        }
    }

    /// The request is wrong at every provider.
    #[must_use]
    pub fn invalid_argument(message: impl Into<String>) -> Self {
        Self::new(StatusCode::InvalidArgument, message)
    }

    /// The requested thing does not exist.
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

    /// The provider did not start the call, and another should: `resource_exhausted`, marked as refused. Even a call that must not run
    /// twice is then tried elsewhere (F5).
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

    /// The status as a reply.
    pub(crate) fn into_reply(self) -> Reply {
        let reply = if self.not_started {
            Reply::refused(self.code, self.message)
        } else {
            Reply::error(self.code, self.message)
        };
        let Some(extra) = self.extra else {
            return reply;
        };
        let reply = reply.with_details(extra.details).with_metadata(extra.metadata);
        match extra.pushback {
            Some(asked) => reply.with_pushback(asked),
            None => reply,
        }
    }

    /// Whether the provider did not start the call.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.not_started
    }

    /// Adds details for a program, as gRPC's `grpc-status-details-bin`.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<Bytes>) -> Self {
        let details = details.into();
        if !details.is_empty() || self.extra.is_some() {
            self.extra.get_or_insert_default().details = details;
        }
        self
    }

    /// Sets the metadata beside the status.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        if !metadata.is_empty() || self.extra.is_some() {
            self.extra.get_or_insert_default().metadata = metadata;
        }
        self
    }

    /// Asks callers to try again later, or not at all (F9): gRPC's `grpc-retry-pushback-ms`. Clients honour it.
    #[must_use]
    pub fn with_pushback(self, asked: Pushback) -> Self {
        self.with_pushback_of(Some(asked))
    }

    pub(crate) fn with_pushback_of(mut self, asked: Option<Pushback>) -> Self {
        if asked.is_some() || self.extra.is_some() {
            self.extra.get_or_insert_default().pushback = asked;
        }
        self
    }

    /// A peer's status.
    pub(crate) fn from_reply(reply: CallReply) -> Self {
        Self::new(reply.status, reply.message())
            .with_details(reply.details().clone())
            .with_pushback_of(reply.pushback())
            .with_metadata(reply.metadata)
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

    /// The metadata beside the status.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        self.extra.as_ref().map_or(&NO_METADATA, |extra| &extra.metadata)
    }

    /// The provider's wish for the next try, if it has one.
    #[must_use]
    pub fn pushback(&self) -> Option<Pushback> {
        self.extra.as_ref().and_then(|extra| extra.pushback)
    }

    /// The details for a program; empty when there are none.
    #[must_use]
    pub fn details(&self) -> &Bytes {
        self.extra.as_ref().map_or(&NO_DETAILS, |extra| &extra.details)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if !self.message.is_empty() {
            f.write_str(": ")?;
        }
        // A peer wrote the message, and an error must stay one line on a terminal and in a log.
        self.message.chars().try_for_each(|c| match c.is_control() {
            true => write!(f, "{}", c.escape_default()),
            false => f.write_char(c),
        })
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({self})")
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_line_whatever_its_message() {
        let status = Status::unavailable("no ✓\n\x1b[31mred\tline");
        assert_eq!(status.to_string(), "unavailable: no ✓\\n\\u{1b}[31mred\\tline");
        assert_eq!(status.message(), "no ✓\n\x1b[31mred\tline");
        assert_eq!(Status::new(StatusCode::NotFound, "").to_string(), "not_found");
    }
}
