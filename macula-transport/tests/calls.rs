//! Calls over real sockets: what comes back, what is cancelled, what is refused.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use common::{PATIENCE, Seen, Service, client, config, connect, echoes, provider, service, until};
use macula_transport::{
    CallError, CallRequest, Endpoint, Limits, Metadata, NoService, NotSent, Protocol, RequestError, Unknown,
};
use macula_wire::StatusCode;

#[tokio::test]
async fn a_call_is_answered_with_what_the_handler_says() {
    let (provider, _events) = provider().await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    for size in [0, 1, 64, 1000, 16 * 1024, 16 * 1024 + 1, 100_000, 4 << 20] {
        echoes(&connection, vec![size as u8; size]).await;
    }
    let metadata: Metadata = [("traceparent", "00-a"), ("traceparent", "00-b")].into_iter().collect();
    let name = service("echo");
    let request = CallRequest::new(&name, "x").with_metadata(&metadata);
    let reply = connection.call(request).await.unwrap();
    assert_eq!(reply.metadata, metadata);
    assert_eq!(metadata.get("traceparent").unwrap(), "00-a");

    let reply = connection.call(CallRequest::new(&service("fail"), "")).await.unwrap();
    assert_eq!((reply.status, reply.message()), (StatusCode::NotFound, "nothing here"));
    let reply = connection.call(CallRequest::new(&service("whoami"), "")).await.unwrap();
    assert_eq!(reply.body, client.node_id().to_string());
}

#[tokio::test]
async fn calls_go_both_ways_over_one_connection() {
    let (a, _events) = provider().await;
    let (b, _events) = provider().await;
    let there = connect(&a, &b).await.unwrap();
    echoes(&there, "there").await;
    until("the accepting side pools the connection", || {
        b.pool().open(&a.node_id()).is_some()
    })
    .await;
    let back = connect(&b, &a).await.unwrap();
    echoes(&back, "and back").await;
    assert_eq!((a.pool().stats().opened, b.pool().stats().opened), (1, 0));
}

