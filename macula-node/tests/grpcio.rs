//! A gRPC server in Python behind a node (N6), called from Rust and from the command line.
//!
//! `cargo xtask clients` installs grpcio and runs this with `GRPCIO_PYTHON`, the interpreter that has it. Without one there is no such server
//! to call, and the test says so.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

#[path = "support/raw_codec.rs"]
mod raw_codec;
mod support;

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use futures::{StreamExt as _, stream};
use macula_node::{Bytes, Channel, Node, ServiceName};
use raw_codec::Raw;
use support::{NodeProcess, run, stderr, stdout};
use tonic::{Code, Status, codegen::http::uri::PathAndQuery};

/// A grpcio server, which ends when it is dropped.
struct Server {
    child: Child,
    port: String,
}

impl Server {
    fn start(python: &str) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/server.py");
        let mut command = Command::new(python);
        command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut port)
            .unwrap();
        Self {
            child,
            port: port.trim().to_owned(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A stub of the server's service.
struct Echo(tonic::client::Grpc<Channel>);

impl Echo {
    async fn unary(&mut self, request: &'static str) -> Result<Bytes, Status> {
        self.0.ready().await?;
        let request = tonic::Request::new(Bytes::from(request));
        let path = PathAndQuery::from_static("/clients.Echo/Unary");
        Ok(self.0.unary(request, path, Raw).await?.into_inner())
    }

    async fn stream(&mut self, path: &'static str, requests: &[&'static str]) -> Result<Vec<Bytes>, Status> {
        self.0.ready().await?;
        let requests: Vec<_> = requests.iter().copied().map(Bytes::from).collect();
        let requests = tonic::Request::new(stream::iter(requests));
        let path = PathAndQuery::from_static(path);
        let replies = self.0.streaming(requests, path, Raw).await?.into_inner();
        replies.collect::<Vec<_>>().await.into_iter().collect()
    }
}

#[tokio::test]
async fn n6_a_grpcio_server_is_called_from_rust_and_from_the_command_line() {
    let Ok(python) = std::env::var("GRPCIO_PYTHON") else {
        eprintln!("not tried without grpcio: see `cargo xtask clients`");
        return;
    };
    let (one, two) = (Server::start(&python), Server::start(&python));
    let mut first = NodeProcess::start(&["--serve", &format!("grpc://127.0.0.1:{}", one.port)]);
    let serve = format!("grpc://127.0.0.1:{}", two.port);
    let second = NodeProcess::start(&["--serve", &serve, "--bootstrap", &first.pinned()]);
    let bootstrap = [first.pinned(), second.pinned()].map(|pinned| pinned.parse().unwrap());
    let caller = Node::builder().client().bootstrap(bootstrap).start().await.unwrap();
    caller.join().await.unwrap();
    let service: ServiceName = "clients.Echo".parse().unwrap();
    while caller.lookup(&service).await.unwrap().len() != 2 {}

    let mut echo = Echo(tonic::client::Grpc::new(Channel::new(caller.client().clone())));
    assert_eq!(echo.unary("hello").await.unwrap(), "hello");
    let of = |texts: &'static [&'static str]| texts.iter().copied().map(Bytes::from).collect::<Vec<_>>();
    let collected = echo.stream("/clients.Echo/Collect", &["a", "b", "c"]).await.unwrap();
    assert_eq!(collected, of(&["a b c"]));
    let split = echo.stream("/clients.Echo/Split", &["a b c"]).await.unwrap();
    assert_eq!(split, of(&["a", "b", "c"]));
    let said = echo.stream("/clients.Echo/Converse", &["a", "b"]).await.unwrap();
    assert_eq!(said, of(&["a", "b"]));
    let failed = echo.unary("fail").await.unwrap_err();
    assert_eq!(
        (failed.code(), failed.message()),
        (Code::FailedPrecondition, "on purpose")
    );

    let bootstrap = ["--bootstrap", &second.pinned()].map(str::to_owned);
    let call = |method: &str, rest: &[&str]| {
        let mut args = vec!["call", method];
        args.extend(rest);
        args.extend(bootstrap.iter().map(String::as_str));
        run(&args)
    };
    let unary = call("clients.Echo/Unary", &["hello", "--grpc"]);
    assert_eq!(
        (stdout(&unary).as_str(), unary.status.code()),
        ("hello", Some(0)),
        "{}",
        stderr(&unary)
    );
    let split = call("clients.Echo/Split", &["a b c", "--grpc"]);
    assert_eq!(stdout(&split), "a\nb\nc\n");
    let told = call("clients.Echo/Split", &["a b", "--grpc", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&stdout(&told)).unwrap();
    assert_eq!(told["replies"], serde_json::json!([{ "reply": "a" }, { "reply": "b" }]));
    let failed = call("clients.Echo/Unary", &["fail", "--grpc"]);
    assert_ne!(failed.status.code(), Some(0));
    assert!(stderr(&failed).contains("on purpose"), "{}", stderr(&failed));

    // Its death fails no call.
    first.kill();
    for _ in 0..100 {
        assert_eq!(echo.unary("again").await.unwrap(), "again");
    }
    let unary = call("clients.Echo/Unary", &["hello", "--grpc"]);
    assert_eq!(stdout(&unary), "hello", "{}", stderr(&unary));
    caller.shutdown().await;
}
