//! Closed realms as people run them: the commands, and nodes in processes of their own (A1, A2, A6, A7).
#![cfg(feature = "cli")]
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use std::{
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::Value;
use support::{NodeProcess, complaint, run, stderr, stdout};

/// A closed realm in a folder: its key, and an issuer that runs.
struct Shop {
    folder: tempfile::TempDir,
    issuer: NodeProcess,
}

impl Shop {
    fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = path(&folder, "shop.key");
        succeed(&["realm", "new", "shop", "--key", &key]);
        let issuer = start_issuer(&folder, "issuer");
        Self { folder, issuer }
    }

    fn key(&self) -> String {
        path(&self.folder, "shop.key")
    }

    fn data(&self, name: &str) -> String {
        path(&self.folder, name)
    }

    fn token(&self, options: &[&str]) -> String {
        let data = self.data("issuer");
        succeed(&[&["realm", "token", "--data", &data], options].concat())
    }

    /// Joins with a token, and starts a node that serves.
    fn provider(&self, name: &str, token: &str) -> NodeProcess {
        let data = self.data(name);
        succeed(&["join", token, "--data", &data]);
        self.start(&data)
    }

    fn start(&self, data: &str) -> NodeProcess {
        let bootstrap = self.issuer.pinned();
        NodeProcess::start(&["--data", data, "--bootstrap", &bootstrap, "--serve", "demo.echo=echo"])
    }

    /// A client's identity and grant, for commands.
    fn client(&self) -> Vec<String> {
        let identity = self.data("client");
        let token = self.token(&["--call", "demo.*", "--role", "client"]);
        succeed(&["join", &token, "--identity", &identity]);
        ["--identity", &identity, "--bootstrap", &self.issuer.pinned()]
            .map(str::to_owned)
            .into()
    }
}

fn path(folder: &tempfile::TempDir, name: &str) -> String {
    let path: PathBuf = folder.path().join(name);
    path.to_str().unwrap().to_owned()
}

/// Makes an identity, signs its issuing grant and starts the issuer.
fn start_issuer(folder: &tempfile::TempDir, name: &str) -> NodeProcess {
    let (key, data) = (path(folder, "shop.key"), path(folder, name));
    std::fs::create_dir_all(&data).unwrap();
    let id = succeed(&["id", "--data", &data]);
    let grant = succeed(&["realm", "grant", &id, "--key", &key, "--issue"]);
    NodeProcess::start(&["--data", &data, "--grant", &grant])
}

/// The first line of a command's output.
fn succeed(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    stdout(&output).trim_end().to_owned()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&succeed(&[args, &["--json"]].concat())).unwrap()
}

fn with<'a>(args: &[&'a str], client: &'a [String]) -> Vec<&'a str> {
    args.iter().copied().chain(client.iter().map(String::as_str)).collect()
}

