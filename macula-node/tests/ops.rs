//! Orchestrators and Prometheus ask a node at its ops port (N5).
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod http1;
mod promql;

use std::collections::BTreeSet;

use http1::{exchange, get};
use macula_node::{
    Bytes, Node, NodeBuilder, Request, Status,
    ops::{Metrics, Ops, OpsConfig, Tokens},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

fn local() -> NodeBuilder {
    Node::builder().listen("127.0.0.1:0".parse().unwrap())
}

async fn ops(node: &Node, metrics: Option<Metrics>) -> Ops {
    let mut config = OpsConfig::new("127.0.0.1:0".parse().unwrap());
    if let Some(metrics) = metrics {
        config = config.metrics(metrics);
    }
    Ops::bind(node, config).await.unwrap()
}

async fn echo(request: Request) -> Result<Bytes, Status> {
    match &request.payload()[..] {
        b"" => Err(Status::invalid_argument("there is nothing to say")),
        b"later" => Err(Status::unavailable("not now")),
        _ => Ok(request.into_payload()),
    }
}

#[tokio::test]
async fn n5_a_node_is_ready_when_it_is_in_the_mesh_and_published() {
    let node = local().serve("demo.echo", echo).start().await.unwrap();
    node.join().await.unwrap();
    let published = node.serve("demo.more".parse().unwrap(), echo).await;
    published.unwrap();
    let ops = ops(&node, None).await;
    let at = ops.local_addr();
    let live = get(at, "/livez").await;
    assert_eq!((live.status, live.body.as_str()), (200, "alive\n"));
    // The service of the start is published behind it; the one after was waited for.
    let mut events = node.events();
    let mut ready = get(at, "/readyz").await;
    while ready.status == 503 {
        assert_eq!(ready.body, "the service demo.echo is not published yet\n");
        events.next().await.unwrap();
        ready = get(at, "/readyz").await;
    }
    assert_eq!((ready.status, ready.body.as_str()), (200, "ready\n"));
    node.shutdown().await;
    let left = get(at, "/readyz").await;
    assert_eq!((left.status, left.body.as_str()), (503, "the node has left the mesh\n"));
    assert_eq!(get(at, "/livez").await.status, 200);
    assert_eq!(get(at, "/elsewhere").await.status, 404);
    ops.close().await;
    assert!(tokio::net::TcpStream::connect(at).await.is_err());
}

#[tokio::test]
async fn n5_a_node_that_found_no_mesh_says_so() {
    // A port that nothing listens on.
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let node = local().bootstrap([closed.to_string().parse().unwrap()]);
    let node = node.start().await.unwrap();
    let ops = ops(&node, None).await;
    node.join().await.unwrap_err();
    let answer = get(ops.local_addr(), "/readyz").await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.starts_with("not in the mesh: "), "{}", answer.body);
    let scrape = get(ops.local_addr(), "/metrics").await.body;
    assert!(
        scrape.contains("\nmacula_node_ready 0\n") && scrape.contains("\nmacula_node_joined 0\n"),
        "{scrape}"
    );
}

/// The names of a scrape's samples.
fn names(scrape: &str) -> BTreeSet<String> {
    let samples = scrape.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    samples
        .map(|line| line.split(['{', ' ']).next().unwrap().to_owned())
        .collect()
}

fn deployed(file: &str) -> String {
    let path = format!("{}/deploy/{file}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

/// The expressions of the dashboard's panels and variables.
fn panels(dashboard: &Value) -> Vec<String> {
    let mut found = Vec::new();
    match dashboard {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value) {
                    ("expr", Value::String(expr)) => found.push(expr.clone()),
                    _ => found.extend(panels(value)),
                }
            }
        }
        Value::Array(list) => found.extend(list.iter().flat_map(panels)),
        _ => {}
    }
    found
}

/// The expressions of the alert rules, each of which stands on a line of its own.
fn rules(alerts: &str) -> Vec<&str> {
    let expressions: Vec<_> = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "))
        .collect();
    assert_eq!(expressions.len(), alerts.matches("- alert: ").count());
    expressions
}

