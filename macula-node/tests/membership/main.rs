//! Grants over time: renewal, absent issuers, revocations, on a network in memory in paused time (A6, A7).
#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

#[path = "../hostile_member/log.rs"]
mod log;
mod revocations;

use std::{net::SocketAddr, os::unix::fs::PermissionsExt as _, time::Duration};

use log::Log;

use macula_node::{
    Address, BootstrapAddr, Bytes, Chain, Effect, Grant, GrantRole, Heeded, Identity, Issue, Issuer, JoinRefusal,
    JoinReply, JoinRequest, Membership, Node, NodeBuilder, Order, Patterns, Realm, RealmKey, RealmName, Request,
    SignedRevocations, Status, TokenId,
};
use macula_transport::testing::Network;
use macula_wire::{SecretKey, TokenSecret};

const SERVICE: &str = "demo.echo";
/// The wall clock of the network in memory at its start.
const START: u64 = 1_700_000_000;
const HOUR: u64 = 3600;
/// How long an issuer's grants last here.
const LIFE: Duration = Duration::from_secs(80 * 60);

fn addr(n: u8) -> SocketAddr {
    ([10, 0, 0, n], 9443).into()
}

fn at(n: u8) -> BootstrapAddr {
    Address::try_from(addr(n)).unwrap().into()
}

fn identity(n: u8) -> Identity {
    Identity::from_secret(SecretKey::from_bytes(&[n; SecretKey::LEN]))
}

fn key() -> RealmKey {
    RealmKey::from_bytes(&[9; 32])
}

fn realm() -> Realm {
    key().realm(RealmName::new("shop").unwrap())
}

fn grant(n: u8, end: u64) -> Grant {
    Grant::new(&realm(), identity(n).node_id(), START..=end)
        .with_role(GrantRole::Node)
        .with_provide(Patterns::all())
        .with_call(Patterns::all())
}

fn of_issuer(n: u8) -> Chain {
    let issue = Issue::new(GrantRole::Node, Patterns::all(), Patterns::all());
    grant(n, START + 1000 * HOUR).with_issue(issue).sign(&key()).unwrap()
}

fn membership(chain: Chain) -> Membership {
    let issuer = Issuer {
        node_id: identity(1).node_id(),
        endpoints: vec![at(1).endpoint],
    };
    Membership {
        realm: realm(),
        chain,
        issuers: vec![issuer],
    }
}

/// The grant of a member that node 1 let in at the start.
fn of_member(n: u8) -> Membership {
    let issuer = of_issuer(1).verify(&realm(), START).unwrap();
    membership(grant(n, START + LIFE.as_secs()).issue(&issuer, &identity(1)).unwrap())
}

fn builder(network: &Network, n: u8, membership: Membership) -> NodeBuilder {
    Node::builder()
        .network(network)
        .identity(identity(n))
        .listen(addr(n))
        .membership(membership)
        .bootstrap((1..=4).filter(|other| *other != n).map(at))
        .grant_life(LIFE)
}

/// A client without a grant.
fn stranger(network: &Network, n: u8) -> NodeBuilder {
    Node::builder().network(network).client().identity(identity(n))
}

async fn issuer(network: &Network, n: u8) -> Node {
    let node = builder(network, n, membership(of_issuer(n))).start().await.unwrap();
    // The first node finds no other.
    let _ = node.join().await;
    node
}

async fn member(network: &Network, n: u8) -> Node {
    let echo = async |request: Request| Ok::<Bytes, Status>(request.into_payload());
    let node = builder(network, n, of_member(n))
        .serve(SERVICE, echo)
        .start()
        .await
        .unwrap();
    node.join().await.unwrap();
    node
}

async fn pass(seconds: u64) {
    tokio::time::sleep_until(tokio::time::Instant::now() + Duration::from_secs(seconds)).await;
}

