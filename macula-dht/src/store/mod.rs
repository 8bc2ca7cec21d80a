//! The provider store: for each key a list of signed records, one a provider (D1 to D4, D9, D10).
//!
//! Usable alone. Only a [`VerifiedProvider`] gets in, so every record here was signed by the provider it names.
//!
//! **Merging.** Of two records of one provider under one key the higher `seq` wins; on a tie a withdrawal beats a live record,
//! then the larger SHA-256 of body and signature. The order is total, so merging is commutative, associative and idempotent.
//! A loser stays remembered through the winner: its place is held, hidden, until every record merged into it would have expired,
//! so no older record shows again after a newer, shorter-lived one or a withdrawal.
//!
//! **Sharing.** A full key and a full store make room for a newcomer at the cost of the peer that delivered most, as [`Shares`]
//! says: the network with most records first, then the peer in it. A peer within its share is not refused.
//!
//! **Invariants:** nothing expired is ever returned; a key has one record a node; remote usage is within
//! [`StoreLimits`] after every call; remote records neither evict nor crowd out local ones.
//!
//! What is left out: which peers may publish here at all, and how fast. That is decided before a signature is checked.

mod entry;
mod holders;
mod index;
mod records;
mod revoked;
mod room;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use macula_wire::{Holder, MAX_TTL, NodeId, ServiceKey, SignedProvider, VerifiedProvider};

pub(crate) use self::entry::supersedes;
use self::{
    entry::KeyEntry,
    holders::Holders,
    records::{Place, Records, Stored, bytes_of, size_of},
    room::holder_of,
};
use crate::{
    Clock, DateError, Refusal,
    clock::{MAX_CLOCK_SKEW, Tick, millis, nanos},
    contact::Contact,
    keyed::Keyed,
    message::Peek,
};

/// The limits of a store. Every limit is hard. The peers that deliver remote records share them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreLimits {
    /// The most providers of one key, local ones included.
    pub providers_per_key: usize,
    /// The most keys that remote records are under.
    pub keys: usize,
    /// The most bytes of remote records: their bodies, and the structures that hold them.
    pub bytes: usize,
    /// The most remote records of one publisher.
    pub records_per_publisher: usize,
    /// The most records of this node itself. They count against none of the limits above but the first.
    pub local_records: usize,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            providers_per_key: 256,
            keys: 65_536,
            bytes: 64 * 1024 * 1024,
            records_per_publisher: 4096,
            local_records: 65_536,
        }
    }
}

/// Where a record came from.
#[derive(Debug, Clone, Copy)]
pub enum Origin<'a> {
    /// This node published it.
    Local,
    /// This peer delivered it. In a full store or key the peer that delivered most gives way.
    Remote(&'a Contact),
    /// It was read back from a backend, and this peer had delivered it.
    Restored(Holder<NodeId>),
}

/// How a record was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// The provider is new under this key.
    New,
    /// It supersedes the provider's earlier record.
    Replaced,
    /// The very record was there already.
    Unchanged,
}

/// A record was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InsertError {
    /// A newer record of the provider is there.
    #[error("a newer record of this provider is stored, with sequence number {stored_seq}")]
    Stale {
        /// The sequence number of the newer record.
        stored_seq: u64,
    },
    /// Its dates rule it out.
    #[error(transparent)]
    Dates(#[from] DateError),
    /// The key holds [`StoreLimits::providers_per_key`], and the peer that delivers the record has its share of them.
    #[error("the key has as many providers as it may, and this peer has delivered its share of them")]
    KeyFull,
    /// The store is at [`StoreLimits::keys`] or [`StoreLimits::bytes`] and the peer that delivers the record has its share, or
    /// this node is at [`StoreLimits::local_records`].
    #[error("the store is full, and this peer has its share of it")]
    StoreFull,
    /// The publisher is at [`StoreLimits::records_per_publisher`].
    #[error("the publisher has as many records here as it may")]
    PublisherQuota,
}

