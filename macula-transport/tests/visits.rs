//! Visits: one request of a peer that need not be a member, and nothing else (A7).
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod common;

use bytes::Bytes;
use common::{
    PATIENCE, at, client, identity, node, provider,
    raw::{Shown, client_tls, hello, raw_client},
    still_serves, until,
};
use futures::future::{BoxFuture, FutureExt as _};
use macula_transport::{DialError, Handler, IncomingCall, MAX_VISIT_BYTES, Reply, VisitError, Visitor};
use macula_wire::{Realm, StatusCode};

/// Tells visitors their node id, and serves no call.
struct Host;

impl Handler for Host {
    fn call(&self, _: IncomingCall) -> BoxFuture<'static, Reply> {
        std::future::ready(Reply::refused(StatusCode::Unimplemented, "no calls")).boxed()
    }

    fn visit(&self, visitor: Visitor, body: Bytes) -> BoxFuture<'static, Option<Bytes>> {
        assert_ne!(body, "panic", "a handler may panic");
        let told = format!("{} {}", visitor.node_id, String::from_utf8_lossy(&body));
        std::future::ready((body != "decline").then(|| told.into())).boxed()
    }
}

#[tokio::test]
async fn a7_a_visitor_is_known_by_its_proven_key_and_leaves_no_connection() {
    let (host, visitor) = (node(Host).await, client().await);
    for expected in [Some(host.node_id()), None] {
        let (found, reply) = visitor.visit(expected, &at(&host), "hello".into()).await.unwrap();
        assert_eq!(found, host.node_id());
        assert_eq!(reply, format!("{} hello", visitor.node_id()));
    }
    assert_eq!((host.stats().visits, host.stats().connections), (2, 0));
    assert_eq!(visitor.stats().connections, 0);
}

#[tokio::test]
async fn a7_a_visitor_is_told_when_the_door_is_shut() {
    let (host, (closed, _), visitor) = (node(Host).await, provider().await, client().await);
    let visit = async |to: &macula_transport::Endpoint, body: Bytes| {
        visitor.visit(Some(to.node_id()), &at(to), body).await.unwrap_err()
    };
    assert!(matches!(visit(&host, "decline".into()).await, VisitError::Declined));
    assert!(matches!(visit(&closed, "hello".into()).await, VisitError::Declined));
    assert!(matches!(visit(&host, "panic".into()).await, VisitError::Declined));
    let large = vec![0; MAX_VISIT_BYTES + 1].into();
    assert!(matches!(visit(&host, large).await, VisitError::TooLarge(_)));
    let other = visitor.visit(Some(closed.node_id()), &at(&host), "hello".into()).await;
    assert!(matches!(other, Err(VisitError::Dial(DialError::WrongNode { .. }))));
    assert_eq!((host.stats().rejected_visits, host.stats().visits), (2, 0));
}

/// A peer of its own code, with the visitors' protocol: no introduction and no call gets through, and a large request is not read.
#[tokio::test]
async fn a7_a_visitors_connection_reaches_nothing_but_the_door() {
    let (provider, _events) = provider().await;
    let call = [&[2_u8][..], b"\x06\x0a\x04echo"].concat();
    let large = [&[0xff, 0xff, 0x03][..], &vec![0; 65_535]].concat();
    for opening in [hello(&Realm::default(), 1), call, large] {
        let before = provider.stats().rejected_visits;
        let endpoint = raw_client();
        let config = client_tls(Shown::Key(identity()), b"macula-visit/1");
        let visit = endpoint
            .connect_with(config, provider.local_addr(), "x")
            .unwrap()
            .await
            .unwrap();
        let (mut send, mut recv) = visit.open_bi().await.unwrap();
        // The host may close as soon as it has read the length.
        let _ = send.write_all(&opening).await;
        let heard = tokio::time::timeout(PATIENCE, recv.read_to_end(1024)).await.unwrap();
        assert!(!matches!(&heard, Ok(bytes) if !bytes.is_empty()), "{heard:?}");
        until("the visit is counted", || {
            provider.stats().rejected_visits == before + 1
        })
        .await;
    }
    assert_eq!(provider.stats().connections, 0);
    still_serves(&provider).await;
}