/// Its own service is called at the others, over the network.
async fn call(node: &Node) -> Result<(), String> {
    let call = node.client().request(SERVICE).remote_only();
    call.send("x").await.map(|_| ()).map_err(|error| error.to_string())
}

fn heeded(reply: JoinReply) -> Heeded {
    match reply {
        JoinReply::Heeded(heeded) => heeded,
        other => panic!("not heeded: {other:?}"),
    }
}

fn end(node: &Node) -> u64 {
    node.access().member().unwrap().not_after().unwrap()
}

/// It was told its realm by its grant, and not by a setting.
#[tokio::test(start_paused = true)]
async fn n5_the_state_of_a_node_names_the_closed_realm_that_it_is_in() {
    let network = Network::new(20);
    let first = issuer(&network, 1).await;
    assert_eq!(first.state().await.realm, realm());
}

/// The issuer is away for an hour in which the grants are due, and no call fails; when it is back, they are renewed.
#[tokio::test(start_paused = true)]
async fn a7_an_issuer_that_is_away_for_an_hour_does_no_harm() {
    let network = Network::new(21);
    let first = issuer(&network, 1).await;
    let members = [member(&network, 2).await, member(&network, 3).await];
    pass(60).await;
    network.kill(addr(1));
    drop(first);
    for _ in 0..6 {
        pass(10 * 60).await;
        for member in &members {
            call(member).await.unwrap();
            assert_eq!(end(member), START + LIFE.as_secs(), "an issuer answered");
        }
    }
    let _back = issuer(&network, 1).await;
    pass(10 * 60).await;
    for member in &members {
        assert!(end(member) > START + LIFE.as_secs() + HOUR / 2, "it is not renewed");
    }
    // The connections outlive the grants that they began with.
    pass(15 * 60).await;
    for member in &members {
        call(member).await.unwrap();
    }
}

/// An operator sees each renewed grant, and the node that signed it.
#[tokio::test(start_paused = true)]
async fn n5_a_renewed_grant_is_an_event() {
    let network = Network::new(35);
    let first = issuer(&network, 1).await;
    let node = member(&network, 2).await;
    let mut events = node.events();
    let rotated = loop {
        let event = events.next().await.unwrap();
        if event.kind() == "rotated" {
            break event;
        }
    };
    assert_eq!(rotated.node(), Some(first.id()));
    let valid = end(&node) - node.access().now();
    let expected = format!("the node has a new grant, signed by this issuer, valid for {valid}s");
    assert_eq!(rotated.to_string(), expected);
    assert!(end(&node) > START + LIFE.as_secs());
}

/// When the issuer is away for too long the members part, and they meet again when it is back, without new tokens.
#[tokio::test(start_paused = true)]
async fn a7_members_whose_grants_ended_are_let_in_again_by_an_issuer_that_was_away() {
    let network = Network::new(22);
    let first = issuer(&network, 1).await;
    let members = [member(&network, 2).await, member(&network, 3).await];
    pass(60).await;
    network.kill(addr(1));
    drop(first);
    pass(LIFE.as_secs()).await;
    assert!(
        call(&members[0]).await.is_err(),
        "a call is made with a grant that ended"
    );
    let _back = issuer(&network, 1).await;
    pass(HOUR / 3).await;
    for member in &members {
        call(member).await.unwrap();
    }
}

/// A member renews at an issuer that it has never heard of: the directory knows it.
#[tokio::test(start_paused = true)]
async fn a7_a_new_issuer_takes_over_from_one_that_is_gone_for_good() {
    let network = Network::new(23);
    let (old, _new) = (issuer(&network, 1).await, issuer(&network, 4).await);
    let members = [member(&network, 2).await, member(&network, 3).await];
    pass(60).await;
    network.kill(addr(1));
    drop(old);
    pass(LIFE.as_secs()).await;
    for member in &members {
        let own = member.access().own().unwrap();
        assert_eq!(own.issuer(), Some(&identity(4).node_id()));
        call(member).await.unwrap();
    }
}

