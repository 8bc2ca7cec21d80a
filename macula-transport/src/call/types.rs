//! Requests and replies, as callers and handlers hold them.

use std::{
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use macula_wire::{ServiceName, StatusCode, proto};

use crate::{error::Pushback, metadata::Metadata, peer::PeerInfo};

/// A call to make: the service, the request, and how long to wait.
#[derive(Debug, Clone)]
pub struct CallRequest<'a> {
    pub(crate) service: &'a ServiceName,
    pub(crate) method: &'a str,
    pub(crate) metadata: Option<&'a Metadata>,
    pub(crate) body: Bytes,
    pub(crate) timeout: Duration,
    pub(crate) start: Option<Instant>,
    pub(crate) route: Option<Route>,
    pub(crate) passage: Bytes,
}

/// How a peer may pass a call on: as the caller would make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Route {
    /// After which failures another provider may be tried.
    pub repeat: Repeat,
    /// How many providers may be tried; `None` leaves it to the peer.
    pub max_attempts: Option<NonZeroU32>,
    /// How long one provider is waited for before another is tried, to the microsecond; `None` leaves it to the peer.
    pub attempt_timeout: Option<Duration>,
}

/// After which failures a call that is passed on may be made again at another provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Repeat {
    /// Only when it certainly did not run.
    #[default]
    NeverProcessed,
    /// Also when it may have run, and after errors that are not the caller's own fault.
    Transient,
    /// Also when it may have run, and after the error *unavailable*.
    Unavailable,
    /// After every error.
    AnyError,
}

impl Repeat {
    pub(crate) fn to_wire(self) -> proto::Repeat {
        match self {
            Self::NeverProcessed => proto::Repeat::Unspecified,
            Self::Transient => proto::Repeat::Transient,
            Self::Unavailable => proto::Repeat::Unavailable,
            Self::AnyError => proto::Repeat::AnyError,
        }
    }

    /// An unknown value counts as the safest one.
    pub(crate) fn from_wire(repeat: i32) -> Self {
        match proto::Repeat::try_from(repeat) {
            Ok(proto::Repeat::Transient) => Self::Transient,
            Ok(proto::Repeat::Unavailable) => Self::Unavailable,
            Ok(proto::Repeat::AnyError) => Self::AnyError,
            Ok(proto::Repeat::Unspecified) | Err(_) => Self::NeverProcessed,
        }
    }
}

impl Route {
    /// The time for one provider as a HEAD says it; 0 for none.
    pub(crate) fn attempt_timeout_us(&self) -> u64 {
        let us = self.attempt_timeout.map_or(0, |time| time.as_micros().max(1));
        u64::try_from(us).unwrap_or(u64::MAX)
    }
}

/// How long a call waits unless told otherwise.
pub(crate) const DEFAULT_CALL_TIMEOUT: Duration = Duration::from_secs(10);

impl<'a> CallRequest<'a> {
    /// A call of `service` with `body`: no method, no metadata, 10 s to answer.
    #[must_use]
    pub fn new(service: &'a ServiceName, body: impl Into<Bytes>) -> Self {
        Self {
            service,
            method: "",
            metadata: None,
            body: body.into(),
            timeout: DEFAULT_CALL_TIMEOUT,
            start: None,
            route: None,
            passage: Bytes::new(),
        }
    }

    /// Sets the method within the service.
    #[must_use]
    pub fn with_method(mut self, method: &'a str) -> Self {
        self.method = method;
        self
    }

    /// Sets the metadata.
    #[must_use]
    pub fn with_metadata(mut self, metadata: &'a Metadata) -> Self {
        self.metadata = Some(metadata);
        self
    }

    /// Sets how long to wait, from the moment of the call or from the [start](Self::with_start) given. The provider is told, and
    /// stops working when it is over.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets when the call began, which saves a read of tokio's clock. By default a call begins when it is first polled.
    ///
    /// A start in the past shortens the wait. A provider that is called over a lane is told the whole timeout all the same; any other
    /// is told the time that is left.
    #[must_use]
    pub fn with_start(mut self, start: Instant) -> Self {
        self.start = Some(start);
        self
    }

    /// Lets the peer pass the call on, once, to a provider it finds.
    #[must_use]
    pub fn with_route(mut self, route: Option<Route>) -> Self {
        self.route = route;
        self
    }

    /// Sets the caller's leave to pass the call on. A caller gives the peer that is to route the call its
    /// [`Connection::passage`](crate::Connection::passage); a router shows the provider the [`IncomingCall::passage`] that it was given.
    #[must_use]
    pub fn with_passage(mut self, passage: Bytes) -> Self {
        self.passage = passage;
        self
    }

    pub(crate) fn metadata(&self) -> &[proto::MetadataEntry] {
        self.metadata.map_or(&[], Metadata::entries)
    }
}

/// A provider's answer, success or not.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CallReply {
    /// The outcome.
    pub status: StatusCode,
    /// The provider's metadata.
    pub metadata: Metadata,
    /// The response.
    pub body: Bytes,
    pub(crate) extra: Extra,
}

impl CallReply {
    /// What went wrong, for a person; empty on success.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.extra.get().message
    }

    /// Rich error details, as gRPC's `grpc-status-details-bin`.
    #[must_use]
    pub fn details(&self) -> &Bytes {
        &self.extra.get().details
    }

    /// What the provider asks about the next try.
    #[must_use]
    pub fn pushback(&self) -> Option<Pushback> {
        self.extra.get().pushback
    }
}

