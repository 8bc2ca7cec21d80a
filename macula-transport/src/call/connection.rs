//! The handle to an open connection that callers hold.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use macula_wire::ServiceName;

use super::{
    ask::{self, Caller},
    handler::Protocol,
    replies::{CallStream, Replies},
    types::{CallReply, CallRequest},
};
use crate::{
    connection::{
        link::Link,
        watch::{Presence, PresenceWatch},
    },
    error::{CallError, Lost, RequestError},
    peer::PeerInfo,
    report::LoadReport,
};

/// An open connection to a peer, out of the pool. Cheap to clone.
///
/// While a handle exists its connection counts as used and is not closed to make room for another, so take it when there is
/// something to send and drop it soon after; the pool gives it again. A connection that has [ended](Self::lost) stays so, and its
/// calls fail as not sent: get another one from the pool.
#[derive(Debug)]
pub struct Connection {
    caller: Arc<Caller>,
}

impl Connection {
    pub(crate) fn new(caller: Arc<Caller>) -> Self {
        caller.link.lease();
        Self { caller }
    }

    /// The node at the other end.
    #[must_use]
    pub fn peer(&self) -> &Arc<PeerInfo> {
        &self.caller.link.peer
    }

    /// Calls the peer. Dropping the future cancels the call, at the peer too.
    ///
    /// # Errors
    /// When the peer gave no status; the variant says whether the call may have run.
    pub fn call<'a>(
        &'a self,
        request: CallRequest<'a>,
    ) -> impl Future<Output = Result<CallReply, CallError>> + Send + use<'a> {
        ask::call(&self.caller, request)
    }

    /// Opens a call whose request and reply are streams of messages; its body, unless empty, is the first message. It may last
    /// until the request's timeout.
    ///
    /// # Errors
    /// When the call was not opened.
    pub async fn open(&self, request: CallRequest<'_>) -> Result<CallStream, CallError> {
        ask::open(&self.caller, request).await
    }

    /// Opens a call of one request whose reply is a stream of messages. The request and its end travel in one write; a small one
    /// beside other calls shares a stream with them. An empty body is a message.
    ///
    /// # Errors
    /// When the call was not opened.
    pub async fn open_with_only(&self, request: CallRequest<'_>) -> Result<Replies, CallError> {
        ask::open_with_only(&self.caller, request).await
    }

    /// Asks the peer something of another protocol. Dropping the future cancels the request.
    ///
    /// # Errors
    /// When no reply came.
    pub async fn request(&self, protocol: Protocol, body: Bytes, timeout: Duration) -> Result<Bytes, RequestError> {
        ask::request(&self.caller, protocol, body, timeout).await
    }

    /// This node's leave for the peer to pass its calls of `service` on, for [`CallRequest::with_passage`]. It is signed once in half
    /// an hour and then remembered; empty when this node has no valid grant.
    #[must_use]
    pub fn passage(&self, service: &ServiceName) -> Bytes {
        self.caller.link.passage(service)
    }

    /// Why the connection has ended; `None` while it has not.
    #[must_use]
    pub fn lost(&self) -> Option<Lost> {
        self.end().lost()
    }

    /// Tells why the connection has ended, and is no handle to it.
    #[must_use]
    pub fn end(&self) -> ConnectionEnd {
        ConnectionEnd(Arc::clone(&self.caller.link))
    }

    /// How busy the peer said it is, and when it said so last; `None` while it has said nothing. A peer that was never busy says nothing.
    ///
    /// A peer that is called and busy repeats itself every few seconds, so a report that is older than 10 s says nothing any more.
    #[must_use]
    pub fn load(&self) -> Option<(LoadReport, Instant)> {
        self.caller.link.peer_load()
    }

    pub(crate) fn downgrade(&self) -> Weak<Caller> {
        Arc::downgrade(&self.caller)
    }

    /// Whether the peer is believed to be there. A look at a value, at no cost to speak of.
    #[must_use]
    pub fn presence(&self) -> Presence {
        self.caller.link.watch.presence()
    }

    /// Tells when [`Connection::presence`] changes.
    ///
    /// While calls wait, a silent peer is pinged, and suspected after [`Timers::suspect_after_ptos`](crate::Timers) of silence. Neither
    /// the calls nor the connection end for that: the caller decides what to do.
    #[must_use]
    pub fn watch_presence(&self) -> PresenceWatch {
        self.caller.link.watch.subscribe()
    }

    /// The current estimate of the path's round trip.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.caller.link.quic.rtt()
    }
}

/// How a connection ends, for an observer that does not use it: the connection may be closed to make room for another.
#[derive(Debug, Clone)]
pub struct ConnectionEnd(Arc<Link>);

impl ConnectionEnd {
    /// As [`Connection::lost`].
    #[must_use]
    pub fn lost(&self) -> Option<Lost> {
        self.0.quic.close_reason().map(|error| self.0.lost(error))
    }
}

impl Clone for Connection {
    fn clone(&self) -> Self {
        Self::new(self.caller.clone())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.caller.link.release();
    }
}
