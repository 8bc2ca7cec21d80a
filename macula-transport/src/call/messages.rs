//! The messages of a streaming call, from its handler's side.
//!
//! **Invariant:** each side reads only as fast as it is asked to, so QUIC's flow control reaches the sender.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    frame::{self, Frame},
    reply::{Gone, ReplyWriter},
};
use crate::connection::{
    link::Link,
    stream::{Incoming, ReceiveError, Unserved},
};
use crate::heads::HeadLimits;
use crate::share::{memory::Memory, places::Runs};

/// How the messages of a call are exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CallKind {
    /// One request, one reply.
    #[default]
    Unary,
    /// Any number of requests, any number of replies.
    Streaming,
    /// As [`CallKind::Streaming`], of a call that this node passes on to another. Such calls have places of their own.
    Forwarded,
}

impl CallKind {
    pub(crate) fn runs(self) -> Runs {
        match self {
            Self::Unary | Self::Streaming => Runs::Here,
            Self::Forwarded => Runs::Elsewhere,
        }
    }
}

/// The requests of a streaming call, from the handler's side.
#[derive(Debug)]
pub struct IncomingMessages {
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// The stream of the call, its first message apart.
    Stream {
        link: Arc<Link>,
        incoming: Box<Incoming>,
        first: Option<Bytes>,
        ended: bool,
    },
    /// The call's only message.
    One(Option<Bytes>),
    /// The caller's messages broke off; nothing is kept of them.
    BrokenOff,
}

impl IncomingMessages {
    pub(crate) fn stream(link: Arc<Link>, incoming: Incoming, first: Bytes, ended: bool) -> Self {
        // An empty payload counts as a message only in a call of one request.
        let first = (ended || !first.is_empty()).then_some(first);
        Self {
            source: Source::Stream {
                link,
                incoming: Box::new(incoming),
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

    /// The only message, when the caller sent it together with the end of its requests; `None` otherwise.
    pub fn take_only(&mut self) -> Option<Bytes> {
        match &mut self.source {
            Source::One(message) => message.take(),
            Source::Stream { first, ended: true, .. } => first.take(),
            Source::Stream { .. } | Source::BrokenOff => None,
        }
    }

    /// Where requests that are kept are charged: to the caller. `None` when there is no request beyond the first.
    #[must_use]
    pub fn memory(&self) -> Option<Memory> {
        match &self.source {
            Source::One(_) | Source::BrokenOff => None,
            Source::Stream { link, .. } => Some(link.memory.clone()),
        }
    }

    /// The next message; `None` when the caller has sent its last.
    ///
    /// # Errors
    /// When the caller cancelled, or sent something that is no message.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Gone> {
        let (link, incoming, first, ended) = match &mut self.source {
            Source::One(message) => return Ok(message.take()),
            Source::BrokenOff => return Err(Gone),
            Source::Stream {
                link,
                incoming,
                first,
                ended,
            } => (link, incoming, first, ended),
        };
        if let Some(first) = first.take() {
            return Ok(Some(first));
        }
        if *ended {
            return Ok(None);
        }
        let frame = match incoming.next().await {
            Ok(Some(frame)) => frame::read(&frame, HeadLimits::LEAST).map_err(|_| ReceiveError::Broken),
            Ok(None) => {
                *ended = true;
                return Ok(None);
            }
            Err(error) => Err(error),
        };
        let limit = link.shared.config.limits.max_message_bytes;
        let unserved = match frame {
            Ok((_, Frame::Data(data))) if data.payload.len() <= limit => {
                *ended = data.end;
                return Ok(Some(data.payload));
            }
            Ok((_, Frame::Data(_) | Frame::Head(_) | Frame::Trailers(_) | Frame::Cancel)) => Unserved::Broken,
            Err(error) => error.into(),
        };
        incoming.stop(link.unserved(unserved));
        self.source = Source::BrokenOff;
        Err(Gone)
    }
}

/// The replies of a streaming call, from the handler's side; the handler returns the outcome.
#[derive(Debug)]
pub struct OutgoingMessages {
    writer: Arc<ReplyWriter>,
}

impl OutgoingMessages {
    pub(crate) fn new(writer: Arc<ReplyWriter>) -> Self {
        Self { writer }
    }

    /// The most a message may have, in bytes.
    #[must_use]
    pub fn max_message_bytes(&self) -> usize {
        self.writer.limit()
    }

    /// Sends a message, waiting until the caller has room for it.
    ///
    /// # Errors
    /// When the caller does not wait any more, or the message is larger than it may be: 4 MiB unless configured otherwise.
    pub async fn send(&mut self, message: Bytes) -> Result<(), Gone> {
        self.gather(message).await?;
        self.flush().await
    }

    /// Takes a message to be sent in one write with those after it: with the next that is sent, with [`OutgoingMessages::flush`], or
    /// with the outcome. It leaves earlier when 64 KiB wait, or 16 KiB where the reply has no stream yet. So messages that are ready
    /// at once cost one write; a handler that then waits for more flushes first.
    ///
    /// # Errors
    /// As [`OutgoingMessages::send`].
    pub async fn gather(&mut self, message: Bytes) -> Result<(), Gone> {
        self.writer.gather(message, false).await
    }

    /// As [`OutgoingMessages::gather`], for the first message of a reply whose messages and outcome are all ready. The caller learns
    /// of it and may wait for the whole reply before it takes the first message: if the provider dies halfway, the call can then be
    /// made elsewhere, like a unary one. A handler that pauses all the same makes its caller wait.
    ///
    /// # Errors
    /// As [`OutgoingMessages::send`].
    pub async fn gather_whole(&mut self, first: Bytes) -> Result<(), Gone> {
        self.writer.gather(first, true).await
    }

    /// Sends the gathered messages, waiting until the caller has room for it.
    ///
    /// # Errors
    /// When the caller does not wait any more.
    pub async fn flush(&mut self) -> Result<(), Gone> {
        self.writer.flush().await
    }
}
