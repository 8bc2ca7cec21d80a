//! News for observers, in a short queue.
//!
//! Events report; they ask for nothing. If they are not read, the oldest are dropped and counted.

use std::collections::VecDeque;
use std::fmt;
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
    /// The kind of event, in a word that does not change.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ejected { .. } => "ejected",
            Self::Probing { .. } => "probing",
            Self::Restored { .. } => "restored",
            Self::Unreachable { .. } => "unreachable",
            Self::PanicEntered => "health_ignored",
            Self::PanicLeft => "health_heeded",
            Self::BudgetExhausted => "budget_exhausted",
        }
    }

    /// Its provider; `None` for an event of the whole service.
    #[must_use]
    pub const fn provider(&self) -> Option<&K> {
        match self {
            Self::Ejected { provider, .. }
            | Self::Probing { provider }
            | Self::Restored { provider, .. }
            | Self::Unreachable { provider } => Some(provider),
            Self::PanicEntered | Self::PanicLeft | Self::BudgetExhausted => None,
        }
    }

    /// The event with the provider under another name; `None` when `name` returns `None`.
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

/// The event in words, without the name of its provider.
impl<K> fmt::Display for Event<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ejected { count, reason, .. } => {
                write!(f, "ejected: {}; ejection {count} in a row", reason.text())
            }
            Self::Probing { .. } => f.write_str("a call probes whether it works again"),
            Self::Restored { reason, .. } => write!(f, "restored: {}", reason.text()),
            Self::Unreachable { .. } => f.write_str("it cannot be reached; it is dialed behind the calls"),
            Self::PanicEntered => f.write_str("no healthy provider is left: calls go to all of them"),
            Self::PanicLeft => f.write_str("a healthy provider is there again"),
            Self::BudgetExhausted => f.write_str("the retry budget is used up: failed calls are not retried"),
        }
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

impl EjectionReason {
    const fn text(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "too many failures in a row",
            Self::SuccessRate => "too many failures",
            Self::ProbeFailed => "the probe failed",
        }
    }
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

impl RestoreReason {
    const fn text(self) -> &'static str {
        match self {
            Self::ProbeSucceeded => "the probe succeeded",
            Self::CapExceeded => "too many others are ejected",
            Self::Connected => "a connection to it was opened",
            Self::Renewed => "it was published again",
        }
    }
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
