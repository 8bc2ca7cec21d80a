//! Revocations and renewals that the attacker makes up or plays again (A6, A7).

use std::time::Duration;

use macula_node::{
    Bytes, Chain, Issuer, JoinReply, Membership, Node, Order, RealmKey, RealmName, SignedRevocations, Signer as _,
};
use macula_transport::{
    Connection, Protocol,
    testing::{LinkConditions, Network},
};
use macula_wire::{RevocationsReply, RevocationsRequest, proto};
use prost::Message as _;

use crate::{
    BAD, DAY, OPEN, START, addr, at, attacker::Attacker, builder, chain, elapse, identity, key, log::Log, provider,
    realm, records::good,
};

async fn pass(on: &Connection, lists: &[SignedRevocations]) {
    let request = RevocationsRequest {
        known: [0; 32],
        news: lists.to_vec(),
        from: 0,
    };
    let told = on.request(Protocol::Revocations, request.encode(), Duration::from_secs(5));
    RevocationsReply::decode(told.await.unwrap()).unwrap();
}

fn signed(order: Order) -> SignedRevocations {
    SignedRevocations::sign(&realm(), &key(), [order]).unwrap()
}

/// An order that the attacker signs in the name of an issuer, with this chain as the issuer's.
fn forged(order: Order, chain: &Chain) -> SignedRevocations {
    let body = proto::SignedRevocations::decode(signed(order).encode()).unwrap().body;
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&b"macula/v1/revocations-by-issuer\0"[..], &length, &body].concat();
    let list = proto::SignedRevocations {
        signature: Bytes::copy_from_slice(&identity(BAD).sign(&message)),
        body,
        issuer: chain.as_bytes().clone(),
    };
    list.into()
}

fn is_member(node: &Node, n: u8) -> bool {
    let member = chain(n, START, DAY, &["*"]).verify(&realm(), START).unwrap();
    node.access().check(&member).is_ok()
}

#[tokio::test(start_paused = true)]
async fn a6_replayed_and_forged_orders_change_nothing_for_any_node() {
    let (network, log) = (Network::new(51), Log::start());
    let nodes = [provider(&network, 1).await, provider(&network, 2).await];
    elapse(10).await;
    let victim = identity(3).node_id();
    let old = signed(Order::revoke(victim, START + 1));
    let lifted = signed(Order::lift(victim, START + 2));
    let attacker = Attacker::new(&network).await;
    let connection = attacker.connect(&nodes[0]).await;
    // Every member passes orders on, and this one is the realm's.
    pass(&connection, std::slice::from_ref(&old)).await;
    assert!(!is_member(&nodes[0], 3));
    nodes[0].access().revoke(&lifted).unwrap();
    assert!(is_member(&nodes[0], 3));

    // The old one again, and as if it were new.
    for _ in 0..10 {
        pass(&connection, std::slice::from_ref(&old)).await;
        elapse(1).await;
    }
    let other = RealmKey::from_bytes(&[8; 32]);
    let foreign = other.realm(RealmName::new("shop").unwrap());
    let again = Order::revoke(victim, START + 9);
    let issuer = chain(1, START, DAY, &[]);
    let own = chain(BAD, START, DAY, &[OPEN]);
    let mut bent = proto::SignedRevocations::decode(signed(again).encode()).unwrap();
    bent.signature = vec![7; 64].into();
    let lies = [
        SignedRevocations::sign(&foreign, &other, [again]).unwrap(),
        forged(again, &issuer),
        forged(again, &own),
        bent.into(),
    ];
    for lie in &lies {
        pass(&connection, std::slice::from_ref(lie)).await;
    }
    // Among them a good one is taken.
    let good = signed(Order::revoke(identity(4).node_id(), START + 9));
    pass(&connection, &[lies[1].clone(), good]).await;
    elapse(60).await;
    for node in &nodes {
        assert!(is_member(node, 3), "{} believes it", node.id());
        assert!(!is_member(node, 4), "{} has not heard of it", node.id());
    }
    assert_eq!((nodes[0].refused_revocations(), nodes[1].refused_revocations()), (5, 0));
    let named = log.lines(&["revocation that is not valid", &identity(BAD).node_id().to_string()]);
    assert_eq!(named.len(), 1, "{named:?}");
}

