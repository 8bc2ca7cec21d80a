//! The routing table: the nodes this one knows, sorted into buckets by how much of its own id they share.
//!
//! Usable alone. There are 256 buckets, which take memory only once they have a contact. Each holds up to k contacts,
//! the least recently seen first, and a replacement cache of contacts that wait for a place.
//!
//! **Invariants:** this node is never in its own table; a contact is in the one bucket its distance names, as an entry or as a
//! replacement, never both; a contact that answers is never pushed out by a newcomer; per public /24 or /48 there are at most
//! [`Diversity::per_bucket`] entries in a bucket and [`Diversity::per_table`] in the table.
//!
//! What is left out: which nodes may enter. The caller inserts only nodes that answered a request of its own.

mod bucket;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use macula_wire::NodeId;

use self::bucket::{Bucket, Entry};
use crate::{
    Contact, Point,
    contact::Subnet,
    point::{BITS, Distance},
};

/// The number of contacts a bucket holds, of holders a key has, and of contacts a reply names.
pub const K: usize = 20;
/// The number of contacts that wait for a place in a bucket.
pub const REPLACEMENTS: usize = 10;
/// The number of requests in a row that a contact may fail before it goes, even if no other waits for its place.
pub const MAX_FAILURES: u8 = 3;

/// How many contacts of one public subnet, an IPv4 /24 or an IPv6 /48, a table takes.
///
/// Contacts with private or unknown addresses are not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Diversity {
    /// The most in one bucket.
    pub per_bucket: usize,
    /// The most in the table.
    pub per_table: usize,
}

impl Default for Diversity {
    fn default() -> Self {
        Self {
            per_bucket: 2,
            per_table: 10,
        }
    }
}

/// The outcome for a contact offered to a [`RoutingTable`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Insertion {
    /// It is a new entry.
    Added,
    /// It was an entry already, and is now the most recently seen.
    Refreshed,
    /// The bucket is full and the contact waits. `ping` is the entry whose place it would take: ask it whether it is there,
    /// and report the result with [`RoutingTable::note_answer`] or [`RoutingTable::note_failure`].
    Waiting {
        /// The least recently seen entry, unless it is known to be there or is being asked already.
        ping: Option<Contact>,
    },
    /// Too many of its subnet are there, or it is this node itself.
    Refused,
}

/// The contacts of a node.
///
/// ```
/// use std::time::{Duration, Instant};
///
/// use macula_dht::{Contact, Diversity, Insertion, K, Point, RoutingTable};
/// use macula_wire::NodeId;
///
/// const STALE: Duration = Duration::from_secs(60);
/// let contact = |n: u8| Contact::new(NodeId::from_bytes([n; 32]), ["10.0.0.1:4433".parse().unwrap()]);
/// let now = Instant::now();
/// let mut table = RoutingTable::new(NodeId::from_bytes([0; 32]), Diversity::default(), now);
///
/// // These twenty nodes answered requests of this node. They fill the bucket of ids that differ in the first bit.
/// for n in 128..148 {
///     assert_eq!(table.insert(now, contact(n), STALE), Insertion::Added);
/// }
/// let closest: Vec<_> = table.closest(&Point::from_bytes(&[140; 32]), 3).cloned().collect();
/// assert_eq!(closest, [contact(140), contact(141), contact(142)]);
///
/// // A newcomer waits while the least recently seen entry is pinged, and takes its place when the entry does not answer.
/// let newcomer = table.insert(now + STALE, contact(200), STALE);
/// assert_eq!(newcomer, Insertion::Waiting { ping: Some(contact(128)) });
/// assert_eq!(table.note_failure(contact(128).node_id()), Some(contact(128)));
/// assert!(table.contains(contact(200).node_id()) && table.len() == K);
///
/// // A lookup for a point of a bucket refreshes a bucket that no lookup went through for long.
/// let (bucket, age) = table.ages(now + STALE).next().unwrap();
/// assert_eq!((bucket, age), (0, STALE));
/// let target = table.point_in(bucket, &[7; 32]);
/// table.note_lookup(now + STALE, &target);
/// assert_eq!(table.ages(now + STALE).next(), Some((0, Duration::ZERO)));
/// ```
#[derive(Debug)]
pub struct RoutingTable {
    own: Point,
    diversity: Diversity,
    origin: Instant,
    /// Bit `i` is set when bucket `i` exists; the most significant bit of the first word is bucket 0.
    occupied: [u64; BITS / 64],
    /// The buckets that exist, by ascending index.
    buckets: Vec<Bucket>,
    len: usize,
}

