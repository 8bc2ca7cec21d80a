//! The requests of a streaming call, kept for another provider as long as the first has not answered.
//!
//! **Invariants.** A provider is told that the requests are at their end only when they are: what failed on the way, or cannot be
//! sent from its beginning, is left unfinished, which cancels. At most [`MAX_REPLAY_BYTES`](super::MAX_REPLAY_BYTES) are kept, each
//! message counted with what it costs to keep; and nothing once the provider has answered. All calls together that are passed on for
//! peers keep at most [`MAX_KEPT_FOR_PEERS`]: those that find no room are not tried elsewhere by the router.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use bytes::Bytes;
use futures::StreamExt as _;
use macula_wire::ServiceName;

use super::MAX_REPLAY_BYTES;
use crate::{CallError, streaming::MessageStream};

/// What a kept message counts beside its bytes: a stream of small or empty ones takes no more memory than one of large ones.
pub(super) const KEPT_OVERHEAD: usize = 64;

/// Bytes of requests that a router keeps for all its peers: streams that nobody answers cost them nothing, and must not fill it.
const MAX_KEPT_FOR_PEERS: usize = 64 * 1024 * 1024;

/// How much a router keeps for its peers at the moment.
#[derive(Debug, Default)]
pub(super) struct KeptForPeers(AtomicUsize);

impl KeptForPeers {
    /// Takes room for so many bytes, if there is.
    fn take(&self, bytes: usize) -> bool {
        let before = self.0.fetch_add(bytes, Relaxed);
        let room = before.saturating_add(bytes) <= MAX_KEPT_FOR_PEERS;
        if !room {
            self.give_back(bytes);
        }
        room
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Relaxed);
    }
}

/// The caller's requests cannot be sent. The call is over, and is not made elsewhere: nobody has all of it.
pub(super) enum Failed {
    /// Their stream failed: nobody has the rest.
    Stream,
    /// A message is larger than its provider takes.
    TooLarge { bytes: usize, limit: usize },
}

impl Failed {
    /// What its caller is told.
    pub(super) fn error(&self, service: &ServiceName) -> CallError {
        match *self {
            Self::Stream => CallError::RequestsFailed {
                service: service.clone(),
            },
            Self::TooLarge { bytes, limit } => CallError::RequestTooLarge { size: bytes, limit },
        }
    }
}

/// The requests of a call, for one attempt after another.
pub(super) struct Source {
    /// Held by whoever sends: an earlier attempt's pump is gone with its attempt.
    rest: tokio::sync::Mutex<Rest>,
    kept: Mutex<Kept>,
}

/// Requests that nobody has been sent yet.
struct Rest {
    messages: MessageStream,
    /// Whether they gave their last: not every stream can be asked again.
    ended: bool,
}

struct Kept {
    messages: Vec<Bytes>,
    bytes: usize,
    /// What else they count against.
    room: Option<Arc<KeptForPeers>>,
    /// Bytes of that room.
    taken: usize,
    /// How many of them the present attempt has been given.
    given: usize,
    /// Whether a further attempt can be given every message.
    whole: bool,
}

impl Source {
    /// Requests that follow `first`, which travels with the head; for a peer's call they count against a router's room.
    pub(super) fn new(first: &Bytes, messages: MessageStream, room: Option<Arc<KeptForPeers>>) -> Self {
        Self {
            rest: tokio::sync::Mutex::new(Rest { messages, ended: false }),
            kept: Mutex::new(Kept {
                messages: Vec::new(),
                bytes: first.len(),
                room,
                taken: 0,
                given: 0,
                whole: true,
            }),
        }
    }

    /// Whether another provider can be given every request.
    pub(super) fn may_repeat(&self) -> bool {
        self.kept().whole
    }

    /// The provider has answered: no other will be asked.
    pub(super) fn settle(&self) {
        let mut kept = self.kept();
        kept.whole = false;
        kept.forget();
    }

