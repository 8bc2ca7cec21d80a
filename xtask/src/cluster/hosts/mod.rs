//! Hosts: each node of a scenario has one, with an address of its own where the backend can give it one.

mod containers;
mod host;
mod neighbours;
mod net;
mod netns;
mod processes;
mod wire;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Result;

use super::scenario::{Need, Scenario};
use containers::{Containers, Image};
pub(crate) use host::{Counter, Hosts, Launch, NetFault, PORT, Place, Side, Started, tool};
pub(crate) use net::families;
use netns::Namespaces;
use processes::Processes;

/// Whether a program of this machine answers.
fn answers(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

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
        match self {
            Self::Processes => None,
            Self::Netns if !answers("ip", &["-V"]) => Some("there is no `ip`: install iproute2"),
            Self::Netns if !netns::permitted() => Some("network namespaces need root"),
            Self::Netns => None,
            Self::Containers if !answers("docker", &["info"]) => Some("no Docker engine answers `docker info`"),
            Self::Containers if !answers("nsenter", &["-V"]) => Some("there is no `nsenter`: install util-linux"),
            Self::Containers if !answers("ip", &["-V"]) => Some("there is no `ip`: install iproute2"),
            Self::Containers if !rustix::process::geteuid().is_root() => {
                Some("only root may signal processes in containers and change their links")
            }
            Self::Containers => None,
        }
    }

    /// Whether a host goes on when a process on it is killed, so that its kernel tells peers about it. A container is its one process.
    pub(crate) const fn hosts_outlive_processes(self) -> bool {
        !matches!(self, Self::Containers)
    }

    /// Why the backend cannot run this scenario; `None` when it can.
    pub(crate) fn cannot(self, scenario: &Scenario) -> Option<&'static str> {
        let needs = scenario.needs();
        let lacks = |need, program: &str, arg| needs.contains(&need) && !answers(program, &[arg]);
        if needs.contains(&Need::Clock) && crate::cluster::clock::library().is_none() {
            return Some("libfaketime is not installed");
        }
        if lacks(Need::Nat, "nft", "--version") {
            return Some("there is no `nft`: install nftables");
        }
        if lacks(Need::Files, "setpriv", "--version") || lacks(Need::Files, "prlimit", "--version") {
            return Some("there is no `setpriv` or `prlimit`: install util-linux");
        }
        if needs.contains(&Need::Disk) && !rustix::process::geteuid().is_root() {
            return Some("to mount a disk needs root");
        }
        match self {
            Self::Processes
                if needs
                    .iter()
                    .any(|need| matches!(need, Need::Link | Need::Wire | Need::Nat)) =>
            {
                Some("processes share one loopback interface")
            }
            Self::Processes | Self::Netns => None,
            Self::Containers if needs.iter().any(|need| matches!(need, Need::Wire | Need::Nat)) => {
                Some("Docker makes the links")
            }
            Self::Containers => None,
        }
    }
}

/// What the hosts of every scenario of a run have in common.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) backend: Backend,
    program: PathBuf,
    image: Option<Image>,
}

impl Ground {
    /// For containers this makes their image.
    ///
    /// # Errors
    /// The image does not build.
    pub(crate) fn new(backend: Backend, program: &Path) -> Result<Self> {
        let contained = backend == Backend::Containers;
        Ok(Self {
            backend,
            program: program.to_path_buf(),
            image: contained.then(|| Image::build(program)).transpose()?,
        })
    }

    /// Makes the network of a scenario. `folder` is where nodes and callers keep their files.
    pub(crate) fn open(&self, scenario: &Scenario, seed: u64, folder: &Path) -> Result<Box<dyn Hosts>> {
        Ok(match (self.backend, &self.image) {
            (Backend::Containers, Some(image)) => Box::new(Containers::new(image, scenario, folder)?),
            (Backend::Netns, _) => Box::new(Namespaces::new(&self.program, scenario, seed)?),
            (Backend::Processes | Backend::Containers, _) => Box::new(Processes::new(&self.program, scenario.family)),
        })
    }
}
