//! The client of the admin interface.

use std::{io, path::Path, time::Duration};

use tonic::transport::{Channel, Endpoint};

use super::schema::admin_client;

/// The client that is generated from the schema, over a Unix socket.
pub type AdminClient = admin_client::AdminClient<Channel>;

/// The largest answer that is taken, in bytes. Lists are bounded, so the largest state of a node has about 16 MiB.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// How long a node is waited for.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// There is no admin interface to ask.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The socket cannot be opened.
    #[error("{}: {}", .path.display(), explain(.source))]
    Socket {
        /// The socket.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else than a node answers there.
    #[error("{}: no node answers there", .0.display())]
    NoNode(std::path::PathBuf, #[source] tonic::transport::Error),
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such socket: is the node running?".to_owned(),
        io::ErrorKind::ConnectionRefused => "the node that made this socket is not running any more".to_owned(),
        io::ErrorKind::PermissionDenied => "the socket belongs to another user: ask as that user or as root".to_owned(),
        _ => error.to_string(),
    }
}

/// Connects to the admin interface at `path`.
///
/// # Errors
/// When there is no socket, or no node behind it.
pub async fn connect(path: &Path) -> Result<AdminClient, ConnectError> {
    let channel = channel(path).await?;
    Ok(AdminClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
}

/// A channel for the other services at the socket: health and server reflection.
pub(super) async fn channel(path: &Path) -> Result<Channel, ConnectError> {
    // tonic's error does not say why.
    let tried = tokio::net::UnixStream::connect(path).await;
    tried.map_err(|source| ConnectError::Socket {
        path: path.into(),
        source,
    })?;
    let connect = async {
        let endpoint = Endpoint::from_shared(format!("unix:{}", path.display()))?;
        endpoint.connect_timeout(CONNECT_WITHIN).connect().await
    };
    connect.await.map_err(|error| ConnectError::NoNode(path.into(), error))
}
