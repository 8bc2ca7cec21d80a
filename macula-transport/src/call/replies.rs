//! A call from its caller's side, while it lasts: the requests it sends, and the replies it reads.
//!
//! **Invariants:** a message is sent whole or its stream is reset, also when sending it is given up halfway; replies are read only as
//! fast as they are asked for, so QUIC's flow control reaches the provider; dropping a half that is not finished cancels the call.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};

use super::{
    frame::{self, Data, Frame, Part},
    lane::caller::{LaneCall, LaneReply},
    outbox::Outbox,
    outcome::{CallPlace, over},
    types::CallReply,
};
use crate::{
    connection::{
        link::{InFlight, Link},
        stream::{Incoming, Outgoing, ReceiveError, SendError},
    },
    error::{CallError, Unknown},
};

/// Bytes that a message read ahead counts beside its own, so that many empty messages reach the limit too.
const KEPT_OVERHEAD: usize = 64;

/// The state that the two halves of a call share.
#[derive(Debug)]
pub(crate) struct OpenCall {
    pub(crate) link: Arc<Link>,
    pub(crate) place: CallPlace,
    pub(crate) deadline: Instant,
    pub(crate) timeout: Duration,
    pub(crate) _credit: OwnedSemaphorePermit,
    pub(crate) _in_flight: InFlight,
}