#[tokio::test]
async fn f5_a_refusal_says_that_the_call_was_not_started() {
    let (provider, _events) = provider().await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    let error = connection
        .call(CallRequest::new(&service("refuse"), ""))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            CallError::Refused {
                status: StatusCode::Unavailable,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn f7_an_attempt_ends_at_its_timeout_and_the_handler_is_dropped() {
    let (provider, mut events) = provider().await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    let name = service("hang");
    let request = CallRequest::new(&name, "").with_timeout(Duration::from_millis(50));
    let error = connection.call(request).await.unwrap_err();
    assert!(matches!(error, CallError::Unknown(Unknown::Timeout(_))), "{error}");
    assert_eq!(events.recv().await, Some(Seen::Started));
    assert_eq!(events.recv().await, Some(Seen::Dropped));
    echoes(&connection, "the connection is as good as before").await;
}

#[tokio::test]
async fn f7_a_call_that_began_before_it_was_made_has_only_what_is_left_of_its_time() {
    let (provider, mut events) = provider().await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    let name = service("hang");
    let made = std::time::Instant::now();
    let Some(began) = made.checked_sub(PATIENCE - Duration::from_millis(50)) else {
        return; // the clock itself is younger
    };
    let request = CallRequest::new(&name, "").with_timeout(PATIENCE).with_start(began);
    let error = connection.call(request).await.unwrap_err();
    assert!(
        matches!(error, CallError::Unknown(Unknown::Timeout(PATIENCE))),
        "{error}"
    );
    assert!(made.elapsed() < PATIENCE, "it was given its whole time again");
    assert_eq!(events.recv().await, Some(Seen::Started));
}

#[tokio::test]
async fn f8_dropping_a_call_cancels_it_at_the_provider() {
    let (provider, mut events) = provider().await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    let name = service("hang");
    let mut call = Box::pin(connection.call(CallRequest::new(&name, "").with_timeout(PATIENCE)));
    tokio::select! {
        result = &mut call => panic!("a hanging call ended: {result:?}"),
        event = events.recv() => assert_eq!(event, Some(Seen::Started)),
    }
    drop(call);
    assert_eq!(events.recv().await, Some(Seen::Dropped));
    until("the drop is counted", || provider.stats().calls_dropped == 1).await;
    echoes(&connection, "the connection is as good as before").await;
}

/// Z3: metadata above the limits that every node has travels between nodes that both allow it, in both directions, on a stream of the
/// call's own and beside others.
#[tokio::test]
async fn z3_metadata_goes_up_to_the_limits_of_both_sides() {
    let limits = Limits {
        max_head_bytes: 256 << 10,
        max_metadata_entries: 1000,
        ..Limits::default()
    };
    let (handler, mut events) = Service::new();
    let wide = Endpoint::bind(config().with_limits(limits), handler).await.unwrap();
    let client = Endpoint::bind(config().with_limits(limits), NoService).await.unwrap();
    let many: Metadata = (0..1000).map(|at| (format!("key-{at}"), vec![7; 200])).collect();
    let (echo, hang) = (service("echo"), service("hang"));
    let asked = || CallRequest::new(&echo, "x").with_metadata(&many).with_timeout(PATIENCE);

    let connection = connect(&client, &wide).await.unwrap();
    let alone = connection.call(asked()).await.unwrap();
    assert_eq!((alone.status, alone.metadata == many), (StatusCode::Ok, true));
    let mut running = Box::pin(connection.call(CallRequest::new(&hang, "").with_timeout(PATIENCE)));
    tokio::select! {
        result = &mut running => panic!("a hanging call ended: {result:?}"),
        _ = events.recv() => {}
    }
    for _ in 0..2 {
        let beside = connection.call(asked()).await.unwrap();
        assert_eq!((beside.status, beside.metadata == many), (StatusCode::Ok, true));
        echoes(&connection, "a small one").await;
    }
    drop(running);

    // A peer that takes less is not sent the call, and another may be.
    let (narrow, _events) = provider().await;
    let error = connect(&client, &narrow)
        .await
        .unwrap()
        .call(asked())
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            CallError::NotSent(NotSent::HeadTooLarge {
                entries: 1000,
                max_entries: 128,
                ..
            })
        ),
        "{error}"
    );
    let back = connect(&narrow, &client)
        .await
        .unwrap()
        .call(asked())
        .await
        .unwrap_err();
    assert!(
        matches!(back, CallError::HeadTooLarge { max_entries: 128, .. }),
        "{back}"
    );
}

#[tokio::test]
async fn messages_beyond_the_limit_are_refused_where_they_are_made() {
    let (provider, _events) = provider().await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    let name = service("echo");
    let request = CallRequest::new(&name, vec![0; (4 << 20) + 1]);
    let error = connection.call(request).await.unwrap_err();
    assert!(matches!(error, CallError::TooLarge { limit: 4_194_304, .. }), "{error}");
    assert!(error.to_string().contains("4194304"), "{error}");

    let metadata: Metadata = [("k", vec![0; 17 * 1024])].into_iter().collect();
    let name = service("echo");
    let request = CallRequest::new(&name, "").with_metadata(&metadata);
    assert!(matches!(
        connection.call(request).await,
        Err(CallError::HeadTooLarge { .. })
    ));

    let reply = connection.call(CallRequest::new(&service("huge"), "")).await.unwrap();
    assert_eq!(
        reply.status,
        StatusCode::ResourceExhausted,
        "a reply that is too large becomes the error that says so"
    );
    let reply = connection.call(CallRequest::new(&service("large"), "")).await.unwrap();
    assert_eq!(reply.body, vec![7; 1 << 20]);
}

#[tokio::test]
async fn a_panic_fails_its_call_and_no_other() {
    let (provider, _events) = provider().await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    for name in ["panic", "panic-later"] {
        let reply = connection.call(CallRequest::new(&service(name), "")).await.unwrap();
        assert_eq!(reply.status, StatusCode::Internal);
    }
    assert_eq!(provider.stats().handler_panics, 2);
    echoes(&connection, "still here").await;
}

#[tokio::test]
async fn other_protocols_carry_opaque_requests() {
    let (provider, _events) = provider().await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    for size in [0, 1, 16 * 1024, 64 * 1024] {
        let body = Bytes::from(vec![3; size]);
        assert_eq!(
            connection.request(Protocol::Dht, body.clone(), PATIENCE).await.unwrap(),
            body
        );
    }
    let declined = connection.request(Protocol::Dht, "decline".into(), PATIENCE).await;
    assert!(matches!(declined, Err(RequestError::Declined)));
    let large = connection
        .request(Protocol::Dht, vec![0; 64 * 1024 + 1].into(), PATIENCE)
        .await;
    assert!(matches!(large, Err(RequestError::TooLarge { .. })));
}