impl RoutingTable {
    /// An empty table for the node `own`. Ages are counted from `now`.
    #[must_use]
    pub fn new(own: NodeId, diversity: Diversity, now: Instant) -> Self {
        Self {
            own: own.into(),
            diversity,
            origin: now,
            occupied: [0; BITS / 64],
            buckets: Vec::new(),
            len: 0,
        }
    }

    /// The number of entries, replacements not counted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Every entry, by ascending bucket and then from the least recently seen.
    pub fn iter(&self) -> impl Iterator<Item = &Contact> {
        self.buckets
            .iter()
            .flat_map(|bucket| bucket.entries.iter().map(|entry| &entry.contact))
    }

    /// Every contact that waits for a place.
    pub fn replacements(&self) -> impl Iterator<Item = &Contact> {
        self.buckets.iter().flat_map(|bucket| bucket.replacements.iter())
    }

    /// Whether `node` is an entry.
    #[must_use]
    pub fn contains(&self, node: &NodeId) -> bool {
        self.bucket_of(node)
            .is_some_and(|bucket| bucket.position(node).is_some())
    }

    /// Whether `contact` is worth a ping, because [`RoutingTable::insert`] would take it after an answer.
    #[must_use]
    pub fn wants(&self, contact: &Contact) -> bool {
        let Some(index) = self.index_of(contact.node_id()) else {
            return false;
        };
        match self.bucket_at(index) {
            None => self.admits(None, contact.subnet()),
            Some(bucket) if bucket.contains(contact.node_id()) => false,
            Some(bucket) if bucket.entries.len() < K => self.admits(Some(bucket), contact.subnet()),
            Some(bucket) => bucket.replacements.len() < REPLACEMENTS && self.may_wait(bucket, contact),
        }
    }

    /// Takes a contact that has just answered a request.
    ///
    /// An entry of more than `stale_after` that stands first in a full bucket is to be pinged before a newcomer may have its
    /// place.
    pub fn insert(&mut self, now: Instant, contact: Contact, stale_after: Duration) -> Insertion {
        let Some(index) = self.index_of(contact.node_id()) else {
            return Insertion::Refused;
        };
        let seen = self.seconds(now);
        let subnet = contact.subnet();
        let position = self.ensure_bucket(index, seen);
        let bucket = &mut self.buckets[position];
        if let Some(at) = bucket.position(contact.node_id()) {
            // The address may have changed. When its subnet has no room, keep the old address, which has answered too.
            let moved = bucket.entries[at].contact.subnet() != subnet;
            let admitted = !moved || self.admits(Some(&self.buckets[position]), subnet);
            let bucket = &mut self.buckets[position];
            if admitted {
                bucket.entries[at].set_contact(contact);
            }
            bucket.touch(at, seen);
            return Insertion::Refreshed;
        }
        if bucket.entries.len() < K {
            if !self.admits(Some(&self.buckets[position]), subnet) {
                self.drop_if_empty(index);
                return Insertion::Refused;
            }
            let bucket = &mut self.buckets[position];
            bucket.forget_replacement(contact.node_id());
            bucket.entries.push(Entry::new(contact, seen));
            self.len += 1;
            return Insertion::Added;
        }
        if !self.may_wait(&self.buckets[position], &contact) {
            return Insertion::Refused;
        }
        let bucket = &mut self.buckets[position];
        let stale = u32::try_from(stale_after.as_secs()).unwrap_or(u32::MAX);
        bucket.wait(contact);
        let oldest = &mut bucket.entries[0];
        let ping = (!oldest.checking && seen.saturating_sub(oldest.seen) >= stale).then(|| {
            oldest.checking = true;
            oldest.contact.clone()
        });
        Insertion::Waiting { ping }
    }

