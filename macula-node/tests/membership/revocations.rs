//! Revocations over time: they reach every node, and end what they concern (A6).

use macula_node::{
    BootstrapAddr, Bytes, Chain, Effect, Grant, GrantRole, JoinRefusal, JoinReply, JoinRequest, Node, Order, Patterns,
    RealmKey, RealmName, Request, SignedRevocations, Status, TokenId,
};
#[cfg(feature = "redb")]
use macula_node::{DataError, StartError};
use macula_transport::testing::Network;
use macula_wire::TokenSecret;

use crate::{
    LIFE, SERVICE, START, addr, at, builder, call, heeded, identity, issuer, key, log::Log, member, membership,
    of_issuer, of_member, pass, realm, stranger,
};

/// Any node takes an order, and within a minute every node knows it: no issuer runs.
#[tokio::test(start_paused = true)]
async fn a6_a_revocation_reaches_every_node_within_a_minute_without_an_issuer() {
    let network = Network::new(24);
    let first = issuer(&network, 1).await;
    let mut members = Vec::new();
    for n in 2..=9 {
        members.push(member(&network, n).await);
    }
    pass(60).await;
    network.kill(addr(1));
    drop(first);
    let order = Order::revoke(identity(9).node_id(), START + 60);
    let orders = SignedRevocations::sign(&realm(), &key(), [order]).unwrap();
    let stranger = stranger(&network, 99).start().await.unwrap();
    let request = JoinRequest::Revoke(orders.clone());
    // Those nodes have no data folder.
    for n in [2, 3] {
        // A replay.
        for _ in 0..2 {
            let (node_id, reply) = stranger.visit(&at(n), &request).await.unwrap();
            let heeded = heeded(reply);
            assert_eq!((heeded.kept, heeded.effect), (false, Effect::Counts));
            let member = heeded.chain.unwrap().verify(&realm(), START + 60).unwrap();
            assert_eq!(*member.node_id(), node_id, "the node proves that it is a member");
        }
    }
    // An order that no one signed.
    let forged = SignedRevocations::sign(
        &RealmKey::from_bytes(&[8; 32]).realm(RealmName::new("shop").unwrap()),
        &RealmKey::from_bytes(&[8; 32]),
        [order],
    );
    let refused = stranger
        .visit(&at(3), &JoinRequest::Revoke(forged.unwrap()))
        .await
        .unwrap()
        .1;
    assert_eq!(refused, JoinReply::Refused(JoinRefusal::BadOrders));

    pass(60).await;
    let revoked = members.pop().unwrap();
    for node in &members {
        assert_eq!(
            node.access().revocations(),
            std::slice::from_ref(&orders),
            "{} has not heard of it",
            node.id()
        );
        call(node).await.unwrap();
        let found = node.lookup(&SERVICE.parse().unwrap()).await.unwrap();
        assert!(found.iter().all(|provider| provider.node_id != revoked.id()));
    }
    assert!(call(&revoked).await.is_err());
    // A node that was away learns of it when it comes.
    let late = member(&network, 10).await;
    pass(60).await;
    assert_eq!(late.access().revocations(), [orders]);
}

/// A6: an order crosses a cut of the network that heals, whether the connections outlive the cut or not.
#[tokio::test(start_paused = true)]
async fn a6_an_order_crosses_a_cut_within_a_minute_of_its_end() {
    for cut in [5, 300] {
        let network = Network::new(28);
        let mut nodes = vec![issuer(&network, 1).await];
        for n in 2..=8 {
            nodes.push(member(&network, n).await);
        }
        pass(60).await;
        network.partition((1..=4).map(addr));
        let order = Order::revoke(identity(9).node_id(), START + 60);
        let orders = SignedRevocations::sign(&realm(), &key(), [order]).unwrap();
        nodes[0].access().revoke(&orders).unwrap();
        pass(cut).await;
        let knows = |node: &Node| node.access().revocations() == [orders.clone()];
        assert!(nodes[..4].iter().all(knows), "it does not cross its own side");
        assert!(!nodes[4..].iter().any(knows), "the network is not cut");
        network.heal();
        pass(60).await;
        for node in &nodes {
            assert!(knows(node), "{} has not heard of it after a cut of {cut} s", node.id());
        }
    }
}

