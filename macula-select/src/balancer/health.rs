//! Ejection, probation and restoration of providers (H2, H3).
//!
//! ```text
//!            5 failures in a row, or < 50 % of ≥ 20           its time is over
//!   Closed ────────────────────────────────────────▶ Open ─────────────────────▶ HalfOpen ◀──┐
//!     ▲                                               ▲                             │ a call carries the probe
//!     │                     probe succeeded           │ probe failed                ▼        │ no verdict, or
//!     └───────────────────────────────────────────────┴────────────────────────  Probing ────┘ lost: expired
//! ```
//! A new connection and a fresh record close the circuit at once, and so does losing the connection: what is unreachable
//! is no matter of health. Only the probe of the current epoch moves a provider out of `Probing`; stragglers from before the ejection count in
//! the window and decide nothing.

use std::hash::Hash;
use std::time::Duration;

use super::Balancer;
use super::event::{EjectionReason, Event, RestoreReason};
use super::member::Circuit;
use super::roster::{HEALTHY, OPEN, REACHABLE, SIDELINED, Tier, USABLE};
use crate::clock::{NEVER, Nanos, nanos};
use crate::fate::Verdict;
use crate::latency::Estimate;
use crate::provider::Link;
use crate::window::Window;

/// Providers of a large set that are looked at for evidence that the rest does well.
const EVIDENCE_SAMPLE: u32 = 64;
/// The rest does well if it has so many successes for each failure of the last ten seconds.
const EVIDENCE_OK_PER_FAILURE: u64 = 10;

/// Ejections beyond this do not lengthen the next one.
const MAX_EJECTIONS: u8 = 32;

impl<K: Eq + Hash + Clone> Balancer<K> {
    /// Moves the circuit of a member after a report.
    pub(super) fn judge(&mut self, now: Nanos, slot: u32, probe: u16, verdict: Verdict) {
        let cold = &self.cold[slot as usize];
        match cold.circuit {
            Circuit::Closed => {
                if verdict == Verdict::Failure {
                    if let Some(reason) = self.should_eject(now, slot) {
                        self.eject(now, slot, reason);
                    }
                    self.heed_cap(now);
                }
            }
            Circuit::Probing if probe != 0 && probe == cold.epoch => match verdict {
                Verdict::Success => self.restore(now, slot, RestoreReason::ProbeSucceeded),
                Verdict::Failure => self.eject(now, slot, EjectionReason::ProbeFailed),
                Verdict::Neutral => {
                    self.set_circuit(slot, Circuit::HalfOpen, now);
                    self.settle(now, slot);
                }
            },
            Circuit::Probing | Circuit::Open | Circuit::HalfOpen => {}
        }
        self.watch_panic();
    }

    fn should_eject(&self, now: Nanos, slot: u32) -> Option<EjectionReason> {
        let (health, cold) = (&self.config.health, &self.cold[slot as usize]);
        if health.consecutive_failures > 0
            && cold.consecutive >= u16::try_from(health.consecutive_failures).unwrap_or(u16::MAX)
        {
            return Some(EjectionReason::ConsecutiveFailures);
        }
        let counts = cold.window.counts(now);
        (counts.ok + counts.failed >= health.min_volume.max(1) && counts.success_rate() < health.min_success_rate)
            .then_some(EjectionReason::SuccessRate)
    }

    fn eject(&mut self, now: Nanos, slot: u32, reason: EjectionReason) {
        let health = self.config.health;
        match self.cold[slot as usize].link {
            Link::Idle | Link::Up | Link::Suspected => {}
            Link::Down | Link::Draining => return, // out of the choice already
        }
        if self.cold[slot as usize].circuit == Circuit::Closed {
            let serving = self.serving();
            let allowed = self.ejected < self.ejection_cap()
                || (self.ejected + 2 <= serving && self.rest_does_well(now, Some(slot)));
            if !allowed {
                self.counters.ejections_capped += 1;
                return;
            }
            let cold = &mut self.cold[slot as usize];
            let calm = now.saturating_sub(cold.since) / nanos(health.forgive_after).max(1);
            cold.ejections = cold.ejections.saturating_sub(calm.min(u64::from(u8::MAX)) as u8);
        }
        let draw = self.rng.unit();
        let cold = &mut self.cold[slot as usize];
        cold.ejections = (cold.ejections + 1).min(MAX_EJECTIONS);
        let until = now
            .saturating_add(nanos(ejection_time(&health, u32::from(cold.ejections), draw)))
            .min(NEVER - 1);
        let count = u32::from(cold.ejections);
        cold.consecutive = 0;
        self.set_circuit(slot, Circuit::Open, until);
        self.settle(now, slot);
        self.counters.ejections += 1;
        if let (Some(provider), Some(until)) = (self.cold[slot as usize].key.clone(), self.clock.instant(until)) {
            self.events.push(Event::Ejected {
                provider,
                until,
                count,
                reason,
            });
        }
    }

