//! Providers that answer calls on a lane with frames that are no answer to them: those reach no call, or fail their own.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use bytes::Bytes;
use common::{PATIENCE, client, raw::RawProvider, service, until};
use macula_transport::{CallError, CallReply, CallRequest, Connection, Endpoint, Replies, Unknown};
use macula_wire::{FrameDecoder, StatusCode, proto};
use prost::Message as _;
use proto::call_frame::Kind;
use tokio::task::JoinHandle;

fn frame(call: u64, kind: Kind) -> Bytes {
    macula_wire::frame(&proto::CallFrame { call, kind: Some(kind) })
}

fn data(payload: &'static [u8]) -> Kind {
    let payload = Bytes::from_static(payload);
    Kind::Data(proto::Data {
        payload,
        ..Default::default()
    })
}

fn trailers(payload: &'static [u8]) -> Kind {
    Kind::Trailers(proto::Trailers {
        payload: Bytes::from_static(payload),
        ..Default::default()
    })
}

/// A caller, and a provider made of QUIC alone that it calls over a lane.
struct Test {
    caller: Endpoint,
    connection: Connection,
    raw: quinn::Connection,
    _control: (quinn::SendStream, quinn::RecvStream),
    lane: (quinn::SendStream, quinn::RecvStream),
    decoder: FrameDecoder,
    /// An unanswered call on a stream of its own, so that the calls after it are not alone and take the lane.
    _alone: (Replies, quinn::SendStream, quinn::RecvStream),
    /// Its call is the lane's first.
    first: Option<Replies>,
    /// Calls that wait to the end.
    kept: Vec<Replies>,
}

async fn open(connection: &Connection) -> Replies {
    let name = service("small");
    let request = CallRequest::new(&name, "x").with_timeout(PATIENCE);
    connection.open_with_only(request).await.unwrap()
}

impl Test {
    async fn start() -> Self {
        let caller = client().await;
        let provider = RawProvider::new();
        let (connection, raw, control) = provider.connected(&caller).await;
        let alone = open(&connection).await;
        let (send, recv) = raw.accept_bi().await.unwrap();
        let first = open(&connection).await;
        let mut lane = raw.accept_bi().await.unwrap();
        let mut kind = [0];
        lane.1.read_exact(&mut kind).await.unwrap();
        assert_eq!(kind, [3]);
        Self {
            caller,
            connection,
            raw,
            _control: control,
            lane,
            decoder: FrameDecoder::new(1 << 20),
            _alone: (alone, send, recv),
            first: Some(first),
            kept: Vec::new(),
        }
    }

    /// The next frame on the lane.
    async fn asked(&mut self) -> proto::CallFrame {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return proto::CallFrame::decode(frame).unwrap();
            }
            let chunk = self.lane.1.read_chunk(usize::MAX, true).await.unwrap();
            self.decoder.push(chunk.unwrap().bytes);
        }
    }

    /// A call that takes several messages, and its id.
    async fn open(&mut self) -> (Replies, u64) {
        let replies = match self.first.take() {
            Some(first) => first,
            None => open(&self.connection).await,
        };
        let asked = self.asked().await;
        assert!(matches!(asked.kind, Some(Kind::Head(head)) if head.end));
        (replies, asked.call)
    }

    /// A unary call, and its id.
    async fn call(&mut self) -> (JoinHandle<Result<CallReply, CallError>>, u64) {
        let (first, _) = self.open().await;
        self.kept.push(first);
        let connection = self.connection.clone();
        let call = tokio::spawn(async move {
            let name = service("unary");
            connection
                .call(CallRequest::new(&name, "x").with_timeout(PATIENCE))
                .await
        });
        let asked = self.asked().await;
        assert!(matches!(asked.kind, Some(Kind::Head(head)) if head.end));
        (call, asked.call)
    }

    async fn answer(&mut self, call: u64, kind: Kind) {
        self.lane.0.write_all(&frame(call, kind)).await.unwrap();
    }

    /// Opens a stream for a call's replies.
    async fn moved(&self, call: u64, kinds: impl IntoIterator<Item = Kind>) -> quinn::SendStream {
        let mut stream = self.raw.open_uni().await.unwrap();
        let frames: Vec<_> = kinds.into_iter().map(|kind| frame(0, kind)).collect();
        let opening = [
            &[4][..],
            &self.lane.0.id().index().to_be_bytes(),
            &call.to_be_bytes(),
            &frames.concat(),
        ];
        stream.write_all(&opening.concat()).await.unwrap();
        stream
    }
}

