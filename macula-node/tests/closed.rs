//! A closed realm of whole nodes on a network in memory, in paused time (A1 to A6).
#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::{net::SocketAddr, time::Duration};

use macula_node::{
    BootstrapAddr, Bytes, CallError, Chain, Grant, GrantRole, Issue, Node, NodeBuilder, NodeId, Pattern, Patterns,
    Realm, RealmKey, RealmName, Request, Status, StatusCode,
};
use macula_transport::{Identity, testing::Network};
use macula_wire::{Order, SecretKey, SignedRevocations, Signer};

/// The wall clock of a network in memory when it begins, in seconds.
const START: u64 = 1_700_000_000;
const DAY: u64 = 24 * 60 * 60;
const SERVICE: &str = "shop.cart";

fn key() -> RealmKey {
    RealmKey::from_bytes(&[200; 32])
}

fn realm() -> Realm {
    key().realm(RealmName::new("shop").unwrap())
}

fn secret(n: u8) -> SecretKey {
    SecretKey::from_bytes(&[n; 32])
}

fn id(n: u8) -> NodeId {
    secret(n).node_id()
}

fn addr(n: u8) -> SocketAddr {
    ([10, 0, 0, n], 9443).into()
}

/// A grant of node `n` by an issuer, to provide `provide` and call everything.
fn grant(n: u8, provide: &str, seconds: u64) -> Chain {
    let issue = Issue::new(GrantRole::Node, Patterns::all(), Patterns::all());
    let issuer = Grant::new(&realm(), id(100), START..=START + DAY).with_issue(issue);
    let issuer = issuer.sign(&key()).unwrap().verify(&realm(), START).unwrap();
    let provide = Patterns::from_iter([provide.parse::<Pattern>().unwrap()]);
    let grant = Grant::new(&realm(), id(n), START..=START + seconds).with_role(GrantRole::Node);
    grant
        .with_provide(provide)
        .with_call(Patterns::all())
        .issue(&issuer, &secret(100))
        .unwrap()
}

fn builder(network: &Network, n: u8) -> NodeBuilder {
    // The first node is known by its address only, so the others must not show it their grants before it has shown its own.
    let first = BootstrapAddr::from(macula_wire::Address::try_from(addr(1)).unwrap());
    Node::builder()
        .network(network)
        .identity(Identity::from_secret(secret(n)))
        .realm(realm())
        .listen(addr(n))
        .bootstrap((n > 1).then_some(first))
}

async fn node(network: &Network, n: u8, seconds: u64) -> Node {
    let answer = move |_: Request| async move { Ok::<_, Status>(Bytes::from(n.to_string())) };
    let builder = builder(network, n)
        .grant(grant(n, "shop.*", seconds))
        .serve(SERVICE, answer);
    let node = builder.start().await.unwrap();
    node.join().await.unwrap();
    node
}

/// Lets the mesh's time pass, which stands still while no task waits for it.
async fn pass(seconds: u64) {
    tokio::time::sleep_until(tokio::time::Instant::now() + Duration::from_secs(seconds)).await;
}

/// The provider that answered a call which is not run here.
async fn called(node: &Node) -> Result<u8, CallError> {
    let answer = node.client().request(SERVICE).remote_only().send("").await?;
    Ok(std::str::from_utf8(answer.payload()).unwrap().parse().unwrap())
}

async fn found(node: &Node) -> Vec<NodeId> {
    let found = node.lookup(&SERVICE.parse().unwrap()).await.unwrap();
    found.iter().map(|provider| provider.node_id).collect()
}

#[tokio::test(start_paused = true)]
async fn a_closed_realm_of_five_works_and_lets_no_one_else_in() {
    let network = Network::new(1);
    let mut nodes = Vec::new();
    for n in 1..=5 {
        nodes.push(node(&network, n, DAY).await);
    }
    pass(10).await;
    assert_eq!(found(&nodes[4]).await.len(), 5);
    for node in &nodes {
        called(node).await.unwrap();
    }
    // The open realm of the same name, and a node of the closed one without a grant.
    let stranger = builder(&network, 7)
        .realm(Realm::new("shop").unwrap())
        .start()
        .await
        .unwrap();
    assert!(stranger.join().await.is_err());
    let without = builder(&network, 8).start().await.unwrap_err();
    assert!(without.to_string().contains("the node has no grant"), "{without}");
    assert!(
        stranger
            .lookup(&SERVICE.parse().unwrap())
            .await
            .is_ok_and(|found| found.is_empty())
            || called(&stranger).await.is_err()
    );
    pass(1).await;
    assert!(nodes[0].transport_stats().rejected_hellos >= 1);
    // A grant of another node, and one that does not cover the service.
    let theirs = builder(&network, 9)
        .grant(grant(5, "shop.*", DAY))
        .start()
        .await
        .unwrap_err();
    assert!(theirs.to_string().contains("grant"), "{theirs}");
    let narrow = builder(&network, 9).grant(grant(9, "mail.*", DAY));
    let narrow = narrow
        .serve(SERVICE, async |_: Request| Ok::<_, Status>(""))
        .start()
        .await
        .unwrap_err();
    assert!(
        std::error::Error::source(&narrow).is_some_and(|source| format!("{source:?}").contains("NotGranted")),
        "{narrow:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a6_a_revoked_provider_is_gone_and_no_call_to_the_others_fails() {
    let network = Network::new(2);
    let mut nodes = Vec::new();
    for n in 1..=4 {
        nodes.push(node(&network, n, DAY).await);
    }
    pass(10).await;
    called(&nodes[0]).await.unwrap();
    let list = SignedRevocations::sign(&realm(), &key(), [Order::revoke(id(4), START)]).unwrap();
    for node in &nodes[..3] {
        node.access().revoke(&list).unwrap();
    }
    for _ in 0..40 {
        for node in &nodes[..3] {
            assert_ne!(called(node).await.unwrap(), 4);
        }
        pass(1).await;
    }
    for node in &nodes[..3] {
        assert!(!found(node).await.contains(&id(4)));
    }
    assert!(
        called(&nodes[3]).await.is_err(),
        "what it knows of the others is of no use to it"
    );
}

#[tokio::test(start_paused = true)]
async fn a6_a_renewed_grant_keeps_a_node_in_and_one_that_is_not_ends_it() {
    let network = Network::new(3);
    let (first, renews) = (node(&network, 1, DAY).await, node(&network, 2, 2000).await);
    let ends = node(&network, 3, 2000).await;
    pass(1300).await;
    renews.access().set_grant(&grant(2, "shop.*", DAY)).unwrap();
    pass(800).await;
    let mut providers = found(&first).await;
    providers.sort_unstable();
    let mut expected = vec![id(1), id(2)];
    expected.sort_unstable();
    assert_eq!(providers, expected);
    assert_eq!(called(&first).await.unwrap(), 2);
    let error = called(&ends).await.unwrap_err();
    assert!(!matches!(&error, CallError::Answered { status, .. } if status.code() == StatusCode::Ok));
}
