//! Both ends of a lane: frames in, frames out.
//!
//! **Invariants:**
//! - a waiter ends exactly once: by its reply, its deadline, its cancel or the lane's end;
//! - the provider is told of every call that ended without its reply, so that it can stop working on it;
//! - what is queued is bounded: [`MAX_QUEUED_BYTES`] of requests, beyond which a call goes elsewhere; a provider whose replies are
//!   not taken stops reading.
//!
//! What is left out: decoding, which needs no state, and whatever is done with a call.

use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    time::Instant,
};

use bytes::Bytes;
use macula_wire::proto::{CallFrame, call_frame::Kind};

use super::{
    calls::{CallId, Calls},
    plain,
};
use crate::{
    CallError, CallReply, CallRequest, Metadata, Reply, Route,
    codec::{self, FRAME_OVERHEAD, INLINE_BYTES},
    config::{MAX_HEAD_BYTES, MAX_METADATA_ENTRIES},
    frame::{self, Last},
    outbox::{Flush, Outbox},
};

/// The most bytes that wait on a lane to be written; beyond it a call takes a stream of its own.
pub(crate) const MAX_QUEUED_BYTES: usize = 512 * 1024;

/// The peer broke the protocol: the lane is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken;

/// A call the lane does not take: it takes a stream of its own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full<W>(pub(crate) W);

/// The caller's end of a lane. `W` is whoever waits for a call.
#[derive(Debug)]
pub(crate) struct CallerLane<W> {
    calls: Calls<Numbered<W>>,
    outbox: Outbox,
    /// How many calls were put on the lane.
    started: u64,
    /// How many of them were taken to be written.
    written: u64,
}

/// A call's waiter, and which call of the lane it is: the first is 1.
#[derive(Debug)]
struct Numbered<W> {
    number: u64,
    waiter: W,
}

/// A call that ended with its lane.
#[derive(Debug)]
pub(crate) struct Unanswered<W> {
    pub(crate) waiter: W,
    /// Which call of the lane it is; `None` when it was not taken to be written, and so never will be.
    pub(crate) written_as: Option<u64>,
}

/// A call was put on the lane: what the shell must do.
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
    ) -> Result<Started, Full<W>> {
        debug_assert!(request.body.len() <= INLINE_BYTES);
        if self.outbox.bytes() > MAX_QUEUED_BYTES {
            return Err(Full(waiter));
        }
        let number = self.started + 1;
        let started = self.calls.start(deadline, Numbered { number, waiter });
        let (id, earlier) = started.map_err(|Numbered { waiter, .. }| Full(waiter))?;
        self.started = number;
        let flush = frame::put_head(&mut self.outbox, id.to_wire(), request, timeout_us, true);
        Ok(Started { id, flush, earlier })
    }

    /// Ends a call before its reply; `None` when it has ended already.
    pub(crate) fn cancel(&mut self, id: CallId) -> Option<(W, Flush)> {
        let Numbered { waiter, .. } = self.calls.take(id)?;
        Some((waiter, frame::put_cancel(&mut self.outbox, id.to_wire())))
    }

    /// Matches a reply to its call; `None` when nobody waits for it (P4).
    pub(crate) fn replied(&mut self, id: CallId) -> Option<W> {
        self.calls.take(id).map(|Numbered { waiter, .. }| waiter)
    }

    /// When a call stops waiting; `None` when nobody waits for it.
    pub(crate) fn deadline(&self, id: CallId) -> Option<Instant> {
        self.calls.deadline(id)
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

    /// Ends every call: the lane is over, and what was not written never will be.
    pub(crate) fn close(&mut self) -> Vec<Unanswered<W>> {
        self.outbox.take();
        let written = self.written;
        let unanswered = |Numbered { number, waiter }| Unanswered {
            waiter,
            written_as: (number <= written).then_some(number),
        };
        self.calls.take_all(|_| true).into_iter().map(unanswered).collect()
    }
}

/// What a provider answered: a reply, or that it refuses the call.
pub(crate) type Answer = Result<CallReply, CallError>;

/// A provider's answer to a call on a lane.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) id: CallId,
    /// The reply's body is several messages, each after its length as a varint.
    pub(crate) several: bool,
    pub(crate) answer: Answer,
}

