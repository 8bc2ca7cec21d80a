//! What a handler gets and gives.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use macula_transport::{IncomingCall, Metadata, PeerInfo};
use macula_wire::ServiceName;

/// A call, as its handler sees it.
#[derive(Debug, Clone)]
pub struct Request {
    service: ServiceName,
    method: String,
    metadata: Metadata,
    payload: Bytes,
    deadline: Instant,
    peer: Option<Arc<PeerInfo>>,
}

impl Request {
    /// A call made in this process.
    pub(crate) fn local(
        service: ServiceName,
        method: String,
        metadata: Metadata,
        payload: Bytes,
        deadline: Instant,
    ) -> Self {
        Self {
            service,
            method,
            metadata,
            payload,
            deadline,
            peer: None,
        }
    }

    /// A call from a peer.
    pub(crate) fn remote(call: IncomingCall) -> Self {
        Self {
            service: call.service().clone(),
            method: call.method().to_owned(),
            metadata: call.metadata().clone(),
            deadline: call.deadline(),
            peer: Some(Arc::clone(call.peer())),
            payload: call.into_body(),
        }
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

    /// What the caller sent beside the payload.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The request's bytes.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The request's bytes, taken.
    #[must_use]
    pub fn into_payload(self) -> Bytes {
        self.payload
    }

    /// When the caller stops waiting. The handler's future is dropped then (F7).
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Who calls, its identity proved by the connection; `None` for a call made in this process.
    #[must_use]
    pub fn peer(&self) -> Option<&PeerInfo> {
        self.peer.as_deref()
    }
}

/// A handler's answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Response {
    payload: Bytes,
    metadata: Metadata,
}

impl Response {
    /// An answer with this payload.
    #[must_use]
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self {
            payload: payload.into(),
            metadata: Metadata::new(),
        }
    }

    /// Sets what travels beside the payload.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// The answer's bytes.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// What travels beside the payload.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The payload and the metadata, taken.
    #[must_use]
    pub fn into_parts(self) -> (Bytes, Metadata) {
        (self.payload, self.metadata)
    }
}

impl<T: Into<Bytes>> From<T> for Response {
    fn from(payload: T) -> Self {
        Self::new(payload)
    }
}
