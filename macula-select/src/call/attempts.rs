//! The log of a call's attempts: provider, start, duration, fate (F4).
//!
//! Three fit without allocation, as many as a call makes by default.

use std::fmt;
use std::time::{Duration, Instant};

use crate::balancer::Handle;
use crate::clock::Nanos;
use crate::fate::Fate;

/// Attempts kept without allocating.
const INLINE: usize = 3;

/// One attempt of a call, numbered from 0 in the order of dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub(crate) u32);

impl AttemptId {
    /// The first of a call.
    pub const FIRST: Self = Self(0);

    /// The number.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0 + 1)
    }
}

/// One attempt, over or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt<K> {
    pub(crate) provider: K,
    pub(crate) handle: Handle,
    pub(crate) started: Instant,
    pub(crate) elapsed: Nanos,
    pub(crate) fate: Fate,
    pub(crate) hedge: bool,
    /// Nothing was sent, and the provider may be tried again: a fresh record of it came.
    pub(crate) renewed: bool,
}

impl<K> Attempt<K> {
    /// The provider that it was sent to.
    #[must_use]
    pub fn provider(&self) -> &K {
        &self.provider
    }

    /// When it was dispatched.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// How long it took.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.elapsed)
    }

    /// How it ended. One that another attempt made superfluous was cancelled.
    #[must_use]
    pub fn fate(&self) -> Fate {
        self.fate
    }

    /// Whether it was sent beside another one that was slow, or whose provider was silent.
    #[must_use]
    pub fn is_hedge(&self) -> bool {
        self.hedge
    }
}

/// The attempts of a call, in the order of dispatch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempts<K> {
    first: [Option<Attempt<K>>; INLINE],
    more: Vec<Attempt<K>>,
    length: u32,
}

impl<K> Attempts<K> {
    pub(crate) const fn new() -> Self {
        Self {
            first: [const { None }; INLINE],
            more: Vec::new(),
            length: 0,
        }
    }

    pub(crate) fn push(&mut self, attempt: Attempt<K>) -> AttemptId {
        let id = AttemptId(self.length);
        self.length += 1;
        match self.first.get_mut(id.index()) {
            Some(place) => *place = Some(attempt),
            None => self.more.push(attempt),
        }
        id
    }

    pub(crate) fn get_mut(&mut self, id: AttemptId) -> Option<&mut Attempt<K>> {
        match self.first.get_mut(id.index()) {
            Some(place) => place.as_mut(),
            None => self.more.get_mut(id.index() - INLINE),
        }
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Attempt<K>> {
        self.first.iter_mut().flatten().chain(&mut self.more)
    }

    pub(crate) fn last_id(&self) -> Option<AttemptId> {
        self.length.checked_sub(1).map(AttemptId)
    }

    /// The attempt with this id.
    #[must_use]
    pub fn get(&self, id: AttemptId) -> Option<&Attempt<K>> {
        match self.first.get(id.index()) {
            Some(place) => place.as_ref(),
            None => self.more.get(id.index() - INLINE),
        }
    }

    /// How many there were.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Whether nothing was sent at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// All of them.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Attempt<K>> {
        self.first.iter().flatten().chain(&self.more)
    }

    /// All of them with their ids.
    pub fn enumerate(&self) -> impl Iterator<Item = (AttemptId, &Attempt<K>)> {
        (0..self.length).map(AttemptId).zip(self.iter())
    }

    /// The one dispatched last.
    #[must_use]
    pub fn last(&self) -> Option<&Attempt<K>> {
        self.iter().next_back()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_found_by_their_id_beyond_the_inline_ones() {
        let mut attempts = Attempts::new();
        assert!(attempts.is_empty() && attempts.last().is_none());
        let started = Instant::now();
        for provider in 0..INLINE + 3 {
            let id = attempts.push(Attempt {
                provider,
                handle: Handle { slot: 0, generation: 0 },
                started,
                elapsed: 0,
                fate: Fate::NotSent,
                hedge: false,
                renewed: false,
            });
            attempts.get_mut(id).unwrap().fate = Fate::Ok;
        }
        assert_eq!(attempts.len(), INLINE + 3);
        for (id, attempt) in attempts.enumerate() {
            assert_eq!(id.index(), *attempt.provider());
            assert_eq!(attempts.get(id), Some(attempt));
            assert_eq!(attempt.fate(), Fate::Ok);
        }
        assert_eq!(attempts.last().map(|attempt| attempt.provider), Some(INLINE + 2));
        assert_eq!(attempts.get(AttemptId(99)), None);
    }
}
