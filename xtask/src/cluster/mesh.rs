//! Plays a scenario: starts the nodes and the callers, does the faults at their times, and gathers the calls.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::ChildStdout,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    clock::Clock,
    disk::Disk,
    faults::Holds,
    hosts::{Ground, Hosts, Launch, PORT, Place, Side, Started, families},
    interrupt,
    leftovers::{KEPT, own_name},
    oracle::{self, Seen},
    scenario::{Family, Need, Scenario},
    table::Measured,
    truth::{Truth, unix_us},
    witness::Witness,
    work::{SLOW_MS, SLOW_SERVICE, Work},
};

pub(super) const SERVICE: &str = "demo.echo";
/// How long a mesh may take until a caller sees every provider.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a node that has moved, or whose clock has jumped, may take to publish its services again (D13, D14).
pub(super) const PUBLISHES_WITHIN: Duration = Duration::from_secs(5);
/// A provider with a new key is not yet in every caller's list.
const KNOWN_AFTER_US: u64 = 2_000_000;

/// A node of the mesh.
pub(super) struct Node {
    pub(super) place: Place,
    /// The node's key and store.
    data: PathBuf,
    pub(super) running: Option<Started>,
    pub(super) node_id: String,
    /// The addresses that it advertised when it was ready.
    endpoints: Vec<String>,
    /// Its own disk, where the scenario fills it.
    pub(super) disk: Option<Disk>,
}

impl Node {
    pub(super) fn new(place: Place, data: PathBuf) -> Self {
        Self {
            place,
            data,
            running: None,
            node_id: String::new(),
            endpoints: Vec::new(),
            disk: None,
        }
    }
}

/// A program that calls.
pub(super) struct Caller {
    pub(super) started: Started,
    pub(super) work: Work,
    /// The log of its calls.
    pub(super) calls: PathBuf,
}

pub(super) struct Mesh {
    // Before the hosts: processes end before their host is taken away.
    pub(super) nodes: Vec<Node>,
    pub(super) callers: Vec<Caller>,
    pub(super) hosts: Box<dyn Hosts>,
    bootstrap: String,
    /// The wall clock of each host by its number, where the scenario sets one.
    pub(super) clocks: BTreeMap<u16, Clock>,
    pub(super) holds: Holds,
    pub(super) truth: Truth,
    rss_bytes: u64,
    pub(super) folder: PathBuf,
}

/// Plays `scenario` and gives what was seen.
///
/// With `keep`, the folder with the nodes' data, logs and calls stays, and its name is printed.
///
/// # Errors
/// A host, a node or a caller failed, or a fault could not be done.
pub(crate) fn play(scenario: &'static Scenario, ground: &Ground, seed: u64, keep: bool) -> Result<Measured> {
    let mut folder = shared_folder()?;
    if keep {
        folder.disable_cleanup(true);
        fs::write(folder.path().join(KEPT), "").context("cannot keep a folder")?;
        eprintln!("{} leaves its files in {}", scenario.name, folder.path().display());
    }
    let (mut mesh, places) = Mesh::ready(scenario, ground, seed, folder.path())?;
    let witness = Witness::start();
    mesh.start_callers(scenario, &places)?;
    let begun = Instant::now();
    mesh.truth.last_fault_us = unix_us();
    let lasts = Duration::from_secs(scenario.lasts.into());
    let mut until = begun + lasts;
    for (at, fault) in scenario.steps(seed) {
        let at = Duration::from_secs_f64(at);
        interrupt::sleep(at.saturating_sub(begun.elapsed()))?;
        mesh.afflict(fault, &places)
            .with_context(|| format!("{fault:?} after {at:?}"))?;
        // A fault takes its time on a slow machine. The load after it lasts as long as planned.
        until = until.max(Instant::now() + lasts.saturating_sub(at));
    }
    interrupt::sleep(until.saturating_duration_since(Instant::now()))?;
    mesh.close_holds()?;
    let (calls, connections) = mesh.stop_callers()?;
    mesh.weigh();
    let seen = oracle::judge(&calls, &mesh.truth, &witness.stop());
    mesh.look_back(scenario, &seen, connections)?;
    let (took_hold, doubts) = std::mem::take(&mut mesh.holds).finish();
    Ok(Measured {
        seen,
        took_hold,
        doubts,
        connections,
        rss_bytes: mesh.rss_bytes,
    })
}

/// A temporary folder that containers can write to: their user is another than the one who runs this.
pub(super) fn shared_folder() -> Result<TempDir> {
    let folder = tempfile::Builder::new()
        .prefix(&format!("{}-", own_name()))
        .tempdir()
        .context("no temporary folder")?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).context("cannot share the folder")?;
    Ok(folder)
}

