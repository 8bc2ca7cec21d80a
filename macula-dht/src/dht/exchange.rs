//! Requests under way: their numbers, their timeouts, and the reason for each.
//!
//! **Invariant:** a request ends once, by an answer, a failure or its hard timeout; a number that is not under way has no effect.

use std::{collections::BTreeMap, time::Duration};

use macula_wire::{Network, NodeId};

use super::{peer_lookups::MAX_PEER_REQUESTS, purpose::Purpose};
use crate::{
    Contact, Request, RequestId,
    clock::{Tick, nanos},
    message::Expected,
};

/// A request that waits for an answer.
#[derive(Debug)]
pub(super) struct Inflight {
    pub(super) to: Contact,
    pub(super) purpose: Purpose,
    pub(super) expects: Expected,
    for_peer: Option<Network>,
    sent: Tick,
}

/// The requests under way.
#[derive(Debug)]
pub(super) struct Exchange {
    /// Numbers grow and every request has the same timeouts, so the first is due first.
    inflight: BTreeMap<RequestId, Inflight>,
    next: u64,
    /// The number of those that lookups for the peers of each network have sent.
    for_peers: BTreeMap<Network, usize>,
    /// The first request that is not known to be overdue.
    soft_from: RequestId,
    soft: Tick,
    hard: Tick,
}

impl Exchange {
    pub(super) fn new(soft: Duration, hard: Duration) -> Self {
        Self {
            inflight: BTreeMap::new(),
            next: 0,
            for_peers: BTreeMap::new(),
            soft_from: RequestId(0),
            soft: nanos(soft),
            hard: nanos(hard),
        }
    }

    /// Whether a lookup for a peer of `network` may send a request. Of [`MAX_PEER_REQUESTS`] each network that has some under way gets a
    /// part, and one part is left for a newcomer.
    pub(super) fn admits(&self, network: Network) -> bool {
        let own = self.for_peers.get(&network).copied().unwrap_or(0);
        let parts = self.for_peers.len() + usize::from(own == 0) + 1;
        own < (MAX_PEER_REQUESTS / parts).max(1)
    }

    /// Notes a request that goes out at `tick`. Returns its number.
    pub(super) fn begin(
        &mut self,
        tick: Tick,
        to: Contact,
        purpose: Purpose,
        request: &Request,
        for_peer: Option<Network>,
    ) -> RequestId {
        let id = RequestId(self.next);
        self.next += 1;
        let expects = request.expects();
        let sent = tick;
        if let Some(network) = for_peer {
            *self.for_peers.entry(network).or_default() += 1;
        }
        self.inflight.insert(
            id,
            Inflight {
                to,
                purpose,
                expects,
                for_peer,
                sent,
            },
        );
        id
    }

    /// Ends a request that was answered or failed.
    pub(super) fn end(&mut self, id: RequestId) -> Option<Inflight> {
        let ended = self.inflight.remove(&id)?;
        if let Some(network) = ended.for_peer
            && let Some(count) = self.for_peers.get_mut(&network)
        {
            *count -= 1;
            if *count == 0 {
                self.for_peers.remove(&network);
            }
        }
        Some(ended)
    }

    /// The next request that has waited longer than the hard timeout. It has ended.
    pub(super) fn next_timed_out(&mut self, tick: Tick) -> Option<Inflight> {
        let (&id, first) = self.inflight.first_key_value()?;
        if first.sent + self.hard <= tick {
            self.end(id)
        } else {
            None
        }
    }

    /// The next request that has waited longer than the soft timeout, each once. It goes on.
    pub(super) fn next_overdue(&mut self, tick: Tick) -> Option<(Purpose, NodeId)> {
        let (&id, inflight) = self.inflight.range(self.soft_from..).next()?;
        if inflight.sent + self.soft > tick {
            return None;
        }
        self.soft_from = RequestId(id.0 + 1);
        Some((inflight.purpose, *inflight.to.node_id()))
    }

    /// When the next request is overdue or times out.
    pub(super) fn poll_timeout(&self) -> Option<Tick> {
        let hard = self.inflight.values().next().map(|first| first.sent + self.hard);
        let soft = self.inflight.range(self.soft_from..).next();
        let soft = soft.map(|(_, first)| first.sent + self.soft);
        [hard, soft].into_iter().flatten().min()
    }

    /// Gives unused memory back: an empty map keeps room for eleven entries.
    pub(super) fn give_back(&mut self) {
        if self.inflight.is_empty() {
            self.inflight = BTreeMap::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Tick = 1_000_000;

    fn exchange() -> Exchange {
        Exchange::new(Duration::from_millis(10), Duration::from_millis(30))
    }

    fn begin(exchange: &mut Exchange, tick: Tick) -> RequestId {
        let to = Contact::new(NodeId::from_bytes([1; 32]), []);
        exchange.begin(tick, to, Purpose::Probe, &Request::Ping, None)
    }

    #[test]
    fn a_request_is_overdue_once_and_then_times_out() {
        let mut exchange = exchange();
        let first = begin(&mut exchange, 0);
        begin(&mut exchange, 5 * MS);
        assert_eq!(exchange.poll_timeout(), Some(10 * MS));
        assert!(exchange.next_overdue(10 * MS).is_some());
        assert!(exchange.next_overdue(10 * MS).is_none());
        assert_eq!(exchange.poll_timeout(), Some(15 * MS));
        assert!(exchange.next_timed_out(29 * MS).is_none());
        assert!(exchange.next_timed_out(30 * MS).is_some());
        assert!(exchange.end(first).is_none(), "it has ended");
        assert!(exchange.next_timed_out(30 * MS).is_none());
    }

    /// Networks that take all they can leave a part to the next one, and all of it comes back.
    #[test]
    fn x10_the_requests_for_peers_are_shared_by_networks() {
        let mut exchange = exchange();
        let mut fill = |n: u8| {
            let (network, mut ids) = (Network::V4([10, 0, n]), Vec::new());
            let to = || Contact::new(NodeId::from_bytes([1; 32]), []);
            while exchange.admits(network) {
                ids.push(exchange.begin(0, to(), Purpose::Probe, &Request::Ping, Some(network)));
            }
            ids
        };
        let (first, second, third) = (fill(1), fill(2), fill(3));
        let counts = [first.len(), second.len(), third.len()];
        assert_eq!(
            counts,
            [MAX_PEER_REQUESTS / 2, MAX_PEER_REQUESTS / 3, MAX_PEER_REQUESTS / 4]
        );
        for id in [first, second, third].concat() {
            exchange.end(id);
        }
        assert!(exchange.for_peers.is_empty());
    }

    #[test]
    fn an_answered_request_has_no_timeout() {
        let mut exchange = exchange();
        let id = begin(&mut exchange, 0);
        assert!(exchange.end(id).is_some() && exchange.end(id).is_none());
        assert_eq!(exchange.poll_timeout(), None);
    }
}
