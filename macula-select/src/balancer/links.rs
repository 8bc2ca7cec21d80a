//! What the transport knows of the way to each provider (H5, L2, L3).
//!
//! ```text
//!              a connection opens                silence
//!    Idle ─────────────────────────▶ Up ◀──────────────────▶ Suspected
//!     ▲ ▲────────────────────────────┘       sign of life        │
//!     │   it closes in order         ▲                           │ lost to silence, or a dial failed:
//!     │ a fresh record               │ a dial succeeds           ▼ from Idle and Up too
//!     └──────────────────────────────┴──────────────────────── Down
//! ```
//! **Invariants.** A provider that is down returns by a connection or a fresh record only, not by time, and the ejection
//! cap has no say in it. Suspicion changes no count and no circuit.

use std::hash::Hash;
use std::time::Instant;

use super::Balancer;
use super::event::{Event, RestoreReason};
use super::member::Circuit;
use super::roster::REACHABLE;
use crate::clock::Nanos;
use crate::provider::Link;

impl<K: Eq + Hash + Clone> Balancer<K> {
    /// Tells what the transport learned about the way to a provider. Unknown keys are ignored.
    ///
    /// Tell [`Link::Up`] when a connection opens, whichever side dialed it and before anything is sent on it;
    /// [`Link::Suspected`] and [`Link::Up`] as silence begins and ends; [`Link::Down`] when a dial fails or a connection
    /// is lost, *before* the results of the attempts on it; [`Link::Idle`] when a connection closes in order. Then poll the
    /// calls that wait for the provider, and on [`Link::Up`] those that wait for a dial.
    ///
    /// A new connection closes the provider's circuit breaker. [`Link::Idle`] and [`Link::Suspected`] are news of an old
    /// connection, so they do not change a provider that is down or draining.
    pub fn link(&mut self, now: Instant, key: &K, link: Link) {
        let now = self.clock.tick(now);
        let Some(slot) = self.find(key) else { return };
        let known = self.cold[slot as usize].link;
        match (known, link) {
            (Link::Idle, Link::Idle)
            | (Link::Up, Link::Up)
            | (Link::Suspected, Link::Suspected)
            | (Link::Down, Link::Idle | Link::Suspected | Link::Down)
            | (Link::Draining, Link::Idle | Link::Suspected | Link::Draining) => return,
            (Link::Suspected, Link::Up) | (Link::Idle | Link::Up, Link::Suspected) => {
                self.cold[slot as usize].link = link;
            }
            (Link::Up | Link::Suspected, Link::Idle) => {
                self.cold[slot as usize].link = link;
                self.cold[slot as usize].dials = 0;
            }
            (Link::Idle | Link::Down | Link::Draining, Link::Up) => self.connected(now, slot, known),
            (Link::Idle | Link::Up | Link::Suspected | Link::Draining, Link::Down) => self.lost(now, slot),
            (Link::Idle | Link::Up | Link::Suspected | Link::Down, Link::Draining) => {
                self.cold[slot as usize].link = link;
                self.cold[slot as usize].hold = 0;
                // Its circuit no longer matters, and must not use up the ejection cap.
                self.set_circuit(slot, Circuit::Closed, 0);
            }
        }
        self.settle(now, slot);
        self.enforce_cap(now);
        self.watch_panic();
    }

    /// Tells that a provider began again: a fresh record of it arrived (a later sequence number after it was found
    /// unreachable, or another address), or it said that it restarted. Unknown keys are ignored.
    ///
    /// Its circuit breaker closes, and if it was suspected, down or draining, its link is [`Link::Idle`] again.
    pub fn renew(&mut self, now: Instant, key: &K) {
        let now = self.clock.tick(now);
        let Some(slot) = self.find(key) else { return };
        let cold = &mut self.cold[slot as usize];
        cold.hold = 0;
        cold.dials = 0;
        let circuit = cold.circuit;
        match cold.link {
            Link::Idle | Link::Up if circuit == Circuit::Closed => self.settle(now, slot),
            Link::Idle | Link::Up => self.restore(now, slot, RestoreReason::Renewed),
            Link::Suspected | Link::Down | Link::Draining => {
                cold.link = Link::Idle;
                self.restore(now, slot, RestoreReason::Renewed);
            }
        }
        self.enforce_cap(now);
        self.watch_panic();
    }

    /// Whether every other provider is suspected, down or leaving, so that there is none but this one to hope for.
    #[must_use]
    pub fn is_last_reachable(&self, key: &K) -> bool {
        let itself = self.find(key).is_some_and(|slot| {
            let link = self.cold[slot as usize].link;
            matches!(link, Link::Idle | Link::Up)
        });
        self.roster.count(REACHABLE) <= u32::from(itself)
    }

    fn connected(&mut self, now: Nanos, slot: u32, before: Link) {
        let cold = &mut self.cold[slot as usize];
        cold.link = Link::Up;
        cold.hold = 0;
        cold.dials = 0;
        match before {
            Link::Idle if cold.circuit == Circuit::Closed => {}
            Link::Idle | Link::Up | Link::Suspected | Link::Down | Link::Draining => {
                self.restore(now, slot, RestoreReason::Connected);
            }
        }
    }

    fn lost(&mut self, now: Nanos, slot: u32) {
        let redial = self.redial_at(now, slot);
        let cold = &mut self.cold[slot as usize];
        cold.link = Link::Down;
        cold.hold = redial;
        cold.consecutive = 0;
        let provider = cold.key.clone();
        self.dials.not_after(redial);
        self.set_circuit(slot, Circuit::Closed, 0);
        if let Some(provider) = provider {
            self.events.push(Event::Unreachable { provider });
        }
    }
}