    /// Notes that `node` answered.
    pub fn note_answer(&mut self, now: Instant, node: &NodeId) {
        let seen = self.seconds(now);
        if let Some(bucket) = self.bucket_of_mut(node)
            && let Some(at) = bucket.position(node)
        {
            bucket.touch(at, seen);
        }
    }

    /// Notes that `node` was not asked after all, although [`Insertion::Waiting`] named it. A later newcomer may have it asked.
    pub fn note_unasked(&mut self, node: &NodeId) {
        if let Some(bucket) = self.bucket_of_mut(node)
            && let Some(at) = bucket.position(node)
        {
            bucket.entries[at].checking = false;
        }
    }

    /// Notes that `node` did not answer. It goes when another contact waits for its place, or after [`MAX_FAILURES`] in a row.
    /// Returns the contact that went.
    pub fn note_failure(&mut self, node: &NodeId) -> Option<Contact> {
        let index = self.index_of(node)?;
        let position = self.position(index)?;
        let bucket = &mut self.buckets[position];
        bucket.forget_replacement(node);
        let removed = match bucket.position(node) {
            Some(at) => {
                let entry = &mut bucket.entries[at];
                entry.failures = entry.failures.saturating_add(1);
                entry.checking = false;
                let (failures, subnet) = (entry.failures, entry.contact.subnet());
                let bucket = &self.buckets[position];
                // One of the same subnet takes no more room than this one did.
                let follows = |next: &Contact| next.subnet() == subnet || self.admits(Some(bucket), next.subnet());
                let gone = failures >= MAX_FAILURES || bucket.replacements.iter().any(follows);
                gone.then(|| self.buckets[position].entries.remove(at).contact)
            }
            None => None,
        };
        if removed.is_some() {
            self.len -= 1;
            self.promote(index);
        }
        self.drop_if_empty(index);
        removed
    }

    /// The `count` entries closest to `target`, closest first.
    pub fn closest(&self, target: &Point, count: usize) -> impl Iterator<Item = &Contact> {
        Closest::new(self, target).take(count)
    }

    /// The number of entries that are closer to `target` than this node, counted up to `limit`.
    #[must_use]
    pub fn closer_than_self(&self, target: &Point, limit: usize) -> usize {
        let own = self.own.distance(target);
        self.closest(target, limit)
            .take_while(|c| Point::from(c.node_id()).distance(target) < own)
            .count()
    }

    /// For each bucket that is not empty, by ascending index, the time since a lookup went through it. An old bucket is to be
    /// refreshed by a lookup for a [`RoutingTable::point_in`] it.
    pub fn ages(&self, now: Instant) -> impl Iterator<Item = (usize, Duration)> {
        let now = self.seconds(now);
        self.indices()
            .zip(&self.buckets)
            .map(move |(index, bucket)| (index, Duration::from_secs(now.saturating_sub(bucket.looked_up).into())))
    }

    /// Notes that a lookup for `target` has been started, which refreshes the bucket it falls into.
    pub fn note_lookup(&mut self, now: Instant, target: &Point) {
        let seconds = self.seconds(now);
        let index = self.own.distance(target).shared_bits();
        if let Some(position) = self.position(index) {
            self.buckets[position].looked_up = seconds;
        }
    }

    /// A point that falls into bucket `index`, from 0 for the farthest to 255; `noise` chooses the point.
    #[must_use]
    pub fn point_in(&self, index: usize, noise: &[u8; 32]) -> Point {
        self.own
            .diverging_at(index.min(BITS - 1), Point::from_bytes(noise).words())
    }

