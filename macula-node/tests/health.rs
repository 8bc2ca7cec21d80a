//! `macula health` on real processes.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use serde_json::{Value, json};
use support::{NodeProcess, complaint, mesh, run, stderr, stdout};

fn lines(output: &std::process::Output) -> Vec<Value> {
    let text = stdout(output);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_provider_of_a_service_is_asked() {
    let nodes = mesh(3, "api.compute=echo");
    let bootstrap = nodes[0].pinned();
    let output = run(&["health", "api.compute", "--bootstrap", &bootstrap, "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let reports = lines(&output);
    let mut ids: Vec<_> = reports.iter().map(|it| it["node_id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    let mut expected: Vec<_> = nodes.iter().map(|node| node.id.as_str()).collect();
    expected.sort_unstable();
    assert_eq!(ids, expected);
    assert!(reports.iter().all(|it| it["status"] == "SERVING"), "{reports:?}");

    let unknown = run(&["health", "api.nowhere", "--bootstrap", &bootstrap]);
    assert_eq!(unknown.status.code(), Some(3));
    assert!(complaint(&unknown).contains("service_not_found"));
}

#[test]
fn a_node_named_is_asked_for_itself_and_all_it_serves() {
    let mut node = NodeProcess::start(&["--serve", "api.a=echo", "--serve", "api.b=echo"]);
    let on = node.pinned();
    let output = run(&["health", "--on", &on, "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let serving = json!({ "status": "SERVING" });
    let report = &lines(&output)[0];
    assert_eq!(report["status"], "SERVING");
    assert_eq!(report["services"], json!({ "api.a": serving, "api.b": serving }));

    let plain = stdout(&run(&["health", "--on", &on]));
    let expected = format!(
        "{}  {}  SERVING\n  api.a  SERVING\n  api.b  SERVING\n",
        node.id, node.endpoint
    );
    assert_eq!(plain, expected);

    let other = run(&["health", "api.other", "--on", &on]);
    assert_eq!(other.status.code(), Some(1));
    assert!(stdout(&other).contains("no answer: "), "{}", stdout(&other));

    node.kill();
    let gone = run(&["health", "--on", &on, "--timeout", "500ms", "--json"]);
    assert_eq!(gone.status.code(), Some(1));
    assert_eq!(lines(&gone)[0]["status"], Value::Null);
}

#[test]
fn what_to_ask_must_be_said() {
    let output = run(&["health", "--on", "127.0.0.1:9443"]);
    assert_eq!(output.status.code(), Some(2));
    complaint(&output);
}
