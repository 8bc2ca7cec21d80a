//! The requests of a streaming call while a handler of this process has them.
//!
//! **Invariant:** as long as the handler has not answered, what it has read is kept, so that a refusal gives the call back whole
//! and it can be made elsewhere (F5). More than [`MAX_REPLAY_BYTES`] is not kept: such a call is the handler's.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};

use super::{MAX_REPLAY_BYTES, source::KEPT_OVERHEAD};
use crate::streaming::MessageStream;

/// Requests that can be taken back.
pub(super) struct Lent(Arc<Mutex<State>>);

struct State {
    /// Those not read yet; none once they were taken back.
    rest: Option<MessageStream>,
    /// Those read so far, unless nobody will need them again.
    kept: Option<Vec<Bytes>>,
    bytes: usize,
    /// Who waits for the next one.
    reader: Option<Waker>,
}

impl Lent {
    pub(super) fn new(requests: MessageStream) -> Self {
        Self(Arc::new(Mutex::new(State {
            rest: Some(requests),
            kept: Some(Vec::new()),
            bytes: 0,
            reader: None,
        })))
    }

    /// The requests as the handler reads them. They fail once they were taken back.
    pub(super) fn reader(&self) -> MessageStream {
        let state = Arc::clone(&self.0);
        stream::poll_fn(move |cx| lock(&state).poll_next(cx)).boxed()
    }

    /// The handler has answered: the call is its own, and nothing is kept any more.
    pub(super) fn keep_no_more(&self) {
        lock(&self.0).kept = None;
    }

    /// The requests from the first on; `None` when some of those read are lost.
    pub(super) fn take_back(self) -> Option<MessageStream> {
        let mut state = lock(&self.0);
        // A handler may have left its requests with somebody who still waits for them.
        let (rest, reader) = (state.rest.take(), state.reader.take());
        let kept = state.kept.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        Some(stream::iter(kept?.into_iter().map(Ok)).chain(rest?).boxed())
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ()>>> {
        let Some(rest) = &mut self.rest else {
            return Poll::Ready(Some(Err(())));
        };
        let next = rest.poll_next_unpin(cx);
        match &next {
            Poll::Pending => self.reader = Some(cx.waker().clone()),
            Poll::Ready(Some(Ok(message))) => {
                self.bytes = self.bytes.saturating_add(message.len() + KEPT_OVERHEAD);
                if self.bytes > MAX_REPLAY_BYTES {
                    self.kept = None;
                } else if let Some(kept) = &mut self.kept {
                    kept.push(message.clone());
                }
            }
            // What has failed once cannot be sent elsewhere.
            Poll::Ready(Some(Err(()))) => self.kept = None,
            Poll::Ready(None) => {}
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn lent(messages: impl IntoIterator<Item = Bytes>) -> Lent {
        let messages: Vec<_> = messages.into_iter().map(Ok).collect();
        Lent::new(stream::iter(messages).boxed())
    }

    fn all(requests: MessageStream) -> Vec<Result<Bytes, ()>> {
        requests.collect::<Vec<_>>().now_or_never().unwrap()
    }

    #[test]
    fn what_was_read_is_given_back_with_the_rest() {
        let lent = lent([Bytes::from("one"), Bytes::from("two")]);
        let mut reader = lent.reader();
        assert_eq!(reader.next().now_or_never().unwrap(), Some(Ok("one".into())));
        let back = all(lent.take_back().unwrap());
        assert_eq!(back, [Ok("one".into()), Ok("two".into())]);
        assert_eq!(
            reader.next().now_or_never().unwrap(),
            Some(Err(())),
            "it is not its any more"
        );
    }

    #[test]
    fn what_is_too_much_to_keep_or_was_answered_is_not_given_back() {
        let half = Bytes::from(vec![0; MAX_REPLAY_BYTES / 2 - KEPT_OVERHEAD]);
        let some = [half.clone(), half, Bytes::from("x")];
        for (read, back) in [(2, true), (3, false)] {
            let lent = lent(some.clone());
            let taken = lent.reader().take(read).count().now_or_never();
            assert_eq!((taken, lent.take_back().is_some()), (Some(read), back));
        }
        let lent = lent(some);
        lent.keep_no_more();
        assert!(lent.take_back().is_none());
    }

    #[test]
    fn empty_requests_are_not_kept_without_end() {
        let lent = lent(std::iter::repeat_n(Bytes::new(), MAX_REPLAY_BYTES / KEPT_OVERHEAD + 1));
        let mut reader = lent.reader();
        while reader.next().now_or_never().unwrap().is_some() {}
        assert!(lock(&lent.0).kept.is_none());
    }

    #[tokio::test]
    async fn whoever_still_waits_for_a_request_hears_that_they_are_gone() {
        let lent = Lent::new(stream::pending().boxed());
        let mut reader = lent.reader();
        let waiting = tokio::spawn(async move { reader.next().await });
        while lock(&lent.0).reader.is_none() {
            tokio::task::yield_now().await;
        }
        assert!(lent.take_back().is_some());
        assert_eq!(waiting.await.unwrap(), Some(Err(())));
    }
}
