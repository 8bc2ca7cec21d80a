//! The words of the command line, as a person reads them.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use std::net::UdpSocket;

use support::{NodeProcess, complaint, macula, run, stderr, stdout};

/// What is said on standard error about wrong words, whole.
#[test]
fn z10_what_is_wrong_is_said_whole_with_suggestions_and_the_commands_own_help() {
    for (args, said) in [
        (
            &["nod"][..],
            "macula: unrecognized subcommand 'nod'; a similar subcommand exists: 'node'; see `macula --help`\n",
        ),
        (
            &["node", "--servee", "a=echo"],
            "macula: unexpected argument '--servee' found; a similar argument exists: '--serve'; see `macula node --help`\n",
        ),
        (
            &["call"],
            "macula: the following required arguments were not provided: <SERVICE[/METHOD]>; see `macula call --help`\n",
        ),
        (
            &["call", "a", "--strategy", "affinity", "--bootstrap", "node1:1"],
            "macula: --strategy affinity sends calls with one key to one provider: name the key with --affinity-key KEY\n",
        ),
        (
            &["node", "--serve", "a=exec:nosuchprog"],
            "macula: --serve a=exec:nosuchprog: there is no program `nosuchprog` on this machine; write its whole path, or install it\n",
        ),
    ] {
        let output = run(args);
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(2), said));
    }
}

#[test]
fn z10_help_is_wrapped() {
    for command in ["node", "call", "providers", "health", "id", "demo"] {
        let output = run(&[command, "--help"]);
        let longest = stdout(&output).lines().map(|line| line.chars().count()).max();
        assert!(longest.is_some_and(|longest| longest <= 100), "{command}: {longest:?}");
    }
}

#[test]
fn z8_a_join_that_fails_names_its_cause_first() {
    let node = NodeProcess::start(&["--serve", "demo.echo=echo"]);
    let wrong = format!("{}@{}", "ab".repeat(32), node.address());
    let output = run(&["call", "demo.echo", "x", "--bootstrap", &wrong]);
    let start = format!("macula: the node at {} is {} and not", node.address(), node.id);
    assert!(complaint(&output).starts_with(&start), "{}", stderr(&output));
    let other = run(&[
        "call",
        "demo.echo",
        "x",
        "--realm",
        "red",
        "--bootstrap",
        &node.pinned(),
    ]);
    let said = complaint(&other);
    let (realm, address) = (said.find("realm"), said.find(node.address()));
    assert!(realm.unwrap() < address.unwrap(), "{said}");
}

#[test]
fn z9_a_node_trusted_on_first_use_is_said_once() {
    let home = tempfile::tempdir().unwrap();
    let call = |node: &NodeProcess, json: &[&str]| {
        let args = [&["call", "demo.echo", "x", "--bootstrap", node.address()], json].concat();
        macula().args(args).env("HOME", home.path()).output().unwrap()
    };
    let mut node = NodeProcess::start(&["--serve", "demo.echo=echo"]);
    let first = complaint(&call(&node, &[]));
    assert_eq!(
        first,
        format!(
            "macula: trusted {id} at {at} on first use; pin it with --bootstrap {id}@{at}\n",
            id = node.id,
            at = node.address()
        )
    );
    for json in [&[][..], &["--json"]] {
        assert_eq!(stderr(&call(&node, json)), "");
    }
    // Another key at the same address is news.
    let (at, before) = (node.address().to_owned(), node.id.clone());
    node.kill();
    let other = NodeProcess::start_at(&at, &["--serve", "demo.echo=echo"]);
    let said = complaint(&call(&other, &[]));
    assert!(
        said.contains("another node than before") && said.contains(&before),
        "{said}"
    );
    assert_eq!(stderr(&call(&other, &[])), "");
}

#[test]
fn z10_id_and_node_have_one_identity() {
    let home = tempfile::tempdir().unwrap();
    let id = |action: &[&str]| {
        let mut id = macula();
        id.arg("id").args(action).env("HOME", home.path()).output().unwrap()
    };
    let missing = id(&["show"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(complaint(&missing).contains(".macula/identity"));
    let made = id(&["new"]);
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    assert_eq!(
        (id(&["show"]).stdout, id(&[]).stdout),
        (made.stdout.clone(), made.stdout.clone())
    );
    assert!(complaint(&id(&["new"])).contains("already"));

    let mut command = macula();
    command.env("HOME", home.path());
    let node = NodeProcess::spawn(command, "127.0.0.1:0", &[]);
    assert_eq!(node.id, stdout(&made).trim());
    let mut second = macula();
    let second = second
        .args(["node", "--listen", "127.0.0.1:0"])
        .env("HOME", home.path());
    let second = second.output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(
        complaint(&second).contains("another node uses the identity"),
        "{}",
        stderr(&second)
    );
}

#[test]
fn z10_joining_is_part_of_the_time() {
    // Bound and silent.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let output = run(&["call", "a", "--timeout", "200ms", "--bootstrap", &address]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr(&output),
        format!("macula: the mesh was not joined within 200ms through {address}; allow more with --timeout\n")
    );
}

#[test]
fn z10_a_dead_provider_is_listed_as_one() {
    let first = NodeProcess::start(&["--serve", "demo.echo=echo", "--zone", "fra1"]);
    let mut second = NodeProcess::start(&["--serve", "demo.echo=echo", "--bootstrap", &first.pinned()]);
    second.kill();
    let output = run(&["providers", "demo.echo", "--bootstrap", &first.pinned()]);
    let text = stdout(&output);
    let line = |id: &str| {
        let line = text.lines().find(|line| line.starts_with(id)).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let (alive, dead) = (line(&first.id), line(&second.id));
    assert_eq!((alive[1].as_str(), alive[3].as_str()), ("serving", "fra1"));
    assert_eq!((dead[1].as_str(), dead[3].as_str()), ("unreachable", "-"));
}

#[test]
fn z10_a_call_says_a_line_an_outcome_when_asked() {
    let node = NodeProcess::start(&["--serve", "demo.echo=echo"]);
    let mut call = macula();
    let call = call.args(["call", "demo.echo", "x", "--count", "5", "--strategy", "round-robin"]);
    let output = call
        .args(["--bootstrap", &node.pinned()])
        .env("RUST_LOG", "info")
        .output()
        .unwrap();
    let answered = stderr(&output).lines().filter(|line| line.contains("answered")).count();
    assert_eq!(answered, 5, "{}", stderr(&output));
}
