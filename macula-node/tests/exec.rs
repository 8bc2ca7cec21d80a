//! `exec:` services over real processes: they end with their calls, and strangers learn nothing from them.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod support;

use std::{fs, path::Path, process::Stdio};

use rustix::process::{Pid, Signal, kill_process};
use support::{NodeProcess, complaint, macula, run, stderr, stdout};

fn call(node: &NodeProcess, service: &str) -> std::process::Output {
    run(&["call", service, "hello", "--bootstrap", &node.pinned()])
}

/// Waits until the process is gone, reaped and all; hangs if it never is.
fn wait_until_gone(pid: &str) {
    assert!(pid.parse::<u32>().is_ok(), "{pid:?} is no process id");
    while Path::new("/proc").join(pid).exists() {
        std::thread::yield_now();
    }
}

/// Waits until the process no longer runs; its parent may be slow to reap it.
fn wait_until_dead(pid: &str) {
    assert!(pid.parse::<u32>().is_ok(), "{pid:?} is no process id");
    let runs = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    };
    while runs() {
        std::thread::yield_now();
    }
}

/// Waits until a command has written its process id there.
fn wait_for_pid(file: &Path) -> String {
    loop {
        match fs::read_to_string(file) {
            Ok(pid) if pid.ends_with('\n') => return pid.trim().to_owned(),
            Ok(_) | Err(_) => std::thread::yield_now(),
        }
    }
}

#[test]
fn a_command_answers_with_its_output_and_fails_with_its_last_line() {
    let node = NodeProcess::start(&[
        "--serve",
        "up=exec:tr a-z A-Z",
        "--serve",
        "bad=exec:echo first; echo no such colour; exit 64",
        "--serve",
        "broken=exec:echo out of order; exit 1",
    ]);
    let up = call(&node, "up");
    assert_eq!((up.status.code(), stdout(&up).as_str()), (Some(0), "HELLO"));
    // A definitive answer: the caller's own fault.
    let bad = call(&node, "bad");
    assert_eq!(bad.status.code(), Some(7));
    assert!(
        complaint(&bad).contains("invalid_argument: no such colour"),
        "{}",
        stderr(&bad)
    );
    // Another provider might not fail so, but there is no other.
    let broken = call(&node, "broken");
    assert_eq!(broken.status.code(), Some(4));
    assert!(complaint(&broken).contains("out of order"), "{}", stderr(&broken));
}

/// Y10: the answer comes when the shell exits, and its children are killed.
#[test]
fn y10_a_child_that_holds_the_pipe_delays_no_answer() {
    let node = NodeProcess::start(&["--serve", "leaves=exec:sleep 600 & echo $!"]);
    let answer = call(&node, "leaves");
    assert_eq!(answer.status.code(), Some(0), "{}", stderr(&answer));
    wait_until_dead(stdout(&answer).trim());
}

#[test]
fn y10_a_process_that_left_its_group_is_reaped() {
    let node = NodeProcess::start(&["--init", "--serve", "orphan=exec:setsid sleep 0 >&- 2>&- & echo $!"]);
    for _ in 0..3 {
        let answer = call(&node, "orphan");
        assert_eq!(answer.status.code(), Some(0), "{}", stderr(&answer));
        wait_until_gone(stdout(&answer).trim());
    }
}

#[test]
fn n7_the_first_process_passes_sigterm_on_and_ends_as_the_node_does() {
    let mut node = NodeProcess::start(&["--init", "--serve", "demo.echo=echo"]);
    assert_eq!(stdout(&call(&node, "demo.echo")), "hello");
    node.signal(Signal::TERM);
    assert_eq!(node.wait(), Some(0));
}

