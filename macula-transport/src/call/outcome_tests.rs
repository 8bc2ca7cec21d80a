//! A caller, a provider and the network between them: every order in which their steps can come, and every packet lost at every point.
//!
//! A packet that is lost is one that has not arrived yet, or never does. So all that is tried is what arrives next, if anything.

use std::collections::BTreeSet;

use macula_wire::proto::{Accepted, LaneAccepted};

use super::*;

/// The stream that is the lane.
const LANE: u64 = 0;

/// Where a call is for its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Calling {
    NotMade,
    /// It waits in the lane's outbox.
    Queued,
    Written,
    Ended(Word),
}

/// What the caller is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    Replied,
    Refused,
    NotSent,
    Unknown,
}

/// Where a call is for its provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Serving {
    Unread,
    /// It was noted, and has not tried the gate.
    Noted,
    Entered,
    Ran,
    Refused,
}

/// Why a provider is gone from the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Closing {
    Open,
    /// Closed with this code.
    With(Code),
    Crashed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Code {
    Busy,
    Shutdown,
    Aborted,
    Protocol,
}

/// Which step led to a world, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The close of a provider that left in order has arrived.
    LeftInOrder,
    Other,
}

impl Code {
    const fn lost(self) -> End {
        match self {
            Self::Busy => End::TurnedAway,
            Self::Shutdown => End::Left,
            Self::Aborted => End::Aborted,
            Self::Protocol => End::ClosedByPeer,
        }
    }

    const fn step(self) -> Step {
        match self {
            Self::Shutdown => Step::LeftInOrder,
            Self::Busy | Self::Aborted | Self::Protocol => Step::Other,
        }
    }