/// P4: every reply reaches the call it answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_replies_match_their_calls() {
    let (provider, _events) = provider().await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    let calls = (0..2000_u32).map(|n| {
        let connection = connection.clone();
        async move {
            let body = n.to_le_bytes().repeat(1 + n as usize % 3000);
            echoes(&connection, body).await;
            n
        }
    });
    let done: BTreeSet<_> = futures::future::join_all(calls).await.into_iter().collect();
    assert_eq!(done.len(), 2000);
    assert_eq!(provider.stats().calls_taken, 2000);
}

#[tokio::test]
async fn n4_a_draining_node_refuses_new_calls_and_finishes_running_ones() {
    let (handler, mut events) = common::Service::new();
    let (release, gate) = tokio::sync::watch::channel(false);
    let provider = common::node(Gated { handler, gate }).await;
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    let (running, extra) = (connection.clone(), connection.clone());
    let running = tokio::spawn(async move {
        running
            .call(CallRequest::new(&service("gated"), "").with_timeout(PATIENCE))
            .await
    });
    assert_eq!(events.recv().await, Some(Seen::Started));
    let shutdown = async { provider.shutdown(PATIENCE).await };
    let rest = async {
        let refused = loop {
            match extra
                .call(CallRequest::new(&service("echo"), "").with_timeout(PATIENCE))
                .await
            {
                Ok(_) => tokio::task::yield_now().await,
                Err(error) => break error,
            }
        };
        assert!(
            matches!(
                refused,
                CallError::Refused { .. } | CallError::NotSent(NotSent::GoingAway)
            ),
            "{refused}: {refused:?}"
        );
        release.send(true).unwrap();
        running.await.unwrap().unwrap()
    };
    let ((), reply) = tokio::join!(shutdown, rest);
    assert_eq!(reply.body, "finished");
}

struct Gated {
    handler: common::Service,
    gate: tokio::sync::watch::Receiver<bool>,
}

impl macula_transport::Handler for Gated {
    fn call(
        &self,
        call: macula_transport::IncomingCall,
    ) -> futures::future::BoxFuture<'static, macula_transport::Reply> {
        if call.service().as_str() != "gated" {
            return self.handler.call(call);
        }
        let (mut gate, seen) = (self.gate.clone(), self.handler.seen.clone());
        Box::pin(async move {
            let _ = seen.send(Seen::Started);
            gate.wait_for(|&open| open).await.unwrap();
            macula_transport::Reply::ok("finished")
        })
    }
}

/// A node runs no more calls of a peer than it says. The peer knows the limit and sends no more: calls beyond it wait, and are not sent
/// when their time is up.
#[tokio::test]
async fn f5_calls_beyond_what_a_peer_takes_wait_and_are_not_sent() {
    let limits = Limits {
        max_concurrent_calls: 4,
        ..Limits::default()
    };
    let (handler, mut events) = common::Service::new();
    let provider = Endpoint::bind(common::config().with_limits(limits), handler)
        .await
        .unwrap();
    let client = client().await;
    let connection = connect(&client, &provider).await.unwrap();
    let hang = |timeout| {
        let connection = connection.clone();
        tokio::spawn(async move {
            let name = service("hang");
            connection.call(CallRequest::new(&name, "").with_timeout(timeout)).await
        })
    };
    let running: Vec<_> = (0..4).map(|_| hang(PATIENCE)).collect();
    for _ in &running {
        assert_eq!(events.recv().await, Some(Seen::Started));
    }
    let error = hang(Duration::from_millis(20)).await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::NotSent(NotSent::NoCredit)), "{error:?}");
    let waiting = {
        let connection = connection.clone();
        tokio::spawn(async move { echoes(&connection, "in its turn").await })
    };
    running[0].abort();
    waiting.await.unwrap();
    let stats = provider.stats();
    assert_eq!((stats.calls_taken, stats.calls_refused), (5, 0));
}