/// A6: a newcomer has every order from the first node that it meets, however many there are.
#[tokio::test(start_paused = true)]
async fn a6_a_newcomer_has_every_order_of_its_first_peer_within_a_minute() {
    let network = Network::new(29);
    let first = issuer(&network, 1).await;
    for n in 0..300_u16 {
        let mut node = [7; 32];
        node[..2].copy_from_slice(&n.to_be_bytes());
        let order = Order::revoke(macula_node::NodeId::from_bytes(node), START);
        let list = SignedRevocations::sign(&realm(), &key(), [order]).unwrap();
        first.access().revoke(&list).unwrap();
    }
    let newcomer = member(&network, 2).await;
    pass(60).await;
    assert_eq!(newcomer.access().revocations().len(), 300);
}

/// A6: a member that was let in by one issuer is revoked by it, although another has renewed its grant.
#[tokio::test(start_paused = true)]
async fn a6_an_issuers_order_reaches_a_member_that_another_issuer_renewed() {
    let network = Network::new(30);
    let (one, other) = (issuer(&network, 1).await, issuer(&network, 4).await);
    let member = member(&network, 2).await;
    let renew = JoinRequest::Renew(member.access().member().unwrap().chain().unwrap().clone());
    pass(60).await;
    let JoinReply::Admitted { chain, .. } = member.visit(&at(4), &renew).await.unwrap().1 else {
        panic!("it is not renewed")
    };
    let renewed = member.access().set_grant(&chain).unwrap();
    assert_eq!(
        (renewed.issuer(), renewed.admitted_by()),
        (Some(&other.id()), &[one.id()][..])
    );
    let orders = [Order::revoke(member.id(), START + 60)];
    let own = one.access().own().unwrap();
    let orders = SignedRevocations::issue(&realm(), &own, &identity(1), orders).unwrap();
    one.access().revoke(&orders).unwrap();
    pass(60).await;
    assert!(other.access().check(&renewed).is_err(), "the other has not heard of it");
    let again = other.visit(&at(1), &JoinRequest::Renew(chain)).await.unwrap().1;
    assert_eq!(again, JoinReply::Refused(JoinRefusal::NotRenewable), "another node's");
}

/// A6: an issuer's key is stolen. The members that it let in are out with it, although another issuer has renewed their grants meanwhile.
#[tokio::test(start_paused = true)]
async fn a6_the_members_of_a_revoked_issuer_are_out_although_another_renewed_them() {
    let network = Network::new(40);
    let (stolen, other) = (issuer(&network, 1).await, issuer(&network, 4).await);
    let member = member(&network, 2).await;
    let asks = async |at: BootstrapAddr, chain: &Chain| {
        let renew = JoinRequest::Renew(chain.clone());
        member.visit(&at, &renew).await.unwrap().1
    };
    let JoinReply::Admitted { chain, .. } = asks(at(4), &of_member(2).chain).await else {
        panic!("it is not renewed")
    };
    let renewed = member.access().set_grant(&chain).unwrap();
    assert_eq!(
        (renewed.issuer(), renewed.admitted_by()),
        (Some(&other.id()), &[stolen.id()][..])
    );
    let orders = SignedRevocations::sign(&realm(), &key(), [Order::revoke(stolen.id(), START)]).unwrap();
    other.access().revoke(&orders).unwrap();
    assert!(other.access().check(&renewed).is_err());
    assert_eq!(asks(at(4), &chain).await, JoinReply::Revoked(orders));
    pass(60).await;
    assert!(call(&member).await.is_err());
    // It may know no other node that could tell.
    let found = other.lookup(&SERVICE.parse().unwrap()).await;
    assert!(found.is_err() || found.is_ok_and(|found| found.is_empty()));
}

/// A6: a member depends on few issuers. While the one of its grant answers, no other renews it.
#[tokio::test(start_paused = true)]
async fn a6_a_member_renews_at_the_issuer_of_its_grant_while_that_one_answers() {
    let network = Network::new(41);
    let _issuers = [issuer(&network, 1).await, issuer(&network, 4).await];
    let members = [member(&network, 2).await, member(&network, 3).await];
    pass(3 * LIFE.as_secs()).await;
    for member in &members {
        let own = member.access().own().unwrap();
        assert_eq!(
            (own.issuer(), own.admitted_by()),
            (Some(&identity(1).node_id()), &[][..])
        );
    }
}