    /// Sends the requests to a provider, and no more than there is room for.
    pub(super) async fn pump(self: Arc<Self>, mut requests: macula_transport::Requests) -> Result<(), Failed> {
        let mut rest = self.rest.lock().await;
        self.kept().given = 0;
        loop {
            let again = self.kept().again();
            let message = match again {
                Some(message) => message,
                None if rest.ended => break,
                None => match rest.messages.next().await {
                    Some(Ok(message)) => {
                        self.kept().keep(&message);
                        message
                    }
                    None => {
                        rest.ended = true;
                        break;
                    }
                    Some(Err(())) => {
                        rest.ended = true;
                        self.settle();
                        // Dropping the requests unfinished cancels the call.
                        return Err(Failed::Stream);
                    }
                },
            };
            match requests.send(message).await {
                Ok(()) => {}
                Err(macula_transport::CallError::TooLarge { bytes, limit }) => {
                    self.settle();
                    return Err(Failed::TooLarge { bytes, limit });
                }
                // The replies say why nothing more can be sent.
                Err(_) => return Ok(()),
            }
            if requests.is_stopped() {
                break;
            }
        }
        requests.finish();
        Ok(())
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// The message that an attempt is to be sent next, when it is one that was sent before.
    fn again(&mut self) -> Option<Bytes> {
        let message = self.messages.get(self.given).cloned();
        match message {
            Some(_) => self.given += 1,
            None => self.forget(),
        }
        message
    }

    /// Takes in a message that is sent for the first time.
    fn keep(&mut self, message: &Bytes) {
        let cost = message.len() + KEPT_OVERHEAD;
        self.bytes += cost;
        self.whole &= self.bytes <= MAX_REPLAY_BYTES;
        if self.whole && self.room.as_ref().is_some_and(|room| !room.take(cost)) {
            self.whole = false;
        }
        if self.whole {
            self.taken += cost;
            self.messages.push(message.clone());
            self.given += 1;
        }
        self.forget();
    }

    /// Drops what no attempt needs any more.
    fn forget(&mut self) {
        if !self.whole && self.given >= self.messages.len() {
            self.messages = Vec::new();
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        if let Some(room) = &self.room {
            room.give_back(taken);
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(source: &Source) -> usize {
        source.kept().messages.len()
    }

    fn source() -> Source {
        Source::new(&Bytes::new(), futures::stream::empty().boxed(), None)
    }

    /// What streams of peers keep is bounded for all of them, and given back however they end.
    #[test]
    fn a_router_keeps_so_much_for_all_its_peers_and_no_more() {
        let room = Arc::new(KeptForPeers::default());
        let megabyte = Bytes::from(vec![0; 1 << 20]);
        let fill = || {
            let source = Source::new(&Bytes::new(), futures::stream::empty().boxed(), Some(Arc::clone(&room)));
            (0..3).for_each(|_| source.kept().keep(&megabyte));
            source
        };
        let sources: Vec<_> = (0..100).map(|_| fill()).collect();
        let whole = sources.iter().filter(|source| source.may_repeat()).count();
        assert!((20..22).contains(&whole), "{whole}");
        assert!(room.0.load(Relaxed) <= MAX_KEPT_FOR_PEERS);
        sources[0].settle();
        assert!(fill().may_repeat(), "who has been answered makes room");
        drop(sources);
        assert_eq!(room.0.load(Relaxed), 0);
    }

    #[test]
    fn small_and_empty_requests_are_kept_in_no_more_memory_than_large_ones() {
        for message in ["", "a"] {
            let source = source();
            let mut most = 0;
            while source.may_repeat() {
                source.kept().keep(&message.into());
                most = most.max(kept(&source));
            }
            assert!(most <= MAX_REPLAY_BYTES / KEPT_OVERHEAD, "{most}");
            assert_eq!(kept(&source), 0);
            source.kept().keep(&message.into());
            assert_eq!(kept(&source), 0);
        }
    }

    #[test]
    fn nothing_is_kept_once_a_provider_has_answered_and_been_sent_what_was_kept() {
        let source = source();
        for message in ["a", "b"] {
            source.kept().keep(&message.into());
        }
        // The next attempt has had one of two when it is answered.
        source.kept().given = 0;
        assert_eq!(source.kept().again().unwrap(), "a");
        source.settle();
        assert_eq!((kept(&source), source.may_repeat()), (2, false));
        assert_eq!(source.kept().again().unwrap(), "b");
        assert_eq!(source.kept().again(), None);
        assert_eq!(kept(&source), 0);
    }
}
