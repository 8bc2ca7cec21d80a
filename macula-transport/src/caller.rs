//! The calling side: which way a call takes, calls on streams of their own, and requests of other protocols.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt as _;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};

use crate::{
    CallReply, CallRequest, CallStream, Protocol, Replies,
    codec::{self, FRAME_OVERHEAD, INLINE_BYTES, MAX_HEAD_FRAME},
    config::{MAX_HEAD_BYTES, MAX_METADATA_ENTRIES, MAX_REQUEST_BYTES},
    connection::{Direction, InFlight, Link},
    error::{CallError, NotSent, RequestError, Unknown},
    frame,
    lane::{
        CallId,
        caller::{Lane, LargeReply, NotTaken},
    },
    outcome::Place,
    stream::{Incoming, Outgoing, ReceiveError, ResetCode, SendError, StreamKind, body_frame, kind_bytes},
    streaming::{Hold, Piece, read_reply},
};

/// The longest a call is let wait: longer ones are cut to it, so that no deadline overflows.
pub(crate) const MAX_CALL_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// A call that may be sent: within the limits, and with the peer's permission.
struct Cleared {
    timeout: Duration,
    /// What is left of it: the peer may have had no room for a while.
    left: Duration,
    deadline: Instant,
    credit: OwnedSemaphorePermit,
}

/// What a call that streams is opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenWith {
    /// Its first request, or none when that is empty.
    First,
    /// Its only request.
    All,
}

/// Checks a call and waits until the peer has room for it.
async fn clear(link: &Link, request: &CallRequest<'_>) -> Result<Cleared, CallError> {
    let now = request.start.map_or_else(Instant::now, Instant::from_std);
    link.inner.saw_clock(now.into_std());
    let timeout = request.timeout.min(MAX_CALL_TIMEOUT);
    let deadline = now + timeout;
    let limit = link.message_limit();
    if request.body.len() > limit {
        return Err(CallError::TooLarge {
            bytes: request.body.len(),
            limit,
        });
    }
    let head = frame::head_bytes(request);
    if head > MAX_HEAD_BYTES || request.metadata().len() > MAX_METADATA_ENTRIES {
        return Err(CallError::HeadTooLarge { bytes: head });
    }
    if link.is_peer_leaving() {
        return Err(CallError::NotSent(NotSent::GoingAway));
    }
    let (credit, left) = match link.credit.clone().try_acquire_owned() {
        Ok(credit) => (credit, timeout),
        // Boxed, so that a call that need not wait, as most, is not as large as one that waits.
        Err(_) => match timeout_at(deadline, link.credit.clone().acquire_owned()).boxed().await {
            Ok(Ok(credit)) => (credit, deadline.saturating_duration_since(Instant::now())),
            Ok(Err(_)) | Err(_) => return Err(CallError::NotSent(NotSent::NoCredit)),
        },
    };
    Ok(Cleared {
        timeout,
        left,
        deadline,
        credit,
    })
}

pub(crate) async fn call(link: &Arc<Link>, mut request: CallRequest<'_>) -> Result<CallReply, CallError> {
    let Cleared {
        timeout,
        left,
        deadline,
        credit,
    } = clear(link, &request).await?;
    // It takes one message.
    request.brief_reply = false;
    // A lone call is faster on a stream of its own: a lane costs two more wake-ups.
    let alone = link.running(Direction::Outbound) == 0;
    let in_flight = link.enter(Direction::Outbound);
    let result = if alone || request.body.len() > INLINE_BYTES {
        call_apart(link, &request, timeout, deadline).boxed().await
    } else {
        match link.lane().call(link, &request, left, deadline).await {
            Ok(Err(CallError::Unknown(Unknown::Timeout(_)))) => Err(CallError::Unknown(Unknown::Timeout(timeout))),
            Ok(result) => result,
            // More waits on the lane than a stream of its own costs.
            Err(NotTaken::Full | NotTaken::Over) => call_apart(link, &request, timeout, deadline).boxed().await,
        }
    };
    drop((in_flight, credit));
    result
}

/// A new stream for a call.
async fn open_stream(link: &Link, deadline: Instant) -> Result<(Outgoing, Incoming), CallError> {
    let (send, recv) = match timeout_at(deadline, link.quic.open_bi()).await {
        Ok(Ok(streams)) => streams,
        Ok(Err(error)) => return Err(link.call_over(Unknown::Lost(error.into()), None)),
        Err(_) => return Err(CallError::NotSent(NotSent::NoCredit)),
    };
    let limit = link.inner.config.limits.max_message_bytes + MAX_HEAD_BYTES + FRAME_OVERHEAD;
    Ok((Outgoing::new(send).beside(&link.flight), Incoming::new(recv, limit)))
}

