//! The directory cache: the answers of lookups, kept for a minute (D7).
//!
//! Usable alone; time is passed in. An answer is fresh for [`CacheLimits::fresh`] or the shortest remaining validity in it, if
//! that is less; an empty one for [`CacheLimits::negative`]. For [`CacheLimits::stale`] after that it is still served while
//! a caller refreshes it.
//!
//! A list that has changed is likely to change again: a rolling restart takes one provider after the other away and brings it back.
//! So an answer with other nodes than the one before is fresh for [`CacheLimits::changed`] only, and each answer with the same nodes
//! for twice as long as the last (D12).
//!
//! When there is no room for another key, the least recently used key goes that was not used again since it was last passed over
//! (the second chance of the clock algorithm: a hit is noted and moves nothing).
//!
//! **Invariants:** no record is handed out at or after its expiry (D4); at most one caller a key is told to look it up
//! (single flight), and a caller that never reports back blocks the key for [`CacheLimits::flight`] at most.
//!
//! What is left out: the lookup itself, and how callers that wait for the lookup of another hear of its end.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use macula_wire::{ServiceKey, VerifiedProvider};

use crate::{Clock, clock::DateError};

/// How much a cache keeps, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// The most keys; one that was not used lately makes room.
    pub keys: usize,
    /// How long an answer is fresh at most.
    pub fresh: Duration,
    /// How long an answer is fresh that names other nodes than the answer before it; at most [`CacheLimits::fresh`].
    pub changed: Duration,
    /// How long an answer without providers is fresh.
    pub negative: Duration,
    /// How long an answer that is no longer fresh is served while it is refreshed.
    pub stale: Duration,
    /// How long a lookup may take before another caller is told to start one.
    pub flight: Duration,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self {
            keys: 4096,
            fresh: Duration::from_secs(60),
            changed: Duration::from_secs(2),
            negative: Duration::from_secs(5),
            stale: Duration::from_secs(30),
            flight: Duration::from_secs(10),
        }
    }
}

/// The caller that looks a key up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flight {
    /// This caller: report with [`DirectoryCache::insert`] or [`DirectoryCache::abandon`].
    Lead,
    /// Another caller does already; wait for it.
    Follow,
}

/// The answer of a cache for a key.
#[derive(Debug, Clone)]
pub enum Cached {
    /// These providers, in the list's order; at least one.
    Hit(Arc<[VerifiedProvider]>),
    /// These providers, and the answer is due to be refreshed behind the call.
    Stale(Arc<[VerifiedProvider]>, Flight),
    /// There is no provider.
    Negative,
    /// The cache knows nothing of the key.
    Miss(Flight),
}

/// How often a cache gave each answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheCounters {
    /// Fresh answers with providers.
    pub hits: u64,
    /// Fresh answers without providers.
    pub negative_hits: u64,
    /// Answers served while they are refreshed.
    pub stale: u64,
    /// Callers that had to wait for a lookup.
    pub misses: u64,
    /// Keys that made room for others.
    pub evictions: u64,
}

#[derive(Debug, Default)]
struct CachedKey {
    answer: Option<CachedAnswer>,
    /// When the lookup under way, if any, was started.
    flight: Option<Instant>,
    /// The entry's place in the order of use.
    used: u64,
    /// Whether it was used since it got that place.
    used_again: bool,
}

#[derive(Debug)]
struct CachedAnswer {
    providers: Arc<[VerifiedProvider]>,
    /// When each of them expires.
    expiries: Vec<Instant>,
    fresh_until: Instant,
    /// How long the answer is fresh where no record in it expires before.
    fresh: Duration,
}

