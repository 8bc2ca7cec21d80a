//! A node as its service manager and its operator run it: settings, SIGHUP, notifications, logs, papers (N1, N5, N7).
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use std::{os::unix::net::UnixDatagram, path::Path, process::Stdio};

use rustix::process::Signal;
use serde_json::Value;
use support::{NodeProcess, complaint, macula, run, stderr, stdout};

fn write(folder: &Path, text: &str) -> String {
    let path = folder.join("macula.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_settings_of_a_service_stand_in_the_file_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(
        folder.path(),
        r#"
        [node]
        serve = ["demo.where=exec:echo $COLOUR in $(pwd)", "demo.slow=exec:exec sleep 600", "demo.long=exec:echo 12345678"]
        [node.service."demo.where"]
        folder = "/"
        env = ["COLOUR=red"]
        [node.service."demo.slow"]
        timeout = "100ms"
        [node.service."demo.long"]
        output = 4
        "#,
    );
    let node = NodeProcess::start(&["--config", &file]);
    let call = |service: &str| run(&["call", service, "--bootstrap", &node.pinned()]);
    assert_eq!(stdout(&call("demo.where")), "red in /\n");
    let slow = complaint(&call("demo.slow"));
    assert!(slow.contains("killed after 100ms"), "{slow}");
    let long = complaint(&call("demo.long"));
    assert!(long.contains("more than 4 bytes"), "{long}");
}

#[test]
fn a_setting_without_its_service_is_a_usage_error() {
    for (args, said) in [
        (
            &["--service", "a:timeout=1s"][..],
            "--service a: there is no --serve of that name",
        ),
        (
            &["--serve", "a=echo", "--service", "a:output=5"],
            "only its concurrency and timeout can be set",
        ),
        (
            &["--serve", "a=echo", "--service", "a:colour=red"],
            "KEY is concurrency, timeout",
        ),
    ] {
        let output = run(&[&["node", "--listen", "127.0.0.1:0"], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(complaint(&output).contains(said), "{}", stderr(&output));
    }
}

#[test]
fn a_hangup_reads_the_configuration_again_and_says_what_cannot_change() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "[node]\nserve = [\"demo.a=echo\", \"demo.b=echo\"]\n");
    let mut node = NodeProcess::logging("warn", &["--config", &file]);
    let providers = |service: &str| {
        run(&["providers", service, "--bootstrap", &node.pinned()])
            .status
            .code()
    };
    assert_eq!(
        ["demo.a", "demo.b", "demo.c"].map(providers),
        [Some(0), Some(0), Some(3)]
    );
    write(
        folder.path(),
        "[node]\nserve = [\"demo.b=echo\", \"demo.c=exec:tr a-z A-Z\"]\nzone = \"eu\"\n",
    );
    node.signal(Signal::HUP);
    let fixed = node.wait_for("this option cannot change while the node runs");
    assert!(fixed.contains("zone"), "{fixed}");
    let done = node.wait_for("the configuration was read again");
    assert!(
        done.contains("demo.c") && done.contains("demo.a") && !done.contains("demo.b"),
        "{done}"
    );
    let providers = |service: &str| {
        run(&["providers", service, "--bootstrap", &node.pinned()])
            .status
            .code()
    };
    assert_eq!(
        ["demo.a", "demo.b", "demo.c"].map(providers),
        [Some(3), Some(0), Some(0)]
    );

    write(folder.path(), "[node]\nttl = 5\n");
    node.signal(Signal::HUP);
    node.wait_for("invalid value '5'");
    let call = run(&["call", "demo.c", "still here", "--bootstrap", &node.pinned()]);
    assert_eq!(stdout(&call), "STILL HERE", "a wrong file changes nothing");
}

#[test]
fn n7_the_service_manager_hears_ready_alive_and_stopping() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let mut command = macula();
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "40000");
    let mut node = NodeProcess::spawn(command, "127.0.0.1:0", &[]);
    let mut heard = Vec::new();
    let mut hear = |state: &str| {
        let mut buffer = [0; 256];
        loop {
            let length = socket.recv(&mut buffer).unwrap();
            let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let is_it = said.starts_with(state);
            heard.push(said);
            if is_it {
                return;
            }
        }
    };
    hear("READY=1");
    hear("WATCHDOG=1");
    hear("WATCHDOG=1");
    node.signal(Signal::HUP);
    hear("RELOADING=1\nMONOTONIC_USEC=");
    hear("READY=1");
    node.signal(Signal::TERM);
    hear("STOPPING=1");
    assert_eq!(heard[0], "READY=1");
    assert_eq!(node.wait(), Some(0));
}

#[test]
fn n7_a_second_interrupt_ends_the_node_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let begun = folder.path().join("begun");
    let serve = format!("demo.slow=exec:echo > {}; exec sleep 600", begun.display());
    let mut node = NodeProcess::start(&["--serve", &serve]);
    let mut call = macula();
    call.args(["call", "demo.slow", "--timeout", "1h", "--bootstrap", &node.pinned()]);
    let mut call = call.stderr(Stdio::null()).spawn().unwrap();
    while !begun.exists() {
        std::thread::yield_now();
    }
    node.signal(Signal::INT);
    // The first one has begun a drain, which waits for the call, when the node is no longer listed.
    let bootstrap = node.pinned();
    while run(&["health", "--on", &bootstrap, "--json"]).status.success() {}
    node.signal(Signal::INT);
    // A drain would give the call 30 s.
    assert_eq!(node.wait(), Some(0));
    assert!(call.wait().unwrap().code().is_some_and(|code| code != 0));
}

