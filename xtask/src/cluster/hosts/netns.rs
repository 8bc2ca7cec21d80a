//! Network namespaces: one for each host, and one that holds the bridge between them.
//!
//! With a router there is a second bridge, for the private network of the callers. The router is a namespace with a link to each
//! bridge, and translates the addresses of the private network into its own (RFC 4787).

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{
    host::{Counter, Hosts, Launch, NetFault, PORT, Place, Side, Started, tool},
    neighbours::Room,
    net::{self, Link, Sink},
    wire::Cable,
};
use crate::cluster::{
    leftovers::own_namespaces,
    scenario::{Family, Need, Scenario},
};

/// Numbers of hosts that have moved begin here.
const MOVED: u16 = 1_000;
/// The number of the router's first address in the public network; each restart of its line takes the next.
const ROUTER: u16 = 2_000;
/// The router's address in the private network.
const ROUTER_INSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);

#[derive(Debug)]
pub(super) struct Namespaces {
    program: PathBuf,
    family: Family,
    /// What the names of this run's namespaces begin with.
    prefix: String,
    hosts: u16,
    /// The links that pass through this process, by the number of their host; empty when none does.
    cables: BTreeMap<u16, Cable>,
    wired: bool,
    mtu: Option<u32>,
    seed: u64,
    /// Where blocked packets end.
    sink: Option<Sink>,
    /// The number of the router's present address, when there is a router.
    router: Option<u16>,
    _room: Room,
}

/// Whether this process may make namespaces.
pub(super) fn permitted() -> bool {
    let name = format!("{}-try", own_namespaces());
    let made = tool(&["ip", "netns", "add", &name]).is_ok();
    made && tool(&["ip", "netns", "delete", &name]).is_ok()
}

impl Namespaces {
    pub(super) fn new(program: &Path, scenario: &Scenario, seed: u64) -> Result<Self> {
        let needs = scenario.needs();
        let mut this = Self {
            program: program.to_path_buf(),
            family: scenario.family,
            prefix: own_namespaces(),
            hosts: 0,
            cables: BTreeMap::new(),
            wired: needs.contains(&Need::Wire),
            mtu: scenario.mtu,
            seed,
            sink: None,
            router: None,
            _room: Room::make(),
        };
        let bridge = this.bridge();
        tool(&["ip", "netns", "add", &bridge])?;
        tool(&["ip", "-n", &bridge, "link", "add", "bridge", "type", "bridge"])?;
        tool(&["ip", "-n", &bridge, "link", "set", "bridge", "up"])?;
        let (ip, bridge_tool) = (["ip", "-n", &bridge], ["bridge", "-n", &bridge]);
        this.sink = Some(Sink::new(&ip, &bridge_tool, "bridge", "sink", "nowhere")?);
        if needs.contains(&Need::Nat) {
            this.add_router()?;
        }
        Ok(this)
    }

    fn router(&self) -> String {
        format!("{}-nat", self.prefix)
    }

