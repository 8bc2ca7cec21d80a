//! A closed realm of whole nodes, and in it a member gone bad, which has a grant, connections and a directory node of its own (A3 to A7).
//!
//! What it does without right is denied, counted, and named in the log. What strangers say in their introduction is tested byte by byte in
//! macula-transport, `tests/hostile_member.rs`.
#![cfg(all(feature = "admin", feature = "cli", feature = "ingress", feature = "testing"))]
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod attacker;
mod calls;
mod ingress;
mod log;
mod orders;
mod records;

use std::{net::SocketAddr, time::Duration};

use macula_node::{
    Address, BootstrapAddr, Bytes, Chain, Grant, GrantRole, Identity, Issue, Issuer, Membership, Node, NodeBuilder,
    Pattern, Patterns, Realm, RealmKey, RealmName, Request, Status,
};
use macula_transport::testing::Network;
use macula_wire::SecretKey;

/// The wall clock of the network in memory at its start.
const START: u64 = 1_700_000_000;
const DAY: u64 = 24 * 60 * 60;
/// A service that every member may call and provide, and one that the attacker may neither call nor provide.
const OPEN: &str = "demo.echo";
const SAFE: &str = "shop.pay";
/// The bad member.
const BAD: u8 = 66;

fn key() -> RealmKey {
    RealmKey::from_bytes(&[9; 32])
}

fn realm() -> Realm {
    key().realm(RealmName::new("shop").unwrap())
}

fn identity(n: u8) -> Identity {
    Identity::from_secret(SecretKey::from_bytes(&[n; SecretKey::LEN]))
}

fn addr(n: u8) -> SocketAddr {
    ([10, 0, n, 1], 9443).into()
}

fn at(n: u8) -> BootstrapAddr {
    Address::try_from(addr(n)).unwrap().into()
}

fn patterns(texts: &[&str]) -> Patterns {
    texts.iter().map(|text| text.parse::<Pattern>().unwrap()).collect()
}

/// The grant of node `n` from `from` on, by the issuer, which is node 1.
fn chain(n: u8, from: u64, seconds: u64, rights: &[&str]) -> Chain {
    let issue = Issue::new(GrantRole::Node, Patterns::all(), Patterns::all());
    let issuer = Grant::new(&realm(), identity(1).node_id(), START..=START + 30 * DAY)
        .with_role(GrantRole::Node)
        .with_provide(Patterns::all())
        .with_call(Patterns::all())
        .with_issue(issue);
    let issuer = issuer.sign(&key()).unwrap().verify(&realm(), START).unwrap();
    if n == 1 {
        return issuer.chain().unwrap().clone();
    }
    Grant::new(&realm(), identity(n).node_id(), from..=from + seconds)
        .with_role(GrantRole::Node)
        .with_provide(patterns(rights))
        .with_call(patterns(rights))
        .issue(&issuer, &identity(1))
        .unwrap()
}

/// An honest member, not yet started.
fn builder(network: &Network, n: u8) -> NodeBuilder {
    let issuers = vec![Issuer {
        node_id: identity(1).node_id(),
        endpoints: vec![at(1).endpoint],
    }];
    Node::builder()
        .network(network)
        .identity(identity(n))
        .listen(addr(n))
        .bootstrap((n > 1).then(|| at(1)))
        .membership(Membership {
            realm: realm(),
            chain: chain(n, START, DAY, &["*"]),
            issuers,
        })
}

/// Lets the mesh's time pass, which stands still while no task waits for it.
async fn elapse(seconds: u64) {
    tokio::time::sleep_until(tokio::time::Instant::now() + Duration::from_secs(seconds)).await;
}

async fn echo(request: Request) -> Result<Bytes, Status> {
    Ok(request.into_payload())
}

/// An honest member that serves both services.
async fn provider(network: &Network, n: u8) -> Node {
    let node = builder(network, n).serve(OPEN, echo).serve(SAFE, echo);
    let node = node.start().await.unwrap();
    // The first node finds no other.
    let _ = node.join().await;
    node
}
