//! The memory of a node under each memory attack: its resident set beside its budget (X6).
//!
//! `sim_attack [MIB]` starts this program again as the node that is attacked, with a budget of so many mebibytes, 128 unless given.
//! Each attack gets a fresh node, so that one's peak is not another's. Honest calls are made before it, beside it and after it. The
//! program ends with an error when the node held more than its budget and a fifth, or did not serve an honest call.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program that reports to a person"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use common::raw::{Shown, client_tls, hello};
use futures::future::{BoxFuture, FutureExt as _};
use macula_transport::{
    CallKind, CallRequest, Endpoint, Handler, IncomingCall, IncomingMessages, Limits, OutgoingMessages, Reply,
};
use macula_wire::{NodeId, Realm, proto};

/// Set for the node that is attacked: its budget in bytes.
const BUDGET: &str = "MACULA_SIM_BUDGET";
/// What an attack may take until the memory of the node no longer grows.
const LASTS: Duration = Duration::from_secs(12);
/// The honest calls of one client.
const CALLS: usize = 20;
const MIB: usize = 1 << 20;

/// `echo` answers with its request; `watch` reads and never answers; `deaf` does not even read.
struct Services;

impl Handler for Services {
    fn call(&self, call: IncomingCall) -> BoxFuture<'static, Reply> {
        std::future::ready(Reply::ok(call.into_body())).boxed()
    }

    fn kind(&self, call: &IncomingCall) -> CallKind {
        match call.service().as_str() {
            "watch" | "deaf" => CallKind::Streaming,
            _ => CallKind::Unary,
        }
    }

    fn stream(
        &self,
        call: IncomingCall,
        mut requests: IncomingMessages,
        _: OutgoingMessages,
    ) -> BoxFuture<'static, Reply> {
        async move {
            while call.service().as_str() == "watch" && matches!(requests.next().await, Ok(Some(_))) {}
            let _kept = requests;
            std::future::pending().await
        }
        .boxed()
    }
}

/// The node that is attacked, as a process of its own.
struct Victim {
    child: Child,
    address: SocketAddr,
    node_id: NodeId,
}

