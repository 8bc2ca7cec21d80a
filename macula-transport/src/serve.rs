//! The providing side: what a peer's stream asks, answered by the handler.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use macula_wire::{
    ServiceName, StatusCode,
    proto::{self, call_frame::Kind},
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use crate::{
    CallKind, IncomingCall, IncomingMessages, Metadata, OutgoingMessages, Protocol, Reply, Route,
    caller::MAX_CALL_TIMEOUT,
    codec::{self, FRAME_OVERHEAD, INLINE_BYTES, MAX_HEAD_FRAME, Pieces},
    config::{MAX_HEAD_BYTES, MAX_METADATA_ENTRIES, MAX_REQUEST_BYTES},
    connection::{Direction, InFlight, Link},
    lane,
    stream::{Incoming, Outgoing, ReceiveError, ResetCode, StreamKind, body_frame},
    streaming::{Gathered, Sink},
};

/// How long after the deadline a reply may still take to leave: its caller reads slowly, or not at all.
pub(crate) const REPLY_GRACE: Duration = Duration::from_secs(1);

/// How much is sent of the message of a failure that says too much.
const MAX_SHORTENED_BYTES: usize = 1024;

/// A stream that brings no answer, and how it ends.
pub(crate) enum Refusal {
    /// The peer sent what it must not.
    Broken,
    /// The peer did not say in time what it wants.
    Slow,
    /// The peer or the connection ended it.
    Gone,
}

impl From<ReceiveError> for Refusal {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Reset(_) | ReceiveError::Lost(_) => Self::Gone,
            ReceiveError::Frame(_) | ReceiveError::Broken => Self::Broken,
        }
    }
}

/// What is left to do on a stream when its first frame was acted on.
enum Next {
    Done,
    /// The call streams, and takes the stream for itself.
    Streaming {
        call: IncomingCall,
        ended: bool,
        deadline: Instant,
        in_flight: InFlight,
    },
}

/// Serves one stream that the peer opened.
pub(crate) async fn stream(link: Arc<Link>, send: quinn::SendStream, recv: quinn::RecvStream) {
    let mut outgoing = Outgoing::new(send).beside(&link.flight);
    let mut incoming = Incoming::new(recv, MAX_HEAD_FRAME);
    let now = Instant::now();
    link.inner.saw_clock(now.into_std());
    let timers = &link.inner.config.timers;
    let served = async {
        // A stream may be here before its first byte: QUIC opens it with any later one, while its own bytes wait behind large messages.
        let kind = match timeout_at(now + timers.idle, incoming.kind()).await {
            Ok(kind) => kind?.and_then(StreamKind::from_byte),
            Err(_) => return Err(Refusal::Slow),
        };
        let head_by = Instant::now() + timers.head;
        match kind {
            Some(StreamKind::Call) => call(&link, &mut outgoing, &mut incoming, head_by).await,
            Some(StreamKind::Lane) => {
                let Ok(_place) = link.peer_lanes.try_acquire() else {
                    return Err(Refusal::Broken);
                };
                let entry = link.lane_opened(outgoing.index());
                // Boxed, so that a call's own task is not as large as what serves a lane.
                let served = lane::provider::serve(&link, &entry, &mut outgoing, &mut incoming)
                    .boxed()
                    .await;
                link.lane_over(&entry);
                served?;
                Ok(Next::Done)
            }
            Some(StreamKind::Dht) => {
                request(&link, Protocol::Dht, &mut outgoing, &mut incoming, head_by)
                    .boxed()
                    .await?;
                Ok(Next::Done)
            }
            Some(StreamKind::Control | StreamKind::Reply | StreamKind::Replies) | None => Err(Refusal::Broken),
        }
    };
    let refusal = match served.await {
        Ok(Next::Done) => return,
        Ok(Next::Streaming {
            call,
            ended,
            deadline,
            in_flight,
        }) => {
            streaming(link, outgoing, incoming, call, ended, deadline, in_flight)
                .boxed()
                .await;
            return;
        }
        Err(refusal) => refusal,
    };
    let code = refused(&link, refusal);
    outgoing.reset(code);
    incoming.stop(code);
}

/// Counts a stream that brings no answer, and says how it ends.
fn refused(link: &Link, refusal: Refusal) -> ResetCode {
    match refusal {
        Refusal::Broken => {
            link.inner.counters.rejected_frames.add();
            ResetCode::Protocol
        }
        Refusal::Slow => {
            link.inner.counters.slow_streams.add();
            ResetCode::Slow
        }
        Refusal::Gone => ResetCode::Cancelled,
    }
}

