//! Calls whose request and reply are streams of messages: both ends.
//!
//! **Invariants:** a message is sent whole or its stream is reset, also when sending it is given up halfway; each side reads only
//! as fast as it is asked to, so QUIC's flow control reaches the sender; dropping an end that is not finished cancels the call.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use macula_wire::proto::{CallFrame, Data, Trailers, call_frame::Kind};
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit},
    time::{Instant, timeout_at},
};

use crate::{
    CallReply, Reply,
    codec::{self, INLINE_BYTES},
    connection::{InFlight, Link},
    error::{CallError, Unknown},
    frame,
    lane::{
        caller::{Replied, Waiting},
        several::Several,
    },
    outbox::Outbox,
    outcome::Place,
    stream::{Incoming, Outgoing, ReceiveError, ResetCode, SendError},
};

/// How the messages of a call are exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CallKind {
    /// One request, one reply.
    #[default]
    Unary,
    /// Any number of requests, any number of replies.
    Streaming,
}

/// What a call holds while it lasts, shared by its two halves.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) link: Arc<Link>,
    pub(crate) place: Place,
    pub(crate) deadline: Instant,
    pub(crate) timeout: Duration,
    pub(crate) _credit: OwnedSemaphorePermit,
    pub(crate) _in_flight: InFlight,
}

impl Hold {
    fn over(&self, unknown: Unknown) -> CallError {
        self.link.call_over(unknown, Some(self.place))
    }

    /// The call's time is up: the peer may be gone.
    fn timed_out(&self) -> CallError {
        self.link.timed_out();
        self.over(Unknown::Timeout(self.timeout))
    }
}

/// A call whose request and reply are streams of messages, from the caller's side.
///
/// Both halves are used independently after [`CallStream::split`]. Dropping a half that is not finished cancels the call.
#[derive(Debug)]
pub struct CallStream {
    requests: Requests,
    replies: Replies,
}

impl CallStream {
    pub(crate) fn new(hold: Hold, outgoing: Outgoing, incoming: Incoming) -> Self {
        let hold = Arc::new(hold);
        Self {
            requests: Requests {
                hold: hold.clone(),
                outgoing,
                stopped: false,
            },
            replies: Replies {
                hold,
                source: From::Stream(Box::new(incoming)),
                kept: VecDeque::new(),
                reply: None,
                brief: None,
            },
        }
    }

    /// Sends a message, as [`Requests::send`].
    ///
    /// # Errors
    /// As [`Requests::send`].
    pub async fn send(&mut self, message: Bytes) -> Result<(), CallError> {
        self.requests.send(message).await
    }

    /// The next message, as [`Replies::next`].
    ///
    /// # Errors
    /// As [`Replies::next`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        self.replies.next().await
    }

    /// The two halves.
    #[must_use]
    pub fn split(self) -> (Requests, Replies) {
        (self.requests, self.replies)
    }
}

/// The requests of a call, from the caller's side.
#[derive(Debug)]
pub struct Requests {
    hold: Arc<Hold>,
    outgoing: Outgoing,
    stopped: bool,
}

impl Requests {
    /// Sends a message, waiting until the provider has room for it. A provider that has answered already takes and drops it.
    ///
    /// # Errors
    /// When the message is too large, the connection ended, or the call's time is up.
    pub async fn send(&mut self, message: Bytes) -> Result<(), CallError> {
        let limit = self.hold.link.message_limit();
        if message.len() > limit {
            return Err(CallError::TooLarge {
                bytes: message.len(),
                limit,
            });
        }
        match timeout_at(self.hold.deadline, send_message(&mut self.outgoing, &message)).await {
            // Whoever stops reading requests may have answered already.
            Ok(Err(SendError::Stopped)) => {
                self.stopped = true;
                Ok(())
            }
            Ok(Ok(())) => Ok(()),
            Ok(Err(SendError::Lost(lost))) => Err(self.hold.over(Unknown::Lost(lost))),
            Err(_) => Err(self.hold.timed_out()),
        }
    }

    /// Whether the provider has said that it reads no further message. Then [`Requests::send`] waits for nothing and drops what it
    /// is given, so whoever sends from a source without an end must look.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Tells the provider that no further request follows.
    pub fn finish(mut self) {
        self.outgoing.finish();
    }
}

