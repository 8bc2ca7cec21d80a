//! Whether the log names a peer: a peer that is refused all the time fills no log and hides no other peer.
//!
//! A core: the time is an argument. Every refusal is counted elsewhere.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::NodeId;

/// The most peers that are named in [`NAMED_AGAIN_AFTER`].
pub const MAX_NAMED: usize = 256;
/// How long after the first peer was named all may be named again.
pub const NAMED_AGAIN_AFTER: Duration = Duration::from_secs(60 * 60);

/// The peers that were named for one kind of wrong.
#[derive(Debug, Clone, Default)]
pub struct Named {
    peers: BTreeSet<NodeId>,
    since: Option<Instant>,
}

impl Named {
    /// Whether `peer` is to be named now: once in [`NAMED_AGAIN_AFTER`], and with [`MAX_NAMED`] others at most.
    pub fn is_new(&mut self, peer: NodeId, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= NAMED_AGAIN_AFTER {
            self.peers.clear();
            self.since = Some(now);
        }
        self.peers.len() < MAX_NAMED && self.peers.insert(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: usize) -> NodeId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        NodeId::from_bytes(bytes)
    }

    #[test]
    fn a5_each_peer_is_named_once_an_hour_and_so_many_at_most() {
        let (mut named, start) = (Named::default(), Instant::now());
        let mut count = |times: usize, now| (0..times).filter(|n| named.is_new(peer(n % 1000), now)).count();
        assert_eq!(count(1, start), 1);
        assert_eq!(count(100, start), 99);
        assert_eq!(count(100, start), 0);
        assert_eq!(count(5000, start), MAX_NAMED - 100);
        assert_eq!(count(5000, start + NAMED_AGAIN_AFTER - Duration::from_secs(1)), 0);
        assert_eq!(count(3, start + NAMED_AGAIN_AFTER), 3);
    }
}