    /// The number of entries of each bucket, by ascending index, for measurements.
    pub fn bucket_sizes(&self) -> impl Iterator<Item = (usize, usize)> {
        self.indices()
            .zip(self.buckets.iter().map(|bucket| bucket.entries.len()))
    }

    fn admits(&self, bucket: Option<&Bucket>, subnet: Subnet) -> bool {
        if !subnet.is_limited() {
            return true;
        }
        let count = |bucket: &Bucket| {
            bucket
                .entries
                .iter()
                .filter(|entry| entry.contact.subnet() == subnet)
                .count()
        };
        bucket.map_or(0, count) < self.diversity.per_bucket
            && self.buckets.iter().map(count).sum::<usize>() < self.diversity.per_table
    }

    /// Whether `contact` may wait in a full bucket: it could be admitted, and no more of its subnet wait than the bucket takes, or a
    /// single party would fill the cache.
    fn may_wait(&self, bucket: &Bucket, contact: &Contact) -> bool {
        let subnet = contact.subnet();
        if !subnet.is_limited() {
            return true;
        }
        let others = bucket
            .replacements
            .iter()
            .filter(|other| other.node_id() != contact.node_id());
        others.filter(|other| other.subnet() == subnet).count() < self.diversity.per_bucket
            && self.admits(Some(bucket), subnet)
    }

    /// Fills free places of a bucket from its replacements, the most recently seen first.
    fn promote(&mut self, index: usize) {
        let Some(position) = self.position(index) else { return };
        let mut at = self.buckets[position].replacements.len();
        while at > 0 && self.buckets[position].entries.len() < K {
            at -= 1;
            let subnet = self.buckets[position].replacements[at].subnet();
            if self.admits(Some(&self.buckets[position]), subnet) {
                let bucket = &mut self.buckets[position];
                let contact = bucket.replacements.remove(at);
                // The time of its last answer is not kept while it waits. It counts as long ago, so it is pinged first for a newcomer.
                bucket.entries.push_front(Entry::new(contact, 0));
                self.len += 1;
            }
        }
    }

    fn seconds(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.origin).as_secs()).unwrap_or(u32::MAX)
    }

    /// The bucket `node` belongs to; `None` for this node itself.
    fn index_of(&self, node: &NodeId) -> Option<usize> {
        Some(self.own.distance(&node.into()).shared_bits()).filter(|&index| index < BITS)
    }

    /// Where bucket `index` is among those that exist.
    fn position(&self, index: usize) -> Option<usize> {
        let (word, bit) = (index / 64, index % 64);
        let occupied = self.occupied.get(word)? << bit >> 63 != 0;
        occupied.then(|| {
            let before: u32 = self.occupied[..word].iter().map(|w| w.count_ones()).sum();
            let within = if bit == 0 { 0 } else { self.occupied[word] >> (64 - bit) };
            (before + within.count_ones()) as usize
        })
    }

    fn bucket_at(&self, index: usize) -> Option<&Bucket> {
        self.position(index).map(|position| &self.buckets[position])
    }

    fn bucket_of(&self, node: &NodeId) -> Option<&Bucket> {
        self.index_of(node).and_then(|index| self.bucket_at(index))
    }

    fn bucket_of_mut(&mut self, node: &NodeId) -> Option<&mut Bucket> {
        let position = self.index_of(node).and_then(|index| self.position(index))?;
        Some(&mut self.buckets[position])
    }

    fn ensure_bucket(&mut self, index: usize, seconds: u32) -> usize {
        if let Some(position) = self.position(index) {
            return position;
        }
        self.occupied[index / 64] |= 1 << (63 - index % 64);
        let before: u32 = self.occupied[..index / 64].iter().map(|w| w.count_ones()).sum();
        let within = self.occupied[index / 64] >> (63 - index % 64);
        let position = (before + within.count_ones()) as usize - 1;
        self.buckets
            .reserve_exact(if self.buckets.len() == self.buckets.capacity() {
                4
            } else {
                0
            });
        self.buckets.insert(position, Bucket::new(seconds));
        position
    }

    fn drop_if_empty(&mut self, index: usize) {
        if let Some(position) = self.position(index)
            && self.buckets[position].is_empty()
        {
            self.buckets.remove(position);
            self.occupied[index / 64] &= !(1 << (63 - index % 64));
        }
    }

    fn indices(&self) -> impl Iterator<Item = usize> {
        let occupied = self.occupied;
        (0..BITS).filter(move |index| occupied[index / 64] << (index % 64) >> 63 != 0)
    }
}

