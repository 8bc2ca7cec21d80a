//! Containers of the image, on a network of Docker's.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    host::{Counter, Hosts, Launch, NetFault, PORT, Place, Side, Started, tool},
    neighbours::Room,
    net::{self, Link, Sink},
};
use crate::{
    cluster::{
        leftovers::{IMAGE, own_name},
        scenario::{Family, Scenario},
    },
    image,
};

/// How long Docker may take to start a container.
const STARTED_WITHIN: Duration = Duration::from_secs(20);

/// An image of the program for this run alone. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Image(String);

impl Image {
    pub(super) fn build(program: &Path) -> Result<Self> {
        let tag = format!("{IMAGE}{}", std::process::id());
        image::build(program, &tag).map(Self)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = tool(&["docker", "rmi", &self.0]);
    }
}

#[derive(Debug)]
pub(super) struct Containers {
    /// The name of the network, with which the names of the containers begin.
    network: String,
    /// The second byte of its IPv4 addresses, and the end of its IPv6 prefix: two runs on one machine do not meet.
    subnet: u8,
    image: String,
    family: Family,
    /// The folder that every container sees at the same path.
    folder: PathBuf,
    hosts: u16,
    /// Containers started, so that each has a name of its own.
    started: u32,
    /// The process of the newest container of each host.
    pids: Vec<i32>,
    /// Where blocked packets end.
    sink: Option<Sink>,
    _room: Room,
}

impl Containers {
    pub(super) fn new(image: &Image, scenario: &Scenario, folder: &Path) -> Result<Self> {
        let network = own_name();
        let family = scenario.family;
        let subnet = 64 + (std::process::id() % 128) as u8;
        let (v4, v6) = (format!("10.{subnet}.0.0/16"), format!("fd78:{subnet:x}::/64"));
        let mut create = vec!["docker", "network", "create", "--subnet", &v4];
        if family != Family::V4 {
            create.extend(["--ipv6", "--subnet", &v6]);
        }
        let mtu = scenario.mtu.map(|mtu| format!("com.docker.network.driver.mtu={mtu}"));
        if let Some(mtu) = &mtu {
            create.extend(["--opt", mtu]);
        }
        create.push(&network);
        tool(&create)?;
        let mut this = Self {
            network,
            subnet,
            image: image.0.clone(),
            family,
            folder: folder.to_path_buf(),
            hosts: 0,
            started: 0,
            pids: Vec::new(),
            sink: None,
            _room: Room::make(),
        };
        // Docker names a network's bridge after the network.
        let id = tool(&["docker", "network", "inspect", "--format", "{{.Id}}", &this.network])?;
        let bridge = format!("br-{}", id.get(..12).context("a network's id is short")?);
        let [port, end] = ["s", "n"].map(|side| format!("mc{}{side}", std::process::id()));
        this.sink = Some(Sink::new(&["ip"], &["bridge"], &bridge, &port, &end)?);
        Ok(this)
    }

    fn link(&self, place: &Place) -> Result<Link> {
        let pid = self.pid(place)?.to_string();
        Ok(Link {
            peer: peer_of(&pid)?,
            inside: ["nsenter", "-t", &pid, "-n", "ip"].map(str::to_owned).into(),
            outside: vec!["ip".to_owned()],
        })
    }

    fn v4(&self, number: u16) -> IpAddr {
        let [high, low] = (number + 1).to_be_bytes();
        Ipv4Addr::new(10, self.subnet, high, low).into()
    }

    fn v6(&self, number: u16) -> IpAddr {
        Ipv6Addr::new(0xfd78, u16::from(self.subnet), 0, 0, 0, 0, 0, number + 1).into()
    }

    fn pid(&self, place: &Place) -> Result<i32> {
        let pid = self.pids.get(usize::from(place.number) - 1);
        pid.copied()
            .filter(|&pid| pid > 0)
            .context("the host has no container yet")
    }
}

impl Hosts for Containers {
    fn add(&mut self, _side: Side) -> Result<Place> {
        self.hosts += 1;
        self.pids.push(0);
        let (v4, v6) = (self.v4(self.hosts), self.v6(self.hosts));
        // Docker gives every container an IPv4 address. A node without that family listens at its IPv6 address alone.
        let (ip, other, listen) = match net::families(self.family, self.hosts) {
            [Family::V6] => (v6, None, format!("[{v6}]:{PORT}")),
            [_] => (v4, None, net::unspecified(v4, PORT)),
            _ => (v4, Some(v6), format!("[::]:{PORT}")),
        };
        Ok(Place {
            number: self.hosts,
            ip,
            other,
            listen,
        })
    }

