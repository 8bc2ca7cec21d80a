//! Both ends of a lane, with a pipe of bytes between them, against a reference that knows what each call should become.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use macula_wire::{
    FrameDecoder, ServiceName,
    proto::{self, CallFrame, call_frame::Kind},
};
use proptest::prelude::*;
use prost::Message as _;

use super::{super::super::frame::MAX_LANE_FRAME, super::calls::TICK, *};
use crate::heads::{DEFAULT_HEAD_BYTES, DEFAULT_METADATA_ENTRIES};

#[derive(Debug, Clone)]
enum Step {
    Call {
        size: usize,
        millis: u64,
    },
    Cancel {
        which: usize,
    },
    /// The provider answers one of the calls it has read, with so many messages before the last.
    Reply {
        which: usize,
        size: usize,
        messages: usize,
    },
    /// Bytes travel to the provider, cut anywhere.
    ToProvider {
        cuts: Vec<usize>,
    },
    ToCaller {
        cuts: Vec<usize>,
    },
    Advance {
        millis: u64,
    },
    /// The stream is lost, and both ends with it; a new lane begins.
    Lost,
    /// A reply to no call.
    Forged {
        id: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let cuts = || prop::collection::vec(1..3000_usize, 0..4);
    prop_oneof![
        6 => (prop_oneof![0..200_usize, 4000..INLINE_BYTES], 1..3000_u64)
            .prop_map(|(size, millis)| Step::Call { size, millis }),
        2 => any::<usize>().prop_map(|which| Step::Cancel { which }),
        5 => (any::<usize>(), prop_oneof![0..200_usize, 4000..INLINE_BYTES], 0..6_usize)
            .prop_map(|(which, size, messages)| Step::Reply { which, size, messages }),
        4 => cuts().prop_map(|cuts| Step::ToProvider { cuts }),
        4 => cuts().prop_map(|cuts| Step::ToCaller { cuts }),
        2 => (0..2000_u64).prop_map(|millis| Step::Advance { millis }),
        1 => Just(Step::Lost),
        1 => any::<u64>().prop_map(|id| Step::Forged { id }),
    ]
}

/// Bytes under way, and the decoder at their end.
struct Pipe {
    bytes: Vec<u8>,
    decoder: FrameDecoder,
}

impl Pipe {
    fn new() -> Self {
        Self {
            bytes: Vec::new(),
            decoder: FrameDecoder::new(MAX_LANE_FRAME),
        }
    }

    fn send(&mut self, chunks: Vec<Bytes>) {
        self.bytes.extend(chunks.concat());
    }

