//! What happens to a node, for its operator.
//!
//! **Invariants.** A reader that is slow loses the oldest events and is told how many; nothing waits for it. Without a reader nothing is
//! kept.

use std::{fmt, sync::Arc, time::Duration};

use macula_rpc::{ClientEvent, ClientEvents};
use macula_transport::{PoolEvent, PoolEvents};
use macula_wire::{Address, NodeId, ServiceName};
use tokio::sync::broadcast;

use crate::{JoinError, PublishReport, WithdrawReport};

/// Events of the node itself that are kept for a slow reader; as many as the pool and the client keep of theirs beside them.
pub const MAX_NODE_EVENTS: usize = 1024;

/// Something happened to a node.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum NodeEvent {
    /// It is in the mesh, with so many contacts.
    Joined {
        /// The nodes that it knows.
        contacts: usize,
    },
    /// It could not join the mesh, and tries again.
    JoinFailed {
        /// Why.
        error: JoinError,
        /// When it tries again.
        retry_in: Duration,
    },
    /// A service was published, or published again.
    Published {
        /// The service.
        service: ServiceName,
        /// The nodes that took the record, and those that did not.
        report: PublishReport,
    },
    /// A service was withdrawn.
    Withdrawn {
        /// The service; `None` when its name is forgotten.
        service: Option<ServiceName>,
        /// The holders that know of it.
        report: WithdrawReport,
    },
    /// The addresses that others are told changed.
    Addresses(Arc<[Address]>),
    /// The machine was suspended, or its wall clock was set.
    ClockJumped {
        /// How long it was suspended.
        slept: Duration,
        /// How far the wall clock was set, in milliseconds.
        stepped_ms: i64,
    },
    /// The node has another grant than before: it was renewed, by the same issuer or another, or given by hand.
    Rotated {
        /// The node that signed it; `None` when the realm's key did.
        issuer: Option<NodeId>,
        /// How long it is valid.
        valid_for: Duration,
    },
    /// The node is out of its closed realm: it was revoked, or this issuer of its grants was.
    Revoked(NodeId),
    /// A connection was opened or ended, or a dial failed.
    Connection(PoolEvent),
    /// The standing of a provider changed for this node's calls.
    Provider(ClientEvent),
    /// The node begins to leave.
    Draining,
    /// The node has left. The last event.
    Left,
    /// Events came faster than they were taken, and so many were lost.
    Missed(u64),
}

/// A watch over a node.
#[derive(Debug)]
pub struct NodeEvents {
    /// `None` after the last event.
    own: Option<broadcast::Receiver<NodeEvent>>,
    pool: PoolEvents,
    client: ClientEvents,
}

impl NodeEvents {
    pub(crate) fn of(news: &News, pool: PoolEvents, client: ClientEvents) -> Self {
        Self {
            own: Some(news.0.subscribe()),
            pool,
            client,
        }
    }

    /// The next event; `None` after the node's end. Cancel safe.
    pub async fn next(&mut self) -> Option<NodeEvent> {
        let own = self.own.as_mut()?;
        let event = tokio::select! {
            event = own.recv() => match event {
                Ok(event) => event,
                Err(broadcast::error::RecvError::Lagged(missed)) => NodeEvent::Missed(missed),
                Err(broadcast::error::RecvError::Closed) => return None,
            },
            Some(event) = self.pool.next() => match event {
                PoolEvent::Missed(missed) => NodeEvent::Missed(missed),
                event => NodeEvent::Connection(event),
            },
            Some(event) = self.client.next() => match event {
                ClientEvent::Missed(missed) => NodeEvent::Missed(missed),
                event => NodeEvent::Provider(event),
            },
        };
        if matches!(event, NodeEvent::Left) {
            self.own = None;
        }
        Some(event)
    }
}

/// The readers of a node's own events.
#[derive(Debug, Clone)]
pub(crate) struct News(broadcast::Sender<NodeEvent>);

impl Default for News {
    fn default() -> Self {
        Self(broadcast::Sender::new(MAX_NODE_EVENTS))
    }
}

impl News {
    pub(crate) fn tell(&self, event: NodeEvent) {
        // Fails when there is no reader.
        let _ = self.0.send(event);
    }
}