    fn start(&mut self, place: &Place, launch: &Launch) -> Result<Started> {
        self.started += 1;
        let name = format!("{}-{}", self.network, self.started);
        let folder = self.folder.to_str().context("the folder's name is no text")?;
        let mut command = Command::new("docker");
        command.args(["run", "--rm", "--read-only", "--cap-drop", "ALL", "--name", &name]);
        // The image's own check would make processes beside those that are measured.
        command.arg("--no-healthcheck");
        let (v4, v6) = (self.v4(place.number), self.v6(place.number));
        // A host that has moved keeps its new address.
        let v4 = if place.ip.is_ipv4() { place.ip } else { v4 };
        command.args(["--network", &self.network, "--ip", &v4.to_string()]);
        if self.family != Family::V4 {
            command.args(["--ip6", &v6.to_string()]);
        }
        for (name, value) in &launch.env {
            command.args(["--env", &format!("{name}={value}")]);
        }
        command
            .args(["--volume", &format!("{folder}:{folder}"), &self.image])
            .args(&launch.args);
        let mut started = Started::spawn(&mut command, &launch.log)?;
        started.container = Some(name.clone());
        let until = Instant::now() + STARTED_WITHIN;
        started.pid = loop {
            let pid = tool(&["docker", "inspect", "--format", "{{.State.Pid}}", &name]);
            match pid.ok().and_then(|pid| pid.parse().ok()) {
                Some(pid) if pid > 0 => break pid,
                Some(_) | None if Instant::now() > until => bail!("the container {name} did not start"),
                Some(_) | None => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        self.pids[usize::from(place.number) - 1] = started.pid;
        // As in a namespace: packets that the kernel would cut up on their way pass a link of any size whole. A program that has ended
        // already sends none.
        let pid = started.pid.to_string();
        let _ = tool(&[
            "nsenter",
            "-t",
            &pid,
            "-n",
            "ip",
            "link",
            "set",
            "eth0",
            "gso_max_segs",
            "1",
        ]);
        Ok(started)
    }

    fn afflict(&mut self, place: &mut Place, fault: NetFault) -> Result<()> {
        let link = self.link(place)?;
        let next = self.v4(place.number + 1_000);
        link.afflict(fault, &format!("{}/16", place.ip), &format!("{next}/16"))?;
        if fault == NetFault::Move {
            place.ip = next;
        }
        Ok(())
    }

    fn counters(&self, place: &Place, fault: NetFault) -> Result<Vec<Counter>> {
        self.link(place)?.counters(fault, self.sink.as_ref())
    }

    fn addresses(&self, place: &Place) -> Result<Vec<IpAddr>> {
        self.link(place)?.addresses()
    }

    fn mtu(&self, place: &Place) -> Result<u32> {
        self.link(place)?.mtu()
    }

    /// Docker freezes the container, its first process too.
    fn pause(&self, program: &Started) -> Result<()> {
        tool(&["docker", "pause", program.container()?]).map(drop)
    }

    fn resume(&self, program: &Started) -> Result<()> {
        tool(&["docker", "unpause", program.container()?]).map(drop)
    }

    fn stands_still(&self, program: &Started) -> Result<bool> {
        let paused = [
            "docker",
            "inspect",
            "--format",
            "{{.State.Paused}}",
            program.container()?,
        ];
        Ok(tool(&paused)? == "true")
    }
}

/// The name of the host's end of a container's link.
fn peer_of(pid: &str) -> Result<String> {
    let index = tool(&["nsenter", "-t", pid, "-n", "ip", "-o", "link", "show", "dev", "eth0"])?;
    // `2: eth0@if17: <…`: the index of the other end follows `@if`.
    let index = index.split("@if").nth(1).and_then(|rest| rest.split(':').next());
    let index = index.context("a container's link names no other end")?;
    for entry in fs::read_dir("/sys/class/net").context("cannot list the network interfaces")? {
        let path = entry?.path();
        if fs::read_to_string(path.join("ifindex")).is_ok_and(|it| it.trim() == index) {
            let name = path.file_name().context("an interface has a name")?;
            return Ok(name.to_string_lossy().into_owned());
        }
    }
    bail!("no interface has the index {index}")
}

impl Drop for Containers {
    fn drop(&mut self) {
        for number in 1..=self.started {
            // Those that have ended have removed themselves.
            let _ = tool(&["docker", "rm", "--force", &format!("{}-{number}", self.network)]);
        }
        let _ = tool(&["docker", "network", "rm", &self.network]);
    }
}
