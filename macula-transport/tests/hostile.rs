//! Peers that send forbidden frames, or more than the limits: they are rejected and counted, and the node keeps serving.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use common::{
    client,
    clock::Clock,
    config, connect, echoes, identity, provider,
    raw::{Shown, client_tls, hello, introduced, raw_client, raw_connection},
    still_serves, until,
};
use futures::FutureExt as _;
use macula_transport::{Config, Endpoint, Limits, NoService, Stats, Timers};
use macula_wire::{Realm, proto};

#[tokio::test]
async fn a_peer_that_never_introduces_itself_is_let_go() {
    let clock = Clock::stop();
    let (provider, _events) = provider().await;
    let endpoint = raw_client();
    let connection = raw_connection(&endpoint, &provider).await;
    clock.pass(Timers::default().connect - Duration::from_millis(10)).await;
    assert_eq!(connection.close_reason(), None);
    clock.pass(Duration::from_millis(20)).await;
    until("it is let go", || connection.close_reason().is_some()).await;
    assert_eq!(provider.stats().rejected_hellos, 1);
    still_serves(&provider).await;
}

#[tokio::test]
async fn random_datagrams_are_counted_and_change_nothing() {
    let (provider, _events) = provider().await;
    let socket = tokio::net::UdpSocket::bind(common::loopback()).await.unwrap();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..500 {
        let length = random() as usize % 1400;
        let datagram: Vec<u8> = (0..length).map(|_| random() as u8).collect();
        socket.send_to(&datagram, provider.local_addr()).await.unwrap();
    }
    until("some are counted", || provider.stats().foreign_datagrams > 0).await;
    still_serves(&provider).await;
}

/// Sends `bytes` on a stream of a connection that has introduced itself, ends it, and expects it to be rejected and counted.
async fn bad_stream(bytes: Vec<u8>, counted: fn(Stats) -> u64) {
    let (provider, _events) = provider().await;
    let endpoint = raw_client();
    let (connection, _control) = introduced(&endpoint, &provider).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&bytes).await.unwrap();
    send.finish().unwrap();
    let end = recv.read_to_end(1 << 20).await;
    assert!(
        matches!(end, Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(_)))),
        "{end:?}"
    );
    until("it is counted", || counted(provider.stats()) == 1).await;
    assert_eq!(
        connection.close_reason(),
        None,
        "one bad stream does not cost the connection"
    );
    still_serves(&provider).await;
}

#[tokio::test]
async fn an_oversized_frame_is_rejected() {
    bad_stream(vec![2, 0xff, 0xff, 0xff, 0x7f], |stats| stats.rejected_frames).await;
}

#[tokio::test]
async fn a_truncated_frame_is_rejected() {
    bad_stream(vec![2, 10, 1, 2, 3], |stats| stats.rejected_frames).await;
}

#[tokio::test]
async fn a_frame_that_is_no_message_is_rejected() {
    bad_stream(vec![2, 3, 0xff, 0xff, 0xff], |stats| stats.rejected_frames).await;
}

#[tokio::test]
async fn a_stream_of_no_known_kind_is_rejected() {
    bad_stream(vec![0x7e, 0], |stats| stats.rejected_frames).await;
}

#[tokio::test]
async fn an_empty_stream_is_rejected() {
    bad_stream(vec![], |stats| stats.rejected_frames).await;
}

#[tokio::test]
async fn a_head_that_does_not_arrive_in_time_costs_its_stream() {
    let clock = Clock::stop();
    let (provider, _events) = provider().await;
    let endpoint = raw_client();
    let (connection, _control) = introduced(&endpoint, &provider).await;
    // A call and a request of the DHT: their first bytes, and no more.
    let mut streams = Vec::new();
    for bytes in [[2, 100, 1], [0x10, 100, 1]] {
        let (mut send, recv) = connection.open_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        streams.push((send, recv));
    }
    clock.pass(Timers::default().head - Duration::from_millis(10)).await;
    assert_eq!(provider.stats().slow_streams, 0);
    clock.pass(Duration::from_millis(20)).await;
    until("they are given up", || provider.stats().slow_streams == 2).await;
    for (_, recv) in &mut streams {
        let end = recv.read_to_end(1024).await;
        assert!(
            matches!(end, Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(_)))),
            "{end:?}"
        );
    }
    assert_eq!(
        connection.close_reason(),
        None,
        "a slow stream does not cost the connection"
    );
    still_serves(&provider).await;
}