/// The replies of a call, from the caller's side.
///
/// Small, because it is moved several times before it is where it is read.
#[derive(Debug)]
pub struct Replies {
    hold: Arc<Hold>,
    source: From,
    /// What was read ahead.
    kept: VecDeque<Bytes>,
    /// The outcome, once it is here.
    reply: Option<CallReply>,
    brief: Option<bool>,
}

/// Where replies come from.
#[derive(Debug)]
enum From {
    /// A stream of the call's own.
    Stream(Box<Incoming>),
    /// A lane, which has not brought anything yet.
    Lane(Waiting),
    /// A lane, which has brought all of it: these messages, each after its length, and the outcome.
    Here(Bytes),
    /// A lane, which has brought one message and the outcome.
    One(Bytes),
    /// No further message comes.
    Over,
}

impl Replies {
    pub(crate) fn on_lane(hold: Hold, waiting: Waiting) -> Self {
        Self {
            hold: Arc::new(hold),
            source: From::Lane(waiting),
            kept: VecDeque::new(),
            reply: None,
            brief: None,
        }
    }

    /// The next message; `None` after the last one, when [`Replies::reply`] has the outcome.
    ///
    /// # Errors
    /// When the provider gave no outcome; the variant says whether the call may have run.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        match self.kept.pop_front() {
            Some(message) => Ok(Some(message)),
            None => Ok(self.read().await?.map(|data| data.payload)),
        }
    }

    /// The first message, as [`Replies::next`] gives it. When the provider says that it
    /// [has the whole reply](OutgoingMessages::gather_whole), that is once all of it is here, so that it is lost as a whole or not at
    /// all; unless it has more than `whole_bytes`, each message counted with 64 more: then it goes on as any other.
    ///
    /// At most one message more than `whole_bytes` are held in memory for it.
    ///
    /// # Errors
    /// As [`Replies::next`].
    pub async fn first(&mut self, whole_bytes: usize) -> Result<Option<Bytes>, CallError> {
        let (mut first, mut whole, mut bytes) = (None, false, 0);
        loop {
            let Some(data) = self.read().await? else {
                return Ok(first);
            };
            bytes += data.payload.len() + KEPT_OVERHEAD;
            match first {
                None => (first, whole) = (Some(data.payload), data.whole),
                Some(_) => self.kept.push_back(data.payload),
            }
            if !whole || bytes > whole_bytes {
                return Ok(first);
            }
        }
    }

    async fn read(&mut self) -> Result<Option<Data>, CallError> {
        loop {
            match &mut self.source {
                From::Lane(waiting) => {
                    let replied = waiting.replied().await;
                    self.take_over(replied)?;
                }
                From::Here(messages) => match codec::next_message(messages) {
                    Ok(Some(message)) => return Ok(Some(plain(message))),
                    Ok(None) => self.source = From::Over,
                    Err(error) => {
                        self.hold.link.inner.counters.rejected_frames.add();
                        return Err(CallError::Unknown(Unknown::Frame(error)));
                    }
                },
                From::One(message) => {
                    let message = std::mem::take(message);
                    self.source = From::Over;
                    return Ok((!message.is_empty()).then(|| plain(message)));
                }
                From::Stream(incoming) => {
                    let frame = match timeout_at(self.hold.deadline, incoming.next()).await {
                        Err(_) => return Err(self.hold.timed_out()),
                        Ok(frame) => frame,
                    };
                    return match read_reply(&self.hold.link, self.hold.place, frame)? {
                        Piece::Message(data) => Ok(Some(data)),
                        Piece::End(mut trailers) => {
                            let last = std::mem::take(&mut trailers.payload);
                            if trailers.brief {
                                self.hold.link.knows_brief.store(true, Relaxed);
                            }
                            self.brief.get_or_insert(trailers.brief);
                            self.reply = Some(codec::reply(trailers, Bytes::new())?);
                            incoming.settle();
                            self.source = From::Over;
                            Ok((!last.is_empty()).then(|| plain(last)))
                        }
                    };
                }
                From::Over => return Ok(None),
            }
        }
    }

    /// Goes on with what came of a call on a lane.
    fn take_over(&mut self, replied: Result<Replied, CallError>) -> Result<(), CallError> {
        self.source = match replied {
            Ok(Replied::Moved(incoming)) => {
                self.brief = Some(false);
                From::Stream(incoming)
            }
            Ok(Replied::Here { several, answer }) => {
                let mut reply = answer?;
                let body = std::mem::take(&mut reply.body);
                self.reply = Some(reply);
                // A unary handler's only message may be large.
                self.brief = Some(body.len() <= INLINE_BYTES);
                if several { From::Here(body) } else { From::One(body) }
            }
            Err(CallError::Unknown(Unknown::Timeout(_))) => return Err(self.hold.timed_out()),
            Err(error) => return Err(error),
        };
        Ok(())
    }

    /// The outcome, its body empty; `None` before [`Replies::next`] has said that there is no further message, or given the last one
    /// with it.
    #[must_use]
    pub fn reply(&self) -> Option<&CallReply> {
        match self.source {
            From::Over if self.kept.is_empty() => self.reply.as_ref(),
            From::Over | From::Stream(_) | From::Lane(_) | From::Here(_) | From::One(_) => None,
        }
    }

    /// Whether all that is left of the reply has arrived, the outcome too: [`Replies::next`] waits for nothing.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.reply.is_some()
    }

    /// Whether the reply is brief: a few small messages, all there with the outcome. Then the next call of its kind is best made
    /// [as one](crate::CallRequest::with_brief_reply). `None` while that is not known, which it is with the outcome at the latest.
    #[must_use]
    pub fn is_brief(&self) -> Option<bool> {
        self.brief
    }
}

