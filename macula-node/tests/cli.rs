//! The command line's contract: its output, its complaints about bad input, and its exit codes.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use std::{net::UdpSocket, os::unix::fs::PermissionsExt};

use serde_json::Value;
use support::{NodeProcess, complaint, macula, mesh, run, run_with_input, stderr, stdout};

/// N1: a client that knows one node finds the services of others.
#[test]
fn n1_services_of_nodes_that_are_not_named_are_listed() {
    let first = NodeProcess::start(&["--serve", "demo.echo=echo"]);
    let bootstrap = first.pinned();
    let _second = NodeProcess::start(&["--serve", "demo.more=echo", "--bootstrap", &bootstrap]);
    let _third = NodeProcess::start(&["--serve", "demo.most=echo", "--bootstrap", &bootstrap]);
    let listed = || stdout(&run(&["services", "--bootstrap", &bootstrap]));
    while !["demo.echo", "demo.more", "demo.most"]
        .iter()
        .all(|name| listed().contains(name))
    {}
}

#[test]
fn a_call_prints_the_answer_and_nothing_else() {
    let nodes = mesh(1, "demo.echo=echo");
    let output = run(&["call", "demo.echo", "hello", "--bootstrap", &nodes[0].pinned()]);
    assert_eq!(
        (output.status.code(), stdout(&output).as_str(), stderr(&output).as_str()),
        (Some(0), "hello", "")
    );
}

#[test]
fn a_call_reads_its_request_from_standard_input() {
    let nodes = mesh(1, "demo.echo=echo");
    let bytes: Vec<u8> = (0..=255).cycle().take(1_000_000).collect();
    let output = run_with_input(&["call", "demo.echo", "-", "--bootstrap", &nodes[0].pinned()], &bytes);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(output.stdout == bytes, "the answer is not the request");
}