impl Victim {
    fn start(budget: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(BUDGET, budget.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        let (address, node_id) = line.split_once(' ').unwrap();
        Self {
            child,
            address: address.parse().unwrap(),
            node_id: node_id.parse().unwrap(),
        }
    }

    /// A field of its status, in MiB.
    fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        let kib: u64 = line.trim_matches([':', ' ', '\t', 'k', 'B']).parse().unwrap();
        kib / 1024
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn serve(budget: u64) {
    let limits = Limits {
        memory_bytes: budget,
        ..Limits::default()
    };
    let endpoint = Endpoint::bind(common::config().with_limits(limits), Services)
        .await
        .unwrap();
    println!("{} {}", endpoint.local_addr(), endpoint.node_id());
    // Ends with the process that started it.
    let end = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    let _ = end.await;
}

/// The start of a call; with `announced`, of a message of so many bytes that does not end.
fn call(name: &str, announced: usize, whole: bool) -> Bytes {
    let head = proto::Head {
        service: name.into(),
        timeout_us: 3_600_000_000,
        ..Default::default()
    };
    let data = proto::Data {
        payload: Bytes::from(vec![7; announced]),
        end: whole,
        ..Default::default()
    };
    let frame = |kind| {
        macula_wire::frame(&proto::CallFrame {
            call: 0,
            kind: Some(kind),
        })
    };
    let (head, mut data) = (
        frame(proto::call_frame::Kind::Head(head)),
        frame(proto::call_frame::Kind::Data(data)),
    );
    if !whole {
        data.truncate(data.len() - 1);
    }
    [&[2], &head[..], &data[..]].concat().into()
}

/// The start of a lane with many calls, whose replies wait on it.
fn lane() -> Bytes {
    let mut bytes = vec![3];
    for call in 1..=200 {
        let head = proto::Head {
            service: "echo".into(),
            timeout_us: 3_600_000_000,
            payload: vec![7; 15 << 10].into(),
            end: true,
            ..Default::default()
        };
        let kind = Some(proto::call_frame::Kind::Head(head));
        bytes.extend_from_slice(&macula_wire::frame(&proto::CallFrame { call, kind }));
    }
    bytes.into()
}

/// The start of a request to the directory that does not end.
fn directory() -> Bytes {
    let mut bytes = vec![0x10];
    // Its length, as a varint: 65 000 bytes.
    bytes.extend_from_slice(&[0xe8, 0xfb, 0x03]);
    bytes.resize(64_000, 7);
    bytes.into()
}

/// Opens many streams on a connection, and sends as much of `bytes` on each as the node takes. No reply is read.
async fn flood(victim: SocketAddr, network: u8, streams: usize, bytes: Bytes) {
    let endpoint = quinn::Endpoint::client(([127, 0, network, 1], 0).into()).unwrap();
    let config = client_tls(Shown::Key(common::identity()), b"macula/1");
    let Ok(connection) = endpoint.connect_with(config, victim, "x").unwrap().await else {
        return;
    };
    let Ok((mut control, mut heard)) = connection.open_bi().await else {
        return;
    };
    let _ = control.write_all(&hello(&Realm::default(), 1)).await;
    let _ = heard.read_chunk(1, true).await;
    let sends = (0..streams).map(|_| async {
        if let Ok((mut send, recv)) = connection.open_bi().await {
            let _ = send.write_all(&bytes).await;
            std::future::pending::<()>().await;
            drop((send, recv));
        }
    });
    futures::future::join_all(sends).await;
}

/// Honest calls, as many as were made and served, and how long each took.
#[derive(Default)]
struct Honest {
    made: usize,
    served: usize,
    took: Vec<Duration>,
}

impl Honest {
    /// Makes some calls of 64 KiB from a client of its own.
    async fn call(&mut self, victim: &Victim) {
        let client = common::client().await;
        let at = [victim.address.try_into().unwrap()];
        let dialed = client.pool().get(&victim.node_id, &at).await;
        let echo = common::service("echo");
        for _ in 0..CALLS {
            self.made += 1;
            let Ok(connection) = &dialed else { continue };
            let began = Instant::now();
            let request = CallRequest::new(&echo, vec![1; 64 << 10]).with_timeout(LASTS);
            let reply = connection.call(request).await;
            self.took.push(began.elapsed());
            self.served += usize::from(reply.is_ok_and(|reply| reply.body.len() == 64 << 10));
        }
    }

    /// The time that all but a hundredth of the calls took at most, in milliseconds.
    fn p99(&mut self) -> f64 {
        self.took.sort_unstable();
        let last = self.took.len().saturating_sub(1 + self.took.len() / 100);
        self.took.get(last).map_or(f64::NAN, |took| took.as_secs_f64() * 1e3)
    }

    fn were_all_served(&self) -> bool {
        self.made > 0 && self.served == self.made
    }
}

/// Returns whether the node kept to its budget and served every honest call.
async fn attack(budget: usize, name: &str, connections: usize, bytes: Bytes) -> bool {
    let victim = Victim::start(budget);
    let mut calm = Honest::default();
    for _ in 0..10 {
        calm.call(&victim).await;
    }
    let before = victim.memory("VmRSS");
    let mut floods = tokio::task::JoinSet::new();
    for n in 0..connections {
        // A connection has at most sixteen lanes.
        let streams = if bytes.first() == Some(&3) { 16 } else { 200 };
        floods.spawn(flood(victim.address, 1 + (n % 4) as u8, streams, bytes.clone()));
    }
    let (started, mut beside) = (Instant::now(), Honest::default());
    while started.elapsed() < LASTS {
        beside.call(&victim).await;
    }
    let above = victim.memory("VmHWM").saturating_sub(before);
    let allowed = budget / MIB * 6 / 5;
    floods.shutdown().await;
    let mut after = Honest::default();
    after.call(&victim).await;
    println!(
        "{name:<36} {connections:>4} {above:>6} {allowed:>8} {:>11} {:>11} {:>9.1} {:>9.1}",
        format!("{}/{}", calm.served, calm.made),
        format!("{}/{}", beside.served, beside.made),
        calm.p99(),
        beside.p99(),
    );
    above <= allowed as u64 && [calm, beside, after].iter().all(Honest::were_all_served)
}

#[tokio::main]
async fn main() -> ExitCode {
    if let Ok(budget) = std::env::var(BUDGET) {
        serve(budget.parse().unwrap()).await;
        return ExitCode::SUCCESS;
    }
    let mebibytes: usize = std::env::args().nth(1).map_or(128, |text| text.parse().unwrap());
    let budget = mebibytes * MIB;
    println!("a budget of {mebibytes} MiB; memory in MiB above that at rest, p99 of honest calls of 64 KiB in ms");
    println!(
        "{:<36} {:>4} {:>6} {:>8} {:>11} {:>11} {:>9} {:>9}",
        "attack", "from", "peak", "allowed", "calm", "beside", "calm p99", "its p99"
    );
    let attacks = [
        ("requests that do not end", 16, call("echo", 3 * MIB, false)),
        ("messages of streams that do not end", 16, call("watch", 3 * MIB, false)),
        ("replies that are not read", 16, call("echo", 2 * MIB, true)),
        ("messages that are not taken", 16, call("deaf", 3 * MIB, false)),
        ("the same, of many connections", 64, call("deaf", 3 * MIB, false)),
        ("replies that wait on lanes", 64, lane()),
        ("directory requests that do not end", 64, directory()),
        ("connections that do nothing", 256, Bytes::new()),
    ];
    let mut kept = true;
    for (name, connections, bytes) in attacks {
        kept &= attack(budget, name, connections, bytes).await;
    }
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