    pub(super) fn restore(&mut self, now: Nanos, slot: u32, reason: RestoreReason) {
        let cold = &mut self.cold[slot as usize];
        cold.consecutive = 0;
        cold.window = Window::default();
        cold.since = now;
        cold.ramping = true;
        // Its old estimate is mostly the penalty, which would take a minute to decay; start from the typical one.
        self.hot[slot as usize].latency = Estimate::UNMEASURED;
        self.newcomer = Estimate::of(self.unit(now), self.typical * super::NEWCOMER_SHARE);
        self.set_circuit(slot, Circuit::Closed, 0);
        self.settle(now, slot);
        if let Some(provider) = self.cold[slot as usize].key.clone() {
            self.events.push(Event::Restored { provider, reason });
        }
    }

    /// How many may be ejected at once, whatever becomes of the rest.
    pub(super) fn ejection_cap(&self) -> u32 {
        let serving = self.serving();
        let share = (f64::from(serving) * self.config.health.max_ejected.clamp(0.0, 1.0)) as u32;
        share.min(serving.saturating_sub(1))
    }

    /// The providers that the cap is a share of. What is unreachable or going away does not serve.
    fn serving(&self) -> u32 {
        self.roster.count((Tier::IdleLocal, Tier::Suspected))
    }

    /// Whether the providers that are not ejected, without this one, succeed and refuse nothing: evidence that the fault
    /// is in the ejected ones, and that the rest can bear their share.
    ///
    /// In a large set it looks at a sample.
    fn rest_does_well(&mut self, now: Nanos, without: Option<u32>) -> bool {
        let reachable = self.roster.span(REACHABLE);
        if reachable.len() == 0 {
            return false;
        }
        let first = self.rng.below(reachable.len());
        let (mut ok, mut failed) = (0, 0);
        for step in 0..reachable.len().min(EVIDENCE_SAMPLE) {
            let slot = self.roster.slot(reachable.start + (first + step) % reachable.len());
            let cold = &self.cold[slot as usize];
            if Some(slot) == without || cold.circuit != Circuit::Closed {
                continue;
            }
            if cold.hold > now || cold.refusals > 0 {
                return false;
            }
            let counts = cold.window.counts(now);
            ok += counts.ok;
            failed += counts.failed;
        }
        ok > 0 && u64::from(failed) * EVIDENCE_OK_PER_FAILURE <= u64::from(ok)
    }

    /// Restores a provider when more than the cap are out and the rest no longer does well.
    pub(super) fn heed_cap(&mut self, now: Nanos) {
        if self.ejected > self.ejection_cap()
            && !self.rest_does_well(now, None)
            && let Some(slot) = self.nearest_to_return()
        {
            self.restore(now, slot, RestoreReason::CapExceeded);
        }
    }

    /// Restores those nearest to their return until no more are ejected than is allowed.
    pub(super) fn enforce_cap(&mut self, now: Nanos) {
        if self.ejected <= self.ejection_cap() {
            return;
        }
        let most = match self.rest_does_well(now, None) {
            true => self.serving().saturating_sub(1),
            false => self.ejection_cap(),
        };
        while self.ejected > most
            && let Some(slot) = self.nearest_to_return()
        {
            self.restore(now, slot, RestoreReason::CapExceeded);
        }
    }