/// What a message counts beside its bytes where a reply is read ahead: one of empty messages takes no more memory than another.
const KEPT_OVERHEAD: usize = 64;

/// A message that says nothing of those after it.
fn plain(payload: Bytes) -> Data {
    Data {
        payload,
        ..Data::default()
    }
}

/// What a provider sends.
pub(crate) enum Piece {
    Message(Data),
    End(Trailers),
}

/// Reads a provider's frame on a call's own stream.
pub(crate) fn read_reply(
    link: &Link,
    place: Place,
    frame: Result<Option<Bytes>, ReceiveError>,
) -> Result<Piece, CallError> {
    let over = |unknown| Err(link.call_over(unknown, Some(place)));
    let broken = |unknown| {
        link.inner.counters.rejected_frames.add();
        over(unknown)
    };
    let frame = match frame {
        Ok(Some(frame)) => frame,
        Ok(None) => return broken(Unknown::Incomplete),
        Err(ReceiveError::Reset(code)) => return over(Unknown::Reset(code)),
        Err(ReceiveError::Lost(lost)) => return over(Unknown::Lost(lost)),
        Err(ReceiveError::Frame(error)) => return broken(Unknown::Frame(error)),
        Err(ReceiveError::Broken) => return broken(Unknown::Malformed),
    };
    match CallFrame::read(frame) {
        Ok(CallFrame {
            kind: Some(Kind::Data(data)),
            ..
        }) if data.payload.len() <= link.inner.config.limits.max_message_bytes => Ok(Piece::Message(data)),
        Ok(CallFrame {
            kind: Some(Kind::Trailers(trailers)),
            ..
        }) if trailers.payload.len() <= link.inner.config.limits.max_message_bytes => Ok(Piece::End(trailers)),
        Ok(_) | Err(_) => broken(Unknown::Malformed),
    }
}

async fn send_message(outgoing: &mut Outgoing, message: &Bytes) -> Result<(), SendError> {
    let mut outbox = Outbox::brief();
    let _ = frame::put_data(&mut outbox, 0, message, false);
    outgoing.send(&mut outbox.take()).await
}

/// The peer, the connection or the deadline ended the call: what the handler does from here on is for nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the caller does not wait any more")]
#[non_exhaustive]
pub struct Gone;

/// The requests of a streaming call, from the handler's side.
#[derive(Debug)]
pub struct IncomingMessages {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Stream {
        link: Arc<Link>,
        incoming: Incoming,
        /// Bytes of one message.
        limit: usize,
        first: Option<Bytes>,
        ended: bool,
    },
    One(Option<Bytes>),
}

