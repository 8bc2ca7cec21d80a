//! Strangers and bad members of a closed realm, by hand: every byte that they send is the test's own (A2, A3, A5, A6, X12).
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::{
    clock::Clock,
    echoes,
    log::Log,
    loopback,
    raw::{Shown, client_tls, raw_client, raw_key, raw_server, server_builder},
    until,
};
use macula_transport::{Access, Config, DialError, Endpoint, HelloError, Identity, NoService, Role};
use macula_wire::{
    Chain, Grant, GrantRole, Issue, Member, Order, Patterns, Realm, RealmHash, RealmKey, RealmName, SecretKey,
    SignedRevocations, Signer as _, StatusCode, proto,
};
use prost::Message as _;

const NOW: u64 = 1_700_000_000;
/// The stream kinds of the protocol.
const CONTROL: u8 = 1;
const CALL: u8 = 2;
const DHT: u8 = 0x10;
const REVOCATIONS: u8 = 0x11;

/// The honest provider, an issuer, a member, and a node without any right.
const PROVIDER: u8 = 1;
const ISSUER: u8 = 2;
const MEMBER: u8 = 3;
const ATTACKER: u8 = 4;

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

fn only(service: &str) -> Patterns {
    Patterns::from_iter([service.parse().unwrap()])
}

/// A grant of node `n` for an hour: to call `echo`.
fn grant(n: u8) -> Grant {
    let node_id = secret(n).node_id();
    Grant::new(&realm(), node_id, NOW..=NOW + 3600).with_call(only("echo"))
}

/// The issuer, which lets clients in that call `echo`.
fn issuer() -> Member {
    let issue = Issue::new(GrantRole::Client, Patterns::NONE, only("echo"));
    let chain = grant(ISSUER).with_issue(issue).sign(&key()).unwrap();
    chain.verify(&realm(), NOW).unwrap()
}

fn link(chain: &Chain) -> proto::SignedGrant {
    proto::Chain::decode(chain.as_bytes().clone()).unwrap().grant.unwrap()
}

/// A grant that its signer's own software would refuse to sign.
fn forced(grant: &Grant, by: u8, issuer: Option<proto::SignedGrant>) -> Bytes {
    let body = link(&grant.sign(&key()).unwrap()).body;
    let tag = match issuer {
        None => "macula/v1/grant-by-realm\0",
        Some(_) => "macula/v1/grant-by-issuer\0",
    };
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [tag.as_bytes(), &length, &body].concat();
    let signature = Bytes::copy_from_slice(&secret(by).sign(&message));
    let grant = Some(proto::SignedGrant { body, signature });
    proto::Chain { grant, issuer }.encode_to_vec().into()
}

fn access(n: u8, chain: &Chain) -> Access {
    let access = Access::with_clock(realm(), secret(n).node_id(), Arc::new(|| NOW));
    access.set_grant(chain).unwrap();
    access
}

fn of_provider() -> Chain {
    grant(PROVIDER).with_role(GrantRole::Node).sign(&key()).unwrap()
}

fn provider_config() -> Config {
    Config::new(identity(PROVIDER))
        .with_role(Role::Node)
        .with_listen(loopback())
        .with_access(access(PROVIDER, &of_provider()))
}

async fn provider() -> Endpoint {
    let (handler, _events) = common::Service::new();
    Endpoint::bind(provider_config(), handler).await.unwrap()
}

/// Asserts that an honest member is served.
async fn still_serves(provider: &Endpoint) {
    let chain = grant(MEMBER).issue(&issuer(), &secret(ISSUER)).unwrap();
    let member = Config::new(identity(MEMBER)).with_access(access(MEMBER, &chain));
    let member = Endpoint::bind(member, NoService).await.unwrap();
    let connection = common::connect(&member, provider).await.unwrap();
    echoes(&connection, "still here").await;
}

