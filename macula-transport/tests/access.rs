//! Closed realms at the introduction and after it (A1, A3), in simulated time.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::{sync::Arc, time::Duration};

use futures::future::{BoxFuture, FutureExt as _};
use macula_transport::{
    Access, BindError, CallError, CallRequest, CloseCode, Config, Connection, DialError, Endpoint, Handler, Identity,
    IncomingCall, Lost, PoolConfig, PoolEvent, Reply, Role, Unknown, testing::Network,
};
use macula_wire::{
    AccessError, Chain, Grant, GrantRole, Order, Patterns, Realm, RealmKey, RealmName, SecretKey, SignedRevocations,
    StatusCode,
};
use tokio::time::sleep;

/// The Unix time at which the network in memory begins.
const START: u64 = 1_700_000_000;
const HOUR: u64 = 3600;
const DAY: Duration = Duration::from_secs(24 * HOUR);

/// Answers with whether the caller may call the service, or never.
struct Service;

impl Handler for Service {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        if call.service().as_str() == "hang" {
            return std::future::pending().boxed();
        }
        let peer = call.peer();
        let answer = (
            peer.may_call(call.service()),
            peer.member().labels().get("team").cloned(),
        );
        std::future::ready(Reply::ok(format!("{answer:?}"))).boxed()
    }
}

fn key() -> RealmKey {
    RealmKey::from_bytes(&[200; 32])
}

fn realm() -> Realm {
    key().realm(RealmName::new("shop").unwrap())
}

fn secret(n: u8) -> SecretKey {
    SecretKey::from_bytes(&[n; SecretKey::LEN])
}

fn identity(n: u8) -> Identity {
    Identity::from_secret(secret(n))
}

/// A grant of node `n` until the hour after `from`, for the services `one` and `hang` and one label.
fn grant(n: u8, from: u64) -> Grant {
    Grant::new(&realm(), identity(n).node_id(), from..=from + HOUR)
        .with_role(GrantRole::Node)
        .with_call(Patterns::from_iter(["one", "hang"].map(|name| name.parse().unwrap())))
        .with_label("team", "orders")
}

fn chain(n: u8) -> Chain {
    grant(n, START).sign(&key()).unwrap()
}

fn access(network: &Network, realm: Realm, n: u8) -> Access {
    let network = network.clone();
    let clock = Arc::new(move || START + network.elapsed().as_secs());
    Access::with_clock(realm, identity(n).node_id(), clock)
}

fn config(network: &Network, n: u8, access: Access) -> Config {
    Config::new(identity(n))
        .with_network(network)
        .with_role(Role::Node)
        .with_access(access)
        .with_pool(PoolConfig {
            idle_timeout: DAY,
            max_age: DAY,
            ..PoolConfig::default()
        })
        .with_listen(([10, 0, 0, n], 9443).into())
}

/// A member of the closed realm, by this grant.
async fn host(network: &Network, n: u8, chain: &Chain) -> Endpoint {
    let access = access(network, realm(), n);
    access.set_grant(chain).unwrap();
    Endpoint::bind(config(network, n, access), Service).await.unwrap()
}

fn at(n: u8) -> [macula_wire::Address; 1] {
    [std::net::SocketAddr::from(([10, 0, 0, n], 9443)).try_into().unwrap()]
}

async fn connect(from: &Endpoint, n: u8) -> Result<Connection, DialError> {
    from.pool().get(&identity(n).node_id(), &at(n)).await
}

async fn asked(connection: &Connection, service: &str) -> String {
    let service = service.parse().unwrap();
    let reply = connection.call(CallRequest::new(&service, "")).await.unwrap();
    match reply.status {
        StatusCode::Ok => String::from_utf8(reply.body.to_vec()).unwrap(),
        other => format!("{other:?}"),
    }
}

