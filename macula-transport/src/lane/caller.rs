//! Drives the caller's end of a lane over a stream.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use macula_wire::proto::{CallFrame, call_frame::Kind};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout, timeout_at},
};

use super::{
    CallId,
    state::{self, Answer, Answered, Broken, CallerLane, Started},
};
use crate::{
    CallReply, CallRequest,
    codec::{self, MAX_HEAD_FRAME, Pieces},
    connection::Link,
    error::{CallError, NotSent, Unknown},
    load::SMALL_LOAD,
    outbox::Flush,
    outcome::{Place, accepted_on},
    stream::{Incoming, Outgoing, READ_BATCH, ReceiveError, StreamKind, kind_bytes},
};

/// Whoever waits for a call.
#[derive(Debug)]
enum Waiter {
    /// It takes one message.
    One(oneshot::Sender<Answer>),
    /// It takes several.
    Several(oneshot::Sender<Result<Replied, CallError>>),
}

impl Waiter {
    /// Ends the wait without an answer. Whoever does not wait any more misses nothing.
    fn fail(self, error: CallError) {
        match self {
            Self::One(waiter) => drop(waiter.send(Err(error))),
            Self::Several(waiter) => drop(waiter.send(Err(error))),
        }
    }

    /// Gives the answer; several messages only to whom takes them.
    fn answer(self, several: bool, answer: Answer) -> Result<(), Broken> {
        match self {
            Self::One(waiter) if several => {
                let _ = waiter.send(Err(CallError::Unknown(Unknown::Malformed)));
                return Err(Broken);
            }
            Self::One(waiter) => drop(waiter.send(answer)),
            Self::Several(waiter) => drop(waiter.send(Ok(Replied::Here { several, answer }))),
        }
        Ok(())
    }
}

/// What came of a call that takes several messages.
#[derive(Debug)]
pub(crate) enum Replied {
    /// All of it.
    Here {
        /// The reply's body is several messages, each after its length as a varint.
        several: bool,
        answer: Answer,
    },
    /// The provider has opened a stream for the messages and the outcome.
    Moved(Box<Incoming>),
}

/// A lane that this node opened.
#[derive(Debug)]
pub(crate) struct Lane {
    core: Mutex<Core>,
    /// Woken when there is something to write.
    writable: Notify,
    /// Woken when a deadline is earlier than the one slept for.
    earlier: Notify,
    /// Woken when a call was cancelled, or the lane is over: its large reply may be on its way.
    given_up: Notify,
    stream: OnceLock<u64>,
}

#[derive(Debug)]
struct Core {
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

impl Lane {
    /// A lane of a connection; it is opened when its first call is written.
    pub(crate) fn open(link: &Arc<Link>) -> Arc<Self> {
        let core = Core {
            lane: CallerLane::new(link.inner.epoch),
            over: false,
        };
        let lane = Arc::new(Self {
            core: Mutex::new(core),
            writable: Notify::new(),
            earlier: Notify::new(),
            given_up: Notify::new(),
            stream: OnceLock::new(),
        });
        tokio::spawn(lane.clone().run(link.clone()));
        lane
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
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
    pub(crate) async fn call(
        &self,
        link: &Link,
        request: &CallRequest<'_>,
        timeout: Duration,
        deadline: Instant,
    ) -> Result<Result<CallReply, CallError>, NotTaken> {
        let (waiter, outcome) = oneshot::channel();
        let started = self.start(request, timeout, deadline, Waiter::One(waiter))?;
        let mut cancel = CancelOnDrop {
            lane: self,
            id: Some(started.id),
        };
        let outcome = outcome.await;
        cancel.id = None;
        Ok(match outcome {
            Ok(Err(CallError::Unknown(Unknown::Timeout(_)))) => {
                link.timed_out();
                Err(CallError::Unknown(Unknown::Timeout(timeout)))
            }
            Ok(answer) => answer,
            Err(_) => Err(CallError::Unknown(Unknown::Incomplete)),
        })
    }

    /// Calls over the lane, and takes several messages.
    pub(crate) fn open_several(
        self: Arc<Self>,
        request: &CallRequest<'_>,
        timeout: Duration,
        deadline: Instant,
    ) -> Result<Waiting, NotTaken> {
        let (waiter, outcome) = oneshot::channel();
        let id = self.start(request, timeout, deadline, Waiter::Several(waiter))?.id;
        Ok(Waiting {
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
            self.given_up.notify_waiters();
        }
    }

    /// Writes what is queued, reads replies and keeps the deadlines until the stream or the connection ends.
    async fn run(self: Arc<Self>, link: Arc<Link>) {
        let end = tokio::select! {
            biased;
            end = self.carry(&link) => end,
            // The deadlines hold while the stream waits to be opened, too.
            () = self.keep_time() => Unknown::Incomplete,
        };
        let unanswered = {
            let mut core = self.lock();
            core.over = true;
            core.lane.close()
        };
        self.given_up.notify_waiters();
        for call in unanswered {
            let place = self.stream().zip(call.written_as);
            let place = place.map(|(stream, number)| Place::Lane { stream, number });
            call.waiter.fail(link.call_over(end.clone(), place));
        }
    }

    /// Once the peer has named the calls that it accepted, ends those beyond them. It answers the others, on the lane or apart.
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
            waiter.fail(CallError::NotSent(NotSent::GoingAway));
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
        // A lane whose writing half was refused still reads the replies to what it has sent.
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
            end = self.read(link, Incoming::new(recv, MAX_HEAD_FRAME)) => match end {
                Ok(()) => self.answered(link).await,
                Err(ReceiveError::Reset(code)) => Unknown::Reset(code),
                Err(ReceiveError::Lost(error)) => Unknown::Lost(error),
                Err(ReceiveError::Frame(error)) => {
                    link.inner.counters.rejected_frames.add();
                    Unknown::Frame(error)
                }
                Err(ReceiveError::Broken) => {
                    link.inner.counters.rejected_frames.add();
                    Unknown::Malformed
                }
            },
            () = write => Unknown::Incomplete,
            () = named => Unknown::Incomplete,
        }
    }