/// The latest answers of lookups.
///
/// ```
/// use std::time::{Duration, Instant};
///
/// use macula_dht::{CacheLimits, Cached, Clock, DirectoryCache, Flight};
/// use macula_wire::{Advertisement, Realm, SecretKey, ServiceKey, VerifiedProvider};
///
/// let (now, unix_ms) = (Instant::now(), 1_800_000_000_000);
/// let mut cache = DirectoryCache::new(Clock::new(now, unix_ms), CacheLimits::default());
/// let (realm, provider) = (Realm::default(), SecretKey::from_bytes(&[1; 32]));
/// let key = ServiceKey::new(&realm, &"api.compute".parse()?);
///
/// // Of callers that ask at the same time one looks the key up, and the others wait for it.
/// assert!(matches!(cache.get(now, &key), Cached::Miss(Flight::Lead)));
/// assert!(matches!(cache.get(now, &key), Cached::Miss(Flight::Follow)));
/// let advertisement = Advertisement::new(["node1.example:4433".parse()?]);
/// let found = VerifiedProvider::sign(&provider, &realm.hash(), &key, 1, unix_ms, &advertisement)?;
/// cache.insert(now, &key, vec![found]);
/// assert!(matches!(cache.get(now, &key), Cached::Hit(providers) if providers.len() == 1));
///
/// // Past its time the answer is still served, while one caller refreshes it behind its call.
/// let later = now + Duration::from_secs(60);
/// assert!(matches!(cache.get(later, &key), Cached::Stale(_, Flight::Lead)));
/// assert!(matches!(cache.get(later, &key), Cached::Stale(_, Flight::Follow)));
/// assert_eq!((cache.counters().hits, cache.counters().stale), (1, 2));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct DirectoryCache {
    clock: Clock,
    limits: CacheLimits,
    entries: BTreeMap<ServiceKey, CachedKey>,
    /// Keys by when they were last used.
    order: BTreeMap<u64, ServiceKey>,
    uses: u64,
    counters: CacheCounters,
}

impl DirectoryCache {
    /// An empty cache.
    #[must_use]
    pub fn new(clock: Clock, limits: CacheLimits) -> Self {
        Self {
            clock,
            limits,
            entries: BTreeMap::new(),
            order: BTreeMap::new(),
            uses: 0,
            counters: CacheCounters::default(),
        }
    }

    /// The clock that this cache goes by.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Goes by `clock` from now on, the old one tied again. Known answers stay at hand and are refreshed when they are asked for: they
    /// may lack providers that the old dates ruled out. What has expired by the new time is not given again (D14).
    pub fn set_clock(&mut self, now: Instant, clock: Clock) {
        self.clock = clock;
        for answer in self.entries.values_mut().filter_map(|entry| entry.answer.as_mut()) {
            answer.fresh_until = answer.fresh_until.min(now);
            for (provider, expiry) in answer.providers.iter().zip(&mut answer.expiries) {
                let left = match clock.validity(now, provider) {
                    Ok(left) => left,
                    Err(DateError::Expired { .. }) => Duration::ZERO,
                    // The clock was set back. By the time that has passed it is still valid.
                    Err(DateError::FromTheFuture { .. }) => continue,
                };
                *expiry = (*expiry).min(now + left);
            }
        }
    }

    /// How often it gave each answer.
    #[must_use]
    pub fn counters(&self) -> CacheCounters {
        self.counters
    }

    /// The number of keys it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The answer for `key`.
    pub fn get(&mut self, now: Instant, key: &ServiceKey) -> Cached {
        if let Some(cached) = self.at_hand(now, key) {
            return cached;
        }
        self.counters.misses += 1;
        let limit = self.limits.flight;
        Cached::Miss(take_off(&mut self.touch(key).flight, now, limit))
    }

    /// The answer for `key` that can be served without waiting. `None` where [`DirectoryCache::get`] says [`Cached::Miss`]; no caller
    /// is then told to look the key up, and nothing is counted.
    pub fn at_hand(&mut self, now: Instant, key: &ServiceKey) -> Option<Cached> {
        let entry = self.entries.get_mut(key)?;
        let answer = entry.answer.as_mut()?;
        if now < answer.fresh_until {
            // As long as an answer is fresh nothing of it has expired.
            debug_assert!(answer.expiries.iter().all(|&expiry| now < expiry));
            entry.used_again = true;
            return Some(if answer.providers.is_empty() {
                self.counters.negative_hits += 1;
                Cached::Negative
            } else {
                self.counters.hits += 1;
                Cached::Hit(Arc::clone(&answer.providers))
            });
        }
        if now >= answer.fresh_until + self.limits.stale {
            return None;
        }
        answer.drop_expired(now);
        // An empty answer is not served beyond its time.
        if answer.providers.is_empty() {
            return None;
        }
        entry.used_again = true;
        self.counters.stale += 1;
        let flight = take_off(&mut entry.flight, now, self.limits.flight);
        Some(Cached::Stale(Arc::clone(&answer.providers), flight))
    }

    /// Skips the answer for `key`: the caller wants a lookup.
    ///
    /// A lookup that is under way serves, since its answer will be as new.
    pub fn force_refresh(&mut self, now: Instant, key: &ServiceKey) -> Flight {
        self.counters.misses += 1;
        let flight = self.limits.flight;
        take_off(&mut self.touch(key).flight, now, flight)
    }