/// What a dialer that was refused is told.
fn told(error: &DialError) -> (CloseCode, String) {
    match error {
        DialError::Refused {
            source: Lost::ClosedByPeer { code, reason },
            ..
        } => (*code, reason.to_string()),
        other => panic!("not refused by the peer: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a3_members_of_a_closed_realm_know_each_others_rights() {
    let network = Network::new(1);
    let (one, two) = (host(&network, 1, &chain(1)).await, host(&network, 2, &chain(2)).await);
    let connection = connect(&one, 2).await.unwrap();
    assert_eq!(asked(&connection, "one").await, "(true, Some(\"orders\"))");
    assert_eq!(asked(&connection, "two").await, "PermissionDenied");
    assert_eq!(*connection.peer().member().node_id(), identity(2).node_id());
    // A first contact, by which the dialer does not know the node.
    let three = host(&network, 3, &chain(3)).await;
    let contact = three.pool().first_contact(&at(2)[0]).await.unwrap();
    assert_eq!(asked(&contact, "one").await, "(true, Some(\"orders\"))");
    assert_eq!((two.stats().rejected_hellos, two.stats().calls_denied), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a3_a_peer_without_a_valid_grant_learns_only_why_it_is_refused() {
    let network = Network::new(1);
    let provider = host(&network, 1, &chain(1)).await;
    let other = RealmKey::from_bytes(&[201; 32]).realm(RealmName::new("shop").unwrap());
    // Each is believed by the peer's own node, whose clock, realm key or identity is another.
    let stale = Grant::new(&realm(), identity(2).node_id(), START - 2 * HOUR..=START - 1).with_role(GrantRole::Node);
    let stale = stale.sign(&key()).unwrap();
    let early = grant(3, START + HOUR).sign(&key()).unwrap();
    let cases = [
        (2, stale, START - HOUR, CloseCode::GrantEnded, "ended 1 s ago"),
        (3, early, START + HOUR, CloseCode::NotAMember, "begins in 3600 s"),
    ];
    for (n, chain, clock, code, words) in cases {
        let access = Access::with_clock(realm(), identity(n).node_id(), Arc::new(move || clock));
        access.set_grant(&chain).unwrap();
        let dialer = Endpoint::bind(config(&network, n, access), Service).await.unwrap();
        let error = connect(&dialer, 1).await.unwrap_err();
        let (told_code, told_words) = told(&error);
        assert_eq!(told_code, code);
        assert!(told_words.contains(words), "{told_words}");
        assert_eq!(dialer.pool().stats().open, 0);
    }
    for (n, realm) in [(5, other.clone()), (6, Realm::new("shop").unwrap())] {
        let access = access(&network, realm.clone(), n);
        if realm.is_closed() {
            let foreign = Grant::new(&other, identity(n).node_id(), START..=START + HOUR).with_role(GrantRole::Node);
            access
                .set_grant(&foreign.sign(&RealmKey::from_bytes(&[201; 32])).unwrap())
                .unwrap();
        }
        let dialer = Endpoint::bind(config(&network, n, access), Service).await.unwrap();
        let error = connect(&dialer, 1).await.unwrap_err();
        assert!(
            matches!(
                error,
                DialError::Hello {
                    source: macula_transport::HelloError::Realm,
                    ..
                }
            ),
            "{error:?}"
        );
    }
    let stats = provider.stats();
    assert_eq!(
        (stats.rejected_hellos, stats.rejected_grants, stats.connections),
        (4, 2, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a3_a_node_without_a_grant_dials_no_one_and_one_with_too_small_a_grant_does_not_start() {
    let network = Network::new(1);
    let provider = host(&network, 1, &chain(1)).await;
    let late = access(&network, realm(), 2);
    let dialer = Endpoint::bind(config(&network, 2, late.clone()), Service)
        .await
        .unwrap();
    let error = connect(&dialer, 1).await.unwrap_err();
    assert!(matches!(error, DialError::Grant(AccessError::NoGrant)), "{error:?}");
    assert_eq!(
        late.set_grant(&chain(3)),
        Err(AccessError::OtherNode(identity(3).node_id()))
    );
    late.set_grant(&chain(2)).unwrap();
    sleep(Duration::from_secs(2)).await;
    connect(&dialer, 1).await.unwrap();
    assert_eq!(provider.stats().rejected_hellos, 0);

    let small = Grant::new(&realm(), identity(4).node_id(), START..=START + HOUR)
        .sign(&key())
        .unwrap();
    let access = access(&network, realm(), 4);
    access.set_grant(&small).unwrap();
    let error = Endpoint::bind(config(&network, 4, access), Service).await.unwrap_err();
    assert!(
        matches!(error, BindError::Grant(AccessError::Role(GrantRole::Client))),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a3_when_a_grant_ends_its_connections_and_calls_end() {
    let network = Network::new(1);
    let provider = host(&network, 1, &grant(1, START + 60).sign(&key()).unwrap()).await;
    let caller = host(&network, 2, &chain(2)).await;
    let connection = connect(&caller, 1).await.unwrap();
    let hang = "hang".parse().unwrap();
    let call = connection.call(CallRequest::new(&hang, "").with_timeout(Duration::from_secs(2 * HOUR)));
    let error = call.await.unwrap_err();
    let ended = network.elapsed();
    assert!(
        matches!(
            &error,
            CallError::Unknown(Unknown::Lost(Lost::ClosedByPeer {
                code: CloseCode::GrantEnded,
                ..
            }))
        ),
        "{error:?}"
    );
    assert!((HOUR..=HOUR + 1).contains(&ended.as_secs()), "{ended:?}");
    assert_eq!((provider.stats().grants_ended, provider.stats().connections), (1, 0));
    let error = connect(&caller, 1).await.unwrap_err();
    assert!(matches!(error, DialError::Grant(AccessError::Ended(_))), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a6_a_connection_outlives_the_grant_that_it_began_with() {
    let network = Network::new(1);
    let long = Grant::new(&realm(), identity(1).node_id(), START..=START + 9 * HOUR).with_role(GrantRole::Node);
    let provider = host(&network, 1, &long.sign(&key()).unwrap()).await;
    let caller = host(&network, 2, &chain(2)).await;
    let connection = connect(&caller, 1).await.unwrap();
    let mut events = caller.pool().events();
    sleep(Duration::from_secs(HOUR / 2)).await;
    let renewed = grant(2, START + HOUR / 2)
        .with_label("team", "mail")
        .with_call(Patterns::all());
    caller.access().set_grant(&renewed.sign(&key()).unwrap()).unwrap();
    sleep(Duration::from_secs(HOUR / 2 + 60)).await;
    assert_eq!(connection.lost(), None);
    assert_eq!(asked(&connection, "two").await, "(true, Some(\"mail\"))");
    let PoolEvent::Closed { reason, .. } = events.next().await.unwrap() else {
        panic!("nothing but the end happens");
    };
    assert!(
        matches!(
            reason,
            Lost::ClosedByPeer {
                code: CloseCode::GrantEnded,
                ..
            }
        ),
        "{reason:?}"
    );
    assert!(network.elapsed().as_secs() >= 3 * HOUR / 2);
    assert_eq!(provider.stats().rejected_renewals, 0);
}

#[tokio::test(start_paused = true)]
async fn a6_a_revocation_ends_what_is_open_and_keeps_the_node_out() {
    let network = Network::new(1);
    let provider = host(&network, 1, &chain(1)).await;
    let (bad, good) = (host(&network, 2, &chain(2)).await, host(&network, 3, &chain(3)).await);
    let (lost, kept) = (connect(&bad, 1).await.unwrap(), connect(&good, 1).await.unwrap());
    let list = SignedRevocations::sign(&realm(), &key(), [Order::revoke(identity(2).node_id(), START)]).unwrap();
    assert_eq!(provider.access().revoke(&list), Ok(true));
    assert_eq!(provider.access().revoke(&list), Ok(false));
    let mut events = bad.pool().events();
    let PoolEvent::Closed { reason, .. } = events.next().await.unwrap() else {
        panic!("the connection ends");
    };
    assert!(
        matches!(
            reason,
            Lost::ClosedByPeer {
                code: CloseCode::Revoked,
                ..
            }
        ),
        "{reason:?}"
    );
    assert!(lost.lost().is_some());
    assert_eq!(asked(&kept, "one").await, "(true, Some(\"orders\"))");
    assert_eq!(told(&connect(&bad, 1).await.unwrap_err()).0, CloseCode::Revoked);
    assert_eq!(provider.access().revocations(), [list]);
}