    /// Whether the close names the accepted calls.
    const fn names(self) -> bool {
        match self {
            Self::Shutdown | Self::Aborted => true,
            Self::Busy | Self::Protocol => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    /// Its stream, the lane for several.
    stream: u64,
    /// Its number on the lane; 0 on a stream of its own.
    number: u64,
    calling: Calling,
    /// It left the outbox.
    written: bool,
    serving: Serving,
    /// The reply, or the refusal, has arrived.
    answered: bool,
}

impl Call {
    fn place(&self) -> CallPlace {
        match self.number {
            0 => CallPlace::Stream(self.stream),
            number => CallPlace::Lane { stream: LANE, number },
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    calls: Vec<Call>,
    /// One more than the highest stream noted, and the calls of the lane noted, if it was seen.
    noted: (u64, Option<u64>),
    /// The gate is closed.
    shut: bool,
    /// What the provider named after that.
    named: Option<(u64, Option<u64>)>,
    /// The provider takes the connection: it was not turned away.
    taken: bool,
    closing: Closing,
    /// What the caller knows of what was named.
    known: Option<(u64, Option<u64>)>,
    /// The connection is over for the caller.
    over: bool,
}

fn accepted((streams, lane): (u64, Option<u64>)) -> Accepted {
    let lanes = lane.map(|calls| LaneAccepted { stream: LANE, calls });
    Accepted {
        streams,
        lanes: lanes.into_iter().collect(),
    }
}

impl World {
    fn new(places: &[(u64, u64)]) -> Self {
        let call = |&(stream, number)| Call {
            stream,
            number,
            calling: Calling::NotMade,
            written: false,
            serving: Serving::Unread,
            answered: false,
        };
        Self {
            calls: places.iter().map(call).collect(),
            noted: (0, None),
            shut: false,
            named: None,
            taken: false,
            closing: Closing::Open,
            known: None,
            over: false,
        }
    }

    /// A call of the caller's ends without a reply.
    fn end(&mut self, at: usize, end: End) {
        let known = self.known.map(accepted);
        let call = &mut self.calls[at];
        // What waits in the outbox never leaves it once the connection is over; before, it still may.
        let progress = match call.calling {
            Calling::NotMade | Calling::Ended(_) => return,
            Calling::Queued if end != End::Deadline => Progress::Unsent,
            Calling::Queued | Calling::Written => Progress::of(call.place(), known.as_ref()),
        };
        call.calling = Calling::Ended(match outcome(end, progress) {
            Outcome::NotSent => Word::NotSent,
            Outcome::Unknown => Word::Unknown,
        });
    }

    fn all_end(&mut self, end: End) {
        (0..self.calls.len()).for_each(|at| self.end(at, end));
        self.over = true;
    }

    fn serves(&self) -> bool {
        self.taken && self.closing == Closing::Open
    }

    /// Every call that entered has run and its caller has the reply: the provider may close in order.
    fn is_done(&self) -> bool {
        let done = |call: &Call| match call.serving {
            Serving::Unread => true,
            Serving::Noted | Serving::Entered => false,
            Serving::Ran | Serving::Refused => call.answered,
        };
        self.named.is_some() && self.calls.iter().all(done)
    }

    /// Every world that one step leads to.
    fn next(&self) -> Vec<(Step, Self)> {
        let mut next = Vec::new();
        let mut take = |step: Step, change: &dyn Fn(&mut Self)| {
            let mut world = self.clone();
            change(&mut world);
            next.push((step, world));
        };
        let mut step = |change: &dyn Fn(&mut Self)| take(Step::Other, change);
        let leaving = self.known.is_some();
        for (at, call) in self.calls.iter().enumerate() {
            // Calls of the lane are made, written and read in turn.
            let earlier = |ready: fn(&Call) -> bool| {
                call.number == 0
                    || self
                        .calls
                        .iter()
                        .all(|it| it.number == 0 || it.number >= call.number || ready(it))
            };
            match call.calling {
                Calling::NotMade if !self.over && !leaving && earlier(|it| it.calling != Calling::NotMade) => {
                    step(&|world| {
                        world.calls[at].written = call.number == 0;
                        world.calls[at].calling = match call.number {
                            0 => Calling::Written,
                            _ => Calling::Queued,
                        }
                    });
                }
                Calling::Queued if !self.over => {
                    if earlier(|it| it.written) {
                        step(&|world| {
                            world.calls[at].written = true;
                            world.calls[at].calling = Calling::Written;
                        });
                    }
                    step(&|world| world.end(at, End::Deadline));
                }
                Calling::Written if !self.over => {
                    step(&|world| world.end(at, End::Deadline));
                    step(&|world| world.end(at, End::StreamEnded));
                }
                // A call that was given up while it was in the outbox still leaves it.
                Calling::Ended(_) if !self.over && !call.written && earlier(|it| it.written) => {
                    step(&|world| world.calls[at].written = true);
                }
                Calling::NotMade | Calling::Queued | Calling::Written | Calling::Ended(_) => {}
            }
            match call.serving {
                Serving::Unread if call.written && self.serves() && earlier(|it| it.serving != Serving::Unread) => {
                    step(&|world| {
                        world.calls[at].serving = Serving::Noted;
                        world.noted.0 = world.noted.0.max(call.stream + 1);
                        if call.number > 0 {
                            world.noted.1 = Some(call.number);
                        }
                    });
                }
                // What the provider has read it goes on with, whatever became of the connection.
                Serving::Noted if self.closing != Closing::Crashed => step(&|world| {
                    world.calls[at].serving = match world.shut {
                        false => Serving::Entered,
                        true => Serving::Refused,
                    }
                }),
                Serving::Entered if self.closing != Closing::Crashed => {
                    step(&|world| world.calls[at].serving = Serving::Ran);
                }
                Serving::Ran | Serving::Refused if !call.answered && !self.over => step(&|world| {
                    let call = &mut world.calls[at];
                    call.answered = true;
                    if call.calling == Calling::Written {
                        call.calling = Calling::Ended(match call.serving {
                            Serving::Refused => Word::Refused,
                            Serving::Unread | Serving::Noted | Serving::Entered | Serving::Ran => Word::Replied,
                        });
                    }
                }),
                Serving::Unread | Serving::Noted | Serving::Entered | Serving::Ran | Serving::Refused => {}
            }
        }
        if self.closing == Closing::Open {
            if self.taken {
                if !self.shut {
                    step(&|world| world.shut = true);
                } else if self.named.is_none() {
                    step(&|world| world.named = Some(world.noted));
                }
                if self.is_done() {
                    step(&|world| world.closing = Closing::With(Code::Shutdown));
                }
                if self.named.is_some() {
                    step(&|world| world.closing = Closing::With(Code::Aborted));
                }
                step(&|world| world.closing = Closing::With(Code::Protocol));
                step(&|world| world.closing = Closing::Crashed);
            } else {
                step(&|world| world.taken = true);
                step(&|world| world.closing = Closing::With(Code::Busy));
            }
        }
        if !self.over {
            if let (Some(named), None) = (self.named, self.known) {
                step(&|world| world.hear_goaway(named));
            }
            match self.closing {
                Closing::Open => {}
                Closing::With(code) => take(code.step(), &|world| {
                    if code.names() && world.known.is_none() {
                        world.known = world.named;
                    }
                    world.all_end(code.lost());
                }),
                Closing::Crashed => take(Step::Other, &|world| world.all_end(End::Restarted)),
            }
            take(Step::Other, &|world| world.all_end(End::Failed));
            take(Step::Other, &|world| world.all_end(End::ClosedHere));
        }
        next
    }

    /// GOAWAY arrives: calls of the lane beyond those it names end.
    fn hear_goaway(&mut self, named: (u64, Option<u64>)) {
        self.known = Some(named);
        let Some(calls) = accepted_on(&accepted(named), LANE) else {
            return;
        };
        for call in &mut self.calls {
            let waits = call.calling == Calling::Queued || call.calling == Calling::Written;
            if waits && call.number > calls {
                call.calling = Calling::Ended(Word::NotSent);
            }
        }
    }

    /// What holds in every world.
    fn check(&self, step: Step, before: &Self) {
        for call in &self.calls {
            let promised = matches!(call.calling, Calling::Ended(Word::NotSent | Word::Refused));
            let ran = call.serving == Serving::Ran;
            assert!(!(promised && ran), "a call that was not started ran: {self:#?}");
        }
        if step == Step::LeftInOrder {
            // A stream, or a lane, that a later stream overtook may have been read, as far as the name goes.
            let unknown = |world: &Self| {
                let unseen = world.named.is_some_and(|(_, lane)| lane.is_none());
                let overtaken = |call: &Call| match call.number {
                    0 => call.serving == Serving::Unread,
                    _ => unseen,
                };
                let unknown = |call: &&Call| call.calling == Calling::Ended(Word::Unknown) && !overtaken(call);
                world.calls.iter().filter(unknown).count()
            };
            assert_eq!(
                unknown(self),
                unknown(before),
                "an orderly end leaves a doubt: {self:#?}"
            );
        }
    }
}

fn explore(places: &[(u64, u64)]) -> usize {
    let start = World::new(places);
    let mut seen = BTreeSet::from([start.clone()]);
    let mut open = vec![start];
    while let Some(world) = open.pop() {
        for (step, next) in world.next() {
            next.check(step, &world);
            if seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    seen.len()
}

#[test]
fn x1_a_call_reported_not_sent_or_refused_never_runs_on_streams() {
    assert!(explore(&[(1, 0), (2, 0)]) > 1_000);
}

#[test]
fn x1_a_call_reported_not_sent_or_refused_never_runs_on_a_lane() {
    assert!(explore(&[(LANE, 1), (LANE, 2)]) > 1_000);
}

#[test]
fn x1_a_call_reported_not_sent_or_refused_never_runs_beside_others() {
    assert!(explore(&[(1, 0), (LANE, 1), (LANE, 2)]) > 10_000);
}

#[test]
fn x1_every_end_and_progress_has_its_outcome() {
    let ends = [
        End::TurnedAway,
        End::Left,
        End::Aborted,
        End::ClosedByPeer,
        End::ClosedHere,
        End::Restarted,
        End::Failed,
        End::NotBegun,
        End::StreamEnded,
        End::Deadline,
    ];
    for end in ends {
        let row = [Progress::Unsent, Progress::Sent, Progress::Accepted, Progress::Beyond].map(|it| outcome(end, it));
        let (sent, accepted) = match end {
            End::TurnedAway => (Outcome::NotSent, Outcome::Unknown),
            End::NotBegun => (Outcome::NotSent, Outcome::NotSent),
            _ => (Outcome::Unknown, Outcome::Unknown),
        };
        assert_eq!(row, [Outcome::NotSent, sent, accepted, Outcome::NotSent], "{end:?}");
    }
}
