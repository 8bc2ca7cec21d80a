//! Providers that answer more than anybody takes, or what nobody asked: the caller holds what it said it would, and no more.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use common::{PATIENCE, clock::Clock, config, raw::RawProvider, service, until};
use futures::future::{FutureExt as _, join_all};
use macula_transport::{CallError, CallReply, CallRequest, Connection, Endpoint, Limits, NoService, Unknown};
use macula_wire::{FrameDecoder, StatusCode, proto};
use tokio::{sync::watch, task::JoinHandle};

/// The largest message the caller takes, in bytes.
const MESSAGE: usize = 512 * 1024;
/// What the caller lets be under way to it on a connection, in bytes.
const WINDOW: u32 = 1 << 20;
/// Large replies that a caller puts together at a time.
const TOGETHER: usize = 16;
/// Large requests that a caller writes at a time.
const WRITTEN: usize = 12;
/// More than that.
const CALLS: usize = 40;
/// Leaves packets the time they are paced by.
const STEP: Duration = Duration::from_millis(5);
/// What is read of a reply before its turn, at most, in bytes: as many packets as are looked at together.
const LOOK: usize = 16 * 6_500;

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

/// The beginning of a large reply's stream: its kind, and the lane that it belongs to.
fn opening(lane: &quinn::RecvStream) -> Vec<u8> {
    [&[4][..], &lane.id().index().to_be_bytes()].concat()
}

type Called = JoinHandle<Result<CallReply, CallError>>;

