//! The peers that delivered the records, and how much of the store each takes.
//!
//! A record counts for the peer that first delivered it, and moves to its provider once the provider delivers it itself. So a
//! peer that floods the store or a key holds everything it has delivered, under any number of made-up names, and gives way first
//! ([`Shares`]). A peer that passes on the record of another takes nothing over.
//!
//! **Invariant:** every remote record is in the set of exactly one holder; a holder without records is forgotten.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
};

use macula_wire::{Admission, Holder, NodeId, Shares};

use super::records::{HolderId, Place};
use crate::clock::Tick;

#[derive(Debug)]
struct HolderSlot {
    holder: Holder<NodeId>,
    records: u32,
}

/// The holders of the remote records.
#[derive(Debug)]
pub(super) struct Holders {
    bytes: Shares<NodeId>,
    ids: BTreeMap<Holder<NodeId>, HolderId>,
    slots: Vec<HolderSlot>,
    free: Vec<HolderId>,
    records: BTreeSet<(HolderId, Place)>,
}

impl Holders {
    /// No holder of a store of `bytes`.
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            bytes: Shares::new(bytes as u64),
            ids: BTreeMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            records: BTreeSet::new(),
        }
    }

    /// Asks for the bytes of one more record. After [`Admission::Granted`] the caller adds it.
    pub(super) fn admit(&mut self, tick: Tick, holder: &Holder<NodeId>, bytes: usize) -> Admission<NodeId> {
        self.bytes.admit(holder, bytes as u64, tick)
    }

    /// The holder that gives way for a record of `newcomer` when the store is full.
    pub(super) fn victim(&self, newcomer: &Holder<NodeId>, bytes: usize) -> Option<Holder<NodeId>> {
        self.bytes.victim(newcomer, bytes as u64)
    }

    /// Whether `bytes` are free.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        self.bytes.fits(bytes as u64)
    }

    /// A record of `holder`.
    pub(super) fn record_of(&self, holder: &Holder<NodeId>) -> Option<Place> {
        let id = *self.ids.get(holder)?;
        let first = (id, Place::FIRST);
        let (found, place) = self.records.range(first..).next()?;
        (*found == id).then_some(*place)
    }

    /// The id of `holder`; `None` when it has no record.
    pub(super) fn find(&self, holder: &Holder<NodeId>) -> Option<HolderId> {
        self.ids.get(holder).copied()
    }

    /// The holder with this id.
    pub(super) fn holder(&self, id: HolderId) -> &Holder<NodeId> {
        &self.slots[index(id)].holder
    }

    /// The id of `holder`, which gets a record.
    pub(super) fn id_of(&mut self, holder: &Holder<NodeId>) -> HolderId {
        let id = match self.ids.get(holder) {
            Some(id) => *id,
            None => self.new_id(*holder),
        };
        self.slots[index(id)].records += 1;
        id
    }

    fn new_id(&mut self, holder: Holder<NodeId>) -> HolderId {
        let slot = HolderSlot { holder, records: 0 };
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[index(id)] = slot;
                id
            }
            None => {
                self.slots.push(slot);
                let next = u32::try_from(self.slots.len()).ok().and_then(NonZeroU32::new);
                HolderId(next.unwrap_or(NonZeroU32::MAX))
            }
        };
        self.ids.insert(holder, id);
        id
    }

    /// Notes the place of a record that was admitted for holder `id`.
    pub(super) fn add(&mut self, id: HolderId, place: Place) {
        self.records.insert((id, place));
    }

    /// A record is gone.
    pub(super) fn remove(&mut self, id: HolderId, place: Place, bytes: usize) {
        self.records.remove(&(id, place));
        let slot = &mut self.slots[index(id)];
        slot.records -= 1;
        self.bytes.release(&slot.holder, bytes as u64);
        if slot.records == 0 {
            self.ids.remove(&slot.holder);
            self.free.push(id);
        }
    }

    /// A record has another place.
    pub(super) fn relocate(&mut self, id: HolderId, from: Place, to: Place) {
        self.records.remove(&(id, from));
        self.records.insert((id, to));
    }

    /// A record changed from `before` to `after` bytes; the caller has seen that they fit.
    pub(super) fn resize(&mut self, tick: Tick, id: HolderId, before: usize, after: usize) {
        let holder = self.slots[index(id)].holder;
        if after > before {
            let _ = self.bytes.admit(&holder, (after - before) as u64, tick);
        } else {
            self.bytes.release(&holder, (before - after) as u64);
        }
    }

    /// The bytes held.
    pub(super) fn bytes(&self) -> usize {
        usize::try_from(self.bytes.used()).unwrap_or(usize::MAX)
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> (usize, usize) {
        (self.ids.len(), self.records.len())
    }
}

fn index(HolderId(id): HolderId) -> usize {
    id.get() as usize - 1
}
