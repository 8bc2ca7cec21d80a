//! Network namespaces: one for each host, and one that holds the bridge between them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{
    host::{Hosts, NetFault, PORT, Place, Started, tool},
    net::{self, Link},
};
use crate::cluster::scenario::Family;

/// Numbers of hosts that have moved begin here.
const MOVED: u16 = 1_000;

#[derive(Debug)]
pub(super) struct Namespaces {
    program: PathBuf,
    family: Family,
    /// What the names of this run's namespaces begin with.
    prefix: String,
    hosts: u16,
}

/// Whether this process may make namespaces.
pub(super) fn permitted() -> bool {
    let name = format!("macula{}-try", std::process::id());
    let made = tool(&["ip", "netns", "add", &name]).is_ok();
    made && tool(&["ip", "netns", "delete", &name]).is_ok()
}

impl Namespaces {
    pub(super) fn new(program: &Path, family: Family) -> Result<Self> {
        let this = Self {
            program: program.to_path_buf(),
            family,
            prefix: format!("macula{}", std::process::id()),
            hosts: 0,
        };
        let bridge = this.bridge();
        tool(&["ip", "netns", "add", &bridge])?;
        tool(&["ip", "-n", &bridge, "link", "add", "bridge", "type", "bridge"])?;
        tool(&["ip", "-n", &bridge, "link", "set", "bridge", "up"])?;
        Ok(this)
    }

    /// The namespace of the bridge.
    fn bridge(&self) -> String {
        format!("{}-net", self.prefix)
    }

    fn host(&self, number: u16) -> String {
        format!("{}-{number}", self.prefix)
    }

    fn ip(&self, number: u16) -> IpAddr {
        let [high, low] = (number + 1).to_be_bytes();
        match self.family {
            Family::V4 => Ipv4Addr::new(10, 77, high, low).into(),
            Family::V6 => Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number + 1).into(),
        }
    }

    /// The address with the length of the network's prefix.
    fn with_prefix(&self, ip: IpAddr) -> String {
        match self.family {
            Family::V4 => format!("{ip}/16"),
            Family::V6 => format!("{ip}/64"),
        }
    }
}

impl Hosts for Namespaces {
    fn add(&mut self) -> Result<Place> {
        self.hosts += 1;
        let (number, bridge) = (self.hosts, self.bridge());
        let (host, end, ip) = (self.host(number), format!("h{number}"), self.ip(number));
        tool(&["ip", "netns", "add", &host])?;
        tool(&[
            "ip", "-n", &bridge, "link", "add", &end, "type", "veth", "peer", "name", "eth0", "netns", &host,
        ])?;
        tool(&["ip", "-n", &bridge, "link", "set", &end, "master", "bridge", "up"])?;
        let address = self.with_prefix(ip);
        match self.family {
            Family::V4 => tool(&["ip", "-n", &host, "address", "add", &address, "dev", "eth0"])?,
            // The address is used at once: no host of this bridge has the same.
            Family::V6 => tool(&["ip", "-n", &host, "address", "add", &address, "dev", "eth0", "nodad"])?,
        };
        tool(&["ip", "-n", &host, "link", "set", "lo", "up"])?;
        tool(&["ip", "-n", &host, "link", "set", "eth0", "up"])?;
        Ok(Place {
            number,
            ip,
            listen: net::unspecified(ip, PORT),
        })
    }

    fn start(&mut self, place: &Place, args: &[String]) -> Result<Started> {
        let host = self.host(place.number);
        let mut command = Command::new("ip");
        // `ip netns exec` becomes the program, so the child is the program itself.
        command.args(["netns", "exec", &host]).arg(&self.program).args(args);
        Started::spawn(&mut command)
    }

    fn afflict(&mut self, place: &mut Place, fault: NetFault) -> Result<()> {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let link = Link {
            inside: words(&["ip", "-n", &self.host(place.number)]),
            outside: words(&["ip", "-n", &self.bridge()]),
            peer: format!("h{}", place.number),
        };
        let next = self.ip(place.number.checked_add(MOVED).context("too many hosts")?);
        link.afflict(fault, &self.with_prefix(place.ip), &self.with_prefix(next))?;
        if fault == NetFault::Move {
            place.ip = next;
        }
        Ok(())
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        let hosts = (1..=self.hosts).map(|number| self.host(number));
        for name in hosts.chain([self.bridge()]) {
            // A namespace that was never made is as gone as one that is deleted.
            let _ = tool(&["ip", "netns", "delete", &name]);
        }
    }
}
