//! The gate to a connection's calls: who is inside is counted, and once it is closed nobody enters.
//!
//! A peer is told that a call was not started when its connection is closed as idle or drained. That is true only if no call starts
//! between the look at who is inside and the closing, so both are one step here.
//!
//! **Invariant:** whoever closes the gate and finds nobody inside knows that nobody ever enters again.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// The gate is closed; the other bits count who is inside.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// The gate to a connection's calls.
#[derive(Debug, Default)]
pub(crate) struct Gate(AtomicUsize);

impl Gate {
    /// Enters, unless the gate is closed.
    #[must_use]
    pub(crate) fn enter(&self) -> bool {
        let enter = |state| (state & CLOSED == 0).then_some(state + 1);
        self.0.fetch_update(SeqCst, SeqCst, enter).is_ok()
    }

    /// Enters on behalf of somebody who has been inside already, or does not start a call.
    pub(crate) fn follow(&self) {
        self.0.fetch_add(1, SeqCst);
    }

    /// Leaves, once for each time of entering.
    pub(crate) fn leave(&self) {
        self.0.fetch_sub(1, SeqCst);
    }

    /// Closes the gate, for good. Closing it again changes nothing.
    pub(crate) fn close(&self) {
        self.0.fetch_or(CLOSED, SeqCst);
    }

    /// How many are inside.
    pub(crate) fn inside(&self) -> usize {
        self.0.load(SeqCst) & !CLOSED
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Enter,
        Follow,
        Leave,
        Close,
    }

    proptest! {
        /// Each step is one atomic operation, so these sequences are all the ways in which threads can meet.
        #[test]
        fn n4_nobody_enters_a_closed_gate_and_everybody_inside_is_counted(
            steps in prop::collection::vec(
                prop_oneof![4 => Just(Step::Enter), 1 => Just(Step::Follow), 4 => Just(Step::Leave), 1 => Just(Step::Close)],
                1..100,
            ),
        ) {
            let gate = Gate::default();
            let (mut inside, mut closed) = (0, false);
            for step in steps {
                match step {
                    Step::Enter => {
                        prop_assert_eq!(gate.enter(), !closed);
                        inside += usize::from(!closed);
                    }
                    Step::Follow => {
                        gate.follow();
                        inside += 1;
                    }
                    Step::Leave if inside > 0 => {
                        gate.leave();
                        inside -= 1;
                    }
                    Step::Leave => {}
                    Step::Close => {
                        gate.close();
                        closed = true;
                    }
                }
                prop_assert_eq!(gate.inside(), inside);
            }
        }
    }

    #[test]
    fn n4_who_finds_a_closed_gate_empty_is_followed_by_nobody() {
        for _ in 0..50 {
            let (gate, over) = (Gate::default(), AtomicBool::new(false));
            std::thread::scope(|scope| {
                let callers = || {
                    while gate.enter() {
                        assert!(!over.load(SeqCst), "a call started after the end");
                        gate.leave();
                    }
                };
                scope.spawn(callers);
                scope.spawn(callers);
                scope.spawn(|| {
                    gate.close();
                    while gate.inside() > 0 {
                        std::thread::yield_now();
                    }
                    over.store(true, SeqCst);
                });
            });
        }
    }
}
