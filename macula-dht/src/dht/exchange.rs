//! Requests under way: their numbers, their timeouts, and the reason for each.
//!
//! **Invariant:** a request ends once, by an answer, a failure or its hard timeout; a number that is not under way has no effect.

use std::{collections::BTreeMap, time::Duration};

use macula_wire::NodeId;

use super::purpose::Purpose;
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
    sent: Tick,
}

/// The requests under way.
#[derive(Debug)]
pub(super) struct Exchange {
    /// Numbers grow and every request has the same timeouts, so the first is due first.
    inflight: BTreeMap<RequestId, Inflight>,
    next: u64,
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
            soft_from: RequestId(0),
            soft: nanos(soft),
            hard: nanos(hard),
        }
    }

    /// Notes a request that goes out at `tick`. Returns its number.
    pub(super) fn begin(&mut self, tick: Tick, to: Contact, purpose: Purpose, request: &Request) -> RequestId {
        let id = RequestId(self.next);
        self.next += 1;
        let expects = request.expects();
        let sent = tick;
        self.inflight.insert(
            id,
            Inflight {
                to,
                purpose,
                expects,
                sent,
            },
        );
        id
    }

    /// Ends a request that was answered or failed.
    pub(super) fn end(&mut self, id: RequestId) -> Option<Inflight> {
        self.inflight.remove(&id)
    }

    /// The next request that has waited longer than the hard timeout. It has ended.
    pub(super) fn next_timed_out(&mut self, tick: Tick) -> Option<Inflight> {
        let first = self.inflight.first_entry()?;
        (first.get().sent + self.hard <= tick).then(|| first.remove())
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
        exchange.begin(tick, to, Purpose::Probe, &Request::Ping)
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

    #[test]
    fn an_answered_request_has_no_timeout() {
        let mut exchange = exchange();
        let id = begin(&mut exchange, 0);
        assert!(exchange.end(id).is_some() && exchange.end(id).is_none());
        assert_eq!(exchange.poll_timeout(), None);
    }
}
