//! The cost of `Client` and `Server` over the bare transport, of a failover, of a lookup that the cache saves, and of a closed realm.
//!
//! `cargo xtask bench facade`: caller and provider in one process, over real sockets; both sides of a comparison
//! alternate within one run, because absolute times are the machine's. One JSON document on standard output. `calls`, `failover`,
//! `lookup` or `realms` after `--` measures that part alone.
#![expect(clippy::print_stdout, reason = "the report is its output")]

mod realms;

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
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
use tokio::sync::Notify;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Rounds of each side; the medians are of these.
const ROUNDS: usize = 7;

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

/// One way to make a call.
trait Side: Send + Sync + 'static {
    fn call(&self) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// `Connection::call`.
struct Transport {
    connection: macula_transport::Connection,
    name: ServiceName,
    payload: Bytes,
}

impl Side for Transport {
    async fn call(&self) -> Result<(), Failure> {
        self.connection
            .call(CallRequest::new(&self.name, self.payload.clone()))
            .await?;
        Ok(())
    }
}

/// `Client::call`.
struct Facade {
    client: Client,
    name: ServiceName,
    payload: Bytes,
}

impl Side for Facade {
    async fn call(&self) -> Result<(), Failure> {
        self.client.call(&self.name, self.payload.clone()).await?;
        Ok(())
    }
}

/// Who makes the calls.
#[derive(Clone, Copy, PartialEq)]
enum Callers {
    /// One task that waits for all of them at once.
    OneTask,
    /// A task each.
    Tasks,
}

/// Calls made by `callers` at once, each after its last one was answered: the time of one call, in microseconds.
async fn load<S: Side>(side: &Arc<S>, how: Callers, callers: usize, calls: usize) -> Result<f64, Failure> {
    let done = Arc::new(AtomicUsize::new(0));
    let begin = Instant::now();
    let work = (0..callers).map(|_| {
        let (side, done) = (Arc::clone(side), Arc::clone(&done));
        async move {
            while done.fetch_add(1, Relaxed) < calls {
                side.call().await?;
            }
            Ok::<_, Failure>(())
        }
    });
    match how {
        Callers::OneTask => join_all(work).await.into_iter().collect::<Result<(), _>>()?,
        Callers::Tasks => {
            let tasks: Vec<_> = work.map(tokio::spawn).collect();
            for task in tasks {
                task.await??;
            }
        }
    }
    Ok(micros(begin.elapsed()) / calls as f64)
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

/// Either side of a call as the bare transport, and as the facade.
async fn facade(runtime: &str, how: Callers) -> Result<Vec<Value>, Failure> {
    let name: ServiceName = "bench.echo".parse()?;
    let (_bare, bare) = node(Bare).await?;
    let (_served, served) = node(echoing(&name)?).await?;
    let endpoint = Endpoint::bind(Config::new(Identity::generate()?), NoService).await?;
    let payload = Bytes::from_static(&[7; 64]);
    let transport = async |to: &Provider| {
        let connection = endpoint.pool().get(&to.node_id, &to.endpoints).await?;
        let (name, payload) = (name.clone(), payload.clone());
        Ok::<_, Failure>(Arc::new(Transport {
            connection,
            name,
            payload,
        }))
    };
    let client = |to: &Provider| {
        let directory = StaticResolver::new().with_service(name.clone(), [to.clone()]);
        let client = Client::builder(&endpoint, directory).build();
        let (name, payload) = (name.clone(), payload.clone());
        Arc::new(Facade { client, name, payload })
    };
    let (neither, server) = (transport(&bare).await?, transport(&served).await?);
    let (caller, both) = (client(&bare), client(&served));

    let mut rows = Vec::new();
    for (callers, calls) in [(1, 2_000), (64, 40_000), (256, 60_000)] {
        let mut times: [Vec<f64>; 4] = Default::default();
        let mut ratios = Vec::new();
        for at in 0..=ROUNDS {
            let now = [
                load(&neither, how, callers, calls).await?,
                load(&caller, how, callers, calls).await?,
                load(&server, how, callers, calls).await?,
                load(&both, how, callers, calls).await?,
            ];
            // The first round opens connections and warms up.
            if at > 0 {
                times.iter_mut().zip(now).for_each(|(times, now)| times.push(now));
                ratios.push(now[3] / now[0]);
            }
        }
        let overhead = (median(ratios) - 1.0) * 100.0;
        let mut row = vec![json!(runtime), json!(callers)];
        row.extend(times.map(|times| round(median(times))));
        row.push(round(overhead));
        progress(&format!("facade, {runtime}, at {callers}: {overhead:.1} %  {row:?}"));
        rows.push(Value::from(row));
    }
    Ok(rows)
}

#[expect(clippy::print_stderr, reason = "progress goes beside the report")]
fn progress(text: &str) {
    eprintln!("{text}");
}

/// A first provider that fails in one way, and a second one that answers.
async fn failover() -> Result<Value, Failure> {
    const CALLS: usize = 300;
    const RESETS: usize = 30;

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
        progress(&format!("failover after {what}: {time:.0} µs"));
    }
    let key = std::env::temp_dir().join(format!("macula-bench-{}.key", std::process::id()));
    Identity::generate()?.store(&key)?;
    let (mut closes, mut resets) = (Vec::new(), Vec::new());
    for _ in 0..RESETS {
        closes.push(closed(&name, &good).await?);
        resets.push(reset(&name, &good, &key).await?);
    }
    std::fs::remove_file(&key)?;
    for (what, times) in [
        ("connection closed with the call under way", closes),
        ("connection reset: the provider was killed and is back", resets),
    ] {
        let time = median(times);
        rows.push(json!([what, round(time), round(time - plain)]));
        progress(&format!("failover after {what}: {time:.0} µs"));
    }
    Ok(json!({
        "name": "a call whose first attempt fails, microseconds",
        "columns": ["first attempt's failure", "median", "more than without"],
        "rows": rows,
    }))
}

