//! A host, the program that runs on it, and the faults of its network.

use std::{
    fs::{self, OpenOptions},
    net::IpAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::scenario::{Fault, Wire};
use crate::workspace::line;

/// The port that a node listens on where it has an address of its own.
pub(crate) const PORT: u16 = 9443;

/// A host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The number of the host within its scenario's network.
    pub(crate) number: u16,
    /// The host's address.
    pub(crate) ip: IpAddr,
    /// Its address of the other family, where it has both.
    pub(crate) other: Option<IpAddr>,
    /// The argument of `--listen`.
    pub(crate) listen: String,
}

/// The side of the scenario's router that a host is on; without a router there is one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Public,
    Private,
}

/// What a program is started with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Launch {
    pub(crate) args: Vec<String>,
    /// Variables added to the environment.
    pub(crate) env: Vec<(String, String)>,
    /// The file that gets its standard error: its log. A pipe that nothing reads would stop a program that says much.
    pub(crate) log: PathBuf,
}

/// The hosts of one scenario. Dropping it gives everything back that it made.
pub(crate) trait Hosts {
    /// Adds a host.
    fn add(&mut self, side: Side) -> Result<Place>;

    /// Starts the program on a host. Its standard output is the child's.
    fn start(&mut self, place: &Place, launch: &Launch) -> Result<Started>;

    /// Does a fault of the network to a host; see [`NetFault`].
    fn afflict(&mut self, place: &mut Place, fault: NetFault) -> Result<()>;

    /// What a fault of this kind has done to a host's packets so far.
    fn counters(&self, place: &Place, fault: NetFault) -> Result<Vec<Counter>>;

    /// The addresses that a host has on its link now.
    fn addresses(&self, place: &Place) -> Result<Vec<IpAddr>>;

    /// The largest packet that a host's link takes, in bytes.
    ///
    /// # Errors
    /// The host has no link of its own.
    fn mtu(&self, _place: &Place) -> Result<u32> {
        bail!("the host has no link of its own")
    }

    /// Lets a program stand still.
    fn pause(&self, program: &Started) -> Result<()> {
        program.signal_worker(Signal::STOP)
    }

    /// Lets it go on.
    fn resume(&self, program: &Started) -> Result<()> {
        program.signal_worker(Signal::CONT)
    }

    /// Whether a program stands still.
    fn stands_still(&self, program: &Started) -> Result<bool> {
        let stat = format!("/proc/{}/stat", program.worker());
        let stat = fs::read_to_string(stat).context("the program has ended")?;
        Ok(is_stopped(&stat))
    }

    /// The translations that the router has made so far.
    ///
    /// # Errors
    /// The backend has no router.
    fn translations(&self) -> Result<u64> {
        bail!("this backend has no router")
    }

    /// The router forgets its translations.
    ///
    /// # Errors
    /// The backend has no router.
    fn rebind(&mut self) -> Result<()> {
        bail!("this backend has no router")
    }
}

/// A number that grows with each packet that a fault takes hold of, and its name. Of a cut link it grows with each that passes.
pub(crate) type Counter = (&'static str, u64);

/// A fault of the network, as a host sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NetFault {
    Cut,
    Heal,
    /// Packets to this address get lost.
    Block(IpAddr),
    Unblock(IpAddr),
    Move,
    Mtu(u32),
    Wire(Wire),
}

impl NetFault {
    /// The network's part of a fault; `None` when the fault is the process's. `ip_of` gives the address of a node.
    pub(crate) fn of(fault: Fault, ip_of: impl Fn(usize) -> IpAddr) -> Option<(usize, Self)> {
        Some(match fault {
            Fault::Cut(node) => (node, Self::Cut),
            Fault::Heal(node) => (node, Self::Heal),
            Fault::Block(from, to) => (from, Self::Block(ip_of(to))),
            Fault::Unblock(from, to) => (from, Self::Unblock(ip_of(to))),
            Fault::Move(node) => (node, Self::Move),
            Fault::Mtu(node, bytes) => (node, Self::Mtu(bytes)),
            Fault::Wire(node, wire) => (node, Self::Wire(wire)),
            Fault::Rebind
            | Fault::Clock(..)
            | Fault::AllClocks(_)
            | Fault::CallersSleep
            | Fault::CallersWake
            | Fault::FillDisk(_)
            | Fault::FreeDisk(_)
            | Fault::Files(..)
            | Fault::Kill(_)
            | Fault::Leave(_)
            | Fault::Restart(_)
            | Fault::Replace(_)
            | Fault::Pause(_)
            | Fault::Resume(_) => return None,
        })
    }
}

/// A program that runs on a host.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) child: Child,
    /// The program itself, where the child is something that waits for it.
    pub(crate) pid: i32,
    /// The name of the container that it runs in.
    pub(super) container: Option<String>,
    log: PathBuf,
}

impl Started {
    /// Starts `command` as the program itself, with its standard error appended to the file `log`.
    pub(super) fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        let shown = line(command);
        let file = OpenOptions::new().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot open {}", log.display()))?;
        let child = command
            // Ctrl-C is for this program, which ends the others in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start `{shown}`"))?;
        let pid = i32::try_from(child.id()).context("a process id beyond those of Linux")?;
        let log = log.to_path_buf();
        Ok(Self {
            child,
            pid,
            container: None,
            log,
        })
    }

    /// The process that does the work. As process 1 of a container, the program leaves the work to a child (N7).
    pub(crate) fn worker(&self) -> i32 {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid)).unwrap_or_default();
        let first = children.split_whitespace().next();
        first.and_then(|pid| pid.parse().ok()).unwrap_or(self.pid)
    }

    pub(super) fn container(&self) -> Result<&str> {
        self.container.as_deref().context("the program runs in no container")
    }

    fn signal_worker(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.worker()).context("a process has an id")?;
        kill_process(pid, signal).context("a program cannot be signalled")
    }

    /// Waits for its end, and gives its standard output and its log.
    pub(crate) fn finish(self) -> Result<(Vec<u8>, String)> {
        let Self { child, log, .. } = self;
        let output = child.wait_with_output().context("a program's output cannot be read")?;
        Ok((output.stdout, read_log(&log)))
    }

    /// Its log so far.
    pub(crate) fn said(&self) -> String {
        read_log(&self.log)
    }
}

/// Whether `/proc/PID/stat` tells of a stopped process: `PID (NAME) STATE …`, where the name may hold anything.
fn is_stopped(stat: &str) -> bool {
    let state = stat.rsplit(')').next().unwrap_or_default();
    state.trim_start().starts_with('T')
}

fn read_log(log: &Path) -> String {
    fs::read_to_string(log).unwrap_or_default().trim().to_owned()
}

/// Runs a tool that says nothing when all is well.
pub(crate) fn tool(words: &[&str]) -> Result<String> {
    let (program, args) = words.split_first().context("a tool has a name")?;
    // Ctrl-C is not for a tool: it is needed to take things down.
    let output = Command::new(program)
        .args(args)
        .process_group(0)
        .stdin(Stdio::null())
        .output();
    let output = output.with_context(|| format!("cannot start `{program}`"))?;
    ensure!(
        output.status.success(),
        "`{}` failed: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_process_is_told_from_one_that_sleeps() {
        assert!(is_stopped("12 (a) T b) T 1 12"));
        assert!(!is_stopped("12 (T) S 1 12"));
        assert!(!is_stopped(""));
    }
}