    fn nearest_to_return(&self) -> Option<u32> {
        self.slots((Tier::Sidelined, Tier::Suspected))
            .filter(|slot| self.cold[*slot as usize].circuit != Circuit::Closed)
            .min_by_key(|slot| {
                let cold = &self.cold[*slot as usize];
                (cold.circuit == Circuit::Open, cold.until, *slot)
            })
    }

    /// The member that should carry a probe now, if any.
    ///
    /// A probe does not wait for a dial while another provider is connected (H5). It is dialed behind the calls, and the
    /// connection restores it.
    pub(super) fn due_for_probe(&mut self, now: Nanos, willing: bool) -> Option<u32> {
        let patience = if willing {
            0
        } else {
            nanos(self.config.health.probe_patience)
        };
        let due = |slot: &u32| {
            let cold = &self.cold[*slot as usize];
            cold.circuit == Circuit::HalfOpen
                && cold.hold <= now
                && self.hot[*slot as usize].mark != self.mark
                && cold.until.saturating_add(patience) <= now
        };
        let slot = self
            .slots(SIDELINED)
            .filter(due)
            .min_by_key(|slot| (self.cold[*slot as usize].until, *slot))?;
        match self.cold[slot as usize].link {
            Link::Idle if self.roster.count(OPEN) > 0 => {
                self.want(now, slot);
                None
            }
            Link::Idle | Link::Up | Link::Suspected | Link::Down | Link::Draining => Some(slot),
        }
    }

    /// Makes the next lease of a half-open member its probe, and returns the probe's epoch.
    pub(super) fn start_probe(&mut self, now: Nanos, slot: u32) -> u16 {
        let expires = now
            .saturating_add(nanos(self.config.health.probe_timeout).max(1))
            .min(NEVER - 1);
        self.set_circuit(slot, Circuit::Probing, expires);
        self.next_due = self.next_due.min(expires);
        self.counters.probes += 1;
        let cold = &mut self.cold[slot as usize];
        cold.epoch = cold.epoch.wrapping_add(1).max(1);
        if let Some(provider) = cold.key.clone() {
            self.events.push(Event::Probing { provider });
        }
        cold.epoch
    }

    /// Changes a circuit, keeping count.
    pub(super) fn set_circuit(&mut self, slot: u32, circuit: Circuit, until: Nanos) {
        let cold = &mut self.cold[slot as usize];
        self.ejected -= u32::from(cold.circuit != Circuit::Closed);
        self.ejected += u32::from(circuit != Circuit::Closed);
        self.half_open -= u32::from(cold.circuit == Circuit::HalfOpen);
        self.half_open += u32::from(circuit == Circuit::HalfOpen);
        cold.circuit = circuit;
        cold.until = until;
    }

    /// Tells observers when the last healthy provider goes, and when one is back.
    pub(super) fn watch_panic(&mut self) {
        let panicking = self.roster.count(HEALTHY) == 0 && self.roster.count(USABLE) > 0;
        if panicking != self.panicking {
            self.panicking = panicking;
            self.events.push(if panicking {
                Event::PanicEntered
            } else {
                Event::PanicLeft
            });
        }
    }
}

/// The length of an ejection: doubling from the base up to the maximum, less up to half by jitter.
fn ejection_time(health: &super::HealthConfig, count: u32, draw: f64) -> Duration {
    let doubled = 1u32.checked_shl(count.saturating_sub(1)).unwrap_or(u32::MAX);
    let full = health.base_ejection.saturating_mul(doubled).min(health.max_ejection);
    full / 2 + (full / 2).mul_f64(draw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancer::HealthConfig;
    use proptest::prelude::*;

    proptest! {
        /// Law 22, H2: an ejection lasts between half the base and the maximum, and longer the more there were.
        #[test]
        fn h2_ejections_grow_within_their_bounds(count in 1u32..40, draw in 0.0..1.0f64, base in 1u64..60, max in 60u64..600) {
            let health = HealthConfig {
                base_ejection: Duration::from_secs(base), max_ejection: Duration::from_secs(max), ..HealthConfig::default()
            };
            let time = ejection_time(&health, count, draw);
            prop_assert!(time >= health.base_ejection / 2 && time <= health.max_ejection, "{:?}", time);
            prop_assert!(ejection_time(&health, count + 1, draw) >= time);
        }
    }
}
