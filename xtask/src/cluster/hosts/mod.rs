//! Hosts: each node of a scenario has one, with an address of its own where the backend can give it one.

mod containers;
mod net;
mod netns;
mod processes;

use std::{
    net::IpAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::scenario::{Family, Fault, Scenario};
use crate::workspace::line;

/// The port that a node listens on where it has an address of its own.
const PORT: u16 = 9443;

/// What a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Backend {
    /// A process on the loopback interface: no fault of the network.
    Processes,
    /// A network namespace with a link of its own to a bridge.
    Netns,
    /// A container of the image that `cargo xtask image` builds, on a network of Docker's.
    #[value(name = "compose")]
    Containers,
}

impl Backend {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Processes => "processes",
            Self::Netns => "netns",
            Self::Containers => "compose",
        }
    }

    /// The reason why this machine cannot run the backend.
    pub(crate) fn lack(self) -> Option<&'static str> {
        let answers = |program: &str, args: &[&str]| {
            let mut command = Command::new(program);
            command
                .args(args)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        match self {
            Self::Processes => None,
            Self::Netns if !answers("ip", &["-V"]) => Some("there is no `ip`: install iproute2"),
            Self::Netns if !netns::permitted() => Some("network namespaces need root"),
            Self::Netns => None,
            Self::Containers if !answers("docker", &["info"]) => Some("no Docker engine answers `docker info`"),
            Self::Containers if !answers("nsenter", &["-V"]) => Some("there is no `nsenter`: install util-linux"),
            Self::Containers => None,
        }
    }

    pub(crate) fn can_run(self, scenario: &Scenario) -> bool {
        let needs_network = scenario.steps.iter().any(|(_, fault)| fault.is_of_network());
        match self {
            Self::Processes => !needs_network,
            Self::Netns => true,
            // Docker's networks have IPv6 only when its daemon is set up for it.
            Self::Containers => scenario.family == Family::V4,
        }
    }

    /// Makes the network of a scenario. `folder` is where nodes and callers keep their files.
    pub(crate) fn open(self, program: &Path, family: Family, folder: &Path) -> Result<Box<dyn Hosts>> {
        Ok(match self {
            Self::Processes => Box::new(processes::Processes::new(program, family)),
            Self::Netns => Box::new(netns::Namespaces::new(program, family)?),
            Self::Containers => Box::new(containers::Containers::new(program, folder)?),
        })
    }
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The number of the host within its scenario's network.
    pub(crate) number: u16,
    /// The host's address.
    pub(crate) ip: IpAddr,
    /// The argument of `--listen`.
    pub(crate) listen: String,
}

/// The hosts of one scenario. Dropping it gives everything back that it made.
pub(crate) trait Hosts {
    /// Adds a host.
    fn add(&mut self) -> Result<Place>;

    /// Starts the program on a host. Its standard output is the child's.
    fn start(&mut self, place: &Place, args: &[String]) -> Result<Started>;

    /// Does a fault of the network to a host; see [`NetFault`].
    fn afflict(&mut self, place: &mut Place, fault: NetFault) -> Result<()>;
}

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
            Fault::Kill(_)
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
}

impl Started {
    /// Starts `command` as the program itself.
    fn spawn(command: &mut Command) -> Result<Self> {
        let shown = line(command);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{shown}`"))?;
        let pid = i32::try_from(child.id()).context("a process id beyond those of Linux")?;
        Ok(Self { child, pid })
    }
}

/// Runs a tool that says nothing when all is well.
fn tool(words: &[&str]) -> Result<String> {
    let (program, args) = words.split_first().context("a tool has a name")?;
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start `{program}`"))?;
    ensure!(
        output.status.success(),
        "`{}` failed: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
