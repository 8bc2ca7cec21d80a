//! The reply to a call, on its way from the handler to the caller: messages, and then an outcome.
//!
//! The reply to a call on a lane waits here for its outcome, and goes over the lane when all of it is small. A reply that outgrows the
//! lane, or has something to send before its outcome is known, continues on a stream that the provider opens: see
//! [`ReplyStream::open`]. The reply to a call on a stream of its own has that stream from the start.
//!
//! **Invariants:** a reply takes one of the two ways, never both. Once it has a stream, the caller stops the handler by stopping the
//! stream. A message is sent whole, or the outcome is an error.

use std::{
    mem::size_of,
    sync::{Arc, PoisonError},
};

use bytes::{BufMut as _, Bytes};
use futures::future::{BoxFuture, FutureExt as _};
use macula_wire::StatusCode;
use tokio::{
    sync::{Mutex, Notify, OwnedSemaphorePermit, Semaphore},
    time::{Duration, Instant, timeout_at},
};

use super::{
    LargeSends,
    frame::{self, INLINE_BYTES, Part},
    outbox::Outbox,
    types::Reply,
};
use crate::{
    config::MAX_MOVED_REPLIES,
    connection::{
        link::Link,
        stream::{Outgoing, ResetCode, StreamKind, Unserved},
    },
    heads::HeadLimits,
    share::{budget::Exhausted, memory::Kept},
};

/// How long after the deadline a reply may still take to leave: its caller reads slowly, or not at all.
const REPLY_GRACE: Duration = Duration::from_secs(1);
/// The most bytes of a failure's message that are sent when the whole is too large.
const MAX_SHORTENED_BYTES: usize = 1024;
/// The most that waits for the outcome of a call on a lane, in bytes of memory: a few messages that together fit on the lane.
const MAX_HELD_BYTES: usize = INLINE_BYTES + 64 * size_of::<Bytes>();
/// Gathered messages are written once they have this size, in bytes, even if more are ready.
const MAX_GATHERED_BYTES: usize = 64 * 1024;

/// The peer, the connection or the deadline ended the call: nothing that the handler sends from here on arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the caller does not wait any more")]
#[non_exhaustive]
pub struct Gone;

/// How many replies to one peer take a stream at a time.
#[derive(Debug)]
pub(crate) struct ReplyPlaces {
    /// Replies of handlers that stream.
    streaming: Arc<Semaphore>,
    /// Large messages that are written.
    pub(super) large: LargeSends,
}

impl Default for ReplyPlaces {
    fn default() -> Self {
        Self {
            streaming: Arc::new(Semaphore::new(MAX_MOVED_REPLIES)),
            large: LargeSends::default(),
        }
    }
}

/// The place of a call on a lane. A stream for its reply starts with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LanePlace {
    pub(crate) lane: u64,
    pub(crate) call: u64,
}

/// A stream that carries a reply, and the messages that wait to be written to it.
#[derive(Debug)]
pub(crate) struct ReplyStream {
    outgoing: Outgoing,
    waiting: Outbox,
    /// Charges what waits to the caller, which may not take it.
    kept: Kept,
    /// The next message is the first of a reply that is ready as a whole.
    whole: bool,
    /// The call's deadline, which a task that holds the messages can outlive.
    until: Instant,
}

impl ReplyStream {
    /// On the call's own stream.
    pub(crate) fn own(link: &Link, outgoing: Outgoing, until: Instant) -> Self {
        Self {
            outgoing,
            waiting: Outbox::brief(),
            kept: link.memory.kept(),
            whole: false,
            until,
        }
    }

    /// On a stream that is opened for a reply which has outgrown its lane.
    pub(crate) async fn open(link: &Link, place: LanePlace, until: Instant) -> Result<Self, Gone> {
        let opened = timeout_at(until, link.quic.open_uni()).await;
        let outgoing = Outgoing::new(opened.map_err(|_| Gone)?.map_err(|_| Gone)?).beside(&link.flight);
        let mut stream = Self::own(link, outgoing, until);
        let _ = stream.waiting.write(|buffer| {
            buffer.put_u8(StreamKind::Reply.byte());
            buffer.put_u64(place.lane);
            buffer.put_u64(place.call);
        });
        Ok(stream)
    }

