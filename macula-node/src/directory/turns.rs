//! Work of peers that waits for the task, in fair shares (X6).
//!
//! The places are shared, and so is the time: peers take turns, so a peer that asks once waits for one piece of work of each other
//! peer at most, however much others ask.
//!
//! A core: no clock, no lock.

use std::{collections::BTreeMap, ops::Bound};

use macula_wire::{Admission, Holder, NodeId, Shares};

/// Work that waits, by the peer it is for.
#[derive(Debug)]
pub(super) struct Turns<T> {
    shares: Shares<NodeId>,
    /// By peer, and for each peer the oldest first.
    waiting: BTreeMap<(Holder<NodeId>, u64), T>,
    /// The peer whose turn was last.
    last: Option<Holder<NodeId>>,
    pushed: u64,
}

impl<T> Turns<T> {
    /// At most `places` pieces of work wait.
    pub(super) fn new(places: usize) -> Self {
        Self {
            shares: Shares::new(places as u64),
            waiting: BTreeMap::new(),
            last: None,
            pushed: 0,
        }
    }

    /// Takes work of a peer in. Gives back the work that is not done for it: the oldest of the peer that has most, or this.
    pub(super) fn push(&mut self, from: Holder<NodeId>, work: T) -> Option<T> {
        self.pushed += 1;
        let mut gone = None;
        loop {
            match self.shares.admit(&from, 1, self.pushed) {
                Admission::Granted => break,
                Admission::Evict(largest) if gone.is_none() => {
                    gone = self.take(Bound::Included((largest, 0))).map(|(_, work)| work);
                }
                Admission::Evict(_) | Admission::Refused => return Some(work),
            }
        }
        self.waiting.insert((from, self.pushed), work);
        gone
    }

    /// Takes the work out whose turn it is.
    pub(super) fn pop(&mut self) -> Option<T> {
        let after = self
            .last
            .map_or(Bound::Unbounded, |last| Bound::Excluded((last, u64::MAX)));
        let (holder, work) = self.take(after).or_else(|| self.take(Bound::Unbounded))?;
        self.last = Some(holder);
        Some(work)
    }

    fn take(&mut self, from: Bound<(Holder<NodeId>, u64)>) -> Option<(Holder<NodeId>, T)> {
        let (&(holder, number), _) = self.waiting.range((from, Bound::Unbounded)).next()?;
        self.shares.release(&holder, 1);
        Some((holder, self.waiting.remove(&(holder, number))?))
    }
}

#[cfg(test)]
mod tests {
    use macula_wire::Network;
    use proptest::prelude::*;

    use super::*;

    fn peer(network: u8, node: u8) -> Holder<NodeId> {
        Holder::new(Network::V4([10, 0, network]), NodeId::from_bytes([node; 32]))
    }

    #[test]
    fn peers_take_turns() {
        let mut turns = Turns::new(16);
        for work in ["a1", "a2", "a3"] {
            assert_eq!(turns.push(peer(1, 1), work), None);
        }
        for work in ["b1", "b2"] {
            assert_eq!(turns.push(peer(2, 2), work), None);
        }
        let done: Vec<_> = std::iter::from_fn(|| turns.pop()).collect();
        assert_eq!(done, ["a1", "b1", "a2", "b2", "a3"]);
    }

    #[test]
    fn x6_the_oldest_work_of_the_peer_that_has_most_gives_way() {
        let mut turns = Turns::new(3);
        for work in ["a1", "a2", "a3"] {
            turns.push(peer(1, 1), work);
        }
        assert_eq!(turns.push(peer(1, 1), "a4"), Some("a4"));
        assert_eq!(turns.push(peer(2, 2), "b1"), Some("a1"));
    }

    proptest! {
        /// However much others ask, a peer without work waiting is taken in, and does not wait for a second turn of any of them.
        #[test]
        fn x6_a_peer_without_work_is_taken_in_and_waits_one_turn_of_each_other(
            crowd in prop::collection::vec((0..3_u8, 0..4_u8), 0..60),
            pops in 0..10_usize,
        ) {
            const OWN: u8 = 255;
            let mut turns = Turns::new(16);
            for (network, node) in crowd {
                turns.push(peer(network, node), (network, node));
                prop_assert!(turns.waiting.len() <= 16);
                prop_assert_eq!(turns.shares.used(), turns.waiting.len() as u64);
            }
            for _ in 0..pops {
                turns.pop();
            }
            prop_assert_ne!(turns.push(peer(9, OWN), (9, OWN)), Some((9, OWN)));
            let mut before = Vec::new();
            while let Some(done) = turns.pop() {
                if done == (9, OWN) {
                    break;
                }
                prop_assert!(!before.contains(&done), "{done:?} had two turns");
                before.push(done);
            }
            while turns.pop().is_some() {}
            prop_assert_eq!(turns.shares.used(), 0);
        }
    }
}
