//! The configuration file: its options hold where nothing is typed, and its mistakes are told.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use std::path::PathBuf;

use serde_json::Value;
use support::{NodeProcess, complaint, macula, run, stderr, stdout};
use tempfile::TempDir;

fn file(text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("macula.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

fn zones(list: &Value) -> Vec<(&str, u64)> {
    let providers = list["providers"].as_array().unwrap().iter();
    providers
        .map(|it| (it["zone"].as_str().unwrap_or("none"), it["weight"].as_u64().unwrap()))
        .collect()
}

#[test]
fn what_is_typed_goes_before_the_environment_and_that_before_the_file() {
    let (_folder, path) = file(
        r#"
        realm = "shop"
        [node]
        serve = ["demo.echo=echo", "demo.more=echo"]
        realm = "shop.node"
        zone = "filed"
        weight = 7
        [providers]
        json = true
        "#,
    );
    let path = path.to_str().unwrap();
    let node = NodeProcess::start(&["--config", path, "--realm", "shop"]);
    let list = run(&[
        "--config",
        path,
        "providers",
        "demo.more",
        "--bootstrap",
        &node.pinned(),
    ]);
    let list: Value = serde_json::from_str(&stdout(&list)).unwrap_or_else(|_| panic!("{}", stderr(&list)));
    assert_eq!(zones(&list), [("filed", 7)]);

    let mut elsewhere = macula();
    elsewhere.env("MACULA_CONFIG", path).env("MACULA_REALM", "empty");
    elsewhere.args(["providers", "demo.echo", "--bootstrap", &node.pinned()]);
    let output = elsewhere.output().unwrap();
    assert_ne!(output.status.code(), Some(0), "the environment's realm is another");
}

#[test]
fn a_file_that_is_wrong_is_named_with_what_is_wrong_in_it() {
    for (text, what) in [
        ("realm = ", "is not TOML"),
        ("listne = \"1\"", "no command has an option `listne`"),
        ("[node]\ntimeout = \"2s\"", "`macula node` has no option `timeout`"),
        ("[nodes]\nttl = 20", "no command has an option `nodes`"),
        ("config = \"x\"", "no command has an option `config`"),
        ("[node]\nttl = [20]", "`ttl` takes one text or number"),
        ("[node]\njson = 1", "`json` takes true or false"),
        ("[node]\nserve = [[\"a\"]]", "`serve` takes a text, or a list of texts"),
        ("[node]\nttl = 5", "invalid value '5' for '--ttl <SECS>'"),
        ("bootstrap = [\"a:1\", \"nowhere\"]", "invalid value 'nowhere'"),
    ] {
        let (_folder, path) = file(text);
        let output = run(&["--config", path.to_str().unwrap(), "node", "--listen", "127.0.0.1:0"]);
        assert_eq!(output.status.code(), Some(2), "{text}: {}", stderr(&output));
        let said = complaint(&output);
        assert!(
            said.contains(what) && said.contains(path.to_str().unwrap()),
            "{text}: {said}"
        );
    }
    let output = run(&["node", "--config", "/nowhere/macula.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        complaint(&output).contains("/nowhere/macula.toml cannot be read: No such file"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn what_is_typed_wrong_is_not_the_files_fault() {
    let (_folder, path) = file("[node]\nttl = 60");
    let output = run(&["node", "--config", path.to_str().unwrap(), "--ttl", "5"]);
    assert_eq!(output.status.code(), Some(2));
    let said = complaint(&output);
    assert!(
        said.contains("invalid value '5'") && !said.contains("macula.toml"),
        "{said}"
    );
}

#[test]
fn n5_the_configuration_that_is_deployed_opens_an_ops_port() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/macula.toml");
    let checked = run(&["--config", path, "config", "check"]);
    assert!(checked.status.success(), "{}", stderr(&checked));
    let shown = run(&["--config", path, "config", "show"]);
    let shown = stdout(&shown);
    let ops = shown.lines().find(|line| line.starts_with("ops ")).unwrap();
    assert!(ops.contains("127.0.0.1:9090") && ops.contains("macula.toml"), "{shown}");
}
