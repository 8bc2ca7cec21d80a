//! The commands that ask the node on this host, on real processes (N1, N5).
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use std::{
    io::{BufRead, BufReader},
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use support::{NodeProcess, complaint, macula, run_with_input, stderr, stdout};
use tempfile::TempDir;

/// A host of its own: nodes and commands find each other here and nowhere else.
struct Host(TempDir);

impl Host {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn macula(&self) -> Command {
        let mut command = macula();
        command.env("MACULA_RUNTIME", self.0.path()).env_remove("MACULA_ADMIN");
        command
    }

    fn node(&self, args: &[&str]) -> NodeProcess {
        NodeProcess::spawn(self.macula(), "127.0.0.1:0", args)
    }

    fn run(&self, args: &[&str]) -> Output {
        self.macula().args(args).stdin(Stdio::null()).output().unwrap()
    }

    /// The output of a command that succeeds.
    fn text(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        stdout(&output)
    }

    fn json(&self, args: &[&str]) -> Value {
        let text = self.text(args);
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"))
    }
}

#[test]
fn n5_the_node_of_this_host_is_found_and_shows_itself() {
    let host = Host::new();
    let node = host.node(&["--serve", "demo.echo=echo", "--realm", "shop"]);
    assert_eq!(
        host.text(&["call", "demo.echo", "through the node"]),
        "through the node"
    );
    let status = host.json(&["status", "--json"]);
    assert_eq!(status["node_id"], node.id.as_str());
    assert_eq!(
        (&status["realm"], &status["phase"]),
        (&"shop".into(), &"serving".into())
    );
    assert_eq!(status["serves"][0]["service"], "demo.echo");
    assert_eq!(status["serves"][0]["calls"]["ok"], 1);
    assert!(
        status["build"]["rustc"].as_str().unwrap().starts_with("rustc "),
        "{status}"
    );
    let page = host.text(&["status"]);
    assert!(page.contains(&node.id) && page.contains("demo.echo"), "{page}");
    assert!(!page.contains('\u{1b}'), "a pipe gets no colours");

    let listed = host.json(&["services", "--json"]);
    assert_eq!(listed["services"][0]["service"], "demo.echo");
    assert_eq!(listed["services"][0]["providers"], 1);
    let providers = host.json(&["providers", "demo.echo", "--json"]);
    assert_eq!(providers["providers"][0]["state"], "serving");
    let health = host.json(&["health", "--json"]);
    assert_eq!(
        (&health["state"], &health["node_id"]),
        (&"serving".into(), &node.id.as_str().into())
    );
}

#[test]
fn n1_a_ping_shows_the_way_to_a_node_and_to_each_provider() {
    let host = Host::new();
    let node = host.node(&["--serve", "demo.echo=echo"]);
    for target in [node.pinned(), "demo.echo".to_owned()] {
        let ping = host.json(&["ping", &target, "--count", "2", "--interval", "10ms", "--json"]);
        assert_eq!(ping["node_id"], node.id.as_str());
        assert_eq!(ping["address"], node.address());
        assert!(ping["round_trip_us"].as_u64().unwrap() > 0, "{ping}");
        assert!(ping["handshake_us"].as_u64().unwrap() > 0, "{ping}");
        let pings = ping["pings"].as_array().unwrap();
        assert_eq!(pings.len(), 2);
        assert!(
            pings
                .iter()
                .all(|it| it["status"] == "SERVING" && it["total_us"].is_u64()),
            "{ping}"
        );
    }
    let other = format!("{}@{}", "ab".repeat(32), node.address());
    let output = host.run(&["ping", &other, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stdout(&output).contains(&node.id),
        "the error names the node that is there"
    );
    let output = host.run(&["ping", "no.such.service"]);
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn n5_a_watch_shows_events_as_they_happen_until_the_node_ends() {
    let host = Host::new();
    let node = host.node(&["--serve", "demo.echo=echo"]);
    let mut watch = host
        .macula()
        .args(["watch", "--json", "--kind", "opened,draining,left"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    // Connections are opened until the watch, which has to begin first, shows one.
    let (shown, first) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        shown.send(lines.next()).unwrap();
        lines
    });
    let opened = loop {
        host.text(&["call", "demo.echo", "x"]);
        if let Ok(line) = first.try_recv() {
            break line;
        }
    };
    let lines = reader.join().unwrap();
    let opened: Value = serde_json::from_str(&opened.unwrap().unwrap()).unwrap();
    assert_eq!(opened["kind"], "opened");
    assert!(opened["at_ms"].as_u64().is_some() && opened["node_id"].as_str().is_some());
    node.signal(rustix::process::Signal::TERM);
    let rest: Vec<Value> = lines
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    let kinds: Vec<_> = rest.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds[kinds.len() - 2..], ["draining", "left"], "{kinds:?}");
    assert_eq!(watch.wait().unwrap().code(), Some(0));
}

#[test]
fn n4_a_drain_ends_the_node_in_order() {
    let host = Host::new();
    let mut node = host.node(&["--serve", "demo.echo=echo"]);
    let text = host.text(&["drain", "--json"]);
    let steps: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(steps.last().unwrap()["phase"], "left");
    assert_eq!(node.wait(), Some(0));
    let output = host.run(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        complaint(&output).contains("no node of this user runs on this host"),
        "{}",
        stderr(&output)
    );
    assert_eq!(
        std::fs::read_dir(host.0.path()).unwrap().count(),
        0,
        "no socket is left"
    );
}

#[test]
fn n5_top_prints_frames_into_a_pipe() {
    let host = Host::new();
    let _node = host.node(&["--serve", "demo.echo=echo", "--serve", "demo.other=echo"]);
    host.text(&["call", "demo.echo", "x"]);
    let page = host.text(&[
        "top",
        "--count",
        "2",
        "--interval",
        "100ms",
        "--sort",
        "name",
        "--filter",
        "echo",
    ]);
    assert_eq!(page.matches("SERVICE").count(), 2, "{page}");
    assert!(
        page.contains("demo.echo") && !page.contains("demo.other") && !page.contains('\u{1b}'),
        "{page}"
    );
    assert!(page.contains("sorted by name, only echo"), "{page}");
}

#[test]
fn n5_several_nodes_of_one_host_are_told_apart() {
    let host = Host::new();
    let nodes = [host.node(&[]), host.node(&[])];
    let output = host.run(&["status"]);
    assert_eq!(output.status.code(), Some(2));
    let said = complaint(&output);
    assert!(
        said.contains("2 nodes run on this host; name one with --admin PATH"),
        "{said}"
    );
    for node in &nodes {
        let socket = host.0.path().join(format!("{}.sock", &node.id[..10]));
        let status = host.json(&["status", "--json", "--admin", socket.to_str().unwrap()]);
        assert_eq!(status["node_id"], node.id.as_str());
        assert!(said.contains(socket.to_str().unwrap()), "{said}");
    }
}

#[test]
fn n5_a_socket_of_a_living_node_is_named_and_a_dead_ones_is_replaced() {
    let host = Host::new();
    let socket = host.0.path().join("admin.sock");
    let args = ["--admin", socket.to_str().unwrap()];
    let mut first = host.node(&args);
    let mut second = host.macula();
    let second = second.args(["node", "--listen", "127.0.0.1:0"]).args(args);
    // That loopback is out of reach is not the point.
    let second = second.env("RUST_LOG", "error").output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = complaint(&second);
    assert!(
        said.contains("is the admin socket of a running node (process "),
        "{said}"
    );
    first.kill();
    let again = host.node(&args);
    assert_eq!(host.json(&["status", "--json"])["node_id"], again.id.as_str());
}

#[test]
fn commands_without_a_node_say_so() {
    let host = Host::new();
    for command in [&["status"][..], &["watch"], &["drain"], &["top"], &["health"]] {
        let output = host.run(command);
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert!(
            complaint(&output).contains("start one with `macula node`"),
            "{}",
            stderr(&output)
        );
    }
    for command in [&["services"][..], &["providers", "a"], &["call", "a"], &["ping", "a"]] {
        let output = host.run(command);
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        assert!(complaint(&output).contains("--bootstrap"), "{}", stderr(&output));
    }
}

#[test]
fn a_call_for_each_line_of_standard_input() {
    let host = Host::new();
    let node = host.node(&["--serve", "demo.up=exec:tr a-z A-Z"]);
    let args = [
        "call",
        "demo.up",
        "--lines",
        "--rate",
        "1000",
        "--bootstrap",
        &node.pinned(),
    ];
    let output = run_with_input(&args, b"one\ntwo\r\n\nlast");
    assert_eq!(stdout(&output), "ONE\nTWO\n\nLAST\n", "{}", stderr(&output));
}

#[test]
fn n7_a_drain_ends_a_node_that_is_the_first_process_too() {
    let host = Host::new();
    let mut node = host.node(&["--init"]);
    host.text(&["drain"]);
    assert_eq!(node.wait(), Some(0));
}

/// The help of the program and of each command, as a person reads it.
///
/// After a change of the words, write the new ones: `MACULA_WRITE_HELP=1 cargo test -p macula-node --test operator every_command`.
#[test]
fn every_command_shows_its_help_as_it_is_kept() {
    let help = |words: &[&str]| stdout(&macula().args(words).arg("--help").output().unwrap());
    let whole = help(&[]);
    let commands = whole.split("Commands:\n").nth(1).unwrap();
    let commands = commands.split("\n\nOptions:").next().unwrap();
    let names = commands
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help");
    let mut text = format!("$ macula --help\n{whole}");
    for name in names {
        text += &format!("\n$ macula {name} --help\n{}", help(&[name]));
    }
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/help.txt");
    if std::env::var_os("MACULA_WRITE_HELP").is_some() {
        std::fs::write(kept, &text).unwrap();
    }
    let kept = std::fs::read_to_string(kept).unwrap();
    for (line, (kept, shown)) in kept.lines().zip(text.lines()).enumerate() {
        assert_eq!(kept, shown, "line {} of tests/help.txt", line + 1);
    }
    assert_eq!(kept, text);
}

/// The rows of the guide's table: a command, and the names of its fields.
fn documented() -> Vec<(String, Vec<String>)> {
    let guide = include_str!("../docs/operating.md");
    let rows = guide
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"));
    let rows = rows.filter_map(|row| row.split_once("` | "));
    rows.map(|(command, fields)| {
        let fields = fields
            .split_whitespace()
            .map(|field| field.trim_matches('`').to_owned());
        (command.to_owned(), fields.collect())
    })
    .collect()
}

#[test]
fn the_json_fields_are_those_of_the_guide() {
    let host = Host::new();
    let _node = host.node(&["--serve", "demo.echo=echo"]);
    host.text(&["call", "demo.echo", "x"]);
    for (command, fields) in documented() {
        let words = match command.as_str() {
            "providers" | "ping" => vec!["demo.echo", "--json"],
            "call" => vec!["demo.echo", "x", "--json"],
            "watch" => vec!["--json", "--count", "1"],
            _ => vec!["--json"],
        };
        let mut asked = host.macula();
        asked
            .arg(&command)
            .args(&words)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut asked = asked.spawn().unwrap();
        if command == "watch" {
            // Something has to happen after the watch has begun.
            while asked.try_wait().unwrap().is_none() {
                host.text(&["call", "demo.echo", "x"]);
            }
        }
        let output = stdout(&asked.wait_with_output().unwrap());
        let object: Value = serde_json::from_str(output.lines().next().unwrap_or_default())
            .unwrap_or_else(|_| panic!("{command}: {output:?}"));
        let mut found: Vec<_> = object.as_object().unwrap().keys().cloned().collect();
        let mut fields = fields;
        found.sort();
        fields.sort();
        assert_eq!(found, fields, "macula {command} --json");
    }
}
