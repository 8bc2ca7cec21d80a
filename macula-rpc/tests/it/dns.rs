//! Providers from the domain name system, asked of a small server in this process.

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use macula_rpc::{CallError, DnsResolver, NodeId, Resolve, ResolveError, ResolveOptions, Source};
use tokio::net::UdpSocket;

use crate::mesh::{Peer, caller, name};

const A: u16 = 1;
const AAAA: u16 = 28;
const TXT: u16 = 16;
const SRV: u16 = 33;

type Zone = HashMap<(String, u16), Vec<(u32, Vec<u8>)>>;

/// A server of one zone (RFC 1035, section 4.1). It answers "no such name" for names that it does not have.
#[derive(Clone, Default)]
struct Dns {
    zone: Arc<Mutex<Zone>>,
    asked: Arc<AtomicUsize>,
    /// Answers that it cannot answer.
    fails: Arc<AtomicBool>,
    /// The same for some questions only.
    fails_for: Arc<Mutex<HashSet<(String, u16)>>>,
    /// Answers nothing.
    silent: Arc<AtomicBool>,
}

fn labels(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.trim_end_matches('.').split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

impl Dns {
    fn set(&self, name: &str, kind: u16, records: Vec<(u32, Vec<u8>)>) {
        self.zone.lock().unwrap().insert((name.to_owned(), kind), records);
    }

    fn srv(&self, name: &str, targets: &[(u16, u16, &str)]) {
        let record = |(priority, port, target): &(u16, u16, &str)| {
            let mut data = Vec::new();
            data.extend(priority.to_be_bytes());
            data.extend(10_u16.to_be_bytes());
            data.extend(port.to_be_bytes());
            data.extend(labels(target));
            (60, data)
        };
        self.set(name, SRV, targets.iter().map(record).collect());
    }

    fn id(&self, host: &str, id: NodeId) {
        let text = format!("macula={id}");
        self.set(host, TXT, vec![(60, [&[text.len() as u8], text.as_bytes()].concat())]);
    }

    fn fail_for(&self, name: &str, kind: u16) {
        self.fails_for.lock().unwrap().insert((name.to_owned(), kind));
    }

    fn address(&self, host: &str) {
        self.set(host, A, vec![(60, Ipv4Addr::LOCALHOST.octets().to_vec())]);
    }

    async fn start(&self) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        let server = self.clone();
        tokio::spawn(async move {
            let mut query = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut query).await {
                let answer = server.answer(&query[..length]);
                if !server.silent.load(SeqCst) {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        addr
    }

    fn answer(&self, query: &[u8]) -> Vec<u8> {
        self.asked.fetch_add(1, SeqCst);
        let mut name = Vec::new();
        let mut at = 12;
        while query[at] != 0 {
            let end = at + 1 + usize::from(query[at]);
            name.push(String::from_utf8_lossy(&query[at + 1..end]).to_ascii_lowercase());
            at = end;
        }
        let question = &query[12..at + 5];
        let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
        let zone = self.zone.lock().unwrap();
        let records = zone.get(&(name.join("."), kind)).cloned().unwrap_or_default();
        let fails = self.fails.load(SeqCst) || self.fails_for.lock().unwrap().contains(&(name.join("."), kind));
        let records = if fails { Vec::new() } else { records };
        let code = match (fails, records.is_empty()) {
            (true, _) => 2,
            (false, true) => 3,
            (false, false) => 0,
        };
        let mut answer = query[..2].to_vec();
        // A response, authoritative, to a question that asked for recursion, and recursion is there.
        answer.extend([0x85, 0x80 | code, 0, 1]);
        answer.extend((records.len() as u16).to_be_bytes());
        answer.extend([0; 4]);
        answer.extend(question);
        for (ttl, data) in records {
            // The name is the question's.
            answer.extend([0xc0, 12]);
            answer.extend(kind.to_be_bytes());
            answer.extend([0, 1]);
            answer.extend(ttl.to_be_bytes());
            answer.extend((data.len() as u16).to_be_bytes());
            answer.extend(data);
        }
        answer
    }
}

fn port(peer: &Peer) -> u16 {
    peer.endpoint.local_addr().port()
}

#[tokio::test]
async fn srv_records_name_the_hosts_and_txt_records_their_ids() {
    let peers = [Peer::echo().await, Peer::echo().await];
    let dns = Dns::default();
    dns.srv(
        "_c._udp.mesh.test",
        &[
            (0, port(&peers[0]), "one.mesh.test"),
            (0, port(&peers[1]), "two.mesh.test"),
        ],
    );
    for (host, peer) in ["one.mesh.test", "two.mesh.test"].into_iter().zip(&peers) {
        dns.id(host, peer.id());
        dns.address(host);
    }
    let directory = DnsResolver::asking([dns.start().await])
        .unwrap()
        .with_srv(name(), "_c._udp.mesh.test");
    let (_endpoint, builder) = caller(directory).await;
    let client = builder.strategy(macula_rpc::Strategy::RoundRobin).build();
    for _ in 0..4 {
        assert_eq!(client.call(name(), "x").await.unwrap(), "x");
    }
    assert_eq!(peers.each_ref().map(Peer::calls), [2, 2]);
    let error = client.call("no.such", "").await.unwrap_err();
    assert!(matches!(error, CallError::ServiceNotFound { .. }), "{error}");
}

#[tokio::test]
async fn a_wrong_id_is_not_called_and_a_host_without_one_is_passed_over() {
    let peers = [Peer::echo().await, Peer::echo().await];
    let dns = Dns::default();
    dns.srv(
        "c.test",
        &[(0, port(&peers[0]), "one.test"), (1, port(&peers[1]), "two.test")],
    );
    dns.address("one.test");
    dns.address("two.test");
    dns.id("two.test", peers[1].id());
    let directory = DnsResolver::asking([dns.start().await])
        .unwrap()
        .with_srv(name(), "c.test");
    // No host of the lower priority has a known id, so the next priority counts.
    let found = directory.resolve(&name(), ResolveOptions::default()).await.unwrap();
    assert_eq!(
        found.providers.iter().map(|it| it.node_id).collect::<Vec<_>>(),
        [peers[1].id()]
    );

    // The host has another id, so the connection is refused.
    dns.id("two.test", peers[0].id());
    let (_endpoint, builder) = caller(directory).await;
    let error = builder
        .build()
        .request(name())
        .force_refresh()
        .send("x")
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::AllProvidersFailed { .. }), "{error}");
    assert_eq!(peers[1].calls(), 0);
}

#[tokio::test]
async fn d7_records_are_kept_while_they_are_valid_and_looked_up_again_when_forced() {
    let peer = Peer::echo().await;
    let dns = Dns::default();
    let host = format!("store.test:{}", port(&peer)).parse().unwrap();
    dns.address("store.test");
    let directory = DnsResolver::asking([dns.start().await])
        .unwrap()
        .with_hosts(name(), [(peer.id(), host)]);
    let first = directory.resolve(&name(), ResolveOptions::default()).await.unwrap();
    let asked = dns.asked.load(SeqCst);
    let again = directory.resolve(&name(), ResolveOptions::default()).await.unwrap();
    assert_eq!(
        (first.source, again.source, dns.asked.load(SeqCst)),
        (Source::Dns, Source::Cache, asked)
    );
    let forced = directory
        .resolve(&name(), ResolveOptions::default().with_force_refresh(true))
        .await
        .unwrap();
    assert_eq!(forced.source, Source::Dns);
    assert!(dns.asked.load(SeqCst) > asked);
    // Nothing has changed: the same list.
    assert!(Arc::ptr_eq(&first.providers, &forced.providers));

    dns.set("store.test", A, vec![(60, vec![127, 0, 0, 2])]);
    let moved = directory
        .resolve(&name(), ResolveOptions::default().with_force_refresh(true))
        .await
        .unwrap();
    assert_eq!(moved.providers[0].endpoints[0].host(), "127.0.0.2");

    dns.zone.lock().unwrap().clear();
    let gone = directory
        .resolve(&name(), ResolveOptions::default().with_force_refresh(true))
        .await
        .unwrap();
    assert!(gone.providers.is_empty());
}

#[tokio::test]
async fn n3_a_list_is_used_further_while_the_name_servers_fail() {
    let peer = Peer::echo().await;
    let dns = Dns::default();
    let host = format!("store.test:{}", port(&peer)).parse().unwrap();
    dns.address("store.test");
    let directory = DnsResolver::asking([dns.start().await])
        .unwrap()
        .with_hosts(name(), [(peer.id(), host)])
        .with_srv("never.known".parse().unwrap(), "never.test");
    let refresh = ResolveOptions::default().with_force_refresh(true);
    let known = directory.resolve(&name(), refresh).await.unwrap();
    dns.fails.store(true, SeqCst);
    let stale = directory.resolve(&name(), refresh).await.unwrap();
    assert_eq!((stale.source, stale.providers.len()), (Source::Cache, 1));
    assert!(Arc::ptr_eq(&known.providers, &stale.providers));
    let unknown = directory.resolve(&"never.known".parse().unwrap(), refresh).await;
    assert!(matches!(unknown, Err(ResolveError::Lookup(_))), "{unknown:?}");

    let (_endpoint, builder) = caller(directory).await;
    let call = builder.build().request(name()).force_refresh();
    assert_eq!(call.send("x").await.unwrap().payload(), "x");
}

#[tokio::test]
async fn a_host_that_cannot_be_looked_up_stays_what_it_was_and_keeps_no_other_from_being_called() {
    let peers = [Peer::echo().await, Peer::echo().await];
    let dns = Dns::default();
    dns.srv(
        "c.test",
        &[(0, port(&peers[0]), "one.test"), (0, port(&peers[1]), "two.test")],
    );
    for (host, peer) in ["one.test", "two.test"].into_iter().zip(&peers) {
        dns.id(host, peer.id());
        dns.address(host);
    }
    let server = dns.start().await;
    let directory = || DnsResolver::asking([server]).unwrap().with_srv(name(), "c.test");
    let refresh = ResolveOptions::default().with_force_refresh(true);
    let ids = async |directory: &DnsResolver| {
        let found = directory.resolve(&name(), refresh).await.unwrap();
        found.providers.iter().map(|it| it.node_id).collect::<HashSet<_>>()
    };
    let known = directory();
    assert_eq!(ids(&known).await, peers.each_ref().map(Peer::id).into());

    dns.fail_for("two.test", TXT);
    assert_eq!(ids(&known).await, peers.each_ref().map(Peer::id).into());
    assert_eq!(ids(&directory()).await, [peers[0].id()].into(), "it was never known");
}

#[tokio::test]
async fn a_host_has_the_addresses_of_one_family_when_the_other_is_not_answered_for() {
    let peer = Peer::echo().await;
    let dns = Dns::default();
    let host = format!("store.test:{}", port(&peer)).parse().unwrap();
    dns.address("store.test");
    dns.fail_for("store.test", AAAA);
    let directory = DnsResolver::asking([dns.start().await])
        .unwrap()
        .with_hosts(name(), [(peer.id(), host)]);
    let (_endpoint, builder) = caller(directory).await;
    assert_eq!(builder.build().call(name(), "x").await.unwrap(), "x");
}

// With `testing` the clock can be set.
#[cfg(feature = "testing")]
/// N3: silent name servers delay some calls and fail none, as long as there is a list.
#[tokio::test]
async fn n3_silent_name_servers_fail_no_call_and_count_again_when_they_are_back() {
    use std::time::Duration;

    let peer = Peer::echo().await;
    let dns = Dns::default();
    let host: macula_rpc::Address = format!("store.test:{}", port(&peer)).parse().unwrap();
    dns.address("store.test");
    let never: macula_rpc::ServiceName = "never.known".parse().unwrap();
    let directory = DnsResolver::asking([dns.start().await])
        .unwrap()
        .with_hosts(name(), [(peer.id(), host.clone())])
        .with_hosts(never.clone(), [(peer.id(), host)]);
    let usual = ResolveOptions::default();
    let known = directory.resolve(&name(), usual).await.unwrap();

    dns.silent.store(true, SeqCst);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    for _ in 0..20 {
        let start = tokio::time::Instant::now();
        // A caller that gives up leaves the lookup to the others.
        let service = name();
        let _ = tokio::time::timeout(Duration::from_millis(10), directory.resolve(&service, usual)).await;
        let stale = directory.resolve(&name(), usual).await.unwrap();
        assert_eq!(stale.source, Source::Cache);
        assert!(Arc::ptr_eq(&known.providers, &stale.providers));
        assert!(start.elapsed() <= Duration::from_millis(1_020), "{:?}", start.elapsed());
        tokio::time::advance(Duration::from_secs(2)).await;
    }
    let start = tokio::time::Instant::now();
    let unknown = directory.resolve(&never, usual).await;
    assert!(matches!(unknown, Err(ResolveError::Lookup(_))), "{unknown:?}");
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());

    tokio::time::advance(Duration::from_secs(20)).await;
    tokio::time::resume();
    dns.silent.store(false, SeqCst);
    let refresh = usual.with_force_refresh(true);
    let back = directory.resolve(&name(), refresh).await.unwrap();
    assert_eq!(back.source, Source::Dns);
    assert_eq!(directory.resolve(&never, usual).await.unwrap().providers.len(), 1);
}

