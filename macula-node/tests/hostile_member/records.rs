//! The attacker's own directory node: records without right, published and handed out (A4).

use std::time::Duration;

use macula_dht::{Outcome, Refusal, Request, Response};
use macula_node::{Bytes, Node, Patterns, RealmKey, ServiceName};
use macula_transport::{Connection, Protocol, testing::Network};
use macula_wire::{
    Advertisement, Grant, Place, Realm, RealmName, SecretKey, ServiceKey, SignedProvider, VerifiedProvider,
};

use crate::{BAD, OPEN, SAFE, START, addr, attacker::Attacker, chain, log::Log, provider, realm};

fn secret() -> SecretKey {
    SecretKey::from_bytes(&[BAD; SecretKey::LEN])
}

fn service_key(service: &str) -> ServiceKey {
    ServiceKey::new(&realm(), &service.parse().unwrap())
}

fn advertisement() -> Advertisement {
    Advertisement::new([addr(BAD).try_into().unwrap()])
}

/// A record of the attacker for a service that it may provide.
pub(crate) fn good(seq: u64) -> SignedProvider {
    let service: ServiceName = OPEN.parse().unwrap();
    let member = chain(BAD, START, crate::DAY, &[OPEN]).verify(&realm(), START).unwrap();
    let place = Place::of(&realm(), &service, &member).unwrap();
    let now = START * 1000;
    let record = VerifiedProvider::sign_at(&secret(), &place, seq, now, &advertisement());
    record.unwrap().to_signed()
}

/// Records of the attacker that prove nothing about this service.
fn unproven(service: &str) -> Vec<SignedProvider> {
    let open = Realm::new("shop").unwrap();
    let bare = VerifiedProvider::sign(
        &secret(),
        &open.hash(),
        &service_key(service),
        9,
        START * 1000,
        &advertisement(),
    );
    let other = RealmKey::from_bytes(&[8; 32]);
    let node_id = crate::identity(BAD).node_id();
    let foreign = Grant::new(
        &other.realm(RealmName::new("shop").unwrap()),
        node_id,
        START..=START + crate::DAY,
    );
    let foreign = foreign.with_provide(Patterns::all()).sign(&other).unwrap();
    let of_another = chain(7, START, crate::DAY, &["*"]);
    let with = |chain: Bytes| SignedProvider { chain, ..good(9) };
    vec![
        bare.unwrap().to_signed(),
        good(9),
        with(Bytes::new()),
        with(of_another.as_bytes().clone()),
        with(foreign.as_bytes().clone()),
        with(vec![0; 2000].into()),
    ]
}

async fn ask(connection: &Connection, request: Request) -> Response {
    let asked = connection.request(Protocol::Dht, request.encode(), Duration::from_secs(5));
    Response::decode(asked.await.unwrap()).unwrap()
}

async fn providers(node: &Node, service: &str) -> Vec<macula_node::NodeId> {
    let found = node.lookup(&service.parse().unwrap()).await.unwrap();
    found.iter().map(|provider| provider.node_id).collect()
}

#[tokio::test(start_paused = true)]
async fn a4_records_without_right_are_stored_by_no_node() {
    let (network, log) = (Network::new(41), Log::start());
    let nodes = [provider(&network, 1).await, provider(&network, 2).await];
    let attacker = Attacker::new(&network).await;
    for node in &nodes {
        let connection = attacker.connect(node).await;
        let before = node.directory_stats().dht.refused;
        for record in unproven(SAFE) {
            let key = service_key(SAFE);
            let publish = Request::Publish {
                key,
                records: vec![record],
            };
            let Response::Published { outcomes, .. } = ask(&connection, publish).await else {
                panic!("not answered")
            };
            assert_eq!(outcomes, [Outcome::Refused(Refusal::Invalid)]);
        }
        assert_eq!(
            node.directory_stats().dht.unproven,
            5,
            "one is too large to be looked at"
        );
        assert_eq!(node.directory_stats().dht.refused - before, 6);
        // What it may provide it may publish.
        let key = service_key(OPEN);
        let publish = Request::Publish {
            key,
            records: vec![good(9)],
        };
        let Response::Published { outcomes, .. } = ask(&connection, publish).await else {
            panic!("not answered")
        };
        assert_eq!(outcomes, [Outcome::Stored]);
    }
    let id = attacker.endpoint.node_id().to_string();
    let named = log.lines(&["without right", &id]);
    assert_eq!(named.len(), nodes.len(), "{named:?}");
    let honest = provider(&network, 3).await;
    let bad = attacker.endpoint.node_id();
    assert!(!providers(&honest, SAFE).await.contains(&bad));
    assert!(providers(&honest, OPEN).await.contains(&bad));
}

/// The attacker is in the others' tables and answers their lookups.
#[tokio::test(start_paused = true)]
async fn a4_a_lookup_uses_no_record_without_right_and_no_call_follows_it() {
    let network = Network::new(42);
    let first = provider(&network, 1).await;
    let attacker = Attacker::new(&network).await;
    let connection = attacker.connect(&first).await;
    ask(&connection, Request::Ping).await;
    let bad = attacker.endpoint.node_id();
    for (n, record) in (10..).zip(unproven(SAFE)) {
        attacker.lies(|lies| {
            lies.records = vec![record];
            lies.asked = 0;
        });
        // A newcomer, which knows no list yet.
        let caller = crate::builder(&network, n).bootstrap([crate::at(BAD)]);
        let caller = caller.start().await.unwrap();
        caller.join().await.unwrap();
        let found = providers(&caller, SAFE).await;
        assert!(attacker.lies(|lies| lies.asked) > 0, "the attacker was not asked");
        assert_eq!(found, [first.id()], "record {n}");
        let answer = caller.client().request(SAFE).remote_only().send("x").await.unwrap();
        assert_eq!(answer.payload()[..], b"x"[..]);
        assert!(caller.directory_stats().dht.misbehaved > 0, "it is not counted");
    }
    assert_eq!(attacker.lies(|lies| lies.called), 0, "{bad} was called");
}