    /// Takes over the charge that its message has already.
    pub(crate) fn keeping(mut self, kept: Kept) -> Self {
        self.kept = kept;
        self
    }

    /// Takes a message to be written with those after it.
    fn put(&mut self, message: &Bytes) {
        let part = match std::mem::take(&mut self.whole) {
            true => Part::FirstOfWhole,
            false => Part::Some,
        };
        let _ = frame::put_data(&mut self.waiting, 0, message, part);
    }

    /// Writes the gathered messages once they are large; as [`ReplyStream::flush`].
    async fn relieve(&mut self) -> Result<(), Reply> {
        match self.waiting.bytes() < MAX_GATHERED_BYTES {
            true => Ok(()),
            false => self.flush().await,
        }
    }

    /// Writes the gathered messages. When they are not written, the reply ends with the outcome that this gives.
    async fn flush(&mut self) -> Result<(), Reply> {
        if self.waiting.bytes() == 0 {
            return Ok(());
        }
        let kept = self.kept.set(self.waiting.bytes());
        let mut chunks = self.waiting.take();
        kept.map_err(|Exhausted| no_memory())?;
        let taken_back = self.kept.taken_back();
        let sent = tokio::select! {
            biased;
            sent = timeout_at(self.until, self.outgoing.send(&mut chunks)) => sent,
            () = taken_back => return Err(no_memory()),
        };
        match sent {
            Ok(Ok(())) => self.kept.set(0).map_err(|Exhausted| no_memory()),
            Ok(Err(_)) | Err(_) => Err(given_up()),
        }
    }

    /// Charges a reply before it waits; gives the error that takes its place when there is no room.
    fn keep(&mut self, reply: Reply) -> Reply {
        match self.kept.set(self.waiting.bytes() + reply.body.len()) {
            Ok(()) => reply,
            Err(Exhausted) => no_memory(),
        }
    }

    /// Sends the last messages and the outcome in one write, ends the stream, and waits until the peer has acknowledged all of it. The
    /// call is under way until then, and the connection stays open for it.
    pub(crate) async fn send(&mut self, link: &Link, reply: Reply) {
        let reply = fitting(link, reply);
        let reply = self.keep(reply);
        if reply.body.len() <= INLINE_BYTES {
            let _ = frame::put_trailers(&mut self.waiting, 0, &reply, &reply.body);
        } else {
            let _ = frame::put_data(&mut self.waiting, 0, &reply.body, Part::Some);
            let _ = frame::put_trailers(&mut self.waiting, 0, &reply, &Bytes::new());
        }
        let mut frames = self.waiting.take();
        let give_up = self.until.max(Instant::now()) + REPLY_GRACE;
        let taken_back = self.kept.taken_back();
        let sent = async {
            let sent = self.outgoing.send(&mut frames).await;
            if sent.is_ok() {
                self.outgoing.finish();
                // A caller that has not acknowledged the reply in time does not wait for it any more.
                self.outgoing.stopped().await;
            }
            sent
        };
        let sent = tokio::select! {
            biased;
            sent = timeout_at(give_up, sent) => sent.map_err(|_| Unserved::Slow),
            () = taken_back => Err(Unserved::Exhausted),
        };
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(_)) => self.outgoing.reset(link.unserved(Unserved::Gone)),
            Err(unserved) => self.outgoing.reset(link.unserved(unserved)),
        }
    }
}

