//! The calls a caller waits for: ids with generations, and a wheel of deadlines.
//!
//! **Invariants:** an id is never given twice; a call is in exactly one bucket of the wheel until it is taken; starting, taking and
//! expiring a call cost the same however many others wait.
//!
//! The wheel is a hashed one (Varghese and Lauck, 1987, scheme 6): a bucket may hold later rounds, which is why it remembers
//! the earliest of its deadlines.
//!
//! A core: no clock, no lock, no socket.

use std::time::{Duration, Instant};

/// Names a call on a connection: a slot, and how often the slot was used. Never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct CallId(u64);

/// How many of an id's bits name the slot.
const SLOT_BITS: u32 = 16;
/// The most calls that can wait at a time.
pub(crate) const MAX_CALLS: usize = 1 << SLOT_BITS;

impl CallId {
    fn new(slot: u32, generation: u64) -> Self {
        Self(generation << SLOT_BITS | u64::from(slot))
    }

    fn slot(self) -> usize {
        (self.0 & (MAX_CALLS as u64 - 1)) as usize
    }

    fn generation(self) -> u64 {
        self.0 >> SLOT_BITS
    }

    pub(crate) fn to_wire(self) -> u64 {
        self.0
    }

    /// Any number; the look-up tells whether it names a call.
    pub(crate) fn from_wire(id: u64) -> Self {
        Self(id)
    }
}

/// How late a deadline may be noticed.
pub(crate) const TICK: Duration = Duration::from_micros(4096);
const BUCKETS: usize = 256;
/// No slot.
const NONE: u32 = u32::MAX;
/// No deadline.
const NEVER: u64 = u64::MAX;

#[derive(Debug)]
struct Slot<W> {
    generation: u64,
    pending: Option<Pending<W>>,
    /// Neighbours in the bucket; `next` of a free slot is the next free one.
    previous: u32,
    next: u32,
}

#[derive(Debug)]
struct Pending<W> {
    waiter: W,
    /// In ticks since the epoch, rounded up.
    deadline: u64,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    first: u32,
    /// Not later than any deadline in it.
    earliest: u64,
}

/// The calls that wait for a reply. `W` is woken by a call's end.
#[derive(Debug)]
pub(crate) struct Calls<W> {
    epoch: Instant,
    slots: Vec<Slot<W>>,
    free: u32,
    len: usize,
    buckets: Box<[Bucket; BUCKETS]>,
    /// Not later than any deadline.
    earliest: u64,
}