impl IncomingMessages {
    pub(crate) fn stream(link: Arc<Link>, incoming: Incoming, first: Bytes, ended: bool) -> Self {
        let limit = link.inner.config.limits.max_message_bytes;
        // An empty request that is the only one is a message; an empty head of a stream is none.
        let first = (ended || !first.is_empty()).then_some(first);
        Self {
            source: Source::Stream {
                link,
                incoming,
                limit,
                first,
                ended,
            },
        }
    }

    pub(crate) fn one(message: Bytes) -> Self {
        Self {
            source: Source::One(Some(message)),
        }
    }

    /// The only message, when it is known to be that, as of a caller that sent it together with the end; `None` otherwise.
    pub fn take_only(&mut self) -> Option<Bytes> {
        match &mut self.source {
            Source::One(message) => message.take(),
            Source::Stream { first, ended: true, .. } => first.take(),
            Source::Stream { .. } => None,
        }
    }

    /// The next message; `None` when the caller has sent its last.
    ///
    /// # Errors
    /// When the caller cancelled, or sent what is no message.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Gone> {
        match &mut self.source {
            Source::One(message) => Ok(message.take()),
            Source::Stream {
                link,
                incoming,
                limit,
                first,
                ended,
            } => {
                if let Some(first) = first.take() {
                    return Ok(Some(first));
                }
                if *ended {
                    return Ok(None);
                }
                let broken = |link: &Link| {
                    link.inner.counters.rejected_frames.add();
                    Err(Gone)
                };
                match incoming.next().await {
                    Ok(None) => {
                        *ended = true;
                        Ok(None)
                    }
                    Ok(Some(frame)) => match CallFrame::read(frame) {
                        Ok(CallFrame {
                            kind: Some(Kind::Data(data)),
                            ..
                        }) if data.payload.len() <= *limit => {
                            *ended = data.end;
                            Ok(Some(data.payload))
                        }
                        Ok(_) | Err(_) => broken(link),
                    },
                    Err(ReceiveError::Reset(_) | ReceiveError::Lost(_)) => Err(Gone),
                    Err(ReceiveError::Frame(_) | ReceiveError::Broken) => broken(link),
                }
            }
        }
    }
}

/// The replies of a streaming call, from the handler's side; the outcome is what the handler returns.
#[derive(Debug)]
pub struct OutgoingMessages {
    sink: Sink,
}

/// Where the messages of a handler go.
#[derive(Debug, Clone)]
pub(crate) enum Sink {
    Stream {
        gathered: Arc<Mutex<Gathered>>,
        limit: usize,
    },
    /// The caller takes several messages on a lane, or on a stream opened for them.
    Lane(Arc<Several>),
    /// The caller takes one message.
    One(Arc<Mutex<One>>),
}

/// A reply's stream, and what waits to be written to it.
#[derive(Debug)]
pub(crate) struct Gathered {
    pub(crate) outgoing: Outgoing,
    waiting: Outbox,
    /// Something was written.
    begun: bool,
    /// All of the reply is there already, which its first message is to say.
    whole: bool,
    /// The call's deadline. A handler that gave its messages to a task of its own is not dropped then.
    until: Instant,
}

/// Gathered messages of so many bytes are written, whether or not more is ready.
const MAX_GATHERED_BYTES: usize = 64 * 1024;

impl Gathered {
    pub(crate) fn new(outgoing: Outgoing, until: Instant) -> Self {
        Self {
            outgoing,
            waiting: Outbox::brief(),
            begun: false,
            whole: false,
            until,
        }
    }

    /// On a stream opened for the replies to a call on a lane, which starts with `opening`.
    pub(crate) fn moved(outgoing: Outgoing, until: Instant, opening: &[u8]) -> Self {
        let mut gathered = Self::new(outgoing, until);
        gathered.begun = true;
        let _ = gathered.waiting.write(|buffer| buffer.extend_from_slice(opening));
        gathered
    }

    /// What waits, to be written before anything else.
    pub(crate) fn take(&mut self) -> Vec<Bytes> {
        self.waiting.take()
    }

    /// Whether a reply with this end leaves together, and would have fit on a lane.
    pub(crate) fn is_brief(&self, end: &Reply) -> bool {
        !self.begun && self.waiting.bytes() + end.body.len() <= INLINE_BYTES
    }

