//! The names of the selection strategies. The [guide](crate::guide) explains each and says when to choose it.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// How a provider is chosen among the healthy, untried ones.
///
/// Health, exclusions and zones apply to every strategy alike; a strategy only orders what is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Strategy {
    /// The first of the list as the caller gave it, so every caller with the same list agrees. O(1) plus what is
    /// skipped.
    First,
    /// Uniformly at random. O(1).
    #[default]
    Random,
    /// In turn, over the whole list, skipping what cannot be used. O(1) plus what is skipped.
    RoundRobin,
    /// In turn, in proportion to the weights: a static stride scheduler. O(1) amortised.
    WeightedRoundRobin,
    /// At random in proportion to the weights. O(log n).
    WeightedRandom,
    /// Power of two choices on peak-EWMA latency × calls in flight ÷ weight. O(1).
    PeakEwma,
    /// Power of two choices on calls in flight ÷ weight. O(1).
    LeastLoaded,
    /// Rendezvous hashing of the call's affinity key, with bounded load. O(n). Without a key: [`Strategy::PeakEwma`].
    Affinity,
}

impl Strategy {
    /// Every strategy, in the order of the documentation and of the variants.
    pub const ALL: [Self; 8] = [
        Self::First,
        Self::Random,
        Self::RoundRobin,
        Self::WeightedRoundRobin,
        Self::WeightedRandom,
        Self::PeakEwma,
        Self::LeastLoaded,
        Self::Affinity,
    ];

    /// Its name on a command line or in a configuration file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Random => "random",
            Self::RoundRobin => "round_robin",
            Self::WeightedRoundRobin => "weighted_round_robin",
            Self::WeightedRandom => "weighted_random",
            Self::PeakEwma => "p2c",
            Self::LeastLoaded => "least_loaded",
            Self::Affinity => "affinity",
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of a strategy is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("unknown strategy; use one of {}", Strategy::ALL.map(Strategy::name).join(", "))]
pub struct ParseStrategyError;

impl FromStr for Strategy {
    type Err = ParseStrategyError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|strategy| strategy.name() == name)
            .ok_or(ParseStrategyError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_the_error_lists_them_all() {
        for strategy in Strategy::ALL {
            assert_eq!(strategy.to_string().parse(), Ok(strategy));
            assert!(ParseStrategyError.to_string().contains(strategy.name()));
        }
        assert_eq!("fastest".parse::<Strategy>(), Err(ParseStrategyError));
    }

    #[test]
    fn s4_every_strategy_is_in_the_list() {
        let places = Strategy::ALL.map(|it| it as usize);
        assert_eq!(places, std::array::from_fn(|at| at));
        // A variant after the last one makes this match incomplete: add it to `ALL` too.
        let last = match Strategy::Affinity {
            Strategy::First
            | Strategy::Random
            | Strategy::RoundRobin
            | Strategy::WeightedRoundRobin
            | Strategy::WeightedRandom
            | Strategy::PeakEwma
            | Strategy::LeastLoaded
            | Strategy::Affinity => Strategy::Affinity as usize,
        };
        assert_eq!(Strategy::ALL.len(), last + 1);
    }

    #[test]
    fn s4_the_papers_name_every_strategy() {
        for strategy in Strategy::ALL {
            let quoted = format!("`{strategy}`");
            assert!(include_str!("guide.md").contains(&quoted), "the guide lacks {quoted}");
        }
    }

    #[test]
    fn s1_random_is_the_default() {
        assert_eq!(Strategy::default(), Strategy::Random);
    }
}