    /// Takes a lookup's answer, empty when it found no provider. Ends the key's flight.
    pub fn insert(&mut self, now: Instant, key: &ServiceKey, providers: Vec<VerifiedProvider>) {
        let mut expiries = Vec::with_capacity(providers.len());
        let clock = self.clock;
        let mut kept: Vec<_> = providers
            .into_iter()
            .filter(|provider| !provider.is_withdrawn())
            .filter_map(|provider| clock.validity(now, &provider).ok().map(|left| (now + left, provider)))
            .collect();
        kept.sort_by_cached_key(|(_, provider)| key.rank(provider.node_id()));
        expiries.extend(kept.iter().map(|(expiry, _)| *expiry));
        let providers: Arc<[_]> = kept.into_iter().map(|(_, provider)| provider).collect();
        let limits = self.limits;
        let entry = self.touch(key);
        let fresh = match &entry.answer {
            _ if providers.is_empty() => limits.negative,
            None => limits.fresh,
            Some(before) if before.names(&providers) => (before.fresh * 2).min(limits.fresh),
            Some(_) => limits.changed.min(limits.fresh),
        };
        let first = expiries.iter().min().copied();
        entry.flight = None;
        entry.answer = Some(CachedAnswer {
            providers,
            expiries,
            fresh_until: first.map_or(now + fresh, |first| first.clamp(now, now + fresh)),
            fresh,
        });
    }

    /// Ends the key's flight without an answer: the lookup failed. An earlier answer stays.
    pub fn abandon(&mut self, key: &ServiceKey) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.flight = None;
        }
    }

    /// Forgets the answer for `key`: it turned out wrong.
    pub fn forget(&mut self, key: &ServiceKey) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.answer = None;
        }
    }

    /// Forgets the answers that name a provider which `keeps` does not want any more, such as one that was revoked.
    pub fn forget_unless(&mut self, keeps: impl Fn(&VerifiedProvider) -> bool) {
        for entry in self.entries.values_mut() {
            entry.answer.take_if(|answer| !answer.providers.iter().all(&keeps));
        }
    }

    /// The key's entry, made the most recently used one.
    fn touch(&mut self, key: &ServiceKey) -> &mut CachedKey {
        if let Some(entry) = self.entries.get(key) {
            self.order.remove(&entry.used);
        } else if self.entries.len() >= self.limits.keys.max(1) {
            self.make_room();
        }
        self.uses += 1;
        self.order.insert(self.uses, *key);
        let entry = self.entries.entry(*key).or_default();
        (entry.used, entry.used_again) = (self.uses, false);
        entry
    }

    /// Removes the key that was not used for longest. A key that was used again takes its new place only now, so that its use costs
    /// no more than a note. Its note is then gone, so the search ends.
    fn make_room(&mut self) {
        while let Some((_, oldest)) = self.order.pop_first() {
            match self.entries.get_mut(&oldest) {
                Some(entry) if entry.used_again => {
                    self.uses += 1;
                    (entry.used, entry.used_again) = (self.uses, false);
                    self.order.insert(self.uses, oldest);
                }
                _ => {
                    self.entries.remove(&oldest);
                    self.counters.evictions += 1;
                    return;
                }
            }
        }
    }
}

fn take_off(flight: &mut Option<Instant>, now: Instant, limit: Duration) -> Flight {
    match *flight {
        Some(started) if now < started + limit => Flight::Follow,
        _ => {
            *flight = Some(now);
            Flight::Lead
        }
    }
}

impl CachedAnswer {
    /// Whether it names the nodes of `providers` and no others. Both are in the key's order.
    fn names(&self, providers: &[VerifiedProvider]) -> bool {
        let known = self.providers.iter().map(VerifiedProvider::node_id);
        known.eq(providers.iter().map(VerifiedProvider::node_id))
    }

    fn drop_expired(&mut self, now: Instant) {
        if self.expiries.iter().all(|&expiry| now < expiry) {
            return;
        }
        let expiries = &self.expiries;
        let live = self.providers.iter().zip(expiries).filter(|(_, expiry)| now < **expiry);
        self.providers = live.map(|(provider, _)| provider.clone()).collect();
        self.expiries.retain(|expiry| now < *expiry);
        if self.providers.is_empty() {
            // The records ran out. That says nothing about providers that have come since.
            self.fresh_until = self.fresh_until.min(now);
        }
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
