//! The admin interface: a node's state, events and drain as gRPC over a Unix socket, with health and server reflection (N5).
//!
//! `macula status` and the other commands are one client, `grpcurl` is another. [`schema`] has the messages; they are made from
//! [`Node::state`](crate::Node::state) and [`Node::events`](crate::Node::events) alone, so a program with a node of its own sees the same.
//!
//! **Invariants.** The socket is mode 0600 in a folder of mode 0700 from its first moment. A socket that a living process holds is never
//! replaced. Answers have bounded lists, and a slow watcher loses events and not the node's memory.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use macula_node::{Node, admin::{Admin, schema::Build}};
//!
//! let node = Node::builder().start().await?;
//! let admin = Admin::serve(&node, Build::default(), "/run/my-program/admin.sock").await?;
//! admin.drain_asked().await; // `macula drain --admin /run/my-program/admin.sock`
//! node.shutdown().await;
//! admin.close().await;
//! # Ok(())
//! # }
//! ```

mod answer;
mod client;
mod place;
mod service;
mod socket;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, task::JoinHandle};

#[cfg(feature = "ops")]
pub(crate) use self::answer::{event as event_message, state as state_message};
pub use self::{
    client::{AdminClient, ConnectError, connect},
    place::{RUNTIME_VARIABLE, default_socket, sockets},
    socket::AdminError,
};
use crate::Node;

/// The messages and services of the admin interface, generated from `proto/macula/admin/v1/admin.proto`.
#[expect(missing_docs, reason = "generated code: the schema has the words")]
pub mod schema {
    include!("gen/macula.admin.v1.rs");
}

/// How long the end waits until clients have read the last messages.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// The admin interface of a node, served. Dropping it closes the socket.
#[derive(Debug)]
pub struct Admin {
    path: PathBuf,
    task: JoinHandle<()>,
    stop: watch::Sender<bool>,
    orders: Arc<watch::Sender<bool>>,
}

impl Admin {
    /// Serves the admin interface of `node` on a socket at `path`; `build` tells which program that is. The folder is made if it is
    /// missing. The socket of a process that has died is replaced.
    ///
    /// # Errors
    /// When a living process has the socket, or it cannot be made there.
    pub async fn serve(node: &Node, build: schema::Build, path: impl Into<PathBuf>) -> Result<Self, AdminError> {
        let path = path.into();
        let listener = socket::listen(&path).await?;
        let (stop, stopped) = watch::channel(false);
        let orders = Arc::new(watch::Sender::new(false));
        let served = service::serve(node.clone(), build, Arc::clone(&orders), listener, stopped);
        Ok(Self {
            path,
            task: tokio::spawn(served),
            stop,
            orders,
        })
    }

    /// Where the socket is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until a client asks the node to drain. What to do then is the program's: [`Node::shutdown`] shows the client its progress.
    ///
    /// Cancel safe.
    pub async fn drain_asked(&self) {
        let mut orders = self.orders.subscribe();
        // Never fails: the sender is this one's.
        let _ = orders.wait_for(|asked| *asked).await;
    }

    /// Takes no further requests, lets clients read the last messages, and closes the socket; within a second.
    pub async fn close(mut self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(CLOSE_WITHIN, &mut self.task).await.is_err() {
            tracing::debug!("a client of the admin interface did not read the last messages");
        }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.task.abort();
        // It may be gone with its folder.
        let _ = std::fs::remove_file(&self.path);
    }
}
