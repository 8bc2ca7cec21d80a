//! The replies to a call on a lane whose caller takes several, from the provider's side.
//!
//! They wait for the outcome. When all of it is small, it goes over the lane as one frame; what is more than fits there, or must leave
//! before the outcome is known, takes a stream that the provider opens for it, and from there on is a streaming call as any other.
//!
//! **Invariants:** a call's replies go one of the two ways, never both; once they have moved, the lane knows nothing of the call, and
//! what stops the handler is that the caller stops the stream.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use macula_wire::StatusCode;
use tokio::{
    sync::{Mutex, Notify, OwnedSemaphorePermit},
    time::{Instant, timeout_at},
};

use super::{CallId, provider::Lane};
use crate::{
    Gone, Reply,
    codec::INLINE_BYTES,
    frame, serve,
    stream::{Outgoing, ResetCode, StreamKind},
    streaming::Gathered,
};

/// The most that waits for the outcome, in bytes of memory: what fits on the lane, of a few messages. With more the replies move.
const MAX_WAITING_BYTES: usize = INLINE_BYTES + 64 * size_of::<Bytes>();

/// The replies to one call.
pub(crate) struct Several {
    lane: Arc<Lane>,
    id: CallId,
    /// Bytes of one message.
    limit: usize,
    /// The call's deadline.
    until: Instant,
    state: Mutex<State>,
    /// Woken when the replies have a stream.
    moved: Notify,
    /// Waits until the caller stops that.
    stopped: std::sync::Mutex<Option<BoxFuture<'static, ()>>>,
}

enum State {
    /// Nothing has left.
    Waiting(Waiting),
    /// They have a stream of their own.
    Moved {
        gathered: Box<Gathered>,
        _place: OwnedSemaphorePermit,
        /// A message of so many bytes is larger than it may be.
        too_large: Option<usize>,
    },
    /// As in the other, and nothing has left.
    TooLarge(usize),
    /// The call was answered, or nobody waits for it.
    Over,
}

#[derive(Default)]
struct Waiting {
    messages: Vec<Bytes>,
    /// What they take in memory.
    bytes: usize,
    /// A message that did not fit has not become one of them, nor moved with them.
    missed: bool,
    /// They are there already, all of them, which matters where they move.
    whole: bool,
}

impl Waiting {
    /// What they would take with this message.
    fn bytes_with(&self, message: &Bytes) -> usize {
        self.bytes + message.len() + size_of::<Bytes>()
    }

    fn fits(&self, message: &Bytes) -> bool {
        !self.missed && self.bytes_with(message) <= MAX_WAITING_BYTES
    }

    fn push(&mut self, message: Bytes) {
        self.bytes = self.bytes_with(&message);
        self.messages.push(message);
    }
}

impl Several {
    pub(crate) fn new(lane: Arc<Lane>, id: CallId, limit: usize, until: Instant) -> Self {
        Self {
            lane,
            id,
            limit,
            until,
            state: Mutex::new(State::Waiting(Waiting::default())),
            moved: Notify::new(),
            stopped: std::sync::Mutex::default(),
        }
    }

    /// The most a message may have, in bytes.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Takes a message to be sent with what follows; with `whole`, the first of a reply that is there already.
    pub(crate) async fn gather(&self, message: Bytes, whole: bool) -> Result<(), Gone> {
        if let Ok(mut state) = self.state.try_lock()
            && let State::Waiting(waiting) = &mut *state
            && message.len() <= self.limit
            && waiting.fits(&message)
        {
            waiting.whole |= whole;
            waiting.push(message);
            return Ok(());
        }
        // Boxed, so that what nearly all are is not as large.
        self.gather_more(message, whole).boxed().await
    }

    async fn gather_more(&self, message: Bytes, whole: bool) -> Result<(), Gone> {
        let mut state = self.state.lock().await;
        if let State::Waiting(waiting) = &mut *state {
            waiting.whole |= whole;
        }
        if message.len() > self.limit {
            match &mut *state {
                // Were the stream reset, its opening might not arrive, and nobody would know whose it is.
                State::Moved { too_large, .. } => *too_large = Some(message.len()),
                State::Waiting(_) => *state = State::TooLarge(message.len()),
                State::TooLarge(_) | State::Over => {}
            }
            return Err(Gone);
        }
        match &mut *state {
            State::Waiting(waiting) if waiting.fits(&message) => {
                waiting.push(message);
                Ok(())
            }
            // Whoever gave up the sending of a message sends no further one.
            State::Waiting(Waiting { missed: true, .. }) => Err(Gone),
            State::Waiting(waiting) => {
                // Until it is there: the handler may give this up while it waits for its turn.
                waiting.missed = true;
                let gathered = self.open(&mut state).await?;
                gathered.put(&message);
                gathered.flush().await
            }
            State::Moved {
                gathered,
                too_large: None,
                ..
            } => {
                gathered.put(&message);
                gathered.relieve().await
            }
            State::Moved { .. } | State::TooLarge(_) | State::Over => Err(Gone),
        }
    }

    /// Sends what was gathered.
    pub(crate) async fn flush(&self) -> Result<(), Gone> {
        let mut state = self.state.lock().await;
        self.flush_now(&mut state).await
    }

    async fn flush_now(&self, state: &mut State) -> Result<(), Gone> {
        match state {
            State::Waiting(Waiting { missed: true, .. }) => Err(Gone),
            State::Waiting(waiting) if waiting.messages.is_empty() => Ok(()),
            State::Waiting(_) => self.open(state).await?.flush().await,
            State::Moved { gathered, .. } => gathered.flush().await,
            State::TooLarge(_) | State::Over => Err(Gone),
        }
    }

