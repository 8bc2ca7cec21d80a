//! `cargo xtask bench transport`: what a connection costs, within one process.
//!
//! With the feature `aws-lc-rs` the hybrid key exchange is measured beside the default one. Calls against other stacks, in
//! processes of their own, are `cargo xtask bench rpc`.
#![expect(clippy::print_stdout, reason = "prints its result")]

use std::{net::Ipv4Addr, time::Instant};

use futures::future::{BoxFuture, FutureExt as _};
use macula_transport::{
    Access, CallError, CallRequest, Config, Endpoint, Handler, Identity, IncomingCall, KeyExchange, NoService, Reply,
};
use macula_wire::{
    Grant, GrantRole, Issue, NodeId, Patterns, Realm, RealmKey, RealmName, SecretKey, ServiceName, Signer as _,
};

struct Echo;

impl Handler for Echo {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        std::future::ready(Reply::ok(call.into_body())).boxed()
    }
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const HANDSHAKES: usize = 300;
/// Calls of one measurement, and how many are under way at a time.
const CALLS: usize = 100_000;
const BESIDE: usize = 64;
/// Measurements of each realm's calls, which take turns; the median counts.
const TURNS: usize = 7;

/// The open realm, or a closed one whose members show two grants.
#[derive(Clone, Copy)]
enum Kind {
    Open,
    Closed,
}

impl Kind {
    fn access(self, node_id: NodeId) -> Result<Access> {
        if let Self::Open = self {
            return Ok(Access::new(Realm::default(), node_id));
        }
        let key = RealmKey::from_bytes(&[9; 32]);
        let realm = key.realm(RealmName::default());
        let access = Access::new(realm.clone(), node_id);
        let day = access.now()..=access.now() + 24 * 60 * 60;
        let issuer = SecretKey::from_bytes(&[8; 32]);
        let shop = Patterns::from_iter(["shop.*".parse()?, "echo".parse()?, "mail.in".parse()?]);
        let issue = Issue::new(GrantRole::Node, shop.clone(), shop.clone());
        let own = Grant::new(&realm, issuer.node_id(), day.clone()).with_issue(issue);
        let own = own.sign(&key)?.verify(&realm, access.now())?;
        let grant = Grant::new(&realm, node_id, day)
            .with_provide(shop.clone())
            .with_call(shop);
        access.set_grant(&grant.issue(&own, &issuer)?)?;
        Ok(access)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }
}

fn config(key_exchange: KeyExchange, realm: Kind) -> Result<Config> {
    let listen = (Ipv4Addr::LOCALHOST, 0).into();
    let identity = Identity::generate()?;
    let access = realm.access(identity.node_id())?;
    Ok(Config::new(identity)
        .with_access(access)
        .with_listen(listen)
        .with_key_exchange(key_exchange))
}

fn middle(mut values: Vec<f64>) -> [f64; 2] {
    values.sort_unstable_by(f64::total_cmp);
    [values[values.len() / 2], values[values.len() * 99 / 100]].map(f64::round)
}

/// The median and the 99th percentile of a handshake with the first call, and of a call after it, in microseconds, for each realm. The
/// realms take turns.
async fn measure(key_exchange: KeyExchange) -> Result<[[f64; 4]; 2]> {
    let service = "echo".parse()?;
    let mut servers = Vec::new();
    for realm in [Kind::Open, Kind::Closed] {
        servers.push((realm, Endpoint::bind(config(key_exchange, realm)?, Echo).await?));
    }
    let mut times = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
    for _ in 0..HANDSHAKES {
        for ((realm, server), (cold, warm)) in servers.iter().zip(&mut times) {
            let at = [server.local_addr().try_into()?];
            let client = Endpoint::bind(config(key_exchange, *realm)?, NoService).await?;
            let started = Instant::now();
            let connection = client.pool().get(&server.node_id(), &at).await?;
            connection.call(CallRequest::new(&service, "x")).await?;
            cold.push(started.elapsed().as_nanos() as f64 / 1000.0);
            let started = Instant::now();
            connection.call(CallRequest::new(&service, "x")).await?;
            warm.push(started.elapsed().as_nanos() as f64 / 1000.0);
        }
    }
    Ok(times.map(|(cold, warm)| {
        let ([cold, cold_late], [warm, warm_late]) = (middle(cold), middle(warm));
        [cold, cold_late, warm, warm_late]
    }))
}

/// Calls a second over one connection with [`BESIDE`] under way, for each realm; the median of turns.
async fn throughput() -> Result<[f64; 2]> {
    let service: ServiceName = "echo".parse()?;
    let mut pairs = Vec::new();
    for realm in [Kind::Open, Kind::Closed] {
        let server = Endpoint::bind(config(KeyExchange::X25519, realm)?, Echo).await?;
        let client = Endpoint::bind(config(KeyExchange::X25519, realm)?, NoService).await?;
        pairs.push((server, client, Vec::new()));
    }
    for _ in 0..TURNS {
        for (server, client, rates) in &mut pairs {
            let connection = client
                .pool()
                .get(&server.node_id(), &[server.local_addr().try_into()?])
                .await?;
            let started = Instant::now();
            let workers = (0..BESIDE).map(|_| async {
                for _ in 0..CALLS / BESIDE {
                    connection.call(CallRequest::new(&service, "x")).await?;
                }
                Ok::<_, CallError>(())
            });
            futures::future::try_join_all(workers).await?;
            rates.push(CALLS as f64 / started.elapsed().as_secs_f64());
        }
    }
    let rates: Vec<_> = pairs.into_iter().map(|(_, _, rates)| middle(rates)[0]).collect();
    Ok([rates[0], rates[1]])
}

#[tokio::main]
async fn main() -> Result<()> {
    let kinds = [
        ("X25519", KeyExchange::X25519),
        #[cfg(feature = "aws-lc-rs")]
        ("X25519MLKEM768", KeyExchange::X25519MlKem768),
    ];
    let mut rows = Vec::new();
    for (name, key_exchange) in kinds {
        for (realm, row) in [Kind::Open, Kind::Closed].into_iter().zip(measure(key_exchange).await?) {
            let [cold, cold_late, warm, warm_late] = row;
            rows.push(format!(
                r#"["{name}","{}",{cold},{cold_late},{warm},{warm_late}]"#,
                realm.name()
            ));
        }
    }
    let [open, closed] = throughput().await?;
    println!(
        r#"{{"title":"Connections","seed":0,"tables":[{{"name":"a new connection with its first call, and a call after it, in one process","columns":["key exchange","realm","new p50 us","new p99 us","open p50 us","open p99 us"],"rows":[{}]}},{{"name":"calls over one connection, {BESIDE} under way","columns":["realm","calls/s"],"rows":[["open",{open}],["closed",{closed}]]}}],"plots":[],"trace_hash":null,"notes":["{HANDSHAKES} connections each; {TURNS} turns of {CALLS} calls each"]}}"#,
        rows.join(",")
    );
    Ok(())
}
