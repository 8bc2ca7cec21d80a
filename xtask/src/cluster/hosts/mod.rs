//! Hosts: each node of a scenario has one, with an address of its own where the backend can give it one.

mod containers;
mod host;
mod net;
mod netns;
mod processes;

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Result;

use super::scenario::{Family, Scenario};
pub(crate) use host::{Hosts, NetFault, Place, Started};

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
