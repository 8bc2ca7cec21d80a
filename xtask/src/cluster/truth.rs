//! What the runner knows: when each provider could be reached, and when one was lost.

use std::{collections::BTreeMap, time::SystemTime};

/// When a provider could be reached and callers could know it: from the first to the second, or to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reachable {
    pub(crate) from_us: u64,
    pub(crate) until_us: Option<u64>,
}

/// What the runner knows of the providers, by node id. Times are of the machine's wall clock, in microseconds.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    pub(crate) providers: BTreeMap<String, Vec<Reachable>>,
    /// The providers that were killed, and when.
    pub(crate) crashes: Vec<(String, u64)>,
    /// The times in which the callers stood still.
    pub(crate) stills: Vec<(u64, u64)>,
    /// When the first fault began; 0 before it.
    pub(crate) first_fault_us: u64,
    /// When the last fault was done.
    pub(crate) last_fault_us: u64,
}

impl Truth {
    /// The provider can be reached from `from_us` on. It could not be before.
    pub(crate) fn reachable(&mut self, id: &str, from_us: u64) {
        let spans = self.providers.entry(id.to_owned()).or_default();
        if spans.last().is_none_or(|span| span.until_us.is_some()) {
            spans.push(Reachable {
                from_us,
                until_us: None,
            });
        }
    }

    /// Callers know every provider so far from `at_us` on, and not only later.
    pub(crate) fn all_known(&mut self, at_us: u64) {
        for span in self.providers.values_mut().flatten() {
            span.from_us = span.from_us.min(at_us);
        }
    }

    /// The provider cannot be reached from `at_us` on.
    pub(crate) fn unreachable(&mut self, id: &str, at_us: u64) {
        if let Some(span) = self.providers.get_mut(id).and_then(|spans| spans.last_mut()) {
            span.until_us.get_or_insert(at_us);
        }
    }

    /// The times in which no provider could be reached, in order.
    pub(crate) fn gaps(&self) -> Vec<(u64, u64)> {
        let spans = self.providers.values().flatten();
        let mut spans: Vec<_> = spans
            .map(|span| (span.from_us, span.until_us.unwrap_or(u64::MAX)))
            .collect();
        spans.sort_unstable();
        let (mut gaps, mut covered) = (Vec::new(), 0);
        for (from, until) in spans {
            if from > covered {
                gaps.push((covered, from));
            }
            covered = covered.max(until);
        }
        if covered < u64::MAX {
            gaps.push((covered, u64::MAX));
        }
        gaps
    }

    /// The last time within `from_us..=until_us` at which a provider was lost.
    pub(crate) fn last_loss(&self, from_us: u64, until_us: u64) -> Option<u64> {
        let losses = self.providers.values().flatten().filter_map(|span| span.until_us);
        losses.filter(|at| (from_us..=until_us).contains(at)).max()
    }

    pub(crate) fn alive_at_the_end(&self) -> impl Iterator<Item = &str> {
        let alive = self.providers.iter().filter(|(_, spans)| {
            let last = spans.last();
            last.is_some_and(|span| span.until_us.is_none())
        });
        alive.map(|(id, _)| id.as_str())
    }
}

/// How much of `from_us..until_us` lies in `spans`, which do not overlap.
pub(crate) fn overlap(spans: &[(u64, u64)], from_us: u64, until_us: u64) -> u64 {
    let shared = spans
        .iter()
        .map(|&(from, until)| until.min(until_us).saturating_sub(from.max(from_us)));
    shared.sum()
}

/// The wall clock, in microseconds.
pub(crate) fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn providers_that_follow_each_other_leave_no_gap() {
        let mut truth = Truth::default();
        truth.reachable("a", 0);
        truth.reachable("b", 50);
        truth.unreachable("a", 60);
        assert_eq!(truth.gaps(), []);
        truth.unreachable("b", 100);
        truth.reachable("a", 130);
        assert_eq!(truth.gaps(), [(100, 130)]);
        assert_eq!(
            (overlap(&truth.gaps(), 90, 120), overlap(&truth.gaps(), 0, 100)),
            (20, 0)
        );
        assert_eq!((truth.last_loss(0, 99), truth.last_loss(0, 200)), (Some(60), Some(100)));
        assert_eq!(truth.alive_at_the_end().collect::<Vec<_>>(), ["a"]);
    }
}
