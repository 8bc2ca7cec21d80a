//! Services whose requests and replies are streams of messages, at the provider.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{Bytes, BytesMut};
use futures::{
    FutureExt as _, Stream, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use macula_transport::{IncomingCall, IncomingMessages, Limits, Metadata, OutgoingMessages, Reply};

use crate::{Encode, Handler, Request, Response, Status, StatusCode};

/// Bytes of a reply to one request that are awaited before any of it is handed out, when its provider says that it has all of the
/// reply: a call whose provider dies on the way is then made elsewhere. The value is gRPC's usual limit of a message, 4 MiB, and
/// 64 KiB for its headers. Each message counts 64 bytes more.
pub const MAX_WHOLE_BYTES: usize = 4 * 1024 * 1024 + 64 * 1024;

/// Messages of a caller in this process; an error ends the call.
pub(crate) type MessageStream = BoxStream<'static, Result<Bytes, ()>>;

/// The requests of a call, as its caller gives them.
pub(crate) enum Asking {
    Only(Bytes),
    Stream(MessageStream),
}

impl Asking {
    /// The first request, once it is there; `None` when there is none.
    #[cfg(feature = "tonic")]
    pub(crate) async fn first(&mut self) -> Option<Bytes> {
        match self {
            Self::Only(message) => Some(message.clone()),
            Self::Stream(messages) => {
                let first = messages.next().await?;
                let seen = first.as_ref().ok().cloned();
                let rest = std::mem::replace(messages, stream::empty().boxed());
                *messages = stream::iter([first]).chain(rest).boxed();
                seen
            }
        }
    }

    pub(crate) fn into_stream(self) -> MessageStream {
        match self {
            Self::Only(message) => stream::iter([Ok(message)]).boxed(),
            Self::Stream(messages) => messages,
        }
    }
}

/// The requests of a streaming call, as its handler reads them. The caller sends no faster than they are read.
pub struct Requests(Inbox);

enum Inbox {
    Remote(IncomingMessages),
    /// The lock is never contended: it only makes the stream `Sync`, so that a handler may share it.
    Here(Mutex<MessageStream>),
}

impl Requests {
    pub(crate) fn remote(messages: IncomingMessages) -> Self {
        Self(Inbox::Remote(messages))
    }

    /// The requests of a call in this process.
    pub(crate) fn here(messages: MessageStream) -> Self {
        Self(Inbox::Here(Mutex::new(messages)))
    }

    /// The only request, when it came with the head and its end.
    #[cfg(feature = "tonic")]
    pub(crate) fn take_only(&mut self) -> Option<Bytes> {
        match &mut self.0 {
            Inbox::Remote(messages) => messages.take_only(),
            Inbox::Here(_) => None,
        }
    }

    /// The next message; `None` after the last one.
    ///
    /// # Errors
    /// [`StatusCode::Cancelled`] when the caller no longer waits.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        match &mut self.0 {
            Inbox::Remote(messages) => messages.next().await.map_err(|gone| gone_away(&gone)),
            Inbox::Here(messages) => {
                let messages = messages.get_mut().unwrap_or_else(PoisonError::into_inner);
                let next = messages.next().await.transpose();
                next.map_err(|()| Status::new(StatusCode::Cancelled, "the caller's requests failed"))
            }
        }
    }

    /// The requests as the one request of a handler that does not stream.
    async fn whole(mut self) -> Result<Bytes, Status> {
        let limit = Limits::default().max_message_bytes;
        let first = self.next().await?.unwrap_or_default();
        let mut pieces = BytesMut::new();
        while let Some(next) = self.next().await? {
            if pieces.is_empty() {
                pieces.extend_from_slice(&first);
            }
            if pieces.len() + next.len() > limit {
                let words = format!("the request has more than {limit} bytes, the limit of a message");
                return Err(Status::new(StatusCode::ResourceExhausted, words));
            }
            pieces.extend_from_slice(&next);
        }
        Ok(if pieces.is_empty() { first } else { pieces.freeze() })
    }
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").finish_non_exhaustive()
    }
}