/// Runs a call whose messages the handler takes and gives one by one.
async fn streaming(
    link: Arc<Link>,
    outgoing: Outgoing,
    mut incoming: Incoming,
    mut call: IncomingCall,
    ended: bool,
    deadline: Instant,
    mut in_flight: InFlight,
) {
    let limits = &link.inner.config.limits;
    incoming.set_limit(limits.max_message_bytes + FRAME_OVERHEAD);
    let stopped = outgoing.stopped();
    let limit = link.message_limit();
    let gathered = Arc::new(Mutex::new(Gathered::new(outgoing, deadline)));
    let messages = IncomingMessages::stream(link.clone(), incoming, std::mem::take(&mut call.body), ended);
    let replies = OutgoingMessages::new(Sink::Stream {
        gathered: gathered.clone(),
        limit,
    });
    let handler = &link.inner.handler;
    let answer = std::panic::catch_unwind(AssertUnwindSafe(|| handler.stream(call, messages, replies)));
    let reply = match answer {
        Ok(answer) => tokio::select! {
            biased;
            reply = finish(&link, answer, deadline) => reply,
            () = stopped => {
                link.inner.counters.calls_dropped.add();
                gathered.lock().await.outgoing.reset(ResetCode::Cancelled);
                return;
            }
        },
        Err(_) => panicked(&link),
    };
    in_flight.answered();
    let mut gathered = gathered.lock().await;
    end(&link, &mut gathered, reply, deadline).await;
}

/// Sends the last messages and the outcome in one write, and ends the stream.
pub(crate) async fn end(link: &Link, gathered: &mut Gathered, reply: Reply, deadline: Instant) {
    let reply = fitting(link, reply);
    let brief = gathered.is_brief(&reply);
    let mut frames = gathered.take();
    frames.extend(match brief {
        true => codec::brief_end(&reply),
        false => codec::reply_frames(&reply, 0),
    });
    if let Err(refusal) = send_last(&mut gathered.outgoing, frames, deadline).await {
        let code = refused(link, refusal);
        gathered.outgoing.reset(code);
    }
}

/// The first frame of a stream, whole within the time a peer has for it.
async fn first_frame(incoming: &mut Incoming, by: Instant) -> Result<Bytes, Refusal> {
    match timeout_at(by, incoming.next()).await {
        Ok(frame) => frame?.ok_or(Refusal::Broken),
        Err(_) => Err(Refusal::Slow),
    }
}

async fn call(
    link: &Arc<Link>,
    outgoing: &mut Outgoing,
    incoming: &mut Incoming,
    head_by: Instant,
) -> Result<Next, Refusal> {
    let frame = first_frame(incoming, head_by).await?;
    let head_frame_bytes = frame.len();
    let Ok(proto::CallFrame {
        kind: Some(Kind::Head(head)),
        ..
    }) = proto::CallFrame::read(frame)
    else {
        return Err(Refusal::Broken);
    };
    if head_frame_bytes - head.payload.len() > MAX_HEAD_BYTES + FRAME_OVERHEAD
        || head.payload.len() > INLINE_BYTES
        || head.metadata.len() > MAX_METADATA_ENTRIES
    {
        return Err(Refusal::Broken);
    }
    let deadline = Instant::now() + Duration::from_micros(head.timeout_us).min(MAX_CALL_TIMEOUT);
    let mut in_flight = match admit(link, head.timeout_us, link.let_in_from(outgoing.index())) {
        Ok(in_flight) => in_flight,
        Err(refusal) => {
            let _in_flight = link.enter_answered();
            incoming.stop(ResetCode::Cancelled);
            send_reply(link, outgoing, refusal.into(), deadline).await?;
            return Ok(Next::Done);
        }
    };
    link.inner.load.arrived(1);
    let service = match ServiceName::new(&head.service) {
        Ok(service) => service,
        Err(error) => {
            incoming.stop(ResetCode::Cancelled);
            let reply = Reply::error(StatusCode::InvalidArgument, error.to_string());
            send_reply(link, outgoing, reply, deadline).await?;
            return Ok(Next::Done);
        }
    };
    let route = Route::from_wire(&head);
    let mut call = IncomingCall {
        peer: link.peer.clone(),
        service,
        method: head.method,
        metadata: Metadata::from_wire(head.metadata),
        route,
        deadline: deadline.into_std(),
        body: head.payload,
    };
    match std::panic::catch_unwind(AssertUnwindSafe(|| link.inner.handler.kind(&call))) {
        Ok(CallKind::Unary) => {}
        Ok(CallKind::Streaming) => {
            return Ok(Next::Streaming {
                call,
                ended: head.end,
                deadline,
                in_flight,
            });
        }
        Err(_) => {
            incoming.stop(ResetCode::Cancelled);
            send_reply(link, outgoing, panicked(link), deadline).await?;
            return Ok(Next::Done);
        }
    }
    if !head.end {
        // So many large requests at a time are put together for one peer; the others wait in its send buffers.
        let put_together = async {
            let _place = link.large_requests.acquire().await;
            body(link, incoming, std::mem::take(&mut call.body)).await
        };
        call.body = match timeout_at(deadline, put_together).await {
            Ok(body) => body?,
            Err(_) => return Err(Refusal::Slow),
        };
    }
    let answer = tokio::select! {
        biased;
        reply = run(link, call, deadline) => reply,
        () = outgoing.stopped() => {
            link.inner.counters.calls_dropped.add();
            return Err(Refusal::Gone);
        }
    };
    in_flight.answered();
    send_reply(link, outgoing, answer, deadline).await?;
    Ok(Next::Done)
}