#[tokio::test]
async fn a_host_that_cannot_be_looked_up_does_not_keep_the_others_from_being_called() {
    let peers = [Peer::echo().await, Peer::echo().await, Peer::echo().await];
    let dns = Dns::default();
    let hosts = ["one.test", "two.test", "three.test"];
    let targets: Vec<_> = hosts
        .iter()
        .zip(&peers)
        .map(|(host, peer)| (0, port(peer), *host))
        .collect();
    dns.srv("c.test", &targets);
    for (host, peer) in hosts.iter().zip(&peers) {
        dns.id(host, peer.id());
        dns.address(host);
    }
    // The first host has no id, the second no addresses, and for the third the server refuses IPv6 questions.
    let broken = [
        ("one.test", TXT),
        ("two.test", A),
        ("two.test", AAAA),
        ("three.test", AAAA),
    ];
    for (host, kind) in broken {
        dns.fail_for(host, kind);
    }
    let directory = DnsResolver::asking([dns.start().await])
        .unwrap()
        .with_srv(name(), "c.test")
        .with_hosts(
            "by.host".parse().unwrap(),
            [&peers[1], &peers[2]]
                .into_iter()
                .zip(&hosts[1..])
                .map(|(peer, host)| (peer.id(), format!("{host}:{}", port(peer)).parse().unwrap())),
        );
    for service in [name(), "by.host".parse().unwrap()] {
        let found = directory.resolve(&service, ResolveOptions::default()).await.unwrap();
        let ids: Vec<_> = found.providers.iter().map(|it| it.node_id).collect();
        assert_eq!(ids, [peers[2].id()], "{service}");
    }
    dns.fail_for("three.test", A);
    let refresh = ResolveOptions::default().with_force_refresh(true);
    let stale = directory.resolve(&name(), refresh).await.unwrap();
    assert_eq!((stale.source, stale.providers.len()), (Source::Cache, 1));
}