impl Mesh {
    /// Starts the nodes, and gives the callers' places once a caller sees every provider.
    pub(super) fn ready(scenario: &Scenario, ground: &Ground, seed: u64, folder: &Path) -> Result<(Self, Vec<Place>)> {
        let mut mesh = Self {
            nodes: Vec::new(),
            callers: Vec::new(),
            hosts: ground.open(scenario, seed, folder)?,
            bootstrap: String::new(),
            clocks: BTreeMap::new(),
            holds: Holds::default(),
            truth: Truth::default(),
            rss_bytes: 0,
            folder: folder.to_path_buf(),
        };
        mesh.start_nodes(scenario)?;
        let places = (0..scenario.callers).map(|_| mesh.hosts.add(Side::Private));
        let places = places.collect::<Result<Vec<_>>>()?;
        for place in &places {
            mesh.add_clock(place, &scenario.needs())?;
        }
        mesh.wait_for_providers(&places[0], scenario.providers)?;
        mesh.truth.all_known(unix_us());
        Ok((mesh, places))
    }

    /// Starts `macula bench` at a place.
    pub(super) fn bench(&mut self, place: &Place, service: &str, options: &[&str]) -> Result<Started> {
        let mut args = words(&["bench", service, "--json", "--bootstrap", &self.bootstrap]);
        args.extend(words(options));
        self.start(place, args)
    }

    /// Starts the program at a place, with the place's clock and the place's log.
    fn start(&mut self, place: &Place, args: Vec<String>) -> Result<Started> {
        let env = self.clocks.get(&place.number).map(Clock::env).unwrap_or_default();
        let log = self.log_of(place.number);
        self.hosts.start(place, &Launch { args, env, log })
    }

    /// The log of everything that runs on a host.
    pub(super) fn log_of(&self, host: u16) -> PathBuf {
        self.folder.join(format!("host-{host}.log"))
    }

    fn add_clock(&mut self, place: &Place, needs: &BTreeSet<Need>) -> Result<()> {
        if needs.contains(&Need::Clock) {
            let clock = Clock::new(&self.folder, place.number)?;
            self.clocks.insert(place.number, clock);
        }
        Ok(())
    }

    /// Starts the bootstrap node, and then every provider at once.
    fn start_nodes(&mut self, scenario: &Scenario) -> Result<()> {
        let needs = scenario.needs();
        for number in 0..=scenario.providers {
            let place = self.hosts.add(Side::Public)?;
            let mut node = Node::new(place, self.folder.join(format!("node-{number}")));
            self.add_clock(&node.place, &needs)?;
            if needs.contains(&Need::Disk) {
                node.disk = Some(Disk::new(&node.data)?);
            }
            self.nodes.push(node);
        }
        let ready = self.spawn(0)?;
        self.wait_ready(0, ready)?;
        let starting = (1..=scenario.providers).map(|node| Ok((node, self.spawn(node)?)));
        for (node, ready) in starting.collect::<Result<Vec<_>>>()? {
            self.wait_ready(node, ready)?;
        }
        Ok(())
    }

    /// Starts a node's process; the line that says that it is ready is still to come.
    pub(super) fn spawn(&mut self, node: usize) -> Result<BufReader<ChildStdout>> {
        let it = &self.nodes[node];
        let mut args = words(&["node", "--json", "--listen", &it.place.listen, "--data"]);
        args.push(it.data.to_string_lossy().into_owned());
        if node > 0 {
            args.extend(words(&[
                "--serve",
                &format!("{SERVICE}=echo"),
                "--serve",
                &format!("{SLOW_SERVICE}=echo:{SLOW_MS}ms"),
                "--bootstrap",
                &self.bootstrap,
            ]));
        }
        let place = it.place.clone();
        let mut started = self.start(&place, args)?;
        let stdout = started.child.stdout.take().context("a node has no standard output")?;
        self.nodes[node].running = Some(started);
        Ok(BufReader::new(stdout))
    }

    pub(super) fn wait_ready(&mut self, node: usize, mut stdout: BufReader<ChildStdout>) -> Result<()> {
        let it = &mut self.nodes[node];
        let mut line = String::new();
        stdout.read_line(&mut line).context("a node's output cannot be read")?;
        if line.is_empty() {
            let said = it.running.as_ref().map(Started::said).unwrap_or_default();
            bail!("node {node} ended before it was ready: {said}");
        }
        let ready: Value = serde_json::from_str(&line).with_context(|| format!("node {node} printed {line:?}"))?;
        let text = |name: &str| ready[name].as_str().with_context(|| format!("{line:?} has no {name}"));
        it.node_id = text("node_id")?.to_owned();
        let endpoints = ready["endpoints"].as_array().into_iter().flatten();
        it.endpoints = endpoints.filter_map(Value::as_str).map(str::to_owned).collect();
        let endpoint = text("endpoint")?.trim_start_matches("https://").to_owned();
        if it.place.listen.ends_with(":0") {
            it.place.listen.clone_from(&endpoint);
        }
        if node == 0 {
            self.bootstrap = format!("{}@{endpoint}", it.node_id);
            if let Some(other) = it.place.other {
                let other = SocketAddr::new(other, PORT);
                self.bootstrap += &format!(",{}@{other}", it.node_id);
            }
        } else {
            let known = self.truth.providers.contains_key(&it.node_id);
            let from_us = unix_us() + if known { 0 } else { KNOWN_AFTER_US };
            self.truth.reachable(&it.node_id, from_us);
        }
        Ok(())
    }