/// Fits a reply to this peer's limits. A success that is too large becomes an error. A failure that is too large keeps its status,
/// which tells whether it is final, and the start of its message.
pub(crate) fn fitting(link: &Link, reply: Reply) -> Reply {
    let limit = link.message_limit();
    let ((head, entries), limits) = (frame::reply_head_size(&reply), link.head_limits());
    if reply.body.len() > limit {
        too_large(reply.body.len(), limit)
    } else if !limits.holds((head, entries)) {
        let words = format!(
            "the reply's message, details and metadata have {head} bytes and {entries} entries; at most {} bytes and {} entries are \
             sent",
            limits.bytes, limits.entries
        );
        match reply.status {
            StatusCode::Ok => Reply::error(StatusCode::ResourceExhausted, words),
            _ => reply.shortened(MAX_SHORTENED_BYTES, &words),
        }
    } else {
        reply
    }
}

/// The reply of a handler that streams, while it gives its messages.
pub(crate) struct ReplyWriter {
    link: Arc<Link>,
    places: Arc<ReplyPlaces>,
    /// Where the call is, on a lane; `None` on a stream of its own.
    place: Option<LanePlace>,
    /// Bytes of one message.
    limit: usize,
    /// The call's deadline.
    until: Instant,
    state: Mutex<WriterState>,
    /// Woken when the reply has a stream.
    streams: Notify,
    /// Waits until the caller stops that stream.
    stopped: std::sync::Mutex<Option<BoxFuture<'static, ()>>>,
}

/// How far a reply is.
struct WriterState {
    way: Way,
    /// A message is missing: the outcome instead of the handler's.
    failed: Option<Reply>,
}

impl WriterState {
    /// Messages were written, or this outcome takes the place of the handler's.
    fn written(&mut self, written: Result<(), Reply>) -> Result<(), Gone> {
        self.failed = written.err();
        match &self.failed {
            None => Ok(()),
            Some(_) => Err(Gone),
        }
    }
}

/// Which way a reply goes.
enum Way {
    /// The lane, so far: nothing was sent yet.
    Lane(Held),
    /// A stream.
    Stream {
        stream: Box<ReplyStream>,
        _place: Option<OwnedSemaphorePermit>,
    },
    /// The reply ended.
    Over,
}

/// The messages that wait for the outcome.
#[derive(Default)]
struct Held {
    messages: Vec<Bytes>,
    /// Their size in memory, in bytes.
    bytes: usize,
    /// They are all of the reply's messages.
    whole: bool,
}

impl Held {
    fn fits(&self, message: &Bytes) -> bool {
        self.bytes_with(message) <= MAX_HELD_BYTES
    }

    fn bytes_with(&self, message: &Bytes) -> usize {
        self.bytes + message.len() + size_of::<Bytes>()
    }

    fn push(&mut self, message: Bytes) {
        self.bytes = self.bytes_with(&message);
        self.messages.push(message);
    }
}

/// What is left to do for a call on a lane whose reply has ended.
pub(crate) enum Ended {
    /// These messages and this outcome go over the lane.
    OnLane(Reply, Vec<Bytes>),
    /// The reply has gone over a stream.
    OnStream,
    /// A message was cut short on the stream. The reset may drop the header that names the call, so this outcome goes over the lane.
    CutShort(Reply),
}

impl ReplyWriter {
    /// For a call on a lane.
    pub(crate) fn on_lane(link: Arc<Link>, places: Arc<ReplyPlaces>, place: LanePlace, until: Instant) -> Self {
        Self::new(link, places, Some(place), until, Way::Lane(Held::default()))
    }

    /// For a call on a stream of its own.
    pub(crate) fn on_stream(link: Arc<Link>, places: Arc<ReplyPlaces>, outgoing: Outgoing, until: Instant) -> Self {
        let stopped = outgoing.stopped().boxed();
        let stream = Box::new(ReplyStream::own(&link, outgoing, until));
        let writer = Self::new(link, places, None, until, Way::Stream { stream, _place: None });
        writer.has_stream(stopped);
        writer
    }

