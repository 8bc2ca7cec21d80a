//! Calls and replies whose streams come late, or are not wanted any more: byte by byte.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::{sync::Arc, time::Duration};

use common::{
    PATIENCE, client,
    clock::Clock,
    identity, provider,
    raw::{self, Shown, client_tls},
    service, until,
};
use macula_transport::{CallRequest, Endpoint, PoolEvent, Timers};
use macula_wire::{FrameDecoder, Realm, proto};
use prost::Message as _;

/// Reads frames until one is a call's.
async fn call_frame(recv: &mut quinn::RecvStream, decoder: &mut FrameDecoder) -> proto::CallFrame {
    loop {
        if let Some(frame) = decoder.next_frame().unwrap() {
            return proto::CallFrame::decode(frame).unwrap();
        }
        decoder.push(recv.read_chunk(usize::MAX, true).await.unwrap().unwrap().bytes);
    }
}

fn framed(call: u64, kind: proto::call_frame::Kind) -> Vec<u8> {
    macula_wire::frame(&proto::CallFrame { call, kind: Some(kind) }).to_vec()
}

fn head(service: &str) -> proto::call_frame::Kind {
    proto::call_frame::Kind::Head(proto::Head {
        service: service.into(),
        timeout_us: 3_600_000_000,
        end: true,
        ..Default::default()
    })
}

/// QUIC opens a stream with any later one: its own bytes may wait for their turn behind large messages.
#[tokio::test]
async fn a_stream_is_not_slow_before_its_first_byte() {
    let clock = Clock::stop();
    let (provider, _events) = provider().await;
    let endpoint = raw::raw_client();
    let (connection, _control) = raw::introduced(&endpoint, &provider).await;
    let (mut first, mut reply) = connection.open_bi().await.unwrap();
    let (mut second, _recv) = connection.open_bi().await.unwrap();
    let call = [&[2], &framed(0, head("echo"))[..]].concat();
    second.write_all(&call).await.unwrap();
    until("the later one is answered", || provider.stats().calls_taken == 1).await;
    clock.pass(2 * Timers::default().head).await;
    assert_eq!(provider.stats().slow_streams, 0);
    first.write_all(&call).await.unwrap();
    let answer = call_frame(&mut reply, &mut FrameDecoder::new(1 << 20)).await;
    assert!(
        matches!(answer.kind, Some(proto::call_frame::Kind::Trailers(_))),
        "{answer:?}"
    );
}

/// A peer by hand that dialed `node`, and `node`'s connection to it.
async fn called_by(
    node: &Endpoint,
    endpoint: &quinn::Endpoint,
) -> (quinn::Connection, quinn::SendStream, macula_transport::Connection) {
    let mut events = node.pool().events();
    let (peer, control) = raw::introduced(endpoint, node).await;
    let Some(PoolEvent::Opened { node: id, .. }) = events.next().await else {
        panic!("no connection")
    };
    (peer, control, node.pool().open(&id).unwrap())
}

#[tokio::test]
async fn f8_a_large_reply_under_way_is_stopped_when_its_call_is_given_up() {
    let node = client().await;
    let endpoint = raw::raw_client();
    let (peer, _control, connection) = called_by(&node, &endpoint).await;
    let request = |name: &'static str| {
        let (connection, name) = (connection.clone(), service(name));
        tokio::spawn(async move {
            let request = CallRequest::new(&name, "").with_timeout(Duration::from_secs(3600));
            let _ = connection.call(request).await;
        })
    };
    // The first goes alone, the second beside it: on a lane.
    let first = request("first");
    let (_apart, _recv) = peer.accept_bi().await.unwrap();
    let second = request("second");
    let (lane, mut asked) = peer.accept_bi().await.unwrap();
    let mut kind = [0];
    asked.read_exact(&mut kind).await.unwrap();
    assert_eq!(kind, [3]);
    let mut decoder = FrameDecoder::new(1 << 20);
    let call = call_frame(&mut asked, &mut decoder).await.call;

    let mut reply = peer.open_uni().await.unwrap();
    let data = proto::call_frame::Kind::Data(proto::Data {
        payload: vec![7; 100_000].into(),
        ..Default::default()
    });
    let start = [&[4], &lane.id().index().to_be_bytes()[..], &call.to_be_bytes()].concat();
    reply.write_all(&start).await.unwrap();
    reply.write_all(&framed(0, data)[..50_000]).await.unwrap();
    // So that it is waited for, and not only found unwanted, when the call is given up.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    second.abort();
    let stopped = tokio::time::timeout(PATIENCE, reply.stopped()).await;
    assert!(stopped.unwrap().unwrap().is_some());
    first.abort();
}

#[tokio::test]
async fn a_large_reply_that_is_not_taken_ends_its_call_with_an_error() {
    let clock = Clock::stop();
    let (provider, _events) = provider().await;
    let endpoint = raw::raw_client();
    let mut config = client_tls(Shown::Key(identity()), b"macula/1");
    let mut transport = quinn::TransportConfig::default();
    transport.max_concurrent_uni_streams(0_u32.into());
    config.transport_config(Arc::new(transport));
    let connecting = endpoint.connect_with(config, provider.local_addr(), "x").unwrap();
    let connection = connecting.await.unwrap();
    let (mut control, mut introduction) = connection.open_bi().await.unwrap();
    control.write_all(&raw::hello(&Realm::default(), 1)).await.unwrap();
    introduction.read_chunk(1, true).await.unwrap().unwrap();

    let (mut lane, mut replies) = connection.open_bi().await.unwrap();
    lane.write_all(&[&[3], &framed(1, head("large"))[..]].concat())
        .await
        .unwrap();
    let mut decoder = FrameDecoder::new(1 << 20);
    let answer = call_frame(&mut replies, &mut decoder);
    let answer = clock.run(Duration::from_secs(1), answer).await;
    let Some(proto::call_frame::Kind::Trailers(trailers)) = answer.kind else {
        panic!("{answer:?}")
    };
    assert!(
        answer.call == 1 && trailers.status != 0 && !trailers.not_started,
        "{trailers:?}"
    );
    assert_eq!(provider.stats().slow_streams, 1);
}