    /// The provider cannot be reached from now on.
    pub(super) fn unreachable(&mut self, node: usize) {
        self.truth.unreachable(&self.nodes[node].node_id, unix_us());
    }

    /// The provider can be reached again `after` some time. The bootstrap node provides nothing.
    pub(super) fn reachable(&mut self, node: usize, after: Duration) {
        if node > 0 {
            let from_us = unix_us() + after.as_micros() as u64;
            self.truth.reachable(&self.nodes[node].node_id, from_us);
        }
    }

    /// The providers of the service as a caller at this place finds them, and what it said.
    pub(super) fn providers(&mut self, place: &Place) -> Result<(Vec<Value>, String)> {
        let args = words(&["providers", SERVICE, "--json", "--bootstrap", &self.bootstrap]);
        let (output, said) = self.start(place, args)?.finish()?;
        let list: Value = serde_json::from_slice(&output).unwrap_or_default();
        Ok((list["providers"].as_array().cloned().unwrap_or_default(), said))
    }

    fn wait_for_providers(&mut self, place: &Place, count: usize) -> Result<()> {
        let until = Instant::now() + READY_WITHIN;
        loop {
            let (found, said) = self.providers(place)?;
            if found.len() == count {
                return Ok(());
            }
            ensure!(
                Instant::now() < until,
                "a caller sees {} of {count} providers after {READY_WITHIN:?}: {said}",
                found.len()
            );
            interrupt::sleep(Duration::from_millis(200))?;
        }
    }

    /// Notes whether the mesh and the load were those of the scenario.
    fn look_back(&mut self, scenario: &Scenario, seen: &Seen, connections: u64) -> Result<()> {
        if scenario.long_calls {
            let (calls, streams, cut) = (seen.met.slow, seen.met.streams, seen.cut_off);
            let text = format!("{calls} slow calls and {streams} streams under way, {cut} cut off");
            self.holds.note(calls > 0 && streams > 0, text, || {
                "no slow call or no stream was under way at a fault".to_owned()
            });
        }
        if let Some(mtu) = scenario.mtu {
            for node in self.nodes.iter().filter(|node| node.running.is_some()) {
                let has = self.hosts.mtu(&node.place)?;
                self.holds.note(has == mtu, format!("a link of {mtu} bytes"), || {
                    format!("the link of host {} takes {has} bytes", node.place.number)
                });
            }
        }
        let (answered, all) = (seen.providers_seen, self.truth.providers.len());
        self.holds
            .note(answered == all, format!("{all} providers answered"), || {
                format!("callers got answers from {answered} of {all} providers")
            });
        if scenario.clients > 1 {
            let least = scenario.callers as u64 * u64::from(scenario.clients) * scenario.providers as u64;
            self.holds
                .note(connections >= least, format!("{connections} connections"), || {
                    format!("callers opened {connections} connections; the scenario means {least}")
                });
        }
        if scenario.family != Family::V4 {
            for node in &self.nodes {
                let wanted = families(scenario.family, node.place.number);
                let has = |start| node.endpoints.iter().any(|endpoint| is_v6(endpoint) == start);
                let fits = (has(false), has(true)) == (wanted.contains(&Family::V4), wanted.contains(&Family::V6));
                let name = match wanted {
                    [Family::V4] => "a node with IPv4 only",
                    [Family::V6] => "a node with IPv6 only",
                    _ => "a node with both families",
                };
                self.holds.note(fits, name, || {
                    format!(
                        "host {} was to be {name}, and advertised {:?}",
                        node.place.number, node.endpoints
                    )
                });
            }
        }
        Ok(())
    }

    /// Notes the largest resident memory of a node so far.
    pub(super) fn weigh(&mut self) {
        for node in self.nodes.iter().filter_map(|node| node.running.as_ref()) {
            let status = fs::read_to_string(format!("/proc/{}/status", node.worker())).unwrap_or_default();
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib: u64 = peak
                .and_then(|line| line.split_whitespace().next())
                .and_then(|kib| kib.parse().ok())
                .unwrap_or_default();
            self.rss_bytes = self.rss_bytes.max(kib * 1024);
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let running = self.nodes.iter_mut().filter_map(|node| node.running.as_mut());
        let callers = self.callers.iter_mut().map(|caller| &mut caller.started);
        for started in running.chain(callers) {
            // A process that has ended needs no signal, and one that stands still needs this one.
            if let Some(pid) = Pid::from_raw(started.pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
            let _ = started.child.wait();
        }
    }
}

/// Waits for a caller, and reads its summary.
pub(super) fn summary(caller: Started) -> Result<Value> {
    let (output, said) = caller.finish()?;
    serde_json::from_slice(&output).with_context(|| format!("a caller printed no summary: {said}"))
}

fn is_v6(endpoint: &str) -> bool {
    endpoint.contains("://[")
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}
