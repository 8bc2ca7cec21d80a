//! The requests of a streaming call, kept so that another provider can be sent them again.
//!
//! One reader at a time takes the requests, each from the first one on: the handler of this process, or the pump to a provider. A new
//! reader ends the one before it.
//!
//! **Invariants.** A provider is told that the requests have ended only when they have: a stream that failed, or that can no longer be
//! sent from its beginning, is left unfinished, which cancels the call. At most [`MAX_REPLAY_BYTES`] are kept, each message counted
//! with the memory that keeping it takes, and nothing once a provider has answered. What is kept is charged to the transport's
//! [`Memory`]: of this node for its own calls, of the caller for a call that a router forwards. Where there is no room the requests
//! go on, and the call is not retried.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use macula_transport::{Memory, MemoryCharge};
use macula_wire::ServiceName;

use crate::{CallError, streaming::MessageStream};

/// Bytes of a streaming call's requests that are kept for another provider, in case the first one fails before it has answered.
/// Each message counts 64 bytes more.
pub const MAX_REPLAY_BYTES: usize = 4 * 1024 * 1024;

/// Bytes that a kept message counts beside its own, so that many empty messages do not fill the memory.
const KEPT_OVERHEAD: usize = 64;
/// Shorter messages are copied when they are kept, in bytes.
const COPIED_BELOW: usize = 2048;

/// The requests of a call. Cheap to clone; clones share them.
#[derive(Clone)]
pub(super) struct Replay(Arc<Mutex<Kept>>);

struct Kept {
    /// The messages that no reader has taken yet; `None` once the call moved on with them.
    rest: Option<stream::Fuse<MessageStream>>,
    messages: Vec<Bytes>,
    /// The bytes read so far, with each message's overhead.
    bytes: usize,
    /// Where the kept messages are charged; `None` when both ends of the call are in this process.
    memory: Option<Memory>,
    charged: Option<MemoryCharge>,
    /// Whether every message read so far is kept.
    whole: bool,
    failed: bool,
    /// The number of the present reader, and the messages that it has taken of those kept.
    reader: u64,
    given: usize,
    waiting: Option<Waker>,
}

impl Replay {
    /// Requests that follow `first`, which travels with the call's head. What is kept of them is charged to `memory`.
    pub(super) fn new(first: &Bytes, messages: MessageStream, memory: Option<Memory>) -> Self {
        Self(Arc::new(Mutex::new(Kept {
            rest: Some(messages.fuse()),
            messages: Vec::new(),
            bytes: first.len(),
            memory,
            charged: None,
            whole: true,
            failed: false,
            reader: 0,
            given: 0,
            waiting: None,
        })))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another provider can be sent every request.
    pub(super) fn may_repeat(&self) -> bool {
        self.kept().whole
    }

    /// A provider has answered: no other will be asked.
    pub(super) fn settle(&self) {
        let mut kept = self.kept();
        kept.whole = false;
        kept.forget();
    }

    /// The requests from the first one on. The reader before this one gets an error.
    pub(super) fn reader(&self) -> Reader {
        let mut kept = self.kept();
        let before = kept.next_reader();
        let turn = kept.reader;
        drop(kept);
        before.inspect(Waker::wake_by_ref);
        Reader {
            turn,
            replay: self.clone(),
        }
    }

    /// The requests from the first one on, for a call that is made elsewhere; `None` when some of them are no longer kept.
    pub(super) fn take_back(&self) -> Option<MessageStream> {
        let mut kept = self.kept();
        let before = kept.next_reader();
        let (rest, messages) = (kept.rest.take(), std::mem::take(&mut kept.messages));
        let whole = kept.whole;
        kept.charged = None;
        drop(kept);
        before.inspect(Waker::wake_by_ref);
        let rest = rest.filter(|_| whole)?;
        Some(stream::iter(messages.into_iter().map(Ok)).chain(rest).boxed())
    }

    /// Sends the requests to a provider, as fast as it takes them. An error ends the call: no provider has all of the requests.
    pub(super) async fn pump(
        self,
        mut requests: macula_transport::Requests,
        service: ServiceName,
    ) -> Result<(), CallError> {
        let mut reader = self.reader();
        while let Some(message) = reader.next().await {
            // Dropping the requests unfinished cancels the call.
            let Ok(message) = message else {
                return Err(CallError::RequestsFailed { service });
            };
            match requests.send(message).await {
                Ok(()) => {}
                Err(macula_transport::CallError::TooLarge { bytes, limit }) => {
                    self.settle();
                    return Err(CallError::RequestTooLarge { size: bytes, limit });
                }
                // The reply says why the provider takes no more.
                Err(_) => return Ok(()),
            }
            if requests.is_stopped() {
                break;
            }
        }
        requests.finish();
        Ok(())
    }
}

impl Kept {
    /// Makes room for the next reader, and gives the waker of the one before it.
    fn next_reader(&mut self) -> Option<Waker> {
        self.reader += 1;
        self.given = 0;
        self.waiting.take()
    }