/// A call whose head came and whose body does not is given up at its own deadline, and holds no place after it.
#[tokio::test]
async fn a_body_that_does_not_arrive_costs_its_call() {
    let clock = Clock::stop();
    let (provider, _events) = provider().await;
    let endpoint = raw_client();
    let (connection, _control) = introduced(&endpoint, &provider).await;
    let head = proto::Head {
        service: "echo".into(),
        timeout_us: 2_000_000,
        ..Default::default()
    };
    let kind = Some(proto::call_frame::Kind::Head(head));
    let frame = macula_wire::frame(&proto::CallFrame { call: 0, kind });
    let mut streams = Vec::new();
    // More than are put together at a time: the last ones wait for their turn.
    for _ in 0..20 {
        let (mut send, recv) = connection.open_bi().await.unwrap();
        send.write_all(&[&[2], &frame[..]].concat()).await.unwrap();
        streams.push((send, recv));
    }
    until("they are taken", || provider.stats().calls_taken == 20).await;
    clock.pass(Duration::from_millis(2010)).await;
    until("they are given up", || provider.stats().slow_streams == 20).await;
    still_serves(&provider).await;
}

#[tokio::test]
async fn a_broken_control_stream_costs_its_connection() {
    let (provider, _events) = provider().await;
    let endpoint = raw_client();
    let (connection, mut control) = introduced(&endpoint, &provider).await;
    control.write_all(&[0xff, 0xff, 0xff, 0x7f]).await.unwrap();
    connection.closed().await;
    assert_eq!(provider.stats().rejected_frames, 1);
    still_serves(&provider).await;
}

#[tokio::test]
async fn more_connections_than_are_taken_are_refused_while_all_are_in_use() {
    let limits = Limits {
        max_accepted: 1,
        ..Limits::default()
    };
    let (handler, mut events) = common::Service::new();
    let provider = Endpoint::bind(config().with_limits(limits), handler).await.unwrap();
    let (first, second) = (
        client().await,
        Endpoint::bind(Config::new(identity()), NoService).await.unwrap(),
    );
    let connection = connect(&first, &provider).await.unwrap();
    let name = common::service("hang");
    let call = connection.call(macula_transport::CallRequest::new(&name, "").with_timeout(common::PATIENCE));
    let rest = async {
        events.recv().await;
        let connection = connect(&second, &provider).await;
        // The provider judges after it has heard the introduction, so the dial itself may succeed.
        if let Ok(connection) = connection {
            until("the connection is closed", || connection.lost().is_some()).await;
        }
    };
    tokio::select! {
        result = call => panic!("a hanging call ended: {result:?}"),
        () = rest => {}
    }
    assert_eq!(provider.stats().rejected_busy, 1);
}

#[tokio::test]
async fn above_a_limit_peers_must_prove_their_address_first() {
    let limits = Limits {
        retry_above: 0,
        ..Limits::default()
    };
    let (handler, _events) = common::Service::new();
    let provider = Endpoint::bind(config().with_limits(limits), handler).await.unwrap();
    still_serves(&provider).await;
    assert_eq!(provider.stats().retried, 1);
}