/// Reads what a provider sends on a lane.
pub(crate) fn read_reply(frame: Bytes) -> Result<Answered, Broken> {
    if let Some(plain) = plain::reply(&frame) {
        if plain.several && plain.payload.len() > INLINE_BYTES {
            return Err(Broken);
        }
        return Ok(Answered {
            id: CallId::from_wire(plain.call),
            several: plain.several,
            answer: Ok(codec::plain_reply(plain.payload)),
        });
    }
    match CallFrame::read(frame) {
        Ok(CallFrame {
            call,
            kind: Some(Kind::Trailers(mut trailers)),
        }) => {
            let (messages, payload) = (
                std::mem::take(&mut trailers.messages),
                std::mem::take(&mut trailers.payload),
            );
            let several = !messages.is_empty();
            if several && (!payload.is_empty() || messages.len() > INLINE_BYTES) {
                return Err(Broken);
            }
            let body = if several { messages } else { payload };
            Ok(Answered {
                id: CallId::from_wire(call),
                several,
                answer: codec::reply(trailers, body),
            })
        }
        Ok(_) | Err(_) => Err(Broken),
    }
}

/// What a caller asks of a provider.
#[derive(Debug)]
pub(crate) enum Asked {
    Call(CallId, Request),
    Cancel(CallId),
}

/// A call that a caller asks for, whole.
#[derive(Debug)]
pub(crate) struct Request {
    service: Bytes,
    pub(crate) method: String,
    pub(crate) timeout_us: u64,
    pub(crate) metadata: Metadata,
    pub(crate) route: Option<Box<Route>>,
    /// The caller takes several messages.
    pub(crate) several: bool,
    pub(crate) payload: Bytes,
}

impl Request {
    /// The service's name as it was sent.
    pub(crate) fn service(&self) -> &str {
        // It was text when it was read.
        std::str::from_utf8(&self.service).unwrap_or_default()
    }
}

/// Reads what a caller sends on a lane.
pub(crate) fn read_request(frame: Bytes) -> Result<Asked, Broken> {
    let length = frame.len();
    let fits = |payload: usize, entries: usize| {
        length - payload <= MAX_HEAD_BYTES + FRAME_OVERHEAD
            && payload <= INLINE_BYTES
            && entries <= MAX_METADATA_ENTRIES
    };
    if let Some(plain) = plain::request(&frame) {
        if !fits(plain.payload.len(), 0) {
            return Err(Broken);
        }
        let request = Request {
            service: frame.slice_ref(plain.service.as_bytes()),
            method: plain.method.to_owned(),
            timeout_us: plain.timeout_us,
            metadata: Metadata::new(),
            route: None,
            several: plain.several,
            payload: frame.slice_ref(plain.payload),
        };
        return Ok(Asked::Call(CallId::from_wire(plain.call), request));
    }
    match CallFrame::read(frame) {
        Ok(CallFrame {
            call,
            kind: Some(Kind::Head(head)),
        }) => {
            if head.end && fits(head.payload.len(), head.metadata.len()) {
                let request = Request {
                    route: Route::from_wire(&head),
                    service: head.service.into(),
                    method: head.method,
                    timeout_us: head.timeout_us,
                    metadata: Metadata::from_wire(head.metadata),
                    several: head.several,
                    payload: head.payload,
                };
                Ok(Asked::Call(CallId::from_wire(call), request))
            } else {
                Err(Broken)
            }
        }
        Ok(CallFrame {
            call,
            kind: Some(Kind::Cancel(_)),
        }) => Ok(Asked::Cancel(CallId::from_wire(call))),
        Ok(_) | Err(_) => Err(Broken),
    }
}

/// The provider's end of a lane. `R` is whatever stops a call that runs.
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
            // It keeps what stops it: the lane ends for this, and the call with it.
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

    /// The caller does not want a call any more. What stops it, when it runs.
    pub(crate) fn cancelled(&mut self, id: CallId) -> Option<R> {
        self.running.remove(&id).flatten()
    }

    /// Puts a reply on the lane; its payload must be at most [`INLINE_BYTES`].
    pub(crate) fn reply(&mut self, id: CallId, reply: &Reply) -> Flush {
        debug_assert!(reply.body.len() <= INLINE_BYTES);
        frame::put_trailers(&mut self.outbox, id.to_wire(), reply, Last::Payload(&reply.body))
    }

    /// Puts a reply of several messages on the lane, for a caller that takes that; they must [take](frame::messages_len) at most
    /// [`INLINE_BYTES`], the reply's own body, if there is one, among them.
    pub(crate) fn reply_several(&mut self, id: CallId, reply: &Reply, messages: &[Bytes]) -> Flush {
        debug_assert!(frame::messages_len(messages) <= INLINE_BYTES);
        frame::put_trailers(&mut self.outbox, id.to_wire(), reply, Last::Messages(messages))
    }

    /// Whether no call runs on beside the lane.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    /// Whether so many replies wait that no further call is read.
    pub(crate) fn is_clogged(&self) -> bool {
        self.outbox.bytes() > MAX_QUEUED_BYTES
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