impl NodeEvent {
    /// The kind of event, in a word that does not change.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Joined { .. } => "joined",
            Self::JoinFailed { .. } => "join_failed",
            Self::Published { report, .. } if report.refused.is_empty() => "published",
            Self::Published { .. } => "refused",
            Self::Withdrawn { .. } => "withdrawn",
            Self::Addresses(_) => "addresses",
            Self::ClockJumped { .. } => "clock_jumped",
            Self::Rotated { .. } => "rotated",
            Self::Revoked(_) => "revoked",
            Self::Connection(event) => event.name(),
            Self::Provider(event) => event.name(),
            Self::Draining => "draining",
            Self::Left => "left",
            Self::Missed(_) => "missed",
        }
    }

    /// Its service, if any.
    #[must_use]
    pub fn service(&self) -> Option<&ServiceName> {
        match self {
            Self::Published { service, .. } => Some(service),
            Self::Withdrawn { service, .. } => service.as_ref(),
            Self::Provider(event) => event.service(),
            _ => None,
        }
    }

    /// The other node, if any.
    #[must_use]
    pub fn node(&self) -> Option<NodeId> {
        match self {
            Self::Connection(event) => event.node(),
            Self::Provider(event) => event.node().copied(),
            Self::Rotated { issuer, .. } => *issuer,
            Self::Revoked(node) => Some(*node),
            _ => None,
        }
    }
}

/// The event in words, without the names of its service and node.
impl fmt::Display for NodeEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Joined { contacts } => write!(f, "joined the mesh; {contacts} nodes are known"),
            Self::JoinFailed { error, retry_in } => {
                write!(f, "not in the mesh: {error}; the next attempt is in {retry_in:?}")
            }
            Self::Published { report, .. } => write!(f, "published: {report}"),
            Self::Withdrawn { report, .. } => write!(
                f,
                "withdrawn: {} nodes know of it, {} could not be told",
                report.acknowledged, report.unacknowledged
            ),
            Self::Addresses(addresses) => {
                f.write_str("the node advertises")?;
                addresses.iter().try_for_each(|address| write!(f, " {address}"))
            }
            Self::ClockJumped { slept, stepped_ms } => write!(
                f,
                "the machine was suspended for {slept:?} and its wall clock set by {stepped_ms} ms"
            ),
            Self::Rotated { issuer, valid_for } => write!(
                f,
                "the node has a new grant, signed by {}, valid for {valid_for:?}",
                if issuer.is_some() {
                    "this issuer"
                } else {
                    "the realm's key"
                }
            ),
            Self::Revoked(_) => f.write_str("revoked, and this node is out of its realm with it"),
            Self::Connection(event) => event.fmt(f),
            Self::Provider(event) => event.fmt(f),
            Self::Draining => f.write_str("the node leaves: it takes no new calls and finishes those that run"),
            Self::Left => f.write_str("the node has left"),
            Self::Missed(count) => write!(
                f,
                "{count} events were lost, because they came faster than they were read"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use macula_transport::{Config, Endpoint, Identity, NoService};

    use super::*;

    #[tokio::test]
    async fn n5_a_slow_reader_is_told_how_many_events_it_lost_and_reads_the_last() {
        let config = Config::new(Identity::generate().unwrap()).with_listen("127.0.0.1:0".parse().unwrap());
        let endpoint = Endpoint::bind(config, NoService).await.unwrap();
        let client = macula_rpc::Client::builder(&endpoint, macula_rpc::StaticResolver::new()).build();
        let news = News::default();
        news.tell(NodeEvent::Draining);
        let mut events = NodeEvents::of(&news, endpoint.pool().events(), client.events());
        for contacts in 0..MAX_NODE_EVENTS + 3 {
            news.tell(NodeEvent::Joined { contacts });
        }
        assert!(
            matches!(events.next().await, Some(NodeEvent::Missed(3))),
            "what came before is no loss"
        );
        assert!(matches!(events.next().await, Some(NodeEvent::Joined { contacts: 3 })));
        let news_of_end = async {
            news.tell(NodeEvent::Left);
            let mut last = None;
            while let Some(event) = events.next().await {
                last = Some(event);
            }
            last
        };
        assert!(matches!(news_of_end.await, Some(NodeEvent::Left)));
        assert!(events.next().await.is_none());
    }
}
