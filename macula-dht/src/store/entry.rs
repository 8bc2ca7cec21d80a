//! One key's list, in the order of ranks.

use std::cmp::Ordering;

use macula_wire::{NodeId, ServiceKey, Shares, VerifiedProvider};
use sha2::{Digest, Sha256};

use super::records::{HolderId, Place, Records, Stored};
use crate::clock::Tick;

/// A place in a list.
#[derive(Debug)]
pub(super) struct Slot {
    /// The first 32 bits of the rank.
    rank: u32,
    pub(super) place: Place,
}

/// The list of a key, by ascending rank.
#[derive(Debug, Default)]
pub(super) struct KeyEntry {
    pub(super) slots: Vec<Slot>,
    /// How many of them are not this node's own.
    pub(super) remote: usize,
    /// The time this key stands under in the order of expiry; 0 for none.
    pub(super) due: Tick,
    /// The places of each holder. Kept from the moment the list is full, since before that no holder gives way.
    pub(super) shares: Option<Box<Shares<NodeId>>>,
}

pub(super) fn rank_of(key: &ServiceKey, node: &NodeId) -> u32 {
    let [a, b, c, d, ..] = key.rank(node);
    u32::from_be_bytes([a, b, c, d])
}

impl KeyEntry {
    /// Where the record of `node` is, or where it would be.
    ///
    /// Ranks are hashes, so a place is guessed from the rank and walked to: one cache line where a binary search reads four. Ids
    /// ground to crowd the ranks make it walk farther, at most the length of the list.
    pub(super) fn find(&self, records: &Records, rank: u32, node: &NodeId) -> Result<usize, usize> {
        let compare = |slot: &Slot| {
            slot.rank.cmp(&rank).then_with(|| {
                // Others whose first 32 bits agree are rare, or ground; the whole rank decides.
                let record = &records.get(slot.place).record;
                if record.node_id() == node {
                    return Ordering::Equal;
                }
                record.key().rank(record.node_id()).cmp(&record.key().rank(node))
            })
        };
        let mut at = ((u64::from(rank) * self.slots.len() as u64) >> 32) as usize;
        while at > 0 && compare(&self.slots[at - 1]).is_ge() {
            at -= 1;
        }
        while let Some(slot) = self.slots.get(at) {
            match compare(slot) {
                Ordering::Less => at += 1,
                Ordering::Equal => return Ok(at),
                Ordering::Greater => break,
            }
        }
        Err(at)
    }

    /// Adds the record at `place`, of a provider that is not in the list.
    pub(super) fn insert(&mut self, records: &Records, rank: u32, place: Place) {
        let at = match self.find(records, rank, records.get(place).record.node_id()) {
            Ok(at) | Err(at) => at,
        };
        if self.slots.len() == self.slots.capacity() {
            self.slots.reserve_exact(1 + self.slots.len() / 4);
        }
        self.slots.insert(at, Slot { rank, place });
    }

    /// The records of the list.
    pub(super) fn stored<'a>(&'a self, records: &'a Records) -> impl Iterator<Item = &'a Stored> {
        self.slots.iter().map(|slot| records.get(slot.place))
    }

    /// The record of `holder` that expires first.
    pub(super) fn first_to_expire(&self, records: &Records, holder: HolderId) -> Option<usize> {
        let its = self
            .stored(records)
            .enumerate()
            .filter(|(_, stored)| stored.holder == Some(holder));
        its.min_by_key(|(_, stored)| stored.expires).map(|(at, _)| at)
    }
}

/// Whether `new` wins over `old`, of the same provider and key.
pub(crate) fn supersedes(new: &VerifiedProvider, old: &VerifiedProvider) -> bool {
    let order = new
        .seq()
        .cmp(&old.seq())
        .then(new.is_withdrawn().cmp(&old.is_withdrawn()));
    order.then_with(|| digest(new).cmp(&digest(old))).is_gt()
}

fn digest(record: &VerifiedProvider) -> [u8; 32] {
    Sha256::new()
        .chain_update(record.body())
        .chain_update(record.signature())
        .finalize()
        .into()
}
