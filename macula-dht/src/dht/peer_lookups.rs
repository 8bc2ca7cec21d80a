//! Lookups on behalf of peers, and the share of each peer.
//!
//! **Invariant:** at most [`MAX_PEER_LOOKUPS`] run, so peers never take the lookups that this node needs itself.

use std::collections::{BTreeMap, BTreeSet};

use macula_wire::{Admission, Holder, Network, NodeId, Shares};

use super::queries::{MAX_QUERIES, TooManyQueries};
use crate::{Contact, QueryId, clock::Tick};

/// The most lookups that run for peers at a time: half of [`MAX_QUERIES`].
pub const MAX_PEER_LOOKUPS: usize = MAX_QUERIES / 2;

/// The most requests that lookups for peers have under way. A shell should allow twice as many, so that this node's own are sent.
pub const MAX_PEER_REQUESTS: usize = 1024;

/// A lookup for a peer is not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerLookupError {
    /// The peer asks for more lookups than it may.
    #[error("the peer asks for lookups faster than it may; ask again later")]
    TooFast,
    /// All lookups for peers are taken, and the peer has its share of them.
    #[error("{MAX_PEER_LOOKUPS} lookups run for peers, and this peer has its share of them; ask again later")]
    ShareTaken,
    /// This node needs all of its lookups itself.
    #[error(transparent)]
    TooMany(#[from] TooManyQueries),
}

/// How a lookup gets a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Started {
    /// It may start.
    Now,
    /// This lookup gives way first.
    InsteadOf(QueryId),
}

/// The lookups that run for peers.
#[derive(Debug)]
pub(super) struct PeerLookups {
    shares: Shares<NodeId>,
    by_query: BTreeMap<QueryId, Holder<NodeId>>,
    by_holder: BTreeSet<(Holder<NodeId>, QueryId)>,
}

impl PeerLookups {
    pub(super) fn new() -> Self {
        Self {
            shares: Shares::new(MAX_PEER_LOOKUPS as u64),
            by_query: BTreeMap::new(),
            by_holder: BTreeSet::new(),
        }
    }

    /// Asks for a lookup for `peer`. After [`Started::InsteadOf`] that lookup is gone from here, and the caller asks again.
    pub(super) fn admit(&mut self, tick: Tick, peer: &Contact) -> Result<Started, PeerLookupError> {
        match self.shares.admit(&holder_of(peer), 1, tick) {
            Admission::Granted => Ok(Started::Now),
            Admission::Refused => Err(PeerLookupError::ShareTaken),
            Admission::Evict(victim) => {
                let its = self.by_holder.range((victim, QueryId(0))..).next();
                let (_, oldest) = *its.ok_or(PeerLookupError::ShareTaken)?;
                self.end(oldest);
                Ok(Started::InsteadOf(oldest))
            }
        }
    }

    /// Notes the lookup that was admitted; `None` when it was not started after all.
    pub(super) fn begin(&mut self, peer: &Contact, started: Option<QueryId>) {
        let holder = holder_of(peer);
        match started {
            Some(query) => {
                self.by_query.insert(query, holder);
                self.by_holder.insert((holder, query));
            }
            None => self.shares.release(&holder, 1),
        }
    }

    /// The network of the peer that a lookup runs for.
    pub(super) fn network(&self, query: QueryId) -> Option<Network> {
        self.by_query.get(&query).map(|holder| holder.network)
    }

    /// A lookup has ended. A lookup of this node itself changes nothing.
    pub(super) fn end(&mut self, query: QueryId) {
        if let Some(holder) = self.by_query.remove(&query) {
            self.by_holder.remove(&(holder, query));
            self.shares.release(&holder, 1);
        }
    }
}

fn holder_of(peer: &Contact) -> Holder<NodeId> {
    Holder::new(Network::from(peer.ip()), *peer.node_id())
}