/// Makes call after call on a lane and reads no reply. Ends only if the provider accepts calls without limit.
async fn call_and_never_read(connection: quinn::Connection, written: Arc<AtomicUsize>) {
    let (mut lane, _unread) = connection.open_bi().await.unwrap();
    lane.write_all(&[3]).await.unwrap();
    for call in 1..20_000 {
        let head = proto::Head {
            service: "echo".into(),
            timeout_us: 60_000_000,
            payload: vec![7; 8000].into(),
            end: true,
            ..Default::default()
        };
        let kind = Some(proto::call_frame::Kind::Head(head));
        let frame = macula_wire::frame(&proto::CallFrame { call, kind });
        lane.write_all(&frame).await.unwrap();
        written.fetch_add(1, SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_a_flood_honest_peers_are_served() {
    let (provider, _events) = provider().await;
    let endpoint = raw_client();
    // Connections that never introduce themselves, and one with every stream begun and none finished.
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(raw_connection(&endpoint, &provider).await);
    }
    let (begun, _control) = introduced(&endpoint, &provider).await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        let (mut send, recv) = begun.open_bi().await.unwrap();
        send.write_all(&[2, 100, 1]).await.unwrap();
        streams.push((send, recv));
    }
    // Garbage from an unknown address, without pause.
    let garbage = tokio::spawn({
        let to = provider.local_addr();
        async move {
            let socket = tokio::net::UdpSocket::bind(common::loopback()).await.unwrap();
            let mut random = common::proxy::Random::new(9);
            loop {
                let datagram: Vec<u8> = (0..150).flat_map(|_| random.next().to_le_bytes()).collect();
                socket.send_to(&datagram, to).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
    });
    let (greedy, _control) = introduced(&endpoint, &provider).await;
    let written = Arc::new(AtomicUsize::new(0));
    let flood = tokio::spawn(call_and_never_read(greedy.clone(), written.clone()));
    let honest = client().await;
    let connection = connect(&honest, &provider).await.unwrap();
    // Until the greedy one gets nowhere while the honest one is served.
    loop {
        let before = written.load(SeqCst);
        futures::future::join_all((0..300).map(|n| echoes(&connection, vec![1; n]))).await;
        for size in [100_000, 1 << 20] {
            echoes(&connection, vec![2; size]).await;
        }
        assert!(!flood.is_finished(), "the provider takes calls without end");
        if before > 100 && written.load(SeqCst) == before {
            break;
        }
    }
    garbage.abort();
    flood.abort();
    assert_eq!(greedy.close_reason(), None, "reading slowly is no crime for a while");
}

/// A peer that never takes its replies is let go in the end.
#[tokio::test]
async fn a_peer_that_never_reads_its_replies_loses_its_lane() {
    let clock = Clock::stop();
    let (provider, _events) = provider().await;
    let endpoint = raw_client();
    let (greedy, _control) = introduced(&endpoint, &provider).await;
    let written = Arc::new(AtomicUsize::new(0));
    let flood = tokio::spawn(call_and_never_read(greedy.clone(), written.clone()));
    // The raw client's window for replies, 1.25 MB unless it says otherwise, is full; the provider stops writing, then reading.
    loop {
        let before = written.load(SeqCst);
        clock.pass(Duration::from_millis(20)).await;
        if flood.is_finished() || (before > 100 && written.load(SeqCst) == before) {
            break;
        }
    }
    assert!(!flood.is_finished());
    assert_eq!(provider.stats().rejected_frames, 0);
    let ended = async { until("the lane is reset", || flood.is_finished()).await };
    clock.run(Duration::from_secs(1), ended).await;
    flood.await.unwrap_err();
    until("it counts as slow", || provider.stats().slow_streams == 1).await;
    assert_eq!(greedy.close_reason(), None);
    still_serves(&provider).await;
}

/// A peer may send only a little before its HELLO, on any stream, because the provider does not read it yet.
#[tokio::test]
async fn a_stranger_fills_no_memory() {
    let _clock = Clock::stop();
    let (provider, _events) = provider().await;
    let endpoint = raw_client();
    let connection = raw_connection(&endpoint, &provider).await;
    // An introduction that begins, and never ends.
    let (mut control, _heard) = connection.open_bi().await.unwrap();
    control.write_all(&[1, 200, 1]).await.unwrap();
    let mut sent = 3;
    let mut streams = Vec::new();
    for _ in 0..100 {
        let (mut send, recv) = connection.open_bi().await.unwrap();
        let mut turns = 0;
        while turns < 100 {
            match send.write(&[0; 4096]).now_or_never() {
                Some(written) => sent += written.unwrap(),
                None => turns += 1,
            }
            tokio::task::yield_now().await;
        }
        streams.push((send, recv));
    }
    assert!(sent <= 64 * 1024, "{sent} bytes were taken of a stranger");
}

/// Calls that were read together may have large answers each: no more are begun than are held, which is sixteen of the largest.
#[tokio::test]
async fn many_calls_in_one_packet_do_not_make_as_many_large_replies() {
    let clock = Clock::stop();
    let limits = Limits {
        max_message_bytes: 1 << 20,
        ..Limits::default()
    };
    let (handler, _events) = common::Service::new();
    let provider = Endpoint::bind(config().with_limits(limits), handler).await.unwrap();
    let endpoint = raw_client();
    let mut transport = quinn::TransportConfig::default();
    transport.max_concurrent_uni_streams(0_u32.into());
    let mut config = client_tls(Shown::Key(identity()), b"macula/1");
    config.transport_config(Arc::new(transport));
    let connecting = endpoint.connect_with(config, provider.local_addr(), "x").unwrap();
    let connection = connecting.await.unwrap();
    let (mut control, mut heard) = connection.open_bi().await.unwrap();
    control.write_all(&hello(&Realm::default(), 1)).await.unwrap();
    heard.read_chunk(1, true).await.unwrap().unwrap();

    let (mut lane, _replies) = connection.open_bi().await.unwrap();
    let mut bytes = vec![3];
    for call in 1..=200 {
        let head = proto::Head {
            service: "large".into(),
            timeout_us: 60_000_000,
            end: true,
            ..Default::default()
        };
        let kind = Some(proto::call_frame::Kind::Head(head));
        bytes.extend_from_slice(&macula_wire::frame(&proto::CallFrame { call, kind }));
    }
    lane.write_all(&bytes).await.unwrap();
    until("some are taken", || provider.stats().calls_taken >= 16).await;
    clock.pass(Duration::from_secs(1)).await;
    assert_eq!(provider.stats().calls_taken, 16);
    still_serves(&provider).await;
}

/// Calls beyond the limit that the peer was told are refused as not started, on a lane and on streams alike.
#[tokio::test]
async fn calls_beyond_what_a_node_takes_are_refused_as_not_started() {
    let limits = Limits {
        max_concurrent_calls: 4,
        ..Limits::default()
    };
    let head = |call| {
        let head = proto::Head {
            service: "hang".into(),
            timeout_us: 60_000_000,
            end: true,
            ..Default::default()
        };
        let kind = Some(proto::call_frame::Kind::Head(head));
        macula_wire::frame(&proto::CallFrame { call, kind }).to_vec()
    };
    for kind in [2_u8, 3] {
        let (handler, _events) = common::Service::new();
        let provider = Endpoint::bind(config().with_limits(limits), handler).await.unwrap();
        let endpoint = raw_client();
        let (connection, _control) = introduced(&endpoint, &provider).await;
        let mut streams = Vec::new();
        if kind == 3 {
            let calls = (1..=9).flat_map(head);
            let (mut send, recv) = connection.open_bi().await.unwrap();
            send.write_all(&[kind].into_iter().chain(calls).collect::<Vec<_>>())
                .await
                .unwrap();
            streams.push((send, recv));
        } else {
            for _ in 1..=9 {
                let (mut send, recv) = connection.open_bi().await.unwrap();
                send.write_all(&[&[kind][..], &head(0)].concat()).await.unwrap();
                streams.push((send, recv));
            }
        }
        until("all are judged", || {
            let stats = provider.stats();
            stats.calls_taken + stats.calls_refused == 9
        })
        .await;
        assert_eq!((kind, provider.stats().calls_refused), (kind, 5));
        still_serves(&provider).await;
    }
}

/// A peer may open the streams that it was told, before and after its HELLO, and no more.
#[tokio::test]
async fn a_peer_has_no_more_streams_than_it_is_permitted() {
    let clock = Clock::stop();
    let limits = Limits {
        max_streams: 10,
        ..Limits::default()
    };
    let (handler, _events) = common::Service::new();
    let provider = Endpoint::bind(config().with_limits(limits), handler).await.unwrap();
    let endpoint = raw_client();
    for introduces_itself in [false, true] {
        let (connection, _control) = if introduces_itself {
            let (connection, control) = introduced(&endpoint, &provider).await;
            (connection, control)
        } else {
            // An introduction that begins, and never ends.
            let connection = raw_connection(&endpoint, &provider).await;
            let (mut control, _heard) = connection.open_bi().await.unwrap();
            control.write_all(&[1, 200, 1]).await.unwrap();
            (connection, control)
        };
        let mut streams = Vec::new();
        while let Some(opened) = connection.open_bi().now_or_never() {
            let (mut send, recv) = opened.unwrap();
            send.write_all(&[2, 100, 1]).await.unwrap();
            streams.push((send, recv));
            assert!(streams.len() < 10, "the control stream is one of them");
        }
        clock.pass(Duration::from_millis(100)).await;
        assert!(connection.open_bi().now_or_never().is_none());
        assert_eq!(streams.len(), 9);
    }
    still_serves(&provider).await;
}

#[tokio::test]
async fn a_peer_has_no_more_lanes_than_it_needs() {
    let (provider, _events) = provider().await;
    let endpoint = raw_client();
    let (connection, _control) = introduced(&endpoint, &provider).await;
    let mut lanes = Vec::new();
    for _ in 0..20 {
        let (mut send, recv) = connection.open_bi().await.unwrap();
        send.write_all(&[3]).await.unwrap();
        lanes.push((send, recv));
    }
    until("the others are refused", || provider.stats().rejected_frames == 4).await;
    lanes.clear();
    still_serves(&provider).await;
}

/// A client that dials during too many handshakes waits, and is let in once one of them takes too long (X8).
#[tokio::test]
async fn x8_a_handshake_that_does_not_end_gives_way_to_a_client_that_waits() {
    let clock = Clock::stop();
    let limits = Limits {
        max_handshakes: 1,
        ..Limits::default()
    };
    let (handler, _events) = common::Service::new();
    let provider = Endpoint::bind(config().with_limits(limits), handler).await.unwrap();
    let endpoint = raw_client();
    let silent = raw_connection(&endpoint, &provider).await;
    let honest = client().await;
    let step = Duration::from_millis(20);
    let connection = clock.run(step, connect(&honest, &provider)).await.unwrap();
    echoes(&connection, "within the time of the dial").await;
    assert!(provider.stats().rejected_busy >= 1, "it had to wait");
    until("the silent one is let go", || silent.close_reason().is_some()).await;
}

/// The limits on newcomers that the readme names; the tests around this one check the effect of each.
#[test]
fn newcomers_share_as_much_room_as_the_readme_says() {
    let limits = Limits::default();
    let (handshakes, accepted) = (limits.max_handshakes, limits.max_accepted);
    assert_eq!((handshakes, limits.max_accepted_per_peer), (256, 8));
    assert_eq!((limits.max_accepted_per_network, accepted), (1024, 4096));
    assert_eq!(
        (limits.retry_above, Timers::default().connect),
        (64, Duration::from_secs(3))
    );
}

/// A network that has its share makes room among its own, and a call that runs there keeps its connection (X8).
#[tokio::test]
async fn no_network_takes_all_the_room_there_is() {
    let limits = Limits {
        max_accepted_per_network: 1,
        ..Limits::default()
    };
    let (handler, mut events) = common::Service::new();
    let provider = Endpoint::bind(config().with_limits(limits), handler).await.unwrap();
    let (first, second) = (client().await, client().await);
    let elsewhere = config().with_listen(([127, 0, 1, 1], 0).into());
    let elsewhere = Endpoint::bind(elsewhere, NoService).await.unwrap();

    let connection = connect(&first, &provider).await.unwrap();
    let name = common::service("hang");
    let mut call =
        Box::pin(connection.call(macula_transport::CallRequest::new(&name, "").with_timeout(common::PATIENCE)));
    assert!((&mut call).now_or_never().is_none());
    events.recv().await;
    // The provider judges after it has heard the introduction, so the dial itself may succeed.
    if let Ok(connection) = connect(&second, &provider).await {
        until("the connection is closed", || connection.lost().is_some()).await;
    }
    assert_eq!(provider.stats().rejected_busy, 1);
    assert!((&mut call).now_or_never().is_none(), "the first peer stays");
    echoes(&connect(&elsewhere, &provider).await.unwrap(), "another network").await;
}

/// Connections in use on which calls wait for ever do not keep others out: the network that has most gives way (X8).
#[tokio::test]
async fn x8_connections_with_calls_that_wait_do_not_keep_another_network_out() {
    let limits = Limits {
        max_accepted: 3,
        ..Limits::default()
    };
    let (handler, mut events) = common::Service::new();
    let provider = Endpoint::bind(config().with_limits(limits), handler).await.unwrap();
    let mut crowd = Vec::new();
    for _ in 0..3 {
        let endpoint = Endpoint::bind(config().with_listen(([127, 0, 1, 1], 0).into()), NoService)
            .await
            .unwrap();
        let connection = connect(&endpoint, &provider).await.unwrap();
        crowd.push(endpoint);
        tokio::spawn(async move {
            let name = common::service("hang");
            let request = macula_transport::CallRequest::new(&name, "").with_timeout(common::PATIENCE);
            connection.call(request).await
        });
        events.recv().await;
    }
    let honest = client().await;
    echoes(&connect(&honest, &provider).await.unwrap(), "let in").await;
    assert_eq!(provider.pool().stats().evicted, 1);
    let again = client().await;
    let same_network_as_honest = connect(&again, &provider).await;
    assert_eq!(provider.pool().stats().open, 3, "{same_network_as_honest:?}");
}

/// One identity has a limit, whatever addresses it comes from; its newest connections are the ones that count (X8).
#[tokio::test]
async fn x8_a_peer_has_a_limited_number_of_connections() {
    let limits = Limits {
        max_accepted_per_peer: 2,
        ..Limits::default()
    };
    let (handler, _events) = common::Service::new();
    let provider = Endpoint::bind(config().with_limits(limits), handler).await.unwrap();
    let same = identity();
    let mut connections = Vec::new();
    for _ in 0..4 {
        let config = Config::new(same.clone()).with_listen(common::loopback());
        let endpoint = Endpoint::bind(config, NoService).await.unwrap();
        let connection = connect(&endpoint, &provider).await.unwrap();
        echoes(&connection, "newest").await;
        connections.push((endpoint, connection));
        assert!(provider.pool().stats().open <= 2);
    }
}

/// A limit or a time that is meant as none is no reason to fail.
#[tokio::test]
async fn the_largest_limits_and_times_can_be_set() {
    let limits = Limits {
        max_message_bytes: usize::MAX,
        ..Limits::default()
    };
    let pool = macula_transport::PoolConfig {
        idle_timeout: Duration::MAX,
        max_age: Duration::MAX,
        ..macula_transport::PoolConfig::default()
    };
    let timers = Timers {
        connect: Duration::MAX,
        head: Duration::MAX,
        probe_after: Duration::MAX,
        dead_after: Duration::MAX,
        ..Timers::default()
    };
    let with = || config().with_limits(limits).with_pool(pool).with_timers(timers);
    let (handler, _events) = common::Service::new();
    let provider = Endpoint::bind(with(), handler).await.unwrap();
    let client = Endpoint::bind(with(), NoService).await.unwrap();
    echoes(&connect(&client, &provider).await.unwrap(), vec![1; 1 << 20]).await;
}