    /// All of the reply is there already: the next message, its first, is to say so.
    pub(crate) fn mark_whole(&mut self) {
        self.whole = true;
    }

    /// Takes a message to be written with what follows.
    pub(crate) fn put(&mut self, message: &Bytes) {
        let _ = match std::mem::take(&mut self.whole) {
            true => frame::put_first_of_whole(&mut self.waiting, 0, message),
            false => frame::put_data(&mut self.waiting, 0, message, false),
        };
    }

    /// Writes what waits when that is much.
    pub(crate) async fn relieve(&mut self) -> Result<(), Gone> {
        if self.waiting.bytes() < MAX_GATHERED_BYTES {
            return Ok(());
        }
        self.flush().await
    }

    pub(crate) async fn flush(&mut self) -> Result<(), Gone> {
        let mut chunks = self.take();
        if chunks.is_empty() {
            return Ok(());
        }
        self.begun = true;
        match timeout_at(self.until, self.outgoing.send(&mut chunks)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }
}

/// The messages for a caller that takes one.
#[derive(Debug, Default)]
pub(crate) struct One {
    pub(crate) message: Option<Bytes>,
    pub(crate) too_many: bool,
}

impl OutgoingMessages {
    pub(crate) fn new(sink: Sink) -> Self {
        Self { sink }
    }

    /// The most a message may have, in bytes; `None` for a caller that takes one message, who is told when it is too large.
    #[must_use]
    pub fn max_message_bytes(&self) -> Option<usize> {
        match &self.sink {
            Sink::Stream { limit, .. } => Some(*limit),
            Sink::Lane(several) => Some(several.limit()),
            Sink::One(_) => None,
        }
    }

    /// Sends a message, waiting until the caller has room for it.
    ///
    /// # Errors
    /// When the caller does not wait any more, called with one request and takes one reply, or the message is larger than it
    /// may be: 4 MiB unless configured otherwise.
    pub async fn send(&mut self, message: Bytes) -> Result<(), Gone> {
        self.gather(message).await?;
        self.flush().await
    }

    /// Takes a message to be sent with what follows: with the next that is sent, with [`OutgoingMessages::flush`], with the
    /// outcome, or when 64 KiB wait, of a reply that was expected to be brief 16 KiB. So what is ready at once costs one write;
    /// whoever then waits for more flushes first.
    ///
    /// # Errors
    /// As [`OutgoingMessages::send`].
    pub async fn gather(&mut self, message: Bytes) -> Result<(), Gone> {
        self.take(message, false).await
    }

    /// As [`OutgoingMessages::gather`], of the first message of a reply that is there already, with all its messages and the outcome.
    /// The caller is told, and may wait for all of it before it takes any: so a call whose provider dies on the way can be made
    /// elsewhere, as one with a single reply. What is not sent without a pause then has its caller wait.
    ///
    /// # Errors
    /// As [`OutgoingMessages::send`].
    pub async fn gather_whole(&mut self, first: Bytes) -> Result<(), Gone> {
        self.take(first, true).await
    }

    async fn take(&mut self, message: Bytes, whole: bool) -> Result<(), Gone> {
        match &self.sink {
            Sink::Stream { gathered, limit } => {
                let mut gathered = gathered.lock().await;
                if message.len() > *limit {
                    gathered.outgoing.reset(ResetCode::Protocol);
                    return Err(Gone);
                }
                if whole {
                    gathered.mark_whole();
                }
                gathered.put(&message);
                gathered.relieve().await
            }
            Sink::Lane(several) => several.gather(message, whole).await,
            Sink::One(one) => {
                let mut one = one.lock().await;
                if one.message.is_some() {
                    one.too_many = true;
                    return Err(Gone);
                }
                one.message = Some(message);
                Ok(())
            }
        }
    }

    /// Sends what was gathered, waiting until the caller has room for it.
    ///
    /// # Errors
    /// When the caller does not wait any more.
    pub async fn flush(&mut self) -> Result<(), Gone> {
        match &self.sink {
            Sink::Stream { gathered, .. } => gathered.lock().await.flush().await,
            Sink::Lane(several) => several.flush().await,
            Sink::One(_) => Ok(()),
        }
    }
}
