//! The handler: a node's answers to the requests of its peers.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use macula_wire::StatusCode;

use super::{
    messages::{CallKind, IncomingMessages, OutgoingMessages},
    types::{IncomingCall, Reply},
};
use crate::{
    peer::{PeerInfo, Visitor},
    report::LoadReport,
};

/// A protocol beside calls: one request, one reply, both opaque here and at most [`MAX_REQUEST_BYTES`](crate::MAX_REQUEST_BYTES).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// Messages of the DHT.
    Dht,
    /// What members tell each other about revocations.
    Revocations,
}

/// A node's answers to the requests of its peers, on every connection, whichever side dialed it.
///
/// A returned future is polled once where the request was read, so a handler that is ready at once costs no task; one that
/// blocks its thread holds up every other call of that connection. The future is dropped when the caller cancels, when the
/// connection ends and when the deadline passes. A panic is caught and answered as [`StatusCode::Internal`].
pub trait Handler: Send + Sync + 'static {
    /// Answers a call.
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply>;

    /// How a call's messages are exchanged; asked before the call is answered. The default is unary.
    ///
    /// A streaming handler serves callers of one request and one reply, too.
    fn kind(&self, call: &IncomingCall) -> CallKind {
        let _ = call;
        CallKind::Unary
    }

    /// The longest time that a call may take, whatever its caller asks for; asked before the call is answered. `None`, the default,
    /// leaves it at [`Limits::max_call_time`](crate::Limits::max_call_time), which also bounds a longer one.
    fn max_time(&self, call: &IncomingCall) -> Option<Duration> {
        let _ = call;
        None
    }

    /// The reply that refuses a call whatever its request is, such as a call of an unknown service; `None` lets it go on. Asked before
    /// the node waits for a request that did not come with the call. A call that goes on may be refused later. The default refuses
    /// none.
    fn refuses(&self, call: &IncomingCall) -> Option<Reply> {
        let _ = call;
        None
    }

    /// Answers a streaming call. The future gives the outcome, whose body, unless empty, is the last message. The call's own body is
    /// empty. The default refuses.
    fn stream(
        &self,
        call: IncomingCall,
        requests: IncomingMessages,
        replies: OutgoingMessages,
    ) -> BoxFuture<'static, Reply> {
        drop((requests, replies));
        let message = format!("{} does not stream here", call.service());
        std::future::ready(Reply::refused(StatusCode::Unimplemented, message)).boxed()
    }

    /// Answers a request of another protocol; `None` declines it. The default declines all.
    fn request(&self, peer: &Arc<PeerInfo>, protocol: Protocol, body: Bytes) -> BoxFuture<'static, Option<Bytes>> {
        let _ = (peer, protocol, body);
        std::future::ready(None).boxed()
    }

    /// Answers a visitor: a node with a proven key that need not be a member of the realm. `None`, the default for all visitors, shuts
    /// the door.
    fn visit(&self, visitor: Visitor, body: Bytes) -> BoxFuture<'static, Option<Bytes>> {
        let _ = (visitor, body);
        std::future::ready(None).boxed()
    }

    /// How busy the node is. Peers that call it learn this from [`Connection::load`](crate::Connection::load), and choose by it. Asked
    /// once a second; `None`, the default, tells nothing. A handler that gives `None` when its endpoint is bound is not asked again.
    fn load(&self) -> Option<LoadReport> {
        None
    }
}

impl<H: Handler + ?Sized> Handler for Arc<H> {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        (**self).call(call)
    }

    fn kind(&self, call: &IncomingCall) -> CallKind {
        (**self).kind(call)
    }

    fn max_time(&self, call: &IncomingCall) -> Option<Duration> {
        (**self).max_time(call)
    }

    fn refuses(&self, call: &IncomingCall) -> Option<Reply> {
        (**self).refuses(call)
    }

    fn stream(
        &self,
        call: IncomingCall,
        requests: IncomingMessages,
        replies: OutgoingMessages,
    ) -> BoxFuture<'static, Reply> {
        (**self).stream(call, requests, replies)
    }

    fn request(&self, peer: &Arc<PeerInfo>, protocol: Protocol, body: Bytes) -> BoxFuture<'static, Option<Bytes>> {
        (**self).request(peer, protocol, body)
    }

    fn visit(&self, visitor: Visitor, body: Bytes) -> BoxFuture<'static, Option<Bytes>> {
        (**self).visit(visitor, body)
    }

    fn load(&self) -> Option<LoadReport> {
        (**self).load()
    }
}

/// The handler of a node that only calls: it refuses every call and declines every request.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoService;

impl NoService {
    fn refusal(call: &IncomingCall) -> Reply {
        let message = format!("this node does not serve {}", call.service());
        Reply::refused(StatusCode::Unimplemented, message)
    }
}

impl Handler for NoService {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        std::future::ready(Self::refusal(&call)).boxed()
    }

    fn refuses(&self, call: &IncomingCall) -> Option<Reply> {
        Some(Self::refusal(call))
    }
}
