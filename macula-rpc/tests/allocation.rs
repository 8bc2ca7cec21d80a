//! Observation is free without a subscriber and a recorder: no span is made, no number is kept, and neither allocates. A call allocates
//! as often with the feature `metrics` as without it, and in a closed realm as often as in an open one (A8).
//!
//! This is a process of its own without a test harness, because the counter counts the allocations of all threads. Caller and provider
//! share one thread.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "it reports what it measured, as a test runner would, and a failed unwrap fails the test"
)]

use std::alloc::System;

use bytes::Bytes;
use futures::future::BoxFuture;
use macula_rpc::{Client, Provider, Request, Server, ServiceName, StaticResolver, Status};
use macula_transport::{Access, CallRequest, Config, Endpoint, Handler, Identity, IncomingCall, NoService, Reply};
use macula_wire::{Grant, GrantRole, Issue, NodeId, Patterns, Realm, RealmKey, RealmName, SecretKey, Signer as _};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Calls of a batch, and batches. Some batches hold QUIC's occasional work; the smallest holds only the calls.
const CALLS: usize = 100;
const BATCHES: usize = 40;

/// How often the calls of a batch allocate.
async fn allocations(call: impl AsyncFn()) -> usize {
    let mut least = usize::MAX;
    for _ in 0..BATCHES {
        let region = Region::new(ALLOCATOR);
        for _ in 0..CALLS {
            call().await;
        }
        let change = region.change();
        least = least.min(change.allocations + change.reallocations);
    }
    least
}

/// Allocations of a call over those of the bare transport. At the server: the handler's future.
const SERVER: usize = 1;
/// At the client: nothing.
const CLIENT: usize = 0;
/// Of a call that needs no network: the look into its own process, and the handler's future.
const HERE: usize = 2;

/// How often a call allocates, in all calls of a batch.
struct Measured {
    /// Of the bare transport, at both sides.
    bare: usize,
    /// The same to a [`Server`].
    served: usize,
    /// The same from a [`Client`].
    called: usize,
    /// Of a [`Client`], of a service of its own process.
    here: usize,
}

/// The bare transport's echo.
struct Bare;

impl Handler for Bare {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        Box::pin(std::future::ready(Reply::ok(call.into_body())))
    }
}

/// A node's access to the open realm, or to a closed one, with a grant of an issuer.
fn access(node_id: NodeId, closed: bool) -> Access {
    if !closed {
        return Access::new(Realm::default(), node_id);
    }
    let (key, issuer) = (RealmKey::from_bytes(&[9; 32]), SecretKey::from_bytes(&[8; 32]));
    let realm = key.realm(RealmName::default());
    let access = Access::new(realm.clone(), node_id);
    let day = access.now()..=access.now() + 24 * 60 * 60;
    let issue = Issue::new(GrantRole::Node, Patterns::all(), Patterns::all());
    let own = Grant::new(&realm, issuer.node_id(), day.clone()).with_issue(issue);
    let own = own.sign(&key).unwrap().verify(&realm, access.now()).unwrap();
    let services = Patterns::from_iter(["mail.in".parse().unwrap(), "api.*".parse().unwrap()]);
    let grant = Grant::new(&realm, node_id, day)
        .with_provide(services.clone())
        .with_call(services);
    access.set_grant(&grant.issue(&own, &issuer).unwrap()).unwrap();
    access
}

async fn node(handler: impl Handler, closed: bool) -> (Endpoint, Provider) {
    let identity = Identity::generate().unwrap();
    let access = access(identity.node_id(), closed);
    let config = Config::new(identity)
        .with_access(access)
        .with_listen("127.0.0.1:0".parse().unwrap());
    let endpoint = Endpoint::bind(config, handler).await.unwrap();
    let provider = Provider::new(endpoint.node_id(), [endpoint.local_addr().try_into().unwrap()]);
    (endpoint, provider)
}

async fn measure(closed: bool) -> Measured {
    let (name, local): (ServiceName, ServiceName) = ("api.echo".parse().unwrap(), "api.here".parse().unwrap());
    let (server, here) = (Server::new(), Server::new());
    let echo = async |request: Request| Ok::<_, Status>(request.into_payload());
    server.serve(name.clone(), echo).unwrap();
    here.serve(local.clone(), echo).unwrap();
    let (_bare, bare) = node(Bare, closed).await;
    let (_served, served) = node(server, closed).await;
    let (endpoint, _) = node(NoService, closed).await;
    let directory = StaticResolver::new().with_service(name.clone(), [served.clone()]);
    let client = Client::builder(&endpoint, directory).local_first(here).build();
    let connection = async |to: &Provider| endpoint.pool().get(&to.node_id, &to.endpoints).await.unwrap();
    let (bare, served) = (connection(&bare).await, connection(&served).await);

    let body = Bytes::from_static(&[7; 64]);
    let request = || CallRequest::new(&name, body.clone());
    Measured {
        bare: allocations(async || drop(bare.call(request()).await.unwrap())).await,
        served: allocations(async || drop(served.call(request()).await.unwrap())).await,
        called: allocations(async || drop(client.call(&name, body.clone()).await.unwrap())).await,
        here: allocations(async || drop(client.call(&local, body.clone()).await.unwrap())).await,
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let silent = runtime.block_on(measure(false));
    // Whole allocations: QUIC's occasional ones are less than one a call.
    let a_call = |more: usize, less: usize| more.saturating_sub(less) / CALLS;
    let (server, client, here) = (
        a_call(silent.served, silent.bare),
        a_call(silent.called, silent.served),
        a_call(silent.here, 0),
    );
    assert!(server <= SERVER, "{server} at the server");
    assert_eq!(client, CLIENT, "at the client");
    assert!(here <= HERE, "{here} in this process");
    println!(
        "test free_when_unobserved ... ok: {server} at the server, {client} at the client, {here} in this process"
    );

    let closed = runtime.block_on(measure(true));
    let more = [
        a_call(closed.bare, silent.bare),
        a_call(closed.served, silent.served),
        a_call(closed.called, silent.called),
        a_call(closed.here, silent.here),
    ];
    assert_eq!(more, [0; 4], "more in a closed realm: bare, served, called, here");
    println!("test a8_a_call_in_a_closed_realm_allocates_no_more ... ok");

    // A subscriber that formats spans allocates, which shows that the counter sees spans.
    let subscriber = tracing_subscriber::fmt().with_writer(std::io::sink).finish();
    let watched = tracing::subscriber::with_default(subscriber, || runtime.block_on(measure(false)));
    assert!(watched.served > silent.served && watched.called > silent.called && watched.here > silent.here);
    println!(
        "test a_subscriber_is_what_costs ... ok: {} at the server, {} at the client, {} in this process",
        a_call(watched.served, watched.bare),
        a_call(watched.called, watched.served),
        a_call(watched.here, 0),
    );
}
