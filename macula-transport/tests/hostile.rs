//! Peers that are not what they should be, or send what they must not: rejected, counted, and the node keeps serving.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::{
    net::SocketAddr,
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
    raw::{Shown, client_tls, hello, introduced, raw_client, raw_connection, raw_key},
    until,
};
use futures::FutureExt as _;
use macula_transport::{Config, DialError, Endpoint, HelloError, Identity, Limits, Lost, NoService, Stats, Timers};
use macula_wire::{Realm, proto};
use quinn::crypto::rustls::QuicServerConfig;
use rustls::pki_types::PrivateKeyDer;

async fn still_serves(provider: &Endpoint) {
    let client = client().await;
    echoes(&connect(&client, provider).await.unwrap(), "still here").await;
}

async fn rejected(provider: &Endpoint, shown: Shown, alpn: &[u8]) {
    let before = provider.stats().rejected_handshakes;
    let endpoint = raw_client();
    let connecting = endpoint
        .connect_with(client_tls(shown, alpn), provider.local_addr(), "x")
        .unwrap();
    // A TLS 1.3 client may believe it is connected before the server has judged it.
    match connecting.await {
        Ok(connection) => drop(connection.closed().await),
        Err(error) => drop(error),
    }
    until("the failed handshake is counted", || {
        provider.stats().rejected_handshakes > before
    })
    .await;
    still_serves(provider).await;
}

#[tokio::test]
async fn a_peer_without_a_key_is_rejected() {
    rejected(&provider().await.0, Shown::Nothing, b"macula/1").await;
}

#[tokio::test]
async fn a_peer_with_an_x509_certificate_is_rejected() {
    rejected(&provider().await.0, Shown::X509, b"macula/1").await;
}

#[tokio::test]
async fn a_peer_that_does_not_own_the_key_it_shows_is_rejected() {
    let stolen = Shown::Stolen {
        shown: identity(),
        secret: identity(),
    };
    rejected(&provider().await.0, stolen, b"macula/1").await;
}

#[tokio::test]
async fn a_peer_of_another_protocol_is_rejected() {
    rejected(&provider().await.0, Shown::Key(identity()), b"h3").await;
}

fn server(tls: rustls::ServerConfig) -> quinn::Endpoint {
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    quinn::Endpoint::server(config, common::loopback()).unwrap()
}

fn server_builder() -> rustls::ConfigBuilder<rustls::ServerConfig, rustls::server::WantsServerCert> {
    rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
}

async fn dial_fails(server: quinn::Endpoint, node: &Identity) -> DialError {
    let address: SocketAddr = server.local_addr().unwrap();
    let accepting = tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            if let Ok(connection) = incoming.await {
                connection.closed().await;
            }
        }
    });
    let client = client().await;
    let error = client
        .pool()
        .get(&node.node_id(), &[address.try_into().unwrap()])
        .await
        .unwrap_err();
    accepting.abort();
    error
}