    /// Opens a stream for the replies, when it is their turn, and moves there what was gathered.
    async fn open<'s>(&self, state: &'s mut State) -> Result<&'s mut Gathered, Gone> {
        let link = &self.lane.link;
        let opened = async {
            // Where the call was read others wait behind it, whom a reply of any size would hold up.
            tokio::task::yield_now().await;
            let place = link.moved_replies.clone().acquire_owned().await.map_err(|_| Gone)?;
            let stream = link.quic.open_uni().await.map_err(|_| Gone)?;
            Ok((Outgoing::new(stream).beside(&link.flight), place))
        };
        // Whoever gives its messages to a task of its own is not dropped at the deadline.
        let (outgoing, place) = timeout_at(self.until, opened).await.map_err(|_| Gone)??;
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = Some(outgoing.stopped().boxed());
        let opening = [
            &[StreamKind::Replies.byte()][..],
            &self.lane.stream.to_be_bytes(),
            &self.id.to_wire().to_be_bytes(),
        ];
        let mut gathered = Box::new(Gathered::moved(outgoing, self.until, &opening.concat()));
        if let State::Waiting(waiting) = state {
            if waiting.whole {
                gathered.mark_whole();
            }
            waiting.messages.iter().for_each(|message| gathered.put(message));
        }
        *state = State::Moved {
            gathered,
            _place: place,
            too_large: None,
        };
        self.moved.notify_one();
        match state {
            State::Moved { gathered, .. } => Ok(gathered),
            State::Waiting(_) | State::TooLarge(_) | State::Over => Err(Gone),
        }
    }

    /// Waits until the caller stops the stream that the replies have moved to.
    pub(crate) async fn stopped(&self) {
        self.moved.notified().await;
        // From here on the stream says whether the call is wanted.
        let _ = self.lane.lock().ended(self.id);
        self.lane.call_left();
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner).take();
        match stopped {
            Some(stopped) => stopped.await,
            None => std::future::pending().await,
        }
    }

    /// What goes over the lane, when all of it fits there: then the replies are over.
    ///
    /// # Errors
    /// Gives the outcome back when it does not, or somebody else has the messages in hand at this moment.
    pub(crate) fn take_whole(&self, reply: Reply) -> Result<(Reply, Vec<Bytes>), Reply> {
        match self.state.try_lock() {
            Ok(mut state) => whole(&mut state, reply, self.limit),
            Err(_) => Err(reply),
        }
    }

    /// Sends what was gathered and the outcome.
    pub(crate) async fn end(&self, reply: Reply) {
        let mut state = self.state.lock().await;
        let reply = match whole(&mut state, reply, self.limit) {
            Ok((reply, messages)) => {
                self.lane.end_several(self.id, reply, messages);
                return;
            }
            Err(reply) => reply,
        };
        if let State::Waiting(_) = *state {
            // Else its caller would wait for what never comes.
            if self.open(&mut state).await.is_err() {
                *state = State::Over;
                // An error says more by itself than messages without an end.
                let reply = if reply.status == StatusCode::Ok {
                    no_room()
                } else {
                    reply
                };
                self.lane.end(self.id, reply);
                return;
            }
        }
        // Its caller goes by the stream.
        let _ = self.lane.lock().ended(self.id);
        self.lane.call_left();
        if let State::Moved {
            gathered, too_large, ..
        } = &mut *state
        {
            if gathered.outgoing.is_halfway() {
                // The handler gave up a send. What is reset for it may not tell anybody whose it is.
                self.lane.reply(self.id, given_up());
            }
            let reply = too_large.map_or(reply, |bytes| too_large_reply(bytes, self.limit));
            serve::end(&self.lane.link, gathered, reply, self.until).await;
        }
        *state = State::Over;
    }

    /// Nobody waits for them any more.
    pub(crate) async fn reset(&self) {
        let mut state = self.state.lock().await;
        if let State::Moved { gathered, .. } = &mut *state {
            gathered.outgoing.reset(ResetCode::Cancelled);
        }
        *state = State::Over;
    }
}

/// Takes all that was gathered, when it fits on the lane with the outcome.
fn whole(state: &mut State, mut reply: Reply, limit: usize) -> Result<(Reply, Vec<Bytes>), Reply> {
    let messages = match state {
        State::Waiting(waiting) => {
            if waiting.missed && reply.status == StatusCode::Ok {
                reply = given_up();
            }
            &mut waiting.messages
        }
        State::TooLarge(bytes) => {
            let reply = too_large_reply(*bytes, limit);
            *state = State::Over;
            return Ok((reply, Vec::new()));
        }
        State::Moved { .. } | State::Over => return Err(reply),
    };
    // By itself it stays where a unary handler's is.
    if !messages.is_empty() && !reply.body.is_empty() {
        match reply.body.len() {
            bytes if bytes > limit => reply = too_large_reply(bytes, limit),
            _ => messages.push(std::mem::take(&mut reply.body)),
        }
    }
    if frame::messages_len(messages) > INLINE_BYTES {
        return Err(reply);
    }
    let messages = std::mem::take(messages);
    *state = State::Over;
    Ok((reply, messages))
}

fn too_large_reply(bytes: usize, limit: usize) -> Reply {
    let words = format!("a reply has {bytes} bytes; a message has at most {limit}");
    Reply::error(StatusCode::ResourceExhausted, words)
}

fn given_up() -> Reply {
    Reply::error(StatusCode::Internal, "the handler gave up sending a message")
}

fn no_room() -> Reply {
    Reply::error(
        StatusCode::ResourceExhausted,
        "the caller has no room for the stream that the replies need",
    )
}

impl std::fmt::Debug for Several {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Several").field("id", &self.id).finish_non_exhaustive()
    }
}