/// A6, A7: a revoked node gets no grant, and neither does one that shows the grant of a revoked issuer or of another node.
#[tokio::test(start_paused = true)]
async fn a7_a_renewal_is_refused_to_revoked_nodes_and_for_others_grants() {
    let network = Network::new(25);
    let (_one, _other) = (issuer(&network, 1).await, issuer(&network, 4).await);
    let renew = async |n: u8, chain: &Chain| {
        let node = stranger(&network, n).start().await.unwrap();
        node.visit(&at(4), &JoinRequest::Renew(chain.clone())).await.unwrap().1
    };
    let chain = of_member(7).chain;
    assert!(matches!(renew(7, &chain).await, JoinReply::Admitted { .. }));
    let not_renewable = JoinReply::Refused(JoinRefusal::NotRenewable);
    assert_eq!(renew(8, &chain).await, not_renewable, "another node's");
    let by_hand = grant(7, START + HOUR).sign(&key()).unwrap();
    assert_eq!(renew(7, &by_hand).await, not_renewable, "its end was chosen by hand");
    // The stolen key of an issuer signs no grant that outlives its revocation.
    let revoke = async |n: u8| {
        let orders = SignedRevocations::sign(&realm(), &key(), [Order::revoke(identity(n).node_id(), START)]);
        let node = stranger(&network, 98).start().await.unwrap();
        let told = node
            .visit(&at(4), &JoinRequest::Revoke(orders.unwrap()))
            .await
            .unwrap()
            .1;
        assert_eq!(heeded(told).effect, Effect::Counts);
    };
    revoke(1).await;
    assert!(matches!(renew(7, &chain).await, JoinReply::Revoked(_)));
}

/// A7: a node starts with a grant that was taken back, or has ended, and with a new token: it uses the token.
#[cfg(feature = "redb")]
#[tokio::test(start_paused = true)]
async fn a7_a_token_is_used_when_the_grant_that_was_kept_is_of_no_use() {
    let (network, folder) = (Network::new(43), tempfile::tempdir().unwrap());
    let first = builder(&network, 1, membership(of_issuer(1))).data(folder.path());
    let first = first.start().await.unwrap();
    pass(60).await;
    let order = Order::revoke_present(identity(2).node_id(), START + 60);
    let orders = SignedRevocations::sign(&realm(), &key(), [order]).unwrap();
    first.access().revoke(&orders).unwrap();
    let token = |uses: u32| {
        let issuer = membership(of_issuer(1)).issuers.remove(0);
        let terms = macula_node::Terms {
            role: GrantRole::Node,
            provide: Patterns::NONE,
            call: Patterns::all(),
            labels: Default::default(),
        };
        let folder = macula_node::IssuerFolder::new(folder.path());
        folder
            .create_token(&realm(), issuer, terms, uses, START + 61, START + HOUR)
            .unwrap()
    };
    let ended = Grant::new(&realm(), identity(3).node_id(), START - 100..=START - 50)
        .sign(&key())
        .unwrap();
    for (n, kept) in [(2, of_member(2)), (3, membership(ended)), (4, of_member(4))] {
        let node = builder(&network, n, kept.clone()).token(token(1));
        let own = node.start().await.unwrap().access().own().unwrap();
        let is_of_token = own.provide() == Some(&Patterns::NONE);
        // The grant of the last one is good, so its token is not used up.
        assert_eq!(is_of_token, n != 4, "node {n}");
    }
    // The issuer of the token is away, and a good grant does without it.
    network.kill(addr(1));
    drop(first);
    let node = builder(&network, 5, of_member(5))
        .token(token(1))
        .start()
        .await
        .unwrap();
    assert!(node.access().own().is_ok());
}

