//! Room for a record, at the cost of the peers that delivered most.

use macula_wire::{Admission, Holder, Network, NodeId, ServiceKey, Shares};

use super::{
    InsertError, ProviderStore, entry,
    records::{HolderId, Place},
};
use crate::{clock::Tick, contact::Contact};

/// The most records of the largest holder that are evicted to free one key.
const MAX_EVICTIONS: usize = 16;

impl ProviderStore {
    /// A remote record becomes this node's own: its identity was used elsewhere before.
    pub(super) fn take_over(&mut self, key: &ServiceKey, node: &NodeId, id: HolderId, place: Place, bytes: usize) {
        if let Some(entry) = self.keys.get_mut(key) {
            entry.remote -= 1;
            self.usage.keys -= usize::from(entry.remote == 0);
            if let Some(shares) = &mut entry.shares {
                shares.release(self.holders.holder(id), 1);
            }
        }
        self.holders.remove(id, place, bytes);
        self.usage.records -= 1;
        self.usage.local += 1;
        self.forget_publisher(node);
    }

    /// Lets a record count for its provider, when the provider delivers it itself.
    pub(super) fn give_to_provider(&mut self, tick: Tick, place: Place, from: &Contact) {
        let stored = self.records.get(place);
        let (size, key) = (stored.size(), *stored.record.key());
        let Some(before) = stored.holder.filter(|_| stored.record.node_id() == from.node_id()) else {
            return;
        };
        let (former, provider) = (*self.holders.holder(before), holder_of(from));
        if former == provider {
            return;
        }
        self.holders.remove(before, place, size);
        let _ = self.holders.admit(tick, &provider, size);
        let id = self.holders.id_of(&provider);
        self.holders.add(id, place);
        self.records.get_mut(place).holder = Some(id);
        if let Some(shares) = self.keys.get_mut(&key).and_then(|entry| entry.shares.as_mut()) {
            shares.release(&former, 1);
            let _ = shares.admit(&provider, 1, tick);
        }
    }

    /// Whether there can be room for a record of a provider that is new under its key; `None` is this node itself.
    pub(super) fn check_room(
        &mut self,
        key: &ServiceKey,
        node: &NodeId,
        size: usize,
        holder: Option<&Holder<NodeId>>,
    ) -> Result<(), InsertError> {
        if !self.records.has_room() {
            return Err(InsertError::StoreFull);
        }
        let Some(holder) = holder else {
            let is_full = self.usage.local >= self.limits.local_records;
            let may_enter = !self.is_key_full(key) || self.key_victim(key, None).is_some();
            return match (is_full, may_enter) {
                (true, _) => Err(InsertError::StoreFull),
                (false, false) => Err(InsertError::KeyFull),
                (false, true) => Ok(()),
            };
        };
        let published = self.publishers.get(node).map_or(0, |&count| count as usize);
        if published >= self.limits.records_per_publisher {
            return Err(InsertError::PublisherQuota);
        }
        if self.is_key_full(key) && self.key_victim(key, Some(holder)).is_none() {
            return Err(InsertError::KeyFull);
        }
        let is_full = self.needs_key(key) || !(self.is_key_full(key) || self.holders.fits(size));
        if is_full && self.holders.victim(holder, size).is_none() {
            return Err(InsertError::StoreFull);
        }
        Ok(())
    }

    /// Makes room for a record, at the cost of the largest holders. A remote holder is charged for it.
    pub(super) fn make_room(
        &mut self,
        tick: Tick,
        key: &ServiceKey,
        node: &NodeId,
        size: usize,
        holder: Option<&Holder<NodeId>>,
    ) -> Result<(), InsertError> {
        self.check_room(key, node, size, holder)?;
        if self.is_key_full(key) {
            let victim = self.key_victim(key, holder).ok_or(InsertError::KeyFull)?;
            self.remove(key, victim);
        }
        let Some(holder) = holder else { return Ok(()) };
        for _ in 0..MAX_EVICTIONS {
            if !self.needs_key(key) {
                break;
            }
            let victim = self.holders.victim(holder, size).ok_or(InsertError::StoreFull)?;
            self.evict(&victim);
        }
        if self.needs_key(key) {
            return Err(InsertError::StoreFull);
        }
        loop {
            match self.holders.admit(tick, holder, size) {
                Admission::Granted => return Ok(()),
                Admission::Evict(victim) => self.evict(&victim),
                Admission::Refused => return Err(InsertError::StoreFull),
            }
        }
    }

    /// Makes room for a record of the holder `id` to grow by so many bytes, at the cost of larger holders.
    pub(super) fn make_room_to_grow(&mut self, id: HolderId, more: usize) -> Result<(), InsertError> {
        while !self.holders.fits(more) {
            let victim = self.holders.victim(self.holders.holder(id), more);
            self.evict(&victim.ok_or(InsertError::StoreFull)?);
        }
        Ok(())
    }

    /// Whether a record under `key` needs a key more than there may be.
    fn needs_key(&self, key: &ServiceKey) -> bool {
        let has_remote = self.keys.get(key).is_some_and(|entry| entry.remote > 0);
        !has_remote && self.usage.keys >= self.limits.keys
    }

    fn is_key_full(&self, key: &ServiceKey) -> bool {
        let len = self.keys.get(key).map_or(0, |entry| entry.slots.len());
        len >= self.limits.providers_per_key
    }

    /// The record of a full list that gives way for one of `newcomer`; `None` as newcomer is this node itself.
    fn key_victim(&mut self, key: &ServiceKey, newcomer: Option<&Holder<NodeId>>) -> Option<usize> {
        let entry = self.keys.get_mut(key)?;
        let (records, holders) = (&self.records, &self.holders);
        let shares = match &mut entry.shares {
            Some(shares) => shares,
            None => {
                let mut shares = Shares::new(u64::MAX);
                let ids = entry.slots.iter().filter_map(|slot| records.get(slot.place).holder);
                ids.for_each(|id| {
                    let _ = shares.admit(holders.holder(id), 1, 0);
                });
                entry.shares.insert(Box::new(shares))
            }
        };
        let victim = match newcomer {
            Some(newcomer) => shares.victim(newcomer, 1)?,
            None => shares.largest()?,
        };
        entry.first_to_expire(records, holders.find(&victim)?)
    }

    /// Evicts a record of a holder.
    fn evict(&mut self, victim: &Holder<NodeId>) {
        let Some(place) = self.holders.record_of(victim) else {
            return;
        };
        let record = &self.records.get(place).record;
        let (key, node) = (*record.key(), *record.node_id());
        if let Some(entry) = self.keys.get(&key)
            && let Ok(at) = entry.find(&self.records, entry::rank_of(&key, &node), &node)
        {
            self.remove(&key, at);
            self.settle(&key);
        }
    }
}

/// The holder that a record from `contact` counts for.
pub(super) fn holder_of(contact: &Contact) -> Holder<NodeId> {
    Holder::new(Network::from(contact.ip()), *contact.node_id())
}