/// A call on a stream of its own. A drop resets both its halves.
async fn call_apart(
    link: &Link,
    request: &CallRequest<'_>,
    timeout: Duration,
    deadline: Instant,
) -> Result<CallReply, CallError> {
    let Ok(turn) = timeout_at(deadline, link.turn_of_request(request.body.len())).await else {
        return Err(CallError::NotSent(NotSent::NoCredit));
    };
    let (mut outgoing, mut incoming) = open_stream(link, deadline).await?;
    let place = Place::Stream(outgoing.index());
    let exchange = async {
        let mut frames = codec::request_frames(request, micros_until(deadline), StreamKind::Call);
        match outgoing.send(&mut frames).await {
            // Whoever stops reading a request may have answered it already.
            Ok(()) | Err(SendError::Stopped) => outgoing.close_half(),
            Err(SendError::Lost(lost)) => return Err(link.call_over(Unknown::Lost(lost), Some(place))),
        }
        drop(turn);
        let mut body = None;
        loop {
            let frame = incoming.next().await;
            match read_reply(link, place, frame)? {
                Piece::Message(data) if body.is_none() => body = Some(data.payload),
                Piece::Message(_) => return Err(CallError::Unknown(Unknown::Streamed)),
                Piece::End(mut trailers) => {
                    let last = std::mem::take(&mut trailers.payload);
                    return match body {
                        Some(_) if !last.is_empty() => Err(CallError::Unknown(Unknown::Streamed)),
                        Some(body) => codec::reply(trailers, body),
                        None => codec::reply(trailers, last),
                    };
                }
            }
        }
    };
    let result = timeout_at(deadline, exchange).await;
    let result = result.unwrap_or_else(|_| {
        link.timed_out();
        Err(link.call_over(Unknown::Timeout(timeout), Some(place)))
    });
    if matches!(result, Ok(_) | Err(CallError::Refused { .. })) {
        outgoing.finish();
        incoming.settle();
    }
    result
}

/// Opens a call that streams.
pub(crate) async fn open(link: &Arc<Link>, request: CallRequest<'_>) -> Result<CallStream, CallError> {
    let cleared = clear(link, &request).await?;
    let in_flight = link.enter(Direction::Outbound);
    open_apart(link, request, OpenWith::First, cleared, in_flight).await
}

/// Opens a call that streams its reply: over the lane when that is expected to be brief, the peer is one that knows of that, and other
/// calls are under way.
pub(crate) async fn open_with_only(link: &Arc<Link>, request: CallRequest<'_>) -> Result<Replies, CallError> {
    let cleared = clear(link, &request).await?;
    let alone = link.running(Direction::Outbound) == 0;
    let in_flight = link.enter(Direction::Outbound);
    let expected = request.brief_reply && link.knows_brief.load(Relaxed);
    if expected && !alone && request.body.len() <= INLINE_BYTES {
        let taken = link.lane().open_several(&request, cleared.left, cleared.deadline);
        // Where more waits on the lane than a stream of its own costs, or the lane is over, the call takes that.
        if let Ok(waiting) = taken {
            return Ok(Replies::on_lane(
                cleared.hold(link, Place::Answering, in_flight),
                waiting,
            ));
        }
    }
    let opened = open_apart(link, request, OpenWith::All, cleared, in_flight);
    // Boxed, so that a call on the lane is not as large.
    Ok(opened.boxed().await?.split().1)
}

impl Cleared {
    fn hold(self, link: &Arc<Link>, place: Place, in_flight: InFlight) -> Hold {
        Hold {
            link: link.clone(),
            place,
            deadline: self.deadline,
            timeout: self.timeout,
            _credit: self.credit,
            _in_flight: in_flight,
        }
    }
}