    /// Makes the private network and the router before it.
    fn add_router(&mut self) -> Result<()> {
        let (bridge, router) = (self.bridge(), self.router());
        self.router = Some(ROUTER);
        tool(&["ip", "-n", &bridge, "link", "add", "private", "type", "bridge"])?;
        tool(&["ip", "-n", &bridge, "link", "set", "private", "up"])?;
        tool(&["ip", "netns", "add", &router])?;
        for (end, name, master) in [("r-out", "out", "bridge"), ("r-in", "in", "private")] {
            tool(&[
                "ip", "-n", &bridge, "link", "add", end, "type", "veth", "peer", "name", name, "netns", &router,
            ])?;
            tool(&["ip", "-n", &bridge, "link", "set", end, "master", master, "up"])?;
            tool(&["ip", "-n", &router, "link", "set", name, "up"])?;
        }
        let (outside, inside) = (self.with_prefix(self.ip(ROUTER)), format!("{ROUTER_INSIDE}/24"));
        tool(&["ip", "-n", &router, "address", "add", &outside, "dev", "out"])?;
        tool(&["ip", "-n", &router, "address", "add", &inside, "dev", "in"])?;
        let within = ["ip", "netns", "exec", &router];
        let run = |words: &[&str]| tool(&[&within, words].concat());
        run(&["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])?;
        run(&["nft", "add", "table", "ip", "nat"])?;
        let chain = "{ type nat hook postrouting priority srcnat; }";
        run(&["nft", "add", "chain", "ip", "nat", "out", chain])?;
        run(&[
            "nft",
            "add",
            "rule",
            "ip",
            "nat",
            "out",
            "oifname",
            "out",
            "counter",
            "masquerade",
            "random",
        ])?;
        Ok(())
    }

    /// The router's line comes back with another address. The kernel forgets the translations of the old one.
    fn rebind(&mut self) -> Result<()> {
        let old = self.router.context("the scenario has no router")?;
        let (router, next) = (self.router(), old + 1);
        let address = |number| self.with_prefix(self.ip(number));
        tool(&["ip", "-n", &router, "address", "del", &address(old), "dev", "out"])?;
        tool(&["ip", "-n", &router, "address", "add", &address(next), "dev", "out"])?;
        self.router = Some(next);
        Ok(())
    }

    /// Makes the link of a host: a pair of virtual devices, or a cable of this process.
    fn add_link(&mut self, number: u16, host: &str, end: &str) -> Result<()> {
        let bridge = self.bridge();
        if !self.wired {
            tool(&[
                "ip", "-n", &bridge, "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", host,
            ])?;
            return Ok(());
        }
        let names = ["a", "b"].map(|side| format!("mc{}{side}{number}", std::process::id()));
        let cable = Cable::new([&names[0], &names[1]], self.seed ^ u64::from(number))?;
        self.cables.insert(number, cable);
        for (from, namespace, to) in [(&names[0], host, "eth0"), (&names[1], bridge.as_str(), end)] {
            tool(&["ip", "link", "set", from, "netns", namespace])?;
            tool(&["ip", "-n", namespace, "link", "set", from, "name", to])?;
        }
        Ok(())
    }

    fn link(&self, place: &Place) -> Link {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        Link {
            inside: words(&["ip", "-n", &self.host(place.number)]),
            outside: words(&["ip", "-n", &self.bridge()]),
            peer: format!("h{}", place.number),
        }
    }

    fn families(&self, number: u16) -> &'static [Family] {
        net::families(self.family, number)
    }

    /// The namespace of the bridge.
    fn bridge(&self) -> String {
        format!("{}-net", self.prefix)
    }

    fn host(&self, number: u16) -> String {
        format!("{}-{number}", self.prefix)
    }

    /// A host's first address.
    fn ip(&self, number: u16) -> IpAddr {
        Self::address(self.families(number)[0], number)
    }

    fn address(family: Family, number: u16) -> IpAddr {
        let [high, low] = (number + 1).to_be_bytes();
        match family {
            Family::V4 | Family::Mixed => Ipv4Addr::new(10, 77, high, low).into(),
            Family::V6 => Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number + 1).into(),
        }
    }

    /// The address with the length of the network's prefix.
    fn with_prefix(&self, ip: IpAddr) -> String {
        match ip {
            IpAddr::V4(_) => format!("{ip}/16"),
            IpAddr::V6(_) => format!("{ip}/64"),
        }
    }
}

