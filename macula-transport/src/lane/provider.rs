//! Drives the provider's end of a lane over a stream: ready handlers answer where their call was read.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use macula_wire::{ServiceName, StatusCode};
use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{Instant, error::Elapsed, timeout_at},
};

use super::{
    CallId,
    several::Several,
    state::{self, Asked, ProviderLane, Request},
};
use crate::{
    CallKind, Handler, IncomingCall, IncomingMessages, OutgoingMessages, Reply,
    caller::MAX_CALL_TIMEOUT,
    codec::{self, INLINE_BYTES},
    connection::{Direction, InFlight, Link},
    gate::LaneEntry,
    load::SMALL_LOAD,
    outbox::Flush,
    serve::{self, REPLY_GRACE, Refusal},
    stream::{Incoming, Outgoing, READ_BATCH, ReceiveError, ResetCode, StreamKind, kind_bytes},
    streaming::{One, Sink},
};

/// A handler that takes longer than this where its call was read makes those after it run beside the lane.
const SLOW_HANDLER: Duration = Duration::from_micros(200);
/// For so many calls.
const SLOW_CALLS: usize = 64;
/// With large replies of as many bytes under way as so many of the largest messages have, no further call is read.
const MAX_LARGE_REPLIES: usize = 16;
/// How long replies may wait for a peer that does not take them, before the lane is given up.
const CLOGGED: Duration = Duration::from_secs(30);

/// A lane that the peer opened.
pub(crate) struct Lane {
    core: Mutex<ProviderLane<AbortHandle>>,
    entry: Arc<LaneEntry>,
    /// Calls that were read and are not begun.
    unbegun: AtomicUsize,
    /// Woken when replies were taken to be written.
    unclogged: Notify,
    /// Large replies under way, in bytes.
    large_bytes: AtomicUsize,
    /// How many of these are held. They are counted in bytes, so that many that are far from the largest do not keep the small calls
    /// behind them waiting.
    max_large_bytes: usize,
    /// So many replies wait that no further call is begun; looked at again before one is.
    clogged: AtomicBool,
    /// Which of the peer's streams it is.
    pub(super) stream: u64,
    pub(super) link: Arc<Link>,
}

/// Serves a lane until the peer ends it, or this side leaves and the peer has acknowledged the last reply.
pub(crate) async fn serve(
    link: &Arc<Link>,
    entry: &Arc<LaneEntry>,
    outgoing: &mut Outgoing,
    incoming: &mut Incoming,
) -> Result<(), Refusal> {
    outgoing.carry_small_calls();
    let lane = Arc::new(Lane {
        core: Mutex::new(ProviderLane::new()),
        entry: entry.clone(),
        unbegun: AtomicUsize::new(0),
        unclogged: Notify::new(),
        large_bytes: AtomicUsize::new(0),
        max_large_bytes: MAX_LARGE_REPLIES.saturating_mul(link.inner.config.limits.max_message_bytes),
        clogged: AtomicBool::new(false),
        stream: outgoing.index(),
        link: link.clone(),
    });
    let end = tokio::select! {
        biased;
        // A peer that ends its half waits for no reply.
        end = lane.read(incoming) => Err(end.map_or_else(Refusal::from, |()| Refusal::Gone)),
        end = lane.write(outgoing) => end,
    };
    if end.is_ok() {
        incoming.stop(ResetCode::Cancelled);
        outgoing.finish();
        outgoing.stopped().await;
    }
    let running = lane.lock().close();
    for stop in running {
        stop.abort();
        link.inner.counters.calls_dropped.add();
    }
    end
}

