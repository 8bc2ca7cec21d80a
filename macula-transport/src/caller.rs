//! The calling side: one call on a stream of its own, and requests of other protocols.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use macula_wire::proto::{self, call_frame::Kind};
use prost::Message as _;
use tokio::time::{Instant, timeout_at};

use crate::{
    CallReply, CallRequest, Protocol,
    codec::{self, FRAME_OVERHEAD, Pieces},
    config::{MAX_HEAD_BYTES, MAX_REQUEST_BYTES},
    connection::{Direction, Link},
    error::{CallError, CloseCode, Lost, NotSent, RequestError, Unknown},
    stream::{Incoming, Outgoing, ReceiveError, ResetCode, SendError, StreamKind, body_frame, kind_bytes},
};

/// The longest a call is let wait: longer ones are cut to it, so that no deadline overflows.
pub(crate) const MAX_CALL_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) async fn call(link: &Arc<Link>, request: CallRequest<'_>) -> Result<CallReply, CallError> {
    let timeout = request.timeout.min(MAX_CALL_TIMEOUT);
    let deadline = Instant::now() + timeout;
    let limit = link
        .inner
        .config
        .limits
        .max_message_bytes
        .min(link.peer.max_message_bytes);
    if request.body.len() > limit {
        return Err(CallError::TooLarge {
            bytes: request.body.len(),
            limit,
        });
    }
    if link.is_peer_leaving() {
        return Err(CallError::NotSent(NotSent::GoingAway));
    }
    if link.inner.is_draining() {
        return Err(CallError::NotSent(NotSent::ShutDown));
    }
    let mut frames = codec::request_frames(&request, micros(timeout), StreamKind::Call.byte())?;
    let _in_flight = link.enter(Direction::Outbound);
    let (send, recv) = match timeout_at(deadline, link.quic.open_bi()).await {
        Ok(Ok(streams)) => streams,
        Ok(Err(error)) => return Err(CallError::NotSent(NotSent::Lost(link.lost(error)))),
        Err(_) => return Err(CallError::NotSent(NotSent::NoCredit)),
    };
    // Made before anything is awaited: from here on a drop of this future resets both halves.
    let mut outgoing = Outgoing::new(send);
    let reply_limit = link.inner.config.limits.max_message_bytes + MAX_HEAD_BYTES + FRAME_OVERHEAD;
    let mut incoming = Incoming::new(recv, reply_limit);
    let exchange = async {
        match outgoing.send(&mut frames).await {
            // Whoever stops reading a request may have answered it already.
            Ok(()) | Err(SendError::Stopped) => outgoing.close_half(),
            Err(SendError::Lost(lost)) => return Err(sent_and_lost(link, lost)),
        }
        receive_reply(link, &mut incoming).await
    };
    match timeout_at(deadline, exchange).await {
        Ok(result) => {
            if result.is_ok() || matches!(result, Err(CallError::Refused { .. })) {
                outgoing.finish();
                incoming.settle();
            }
            result
        }
        Err(_) => Err(CallError::Unknown(Unknown::Timeout(timeout))),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A peer that closes because it is idle or drained has answered every call it took: the rest it did not start.
fn sent_and_lost(link: &Link, lost: Lost) -> CallError {
    match link.refine(lost) {
        lost @ Lost::ClosedByPeer {
            code: CloseCode::Shutdown | CloseCode::Retired,
            ..
        } => CallError::NotSent(NotSent::Lost(lost)),
        lost => CallError::Unknown(Unknown::Lost(lost)),
    }
}

async fn receive_reply(link: &Link, incoming: &mut Incoming) -> Result<CallReply, CallError> {
    let limit = link.inner.config.limits.max_message_bytes;
    let mut pieces = Pieces::default();
    let broken = |unknown| {
        link.inner.counters.rejected_frames.add();
        Err(CallError::Unknown(unknown))
    };
    loop {
        let frame = match incoming.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return broken(Unknown::Incomplete),
            Err(ReceiveError::Reset(code)) => return Err(CallError::Unknown(Unknown::Reset(code))),
            Err(ReceiveError::Lost(lost)) => return Err(sent_and_lost(link, lost)),
            Err(ReceiveError::Frame(error)) => return broken(Unknown::Frame(error)),
        };
        let Ok(proto::CallFrame { kind: Some(kind), .. }) = proto::CallFrame::decode(frame) else {
            return broken(Unknown::Malformed);
        };
        let (payload, trailers) = match kind {
            Kind::Data(data) => (data.payload, None),
            Kind::Trailers(mut trailers) => (std::mem::take(&mut trailers.payload), Some(trailers)),
            Kind::Head(_) | Kind::Cancel(_) => return broken(Unknown::Malformed),
        };
        if pieces.len() + payload.len() > limit {
            return broken(Unknown::Malformed);
        }
        pieces.push(payload);
        if let Some(trailers) = trailers {
            return codec::reply(trailers, pieces.join());
        }
    }
}

impl Protocol {
    pub(crate) fn stream_kind(self) -> StreamKind {
        match self {
            Self::Dht => StreamKind::Dht,
        }
    }
}

pub(crate) async fn request(
    link: &Arc<Link>,
    protocol: Protocol,
    body: Bytes,
    timeout: Duration,
) -> Result<Bytes, RequestError> {
    if body.len() > MAX_REQUEST_BYTES {
        return Err(RequestError::TooLarge { bytes: body.len() });
    }
    let _in_flight = link.enter(Direction::Outbound);
    let exchange = async {
        let (send, recv) = link.quic.open_bi().await.map_err(|error| link.lost(error))?;
        let mut outgoing = Outgoing::new(send);
        let mut incoming = Incoming::new(recv, MAX_REQUEST_BYTES);
        let [prefix, body] = body_frame(body);
        match outgoing
            .send(&mut [kind_bytes(protocol.stream_kind()), prefix, body])
            .await
        {
            Ok(()) | Err(SendError::Stopped) => outgoing.close_half(),
            Err(SendError::Lost(lost)) => return Err(link.refine(lost).into()),
        }
        let reply = match incoming.next().await {
            Ok(Some(reply)) => reply,
            Ok(None) => return Err(RequestError::Declined),
            Err(ReceiveError::Reset(code)) => {
                tracing::debug!(code, declined = ResetCode::Declined as u64, "a request was reset");
                return Err(RequestError::Declined);
            }
            Err(ReceiveError::Lost(lost)) => return Err(link.refine(lost).into()),
            Err(ReceiveError::Frame(error)) => {
                link.inner.counters.rejected_frames.add();
                return Err(error.into());
            }
        };
        outgoing.finish();
        incoming.settle();
        Ok(reply)
    };
    let timeout = timeout.min(MAX_CALL_TIMEOUT);
    tokio::time::timeout(timeout, exchange)
        .await
        .unwrap_or(Err(RequestError::Timeout(timeout)))
}
