//! What happens to the pool's connections, for its watchers.

use std::sync::Arc;

use macula_wire::NodeId;
use tokio::sync::broadcast;

use crate::error::{DialError, Lost};

/// How many events are kept for a watcher that is slow.
pub(super) const MAX_EVENTS: usize = 256;

/// Something happened to a connection.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum PoolEvent {
    /// A connection was made.
    Opened {
        /// The peer.
        node: NodeId,
        /// This node dialed; else the peer did.
        dialed: bool,
    },
    /// A connection ended.
    Closed {
        /// The peer.
        node: NodeId,
        /// Why.
        reason: Lost,
    },
    /// A dial failed.
    DialFailed {
        /// The node that was dialed; `None` for a first contact.
        node: Option<NodeId>,
        /// Why.
        error: Arc<DialError>,
    },
    /// Events came faster than they were taken: the number of those lost.
    Missed(u64),
}

/// A watch over a pool.
#[derive(Debug)]
pub struct PoolEvents(pub(super) broadcast::Receiver<PoolEvent>);

impl PoolEvents {
    /// The next event; `None` when the endpoint is gone.
    pub async fn next(&mut self) -> Option<PoolEvent> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(PoolEvent::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
