//! Events in the order of their times: a wheel of milliseconds for the near future, a heap for the rest.
//!
//! Almost everything happens within two seconds. A heap of all the timers of a hundred thousand nodes would be walked, level by
//! level and cache miss by cache miss, for every message.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

const SLOTS: usize = 4096;
const SLOT_NANOS: u64 = 1_000_000;

/// The time, the order among equal times, and the event.
type Item = (u64, u64, u32);

pub(crate) struct Queue {
    origin: Instant,
    /// One list for each of the next milliseconds, the one of `open` at `open % SLOTS`.
    wheel: Vec<Vec<Item>>,
    far: BinaryHeap<Reverse<Item>>,
    /// The millisecond being worked off, sorted with the last first.
    open: u64,
    current: Vec<Item>,
    serial: u64,
}

impl Queue {
    pub(crate) fn new(origin: Instant) -> Self {
        let wheel = vec![Vec::new(); SLOTS];
        Self {
            origin,
            wheel,
            far: BinaryHeap::new(),
            open: 0,
            current: Vec::new(),
            serial: 0,
        }
    }

    pub(crate) fn push(&mut self, at: Instant, what: u32) {
        self.serial += 1;
        let nanos = at.saturating_duration_since(self.origin).as_nanos() as u64;
        let item = (nanos, self.serial, what);
        let slot = nanos / SLOT_NANOS;
        if slot <= self.open {
            let at = self.current.partition_point(|other| *other > item);
            self.current.insert(at, item);
        } else if slot < self.open + SLOTS as u64 {
            self.wheel[slot as usize % SLOTS].push(item);
        } else {
            self.far.push(Reverse(item));
        }
    }

    /// The next event, if it is due by `end`.
    pub(crate) fn pop(&mut self, end: Instant) -> Option<(Instant, u32)> {
        let end = end.saturating_duration_since(self.origin).as_nanos() as u64;
        while self.current.is_empty() {
            if (self.open + 1) * SLOT_NANOS > end {
                return None;
            }
            self.open += 1;
            // Not swapped: after a burst every slot would keep room for it.
            self.current = std::mem::take(&mut self.wheel[self.open as usize % SLOTS]);
            while let Some(&Reverse(item)) = self.far.peek()
                && item.0 / SLOT_NANOS <= self.open
            {
                self.far.pop();
                self.current.push(item);
            }
            self.current.sort_unstable_by(|a, b| b.cmp(a));
        }
        let (nanos, _, what) = *self.current.last().filter(|item| item.0 <= end)?;
        self.current.pop();
        Some((self.origin + Duration::from_nanos(nanos), what))
    }
}