    fn new(link: Arc<Link>, places: Arc<ReplyPlaces>, place: Option<LanePlace>, until: Instant, way: Way) -> Self {
        Self {
            limit: link.message_limit(),
            link,
            places,
            place,
            until,
            state: Mutex::new(WriterState { way, failed: None }),
            streams: Notify::new(),
            stopped: std::sync::Mutex::default(),
        }
    }

    fn has_stream(&self, stopped: BoxFuture<'static, ()>) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = Some(stopped);
        self.streams.notify_one();
    }

    /// The most a message may have, in bytes.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Takes a message to be sent with those after it; with `whole`, the first of a reply that is there already.
    pub(crate) async fn gather(&self, message: Bytes, whole: bool) -> Result<(), Gone> {
        if let Ok(mut state) = self.state.try_lock()
            && let WriterState {
                way: Way::Lane(held),
                failed: None,
            } = &mut *state
            && message.len() <= self.limit
            && held.fits(&message)
        {
            held.whole |= whole;
            held.push(message);
            return Ok(());
        }
        // Boxed to keep the common future small.
        self.gather_more(message, whole).boxed().await
    }

    async fn gather_more(&self, message: Bytes, whole: bool) -> Result<(), Gone> {
        let mut state = self.state.lock().await;
        if state.failed.is_some() {
            return Err(Gone);
        }
        if message.len() > self.limit {
            state.failed = Some(too_large(message.len(), self.limit));
            return Err(Gone);
        }
        match &mut state.way {
            Way::Lane(held) => {
                held.whole |= whole;
                // Cleared once the message has left: the handler may drop this future while it waits.
                state.failed = Some(given_up());
                self.open(&mut state).await?;
            }
            Way::Stream { stream, .. } => {
                stream.whole |= whole;
                state.failed = Some(given_up());
            }
            Way::Over => return Err(Gone),
        }
        let Way::Stream { stream, .. } = &mut state.way else {
            return Err(Gone);
        };
        stream.put(&message);
        let relieved = stream.relieve().await;
        state.written(relieved)
    }

    /// Sends the gathered messages.
    pub(crate) async fn flush(&self) -> Result<(), Gone> {
        let mut state = self.state.lock().await;
        if state.failed.is_some() {
            return Err(Gone);
        }
        match &state.way {
            Way::Lane(held) if held.messages.is_empty() => return Ok(()),
            Way::Lane(_) => self.open(&mut state).await?,
            Way::Stream { .. } => {}
            Way::Over => return Err(Gone),
        }
        state.failed = Some(given_up());
        let flushed = match &mut state.way {
            Way::Stream { stream, .. } => stream.flush().await,
            Way::Lane(_) | Way::Over => Ok(()),
        };
        state.written(flushed)
    }

    /// Moves the gathered messages to a stream, when it is this reply's turn.
    async fn open(&self, state: &mut WriterState) -> Result<(), Gone> {
        let (Some(at), Way::Lane(_)) = (self.place, &state.way) else {
            return Err(Gone);
        };
        let opened = async {
            // Calls read after this one wait behind it, and a reply of any size would hold them up.
            tokio::task::yield_now().await;
            let place = self.places.streaming.clone().acquire_owned().await.map_err(|_| Gone)?;
            Ok((ReplyStream::open(&self.link, at, self.until).await?, place))
        };
        // A handler that gave its messages to a task of its own is not dropped at the deadline.
        let (mut stream, place) = timeout_at(self.until, opened).await.map_err(|_| Gone)??;
        let stopped = stream.outgoing.stopped().boxed();
        if let Way::Lane(held) = std::mem::replace(&mut state.way, Way::Over) {
            stream.whole = held.whole;
            held.messages.iter().for_each(|message| stream.put(message));
        }
        state.way = Way::Stream {
            stream: Box::new(stream),
            _place: Some(place),
        };
        self.has_stream(stopped);
        Ok(())
    }

    /// Waits until the reply has a stream: from then on the stream says whether the call is wanted.
    pub(crate) async fn streams(&self) {
        self.streams.notified().await;
    }

