//! gRPC calls of services that this process serves itself: no network, and otherwise the same.
//!
//! **Invariant:** such a call counts as running until its last message has been read, so a drain waits for it; it ends at its
//! deadline, which tonic leaves to its HTTP/2 server; and a panic of the handler is its failure and not the caller's.

use std::panic::AssertUnwindSafe;

use ::tonic::{
    Code, Status,
    body::Body,
    codegen::http::{Request, Response},
};
use bytes::Bytes;
use futures::{FutureExt as _, stream};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use macula_wire::ServiceName;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::{
    Client,
    client::{Options, Watched},
    server::Running,
};

/// Answers `request` here; gives it back when nobody serves it here, or takes no further calls.
pub(super) async fn call(
    client: &Client,
    service: &ServiceName,
    options: &Options,
    request: Request<Body>,
) -> Result<Result<Response<Body>, Status>, Request<Body>> {
    let mounted = match client.local() {
        Some(server) if options.provider.is_none() => server.mounted(service),
        _ => None,
    };
    let Some((mounted, running)) = mounted else {
        return Err(request);
    };
    let watched = Watched::start(client, service, options);
    watched.found_here();
    // What cannot be reached is no deadline.
    let deadline = options.timeout.and_then(|allowed| watched.start.checked_add(allowed));
    let mut local = Local {
        client: client.clone(),
        service: service.clone(),
        watched: Some(watched),
        deadline: deadline.map(Instant::from_std),
        _running: running,
    };
    let answer = local.step(async { mounted.call(request).await }).await;
    Ok(match answer.and_then(|answer| answer) {
        Ok(response) if response.headers().contains_key("grpc-status") => {
            local.end(Status::from_header_map(response.headers()).as_ref());
            Ok(response)
        }
        Ok(response) => Ok(response.map(|body| local.watch(body))),
        Err(status) => {
            local.end(Some(&status));
            Err(status)
        }
    })
}

/// A call that runs.
struct Local {
    client: Client,
    service: ServiceName,
    watched: Option<Watched>,
    deadline: Option<Instant>,
    _running: Running,
}

impl Local {
    /// Runs a piece of the handler's code: not past the deadline, and not past a panic.
    async fn step<T>(&self, work: impl Future<Output = T>) -> Result<T, Status> {
        let span = self.watched.as_ref().map(|watched| watched.span.clone());
        let work = AssertUnwindSafe(work.instrument(span.unwrap_or_else(tracing::Span::none))).catch_unwind();
        let done = match self.deadline {
            None => work.await,
            Some(deadline) => match tokio::time::timeout_at(deadline, work).await {
                Ok(done) => done,
                Err(_) => {
                    let words = format!("{} did not answer in the time the call may take", self.service);
                    return Err(Status::deadline_exceeded(words));
                }
            },
        };
        done.map_err(|panic| {
            crate::server::panicked(&self.service, &panic);
            Status::internal("the handler panicked")
        })
    }

    /// The messages of a reply, with the call's deadline and end.
    fn watch(self, body: Body) -> Body {
        let frames = stream::unfold(Some((self, body)), async |call| {
            let (mut call, mut body) = call?;
            match call.step(body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    if let Some(trailers) = frame.trailers_ref() {
                        call.end(Status::from_header_map(trailers).as_ref());
                    }
                    Some((Ok::<Frame<Bytes>, Status>(frame), Some((call, body))))
                }
                Ok(None) => None,
                Ok(Some(Err(status))) | Err(status) => {
                    call.end(Some(&status));
                    Some((Err(status), None))
                }
            }
        });
        Body::new(StreamBody::new(frames).boxed_unsync())
    }

    fn end(&mut self, status: Option<&Status>) {
        let error = match status.map(Status::code) {
            Some(Code::Ok) => None,
            Some(Code::DeadlineExceeded) => Some("deadline_exceeded"),
            _ => Some("answered"),
        };
        if let Some(watched) = self.watched.take() {
            watched.end(&self.client, 0, error);
        }
    }
}
