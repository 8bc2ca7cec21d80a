//! Every lease that is out, with the moment at which it counts as lost.
//!
//! A lease that is dropped cannot say so, because the core shares no state with it. So the balancer notes each lease
//! and takes back those that are overdue: their providers no longer look busy.
//!
//! **Invariant.** `out` is the number of leases that were granted and neither taken nor expired.

use super::lease::Handle;
use crate::clock::{NEVER, Nanos};

/// Entries that exist from the start. A pick allocates only when more leases are out than ever before.
const RESERVED: usize = 64;
/// The end of the list of free entries.
const NONE: u32 = u32::MAX;

/// Where a lease is noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    entry: u32,
    life: u32,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// When the lease is lost; [`NEVER`] in a free entry.
    lost_at: Nanos,
    /// The provider; in a free entry `slot` is the next free one.
    handle: Handle,
    /// Counts the leases that this entry has held.
    life: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Leases {
    entries: Vec<Entry>,
    free: u32,
    out: u32,
    /// No lease is lost before this moment.
    due: Nanos,
}

impl Leases {
    pub(crate) fn new() -> Self {
        Self {
            entries: Vec::with_capacity(RESERVED),
            free: NONE,
            out: 0,
            due: NEVER,
        }
    }

    /// When [`Leases::expire`] may find something: never before.
    #[inline]
    pub(crate) fn due(&self) -> Nanos {
        self.due
    }

    /// Leases that are out.
    #[inline]
    pub(crate) fn out(&self) -> u32 {
        self.out
    }

    #[inline]
    pub(crate) fn grant(&mut self, handle: Handle, lost_at: Nanos) -> Ticket {
        let lost_at = lost_at.min(NEVER - 1);
        self.due = self.due.min(lost_at);
        self.out += 1;
        match self.entries.get_mut(self.free as usize) {
            Some(entry) => {
                let ticket = Ticket {
                    entry: self.free,
                    life: entry.life,
                };
                self.free = entry.handle.slot;
                entry.lost_at = lost_at;
                entry.handle = handle;
                ticket
            }
            None => {
                self.entries.push(Entry {
                    lost_at,
                    handle,
                    life: 0,
                });
                Ticket {
                    entry: self.entries.len() as u32 - 1,
                    life: 0,
                }
            }
        }
    }

    /// Takes a lease back; `false` if it is not out any more.
    #[inline]
    pub(crate) fn take(&mut self, ticket: Ticket) -> bool {
        match self.entries.get(ticket.entry as usize) {
            Some(entry) if entry.life == ticket.life && entry.lost_at != NEVER => {
                self.release(ticket.entry);
                true
            }
            Some(_) | None => false,
        }
    }

    /// Takes back every lease that is lost by now, and tells `lost` the provider of each.
    pub(crate) fn expire(&mut self, now: Nanos, mut lost: impl FnMut(Handle)) {
        for at in 0..self.entries.len() {
            let entry = &self.entries[at];
            if entry.lost_at <= now {
                lost(entry.handle);
                self.release(at as u32);
            }
        }
        self.due = self.entries.iter().map(|entry| entry.lost_at).min().unwrap_or(NEVER);
    }

    #[inline]
    fn release(&mut self, at: u32) {
        let entry = &mut self.entries[at as usize];
        entry.life = entry.life.wrapping_add(1);
        entry.lost_at = NEVER;
        entry.handle.slot = self.free;
        self.free = at;
        self.out -= 1;
        if self.out == 0 {
            self.due = NEVER;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The table agrees with a list of the leases that are out.
        #[test]
        fn every_lease_is_taken_once_or_lost_once(steps in proptest::collection::vec((0u8..5, 0u64..40), 1..300)) {
            let mut leases = Leases::new();
            let mut out: Vec<(Ticket, u32, Nanos)> = Vec::new();
            let mut gone: Vec<Ticket> = Vec::new();
            let (mut now, mut slot) = (0, 0);
            for (kind, number) in steps {
                match kind {
                    0..2 => {
                        slot += 1;
                        let ticket = leases.grant(Handle { slot, generation: 0 }, now + number);
                        out.push((ticket, slot, now + number));
                    }
                    2 if !out.is_empty() => {
                        let (ticket, ..) = out.swap_remove(number as usize % out.len());
                        prop_assert!(leases.take(ticket));
                        gone.push(ticket);
                    }
                    3 if !gone.is_empty() => prop_assert!(!leases.take(gone[number as usize % gone.len()])),
                    _ => {
                        now += number;
                        let mut lost = Vec::new();
                        leases.expire(now, |provider| lost.push(provider.slot));
                        let (over, left): (Vec<_>, Vec<_>) = out.into_iter().partition(|(.., lost_at)| *lost_at <= now);
                        out = left;
                        let mut expected: Vec<u32> = over.iter().map(|(_, slot, _)| *slot).collect();
                        lost.sort_unstable();
                        expected.sort_unstable();
                        prop_assert_eq!(lost, expected);
                        gone.extend(over.iter().map(|(ticket, ..)| *ticket));
                        prop_assert!(leases.due() > now);
                    }
                }
                prop_assert_eq!(leases.out() as usize, out.len());
            }
        }
    }
}
