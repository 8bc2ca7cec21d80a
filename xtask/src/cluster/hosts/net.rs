//! Faults of a link: the same `ip` commands for a namespace and for a container.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::host::{Counter, NetFault, tool};
use crate::cluster::scenario::Family;

/// An address of the link layer that no host of the bridge has: packets sent there end in a [`Sink`].
const NO_HOST: &str = "02:00:00:00:00:01";

/// The end of the packets that are sent to [`NO_HOST`]: a port of the bridge that counts them.
#[derive(Debug)]
pub(super) struct Sink {
    ip: Vec<String>,
    /// The end of its link that is no port.
    end: String,
}

impl Sink {
    /// Makes a sink at a bridge. `ip` is how `ip` is called there, and so is `bridge_tool` for `bridge`; `port` and `end` are the names of
    /// the sink's two devices.
    pub(super) fn new(ip: &[&str], bridge_tool: &[&str], bridge: &str, port: &str, end: &str) -> Result<Self> {
        let run = |words: &[&str]| tool(&[ip, words].concat());
        run(&["link", "add", port, "type", "veth", "peer", "name", end])?;
        let sink = Self {
            ip: ip.iter().map(|&word| word.to_owned()).collect(),
            end: end.to_owned(),
        };
        // Nothing but the blocked packets is to come here, neither the port's own nor what the bridge floods.
        for device in [port, end] {
            run(&["link", "set", device, "addrgenmode", "none"])?;
        }
        run(&["link", "set", end, "address", NO_HOST, "up"])?;
        run(&["link", "set", port, "master", bridge, "up"])?;
        let still = ["flood", "off", "mcast_flood", "off", "bcast_flood", "off"];
        run(&[&["link", "set", port, "type", "bridge_slave"][..], &still].concat())?;
        // The bridge may have learned the address already.
        let entry = ["fdb", "replace", NO_HOST, "dev", port, "master", "static"];
        tool(&[bridge_tool, &entry].concat())?;
        Ok(sink)
    }

    /// The packets that ended here.
    pub(super) fn swallowed(&self) -> Result<u64> {
        let ip = self.ip.iter().map(String::as_str);
        let words = ip.chain(["-j", "-s", "link", "show", "dev", &self.end]);
        statistic(&tool(&words.collect::<Vec<_>>())?, "rx", "packets")
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let ip = self.ip.iter().map(String::as_str);
        // In a namespace that is gone there is no sink either.
        let _ = tool(&ip.chain(["link", "delete", &self.end]).collect::<Vec<_>>());
    }
}

/// A number of a link, as `ip -j -s link` shows it.
fn statistic(shown: &str, direction: &str, name: &str) -> Result<u64> {
    let shown: Value = serde_json::from_str(shown).context("`ip -j` printed no JSON")?;
    let number = shown[0]["stats64"][direction][name].as_u64();
    number.with_context(|| format!("`ip` shows no {direction} {name}"))
}

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

    /// What the fault has done so far; blocked packets end in the sink.
    pub(super) fn counters(&self, fault: NetFault, sink: Option<&Sink>) -> Result<Vec<Counter>> {
        let show = ["-j", "-s", "link", "show", "dev"];
        Ok(match fault {
            NetFault::Cut => {
                let shown = self.inside(&[&show[..], &["eth0"]].concat())?;
                vec![("packets over a cut link", statistic(&shown, "rx", "packets")?)]
            }
            NetFault::Mtu(_) => {
                let shown = self.outside(&[&show[..], &[&self.peer]].concat())?;
                vec![("packets too large", statistic(&shown, "rx", "dropped")?)]
            }
            NetFault::Block(_) => {
                let sink = sink.context("there is no sink")?;
                vec![("packets dropped", sink.swallowed()?)]
            }
            NetFault::Heal | NetFault::Unblock(_) | NetFault::Move | NetFault::Wire(_) => Vec::new(),
        })
    }

    /// The largest packet that the host's end takes, in bytes.
    pub(super) fn mtu(&self) -> Result<u32> {
        let shown = self.inside(&["-j", "link", "show", "dev", "eth0"])?;
        let shown: Value = serde_json::from_str(&shown).context("`ip -j` printed no JSON")?;
        let mtu = shown[0]["mtu"].as_u64().context("`ip` shows no mtu")?;
        u32::try_from(mtu).context("a link with packets of any size")
    }

    /// The addresses of the host's end.
    pub(super) fn addresses(&self) -> Result<Vec<IpAddr>> {
        let shown = self.inside(&["-o", "address", "show", "dev", "eth0"])?;
        Ok(addresses(&shown))
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
pub(crate) fn families(of: Family, number: u16) -> &'static [Family] {
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

/// The addresses in the output of `ip -o address`: `2: eth0    inet 10.0.0.1/16 …`.
fn addresses(shown: &str) -> Vec<IpAddr> {
    let words = shown.lines().filter_map(|line| line.split_whitespace().nth(3));
    words.filter_map(|word| word.split('/').next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ip_shows_is_read() {
        let shown = r#"[{"ifname":"eth0","stats64":{"rx":{"packets":7,"dropped":0},"tx":{"packets":3,"dropped":2}}}]"#;
        assert_eq!(statistic(shown, "tx", "dropped").unwrap(), 2);
        assert!(statistic("[{}]", "tx", "dropped").is_err());
        let shown = "2: eth0    inet 10.77.0.2/16 scope global eth0\n2: eth0    inet6 fd77::2/64 scope global\n";
        let expected: Vec<IpAddr> = ["10.77.0.2", "fd77::2"].map(|ip| ip.parse().unwrap()).into();
        assert_eq!(addresses(shown), expected);
    }
}