// One test, because a process has one recorder.
#[tokio::test]
async fn n5_every_number_of_the_dashboard_and_the_alerts_is_in_a_scrape() {
    let metrics = Metrics::install().unwrap();
    Metrics::install().unwrap_err();
    let provider = local().serve("demo.echo", echo).start().await.unwrap();
    let bootstrap = provider.endpoints()[0].clone();
    let second = local().serve("demo.echo", echo).bootstrap([bootstrap.clone().into()]);
    let second = second.start().await.unwrap();
    second.join().await.unwrap();
    let caller = local().bootstrap([bootstrap.into()]).start().await.unwrap();
    caller.join().await.unwrap();
    let ops = ops(&caller, Some(metrics)).await;
    let service = "demo.echo".parse().unwrap();
    while caller.lookup(&service).await.unwrap().len() < 2 {}
    for _ in 0..30 {
        assert_eq!(caller.call("demo.echo", "hello").await.unwrap(), "hello");
    }
    caller.call("demo.echo", "").await.unwrap_err();
    // Both providers are tried.
    caller.call("demo.echo", "later").await.unwrap_err();
    caller.call("demo.missing", "x").await.unwrap_err();
    let answer = get(ops.local_addr(), "/metrics").await;
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"));
    let mut scraped = names(&answer.body);
    // The caller has no service of its own that others could hold.
    let served = self::ops(&provider, None).await;
    scraped.extend(names(&get(served.local_addr(), "/metrics").await.body));
    // Prometheus records it by itself.
    scraped.insert("up".to_owned());
    for sample in [
        r#"macula_rpc_calls_total{rpc_service="demo.echo",outcome="ok"} 30"#,
        r#"macula_rpc_served_total{rpc_service="demo.echo",outcome="ok"} 30"#,
        r#"rpc_client_call_duration_seconds_bucket{rpc_service="demo.echo",le="+Inf"} 32"#,
        r#"macula_rpc_failovers_total{rpc_service="demo.echo"} 1"#,
        r#"macula_node_limits_reached_total{limit="calls"} 0"#,
        r#"macula_node_ready 1"#,
    ] {
        assert!(
            answer.body.lines().any(|line| line == sample),
            "no {sample} in\n{}",
            answer.body
        );
    }
    assert!(
        answer.body.contains(&format!(r#"node_id="{}""#, caller.id())),
        "{}",
        answer.body
    );

    let dashboard: Value = serde_json::from_str(&deployed("grafana/dashboard.json")).unwrap();
    let alerts = deployed("prometheus/alerts.yml");
    let panels = panels(&dashboard);
    let expressions = panels.iter().map(String::as_str).chain(rules(&alerts));
    let mut used = BTreeSet::new();
    for expression in expressions {
        let names = promql::metrics(expression);
        assert!(!names.is_empty(), "{expression} names no metric");
        used.extend(names);
    }
    let unknown: Vec<_> = used.iter().filter(|name| !scraped.contains(**name)).collect();
    assert!(unknown.is_empty(), "{unknown:?} are not in {scraped:?}");
    assert!(used.len() > 20, "{used:?}");
}

#[tokio::test]
async fn n5_the_page_shows_state_and_events_to_clients_of_this_host() {
    let node = local().serve("demo.echo", echo).start().await.unwrap();
    node.join().await.unwrap();
    let ops = ops(&node, None).await;
    let at = ops.local_addr();
    let ask = async |head: &str| {
        let stream = TcpStream::connect(at).await.unwrap();
        exchange(stream, &format!("GET {head}\r\nHost: localhost"), "").await
    };
    let page = ask("/ HTTP/1.1").await;
    assert!(
        page.head.contains("content-type: text/html")
            && page.head.contains("content-security-policy: default-src 'none'")
    );
    // Everything is in the file.
    assert!(!page.body.contains("http://") && !page.body.contains("src=") && !page.body.contains("<link"));
    let state = ask("/state HTTP/1.1").await.json();
    assert_eq!(state["node_id"], node.id().to_string());
    assert_eq!(state["serves"][0]["service"], "demo.echo");

    // Under another name, as a site that points its name here asks.
    for path in ["/", "/state", "/events"] {
        assert_eq!(get(at, path).await.status, 403, "{path}");
    }

    // With tokens a client under another name brings one, as a browser that asked for a password does.
    let token = "0123456789abcdef0123";
    let config = OpsConfig::new("127.0.0.1:0".parse().unwrap()).tokens(Tokens::new([token]).unwrap());
    let open = Ops::bind(&node, config).await.unwrap();
    let asked = get(open.local_addr(), "/state").await;
    assert_eq!(asked.status, 401);
    assert!(
        asked.head.to_lowercase().contains("www-authenticate: basic"),
        "{}",
        asked.head
    );
    for (sent, status) in [(token, 200), ("another-token-of-a-kind", 401)] {
        let stream = TcpStream::connect(open.local_addr()).await.unwrap();
        let head = format!("GET /state HTTP/1.1\r\nHost: node1\r\nAuthorization: Bearer {sent}");
        assert_eq!(exchange(stream, &head, "").await.status, status);
    }
    assert_eq!(get(open.local_addr(), "/livez").await.status, 200);
    open.close().await;

    // The stream of events ends with the port, and does not keep it open.
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream
        .write_all(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        .await
        .unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    node.serve("demo.more".parse().unwrap(), echo).await.unwrap();
    ops.close().await;
    let mut told = String::new();
    stream.read_to_string(&mut told).await.unwrap();
    assert!(told.contains(r#""kind":"published","service":"demo.more""#), "{told}");
}

#[tokio::test]
async fn n5_a_scrape_is_well_formed() {
    let node = local().serve("demo.echo", echo).start().await.unwrap();
    let ops = ops(&node, None).await;
    let scrape = get(ops.local_addr(), "/metrics").await.body;
    let mut kinds = BTreeSet::new();
    for line in scrape.lines().filter(|line| !line.is_empty()) {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let name = kind.split(' ').next().unwrap();
            assert!(kinds.insert(name), "{name} stands there twice");
        } else if !line.starts_with('#') {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().unwrap().is_finite(), "{line}");
            assert!(kinds.contains(sample.split('{').next().unwrap()), "{line} has no type");
        }
    }
}