fn hello_frame(realm: &RealmHash, role: proto::Role, chain: Bytes) -> Bytes {
    let hello = proto::Hello {
        version: 1,
        realm: Bytes::copy_from_slice(realm.as_bytes()),
        role: role.into(),
        max_message_bytes: 4 << 20,
        max_concurrent_calls: 100,
        chain,
        ..Default::default()
    };
    let kind = Some(proto::control::Kind::Hello(hello));
    macula_wire::frame(&proto::Control { kind })
}

fn head_frame(service: &str) -> Bytes {
    let head = proto::Head {
        service: service.into(),
        timeout_us: 60_000_000,
        end: true,
        ..Default::default()
    };
    let kind = Some(proto::call_frame::Kind::Head(head));
    macula_wire::frame(&proto::CallFrame { call: 0, kind })
}

/// A connection of node `n` that has proved its key and said nothing.
async fn raw_connection(endpoint: &quinn::Endpoint, n: u8, to: &Endpoint) -> quinn::Connection {
    let tls = client_tls(Shown::Key(identity(n)), b"macula/1");
    endpoint.connect_with(tls, to.local_addr(), "x").unwrap().await.unwrap()
}

/// Opens a stream of this kind with this content, and does not wait for an answer.
async fn stream(connection: &quinn::Connection, kind: u8, content: &[u8]) -> (quinn::SendStream, quinn::RecvStream) {
    let (mut send, recv) = connection.open_bi().await.unwrap();
    send.write_all(&[&[kind], content].concat()).await.unwrap();
    (send, recv)
}

/// Why the peer closed the connection, and that it sent nothing before on `recv`.
async fn turned_away(connection: &quinn::Connection, mut recv: quinn::RecvStream) -> String {
    let read = recv.read_chunk(1, true).await;
    assert!(!matches!(read, Ok(Some(_))), "the node says something: {read:?}");
    match connection.closed().await {
        quinn::ConnectionError::ApplicationClosed(close) => String::from_utf8_lossy(&close.reason).into_owned(),
        other => panic!("not closed by the node: {other}"),
    }
}

/// The chains of the attacker that the realm did not make, or not for this node, role or time; and the words of each refusal.
fn bad_chains() -> Vec<(&'static str, Bytes, proto::Role)> {
    let by_issuer = Some(link(issuer().chain().unwrap()));
    let sign = |grant: Grant| grant.sign(&key()).unwrap().as_bytes().clone();
    let dated = |dates| Grant::new(&realm(), secret(ATTACKER).node_id(), dates);
    let foreign_key = RealmKey::from_bytes(&[201; 32]);
    let foreign_realm = foreign_key.realm(RealmName::new("shop").unwrap());
    let foreign = Grant::new(&foreign_realm, secret(ATTACKER).node_id(), NOW..=NOW + 3600);
    let foreign = foreign.sign(&foreign_key).unwrap().as_bytes().clone();
    let wide = grant(ATTACKER).with_role(GrantRole::Node);
    let of_member = grant(MEMBER).issue(&issuer(), &secret(ISSUER)).unwrap();
    let good = sign(grant(ATTACKER));
    let client = proto::Role::Client;
    vec![
        ("no grant was shown", Bytes::new(), client),
        ("signature is neither", forced(&grant(ATTACKER), ATTACKER, None), client),
        (
            "signature is neither",
            forced(&grant(ATTACKER), ATTACKER, by_issuer.clone()),
            client,
        ),
        ("ended 1 s ago", sign(dated(NOW - 60..=NOW - 1)), client),
        ("begins in 900 s", sign(dated(NOW + 900..=NOW + 3600)), client),
        ("beyond its issuer's", forced(&wide, ISSUER, by_issuer), client),
        (
            "may not issue",
            forced(&grant(ATTACKER), MEMBER, Some(link(&of_member))),
            client,
        ),
        ("another realm", foreign, client),
        ("is of node", of_member.as_bytes().clone(), client),
        ("a client at most", good.clone(), proto::Role::Node),
        ("more than 1024", vec![7; 1025].into(), client),
        ("cannot be read", good.slice(..good.len() - 1), client),
    ]
}