/// Boxed, because few replies have it and a reply is moved several times.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Extra(Option<Box<FailureDetails>>);

/// The rare parts of a reply, beside its status and its payload.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct FailureDetails {
    pub(crate) message: String,
    pub(crate) details: Bytes,
    pub(crate) pushback: Option<Pushback>,
}

impl Extra {
    pub(crate) fn new(failing: FailureDetails) -> Self {
        Self((failing != NOTHING).then(|| Box::new(failing)))
    }

    pub(crate) fn get(&self) -> &FailureDetails {
        self.0.as_deref().unwrap_or(&NOTHING)
    }

    fn get_mut(&mut self) -> &mut FailureDetails {
        self.0.get_or_insert_default()
    }
}

static NOTHING: FailureDetails = FailureDetails {
    message: String::new(),
    details: Bytes::new(),
    pushback: None,
};

/// A call from a peer.
#[derive(Debug, Clone)]
pub struct IncomingCall {
    pub(crate) peer: Arc<PeerInfo>,
    pub(crate) service: ServiceName,
    pub(crate) method: String,
    pub(crate) metadata: Metadata,
    pub(crate) route: Option<Box<Route>>,
    pub(crate) passage: Bytes,
    pub(crate) deadline: Instant,
    pub(crate) body: Bytes,
}

impl IncomingCall {
    /// The bytes that the call takes while it runs: its request, and what came with it.
    pub(crate) fn kept_bytes(&self) -> usize {
        /// The memory of an entry beside its text.
        const ENTRY_BYTES: usize = 64;

        let entries = self
            .metadata
            .iter()
            .map(|(key, value)| key.len() + value.len() + ENTRY_BYTES);
        self.body.len() + self.passage.len() + entries.sum::<usize>()
    }

    /// The caller: the peer of the connection, or the node whose leave that peer shows for passing the call on
    /// ([`PeerInfo::router`] names the peer then).
    #[must_use]
    pub fn peer(&self) -> &Arc<PeerInfo> {
        &self.peer
    }

    /// The service called.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// The method within the service; empty for services that have one only.
    #[must_use]
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The caller's metadata.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// How this node may pass the call on to a provider it finds; `None` when it may not.
    #[must_use]
    pub fn route(&self) -> Option<Route> {
        self.route.as_deref().copied()
    }

    /// The caller's leave for this node to pass the call on; empty when there is none.
    #[must_use]
    pub fn passage(&self) -> &Bytes {
        &self.passage
    }

    /// When the caller stops waiting. The handler is dropped then.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The request.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The request, taken.
    #[must_use]
    pub fn into_body(self) -> Bytes {
        self.body
    }

    /// All of it, taken apart.
    #[must_use]
    pub fn into_parts(self) -> CallParts {
        CallParts {
            peer: self.peer,
            service: self.service,
            method: self.method,
            metadata: self.metadata,
            deadline: self.deadline,
            body: self.body,
        }
    }
}

/// The parts of a call from a peer; see [`IncomingCall::into_parts`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CallParts {
    /// The caller.
    pub peer: Arc<PeerInfo>,
    /// The service called.
    pub service: ServiceName,
    /// The method within the service; empty for services that have one only.
    pub method: String,
    /// The caller's metadata.
    pub metadata: Metadata,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// The request.
    pub body: Bytes,
}

/// The answer to a call.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) not_started: bool,
    pub(crate) metadata: Metadata,
    pub(crate) body: Bytes,
    pub(crate) extra: Extra,
}

impl Reply {
    /// Success, with the response.
    #[must_use]
    pub fn ok(body: impl Into<Bytes>) -> Self {
        Self {
            status: StatusCode::Ok,
            not_started: false,
            metadata: Metadata::new(),
            body: body.into(),
            extra: Extra::default(),
        }
    }

    /// The handler's error: the call ran and failed.
    #[must_use]
    pub fn error(status: StatusCode, message: impl Into<String>) -> Self {
        let failing = FailureDetails {
            message: message.into(),
            ..FailureDetails::default()
        };
        Self {
            status,
            extra: Extra::new(failing),
            ..Self::ok(Bytes::new())
        }
    }

    /// A refusal: the call was not started, and it is safe to try another provider.
    #[must_use]
    pub fn refused(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            not_started: true,
            ..Self::error(status, message)
        }
    }

    /// Sets the provider's metadata.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// Sets rich error details, as gRPC's `grpc-status-details-bin`.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<Bytes>) -> Self {
        self.extra.get_mut().details = details.into();
        self
    }

    /// Asks the caller to leave this provider alone for a while.
    #[must_use]
    pub fn with_pushback(mut self, pushback: Pushback) -> Self {
        self.extra.get_mut().pushback = Some(pushback);
        self
    }

    /// The same failure with the start of its message and the reason for the cut, without metadata and details.
    pub(crate) fn shortened(mut self, bytes: usize, why: &str) -> Self {
        let failing = self.extra.get_mut();
        let message = &mut failing.message;
        let end = (0..=bytes.min(message.len()))
            .rev()
            .find(|&at| message.is_char_boundary(at));
        if message.len() > bytes {
            message.truncate(end.unwrap_or_default());
            message.push('…');
        }
        message.push_str(&format!(" [{why}]"));
        failing.details = Bytes::new();
        self.metadata = Metadata::new();
        self
    }

    /// The outcome.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Whether it is a [refusal](Reply::refused).
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.not_started
    }
}
