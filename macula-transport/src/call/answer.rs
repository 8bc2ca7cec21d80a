//! The provider's side of a connection: it has the handler answer the streams that a peer opens.
//!
//! Every call is let in by [`Provider::admit`] and begun by [`Provider::begin`], from a stream of its own or from a lane.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{FutureExt as _, future::BoxFuture};
use macula_wire::{NameError, ServiceName, StatusCode};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use super::{
    NO_MEMORY,
    frame::{self, Frame, Head},
    handler::{Handler, Protocol},
    lane::provider::InboundLane,
    messages::{CallKind, IncomingMessages, OutgoingMessages},
    passages::{NotPassed, Passages},
    reply::{Ended, ReplyPlaces, ReplyStream, ReplyWriter},
    types::{IncomingCall, Reply},
};
use crate::{
    config::MAX_REQUEST_BYTES,
    connection::{
        link::{Direction, InFlight, Link},
        stream::{FRAME_OVERHEAD, Incoming, Outgoing, ResetCode, StreamKind, Unserved, body_frame},
    },
    heads::HeadLimits,
    peer::PeerInfo,
    share::{
        budget::Hold,
        memory::STREAM_BYTES,
        places::{PeerPlaces, PlacesFull},
    },
};

/// How many lanes a peer may have open. Each may hold a full queue in memory; a node needs a few.
const MAX_PEER_LANES: usize = 16;

/// The provider's side of a connection.
pub(crate) struct Provider {
    pub(crate) link: Arc<Link>,
    pub(crate) handler: Arc<dyn Handler>,
    /// How many further lanes the peer may open.
    pub(crate) lanes: Semaphore,
    pub(crate) places: Arc<ReplyPlaces>,
    /// The places of its calls that run.
    pub(crate) calls: PeerPlaces,
    passages: Passages,
}

/// Why a call is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NotAdmitted {
    Draining,
    Busy,
    TooLate,
    NoMemory,
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
            NotAdmitted::NoMemory => no_memory(),
            NotAdmitted::Busy => Self::refused(
                StatusCode::ResourceExhausted,
                "the node runs as many calls of this peer as it takes",
            ),
        }
    }
}

/// The call did not start, because its request would not fit in memory.
fn no_memory() -> Reply {
    Reply::refused(StatusCode::ResourceExhausted, NO_MEMORY)
}

impl From<PlacesFull> for Reply {
    fn from(PlacesFull { places }: PlacesFull) -> Self {
        Self::refused(
            StatusCode::ResourceExhausted,
            format!("the node runs {places} calls already, which is its limit"),
        )
    }
}

/// The place of a call that runs was taken back.
pub(crate) fn gave_way() -> Reply {
    Reply::error(
        StatusCode::ResourceExhausted,
        "the node gave the call up: all its places are taken, and the caller has more of them than others",
    )
}

/// The memory of a call that runs was taken back.
fn lost_memory() -> Reply {
    Reply::error(
        StatusCode::ResourceExhausted,
        "the node gave the call up because it runs out of memory",
    )
}

/// A call whose handler was started.
pub(crate) struct Begun {
    pub(crate) answer: BoxFuture<'static, Reply>,
    /// Where a handler that streams puts its messages; `None` for a unary one.
    pub(crate) writer: Option<Arc<ReplyWriter>>,
}

impl Provider {
    pub(crate) fn new(link: Arc<Link>, handler: Arc<dyn Handler>) -> Self {
        let gives_way = Arc::downgrade(&link);
        let calls = link.shared.places.connection(link.peer.holder(), move || {
            gives_way.upgrade().iter().for_each(|link| link.give_way());
        });
        Self {
            calls,
            link,
            handler,
            lanes: Semaphore::new(MAX_PEER_LANES),
            places: Arc::default(),
            passages: Passages::default(),
        }
    }

