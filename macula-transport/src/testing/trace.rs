//! The events of a network: counted, and hashed in order.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ring::digest::{Context, SHA256};

/// The fates of the datagrams sent on a network, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Datagrams that arrived, duplicates included.
    pub delivered: u64,
    /// Bytes of them.
    pub delivered_bytes: u64,
    /// Datagrams lost by chance.
    pub lost: u64,
    /// Datagrams that arrived a second time.
    pub duplicated: u64,
    /// Datagrams larger than the link carries, such as path discovery's probes.
    pub too_large: u64,
    /// Datagrams that a cut or a partition kept.
    pub cut: u64,
    /// Datagrams to an address where no host listens.
    pub no_host: u64,
    /// Datagrams beyond [`MAX_IN_FLIGHT`](super::MAX_IN_FLIGHT), or beyond what the link carries.
    pub overflowed: u64,
    /// Datagrams that arrived changed.
    pub corrupted: u64,
    /// Answers that nothing listens at an address.
    pub unreachable: u64,
}

/// How a datagram ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    Delivered,
    /// Delivered a second time.
    Duplicated,
    /// Delivered changed.
    Corrupted,
    Lost,
    TooLarge,
    Cut,
    NoHost,
    Overflowed,
    /// No datagram of the host it comes from, but ICMP's word that nothing listens there.
    Unreachable,
}

pub(super) struct Trace {
    hash: Context,
    pub(super) traffic: Traffic,
}

impl Trace {
    pub(super) fn new() -> Self {
        Self {
            hash: Context::new(&SHA256),
            traffic: Traffic::default(),
        }
    }

    pub(super) fn datagram(&mut self, at: Duration, from: SocketAddr, to: SocketAddr, bytes: usize, fate: Fate) {
        tracing::trace!(?at, %from, %to, bytes, ?fate, "datagram");
        self.hash.update(&nanos(at));
        for addr in [from, to] {
            let ip = match addr.ip() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            self.hash.update(&ip.octets());
            self.hash.update(&addr.port().to_be_bytes());
        }
        self.hash.update(&(bytes as u64).to_be_bytes());
        self.hash.update(&[fate as u8]);
        let traffic = &mut self.traffic;
        let count = match fate {
            Fate::Delivered => &mut traffic.delivered,
            Fate::Duplicated => {
                traffic.delivered += 1;
                &mut traffic.duplicated
            }
            Fate::Corrupted => {
                traffic.delivered += 1;
                &mut traffic.corrupted
            }
            Fate::Lost => &mut traffic.lost,
            Fate::TooLarge => &mut traffic.too_large,
            Fate::Cut => &mut traffic.cut,
            Fate::NoHost => &mut traffic.no_host,
            Fate::Overflowed => &mut traffic.overflowed,
            Fate::Unreachable => &mut traffic.unreachable,
        };
        *count += 1;
        if matches!(fate, Fate::Delivered | Fate::Duplicated | Fate::Corrupted) {
            traffic.delivered_bytes += bytes as u64;
        }
    }

    pub(super) fn note(&mut self, at: Duration, event: fmt::Arguments<'_>) {
        tracing::trace!(?at, %event, "noted");
        self.hash.update(&nanos(at));
        self.hash.update(event.to_string().as_bytes());
        self.hash.update(b"\n");
    }

    /// The first 64 bits of the hash.
    pub(super) fn hash(&self) -> u64 {
        let digest = self.hash.clone().finish();
        digest
            .as_ref()
            .iter()
            .take(8)
            .fold(0, |hash, &byte| hash << 8 | u64::from(byte))
    }
}

/// Nanoseconds of 584 years are enough.
fn nanos(at: Duration) -> [u8; 8] {
    (at.as_nanos() as u64).to_be_bytes()
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace")
            .field("traffic", &self.traffic)
            .finish_non_exhaustive()
    }
}