impl From<InsertError> for Refusal {
    fn from(error: InsertError) -> Self {
        match error {
            InsertError::Stale { .. } => Self::Stale,
            InsertError::Dates(DateError::Expired { by }) => Self::Expired { by },
            InsertError::Dates(DateError::FromTheFuture { by }) => Self::FromTheFuture { by },
            InsertError::KeyFull => Self::KeyFull,
            InsertError::StoreFull => Self::StoreFull,
            InsertError::PublisherQuota => Self::PublisherQuota,
        }
    }
}

/// The contents of a store, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Keys with at least one remote record.
    pub keys: usize,
    /// Remote records, withdrawals and held places included.
    pub records: usize,
    /// The bytes these are charged.
    pub bytes: usize,
    /// Local records.
    pub local: usize,
}

/// The records this node holds, its own and those of others.
///
/// ```
/// use std::time::{Duration, Instant};
///
/// use macula_dht::{Clock, Contact, Inserted, Origin, ProviderStore, StoreLimits};
/// use macula_wire::{Advertisement, Address, Realm, SecretKey, ServiceKey, Signer, VerifiedProvider};
///
/// let (now, unix_ms) = (Instant::now(), 1_800_000_000_000);
/// let mut store = ProviderStore::new(Clock::new(now, unix_ms), StoreLimits::default(), 7);
/// let (realm, provider) = (Realm::default(), SecretKey::from_bytes(&[1; 32]));
/// let key = ServiceKey::new(&realm, &"api.compute".parse()?);
///
/// // A record that a provider signed and a peer delivered is verified, and then taken.
/// let endpoint: Address = "node1.example:4433".parse()?;
/// let advertisement = Advertisement::new([endpoint.clone()]).with_ttl(Duration::from_secs(60));
/// let signed = VerifiedProvider::sign(&provider, &realm.hash(), &key, 1, unix_ms, &advertisement)?.to_signed();
/// let peer = Contact::new(provider.node_id(), [endpoint]);
/// let record = signed.verify(&realm.hash(), &key)?;
/// assert_eq!(store.insert(now, record, Origin::Remote(&peer))?, Inserted::New);
/// assert_eq!(store.get(now, &key).count(), 1);
///
/// // Nothing is shown past its validity, whether or not `expire` has been called by then.
/// let later = now + Duration::from_secs(60);
/// assert_eq!(store.get(later, &key).count(), 0);
/// assert_eq!(store.poll_timeout(), Some(later));
/// store.expire(later);
/// assert_eq!(store.usage().records, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ProviderStore {
    clock: Clock,
    limits: StoreLimits,
    /// By a hash that peers cannot predict, since they choose the keys.
    keys: HashMap<ServiceKey, KeyEntry, Keyed>,
    /// The records in the lists of the keys.
    records: Records,
    /// The same keys in ascending order.
    order: BTreeSet<ServiceKey>,
    /// Remote records of each publisher.
    publishers: BTreeMap<NodeId, u32>,
    /// The peers that delivered the remote records.
    holders: Holders,
    /// When each key next has something to drop: one element a key.
    due: BTreeSet<(Tick, ServiceKey)>,
    usage: Usage,
    /// Records that changed and are not committed, when a backend keeps them.
    changes: Option<BTreeSet<(ServiceKey, NodeId)>>,
}

