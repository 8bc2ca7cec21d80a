//! Providers that send too large a reply, or a reply to no call: no call receives it.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{PATIENCE, clock::Clock, config, raw::RawProvider, service, until};
use futures::future::{FutureExt as _, join_all};
use macula_transport::{CallError, CallReply, CallRequest, Connection, Endpoint, Limits, NoService, Unknown};
use macula_wire::{FrameDecoder, StatusCode, proto};
use prost::Message as _;
use tokio::task::JoinHandle;

/// The largest message the caller takes, in bytes.
const MESSAGE: usize = 512 * 1024;
/// The caller's receive window for a connection, in bytes.
const WINDOW: u32 = 1 << 20;
/// Large requests that a caller writes at a time.
const WRITTEN: usize = 12;
/// More than that.
const CALLS: usize = 40;
/// Leaves packets the time they are paced by.
const STEP: Duration = Duration::from_millis(5);
async fn caller() -> Endpoint {
    let limits = Limits {
        max_message_bytes: MESSAGE,
        stream_window: WINDOW / 4,
        connection_window: WINDOW,
        ..Limits::default()
    };
    Endpoint::bind(config().with_limits(limits), NoService).await.unwrap()
}

fn frame(call: u64, kind: proto::call_frame::Kind) -> Bytes {
    macula_wire::frame(&proto::CallFrame { call, kind: Some(kind) })
}

fn data(call: u64, bytes: usize) -> Bytes {
    let payload = vec![7; bytes].into();
    frame(
        call,
        proto::call_frame::Kind::Data(proto::Data {
            payload,
            end: true,
            ..Default::default()
        }),
    )
}

fn trailers(call: u64) -> Bytes {
    frame(call, proto::call_frame::Kind::Trailers(proto::Trailers::default()))
}

/// The start of a stream for a reply: its kind, the lane, and the call that it belongs to.
fn opening(lane: u64, call: u64) -> Vec<u8> {
    [&[4][..], &lane.to_be_bytes(), &call.to_be_bytes()].concat()
}

type Called = JoinHandle<Result<CallReply, CallError>>;

/// A lane between a caller and a provider made of QUIC alone.
struct Lane {
    connection: Connection,
    streams: (quinn::SendStream, quinn::RecvStream),
    decoder: FrameDecoder,
    /// An unanswered call on a stream of its own, so that the calls after it are not alone and take the lane.
    _alone: (Called, quinn::SendStream, quinn::RecvStream),
}

fn call(connection: &Connection, timeout: Duration) -> Called {
    let connection = connection.clone();
    tokio::spawn(async move {
        let name = service("large");
        connection.call(CallRequest::new(&name, "").with_timeout(timeout)).await
    })
}

impl Lane {
    async fn open(connection: Connection, raw: quinn::Connection) -> Self {
        let alone = call(&connection, PATIENCE);
        let (send, recv) = raw.accept_bi().await.unwrap();
        // A second call opens the lane.
        drop(call(&connection, PATIENCE));
        let mut streams = raw.accept_bi().await.unwrap();
        let mut kind = [0];
        streams.1.read_exact(&mut kind).await.unwrap();
        assert_eq!(kind, [3]);
        let mut lane = Self {
            connection,
            streams,
            decoder: FrameDecoder::new(1 << 20),
            _alone: (alone, send, recv),
        };
        lane.heads(1).await;
        lane
    }

    /// The calls that come next.
    async fn heads(&mut self, count: usize) -> Vec<u64> {
        let mut ids = Vec::new();
        loop {
            while let Some(frame) = self.decoder.next_frame().unwrap() {
                let frame = proto::CallFrame::decode(frame).unwrap();
                if matches!(frame.kind, Some(proto::call_frame::Kind::Head(_))) {
                    ids.push(frame.call);
                }
            }
            if ids.len() >= count {
                return ids;
            }
            let chunk = self.streams.1.read_chunk(usize::MAX, true).await.unwrap();
            self.decoder.push(chunk.unwrap().bytes);
        }
    }

    /// Makes `CALLS` calls: what they bring, and their ids.
    async fn call_all(&mut self, timeout: Duration) -> (Vec<Called>, Vec<u64>) {
        let calls = (0..CALLS).map(|_| call(&self.connection, timeout)).collect();
        (calls, self.heads(CALLS).await)
    }
}

