//! Drives the provider's end of a lane over a stream: ready handlers answer where their call was read.

use std::{
    collections::{BTreeSet, VecDeque},
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use macula_wire::{ServiceName, StatusCode};
use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{Instant, timeout_at},
};

use super::{
    super::{
        answer::{Begun, Provider, gave_way},
        frame::{self, Head, INLINE_BYTES},
        messages::{CallKind, IncomingMessages},
        outbox::Flush,
        reply::{Ended, Gone, LanePlace, ReplyStream, ReplyWriter, fitting, no_memory},
        types::Reply,
    },
    calls::CallId,
    state::{self, Asked, Broken, ProviderLane},
};
use crate::{
    connection::{
        gate::LaneEntry,
        link::{Direction, InFlight},
        stream::{Incoming, Outgoing, READ_BATCH, ReceiveError, ResetCode, Unserved},
    },
    heads::HeadLimits,
    load::SMALL_LOAD,
    share::{
        budget::{Charge, Exhausted, Hold},
        memory::{Kept, TASK_BYTES},
        places::Runs,
    },
};

/// A handler that blocks the reading task for longer than this makes the calls after it run in tasks of their own.
const SLOW_HANDLER: Duration = Duration::from_micros(200);
/// How many calls that lasts.
const SLOW_CALLS: usize = 64;
/// No further call is read while the large replies under way have as many bytes as this many messages of the largest size.
const MAX_LARGE_REPLIES: usize = 16;
/// How long replies may wait for a peer that does not take them, before the lane is given up.
const CLOGGED: Duration = Duration::from_secs(30);

/// A lane that the peer opened.
pub(crate) struct InboundLane {
    core: Mutex<ProviderEnd>,
    entry: Arc<LaneEntry>,
    /// Calls that were read and are not begun, or have ended and are not answered.
    in_hand: AtomicUsize,
    /// Woken when replies were taken to be written.
    unclogged: Notify,
    /// Woken when there is no memory for the replies that wait.
    exhausted: Notify,
    /// Large replies under way, in bytes.
    large_bytes: AtomicUsize,
    /// The most of them, in bytes: a count of replies would make small calls wait behind many medium ones.
    max_large_bytes: usize,
    /// Too many replies wait to begin a further call; checked again before one begins.
    clogged: AtomicBool,
    /// Which of the peer's streams it is.
    stream: u64,
    provider: Arc<Provider>,
}

/// The lane's calls and replies, and what the replies are charged to.
struct ProviderEnd {
    lane: ProviderLane<AbortHandle>,
    /// The replies that were taken to be written and are not yet, in bytes.
    writing: usize,
    /// What these and the replies in the lane's queue are charged to.
    kept: Kept,
}

impl ProviderEnd {
    /// Gives up the replies that wait, and stops every call.
    fn close(&mut self) -> VecDeque<AbortHandle> {
        let running = self.lane.close();
        self.writing = 0;
        // Less is never refused.
        let _ = self.charge();
        running
    }

    /// Charges the replies that wait to be written.
    fn charge(&mut self) -> Result<(), Exhausted> {
        self.kept.set(self.lane.queued_bytes() + self.writing)
    }
}

/// A call that runs on beside the lane, with everything it needs.
struct Running {
    id: CallId,
    begun: Begun,
    deadline: Instant,
    in_flight: InFlight,
    /// What its request and its task take.
    memory: Charge,
    /// Its place among the calls that run.
    place: Hold,
}

