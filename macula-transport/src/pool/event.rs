//! What happens to the pool's connections, for its watchers.

use std::{fmt, sync::Arc};

use macula_wire::NodeId;
use tokio::sync::broadcast;

use crate::error::{CloseCode, DialError, HelloError, Lost};

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

impl PoolEvent {
    /// The kind of event, in a word that does not change.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Opened { .. } => "opened",
            Self::Closed { .. } => "closed",
            Self::DialFailed { .. } => "dial_failed",
            Self::Missed(_) => "missed",
        }
    }

    /// Its peer, if it has one.
    #[must_use]
    pub const fn node(&self) -> Option<NodeId> {
        match self {
            Self::Opened { node, .. } | Self::Closed { node, .. } => Some(*node),
            Self::DialFailed { node, .. } => *node,
            Self::Missed(_) => None,
        }
    }

    /// Whether the peer says that this node's grant was revoked. It is the peer's word alone.
    #[must_use]
    pub fn says_revoked(&self) -> bool {
        let lost = match self {
            Self::Closed { reason, .. } => Some(reason),
            Self::DialFailed { error, .. } => match &**error {
                DialError::Refused { source, .. }
                | DialError::Hello {
                    source: HelloError::Lost(source),
                    ..
                } => Some(source),
                _ => None,
            },
            Self::Opened { .. } | Self::Missed(_) => None,
        };
        matches!(
            lost,
            Some(Lost::ClosedByPeer {
                code: CloseCode::Revoked,
                ..
            })
        )
    }
}

/// The event in words, without the name of its peer.
impl fmt::Display for PoolEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opened { dialed: true, .. } => f.write_str("a connection to it was opened"),
            Self::Opened { dialed: false, .. } => f.write_str("a connection from it was accepted"),
            Self::Closed { reason, .. } => write!(f, "the connection ended: {reason}"),
            Self::DialFailed { error, .. } => write!(f, "a dial failed: {error}"),
            Self::Missed(count) => write!(
                f,
                "{count} events were lost, because they came faster than they were read"
            ),
        }
    }
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
