//! Counts the calls as they end, and sums them up.

use std::{collections::BTreeMap, time::Duration};

use macula_node::NodeId;

/// A stretch of the demonstration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Every provider is alive.
    Before,
    /// From the kill until the killed provider answers again.
    Down,
    /// The killed provider has answered again.
    Back,
}

impl Phase {
    pub(crate) const ALL: [Self; 3] = [Self::Before, Self::Down, Self::Back];

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Before => "all alive",
            Self::Down => "one killed",
            Self::Back => "back again",
        }
    }
}

/// How one call ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    /// The provider that answered; `None` when the call failed.
    pub(crate) by: Option<NodeId>,
    /// How many providers were tried.
    pub(crate) attempts: u32,
    pub(crate) took: Duration,
}

/// The calls of one phase.
#[derive(Debug, Default)]
pub(crate) struct PhaseTally {
    latencies_us: Vec<u32>,
    pub(crate) failed: u64,
    pub(crate) attempts: u64,
    pub(crate) by_provider: BTreeMap<NodeId, u64>,
}

impl PhaseTally {
    pub(crate) fn calls(&self) -> u64 {
        self.latencies_us.len() as u64
    }

    /// The latency that `share` of the calls stayed within, in microseconds; 0 without calls.
    pub(crate) fn quantile_us(&self, share: f64) -> u32 {
        quantile(self.latencies_us.clone(), share)
    }

    pub(crate) fn max_us(&self) -> u32 {
        self.latencies_us.iter().copied().max().unwrap_or(0)
    }
}

/// Every call, by phase.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    phases: BTreeMap<Phase, PhaseTally>,
}

impl Tally {
    pub(crate) fn add(&mut self, phase: Phase, call: Ended) {
        let tally = self.phases.entry(phase).or_default();
        tally
            .latencies_us
            .push(u32::try_from(call.took.as_micros()).unwrap_or(u32::MAX));
        tally.attempts += u64::from(call.attempts);
        match call.by {
            Some(provider) => *tally.by_provider.entry(provider).or_default() += 1,
            None => tally.failed += 1,
        }
    }

    pub(crate) fn phase(&self, phase: Phase) -> Option<&PhaseTally> {
        self.phases.get(&phase)
    }

    pub(crate) fn calls(&self) -> u64 {
        self.phases.values().map(PhaseTally::calls).sum()
    }

    pub(crate) fn failed(&self) -> u64 {
        self.phases.values().map(|phase| phase.failed).sum()
    }

    pub(crate) fn attempts(&self) -> u64 {
        self.phases.values().map(|phase| phase.attempts).sum()
    }

    pub(crate) fn answered_by(&self, provider: &NodeId) -> u64 {
        self.phases
            .values()
            .filter_map(|phase| phase.by_provider.get(provider))
            .sum()
    }

    /// Over all phases; see [`PhaseTally::quantile_us`].
    pub(crate) fn quantile_us(&self, share: f64) -> u32 {
        quantile(
            self.phases
                .values()
                .flat_map(|phase| phase.latencies_us.iter().copied())
                .collect(),
            share,
        )
    }

    pub(crate) fn max_us(&self) -> u32 {
        self.phases.values().map(PhaseTally::max_us).max().unwrap_or(0)
    }
}

/// The nearest-rank quantile.
fn quantile(mut values: Vec<u32>, share: f64) -> u32 {
    if values.is_empty() {
        return 0;
    }
    values.sort_unstable();
    #[expect(
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        reason = "a rank within the list"
    )]
    let rank = (share * values.len() as f64).ceil() as usize;
    values[rank.clamp(1, values.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_rank() {
        assert_eq!(quantile(vec![], 0.5), 0);
        assert_eq!(quantile(vec![7], 0.99), 7);
        assert_eq!(quantile((1..=100).rev().collect(), 0.5), 50);
        assert_eq!(quantile((1..=100).collect(), 0.99), 99);
        assert_eq!(quantile((1..=3).collect(), 1.0), 3);
    }

    #[test]
    fn calls_are_counted_in_their_phase_and_in_sum() {
        let node = NodeId::from_bytes([1; 32]);
        let ended = |by, attempts, ms| Ended {
            by,
            attempts,
            took: Duration::from_millis(ms),
        };
        let mut tally = Tally::default();
        tally.add(Phase::Before, ended(Some(node), 1, 1));
        tally.add(Phase::Down, ended(Some(node), 2, 500));
        tally.add(Phase::Down, ended(None, 3, 3));
        assert_eq!((tally.calls(), tally.failed(), tally.attempts()), (3, 1, 6));
        assert_eq!(tally.answered_by(&node), 2);
        assert_eq!((tally.max_us(), tally.quantile_us(0.5)), (500_000, 3_000));
        assert_eq!(tally.phase(Phase::Down).unwrap().by_provider[&node], 1);
        assert!(tally.phase(Phase::Back).is_none());
    }
}