/// A3: beside its bad chain the attacker sends a call, a request to the directory and a revocation, as if it had been let in.
#[tokio::test]
async fn a3_no_chain_that_the_realm_did_not_make_opens_anything() {
    let log = Log::start();
    let clock = Clock::stop();
    let provider = provider().await;
    let endpoint = raw_client();
    let chains = bad_chains();
    let bad = chains.len() as u64;
    for (words, chain, role) in chains {
        let connection = raw_connection(&endpoint, ATTACKER, &provider).await;
        let hello = hello_frame(&realm().hash(), role, chain);
        let (_send, recv) = stream(&connection, CONTROL, &hello).await;
        let beside = [
            stream(&connection, CALL, &head_frame("echo")).await,
            stream(&connection, DHT, b"\x01x").await,
            stream(&connection, REVOCATIONS, b"\x01x").await,
        ];
        let why = turned_away(&connection, recv).await;
        assert!(why.contains(words), "{why} does not say {words}");
        for (_, mut recv) in beside {
            assert!(!matches!(recv.read_chunk(1, true).await, Ok(Some(_))));
        }
    }
    let stats = provider.stats();
    assert_eq!((stats.rejected_hellos, stats.rejected_grants), (bad, bad));
    assert_eq!((stats.calls_taken, stats.connections), (0, 0));
    // The log names the first one, and counts the others when it speaks again.
    let id = secret(ATTACKER).node_id().to_string();
    let [line] = &log.lines("was turned away")[..] else {
        panic!("{:?}", log.lines(""))
    };
    assert!(line.contains(&id) && line.contains("no grant was shown"), "{line}");
    clock.pass(std::time::Duration::from_secs(1)).await;
    let connection = raw_connection(&endpoint, ATTACKER, &provider).await;
    let hello = hello_frame(&realm().hash(), proto::Role::Client, Bytes::new());
    let (_send, recv) = stream(&connection, CONTROL, &hello).await;
    turned_away(&connection, recv).await;
    let lines = log.lines("was turned away");
    assert!(lines[1].contains(&format!("unsaid={}", bad - 1)), "{lines:?}");
    still_serves(&provider).await;
}

/// A3: whatever an attacker opens before its introduction, the node reads none of it.
#[tokio::test]
async fn a3_nothing_is_read_before_the_introduction() {
    let provider = provider().await;
    let endpoint = raw_client();
    for (turned, kind) in (1..).zip([CALL, 3, 4, DHT, REVOCATIONS]) {
        let connection = raw_connection(&endpoint, ATTACKER, &provider).await;
        let (_send, recv) = stream(&connection, kind, &head_frame("echo")).await;
        turned_away(&connection, recv).await;
        assert_eq!(provider.stats().rejected_hellos, turned);
    }
    assert_eq!(provider.stats().calls_taken, 0);
    still_serves(&provider).await;
}

/// A node that was revoked shows the grant that was good before.
#[tokio::test]
async fn a6_a_revoked_node_is_turned_away_by_name() {
    let log = Log::start();
    let provider = provider().await;
    let order = Order::revoke(secret(ATTACKER).node_id(), NOW);
    let orders = SignedRevocations::sign(&realm(), &key(), [order]).unwrap();
    provider.access().revoke(&orders).unwrap();
    let connection = raw_connection(&raw_client(), ATTACKER, &provider).await;
    let chain = grant(ATTACKER).sign(&key()).unwrap().as_bytes().clone();
    let hello = hello_frame(&realm().hash(), proto::Role::Client, chain);
    let (_send, recv) = stream(&connection, CONTROL, &hello).await;
    let why = turned_away(&connection, recv).await;
    assert!(why.contains("was revoked"), "{why}");
    assert_eq!(provider.stats().rejected_grants, 1);
    assert_eq!(log.lines("was revoked").len(), 1);
    still_serves(&provider).await;
}

/// A member that was let in: its control stream is open.
async fn member(endpoint: &quinn::Endpoint, to: &Endpoint) -> (quinn::Connection, quinn::SendStream) {
    member_of(endpoint, MEMBER, to).await
}