#[tokio::test]
async fn a_dialed_peer_with_an_x509_certificate_is_refused() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let mut tls = server_builder()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    tls.alpn_protocols = vec![b"macula/1".to_vec()];
    let error = dial_fails(server(tls), &identity()).await;
    assert!(
        matches!(
            error,
            DialError::Refused {
                source: Lost::Transport(_),
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_dialed_peer_that_does_not_own_its_key_is_refused() {
    let shown = identity();
    let resolver = rustls::server::AlwaysResolvesServerRawPublicKeys::new(raw_key(&shown, &identity()));
    let mut tls = server_builder().with_cert_resolver(Arc::new(resolver));
    tls.alpn_protocols = vec![b"macula/1".to_vec()];
    let error = dial_fails(server(tls), &shown).await;
    assert!(
        matches!(
            error,
            DialError::Refused {
                source: Lost::Transport(_),
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_dialed_peer_of_another_protocol_is_refused() {
    let shown = identity();
    let resolver = rustls::server::AlwaysResolvesServerRawPublicKeys::new(raw_key(&shown, &shown));
    let mut tls = server_builder().with_cert_resolver(Arc::new(resolver));
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let error = dial_fails(server(tls), &shown).await;
    assert!(
        matches!(
            error,
            DialError::Refused {
                source: Lost::Transport(_),
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn peers_of_another_realm_part_with_an_error_on_both_sides() {
    let (provider, _events) = provider().await;
    let stranger = Endpoint::bind(config().with_realm("elsewhere".parse().unwrap()), NoService)
        .await
        .unwrap();
    let error = connect(&stranger, &provider).await.unwrap_err();
    assert!(
        matches!(
            error,
            DialError::Hello {
                source: HelloError::Realm,
                ..
            }
        ),
        "{error:?}"
    );
    until("the provider counts it", || provider.stats().rejected_hellos == 1).await;
    still_serves(&provider).await;
}

#[tokio::test]
async fn peers_of_another_version_part_with_an_error_on_both_sides() {
    let (provider, _events) = provider().await;
    let endpoint = raw_client();
    let connection = raw_connection(&endpoint, &provider).await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&hello(&Realm::default(), 2)).await.unwrap();
    let quinn::ConnectionError::ApplicationClosed(close) = connection.closed().await else {
        panic!("not closed")
    };
    assert!(String::from_utf8_lossy(&close.reason).contains("version 2"), "{close}");
    until("the provider counts it", || provider.stats().rejected_hellos == 1).await;
    still_serves(&provider).await;
}

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

/// Calls on a lane, over and over, whose replies nobody reads. Ends only if the provider takes calls without end.
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
    // Datagrams of nobody, all the time.
    let garbage = tokio::spawn({
        let to = provider.local_addr();
        async move {
            let socket = tokio::net::UdpSocket::bind(common::loopback()).await.unwrap();
            let mut random = common::proxy::Random(9);
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

/// Before it has introduced itself a peer may send a little, whatever it opens: nobody reads it.
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

/// Calls that were read together may have large answers each: no more are begun than are held.
#[tokio::test]
async fn many_calls_in_one_packet_do_not_make_as_many_large_replies() {
    let clock = Clock::stop();
    let (provider, _events) = provider().await;
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

/// Whoever comes when too many handshakes are under way is told so at once, and served when there is room.
#[tokio::test]
async fn more_handshakes_than_are_taken_are_refused() {
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
    let error = connect(&honest, &provider).await.unwrap_err();
    assert!(matches!(error, DialError::Refused { .. }), "{error:?}");
    assert_eq!(provider.stats().rejected_busy, 1);
    clock.pass(Timers::default().connect * 2).await;
    until("the silent one is let go", || silent.close_reason().is_some()).await;
    still_serves(&provider).await;
}

/// One address fills neither the table of handshakes nor that of connections, so that others find room.
#[tokio::test]
async fn no_network_takes_all_the_room_there_is() {
    let clock = Clock::stop();
    let limits = Limits {
        max_accepted_per_network: 1,
        max_handshakes_per_network: 1,
        ..Limits::default()
    };
    let (handler, mut events) = common::Service::new();
    let provider = Endpoint::bind(config().with_limits(limits), handler).await.unwrap();
    let (first, second) = (client().await, client().await);
    let elsewhere = config().with_listen(([127, 0, 0, 2], 0).into());
    let elsewhere = Endpoint::bind(elsewhere, NoService).await.unwrap();

    let endpoint = raw_client();
    let silent = raw_connection(&endpoint, &provider).await;
    let error = connect(&second, &provider).await.unwrap_err();
    assert!(matches!(error, DialError::Refused { .. }), "{error:?}");
    assert_eq!(provider.stats().rejected_busy, 1);
    echoes(&connect(&elsewhere, &provider).await.unwrap(), "another network").await;
    silent.close(0_u32.into(), b"");
    until("the silent one is let go", || provider.stats().rejected_hellos == 1).await;

    let connection = connect(&first, &provider).await.unwrap();
    let name = common::service("hang");
    let mut call =
        Box::pin(connection.call(macula_transport::CallRequest::new(&name, "").with_timeout(common::PATIENCE)));
    assert!((&mut call).now_or_never().is_none());
    events.recv().await;
    clock.pass(Timers::default().connect).await;
    // The provider judges after it has heard the introduction, so the dial itself may succeed.
    if let Ok(connection) = connect(&second, &provider).await {
        until("the connection is closed", || connection.lost().is_some()).await;
    }
    assert_eq!(provider.stats().rejected_busy, 2);
    assert!((&mut call).now_or_never().is_none(), "who was there first stays");
    echoes(&connect(&elsewhere, &provider).await.unwrap(), "another network").await;
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
