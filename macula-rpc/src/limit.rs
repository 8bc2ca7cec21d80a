//! A limit on the running calls of one service.
//!
//! **Invariant.** A call over the limit has not reached the handler, so it is *refused* and safe to make elsewhere (F5). It never waits
//! here, because its caller can use that time at another provider.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::{StreamExt as _, future::BoxFuture, stream};
use macula_wire::ServiceName;

use crate::{Handler, ReplyStream, Request, Requests, Response, Status, StreamHandler};

/// A handler that runs a limited number of calls at a time, and refuses the rest.
///
/// [`Server::with_max_concurrent_calls`](crate::Server::with_max_concurrent_calls) limits the whole process.
///
/// ```
/// use macula_rpc::{Limited, Request, Server, Status};
///
/// let resize = async |image: Request| Ok::<_, Status>(image.into_payload());
/// Server::new().serve("image.resize".parse()?, Limited::new(8, resize))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Limited<H> {
    handler: H,
    max: usize,
    running: Arc<AtomicUsize>,
}

impl<H> Limited<H> {
    /// Runs at most `max` calls of `handler`, a [`Handler`] or a [`StreamHandler`], at a time.
    pub fn new(max: usize, handler: H) -> Self {
        Self {
            handler,
            max,
            running: Arc::default(),
        }
    }

    fn place(&self, service: &ServiceName) -> Result<Place, Status> {
        let place = Place::take(&self.running);
        if place.before < self.max {
            return Ok(place);
        }
        let words = format!("{service} runs {} calls already, which is its limit", self.max);
        Err(Status::refused(words))
    }

    /// How many calls are running.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Acquire)
    }
}

impl<H: Handler> Handler for Limited<H> {
    fn handle(&self, request: Request) -> BoxFuture<'static, Result<Response, Status>> {
        let place = match self.place(request.service()) {
            Ok(place) => place,
            Err(full) => return Box::pin(std::future::ready(Err(full))),
        };
        let answer = self.handler.handle(request);
        Box::pin(async move {
            let _place = place;
            answer.await
        })
    }
}

/// A stream runs until its last reply.
impl<H: StreamHandler> StreamHandler for Limited<H> {
    fn handle(&self, request: Request<Requests>) -> BoxFuture<'static, Result<Response<ReplyStream>, Status>> {
        let place = match self.place(request.service()) {
            Ok(place) => place,
            Err(full) => return Box::pin(std::future::ready(Err(full))),
        };
        let answer = self.handler.handle(request);
        Box::pin(async move {
            let (replies, metadata) = answer.await?.into_parts();
            // The last reply gives the place back, though the stream may live longer.
            let replies = stream::unfold(Some((replies, place)), async |running| {
                let (mut replies, place) = running?;
                let next = replies.next().await?;
                Some((next, Some((replies, place))))
            });
            Ok(Response::new(replies.fuse().boxed()).with_metadata(metadata))
        })
    }
}

impl<H> fmt::Debug for Limited<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limited")
            .field("max", &self.max)
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}

/// One running call. A call that is cancelled or panics gives its place back too.
struct Place {
    running: Arc<AtomicUsize>,
    before: usize,
}

impl Place {
    fn take(running: &Arc<AtomicUsize>) -> Self {
        Self {
            before: running.fetch_add(1, Ordering::AcqRel),
            running: Arc::clone(running),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.running.fetch_sub(1, Ordering::AcqRel);
    }
}
