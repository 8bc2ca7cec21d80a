//! Which key has taken which one's place.
//!
//! A core: no clock, no lock.
//!
//! **Invariants:** at most [`MAX_SUCCESSIONS`] are remembered, the one longest known is forgotten first; following them ends, also where
//! keys name each other in a circle.

use std::collections::BTreeMap;

use macula_wire::NodeId;

use crate::identity::successor::Succession;

/// The most successions that are remembered.
pub(super) const MAX_SUCCESSIONS: usize = 1024;
/// How many are followed one after another: no node changes keys so often that an older name is still in use.
const MAX_HOPS: usize = 16;

/// The successions that this node has learned.
#[derive(Debug, Default)]
pub(super) struct Successions {
    to: BTreeMap<NodeId, (u64, NodeId)>,
    /// The old keys, in the order they were learned.
    order: BTreeMap<u64, NodeId>,
    learned: u64,
}

impl Successions {
    pub(super) fn learn(&mut self, succession: &Succession) {
        self.learned += 1;
        let (from, to) = (succession.from(), succession.to());
        if let Some((before, _)) = self.to.insert(from, (self.learned, to)) {
            self.order.remove(&before);
        }
        self.order.insert(self.learned, from);
        if self.to.len() > MAX_SUCCESSIONS
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.to.remove(&oldest);
        }
    }

    /// The key that `node` has now; `node` itself where keys name each other, or too many took its place.
    pub(super) fn current(&self, node: NodeId) -> NodeId {
        let mut current = node;
        for _ in 0..=MAX_HOPS {
            match self.to.get(&current) {
                Some(&(_, to)) => current = to,
                None => return current,
            }
        }
        node
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;

    fn keys<const N: usize>() -> [Identity; N] {
        std::array::from_fn(|_| Identity::generate().unwrap())
    }

    fn learned(pairs: &[(&Identity, &Identity)]) -> Successions {
        let mut successions = Successions::default();
        for (old, new) in pairs {
            successions.learn(&Succession::new(old, new).unwrap());
        }
        successions
    }

    #[test]
    fn successions_are_followed_to_their_end() {
        let [a, b, c, other] = keys();
        let successions = learned(&[(&b, &c), (&a, &b)]);
        for (asked, found) in [(&a, &c), (&b, &c), (&c, &c), (&other, &other)] {
            assert_eq!(successions.current(asked.node_id()), found.node_id());
        }
        let mut successions = successions;
        successions.learn(&Succession::new(&a, &other).unwrap());
        assert_eq!(
            successions.current(a.node_id()),
            other.node_id(),
            "what was learned last counts"
        );
    }

    #[test]
    fn keys_that_name_each_other_lead_nowhere() {
        let [a, b, c, before] = keys();
        let successions = learned(&[(&a, &b), (&b, &c), (&c, &a), (&before, &a)]);
        for key in [&a, &b, &c, &before] {
            assert_eq!(successions.current(key.node_id()), key.node_id());
        }
    }

    #[test]
    fn the_one_longest_known_is_forgotten_first() {
        let all: Vec<_> = (0..=MAX_SUCCESSIONS).map(|_| Identity::generate().unwrap()).collect();
        let [to] = keys();
        let mut successions = Successions::default();
        for old in &all[..MAX_SUCCESSIONS] {
            successions.learn(&Succession::new(old, &to).unwrap());
        }
        // Learned again, the first is no longer the oldest.
        successions.learn(&Succession::new(&all[0], &to).unwrap());
        successions.learn(&Succession::new(&all[MAX_SUCCESSIONS], &to).unwrap());
        let known = |key: &Identity| successions.current(key.node_id()) == to.node_id();
        assert!(known(&all[0]) && !known(&all[1]) && all[2..].iter().all(known));
        assert_eq!(
            (successions.to.len(), successions.order.len()),
            (MAX_SUCCESSIONS, MAX_SUCCESSIONS)
        );
    }
}
