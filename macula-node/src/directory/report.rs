//! The results of publications and withdrawals, for the program that asked for them.

use std::fmt;

use macula_dht::Refusal;
use macula_wire::NodeId;

/// The result of a publication (D10).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublishReport {
    /// How many other nodes hold the record; 0 when this node is alone, and holds it itself.
    pub acknowledged: usize,
    /// The nodes that refused it, and why.
    pub refused: Vec<(NodeId, Refusal)>,
    /// How many of the nodes that should hold it did not answer.
    pub unreachable: usize,
}

/// The result of a withdrawal (D3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WithdrawReport {
    /// How many other nodes know of it.
    pub acknowledged: usize,
    /// How many holders could not be told; they show the record until it expires.
    pub unacknowledged: usize,
}

impl fmt::Display for PublishReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} hold it", self.acknowledged)?;
        for (node, refusal) in &self.refused {
            write!(f, ", {} refused it: {refusal}", node.short())?;
        }
        if self.unreachable > 0 {
            write!(f, ", {} did not answer", self.unreachable)?;
        }
        Ok(())
    }
}

/// Whose clock is likely wrong, as refusals for a record's date show (D14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WrongClock {
    /// This node's: most of the others refuse its records.
    Own,
    /// That of the nodes that refuse: most of the others take its records.
    Theirs,
}

impl PublishReport {
    /// Whose clock is likely wrong, when nodes refused the record for its date.
    #[must_use]
    pub fn wrong_clock(&self) -> Option<WrongClock> {
        let is_date = |refusal: &Refusal| matches!(refusal, Refusal::Expired { .. } | Refusal::FromTheFuture { .. });
        let doubters = self.refused.iter().filter(|(_, refusal)| is_date(refusal)).count();
        match doubters {
            0 => None,
            _ if doubters > self.acknowledged => Some(WrongClock::Own),
            _ => Some(WrongClock::Theirs),
        }
    }
}

impl fmt::Display for WrongClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "this node's clock is likely wrong: set it",
            Self::Theirs => "the clocks of the nodes that refused are likely wrong: set them",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn d14_the_majority_says_whose_clock_is_wrong() {
        let by = Duration::from_secs(3600);
        let (expired, ahead) = (Refusal::Expired { by }, Refusal::FromTheFuture { by });
        let report = |acknowledged, refused: &[Refusal]| PublishReport {
            acknowledged,
            refused: refused
                .iter()
                .map(|refusal| (NodeId::from_bytes([7; 32]), *refusal))
                .collect(),
            unreachable: 0,
        };
        assert_eq!(report(0, &[expired]).wrong_clock(), Some(WrongClock::Own));
        assert_eq!(report(1, &[ahead, ahead]).wrong_clock(), Some(WrongClock::Own));
        assert_eq!(report(3, &[ahead]).wrong_clock(), Some(WrongClock::Theirs));
        assert_eq!(report(3, &[Refusal::Busy]).wrong_clock(), None);
        let said = report(3, &[expired]).to_string();
        assert!(said.contains("expired 3600s ago by the node's clock"), "{said}");
    }
}