/// Opens a call that streams on a stream of its own; what is known of its requests travels in one write.
async fn open_apart(
    link: &Arc<Link>,
    request: CallRequest<'_>,
    requests: OpenWith,
    cleared: Cleared,
    in_flight: InFlight,
) -> Result<CallStream, CallError> {
    let (timeout, deadline) = (cleared.timeout, cleared.deadline);
    let turn = async {
        match requests {
            // As of a call that is unary here: it may be so there, where such requests are put together.
            OpenWith::All => link.turn_of_request(request.body.len()).await,
            // Requests that follow may be waited for, and whoever waits must not keep others from their turn.
            OpenWith::First => None,
        }
    };
    let Ok(turn) = timeout_at(deadline, turn).await else {
        return Err(CallError::NotSent(NotSent::NoCredit));
    };
    let (mut outgoing, incoming) = open_stream(link, deadline).await?;
    let mut frames = match requests {
        OpenWith::First => codec::opening_frames(&request, micros_until(deadline), StreamKind::Call),
        OpenWith::All => codec::request_frames(&request, micros_until(deadline), StreamKind::Call),
    };
    let bytes = |frames: &[Bytes]| frames.iter().map(Bytes::len).sum::<usize>();
    let all = bytes(&frames);
    let sent = timeout_at(deadline, outgoing.send(&mut frames)).await;
    drop(turn);
    // The provider starts with the head: the call may run as soon as some of this is written.
    let place = Place::Stream(outgoing.index());
    let nothing_sent = bytes(&frames) == all;
    let sent_as = (!nothing_sent).then_some(place);
    match sent {
        Ok(Ok(()) | Err(SendError::Stopped)) => {}
        Ok(Err(SendError::Lost(lost))) => return Err(link.call_over(Unknown::Lost(lost), sent_as)),
        Err(_) if nothing_sent => return Err(CallError::NotSent(NotSent::NoCredit)),
        Err(_) => {
            link.timed_out();
            return Err(link.call_over(Unknown::Timeout(timeout), sent_as));
        }
    }
    let hold = cleared.hold(link, place, in_flight);
    if requests == OpenWith::All {
        outgoing.finish();
    }
    Ok(CallStream::new(hold, outgoing, incoming))
}

/// The time a provider is told that its caller still waits: the stream may have had to wait for its opening.
fn micros_until(deadline: Instant) -> u64 {
    let left = deadline.saturating_duration_since(Instant::now());
    u64::try_from(left.as_micros()).unwrap_or(u64::MAX)
}

/// Takes in a stream that the peer opened for the reply to a call on a lane.
pub(crate) async fn reply(link: Arc<Link>, recv: quinn::RecvStream) {
    let limits = &link.inner.config.limits;
    let mut incoming = Incoming::new(recv, (limits.max_message_bytes + FRAME_OVERHEAD).max(MAX_HEAD_FRAME));
    let refused = match opening(&link, &mut incoming).await {
        Ok(Opening::Large(lane)) => {
            // The others wait in the peer's send buffers. A closed semaphore there is none.
            let _place = link.large_replies.acquire().await;
            match lane.receive_large(&link, &mut incoming).await {
                Ok(()) => return incoming.settle(),
                Err(refused) => refused,
            }
        }
        Ok(Opening::Moved(lane, id)) => match lane.moved(id) {
            Ok(moved) => {
                incoming.set_limit(limits.max_message_bytes + MAX_HEAD_BYTES + FRAME_OVERHEAD);
                return moved.to(incoming);
            }
            Err(refused) => refused,
        },
        Err(refused) => refused,
    };
    match refused {
        LargeReply::Unwanted => {
            link.inner.counters.dropped_replies.add();
            incoming.stop(ResetCode::Cancelled);
        }
        LargeReply::Broken => {
            link.inner.counters.rejected_frames.add();
            incoming.stop(ResetCode::Protocol);
        }
    }
}

/// What the peer opened a stream for.
enum Opening {
    /// One message, too large for the lane.
    Large(Arc<Lane>),
    /// The messages of this call, which are more than go over the lane.
    Moved(Arc<Lane>, CallId),
}

/// The start of a stream that the peer opened, whole within the time a peer has for it.
async fn opening(link: &Link, incoming: &mut Incoming) -> Result<Opening, LargeReply> {
    let read = async {
        let kind = incoming.kind().await.ok()?.and_then(StreamKind::from_byte)?;
        let mut number = async || incoming.number().await.ok().flatten();
        match kind {
            StreamKind::Reply => Some((number().await?, None)),
            StreamKind::Replies => Some((number().await?, Some(number().await?))),
            StreamKind::Control | StreamKind::Call | StreamKind::Lane | StreamKind::Dht => None,
        }
    };
    let read = tokio::time::timeout(link.inner.config.timers.head, read).await;
    let (lane, id) = read.ok().flatten().ok_or(LargeReply::Broken)?;
    let lane = link.lane_on(lane).ok_or(LargeReply::Unwanted)?;
    Ok(match id {
        None => Opening::Large(lane),
        Some(id) => Opening::Moved(lane, CallId::from_wire(id)),
    })
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
    link.inner.saw_clock(Instant::now().into_std());
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
            Ok(None) | Err(ReceiveError::Reset(_) | ReceiveError::Broken) => return Err(RequestError::Declined),
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
    tokio::time::timeout(timeout, exchange).await.unwrap_or_else(|_| {
        link.timed_out();
        Err(RequestError::Timeout(timeout))
    })
}