/// A7: strangers of a member's own network ask without pause, and its renewal is answered.
#[tokio::test(start_paused = true)]
async fn a7_no_crowd_of_strangers_keeps_a_member_from_its_next_grant() {
    let network = Network::new(31);
    let _issuer = issuer(&network, 1).await;
    let visitor = async |n: u8| {
        let node = stranger(&network, n);
        let node = node.listen(addr(n));
        node.start().await.unwrap()
    };
    let stranger = visitor(99).await;
    let guess = JoinRequest::Join {
        token: TokenId::from_bytes([1; TokenId::LEN]),
        secret: TokenSecret::from_bytes(&[1; TokenSecret::LEN]),
    };
    while stranger.visit(&at(1), &guess).await.unwrap().1 != JoinReply::Refused(JoinRefusal::Busy) {}
    let member = visitor(7).await;
    let renew = JoinRequest::Renew(of_member(7).chain);
    assert!(matches!(
        member.visit(&at(1), &renew).await.unwrap().1,
        JoinReply::Admitted { .. }
    ));
    // The stranger shows the grant of the member, which every peer has seen.
    let stolen = stranger.visit(&at(1), &renew).await.unwrap().1;
    assert_eq!(stolen, JoinReply::Refused(JoinRefusal::Busy));
}

/// A7: a node that joins with a token waits for an issuer that is busy.
#[cfg(feature = "redb")]
#[tokio::test(start_paused = true)]
async fn a7_a_node_waits_for_an_issuer_that_many_ask_at_once() {
    let (network, folder) = (Network::new(32), tempfile::tempdir().unwrap());
    let builder = builder(&network, 1, membership(of_issuer(1))).data(folder.path());
    let first = builder.start().await.unwrap();
    let token = macula_node::IssuerFolder::new(folder.path()).create_token(
        &realm(),
        Issuer {
            node_id: first.id(),
            endpoints: vec![at(1).endpoint],
        },
        macula_node::Terms {
            role: GrantRole::Client,
            provide: Patterns::NONE,
            call: Patterns::all(),
            labels: Default::default(),
        },
        1,
        START,
        START + HOUR,
    );
    let stranger = stranger(&network, 99);
    let stranger = stranger.listen(addr(99)).start().await.unwrap();
    let guess = JoinRequest::Join {
        token: TokenId::from_bytes([1; TokenId::LEN]),
        secret: TokenSecret::from_bytes(&[1; TokenSecret::LEN]),
    };
    while stranger.visit(&at(1), &guess).await.unwrap().1 != JoinReply::Refused(JoinRefusal::Busy) {}
    let joins = Node::builder()
        .network(&network)
        .identity(identity(5))
        .client()
        .listen(addr(5))
        .token(token.unwrap());
    let joined = joins.start().await.unwrap();
    assert_eq!(joined.access().own().unwrap().issuer(), Some(&first.id()));
}

/// A7: the disk takes no new grant. The node renews all the same, and does not fall back to the grant in the file.
#[tokio::test(start_paused = true)]
async fn a7_a_grant_that_cannot_be_kept_is_renewed_again_and_again() {
    let (network, folder) = (Network::new(33), tempfile::tempdir().unwrap());
    let _issuer = issuer(&network, 1).await;
    // It can be read. The file that would replace it has a longer name, which no file system takes.
    let file = folder.path().join("g".repeat(250));
    std::fs::write(&file, format!("{}\n", of_member(2))).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let node = builder(&network, 2, of_member(2)).grant_file(&file);
    let node = node.start().await.unwrap();
    node.join().await.unwrap();
    pass(4 * LIFE.as_secs()).await;
    assert!(node.access().own().is_ok(), "it fell out of the realm");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{}\n", of_member(2)));
}

