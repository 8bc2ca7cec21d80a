//! What dials are due: those that picks want, and a limit on how many are made.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::{NEVER, Nanos, nanos};

/// Dials of one balancer that [`Balancer::poll_dial`](crate::Balancer::poll_dial) asks for in a row.
pub const MAX_DIALS_AT_ONCE: u32 = 8;
/// The time between dials once that many were asked for.
pub const DIAL_EVERY: Duration = Duration::from_millis(30);
/// Providers that picks would have taken and that still wait for their dial.
const MAX_WANTED: usize = 16;
/// For so long after the last pick of the service, providers are dialed.
const IN_USE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub(crate) struct Dials {
    wanted: VecDeque<u32>,
    /// No dial is due before this moment.
    next: Nanos,
    /// Dials are paced as cells are in a leaky bucket (GCRA, ITU-T I.371): the moment at which the bucket is empty.
    drained: Nanos,
    /// When the last pick was.
    used: Nanos,
}

impl Dials {
    pub(crate) fn new() -> Self {
        Self {
            wanted: VecDeque::with_capacity(MAX_WANTED),
            next: NEVER,
            drained: 0,
            used: 0,
        }
    }

    #[inline]
    pub(crate) fn service_used(&mut self, now: Nanos) {
        self.used = now;
    }

    /// A dial may be due then.
    #[inline]
    pub(crate) fn not_after(&mut self, at: Nanos) {
        self.next = self.next.min(at);
    }

    pub(crate) fn forget(&mut self, slot: u32) {
        self.wanted.retain(|wanted| *wanted != slot);
    }

    /// Whether the service is called.
    pub(crate) fn in_use(&self, now: Nanos) -> bool {
        now.saturating_sub(self.used) <= nanos(IN_USE)
    }

    /// When the bucket has room for one more.
    fn room_at(&self) -> Nanos {
        self.drained
            .saturating_sub(nanos(DIAL_EVERY) * u64::from(MAX_DIALS_AT_ONCE - 1))
    }

    /// No dial is due before this moment.
    pub(crate) fn next(&self) -> Nanos {
        self.next
    }

    /// Whether a dial may be made now.
    pub(crate) fn may_dial(&mut self, now: Nanos) -> bool {
        if now < self.next || !self.in_use(now) {
            return false;
        }
        let room = self.room_at();
        if room > now {
            self.next = room;
        }
        room <= now
    }

    /// A dial is made now.
    pub(crate) fn dialed(&mut self, now: Nanos) {
        self.drained = self.drained.max(now) + nanos(DIAL_EVERY);
    }

    /// None is due before that.
    pub(crate) fn not_before(&mut self, at: Nanos) {
        self.next = at;
    }

    /// Whether it is not noted yet and may be.
    pub(crate) fn has_room_for(&self, slot: u32) -> bool {
        self.wanted.len() < MAX_WANTED && !self.wanted.contains(&slot)
    }

    pub(crate) fn push_wanted(&mut self, now: Nanos, slot: u32) {
        self.wanted.push_back(slot);
        self.not_after(now);
    }

    pub(crate) fn pop_wanted(&mut self) -> Option<u32> {
        self.wanted.pop_front()
    }
}
