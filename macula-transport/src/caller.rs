//! The calling side: one call on a stream of its own, and requests of other protocols.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use macula_wire::proto::{self, call_frame::Kind};
use prost::Message as _;
use tokio::time::{Instant, timeout_at};

use crate::{
    CallReply, CallRequest, Protocol,
    codec::{self, FRAME_OVERHEAD, INLINE_BYTES, MAX_HEAD_FRAME, Pieces},
    config::{MAX_HEAD_BYTES, MAX_METADATA_ENTRIES, MAX_REQUEST_BYTES},
    connection::{Direction, Link},
    error::{CallError, CloseCode, Lost, NotSent, RequestError, Unknown},
    frame,
    lane::caller::{LargeReply, NotTaken},
    stream::{Incoming, Outgoing, ReceiveError, ResetCode, SendError, StreamKind, body_frame, kind_bytes},
};

/// The longest a call is let wait: longer ones are cut to it, so that no deadline overflows.
pub(crate) const MAX_CALL_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) async fn call(link: &Arc<Link>, request: CallRequest<'_>) -> Result<CallReply, CallError> {
    let timeout = request.timeout.min(MAX_CALL_TIMEOUT);
    let now = Instant::now();
    link.inner.saw_clock(now.into_std());
    let deadline = now + timeout;
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
    let head = frame::head_bytes(&request);
    if head > MAX_HEAD_BYTES || request.metadata().len() > MAX_METADATA_ENTRIES {
        return Err(CallError::HeadTooLarge { bytes: head });
    }
    let _credit = match link.credit.try_acquire() {
        Ok(credit) => credit,
        Err(_) => match timeout_at(deadline, link.credit.acquire()).await {
            Ok(Ok(credit)) => credit,
            Ok(Err(_)) | Err(_) => return Err(CallError::NotSent(NotSent::NoCredit)),
        },
    };
    // A lone call is faster on a stream of its own: a lane costs two more wake-ups.
    let alone = link.running(Direction::Outbound) == 0;
    let _in_flight = link.enter(Direction::Outbound);
    if !alone && request.body.len() <= INLINE_BYTES {
        match link.lane().call(&request, timeout, deadline).await {
            Ok(Err(CallError::Unknown(Unknown::Lost(lost)))) => return Err(sent_and_lost(link, lost)),
            Ok(result) => return result,
            // What waits on the lane is more than what a stream of its own costs.
            Err(NotTaken::Full | NotTaken::Over) => {}
        }
    }
    let mut frames = codec::request_frames(&request, micros(timeout), StreamKind::Call);
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
            Err(ReceiveError::Broken) => return broken(Unknown::Malformed),
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

/// Takes in a stream that the peer opened for a reply too large for its lane.
pub(crate) async fn large_reply(link: Arc<Link>, recv: quinn::RecvStream) {
    let limits = &link.inner.config.limits;
    let mut incoming = Incoming::new(recv, (limits.max_message_bytes + FRAME_OVERHEAD).max(MAX_HEAD_FRAME));
    let received = async {
        let opening = async {
            let kind = incoming.kind().await.ok().flatten();
            if kind.and_then(StreamKind::from_byte) == Some(StreamKind::Reply) {
                incoming.number().await.ok().flatten()
            } else {
                None
            }
        };
        let opening = tokio::time::timeout(link.inner.config.timers.head, opening).await;
        let stream = opening.ok().flatten().ok_or(LargeReply::Broken)?;
        let lane = link.lane_on(stream).ok_or(LargeReply::Unwanted)?;
        lane.receive_large(&link, &mut incoming).await
    };
    match received.await {
        Ok(()) => incoming.settle(),
        Err(LargeReply::Unwanted) => {
            link.inner.counters.dropped_replies.add();
            incoming.stop(ResetCode::Cancelled);
        }
        Err(LargeReply::Broken) => {
            link.inner.counters.rejected_frames.add();
            incoming.stop(ResetCode::Protocol);
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
            Err(ReceiveError::Broken) => return Err(RequestError::Declined),
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
