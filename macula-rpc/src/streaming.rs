//! Services whose requests and replies are streams of messages, from the provider's side.

use std::{future::Future, pin::pin};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, future::BoxFuture};
use macula_transport::{IncomingCall, IncomingMessages, OutgoingMessages, Reply};

use crate::{Encode, Request, Status, StatusCode};

/// The requests of a streaming call, as its handler reads them. The caller sends no faster than they are read.
#[derive(Debug)]
pub struct Requests(IncomingMessages);

impl Requests {
    pub(crate) fn new(messages: IncomingMessages) -> Self {
        Self(messages)
    }

    /// The next message; `None` after the last one.
    ///
    /// # Errors
    /// [`StatusCode::Cancelled`] when the caller does not wait any more.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        self.0.next().await.map_err(|gone| gone_away(&gone))
    }
}

pub(crate) fn gone_away(gone: &macula_transport::Gone) -> Status {
    Status::new(StatusCode::Cancelled, gone.to_string())
}

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
    /// Answers one call: sends the replies, and gives the outcome.
    fn handle(&self, request: Request<Requests>, replies: OutgoingMessages) -> BoxFuture<'static, Result<(), Status>>;
}

impl<F, Fut, S, R> StreamHandler for F
where
    F: Fn(Request<Requests>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<S, Status>> + Send + 'static,
    S: Stream<Item = Result<R, Status>> + Send + 'static,
    R: Encode + Send,
{
    fn handle(
        &self,
        request: Request<Requests>,
        mut replies: OutgoingMessages,
    ) -> BoxFuture<'static, Result<(), Status>> {
        let answer = self(request);
        Box::pin(async move {
            let mut messages = pin!(answer.await?);
            while let Some(message) = messages.next().await {
                let payload = message?.encode();
                let payload =
                    payload.map_err(|error| Status::internal(format!("a reply could not be written: {error}")))?;
                if let Some(limit) = replies.max_message_bytes().filter(|&limit| payload.len() > limit) {
                    let words = format!("a reply has {} bytes; a message has at most {limit}", payload.len());
                    return Err(Status::new(StatusCode::ResourceExhausted, words));
                }
                replies.send(payload).await.map_err(|gone| gone_away(&gone))?;
            }
            Ok(())
        })
    }
}

/// Whatever answers a stream in the transport's terms.
pub(crate) trait StreamService: Send + Sync {
    fn open(
        &self,
        call: IncomingCall,
        requests: IncomingMessages,
        replies: OutgoingMessages,
    ) -> BoxFuture<'static, Reply>;
}

/// A [`StreamHandler`] in the transport's terms.
pub(crate) struct Plain<H>(pub(crate) H);

impl<H: StreamHandler> StreamService for Plain<H> {
    fn open(
        &self,
        call: IncomingCall,
        requests: IncomingMessages,
        replies: OutgoingMessages,
    ) -> BoxFuture<'static, Reply> {
        let request = Request::remote(call).with_payload(Requests::new(requests));
        let outcome = self.0.handle(request, replies);
        Box::pin(async move {
            match outcome.await {
                Ok(()) => Reply::ok(Bytes::new()),
                Err(status) => status.into_reply(),
            }
        })
    }
}