impl OpenCall {
    /// The call's time is up: the peer may be gone.
    fn timed_out(&self) -> CallError {
        self.link.timed_out();
        over(&self.link, Unknown::Timeout(self.timeout), Some(self.place))
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
    pub(crate) fn new(hold: OpenCall, outgoing: Outgoing, incoming: Incoming) -> Self {
        let hold = Arc::new(hold);
        Self {
            requests: Requests {
                hold: hold.clone(),
                outgoing,
                stopped: false,
            },
            replies: Replies::new(hold, ReplySource::Stream(Box::new(incoming))),
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
    hold: Arc<OpenCall>,
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
        let mut outbox = Outbox::brief();
        let _ = frame::put_data(&mut outbox, 0, &message, Part::Some);
        let mut frames = outbox.take();
        match timeout_at(self.hold.deadline, self.outgoing.send(&mut frames)).await {
            Ok(Ok(())) => Ok(()),
            // A provider that stops reading requests may have answered already.
            Ok(Err(SendError::Stopped)) => {
                self.stopped = true;
                Ok(())
            }
            Ok(Err(SendError::Lost(lost))) => Err(over(&self.hold.link, Unknown::Lost(lost), Some(self.hold.place))),
            Err(_) => Err(self.hold.timed_out()),
        }
    }

    /// Whether the provider has said that it reads no further message. Then [`Requests::send`] waits for nothing and drops what it
    /// is given, so a sender whose source has no end must look.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Tells the provider that no further request follows.
    pub fn finish(mut self) {
        self.outgoing.finish();
    }
}

/// The replies of a call, from the caller's side: messages, and then an outcome.
///
/// Kept small, because it is moved several times before it is read.
#[derive(Debug)]
pub struct Replies {
    hold: Arc<OpenCall>,
    source: ReplySource,
    /// Messages that were read ahead.
    kept: VecDeque<Bytes>,
    /// The outcome, once it is here.
    reply: Option<CallReply>,
}

/// Where replies come from.
#[derive(Debug)]
enum ReplySource {
    /// A stream: the call's own, or one that the provider opened.
    Stream(Box<Incoming>),
    /// A lane, which has not brought anything yet.
    Lane(LaneCall),
    /// No further message comes.
    Over,
}

impl Replies {
    fn new(hold: Arc<OpenCall>, source: ReplySource) -> Self {
        Self {
            hold,
            source,
            kept: VecDeque::new(),
            reply: None,
        }
    }

    pub(crate) fn on_lane(hold: OpenCall, waiting: LaneCall) -> Self {
        Self::new(Arc::new(hold), ReplySource::Lane(waiting))
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
    /// [has the whole reply](crate::OutgoingMessages::gather_whole), it is handed out once all of that is here, so the reply is lost
    /// as a whole or not at all. A reply of more than `whole_bytes`, each message counted with 64 more, is handed out as it arrives.
    ///
    /// At most `whole_bytes` and one message are held in memory for it.
    ///
    /// # Errors
    /// As [`Replies::next`].
    pub async fn first(&mut self, whole_bytes: usize) -> Result<Option<Bytes>, CallError> {
        let Some(first) = self.read().await? else {
            return Ok(None);
        };
        let mut bytes = first.payload.len() + KEPT_OVERHEAD;
        while first.whole && bytes <= whole_bytes {
            let Some(next) = self.read().await? else { break };
            bytes += next.payload.len() + KEPT_OVERHEAD;
            self.kept.push_back(next.payload);
        }
        Ok(Some(first.payload))
    }

    /// Reads a message past those read ahead. A whole reply from the lane is read ahead after its first message.
    async fn read(&mut self) -> Result<Option<Data>, CallError> {
        loop {
            match &mut self.source {
                ReplySource::Over => return Ok(None),
                ReplySource::Lane(waiting) => match waiting.reply().await {
                    Ok(LaneReply::Whole { messages, mut reply }) => {
                        self.source = ReplySource::Over;
                        self.kept = messages.into();
                        let last = std::mem::take(&mut reply.body);
                        self.reply = Some(reply);
                        if !last.is_empty() {
                            self.kept.push_back(last);
                        }
                        return Ok(self.kept.pop_front().map(message_alone));
                    }
                    Ok(LaneReply::OnStream(incoming)) => self.source = ReplySource::Stream(incoming),
                    Err(CallError::Unknown(Unknown::Timeout(_))) => return Err(self.hold.timed_out()),
                    Err(error) => return Err(error),
                },
                ReplySource::Stream(incoming) => {
                    let frame = match timeout_at(self.hold.deadline, incoming.next()).await {
                        Err(_) => return Err(self.hold.timed_out()),
                        Ok(frame) => frame,
                    };
                    return match read_reply(&self.hold.link, self.hold.place, frame)? {
                        Piece::Message(data) => Ok(Some(data)),
                        Piece::End(mut reply) => {
                            let last = std::mem::take(&mut reply.body);
                            incoming.settle();
                            self.reply = Some(reply);
                            self.source = ReplySource::Over;
                            Ok((!last.is_empty()).then(|| message_alone(last)))
                        }
                    };
                }
            }
        }
    }

    /// The outcome, with an empty body; `None` until [`Replies::next`] has returned `None`, or the last message where the outcome came
    /// with that.
    #[must_use]
    pub fn reply(&self) -> Option<&CallReply> {
        match self.source {
            ReplySource::Over if self.kept.is_empty() => self.reply.as_ref(),
            ReplySource::Over | ReplySource::Stream(_) | ReplySource::Lane(_) => None,
        }
    }

    /// Whether the rest of the reply has arrived, with its outcome: [`Replies::next`] does not wait.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.reply.is_some()
    }
}

/// A message without flags: others may follow.
fn message_alone(payload: Bytes) -> Data {
    Data {
        payload,
        ..Data::default()
    }
}

/// A part of a reply on a stream.
#[derive(Debug)]
pub(crate) enum Piece {
    Message(Data),
    /// The outcome, with the last message unless that is empty.
    End(CallReply),
}

/// Reads a provider's frame on a stream.
pub(crate) fn read_reply(
    link: &Link,
    place: CallPlace,
    frame: Result<Option<Bytes>, ReceiveError>,
) -> Result<Piece, CallError> {
    let ended = |unknown| Err(over(link, unknown, Some(place)));
    let broken = |unknown| {
        link.shared.counters.rejected_frames.add();
        ended(unknown)
    };
    let frame = match frame {
        Ok(Some(frame)) => frame,
        Ok(None) => return broken(Unknown::Incomplete),
        Err(ReceiveError::Reset(code)) => return ended(Unknown::Reset(code)),
        Err(ReceiveError::Lost(lost)) => return ended(Unknown::Lost(lost)),
        Err(ReceiveError::Frame(error)) => return broken(Unknown::Frame(error)),
        Err(ReceiveError::Broken) => return broken(Unknown::Malformed),
        Err(ReceiveError::Slow) => return ended(Unknown::Incomplete),
        Err(ReceiveError::Exhausted) => return ended(Unknown::NoMemory),
    };
    let limits = &link.shared.config.limits;
    let limit = limits.max_message_bytes;
    match frame::read(&frame, limits.heads()) {
        Ok((_, Frame::Data(data))) if data.payload.len() <= limit => Ok(Piece::Message(data)),
        Ok((_, Frame::Trailers(Ok(reply)))) if reply.body.len() <= limit => Ok(Piece::End(reply)),
        Ok((_, Frame::Trailers(Err(refused)))) => Err(refused),
        Ok((_, Frame::Data(_) | Frame::Trailers(Ok(_)) | Frame::Head(_) | Frame::Cancel)) | Err(frame::Malformed) => {
            broken(Unknown::Malformed)
        }
    }
}

/// A reply of one message at most, from a stream.
pub(crate) async fn read_only(link: &Link, place: CallPlace, incoming: &mut Incoming) -> Result<CallReply, CallError> {
    let mut messages = Vec::new();
    loop {
        match read_reply(link, place, incoming.next().await)? {
            Piece::Message(data) if messages.is_empty() => messages.push(data.payload),
            Piece::Message(_) => return Err(CallError::Unknown(Unknown::Streamed)),
            Piece::End(reply) => return one_message(messages, reply),
        }
    }
}

/// Joins a unary reply and its message, which comes before the outcome or with it.
pub(crate) fn one_message(mut messages: Vec<Bytes>, mut reply: CallReply) -> Result<CallReply, CallError> {
    match (messages.pop(), messages.is_empty()) {
        (None, _) => Ok(reply),
        (Some(message), true) if reply.body.is_empty() => {
            reply.body = message;
            Ok(reply)
        }
        (Some(_), _) => Err(CallError::Unknown(Unknown::Streamed)),
    }
}