    /// Admits a call, or gives the reply that refuses it. `inside` is the call's place behind the gate, or the place that it shares with
    /// the calls read together with it; `None` when the gate is closed.
    pub(crate) fn admit<T>(
        &self,
        head: Head,
        now: Instant,
        inside: Option<T>,
        name: impl FnOnce(&str) -> Result<ServiceName, NameError>,
    ) -> Result<(IncomingCall, T), Reply> {
        let counters = &self.link.shared.counters;
        let limit = self.link.shared.config.limits.max_concurrent_calls;
        let inside = match inside {
            None => Err(NotAdmitted::Draining),
            // Its caller may have given it up while this process stood still.
            Some(_) if self.link.shared.waited(now.into_std()) >= Duration::from_micros(head.timeout_us) => {
                Err(NotAdmitted::TooLate)
            }
            Some(_) if self.link.unanswered() > limit => Err(NotAdmitted::Busy),
            Some(_) if self.link.memory.is_short() => Err(NotAdmitted::NoMemory),
            Some(inside) => Ok(inside),
        };
        let inside = inside.inspect_err(|_| counters.calls_refused.add())?;
        counters.calls_taken.add();
        let service = name(head.service());
        let service = service.map_err(|error| Reply::error(StatusCode::InvalidArgument, error.to_string()))?;
        let deadline = self.deadline(&head, now);
        let call = IncomingCall {
            peer: self.link.peer.clone(),
            service,
            method: head.method,
            metadata: head.metadata,
            route: head.route,
            passage: head.passage,
            deadline: deadline.into_std(),
            body: head.payload,
        };
        Ok((call, inside))
    }

    /// Finds the caller of a call, when its grant lets it call the service (A5); else gives the reply that denies the call. A call that
    /// this node is to pass on counts as its peer's own, so a router passes on only calls that its peer may make.
    ///
    /// This may check signatures, so every cheaper refusal comes before it.
    pub(crate) fn find_caller(&self, call: &mut IncomingCall) -> Result<(), Reply> {
        if !call.passage.is_empty() && call.route.is_none() {
            let peer = &self.link.peer;
            let passed = self
                .passages
                .member(&self.link, &call.passage, &peer.node_id, &call.service);
            let member = passed.map_err(|why| match why {
                NotPassed::Denied(error) => self.denied(peer, &call.service, &error.to_string()),
                NotPassed::Busy => self.busy_checking(),
            })?;
            call.peer = Arc::new(peer.passing_on_for(member));
        }
        if call.peer.may_call(&call.service) {
            Ok(())
        } else {
            Err(self.denied(&call.peer, &call.service, "its grant does not let it call the service"))
        }
    }

    fn busy_checking(&self) -> Reply {
        self.link.shared.counters.calls_refused.add();
        Reply::refused(
            StatusCode::ResourceExhausted,
            "the node checks as many new callers as it can; try again later",
        )
    }

    fn denied(&self, caller: &PeerInfo, service: &ServiceName, why: &str) -> Reply {
        self.link.shared.counters.calls_denied.add();
        if self.link.shared.hushes.names_denied(caller.node_id) {
            tracing::warn!(caller = %caller.node_id, router = ?caller.router, %service, why, "a call was denied");
        }
        Reply::error(StatusCode::PermissionDenied, format!("{service}: {why}"))
    }

    /// When a call that came now has to end.
    pub(crate) fn deadline(&self, head: &Head, now: Instant) -> Instant {
        now + Duration::from_micros(head.timeout_us).min(self.link.shared.places.max_call_time())
    }

    /// How the handler exchanges the messages of a call, whose deadline comes no later than the handler lets it; the reply when the
    /// handler panicked.
    pub(crate) fn kind(&self, call: &mut IncomingCall, now: Instant) -> Result<CallKind, Reply> {
        let asked = AssertUnwindSafe(|| (self.handler.kind(call), self.handler.max_time(call)));
        let (kind, max_time) = std::panic::catch_unwind(asked).map_err(|_| self.panicked())?;
        if let Some(ends) = max_time.and_then(|time| now.into_std().checked_add(time)) {
            call.deadline = call.deadline.min(ends);
        }
        Ok(kind)
    }

    /// Refuses a call before its request is waited for, where the handler can.
    fn refuse_early(&self, call: &IncomingCall) -> Result<(), Reply> {
        let refused = std::panic::catch_unwind(AssertUnwindSafe(|| self.handler.refuses(call)));
        match refused.unwrap_or_else(|_| Some(self.panicked())) {
            Some(reply) => Err(reply),
            None => Ok(()),
        }
    }

    /// Starts the handler; a streaming one with the given halves. A panic counts as an answer, [`StatusCode::Internal`].
    pub(crate) fn begin(&self, call: IncomingCall, streams: Option<(IncomingMessages, ReplyWriter)>) -> Begun {
        let (requests, writer) = match streams {
            Some((requests, writer)) => (Some(requests), Some(Arc::new(writer))),
            None => (None, None),
        };
        let replies = writer.clone().map(OutgoingMessages::new);
        let start = || match (requests, replies) {
            (Some(requests), Some(replies)) => self.handler.stream(call, requests, replies),
            _ => self.handler.call(call),
        };
        let answer = std::panic::catch_unwind(AssertUnwindSafe(start));
        Begun {
            answer: answer.unwrap_or_else(|_| std::future::ready(self.panicked()).boxed()),
            writer,
        }
    }