async fn member_of(endpoint: &quinn::Endpoint, n: u8, to: &Endpoint) -> (quinn::Connection, quinn::SendStream) {
    let connection = raw_connection(endpoint, n, to).await;
    let chain = grant(n).issue(&issuer(), &secret(ISSUER)).unwrap();
    let hello = hello_frame(&realm().hash(), proto::Role::Client, chain.as_bytes().clone());
    let (send, mut recv) = stream(&connection, CONTROL, &hello).await;
    recv.read_chunk(1, true).await.unwrap().unwrap();
    (connection, send)
}

/// The status of the reply to a call that is made by hand.
async fn called(connection: &quinn::Connection, service: &str) -> StatusCode {
    let (_send, mut recv) = stream(connection, CALL, &head_frame(service)).await;
    let reply = Bytes::from(recv.read_to_end(1 << 16).await.unwrap());
    let mut decoder = &reply[..];
    let mut last = None;
    while !decoder.is_empty() {
        last = proto::CallFrame::decode_length_delimited(&mut decoder).unwrap().kind;
    }
    match last {
        Some(proto::call_frame::Kind::Trailers(trailers)) => StatusCode::from_u32(trailers.status),
        other => panic!("the reply does not end with trailers: {other:?}"),
    }
}

/// A5: a hundred calls that the grant does not allow, and one line in the log.
#[tokio::test]
async fn a5_calls_without_right_are_denied_and_counted_and_their_caller_is_named_once() {
    let log = Log::start();
    let provider = provider().await;
    let (connection, _control) = member(&raw_client(), &provider).await;
    for _ in 0..100 {
        assert_eq!(called(&connection, "whoami").await, StatusCode::PermissionDenied);
    }
    assert_eq!(called(&connection, "echo").await, StatusCode::Ok);
    assert_eq!(provider.stats().calls_denied, 100);
    // A new connection is no way to be named again, and no caller hides another.
    let (again, _control) = member(&raw_client(), &provider).await;
    called(&again, "whoami").await;
    let (other, _control) = member_of(&raw_client(), ATTACKER, &provider).await;
    called(&other, "whoami").await;
    let lines = log.lines("a call was denied");
    assert_eq!(lines.len(), 2, "{lines:?}");
    for (line, n) in lines.iter().zip([MEMBER, ATTACKER]) {
        let id = secret(n).node_id().to_string();
        assert!(line.contains(&id) && line.contains("whoami"), "{line}");
    }
}

/// A2: a member renews its grant by one that the realm did not make. It keeps the rights that it had, and no others.
#[tokio::test]
async fn a2_a_renewed_grant_that_widens_gives_nothing() {
    let log = Log::start();
    let provider = provider().await;
    let (connection, mut control) = member(&raw_client(), &provider).await;
    let wide = grant(MEMBER).with_call(Patterns::all());
    let by_issuer = Some(link(issuer().chain().unwrap()));
    let forgeries = [
        forced(&wide, MEMBER, None),
        forced(&wide, ISSUER, by_issuer),
        vec![7; 1025].into(),
    ];
    let renewed = |chain: &Bytes| {
        let chain = chain.clone();
        let kind = Some(proto::control::Kind::Renewed(proto::Renewed { chain }));
        macula_wire::frame(&proto::Control { kind })
    };
    for chain in &forgeries {
        control.write_all(&renewed(chain)).await.unwrap();
    }
    until("they are counted", || provider.stats().rejected_renewals == 3).await;
    assert_eq!(called(&connection, "whoami").await, StatusCode::PermissionDenied);
    assert_eq!(called(&connection, "echo").await, StatusCode::Ok);
    assert_eq!(log.lines("renewed grant is not valid").len(), 1);
    // It goes on, and each forgery costs the provider signature checks.
    for _ in 0..5 {
        control.write_all(&renewed(&forgeries[1])).await.unwrap();
    }
    until("it is let go", || connection.close_reason().is_some()).await;
    assert_eq!(provider.stats().rejected_renewals, 8);
}

