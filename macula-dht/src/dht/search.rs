//! A search for providers: the records found, and how much each peer may add to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use macula_wire::{NodeId, ServiceKey, SignedProvider, VerifiedProvider};

use super::local::Local;
use crate::{
    DateError, MAX_CLOCK_SKEW, Want,
    clock::{Tick, nanos},
    message::peek,
    store::supersedes,
};

/// The most pages of one peer's list that a search reads.
const MAX_PAGES: u8 = 32;
/// The most providers that a search takes from one peer, or [`StoreLimits::providers_per_key`](crate::StoreLimits) when that is
/// more.
const LIST: usize = 256;
/// The most records of one answer that are checked: one to five milliseconds of work, since a chain that is not known has two signatures
/// more. The rest of a longer answer is asked for again, as its next page.
pub const MAX_CHECKS_PER_ANSWER: usize = 32;
/// The signatures that are checked for each peer, independent of the others. Beyond these, all peers of a search share one
/// list's length of checks.
const CHECKS_PER_PEER: usize = 32;

/// A search for providers.
#[derive(Debug)]
pub(super) struct Search {
    key: ServiceKey,
    want: Want,
    /// The newest record of each provider, withdrawals included.
    found: BTreeMap<NodeId, Seen>,
    live: usize,
    given: BTreeMap<NodeId, Given>,
    /// The signatures checked beyond [`CHECKS_PER_PEER`], for all peers together.
    shared_checks: usize,
    /// The step that found the first provider.
    hop: u8,
    /// By how much the dates of records were off that were not taken for them.
    misdated: Option<DateError>,
    pub(super) effort: Effort,
}

/// A record a search has seen.
#[derive(Debug)]
struct Seen {
    record: VerifiedProvider,
    /// The search shows it until then.
    expires: Tick,
}

/// How much of its list a peer has given.
#[derive(Debug, Default)]
struct Given {
    pages: u8,
    records: usize,
    checks: usize,
}

/// The part of an answer that is looked at.
#[derive(Debug)]
pub(super) struct Selection {
    pub(super) key: ServiceKey,
    /// The records that are not known, to be checked.
    pub(super) unknown: Vec<SignedProvider>,
    /// The last provider looked at, when the answer was too long to look at all of it.
    pub(super) cut_after: Option<NodeId>,
}

/// How hard a search tries. A search that ends without a provider tries harder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Effort {
    /// It asks the k closest.
    Plain,
    /// It asks the whole region that k nodes take up on average, because the k closest are crowded into a corner of it.
    Region,
    /// It goes on disjoint paths, none of which asks a node that another has asked (Baumgart and Mies, *S/Kademlia*, 2007).
    Disjoint,
}

impl Search {
    pub(super) fn new(key: ServiceKey, want: Want) -> Self {
        Self {
            key,
            want,
            found: BTreeMap::new(),
            live: 0,
            given: BTreeMap::new(),
            shared_checks: 0,
            hop: 0,
            misdated: None,
            effort: Effort::Plain,
        }
    }

    pub(super) fn key(&self) -> &ServiceKey {
        &self.key
    }

    /// The number of live providers found.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// The step that found the first provider.
    pub(super) fn hop(&self) -> u8 {
        self.hop
    }

    pub(super) fn is_satisfied(&self) -> bool {
        self.want.is_satisfied_by(self.live)
    }