async fn stopped(stream: &quinn::SendStream) -> u64 {
    let code = tokio::time::timeout(PATIENCE, stream.stopped()).await.unwrap();
    code.unwrap().unwrap().into_inner()
}

const CANCELLED: u64 = 1;

#[tokio::test]
async fn messages_and_their_outcome_come_together_or_on_a_stream() {
    let mut test = Test::start().await;
    let (mut replies, id) = test.open().await;
    for kind in [data(b""), data(b"ab"), trailers(b"c")] {
        test.answer(id, kind).await;
    }
    for expected in ["", "ab", "c"] {
        assert_eq!(replies.next().await.unwrap().unwrap(), expected);
    }
    assert_eq!(replies.next().await.unwrap(), None);
    let (mut replies, id) = test.open().await;
    let mut stream = test.moved(id, [data(b"ab"), data(b"")]).await;
    assert_eq!(replies.next().await.unwrap().unwrap(), "ab");
    assert_eq!(replies.next().await.unwrap().unwrap(), "");
    stream.write_all(&frame(0, trailers(b"c"))).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap(), "c");
    assert_eq!(replies.next().await.unwrap(), None);
    assert_eq!(test.caller.stats().rejected_frames, 0);
}

/// P4: a stream with a reply to no waiting call is counted and stopped.
#[tokio::test]
async fn p4_streams_of_replies_to_no_waiting_call_are_stopped() {
    let mut test = Test::start().await;
    let (cancelled, id) = test.open().await;
    drop(cancelled);
    assert!(matches!(test.asked().await.kind, Some(Kind::Cancel(_))));
    let (mut twice, again) = test.open().await;
    let mut first = test.moved(again, [data(b"the first")]).await;
    assert_eq!(twice.next().await.unwrap().unwrap(), "the first");
    for (n, stray) in [id, u64::MAX, again, again ^ 1 << 40].into_iter().enumerate() {
        let stream = test.moved(stray, [data(b"stray")]).await;
        assert_eq!(stopped(&stream).await, CANCELLED);
        until("it is counted", || test.caller.stats().dropped_replies == n as u64 + 1).await;
    }
    // An outcome on the lane, too, for a call whose replies have moved.
    test.answer(again, trailers(b"stray")).await;
    until("it is counted", || test.caller.stats().dropped_replies == 5).await;
    first.write_all(&frame(0, trailers(b"the last"))).await.unwrap();
    assert_eq!(twice.next().await.unwrap().unwrap(), "the last");
    // Of another lane, and of none.
    let mut elsewhere = test.raw.open_uni().await.unwrap();
    let opening = [&[4][..], &77_u64.to_be_bytes(), &again.to_be_bytes()].concat();
    elsewhere.write_all(&opening).await.unwrap();
    assert_eq!(stopped(&elsewhere).await, CANCELLED);
    let mut short = test.raw.open_uni().await.unwrap();
    short.write_all(&opening[..12]).await.unwrap();
    short.finish().unwrap();
    until("it is rejected", || test.caller.stats().rejected_frames == 1).await;
    assert_eq!(test.connection.lost(), None);
}

#[tokio::test]
async fn what_is_wrong_on_a_stream_for_replies_fails_its_call_alone() {
    let mut test = Test::start().await;
    let (mut beside, beside_id) = test.open().await;
    let cancel = || Kind::Cancel(proto::Cancel::default());
    for (kinds, finish, expected) in [
        (vec![data(b"a"), cancel()], false, Unknown::Malformed),
        (vec![data(b"a")], true, Unknown::Incomplete),
        (vec![cancel()], false, Unknown::Malformed),
        (vec![], true, Unknown::Incomplete),
    ] {
        let (mut replies, id) = test.open().await;
        let messages = kinds.iter().filter(|kind| matches!(kind, Kind::Data(_))).count();
        let mut stream = test.moved(id, kinds).await;
        if finish {
            stream.finish().unwrap();
        }
        for _ in 0..messages {
            assert_eq!(replies.next().await.unwrap().unwrap(), "a");
        }
        let error = replies.next().await.unwrap_err();
        assert!(
            matches!(&error, CallError::Unknown(why) if *why == expected),
            "{error:?}"
        );
    }
    let (mut replies, id) = test.open().await;
    let mut stream = test.moved(id, [data(b"a")]).await;
    assert_eq!(replies.next().await.unwrap().unwrap(), "a");
    stream.reset(9_u32.into()).unwrap();
    let error = replies.next().await.unwrap_err();
    assert!(matches!(error, CallError::Unknown(Unknown::Reset(9))), "{error:?}");
    test.answer(beside_id, trailers(b"as before")).await;
    assert_eq!(beside.next().await.unwrap().unwrap(), "as before");
}

