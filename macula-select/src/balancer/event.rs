//! News for observers, in a short queue.
//!
//! Events report; they ask for nothing. If they are not read, the oldest are dropped and counted.

use std::collections::VecDeque;
use std::time::Instant;

/// Events kept for an observer that is slow to read them.
pub const MAX_EVENTS: usize = 64;

/// Something an operator may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<K> {
    /// A provider was put aside for failing.
    Ejected {
        /// The provider.
        provider: K,
        /// Until when, at least.
        until: Instant,
        /// Which ejection in a row this is, from 1.
        count: u32,
        /// Why.
        reason: EjectionReason,
    },
    /// A call was sent to an ejected provider to find out whether it works again.
    Probing {
        /// The provider.
        provider: K,
    },
    /// An ejected provider is used again.
    Restored {
        /// The provider.
        provider: K,
        /// Why.
        reason: RestoreReason,
    },
    /// A provider was found unreachable. It is dialed behind the calls until it answers.
    Unreachable {
        /// The provider.
        provider: K,
    },
    /// No healthy provider is left; picks disregard health.
    PanicEntered,
    /// A healthy provider is there again.
    PanicLeft,
    /// A retry was wanted and the budget forbade it. Told once until a retry is allowed again.
    BudgetExhausted,
}

impl<K> Event<K> {
    /// The event with the provider under another name; `None` when `name` has none for it.
    #[must_use]
    pub fn named<N>(self, name: impl FnOnce(K) -> Option<N>) -> Option<Event<N>> {
        Some(match self {
            Self::Ejected {
                provider,
                until,
                count,
                reason,
            } => Event::Ejected {
                provider: name(provider)?,
                until,
                count,
                reason,
            },
            Self::Probing { provider } => Event::Probing {
                provider: name(provider)?,
            },
            Self::Restored { provider, reason } => Event::Restored {
                provider: name(provider)?,
                reason,
            },
            Self::Unreachable { provider } => Event::Unreachable {
                provider: name(provider)?,
            },
            Self::PanicEntered => Event::PanicEntered,
            Self::PanicLeft => Event::PanicLeft,
            Self::BudgetExhausted => Event::BudgetExhausted,
        })
    }
}

/// Why a provider was ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EjectionReason {
    /// Too many failures in a row.
    ConsecutiveFailures,
    /// Too low a success rate.
    SuccessRate,
    /// The probe failed.
    ProbeFailed,
}

/// Why a provider was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestoreReason {
    /// The probe succeeded.
    ProbeSucceeded,
    /// More of the set was ejected than is allowed: it shrank, or those that remained did not do well.
    CapExceeded,
    /// A new connection to it was opened.
    Connected,
    /// A fresh record of it arrived, or it said that it restarted.
    Renewed,
}

#[derive(Debug, Clone)]
pub(crate) struct Events<K> {
    queue: VecDeque<Event<K>>,
    lost: u64,
}

impl<K> Events<K> {
    /// Allocates the whole queue: a report must not.
    pub(crate) fn new() -> Self {
        Self {
            queue: VecDeque::with_capacity(MAX_EVENTS),
            lost: 0,
        }
    }

    pub(crate) fn push(&mut self, event: Event<K>) {
        if self.queue.len() == MAX_EVENTS {
            self.queue.pop_front();
            self.lost += 1;
        }
        self.queue.push_back(event);
    }

    pub(crate) fn pop(&mut self) -> Option<Event<K>> {
        self.queue.pop_front()
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unread_queue_stays_short_and_counts_what_it_lost() {
        let mut events = Events::new();
        for provider in 0..MAX_EVENTS + 3 {
            events.push(Event::Probing { provider });
        }
        assert_eq!(events.lost(), 3);
        assert_eq!(events.pop(), Some(Event::Probing { provider: 3 }));
    }
}
