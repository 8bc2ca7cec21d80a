//! Nodes as real processes, for the tests of what a person runs.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdin, Command, Output, Stdio},
};

use serde_json::Value;

/// The program under test, with nothing of the surroundings' settings.
pub(crate) fn macula() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_macula"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MACULA_") {
            command.env_remove(name);
        }
    }
    // No home folder, so that no test leaves state for another.
    command.env("HOME", "/nonexistent");
    // No node of another test is found, and none finds this one's.
    command.env("MACULA_RUNTIME", "/nonexistent");
    command.env("MACULA_ADMIN", "off");
    command
}

/// Runs the program to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    macula().args(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs the program to its end with `input` on its standard input.
pub(crate) fn run_with_input(args: &[&str], input: &[u8]) -> Output {
    use std::io::Write;

    let mut child = macula()
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // The program may stop reading: its exit is what is tested.
    let _ = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// Standard error as text.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Standard output as text.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A node in a process of its own, ready, and killed when dropped.
pub(crate) struct NodeProcess {
    pub(crate) id: String,
    pub(crate) endpoint: String,
    /// The line that says the node is ready.
    pub(crate) ready: Value,
    child: Child,
    /// Closing it would end the node.
    _stdin: ChildStdin,
    /// What the node logs, for a node started with [`NodeProcess::logging`].
    log: Option<BufReader<ChildStderr>>,
}

impl NodeProcess {
    /// Starts a node on a free loopback port with these further arguments and waits until it is ready.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", args)
    }

    pub(crate) fn start_at(listen: &str, args: &[&str]) -> Self {
        Self::spawn(macula(), listen, args)
    }

    /// As [`NodeProcess::start`], and [`NodeProcess::wait_for`] reads what it logs.
    pub(crate) fn logging(level: &str, args: &[&str]) -> Self {
        let mut command = macula();
        command.env("RUST_LOG", level).stderr(Stdio::piped());
        Self::spawn(command, "127.0.0.1:0", args)
    }

    /// As [`NodeProcess::start_at`], with the program's environment as given.
    pub(crate) fn spawn(mut command: Command, listen: &str, args: &[&str]) -> Self {
        let mut child = command
            .args(["node", "--json", "--until-stdin-closes", "--listen", listen])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("the node printed {line:?}"));
        Self {
            id: ready["node_id"].as_str().unwrap().to_owned(),
            endpoint: ready["endpoint"].as_str().unwrap().to_owned(),
            ready,
            _stdin: child.stdin.take().unwrap(),
            log: child.stderr.take().map(BufReader::new),
            child,
        }
    }

    /// Waits for a line of the log that contains `text`, and answers with it.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let log = self.log.as_mut().unwrap();
        let mut lines = log.lines().map(Result::unwrap);
        lines
            .find(|line| line.contains(text))
            .unwrap_or_else(|| panic!("the node ended and never said {text:?}"))
    }

    /// The rest of the log of a node that has ended.
    pub(crate) fn rest_of_log(&mut self) -> String {
        let mut rest = String::new();
        self.log.as_mut().unwrap().read_to_string(&mut rest).unwrap();
        rest
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> &str {
        self.endpoint.strip_prefix("https://").unwrap()
    }

    /// `NODEID@host:port`.
    pub(crate) fn pinned(&self) -> String {
        format!("{}@{}", self.id, self.address())
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Stops the process with SIGSTOP, and waits until every one of its threads has stopped.
    pub(crate) fn hang(&self) {
        self.signal(rustix::process::Signal::STOP);
        let threads = format!("/proc/{}/task", self.child.id());
        let runs = |thread: &Path| {
            // The state stands behind the name, which is in parentheses.
            let stat = std::fs::read_to_string(thread.join("stat")).unwrap_or_default();
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| !rest.starts_with(['T', 't']))
        };
        while std::fs::read_dir(&threads)
            .unwrap()
            .any(|thread| runs(&thread.unwrap().path()))
        {
            std::thread::yield_now();
        }
    }

    /// Kills the process with SIGKILL and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until the process ends and answers with its exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // Gone already, when the test has ended it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A bootstrap node and `count - 1` others that know it, all serving `--serve` as given.
pub(crate) fn mesh(count: usize, serve: &str) -> Vec<NodeProcess> {
    let mut nodes = vec![NodeProcess::start(&["--serve", serve])];
    while nodes.len() < count {
        let bootstrap = nodes[0].pinned();
        nodes.push(NodeProcess::start(&["--serve", serve, "--bootstrap", &bootstrap]));
    }
    nodes
}

/// The one line of a failed command, checked for words that no person should see.
pub(crate) fn complaint(output: &Output) -> String {
    let text = stderr(output);
    assert_eq!(text.lines().count(), 1, "more than one line, or none: {text}");
    for internal in ["panicked", "RUST_BACKTRACE", "Err(", "Some("] {
        assert!(!text.contains(internal), "{text}");
    }
    text
}

/// A file with this content in `folder`.
pub(crate) fn file(folder: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path
}