/// Messages without an outcome on the lane wait for it, and are dropped with a call that is given up.
#[tokio::test]
async fn messages_of_a_call_that_moves_or_is_given_up_are_dropped() {
    let mut test = Test::start().await;
    let (given_up, id) = test.open().await;
    test.answer(id, data(b"a")).await;
    drop(given_up);
    assert!(matches!(test.asked().await.kind, Some(Kind::Cancel(_))));
    test.answer(id, data(b"b")).await;
    let (mut moves, id) = test.open().await;
    test.answer(id, data(b"on the lane")).await;
    let _stream = test.moved(id, [trailers(b"on the stream")]).await;
    assert_eq!(moves.next().await.unwrap().unwrap(), "on the stream");
    assert_eq!(moves.next().await.unwrap(), None);
}

/// A unary call takes one message, wherever it comes.
#[tokio::test]
async fn several_messages_fail_a_unary_call_alone() {
    let mut test = Test::start().await;
    let (on_stream, id) = test.call().await;
    let _stream = test.moved(id, [data(b"a"), data(b"b")]).await;
    let (on_lane, id) = test.call().await;
    for kind in [data(b"a"), trailers(b"b")] {
        test.answer(id, kind).await;
    }
    for call in [on_stream, on_lane] {
        let error = call.await.unwrap().unwrap_err();
        assert!(matches!(error, CallError::Unknown(Unknown::Streamed)), "{error:?}");
    }
    let (call, id) = test.call().await;
    for kind in [data(b"the only one"), trailers(b"")] {
        test.answer(id, kind).await;
    }
    assert_eq!(call.await.unwrap().unwrap().body, "the only one");
    assert_eq!(test.caller.stats().rejected_frames, 0);
}

/// A frame that no version sends on a lane ends the lane, and every call on it.
#[tokio::test]
async fn what_a_lane_does_not_carry_ends_the_lane_and_not_the_connection() {
    static LARGE: [u8; 8 * 1024] = [7; 8 * 1024];
    let head = || Kind::Head(proto::Head::default());
    for kinds in [vec![head()], vec![data(&LARGE), data(&LARGE), data(&LARGE)]] {
        let mut test = Test::start().await;
        let (mut beside, _) = test.open().await;
        let (mut replies, id) = test.open().await;
        for kind in kinds {
            test.answer(id, kind).await;
        }
        let error = replies.next().await.unwrap_err();
        assert!(matches!(error, CallError::Unknown(Unknown::Malformed)), "{error:?}");
        let error = beside.next().await.unwrap_err();
        assert!(matches!(error, CallError::Unknown(Unknown::Malformed)), "{error:?}");
        assert_eq!((test.caller.stats().rejected_frames, test.connection.lost()), (1, None));
        // The next call has another lane.
        let mut again = open(&test.connection).await;
        let (mut send, mut recv) = test.raw.accept_bi().await.unwrap();
        let mut start = [0; 2];
        recv.read_exact(&mut start).await.unwrap();
        let mut head = vec![0; start[1].into()];
        recv.read_exact(&mut head).await.unwrap();
        let id = proto::CallFrame::decode(&head[..]).unwrap().call;
        send.write_all(&frame(id, trailers(b"here"))).await.unwrap();
        assert_eq!(again.next().await.unwrap().unwrap(), "here");
        assert_eq!(again.next().await.unwrap(), None);
        assert_eq!(again.reply().unwrap().status, StatusCode::Ok);
    }
}
