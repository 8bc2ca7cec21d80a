//! A lookup under way, and the callers that wait for it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use macula_dht::Clock;
use macula_rpc::Provider;
use macula_wire::{ServiceKey, VerifiedProvider};

use super::LookupReply;

/// How long after the first provider a call waits for others. Every node that holds a key's list holds all of it, so one silent node
/// should not delay a call.
const ENOUGH_AFTER: Duration = Duration::from_millis(100);

/// A lookup under way, and the callers that wait for it.
pub(super) struct Lookup {
    pub(super) key: ServiceKey,
    /// Callers that take the providers found by [`Lookup::enough_at`].
    pub(super) hurried: Vec<LookupReply>,
    /// Callers that wait for the whole list.
    pub(super) patient: Vec<LookupReply>,
    pub(super) found: BTreeMap<[u8; 32], VerifiedProvider>,
    /// When those found so far are enough for a call; not before there is one.
    pub(super) enough_at: Option<Instant>,
    /// This node waits for it, and not peers alone.
    pub(super) own: bool,
    /// It takes from the share of a peer, and ends when others of that share need it.
    pub(super) for_peer: bool,
}

impl Lookup {
    /// The providers found so far, in the list's order; without those whose records have ended since (D4).
    pub(super) fn so_far(&self, now: Instant, clock: &Clock) -> Arc<[Provider]> {
        super::read(self.found.values().filter(|record| clock.validity(now, record).is_ok()))
    }

    pub(super) fn add(&mut self, now: Instant, batch: Vec<VerifiedProvider>) {
        for record in batch {
            let rank = self.key.rank(record.node_id());
            if record.is_withdrawn() {
                self.found.remove(&rank);
            } else {
                self.found.insert(rank, record);
            }
        }
        if !self.found.is_empty() {
            self.enough_at.get_or_insert(now + ENOUGH_AFTER);
        }
    }

    pub(super) fn is_enough(&self, now: Instant) -> bool {
        self.enough_at.is_some_and(|at| at <= now)
    }
}
