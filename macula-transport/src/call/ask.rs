//! The caller's side of a connection: which way a call takes, calls on streams of their own, and requests of other protocols.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{BufMut as _, Bytes};
use futures::FutureExt as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use super::{
    LargeSends, MAX_CALL_TIMEOUT,
    frame::{self, INLINE_BYTES, MAX_LANE_FRAME, Part},
    handler::Protocol,
    lane::{
        CallId, MAX_CALLS,
        caller::{LaneReply, NotTaken, OutboundLane},
    },
    outbox::Outbox,
    outcome::{CallPlace, over},
    replies::{CallStream, OpenCall, Replies, one_message, read_only},
    types::{CallReply, CallRequest},
};
use crate::{
    config::MAX_REQUEST_BYTES,
    connection::{
        link::{Direction, InFlight, Link},
        stream::{
            FRAME_OVERHEAD, Incoming, Outgoing, ReceiveError, ResetCode, SendError, StreamKind, Unserved, body_frame,
            kind_bytes,
        },
    },
    error::{CallError, NotSent, RequestError, Unknown},
    heads::HeadLimits,
    share::memory::STREAM_BYTES,
};

/// The caller's side of a connection.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) link: Arc<Link>,
    /// The calls the peer takes beyond those under way.
    credit: Arc<Semaphore>,
    /// Where small calls go.
    lane: Mutex<Option<Arc<OutboundLane>>>,
    large_sends: LargeSends,
}

/// A call that may be sent: within the limits, and with the peer's permission.
struct Cleared {
    timeout: Duration,
    /// The rest of the call's time, after the wait for the peer's credit.
    left: Duration,
    deadline: Instant,
    credit: OwnedSemaphorePermit,
}

/// The requests that a call on a stream of its own is opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenWith {
    /// Its first request, or none when that is empty.
    First,
    /// Its only request.
    All,
}

