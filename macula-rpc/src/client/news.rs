//! News of a client: which providers were ejected, restored, suspected, for people and dashboards.
//!
//! **Invariant.** A reader that is slow loses the oldest news and is told how many; nothing waits for it, and without a reader nothing is
//! kept.

use std::fmt;

use macula_select::Event;
use macula_wire::{NodeId, ServiceName};
use tokio::sync::broadcast;

/// News kept for a reader that is slow.
pub const MAX_CLIENT_EVENTS: usize = 1024;

/// Something happened to a provider that this client calls.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ClientEvent {
    /// The balancer of a service has news.
    Balancer {
        /// The service; `None` for the routers.
        service: Option<ServiceName>,
        /// The news.
        event: Event<NodeId>,
    },
    /// A connected node has been silent for longer than a living node would be (L2).
    Suspected(NodeId),
    /// A suspected node was heard again.
    Heard(NodeId),
    /// Events came faster than they were taken: the number of those lost.
    Missed(u64),
}

impl ClientEvent {
    /// The kind of event, in a word that does not change.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Balancer { event, .. } => event.name(),
            Self::Suspected(_) => "suspected",
            Self::Heard(_) => "heard",
            Self::Missed(_) => "missed",
        }
    }

    /// Its service, if any.
    #[must_use]
    pub const fn service(&self) -> Option<&ServiceName> {
        match self {
            Self::Balancer { service, .. } => service.as_ref(),
            Self::Suspected(_) | Self::Heard(_) | Self::Missed(_) => None,
        }
    }

    /// Its provider, if any.
    #[must_use]
    pub const fn node(&self) -> Option<&NodeId> {
        match self {
            Self::Balancer { event, .. } => event.provider(),
            Self::Suspected(node) | Self::Heard(node) => Some(node),
            Self::Missed(_) => None,
        }
    }
}

/// The event in words, without the names of its service and provider.
impl fmt::Display for ClientEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Balancer { event, .. } => event.fmt(f),
            Self::Suspected(_) => f.write_str("silent while calls wait: calls go to others as well"),
            Self::Heard(_) => f.write_str("heard again"),
            Self::Missed(count) => write!(
                f,
                "{count} events were lost, because they came faster than they were read"
            ),
        }
    }
}

/// A watch over a client.
#[derive(Debug)]
pub struct ClientEvents(broadcast::Receiver<ClientEvent>);

impl ClientEvents {
    /// The next event; `None` when the client is gone. Cancel safe.
    pub async fn next(&mut self) -> Option<ClientEvent> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(ClientEvent::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// The readers of a client's news.
#[derive(Debug, Clone)]
pub(super) struct News(broadcast::Sender<ClientEvent>);

impl Default for News {
    fn default() -> Self {
        Self(broadcast::Sender::new(MAX_CLIENT_EVENTS))
    }
}

impl News {
    pub(super) fn tell(&self, event: ClientEvent) {
        // Fails when there is no reader.
        let _ = self.0.send(event);
    }

    pub(super) fn watch(&self) -> ClientEvents {
        ClientEvents(self.0.subscribe())
    }

    /// Tells of one service's balancer.
    pub(super) fn teller(&self, service: Option<&ServiceName>) -> Teller {
        Teller(Some((self.clone(), service.cloned())))
    }
}

/// Tells the news of one balancer.
#[derive(Debug, Clone)]
pub(super) struct Teller(Option<(News, Option<ServiceName>)>);

impl Teller {
    /// For a balancer that one call uses.
    pub(super) fn silent() -> Self {
        Self(None)
    }

    /// Tells an event, unless it has no name.
    pub(super) fn tell(&self, event: Option<Event<NodeId>>) {
        if let (Some((news, service)), Some(event)) = (&self.0, event)
            && news.0.receiver_count() > 0
        {
            news.tell(ClientEvent::Balancer {
                service: service.clone(),
                event,
            });
        }
    }
}