/// P4: a call receives its large reply whole and at most as large as announced; any other is counted and dropped.
#[tokio::test]
async fn p4_large_replies_that_are_unasked_or_too_large_are_dropped() {
    let caller = caller().await;
    let provider = RawProvider::new();
    let (connection, raw, _control) = provider.connected(&caller).await;
    let mut lane = Lane::open(connection.clone(), raw.clone()).await;
    let (mut calls, ids) = lane.call_all(PATIENCE).await;
    let here = lane.streams.1.id().index();
    let send = async |opening: Vec<u8>, frames: &[Bytes]| {
        let mut reply = raw.open_uni().await.unwrap();
        // The caller may stop the stream before it has read all of it.
        let _ = reply.write_all(&[opening, frames.concat()].concat()).await;
        let _ = reply.finish();
    };
    let another = ids[0] ^ 1 << 40;
    for (n, (lane, call)) in [(here, u64::MAX), (77, ids[0]), (here, another)]
        .into_iter()
        .enumerate()
    {
        send(opening(lane, call), &[data(0, 20_000), trailers(0)]).await;
        until("it is dropped", || caller.stats().dropped_replies == n as u64 + 1).await;
    }
    // Replies to waiting calls: too large, ended early, no reply at all.
    let cancel = frame(0, proto::call_frame::Kind::Cancel(proto::Cancel::default()));
    let broken = [
        vec![data(0, MESSAGE + 1024)],
        vec![data(0, 20_000)],
        vec![data(0, 20_000), cancel],
    ];
    for (n, frames) in broken.iter().enumerate() {
        send(opening(here, ids[n]), frames).await;
        until("it is rejected", || caller.stats().rejected_frames == n as u64 + 1).await;
    }
    let rest = calls.split_off(broken.len());
    for (n, call) in calls.into_iter().enumerate() {
        let error = call.await.unwrap().unwrap_err();
        let expected = match n {
            1 => Unknown::Incomplete,
            _ => Unknown::Malformed,
        };
        assert!(
            matches!(&error, CallError::Unknown(why) if *why == expected),
            "{n}: {error:?}"
        );
    }
    for &id in &ids[broken.len()..] {
        send(opening(here, id), &[data(0, 20_000), trailers(0)]).await;
    }
    for call in rest {
        assert_eq!(call.await.unwrap().unwrap().body.len(), 20_000);
    }
    assert_eq!(connection.lost(), None);
}

/// P5: a peer is sent fewer large requests at a time than it puts together, so that those it has begun can end.
#[tokio::test]
async fn p5_fewer_large_requests_are_written_at_a_time_than_are_put_together() {
    let clock = Clock::stop();
    let caller = caller().await;
    let provider = RawProvider::new();
    let (connection, raw, _control) = provider.connected(&caller).await;
    let calls: Vec<_> = (0..CALLS)
        .map(|_| {
            let connection = connection.clone();
            tokio::spawn(async move {
                let name = service("large");
                // More than a stream carries before it is read.
                let request = CallRequest::new(&name, vec![7; MESSAGE]).with_timeout(PATIENCE);
                connection.call(request).await
            })
        })
        .collect();
    let mut waiting = std::collections::VecDeque::new();
    for ended in 0..CALLS {
        while waiting.len() < WRITTEN.min(CALLS - ended) {
            waiting.push_back(clock.run(STEP, raw.accept_bi()).await.unwrap());
        }
        clock.pass(STEP).await;
        assert!(
            raw.accept_bi().now_or_never().is_none(),
            "more are written after {ended}"
        );
        let (mut send, mut recv) = waiting.pop_front().unwrap();
        clock.run(STEP, recv.read_to_end(2 * MESSAGE)).await.unwrap();
        send.write_all(&trailers(0)).await.unwrap();
        send.finish().unwrap();
    }
    for reply in clock.run(STEP, join_all(calls)).await {
        assert_eq!(reply.unwrap().unwrap().status, StatusCode::Ok);
    }
}

/// P4: a reply on the lane to no call, or to a call that has ended, is counted and dropped.
#[tokio::test]
async fn p4_replies_that_match_no_call_are_counted_and_dropped() {
    let caller = caller().await;
    let provider = RawProvider::new();
    let (connection, raw, _control) = provider.connected(&caller).await;
    let mut lane = Lane::open(connection.clone(), raw).await;
    let (calls, ids) = lane.call_all(PATIENCE).await;
    // To no call, to a later call in the same slot, and to one call twice.
    let replies = [u64::MAX, ids[0] ^ 1 << 40, ids[0], ids[0]];
    lane.streams.0.write_all(&replies.map(trailers).concat()).await.unwrap();
    until("three are dropped", || caller.stats().dropped_replies == 3).await;
    let rest: Vec<_> = ids[1..].iter().map(|&id| trailers(id)).collect();
    lane.streams.0.write_all(&rest.concat()).await.unwrap();
    for reply in calls {
        assert_eq!(reply.await.unwrap().unwrap().status, StatusCode::Ok);
    }
    assert_eq!((caller.stats().dropped_replies, connection.lost()), (3, None));
}
