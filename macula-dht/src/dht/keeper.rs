//! Records and contacts on their way to the backend and back.
//!
//! Records are kept as they change. Contacts are kept when they differ from those kept last. Loaded records are checked like a
//! stranger's: signatures, rights, dates, limits. Contacts are asked again before they enter the table, and until then lookups start from
//! them.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use macula_wire::MAX_TTL;

use super::local::{Local, MAX_REMEMBERED};
use crate::{
    Backend, BackendError, Change, Point, StoredContact, StoredRecord,
    clock::{Tick, millis, nanos},
    table::K,
};

/// The most changes of one commit; more are committed in a row.
const MAX_BATCH: usize = 4096;

/// Keeps the records and contacts that a node wants back after a restart.
#[derive(Debug)]
pub(super) struct Keeper<B> {
    backend: B,
    /// When changes are next committed, if there are any.
    commit_at: Option<Tick>,
    /// The contacts that were committed last.
    kept_contacts: Vec<StoredContact>,
}

impl<B: Backend> Keeper<B> {
    pub(super) fn new(backend: B) -> Self {
        Self {
            backend,
            commit_at: None,
            kept_contacts: Vec::new(),
        }
    }

    /// Loads the records and contacts that were kept.
    pub(super) fn restore(&mut self, local: &mut Local, now: Instant) -> Result<(), BackendError> {
        if self.backend.is_volatile() {
            return Ok(());
        }
        local.store.track_changes();
        let loaded = self.backend.load()?;
        for record in loaded.records {
            let (key, node) = (record.key, record.node);
            if !restore_record(local, now, record) {
                local.store.note_change(&key, &node);
            }
        }
        for StoredContact(contact) in loaded.contacts.into_iter().take(MAX_REMEMBERED) {
            if *contact.node_id() != local.own {
                local.ways_in.remember(contact);
            }
        }
        Ok(())
    }

    /// When [`Keeper::handle_timeout`] next has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Tick> {
        self.commit_at
    }

    /// Makes sure that changed records are committed before long.
    pub(super) fn note_changes(&mut self, local: &Local, now: Instant) {
        if local.store.has_changes() {
            self.commit_before_long(local, now);
        }
    }

    /// Makes sure that the contacts are committed before long if they differ from those kept last: a node may have nothing else
    /// to keep.
    pub(super) fn note_contacts(&mut self, local: &Local, now: Instant) {
        if !self.backend.is_volatile() && self.commit_at.is_none() && memorable_contacts(local) != self.kept_contacts {
            self.commit_before_long(local, now);
        }
    }

    /// Commits changes that are due.
    pub(super) fn handle_timeout(&mut self, local: &mut Local, now: Instant) -> Result<(), BackendError> {
        if self.commit_at.is_none_or(|at| at > local.tick(now)) {
            return Ok(());
        }
        self.flush(local, now)
    }

    /// Commits every change at once.
    pub(super) fn flush(&mut self, local: &mut Local, now: Instant) -> Result<(), BackendError> {
        self.commit_at = None;
        if self.backend.is_volatile() {
            return Ok(());
        }
        let now_ms = local.clock.unix_ms(now);
        let at = |until: Instant| now_ms.saturating_add(millis(until.saturating_duration_since(now)));
        let changed = local.store.take_changes().into_iter();
        let mut changes: Vec<_> = changed
            .map(|(key, node)| {
                let store = &local.store;
                let kept = store.held(&key, &node).zip(store.times(&key, &node));
                match kept.zip(store.deliverer(&key, &node)) {
                    Some(((record, (shown, held)), deliverer)) if node != local.own => Change::Put(StoredRecord {
                        key,
                        node,
                        record: record.to_signed(),
                        deliverer,
                        expires_ms: at(shown),
                        held_until_ms: at(held),
                    }),
                    Some(_) | None => Change::Remove { key, node },
                }
            })
            .collect();
        let contacts = memorable_contacts(local);
        if contacts != self.kept_contacts {
            changes.push(Change::Contacts(contacts.clone()));
            self.kept_contacts = contacts;
        }
        changes
            .chunks(MAX_BATCH)
            .try_for_each(|batch| self.backend.commit(batch))
    }

    fn commit_before_long(&mut self, local: &Local, now: Instant) {
        let at = local.tick(now) + nanos(local.config.commit_interval);
        self.commit_at.get_or_insert(at);
    }
}

/// Takes a record back. Returns whether it is held.
fn restore_record(local: &mut Local, now: Instant, stored: StoredRecord) -> bool {
    let now_ms = local.clock.unix_ms(now);
    // A node publishes its own records again.
    if stored.node == local.own || stored.held_until_ms <= now_ms {
        return false;
    }
    match local.verify(now, &stored.key, &stored.record) {
        Ok(record) if *record.node_id() == stored.node => {
            let at = |ms: u64| now + Duration::from_millis(ms.saturating_sub(now_ms).min(millis(MAX_TTL)));
            let (shown, held) = (at(stored.expires_ms), at(stored.held_until_ms));
            local.store.restore(now, record, shown, held, stored.deliverer).is_ok()
        }
        Ok(_) | Err(_) => false,
    }
}

/// The contacts worth having after a restart: the neighbours, then some of every distance.
fn memorable_contacts(local: &Local) -> Vec<StoredContact> {
    let own = Point::from(local.own);
    let mut chosen: Vec<_> = local.table.closest(&own, K).cloned().collect();
    let everywhere = local.table.iter().step_by((local.table.len() / MAX_REMEMBERED).max(1));
    chosen.extend(everywhere.chain(local.ways_in.contacts()).cloned());
    let mut seen = BTreeSet::new();
    chosen.retain(|contact| seen.insert(*contact.node_id()));
    chosen.truncate(MAX_REMEMBERED);
    chosen.into_iter().map(StoredContact).collect()
}
