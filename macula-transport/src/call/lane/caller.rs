//! Drives the caller's end of a lane over a stream.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout},
};

use super::{
    super::{
        frame::MAX_LANE_FRAME,
        outbox::Flush,
        outcome::{CallPlace, accepted_on, over},
        types::{CallReply, CallRequest},
    },
    calls::CallId,
    state::{self, Answered, Broken, CallerLane, Started},
};
use crate::{
    connection::{
        link::Link,
        stream::{Incoming, Outgoing, READ_BATCH, ReceiveError, StreamKind, kind_bytes},
    },
    error::{CallError, NotSent, Unknown},
    load::SMALL_LOAD,
};

/// A call's waiter: told how it ended.
type Waiter = oneshot::Sender<Result<LaneReply, CallError>>;

/// The reply to a call on a lane.
#[derive(Debug)]
pub(crate) enum LaneReply {
    /// All of it: the messages before the outcome, and the outcome with the last message.
    Whole { messages: Vec<Bytes>, reply: CallReply },
    /// It continues on a stream that the provider has opened.
    OnStream(Box<Incoming>),
}

/// Ends a wait. A cancelled call has dropped its end, and needs no news.
fn end(waiter: Waiter, reply: Result<LaneReply, CallError>) {
    drop(waiter.send(reply));
}

/// A lane that this node opened.
#[derive(Debug)]
pub(crate) struct OutboundLane {
    core: Mutex<CallerEnd>,
    /// Woken when there is something to write.
    writable: Notify,
    /// Woken when a deadline is earlier than the one slept for.
    earlier: Notify,
    stream: OnceLock<u64>,
}

#[derive(Debug)]
struct CallerEnd {
    lane: CallerLane<Waiter>,
    /// The lane is over: a call takes the next one.
    over: bool,
}

/// The call was not put on the lane.
#[derive(Debug)]
pub(crate) enum NotTaken {
    /// Too much waits on it.
    Full,
    /// The lane is over.
    Over,
}

impl OutboundLane {
    /// A lane of a connection. Its stream is opened when its first call is written.
    pub(crate) fn open(link: &Arc<Link>) -> Arc<Self> {
        let core = CallerEnd {
            lane: CallerLane::new(link.shared.epoch),
            over: false,
        };
        let lane = Arc::new(Self {
            core: Mutex::new(core),
            writable: Notify::new(),
            earlier: Notify::new(),
            stream: OnceLock::new(),
        });
        tokio::spawn(lane.clone().run(link.clone()));
        lane
    }

    fn lock(&self) -> MutexGuard<'_, CallerEnd> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flush(&self, flush: Flush) {
        match flush {
            Flush::Wake => self.writable.notify_one(),
            Flush::AlreadyDue => {}
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.lock().over
    }

    /// Calls over the lane.
    pub(crate) fn call(
        self: Arc<Self>,
        request: &CallRequest<'_>,
        timeout: Duration,
        deadline: Instant,
    ) -> Result<LaneCall, NotTaken> {
        let (waiter, outcome) = oneshot::channel();
        let id = self.start(request, timeout, deadline, waiter)?.id;
        Ok(LaneCall {
            lane: self,
            id: Some(id),
            outcome,
        })
    }

    fn start(
        &self,
        request: &CallRequest<'_>,
        timeout: Duration,
        deadline: Instant,
        waiter: Waiter,
    ) -> Result<Started, NotTaken> {
        let started = {
            let mut core = self.lock();
            if core.over {
                return Err(NotTaken::Over);
            }
            let timeout_us = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
            core.lane
                .call(request, timeout_us, deadline.into_std(), waiter)
                .map_err(|_| NotTaken::Full)?
        };
        self.flush(started.flush);
        if started.earlier {
            self.earlier.notify_one();
        }
        Ok(started)
    }

    fn cancel(&self, id: CallId) {
        let cancelled = self.lock().lane.cancel(id);
        if let Some((_, flush)) = cancelled {
            self.flush(flush);
        }
    }

    /// Writes the queued frames, reads replies and keeps the deadlines until the stream or the connection ends.
    async fn run(self: Arc<Self>, link: Arc<Link>) {
        let unknown = tokio::select! {
            biased;
            unknown = self.carry(&link) => unknown,
            // The deadlines hold while the stream waits to be opened, too.
            () = self.keep_time() => Unknown::Incomplete,
        };
        let unanswered = {
            let mut core = self.lock();
            core.over = true;
            core.lane.close()
        };
        for call in unanswered {
            let place = self.stream().zip(call.written_as);
            let place = place.map(|(stream, number)| CallPlace::Lane { stream, number });
            end(call.waiter, Err(over(&link, unknown.clone(), place)));
        }
    }

    /// Once the peer has named the calls that it accepted, ends those beyond them. The peer answers the others, on the lane or on streams.
    async fn end_beyond(&self, link: &Link) {
        link.peer_named().await;
        let (Some(stream), Some(accepted)) = (self.stream(), link.peer_accepted()) else {
            return;
        };
        let beyond = {
            let mut core = self.lock();
            core.over = true;
            accepted_on(accepted, stream).map(|accepted| core.lane.end_beyond(accepted))
        };
        for waiter in beyond.into_iter().flatten() {
            end(waiter, Err(CallError::NotSent(NotSent::GoingAway)));
        }
    }