impl Hosts for Namespaces {
    fn add(&mut self, side: Side) -> Result<Place> {
        self.hosts += 1;
        let (number, bridge) = (self.hosts, self.bridge());
        let (host, end) = (self.host(number), format!("h{number}"));
        tool(&["ip", "netns", "add", &host])?;
        self.add_link(number, &host, &end)?;
        if let Some(mtu) = self.mtu {
            let mtu = mtu.to_string();
            for (namespace, device) in [(&host, "eth0"), (&bridge, end.as_str())] {
                tool(&["ip", "-n", namespace, "link", "set", device, "mtu", &mtu])?;
            }
        }
        let private = side == Side::Private && self.router.is_some();
        let master = if private { "private" } else { "bridge" };
        tool(&["ip", "-n", &bridge, "link", "set", &end, "master", master, "up"])?;
        let add = |address: &str, more: &[&str]| {
            let words = ["ip", "-n", &host, "address", "add", address, "dev", "eth0"];
            tool(&[&words, more].concat())
        };
        let inside = Ipv4Addr::new(
            192,
            168,
            77,
            1 + u8::try_from(number).context("too many private hosts")?,
        );
        if private {
            add(&format!("{inside}/24"), &[])?;
        } else {
            for &family in self.families(number) {
                // An IPv6 address is used at once: no host of this bridge has the same.
                let more: &[&str] = if family == Family::V6 { &["nodad"] } else { &[] };
                add(&self.with_prefix(Self::address(family, number)), more)?;
            }
        }
        tool(&["ip", "-n", &host, "link", "set", "lo", "up"])?;
        tool(&["ip", "-n", &host, "link", "set", "eth0", "up"])?;
        // Packets that the kernel would cut up on their way pass a link of any size whole.
        tool(&["ip", "-n", &host, "link", "set", "eth0", "gso_max_segs", "1"])?;
        if private {
            tool(&[
                "ip",
                "-n",
                &host,
                "route",
                "add",
                "default",
                "via",
                &ROUTER_INSIDE.to_string(),
            ])?;
        }
        let ip = if private { inside.into() } else { self.ip(number) };
        let other = self.families(number).get(1).filter(|_| !private);
        Ok(Place {
            number,
            ip,
            other: other.map(|&family| Self::address(family, number)),
            listen: match self.family {
                // As a node listens when nothing is said: both families on one socket.
                Family::Mixed => format!("[::]:{PORT}"),
                Family::V4 | Family::V6 => net::unspecified(ip, PORT),
            },
        })
    }

    fn start(&mut self, place: &Place, launch: &Launch) -> Result<Started> {
        let host = self.host(place.number);
        let mut command = Command::new("ip");
        // `ip netns exec` becomes the program, so the child is the program itself.
        command
            .args(["netns", "exec", &host])
            .arg(&self.program)
            .args(&launch.args)
            .envs(launch.env.iter().map(|(name, value)| (name, value)));
        Started::spawn(&mut command, &launch.log)
    }

    fn afflict(&mut self, place: &mut Place, fault: NetFault) -> Result<()> {
        if let NetFault::Wire(wire) = fault {
            let cable = self.cables.get(&place.number);
            cable
                .context("the host's link does not pass through this process")?
                .set(wire);
            return Ok(());
        }
        let link = self.link(place);
        let next = self.ip(place.number.checked_add(MOVED).context("too many hosts")?);
        link.afflict(fault, &self.with_prefix(place.ip), &self.with_prefix(next))?;
        if fault == NetFault::Move {
            place.ip = next;
        }
        Ok(())
    }

    fn counters(&self, place: &Place, fault: NetFault) -> Result<Vec<Counter>> {
        match (fault, self.cables.get(&place.number)) {
            (NetFault::Wire(_), Some(cable)) => Ok(cable.counters()),
            _ => self.link(place).counters(fault, self.sink.as_ref()),
        }
    }

    fn addresses(&self, place: &Place) -> Result<Vec<IpAddr>> {
        self.link(place).addresses()
    }

    fn mtu(&self, place: &Place) -> Result<u32> {
        self.link(place).mtu()
    }

    /// Each is the first packet of a flow, which the rule counts.
    fn translations(&self) -> Result<u64> {
        let router = self.router();
        let list = [
            "ip", "netns", "exec", &router, "nft", "list", "chain", "ip", "nat", "out",
        ];
        let shown = tool(&list)?;
        let packets = shown
            .split("counter packets ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        let packets = packets.context("the router's rule counts nothing")?;
        packets.parse().context("the router's rule counts no number")
    }

    fn rebind(&mut self) -> Result<()> {
        Namespaces::rebind(self)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        let hosts = (1..=self.hosts).map(|number| self.host(number));
        let router = self.router.is_some().then(|| self.router());
        for name in hosts.chain(router).chain([self.bridge()]) {
            // A namespace that was never made is as gone as one that is deleted.
            let _ = tool(&["ip", "netns", "delete", &name]);
        }
    }
}
