//! The data folder of a node, over real processes: killed, started again, and started on a damaged folder.
#![cfg(feature = "redb")]
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use std::{collections::BTreeSet, path::Path};

use macula_node::{DataError, Node, StartError};
use rustix::process::Signal;
use serde_json::Value;
use support::{NodeProcess, complaint, mesh, run, stderr, stdout};

/// A folder for data that does not exist yet.
struct Home(tempfile::TempDir, String);

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/data").to_str().unwrap().to_owned();
        Self(folder, path)
    }

    fn path(&self) -> &str {
        &self.1
    }

    fn directory(&self) -> std::path::PathBuf {
        Path::new(&self.1).join("directory.redb")
    }
}

/// The providers that the node at `bootstrap` gives.
fn providers(bootstrap: &NodeProcess) -> BTreeSet<String> {
    let output = run(&["providers", "demo.echo", "--json", "--bootstrap", &bootstrap.pinned()]);
    let list: Value = serde_json::from_str(&stdout(&output)).unwrap_or_else(|_| panic!("{}", stderr(&output)));
    let found = list["providers"].as_array().unwrap().iter();
    found.map(|p| p["node_id"].as_str().unwrap().to_owned()).collect()
}

fn ids(nodes: &[NodeProcess]) -> BTreeSet<String> {
    nodes.iter().map(|node| node.id.clone()).collect()
}

/// A node killed while it ran has what it learnt a moment before.
#[test]
fn n3_a_killed_node_finds_its_mesh_again_without_bootstrap() {
    let home = Home::new();
    let nodes = mesh(2, "demo.echo=echo");
    let bootstrap = nodes[0].pinned();
    let mut node = NodeProcess::logging("macula_node=debug", &["--data", home.path(), "--bootstrap", &bootstrap]);
    assert_eq!(providers(&node), ids(&nodes));
    // Ready means that it is in the mesh; the first write after that has its contacts.
    node.wait_for("kept");
    node.kill();

    let again = NodeProcess::start(&["--data", home.path()]);
    assert_eq!(again.id, node.id, "its key is kept too");
    assert_eq!(providers(&again), ids(&nodes));
    let answer = run(&["call", "demo.echo", "hello", "--bootstrap", &again.pinned()]);
    assert_eq!(stdout(&answer), "hello", "{}", stderr(&answer));
    // It is in the mesh, not beside it: what is published from now on is found through it.
    let late = NodeProcess::start(&["--serve", "demo.echo=echo", "--bootstrap", &nodes[1].pinned()]);
    let mut all = ids(&nodes);
    all.insert(late.id.clone());
    assert_eq!(providers(&again), all);
}

/// D4: no other node is left; the records it held are, until they expire.
#[test]
fn n3_a_node_that_starts_alone_answers_from_what_it_kept() {
    let home = Home::new();
    let nodes = mesh(2, "demo.echo=echo");
    let mut node = NodeProcess::start(&["--data", home.path(), "--bootstrap", &nodes[0].pinned()]);
    let all = ids(&nodes);
    assert_eq!(providers(&node), all);
    node.signal(Signal::TERM);
    assert_eq!(node.wait(), Some(0));
    drop(nodes);

    let again = NodeProcess::start(&["--data", home.path()]);
    assert_eq!(providers(&again), all);
}

/// N4: the restart of a holder does not bring back a provider that has withdrawn.
#[test]
fn d3_a_withdrawal_outlives_the_restart_of_its_holder() {
    let home = Home::new();
    let mut nodes = mesh(2, "demo.echo=echo");
    let mut node = NodeProcess::start(&["--data", home.path(), "--bootstrap", &nodes[0].pinned()]);
    assert_eq!(providers(&node), ids(&nodes));
    let gone = nodes.pop().map(|mut gone| {
        gone.signal(Signal::TERM);
        gone.wait()
    });
    assert_eq!(gone, Some(Some(0)));
    assert_eq!(providers(&node), ids(&nodes));
    node.signal(Signal::TERM);
    node.wait();
    let left = ids(&nodes);
    drop(nodes);
    let again = NodeProcess::start(&["--data", home.path()]);
    assert_eq!(providers(&again), left);
}

#[test]
fn a_damaged_file_is_set_aside_with_a_warning_that_says_where() {
    let home = Home::new();
    let nodes = mesh(1, "demo.echo=echo");
    let args = ["--data", home.path(), "--bootstrap", &nodes[0].pinned()];
    let mut node = NodeProcess::start(&args);
    node.signal(Signal::TERM);
    node.wait();

    let whole = std::fs::read(home.directory()).unwrap();
    let cut = &whole[..whole.len() / 3];
    for (n, damage) in [&b"no database"[..], cut, b""].into_iter().enumerate() {
        std::fs::write(home.directory(), damage).unwrap();
        let mut again = NodeProcess::logging("warn", &args);
        assert_eq!(again.id, node.id, "the key is in another file");
        assert_eq!(providers(&again), ids(&nodes));
        // An empty file is a new one.
        if !damage.is_empty() {
            let said = again.wait_for("damaged");
            let aside = format!("{}.damaged-{}", home.directory().display(), n + 1);
            assert!(said.contains("WARN") && said.contains(&aside), "{said}");
            assert_eq!(std::fs::read(aside).unwrap(), damage);
        }
    }
}