/// Has a caller call a command that runs for an hour, ends the caller with a signal, and waits for the command's end; the caller's exit
/// code.
fn end_the_caller(signal: Signal) -> Option<i32> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let command = format!("slow=exec:echo $$ > {}; sleep 3600; echo", file.display());
    let node = NodeProcess::start(&["--serve", &command]);
    let args = [
        "call",
        "slow",
        "--timeout",
        "1h",
        "--attempt-timeout",
        "1h",
        "--bootstrap",
    ];
    let caller = macula().args(args).arg(node.pinned()).stderr(Stdio::null()).spawn();
    let mut caller = caller.unwrap();
    let command = wait_for_pid(&file);
    let pid = Pid::from_raw(i32::try_from(caller.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
    let code = caller.wait().unwrap().code();
    wait_until_dead(&command);
    code
}

#[test]
fn n8_a_command_ends_when_its_caller_cancels() {
    assert_eq!(end_the_caller(Signal::INT), Some(130));
}

/// A caller that is killed says nothing; its deadline is an hour away.
#[test]
fn y11_a_command_ends_soon_after_its_caller_is_killed() {
    assert_eq!(end_the_caller(Signal::KILL), None);
}

#[test]
fn n8_a_command_ends_when_its_time_is_up() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let command = format!("slow=exec:echo $$ > {}; sleep 600; echo", file.display());
    let node = NodeProcess::start(&["--serve", &command]);
    let output = run(&["call", "slow", "--timeout", "2s", "--bootstrap", &node.pinned()]);
    assert_eq!(output.status.code(), Some(6), "{}", stderr(&output));
    wait_until_dead(&wait_for_pid(&file));
}

#[test]
fn n8_a_command_that_writes_for_ever_is_ended() {
    let node = NodeProcess::start(&["--serve", "endless=exec:exec yes"]);
    let output = call(&node, "endless");
    assert_eq!(output.status.code(), Some(7));
    assert!(
        complaint(&output).contains("more than 4194304 bytes"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn n8_a_large_answer_is_whole() {
    let node = NodeProcess::start(&["--serve", "large=exec:head -c 3000000 /dev/zero"]);
    assert_eq!(call(&node, "large").stdout.len(), 3_000_000);
}

#[test]
fn x12_a_command_sees_its_caller_and_no_secret_of_the_node() {
    let mut command = macula();
    command
        .env("A_SECRET", "1")
        .env("A_SETTING", "2")
        .stderr(Stdio::piped());
    let args = [
        "--serve",
        "env=exec:env",
        "--exec-env",
        "A_SETTING",
        "--exec-env",
        "MODE=x",
    ];
    let node = NodeProcess::spawn(command, "127.0.0.1:0", &args);
    let seen = stdout(&call(&node, "env"));
    let has = |start: &str| seen.lines().any(|line| line.starts_with(start));
    assert!(
        has("PATH=") && has("A_SETTING=2") && has("MODE=x") && has("MACULA_SERVICE=env"),
        "{seen}"
    );
    assert!(!has("A_SECRET"), "{seen}");
    let caller = seen
        .lines()
        .find_map(|line| line.strip_prefix("MACULA_CALLER="))
        .unwrap();
    assert!(caller.len() == 64 && caller != node.id, "{caller}");
}

#[test]
fn x12_standard_error_goes_to_the_log_and_not_to_the_caller() {
    let args = ["--serve", "bad=exec:echo the password is 1234 >&2; exit 1"];
    let mut node = NodeProcess::logging("warn", &args);
    let output = call(&node, "bad");
    assert!(!stderr(&output).contains("1234"), "{}", stderr(&output));
    node.wait_for("the password is 1234");
}

#[test]
fn z10_a_command_that_does_not_exist_is_an_error_at_the_start() {
    for (command, said) in [
        ("nosuchprog -x", "there is no program `nosuchprog`"),
        ("if then", "the shell cannot read it"),
    ] {
        let output = run(&[
            "node",
            "--listen",
            "127.0.0.1:0",
            "--serve",
            &format!("a=exec:{command}"),
        ]);
        assert_eq!(output.status.code(), Some(2));
        assert!(complaint(&output).contains(said), "{}", stderr(&output));
    }
}
