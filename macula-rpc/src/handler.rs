//! What a service does with a call.

use std::{future::Future, sync::Arc};

use futures::future::BoxFuture;

use crate::{Request, Response, Status};

/// A service's code: an async function from [`Request`] to [`Response`] or [`Status`].
///
/// Every `Fn(Request) -> impl Future<Output = Result<impl Into<Response>, Status>>` is one. The future is dropped when the
/// caller cancels or the deadline passes, so work stops with it.
pub trait Handler: Send + Sync + 'static {
    /// Answers one call.
    fn handle(&self, request: Request) -> BoxFuture<'static, Result<Response, Status>>;
}

impl<F, Fut, R> Handler for F
where
    F: Fn(Request) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, Status>> + Send + 'static,
    R: Into<Response>,
{
    fn handle(&self, request: Request) -> BoxFuture<'static, Result<Response, Status>> {
        let answer = self(request);
        Box::pin(async move { answer.await.map(Into::into) })
    }
}

/// A handler behind a pointer.
pub(crate) type SharedHandler = Arc<dyn Handler>;