#[test]
fn a_log_in_json_has_one_object_an_event() {
    let mut command = macula();
    command.stderr(Stdio::piped());
    let mut node = NodeProcess::spawn(command, "127.0.0.1:0", &["--log", "info", "--log-format", "json"]);
    let line = node.wait_for("joined the mesh");
    let event: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
    assert_eq!(
        (&event["level"], &event["message"]),
        (&"INFO".into(), &"joined the mesh".into())
    );
    assert!(event["contacts"].is_u64() && event["timestamp"].is_string(), "{event}");
    let wrong = run(&["node", "--log", "a=b=c"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(complaint(&wrong).contains("macula_dht=debug"), "{}", stderr(&wrong));
}

#[test]
fn config_show_names_the_origin_of_each_value() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(
        folder.path(),
        "realm = \"shop\"\n\n[node]\nweight = 7\nzone = \"filed\"\n",
    );
    let mut show = macula();
    show.args([
        "config", "show", "--json", "--config", &file, "node", "--", "--ttl", "60",
    ]);
    let output = show.env("MACULA_ZONE", "typed").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let settings: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let setting = |option: &str| {
        let list = settings.as_array().unwrap();
        let found = list.iter().find(|setting| setting["option"] == option).unwrap();
        ["value", "origin", "place"].map(|key| found[key].as_str().unwrap_or("-").to_owned())
    };
    assert_eq!(setting("ttl"), ["60", "flag", "-"]);
    assert_eq!(setting("zone"), ["typed", "environment", "MACULA_ZONE"]);
    assert_eq!(setting("weight"), ["7", "file", &format!("{file}:4")]);
    assert_eq!(setting("realm"), ["shop", "file", &format!("{file}:1")]);
    assert_eq!(setting("listen"), ["[::]:9443", "default", "-"]);
    assert_eq!(setting("identity"), ["-", "unset", "-"]);
    let table = run(&["config", "show", "--config", &file]);
    assert!(stdout(&table).contains(&format!("file {file}:4")), "{}", stdout(&table));
}

#[test]
fn config_check_says_what_is_wrong_before_a_node_does() {
    let folder = tempfile::tempdir().unwrap();
    for (text, code, said) in [
        ("[node]\nweight = 7\n", 0, ""),
        ("[call]\nstrategy = \"p2c\"\n", 0, ""),
        ("[node]\nttl = 5\n", 2, "invalid value '5'"),
        ("[node]\nserve = [\"a=exec:nosuchprog\"]\n", 2, "on this machine"),
        ("[node]\nlisten = 1\nwat = 2\n", 2, "no option `wat`"),
    ] {
        let file = write(folder.path(), text);
        for command in ["node", "call"] {
            let output = run(&["config", "check", command, "--config", &file]);
            if command == "node" || code == 0 {
                assert_eq!(output.status.code(), Some(code), "{text}: {}", stderr(&output));
                assert!(stderr(&output).contains(said), "{text}: {}", stderr(&output));
            }
        }
    }
}

#[test]
fn n1_completions_and_manual_pages_are_generated() {
    for (shell, word) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef macula"),
        ("fish", "complete -c macula"),
    ] {
        let script = stdout(&run(&["completions", shell]));
        assert!(
            script.contains(word) && script.contains("providers"),
            "{shell}: {script}"
        );
    }
    assert!(stdout(&run(&["man"])).contains(".TH macula 1"));
    assert!(stdout(&run(&["man", "drain"])).contains("macula drain"));
    let folder = tempfile::tempdir().unwrap();
    let output = run(&["man", "--folder", folder.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let mut pages: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|it| it.unwrap().file_name())
        .collect();
    pages.sort();
    for page in ["macula.1", "macula-node.1", "macula-top.1", "macula-config.1"] {
        assert!(pages.iter().any(|it| it == page), "{page} is missing: {pages:?}");
    }
}

#[test]
fn an_identity_is_rotated_and_the_old_key_kept() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("identity");
    let id = |action: &[&str]| run(&[&["id"], action, &["--identity", file.to_str().unwrap()]].concat());
    let missing = id(&["rotate"]);
    assert_eq!(missing.status.code(), Some(1));
    let first = stdout(&id(&["new"]));
    let rotated = id(&["rotate"]);
    assert_eq!(rotated.status.code(), Some(0), "{}", stderr(&rotated));
    assert!(stderr(&rotated).contains(first.trim()), "{}", stderr(&rotated));
    let second = stdout(&rotated);
    assert_ne!(first, second);
    assert_eq!(stdout(&id(&["show"])), second);
    let old = folder.path().join("identity.old");
    assert_eq!(
        stdout(&run(&["id", "show", "--identity", old.to_str().unwrap()])),
        first
    );
    let _node = NodeProcess::start(&["--identity", file.to_str().unwrap()]);
    let busy = id(&["rotate"]);
    assert_eq!(busy.status.code(), Some(1));
    assert!(
        complaint(&busy).contains("another node uses the identity"),
        "{}",
        stderr(&busy)
    );
}
