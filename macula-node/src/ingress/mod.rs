//! The ingress: a TCP port through which a program in any language reaches the mesh (N6).
//!
//! It speaks gRPC over HTTP/2, for every gRPC service of the mesh: the path `/package.Service/Method` names the service, which is looked
//! up, chosen and failed over like any other. It speaks plain HTTP:
//! `POST /v1/call/SERVICE[/METHOD]`, with the headers that the crate's README lists. Health and server reflection are answered too. Bodies
//! pass through without being decoded.
//!
//! **Invariants.** A port beyond loopback is not opened without TLS and bearer tokens. A token never goes on into the mesh. Connections,
//! their streams, headers and bodies have limits with names.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use macula_node::{Node, ingress::{Ingress, IngressConfig}};
//!
//! let node = Node::builder().start().await?;
//! let ingress = Ingress::bind(&node, IngressConfig::new("127.0.0.1:8080".parse()?)).await?;
//! // curl --data hello http://127.0.0.1:8080/v1/call/demo.echo
//! ingress.close().await;
//! node.shutdown().await;
//! # Ok(())
//! # }
//! ```

mod error;
mod grpc;
mod guard;
mod health;
mod http;
mod reflection;
mod serve;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

pub use self::{guard::GuardError, http::BODY_WITHIN};
pub use crate::listener::{
    HEADERS_WITHIN, MAX_CONNECTIONS, MAX_HEADER_BYTES, MAX_STREAMS, MIN_TOKEN_BYTES, Tokens, TokensError,
};
use crate::{
    Node,
    listener::{Listener, Plain},
};

/// Where an ingress listens, and who may use it.
#[derive(Debug, Clone)]
pub struct IngressConfig {
    listen: SocketAddr,
    tls: Option<(PathBuf, PathBuf)>,
    tokens: Option<Tokens>,
    max_connections: usize,
}

impl IngressConfig {
    /// Listens at `listen`; port 0 takes a free one. On loopback anyone on this host may use it, unless tokens are set.
    #[must_use]
    pub const fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            tls: None,
            tokens: None,
            max_connections: MAX_CONNECTIONS,
        }
    }

    /// Takes so many connections at a time; [`MAX_CONNECTIONS`] without it.
    #[must_use]
    pub const fn max_connections(mut self, most: usize) -> Self {
        self.max_connections = most;
        self
    }

    /// Serves TLS with this certificate chain and private key, both PEM files.
    #[must_use]
    pub fn tls(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.tls = Some((certificate.into(), key.into()));
        self
    }

    /// Answers only requests that bring one of these tokens: `Authorization: Bearer TOKEN` (RFC 6750).
    #[must_use]
    pub fn tokens(mut self, tokens: Tokens) -> Self {
        self.tokens = Some(tokens);
        self
    }
}

/// An ingress cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IngressError {
    /// It would be open to other hosts without encryption or without tokens.
    #[error(
        "the ingress at {0} can be reached from other hosts, so it needs a certificate, its key and tokens; give them, or listen on 127.0.0.1"
    )]
    Unguarded(SocketAddr),
    /// The certificate, its key or the tokens are not usable.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The address cannot be listened on.
    #[error("the ingress cannot listen at {0}")]
    Listen(SocketAddr, #[source] io::Error),
}

/// An ingress, open. Dropping it closes it at once; [`Ingress::close`] closes it in order.
#[derive(Debug)]
pub struct Ingress {
    listener: Listener,
    /// Ends the watches of health, which would keep the port open.
    stop: watch::Sender<bool>,
}

impl Ingress {
    /// Opens an ingress to the mesh that `node` is in. Its calls are the node's own: they are made with the node's client, and other
    /// nodes see this node as their caller.
    ///
    /// # Errors
    /// When it would be open to other hosts without TLS and tokens, a file is not usable, or the address is taken.
    pub async fn bind(node: &Node, config: IngressConfig) -> Result<Self, IngressError> {
        let IngressConfig {
            listen,
            tls,
            tokens,
            max_connections,
        } = config;
        if !listen.ip().is_loopback() && (tls.is_none() || tokens.is_none()) {
            return Err(IngressError::Unguarded(listen));
        }
        let tls = tls
            .map(|(certificate, key)| guard::server_tls(&certificate, &key))
            .transpose()?;
        let (stop, stopped) = watch::channel(false);
        let app = serve::app(node, tokens, stopped);
        let bound = match tls {
            None => Listener::bind("ingress", listen, max_connections, Plain, app).await,
            Some(tls) => {
                let tls = TlsAcceptor::from(Arc::new(tls));
                Listener::bind("ingress", listen, max_connections, tls, app).await
            }
        };
        let listener = bound.map_err(|error| IngressError::Listen(listen, error))?;
        Ok(Self { listener, stop })
    }

    /// Where it listens.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Takes no further requests and finishes the running ones, within 30 s.
    pub async fn close(self) {
        self.stop.send_replace(true);
        self.listener.close().await;
    }
}
