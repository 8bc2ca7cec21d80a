//! The stacks that are compared, behind one face.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use clap::ValueEnum;
use futures::future::BoxFuture;

use crate::{irpc_stack, libp2p_stack, macula, raw_quinn, tarpc_stack, tonic_stack};

/// One way to make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Stack {
    /// macula-transport.
    Macula,
    /// quinn, a stream for each call.
    Quinn,
    /// tonic over HTTP/2 and TLS.
    Tonic,
    /// tarpc over TCP, without TLS.
    Tarpc,
    /// irpc over QUIC.
    Irpc,
    /// rust-libp2p's request-response over QUIC.
    Libp2p,
}

impl Stack {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Macula => "macula",
            Self::Quinn => "quinn, a stream per call",
            Self::Tonic => "tonic + TLS",
            Self::Tarpc => "tarpc, no TLS",
            Self::Irpc => "irpc",
            Self::Libp2p => "libp2p request-response",
        }
    }

    /// Starts a server; what a client needs to know of it, as text without spaces.
    pub(crate) async fn serve(self, listen: std::net::SocketAddr) -> Result<String> {
        match self {
            Self::Macula => macula::serve(listen).await,
            Self::Quinn => raw_quinn::serve().await,
            Self::Tonic => tonic_stack::serve().await,
            Self::Tarpc => tarpc_stack::serve().await,
            Self::Irpc => irpc_stack::serve().await,
            Self::Libp2p => libp2p_stack::serve().await,
        }
    }

    pub(crate) async fn connect(self, address: &str) -> Result<Box<dyn Echo>> {
        Ok(match self {
            Self::Macula => Box::new(macula::Client::connect(address).await?),
            Self::Quinn => Box::new(raw_quinn::Client::connect(address).await?),
            Self::Tonic => Box::new(tonic_stack::Client::connect(address).await?),
            Self::Tarpc => Box::new(tarpc_stack::Client::connect(address).await?),
            Self::Irpc => Box::new(irpc_stack::Client::connect(address)?),
            Self::Libp2p => Box::new(libp2p_stack::Client::connect(address).await?),
        })
    }
}

/// A client that is connected.
pub(crate) trait Echo: Send + Sync {
    /// Calls until `until` says so, and gives the time of each call to `record`. One call at a time; the bodies are not boxed.
    fn run<'a>(&'a self, body: Bytes, worker: Worker) -> BoxFuture<'a, Result<Worker>>;
}

/// One of the callers that run at a time.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) warm_until: std::time::Instant,
    pub(crate) until: std::time::Instant,
    pub(crate) times: Vec<u32>,
}

impl Worker {
    /// Notes a call; false when it was the last one.
    pub(crate) fn note(&mut self, started: std::time::Instant) -> bool {
        let now = std::time::Instant::now();
        if started >= self.warm_until && now <= self.until {
            self.times
                .push(u32::try_from((now - started).as_nanos()).unwrap_or(u32::MAX));
        }
        now < self.until
    }
}

/// Runs `call` over and over, one at a time.
pub(crate) async fn repeat<F: Future<Output = Result<Bytes>>>(
    mut worker: Worker,
    body: Bytes,
    mut call: impl FnMut(Bytes) -> F,
) -> Result<Worker> {
    loop {
        let started = std::time::Instant::now();
        let reply = call(body.clone()).await?;
        anyhow::ensure!(reply.len() == body.len(), "the reply is not the request");
        if !worker.note(started) {
            return Ok(worker);
        }
    }
}

/// No stack's own timeout ends a call of the benchmark.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
