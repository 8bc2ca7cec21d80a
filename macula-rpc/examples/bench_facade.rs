//! What the facade costs over the bare transport, what a failover costs, and what a lookup costs that the cache saves.
//!
//! `cargo xtask bench facade`: caller and provider in one process, over real sockets; both sides of a comparison
//! alternate within one run, because absolute times are the machine's. One JSON document on standard output.
#![expect(clippy::print_stdout, reason = "the report is its output")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use macula_rpc::{
    Client, Provider, Request, Resolve, ResolveError, ResolveOptions, Resolved, Server, ServiceName, StaticResolver,
    Status, Strategy,
};
use macula_transport::{CallRequest, Config, Endpoint, Handler, Identity, IncomingCall, NoService, Reply};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Rounds of each side; the medians are of these.
const ROUNDS: usize = 9;

struct Bare;

impl Handler for Bare {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        Box::pin(std::future::ready(Reply::ok(call.into_body())))
    }
}

async fn node(handler: impl Handler) -> Result<(Endpoint, Provider), Failure> {
    let config = Config::new(Identity::generate()?).with_listen("127.0.0.1:0".parse()?);
    let endpoint = Endpoint::bind(config, handler).await?;
    let provider = Provider::new(endpoint.node_id(), [endpoint.local_addr().try_into()?]);
    Ok((endpoint, provider))
}

fn echoing(name: &ServiceName) -> Result<Server, Failure> {
    let server = Server::new();
    server.serve(name.clone(), async |request: Request| {
        Ok::<_, Status>(request.into_payload())
    })?;
    Ok(server)
}

/// Calls made by `callers` at once, each after its last one was answered: the time of one call, and of all.
async fn load<F: Future<Output = Result<(), Failure>>>(
    callers: usize,
    calls: usize,
    call: impl Fn() -> F,
) -> Result<(Duration, Vec<Duration>), Failure> {
    let done = AtomicUsize::new(0);
    let begin = Instant::now();
    let (done, call) = (&done, &call);
    let work = (0..callers).map(|_| async move {
        let mut times = Vec::new();
        while done.fetch_add(1, Relaxed) < calls {
            let start = Instant::now();
            call().await?;
            times.push(start.elapsed());
        }
        Ok::<_, Failure>(times)
    });
    let mut times = Vec::new();
    for each in join_all(work).await {
        times.extend(each?);
    }
    Ok((begin.elapsed(), times))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn round(value: f64) -> Value {
    json!((value * 100.0).round() / 100.0)
}

/// `Connection::call` against `Client::call`.
async fn facade() -> Result<Value, Failure> {
    let name: ServiceName = "bench.echo".parse()?;
    let (_bare, bare) = node(Bare).await?;
    let (_served, served) = node(echoing(&name)?).await?;
    let endpoint = Endpoint::bind(Config::new(Identity::generate()?), NoService).await?;
    let directory = StaticResolver::new().with_service(name.clone(), [served]);
    let client = Client::builder(&endpoint, directory).build();
    let connection = endpoint.pool().get(&bare.node_id, &bare.endpoints).await?;
    let payload = Bytes::from_static(&[7; 64]);

    let mut rows = Vec::new();
    for (callers, calls) in [(1, 2_000), (64, 40_000), (256, 60_000)] {
        let (mut below, mut above, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for at in 0..=ROUNDS {
            let raw = async || {
                connection.call(CallRequest::new(&name, payload.clone())).await?;
                Ok(())
            };
            let facade = async || {
                client.call(&name, payload.clone()).await?;
                Ok(())
            };
            let (raw, _) = load(callers, calls, raw).await?;
            let (facade, _) = load(callers, calls, facade).await?;
            // The first round opens connections and warms up.
            if at > 0 {
                let each = |total: Duration| micros(total) / calls as f64;
                below.push(each(raw));
                above.push(each(facade));
                ratios.push(facade.as_secs_f64() / raw.as_secs_f64());
            }
        }
        let (below, above) = (median(below), median(above));
        let overhead = (median(ratios) - 1.0) * 100.0;
        rows.push(json!([
            callers,
            round(below),
            round(above),
            round(above - below),
            round(overhead)
        ]));
        eprintln_progress(&format!("facade at {callers}: {overhead:.1} %"));
    }
    Ok(json!({
        "name": "time a call, 64 B, microseconds: Connection::call and Client::call",
        "columns": ["in flight", "transport", "client", "difference", "overhead, %"],
        "rows": rows,
    }))
}

#[expect(clippy::print_stderr, reason = "progress goes beside the report")]
fn eprintln_progress(text: &str) {
    eprintln!("{text}");
}

/// A first provider that fails in one way, and a second one that answers.
async fn failover() -> Result<Value, Failure> {
    const CALLS: usize = 300;

    let name: ServiceName = "bench.echo".parse()?;
    let (_served, good) = node(echoing(&name)?).await?;

    struct Broken;
    impl Handler for Broken {
        fn call(&self, _: IncomingCall) -> BoxFuture<'static, Reply> {
            Box::pin(std::future::ready(Reply::error(
                macula_rpc::StatusCode::Internal,
                "broken",
            )))
        }
    }
    struct Hangs;
    impl Handler for Hangs {
        fn call(&self, _: IncomingCall) -> BoxFuture<'static, Reply> {
            Box::pin(std::future::pending())
        }
    }
    let (_refuses, refuses) = node(NoService).await?;
    let (_broken, answers) = node(Broken).await?;
    let (_hangs, hangs) = node(Hangs).await?;

    let mut rows = Vec::new();
    let mut plain = 0.0;
    for (what, first, calls) in [
        ("none", None, CALLS),
        ("refusal", Some(refuses), CALLS),
        ("error answer", Some(answers), CALLS),
        ("timeout of 20 ms", Some(hangs), 50),
    ] {
        let providers = first.into_iter().chain([good.clone()]);
        let directory = StaticResolver::new().with_service(name.clone(), providers);
        let endpoint = Endpoint::bind(Config::new(Identity::generate()?), NoService).await?;
        let mut times = Vec::new();
        // A balancer soon passes over a provider that always fails: each call has a client that knows nothing yet, and shares
        // the connections.
        let directory = Arc::new(directory);
        for at in 0..=calls {
            let client = Client::builder(&endpoint, Arc::clone(&directory))
                .strategy(Strategy::First)
                .attempt_timeout(Duration::from_millis(20))
                .build();
            let start = Instant::now();
            client.call(&name, "x").await?;
            if at > 0 {
                times.push(micros(start.elapsed()));
            }
        }
        let time = median(times);
        if what == "none" {
            plain = time;
        }
        rows.push(json!([what, round(time), round(time - plain)]));
        eprintln_progress(&format!("failover after {what}: {time:.0} µs"));
    }
    Ok(json!({
        "name": "a call whose first attempt fails, microseconds",
        "columns": ["first attempt's failure", "median", "more than without"],
        "rows": rows,
    }))
}

