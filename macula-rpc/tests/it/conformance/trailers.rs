//! A layer as an application would write it. It sends a header of the request back in the trailers, which a generated server cannot do.

use std::task::{Context, Poll};

use futures::{TryFutureExt as _, future::BoxFuture};
use http_body_util::BodyExt as _;
use tonic::{
    body::Body,
    codegen::{
        Service,
        http::{Request, Response},
    },
};

pub(super) const KEY: &str = "x-grpc-test-echo-trailing-bin";

pub(super) fn echo<S>() -> impl tower::Layer<S, Service = EchoTrailers<S>> {
    tower::layer::layer_fn(EchoTrailers)
}

#[derive(Clone)]
pub(super) struct EchoTrailers<S>(S);

impl<S> Service<Request<Body>> for EchoTrailers<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let value = request.headers().get(KEY).cloned();
        let answer = self.0.call(request);
        let echoed = answer.map_ok(|response| {
            let Some(value) = value else { return response };
            response.map(|body| {
                Body::new(body.map_frame(move |mut frame| {
                    if let Some(trailers) = frame.trailers_mut() {
                        trailers.insert(KEY, value.clone());
                    }
                    frame
                }))
            })
        });
        Box::pin(echoed)
    }
}