    /// Waits until the caller stops the stream that the reply has.
    pub(crate) async fn stopped(&self) {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner).take();
        match stopped {
            Some(stopped) => stopped.await,
            None => std::future::pending().await,
        }
    }

    /// The messages and the outcome that go over the lane, when all of it fits there: then the reply has ended.
    ///
    /// # Errors
    /// Gives the outcome back when it does not fit, or another task has the messages in hand at this moment.
    pub(crate) fn end_on_lane(&self, reply: Reply) -> Result<(Reply, Vec<Bytes>), Reply> {
        match self.state.try_lock() {
            Ok(mut state) => self.fit_lane(&mut state, reply),
            Err(_) => Err(reply),
        }
    }

    fn fit_lane(&self, state: &mut WriterState, mut reply: Reply) -> Result<(Reply, Vec<Bytes>), Reply> {
        let Way::Lane(held) = &mut state.way else {
            return Err(reply);
        };
        if let Some(failed) = state.failed.take() {
            reply = failed;
        }
        if !held.messages.is_empty() && reply.body.len() > self.limit {
            reply = too_large(reply.body.len(), self.limit);
        }
        let is_small = HeadLimits::LEAST.holds(frame::reply_head_size(&reply));
        // A single message travels like a unary handler's.
        let bytes = held.messages.iter().map(Bytes::len).sum::<usize>() + reply.body.len();
        if !held.messages.is_empty() && (bytes > INLINE_BYTES || held.bytes > MAX_HELD_BYTES || !is_small) {
            return Err(reply);
        }
        let messages = std::mem::take(&mut held.messages);
        state.way = Way::Over;
        Ok((reply, messages))
    }

    /// Sends the gathered messages and the outcome, or gives those that go over the lane.
    pub(crate) async fn end(&self, reply: Reply) -> Ended {
        let mut state = self.state.lock().await;
        let mut reply = match self.fit_lane(&mut state, reply) {
            Ok((reply, messages)) => return Ended::OnLane(reply, messages),
            Err(reply) => state.failed.take().unwrap_or(reply),
        };
        if let Way::Lane(_) = state.way
            && self.open(&mut state).await.is_err()
        {
            state.way = Way::Over;
            // The error alone tells more than messages without an outcome.
            if reply.status == StatusCode::Ok {
                reply = no_room();
            }
            return Ended::OnLane(reply, Vec::new());
        }
        let Way::Stream { stream, .. } = &mut state.way else {
            return Ended::OnStream;
        };
        if stream.outgoing.is_halfway() {
            stream.outgoing.reset(ResetCode::Cancelled);
            state.way = Way::Over;
            return match self.place {
                Some(_) => Ended::CutShort(given_up()),
                None => Ended::OnStream,
            };
        }
        stream.send(&self.link, reply).await;
        state.way = Way::Over;
        Ended::OnStream
    }

    /// The caller does not wait any more.
    pub(crate) async fn reset(&self) {
        let mut state = self.state.lock().await;
        if let Way::Stream { stream, .. } = &mut state.way {
            stream.outgoing.reset(ResetCode::Cancelled);
        }
        state.way = Way::Over;
    }
}

fn too_large(bytes: usize, limit: usize) -> Reply {
    let words = format!("the reply has {bytes} bytes; a message has at most {limit}");
    Reply::error(StatusCode::ResourceExhausted, words)
}

fn given_up() -> Reply {
    Reply::error(StatusCode::Internal, "the handler gave up sending a message")
}

pub(crate) fn no_memory() -> Reply {
    Reply::error(
        StatusCode::ResourceExhausted,
        "the node has no memory left for the reply",
    )
}

fn no_room() -> Reply {
    Reply::error(
        StatusCode::ResourceExhausted,
        "the caller has no room for the stream that the reply needs",
    )
}

impl std::fmt::Debug for ReplyWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplyWriter")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}
