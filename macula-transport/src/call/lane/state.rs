//! Both ends of a lane: frames in, frames out.
//!
//! **Invariants:**
//! - a waiter ends exactly once: by its reply, its deadline, its cancel or the lane's end;
//! - the provider is told of every call that ended without its reply, so that it can stop working on it;
//! - the queue is bounded: beyond [`MAX_QUEUED_BYTES`] of requests a call takes a stream of its own, and a provider whose replies are
//!   not read stops reading calls;
//! - the messages of a reply before its outcome are bounded by [`MAX_REPLY_BYTES`].
//!
//! A core: no clock, no lock, no socket.
//!
//! Left out: running the calls.

use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    time::Instant,
};

use bytes::Bytes;

use super::{
    super::{
        frame::{self, Frame, Head, INLINE_BYTES, Part},
        outbox::{Flush, Outbox},
        types::{CallReply, CallRequest, Reply},
    },
    calls::{CallId, Calls},
};
use crate::{error::CallError, heads::HeadLimits};

/// The most bytes that wait on a lane to be written; beyond it a call takes a stream of its own.
pub(crate) const MAX_QUEUED_BYTES: usize = 512 * 1024;

/// The most that the messages of one reply take on a lane, in bytes of memory: [`INLINE_BYTES`], of a few messages.
pub(crate) const MAX_REPLY_BYTES: usize = INLINE_BYTES + 66 * size_of::<Bytes>();

/// The peer broke the protocol: the lane is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken;

/// A call the lane does not take: it takes a stream of its own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LaneFull<W>(pub(crate) W);

/// The caller's end of a lane. `W` is woken by a call's end.
#[derive(Debug)]
pub(crate) struct CallerLane<W> {
    calls: Calls<Numbered<W>>,
    outbox: Outbox,
    /// How many calls were put on the lane.
    started: u64,
    /// How many of them were taken to be written.
    written: u64,
}

/// A call that waits for its reply.
#[derive(Debug)]
struct Numbered<W> {
    /// Which call of the lane it is: the first is 1.
    number: u64,
    waiter: W,
    /// The messages that came before the outcome.
    messages: Vec<Bytes>,
    /// Their size in memory, in bytes.
    message_bytes: usize,
}

/// A call that ended with its lane.
#[derive(Debug)]
pub(crate) struct Unanswered<W> {
    pub(crate) waiter: W,
    /// Which call of the lane it is; `None` when it was not taken to be written, and so never will be.
    pub(crate) written_as: Option<u64>,
}

/// The duties of the shell after a call was put on the lane.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) id: CallId,
    pub(crate) flush: Flush,
    /// [`CallerLane::poll_timeout`] is earlier than before.
    pub(crate) earlier: bool,
}

impl<W> CallerLane<W> {
    pub(crate) fn new(epoch: Instant) -> Self {
        Self {
            calls: Calls::new(epoch),
            outbox: Outbox::default(),
            started: 0,
            written: 0,
        }
    }

    /// Puts a call on the lane; its payload must be at most [`INLINE_BYTES`], its head checked.
    pub(crate) fn call(
        &mut self,
        request: &CallRequest<'_>,
        timeout_us: u64,
        deadline: Instant,
        waiter: W,
    ) -> Result<Started, LaneFull<W>> {
        debug_assert!(request.body.len() <= INLINE_BYTES);
        if self.outbox.bytes() > MAX_QUEUED_BYTES {
            return Err(LaneFull(waiter));
        }
        let number = self.started + 1;
        let call = Numbered {
            number,
            waiter,
            messages: Vec::new(),
            message_bytes: 0,
        };
        let started = self.calls.start(deadline, call);
        let (id, earlier) = started.map_err(|Numbered { waiter, .. }| LaneFull(waiter))?;
        self.started = number;
        let flush = frame::put_head(&mut self.outbox, id.to_wire(), request, timeout_us, true);
        Ok(Started { id, flush, earlier })
    }

    /// Ends a call before its reply; `None` when it has ended already.
    pub(crate) fn cancel(&mut self, id: CallId) -> Option<(W, Flush)> {
        let Numbered { waiter, .. } = self.calls.take(id)?;
        Some((waiter, frame::put_cancel(&mut self.outbox, id.to_wire())))
    }

    /// Adds a message to a reply. A message to a call that no longer waits is dropped; its outcome follows and is counted.
    pub(crate) fn message(&mut self, id: CallId, message: Bytes) -> Result<(), Broken> {
        let Some(call) = self.calls.get_mut(id) else {
            return Ok(());
        };
        call.message_bytes += message.len() + size_of::<Bytes>();
        if call.message_bytes > MAX_REPLY_BYTES {
            return Err(Broken);
        }
        // Copied, because a slice would keep the packet that it came in until the call ends.
        call.messages.push(Bytes::copy_from_slice(&message));
        Ok(())
    }

    /// Matches an outcome to its call, with the messages before it; `None` when no call waits for it (P4).
    pub(crate) fn replied(&mut self, id: CallId) -> Option<(W, Vec<Bytes>)> {
        let call = self.calls.take(id)?;
        Some((call.waiter, call.messages))
    }

    /// Ends the calls whose deadline has passed. Early or repeated calls are harmless.
    pub(crate) fn handle_timeout(&mut self, now: Instant, mut expired: impl FnMut(W)) -> Option<Flush> {
        let (calls, outbox) = (&mut self.calls, &mut self.outbox);
        let mut flush = None;
        calls.expire(now, |id, Numbered { waiter, .. }| {
            let cancelled = frame::put_cancel(outbox, id.to_wire());
            flush.get_or_insert(cancelled);
            expired(waiter);
        });
        flush
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.calls.poll_timeout()
    }