/// A directory without a cache, asked over the network: what a lookup of one hop costs.
struct Remote {
    connection: macula_transport::Connection,
    question: ServiceName,
    providers: Arc<[Provider]>,
}

impl Resolve for Remote {
    fn resolve<'a>(
        &'a self,
        _service: &'a ServiceName,
        _options: ResolveOptions,
    ) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        Box::pin(async move {
            let asked = self.connection.call(CallRequest::new(&self.question, "who?")).await;
            asked.map_err(|_| ResolveError::Unreachable)?;
            Ok(Resolved {
                providers: Arc::clone(&self.providers),
                source: macula_rpc::Source::Dht,
            })
        })
    }
}

async fn lookup() -> Result<Value, Failure> {
    const CALLS: usize = 1_000;

    let name: ServiceName = "bench.echo".parse()?;
    let (_served, served) = node(echoing(&name)?).await?;
    let (_directory, asked) = node(Bare).await?;
    let endpoint = Endpoint::bind(Config::new(Identity::generate()?), NoService).await?;
    let cached = Client::builder(
        &endpoint,
        StaticResolver::new().with_service(name.clone(), [served.clone()]),
    )
    .build();
    let remote = Client::builder(
        &endpoint,
        Remote {
            connection: endpoint.pool().get(&asked.node_id, &asked.endpoints).await?,
            question: name.clone(),
            providers: [served].into(),
        },
    )
    .build();
    let mut rows = Vec::new();
    for (what, client) in [("list at hand", &cached), ("one hop asked", &remote)] {
        client.call(&name, "x").await?;
        let call = async || {
            client.call(&name, "x").await?;
            Ok(())
        };
        let (_, times) = load(1, CALLS, call).await?;
        rows.push(json!([what, round(median(times.into_iter().map(micros).collect()))]));
    }
    Ok(json!({
        "name": "a call with and without the directory on the network, microseconds",
        "columns": ["providers from", "median"],
        "rows": rows,
    }))
}

fn main() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let tables = runtime.block_on(async {
        let tables = [facade().await?, failover().await?, lookup().await?];
        Ok::<_, Failure>(tables)
    })?;
    let report = json!({
        "title": "rpc: the facade over the transport, failover, lookups",
        "seed": null,
        "tables": tables,
        "plots": [],
        "trace_hash": null,
        "notes": ["caller and provider share one process; the goal for the facade is at most 10 %"],
    });
    println!("{report}");
    Ok(())
}
