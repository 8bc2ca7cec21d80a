//! Helpers of the tests: nodes on loopback, and waiting for a condition.
#![allow(dead_code, reason = "each test binary uses its part of this")]

pub(crate) mod clock;
pub(crate) mod log;
pub(crate) mod proxy;
pub(crate) mod raw;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use macula_transport::{
    CallRequest, Config, Connection, DialError, Endpoint, Handler, Identity, IncomingCall, NoService, PeerInfo,
    Protocol, Reply, Role,
};
use macula_wire::{ServiceName, StatusCode};
use tokio::sync::mpsc;

/// Longer than anything here takes, on any machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn identity() -> Identity {
    Identity::generate().unwrap()
}

pub(crate) fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

pub(crate) fn config() -> Config {
    Config::new(identity()).with_role(Role::Node).with_listen(loopback())
}

pub(crate) async fn node(handler: impl Handler) -> Endpoint {
    Endpoint::bind(config(), handler).await.unwrap()
}

pub(crate) async fn client() -> Endpoint {
    node(NoService).await
}

pub(crate) fn at(endpoint: &Endpoint) -> [macula_wire::Address; 1] {
    [endpoint.local_addr().try_into().unwrap()]
}

pub(crate) async fn connect(from: &Endpoint, to: &Endpoint) -> Result<Connection, DialError> {
    from.pool().get(&to.node_id(), &at(to)).await
}

pub(crate) fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

/// Calls `echo` and expects `body` back.
pub(crate) async fn echoes(connection: &Connection, body: impl Into<Bytes>) {
    let body = body.into();
    let reply = connection
        .call(CallRequest::new(&service("echo"), body.clone()).with_timeout(PATIENCE))
        .await
        .unwrap();
    assert_eq!((reply.status, reply.body == body), (StatusCode::Ok, true));
}

/// Waits until `condition` holds. Tokio's clock may stand still.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "never happened: {what}");
        tokio::task::yield_now().await;
    }
}

/// An event of a call at a [`Service`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    Started,
    Dropped,
}

/// Answers `echo` with the request, `fail` with an error, `hang` never, `panic` by panicking; `whoami` with the caller's id.
pub(crate) struct Service {
    pub(crate) seen: mpsc::UnboundedSender<Seen>,
}

impl Service {
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Seen>) {
        let (seen, events) = mpsc::unbounded_channel();
        (Self { seen }, events)
    }
}

pub(crate) struct Watched(pub(crate) mpsc::UnboundedSender<Seen>);

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.0.send(Seen::Dropped);
    }
}

impl Handler for Service {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        match call.service().as_str() {
            "echo" => {
                let metadata = call.metadata().clone();
                std::future::ready(Reply::ok(call.into_body()).with_metadata(metadata)).boxed()
            }
            "fail" => std::future::ready(Reply::error(StatusCode::NotFound, "nothing here")).boxed(),
            "refuse" => std::future::ready(Reply::refused(StatusCode::Unavailable, "not now")).boxed(),
            "whoami" => std::future::ready(Reply::ok(call.peer().node_id.to_string())).boxed(),
            "panic" => panic!("a handler may panic"),
            "panic later" | "panic-later" => async {
                tokio::task::yield_now().await;
                panic!("a handler may panic")
            }
            .boxed(),
            "huge" => std::future::ready(Reply::ok(vec![0; 5 << 20])).boxed(),
            "large" => std::future::ready(Reply::ok(vec![7; 1 << 20])).boxed(),
            "hang" => {
                let seen = self.seen.clone();
                async move {
                    let _watched = Watched(seen.clone());
                    let _ = seen.send(Seen::Started);
                    std::future::pending().await
                }
                .boxed()
            }
            _ => std::future::ready(Reply::refused(StatusCode::Unimplemented, "no such service")).boxed(),
        }
    }

    fn request(&self, _: &Arc<PeerInfo>, _: Protocol, body: Bytes) -> BoxFuture<'static, Option<Bytes>> {
        std::future::ready((body != "decline").then_some(body)).boxed()
    }
}

pub(crate) async fn provider() -> (Endpoint, mpsc::UnboundedReceiver<Seen>) {
    let (service, events) = Service::new();
    (node(service).await, events)
}

/// Asserts that the provider serves a new client.
pub(crate) async fn still_serves(provider: &Endpoint) {
    let client = client().await;
    echoes(&connect(&client, provider).await.unwrap(), "still here").await;
}