    /// Selects the records of an answer that are not known yet and are to be checked.
    ///
    /// Made-up providers cost a peer nothing, so the work is bounded: for one answer by [`MAX_CHECKS_PER_ANSWER`], and for a peer
    /// by [`CHECKS_PER_PEER`] and its part of one list's length that all peers share. A peer that uses up the shared part takes
    /// nothing from the others' own.
    pub(super) fn select(&mut self, local: &Local, peer: &NodeId, records: Vec<SignedProvider>) -> Selection {
        let most = most_records(local);
        let given = self.given.entry(*peer).or_default();
        let mut selection = Selection {
            key: self.key,
            unknown: Vec::new(),
            cut_after: None,
        };
        let mut last = None;
        for record in records {
            if given.records == most {
                break;
            }
            let provider = peek(&record.body).map(|peek| peek.node);
            let known = provider.and_then(|provider| self.found.get(&provider));
            let is_known = known.is_some_and(|Seen { record: known, .. }| {
                known.body() == &record.body && known.signature()[..] == record.signature[..]
            });
            if !is_known {
                if selection.unknown.len() == MAX_CHECKS_PER_ANSWER {
                    selection.cut_after = last;
                    break;
                }
                if given.checks >= CHECKS_PER_PEER {
                    if self.shared_checks >= most {
                        // Nothing more is taken from this peer.
                        given.records = most;
                        break;
                    }
                    self.shared_checks += 1;
                }
                given.checks += 1;
                selection.unknown.push(record);
            }
            given.records += 1;
            last = provider;
        }
        selection
    }

    /// Merges records found at `hop`. Returns those that are news to the caller.
    pub(super) fn merge(
        &mut self,
        local: &Local,
        now: Instant,
        hop: u8,
        records: Vec<VerifiedProvider>,
    ) -> Vec<VerifiedProvider> {
        let tick = local.tick(now);
        let mut batch = Vec::new();
        for record in records {
            let validity = match local.clock.validity(now, &record) {
                Ok(validity) => validity,
                Err(error) => {
                    self.note_misdated(error);
                    continue;
                }
            };
            let known = self.found.get(record.node_id()).map(|known| &known.record);
            if known.is_some_and(|known| !supersedes(&record, known)) {
                continue;
            }
            let was_live = known.is_some_and(|known| !known.is_withdrawn());
            let expires = tick.saturating_add(nanos(validity));
            self.live = self.live + usize::from(!record.is_withdrawn()) - usize::from(was_live);
            if !record.is_withdrawn() {
                batch.push(record.clone());
            }
            self.found.insert(*record.node_id(), Seen { record, expires });
        }
        if !batch.is_empty() && self.hop == 0 {
            self.hop = hop;
        }
        batch
    }

    /// Notes a record that this node's clock rules out. One that has just expired says nothing about clocks.
    pub(super) fn note_misdated(&mut self, error: DateError) {
        if error.by() > MAX_CLOCK_SKEW && self.misdated.is_none_or(|known| known.by() < error.by()) {
            self.misdated = Some(error);
        }
    }

    /// By how much the dates were off of all that was found.
    pub(super) fn misdated(&self) -> Option<DateError> {
        self.misdated
    }

    /// Drops records that have expired since the search found them (D4).
    pub(super) fn drop_expired(&mut self, local: &Local, now: Instant) {
        let (tick, key) = (local.tick(now), self.key);
        let shown: BTreeSet<_> = local.store.get(now, &key).map(|record| *record.node_id()).collect();
        self.found.retain(|node, seen| {
            let is_held = || local.store.held(&key, node) == Some(&seen.record);
            // This node's own store received its records earlier, so they expire when they do there.
            seen.record.is_withdrawn() || (seen.expires > tick && (shown.contains(node) || !is_held()))
        });
        let live = self.found.values().filter(|seen| !seen.record.is_withdrawn());
        self.live = live.count();
    }

    /// Counts a page of `peer`'s list. Returns whether the search may ask for another.
    pub(super) fn wants_next_page(&mut self, local: &Local, peer: &NodeId) -> bool {
        let given = self.given.entry(*peer).or_default();
        given.pages += 1;
        given.pages < MAX_PAGES && given.records < most_records(local)
    }

    /// The live providers in the list's order (D1).
    pub(super) fn into_providers(self) -> Vec<VerifiedProvider> {
        let records = self.found.into_values().map(|seen| seen.record);
        let mut live: Vec<_> = records.filter(|record| !record.is_withdrawn()).collect();
        live.sort_by_cached_key(|record| self.key.rank(record.node_id()));
        live
    }
}

/// The most records that a search takes from one peer.
fn most_records(local: &Local) -> usize {
    local.config.store.providers_per_key.max(LIST)
}
