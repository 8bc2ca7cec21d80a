//! The code of a service.

use std::{fmt, future::Future, marker::PhantomData, sync::Arc};

use futures::future::BoxFuture;

use crate::{Decode, IntoResponse, Request, Response, Status, StatusCode};

/// A service's code: an async function from [`Request`] to [`Response`] or [`Status`].
///
/// Every `Fn(Request) -> impl Future<Output = Result<impl IntoResponse, Status>>` is a handler. The future is dropped when the caller
/// cancels or the deadline passes.
///
/// Calls run side by side, so a closure with state clones it for each call. An `async move` closure that captures lends its state to the
/// future and is not a handler; a closure that returns an `async move` block is:
///
/// ```
/// use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
///
/// use macula_rpc::{Request, Server, Status};
///
/// let count = Arc::new(AtomicU64::new(0));
/// let handler = move |_: Request| {
///     let count = Arc::clone(&count);
///     async move { Ok::<_, Status>(count.fetch_add(1, Ordering::Relaxed).to_string()) }
/// };
/// Server::new().serve("calls.count".parse()?, handler)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Handler: Send + Sync + 'static {
    /// Answers one call.
    fn handle(&self, request: Request) -> BoxFuture<'static, Result<Response, Status>>;
}

impl<F, Fut, R> Handler for F
where
    F: Fn(Request) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, Status>> + Send + 'static,
    R: IntoResponse,
{
    fn handle(&self, request: Request) -> BoxFuture<'static, Result<Response, Status>> {
        let answer = self(request);
        Box::pin(async move { answer.await?.into_response() })
    }
}

impl<H: Handler + ?Sized> Handler for Arc<H> {
    fn handle(&self, request: Request) -> BoxFuture<'static, Result<Response, Status>> {
        (**self).handle(request)
    }
}

/// Makes a handler of an async function from a typed [`Request`] to a message.
///
/// The answer to a request that cannot be read is [`StatusCode::InvalidArgument`]; the function does not run.
///
/// ```
/// # #[cfg(feature = "json")]
/// # fn serve() -> Result<(), Box<dyn std::error::Error>> {
/// use macula_rpc::{Json, Request, Server, Status, typed};
///
/// let server = Server::new();
/// let sum = typed(async |request: Request<Json<Vec<i64>>>| {
///     let Json(numbers) = request.into_payload();
///     Ok::<_, Status>(Json(numbers.iter().sum::<i64>()))
/// });
/// server.serve("math.sum".parse()?, sum)?;
/// # Ok(())
/// # }
/// # #[cfg(feature = "json")]
/// # serve().unwrap();
/// ```
pub fn typed<F, Fut, Req, R>(function: F) -> Typed<F, Req>
where
    F: Fn(Request<Req>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, Status>> + Send + 'static,
    Req: Decode + Send + 'static,
    R: IntoResponse,
{
    Typed {
        function,
        request: PhantomData,
    }
}

/// A typed handler, made by [`typed`].
pub struct Typed<F, Req> {
    function: F,
    request: PhantomData<fn(Req)>,
}

impl<F, Req> fmt::Debug for Typed<F, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Typed").finish_non_exhaustive()
    }
}

impl<F, Fut, Req, R> Handler for Typed<F, Req>
where
    F: Fn(Request<Req>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, Status>> + Send + 'static,
    Req: Decode + Send + 'static,
    R: IntoResponse,
{
    fn handle(&self, request: Request) -> BoxFuture<'static, Result<Response, Status>> {
        match request.decode() {
            Ok(request) => {
                let answer = (self.function)(request);
                Box::pin(async move { answer.await?.into_response() })
            }
            Err(error) => {
                let words = format!("the request cannot be read: {error}");
                Box::pin(std::future::ready(Err(Status::new(StatusCode::InvalidArgument, words))))
            }
        }
    }
}