#[test]
fn a_call_with_json_prints_one_object_a_call() {
    let nodes = mesh(2, "demo.echo=echo");
    let args = [
        "call",
        "demo.echo",
        "x",
        "--count",
        "4",
        "--strategy",
        "round_robin",
        "--json",
    ];
    let output = run(&[&args[..], &["--bootstrap", &nodes[0].pinned()]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let calls: Vec<Value> = stdout(&output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(calls.len(), 4);
    for call in &calls {
        assert_eq!((&call["ok"], &call["reply"]), (&true.into(), &"x".into()));
    }
    // S2: a client's consecutive calls alternate.
    assert_ne!(calls[0]["provider"], calls[1]["provider"]);
    assert_eq!(calls[0]["provider"], calls[2]["provider"]);
}

#[test]
fn providers_lists_each_with_its_endpoint() {
    let nodes = mesh(3, "demo.echo=echo");
    let output = run(&["providers", "demo.echo", "--json", "--bootstrap", &nodes[1].pinned()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let list: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let mut found: Vec<_> = list["providers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| {
            (
                p["node_id"].as_str().unwrap().to_owned(),
                p["endpoints"][0].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    let mut started: Vec<_> = nodes
        .iter()
        .map(|node| (node.id.clone(), node.endpoint.clone()))
        .collect();
    found.sort();
    started.sort();
    assert_eq!(found, started);

    let plain = run(&["providers", "demo.echo", "--bootstrap", &nodes[1].pinned()]);
    let plain = stdout(&plain);
    let lines: Vec<Vec<_>> = plain.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NODE", "STATE", "AGE", "ZONE", "ADDRESSES"]);
    assert_eq!(lines.len(), 4);
    assert!(
        lines[1..].iter().all(|line| line[1] == "serving" && line[3] == "-"),
        "{plain}"
    );
}

#[test]
fn f4_the_two_terminal_errors_have_their_exit_codes() {
    let nodes = mesh(3, "broken=exec:exit 1");
    let bootstrap = nodes[0].pinned();
    let all = run(&["call", "broken", "--bootstrap", &bootstrap]);
    assert_eq!(all.status.code(), Some(4));
    assert!(complaint(&all).contains("all_providers_failed"));
    let two = run(&["call", "broken", "--bootstrap", &bootstrap, "--max-attempts", "2"]);
    assert_eq!(two.status.code(), Some(5));
    assert!(complaint(&two).contains("max_attempts_exceeded"));
    for node in &nodes {
        assert!(
            stderr(&all).contains(&node.endpoint),
            "{} is missing: {}",
            node.endpoint,
            stderr(&all)
        );
    }
}

#[test]
fn f7_a_deadline_that_passes_has_its_exit_code() {
    let node = NodeProcess::start(&["--serve", "slow=exec:exec sleep 600"]);
    let output = run(&["call", "slow", "--timeout", "300ms", "--bootstrap", &node.pinned()]);
    assert_eq!(output.status.code(), Some(6));
    assert!(complaint(&output).contains("deadline_exceeded"));
}

#[test]
fn s5_an_unknown_service_has_its_exit_code() {
    let nodes = mesh(1, "demo.echo=echo");
    for command in ["call", "providers"] {
        let output = run(&[command, "no.such.service", "--bootstrap", &nodes[0].pinned()]);
        assert_eq!(output.status.code(), Some(3));
        assert!(complaint(&output).contains("service_not_found"));
    }
}

#[test]
fn d8_a_service_of_another_realm_is_out_of_reach() {
    let node = NodeProcess::start(&["--serve", "demo.echo=echo", "--realm", "blue"]);
    let output = run(&[
        "call",
        "demo.echo",
        "x",
        "--realm",
        "red",
        "--bootstrap",
        &node.pinned(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("realm"));
}

#[test]
fn a_first_contact_without_an_id_is_trusted_and_shown() {
    let node = NodeProcess::start(&["--serve", "demo.echo=echo"]);
    let output = run(&["call", "demo.echo", "x", "--bootstrap", node.address()]);
    assert_eq!(output.status.code(), Some(0));
    assert!(complaint(&output).contains(&format!("--bootstrap {}", node.pinned())));
}

/// A name is as good as an address, with and without an id.
#[test]
fn a_bootstrap_node_may_be_named_by_its_host() {
    let node = NodeProcess::start(&["--serve", "demo.echo=echo"]);
    let (_, port) = node.address().rsplit_once(':').unwrap();
    let named = format!("localhost:{port}");
    for address in [format!("{}@{named}", node.id), named] {
        let output = run(&["call", "demo.echo", "x", "--bootstrap", &address]);
        assert_eq!(stdout(&output), "x", "{}", stderr(&output));
    }
    let output = run(&["call", "demo.echo", "x", "--bootstrap", "no-such-host.invalid:9443"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        complaint(&output).contains("no-such-host.invalid"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_bootstrap_node_with_another_id_is_refused() {
    let node = NodeProcess::start(&["--serve", "demo.echo=echo"]);
    let address = format!("{}@{}", "ab".repeat(32), node.address());
    let output = run(&["call", "demo.echo", "x", "--bootstrap", &address]);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains(&node.id), "{}", stderr(&output));
}

#[test]
fn bad_words_are_usage_errors_of_one_line() {
    for (args, said) in [
        (
            &["call", "no spaces", "--bootstrap", "node1:1"][..],
            "may not stand in a name",
        ),
        (&["call", "a..b", "--bootstrap", "node1:1"], "dot"),
        (&["call", "a", "--timeout", "soon", "--bootstrap", "node1:1"], "2s"),
        (
            &["call", "a", "--strategy", "best", "--bootstrap", "node1:1"],
            "round_robin",
        ),
        (&["call", "a", "--bootstrap", "node1"], "port"),
        (&["call", "a", "--bootstrap", "xyz@node1:1"], "node id"),
        (&["call", "a"], "--bootstrap"),
        (&["call", "a", "--count", "0", "--bootstrap", "node1:1"], "--count"),
        (&["call"], "<SERVICE[/METHOD]>"),
        (&["providers", "a"], "--bootstrap"),
        (&["node", "--serve", "a=run"], "NAME=echo"),
        (&["node", "--serve", "a b=echo"], "may not stand in a name"),
        (&["node", "--listen", "nowhere"], "--listen"),
        (&["node", "--advertise", "node1:0"], "port"),
        (&["node", "--ttl", "5"], "20..=3600"),
        (&["node", "--realm", ""], "empty"),
        (&["node", "--colour"], "--colour"),
        (&["demo", "--providers", "1"], "--no-kill"),
        (&["demo", "--providers", "0"], "--providers"),
        (&["fly"], "fly"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(complaint(&output).contains(said), "{args:?}: {}", stderr(&output));
    }
}

/// A container's settings often cannot leave a variable out.
#[test]
fn an_empty_variable_is_one_that_is_not_set() {
    let mut call = macula();
    let call = call
        .args(["call", "a"])
        .env("MACULA_BOOTSTRAP", "")
        .env("MACULA_STRATEGY", "");
    let output = call.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        complaint(&output).contains("no way into the mesh"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_wrong_value_is_blamed_on_the_variable_it_comes_from() {
    let complain = |args: &[&str]| {
        let mut call = macula();
        let output = call.args(args).env("MACULA_BOOTSTRAP", "node1").output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        complaint(&output)
    };
    let said = complain(&["call", "a"]);
    assert!(said.contains("the value is that of MACULA_BOOTSTRAP"), "{said}");
    for typed in [
        &["call", "a", "--bootstrap", "node2"][..],
        &["call", "a", "--bootstrap=node2"],
    ] {
        let said = complain(typed);
        assert!(!said.contains("MACULA_BOOTSTRAP"), "{said}");
    }
}

#[test]
fn a_request_above_four_mebibytes_is_a_usage_error() {
    let output = run_with_input(
        &["call", "a", "-", "--bootstrap", "127.0.0.1:1"],
        &vec![0; 4 * 1024 * 1024 + 1],
    );
    assert_eq!(output.status.code(), Some(2));
    assert!(complaint(&output).contains("4 MiB"));
}

#[test]
fn a_request_of_four_mebibytes_is_answered() {
    let node = NodeProcess::start(&["--serve", "demo.echo=echo"]);
    let bytes = vec![7; 4 * 1024 * 1024];
    let output = run_with_input(&["call", "demo.echo", "-", "--bootstrap", &node.pinned()], &bytes);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(output.stdout == bytes, "the answer is not the request");
}

#[test]
fn an_unreachable_bootstrap_node_is_named() {
    // Bound and silent.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let output = run(&["call", "demo.echo", "x", "--bootstrap", &address]);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains(&address), "{}", stderr(&output));
}

#[test]
fn a_port_in_use_is_named() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let output = run(&["node", "--listen", &address]);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains(&address), "{}", stderr(&output));
}

#[test]
fn an_identity_is_made_once_and_kept_private() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("identity");
    let name = file.to_str().unwrap();
    let made = run(&["id", "--identity", name]);
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    assert_eq!(stdout(&made).trim().len(), 64);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(stdout(&run(&["id", "--identity", name])), stdout(&made));

    let node = NodeProcess::start(&["--identity", name]);
    assert_eq!(node.id, stdout(&made).trim());
}

#[test]
fn an_identity_without_a_file_is_kept_in_the_home_folder() {
    let home = tempfile::tempdir().unwrap();
    let id = || support::macula().arg("id").env("HOME", home.path()).output().unwrap();
    let made = id();
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    assert!(home.path().join(".macula/identity").is_file());
    assert_eq!(id().stdout, made.stdout);
}

#[test]
fn an_identity_file_that_others_can_read_or_that_is_broken_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("identity");
    let name = file.to_str().unwrap();
    run(&["id", "--identity", name]);
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    let readable = run(&["node", "--identity", name]);
    assert_eq!(readable.status.code(), Some(1));
    assert!(complaint(&readable).contains("chmod 600"), "{}", stderr(&readable));

    let junk = support::file(folder.path(), "junk", b"not a key");
    std::fs::set_permissions(&junk, PermissionsExt::from_mode(0o600)).unwrap();
    let folder_itself = folder.path().to_str().unwrap();
    for name in [junk.to_str().unwrap(), folder_itself] {
        let output = run(&["node", "--identity", name]);
        assert_eq!(output.status.code(), Some(1));
        assert!(complaint(&output).contains(name), "{}", stderr(&output));
    }
}

#[test]
fn help_and_version_are_no_failures() {
    for args in [
        &["--help"][..],
        &["--version"],
        &["node", "--help"],
        &["call", "--help"],
        &["demo", "--help"],
    ] {
        let output = run(args);
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
        assert!(!output.stdout.is_empty());
    }
}

#[test]
fn n4_a_node_told_to_end_leaves_in_order() {
    let mut nodes = mesh(2, "demo.echo=echo");
    nodes[1].signal(rustix::process::Signal::TERM);
    assert_eq!(nodes[1].wait(), Some(0));
    // It has withdrawn: no call is sent to it any more.
    let output = run(&["providers", "demo.echo", "--json", "--bootstrap", &nodes[0].pinned()]);
    let list: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(list["providers"].as_array().unwrap().len(), 1);
    assert_eq!(list["providers"][0]["node_id"], nodes[0].id.as_str());
}

#[test]
fn the_demonstration_loses_no_call() {
    let output = run(&["demo", "--json", "--calls", "300"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let summary: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(
        (&summary["calls"], &summary["ok"], &summary["failed"]),
        (&300.into(), &300.into(), &0.into())
    );
    let providers = summary["providers"].as_array().unwrap();
    assert_eq!(providers.len(), 3);
    // A third of the calls of a third of the run came before the kill: more than that is since it was found again.
    let back = providers.iter().find(|p| p["node_id"] == summary["killed"]).unwrap()["calls"]
        .as_u64()
        .unwrap();
    assert!(back > 300 / 9 + 2, "the killed provider was not found again: {summary}");
    assert_eq!(providers.iter().map(|p| p["calls"].as_u64().unwrap()).sum::<u64>(), 300);
    assert!(providers.iter().any(|p| p["node_id"] == summary["killed"]));
    assert!(summary["attempts"].as_u64().unwrap() >= 300);
    // P1: connections are reused. One to each provider, and the killed one's again.
    assert!(summary["connections_opened"].as_u64().unwrap() <= 20, "{summary}");
    for time in ["p50_us", "p99_us", "max_us", "failover_max_us"] {
        assert!(summary[time].is_u64(), "{time} is missing");
    }
    assert_eq!(summary.as_object().unwrap().len(), 11);
}

/// Y7: joined through loopback, it advertises addresses that other hosts can dial, or the host has no network.
#[test]
fn d13_a_node_on_every_address_advertises_its_interfaces() {
    let first = NodeProcess::start(&["--serve", "demo.echo=echo"]);
    for (listen, service) in [("0.0.0.0:0", "demo.v4"), ("[::]:0", "demo.both")] {
        let serve = format!("{service}=echo");
        let node = NodeProcess::start_at(listen, &["--serve", &serve, "--bootstrap", &first.pinned()]);
        let output = run(&["providers", service, "--json", "--bootstrap", &first.pinned()]);
        let list: Value = serde_json::from_str(&stdout(&output)).unwrap();
        let endpoints = list["providers"][0]["endpoints"].as_array().unwrap().clone();
        assert_eq!(endpoints[0], node.endpoint.as_str());
        let is_loopback = |endpoint: &Value| {
            let text = endpoint.as_str().unwrap();
            text.starts_with("https://127.") || text.starts_with("https://[::1]")
        };
        let loopback = endpoints.iter().filter(|endpoint| is_loopback(endpoint)).count();
        assert!(loopback == 0 || loopback == endpoints.len(), "{endpoints:?}");
        let output = run(&["call", service, "x", "--bootstrap", &first.pinned()]);
        assert_eq!(stdout(&output), "x", "{}", stderr(&output));
    }
}

#[test]
fn d13_a_node_that_only_its_host_can_reach_says_so() {
    let mut node = NodeProcess::logging("warn", &[]);
    let said = node.wait_for("only this host can reach");
    assert!(said.contains(&node.endpoint), "{said}");
}