/// Takes a call that was let in, or says why not. `inside` counts as one of those that run: the call's own, or that of all that
/// were read with it.
pub(crate) fn admit<T>(link: &Link, timeout_us: u64, inside: Option<T>) -> Result<T, NotAdmitted> {
    let counters = &link.inner.counters;
    let refusal = match inside {
        None => NotAdmitted::Draining,
        Some(_) if timeout_us == 0 => NotAdmitted::TooLate,
        Some(_) if link.unanswered() > link.inner.config.limits.max_concurrent_calls => NotAdmitted::Busy,
        Some(inside) => {
            counters.calls_taken.add();
            return Ok(inside);
        }
    };
    counters.calls_refused.add();
    Err(refusal)
}

/// Why a call is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    Draining,
    Busy,
    TooLate,
}

impl From<NotAdmitted> for Reply {
    fn from(why: NotAdmitted) -> Self {
        match why {
            NotAdmitted::Draining => Self::refused(
                StatusCode::Unavailable,
                "the node takes no further calls on this connection",
            ),
            NotAdmitted::TooLate => Self::refused(
                StatusCode::DeadlineExceeded,
                "the deadline had passed when the call came",
            ),
            NotAdmitted::Busy => Self::refused(
                StatusCode::ResourceExhausted,
                "the node runs as many calls of this peer as it takes",
            ),
        }
    }
}

/// The whole request: what the head carries, and the frames after it.
async fn body(link: &Link, incoming: &mut Incoming, first: Bytes) -> Result<Bytes, Refusal> {
    let limit = link.inner.config.limits.max_message_bytes;
    incoming.set_limit(limit + FRAME_OVERHEAD);
    let mut pieces = Pieces::default();
    pieces.push(first);
    loop {
        // A caller that streams ends its requests with the stream.
        let Some(frame) = incoming.next().await? else {
            return Ok(pieces.join());
        };
        let data = match proto::CallFrame::read(frame) {
            Ok(proto::CallFrame {
                kind: Some(Kind::Data(data)),
                ..
            }) => data,
            _ => return Err(Refusal::Broken),
        };
        if pieces.len() + data.payload.len() > limit {
            return Err(Refusal::Broken);
        }
        pieces.push(data.payload);
        if data.end {
            return Ok(pieces.join());
        }
    }
}

/// Runs the handler to its answer, its panic or the deadline.
async fn run(link: &Link, call: IncomingCall, deadline: Instant) -> Reply {
    let handler = &link.inner.handler;
    // The handler itself may panic before it returns a future.
    let answer: Result<BoxFuture<'static, Reply>, _> =
        std::panic::catch_unwind(AssertUnwindSafe(|| handler.call(call)));
    match answer {
        Ok(answer) => finish(link, answer, deadline).await,
        Err(_) => panicked(link),
    }
}

/// Runs a handler's future to its answer, its panic or the deadline.
pub(crate) async fn finish(link: &Link, answer: BoxFuture<'static, Reply>, deadline: Instant) -> Reply {
    match timeout_at(deadline, AssertUnwindSafe(answer).catch_unwind()).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(_)) => panicked(link),
        Err(_) => too_late(link),
    }
}

