//! The cores as the fuzz targets drive them. Not part of the crate unless it is built for fuzzing.
//!
//! A target's bytes are a program: what is asked, what arrives and how it is cut, when time passes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use macula_wire::{FrameDecoder, MAX_ENDPOINTS, NodeId, Realm, RealmKey, RealmName, proto};
use prost::Message as _;

use crate::{
    CallRequest, LoadReport, PeerInfo, Reply, Role,
    access::Access,
    call::{
        frame::MAX_LANE_FRAME,
        lane::fuzzed::{Answered, Asked, CallerLane, ProviderLane, read_reply, read_request},
        outcome::{CallPlace, End, Outcome, Progress, outcome},
    },
    connection::stream::read_farewell,
    endpoint::hello::{self, MAX_AGENT_BYTES, MAX_CONTROL_BYTES},
    error::{CloseCode, HelloError},
};

/// Bytes from a peer, in chunks cut by their first byte, as either end of a lane reads them.
pub fn frames(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else {
        return;
    };
    let mut decoder = FrameDecoder::new(MAX_LANE_FRAME);
    for chunk in bytes.chunks(usize::from(cut) + 1) {
        decoder.push(Bytes::copy_from_slice(chunk));
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    let _ = read_request(&frame);
                    let _ = read_reply(&frame);
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// Bytes from a stranger on the control stream, in chunks cut by their first byte: each frame as an introduction, and as what may be
/// said after one.
///
/// # Panics
/// When an introduction is believed beyond its bounds.
pub fn control(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else {
        return;
    };
    let mut decoder = FrameDecoder::new(MAX_CONTROL_BYTES);
    for chunk in bytes.chunks(usize::from(cut) + 1) {
        decoder.push(Bytes::copy_from_slice(chunk));
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    assert!(frame.len() <= MAX_CONTROL_BYTES);
                    let Ok(message) = proto::Control::decode(frame.clone()) else {
                        // No control message is no introduction either.
                        assert_eq!(introduced(frame), Err(HelloError::Malformed));
                        return;
                    };
                    let _ = introduced(frame);
                    said(message);
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    let _ = decoder.finish();
}

/// Reads an introduction, and holds what is believed of it to its bounds.
fn introduced(frame: Bytes) -> Result<PeerInfo, HelloError> {
    let node = NodeId::from_bytes([1; 32]);
    let read = hello::read(
        frame,
        &Access::new(Realm::default(), node),
        node,
        ([127, 0, 0, 1], 9443).into(),
    );
    match &read {
        Ok(peer) => {
            assert!(peer.endpoints.len() <= MAX_ENDPOINTS, "{peer:?}");
            assert!(peer.agent.len() <= MAX_AGENT_BYTES, "{peer:?}");
            assert!(!peer.agent.contains(char::is_control), "{peer:?}");
            assert!((64 << 10..=256 << 20).contains(&peer.max_message_bytes), "{peer:?}");
        }
        Err(error) => {
            // What the peer is told.
            let _ = (error.close_code(), error.to_string());
        }
    }
    read
}

/// Takes in a control message. An introduction is read as one of our realm and version, too: no fuzzer guesses a hash.
fn said(message: proto::Control) {
    match message.kind {
        Some(proto::control::Kind::Hello(said)) => {
            let realm = Bytes::copy_from_slice(Realm::default().hash().as_bytes());
            let ours = proto::Hello {
                realm,
                version: hello::VERSION,
                ..said
            };
            let kind = Some(proto::control::Kind::Hello(ours));
            let _ = introduced(proto::Control { kind }.encode_to_vec().into());
        }
        Some(proto::control::Kind::Load(load)) => {
            assert!((0.0..=1.0).contains(&LoadReport::from_wire(load).share()));
        }
        Some(proto::control::Kind::Probe(_) | proto::control::Kind::ProbeAck(_) | proto::control::Kind::Ask(_))
        | None => {}
        Some(proto::control::Kind::GoAway(leaving)) => leaves(&leaving),
        Some(proto::control::Kind::Renewed(proto::Renewed { chain })) => {
            let realm = RealmKey::from_bytes(&[9; 32]).realm(RealmName::default());
            let node = NodeId::from_bytes([1; 32]);
            let access = Access::new(realm, node);
            assert!(access.admit(&node, &chain, Role::Client).is_err(), "a grant is forged");
        }
    }
}

/// Bytes from a stranger as the reason of a close.
///
/// # Panics
/// When a call among those that the peer names as accepted is taken for one that did not run.
pub fn farewell(data: &[u8]) {
    let close = quinn::ApplicationClose {
        error_code: CloseCode::Shutdown.to_wire(),
        reason: Bytes::copy_from_slice(data),
    };
    read_farewell(&close).iter().for_each(leaves);
}

/// Takes in the calls that a peer names as it leaves.
fn leaves(leaving: &proto::GoAway) {
    let accepted = leaving.accepted.as_ref();
    let outcome = |place| outcome(End::Left, Progress::of(place, accepted));
    for stream in [0, 1, u64::MAX] {
        let is_named = accepted.is_none_or(|accepted| stream < accepted.streams);
        assert_eq!(outcome(CallPlace::Stream(stream)) == Outcome::Unknown, is_named);
        for number in [1, u64::MAX] {
            let place = CallPlace::Lane { stream, number };
            // A lane that it does not name may have run anything.
            assert!(outcome(place) == Outcome::Unknown || accepted.is_some());
        }
    }
    assert_eq!(outcome(CallPlace::Answering), Outcome::Unknown);
}

/// Both ends of a lane driven by a program, with forged frames in between: every call ends once.
///
/// # Panics
/// When a call ends twice or not at all.
pub fn lane(data: &[u8]) {
    let start = Instant::now();
    let Ok(name) = "fuzz".parse() else { return };
    let (mut now, mut next) = (start, 0_u32);
    let mut caller = CallerLane::new(start);
    let mut provider = ProviderLane::<u32>::new();
    let (mut there, mut back) = (FrameDecoder::new(MAX_LANE_FRAME), FrameDecoder::new(MAX_LANE_FRAME));
    let mut waiting = BTreeMap::new();
    let mut running = Vec::new();
    for pair in data.chunks_exact(2) {
        let (what, how) = (pair[0], usize::from(pair[1]));
        match what % 7 {
            0 | 1 => {
                let request = CallRequest::new(&name, vec![0; how * 60]);
                let deadline = now + Duration::from_millis(how as u64);
                if let Ok(started) = caller.call(&request, 1, deadline, next) {
                    assert!(waiting.insert(next, started.id).is_none());
                }
                next += 1;
            }
            2 => {
                if let Some((&number, &id)) = waiting.iter().nth(how % waiting.len().max(1)) {
                    assert_eq!(caller.cancel(id).map(|(number, _)| number), Some(number));
                    waiting.remove(&number);
                }
            }
            3 => {
                let bytes: Vec<u8> = caller.take_output().concat();
                for chunk in bytes.chunks(how + 1) {
                    there.push(Bytes::copy_from_slice(chunk));
                    while let Ok(Some(frame)) = there.next_frame() {
                        match read_request(&frame) {
                            Ok(Asked::Call(id, _)) => {
                                assert!(provider.started(id).is_ok(), "an id is used twice");
                                running.push(id);
                            }
                            Ok(Asked::Cancel(id)) => {
                                let _ = provider.cancelled(id);
                                running.retain(|of| *of != id);
                            }
                            Err(_) => panic!("a frame of ours cannot be read"),
                        }
                    }
                }
            }
            4 => {
                if !running.is_empty() {
                    let id = running.swap_remove(how % running.len());
                    assert!(provider.ended(id));
                    let messages = vec![Bytes::from_static(b"several"); how];
                    let _ = match how % 2 {
                        0 => provider.reply(id, &messages, &Reply::ok("")),
                        _ => provider.reply(id, &[], &Reply::ok(vec![1; how * 60])),
                    };
                }
            }
            5 => {
                let bytes: Vec<u8> = provider.take_output().concat();
                for chunk in bytes.chunks(how + 1) {
                    back.push(Bytes::copy_from_slice(chunk));
                    while let Ok(Some(frame)) = back.next_frame() {
                        match read_reply(&frame) {
                            Ok(Answered::Message(id, message)) => {
                                assert!(caller.message(id, message).is_ok(), "more than fits on a lane");
                            }
                            Ok(Answered::Outcome(id, _)) => {
                                if let Some((number, _)) = caller.replied(id) {
                                    assert_eq!(waiting.remove(&number), Some(id));
                                }
                            }
                            Err(_) => panic!("a frame of ours cannot be read"),
                        }
                    }
                }
            }
            _ => {
                now += Duration::from_millis(how as u64);
                let _ = caller.handle_timeout(now, |number| assert!(waiting.remove(&number).is_some()));
                assert!(caller.poll_timeout().is_none_or(|at| at > now));
            }
        }
    }
    for call in caller.close() {
        assert!(waiting.remove(&call.waiter).is_some());
    }
    assert!(waiting.is_empty(), "a call has no end");
}