    /// Runs a streaming handler until its reply has ended, and returns the rest of the reply for the lane; `None` when the caller
    /// cancelled. Calls `has_stream` once the reply has a stream: from then on the stream tells of a cancel.
    pub(crate) async fn finish_streaming(
        &self,
        answer: BoxFuture<'static, Reply>,
        writer: &ReplyWriter,
        deadline: Instant,
        in_flight: &mut InFlight,
        place: &Hold,
        has_stream: impl FnOnce(),
    ) -> Option<Ended> {
        let stopped = async {
            writer.streams().await;
            has_stream();
            writer.stopped().await;
        };
        let reply = tokio::select! {
            biased;
            reply = self.finish(answer, deadline) => reply,
            () = place.taken_back() => gave_way(),
            () = stopped => {
                self.link.shared.counters.calls_dropped.add();
                writer.reset().await;
                return None;
            }
        };
        in_flight.answered();
        Some(writer.end(reply).await)
    }

    /// Runs a handler's future to its answer, its panic or the deadline.
    pub(crate) async fn finish(&self, answer: BoxFuture<'static, Reply>, deadline: Instant) -> Reply {
        match timeout_at(deadline, AssertUnwindSafe(answer).catch_unwind()).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) => self.panicked(),
            Err(_) => {
                self.link.shared.counters.calls_dropped.add();
                Reply::error(
                    StatusCode::DeadlineExceeded,
                    "the deadline passed before the handler was done",
                )
            }
        }
    }

    pub(crate) fn panicked(&self) -> Reply {
        self.link.shared.counters.handler_panics.add();
        Reply::error(StatusCode::Internal, "the handler panicked")
    }
}

/// The first frame of a stream, whole within the time a peer has for it.
async fn first_frame(incoming: &mut Incoming, by: Instant) -> Result<Bytes, Unserved> {
    match timeout_at(by, incoming.next()).await {
        Ok(frame) => frame?.ok_or(Unserved::Broken),
        Err(_) => Err(Unserved::Slow),
    }
}

/// Ends a stream without an answer.
fn refuse(link: &Link, unserved: Unserved, outgoing: &mut Outgoing, incoming: &mut Incoming) {
    let code = link.unserved(unserved);
    outgoing.reset(code);
    incoming.stop(code);
}

/// Serves a stream that the peer opened.
pub(crate) async fn stream(provider: Arc<Provider>, send: quinn::SendStream, recv: quinn::RecvStream) {
    let link = &provider.link;
    let mut outgoing = Outgoing::new(send).beside(&link.flight);
    let mut incoming = Incoming::new(recv, link.shared.config.limits.heads().frame()).charged(&link.memory);
    let Ok(_stream) = link.memory.take(STREAM_BYTES) else {
        return refuse(link, Unserved::NotBegun, &mut outgoing, &mut incoming);
    };
    let now = Instant::now();
    link.shared.saw_clock(now.into_std());
    let timers = &link.shared.config.timers;
    // A stream may arrive before its first byte: a later stream opens it too, while its own bytes wait behind large messages.
    incoming = incoming.never_idle_for(timers.message_idle);
    let kind = match timeout_at(now + timers.idle, incoming.kind()).await {
        Ok(Ok(kind)) => kind.and_then(StreamKind::from_byte).ok_or(Unserved::Broken),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(Unserved::Slow),
    };
    let head_by = Instant::now() + timers.head;
    let served = match kind {
        Ok(StreamKind::Call) => return call(&provider, outgoing, incoming, head_by).await,
        Ok(StreamKind::Lane) => match provider.lanes.try_acquire() {
            // Boxed to keep the task of a call small.
            Ok(_place) => {
                InboundLane::serve(&provider, &mut outgoing, &mut incoming)
                    .boxed()
                    .await
            }
            Err(_) => Err(Unserved::Broken),
        },
        Ok(StreamKind::Dht) => {
            request(&provider, Protocol::Dht, &mut outgoing, &mut incoming, head_by)
                .boxed()
                .await
        }
        Ok(StreamKind::Revocations) => {
            request(&provider, Protocol::Revocations, &mut outgoing, &mut incoming, head_by)
                .boxed()
                .await
        }
        Ok(StreamKind::Control | StreamKind::Reply) => Err(Unserved::Broken),
        Err(unserved) => Err(unserved),
    };
    if let Err(unserved) = served {
        refuse(link, unserved, &mut outgoing, &mut incoming);
    }
}