/// A6: a node hears that it is revoked, whether it runs or starts afterwards: it says so once, and lets no newcomer in.
#[tokio::test(start_paused = true)]
async fn a6_a_revoked_node_says_so_once_and_lets_no_newcomer_in() {
    let (network, log) = (Network::new(42), Log::start());
    let first = issuer(&network, 1).await;
    let (runs, _other) = (member(&network, 2).await, member(&network, 3).await);
    let mut events = runs.events();
    pass(60).await;
    assert_eq!(runs.state().await.revoked, None);
    let out = [2, 5].map(|n| Order::revoke(identity(n).node_id(), START + 60));
    let orders = SignedRevocations::sign(&realm(), &key(), out).unwrap();
    first.access().revoke(&orders).unwrap();
    let told = loop {
        let event = events.next().await.unwrap();
        if event.kind() == "revoked" {
            break event;
        }
    };
    assert_eq!(told.node(), Some(runs.id()));
    let starts = builder(&network, 5, of_member(5)).start().await.unwrap();
    assert!(starts.join().await.is_err());
    pass(600).await;
    for node in [&runs, &starts] {
        assert_eq!(node.state().await.revoked, Some(node.id()));
    }
    let said = log.lines(&["ERROR", "this node was revoked"]);
    assert_eq!(said.len(), 2, "each of them once: {said:?}");
    // It has heard of no order yet.
    let newcomer = stranger(&network, 6);
    let newcomer = newcomer.membership(of_member(6)).bootstrap([at(2)]);
    let newcomer = newcomer.start().await.unwrap();
    assert!(newcomer.join().await.is_err());
    assert!(call(&newcomer).await.is_err());
}

/// A6: strangers of the operator's own network ask without pause, and its order is taken. What is refused at the door is counted.
#[tokio::test(start_paused = true)]
async fn a6_no_crowd_of_strangers_keeps_an_order_from_a_node() {
    let network = Network::new(44);
    let first = issuer(&network, 1).await;
    let visitor = async |n: u8| {
        let node = stranger(&network, n);
        node.listen(addr(n)).start().await.unwrap()
    };
    let (stranger, operator) = (visitor(99).await, visitor(98).await);
    let guess = JoinRequest::Join {
        token: TokenId::from_bytes([1; TokenId::LEN]),
        secret: TokenSecret::from_bytes(&[1; TokenSecret::LEN]),
    };
    let mut asked = 1;
    while stranger.visit(&at(1), &guess).await.unwrap().1 != JoinReply::Refused(JoinRefusal::Busy) {
        asked += 1;
    }
    let other = RealmKey::from_bytes(&[8; 32]);
    let foreign = other.realm(RealmName::new("shop").unwrap());
    let lie = SignedRevocations::sign(&foreign, &other, [Order::revoke(identity(7).node_id(), START)]).unwrap();
    for _ in 0..100 {
        let refused = stranger
            .visit(&at(1), &JoinRequest::Revoke(lie.clone()))
            .await
            .unwrap()
            .1;
        assert_eq!(refused, JoinReply::Refused(JoinRefusal::BadOrders));
    }
    for n in 100..200 {
        let order = Order::revoke(identity(n).node_id(), START);
        let order = SignedRevocations::sign(&realm(), &key(), [order]).unwrap();
        let told = operator.visit(&at(1), &JoinRequest::Revoke(order)).await.unwrap().1;
        assert_eq!(heeded(told).effect, Effect::Counts);
    }
    assert_eq!((first.refused_joins(), first.refused_revocations()), (asked, 100));
}