#[test]
fn two_nodes_on_one_folder_are_told_apart() {
    let home = Home::new();
    let _first = NodeProcess::start(&["--data", home.path()]);
    let second = run(&["node", "--listen", "127.0.0.1:0", "--data", home.path()]);
    assert_eq!(second.status.code(), Some(1));
    let said = complaint(&second);
    assert!(said.contains(home.path()) && said.contains("another process"), "{said}");
}

#[test]
fn a_folder_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = support::file(folder.path(), "file", b"");
    let below = file.join("data");
    let taken = folder.path().join("taken");
    std::fs::create_dir_all(taken.join("directory.redb")).unwrap();
    for path in [&file, &below, &taken, Path::new("/proc/none/data")] {
        let output = run(&["node", "--listen", "127.0.0.1:0", "--data", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{}", path.display());
        let said = complaint(&output);
        assert!(said.contains(path.to_str().unwrap()), "{said}");
    }
}

#[test]
fn an_identity_given_goes_before_the_one_kept() {
    let home = Home::new();
    let key = home.0.path().join("key");
    let id = stdout(&run(&["id", "--identity", key.to_str().unwrap()]));
    let args = ["--data", home.path(), "--identity", key.to_str().unwrap()];
    assert_eq!(NodeProcess::start(&args).id, id.trim());
    assert!(!Path::new(home.path()).join("identity").exists());
    // And without one, the folder has its own from then on.
    let kept = stdout(&run(&["id", "--data", home.path()]));
    assert_ne!(kept, id);
    assert_eq!(NodeProcess::start(&["--data", home.path()]).id, kept.trim());
}

/// The library: after a shutdown the folder is free, and the next node is the same one.
#[tokio::test]
async fn a_node_that_was_shut_down_has_closed_its_folder() {
    let home = Home::new();
    let start = || {
        let builder = Node::builder().listen("127.0.0.1:0".parse().unwrap());
        builder.data(home.path()).start()
    };
    let first = start().await.unwrap();
    let clone = first.clone();
    assert!(matches!(
        start().await,
        Err(StartError::Data(DataError::InUse { path })) if path == Path::new(home.path())
    ));
    first.shutdown().await;
    let second = start().await.unwrap();
    assert_eq!(second.id(), clone.id());
    // Twice is as good as once.
    clone.shutdown().await;
    second.shutdown().await;
}

/// Starts a node whose disk takes no byte more, with its log.
#[cfg(target_os = "linux")]
fn start_on_a_full_disk(path: &str) -> NodeProcess {
    let mut shell = std::process::Command::new("/bin/sh");
    // A write beyond the limit is an error like that of a full disk, once its signal is ignored.
    let script = format!(
        "trap '' XFSZ; ulimit -f 0; exec {} \"$@\"",
        env!("CARGO_BIN_EXE_macula")
    );
    shell.args(["-c", &script, "sh"]);
    shell.env("RUST_LOG", "warn").stderr(std::process::Stdio::piped());
    NodeProcess::spawn(shell, "127.0.0.1:0", &["--data", path, "--serve", "demo.echo=echo"])
}

#[cfg(target_os = "linux")]
#[test]
fn y17_a_node_whose_folder_cannot_be_written_starts_with_its_identity_and_a_warning() {
    let home = Home::new();
    let id = stdout(&run(&["id", "--data", home.path()]));
    let mut node = start_on_a_full_disk(home.path());
    assert_eq!(node.id, id.trim());
    node.wait_for("the data folder cannot be written");
    let answer = run(&["call", "demo.echo", "x", "--bootstrap", &node.pinned()]);
    assert_eq!(stdout(&answer), "x", "{}", stderr(&answer));
}

#[cfg(target_os = "linux")]
#[test]
fn y17_the_first_start_on_a_full_disk_says_so_and_serves() {
    let home = Home::new();
    let mut node = start_on_a_full_disk(home.path());
    node.wait_for("the node's new key cannot be kept");
    let answer = run(&["call", "demo.echo", "x", "--bootstrap", &node.pinned()]);
    assert_eq!(stdout(&answer), "x", "{}", stderr(&answer));
    drop(node);
    // Nothing half written is left: the next start has room, and a key of its own.
    let later = NodeProcess::start(&["--data", home.path()]);
    assert_eq!(stdout(&run(&["id", "--data", home.path()])).trim(), later.id);
}

/// For damage at any place of the file, a person reads a warning.
#[test]
fn y17_no_damage_prints_a_panic() {
    let home = Home::new();
    let nodes = mesh(1, "demo.echo=echo");
    let args = ["--data", home.path(), "--bootstrap", &nodes[0].pinned()];
    let mut node = NodeProcess::start(&args);
    node.signal(Signal::TERM);
    node.wait();
    let whole = std::fs::read(home.directory()).unwrap();
    for place in [9, 64, 128, 320, 4096, 4100, 8192, whole.len() / 2] {
        let mut damaged = whole.clone();
        let end = (place + 32).min(damaged.len());
        damaged[place..end].fill(0xff);
        std::fs::write(home.directory(), damaged).unwrap();
        let mut node = NodeProcess::logging("warn", &["--data", home.path()]);
        node.signal(Signal::TERM);
        assert_eq!(node.wait(), Some(0), "damaged at {place}");
        let log = node.rest_of_log();
        assert!(
            !log.contains("panicked") && !log.contains("stack backtrace"),
            "damaged at {place}: {log}"
        );
    }
}
