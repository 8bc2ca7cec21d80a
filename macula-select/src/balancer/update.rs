//! Reconciling the provider set with what the caller learned.
//!
//! Survivors keep their health, load, estimates and place in the rotation; only what the caller says of them
//! (order, weight, zone) changes. A provider that left and came back is a stranger: a new generation.

use std::hash::Hash;
use std::time::Instant;

use super::Balancer;
use super::member::{Circuit, Cold, Hot};
use super::roster::Tier;
use crate::clock::{Nanos, nanos};
use crate::identity;
use crate::latency::Estimate;
use crate::provider::{MAX_PROVIDERS, Provider};

/// What an update changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    /// New providers.
    pub added: usize,
    /// Providers that are gone.
    pub removed: usize,
    /// Providers that stayed.
    pub kept: usize,
    /// Entries left out because their key came before in the same update.
    pub duplicates: usize,
    /// Entries left out because the set was full: [`MAX_PROVIDERS`].
    pub over_limit: usize,
}

impl<K: Eq + Hash + Clone> Balancer<K> {
    /// Makes `providers` the set, in this order.
    ///
    /// The order matters to [`Strategy::First`](crate::Strategy::First) alone: the same set in another order changes
    /// nothing else. Providers that join a set at work are brought up slowly
    /// ([`HealthConfig::slow_start`](crate::HealthConfig::slow_start)); the first ones, and those that follow
    /// within that time, start at full share: a set may be discovered piece by piece.
    pub fn update(&mut self, now: Instant, providers: impl IntoIterator<Item = Provider<K>>) -> Changes {
        let now = self.clock.tick(now);
        self.advance(now);
        let mut changes = Changes::default();
        if self.list.is_empty() {
            self.began = now;
        }
        let joining_late = now - self.began >= nanos(self.config.health.slow_start);
        let previous = std::mem::take(&mut self.list);
        let providers = providers.into_iter();
        self.reserve(providers.size_hint().0.min(MAX_PROVIDERS));
        self.next_mark();
        for provider in providers {
            let identity = identity::of(&provider.key);
            let known = self.index.find(identity, |slot| {
                self.cold[slot as usize].key.as_ref() == Some(&provider.key)
            });
            let slot = match known {
                Some(slot) if self.hot[slot as usize].mark == self.mark => {
                    changes.duplicates += 1;
                    continue;
                }
                _ if self.list.len() == MAX_PROVIDERS => {
                    changes.over_limit += 1;
                    continue;
                }
                Some(slot) => {
                    changes.kept += 1;
                    slot
                }
                None => {
                    changes.added += 1;
                    self.admit(now, provider.key, identity, joining_late)
                }
            };
            self.hot[slot as usize].mark = self.mark;
            self.list.push(slot);
            self.describe(now, slot, provider.weight, provider.zone);
        }
        changes.removed = self.dismiss_unmarked(&previous);
        self.rotation.retain(|slot| self.hot[slot as usize].mark == self.mark);
        if changes.removed > 0 {
            self.reindex(self.hot.len());
        }
        self.next_mark();
        self.enforce_cap(now);
        self.watch_panic();
        changes
    }

    /// Makes room for exactly so many: sets are large and rarely change, so doubling would waste more than it saves.
    fn reserve(&mut self, total: usize) {
        let missing = total.saturating_sub(self.hot.len());
        self.list.reserve_exact(total);
        self.hot.reserve_exact(missing);
        self.cold.reserve_exact(missing);
        self.roster.reserve(total);
        self.rotation.reserve(total);
        self.weights.reserve(total);
        if missing > 0 && !self.index.has_room_for(total) {
            self.reindex(total);
        }
    }

    fn reindex(&mut self, members: usize) {
        let held = self.cold.iter().enumerate().filter(|(_, cold)| cold.key.is_some());
        self.index
            .rebuild(members, held.map(|(slot, cold)| (cold.identity, slot as u32)));
    }

    fn admit(&mut self, now: Nanos, key: K, identity: u64, ramping: bool) -> u32 {
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.hot.push(Hot::vacant());
            self.cold.push(Cold::vacant());
            (self.hot.len() - 1) as u32
        });
        let generation = self.hot[slot as usize].generation;
        self.cold[slot as usize] = Cold {
            key: Some(key),
            identity,
            since: now,
            ramping,
            ..Cold::vacant()
        };
        self.hot[slot as usize] = Hot {
            generation,
            ..Hot::vacant()
        };
        self.newcomer = Estimate::of(self.unit(now), self.typical * super::NEWCOMER_SHARE);
        self.weights.grow(self.hot.len());
        self.roster.insert(&mut self.hot, slot, Tier::IdleLocal);
        self.rotation.join(slot);
        self.local += 1;
        if self.index.has_room_for(self.hot.len()) {
            self.index.insert(identity, slot);
        } else {
            self.reindex(self.hot.len());
        }
        slot
    }

    /// Applies what the caller says of a member.
    fn describe(&mut self, now: Nanos, slot: u32, weight: u32, zone: Option<crate::provider::Zone>) {
        let remote = match self.config.locality.zone {
            Some(own) => zone != Some(own),
            None => false,
        };
        let cold = &mut self.cold[slot as usize];
        cold.weight = weight as u16;
        if cold.remote != remote {
            cold.remote = remote;
            let in_flight = self.hot[slot as usize].in_flight;
            if remote {
                self.local -= 1;
                self.local_in_flight = self.local_in_flight.saturating_sub(in_flight);
            } else {
                self.local += 1;
                self.local_in_flight += in_flight;
            }
        }
        self.settle(now, slot);
    }

    fn dismiss_unmarked(&mut self, previous: &[u32]) -> usize {
        let mut removed = 0;
        for slot in previous {
            if self.hot[*slot as usize].mark != self.mark {
                self.dismiss(*slot);
                removed += 1;
            }
        }
        removed
    }

    fn dismiss(&mut self, slot: u32) {
        self.set_circuit(slot, Circuit::Closed, 0);
        self.reweigh(slot, 0);
        self.roster.remove(&mut self.hot, slot);
        let hot = &mut self.hot[slot as usize];
        hot.generation = hot.generation.wrapping_add(1);
        let cold = &mut self.cold[slot as usize];
        if !cold.remote {
            self.local -= 1;
            self.local_in_flight = self.local_in_flight.saturating_sub(hot.in_flight);
        }
        cold.key = None;
        self.dials.forget(slot);
        self.vacant.push(slot);
    }
}
