//! One connection at one moment, for people and dashboards. A look at it counts as no use, so it keeps no connection open.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    link::{Direction, Link},
    watch::Presence,
};
use crate::peer::PeerInfo;

/// Which side made a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opener {
    /// This node dialed.
    Here,
    /// The peer did.
    Peer,
}

impl Opener {
    /// Its name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Peer => "peer",
        }
    }
}

/// One open connection.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConnectionStats {
    /// The peer.
    pub peer: Arc<PeerInfo>,
    /// The side that dialed.
    pub opener: Opener,
    /// When both sides had accepted it.
    pub since: Instant,
    /// Whether the peer is believed to be there.
    pub presence: Presence,
    /// The estimate of the path's round trip.
    pub rtt: Duration,
    /// Packets sent over this path.
    pub sent_packets: u64,
    /// Of these, declared lost (RFC 9002, section 6.1).
    pub lost_packets: u64,
    /// Bytes of UDP payload sent.
    pub sent_bytes: u64,
    /// Bytes of UDP payload received.
    pub received_bytes: u64,
    /// Calls and requests of this node to the peer under way.
    pub calls_out: usize,
    /// Calls and requests of the peer under way.
    pub calls_in: usize,
}

impl ConnectionStats {
    pub(crate) fn of(link: &Link, opener: Opener) -> Self {
        let quic = link.quic.stats();
        Self {
            peer: Arc::clone(&link.peer),
            opener,
            since: link.since,
            presence: link.watch.presence(),
            rtt: quic.path.rtt,
            sent_packets: quic.path.sent_packets,
            lost_packets: quic.path.lost_packets,
            sent_bytes: quic.udp_tx.bytes,
            received_bytes: quic.udp_rx.bytes,
            calls_out: link.running(Direction::Outbound),
            calls_in: link.unanswered(),
        }
    }
}
