//! The HTTP server under the ingress and the ops port: connections, their limits, and an end in order.
//!
//! **Invariant.** Connections, their requests, and the headers of a request have limits with names, and a client that says nothing is
//! given up.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Extension, Router, extract::ConnectInfo};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::{JoinHandle, JoinSet},
};

/// The most connections at a time; later ones wait in the kernel's queue.
pub const MAX_CONNECTIONS: usize = 1_024;
/// The most requests at a time on one HTTP/2 connection.
pub const MAX_STREAMS: u32 = 256;
/// The largest headers of a request, in bytes.
pub const MAX_HEADER_BYTES: u32 = 64 * 1024;
/// How long a client may take for its TLS handshake, and for the headers of a request.
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
        secure: impl Secure,
        app: Router,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(accept(name, listener, secure, app, stopped));
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
    secure: impl Secure,
    app: Router,
    mut stopped: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut running = JoinSet::new();
    loop {
        // Tasks that have ended leave the set.
        while running.try_join_next().is_some() {}
        let arriving = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, stream, client) = tokio::select! {
            biased;
            () = told(&mut stopped) => break,
            (place, accepted) = arriving => match accepted {
                Ok((stream, client)) => (place, stream, client),
                Err(error) => {
                    // No file descriptor is left, most likely: the next one may be.
                    tracing::warn!(port = name, %error, "a connection could not be taken");
                    tokio::time::sleep(RETRY_AFTER).await;
                    continue;
                }
            },
        };
        let (secure, watcher) = (secure.clone(), graceful.watcher());
        let app = app.clone().layer(Extension(ConnectInfo(client)));
        running.spawn(async move {
            let _place = place;
            let ended = match tokio::time::timeout(HEADERS_WITHIN, secure.secure(stream)).await {
                Ok(Ok(stream)) => converse(stream, app, watcher).await,
                Ok(Err(error)) => Err(error.into()),
                Err(_) => Err("no TLS handshake in time".into()),
            };
            if let Err(error) = ended {
                tracing::debug!(port = name, error, "a connection has ended");
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
    while running.join_next().await.is_some() {}
}

/// Waits until the listener is to stop, or is dropped and its sender with it.
async fn told(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Answers the requests of one connection.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    app: Router,
    watcher: Watcher,
) -> Result<(), BoxError> {
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
