//! The advertisement of this node's services, and the addresses in it (D13).

use std::{
    net::IpAddr,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use macula_transport::{Endpoint, PeerInfo};
use macula_wire::{Address, Advertisement};
use tokio::sync::watch;

use crate::{
    BootstrapAddr,
    addresses::{Reach, interfaces, is_this_host_only},
};

/// The content of a node's records beside its addresses.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) ttl: Duration,
    pub(crate) weight: u32,
    pub(crate) zone: Option<String>,
}

impl Offer {
    fn at(&self, addresses: &[Address]) -> Advertisement {
        let plain = Advertisement::new(addresses.iter().cloned())
            .with_ttl(self.ttl)
            .with_weight(self.weight);
        match &self.zone {
            Some(zone) => plain.with_zone(zone),
            None => plain,
        }
    }
}

/// The advertisement of this node. The directory publishes it, the transport tells new peers its addresses, and [`Node::endpoints`]
/// shows them.
///
/// [`Node::endpoints`]: crate::Node::endpoints
pub(crate) struct Announcement {
    reach: Reach,
    offer: Offer,
    bootstrap: Vec<BootstrapAddr>,
    addresses: watch::Sender<Arc<[Address]>>,
    transport: Weak<Endpoint>,
}

impl Announcement {
    /// The announcement of a node with this reach, and the addresses that it announces from now on.
    pub(crate) fn new(
        reach: Reach,
        offer: Offer,
        bootstrap: Vec<BootstrapAddr>,
        transport: &Arc<Endpoint>,
        now: Instant,
    ) -> (Self, watch::Receiver<Arc<[Address]>>) {
        let (addresses, watched) = watch::channel(Arc::default());
        let mut announcement = Self {
            reach,
            offer,
            bootstrap,
            addresses,
            transport: Arc::downgrade(transport),
        };
        announcement.look(now);
        (announcement, watched)
    }

    /// The addresses advertised now.
    pub(super) fn addresses(&self) -> Arc<[Address]> {
        self.addresses.borrow().clone()
    }

    /// The advertisement of every service.
    pub(crate) fn advertisement(&self) -> Advertisement {
        self.offer.at(&self.addresses.borrow())
    }

    /// Looks where the node can be reached now, and says whether that has changed.
    pub(super) fn look(&mut self, now: Instant) -> bool {
        let transport = self.transport.upgrade();
        let one_is_gone = match (&mut self.reach, &transport) {
            (Reach::Everywhere(everywhere), _) => match interfaces::read(&self.bootstrap) {
                Ok(found) => everywhere.set_interfaces(&found),
                Err(error) => {
                    tracing::debug!(%error, "the network interfaces cannot be read");
                    false
                }
            },
            (Reach::Bound(bound), Some(transport)) => {
                let before = std::mem::replace(bound, transport.local_addr());
                before != *bound
            }
            (Reach::Fixed(_), _) | (Reach::Bound(_), None) => false,
        };
        let addresses = self.reach.addresses(now);
        if self.addresses.borrow()[..] == addresses[..] {
            return false;
        }
        let shown: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        tracing::info!(addresses = shown.join(" "), "the node advertises these addresses");
        if is_this_host_only(&addresses) {
            tracing::warn!(
                addresses = shown.join(" "),
                "only this host can reach the node; listen on an address of the network, or set the address to advertise"
            );
        }
        if let Some(transport) = transport {
            transport.set_advertised(addresses.iter().cloned());
            if one_is_gone {
                // Connections over an address that is gone carry nothing, and the news have to reach the others. An address that
                // peers reported is no reason: they could have all connections checked again and again.
                transport.check_connections();
            }
        }
        self.addresses.send_replace(addresses.into());
        true
    }

    /// Notes where a peer sees this node.
    pub(super) fn seen_by(&mut self, now: Instant, peer: &PeerInfo) {
        if let (Reach::Everywhere(everywhere), Some(at)) = (&mut self.reach, peer.observed) {
            let by: IpAddr = peer.remote_addr.ip();
            everywhere.observed(now, by, at);
        }
    }
}