pub(crate) fn gone_away(gone: &macula_transport::Gone) -> Status {
    Status::new(StatusCode::Cancelled, gone.to_string())
}

/// The replies of a streaming call as its handler gives them; an error is the outcome.
pub type ReplyStream = BoxStream<'static, Result<Bytes, Status>>;

/// A streaming service's code: an async function from the requests to a stream of replies, or to a [`Status`].
///
/// Every `Fn(Request<Requests>) -> impl Future<Output = Result<impl Stream<Item = Result<impl Encode, Status>>, Status>>` is a handler.
/// One reply is a stream of one message; an error in the stream is the outcome. The future and the stream are dropped when the caller
/// cancels or the deadline passes.
///
/// ```
/// use futures::stream;
/// use macula_rpc::{Request, Requests, Server, Status};
///
/// // Answers with the number of bytes that came.
/// let count = async |mut request: Request<Requests>| {
///     let mut bytes = 0;
///     while let Some(message) = request.payload_mut().next().await? {
///         bytes += message.len();
///     }
///     Ok::<_, Status>(stream::iter([Ok::<_, Status>(bytes.to_string())]))
/// };
/// Server::new().serve_streaming("text.count".parse()?, count)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait StreamHandler: Send + Sync + 'static {
    /// Answers one call: with the replies as they come, or with the outcome of a call without replies. The response's metadata comes
    /// with the end, after the last reply.
    fn handle(&self, request: Request<Requests>) -> BoxFuture<'static, Result<Response<ReplyStream>, Status>>;
}

impl<F, Fut, S, R> StreamHandler for F
where
    F: Fn(Request<Requests>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<S, Status>> + Send + 'static,
    S: Stream<Item = Result<R, Status>> + Send + 'static,
    R: Encode + Send,
{
    fn handle(&self, request: Request<Requests>) -> BoxFuture<'static, Result<Response<ReplyStream>, Status>> {
        let answer = self(request);
        Box::pin(async move {
            let encode = |message: Result<R, Status>| {
                let encoded = message?.encode();
                encoded.map_err(|error| Status::internal(format!("a reply could not be written: {error}")))
            };
            Ok(Response::new(answer.await?.map(encode).boxed()))
        })
    }
}

/// A service's code, by how it exchanges messages.
#[derive(Clone)]
pub(crate) enum Kind {
    Unary(Arc<dyn Handler>),
    Streaming(Arc<dyn StreamHandler>),
    #[cfg(feature = "tonic")]
    Tonic(Arc<crate::tonic::Mounted>),
}

impl Kind {
    /// Answers a call with a stream of replies.
    pub(crate) async fn open(&self, request: Request<Requests>) -> Result<Answers, Status> {
        match self {
            Self::Unary(handler) => {
                let (request, requests) = request.replace_payload(Bytes::new());
                let payload = requests.whole().await?;
                let answer = handler.handle(request.with_payload(payload)).await?;
                let (reply, metadata) = answer.into_parts();
                // Over the network, too, an empty reply is no message.
                Ok(Answers::One(Some(reply).filter(|reply| !reply.is_empty()), metadata))
            }
            Self::Streaming(handler) => {
                let (replies, metadata) = handler.handle(request).await?.into_parts();
                Ok(Answers::Stream(replies, metadata))
            }
            #[cfg(feature = "tonic")]
            Self::Tonic(mounted) => mounted.open(request).await,
        }
    }

