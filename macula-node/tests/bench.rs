//! `macula bench`: its counts add up, and its file names every call.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use std::{
    fs,
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{macula, mesh, run, stderr, stdout};

fn summary(output: &std::process::Output) -> Value {
    serde_json::from_str(&stdout(output)).unwrap_or_else(|_| panic!("no JSON: {}", stderr(output)))
}

#[test]
fn n1_bench_at_a_rate_makes_every_call_and_names_each_provider() {
    let nodes = mesh(2, "demo.echo=echo");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("calls");
    let args = [
        "bench",
        "demo.echo",
        "--rate",
        "100",
        "--duration",
        "1s",
        "--json",
        "--strategy",
        "round_robin",
    ];
    let to = ["--calls", file.to_str().unwrap(), "--bootstrap", &nodes[0].pinned()];
    let output = run(&[&args[..], &to[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let summary = summary(&output);
    assert_eq!((&summary["calls"], &summary["failed"]), (&100.into(), &0.into()));
    let providers = summary["providers"].as_array().unwrap();
    let answered: Vec<_> = providers.iter().map(|it| it["answered"].as_u64().unwrap()).collect();
    assert_eq!((answered.len(), answered.iter().sum::<u64>()), (2, 100));
    let calls = fs::read_to_string(&file).unwrap();
    let calls: Vec<Value> = calls.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(calls.len(), 100);
    assert!(
        calls
            .iter()
            .all(|call| call["ok"] == true && call["provider"].is_string())
    );
}

#[test]
fn n1_bench_streams_messages_through_an_echo_that_takes_its_time() {
    let nodes = mesh(1, "demo.slow=echo:1ms");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("calls");
    let args = [
        "bench",
        "demo.slow",
        "--rate",
        "20",
        "--duration",
        "200ms",
        "--messages",
        "3",
        "--json",
    ];
    let to = ["--calls", file.to_str().unwrap(), "--bootstrap", &nodes[0].pinned()];
    let output = run(&[&args[..], &to[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let calls = fs::read_to_string(&file).unwrap();
    let calls: Vec<Value> = calls.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(calls.len(), 4);
    let is_whole = |call: &Value| call["ok"] == true && call["replies"] == 3 && call["us"].as_u64().unwrap() >= 3_000;
    assert!(calls.iter().all(is_whole), "{calls:?}");
}

#[test]
fn n1_bench_counts_failures_by_name_and_exits_with_1() {
    let nodes = mesh(1, "demo.echo=echo");
    let args = [
        "bench",
        "no.such",
        "--concurrency",
        "2",
        "--duration",
        "300ms",
        "--json",
    ];
    let output = run(&[&args[..], &["--bootstrap", &nodes[0].pinned()]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let summary = summary(&output);
    assert_eq!(summary["ok"], 0);
    assert_eq!(summary["errors"]["service_not_found"], summary["failed"]);
}

#[test]
fn n1_bench_shows_a_table_for_a_person() {
    let nodes = mesh(1, "demo.echo=echo");
    let args = ["bench", "demo.echo", "--concurrency", "4", "--duration", "300ms"];
    let output = run(&[&args[..], &["--bootstrap", &nodes[0].pinned()]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let shown = stdout(&output);
    assert!(
        shown.contains("answered") && shown.contains("p99.9") && shown.contains(&nodes[0].id[..8]),
        "{shown}"
    );
}

/// A call that hangs is what a person interrupts a run for, so it is counted.
#[test]
fn n1_an_interrupted_bench_counts_the_call_in_flight() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = |name: &str| {
        let path = folder.path().join(name);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    };
    let (begun, gate) = (pipe("begun"), pipe("gate"));
    let service = format!("demo.slow=exec:echo > {}; cat {}", begun.display(), gate.display());
    let nodes = mesh(1, &service);
    let args = [
        "bench",
        "demo.slow",
        "--concurrency",
        "1",
        "--duration",
        "1h",
        "--json",
        "--bootstrap",
    ];
    let mut bench = macula();
    let bench = bench
        .args(args)
        .arg(nodes[0].pinned())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let bench = bench.spawn().unwrap();
    fs::read(&begun).unwrap();
    let pid = Pid::from_raw(i32::try_from(bench.id()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    fs::write(&gate, "").unwrap();
    let output = bench.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    // The call may end before the signal is heard; then there is another one.
    assert!(summary(&output)["calls"].as_u64() >= Some(1), "{}", stdout(&output));
}
