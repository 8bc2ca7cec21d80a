//! The records of all keys, side by side, and where each is.
//!
//! A refresh finds its record here at once, without going through the list of its key: in a large store every step on the way
//! is a cache miss, and the record itself is one already.
//!
//! **Invariants:** the records lie dense, so memory follows the number of records; every entry of the index names the place of a
//! record that is there. The index is only a shortcut: of two records whose fingerprints agree it has one, and the list of its key
//! leads to the other.

use std::{
    hash::{BuildHasher, Hasher},
    hint, mem,
    num::NonZeroU32,
};

use macula_wire::{NodeId, ServiceKey, VerifiedProvider};

use super::index::Index;
use crate::{clock::Tick, keyed::Keyed};

/// The records of a block. Growing by blocks moves nothing and never doubles the memory; the list of blocks stays in a core's own
/// cache.
const BLOCK: usize = 512;
/// From this many records on, superseded ones are dropped together.
const LARGE: usize = 8192;
/// The most superseded records that wait to be dropped.
const DROPPED_TOGETHER: usize = 16;

/// Where a record is, until one is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(u32);

impl Place {
    pub(super) const FIRST: Self = Self(0);
}

/// A short name for the holder that a record counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HolderId(pub(super) NonZeroU32);

/// A record as it is held.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) record: VerifiedProvider,
    /// The record is shown until then.
    pub(super) expires: Tick,
    /// The record's place is held until then: the latest `expires` of all the records merged into it.
    pub(super) retain: Tick,
    /// The holder it counts for; `None` for this node's own record.
    pub(super) holder: Option<HolderId>,
}

impl Stored {
    pub(super) fn is_local(&self) -> bool {
        self.holder.is_none()
    }

    pub(super) fn is_visible(&self, tick: Tick) -> bool {
        !self.record.is_withdrawn() && self.expires > tick
    }

    /// Whether peers are told of it: withdrawals too, so that they hide the records they supersede there.
    pub(super) fn is_told(&self, tick: Tick) -> bool {
        self.expires > tick
    }

    /// The bytes it is charged.
    pub(super) fn size(&self) -> usize {
        size_of(bytes_of(&self.record))
    }
}

/// The bytes that holding a record costs beyond its body: the structures around it and their share of the maps.
const RECORD_OVERHEAD: usize = 272;

/// The bytes of a record's body and its proof. The proof is charged to each record, although the records of a node share it.
pub(super) fn bytes_of(record: &VerifiedProvider) -> usize {
    record.body().len() + record.chain().map_or(0, |chain| chain.as_bytes().len())
}

/// The bytes that a record with so many bytes of body and proof is charged. Rounded up, so that a refresh whose numbers take a byte
/// more costs the same.
pub(super) fn size_of(bytes: usize) -> usize {
    bytes.next_multiple_of(64) + RECORD_OVERHEAD
}

#[derive(Debug)]
pub(super) struct Records {
    blocks: Vec<Vec<Stored>>,
    /// By a fingerprint of key and provider.
    index: Index,
    keyed: Keyed,
    /// Superseded records. Their memory left the caches long ago; when several are dropped together, the misses overlap.
    superseded: Vec<VerifiedProvider>,
}

impl Records {
    /// No records; `keyed` makes the fingerprints.
    pub(super) fn new(keyed: Keyed) -> Self {
        Self {
            blocks: Vec::new(),
            index: Index::default(),
            keyed,
            superseded: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self.blocks.split_last() {
            Some((last, full)) => full.len() * BLOCK + last.len(),
            None => 0,
        }
    }

    /// Whether a place for one more can be named.
    pub(super) fn has_room(&self) -> bool {
        u32::try_from(self.len()).is_ok_and(|len| len < u32::MAX)
    }

    /// The record of `node` under `key`. `None` says only that the shortcut does not lead there.
    pub(super) fn find(&self, key: &ServiceKey, node: &NodeId) -> Option<Place> {
        let place = Place(self.index.get(self.fingerprint(key, node))?);
        let record = &self.get(place).record;
        (record.node_id() == node && record.key() == key).then_some(place)
    }

    pub(super) fn get(&self, Place(at): Place) -> &Stored {
        &self.blocks[at as usize / BLOCK][at as usize % BLOCK]
    }

    pub(super) fn get_mut(&mut self, Place(at): Place) -> &mut Stored {
        &mut self.blocks[at as usize / BLOCK][at as usize % BLOCK]
    }

    /// Adds a record; the caller has seen that there is room.
    pub(super) fn add(&mut self, stored: Stored) -> Place {
        let place = Place(self.len() as u32);
        let fingerprint = self.fingerprint(stored.record.key(), stored.record.node_id());
        if self.index.get(fingerprint).is_none() {
            self.index.add(fingerprint, place.0);
        }
        if self.blocks.last().is_none_or(|block| block.len() == BLOCK) {
            self.blocks.push(Vec::new());
        }
        if let Some(block) = self.blocks.last_mut() {
            if block.len() == block.capacity() {
                // A small store takes little; in a large one a block is made whole at once.
                let more = if place.0 as usize >= BLOCK {
                    BLOCK
                } else {
                    1 + block.len() / 2
                };
                block.reserve_exact(more.min(BLOCK - block.len()));
            }
            block.push(stored);
        }
        place
    }

    /// Removes a record. Its place is taken by the last one, whose former place is returned if it was another.
    pub(super) fn remove(&mut self, place: Place) -> (Option<Stored>, Option<Place>) {
        self.forget(place);
        let Some(mut stored) = self.blocks.last_mut().and_then(Vec::pop) else {
            return (None, None);
        };
        if self.blocks.last().is_some_and(Vec::is_empty) {
            self.blocks.pop();
        }
        let last = Place(self.len() as u32);
        if last == place {
            return (Some(stored), None);
        }
        let fingerprint = self.fingerprint(stored.record.key(), stored.record.node_id());
        if self.index.get(fingerprint) == Some(last.0) {
            self.index.set(fingerprint, place.0);
        }
        mem::swap(self.get_mut(place), &mut stored);
        (Some(stored), Some(last))
    }

    /// Puts a newer record in the place of an older one.
    pub(super) fn supersede(&mut self, place: Place, record: VerifiedProvider) {
        let superseded = mem::replace(&mut self.get_mut(place).record, record);
        if self.len() < LARGE {
            return;
        }
        if self.superseded.len() == DROPPED_TOGETHER {
            self.drop_superseded();
        }
        self.superseded.push(superseded);
    }

    /// Drops the superseded records. It reads one byte of each body first: freeing a record takes more instructions than a core
    /// looks ahead, so without that hardly two of the misses would overlap.
    fn drop_superseded(&mut self) {
        let bodies = self.superseded.iter().map(|record| record.body());
        hint::black_box(bodies.fold(0, |read, body| read ^ body.first().copied().unwrap_or(0)));
        self.superseded.clear();
    }

    /// Takes a record out of the index.
    fn forget(&mut self, place: Place) {
        let record = &self.get(place).record;
        let fingerprint = self.fingerprint(record.key(), record.node_id());
        if self.index.get(fingerprint) == Some(place.0) {
            self.index.remove(fingerprint);
        }
    }

    fn fingerprint(&self, key: &ServiceKey, node: &NodeId) -> u32 {
        let mut hasher = self.keyed.build_hasher();
        hasher.write(key.as_bytes());
        hasher.write(node.as_bytes());
        hasher.finish() as u32
    }
}