impl<W> Calls<W> {
    pub(crate) fn new(epoch: Instant) -> Self {
        let empty = Bucket {
            first: NONE,
            earliest: NEVER,
        };
        Self {
            epoch,
            slots: Vec::new(),
            free: NONE,
            len: 0,
            buckets: Box::new([empty; BUCKETS]),
            earliest: NEVER,
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Starts to wait; gives the waiter back when [`MAX_CALLS`] wait already.
    ///
    /// [`Calls::poll_timeout`] may be earlier afterwards: then the second value is true.
    pub(crate) fn start(&mut self, deadline: Instant, waiter: W) -> Result<(CallId, bool), W> {
        let ticks = deadline
            .saturating_duration_since(self.epoch)
            .as_nanos()
            .div_ceil(TICK.as_nanos());
        let deadline = u64::try_from(ticks).unwrap_or(NEVER - 1);
        let at = if self.free != NONE {
            let at = self.free;
            self.free = self.slots[at as usize].next;
            at
        } else if self.slots.len() < MAX_CALLS {
            self.slots.push(Slot {
                generation: 0,
                pending: None,
                previous: NONE,
                next: NONE,
            });
            (self.slots.len() - 1) as u32
        } else {
            return Err(waiter);
        };
        let bucket = &mut self.buckets[deadline as usize % BUCKETS];
        let next = std::mem::replace(&mut bucket.first, at);
        bucket.earliest = bucket.earliest.min(deadline);
        let slot = &mut self.slots[at as usize];
        slot.generation += 1;
        slot.pending = Some(Pending { waiter, deadline });
        (slot.previous, slot.next) = (NONE, next);
        let id = CallId::new(at, slot.generation);
        if next != NONE {
            self.slots[next as usize].previous = at;
        }
        self.len += 1;
        let earlier = deadline < self.earliest;
        self.earliest = self.earliest.min(deadline);
        Ok((id, earlier))
    }

    fn holds(&self, id: CallId) -> bool {
        self.slots
            .get(id.slot())
            .is_some_and(|slot| slot.generation == id.generation() && slot.pending.is_some())
    }

    /// The waiter of a call that waits.
    pub(crate) fn get_mut(&mut self, id: CallId) -> Option<&mut W> {
        let slot = self.slots.get_mut(id.slot())?;
        let pending = slot.pending.as_mut().filter(|_| slot.generation == id.generation())?;
        Some(&mut pending.waiter)
    }

    /// Ends a call's wait, however it ended; `None` when it did not wait.
    pub(crate) fn take(&mut self, id: CallId) -> Option<W> {
        if !self.holds(id) {
            return None;
        }
        self.remove(id.slot() as u32)
    }

    fn remove(&mut self, at: u32) -> Option<W> {
        let slot = &mut self.slots[at as usize];
        let pending = slot.pending.take()?;
        let (previous, next) = (slot.previous, slot.next);
        slot.next = std::mem::replace(&mut self.free, at);
        if next != NONE {
            self.slots[next as usize].previous = previous;
        }
        if previous != NONE {
            self.slots[previous as usize].next = next;
        } else {
            let bucket = &mut self.buckets[pending.deadline as usize % BUCKETS];
            bucket.first = next;
            if next == NONE {
                bucket.earliest = NEVER;
            }
        }
        self.len -= 1;
        if self.len == 0 {
            self.earliest = NEVER;
        }
        Some(pending.waiter)
    }

    /// Ends the wait of every call whose deadline has passed, and tells which they were, in the order of their slots.
    pub(crate) fn expire(&mut self, now: Instant, mut expired: impl FnMut(CallId, W)) {
        let passed = u64::try_from(now.saturating_duration_since(self.epoch).as_nanos() / TICK.as_nanos());
        let passed = passed.unwrap_or(NEVER - 1);
        if self.earliest > passed {
            return;
        }
        let mut due = Vec::new();
        for bucket in self.buckets.iter_mut().filter(|bucket| bucket.earliest <= passed) {
            bucket.earliest = NEVER;
            let mut at = bucket.first;
            while at != NONE {
                let slot = &self.slots[at as usize];
                let deadline = slot.pending.as_ref().map_or(NEVER, |pending| pending.deadline);
                if deadline <= passed {
                    due.push(at);
                } else {
                    bucket.earliest = bucket.earliest.min(deadline);
                }
                at = slot.next;
            }
        }
        due.sort_unstable();
        for at in due {
            let id = CallId::new(at, self.slots[at as usize].generation);
            if let Some(waiter) = self.remove(at) {
                expired(id, waiter);
            }
        }
        self.earliest = self.buckets.iter().map(|bucket| bucket.earliest).min().unwrap_or(NEVER);
        debug_assert!(self.earliest > passed, "what is due was expired");
    }

    /// When [`Calls::expire`] next has something to do, or a little earlier.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        (self.earliest != NEVER).then(|| self.at(self.earliest))
    }

    /// Ends the wait of every call whose waiter is one of these.
    pub(crate) fn take_all(&mut self, which: impl Fn(&W) -> bool) -> Vec<W> {
        let slots = self.slots.iter().zip(0_u32..);
        let these = slots.filter(|(slot, _)| slot.pending.as_ref().is_some_and(|call| which(&call.waiter)));
        let these: Vec<_> = these.map(|(_, at)| at).collect();
        these.into_iter().filter_map(|at| self.remove(at)).collect()
    }

    fn at(&self, tick: u64) -> Instant {
        let nanos = u128::from(tick).saturating_mul(TICK.as_nanos());
        // Deadlines are bounded by the longest timeout, far below what an instant holds.
        self.epoch + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 4))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Start { millis: u64 },
        Take { which: usize },
        TakeOld { which: usize },
        Advance { millis: u64 },
        Drain,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..5000_u64).prop_map(|millis| Step::Start { millis }),
            3 => any::<usize>().prop_map(|which| Step::Take { which }),
            1 => any::<usize>().prop_map(|which| Step::TakeOld { which }),
            2 => (0..2000_u64).prop_map(|millis| Step::Advance { millis }),
            1 => Just(Step::Drain),
        ]
    }

    proptest! {
        #[test]
        fn calls_end_once_by_reply_or_deadline_and_ids_are_never_used_twice(
            steps in prop::collection::vec(step(), 1..300),
        ) {
            let epoch = Instant::now();
            let (mut now, mut calls) = (epoch, Calls::new(epoch));
            let mut model: BTreeMap<CallId, (u32, Instant)> = BTreeMap::new();
            let mut ended: Vec<CallId> = Vec::new();
            let mut next = 0_u32;
            for step in steps {
                match step {
                    Step::Start { millis } => {
                        let deadline = now + Duration::from_millis(millis);
                        let before = calls.poll_timeout();
                        let (id, earlier) = calls.start(deadline, next).unwrap();
                        prop_assert_eq!(earlier, calls.poll_timeout() != before);
                        prop_assert!(!ended.contains(&id) && id.to_wire() != 0);
                        prop_assert!(model.insert(id, (next, deadline)).is_none());
                        next += 1;
                    }
                    Step::Take { which } => {
                        if let Some(id) = model.keys().nth(which % model.len().max(1)).copied() {
                            prop_assert_eq!(calls.get_mut(id).copied(), model.get(&id).map(|(waiter, _)| *waiter));
                            prop_assert_eq!(calls.take(id), model.remove(&id).map(|(waiter, _)| waiter));
                            ended.push(id);
                        }
                    }
                    Step::TakeOld { which } => {
                        if let Some(&id) = ended.get(which % ended.len().max(1)) {
                            prop_assert_eq!(calls.take(id), None);
                            prop_assert_eq!(calls.get_mut(id), None);
                        }
                    }
                    Step::Advance { millis } => {
                        now += Duration::from_millis(millis);
                        let mut expired = Vec::new();
                        calls.expire(now, |id, waiter| expired.push((id, waiter)));
                        for (id, waiter) in expired {
                            let (expected, deadline) = model.remove(&id).unwrap();
                            prop_assert!(waiter == expected && deadline <= now);
                            ended.push(id);
                        }
                        prop_assert!(model.values().all(|&(_, deadline)| deadline + TICK > now));
                        prop_assert!(calls.poll_timeout().is_none_or(|at| at > now));
                    }
                    Step::Drain => {
                        prop_assert_eq!(calls.take_all(|_| true).len(), model.len());
                        ended.extend(std::mem::take(&mut model).into_keys());
                    }
                }
                prop_assert_eq!(calls.len(), model.len());
                let earliest = model.values().map(|&(_, deadline)| deadline).min();
                prop_assert_eq!(calls.poll_timeout().is_some(), earliest.is_some());
                if let (Some(at), Some(earliest)) = (calls.poll_timeout(), earliest) {
                    prop_assert!(at <= earliest + TICK, "a deadline would be missed");
                }
            }
        }
    }

    #[test]
    fn no_more_calls_wait_than_ids_can_name() {
        let epoch = Instant::now();
        let mut calls = Calls::new(epoch);
        for n in 0..MAX_CALLS {
            calls.start(epoch, n).unwrap();
        }
        assert_eq!(calls.start(epoch, 7), Err(7));
    }
}
