//! N4: a node that leaves: what it took is finished, what comes later is refused, and no call is lost in between.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::sync::{Mutex, mpsc};

use common::{PATIENCE, node, raw};
use futures::{FutureExt as _, future::BoxFuture};
use macula_transport::{Handler, IncomingCall, Reply};
use macula_wire::{FrameDecoder, StatusCode, proto};
use prost::Message as _;

/// Blocks in the call itself until it is let go: the longest way to be ready at once.
struct Blocking {
    started: tokio::sync::mpsc::UnboundedSender<()>,
    go: Mutex<mpsc::Receiver<()>>,
}

impl Handler for Blocking {
    fn call(&self, _: IncomingCall) -> BoxFuture<'static, Reply> {
        let _ = self.started.send(());
        let _ = self.go.lock().unwrap().recv();
        std::future::ready(Reply::ok("finished")).boxed()
    }
}

fn head(call: u64) -> Vec<u8> {
    let head = proto::Head {
        service: "blocking".into(),
        timeout_us: 60_000_000,
        end: true,
        ..Default::default()
    };
    let kind = Some(proto::call_frame::Kind::Head(head));
    macula_wire::frame(&proto::CallFrame { call, kind }).to_vec()
}

async fn trailers(recv: &mut quinn::RecvStream, decoder: &mut FrameDecoder) -> proto::Trailers {
    loop {
        if let Some(frame) = decoder.next_frame().unwrap() {
            match proto::CallFrame::decode(frame).unwrap().kind {
                Some(proto::call_frame::Kind::Trailers(trailers)) => return trailers,
                other => panic!("not a reply: {other:?}"),
            }
        }
        decoder.push(recv.read_chunk(usize::MAX, true).await.unwrap().unwrap().bytes);
    }
}

/// A call that was read just before the drain is waited for, whichever way it came; one that comes after is not started.
async fn drained_while_running(kind: u8, call: u64) {
    let (started, mut running) = tokio::sync::mpsc::unbounded_channel();
    let (go, gate) = mpsc::channel();
    let handler = Blocking {
        started,
        go: Mutex::new(gate),
    };
    let provider = node(handler).await;
    let endpoint = raw::raw_client();
    let (connection, _control) = raw::introduced(&endpoint, &provider).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&[&[kind][..], &head(call)].concat()).await.unwrap();
    running.recv().await.unwrap();

    let mut drain = Box::pin(provider.drain());
    for _ in 0..100 {
        assert!((&mut drain).now_or_never().is_none(), "drained while a call runs");
        tokio::task::yield_now().await;
    }
    go.send(()).unwrap();
    let mut decoder = FrameDecoder::new(1 << 20);
    assert_eq!(trailers(&mut recv, &mut decoder).await.payload, "finished");
    tokio::time::timeout(PATIENCE, drain).await.unwrap();

    let (mut late, mut recv) = connection.open_bi().await.unwrap();
    late.write_all(&[&[kind][..], &head(call + 1)].concat()).await.unwrap();
    let refused = trailers(&mut recv, &mut FrameDecoder::new(1 << 20)).await;
    assert!(refused.not_started, "{refused:?}");
    assert_eq!(StatusCode::from_u32(refused.status), StatusCode::Unavailable);
    assert!(running.try_recv().is_err(), "a call started after the drain");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n4_a_drain_waits_for_a_call_that_is_answered_where_it_was_read() {
    drained_while_running(3, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n4_a_drain_waits_for_a_call_on_a_stream_of_its_own() {
    drained_while_running(2, 0).await;
}
