//! Generated servers as services of the mesh.

use std::{convert::Infallible, sync::Arc};

use ::tonic::{
    body::Body,
    codegen::{
        Service,
        http::{HeaderMap, Request, Response, Uri},
    },
    server::NamedService,
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, future::BoxFuture, stream};
use http_body::Frame;
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use macula_transport::{IncomingCall, IncomingMessages, OutgoingMessages, Reply};
use macula_wire::{ServiceName, StatusCode};

use super::convert;
use crate::{ServeError, Server, streaming::StreamService};

/// The most of gRPC's bytes that are sent as one message: far below what a message may have, so that large ones flow.
const PIECE_BYTES: usize = 256 * 1024;

type Answer = BoxFuture<'static, Result<Response<Body>, ::tonic::Status>>;

/// A generated server, its type forgotten.
pub(crate) struct Mounted {
    call: Box<dyn Fn(Request<Body>) -> Answer + Send + Sync>,
}

impl Mounted {
    /// Answers a request, from this process or from elsewhere.
    pub(super) fn call(&self, request: Request<Body>) -> Answer {
        (self.call)(request)
    }
}

impl Server {
    /// Serves what tonic has generated of a gRPC service, under the service's own name, which is returned: what is to be
    /// advertised.
    ///
    /// # Errors
    /// When the name is served already, or is not one of the mesh's (letters, digits, `.`, `_`, `-`).
    pub fn serve_tonic<S>(&self, service: S) -> Result<ServiceName, ServeError>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        let name = ServiceName::new(S::NAME)?;
        let call = move |request| -> Answer {
            let mut service = service.clone();
            Box::pin(async move {
                match std::future::poll_fn(|cx| service.poll_ready(cx)).await {
                    Ok(()) => {}
                    Err(never) => match never {},
                }
                match service.call(request).await {
                    Ok(response) => Ok(response),
                    Err(never) => match never {},
                }
            })
        };
        self.mount(name.clone(), Arc::new(Mounted { call: Box::new(call) }))?;
        Ok(name)
    }
}

impl StreamService for Mounted {
    fn open(
        &self,
        call: IncomingCall,
        requests: IncomingMessages,
        replies: OutgoingMessages,
    ) -> BoxFuture<'static, Reply> {
        let Ok(uri) = format!("/{}/{}", call.service(), call.method()).parse::<Uri>() else {
            let words = "the method's name cannot stand in a path";
            return Box::pin(std::future::ready(Reply::error(StatusCode::Unimplemented, words)));
        };
        let frames = stream::unfold(requests, async |mut requests| match requests.next().await {
            Ok(Some(message)) => Some((Ok(Frame::<Bytes>::data(message)), requests)),
            Ok(None) => None,
            Err(gone) => Some((Err(::tonic::Status::cancelled(gone.to_string())), requests)),
        });
        let mut request = Request::new(Body::new(StreamBody::new(frames).boxed_unsync()));
        *request.uri_mut() = uri;
        *request.method_mut() = ::tonic::codegen::http::Method::POST;
        *request.headers_mut() = convert::headers(call.metadata().iter());
        request.extensions_mut().insert(Arc::clone(call.peer()));
        let answer = (self.call)(request);
        Box::pin(async move {
            match answer.await {
                Ok(response) => send(response, replies).await,
                Err(status) => Reply::error(StatusCode::Internal, status.message()),
            }
        })
    }
}

/// Sends a response, and gives its outcome.
async fn send(response: Response<Body>, mut replies: OutgoingMessages) -> Reply {
    let (parts, mut body) = response.into_parts();
    // A reply without a body has its outcome in the headers.
    if parts.headers.contains_key("grpc-status") {
        return convert::outcome(&parts.headers);
    }
    let gone = |gone: &macula_transport::Gone| Reply::error(StatusCode::Cancelled, gone.to_string());
    if let Err(error) = replies.send(convert::header_message(&parts.headers)).await {
        return gone(&error);
    }
    let mut trailers = HeaderMap::new();
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => {
                for piece in cut(data) {
                    if let Err(error) = replies.send(piece).await {
                        return gone(&error);
                    }
                }
            }
            Ok(Err(frame)) => trailers = frame.into_trailers().unwrap_or_default(),
            Err(status) => return Reply::error(StatusCode::Internal, status.message()),
        }
    }
    convert::outcome(&trailers)
}

/// Bytes in pieces of [`PIECE_BYTES`]; nothing when there are none.
fn cut(mut data: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let next = data.split_to(data.len().min(PIECE_BYTES));
        (!next.is_empty()).then_some(next)
    })
}

/// The data of a body in pieces.
pub(super) fn pieces(body: Body) -> impl Stream<Item = Result<Bytes, ::tonic::Status>> {
    BodyStream::new(body).flat_map(|frame| {
        let (data, error) = match frame.map(Frame::into_data) {
            Ok(data) => (data.unwrap_or_default(), None),
            Err(error) => (Bytes::new(), Some(Err(error))),
        };
        stream::iter(cut(data).map(Ok).chain(error))
    })
}
