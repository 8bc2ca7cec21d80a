//! A `tower::Service` as a handler, with its layers: limits, timeouts, buffers, or your own.
//!
//! **Invariant.** A service that is not ready has not started the call, so its error is *refused*, and the call goes elsewhere.

use std::{error::Error, fmt, future::poll_fn};

use ::tower::{Service, load_shed::error::Overloaded, timeout::error::Elapsed};
use futures::future::BoxFuture;

use crate::{Handler, IntoResponse, Request, Response, Status, StatusCode};

/// A handler made of a `tower::Service`.
///
/// Each call runs in a clone of the service. A [`Status`] as the error is the answer. tower's overload error is *refused*, its timeout
/// error is [`StatusCode::DeadlineExceeded`], and any other error is [`StatusCode::Internal`].
///
/// ```
/// use std::time::Duration;
///
/// use macula_rpc::{Request, Server, Status, TowerHandler};
/// use tower::{ServiceBuilder, service_fn};
///
/// let echo = service_fn(async |request: Request| Ok::<_, Status>(request.into_payload()));
/// let layered = ServiceBuilder::new()
///     .load_shed()
///     .concurrency_limit(32)
///     .timeout(Duration::from_secs(1))
///     .service(echo);
/// Server::new().serve("text.echo".parse()?, TowerHandler::new(layered))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct TowerHandler<S>(S);

impl<S, R> TowerHandler<S>
where
    S: Service<Request, Response = R> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    R: IntoResponse,
{
    /// Makes a handler of `service`.
    pub fn new(service: S) -> Self {
        Self(service)
    }
}

impl<S, R> Handler for TowerHandler<S>
where
    S: Service<Request, Response = R> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    R: IntoResponse,
{
    fn handle(&self, request: Request) -> BoxFuture<'static, Result<Response, Status>> {
        let mut service = self.0.clone();
        Box::pin(async move {
            poll_fn(|cx| service.poll_ready(cx)).await.map_err(unready)?;
            let answer = service.call(request);
            answer.await.map_err(failed)?.into_response()
        })
    }
}

impl<S> fmt::Debug for TowerHandler<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TowerHandler").finish_non_exhaustive()
    }
}

fn unready(error: impl Into<Box<dyn Error + Send + Sync>>) -> Status {
    Status::refused_with(
        StatusCode::Unavailable,
        format!("the service is not ready: {}", error.into()),
    )
}

fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Status {
    match error.into().downcast::<Status>() {
        Ok(status) => *status,
        Err(error) if error.is::<Overloaded>() => Status::refused("the service runs as many calls as its limit allows"),
        Err(error) if error.is::<Elapsed>() => {
            Status::new(StatusCode::DeadlineExceeded, "the service ran into its own timeout")
        }
        Err(error) => Status::internal(error.to_string()),
    }
}