/// A7: the file of the grant is damaged, before the start and while the node runs. The node says so, goes on with the grant that it has,
/// and the next one replaces the file.
#[tokio::test(start_paused = true)]
async fn a7_a_damaged_grant_file_keeps_no_node_out() {
    let (network, folder, log) = (Network::new(36), tempfile::tempdir().unwrap(), Log::start());
    let _issuer = issuer(&network, 1).await;
    let file = folder.path().join("grant");
    let damage = || {
        std::fs::write(&file, "macula_grant_half").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    let kept = || {
        let line = std::fs::read_to_string(&file).unwrap();
        line.parse::<Membership>().map(|it| it.chain).ok()
    };
    let said = || {
        log.lines(&["goes on without the grant in its file", "damaged or cut off"])
            .len()
    };
    damage();
    let without = Node::builder().network(&network).identity(identity(2)).realm(realm());
    let error = without.grant_file(&file).start().await.unwrap_err();
    let error = error.to_string();
    assert!(error.contains("cannot be read"), "{error}");

    let node = builder(&network, 2, of_member(2)).grant_file(&file);
    let node = node.start().await.unwrap();
    node.join().await.unwrap();
    assert_eq!(kept(), Some(of_member(2).chain));
    assert_eq!(said(), 1);
    damage();
    pass(LIFE.as_secs()).await;
    assert!(end(&node) > START + LIFE.as_secs(), "it is not renewed");
    assert_eq!(kept().as_ref(), node.access().own().unwrap().chain());
    assert_eq!(said(), 2);
}

/// A4, D5: a service whose records last longer than its node's grants is found all the time.
#[tokio::test(start_paused = true)]
async fn a4_a_service_is_published_with_each_new_grant() {
    const SHORT: u64 = 30 * 60;
    let network = Network::new(34);
    let life = Duration::from_secs(SHORT);
    let first = builder(&network, 1, membership(of_issuer(1))).grant_life(life);
    let first = first.start().await.unwrap();
    let by = of_issuer(1).verify(&realm(), START).unwrap();
    let chain = grant(2, START + SHORT).issue(&by, &identity(1)).unwrap();
    let echo = async |request: Request| Ok::<Bytes, Status>(request.into_payload());
    let node = builder(&network, 2, membership(chain)).ttl(Duration::from_secs(3600));
    let node = node.serve(SERVICE, echo).start().await.unwrap();
    node.join().await.unwrap();
    pass(60).await;
    for minute in 0..4 * SHORT / 60 {
        let found = first.lookup(&SERVICE.parse().unwrap()).await.unwrap();
        assert!(
            found.iter().any(|it| it.node_id == node.id()),
            "not found after {minute} min"
        );
        pass(60).await;
    }
}

/// A stranger guesses tokens: it is told nothing but no, and soon to wait.
#[tokio::test(start_paused = true)]
async fn a7_a_stranger_that_guesses_tokens_is_slowed_down() {
    let network = Network::new(26);
    let _issuer = issuer(&network, 1).await;
    let stranger = stranger(&network, 99).start().await.unwrap();
    let mut answers = Vec::new();
    for n in 0..100 {
        let guess = JoinRequest::Join {
            token: TokenId::from_bytes([n; TokenId::LEN]),
            secret: TokenSecret::from_bytes(&[n; TokenSecret::LEN]),
        };
        match stranger.visit(&at(1), &guess).await.unwrap().1 {
            JoinReply::Refused(refusal) => answers.push(refusal),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answers[0], JoinRefusal::UnknownToken);
    let busy = answers.iter().filter(|answer| **answer == JoinRefusal::Busy).count();
    assert!(busy > 30, "{busy} of 100 guesses had to wait");
}

/// A node that issues nothing says so, whatever it is asked for.
#[tokio::test(start_paused = true)]
async fn a7_a_member_that_is_no_issuer_gives_no_grant() {
    let network = Network::new(27);
    let _first = issuer(&network, 1).await;
    let _member = member(&network, 2).await;
    let stranger = stranger(&network, 7).start().await.unwrap();
    let reply = stranger
        .visit(&at(2), &JoinRequest::Renew(of_member(7).chain))
        .await
        .unwrap()
        .1;
    assert_eq!(reply, JoinReply::Refused(JoinRefusal::NoIssuer));
}