    /// Delivers everything, in chunks of the given sizes, the rest as one.
    fn deliver(&mut self, cuts: &[usize]) -> Vec<Bytes> {
        let bytes = std::mem::take(&mut self.bytes);
        let (mut rest, mut frames) = (&bytes[..], Vec::new());
        for cut in cuts.iter().chain([&usize::MAX]) {
            let (chunk, tail) = rest.split_at(rest.len().min(*cut));
            rest = tail;
            self.decoder.push(Bytes::copy_from_slice(chunk));
            frames.extend(std::iter::from_fn(|| self.decoder.next_frame().unwrap()));
        }
        frames
    }
}

struct Test {
    now: Instant,
    name: ServiceName,
    caller: CallerLane<u32>,
    provider: ProviderLane<u32>,
    there: Pipe,
    back: Pipe,
    /// Calls that the caller waits for, with their deadlines.
    waiting: BTreeMap<u32, (CallId, Instant)>,
    /// Calls the provider has read and not answered, and the caller's number of each.
    running: BTreeMap<CallId, u32>,
    /// The messages that the provider answered, by call.
    answered: BTreeMap<CallId, Vec<Bytes>>,
    ended: BTreeSet<u32>,
    next: u32,
}

impl Test {
    fn end(&mut self, number: u32) -> Instant {
        assert!(self.ended.insert(number), "call {number} ended twice");
        self.waiting.remove(&number).expect("only a waiting call ends").1
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Call { size, millis } => {
                let request = CallRequest::new(&self.name, self.next.to_le_bytes().repeat(size / 4 + 1));
                let deadline = self.now + Duration::from_millis(millis);
                match self.caller.call(&request, millis * 1000, deadline, self.next) {
                    Ok(started) => {
                        self.waiting.insert(self.next, (started.id, deadline));
                    }
                    Err(LaneFull(number)) => assert_eq!(number, self.next),
                }
                self.next += 1;
            }
            Step::Cancel { which } => {
                if let Some((&number, &(id, _))) = self.waiting.iter().nth(which % self.waiting.len().max(1)) {
                    assert_eq!(self.caller.cancel(id).unwrap().0, number);
                    assert!(self.caller.cancel(id).is_none(), "a cancelled call is cancelled once");
                    self.end(number);
                }
            }
            Step::Reply { which, size, messages } => {
                if let Some(&id) = self.running.keys().nth(which % self.running.len().max(1)) {
                    self.running.remove(&id);
                    assert!(self.provider.ended(id));
                    let bytes = |n: usize| Bytes::from(vec![n as u8; size / (messages + 1)]);
                    let before: Vec<_> = (1..=messages).map(bytes).collect();
                    let _ = self.provider.reply(id, &before, &Reply::ok(bytes(0)));
                    self.answered.insert(id, [before, vec![bytes(0)]].concat());
                }
            }
            Step::ToProvider { cuts } => {
                self.there.send(self.caller.take_output());
                for frame in self.there.deliver(&cuts) {
                    match read_request(&frame).unwrap() {
                        Asked::Call(id, request) => {
                            let number = u32::from_le_bytes(request.payload[..4].try_into().unwrap());
                            assert_eq!(request.service(), "echo");
                            self.provider.started(id).unwrap();
                            assert_eq!(self.provider.stop_with(id, number), None);
                            assert_eq!(self.provider.started(id), Err(Broken), "an id runs once at a time");
                            self.running.insert(id, number);
                        }
                        Asked::Cancel(id) => {
                            assert_eq!(
                                self.provider.cancelled(id),
                                self.running.remove(&id),
                                "a cancel stops what runs"
                            );
                        }
                    }
                }
            }
            Step::ToCaller { cuts } => {
                self.back.send(self.provider.take_output());
                for frame in self.back.deliver(&cuts) {
                    let (id, outcome) = match read_reply(&frame).unwrap() {
                        Answered::Message(id, message) => {
                            self.caller.message(id, message).unwrap();
                            continue;
                        }
                        Answered::Outcome(id, outcome) => (id, outcome),
                    };
                    let waits = self.waiting.iter().find(|(_, (of, _))| *of == id);
                    let waits = waits.map(|(&number, _)| number);
                    let replied = self.caller.replied(id);
                    assert_eq!(
                        replied.as_ref().map(|(number, _)| *number),
                        waits,
                        "P4: a reply ends its own call, or none"
                    );
                    if let Some((number, messages)) = replied {
                        assert_eq!([messages, vec![outcome.unwrap().body]].concat(), self.answered[&id]);
                        self.end(number);
                    }
                }
            }
            Step::Advance { millis } => {
                self.now += Duration::from_millis(millis);
                let mut expired = Vec::new();
                let _ = self.caller.handle_timeout(self.now, |number| expired.push(number));
                for number in expired {
                    assert!(self.end(number) <= self.now, "a call timed out early");
                }
                let late = self
                    .waiting
                    .values()
                    .filter(|(_, deadline)| *deadline + TICK <= self.now);
                assert_eq!(late.count(), 0, "a call outlived its deadline");
            }
            Step::Lost => {
                let (waiting, running) = (self.waiting.len(), self.running.len());
                for call in self.caller.close() {
                    self.end(call.waiter);
                }
                assert!(
                    self.waiting.is_empty(),
                    "{waiting} waited, and not all learned that the lane is over"
                );
                assert_eq!(self.provider.close().len(), running, "what ran is stopped");
                self.running.clear();
                self.answered.clear();
                (self.there, self.back) = (Pipe::new(), Pipe::new());
                (self.caller, self.provider) = (CallerLane::new(self.now), ProviderLane::new());
            }
            Step::Forged { id } => {
                let id = CallId::from_wire(id);
                if !self.waiting.values().any(|(of, _)| *of == id) {
                    assert_eq!(self.caller.message(id, Bytes::new()), Ok(()));
                    assert_eq!(self.caller.replied(id), None);
                }
            }
        }
        assert_eq!(self.caller.len(), self.waiting.len());
    }
}

proptest! {
    #[test]
    fn p4_every_call_ends_once_and_with_its_own_reply(steps in prop::collection::vec(step(), 1..150)) {
        let now = Instant::now();
        let mut test = Test {
            now,
            name: "echo".parse().unwrap(),
            caller: CallerLane::new(now),
            provider: ProviderLane::new(),
            there: Pipe::new(),
            back: Pipe::new(),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            answered: BTreeMap::new(),
            ended: BTreeSet::new(),
            next: 0,
        };
        for step in steps {
            test.apply(step);
        }
        // The rest arrives: every call ends, and the provider runs no call that has lost its caller.
        test.apply(Step::ToProvider { cuts: vec![] });
        while !test.running.is_empty() {
            test.apply(Step::Reply { which: 0, size: 1, messages: 1 });
        }
        test.apply(Step::ToCaller { cuts: vec![] });
        prop_assert!(test.waiting.is_empty(), "{:?}", test.waiting);
    }

    #[test]
    fn any_bytes_are_frames_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let bytes = Bytes::from(bytes);
        let _ = read_request(&bytes);
        let _ = read_reply(&bytes);
    }
}

