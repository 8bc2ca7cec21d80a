//! The gate to a connection's calls. It counts the calls inside. Once it is closed no call enters, and it names the calls that it
//! accepted for GOAWAY.
//!
//! A stream or a lane notes how far it has read before its call enters. So every call that entered is named, and a call beyond the
//! named ones never starts.
//!
//! **Invariants:** no call enters a closed gate; every call that ever entered is named.

use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
};

use macula_wire::proto;
use tokio::sync::Notify;

/// The gate is closed; the other bits count the calls inside.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// The gate to a connection's calls.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: AtomicUsize,
    /// One more than the highest index of a stream that asked for a call.
    streams: AtomicU64,
    /// The peer's open lanes; how many there may be is the link's limit.
    lanes: Mutex<Vec<Arc<LaneEntry>>>,
    accepted: OnceLock<proto::Accepted>,
}

/// A lane of the peer, as the gate knows it.
#[derive(Debug)]
pub(crate) struct LaneEntry {
    stream: u64,
    /// How many calls were read from it.
    calls: AtomicU64,
    /// Woken when there is something to write, or the gate was closed.
    pub(crate) writable: Notify,
}

impl LaneEntry {
    /// Notes that this many more calls were read, which enter next.
    pub(crate) fn read(&self, calls: usize) {
        self.calls.fetch_add(calls as u64, SeqCst);
    }
}

impl Gate {
    /// Enters, unless the gate is closed. To be called after the calls were noted.
    #[must_use]
    pub(crate) fn enter(&self) -> bool {
        let enter = |state| (state & CLOSED == 0).then_some(state + 1);
        self.state.fetch_update(SeqCst, SeqCst, enter).is_ok()
    }

    /// Enters with the call of a stream, unless the gate is closed.
    #[must_use]
    pub(crate) fn enter_from(&self, stream: u64) -> bool {
        self.note(stream);
        self.enter()
    }

    fn note(&self, stream: u64) {
        self.streams.fetch_max(stream.saturating_add(1), SeqCst);
    }

    /// Enters on behalf of a call that has been inside already, or of an answer that starts none.
    pub(crate) fn follow(&self) {
        self.state.fetch_add(1, SeqCst);
    }

    /// Leaves, once for each time of entering.
    pub(crate) fn leave(&self) {
        self.state.fetch_sub(1, SeqCst);
    }

    /// Closes the gate, for good, and names the calls that it accepted. Closing it again changes nothing.
    pub(crate) fn close(&self) -> &proto::Accepted {
        self.state.fetch_or(CLOSED, SeqCst);
        let accepted = self.accepted.get_or_init(|| {
            let name = |lane: &Arc<LaneEntry>| proto::LaneAccepted {
                stream: lane.stream,
                calls: lane.calls.load(SeqCst),
            };
            proto::Accepted {
                lanes: self.lock_lanes().iter().map(name).collect(),
                streams: self.streams.load(SeqCst),
            }
        });
        for lane in self.lock_lanes().iter() {
            lane.writable.notify_one();
        }
        accepted
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.load(SeqCst) & CLOSED != 0
    }

    /// How many are inside.
    pub(crate) fn inside(&self) -> usize {
        self.state.load(SeqCst) & !CLOSED
    }

    fn lock_lanes(&self) -> MutexGuard<'_, Vec<Arc<LaneEntry>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer opened a lane.
    pub(crate) fn lane_opened(&self, stream: u64) -> Arc<LaneEntry> {
        let lane = Arc::new(LaneEntry {
            stream,
            calls: AtomicU64::new(0),
            writable: Notify::new(),
        });
        self.lock_lanes().push(lane.clone());
        self.note(stream);
        lane
    }

    /// A lane is over: the peer has acknowledged its replies, or is gone.
    pub(crate) fn lane_over(&self, lane: &Arc<LaneEntry>) {
        self.lock_lanes().retain(|it| !Arc::ptr_eq(it, lane));
    }

    /// How many lanes of the peer may have replies that it has not acknowledged.
    pub(crate) fn lanes(&self) -> usize {
        self.lock_lanes().len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Enter(u64),
        Read(usize),
        Follow,
        Leave,
        Close,
    }

    proptest! {
        /// Each step is one atomic operation, so these sequences are all the ways in which threads can meet.
        #[test]
        fn n4_no_call_enters_a_closed_gate_and_each_that_entered_is_counted_and_named(
            steps in prop::collection::vec(
                prop_oneof![
                    4 => (0..9_u64).prop_map(Step::Enter),
                    2 => (1..4_usize).prop_map(Step::Read),
                    1 => Just(Step::Follow),
                    4 => Just(Step::Leave),
                    1 => Just(Step::Close),
                ],
                1..100,
            ),
        ) {
            let gate = Gate::default();
            let lane = gate.lane_opened(3);
            let (mut inside, mut closed) = (0, false);
            let (mut highest, mut read) = (3, 0);
            for step in steps {
                match step {
                    Step::Enter(stream) => {
                        prop_assert_eq!(gate.enter_from(stream), !closed);
                        if !closed {
                            inside += 1;
                            highest = highest.max(stream);
                        }
                    }
                    Step::Read(calls) => {
                        lane.read(calls);
                        let entered = gate.enter();
                        prop_assert_eq!(entered, !closed);
                        if entered {
                            inside += 1;
                            read += calls as u64;
                        }
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
                        let accepted = gate.close();
                        prop_assert_eq!(accepted.streams, highest + 1);
                        prop_assert_eq!(accepted.lanes[0], proto::LaneAccepted { stream: 3, calls: read });
                        closed = true;
                    }
                }
                prop_assert_eq!((gate.inside(), gate.is_closed()), (inside, closed));
            }
        }
    }

    #[test]
    fn n4_a_closed_gate_found_empty_stays_empty() {
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

    #[test]
    fn x1_a_call_that_enters_while_the_gate_closes_is_named() {
        for _ in 0..200 {
            let gate = Gate::default();
            let lane = gate.lane_opened(0);
            std::thread::scope(|scope| {
                let stream = scope.spawn(|| (1..1000).take_while(|&at| gate.enter_from(at)).last().unwrap_or(0));
                let calls = scope.spawn(|| {
                    let enters = |_: &u64| {
                        lane.read(1);
                        gate.enter()
                    };
                    (0..1000).take_while(enters).count() as u64
                });
                let accepted = gate.close();
                assert!(accepted.streams > stream.join().unwrap());
                assert!(accepted.lanes[0].calls >= calls.join().unwrap());
            });
        }
    }
}