/// Serves a call on a stream of its own.
async fn call(provider: &Arc<Provider>, mut outgoing: Outgoing, mut incoming: Incoming, head_by: Instant) {
    let link = &provider.link;
    let head = match first_frame(&mut incoming, head_by)
        .await
        .map(|frame| frame::read(&frame, link.shared.config.limits.heads()))
    {
        Ok(Ok((_, Frame::Head(head)))) => Ok(head),
        Ok(Ok((_, Frame::Data(_) | Frame::Trailers(_) | Frame::Cancel)) | Err(frame::Malformed)) => {
            Err(Unserved::Broken)
        }
        Err(Unserved::Exhausted) => Err(Unserved::NotBegun),
        Err(unserved) => Err(unserved),
    };
    let head = match head {
        Ok(head) => head,
        Err(unserved) => return refuse(link, unserved, &mut outgoing, &mut incoming),
    };
    let (now, ended) = (Instant::now(), head.end);
    let until = provider.deadline(&head, now);
    let inside = link.let_in_from(outgoing.index());
    let admitted = provider.admit(head, now, inside, ServiceName::new);
    let admitted = admitted.and_then(|(mut call, inside)| {
        link.shared.load.arrived(1);
        if !ended {
            provider.refuse_early(&call)?;
        }
        let kind = provider.kind(&mut call, now)?;
        let place = provider.calls.take(kind.runs())?;
        provider.find_caller(&mut call)?;
        Ok((kind, place.into_hold(), call, inside))
    });
    let (kind, place, call, mut in_flight) = match admitted {
        Ok(admitted) => admitted,
        Err(reply) => {
            let _in_flight = link.enter_answered();
            incoming.stop(ResetCode::Cancelled);
            return ReplyStream::own(link, outgoing, until).send(link, reply).await;
        }
    };
    let until = Instant::from_std(call.deadline);
    match kind {
        CallKind::Unary => match unary(provider, &outgoing, &mut incoming, call, ended, until, &place).await {
            Ok(reply) => {
                in_flight.answered();
                drop(place);
                incoming.release();
                ReplyStream::own(link, outgoing, until).send(link, reply).await;
            }
            Err(unserved) => refuse(link, unserved, &mut outgoing, &mut incoming),
        },
        CallKind::Streaming | CallKind::Forwarded => {
            streaming(provider, outgoing, incoming, call, ended, until, (in_flight, place))
                .boxed()
                .await;
        }
    }
}

/// Runs a call of one request and one reply, once the request has arrived.
async fn unary(
    provider: &Provider,
    outgoing: &Outgoing,
    incoming: &mut Incoming,
    mut call: IncomingCall,
    ended: bool,
    deadline: Instant,
    place: &Hold,
) -> Result<Reply, Unserved> {
    let link = &provider.link;
    if ended {
        if incoming.keep(call.kept_bytes()).is_err() {
            return Ok(no_memory());
        }
    } else {
        let body = timeout_at(deadline, body(link, incoming, std::mem::take(&mut call.body))).await;
        call.body = match body.map_err(|_| Unserved::Slow)? {
            Err(Unserved::Exhausted) => {
                incoming.stop(ResetCode::Exhausted);
                return Ok(no_memory());
            }
            body => body?,
        };
    }
    let taken_back = incoming.taken_back();
    let begun = provider.begin(call, None);
    tokio::select! {
        biased;
        reply = provider.finish(begun.answer, deadline) => Ok(reply),
        () = taken_back => {
            link.shared.counters.calls_dropped.add();
            Ok(lost_memory())
        }
        () = place.taken_back() => {
            link.shared.counters.calls_dropped.add();
            Ok(gave_way())
        }
        () = outgoing.stopped() => {
            link.shared.counters.calls_dropped.add();
            Err(Unserved::Gone)
        }
    }
}

