//! Visits: one request and one reply with a peer that need not be a member of the realm (A7).
//!
//! A visit has an application protocol and a connection of its own, and this file is all that such a connection reaches: no
//! introduction, no calls, no directory. So a stranger is kept from the rest of the node by having no way there.
//!
//! **Limits.** A visit counts as a handshake under way until it is over: see [`Limits::max_handshakes`](crate::Limits). Each step has [`Timers::connect`](crate::Timers), each message
//! [`MAX_VISIT_BYTES`].

use std::{panic::AssertUnwindSafe, sync::Arc};

use bytes::Bytes;
use futures::future::FutureExt as _;
use macula_wire::NodeId;
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Inner,
    handshake::{self, Introducer},
    tls::{self, Alpn},
};
use crate::{
    connection::stream::{Incoming, Outgoing, ReceiveError, SendError, body_frame},
    error::{CloseCode, DialError, Lost},
    peer::Visitor,
    share::names::ToldBy,
};

/// The most bytes of a visitor's request, and of its reply.
pub const MAX_VISIT_BYTES: usize = 8 * 1024;

/// A node gave no reply to a visitor.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum VisitError {
    /// There is no connection to it.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// It has no answer for visitors.
    #[error("the node does not answer nodes that are not members")]
    Declined,
    /// It did not answer in time.
    #[error("the node did not answer in time")]
    TimedOut,
    /// The connection ended.
    #[error("the connection ended before the answer came")]
    Lost(#[source] Lost),
    /// The request is too large.
    #[error("the request has {0} bytes; at most {MAX_VISIT_BYTES} are sent")]
    TooLarge(usize),
}

impl From<ReceiveError> for VisitError {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Lost(lost) => Self::Lost(lost),
            ReceiveError::Slow => Self::TimedOut,
            ReceiveError::Reset(_) | ReceiveError::Frame(_) | ReceiveError::Broken | ReceiveError::Exhausted => {
                Self::Declined
            }
        }
    }
}

/// Answers a visitor, and closes its connection.
pub(super) async fn answer(inner: &Arc<Inner>, quic: &quinn::Connection) {
    let counters = &inner.shared.counters;
    match host(inner, quic).await {
        Some(()) => {
            counters.visits.add();
            // The visitor closes when it has the reply.
            let _ = timeout(inner.shared.config.timers.connect, quic.closed()).await;
        }
        None => counters.rejected_visits.add(),
    }
    quic.close(CloseCode::Retired.to_wire(), b"the visit is over");
}

async fn host(inner: &Inner, quic: &quinn::Connection) -> Option<()> {
    let step = inner.shared.config.timers.connect;
    let node_id = tls::peer_id(quic.peer_identity())?;
    let visitor = Visitor::new(node_id, handshake::remote_addr(quic));
    let (send, recv) = timeout(step, quic.accept_bi()).await.ok()?.ok()?;
    let mut outgoing = Outgoing::new(send);
    let mut incoming = Incoming::new(recv, MAX_VISIT_BYTES);
    let request = timeout(step, incoming.next()).await.ok()?.ok()??;
    // A panic must not keep its place among the handshakes.
    let asked = std::panic::catch_unwind(AssertUnwindSafe(|| inner.handler.visit(visitor, request)));
    let reply = async { AssertUnwindSafe(asked.ok()?).catch_unwind().await.ok() };
    let reply = timeout(step, reply).await.ok()?;
    if reply.is_none() {
        inner.shared.counters.handler_panics.add();
    }
    let reply = reply??;
    timeout(step, outgoing.send(&mut body_frame(reply))).await.ok()?.ok()?;
    outgoing.finish();
    Some(())
}

/// Visits a node.
pub(super) async fn make(
    introducer: &Introducer,
    node: Option<NodeId>,
    at: &[macula_wire::Address],
    body: Bytes,
) -> Result<(NodeId, Bytes), VisitError> {
    if body.len() > MAX_VISIT_BYTES {
        return Err(VisitError::TooLarge(body.len()));
    }
    let (quic, node_id) = handshake::race(introducer, at, ToldBy::User, |addr, deadline| {
        handshake::reach(introducer, Alpn::Visit, node, addr, deadline)
    })
    .await?;
    // The host reads, thinks and writes, each for one step at most.
    let deadline = Instant::now() + 3 * introducer.shared.config.timers.connect;
    let reply = timeout_at(deadline, ask(&quic, body)).await;
    quic.close(CloseCode::Retired.to_wire(), b"the visit is over");
    Ok((node_id, reply.unwrap_or(Err(VisitError::TimedOut))?))
}

async fn ask(quic: &quinn::Connection, body: Bytes) -> Result<Bytes, VisitError> {
    let lost = |error: quinn::ConnectionError| match Lost::from(error) {
        // The host closes without a word when it has no answer.
        Lost::ClosedByPeer {
            code: CloseCode::Retired,
            ..
        } => VisitError::Declined,
        lost => VisitError::Lost(lost),
    };
    let (send, recv) = quic.open_bi().await.map_err(lost)?;
    let mut outgoing = Outgoing::new(send);
    let mut incoming = Incoming::new(recv, MAX_VISIT_BYTES);
    match outgoing.send(&mut body_frame(body)).await {
        Ok(()) | Err(SendError::Stopped) => outgoing.close_half(),
        Err(SendError::Lost(_)) => {}
    }
    match incoming.next().await {
        Ok(reply) => reply.ok_or(VisitError::Declined),
        Err(error) => Err(quic.close_reason().map_or_else(|| error.into(), lost)),
    }
}