    /// The peer sends nothing more on the lane. One that leaves has named the calls it accepted, or is about to, and answers those
    /// that are left on streams.
    async fn answered(&self, link: &Link) -> Unknown {
        self.lock().over = true;
        if timeout(link.inner.config.timers.head, link.peer_named()).await.is_err() {
            return Unknown::Incomplete;
        }
        Unknown::Lost(link.quic.closed().await.into())
    }

    async fn write(&self, link: &Link, outgoing: &mut Outgoing) {
        loop {
            if link.inner.load.is_above(SMALL_LOAD) {
                // Whoever else is ready to call does so first, and shares the write.
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
        let mut replies = Vec::new();
        let mut matched = Vec::new();
        loop {
            if !incoming
                .fill(&mut chunks, |frame| {
                    replies.push(state::read_reply(frame).map_err(|_| ReceiveError::Broken)?);
                    Ok(())
                })
                .await?
            {
                return Ok(());
            }
            {
                let mut core = self.lock();
                for Answered { id, several, answer } in replies.drain(..) {
                    match core.lane.replied(id) {
                        Some(waiter) => matched.push((waiter, several, answer)),
                        None => link.inner.counters.dropped_replies.add(),
                    }
                }
            }
            for (waiter, several, answer) in matched.drain(..) {
                waiter.answer(several, answer).map_err(|Broken| ReceiveError::Broken)?;
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
            waiter.fail(CallError::Unknown(Unknown::Timeout(Duration::ZERO)));
        }
    }

    /// The stream that the lane runs on, as its provider names it; `None` before it is opened.
    pub(crate) fn stream(&self) -> Option<u64> {
        self.stream.get().copied()
    }

    /// Receives a reply that was too large for the lane, on the stream that the provider opened for it.
    ///
    /// Returns early when nobody waits for it any more.
    pub(crate) async fn receive_large(&self, link: &Link, incoming: &mut Incoming) -> Result<(), LargeReply> {
        let limit = link.inner.config.limits.max_message_bytes;
        let mut pieces = Pieces::default();
        let mut of = None;
        loop {
            let given_up = self.given_up.notified();
            let next = incoming.next();
            let frame = match of.map(|id| self.deadline(id)) {
                // Which call it is, the first frame tells.
                None => timeout_at(Instant::now() + link.inner.config.timers.head, next).await,
                Some(Some(deadline)) => tokio::select! {
                    biased;
                    frame = timeout_at(deadline, next) => frame,
                    () = given_up => continue,
                },
                Some(None) => return Err(LargeReply::Unwanted),
            };
            let (id, frame) = match frame {
                Err(_) => return Err(LargeReply::Unwanted),
                Ok(Ok(Some(frame))) => match CallFrame::read(frame) {
                    Ok(CallFrame { call, kind: Some(kind) }) => (CallId::from_wire(call), kind),
                    Ok(_) | Err(_) => return self.give_up(of, Unknown::Malformed),
                },
                Ok(Ok(None)) => return self.give_up(of, Unknown::Incomplete),
                Ok(Err(ReceiveError::Reset(code))) => return self.give_up(of, Unknown::Reset(code)),
                // The lane knows what it means for the call.
                Ok(Err(ReceiveError::Lost(_))) => return Err(LargeReply::Unwanted),
                Ok(Err(ReceiveError::Frame(error))) => return self.give_up(of, Unknown::Frame(error)),
                Ok(Err(ReceiveError::Broken)) => return self.give_up(of, Unknown::Malformed),
            };
            if *of.get_or_insert(id) != id {
                return self.give_up(of, Unknown::Malformed);
            }
            let (payload, trailers) = match frame {
                Kind::Data(data) => (data.payload, None),
                Kind::Trailers(mut trailers) => (std::mem::take(&mut trailers.payload), Some(trailers)),
                Kind::Head(_) | Kind::Cancel(_) => return self.give_up(of, Unknown::Malformed),
            };
            if pieces.len() + payload.len() > limit {
                return self.give_up(of, Unknown::Malformed);
            }
            pieces.push(payload);
            if let Some(trailers) = trailers {
                let answer = codec::reply(trailers, pieces.join());
                // One message, whatever the caller takes.
                return self
                    .take(id)?
                    .answer(false, answer)
                    .map_err(|Broken| LargeReply::Broken);
            }
        }
    }

    fn deadline(&self, id: CallId) -> Option<Instant> {
        self.lock().lane.deadline(id).map(Instant::from_std)
    }

    fn give_up(&self, of: Option<CallId>, unknown: Unknown) -> Result<(), LargeReply> {
        // It may have ended in another way by now.
        if let Some(Ok(waiter)) = of.map(|id| self.take(id)) {
            waiter.fail(CallError::Unknown(unknown));
        }
        Err(LargeReply::Broken)
    }

    fn take(&self, id: CallId) -> Result<Waiter, LargeReply> {
        self.lock().lane.replied(id).ok_or(LargeReply::Unwanted)
    }

    /// Ends the wait of a call whose messages and outcome come on a stream that the provider opened for them.
    pub(crate) fn moved(&self, id: CallId) -> Result<Moved, LargeReply> {
        match self.take(id)? {
            Waiter::Several(waiter) => Ok(Moved(waiter)),
            waiter => {
                waiter.fail(CallError::Unknown(Unknown::Malformed));
                Err(LargeReply::Broken)
            }
        }
    }
}

/// Who waits for the messages and the outcome of a call.
#[derive(Debug)]
pub(crate) struct Moved(oneshot::Sender<Result<Replied, CallError>>);

impl Moved {
    /// Hands over the stream: it is read as messages are asked for, and no further than that.
    pub(crate) fn to(self, incoming: Incoming) {
        // Whoever does not wait any more drops the stream, which stops the provider.
        let _ = self.0.send(Ok(Replied::Moved(Box::new(incoming))));
    }
}

/// A reply on a stream opened for it that reached nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LargeReply {
    /// Nobody waits for it, or not any more.
    Unwanted,
    /// It ended early, or is not what a reply is made of.
    Broken,
}

struct CancelOnDrop<'a> {
    lane: &'a Lane,
    id: Option<CallId>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.lane.cancel(id);
        }
    }
}

/// A call on a lane that takes several messages, until something comes of it. Dropping it cancels the call.
#[derive(Debug)]
pub(crate) struct Waiting {
    lane: Arc<Lane>,
    /// Until the call has ended.
    id: Option<CallId>,
    outcome: oneshot::Receiver<Result<Replied, CallError>>,
}

impl Waiting {
    /// What came of the call; told once. Its deadline is kept by the lane.
    pub(crate) async fn replied(&mut self) -> Result<Replied, CallError> {
        let gone = || Err(CallError::Unknown(Unknown::Incomplete));
        if self.id.is_none() {
            return gone();
        }
        let replied = (&mut self.outcome).await;
        self.id = None;
        replied.unwrap_or_else(|_| gone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.lane.cancel(id);
        }
    }
}
