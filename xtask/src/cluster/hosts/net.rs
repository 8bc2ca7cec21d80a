//! Faults of a link: the same `ip` commands for a namespace and for a container.

use std::net::IpAddr;

use anyhow::{Result, bail};

use super::host::{NetFault, tool};
use crate::cluster::scenario::Family;

/// An address of the link layer that no host of the bridge has: packets sent there are lost without a word.
const NO_HOST: &str = "02:00:00:00:00:01";

/// How `ip` is called on either end of a host's link.
#[derive(Debug)]
pub(super) struct Link {
    /// `ip` within the host.
    pub(super) inside: Vec<String>,
    /// `ip` where the other end of the link is.
    pub(super) outside: Vec<String>,
    /// The name of the other end.
    pub(super) peer: String,
}

impl Link {
    fn inside(&self, args: &[&str]) -> Result<String> {
        let inside = self.inside.iter().map(String::as_str);
        tool(&inside.chain(args.iter().copied()).collect::<Vec<_>>())
    }

    fn outside(&self, args: &[&str]) -> Result<String> {
        let outside = self.outside.iter().map(String::as_str);
        tool(&outside.chain(args.iter().copied()).collect::<Vec<_>>())
    }

    /// Does the fault. A host that moves has `to` afterwards, written with its prefix length, instead of `from`.
    pub(super) fn afflict(&self, fault: NetFault, from: &str, to: &str) -> Result<()> {
        match fault {
            NetFault::Cut => self.outside(&["link", "set", &self.peer, "down"])?,
            NetFault::Heal => self.outside(&["link", "set", &self.peer, "up"])?,
            NetFault::Block(ip) => {
                let ip = ip.to_string();
                self.inside(&[
                    "neigh",
                    "replace",
                    &ip,
                    "lladdr",
                    NO_HOST,
                    "nud",
                    "permanent",
                    "dev",
                    "eth0",
                ])?
            }
            NetFault::Unblock(ip) => self.inside(&["neigh", "del", &ip.to_string(), "dev", "eth0"])?,
            NetFault::Move => {
                // In this order: added first, the new IPv4 address would be secondary to the old one and go with it.
                self.inside(&["address", "del", from, "dev", "eth0"])?;
                self.inside(&["address", "add", to, "dev", "eth0"])?
            }
            NetFault::Mtu(bytes) => self.outside(&["link", "set", &self.peer, "mtu", &bytes.to_string()])?,
            NetFault::Wire(_) => bail!("this link's packets do not pass through this process"),
        };
        Ok(())
    }
}

/// The families of a host's addresses.
pub(super) fn families(of: Family, number: u16) -> &'static [Family] {
    match (of, number) {
        (Family::Mixed, 2) | (Family::V4, _) => &[Family::V4],
        (Family::Mixed, 3) | (Family::V6, _) => &[Family::V6],
        (Family::Mixed, _) => &[Family::V4, Family::V6],
    }
}

/// An address as a URL and `--listen` write it.
pub(super) fn unspecified(ip: IpAddr, port: u16) -> String {
    match ip {
        IpAddr::V4(_) => format!("0.0.0.0:{port}"),
        IpAddr::V6(_) => format!("[::]:{port}"),
    }
}