/// A lane between a caller and a provider made of QUIC alone.
struct Lane {
    connection: Connection,
    raw: quinn::Connection,
    streams: (quinn::SendStream, quinn::RecvStream),
    decoder: FrameDecoder,
    /// Keeps the others from being alone: it has a stream of its own, and is never answered.
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
        // Whatever it is, it opens the lane.
        drop(call(&connection, PATIENCE));
        let mut streams = raw.accept_bi().await.unwrap();
        let mut kind = [0];
        streams.1.read_exact(&mut kind).await.unwrap();
        assert_eq!(kind, [3]);
        let mut lane = Self {
            connection,
            raw,
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
                let frame = proto::CallFrame::read(frame).unwrap();
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

/// A reply of the largest size for every call, all at once, each without its end before `finish` says so.
fn answer_all(lane: &Lane, ids: Vec<u64>, written: &Arc<AtomicUsize>, finish: &watch::Receiver<bool>) {
    for id in ids {
        let (raw, opening) = (lane.raw.clone(), opening(&lane.streams.1));
        let (written, mut finish) = (written.clone(), finish.clone());
        // Ends early where the caller stops it.
        tokio::spawn(async move {
            let mut reply = raw.open_uni().await?;
            reply.write_all(&opening).await?;
            let data = data(id, MESSAGE);
            let mut rest = &data[..];
            while !rest.is_empty() {
                let count = reply.write(rest).await?;
                written.fetch_add(count, SeqCst);
                rest = &rest[count..];
            }
            if finish.wait_for(|&finish| finish).await.is_err() {
                return std::future::pending().await;
            }
            reply.write_all(&trailers(id)).await?;
            let _ = reply.finish();
            let _ = reply.stopped().await;
            Ok::<(), quinn::WriteError>(())
        });
    }
}

/// Lets both ends go on until nothing more is written.
async fn stalled(clock: &Clock, written: &AtomicUsize) -> usize {
    let mut before = 0;
    let mut quiet = 0;
    while quiet < 20 {
        clock.pass(STEP).await;
        let now = written.load(SeqCst);
        quiet = if now == before { quiet + 1 } else { 0 };
        before = now;
    }
    before
}

/// What a caller holds of large replies is bounded, whatever the provider sends at once. Those that never end cost their calls, at
/// the calls' own time, and hold no place after it.
#[tokio::test]
async fn a_caller_holds_so_many_large_replies_at_a_time_and_each_for_its_calls_time() {
    let clock = Clock::stop();
    let caller = caller().await;
    let provider = RawProvider::new();
    let (connection, raw, _control) = provider.connected(&caller).await;
    let timeout = Duration::from_secs(2);
    let mut lane = Lane::open(connection.clone(), raw).await;
    let (calls, ids) = lane.call_all(timeout).await;
    let (written, (_finish, never)) = (Arc::new(AtomicUsize::new(0)), watch::channel(false));
    answer_all(&lane, ids, &written, &never);

    let first = async { until("the first are taken", || written.load(SeqCst) >= TOGETHER * MESSAGE).await };
    clock.run(STEP, first).await;
    let taken = stalled(&clock, &written).await;
    assert!(
        taken <= TOGETHER * (MESSAGE + 64) + WINDOW as usize + (CALLS - TOGETHER) * LOOK,
        "{taken} bytes of {CALLS} replies were taken"
    );
    assert!(
        calls.iter().all(|call| !call.is_finished()),
        "a reply is not whole before its end"
    );

    clock.pass(timeout).await;
    for reply in clock.run(STEP, join_all(calls)).await {
        let error = reply.unwrap().unwrap_err();
        assert!(matches!(error, CallError::Unknown(Unknown::Timeout(_))), "{error:?}");
    }
    let dropped = async { until("each is dropped", || caller.stats().dropped_replies == CALLS as u64).await };
    clock.run(STEP, dropped).await;
    assert_eq!(connection.lost(), None);

    let (again, ids) = lane.call_all(PATIENCE).await;
    let (finish, finished) = watch::channel(true);
    answer_all(&lane, ids, &written, &finished);
    for reply in clock.run(STEP, join_all(again)).await {
        let reply = reply.unwrap().unwrap();
        assert_eq!((reply.status, reply.body.len()), (StatusCode::Ok, MESSAGE));
    }
    drop(finish);
}

/// P4: a large reply is its call's, whole and no larger than was said; anything else is counted, and reaches nobody.
#[tokio::test]
async fn p4_large_replies_that_nobody_asked_for_or_takes_reach_nobody() {
    let caller = caller().await;
    let provider = RawProvider::new();
    let (connection, raw, _control) = provider.connected(&caller).await;
    let mut lane = Lane::open(connection.clone(), raw.clone()).await;
    let (mut calls, ids) = lane.call_all(PATIENCE).await;
    let here = opening(&lane.streams.1);
    let elsewhere = [&[4][..], &77_u64.to_be_bytes()].concat();
    let send = async |opening: &[u8], frames: &[Bytes]| {
        let mut reply = raw.open_uni().await.unwrap();
        // The caller may stop it before it has it all.
        let _ = reply.write_all(&[opening, &frames.concat()].concat()).await;
        let _ = reply.finish();
    };
    let another = ids[0] ^ 1 << 40;
    for (n, (opening, call)) in [(&here, u64::MAX), (&elsewhere, ids[0]), (&here, another)]
        .into_iter()
        .enumerate()
    {
        send(opening, &[data(call, 20_000), trailers(call)]).await;
        until("it is dropped", || caller.stats().dropped_replies == n as u64 + 1).await;
    }
    // Those of its own: too large at once, too large together, of another call in the middle, ended early, no reply at all.
    let half = MESSAGE / 2 + 1;
    let broken: [&dyn Fn(u64) -> Vec<Bytes>; 5] = [
        &|id| vec![data(id, MESSAGE + 1024)],
        &|id| vec![data(id, half), data(id, half), trailers(id)],
        &|id| vec![data(id, 20_000), trailers(id ^ 1 << 40)],
        &|id| vec![data(id, 20_000)],
        &|id| {
            vec![
                data(id, 20_000),
                frame(id, proto::call_frame::Kind::Cancel(proto::Cancel::default())),
            ]
        },
    ];
    for (n, frames) in broken.iter().enumerate() {
        send(&here, &frames(ids[n])).await;
        until("it is rejected", || caller.stats().rejected_frames == n as u64 + 1).await;
    }
    let rest = calls.split_off(broken.len());
    // The first frame may be too large to tell whose it is.
    calls[0].abort();
    for (n, call) in calls.into_iter().enumerate().skip(1) {
        let error = call.await.unwrap().unwrap_err();
        let expected = match n {
            3 => Unknown::Incomplete,
            _ => Unknown::Malformed,
        };
        assert!(
            matches!(&error, CallError::Unknown(why) if *why == expected),
            "{n}: {error:?}"
        );
    }
    for &id in &ids[broken.len()..] {
        send(&here, &[data(id, 20_000), trailers(id)]).await;
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

/// P4: a reply on the lane that answers no call, or one that is over, is counted and reaches nobody.
#[tokio::test]
async fn p4_replies_that_match_no_call_are_counted_and_dropped() {
    let caller = caller().await;
    let provider = RawProvider::new();
    let (connection, raw, _control) = provider.connected(&caller).await;
    let mut lane = Lane::open(connection.clone(), raw).await;
    let (calls, ids) = lane.call_all(PATIENCE).await;
    // Of nobody, of a later call in the same place, and one's own twice.
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