    /// What is to be written, all of it.
    pub(crate) fn take_output(&mut self) -> Vec<Bytes> {
        self.written = self.started;
        self.outbox.take()
    }

    /// Ends the calls after the first `accepted` of the lane: the peer starts none of them.
    pub(crate) fn end_beyond(&mut self, accepted: u64) -> Vec<W> {
        let beyond = self.calls.take_all(|call| call.number > accepted);
        beyond.into_iter().map(|Numbered { waiter, .. }| waiter).collect()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.calls.len()
    }

    /// Ends every call: the lane is over, and frames that were not written never will be.
    pub(crate) fn close(&mut self) -> Vec<Unanswered<W>> {
        self.outbox.take();
        let written = self.written;
        let unanswered = |Numbered { number, waiter, .. }| Unanswered {
            waiter,
            written_as: (number <= written).then_some(number),
        };
        self.calls.take_all(|_| true).into_iter().map(unanswered).collect()
    }
}

/// What a provider says on a lane.
#[derive(Debug)]
pub(crate) enum Answered {
    Message(CallId, Bytes),
    /// The outcome, with the last message: a reply, or that the call is refused.
    Outcome(CallId, Result<CallReply, CallError>),
}

/// Reads a provider's frame on a lane.
pub(crate) fn read_reply(frame: &Bytes) -> Result<Answered, Broken> {
    match frame::read(frame, HeadLimits::LEAST) {
        Ok((call, Frame::Trailers(outcome))) => Ok(Answered::Outcome(CallId::from_wire(call), outcome)),
        Ok((call, Frame::Data(data))) => Ok(Answered::Message(CallId::from_wire(call), data.payload)),
        Ok((_, Frame::Head(_) | Frame::Cancel)) | Err(frame::Malformed) => Err(Broken),
    }
}

/// What a caller asks of a provider.
#[derive(Debug)]
pub(crate) enum Asked {
    Call(CallId, Head),
    Cancel(CallId),
}

impl Asked {
    /// The call that this cancels.
    pub(crate) fn cancels(&self) -> Option<CallId> {
        match self {
            Self::Cancel(id) => Some(*id),
            Self::Call(..) => None,
        }
    }
}

/// Reads a caller's frame on a lane.
pub(crate) fn read_request(frame: &Bytes) -> Result<Asked, Broken> {
    match frame::read(frame, HeadLimits::LEAST) {
        Ok((call, Frame::Head(head))) if head.end => Ok(Asked::Call(CallId::from_wire(call), head)),
        Ok((call, Frame::Cancel)) => Ok(Asked::Cancel(CallId::from_wire(call))),
        Ok((_, Frame::Head(_) | Frame::Data(_) | Frame::Trailers(_))) | Err(frame::Malformed) => Err(Broken),
    }
}

/// The provider's end of a lane. `R` stops a call that runs.
#[derive(Debug)]
pub(crate) struct ProviderLane<R> {
    /// Calls that run on beside the lane.
    running: BTreeMap<CallId, Option<R>>,
    outbox: Outbox,
}

impl<R> ProviderLane<R> {
    pub(crate) fn new() -> Self {
        Self {
            running: BTreeMap::new(),
            outbox: Outbox::default(),
        }
    }

    /// A call runs on beside the lane.
    ///
    /// # Errors
    /// When one of this id runs already.
    pub(crate) fn started(&mut self, id: CallId) -> Result<(), Broken> {
        match self.running.entry(id) {
            Entry::Vacant(place) => {
                place.insert(None);
                Ok(())
            }
            // The lane ends for this and stops the running call, whose stop stays in place.
            Entry::Occupied(_) => Err(Broken),
        }
    }

    /// How a running call is stopped; gives it back when the call has ended already.
    pub(crate) fn stop_with(&mut self, id: CallId, stop: R) -> Option<R> {
        match self.running.get_mut(&id) {
            Some(place) => {
                *place = Some(stop);
                None
            }
            None => Some(stop),
        }
    }

    /// A running call was answered; false when it was cancelled before.
    pub(crate) fn ended(&mut self, id: CallId) -> bool {
        self.running.remove(&id).is_some()
    }

    /// The caller does not want a call any more. Gives the means to stop the call, if it runs.
    pub(crate) fn cancelled(&mut self, id: CallId) -> Option<R> {
        self.running.remove(&id).flatten()
    }

    /// Puts a reply on the lane, its messages and its outcome together. They must be at most [`INLINE_BYTES`].
    pub(crate) fn reply(&mut self, id: CallId, messages: &[Bytes], reply: &Reply) -> Flush {
        debug_assert!(reply.body.len() + messages.iter().map(Bytes::len).sum::<usize>() <= INLINE_BYTES);
        let mut flush = Flush::AlreadyDue;
        for message in messages {
            flush = flush.or(frame::put_data(&mut self.outbox, id.to_wire(), message, Part::Some));
        }
        flush.or(frame::put_trailers(&mut self.outbox, id.to_wire(), reply, &reply.body))
    }

    /// Whether no call runs on beside the lane.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    /// Whether so many replies wait that no further call is read.
    pub(crate) fn is_clogged(&self) -> bool {
        self.queued_bytes() > MAX_QUEUED_BYTES
    }

    /// The replies that wait to be taken, in bytes.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.outbox.bytes()
    }

    pub(crate) fn take_output(&mut self) -> Vec<Bytes> {
        self.outbox.take()
    }

    /// Stops every call: the lane is over.
    pub(crate) fn close(&mut self) -> VecDeque<R> {
        self.outbox.take();
        std::mem::take(&mut self.running).into_values().flatten().collect()
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