/// Runs a call of a streaming handler.
async fn streaming(
    provider: &Arc<Provider>,
    mut outgoing: Outgoing,
    mut incoming: Incoming,
    mut call: IncomingCall,
    ended: bool,
    deadline: Instant,
    (mut in_flight, place): (InFlight, Hold),
) {
    let link = &provider.link;
    incoming.set_limit(link.shared.config.limits.max_message_bytes + FRAME_OVERHEAD);
    if incoming.keep(call.kept_bytes()).is_err() {
        return refuse(link, Unserved::NotBegun, &mut outgoing, &mut incoming);
    }
    let requests = IncomingMessages::stream(link.clone(), incoming, std::mem::take(&mut call.body), ended);
    let writer = ReplyWriter::on_stream(link.clone(), provider.places.clone(), outgoing, deadline);
    let Begun { answer, writer } = provider.begin(call, Some((requests, writer)));
    let Some(writer) = writer else { return };
    let in_flight = &mut in_flight;
    match provider
        .finish_streaming(answer, &writer, deadline, in_flight, &place, || ())
        .await
    {
        // On a stream of its own nothing is left to do.
        Some(Ended::OnLane(..) | Ended::OnStream | Ended::CutShort(_)) | None => {}
    }
}

/// The whole request: the part in the head, and the frames after it.
async fn body(link: &Link, incoming: &mut Incoming, first: Bytes) -> Result<Bytes, Unserved> {
    let limit = link.shared.config.limits.max_message_bytes;
    incoming.set_limit(limit + FRAME_OVERHEAD);
    let mut pieces = Pieces::default();
    pieces.push(first);
    loop {
        incoming.assembles(pieces.len());
        // A caller that streams ends its requests with the stream.
        let Some(frame) = incoming.next().await? else {
            incoming.assembled();
            return Ok(pieces.join());
        };
        match frame::read(&frame, HeadLimits::LEAST) {
            Ok((_, Frame::Data(data))) if pieces.len() + data.payload.len() <= limit => {
                pieces.push(data.payload);
                if data.end {
                    incoming.assembled();
                    return Ok(pieces.join());
                }
            }
            Ok((_, Frame::Data(_) | Frame::Head(_) | Frame::Trailers(_) | Frame::Cancel)) | Err(frame::Malformed) => {
                return Err(Unserved::Broken);
            }
        }
    }
}

/// Joins the pieces of a payload; a single piece is not copied.
#[derive(Debug, Default)]
struct Pieces {
    first: Bytes,
    rest: BytesMut,
}

impl Pieces {
    fn len(&self) -> usize {
        self.first.len() + self.rest.len()
    }

    fn push(&mut self, piece: Bytes) {
        if self.len() == 0 {
            self.first = piece;
        } else {
            self.rest.extend_from_slice(&std::mem::take(&mut self.first));
            self.rest.extend_from_slice(&piece);
        }
    }

    fn join(self) -> Bytes {
        match self.rest.is_empty() {
            true => self.first,
            false => self.rest.freeze(),
        }
    }
}

/// Answers a request of another protocol.
async fn request(
    provider: &Provider,
    protocol: Protocol,
    outgoing: &mut Outgoing,
    incoming: &mut Incoming,
    head_by: Instant,
) -> Result<(), Unserved> {
    let link = &provider.link;
    incoming.set_limit(MAX_REQUEST_BYTES);
    let body = first_frame(incoming, head_by).await?;
    let _in_flight = link.enter(Direction::Inbound);
    let handler = &provider.handler;
    let asked = std::panic::catch_unwind(AssertUnwindSafe(|| handler.request(&link.peer, protocol, body)));
    let answer = match asked {
        Ok(answer) => tokio::select! {
            biased;
            answer = AssertUnwindSafe(answer).catch_unwind() => answer,
            () = outgoing.stopped() => return Err(Unserved::Gone),
        },
        Err(panic) => Err(panic),
    };
    let answer = answer.unwrap_or_else(|_| {
        link.shared.counters.handler_panics.add();
        None
    });
    let Some(answer) = answer.filter(|answer| answer.len() <= MAX_REQUEST_BYTES) else {
        outgoing.reset(ResetCode::Declined);
        return Ok(());
    };
    let give_up = Instant::now() + link.shared.config.timers.head;
    match timeout_at(give_up, outgoing.send(&mut body_frame(answer))).await {
        Ok(Ok(())) => {
            outgoing.finish();
            let _ = timeout_at(give_up, outgoing.stopped()).await;
            Ok(())
        }
        Ok(Err(_)) => Err(Unserved::Gone),
        Err(_) => Err(Unserved::Slow),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_in_order() {
        let mut pieces = Pieces::default();
        for piece in ["", "a", "", "bc", "d"] {
            pieces.push(Bytes::from_static(piece.as_bytes()));
        }
        assert_eq!((pieces.len(), pieces.join()), (4, Bytes::from_static(b"abcd")));
    }
}
