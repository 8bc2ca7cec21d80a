//! What happens by the passing of time: ejections and holds end, probes expire, slow starts proceed.

use std::hash::Hash;

use super::Balancer;
use super::lease::Handle;
use super::member::{Circuit, WEIGHT_UNIT};
use super::roster::Tier;
use crate::clock::{NEVER, Nanos, nanos};
use crate::latency::Unit;
use crate::provider::Link;

/// The share that slow start begins with.
const FIRST_SHARE: f64 = 0.1;
/// How often slow starts and load reports are looked at.
const TUNE_EVERY: Nanos = 1_000_000_000;
/// Loads above this count as this, or a full provider would cost infinitely much.
const MAX_LOAD_PERCENT: u8 = 95;

impl<K: Eq + Hash + Clone> Balancer<K> {
    /// Does everything that is due.
    #[inline]
    pub(super) fn advance(&mut self, now: Nanos) {
        if now >= self.next_due {
            self.release_due(now);
        }
        if now >= self.next_tune {
            self.tune_all(now);
        }
        if now >= self.leases.due() {
            self.reclaim(now);
        }
    }

    /// The unit of latency estimates by now.
    #[inline]
    pub(super) fn unit(&mut self, now: Nanos) -> Unit {
        match self.decay.remembered(now) {
            Some(unit) => unit,
            None => self.next_unit(now),
        }
    }

    #[inline(never)]
    fn next_unit(&mut self, now: Nanos) -> Unit {
        if self.decay.is_worn(now) {
            let old = self.decay.reset(now);
            self.hot.iter_mut().for_each(|hot| hot.latency.rebase(old));
            self.newcomer.rebase(old);
        }
        self.decay.remember(now)
    }

    #[cold]
    fn release_due(&mut self, now: Nanos) {
        self.next_due = NEVER;
        let aside = self.roster.span((Tier::Sidelined, Tier::Suspected));
        // A provider that becomes healthy swaps places with one that was looked at already.
        for position in aside.start..aside.end {
            let slot = self.roster.slot(position);
            let cold = &mut self.cold[slot as usize];
            if cold.hold <= now {
                cold.hold = 0;
            }
            match cold.circuit {
                Circuit::Open | Circuit::Probing if cold.until <= now => self.set_circuit(slot, Circuit::HalfOpen, now),
                Circuit::Closed | Circuit::Open | Circuit::Probing | Circuit::HalfOpen => {}
            }
            self.settle(now, slot);
        }
        self.watch_panic();
    }

    /// Counts the leases whose deadline has passed as lost, so that their providers no longer look busy.
    #[cold]
    fn reclaim(&mut self, now: Nanos) {
        let zones = self.config.locality.zone.is_some();
        self.leases.expire(now, |Handle { slot, generation }| {
            self.counters.lost += 1;
            let hot = &mut self.hot[slot as usize];
            if hot.generation == generation {
                hot.in_flight -= 1;
                self.local_in_flight -= u32::from(zones && !self.cold[slot as usize].remote);
            }
        });
    }

    #[cold]
    fn tune_all(&mut self, now: Nanos) {
        self.next_tune = NEVER;
        for position in 0..self.roster.len() {
            let slot = self.roster.slot(position);
            let cold = &self.cold[slot as usize];
            if cold.ramping || cold.load > 0 {
                self.tune(now, slot);
            }
        }
    }

    /// Puts a member where its state says it belongs, and keeps its next moment in mind.
    pub(super) fn settle(&mut self, now: Nanos, slot: u32) {
        let cold = &self.cold[slot as usize];
        let aside = cold.circuit != Circuit::Closed || cold.hold > now;
        let tier = match (cold.link, cold.remote) {
            (Link::Draining, _) => Tier::Draining,
            (Link::Down, _) => Tier::Down,
            (Link::Suspected, _) => Tier::Suspected,
            (Link::Idle | Link::Up, _) if aside => Tier::Sidelined,
            (Link::Up, false) => Tier::OpenLocal,
            (Link::Up, true) => Tier::OpenRemote,
            (Link::Idle, false) => Tier::IdleLocal,
            (Link::Idle, true) => Tier::IdleRemote,
        };
        if cold.hold > now && tier < Tier::Down {
            self.next_due = self.next_due.min(cold.hold);
        }
        match cold.circuit {
            Circuit::Open | Circuit::Probing => self.next_due = self.next_due.min(cold.until),
            Circuit::Closed | Circuit::HalfOpen => {}
        }
        self.roster.place(&mut self.hot, slot, tier);
        self.tune(now, slot);
    }

    /// Puts a member aside until then, unless it is so for longer already.
    pub(super) fn hold(&mut self, now: Nanos, slot: u32, until: Nanos) {
        let cold = &mut self.cold[slot as usize];
        let reachable = match cold.link {
            Link::Idle | Link::Up | Link::Suspected => true,
            Link::Down | Link::Draining => false,
        };
        if reachable && until > cold.hold {
            cold.hold = until.min(NEVER - 1);
            self.settle(now, slot);
            self.watch_panic();
        }
    }

    /// Computes a member's weight and cost factor.
    pub(super) fn tune(&mut self, now: Nanos, slot: u32) {
        let health = &self.config.health;
        let cold = &mut self.cold[slot as usize];
        let mut share = 1.0;
        if cold.ramping {
            let age = now.saturating_sub(cold.since);
            let full = nanos(health.slow_start);
            if age >= full {
                cold.ramping = false;
            } else {
                share = (age as f64 / full as f64).max(FIRST_SHARE);
            }
        }
        let mut load = 1.0;
        if cold.load > 0 {
            let expires = u64::from(cold.load_at)
                .saturating_mul(1_000_000_000)
                .saturating_add(nanos(health.load_ttl));
            if expires <= now {
                cold.load = 0;
            } else {
                load = 100.0 / f64::from(100 - cold.load.min(MAX_LOAD_PERCENT));
            }
        }
        if cold.ramping || cold.load > 0 {
            self.next_tune = self.next_tune.min(now.saturating_add(TUNE_EVERY));
        }
        let weight = u32::from(cold.weight) * WEIGHT_UNIT;
        let effective = ((f64::from(weight) * share) as u32).max(1);
        cold.effective = effective;
        let hot = &mut self.hot[slot as usize];
        hot.multiplier = load / (f64::from(cold.weight) * share);
        let healthy = self.roster.tier(hot.position) <= Tier::IdleRemote;
        self.reweigh(slot, if healthy { u64::from(effective) } else { 0 });
    }

    pub(super) fn reweigh(&mut self, slot: u32, weight: u64) {
        if self.weights.set(slot as usize, weight) {
            self.rotation.weights_changed();
        }
    }
}