impl Lane {
    pub(super) fn lock(&self) -> MutexGuard<'_, ProviderLane<AbortHandle>> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes replies, until no further call is taken and the last reply is written.
    async fn write(&self, outgoing: &mut Outgoing) -> Result<(), Refusal> {
        loop {
            if self.link.inner.load.is_above(SMALL_LOAD) {
                tokio::task::yield_now().await;
            }
            let (mut chunks, idle) = {
                let mut core = self.lock();
                (core.take_output(), core.is_idle())
            };
            if chunks.is_empty() {
                if idle && self.link.is_shut() && self.unbegun.load(SeqCst) == 0 {
                    return Ok(());
                }
                self.entry.writable.notified().await;
                continue;
            }
            self.unclogged.notify_one();
            match timeout_at(Instant::now() + CLOGGED, outgoing.send(&mut chunks)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Refusal::Gone),
                Err(_) => return Err(Refusal::Slow),
            }
        }
    }

    async fn read(self: &Arc<Self>, incoming: &mut Incoming) -> Result<(), ReceiveError> {
        let mut chunks = [const { Bytes::new() }; READ_BATCH];
        let mut asked = Vec::new();
        let mut names = Names::default();
        let mut beside = 0_usize;
        loop {
            self.room().await;
            let mut calls = 0;
            let more = incoming.fill(&mut chunks, |frame| {
                let read = state::read_request(frame).map_err(|_| ReceiveError::Broken)?;
                calls += usize::from(matches!(read, Asked::Call(..)));
                asked.push(read);
                Ok(())
            });
            if !more.await? {
                return Ok(());
            }
            self.link.inner.counters.calls_on_lanes.add_many(calls);
            self.link.inner.load.arrived(asked.len());
            self.unbegun.fetch_add(calls, SeqCst);
            // A call that is answered where it was read is inside, too.
            let inside = self.link.let_in_on(&self.entry, calls);
            let now = Instant::now();
            self.link.inner.saw_clock(now.into_std());
            self.link.flight.saw_small_calls(now.into_std());
            let frames = asked.len() as u32;
            for asked in asked.drain(..) {
                match asked {
                    Asked::Call(id, request) => {
                        // What was read together may be many calls, and each may have a large answer.
                        if self.clogged.load(SeqCst) || self.holds_enough() {
                            self.room().await;
                        }
                        let inline = beside == 0;
                        beside = beside.saturating_sub(1);
                        self.call(id, request, now, &mut names, inline, inside.as_ref())?;
                        self.unbegun.fetch_sub(1, SeqCst);
                    }
                    Asked::Cancel(id) => {
                        let running = self.lock().cancelled(id);
                        if let Some(stop) = running {
                            stop.abort();
                            self.link.inner.counters.calls_dropped.add();
                            self.call_left();
                        }
                    }
                }
            }
            drop(inside);
            if now.elapsed() > SLOW_HANDLER * frames.max(1) {
                beside = SLOW_CALLS;
            }
        }
    }

    /// A call left the lane without a reply on it: a lane that waits for its last call is over.
    pub(super) fn call_left(&self) {
        if self.link.is_shut() {
            self.entry.writable.notify_one();
        }
    }

    /// Whether as many large replies wait for the peer as are held for it.
    fn holds_enough(&self) -> bool {
        self.large_bytes.load(SeqCst) >= self.max_large_bytes
    }

    /// Waits until the peer has taken enough of the replies that another call may be begun.
    async fn room(&self) {
        while self.lock().is_clogged() || self.holds_enough() {
            self.unclogged.notified().await;
        }
        self.clogged.store(false, SeqCst);
    }

    fn call(
        self: &Arc<Self>,
        id: CallId,
        request: Request,
        now: Instant,
        names: &mut Names,
        inline: bool,
        inside: Option<&InFlight>,
    ) -> Result<(), ReceiveError> {
        let link = &self.link;
        if let Err(refusal) = serve::admit(link, request.timeout_us, inside) {
            self.reply(id, refusal.into());
            return Ok(());
        }
        let service = match names.get(request.service()) {
            Ok(service) => service,
            Err(error) => {
                self.reply(id, Reply::error(StatusCode::InvalidArgument, error.to_string()));
                return Ok(());
            }
        };
        let deadline = now + Duration::from_micros(request.timeout_us).min(MAX_CALL_TIMEOUT);
        let call = IncomingCall {
            peer: link.peer.clone(),
            service,
            method: request.method,
            metadata: request.metadata,
            route: request.route,
            deadline: deadline.into_std(),
            body: request.payload,
        };
        let begin = || self.begin(id, call, request.several, deadline);
        let begun = std::panic::catch_unwind(AssertUnwindSafe(begin));
        let Ok((mut answer, several)) = begun else {
            self.reply(id, serve::panicked(link));
            return Ok(());
        };
        if inline {
            // Whatever it waits for is asked again, with a waker, by the task below.
            let mut cx = Context::from_waker(Waker::noop());
            let polled = std::panic::catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(&mut cx)));
            let reply = match polled {
                Ok(Poll::Ready(reply)) => Some(reply),
                Ok(Poll::Pending) => None,
                Err(_) => Some(serve::panicked(link)),
            };
            if let Some(reply) = reply {
                let Some(several) = &several else {
                    self.reply(id, reply);
                    return Ok(());
                };
                match several.take_whole(reply) {
                    Ok((reply, messages)) => {
                        self.reply_several(id, reply, messages);
                        return Ok(());
                    }
                    // It takes a stream.
                    Err(reply) => answer = Box::pin(std::future::ready(reply)),
                }
            }
        }
        let in_flight = link.enter(Direction::Inbound);
        self.lock().started(id).map_err(|_| ReceiveError::Broken)?;
        let task = match several {
            None => tokio::spawn(self.clone().finish(id, answer, deadline, in_flight)),
            Some(several) => tokio::spawn(self.clone().finish_several(several, answer, deadline, in_flight)),
        };
        // A task that has ended already needs no stopping.
        let _ = self.lock().stop_with(id, task.abort_handle());
        Ok(())
    }

    /// Starts the handler. One that streams gets the one request, and gives as many replies as the caller takes.
    fn begin(
        self: &Arc<Self>,
        id: CallId,
        mut call: IncomingCall,
        several: bool,
        deadline: Instant,
    ) -> (BoxFuture<'static, Reply>, Option<Arc<Several>>) {
        let handler = &self.link.inner.handler;
        match handler.kind(&call) {
            CallKind::Unary => (handler.call(call), None),
            CallKind::Streaming if several => {
                let limit = self.link.message_limit();
                let several = Arc::new(Several::new(self.clone(), id, limit, deadline));
                let messages = IncomingMessages::one(std::mem::take(&mut call.body));
                let replies = OutgoingMessages::new(Sink::Lane(several.clone()));
                (handler.stream(call, messages, replies), Some(several))
            }
            CallKind::Streaming => (stream_one(handler, call), None),
        }
    }

    /// Runs a handler that was not ready at once.
    async fn finish(
        self: Arc<Self>,
        id: CallId,
        answer: BoxFuture<'static, Reply>,
        deadline: Instant,
        in_flight: InFlight,
    ) {
        let reply = serve::finish(&self.link, answer, deadline).await;
        self.end(id, reply);
        drop(in_flight);
    }

    /// Answers a call that ran beside the lane, unless it was cancelled.
    pub(super) fn end(self: &Arc<Self>, id: CallId, reply: Reply) {
        self.end_several(id, reply, Vec::new());
    }

    /// As [`Lane::end`], with the messages of a reply that fits on the lane.
    pub(super) fn end_several(self: &Arc<Self>, id: CallId, reply: Reply, messages: Vec<Bytes>) {
        // Counted as unbegun, so that the lane is not over between the two.
        self.unbegun.fetch_add(1, SeqCst);
        if self.lock().ended(id) {
            self.reply_several(id, reply, messages);
        }
        self.unbegun.fetch_sub(1, SeqCst);
        self.call_left();
    }

    /// Runs a handler that was not ready at once, or whose replies need a stream.
    async fn finish_several(
        self: Arc<Self>,
        several: Arc<Several>,
        answer: BoxFuture<'static, Reply>,
        deadline: Instant,
        mut in_flight: InFlight,
    ) {
        let reply = tokio::select! {
            biased;
            reply = serve::finish(&self.link, answer, deadline) => Some(reply),
            () = several.stopped() => None,
        };
        match reply {
            Some(reply) => {
                in_flight.answered();
                several.end(reply).await;
            }
            None => {
                self.link.inner.counters.calls_dropped.add();
                several.reset().await;
            }
        }
        drop(in_flight);
    }

    /// Sends a reply of several messages that fits on the lane.
    fn reply_several(self: &Arc<Self>, id: CallId, reply: Reply, messages: Vec<Bytes>) {
        if messages.is_empty() {
            return self.reply(id, reply);
        }
        let reply = serve::fitting(&self.link, reply);
        self.put(|core| core.reply_several(id, &reply, &messages));
    }

    /// Puts a reply on the lane.
    fn put(&self, reply: impl FnOnce(&mut ProviderLane<AbortHandle>) -> Flush) {
        let flush = {
            let mut core = self.lock();
            let flush = reply(&mut core);
            if core.is_clogged() {
                self.clogged.store(true, SeqCst);
            }
            flush
        };
        match flush {
            Flush::Wake => self.entry.writable.notify_one(),
            Flush::AlreadyDue => {}
        }
    }

    /// Sends a reply: on the lane, or when it is large on a stream of its own.
    pub(super) fn reply(self: &Arc<Self>, id: CallId, reply: Reply) {
        let reply = serve::fitting(&self.link, reply);
        if reply.body.len() > INLINE_BYTES {
            let large = Large::new(self.clone(), reply.body.len());
            // From here on, so that it is under way before its call has ended.
            let in_flight = self.link.enter_answered();
            tokio::spawn(self.clone().reply_apart(id, reply, large, in_flight));
            return;
        }
        self.put(|core| core.reply(id, &reply));
    }

    async fn reply_apart(self: Arc<Self>, id: CallId, reply: Reply, _large: Large, _in_flight: InFlight) {
        // The caller knows how long it waits, and stops the stream; this is for one that does neither.
        let patience = CLOGGED.max(REPLY_GRACE);
        let send = async {
            // Those before it are given up when they are not taken: its turn comes.
            let turn = self.link.turn_of_reply(reply.body.len()).await;
            let stream = timeout_at(Instant::now() + patience, self.link.quic.open_uni()).await?;
            let Ok(stream) = stream else { return Ok(None) };
            let mut outgoing = Outgoing::new(stream).beside(&self.link.flight);
            let mut frames = vec![
                kind_bytes(StreamKind::Reply),
                Bytes::copy_from_slice(&self.stream.to_be_bytes()),
            ];
            frames.extend(codec::large_reply_frames(&reply, id.to_wire()));
            // A caller that stops the stream does not want the reply any more.
            if outgoing.send_while_taken(frames, patience).await?.is_err() {
                return Ok(None);
            }
            outgoing.finish();
            drop(turn);
            Ok::<_, Elapsed>(Some(outgoing))
        };
        match send.await {
            Ok(Some(outgoing)) => {
                // A peer that has not acknowledged the reply by then has left.
                let _ = timeout_at(Instant::now() + patience, outgoing.stopped()).await;
            }
            Ok(None) => {}
            Err(_) => {
                self.link.inner.counters.slow_streams.add();
                // Else the call would wait for what never comes.
                let words = "the caller did not take the reply in time";
                self.reply(id, Reply::error(StatusCode::ResourceExhausted, words));
            }
        }
    }
}