impl ProviderStore {
    /// An empty store. `seed` keys its hashes: give each process a secret one of its own.
    #[must_use]
    pub fn new(clock: Clock, limits: StoreLimits, seed: u64) -> Self {
        let keyed = Keyed::new(seed);
        Self {
            clock,
            limits,
            keys: HashMap::with_hasher(keyed.clone()),
            records: Records::new(keyed),
            order: BTreeSet::new(),
            publishers: BTreeMap::new(),
            holders: Holders::new(limits.bytes),
            due: BTreeSet::new(),
            usage: Usage::default(),
            changes: None,
        }
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> StoreLimits {
        self.limits
    }

    /// The contents, in numbers.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Merges a record into its key's list.
    ///
    /// # Errors
    /// Why it was not taken. The store is then as before, but for the time an older record's place is held.
    pub fn insert(
        &mut self,
        now: Instant,
        record: VerifiedProvider,
        origin: Origin<'_>,
    ) -> Result<Inserted, InsertError> {
        let tick = self.clock.tick(now);
        let (expires, retain) = self.lifetime(now, tick, &record)?;
        self.place(tick, record, expires, retain, origin)
    }

    /// Takes back a record from a backend. It is shown until `shown`, and its place is held until `held`.
    ///
    /// Unlike [`ProviderStore::insert`] this starts no time again, and holds the place of a record that is no longer shown.
    pub(crate) fn restore(
        &mut self,
        now: Instant,
        record: VerifiedProvider,
        shown: Instant,
        held: Instant,
        deliverer: Holder<NodeId>,
    ) -> Result<Inserted, InsertError> {
        let tick = self.clock.tick(now);
        let (expires, retain) = match self.lifetime(now, tick, &record) {
            Ok((expires, retain)) => (expires.min(self.clock.tick(shown)), retain),
            Err(DateError::Expired { .. }) => (tick, tick),
            Err(error) => return Err(error.into()),
        };
        // The times of a file are no more to be trusted than the rest of it.
        let held = self.clock.tick(held).min(tick + nanos(MAX_TTL + MAX_CLOCK_SKEW));
        let retain = if expires > tick { retain.max(held) } else { held };
        if retain <= tick {
            let by = Duration::from_nanos(tick - retain);
            return Err(DateError::Expired { by }.into());
        }
        self.place(tick, record, expires, retain, Origin::Restored(deliverer))
    }

    /// Merges a record whose times are known.
    fn place(
        &mut self,
        tick: Tick,
        record: VerifiedProvider,
        expires: Tick,
        retain: Tick,
        origin: Origin<'_>,
    ) -> Result<Inserted, InsertError> {
        let key = *record.key();
        let local = matches!(origin, Origin::Local);
        if let Some(place) = self.find(&key, record.node_id()) {
            return self.merge(tick, place, record, expires, retain, origin);
        }
        let size = size_of(bytes_of(&record));
        self.expire_key(tick, &key);
        let holder = match origin {
            Origin::Local => None,
            Origin::Remote(contact) => Some(holder_of(contact)),
            Origin::Restored(holder) => Some(holder),
        };
        if let Err(refused) = self.make_room(tick, &key, record.node_id(), size, holder.as_ref()) {
            self.settle(&key);
            return Err(refused);
        }
        let id = holder.map(|holder| self.holders.id_of(&holder));
        if local {
            self.usage.local += 1;
        } else {
            *self.publishers.entry(*record.node_id()).or_default() += 1;
            self.usage.records += 1;
        }
        self.note_change(&key, record.node_id());
        let rank = entry::rank_of(&key, record.node_id());
        let place = self.records.add(Stored {
            record,
            expires,
            retain,
            holder: id,
        });
        if let Some(id) = id {
            self.holders.add(id, place);
        }
        let entry = self.keys.entry(key).or_insert_with(|| {
            self.order.insert(key);
            KeyEntry::default()
        });
        if !local {
            entry.remote += 1;
            self.usage.keys += usize::from(entry.remote == 1);
        }
        if let (Some(shares), Some(holder)) = (&mut entry.shares, &holder) {
            let _ = shares.admit(holder, 1, tick);
        }
        entry.insert(&self.records, rank, place);
        self.count_bytes();
        self.look_at(&key, retain);
        Ok(Inserted::New)
    }

    /// The visible records of a key, in the list's order (D1).
    pub fn get(&self, now: Instant, key: &ServiceKey) -> impl Iterator<Item = &VerifiedProvider> + use<'_> {
        let tick = self.clock.tick(now);
        self.slots(key)
            .filter(move |stored| stored.is_visible(tick))
            .map(|stored| &stored.record)
    }