pub(crate) fn too_late(link: &Link) -> Reply {
    link.inner.counters.calls_dropped.add();
    Reply::error(
        StatusCode::DeadlineExceeded,
        "the deadline passed before the handler was done",
    )
}

pub(crate) fn panicked(link: &Link) -> Reply {
    link.inner.counters.handler_panics.add();
    Reply::error(StatusCode::Internal, "the handler panicked")
}

/// A reply as it may be sent to this peer: one that is too large becomes the error that says so, and a failure that says too much
/// stays what it is, because whether it is final is its code's to say.
pub(crate) fn fitting(link: &Link, reply: Reply) -> Reply {
    let limit = link
        .inner
        .config
        .limits
        .max_message_bytes
        .min(link.peer.max_message_bytes);
    let head = codec::reply_head_bytes(&reply);
    if reply.body.len() > limit {
        let words = format!(
            "the reply has {} bytes; a message has at most {limit}",
            reply.body.len()
        );
        Reply::error(StatusCode::ResourceExhausted, words)
    } else if head > MAX_HEAD_BYTES || reply.metadata.len() > MAX_METADATA_ENTRIES {
        let words = format!(
            "the reply's message, details and metadata have {head} bytes and {} entries; at most {MAX_HEAD_BYTES} bytes and \
             {MAX_METADATA_ENTRIES} entries are sent",
            reply.metadata.len()
        );
        match reply.status {
            StatusCode::Ok => Reply::error(StatusCode::ResourceExhausted, words),
            _ => reply.shortened(MAX_SHORTENED_BYTES, &words),
        }
    } else {
        reply
    }
}

async fn send_reply(link: &Link, outgoing: &mut Outgoing, reply: Reply, deadline: Instant) -> Result<(), Refusal> {
    let reply = fitting(link, reply);
    let frames = codec::reply_frames(&reply, 0);
    send_last(outgoing, frames, deadline).await
}

/// Sends the last frames of a reply, ends the stream, and waits until the peer has acknowledged all of it: the call is under way until
/// then, and the connection stays open for it.
async fn send_last(outgoing: &mut Outgoing, mut frames: Vec<Bytes>, deadline: Instant) -> Result<(), Refusal> {
    let give_up = deadline.max(Instant::now()) + REPLY_GRACE;
    match timeout_at(give_up, outgoing.send(&mut frames)).await {
        Ok(Ok(())) => {
            outgoing.finish();
            // A caller that has not acknowledged the reply by then does not wait for it any more.
            let _ = timeout_at(give_up, outgoing.stopped()).await;
            Ok(())
        }
        Ok(Err(_)) => Err(Refusal::Gone),
        Err(_) => Err(Refusal::Slow),
    }
}

async fn request(
    link: &Arc<Link>,
    protocol: Protocol,
    outgoing: &mut Outgoing,
    incoming: &mut Incoming,
    head_by: Instant,
) -> Result<(), Refusal> {
    incoming.set_limit(MAX_REQUEST_BYTES);
    let body = first_frame(incoming, head_by).await?;
    let _in_flight = link.enter(Direction::Inbound);
    let handler = &link.inner.handler;
    let asked = std::panic::catch_unwind(AssertUnwindSafe(|| handler.request(&link.peer, protocol, body)));
    let answer = match asked {
        Ok(answer) => tokio::select! {
            biased;
            answer = AssertUnwindSafe(answer).catch_unwind() => answer,
            () = outgoing.stopped() => return Err(Refusal::Gone),
        },
        Err(panic) => Err(panic),
    };
    let answer = answer.unwrap_or_else(|_| {
        link.inner.counters.handler_panics.add();
        None
    });
    let Some(answer) = answer.filter(|answer| answer.len() <= MAX_REQUEST_BYTES) else {
        outgoing.reset(ResetCode::Declined);
        return Ok(());
    };
    let give_up = Instant::now() + link.inner.config.timers.head;
    match timeout_at(give_up, outgoing.send(&mut body_frame(answer))).await {
        Ok(Ok(())) => {
            outgoing.finish();
            let _ = timeout_at(give_up, outgoing.stopped()).await;
            Ok(())
        }
        Ok(Err(_)) => Err(Refusal::Gone),
        Err(_) => Err(Refusal::Slow),
    }
}