/// One large reply under way, of so many bytes.
struct Large(Arc<Lane>, usize);

impl Large {
    fn new(lane: Arc<Lane>, bytes: usize) -> Self {
        lane.large_bytes.fetch_add(bytes, SeqCst);
        Self(lane, bytes)
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        self.0.large_bytes.fetch_sub(self.1, SeqCst);
        self.0.unclogged.notify_one();
    }
}

/// Starts a handler that streams, for a caller that takes one message.
fn stream_one(handler: &Arc<dyn Handler>, mut call: IncomingCall) -> BoxFuture<'static, Reply> {
    let one = Arc::new(tokio::sync::Mutex::new(One::default()));
    let messages = IncomingMessages::one(std::mem::take(&mut call.body));
    let answer = handler.stream(call, messages, OutgoingMessages::new(Sink::One(one.clone())));
    Box::pin(async move {
        let mut reply = answer.await;
        let mut one = one.lock().await;
        let message = one.message.take();
        if one.too_many || (message.is_some() && !reply.body.is_empty()) {
            return Reply::error(
                StatusCode::FailedPrecondition,
                "the service streams its reply: open the call as a stream",
            );
        }
        if let Some(message) = message {
            reply.body = message;
        }
        reply
    })
}

/// The names of services called lately: one that is called again is not checked and copied again.
#[derive(Debug, Default)]
struct Names {
    last: Option<ServiceName>,
}

impl Names {
    fn get(&mut self, name: &str) -> Result<ServiceName, macula_wire::NameError> {
        match &self.last {
            Some(last) if last.as_str() == name => Ok(last.clone()),
            _ => {
                let service = ServiceName::new(name)?;
                self.last = Some(service.clone());
                Ok(service)
            }
        }
    }
}
