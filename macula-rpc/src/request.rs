//! The request that a handler gets, and the response that it gives.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use macula_transport::{IncomingCall, Metadata, PeerInfo};
use macula_wire::ServiceName;

use crate::{CodecError, Decode};

/// A call, as its handler sees it: its payload as bytes, or as the message that a [`typed`](crate::typed) handler takes.
#[derive(Debug, Clone)]
pub struct Request<T = Bytes> {
    service: ServiceName,
    method: String,
    metadata: Metadata,
    payload: T,
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
        let call = call.into_parts();
        Self {
            service: call.service,
            method: call.method,
            metadata: call.metadata,
            deadline: call.deadline,
            peer: Some(call.peer),
            payload: call.body,
        }
    }

    /// The same call with its payload read as a message.
    pub(crate) fn decode<T: Decode>(mut self) -> Result<Request<T>, CodecError> {
        let payload = T::decode(std::mem::take(&mut self.payload))?;
        Ok(self.with_payload(payload))
    }
}

impl<T> Request<T> {
    /// The same call with another payload.
    pub(crate) fn with_payload<U>(self, payload: U) -> Request<U> {
        self.replace_payload(payload).0
    }

    /// The same call with another payload, and its payload.
    pub(crate) fn replace_payload<U>(self, payload: U) -> (Request<U>, T) {
        let request = Request {
            payload,
            service: self.service,
            method: self.method,
            metadata: self.metadata,
            deadline: self.deadline,
            peer: self.peer,
        };
        (request, self.payload)
    }

    /// The request's payload, to change it or, when it is a stream, to read it.
    #[must_use]
    pub fn payload_mut(&mut self) -> &mut T {
        &mut self.payload
    }

    /// The service called.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// The method within the service; empty for a service with only one.
    #[must_use]
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The metadata, which the caller sent beside the payload.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The request's payload.
    #[must_use]
    pub fn payload(&self) -> &T {
        &self.payload
    }

    /// The request's payload, taken.
    #[must_use]
    pub fn into_payload(self) -> T {
        self.payload
    }

    /// The time at which the caller stops waiting and the handler's future is dropped (F7). The handler's own calls take it over with
    /// [`CallBuilder::deadline`](crate::CallBuilder::deadline).
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The caller, with the identity and the grant that it proved; `None` for a call made in this process.
    ///
    /// When a router passed the call on, this is the caller and not the router, which [`PeerInfo::router`] names.
    #[must_use]
    pub fn peer(&self) -> Option<&PeerInfo> {
        self.peer.as_deref()
    }

    #[cfg(feature = "tonic")]
    pub(crate) fn shared_peer(&self) -> Option<&Arc<PeerInfo>> {
        self.peer.as_ref()
    }
}

/// A handler's answer: its payload as bytes or as a message, and the metadata beside it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Response<T = Bytes> {
    payload: T,
    metadata: Metadata,
}

impl<T> Response<T> {
    /// An answer with this payload.
    #[must_use]
    pub const fn new(payload: T) -> Self {
        Self {
            payload,
            metadata: Metadata::new(),
        }
    }

    /// Sets the metadata, which travels beside the payload.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// The answer's payload.
    #[must_use]
    pub fn payload(&self) -> &T {
        &self.payload
    }

    /// The metadata, which travels beside the payload.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The payload and the metadata, taken.
    #[must_use]
    pub fn into_parts(self) -> (T, Metadata) {
        (self.payload, self.metadata)
    }
}

impl Response {
    /// The same answer with its payload read as a message.
    pub(crate) fn decode<T: Decode>(self) -> Result<Response<T>, CodecError> {
        Ok(Response {
            payload: T::decode(self.payload)?,
            metadata: self.metadata,
        })
    }
}
