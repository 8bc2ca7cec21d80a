//! `cargo xtask bench transport`: what a connection costs, within one process.
//!
//! With the feature `aws-lc-rs` the hybrid key exchange is measured beside the default one. Calls against other stacks, in
//! processes of their own, are `cargo xtask bench rpc`.
#![expect(clippy::print_stdout, reason = "prints its result")]

use std::{net::Ipv4Addr, time::Instant};

use futures::future::{BoxFuture, FutureExt as _};
use macula_transport::{CallRequest, Config, Endpoint, Handler, Identity, IncomingCall, KeyExchange, NoService, Reply};

struct Echo;

impl Handler for Echo {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        std::future::ready(Reply::ok(call.into_body())).boxed()
    }
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const HANDSHAKES: usize = 300;

fn config(key_exchange: KeyExchange) -> Result<Config> {
    let listen = (Ipv4Addr::LOCALHOST, 0).into();
    Ok(Config::new(Identity::generate()?)
        .with_listen(listen)
        .with_key_exchange(key_exchange))
}

/// The median and the 99th percentile of a handshake with the first call, and of a call after it, in microseconds.
async fn measure(key_exchange: KeyExchange) -> Result<[f64; 4]> {
    let server = Endpoint::bind(config(key_exchange)?, Echo).await?;
    let at = [server.local_addr().try_into()?];
    let service = "echo".parse()?;
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for _ in 0..HANDSHAKES {
        let client = Endpoint::bind(config(key_exchange)?, NoService).await?;
        let started = Instant::now();
        let connection = client.pool().get(&server.node_id(), &at).await?;
        connection.call(CallRequest::new(&service, "x")).await?;
        cold.push(started.elapsed().as_nanos() as f64 / 1000.0);
        let started = Instant::now();
        connection.call(CallRequest::new(&service, "x")).await?;
        warm.push(started.elapsed().as_nanos() as f64 / 1000.0);
    }
    cold.sort_unstable_by(f64::total_cmp);
    warm.sort_unstable_by(f64::total_cmp);
    let (median, late) = (HANDSHAKES / 2, HANDSHAKES * 99 / 100);
    Ok([cold[median], cold[late], warm[median], warm[late]].map(f64::round))
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
        let [cold, cold_late, warm, warm_late] = measure(key_exchange).await?;
        rows.push(format!(r#"["{name}",{cold},{cold_late},{warm},{warm_late}]"#));
    }
    println!(
        r#"{{"title":"Connections","seed":0,"tables":[{{"name":"a new connection with its first call, and a call after it, in one process","columns":["key exchange","new p50 us","new p99 us","open p50 us","open p99 us"],"rows":[{}]}}],"plots":[],"trace_hash":null,"notes":["{HANDSHAKES} connections each"]}}"#,
        rows.join(",")
    );
    Ok(())
}