    async fn carry(&self, link: &Arc<Link>) -> Unknown {
        self.writable.notified().await;
        let (send, recv) = match link.quic.open_bi().await {
            Ok(streams) => streams,
            Err(error) => return Unknown::Lost(error.into()),
        };
        let mut outgoing = Outgoing::new(send);
        // Opened once.
        let _ = self.stream.set(outgoing.index());
        outgoing.carry_small_calls();
        let timers = &link.shared.config.timers;
        let incoming = Incoming::new(recv, MAX_LANE_FRAME).charged(&link.memory);
        let incoming = incoming.never_idle_for(timers.message_idle);
        // A lane whose writing half was refused still reads the replies to the calls that it has sent.
        let write = async {
            if outgoing.send(&mut [kind_bytes(StreamKind::Lane)]).await.is_ok() {
                self.write(link, &mut outgoing).await;
            }
            std::future::pending::<()>().await;
        };
        let named = async {
            self.end_beyond(link).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            end = self.read(link, incoming) => match end {
                Ok(()) => self.answered(link).await,
                Err(ReceiveError::Reset(code)) => Unknown::Reset(code),
                Err(ReceiveError::Lost(error)) => Unknown::Lost(error),
                Err(ReceiveError::Frame(error)) => {
                    link.shared.counters.rejected_frames.add();
                    Unknown::Frame(error)
                }
                Err(ReceiveError::Broken) => {
                    link.shared.counters.rejected_frames.add();
                    Unknown::Malformed
                }
                Err(ReceiveError::Slow) => Unknown::Incomplete,
                Err(ReceiveError::Exhausted) => Unknown::NoMemory,
            },
            () = write => Unknown::Incomplete,
            () = named => Unknown::Incomplete,
        }
    }

    /// The peer has ended the lane. A leaving peer names the calls that it accepted and answers the rest on streams.
    async fn answered(&self, link: &Link) -> Unknown {
        self.lock().over = true;
        if timeout(link.shared.config.timers.head, link.peer_named())
            .await
            .is_err()
        {
            return Unknown::Incomplete;
        }
        Unknown::Lost(link.quic.closed().await.into())
    }

    async fn write(&self, link: &Link, outgoing: &mut Outgoing) {
        loop {
            if link.shared.load.is_above(SMALL_LOAD) {
                // Other tasks that are ready to call do so first, and share the write.
                tokio::task::yield_now().await;
            }
            let mut chunks = self.lock().lane.take_output();
            if chunks.is_empty() {
                self.writable.notified().await;
                continue;
            }
            link.flight.saw_small_calls(Instant::now().into_std());
            if outgoing.send(&mut chunks).await.is_err() {
                return;
            }
        }
    }

    async fn read(&self, link: &Link, mut incoming: Incoming) -> Result<(), ReceiveError> {
        let mut chunks = [const { Bytes::new() }; READ_BATCH];
        let mut answered = Vec::new();
        let mut matched = Vec::new();
        loop {
            let more = incoming.fill(&mut chunks, |frame| {
                answered.push(state::read_reply(&frame).map_err(|Broken| ReceiveError::Broken)?);
                Ok(())
            });
            if !more.await? {
                return Ok(());
            }
            {
                let mut core = self.lock();
                for answered in answered.drain(..) {
                    match answered {
                        Answered::Message(id, message) => {
                            core.lane.message(id, message).map_err(|Broken| ReceiveError::Broken)?;
                        }
                        Answered::Outcome(id, outcome) => match core.lane.replied(id) {
                            Some((waiter, messages)) => matched.push((waiter, messages, outcome)),
                            None => link.shared.counters.dropped_replies.add(),
                        },
                    }
                }
            }
            for (waiter, messages, outcome) in matched.drain(..) {
                end(waiter, outcome.map(|reply| LaneReply::Whole { messages, reply }));
            }
        }
    }

    async fn keep_time(&self) {
        loop {
            let earlier = self.earlier.notified();
            let next = self.lock().lane.poll_timeout();
            match next {
                None => earlier.await,
                Some(at) => tokio::select! {
                    biased;
                    () = earlier => {}
                    () = tokio::time::sleep_until(at.into()) => self.expire(),
                },
            }
        }
    }

    fn expire(&self) {
        let mut expired = Vec::new();
        let now = Instant::now().into_std();
        let flush = self.lock().lane.handle_timeout(now, |waiter| expired.push(waiter));
        if let Some(flush) = flush {
            self.flush(flush);
        }
        for waiter in expired {
            // The caller knows how long it waited.
            end(waiter, Err(CallError::Unknown(Unknown::Timeout(Duration::ZERO))));
        }
    }

    /// The stream that the lane runs on, as its provider names it; `None` before it is opened.
    pub(crate) fn stream(&self) -> Option<u64> {
        self.stream.get().copied()
    }

    /// Hands the stream on which a reply continues to its call, which reads it at its own pace. Gives the stream back when no call
    /// waits for it.
    pub(crate) fn continues(&self, id: CallId, incoming: Incoming) -> Option<Incoming> {
        let Some((waiter, _)) = self.lock().lane.replied(id) else {
            return Some(incoming);
        };
        // A call that was given up drops the stream, which stops the provider.
        end(waiter, Ok(LaneReply::OnStream(Box::new(incoming))));
        None
    }
}

/// A call on a lane that waits for its reply. Dropping it cancels the call.
#[derive(Debug)]
pub(crate) struct LaneCall {
    lane: Arc<OutboundLane>,
    /// Until the call has ended.
    id: Option<CallId>,
    outcome: oneshot::Receiver<Result<LaneReply, CallError>>,
}

impl LaneCall {
    /// The call's reply, told once. The lane keeps the deadline.
    pub(crate) async fn reply(&mut self) -> Result<LaneReply, CallError> {
        let gone = || Err(CallError::Unknown(Unknown::Incomplete));
        if self.id.is_none() {
            return gone();
        }
        let replied = (&mut self.outcome).await;
        self.id = None;
        replied.unwrap_or_else(|_| gone())
    }
}

impl Drop for LaneCall {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.lane.cancel(id);
        }
    }
}