impl Caller {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self {
            credit: Arc::new(Semaphore::new(link.peer.max_concurrent_calls.clamp(1, MAX_CALLS))),
            link,
            lane: Mutex::new(None),
            large_sends: LargeSends::default(),
        }
    }

    fn lock_lane(&self) -> std::sync::MutexGuard<'_, Option<Arc<OutboundLane>>> {
        self.lane.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lane that small calls take, a new one when the last is over.
    fn lane(&self) -> Arc<OutboundLane> {
        let mut lane = self.lock_lane();
        match &*lane {
            Some(lane) if !lane.is_over() => lane.clone(),
            _ => lane.insert(OutboundLane::open(&self.link)).clone(),
        }
    }

    /// The lane that runs on this stream of ours.
    fn lane_on(&self, stream: u64) -> Option<Arc<OutboundLane>> {
        self.lock_lane().clone().filter(|lane| lane.stream() == Some(stream))
    }

    /// Checks a call and waits until the peer has room for it.
    async fn clear(&self, request: &CallRequest<'_>) -> Result<Cleared, CallError> {
        let link = &self.link;
        let now = request.start.map_or_else(Instant::now, Instant::from_std);
        link.shared.saw_clock(now.into_std());
        let timeout = request.timeout.min(MAX_CALL_TIMEOUT);
        let deadline = now + timeout;
        let limit = link.message_limit();
        if request.body.len() > limit {
            return Err(CallError::TooLarge {
                bytes: request.body.len(),
                limit,
            });
        }
        let (size, own) = (frame::head_size(request), link.shared.config.limits.heads());
        let (bytes, entries) = size;
        if !own.holds(size) {
            return Err(CallError::HeadTooLarge {
                bytes,
                entries,
                max_bytes: own.bytes,
                max_entries: own.entries,
            });
        }
        let peers = link.peer.heads();
        if !peers.holds(size) {
            return Err(CallError::NotSent(NotSent::HeadTooLarge {
                bytes,
                entries,
                max_bytes: peers.bytes,
                max_entries: peers.entries,
            }));
        }
        if link.is_peer_leaving() {
            return Err(CallError::NotSent(NotSent::GoingAway));
        }
        let (credit, left) = match self.credit.clone().try_acquire_owned() {
            Ok(credit) => (credit, timeout),
            // Boxed to keep the future of a call that need not wait small.
            Err(_) => match timeout_at(deadline, self.credit.clone().acquire_owned()).boxed().await {
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

    /// A new stream for a call.
    async fn open_stream(&self, deadline: Instant) -> Result<(Outgoing, Incoming), CallError> {
        let link = &self.link;
        let (send, recv) = match timeout_at(deadline, link.quic.open_bi()).await {
            Ok(Ok(streams)) => streams,
            Ok(Err(error)) => return Err(over(link, Unknown::Lost(error.into()), None)),
            Err(_) => return Err(CallError::NotSent(NotSent::NoCredit)),
        };
        Ok((
            Outgoing::new(send).beside(&link.flight),
            Incoming::new(recv, reply_limit(link)).charged(&link.memory),
        ))
    }
}

/// The largest frame of a reply on a stream.
fn reply_limit(link: &Link) -> usize {
    let limits = &link.shared.config.limits;
    limits.max_message_bytes + limits.max_head_bytes + FRAME_OVERHEAD
}

/// Whether a call may travel on a lane, where others wait behind it.
fn fits_lane(request: &CallRequest<'_>) -> bool {
    request.body.len() <= INLINE_BYTES && HeadLimits::LEAST.holds(frame::head_size(request))
}

/// Makes a call of one request and one reply.
pub(crate) async fn call(caller: &Arc<Caller>, request: CallRequest<'_>) -> Result<CallReply, CallError> {
    let link = &caller.link;
    let Cleared {
        timeout,
        left,
        deadline,
        credit,
    } = caller.clear(&request).await?;
    // A lone call is faster on a stream of its own: a lane costs two more wake-ups.
    let alone = link.running(Direction::Outbound) == 0;
    let in_flight = link.enter(Direction::Outbound);
    let taken = match alone || !fits_lane(&request) {
        true => Err(NotTaken::Full),
        false => caller.lane().call(&request, left, deadline),
    };
    let result = match taken {
        Ok(mut waiting) => match waiting.reply().await {
            Ok(LaneReply::Whole { messages, reply }) => one_message(messages, reply),
            Ok(LaneReply::OnStream(incoming)) => call_on_stream(link, *incoming, timeout, deadline).boxed().await,
            Err(CallError::Unknown(Unknown::Timeout(_))) => {
                link.timed_out();
                Err(CallError::Unknown(Unknown::Timeout(timeout)))
            }
            Err(error) => Err(error),
        },
        // The lane's queue is so long that a stream of its own is faster.
        Err(NotTaken::Full | NotTaken::Over) => call_apart(caller, &request, timeout, deadline).boxed().await,
    };
    drop((in_flight, credit));
    result
}

/// Reads the reply to a call on a lane that continues on a stream.
async fn call_on_stream(
    link: &Link,
    mut incoming: Incoming,
    timeout: Duration,
    deadline: Instant,
) -> Result<CallReply, CallError> {
    let result = timeout_at(deadline, read_only(link, CallPlace::Answering, &mut incoming)).await;
    incoming.settle();
    result.unwrap_or_else(|_| {
        link.timed_out();
        Err(over(link, Unknown::Timeout(timeout), Some(CallPlace::Answering)))
    })
}

/// A call on a stream of its own. A drop resets both its halves.
async fn call_apart(
    caller: &Caller,
    request: &CallRequest<'_>,
    timeout: Duration,
    deadline: Instant,
) -> Result<CallReply, CallError> {
    let link = &caller.link;
    let Ok(turn) = timeout_at(deadline, caller.large_sends.turn(request.body.len())).await else {
        return Err(CallError::NotSent(NotSent::NoCredit));
    };
    let (mut outgoing, mut incoming) = caller.open_stream(deadline).await?;
    let place = CallPlace::Stream(outgoing.index());
    let exchange = async {
        match outgoing.send(&mut opening(request, deadline, OpenWith::All)).await {
            // A provider that stops reading a request may have answered it already.
            Ok(()) | Err(SendError::Stopped) => outgoing.close_half(),
            Err(SendError::Lost(lost)) => return Err(over(link, Unknown::Lost(lost), Some(place))),
        }
        drop(turn);
        read_only(link, place, &mut incoming).await
    };
    let result = timeout_at(deadline, exchange).await;
    let result = result.unwrap_or_else(|_| {
        link.timed_out();
        Err(over(link, Unknown::Timeout(timeout), Some(place)))
    });
    if matches!(result, Ok(_) | Err(CallError::Refused { .. })) {
        outgoing.finish();
        incoming.settle();
    }
    result
}

/// The start of a call's stream: its kind, the head, and the request's first message where it is known.
pub(crate) fn opening(request: &CallRequest<'_>, deadline: Instant, requests: OpenWith) -> Vec<Bytes> {
    let mut outbox = Outbox::brief();
    let _ = outbox.write(|buffer| buffer.put_u8(StreamKind::Call.byte()));
    let inline = requests == OpenWith::All && request.body.len() <= INLINE_BYTES;
    // The stream may have had to wait for its opening.
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout_us = u64::try_from(left.as_micros()).unwrap_or(u64::MAX);
    let _ = frame::put_head(&mut outbox, 0, request, timeout_us, inline);
    let message = match requests {
        OpenWith::All => (!inline).then_some(Part::Last),
        OpenWith::First => (!request.body.is_empty()).then_some(Part::Some),
    };
    if let Some(part) = message {
        let _ = frame::put_data(&mut outbox, 0, &request.body, part);
    }
    outbox.take()
}

/// Opens a call that streams.
pub(crate) async fn open(caller: &Arc<Caller>, request: CallRequest<'_>) -> Result<CallStream, CallError> {
    let cleared = caller.clear(&request).await?;
    let in_flight = caller.link.enter(Direction::Outbound);
    open_apart(caller, request, OpenWith::First, cleared, in_flight).await
}

/// Opens a call of one request that streams its reply: over the lane when it is small and other calls are under way.
pub(crate) async fn open_with_only(caller: &Arc<Caller>, request: CallRequest<'_>) -> Result<Replies, CallError> {
    let link = &caller.link;
    let cleared = caller.clear(&request).await?;
    let alone = link.running(Direction::Outbound) == 0;
    let in_flight = link.enter(Direction::Outbound);
    if !alone && fits_lane(&request) {
        let taken = caller.lane().call(&request, cleared.left, cleared.deadline);
        // The lane is over, or its queue is so long that a stream of its own is faster.
        if let Ok(waiting) = taken {
            return Ok(Replies::on_lane(
                cleared.hold(link, CallPlace::Answering, in_flight),
                waiting,
            ));
        }
    }
    let opened = open_apart(caller, request, OpenWith::All, cleared, in_flight);
    // Boxed to keep the future of a call on the lane small.
    Ok(opened.boxed().await?.split().1)
}

impl Cleared {
    fn hold(self, link: &Arc<Link>, place: CallPlace, in_flight: InFlight) -> OpenCall {
        OpenCall {
            link: link.clone(),
            place,
            deadline: self.deadline,
            timeout: self.timeout,
            _credit: self.credit,
            _in_flight: in_flight,
        }
    }
}

/// Opens a streaming call on a stream of its own; the requests known so far travel in one write.
async fn open_apart(
    caller: &Arc<Caller>,
    request: CallRequest<'_>,
    requests: OpenWith,
    cleared: Cleared,
    in_flight: InFlight,
) -> Result<CallStream, CallError> {
    let (link, timeout, deadline) = (&caller.link, cleared.timeout, cleared.deadline);
    let turn = async {
        match requests {
            // The provider may assemble such a request, so it waits its turn like a unary call's.
            OpenWith::All => caller.large_sends.turn(request.body.len()).await,
            // The application may pause between requests, and a paused call must not hold up the turn of others.
            OpenWith::First => None,
        }
    };
    let Ok(turn) = timeout_at(deadline, turn).await else {
        return Err(CallError::NotSent(NotSent::NoCredit));
    };
    let (mut outgoing, incoming) = caller.open_stream(deadline).await?;
    let place = CallPlace::Stream(outgoing.index());
    let mut frames = opening(&request, deadline, requests);
    let bytes = |frames: &[Bytes]| frames.iter().map(Bytes::len).sum::<usize>();
    let all = bytes(&frames);
    let sent = timeout_at(deadline, outgoing.send(&mut frames)).await;
    drop(turn);
    // The provider starts at the head, so the call may run as soon as part of this is written.
    let nothing_sent = bytes(&frames) == all;
    let sent_at = (!nothing_sent).then_some(place);
    match sent {
        Ok(Ok(()) | Err(SendError::Stopped)) => {}
        Ok(Err(SendError::Lost(lost))) => return Err(over(link, Unknown::Lost(lost), sent_at)),
        Err(_) if nothing_sent => return Err(CallError::NotSent(NotSent::NoCredit)),
        Err(_) => {
            link.timed_out();
            return Err(over(link, Unknown::Timeout(timeout), sent_at));
        }
    }
    let hold = cleared.hold(link, place, in_flight);
    if requests == OpenWith::All {
        outgoing.finish();
    }
    Ok(CallStream::new(hold, outgoing, incoming))
}

/// Takes in a stream that the peer opened for the reply to a call on a lane.
pub(crate) async fn reply_stream(caller: Arc<Caller>, recv: quinn::RecvStream) {
    let link = &caller.link;
    let mut incoming = Incoming::new(recv, MAX_LANE_FRAME).charged(&link.memory);
    let Ok(_stream) = link.memory.take(STREAM_BYTES) else {
        return incoming.stop(link.unserved(Unserved::Exhausted));
    };
    let opening = async {
        match incoming.kind().await.ok()?.and_then(StreamKind::from_byte)? {
            StreamKind::Reply => {}
            StreamKind::Control | StreamKind::Call | StreamKind::Lane | StreamKind::Dht | StreamKind::Revocations => {
                return None;
            }
        }
        let lane = incoming.number().await.ok()??;
        Some((lane, CallId::from_wire(incoming.number().await.ok()??)))
    };
    let opening = tokio::time::timeout(link.shared.config.timers.head, opening).await;
    let Some((lane, call)) = opening.ok().flatten() else {
        incoming.stop(link.unserved(Unserved::Broken));
        return;
    };
    incoming.set_limit(reply_limit(link));
    let unwanted = match caller.lane_on(lane) {
        Some(lane) => lane.continues(call, incoming),
        None => Some(incoming),
    };
    if let Some(mut incoming) = unwanted {
        link.shared.counters.dropped_replies.add();
        incoming.stop(ResetCode::Cancelled);
    }
}

impl Protocol {
    pub(crate) fn stream_kind(self) -> StreamKind {
        match self {
            Self::Dht => StreamKind::Dht,
            Self::Revocations => StreamKind::Revocations,
        }
    }
}

/// Asks the peer something of another protocol.
pub(crate) async fn request(
    caller: &Arc<Caller>,
    protocol: Protocol,
    body: Bytes,
    timeout: Duration,
) -> Result<Bytes, RequestError> {
    if body.len() > MAX_REQUEST_BYTES {
        return Err(RequestError::TooLarge { bytes: body.len() });
    }
    let link = &caller.link;
    link.shared.saw_clock(Instant::now().into_std());
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
            Err(ReceiveError::Slow | ReceiveError::Exhausted) => return Err(RequestError::Declined),
            Err(ReceiveError::Lost(lost)) => return Err(link.refine(lost).into()),
            Err(ReceiveError::Frame(error)) => {
                link.shared.counters.rejected_frames.add();
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