/// The attacker's node answers a renewal with an earlier grant of the member, which it has seen as a peer.
#[tokio::test(start_paused = true)]
async fn a7_a_node_that_is_no_issuer_cannot_shorten_a_members_grant() {
    let (network, log) = (Network::new(52), Log::start());
    let first = provider(&network, 1).await;
    let attacker = Attacker::new(&network).await;
    let older = chain(5, START, 7200, &["*"]);
    let reply = JoinReply::Admitted {
        chain: older,
        issuers: vec![Issuer {
            node_id: identity(77).node_id(),
            endpoints: vec![at(77).endpoint],
        }],
    };
    attacker.lies(|lies| lies.visits = Some(reply.encode()));
    let liar = Issuer {
        node_id: attacker.endpoint.node_id(),
        endpoints: vec![at(BAD).endpoint],
    };
    let end = START + 9000;
    let member = builder(&network, 5).membership(Membership {
        realm: realm(),
        chain: chain(5, START, 9000, &["*"]),
        issuers: vec![liar],
    });
    let member = member.start().await.unwrap();
    member.join().await.unwrap();
    // The honest issuer is gone.
    network.kill(first.local_addr());
    drop(first);
    // It is due after 6 000 s at the latest.
    elapse(6500).await;
    assert_eq!(member.access().own().unwrap().not_after(), Some(end));
    let named = log.lines(&["not renewed yet", &attacker.endpoint.node_id().to_string()]);
    assert_eq!(named.len(), 1, "{named:?}");
}

/// The attacker was revoked, goes on as if it were not, and hands its own record out. Clients that have just started know of no order yet.
#[tokio::test(start_paused = true)]
async fn a6_a_fresh_client_sends_no_call_to_a_provider_whose_revocation_its_first_peers_know() {
    let network = Network::new(53);
    let nodes = [provider(&network, 1).await, provider(&network, 2).await];
    elapse(10).await;
    nodes[0]
        .access()
        .revoke(&signed(Order::revoke(identity(BAD).node_id(), START + 10)))
        .unwrap();
    elapse(60).await;
    let attacker = Attacker::new(&network).await;
    attacker.lies(|lies| lies.records = vec![good(9)]);
    for n in 10..20 {
        let client = builder(&network, n).client().bootstrap([at(BAD)]);
        if n % 2 == 1 {
            // The attacker is close and answers first.
            network.set_link(addr(1), addr(n), LinkConditions::new(Duration::from_millis(100)));
        }
        let client = client.start().await.unwrap();
        client.join().await.unwrap();
        if n % 2 == 0 {
            for _ in 0..5 {
                client.call(OPEN, "x").await.unwrap();
            }
            let found = client.lookup(&OPEN.parse().unwrap()).await.unwrap();
            assert!(found.iter().all(|provider| provider.node_id != identity(BAD).node_id()));
        } else {
            // The client knows the attacker alone so far, and may find no provider.
            let _ = client.call(OPEN, "x").await;
        }
        client.shutdown().await;
    }
    assert!(attacker.lies(|lies| lies.asked) > 0, "no client met it");
    assert_eq!(attacker.lies(|lies| lies.called), 0, "a call reached it");
}

/// The attacker's node answers a renewal with an order that it has made up.
#[tokio::test(start_paused = true)]
async fn a6_an_answer_with_a_forged_order_revokes_no_node() {
    let (network, log) = (Network::new(54), Log::start());
    let first = provider(&network, 1).await;
    let attacker = Attacker::new(&network).await;
    let victim = identity(5).node_id();
    let lie = forged(Order::revoke(victim, START), &chain(1, START, DAY, &[]));
    attacker.lies(|lies| lies.visits = Some(JoinReply::Revoked(lie).encode()));
    let member = builder(&network, 5).membership(Membership {
        realm: realm(),
        chain: chain(5, START, 9000, &["*"]),
        issuers: vec![Issuer {
            node_id: attacker.endpoint.node_id(),
            endpoints: vec![at(BAD).endpoint],
        }],
    });
    let member = member.start().await.unwrap();
    member.join().await.unwrap();
    network.kill(first.local_addr());
    drop(first);
    // The renewal is due after 6 000 s at the latest.
    elapse(6500).await;
    assert!(member.access().own().is_ok());
    assert_eq!(member.state().await.revoked, None);
    assert!(
        !log.lines(&["not renewed yet"]).is_empty(),
        "the attacker was not asked"
    );
}