impl InboundLane {
    /// Serves a lane until the peer ends it, or this side leaves and the peer has acknowledged the last reply.
    pub(crate) async fn serve(
        provider: &Arc<Provider>,
        outgoing: &mut Outgoing,
        incoming: &mut Incoming,
    ) -> Result<(), Unserved> {
        let link = &provider.link;
        outgoing.carry_small_calls();
        let entry = link.lane_opened(outgoing.index());
        let mut kept = link.memory.kept();
        let taken_back = kept.ever_taken_back();
        let core = ProviderEnd {
            lane: ProviderLane::new(),
            writing: 0,
            kept,
        };
        let lane = Arc::new(Self {
            core: Mutex::new(core),
            entry: entry.clone(),
            in_hand: AtomicUsize::new(0),
            unclogged: Notify::new(),
            exhausted: Notify::new(),
            large_bytes: AtomicUsize::new(0),
            max_large_bytes: MAX_LARGE_REPLIES.saturating_mul(link.shared.config.limits.max_message_bytes),
            clogged: AtomicBool::new(false),
            stream: outgoing.index(),
            provider: provider.clone(),
        });
        let mut end = tokio::select! {
            biased;
            // A peer that ends its half waits for no reply.
            end = lane.read(incoming) => Err(end.map_or_else(Unserved::from, |()| Unserved::Gone)),
            end = lane.write(outgoing) => end,
            () = lane.exhausted.notified() => Err(Unserved::Exhausted),
            () = taken_back => Err(Unserved::Exhausted),
        };
        if end.is_ok() {
            incoming.stop(ResetCode::Cancelled);
            outgoing.finish();
            let acknowledged = timeout_at(Instant::now() + CLOGGED, outgoing.stopped()).await;
            end = acknowledged.map_err(|_| Unserved::Slow);
        }
        let running = lane.lock().close();
        for stop in running {
            stop.abort();
            link.shared.counters.calls_dropped.add();
        }
        link.lane_over(&entry);
        end
    }

