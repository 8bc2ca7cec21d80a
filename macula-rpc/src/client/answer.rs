//! The answer to a call.

use std::sync::Arc;

use bytes::Bytes;
use macula_wire::ServiceName;

use crate::{CallError, Decode, Provider, Response, Source, error::Attempt};

/// The answer to a successful call, its payload as bytes or as a message.
#[derive(Debug, Clone)]
pub struct Answer<T = Bytes> {
    pub(super) response: Response<T>,
    pub(super) provider: Option<Arc<Provider>>,
    pub(super) source: AnswerSource,
    pub(super) failed_attempts: Vec<Attempt>,
}

/// The step of the directory's order that gave the answering provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AnswerSource {
    /// A handler of this process: no network.
    Local,
    /// A provider that a directory listed.
    Directory(Source),
    /// A router, which served the call itself or forwarded it.
    Router,
}

impl AnswerSource {
    /// The step's name in spans and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Directory(source) => source.name(),
            Self::Router => "router",
        }
    }
}

impl<T> Answer<T> {
    /// The answer's payload.
    #[must_use]
    pub fn payload(&self) -> &T {
        self.response.payload()
    }

    /// The answer with its metadata, taken.
    #[must_use]
    pub fn into_response(self) -> Response<T> {
        self.response
    }

    /// The provider that answered; `None` for a handler of this process.
    #[must_use]
    pub fn provider(&self) -> Option<&Provider> {
        self.provider.as_deref()
    }

    /// The step of the directory's order that gave the provider.
    #[must_use]
    pub fn source(&self) -> AnswerSource {
        self.source
    }

    /// The attempts that failed before the one that answered, in the order of their starts.
    #[must_use]
    pub fn failed_attempts(&self) -> &[Attempt] {
        &self.failed_attempts
    }
}

impl Answer {
    /// The same answer with its payload read as a message. When the message cannot be read, no other provider is tried: the call
    /// has run.
    pub(super) fn decode<T: Decode>(self, service: ServiceName) -> Result<Answer<T>, CallError> {
        let node_id = self.provider.as_ref().map(|provider| provider.node_id);
        match self.response.decode() {
            Ok(response) => Ok(Answer {
                response,
                provider: self.provider,
                source: self.source,
                failed_attempts: self.failed_attempts,
            }),
            Err(source) => Err(CallError::Undecodable {
                service,
                node_id,
                source,
            }),
        }
    }
}
