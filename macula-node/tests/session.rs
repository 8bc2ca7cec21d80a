//! The session of the guide, typed line by line.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process_group};

/// The word that the shell prints after a command.
const DONE: &str = "-- done --";

/// A command of the guide, and the answer printed below it.
#[derive(Debug, PartialEq, Eq)]
struct Step<'a> {
    command: String,
    answer: Vec<&'a str>,
}

fn steps(guide: &str) -> Vec<Step<'_>> {
    let mut steps: Vec<Step<'_>> = Vec::new();
    let blocks = guide.split("```console\n").skip(1);
    for line in blocks.flat_map(|block| block.split("\n```").next().unwrap().lines()) {
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step {
                command: command.to_owned(),
                answer: Vec::new(),
            });
            continue;
        }
        let step = steps.last_mut().unwrap();
        match line.strip_prefix("> ").or_else(|| line.strip_prefix('>')) {
            Some(more) => step.command = format!("{}\n{more}", step.command),
            None => step.answer.push(line),
        }
    }
    steps
}

/// Whether a line is as printed, with anything in the places of `…`.
fn is_like(line: &str, printed: &str) -> bool {
    let mut parts = printed.split('…');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let parts: Vec<_> = parts.collect();
    let Some((last, between)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in between {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Whether an answer is as printed. A line of only `…` stands for any number of lines.
fn are_like(lines: &[String], printed: &[&str]) -> bool {
    match (lines, printed) {
        ([], []) => true,
        (_, ["…", rest @ ..]) => (0..=lines.len()).any(|skipped| are_like(&lines[skipped..], rest)),
        ([line, lines @ ..], [first, rest @ ..]) => is_like(line, first) && are_like(lines, rest),
        ([], _) | (_, []) => false,
    }
}

/// A shell in a folder of its own. What it started ends with it.
struct Shell {
    child: Child,
    stdin: ChildStdin,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Shell {
    fn start(folder: &Path) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_macula")).parent().unwrap();
        let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MACULA_") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .args(["--norc", "--noprofile"])
            .current_dir(folder)
            .env("PATH", path)
            .env("HOME", folder)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "exec 2>&1").unwrap();
        Self {
            stdin,
            lines: BufReader::new(child.stdout.take().unwrap()).lines(),
            child,
        }
    }

    fn line(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }

    /// Types a command; its answer. One that goes on behind the next commands is waited for until it has said what it says.
    fn type_line(&mut self, command: &str, behind: Option<usize>) -> Vec<String> {
        writeln!(self.stdin, "{command}").unwrap();
        if let Some(lines) = behind {
            return (0..lines).map(|_| self.line()).collect();
        }
        // On a line of its own, whatever the command has printed.
        writeln!(self.stdin, "echo '{DONE}'").unwrap();
        let mut answer = Vec::new();
        loop {
            let line = self.line();
            if line == DONE {
                return answer;
            }
            // The shell's own word about a job that was killed comes when it likes.
            if !line.contains(" Killed ") {
                answer.push(line);
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let group = Pid::from_child(&self.child);
        // Fails when all of it has ended.
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
    }
}

#[test]
fn n5_the_session_of_the_guide_goes_as_printed() {
    for tool in ["bash", "python3", "curl"] {
        if Command::new(tool).arg("--version").output().is_err() {
            eprintln!("the session is not typed: there is no {tool}");
            return;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    // An address of loopback that no other test uses, so that the guide's ports are free.
    let own = std::process::id();
    let host = format!("127.{}.{}.{}", 1 + own % 250, own / 250 % 250, 1 + own / 62_500 % 250);
    let guide = include_str!("../docs/session.md").replace("127.0.0.1", &host);
    let steps = steps(&guide);
    assert!(steps.len() > 20, "only {} commands were found", steps.len());
    let mut shell = Shell::start(folder.path());
    for step in &steps {
        let behind = step.command.ends_with('&').then_some(step.answer.len());
        let answer = shell.type_line(&step.command, behind);
        assert!(
            are_like(&answer, &step.answer),
            "$ {}\n{}\nand the guide says\n{}",
            step.command,
            answer.join("\n"),
            step.answer.join("\n")
        );
    }
}

#[test]
fn an_ellipsis_stands_for_what_differs() {
    assert!(is_like("left after 12s", "left after …"));
    assert!(is_like("a 1 b 2 c", "a … b … c"));
    assert!(!is_like("a 1 b", "a … c") && !is_like("left", "left after …") && !is_like("abc", "ab"));
    let lines = ["one", "two", "three"].map(str::to_owned);
    assert!(are_like(&lines, &["…", "three"]) && are_like(&lines, &["one", "…"]));
    assert!(!are_like(&lines, &["one", "three"]) && !are_like(&lines, &["one"]));
}