    /// Answers a call of one request and one reply.
    pub(crate) fn call(&self, mut request: Request) -> BoxFuture<'static, Result<Response, Status>> {
        if let Self::Unary(handler) = self {
            return handler.handle(request);
        }
        let kind = self.clone();
        let only = std::mem::take(request.payload_mut());
        let requests = Requests::here(stream::iter([Ok(only)]).boxed());
        Box::pin(async move {
            let mut answers = kind.open(request.with_payload(requests)).await?;
            let reply = answers.next().await?.unwrap_or_default();
            match answers.next().await? {
                None => Ok(Response::new(reply).with_metadata(answers.metadata())),
                Some(_) => Err(Status::new(
                    StatusCode::FailedPrecondition,
                    "the service streams its reply: open the call as a stream",
                )),
            }
        })
    }

    /// Answers a peer's call with a stream of replies.
    pub(crate) async fn serve(
        self,
        call: IncomingCall,
        requests: IncomingMessages,
        mut replies: OutgoingMessages,
    ) -> Reply {
        let request = Request::remote(call).with_payload(Requests::remote(requests));
        let answered = async {
            let mut answers = self.open(request).await?;
            let mut first = answers.are_whole();
            loop {
                // Replies that are ready together, often all of them, are one write.
                let next = match answers.next().now_or_never() {
                    Some(next) => next?,
                    None => {
                        replies.flush().await.map_err(|gone| gone_away(&gone))?;
                        answers.next().await?
                    }
                };
                let Some(message) = next else {
                    return Ok(answers.metadata());
                };
                gather(&mut replies, message, std::mem::take(&mut first)).await?;
            }
        };
        match answered.await {
            Ok(metadata) => Reply::ok(Bytes::new()).with_metadata(metadata),
            Err(status) => Status::into_reply(status),
        }
    }
}

/// The replies of a call as its handler gives them.
pub(crate) enum Answers {
    Stream(ReplyStream, Metadata),
    One(Option<Bytes>, Metadata),
    #[cfg(feature = "tonic")]
    Grpc(Box<crate::tonic::GrpcReply>),
}

impl Answers {
    /// The next reply; `None` after the last one. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        match self {
            Self::Stream(messages, _) => messages.next().await.transpose(),
            Self::One(reply, _) => Ok(reply.take()),
            #[cfg(feature = "tonic")]
            Self::Grpc(reply) => reply.next().await,
        }
    }

    /// Whether no reply follows, as far as is known.
    pub(crate) fn are_over(&self) -> bool {
        matches!(self, Self::One(None, _))
    }

    /// Whether all of the replies are ready, and small together.
    fn are_whole(&self) -> bool {
        match self {
            Self::Stream(..) | Self::One(..) => false,
            #[cfg(feature = "tonic")]
            Self::Grpc(reply) => reply.is_whole(),
        }
    }

    /// The metadata of the outcome, after the last reply.
    pub(crate) fn metadata(&self) -> Metadata {
        match self {
            Self::Stream(_, metadata) | Self::One(_, metadata) => metadata.clone(),
            #[cfg(feature = "tonic")]
            Self::Grpc(reply) => reply.trailers().cloned().unwrap_or_default(),
        }
    }
}

/// Whether a reply may be sent to this peer; an error is the outcome.
fn check(replies: &OutgoingMessages, payload: &Bytes) -> Result<(), Status> {
    let limit = replies.max_message_bytes();
    match payload.len() <= limit {
        true => Ok(()),
        false => Err(too_large(payload.len(), limit)),
    }
}

/// The status of a reply over its caller's limit. It counts as the caller's fault, because another provider's reply is as large.
pub(crate) fn too_large(bytes: usize, limit: usize) -> Status {
    let words = format!("the reply has {bytes} bytes; its caller takes messages of at most {limit}");
    Status::new(StatusCode::OutOfRange, words)
}

/// Sends a reply to a peer; an error is the outcome.
pub(crate) async fn send(replies: &mut OutgoingMessages, payload: Bytes) -> Result<(), Status> {
    check(replies, &payload)?;
    replies.send(payload).await.map_err(|gone| gone_away(&gone))
}

/// Sends a reply to a peer in one write with those after it. `whole` announces that all of them are ready; an error is the outcome.
pub(crate) async fn gather(replies: &mut OutgoingMessages, payload: Bytes, whole: bool) -> Result<(), Status> {
    check(replies, &payload)?;
    let gathered = match whole {
        true => replies.gather_whole(payload).await,
        false => replies.gather(payload).await,
    };
    gathered.map_err(|gone| gone_away(&gone))
}