/// A provider that is a process: this program, started with [`CHILD`].
struct Process {
    child: Child,
    address: SocketAddr,
}

const CHILD: &str = "provider";

impl Process {
    fn start(key: &Path, listen: &str) -> Result<Self, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([CHILD.as_ref(), key.as_os_str(), listen.as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().ok_or("a provider without an output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim().parse()?;
        Ok(Self { child, address })
    }

    /// As `kill -9`.
    fn kill(mut self) -> Result<(), Failure> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

/// What such a process does until its standard input ends.
async fn provide(key: &Path, listen: &str) -> Result<(), Failure> {
    let config = Config::new(Identity::load(key)?).with_listen(listen.parse()?);
    let endpoint = Endpoint::bind(config, Called(Arc::default())).await?;
    println!("{}", endpoint.local_addr());
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    Ok(())
}

/// Never answers, and says when it is called.
struct Called(Arc<Notify>);

impl Handler for Called {
    fn call(&self, _: IncomingCall) -> BoxFuture<'static, Reply> {
        self.0.notify_one();
        Box::pin(std::future::pending())
    }
}

/// A client whose first provider is `first`, with open connections to it and to the second.
async fn between(name: &ServiceName, first: Provider, good: &Provider) -> Result<(Endpoint, Client), Failure> {
    let endpoint = Endpoint::bind(Config::new(Identity::generate()?), NoService).await?;
    for provider in [&first, good] {
        endpoint.pool().get(&provider.node_id, &provider.endpoints).await?;
    }
    let directory = StaticResolver::new().with_service(name.clone(), [first, good.clone()]);
    let client = Client::builder(&endpoint, directory).strategy(Strategy::First).build();
    Ok((endpoint, client))
}

/// A call whose first provider closes the connection when it has it: microseconds from there on.
async fn closed(name: &ServiceName, good: &Provider) -> Result<f64, Failure> {
    let called = Arc::new(Notify::new());
    let (dying, first) = node(Called(Arc::clone(&called))).await?;
    let (_endpoint, client) = between(name, first, good).await?;
    let close = async {
        called.notified().await;
        let start = Instant::now();
        drop(dying);
        start
    };
    let call = async {
        client.call(name, "x").await?;
        Ok::<_, Failure>(Instant::now())
    };
    let (start, end) = tokio::join!(close, call);
    Ok(micros(end?.saturating_duration_since(start)))
}

/// A call to a provider that was killed and is there again on its port: it knows nothing of the connection, and resets it.
async fn reset(name: &ServiceName, good: &Provider, key: &Path) -> Result<f64, Failure> {
    let mut dying = Process::start(key, "127.0.0.1:0")?;
    let listen = dying.address;
    let first = Provider::new(Identity::load(key)?.node_id(), [listen.try_into()?]);
    let (_endpoint, client) = between(name, first, good).await?;
    dying.kill()?;
    dying = Process::start(key, &listen.to_string())?;
    let start = Instant::now();
    client.call(name, "x").await?;
    let time = micros(start.elapsed());
    dying.kill()?;
    Ok(time)
}

/// A directory without a cache, asked over the network: a lookup of one hop.
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
        let mut times = Vec::new();
        for _ in 0..CALLS {
            let start = Instant::now();
            client.call(&name, "x").await?;
            times.push(micros(start.elapsed()));
        }
        rows.push(json!([what, round(median(times))]));
    }
    Ok(json!({
        "name": "a call with and without the directory on the network, microseconds",
        "columns": ["providers from", "median"],
        "rows": rows,
    }))
}

fn main() -> Result<(), Failure> {
    let multi_thread = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut args = std::env::args().skip(1);
    let only = args.next();
    if let (Some(CHILD), Some(key), Some(listen)) = (only.as_deref(), args.next(), args.next()) {
        return multi_thread.block_on(provide(Path::new(&key), &listen));
    }
    let wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    let mut tables = Vec::new();
    if wanted("calls") {
        let current_thread = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut rows = multi_thread.block_on(facade("multi-thread, callers in one task", Callers::OneTask))?;
        rows.extend(multi_thread.block_on(facade("multi-thread, a task each", Callers::Tasks))?);
        rows.extend(current_thread.block_on(facade("current-thread, a task each", Callers::Tasks))?);
        tables.push(json!({
            "name": "time a call, 64 B, microseconds: either side as the bare transport or as the facade",
            "columns": ["runtime", "in flight", "transport", "client only", "server only", "both", "overhead, %"],
            "rows": rows,
        }));
    }
    if wanted("failover") {
        tables.push(multi_thread.block_on(failover())?);
    }
    if wanted("lookup") {
        tables.push(multi_thread.block_on(lookup())?);
    }
    if wanted("realms") {
        tables.push(multi_thread.block_on(realms::realms())?);
    }
    let report = json!({
        "title": "rpc: the facade over the transport, failover, lookups, realms",
        "seed": null,
        "tables": tables,
        "plots": [],
        "trace_hash": null,
        "notes": ["caller and provider share one process; the goal for the facade is at most 10 %"],
    });
    println!("{report}");
    Ok(())
}