/// Walks a table from the closest contact outwards.
///
/// Bucket `i` holds the contacts that first differ from this node at bit `i`. Let `d` be the distance between this node and
/// the target, and `t` its first set bit. Bucket `t` differs from the target later than bit `t`, all the others at bit `t` or
/// before, so it comes first. A deeper bucket `j > t` shares this node's bits up to `j`; there it differs, so against all the
/// buckets below it, it is closer exactly when bit `j` of `d` is set: those with a set bit come in ascending order, then those
/// with a clear one in descending order. Last come the buckets before `t`, the deepest first. Only one bucket is sorted at a time.
struct Closest<'a> {
    table: &'a RoutingTable,
    target: Point,
    /// The bits of `d`, and of buckets not yet visited.
    distance: Distance,
    unvisited: [u64; BITS / 64],
    first: bool,
    /// The rest of the bucket being walked, farthest first.
    sorted: [(u64, u8); K],
    left: usize,
    entries: &'a [Entry],
}

impl<'a> Closest<'a> {
    fn new(table: &'a RoutingTable, target: &Point) -> Self {
        let distance = table.own.distance(target);
        Self {
            table,
            target: *target,
            distance,
            unvisited: table.occupied,
            first: true,
            sorted: [(0, 0); K],
            left: 0,
            entries: &[],
        }
    }

    /// The next bucket of the order above.
    fn next_bucket(&mut self) -> Option<usize> {
        let top = self.distance.shared_bits();
        if std::mem::take(&mut self.first) && top < BITS && self.unvisited[top / 64] << (top % 64) >> 63 != 0 {
            return Some(top);
        }
        for (word, (unvisited, bits)) in self.unvisited.iter().zip(self.distance.words()).enumerate() {
            // Set bits after the first one: the bits before it are clear.
            let ahead = unvisited & bits;
            if ahead != 0 {
                return Some(64 * word + ahead.leading_zeros() as usize);
            }
        }
        for (word, &behind) in self.unvisited.iter().enumerate().rev() {
            if behind != 0 {
                return Some(64 * word + 63 - behind.trailing_zeros() as usize);
            }
        }
        None
    }

    fn open(&mut self, index: usize) {
        self.unvisited[index / 64] &= !(1 << (63 - index % 64));
        let Some(position) = self.table.position(index) else {
            return;
        };
        self.entries = &self.table.buckets[position].entries;
        self.left = self.entries.len().min(K);
        let target = self.target;
        for (at, (slot, entry)) in self.sorted.iter_mut().zip(self.entries).enumerate() {
            *slot = (entry.head() ^ target.head(), at as u8);
        }
        let entries = self.entries;
        let full = |at: u8| Point::from(entries[usize::from(at)].contact.node_id()).distance(&target);
        self.sorted[..self.left].sort_unstable_by(|a, b| b.0.cmp(&a.0).then_with(|| full(b.1).cmp(&full(a.1))));
    }
}

impl<'a> Iterator for Closest<'a> {
    type Item = &'a Contact;

    fn next(&mut self) -> Option<&'a Contact> {
        while self.left == 0 {
            let index = self.next_bucket()?;
            self.open(index);
        }
        self.left -= 1;
        Some(&self.entries[usize::from(self.sorted[self.left].1)].contact)
    }
}