#[test]
fn a_lane_takes_no_more_than_its_bound() {
    let now = Instant::now();
    let name = "echo".parse().unwrap();
    let mut lane = CallerLane::new(now);
    let request = CallRequest::new(&name, vec![0; INLINE_BYTES]);
    let taken = (0..1000)
        .take_while(|&n| lane.call(&request, 1, now, n).is_ok())
        .count();
    let queued: usize = lane.take_output().iter().map(Bytes::len).sum();
    assert!(queued > MAX_QUEUED_BYTES && queued < MAX_QUEUED_BYTES + DEFAULT_HEAD_BYTES + INLINE_BYTES);
    assert!(
        taken > 20 && lane.call(&request, 1, now, 0).is_ok(),
        "what was taken away makes room"
    );
}

#[test]
fn heads_beyond_the_limits_break_the_lane() {
    let head = |metadata: usize, value: usize, payload: usize, end: bool| {
        let entry = macula_wire::proto::MetadataEntry {
            key: "k".into(),
            value: vec![0; value].into(),
        };
        let head = proto::Head {
            service: "echo".into(),
            metadata: vec![entry; metadata],
            payload: vec![0; payload].into(),
            end,
            ..Default::default()
        };
        let kind = Some(Kind::Head(head));
        read_request(&CallFrame { call: 1, kind }.encode_to_vec().into())
    };
    assert!(head(DEFAULT_METADATA_ENTRIES, 1, INLINE_BYTES, true).is_ok());
    assert!(head(DEFAULT_METADATA_ENTRIES + 1, 1, 0, true).is_err());
    assert!(head(1, DEFAULT_HEAD_BYTES + 100, 0, true).is_err());
    assert!(head(1, 1, INLINE_BYTES + 1, true).is_err());
    assert!(
        head(1, 1, 1, false).is_err(),
        "what follows a head travels on a stream of the call's own"
    );
    assert!(head(0, 0, INLINE_BYTES, true).is_ok());
    assert!(
        head(0, 0, INLINE_BYTES + 1, true).is_err(),
        "a usual head has the same limits"
    );
}

#[test]
fn messages_beyond_the_limit_break_the_lane() {
    let (now, name) = (Instant::now(), "echo".parse().unwrap());
    for (bytes, taken) in [(INLINE_BYTES / 4, 4), (0, INLINE_BYTES / size_of::<Bytes>() + 66)] {
        let mut lane = CallerLane::new(now);
        let request = CallRequest::new(&name, Bytes::new());
        let id = lane.call(&request, 1, now + TICK, ()).unwrap().id;
        for _ in 0..taken {
            assert_eq!(lane.message(id, vec![0; bytes].into()), Ok(()));
        }
        assert_eq!(lane.message(id, vec![0; bytes].into()), Err(Broken));
    }
}

/// A call left running would use the provider up to its deadline, and a peer could leave any number of them behind.
#[test]
fn a_lane_that_ends_because_an_id_came_twice_stops_the_call_that_runs() {
    let mut lane = ProviderLane::new();
    let id = CallId::from_wire(1 << 16);
    lane.started(id).unwrap();
    assert_eq!(lane.stop_with(id, "the first"), None);
    assert_eq!(lane.started(id), Err(Broken));
    assert_eq!(lane.close(), ["the first"]);
}

#[test]
fn x1_a_lane_tells_the_calls_that_were_written_and_those_beyond_the_accepted() {
    let (now, name) = (Instant::now(), "echo".parse().unwrap());
    let mut lane = CallerLane::new(now);
    let call = |lane: &mut CallerLane<u64>, number: u64| {
        let request = CallRequest::new(&name, Bytes::new());
        lane.call(&request, 1, now + TICK, number).unwrap().id
    };
    let ids: Vec<_> = (1..=4).map(|number| call(&mut lane, number)).collect();
    let _ = lane.take_output();
    call(&mut lane, 5);
    // Its number is not given again.
    assert_eq!(lane.replied(ids[1]), Some((2, Vec::new())));
    assert_eq!(lane.end_beyond(3), [4, 5]);
    call(&mut lane, 6);
    let left: Vec<_> = lane.close().iter().map(|call| (call.waiter, call.written_as)).collect();
    assert_eq!(left.len(), 3);
    for expected in [(1, Some(1)), (3, Some(3)), (6, None)] {
        assert!(left.contains(&expected), "{left:?}");
    }
}