    /// The records that peers are told of: like [`ProviderStore::get`], with withdrawals, and only after the provider `after`.
    pub fn page(
        &self,
        now: Instant,
        key: &ServiceKey,
        after: Option<&NodeId>,
    ) -> impl Iterator<Item = &VerifiedProvider> + use<'_> {
        let tick = self.clock.tick(now);
        let entry = self.keys.get(key);
        let from = match (entry, after) {
            (Some(entry), Some(node)) => match entry.find(&self.records, entry::rank_of(key, node), node) {
                Ok(at) => at + 1,
                Err(at) => at,
            },
            _ => 0,
        };
        entry
            .into_iter()
            .flat_map(move |entry| &entry.slots[from..])
            .map(|slot| self.records.get(slot.place))
            .filter(move |stored| stored.is_told(tick))
            .map(|stored| &stored.record)
    }

    /// The record of `node` under `key` as it is held, visible or not.
    #[must_use]
    pub fn held(&self, key: &ServiceKey, node: &NodeId) -> Option<&VerifiedProvider> {
        self.find(key, node).map(|place| &self.records.get(place).record)
    }

    /// The keys from `from` on, in ascending order.
    pub fn keys_from(&self, from: &ServiceKey) -> impl Iterator<Item = &ServiceKey> {
        self.order.range(from..)
    }

    /// Drops this node's own record of a key without a trace. For a record that was never published, or is being replaced.
    pub fn remove_local(&mut self, key: &ServiceKey, node: &NodeId) {
        if let Some(entry) = self.keys.get(key)
            && let Ok(at) = entry.find(&self.records, entry::rank_of(key, node), node)
            && self.records.get(entry.slots[at].place).is_local()
        {
            self.remove(key, at);
            self.settle(key);
        }
    }

    /// Drops expired records.
    pub fn expire(&mut self, now: Instant) {
        let tick = self.clock.tick(now);
        while let Some(&(due, key)) = self.due.first()
            && due <= tick
        {
            self.due.pop_first();
            self.expire_key(tick, &key);
            if let Some(entry) = self.keys.get_mut(&key) {
                entry.due = entry
                    .stored(&self.records)
                    .map(|stored| stored.retain)
                    .min()
                    .unwrap_or(0);
                if entry.due == 0 {
                    self.keys.remove(&key);
                    self.order.remove(&key);
                } else {
                    self.due.insert((entry.due, key));
                }
            }
        }
    }

    /// Goes by `clock` from now on, the old one tied again, and drops the records of others whose dates it rules out (D14).
    pub(crate) fn set_clock(&mut self, now: Instant, clock: Clock) {
        self.clock = clock;
        let tick = clock.tick(now);
        for key in self.order.clone() {
            let places: Vec<_> = match self.keys.get(&key) {
                Some(entry) => entry.slots.iter().map(|slot| slot.place).collect(),
                None => continue,
            };
            let mut shortened = None;
            for place in places {
                let stored = self.records.get_mut(place);
                if stored.is_local() || stored.record.is_withdrawn() || stored.expires <= tick {
                    continue;
                }
                let left = clock.validity(now, &stored.record).unwrap_or_default();
                let end = tick.saturating_add(nanos(left)).min(stored.expires);
                (stored.expires, stored.retain) = (end, end);
                shortened = Some(shortened.map_or(end, |first: Tick| first.min(end)));
            }
            if let Some(end) = shortened {
                self.look_at(&key, end);
            }
        }
        self.expire(now);
    }

    /// When [`ProviderStore::expire`] next has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|&(tick, _)| self.clock.instant(tick))
    }

    fn slots(&self, key: &ServiceKey) -> impl Iterator<Item = &Stored> + use<'_> {
        self.keys
            .get(key)
            .into_iter()
            .flat_map(|entry| entry.stored(&self.records))
    }

    /// Where the record of `node` under `key` is.
    fn find(&self, key: &ServiceKey, node: &NodeId) -> Option<Place> {
        self.records.find(key, node).or_else(|| {
            let entry = self.keys.get(key)?;
            let at = entry.find(&self.records, entry::rank_of(key, node), node).ok()?;
            Some(entry.slots[at].place)
        })
    }

    /// Until when a record is shown, and until when its place is held.
    fn lifetime(&self, now: Instant, tick: Tick, record: &VerifiedProvider) -> Result<(Tick, Tick), DateError> {
        let validity = self.clock.validity(now, record)?;
        let expires = tick.saturating_add(nanos(validity));
        if !record.is_withdrawn() {
            return Ok((expires, expires));
        }
        // A withdrawal lasts for `issued + ttl` even if that is later than `received + ttl`: a record it supersedes may arrive
        // later than it did, and is then valid up to its own `issued + ttl`. The skew bounds it.
        let ahead = record
            .advertised_at_ms()
            .saturating_sub(self.clock.unix_ms(now))
            .min(millis(MAX_CLOCK_SKEW));
        let retain = expires.saturating_add(ahead * 1_000_000);
        Ok((retain, retain))
    }

    /// Merges a record into the one of the same provider and key at `place`.
    fn merge(
        &mut self,
        tick: Tick,
        place: Place,
        record: VerifiedProvider,
        expires: Tick,
        retain: Tick,
        origin: Origin<'_>,
    ) -> Result<Inserted, InsertError> {
        let (key, node) = (*record.key(), *record.node_id());
        if let Origin::Remote(contact) = origin {
            self.give_to_provider(tick, place, contact);
        }
        let stored = self.records.get_mut(place);
        if stored.record.seq() == record.seq()
            && stored.record.signature() == record.signature()
            && stored.record.body() == record.body()
        {
            return Ok(Inserted::Unchanged);
        }
        let local = matches!(origin, Origin::Local);
        // A peer's word about this node's own record changes nothing; the publisher looks at the number instead.
        let protected = stored.is_local() && !local;
        if protected || !supersedes(&record, &stored.record) {
            if !protected {
                stored.retain = stored.retain.max(retain);
            }
            return Err(InsertError::Stale {
                stored_seq: stored.record.seq(),
            });
        }
        let (before, after) = (stored.size(), size_of(bytes_of(&record)));
        if let Some(id) = stored.holder {
            if local && self.usage.local >= self.limits.local_records {
                return Err(InsertError::StoreFull);
            }
            if local {
                stored.holder = None;
                self.take_over(&key, &node, id, place, before);
            } else {
                self.make_room_to_grow(id, after.saturating_sub(before))?;
                self.holders.resize(tick, id, before, after);
            }
        }
        // Records that gave way may have moved this one.
        let place = self.find(&key, &node).unwrap_or(place);
        let stored = self.records.get_mut(place);
        stored.retain = stored.retain.max(retain);
        stored.expires = expires;
        self.records.supersede(place, record);
        self.count_bytes();
        self.note_change(&key, &node);
        Ok(Inserted::Replaced)
    }

    fn count_bytes(&mut self) {
        self.usage.bytes = self.holders.bytes();
    }

    /// Whether an unverified record would be taken, as far as that shows without its signature: no peer makes this node check
    /// signatures in vain. [`Inserted::Unchanged`] means that the very record is held already.
    pub(crate) fn precheck(
        &mut self,
        now: Instant,
        key: &ServiceKey,
        record: &SignedProvider,
        peek: &Peek,
        from: &Contact,
    ) -> Result<Inserted, InsertError> {
        let tick = self.clock.tick(now);
        self.clock.check_dates(now, peek.advertised_at_ms, peek.ttl)?;
        if let Some(held) = self.held(key, &peek.node) {
            if held.body() == &record.body && held.signature()[..] == record.signature[..] {
                if let Some(place) = self.find(key, &peek.node) {
                    self.give_to_provider(tick, place, from);
                }
                return Ok(Inserted::Unchanged);
            }
            if peek.seq < held.seq() {
                return Err(InsertError::Stale { stored_seq: held.seq() });
            }
            return Ok(Inserted::Replaced);
        }
        self.expire_key(tick, key);
        self.settle(key);
        self.check_room(
            key,
            &peek.node,
            size_of(record.body.len() + record.chain.len()),
            Some(&holder_of(from)),
        )
        .map(|()| Inserted::New)
    }

    fn expire_key(&mut self, tick: Tick, key: &ServiceKey) {
        let mut at = self.keys.get(key).map_or(0, |entry| entry.slots.len());
        while at > 0 {
            at -= 1;
            let over = self
                .keys
                .get(key)
                .is_some_and(|entry| self.records.get(entry.slots[at].place).retain <= tick);
            if over {
                self.remove(key, at);
            }
        }
    }

    /// Removes the record at `at` of a key's list. The caller settles the key.
    fn remove(&mut self, key: &ServiceKey, at: usize) {
        let Some(entry) = self.keys.get_mut(key) else { return };
        let place = entry.slots.remove(at).place;
        let (Some(stored), moved) = self.records.remove(place) else {
            return;
        };
        let holder = stored.holder.map(|id| *self.holders.holder(id));
        if let Some(id) = stored.holder {
            self.holders.remove(id, place, stored.size());
        }
        if let Some(from) = moved {
            let last = self.records.get(place);
            if let Some(id) = last.holder {
                self.holders.relocate(id, from, place);
            }
            if let Some(entry) = self.keys.get_mut(last.record.key())
                && let Some(slot) = entry.slots.iter_mut().find(|slot| slot.place == from)
            {
                slot.place = place;
            }
        }
        let Some(entry) = self.keys.get_mut(key) else { return };
        let is_sparse = 2 * entry.slots.len() < self.limits.providers_per_key;
        entry.shares.take_if(|_| is_sparse);
        match holder {
            None => self.usage.local -= 1,
            Some(holder) => {
                if let Some(shares) = &mut entry.shares {
                    shares.release(&holder, 1);
                }
                entry.remote -= 1;
                self.usage.keys -= usize::from(entry.remote == 0);
                self.usage.records -= 1;
                self.count_bytes();
                self.forget_publisher(stored.record.node_id());
            }
        }
        self.note_change(key, stored.record.node_id());
    }

    /// Starts to note which records change, for a backend to keep.
    pub(crate) fn track_changes(&mut self) {
        self.changes.get_or_insert_default();
    }

    /// The records that have changed since the last call.
    pub(crate) fn take_changes(&mut self) -> BTreeSet<(ServiceKey, NodeId)> {
        self.changes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(crate) fn has_changes(&self) -> bool {
        self.changes.as_ref().is_some_and(|changes| !changes.is_empty())
    }

    /// Marks a record as changed, if changes are tracked.
    pub(crate) fn note_change(&mut self, key: &ServiceKey, node: &NodeId) {
        if let Some(changes) = &mut self.changes {
            changes.insert((*key, *node));
        }
    }

    /// Until when a record is shown, and until when its place is held.
    pub(crate) fn times(&self, key: &ServiceKey, node: &NodeId) -> Option<(Instant, Instant)> {
        let stored = self.records.get(self.find(key, node)?);
        Some((self.clock.instant(stored.expires), self.clock.instant(stored.retain)))
    }

    /// The peer that a record counts for; `None` for this node's own.
    pub(crate) fn deliverer(&self, key: &ServiceKey, node: &NodeId) -> Option<Holder<NodeId>> {
        let stored = self.records.get(self.find(key, node)?);
        stored.holder.map(|id| *self.holders.holder(id))
    }

    fn forget_publisher(&mut self, node: &NodeId) {
        if let Some(count) = self.publishers.get_mut(node) {
            *count -= 1;
            if *count == 0 {
                self.publishers.remove(node);
            }
        }
    }

    /// Makes sure that a key is looked at no later than `at`.
    ///
    /// A time that is too early is left: it costs one look in vain, and spares an update of the order on every refresh.
    fn look_at(&mut self, key: &ServiceKey, at: Tick) {
        let Some(entry) = self.keys.get_mut(key) else { return };
        if entry.due == 0 || at < entry.due {
            if entry.due != 0 {
                self.due.remove(&(entry.due, *key));
            }
            entry.due = at;
            self.due.insert((at, *key));
        }
    }

    /// Drops a key whose list is empty (D3).
    fn settle(&mut self, key: &ServiceKey) {
        if let Some(entry) = self.keys.get(key)
            && entry.slots.is_empty()
        {
            self.due.remove(&(entry.due, *key));
            self.keys.remove(key);
            self.order.remove(key);
        }
    }
}
