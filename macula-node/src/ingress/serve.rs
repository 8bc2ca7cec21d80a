//! The connections of the ingress, and the way of a request to its handler.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::post,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use macula_rpc::Channel;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};
use tokio_rustls::TlsAcceptor;
use tonic::codegen::http::header;

use super::{HEADERS_WITHIN, MAX_CONNECTIONS, MAX_HEADER_BYTES, MAX_STREAMS, Tokens, error, grpc, http};
use crate::{MAX_MESSAGE_BYTES, Node};

/// How often an idle HTTP/2 client is asked whether it is there, and how long it may take to answer.
const PING_EVERY: Duration = Duration::from_secs(20);
/// How long to wait before the next connection when one could not be taken.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// What answers the requests.
pub(super) fn app(node: &Node, tokens: Option<Tokens>) -> Router {
    let calls = Router::new()
        .route("/v1/call/{service}", post(http::call))
        .route("/v1/call/{service}/{method}", post(http::call))
        .layer(DefaultBodyLimit::max(MAX_MESSAGE_BYTES))
        .with_state(node.client().clone());
    let gate = Arc::new(tokens);
    calls
        .fallback_service(grpc::Gateway::new(node, Channel::new(node.client().clone())))
        .layer(middleware::from_fn_with_state(gate, admit))
}

/// Lets requests with a token pass, without the token: it is this ingress's, and no provider's.
async fn admit(State(tokens): State<Arc<Option<Tokens>>>, mut request: Request, next: Next) -> Response {
    if let Some(tokens) = tokens.as_ref() {
        if !tokens.admit(request.headers()) {
            return match grpc::is_grpc(request.headers()) {
                true => grpc::refusal(tonic::Status::unauthenticated(error::NO_TOKEN)),
                false => error::unauthorized().into_response(),
            };
        }
        request.headers_mut().remove(header::AUTHORIZATION);
    }
    next.run(request).await
}

/// Serves connections until it is told to stop; then finishes the running requests.
pub(super) async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    app: Router,
    mut stopped: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut running = tokio::task::JoinSet::new();
    loop {
        // Tasks that have ended leave the set.
        while running.try_join_next().is_some() {}
        let arriving = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, stream) = tokio::select! {
            biased;
            () = told(&mut stopped) => break,
            (place, accepted) = arriving => match accepted {
                Ok((stream, _)) => (place, stream),
                Err(error) => {
                    // No file descriptor is left, most likely: the next one may be.
                    tracing::warn!(%error, "the ingress could not take a connection");
                    tokio::time::sleep(RETRY_AFTER).await;
                    continue;
                }
            },
        };
        let (tls, app, watcher) = (tls.clone(), app.clone(), graceful.watcher());
        running.spawn(async move {
            let _place = place;
            let ended = match tls {
                None => converse(stream, app, watcher).await,
                Some(tls) => match tokio::time::timeout(HEADERS_WITHIN, tls.accept(stream)).await {
                    Ok(Ok(stream)) => converse(stream, app, watcher).await,
                    Ok(Err(error)) => Err(error.into()),
                    Err(_) => Err("no TLS handshake in time".into()),
                },
            };
            if let Err(error) = ended {
                tracing::debug!(error, "a connection to the ingress has ended");
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
    while running.join_next().await.is_some() {}
}

/// Waits until the ingress is to stop, or is dropped and its sender with it.
async fn told(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Answers the requests of one connection.
async fn converse(
    stream: impl Connection,
    app: Router,
    watcher: hyper_util::server::graceful::Watcher,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(MAX_HEADER_BYTES as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES);
    let service = TowerToHyperService::new(app);
    let conversation = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    watcher.watch(conversation).await
}

/// What bytes come over: TCP, or TLS above it.
trait Connection: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static {}

impl Connection for TcpStream {}
impl Connection for tokio_rustls::server::TlsStream<TcpStream> {}