    /// Takes in a message that is read for the first time.
    fn keep(&mut self, message: &Bytes) {
        let cost = message.len() + KEPT_OVERHEAD;
        self.bytes = self.bytes.saturating_add(cost);
        self.whole &= self.bytes <= MAX_REPLAY_BYTES && self.charge(cost);
        if self.whole {
            self.messages.push(match message.len() {
                // A slice would keep the packets that it came in.
                0..COPIED_BELOW => Bytes::copy_from_slice(message),
                _ => message.clone(),
            });
            self.given += 1;
        }
        self.forget();
    }

    /// Drops the messages once no reader needs them.
    fn forget(&mut self) {
        if !self.whole && self.given >= self.messages.len() {
            self.messages = Vec::new();
            self.charged = None;
        }
    }

    fn charge(&mut self, bytes: usize) -> bool {
        match (&self.memory, &mut self.charged) {
            (None, _) => true,
            (Some(_), Some(charged)) => charged.grow(bytes),
            (Some(memory), charged @ None) => {
                *charged = memory.charge(bytes);
                charged.is_some()
            }
        }
    }
}

/// One reading of the requests.
pub(super) struct Reader {
    replay: Replay,
    turn: u64,
}

impl Stream for Reader {
    type Item = Result<Bytes, ()>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut kept = self.replay.kept();
        if kept.reader != self.turn || kept.failed {
            return Poll::Ready(Some(Err(())));
        }
        if let Some(message) = kept.messages.get(kept.given).cloned() {
            kept.given += 1;
            kept.forget();
            return Poll::Ready(Some(Ok(message)));
        }
        let Some(rest) = &mut kept.rest else {
            return Poll::Ready(Some(Err(())));
        };
        let next = rest.poll_next_unpin(cx);
        match &next {
            Poll::Pending => kept.waiting = Some(cx.waker().clone()),
            Poll::Ready(Some(Ok(message))) => kept.keep(message),
            Poll::Ready(Some(Err(()))) => {
                kept.failed = true;
                kept.whole = false;
                kept.forget();
            }
            Poll::Ready(None) => {}
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn replay(messages: impl IntoIterator<Item = Bytes>, memory: Option<Memory>) -> Replay {
        let messages: Vec<_> = messages.into_iter().map(Ok).collect();
        Replay::new(&Bytes::new(), stream::iter(messages).boxed(), memory)
    }

    fn next(reader: &mut Reader) -> Option<Result<Bytes, ()>> {
        reader.next().now_or_never().unwrap()
    }

    fn all(requests: impl Stream<Item = Result<Bytes, ()>>) -> Vec<Result<Bytes, ()>> {
        requests.collect::<Vec<_>>().now_or_never().unwrap()
    }

    fn kept(replay: &Replay) -> usize {
        replay.kept().messages.len()
    }

    #[test]
    fn x6_requests_are_kept_within_the_memory_that_they_are_charged_to() {
        let memory = Memory::of(64 << 20);
        let megabyte = Bytes::from(vec![0; 1 << 20]);
        let fill = || {
            let replay = replay(vec![megabyte.clone(); 3], Some(memory.clone()));
            assert_eq!(all(replay.reader()).len(), 3);
            replay
        };
        let replays: Vec<_> = (0..100).map(|_| fill()).collect();
        let whole = replays.iter().filter(|replay| replay.may_repeat()).count();
        assert!((20..22).contains(&whole), "{whole}");
        replays[0].settle();
        assert!(fill().may_repeat(), "an answered call makes room");
        drop(replays);
        assert!(memory.charge(63 << 20).is_some(), "all of it is given back");
    }

    #[test]
    fn small_and_empty_requests_are_kept_in_no_more_memory_than_large_ones() {
        for message in ["", "a"] {
            let replay = Replay::new(&Bytes::new(), stream::repeat(Ok(message.into())).boxed(), None);
            let mut reader = replay.reader();
            let mut most = 0;
            while replay.may_repeat() {
                next(&mut reader);
                most = most.max(kept(&replay));
            }
            assert!(most <= MAX_REPLAY_BYTES / KEPT_OVERHEAD, "{most}");
            next(&mut reader);
            assert_eq!(kept(&replay), 0);
        }
    }

    #[test]
    fn nothing_is_kept_once_a_provider_has_answered_and_got_the_kept_requests() {
        let replay = replay(["a", "b", "c"].map(Bytes::from), None);
        let mut first = replay.reader();
        assert_eq!(
            (next(&mut first), next(&mut first)),
            (Some(Ok("a".into())), Some(Ok("b".into())))
        );
        let mut second = replay.reader();
        assert_eq!(next(&mut second), Some(Ok("a".into())));
        replay.settle();
        assert_eq!((kept(&replay), replay.may_repeat()), (2, false));
        assert_eq!(all(second), [Ok("b".into()), Ok("c".into())]);
        assert_eq!(kept(&replay), 0);
        assert_eq!(next(&mut first), Some(Err(())), "an earlier reader is over");
    }

    #[test]
    fn requests_taken_back_are_those_read_and_the_rest() {
        let replay = replay(["one", "two"].map(Bytes::from), None);
        let mut reader = replay.reader();
        assert_eq!(next(&mut reader), Some(Ok("one".into())));
        let back = all(replay.take_back().unwrap());
        assert_eq!(back, [Ok("one".into()), Ok("two".into())]);
        assert_eq!(next(&mut reader), Some(Err(())));
    }

    #[test]
    fn requests_that_are_too_many_to_keep_or_were_answered_are_not_taken_back() {
        let half = Bytes::from(vec![0; MAX_REPLAY_BYTES / 2 - KEPT_OVERHEAD]);
        let some = [half.clone(), half, Bytes::from("x")];
        for (read, back) in [(2, true), (3, false)] {
            let replay = replay(some.clone(), None);
            assert_eq!(all(replay.reader().take(read)).len(), read);
            assert_eq!(replay.take_back().is_some(), back);
        }
        let replay = replay(some, None);
        replay.settle();
        assert!(replay.take_back().is_none());
    }

    #[test]
    fn a_stream_that_failed_fails_for_every_reader_and_is_not_repeated() {
        let replay = Replay::new(&Bytes::new(), stream::iter([Ok("a".into()), Err(())]).boxed(), None);
        assert_eq!(all(replay.reader().take(2)), [Ok("a".into()), Err(())]);
        assert!(!replay.may_repeat());
        assert_eq!(next(&mut replay.reader()), Some(Err(())));
    }

    #[tokio::test]
    async fn a_reader_that_waits_hears_that_the_requests_were_taken_back() {
        let replay = Replay::new(&Bytes::new(), stream::pending().boxed(), None);
        let mut reader = replay.reader();
        let waiting = tokio::spawn(async move { reader.next().await });
        while replay.kept().waiting.is_none() {
            tokio::task::yield_now().await;
        }
        assert!(replay.take_back().is_some());
        assert_eq!(waiting.await.unwrap(), Some(Err(())));
    }
}
