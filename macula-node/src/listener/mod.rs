//! The HTTP server under the ingress and the ops port: connections, their limits, and an end in order.
//!
//! **Invariant.** Connections, their requests, and the headers of a request have limits with names, and a client that says nothing is
//! given up. When all connections are taken, a newcomer takes one of the address that has most: see `places.rs`.

mod held;
mod places;
mod tokens;

use std::{future::Future, io, net::SocketAddr, pin::pin, time::Duration};

use axum::{Extension, Router, extract::ConnectInfo, middleware::from_fn_with_state};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use self::held::{Held, Room};
pub use self::tokens::{MIN_TOKEN_BYTES, Tokens, TokensError};

/// The most connections at a time, unless it is set. Beyond it a newcomer takes the place of one without a request, or of one of the
/// address that has most; else it is closed.
pub const MAX_CONNECTIONS: usize = 1_024;
/// The most requests at a time on one HTTP/2 connection.
pub const MAX_STREAMS: u32 = 256;
/// The largest headers of a request, in bytes.
pub const MAX_HEADER_BYTES: u32 = 64 * 1024;
/// How long a client may take for its TLS handshake, for its first request, and for the headers of each.
pub const HEADERS_WITHIN: Duration = Duration::from_secs(10);
/// How long the end waits for running requests.
const CLOSE_WITHIN: Duration = Duration::from_secs(30);
/// How often an idle HTTP/2 client is asked whether it is there, and how long it may take to answer.
const PING_EVERY: Duration = Duration::from_secs(20);
/// How long to wait before the next connection when one could not be taken.
const RETRY_AFTER: Duration = Duration::from_millis(100);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The bytes of a connection: TCP, or TLS above it.
pub(crate) trait Secure: Clone + Send + Sync + 'static {
    /// The stream that HTTP is spoken on.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Does the handshake, if there is one.
    fn secure(&self, stream: TcpStream) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// Without TLS.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plain;

impl Secure for Plain {
    type Stream = TcpStream;

    async fn secure(&self, stream: TcpStream) -> io::Result<TcpStream> {
        Ok(stream)
    }
}

#[cfg(feature = "ingress")]
impl Secure for tokio_rustls::TlsAcceptor {
    type Stream = tokio_rustls::server::TlsStream<TcpStream>;

    async fn secure(&self, stream: TcpStream) -> io::Result<Self::Stream> {
        self.accept(stream).await
    }
}

/// A port that is listened on. Dropping it closes it at once; [`Listener::close`] closes it in order.
#[derive(Debug)]
pub(crate) struct Listener {
    name: &'static str,
    address: SocketAddr,
    task: JoinHandle<()>,
    stop: watch::Sender<bool>,
}

impl Listener {
    /// Listens at `listen` and answers requests with `app`, which finds the client's address as [`ConnectInfo`]. `name` is the port's
    /// in the log.
    pub(crate) async fn bind(
        name: &'static str,
        listen: SocketAddr,
        max_connections: usize,
        secure: impl Secure,
        app: Router,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let room = Room::new(max_connections);
        let task = tokio::spawn(accept(name, listener, room, secure, app, stopped));
        Ok(Self {
            name,
            address,
            task,
            stop,
        })
    }

    pub(crate) const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Takes no further requests and finishes the running ones, within 30 s.
    pub(crate) async fn close(mut self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(CLOSE_WITHIN, &mut self.task).await.is_err() {
            tracing::warn!(
                port = self.name,
                "requests were still running after {CLOSE_WITHIN:?} and were cut off"
            );
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves connections until it is told to stop; then finishes the running requests.
async fn accept(
    name: &'static str,
    listener: TcpListener,
    room: Room,
    secure: impl Secure,
    app: Router,
    mut stopped: watch::Receiver<bool>,
) {
    let mut running = JoinSet::new();
    loop {
        // Tasks that have ended leave the set.
        while running.try_join_next().is_some() {}
        let (stream, client) = tokio::select! {
            biased;
            () = told(&mut stopped) => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // No file descriptor is left, most likely: the next one may be.
                    tracing::warn!(port = name, %error, "a connection could not be taken");
                    tokio::time::sleep(RETRY_AFTER).await;
                    continue;
                }
            },
        };
        let Some((held, gives_way)) = room.take(name, client.ip()) else {
            continue;
        };
        let app = app.clone().layer(Extension(ConnectInfo(client)));
        let (secure, stopped) = (secure.clone(), stopped.clone());
        running.spawn(async move {
            let ended = tokio::select! {
                ended = serve(stream, secure, app, &held, stopped) => ended,
                () = gives_way.asked() => Err("it gave way to a newcomer".into()),
            };
            if let Err(error) = ended {
                tracing::debug!(port = name, error, "a connection has ended");
            }
        });
    }
    drop(listener);
    while running.join_next().await.is_some() {}
}

/// Waits until the listener is to stop, or is dropped and its sender with it.
async fn told(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Answers the requests of one connection, until it ends or brings no request in time.
async fn serve(
    stream: TcpStream,
    secure: impl Secure,
    app: Router,
    held: &Held,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), BoxError> {
    let stream = match tokio::time::timeout(HEADERS_WITHIN, secure.secure(stream)).await {
        Ok(stream) => stream?,
        Err(_) => return Err("no TLS handshake in time".into()),
    };
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
    let app = app.layer(from_fn_with_state(held.clone(), held::count));
    let conversation = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    let mut conversation = pin!(conversation.into_owned());
    tokio::select! {
        ended = conversation.as_mut() => return ended,
        () = told(&mut stopped) => {}
        // Over HTTP/2 the client is told, and connects again when it has a request.
        () = held.says_nothing(HEADERS_WITHIN) => {}
    }
    conversation.as_mut().graceful_shutdown();
    conversation.await
}
