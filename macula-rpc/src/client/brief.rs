//! Which of a service's methods answer briefly: with a few small messages, all there with the outcome, as unary ones do.
//!
//! Calls of such methods share a stream with others. A method is learned by a reply of it that was brief on a stream of its own, and
//! unlearned by one that was not; so a method that streams its replies does not take, call by call, the way that is made for others.
//!
//! **Invariants:** what is remembered never changes what a call brings, only how it travels; it takes a fixed place, whatever the
//! methods are called, and is read without a lock.

use std::{
    hash::BuildHasher as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::keyed::Keyed;

/// Methods of one service that are remembered at a time. One more takes the place of another, which is learned again.
const MAX_BRIEF_METHODS: usize = 32;

/// The methods of a service that answer briefly.
#[derive(Debug, Default)]
pub(super) struct BriefMethods([AtomicU64; MAX_BRIEF_METHODS]);

/// A method as it is remembered: two that are the same here are taken for each other, which costs time and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Method(u64);

impl Method {
    pub(super) fn new(name: &str) -> Self {
        // 0 is nobody's.
        Self(Keyed::default().hash_one(name) | 1)
    }

    fn place(self) -> usize {
        (self.0 >> 1) as usize % MAX_BRIEF_METHODS
    }
}

impl BriefMethods {
    /// Whether the method's last reply was brief.
    pub(super) fn contains(&self, method: Method) -> bool {
        self.0.iter().any(|place| place.load(Relaxed) == method.0)
    }

    /// Takes in how a reply was.
    pub(super) fn note(&self, method: Method, brief: bool) {
        if self.contains(method) == brief {
            return;
        }
        if brief {
            let free = |place: &&AtomicU64| place.compare_exchange(0, method.0, Relaxed, Relaxed).is_ok();
            if self.0.iter().find(free).is_none() {
                self.0[method.place()].store(method.0, Relaxed);
            }
        } else {
            for place in &self.0 {
                // Twice when two callers learned it at a time.
                let _ = place.compare_exchange(method.0, 0, Relaxed, Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_learned_and_unlearned_by_its_replies() {
        let methods = BriefMethods::default();
        let [one, other] = ["One", "Other"].map(Method::new);
        assert!(!methods.contains(one));
        methods.note(one, true);
        methods.note(one, true);
        methods.note(other, true);
        assert!(methods.contains(one) && methods.contains(other));
        methods.note(one, false);
        assert!(!methods.contains(one) && methods.contains(other));
    }

    #[test]
    fn beyond_the_limit_one_takes_the_place_of_another() {
        let methods = BriefMethods::default();
        let all: Vec<_> = (0..10 * MAX_BRIEF_METHODS)
            .map(|at| Method::new(&format!("Method{at}")))
            .collect();
        for &method in &all {
            methods.note(method, true);
            assert!(methods.contains(method));
        }
        let known = all.iter().filter(|method| methods.contains(**method));
        assert_eq!(known.count(), MAX_BRIEF_METHODS);
    }
}