/// The nodes that provide the service, as a client finds them.
fn providers(client: &[String]) -> Vec<String> {
    let output = run(&with(&["providers", "demo.echo", "--json"], client));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let nodes = found["providers"].as_array().unwrap();
    nodes
        .iter()
        .map(|node| node["node_id"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a7_a_closed_realm_of_five_nodes_from_nothing() {
    let shop = Shop::open();
    let rights = [
        "--serve",
        "demo.*",
        "--call",
        "demo.*",
        "--uses",
        "3",
        "--label",
        "team=orders",
    ];
    let token = shop.token(&rights);
    let nodes: Vec<_> = ["a", "b", "c"].map(|name| shop.provider(name, &token)).into();
    // The fourth use is one too many.
    let refused = run(&["join", &token, "--data", &shop.data("d")]);
    assert!(complaint(&refused).contains("used up"), "{}", stderr(&refused));

    // The fifth joins as it starts.
    let token = shop.token(&rights);
    let (data, bootstrap) = (shop.data("d"), shop.issuer.pinned());
    let fifth = NodeProcess::start(&[
        "--data",
        &data,
        "--token",
        &token,
        "--bootstrap",
        &bootstrap,
        "--serve",
        "demo.echo=echo",
    ]);
    let client = shop.client();
    let mut expected: Vec<_> = nodes.iter().chain([&fifth]).map(|node| node.id.clone()).collect();
    expected.sort();
    let mut found = providers(&client);
    found.sort();
    assert_eq!(found, expected);
    let answer = run(&with(&["call", "demo.echo", "hello"], &client));
    assert_eq!(
        (stdout(&answer).as_str(), answer.status.code()),
        ("hello", Some(0)),
        "{}",
        stderr(&answer)
    );

    // A command that comes and goes, with a token and with a grant of the realm's key.
    let once = shop.token(&["--call", "demo.*", "--role", "client"]);
    let by_token = ["--token".to_owned(), once, "--bootstrap".to_owned(), bootstrap.clone()];
    assert_eq!(succeed(&with(&["call", "demo.echo", "hello"], &by_token)), "hello");
    let passing = shop.data("passing");
    std::fs::create_dir_all(&passing).unwrap();
    let id = succeed(&["id", "--data", &passing]);
    let grant = succeed(&["realm", "grant", &id, "--key", &shop.key(), "--call", "demo.*"]);
    let identity = format!("{passing}/identity");
    let by_grant = ["--grant".to_owned(), grant, "--identity".to_owned(), identity];
    let by_grant = [&by_grant[..], &by_token[2..]].concat();
    assert_eq!(providers(&by_grant).len(), 4);

    // The realm's name alone opens nothing, and neither does the name with its key.
    let realm = succeed(&["realm", "show", "--key", &shop.key()]);
    for realm in ["shop", &realm] {
        let stranger = run(&[
            "call",
            "demo.echo",
            "hello",
            "--realm",
            realm,
            "--bootstrap",
            &bootstrap,
            "--timeout",
            "5s",
        ]);
        assert_eq!(stranger.status.code(), Some(1), "{}", stderr(&stranger));
    }

    let members = json(&["realm", "members", "--data", &shop.data("issuer")]);
    let members = members["members"].as_array().unwrap();
    assert_eq!(members.len(), 6);
    assert!(members.iter().all(|member| member["state"] == "valid"));
    let granted = json(&["realm", "members", "--key", &shop.key()]);
    let granted = granted["members"].as_array().unwrap();
    assert!(
        granted
            .iter()
            .any(|member| member["node_id"] == shop.issuer.id.as_str())
    );
}

/// A1: beyond loopback a node of an open realm says in one line what that means, and how to close the realm.
#[test]
fn a1_a_node_of_an_open_realm_says_so_beyond_loopback_alone() {
    let start = |listen: &str| {
        let mut command = support::macula();
        command.stderr(std::process::Stdio::piped());
        NodeProcess::spawn(command, listen, &[])
    };
    let line = start("0.0.0.0:0").wait_for("the realm is open");
    assert!(
        line.contains("every node that reaches this one") && line.contains("macula realm new"),
        "{line}"
    );
    let mut near = start("127.0.0.1:0");
    near.signal(rustix::process::Signal::TERM);
    near.wait();
    assert!(!near.rest_of_log().contains("the realm is open"));
}

#[test]
fn a7_a_token_that_ended_or_was_never_made_lets_no_node_in() {
    let shop = Shop::open();
    let token = shop.token(&["--for", "1s", "--uses", "1000"]);
    // The issuer's clock decides: it is asked until the second is over.
    let refused = loop {
        let asked = run(&["join", &token, "--data", &shop.data("late")]);
        if !asked.status.success() {
            break asked;
        }
        std::fs::remove_dir_all(shop.data("late")).unwrap();
    };
    assert!(complaint(&refused).contains("has ended"), "{}", stderr(&refused));
    let other = Shop::open();
    let foreign = other.token(&["--call", "demo.*"]);
    drop(other);
    let lost = run(&["join", &foreign, "--data", &shop.data("lost")]);
    assert!(complaint(&lost).contains("could not be reached"), "{}", stderr(&lost));
    let cut = run(&["join", &token[..token.len() - 5], "--data", &shop.data("cut")]);
    assert!(complaint(&cut).contains("copy the whole line"));
}

#[test]
fn a2_a_token_gives_no_more_than_its_issuer_may() {
    let shop = Shop::open();
    let data = shop.data("modest");
    std::fs::create_dir_all(&data).unwrap();
    let id = succeed(&["id", "--data", &data]);
    let grant = succeed(&[
        "realm",
        "grant",
        &id,
        "--key",
        &shop.key(),
        "--issue",
        "--call",
        "demo.*",
    ]);
    let _modest = NodeProcess::start(&["--data", &data, "--grant", &grant, "--bootstrap", &shop.issuer.pinned()]);
    let too_much = run(&["realm", "token", "--data", &data, "--call", "*"]);
    assert!(
        complaint(&too_much).contains("goes beyond its issuer's"),
        "{}",
        stderr(&too_much)
    );
    succeed(&["realm", "token", "--data", &data, "--call", "demo.echo"]);
    let no_issuer = run(&["realm", "token", "--data", &shop.data("nowhere")]);
    assert!(complaint(&no_issuer).contains("identity"), "{}", stderr(&no_issuer));
}

/// A6: a node is revoked while it serves. The others' calls go on, and the revoked one is neither found nor called any more.
#[test]
fn a6_a_revoked_node_is_gone_from_callers_and_no_call_to_the_others_fails() {
    let shop = Shop::open();
    let token = shop.token(&["--serve", "demo.*", "--call", "demo.*", "--uses", "3"]);
    let nodes: Vec<_> = ["a", "b", "c"].map(|name| shop.provider(name, &token)).into();
    let client = shop.client();
    assert_eq!(providers(&client).len(), 3);

    let started = std::time::Instant::now();
    let told = succeed(&[
        "realm",
        "revoke",
        &nodes[0].id,
        "--key",
        &shop.key(),
        "--bootstrap",
        nodes[1].address(),
    ]);
    assert!(told.contains("is revoked"), "{told}");
    loop {
        let output = run(&with(&["call", "demo.echo", "x", "--count", "10", "--json"], &client));
        let calls = stdout(&output);
        let calls: Vec<Value> = calls.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(calls.len(), 10, "{}", stderr(&output));
        assert!(calls.iter().all(|call| call["ok"] == true), "{calls:?}");
        let reached = calls.iter().any(|call| call["provider"] == nodes[0].id.as_str());
        if !reached && !providers(&client).contains(&nodes[0].id) {
            break;
        }
        assert!(started.elapsed().as_secs() < 60, "the revoked node is still there");
    }
    let members = json(&["realm", "members", "--data", &shop.data("issuer")]);
    let state = |id: &str| {
        let members = members["members"].as_array().unwrap().iter();
        members.clone().find(|member| member["node_id"] == id).unwrap()["state"].clone()
    };
    assert_eq!(
        (state(&nodes[0].id), state(&nodes[1].id)),
        ("revoked".into(), "valid".into())
    );
}

/// A6: a member is given fewer rights and keeps its identity.
#[test]
fn a6_a_members_rights_are_narrowed_by_the_commands() {
    let shop = Shop::open();
    let wide = shop.token(&["--serve", "demo.*", "--call", "*", "--uses", "2"]);
    let (narrowed, _other) = (shop.provider("a", &wide), shop.provider("b", &wide));
    let (id, key, issuer) = (narrowed.id.clone(), shop.key(), shop.issuer.pinned());
    // Times are in seconds, and the order takes back the rights of earlier ones.
    let second = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let made = second();
    while second() == made {
        std::thread::yield_now();
    }
    let revoke = [
        "realm",
        "revoke",
        &id,
        "--present",
        "--key",
        &key,
        "--bootstrap",
        &issuer,
    ];
    let told = succeed(&revoke);
    assert!(told.contains("1 of them have the order on disk"), "{told}");
    drop(narrowed);
    let data = shop.data("a");
    // The token of its wide rights was used by it before, so no use of it is taken.
    let again = run(&["join", &wide, "--data", &data]);
    assert!(complaint(&again).contains("revoked"), "{}", stderr(&again));
    succeed(&["join", &shop.token(&["--call", "demo.*"]), "--data", &data]);
    let members = json(&["realm", "members", "--data", &shop.data("issuer")]);
    let members = members["members"].as_array().unwrap();
    let row = members.iter().find(|member| member["node_id"] == id.as_str()).unwrap();
    assert_eq!(
        (&row["state"], &row["rights"]["serve"]),
        (&"valid".into(), &Value::Array(Vec::new()))
    );
    let serves = run(&[
        "node",
        "--listen",
        "127.0.0.1:0",
        "--data",
        &data,
        "--serve",
        "demo.echo=echo",
    ]);
    assert!(!serves.status.success(), "it serves as before");
    let identity = format!("{data}/identity");
    let as_it = ["--identity".to_owned(), identity, "--bootstrap".to_owned(), issuer];
    assert_eq!(succeed(&with(&["call", "demo.echo", "x"], &as_it)), "x");
}

/// A5: commands with the data folder of a node act with its grant, and say so when that does not let them ask.
#[test]
fn a5_commands_use_the_grant_of_a_data_folder_and_name_what_it_does_not_allow() {
    let shop = Shop::open();
    let token = shop.token(&["--serve", "demo.*", "--call", "demo.*", "--uses", "3"]);
    let _nodes: Vec<_> = ["a", "b"].map(|name| shop.provider(name, &token)).into();
    let (idle, bootstrap) = (shop.data("idle"), shop.issuer.pinned());
    succeed(&["join", &token, "--data", &idle]);
    let by_data = ["--data".to_owned(), idle, "--bootstrap".to_owned(), bootstrap.clone()];
    assert_eq!(succeed(&with(&["call", "demo.echo", "x"], &by_data)), "x");
    let listed = json(&with(&["providers", "demo.echo"], &by_data));
    let listed = listed["providers"].as_array().unwrap();
    assert!(
        listed.len() == 2 && listed.iter().all(|it| it["state"] == "not allowed to ask"),
        "{listed:?}"
    );
    let denied = run(&with(&["services"], &by_data));
    assert_eq!(denied.status.code(), Some(1));
    assert!(
        stderr(&denied).contains("did not let this command ask"),
        "{}",
        stderr(&denied)
    );
    // A node that runs has its identity itself.
    let running = [
        "--data".to_owned(),
        shop.data("a"),
        "--bootstrap".to_owned(),
        bootstrap.clone(),
    ];
    let taken = run(&with(&["call", "demo.echo", "x"], &running));
    assert!(
        complaint(&taken).contains("another node uses the identity"),
        "{}",
        stderr(&taken)
    );
    // One that may ask meets all nodes by one of them.
    let identity = shop.data("operator");
    succeed(&[
        "join",
        &shop.token(&["--call", "*", "--role", "client"]),
        "--identity",
        &identity,
    ]);
    let operator = ["--identity".to_owned(), identity, "--bootstrap".to_owned(), bootstrap];
    let shown = json(&with(&["services"], &operator));
    assert_eq!(
        (&shown["asked"], &shown["silent"], &shown["denied"]),
        (&3.into(), &0.into(), &0.into())
    );
    let services = shown["services"].as_array().unwrap();
    assert!(
        services
            .iter()
            .any(|it| it["service"] == "demo.echo" && it["providers"] == 2),
        "{services:?}"
    );
}

/// A1: a node whose grant is lost would be in an open realm, and serve every stranger. It does not start.
#[test]
fn a1_a_node_whose_grant_is_gone_does_not_start_in_an_open_realm() {
    let shop = Shop::open();
    let (realm, data) = (succeed(&["realm", "show", "--key", &shop.key()]), shop.data("a"));
    // A token may be pasted with what stood around it.
    let token = shop.token(&["--serve", "demo.*", "--call", "demo.*"]);
    succeed(&["join", &format!(" {token}\n"), "--data", &data]);
    let starts = |options: &[&str]| {
        let node = ["node", "--listen", "127.0.0.1:0", "--serve", "demo.echo=echo"];
        run(&[&node[..], options].concat())
    };
    let open = starts(&["--data", &data, "--realm", "shop"]);
    assert!(
        complaint(&open).contains("told to be in the open realm shop"),
        "{}",
        stderr(&open)
    );
    let grant = format!("{data}/identity.grant");
    std::fs::rename(&grant, format!("{data}/lost")).unwrap();
    for options in [&["--data", &data][..], &["--data", &data, "--realm", &realm]] {
        let gone = starts(options);
        let said = complaint(&gone);
        assert!(
            said.contains(&realm) && said.contains("is missing: put it back"),
            "{}",
            stderr(&gone)
        );
    }
    // A folder with an issuer's files was in a closed realm, and the configuration of a new node says that it is in one.
    let copy = shop.data("copy");
    std::fs::create_dir(&copy).unwrap();
    std::fs::create_dir(format!("{copy}/members")).unwrap();
    let gone = starts(&["--data", &copy]);
    assert!(complaint(&gone).contains("was in a closed realm"), "{}", stderr(&gone));
    let fresh = starts(&["--data", &shop.data("fresh"), "--realm", &realm]);
    assert!(
        complaint(&fresh).contains("the node has no grant: join with a token"),
        "{}",
        stderr(&fresh)
    );
    std::fs::rename(format!("{data}/lost"), &grant).unwrap();
    drop(shop.start(&data));
}

/// A6: an operator is told when an order counts at no node: with words and an exit code.
#[test]
fn a6_an_order_that_counts_nowhere_is_no_success() {
    let shop = Shop::open();
    let (key, data, issuer) = (shop.key(), shop.data("issuer"), shop.issuer.address());
    let token = shop.token(&["--serve", "demo.*", "--call", "demo.*"]);
    let node = shop.provider("a", &token);
    let revoke = |id: &str, options: &[&str]| run(&[&["realm", "revoke", id], options].concat());
    let fails = |output: std::process::Output, words: &str| {
        assert!(!output.status.success(), "{}", stdout(&output));
        assert!(
            stdout(&output).is_empty() && stderr(&output).contains(words),
            "{words}: {}",
            stderr(&output)
        );
    };
    // An issuer and a node that it does not know.
    let stranger = "ab".repeat(32);
    fails(revoke(&stranger, &["--data", &data]), "neither let the node in");
    // Nodes of another realm, of an open realm, and none at all.
    let (other, open) = (Shop::open(), NodeProcess::start(&[]));
    for (at, words) in [
        (other.issuer.address(), "not valid in this realm"),
        (open.address(), "does not answer nodes that are not members"),
    ] {
        fails(revoke(&node.id, &["--key", &key, "--bootstrap", at]), words);
    }
    // The issuer takes back its own order, and the realm's key has shut the node out as well.
    let told = revoke(&node.id, &["--data", &data]);
    assert!(told.status.success(), "{}", stderr(&told));
    let told = revoke(&node.id, &["--key", &key, "--bootstrap", issuer]);
    assert!(told.status.success(), "{}", stderr(&told));
    fails(
        revoke(&node.id, &["--data", &data, "--lift"]),
        "another one still shuts the node out",
    );
    // The realm's key lifts what the issuer ordered before.
    let told = revoke(&node.id, &["--key", &key, "--lift", "--bootstrap", issuer]);
    assert!(
        stdout(&told).contains("admitted again: told 1 of 1"),
        "{}",
        stderr(&told)
    );
    // The issuer is revoked. It hears of it, and signs nothing any more.
    let told = revoke(&shop.issuer.id, &["--key", &key, "--bootstrap", issuer]);
    assert!(!told.status.success() && stderr(&told).contains("the node that the order is about"));
    fails(revoke(&node.id, &["--data", &data]), "this issuer is revoked");
    let token = run(&["realm", "token", "--data", &data]);
    assert!(
        complaint(&token).contains("this issuer is revoked"),
        "{}",
        stderr(&token)
    );
    let members = json(&["realm", "members", "--data", &data]);
    assert_eq!(members["members"][0]["state"], "revoked");
}

/// The issuer takes so many visits at a time, and an order comes with those that were given before.
#[test]
fn a6_the_fortieth_revocation_is_in_force_as_the_first_is() {
    let shop = Shop::open();
    let key = shop.key();
    for n in 10..49 {
        // No node is named, so the order is signed and kept and reaches none.
        let other = n.to_string().repeat(32);
        let kept = run(&["realm", "revoke", &other, "--key", &key]);
        assert!(complaint(&kept).contains("no node to tell"), "{}", stderr(&kept));
    }
    let node = shop.provider("a", &shop.token(&["--serve", "demo.*", "--call", "demo.*"]));
    let issuer = shop.issuer.address();
    succeed(&["realm", "revoke", &node.id, "--key", &key, "--bootstrap", issuer]);
    let members = json(&["realm", "members", "--data", &shop.data("issuer")]);
    let members = members["members"].as_array().unwrap();
    let state = members.iter().find(|member| member["node_id"] == node.id.as_str());
    assert_eq!(state.unwrap()["state"], "revoked");
}

/// A new issuer with a key of its own takes over from the old one; members go on, and the old key is worth nothing afterwards.
#[test]
fn a7_the_key_of_an_issuer_is_rotated() {
    let mut shop = Shop::open();
    let data = shop.data("second");
    std::fs::create_dir_all(&data).unwrap();
    let id = succeed(&["id", "--data", &data]);
    let grant = succeed(&["realm", "grant", &id, "--key", &shop.key(), "--issue"]);
    let second = NodeProcess::start(&["--data", &data, "--grant", &grant, "--bootstrap", &shop.issuer.pinned()]);
    let old = shop.token(&["--call", "demo.*", "--uses", "9"]);
    let token = succeed(&[
        "realm", "token", "--data", &data, "--serve", "demo.*", "--call", "demo.*",
    ]);
    let first = std::mem::replace(&mut shop.issuer, second);
    let _provider = shop.provider("a", &token);
    succeed(&[
        "realm",
        "revoke",
        &first.id,
        "--key",
        &shop.key(),
        "--bootstrap",
        shop.issuer.address(),
    ]);
    // The word of the issuer itself is worth nothing, although it takes the order.
    let told = run(&[
        "realm",
        "revoke",
        &first.id,
        "--key",
        &shop.key(),
        "--bootstrap",
        first.address(),
    ]);
    assert_eq!(told.status.code(), Some(1), "{}", stdout(&told));
    assert!(
        stderr(&told).contains("the node that the order is about"),
        "{}",
        stderr(&told)
    );
    let refused = run(&["join", &old, "--data", &shop.data("b")]);
    assert!(complaint(&refused).contains("refused"), "{}", stderr(&refused));
    let identity = shop.data("client");
    let token = succeed(&["realm", "token", "--data", &data, "--call", "demo.*"]);
    succeed(&["join", &token, "--identity", &identity]);
    let called = succeed(&[
        "call",
        "demo.echo",
        "x",
        "--identity",
        &identity,
        "--bootstrap",
        shop.issuer.address(),
    ]);
    assert_eq!(called, "x");
}

#[test]
fn a1_a_realms_key_can_have_a_passphrase() {
    let folder = tempfile::tempdir().unwrap();
    let key = path(&folder, "shop.key");
    let with_passphrase = |passphrase: &str, args: &[&str]| {
        let mut macula = support::macula();
        macula.env("MACULA_PASSPHRASE", passphrase).args(args);
        macula.output().unwrap()
    };
    let made = with_passphrase(
        "correct horse",
        &["realm", "new", "shop", "--key", &key, "--passphrase"],
    );
    assert!(made.status.success(), "{}", stderr(&made));
    let shown = json(&["realm", "show", "--key", &key]);
    assert_eq!(shown["encrypted"], true);
    assert_eq!(shown["realm"], stdout(&made).trim_end());
    let id = "ab".repeat(32);
    let grant = ["realm", "grant", &id, "--key", &key, "--call", "demo.*", "--for", "2h"];
    let granted = with_passphrase("correct horse", &grant);
    let line = stdout(&granted);
    let content = json(&["realm", "show", line.trim_end()]);
    assert_eq!(
        (&content["node_id"], &content["rights"]["call"][0]),
        (&Value::from(id.as_str()), &Value::from("demo.*"))
    );
    assert!(complaint(&with_passphrase("wrong", &grant)).contains("passphrase is wrong"));
    assert!(complaint(&run(&grant)).contains("MACULA_PASSPHRASE"));
    assert!(!Path::new(&path(&folder, "shop.key.tmp")).exists());
}
