//! What goes to the backend and comes back from it.
//!
//! Records are kept as they change, contacts when there are others than those kept last. What comes back is checked like a stranger's:
//! signatures, dates, limits. Contacts are asked again before they enter the table, and until then they are where lookups start.

use std::time::{Duration, Instant};

use macula_wire::{MAX_TTL, Signer};

use super::{Dht, MAX_REMEMBERED};
use crate::{
    Backend, Change, Event, K, Output, Point, StoredContact, StoredRecord,
    clock::{millis, nanos},
};

/// The most changes of one commit; more are committed in a row.
const MAX_BATCH: usize = 4096;

impl<S: Signer, B: Backend> Dht<S, B> {
    pub(super) fn restore(&mut self, now: Instant) {
        if self.backend.is_volatile() {
            return;
        }
        self.store.track_changes();
        let loaded = match self.backend.load() {
            Ok(loaded) => loaded,
            Err(error) => return self.outputs.push_back(Output::Event(Event::BackendFailed(error))),
        };
        let now_ms = self.clock.unix_ms(now);
        for StoredRecord {
            key,
            node,
            record,
            expires_ms,
            held_until_ms,
        } in loaded.records
        {
            // Its own records a node publishes anew. What has expired goes with the next commit.
            if node == self.own || held_until_ms <= now_ms {
                self.store.note_change(&key, &node);
                continue;
            }
            let taken = match record.verify(&self.realm_hash, &key) {
                Ok(record) if *record.node_id() == node => {
                    let at = |ms: u64| now + Duration::from_millis(ms.saturating_sub(now_ms).min(millis(MAX_TTL)));
                    let (shown, held) = (at(expires_ms), at(held_until_ms));
                    self.store.restore(now, record, shown, held).is_ok()
                }
                Ok(_) | Err(_) => false,
            };
            if !taken {
                self.store.note_change(&key, &node);
            }
        }
        for StoredContact(contact) in loaded.contacts.into_iter().take(MAX_REMEMBERED) {
            if *contact.node_id() != self.own {
                self.joining.remember(contact);
            }
        }
        self.touch_backend(now);
        if self.joining.known_contacts().next().is_some() {
            self.bootstrap(now, []);
        }
    }

    /// Makes sure that changes are committed before long.
    pub(super) fn touch_backend(&mut self, now: Instant) {
        if self.store.has_changes() {
            self.commit_before_long(now);
        }
    }

    /// Makes sure that the contacts are committed before long, if they are others than those kept last: a node may have
    /// nothing else to keep.
    pub(super) fn keep_contacts(&mut self, now: Instant) {
        if !self.backend.is_volatile() && self.commit_at.is_none() && self.memorable_contacts() != self.kept_contacts {
            self.commit_before_long(now);
        }
    }

    fn commit_before_long(&mut self, now: Instant) {
        let at = self.clock.tick(now) + nanos(self.config.commit_interval);
        self.commit_at.get_or_insert(at);
    }

    pub(super) fn commit(&mut self, now: Instant) {
        if self.commit_at.is_none() {
            // Records that expired are changes too.
            self.touch_backend(now);
        }
        if self.commit_at.is_none_or(|at| at > self.clock.tick(now)) {
            return;
        }
        self.flush(now);
    }

    /// Commits what has changed, at once: before the process ends.
    pub fn flush(&mut self, now: Instant) {
        self.commit_at = None;
        if self.backend.is_volatile() {
            return;
        }
        let now_ms = self.clock.unix_ms(now);
        let mut changes: Vec<_> = self
            .store
            .take_changes()
            .into_iter()
            .map(
                |(key, node)| match (self.store.held(&key, &node), self.store.times(&key, &node)) {
                    (Some(record), Some((shown, held))) if node != self.own => {
                        let at = |until: Instant| now_ms.saturating_add(millis(until.saturating_duration_since(now)));
                        Change::Put(StoredRecord {
                            key,
                            node,
                            record: record.to_signed(),
                            expires_ms: at(shown),
                            held_until_ms: at(held),
                        })
                    }
                    _ => Change::Remove { key, node },
                },
            )
            .collect();
        let contacts = self.memorable_contacts();
        if contacts != self.kept_contacts {
            changes.push(Change::Contacts(contacts.clone()));
            self.kept_contacts = contacts;
        }
        for batch in changes.chunks(MAX_BATCH) {
            if let Err(error) = self.backend.commit(batch) {
                self.outputs.push_back(Output::Event(Event::BackendFailed(error)));
                return;
            }
        }
    }

    /// The contacts worth having after a restart: the neighbours, then some of every distance.
    fn memorable_contacts(&self) -> Vec<StoredContact> {
        let own = Point::from(self.own);
        let mut chosen: Vec<_> = self.table.closest(&own, K).cloned().collect();
        let everywhere = self.table.iter().step_by((self.table.len() / MAX_REMEMBERED).max(1));
        chosen.extend(everywhere.chain(self.joining.known_contacts()).cloned());
        let mut seen = std::collections::BTreeSet::new();
        chosen.retain(|contact| seen.insert(*contact.node_id()));
        chosen.truncate(MAX_REMEMBERED);
        chosen.into_iter().map(StoredContact).collect()
    }
}