/// A6: a member grants its control stream no more credit, so that nothing can be said to it, and is revoked.
#[tokio::test]
async fn a6_a_member_that_takes_no_control_messages_does_not_outlive_its_grant() {
    let provider = provider().await;
    let mut tls = client_tls(Shown::Key(identity(MEMBER)), b"macula/1");
    let mut transport = quinn::TransportConfig::default();
    transport.stream_receive_window(1024_u32.into());
    tls.transport_config(Arc::new(transport));
    let endpoint = raw_client();
    let connection = endpoint.connect_with(tls, provider.local_addr(), "x").unwrap();
    let connection = connection.await.unwrap();
    let chain = grant(MEMBER).issue(&issuer(), &secret(ISSUER)).unwrap();
    let hello = hello_frame(&realm().hash(), proto::Role::Client, chain.as_bytes().clone());
    let (mut control, _unread) = stream(&connection, CONTROL, &hello).await;
    until("it is let in", || provider.stats().connections == 1).await;
    let probe = proto::Probe { nonce: u64::MAX };
    let kind = Some(proto::control::Kind::Probe(probe));
    let probe = macula_wire::frame(&proto::Control { kind });
    control.write_all(&probe.repeat(500)).await.unwrap();
    assert_eq!(called(&connection, "echo").await, StatusCode::Ok);
    let renewed = grant(PROVIDER).with_role(GrantRole::Node).with_label("team", "infra");
    provider.access().set_grant(&renewed.sign(&key()).unwrap()).unwrap();
    assert_eq!(called(&connection, "echo").await, StatusCode::Ok);
    let order = Order::revoke(secret(MEMBER).node_id(), NOW);
    let orders = SignedRevocations::sign(&realm(), &key(), [order]).unwrap();
    provider.access().revoke(&orders).unwrap();
    until("the connection ends", || connection.close_reason().is_some()).await;
    assert_eq!(provider.stats().grants_ended, 1);
}

/// X12: a node that dials an address without knowing which node listens there shows neither its realm nor its grant to a stranger.
#[tokio::test]
async fn x12_a_dialer_that_does_not_know_its_peer_waits_for_the_peers_grant() {
    let resolver = rustls::server::AlwaysResolvesServerRawPublicKeys::new(raw_key(&identity(9), &identity(9)));
    let listener = raw_server(server_builder().with_cert_resolver(Arc::new(resolver)), b"macula/1");
    let at = listener.local_addr().unwrap().try_into().unwrap();
    let dialer = Endpoint::bind(provider_config(), NoService).await.unwrap();
    let other = RealmKey::from_bytes(&[201; 32]).realm(RealmName::new("shop").unwrap());
    let lies = [
        (other.hash(), Bytes::new()),
        (realm().hash(), Bytes::new()),
        (realm().hash(), forced(&grant(9), 9, None)),
    ];
    for (realm, chain) in lies {
        let hello = hello_frame(&realm, proto::Role::Node, chain);
        let pool = dialer.pool();
        let (dialed, heard) = tokio::join!(pool.first_contact(&at), async {
            let connection = listener.accept().await.unwrap().await.unwrap();
            let (mut send, mut recv) = connection.accept_bi().await.unwrap();
            let mut heard = vec![0; 4];
            recv.read_exact(&mut heard).await.unwrap();
            send.write_all(&hello).await.unwrap();
            while let Ok(Some(more)) = recv.read_chunk(1024, true).await {
                heard.extend_from_slice(&more.bytes);
            }
            heard
        });
        let error = dialed.unwrap_err();
        assert!(
            matches!(
                &error,
                DialError::Hello {
                    source: HelloError::Realm | HelloError::Access(_),
                    ..
                }
            ),
            "{error:?}"
        );
        let ask = Some(proto::control::Kind::Ask(proto::Ask {}));
        let ask = macula_wire::frame(&proto::Control { kind: ask });
        assert_eq!(heard, [&[CONTROL], &ask[..]].concat(), "it says more than its question");
    }
}