    fn lock(&self) -> MutexGuard<'_, ProviderEnd> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes replies, until no further call is taken and the last reply is written.
    async fn write(&self, outgoing: &mut Outgoing) -> Result<(), Unserved> {
        loop {
            if self.provider.link.shared.load.is_above(SMALL_LOAD) {
                tokio::task::yield_now().await;
            }
            let (mut chunks, idle) = {
                let mut core = self.lock();
                let chunks = core.lane.take_output();
                core.writing = chunks.iter().map(Bytes::len).sum();
                // The replies before these are written. Less is never refused, and a charge that was taken back ends the lane.
                let _ = core.charge();
                (chunks, core.lane.is_idle())
            };
            if chunks.is_empty() {
                if idle && self.provider.link.is_shut() && self.in_hand.load(SeqCst) == 0 {
                    return Ok(());
                }
                self.entry.writable.notified().await;
                continue;
            }
            self.unclogged.notify_one();
            match timeout_at(Instant::now() + CLOGGED, outgoing.send(&mut chunks)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Unserved::Gone),
                Err(_) => return Err(Unserved::Slow),
            }
        }
    }

    async fn read(self: &Arc<Self>, incoming: &mut Incoming) -> Result<(), ReceiveError> {
        let mut chunks = [const { Bytes::new() }; READ_BATCH];
        let mut asked = Vec::new();
        let mut names = LastName::default();
        let mut beside = 0_usize;
        loop {
            // The place of the call that is answered next where it was read.
            let mut place = None;
            self.room().await;
            let mut calls = 0;
            let more = incoming.fill(&mut chunks, |frame| {
                let read = state::read_request(&frame).map_err(|Broken| ReceiveError::Broken)?;
                calls += usize::from(matches!(read, Asked::Call(..)));
                asked.push(read);
                Ok(())
            });
            if !more.await? {
                return Ok(());
            }
            self.provider.link.shared.counters.calls_on_lanes.add_many(calls);
            self.provider.link.shared.load.arrived(asked.len());
            self.in_hand.fetch_add(calls, SeqCst);
            // A call that is answered where it was read is inside, too.
            let inside = self.provider.link.let_in_on(&self.entry, calls);
            let now = Instant::now();
            self.provider.link.shared.saw_clock(now.into_std());
            self.provider.link.flight.saw_small_calls(now.into_std());
            let frames = asked.len() as u32;
            // A call that was read together with its cancel, as after a standstill, does not start.
            let cancelled: BTreeSet<_> = asked.iter().filter_map(Asked::cancels).collect();
            for asked in asked.drain(..) {
                match asked {
                    Asked::Call(id, head) => {
                        // One read may bring many calls, each with a large answer.
                        if self.clogged.load(SeqCst) || self.holds_enough() {
                            self.room().await;
                        }
                        let inline = beside == 0;
                        beside = beside.saturating_sub(1);
                        if cancelled.contains(&id) {
                            self.provider.link.shared.counters.calls_dropped.add();
                            self.in_hand.fetch_sub(1, SeqCst);
                            continue;
                        }
                        self.call(id, head, now, &mut names, inline, (inside.as_ref(), &mut place))?;
                        self.in_hand.fetch_sub(1, SeqCst);
                    }
                    Asked::Cancel(id) => {
                        let running = self.lock().lane.cancelled(id);
                        if let Some(stop) = running {
                            stop.abort();
                            self.provider.link.shared.counters.calls_dropped.add();
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
    fn call_left(&self) {
        if self.provider.link.is_shut() {
            self.entry.writable.notify_one();
        }
    }

    /// Whether the large replies that wait for the peer reach their limit.
    fn holds_enough(&self) -> bool {
        self.large_bytes.load(SeqCst) >= self.max_large_bytes
    }

    /// Waits until the peer has taken enough of the replies that another call may be begun.
    async fn room(&self) {
        while self.lock().lane.is_clogged() || self.holds_enough() {
            self.unclogged.notified().await;
        }
        self.clogged.store(false, SeqCst);
    }

    fn call(
        self: &Arc<Self>,
        id: CallId,
        head: Head,
        now: Instant,
        names: &mut LastName,
        inline: bool,
        (inside, place): (Option<&InFlight>, &mut Option<Charge>),
    ) -> Result<(), ReceiveError> {
        let provider = &self.provider;
        let admitted = provider.admit(head, now, inside, |name| names.get(name));
        let admitted = admitted.and_then(|(mut call, _)| {
            let kind = provider.kind(&mut call, now)?;
            let taken = match (kind.runs(), place.take()) {
                (Runs::Here, Some(place)) => place,
                (runs, _) => provider.calls.take(runs)?,
            };
            provider.find_caller(&mut call)?;
            Ok((kind, taken, call))
        });
        let (kind, taken, call, deadline) = match admitted {
            Ok((kind, taken, call)) => {
                let deadline = Instant::from_std(call.deadline);
                (kind, taken, call, deadline)
            }
            Err(reply) => {
                self.reply(id, Vec::new(), reply, now);
                return Ok(());
            }
        };
        let bytes = TASK_BYTES + call.kept_bytes() as u64;
        let mut begun = match kind {
            CallKind::Unary => provider.begin(call, None),
            CallKind::Streaming | CallKind::Forwarded => {
                let mut call = call;
                let requests = IncomingMessages::one(std::mem::take(&mut call.body));
                let place = LanePlace {
                    lane: self.stream,
                    call: id.to_wire(),
                };
                let writer = ReplyWriter::on_lane(provider.link.clone(), provider.places.clone(), place, deadline);
                provider.begin(call, Some((requests, writer)))
            }
        };
        if inline {
            // The task below polls the handler again, with a waker.
            let mut cx = Context::from_waker(Waker::noop());
            let polled = std::panic::catch_unwind(AssertUnwindSafe(|| begun.answer.as_mut().poll(&mut cx)));
            let ready = match polled {
                Ok(Poll::Ready(reply)) => Some(reply),
                Ok(Poll::Pending) => None,
                Err(_) => Some(provider.panicked()),
            };
            let ended = ready.map(|reply| match &begun.writer {
                None => Ok((reply, Vec::new())),
                Some(writer) => writer.end_on_lane(reply),
            });
            match ended {
                Some(Ok((reply, messages))) => {
                    self.reply(id, messages, reply, deadline);
                    *place = (kind.runs() == Runs::Here).then_some(taken);
                    return Ok(());
                }
                // The reply needs a stream, and so a task.
                Some(Err(reply)) => begun.answer = Box::pin(std::future::ready(reply)),
                None => {}
            }
        }
        let in_flight = provider.link.enter(Direction::Inbound);
        let memory = provider.link.memory.force(bytes);
        self.lock().lane.started(id).map_err(|Broken| ReceiveError::Broken)?;
        let running = Running {
            id,
            begun,
            deadline,
            in_flight,
            memory,
            place: taken.into_hold(),
        };
        let task = tokio::spawn(self.clone().finish(running));
        // A task that has ended already needs no stopping.
        let _ = self.lock().lane.stop_with(id, task.abort_handle());
        Ok(())
    }

    /// Runs a handler that was not ready at once, or whose reply needs a stream.
    async fn finish(self: Arc<Self>, running: Running) {
        let Running {
            id,
            begun,
            deadline,
            mut in_flight,
            memory: _memory,
            place,
        } = running;
        let provider = &self.provider;
        let Some(writer) = begun.writer else {
            let reply = tokio::select! {
                biased;
                reply = provider.finish(begun.answer, deadline) => reply,
                () = place.taken_back() => {
                    provider.link.shared.counters.calls_dropped.add();
                    gave_way()
                }
            };
            self.end(id, Vec::new(), reply, deadline);
            return;
        };
        let has_stream = || self.leave(id);
        let ended = provider.finish_streaming(begun.answer, &writer, deadline, &mut in_flight, &place, has_stream);
        match ended.await {
            Some(Ended::OnLane(reply, messages)) => self.end(id, messages, reply, deadline),
            Some(Ended::CutShort(reply)) => {
                self.leave(id);
                self.reply(id, Vec::new(), reply, deadline);
            }
            Some(Ended::OnStream) | None => self.leave(id),
        }
    }

    /// Takes a call off the lane, because its reply has a stream or its caller cancelled.
    fn leave(&self, id: CallId) {
        let _ = self.lock().lane.ended(id);
        self.call_left();
    }

    /// Answers a call that ran beside the lane, unless it was cancelled.
    fn end(self: &Arc<Self>, id: CallId, messages: Vec<Bytes>, reply: Reply, deadline: Instant) {
        // Counted as in hand first, so that the lane does not end between the two steps.
        self.in_hand.fetch_add(1, SeqCst);
        if self.lock().lane.ended(id) {
            self.reply(id, messages, reply, deadline);
        }
        self.in_hand.fetch_sub(1, SeqCst);
        self.call_left();
    }

    /// Sends a reply: on the lane, or, when its only message or its head is large, on a stream of its own.
    fn reply(self: &Arc<Self>, id: CallId, messages: Vec<Bytes>, reply: Reply, deadline: Instant) {
        let reply = fitting(&self.provider.link, reply);
        let head = frame::reply_head_size(&reply);
        if reply.body.len() > INLINE_BYTES || !HeadLimits::LEAST.holds(head) {
            let bytes = reply.body.len() + head.0;
            let mut kept = self.provider.link.memory.kept();
            if kept.set(bytes).is_err() {
                return self.reply(id, Vec::new(), no_memory(), deadline);
            }
            let large = Large::new(self.clone(), bytes);
            // Counted before the call ends, so that the reply is under way without a gap.
            let in_flight = self.provider.link.enter_answered();
            tokio::spawn(self.clone().reply_apart(id, reply, deadline, kept, (large, in_flight)));
            return;
        }
        let (flush, charged) = {
            let mut core = self.lock();
            let flush = core.lane.reply(id, &messages, &reply);
            if core.lane.is_clogged() {
                self.clogged.store(true, SeqCst);
            }
            (flush, core.charge())
        };
        if charged.is_err() {
            self.exhausted.notify_one();
        }
        match flush {
            Flush::Wake => self.entry.writable.notify_one(),
            Flush::AlreadyDue => {}
        }
    }

    async fn reply_apart(
        self: Arc<Self>,
        id: CallId,
        reply: Reply,
        deadline: Instant,
        kept: Kept,
        _under_way: (Large, InFlight),
    ) {
        let provider = &self.provider;
        let place = LanePlace {
            lane: self.stream,
            call: id.to_wire(),
        };
        let taken_back = kept.taken_back();
        let opened = async {
            // Replies that the peer does not read are given up, so this one's turn comes.
            let turn = provider.places.large.turn(reply.body.len()).await;
            let stream = ReplyStream::open(&provider.link, place, deadline).await?;
            Ok((stream.keeping(kept), turn))
        };
        let opened = tokio::select! {
            biased;
            opened = opened => opened,
            () = taken_back => Err(Gone),
        };
        match opened {
            Ok((mut stream, _turn)) => stream.send(&provider.link, reply).await,
            Err(Gone) => {
                provider.link.unserved(Unserved::Slow);
                // Without this outcome the call would wait until its deadline.
                let words = "the caller did not take the reply in time";
                let late = Reply::error(StatusCode::ResourceExhausted, words);
                self.reply(id, Vec::new(), late, deadline);
            }
        }
    }
}

/// One large reply under way, with its size in bytes.
struct Large(Arc<InboundLane>, usize);

impl Large {
    fn new(lane: Arc<InboundLane>, bytes: usize) -> Self {
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

/// The names of services called lately: one that is called again is not checked and copied again.
#[derive(Debug, Default)]
struct LastName {
    last: Option<ServiceName>,
}

impl LastName {
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
