//! A busy node with and without what shows it.
//!
//! Each kind is a process of its own with a provider and a caller over loopback, because a process has one recorder and one subscriber
//! for its life. It waits for its turns.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use futures::future::join_all;
use macula_node::{
    Bytes, Node, Request, Status,
    admin::{
        Admin, connect,
        schema::{Build, StateRequest, WatchRequest},
    },
    ops::{Metrics, Ops, OpsConfig},
    otlp::Otlp,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};
use tracing_subscriber::{layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::{Failure, IN_FLIGHT, PAYLOAD_BYTES, SLICE, TURNS, collector, median};

/// The word that makes this program the process of a kind.
pub(crate) const HOST: &str = "host";
/// Between two questions for the state or the numbers.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Each kind, and its line of the table.
const KINDS: [(&str, &str); 5] = [
    ("bare", "nothing"),
    (
        "admin",
        "the admin interface, watched and asked each second, both nodes",
    ),
    ("ops", "the ops port, scraped each second, both nodes"),
    ("sampled", "a collector: numbers, and traces of 1 %"),
    ("traced", "a collector: numbers, and all traces"),
];

pub(crate) async fn table() -> Result<Value, Failure> {
    let collector = collector::start().await?;
    let mut hosts = Vec::new();
    for (kind, _) in KINDS {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([HOST, kind, &collector]);
        if kind == "sampled" {
            command.env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio");
            command.env("OTEL_TRACES_SAMPLER_ARG", "0.01");
        }
        let mut host = tokio::process::Command::from(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let asks = host.stdin.take().ok_or("no pipe")?;
        let answers = BufReader::new(host.stdout.take().ok_or("no pipe")?).lines();
        hosts.push((host, asks, answers, Vec::new()));
    }
    // The first turn warms up.
    for turn in 0..=TURNS {
        for (_, asks, answers, rates) in &mut hosts {
            asks.write_all(b"go\n").await?;
            let answer = answers.next_line().await?.ok_or("a process has ended")?;
            if turn > 0 {
                rates.push(answer.parse::<f64>()?);
            }
        }
    }
    let rates: Vec<f64> = hosts.into_iter().map(|(.., rates)| median(rates)).collect();
    let bare = rates[0];
    let rows = KINDS.iter().zip(&rates).map(|((_, name), rate)| {
        let cost = (bare - rate) / bare * 100.0;
        json!([name, rate.round(), format!("{cost:.1} %")])
    });
    Ok(json!({
        "name": "a busy node, by what looks at it",
        "columns": ["looked at by", "calls/s", "cost"],
        "rows": rows.collect::<Vec<_>>(),
    }))
}

/// The process of a kind: a slice of calls for each line of standard input.
pub(crate) async fn host(kind: &str, collector: &str) -> Result<(), Failure> {
    let otlp = match kind {
        "sampled" | "traced" => Some(Otlp::open(collector)?),
        _ => None,
    };
    let metrics = match &otlp {
        Some(otlp) => {
            tracing_subscriber::registry().with(otlp.layer()).init();
            Some(Metrics::install_beside(otlp.recorder())?)
        }
        None if kind == "ops" => Some(Metrics::install()?),
        None => None,
    };
    let node = || {
        let builder = Node::builder().listen(([127, 0, 0, 1], 0).into());
        match &otlp {
            Some(otlp) => builder.propagate(otlp.propagation()),
            None => builder,
        }
    };
    let echo = |request: Request| async move { Ok::<_, Status>(request.into_payload()) };
    let provider = node().serve("bench.echo", echo).start().await?;
    provider.join().await?;
    let bootstrap = provider.endpoints()[0].clone().into();
    let caller = node().bootstrap([bootstrap]).start().await?;
    caller.join().await?;
    if let Some(otlp) = &otlp {
        otlp.observe(&caller);
    }
    let folder = tempfile::tempdir()?;
    let (mut admins, mut ports) = (Vec::new(), Vec::new());
    for (name, node) in [("provider", &provider), ("caller", &caller)] {
        match kind {
            "admin" => {
                let socket = folder.path().join(name);
                admins.push(Admin::serve(node, Build::default(), socket.clone()).await?);
                tokio::spawn(look(socket));
            }
            "ops" => {
                let mut config = OpsConfig::new(([127, 0, 0, 1], 0).into());
                if let Some(metrics) = metrics.clone() {
                    config = config.metrics(metrics);
                }
                let port = Ops::bind(node, config).await?;
                tokio::spawn(scrape(port.local_addr()));
                ports.push(port);
            }
            _ => {}
        }
    }
    let mut turns = BufReader::new(tokio::io::stdin()).lines();
    while turns.next_line().await?.is_some() {
        println!("{}", calls(&caller).await?);
    }
    Ok(())
}

/// Watches a node and asks for its state.
async fn look(path: PathBuf) -> Result<(), Failure> {
    let mut client = connect(&path).await?;
    let mut events = client.watch(WatchRequest {}).await?.into_inner();
    let mut ask = tokio::time::interval(ASK_EVERY);
    loop {
        tokio::select! {
            event = events.message() => drop(event?),
            _ = ask.tick() => drop(client.get_state(StateRequest {}).await?),
        }
    }
}

/// Asks for a node's numbers.
async fn scrape(at: std::net::SocketAddr) -> Result<(), Failure> {
    let mut ask = tokio::time::interval(ASK_EVERY);
    loop {
        ask.tick().await;
        let mut stream = TcpStream::connect(at).await?;
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        stream.read_to_end(&mut Vec::new()).await?;
    }
}

/// Calls a second over one slice.
async fn calls(caller: &Node) -> Result<f64, Failure> {
    let (start, body) = (Instant::now(), Bytes::from_static(&[7; PAYLOAD_BYTES]));
    let callers = (0..IN_FLIGHT).map(async |_| {
        let mut done = 0_u32;
        while start.elapsed() < SLICE {
            caller.call("bench.echo", body.clone()).await?;
            done += 1;
        }
        Ok::<_, Failure>(done)
    });
    let done: Result<Vec<_>, _> = join_all(callers).await.into_iter().collect();
    Ok(f64::from(done?.iter().sum::<u32>()) / start.elapsed().as_secs_f64())
}
