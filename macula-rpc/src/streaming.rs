//! Services whose requests and replies are streams of messages, from the provider's side.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures::{
    FutureExt as _, Stream, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use macula_transport::{IncomingCall, IncomingMessages, OutgoingMessages, Reply};

use crate::{Encode, Request, Response, Status, StatusCode};

/// Messages of a caller in this process; an error ends the call.
pub(crate) type MessageStream = BoxStream<'static, Result<Bytes, ()>>;

/// The requests of a call, as its caller gives them.
pub(crate) enum Asking {
    /// This one.
    Only(Bytes),
    Stream(MessageStream),
}

impl Asking {
    pub(crate) fn into_stream(self) -> MessageStream {
        match self {
            Self::Only(message) => stream::iter([Ok(message)]).boxed(),
            Self::Stream(messages) => messages,
        }
    }
}

/// The requests of a streaming call, as its handler reads them. The caller sends no faster than they are read.
pub struct Requests(Source);

enum Source {
    Remote(IncomingMessages),
    /// Behind a lock that is never taken: what is read has one reader, and whoever has it may share it.
    Here(Mutex<MessageStream>),
}

impl Requests {
    pub(crate) fn remote(messages: IncomingMessages) -> Self {
        Self(Source::Remote(messages))
    }

    /// Those of a call made in this process.
    pub(crate) fn here(messages: MessageStream) -> Self {
        Self(Source::Here(Mutex::new(messages)))
    }

    /// The next message; `None` after the last one.
    ///
    /// # Errors
    /// [`StatusCode::Cancelled`] when the caller does not wait any more.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        match &mut self.0 {
            Source::Remote(messages) => messages.next().await.map_err(|gone| gone_away(&gone)),
            Source::Here(messages) => {
                let messages = messages.get_mut().unwrap_or_else(PoisonError::into_inner);
                let next = messages.next().await.transpose();
                next.map_err(|()| Status::new(StatusCode::Cancelled, "the caller's requests have failed"))
            }
        }
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

/// The replies of a streaming call, as its handler gives them; an error is the outcome.
pub(crate) type Answers = BoxStream<'static, Result<Bytes, Status>>;

/// A streaming service's code: an async function from the requests to a stream of replies, or to a [`Status`].
///
/// Every `Fn(Request<Requests>) -> impl Future<Output = Result<impl Stream<Item = Result<impl Encode, Status>>, Status>>` is
/// one. One reply is a stream of one; an error in the stream is the outcome. Both the future and the stream are dropped when the
/// caller cancels or the deadline passes.
///
/// ```
/// use futures::stream;
/// use macula_rpc::{Request, Requests, Server, Status};
///
/// // As many bytes as came, told at the end.
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
    /// Answers one call: with the replies as they come, or with the outcome of a call that has none.
    fn handle(
        &self,
        request: Request<Requests>,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<Bytes, Status>>, Status>>;
}

impl<F, Fut, S, R> StreamHandler for F
where
    F: Fn(Request<Requests>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<S, Status>> + Send + 'static,
    S: Stream<Item = Result<R, Status>> + Send + 'static,
    R: Encode + Send,
{
    fn handle(&self, request: Request<Requests>) -> BoxFuture<'static, Result<Answers, Status>> {
        let answer = self(request);
        Box::pin(async move {
            let encode = |message: Result<R, Status>| {
                let encoded = message?.encode();
                encoded.map_err(|error| Status::internal(format!("a reply could not be written: {error}")))
            };
            Ok(answer.await?.map(encode).boxed())
        })
    }
}

/// Answers a peer's call.
pub(crate) async fn serve(
    handler: Arc<dyn StreamHandler>,
    call: IncomingCall,
    requests: IncomingMessages,
    mut replies: OutgoingMessages,
) -> Reply {
    let request = Request::remote(call).with_payload(Requests::remote(requests));
    let answered = async {
        let mut messages = handler.handle(request).await?;
        loop {
            // What is ready at once, often all of the reply, is one write.
            let message = match messages.next().now_or_never() {
                Some(message) => message,
                None => {
                    replies.flush().await.map_err(|gone| gone_away(&gone))?;
                    messages.next().await
                }
            };
            let Some(message) = message else {
                return Ok::<(), Status>(());
            };
            let payload = message?;
            check(&replies, &payload)?;
            replies.gather(payload).await.map_err(|gone| gone_away(&gone))?;
        }
    };
    match answered.await {
        Ok(()) => Reply::ok(Bytes::new()),
        Err(status) => status.into_reply(),
    }
}

/// Whether a reply may be sent to this peer; an error is the outcome.
fn check(replies: &OutgoingMessages, payload: &Bytes) -> Result<(), Status> {
    let limit = replies.max_message_bytes();
    if payload.len() <= limit {
        return Ok(());
    }
    let words = format!("a reply has {} bytes; a message has at most {limit}", payload.len());
    Err(Status::new(StatusCode::ResourceExhausted, words))
}

/// Sends a reply to a peer; an error is the outcome.
pub(crate) async fn send(replies: &mut OutgoingMessages, payload: Bytes) -> Result<(), Status> {
    check(replies, &payload)?;
    replies.send(payload).await.map_err(|gone| gone_away(&gone))
}

/// Sends a reply to a peer with those after it, of which all are there, and says so with the first; an error is the outcome.
pub(crate) async fn gather(replies: &mut OutgoingMessages, payload: Bytes, first: bool) -> Result<(), Status> {
    check(replies, &payload)?;
    let gathered = match first {
        true => replies.gather_whole(payload).await,
        false => replies.gather(payload).await,
    };
    gathered.map_err(|gone| gone_away(&gone))
}

/// Answers a call of this process that has one request and takes one reply.
pub(crate) fn serve_one(
    handler: &Arc<dyn StreamHandler>,
    mut request: Request,
) -> BoxFuture<'static, Result<Response, Status>> {
    let only = std::mem::take(request.payload_mut());
    let requests = Requests::here(stream::iter([Ok(only)]).boxed());
    let answer = handler.handle(request.with_payload(requests));
    Box::pin(async move {
        let mut messages = answer.await?;
        let reply = messages.next().await.transpose()?.unwrap_or_default();
        match messages.next().await.transpose()? {
            None => Ok(Response::new(reply)),
            Some(_) => Err(Status::new(
                StatusCode::FailedPrecondition,
                "the service streams its reply: open the call as a stream",
            )),
        }
    })
}
