//! One key's list, in the order of ranks.

use std::cmp::Ordering;

use macula_wire::{NodeId, ServiceKey, VerifiedProvider};
use sha2::{Digest, Sha256};

use super::{
    Newcomer,
    records::{Place, Records},
};
use crate::{
    clock::Tick,
    contact::{Contact, Subnet},
};

/// What holding a record costs beyond its body, in bytes: the structures around it and their share of the maps.
pub(super) const RECORD_OVERHEAD: usize = 240;

/// A record as it is held.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) record: VerifiedProvider,
    /// From then on the record is not shown.
    pub(super) expires: Tick,
    /// From then on its place is not held: the latest `expires` of all the records merged into it.
    pub(super) retain: Tick,
    /// The subnet of who delivered it.
    pub(super) subnet: Subnet,
    /// This node's own.
    pub(super) local: bool,
}

impl Stored {
    pub(super) fn is_visible(&self, tick: Tick) -> bool {
        !self.record.is_withdrawn() && self.expires > tick
    }

    /// Whether peers are told of it: withdrawals too, so that they hide what they supersede there.
    pub(super) fn is_told(&self, tick: Tick) -> bool {
        self.expires > tick
    }
}

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

    /// Which record of a full list gives way: of the largest group of one subnet, the one that expires first.
    ///
    /// A remote newcomer gets in only when its own group stays smaller than the one that gives way, so one subnet never turns
    /// others out and equals never take turns. A local newcomer always gets in.
    pub(super) fn victim(&self, records: &Records, newcomer: Newcomer) -> Option<usize> {
        let remote = || self.stored(records).enumerate().filter(|(_, stored)| !stored.local);
        let mut subnets: Vec<_> = remote().map(|(_, stored)| stored.subnet).collect();
        subnets.sort_unstable();
        let largest = subnets.chunk_by(|a, b| a == b).max_by_key(|group| group.len())?;
        let (subnet, size) = (largest[0], largest.len());
        if let Newcomer::Remote(newcomer) = newcomer {
            let own = subnets.iter().filter(|&&subnet| subnet == newcomer).count();
            if own + 1 >= size {
                return None;
            }
        }
        remote()
            .filter(|(_, stored)| stored.subnet == subnet)
            .min_by_key(|(_, stored)| stored.expires)
            .map(|(at, _)| at)
    }
}

/// What a record with a body of this length is charged, in bytes. Rounded up so that a refresh, whose numbers may take a byte more, costs the same.
pub(super) fn size_of(body: usize) -> usize {
    body.next_multiple_of(64) + RECORD_OVERHEAD
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

/// The subnet a record's own first endpoint is in.
pub(super) fn claimed_subnet(record: &VerifiedProvider) -> Subnet {
    let Some(advertisement) = record.advertisement() else {
        return Subnet::UNKNOWN;
    };
    Contact::new(*record.node_id(), advertisement.endpoints().iter().cloned()).subnet()
}