/// A6: the disk takes no order. The node that was told says so, obeys, and writes it down when the disk is well again.
#[cfg(feature = "redb")]
#[tokio::test(start_paused = true)]
async fn a6_an_order_that_the_disk_does_not_take_is_not_said_to_be_kept() {
    let (network, folder) = (Network::new(37), tempfile::tempdir().unwrap());
    let node = || builder(&network, 1, membership(of_issuer(1))).data(folder.path());
    let first = node().start().await.unwrap();
    let _ = first.join().await;
    let stranger = stranger(&network, 99);
    let stranger = stranger.listen(addr(99)).start().await.unwrap();
    let order = Order::revoke(identity(7).node_id(), START);
    let orders = SignedRevocations::sign(&realm(), &key(), [order]).unwrap();
    let hand_in = async || {
        let request = JoinRequest::Revoke(orders.clone());
        stranger.visit(&at(1), &request).await.unwrap().1
    };
    // A folder is no file that another replaces.
    let file = folder.path().join("revocations");
    std::fs::create_dir(&file).unwrap();
    for _ in 0..2 {
        assert!(!heeded(hand_in().await).kept);
    }
    let of_seven = of_member(7).chain.verify(&realm(), START).unwrap();
    assert!(first.access().check(&of_seven).is_err(), "it is not in force");
    std::fs::remove_dir(&file).unwrap();
    pass(60).await;
    assert!(file.is_file(), "it is not tried again");
    assert!(heeded(hand_in().await).kept);
    first.shutdown().await;
    drop(first);
    let again = loop {
        match node().start().await {
            // The thread that writes the folder has not ended yet.
            Err(StartError::Data(DataError::InUse { .. })) => tokio::task::yield_now().await,
            again => break again.unwrap(),
        }
    };
    assert_eq!(again.access().revocations(), [orders]);
}

/// A6: a member's rights are narrowed. It keeps its key, is out until it has its new grant, and that one is renewed as narrow as it is.
#[tokio::test(start_paused = true)]
async fn a6_a_member_is_given_other_rights_and_keeps_its_key() {
    let network = Network::new(38);
    let first = issuer(&network, 1).await;
    let (narrowed, other) = (member(&network, 2).await, member(&network, 3).await);
    pass(60).await;
    call(&narrowed).await.unwrap();
    let order = Order::revoke_present(narrowed.id(), START + 60);
    let orders = SignedRevocations::sign(&realm(), &key(), [order]).unwrap();
    first.access().revoke(&orders).unwrap();
    pass(60).await;
    assert!(call(&narrowed).await.is_err());
    let renew = JoinRequest::Renew(of_member(2).chain);
    let again = narrowed.visit(&at(1), &renew).await.unwrap().1;
    assert_eq!(again, JoinReply::Revoked(orders), "the answer proves why");

    let by = of_issuer(1).verify(&realm(), START).unwrap();
    let begin = START + 120;
    let narrow = Grant::new(&realm(), narrowed.id(), begin..=begin + LIFE.as_secs())
        .with_role(GrantRole::Node)
        .with_call(Patterns::from_iter([SERVICE.parse().unwrap()]));
    narrowed
        .access()
        .set_grant(&narrow.issue(&by, &identity(1)).unwrap())
        .unwrap();
    // It is renewed in this time.
    for _ in 0..3 {
        pass(LIFE.as_secs() / 2).await;
        call(&narrowed).await.unwrap();
        let found = other.lookup(&SERVICE.parse().unwrap()).await.unwrap();
        assert!(found.iter().all(|provider| provider.node_id != narrowed.id()));
    }
    let own = narrowed.access().own().unwrap();
    assert!(own.not_after() > Some(begin + LIFE.as_secs()), "it is not renewed");
    assert_eq!((own.admitted_at(), own.provide()), (begin, Some(&Patterns::NONE)));
}

/// D9: the data folder of a node was copied, and both run. Each of them is warned, and told where the other one is.
#[tokio::test(start_paused = true)]
async fn d9_two_processes_with_one_key_are_both_warned() {
    let (network, log) = (Network::new(45), Log::start());
    let _issuer = issuer(&network, 1).await;
    let _other = member(&network, 3).await;
    let echo = async |request: Request| Ok::<Bytes, Status>(request.into_payload());
    let process = async |at: u8| {
        let node = builder(&network, 2, of_member(2)).listen(addr(at));
        node.serve(SERVICE, echo).start().await.unwrap()
    };
    let original = process(2).await;
    original.join().await.unwrap();
    pass(60).await;
    assert!(log.lines(&["uses this node's key"]).is_empty());
    let _copy = process(22).await;
    pass(30 * 60).await;
    for at in ["10.0.0.2:", "10.0.0.22:"] {
        let said = log.lines(&["another process uses this node's key", &original.id().to_string(), at]);
        assert!(!said.is_empty(), "no process is told of the one at {at}");
    }
}
