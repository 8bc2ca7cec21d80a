//! Does the faults of a scenario, and finds out whether each of them took hold.
//!
//! A fault that did nothing would be survived by any mesh. So every one leaves evidence: the state of a process, packets that a link
//! dropped, a line of a node's log. A fault without it fails its scenario.

use std::{
    fs,
    net::IpAddr,
    os::unix::{fs::MetadataExt as _, process::ExitStatusExt as _},
    process::ExitStatus,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    disk::Disk,
    hosts::{Counter, NetFault, Place, Side, tool},
    interrupt,
    mesh::{Mesh, Node, PUBLISHES_WITHIN},
    scenario::Fault,
    truth::unix_us,
};

/// How long a node may take to leave in order.
const LEAVES_WITHIN: Duration = Duration::from_secs(30);
/// How long the kernel may take to stop a process.
const STOPS_WITHIN: Duration = Duration::from_secs(2);
/// How far a jump of the wall clock that a node has noticed may lie from the one that was done, in milliseconds.
const JUMP_WITHIN_MS: i64 = 5_000;
/// What a node says in its log when its clock has jumped.
const JUMPED: &str = "its wall clock was set";

/// What the system calls the lack of room on a disk, which a node's log repeats.
const FULL: &str = "No space left on device";

/// What shows that a fault took hold, or why that is doubted.
pub(super) type Evidence = Result<String, String>;

/// Something that counts what a fault does, and how far it was when the fault began.
struct Counted {
    fault: NetFault,
    node: usize,
    before: Vec<Counter>,
}

/// A jump of the wall clock that a node is to notice.
struct Jump {
    host: u16,
    seconds: i64,
}

/// The evidence of a scenario's faults.
#[derive(Default)]
pub(super) struct Holds {
    evidence: Vec<Evidence>,
    counted: Vec<Counted>,
    jumps: Vec<Jump>,
    /// The hosts whose nodes are to notice that their disk is full.
    full_disks: Vec<u16>,
    /// The router's translations before it forgot them.
    translations: Option<u64>,
}

impl Holds {
    /// Notes `seen` if it is so, and `doubt` if not.
    pub(super) fn note(&mut self, is_so: bool, seen: impl Into<String>, doubt: impl FnOnce() -> String) {
        self.evidence.push(if is_so { Ok(seen.into()) } else { Err(doubt()) });
    }

    /// What was seen, each with the number of times, and the doubts.
    pub(super) fn finish(self) -> (Vec<String>, Vec<String>) {
        let mut seen: Vec<(String, usize)> = Vec::new();
        let mut doubts = Vec::new();
        for evidence in self.evidence {
            match evidence {
                Ok(text) => match seen.iter_mut().find(|(other, _)| *other == text) {
                    Some((_, times)) => *times += 1,
                    None => seen.push((text, 1)),
                },
                Err(doubt) => doubts.push(doubt),
            }
        }
        let words = |(text, times): (String, usize)| if times == 1 { text } else { format!("{times} × {text}") };
        (seen.into_iter().map(words).collect(), doubts)
    }
}

impl Mesh {
    /// Does the fault, and notes when it was done.
    ///
    /// # Errors
    /// It cannot be done.
    pub(super) fn afflict(&mut self, fault: Fault, callers: &[Place]) -> Result<()> {
        let began = unix_us();
        self.truth.last_fault_us = began;
        if self.truth.first_fault_us == 0 {
            self.truth.first_fault_us = began;
        }
        self.undergo(fault, callers)?;
        // A node has moved before its new address is waited for.
        if !matches!(fault, Fault::Move(_)) {
            self.truth.last_fault_us = unix_us();
        }
        Ok(())
    }

    fn undergo(&mut self, fault: Fault, callers: &[Place]) -> Result<()> {
        // Callers' hosts follow the nodes'.
        let ip_of = |number: usize| -> IpAddr {
            match self.nodes.get(number) {
                Some(node) => node.place.ip,
                None => callers[number - self.nodes.len()].ip,
            }
        };
        if let Some((node, fault)) = NetFault::of(fault, ip_of) {
            return self.afflict_link(node, fault);
        }
        match fault {
            Fault::Kill(node) => {
                self.unreachable(node);
                self.truth.crashes.push((self.nodes[node].node_id.clone(), unix_us()));
                self.signal(node, Signal::KILL)?;
                let status = self.wait_end(node)?;
                // A container's client ends with 128 and the signal.
                let killed = status.signal() == Some(9) || status.code() == Some(137);
                self.holds.note(killed, "killed", || {
                    format!("node {node} was killed, and ended with {status}")
                });
                Ok(())
            }
            Fault::Leave(node) => {
                self.unreachable(node);
                self.leave(node)
            }
            Fault::Pause(node) => {
                self.unreachable(node);
                self.pause(node)
            }
            Fault::Resume(node) => self.resume(node),
            Fault::Restart(node) => {
                let before = self.nodes[node].node_id.clone();
                let ready = self.spawn(node)?;
                self.wait_ready(node, ready)?;
                let same = self.nodes[node].node_id == before;
                self.holds.note(same, "started again with its key", || {
                    format!("node {node} started again with another key")
                });
                Ok(())
            }
            Fault::Replace(node) => self.replace(node),
            Fault::Rebind => {
                self.holds.translations = Some(self.hosts.translations()?);
                self.hosts.rebind()
            }
            Fault::Clock(node, seconds) => {
                let host = self.nodes[node].place.number;
                let clock = self.clocks.get_mut(&host);
                self.holds.jumps.push(Jump { host, seconds });
                clock.context("the node has no clock of its own")?.jump(seconds)
            }
            Fault::AllClocks(seconds) => {
                let hosts = self.nodes.iter().map(|node| node.place.number);
                self.holds.jumps.extend(hosts.map(|host| Jump { host, seconds }));
                self.clocks.values_mut().try_for_each(|clock| clock.jump(seconds))?;
                // Every record has ended; each is published again within this time (D14).
                for node in 1..self.nodes.len() {
                    self.unreachable(node);
                    self.reachable(node, PUBLISHES_WITHIN);
                }
                Ok(())
            }
            Fault::CallersSleep => self.callers_sleep(),
            Fault::CallersWake => self.callers_wake(),
            Fault::FillDisk(node) => {
                let full = self.disk(node)?.fill()?;
                self.holds.full_disks.push(self.nodes[node].place.number);
                self.holds.note(full, "no byte left on the disk", || {
                    format!("the disk of node {node} did not fill up")
                });
                Ok(())
            }
            Fault::FreeDisk(node) => self.disk(node)?.free(),
            Fault::Files(node, limit) => self.limit_files(node, limit),
            Fault::Cut(_)
            | Fault::Heal(_)
            | Fault::Block(..)
            | Fault::Unblock(..)
            | Fault::Move(_)
            | Fault::Mtu(..)
            | Fault::Wire(..) => {
                unreachable!("a fault of the network was done above")
            }
        }
    }

    fn afflict_link(&mut self, node: usize, fault: NetFault) -> Result<()> {
        match fault {
            NetFault::Cut | NetFault::Block(_) | NetFault::Move => self.unreachable(node),
            NetFault::Heal | NetFault::Unblock(_) => self.close_counts(Some(node))?,
            NetFault::Mtu(_) | NetFault::Wire(_) => {}
        }
        let before = self.nodes[node].place.ip;
        self.hosts.afflict(&mut self.nodes[node].place, fault)?;
        let place = &self.nodes[node].place;
        match fault {
            NetFault::Heal | NetFault::Unblock(_) => self.reachable(node, Duration::ZERO),
            NetFault::Move => {
                let addresses = self.hosts.addresses(place)?;
                let moved = addresses.contains(&place.ip) && !addresses.contains(&before);
                self.holds.note(moved, "another address", || {
                    format!("node {node} was to move from {before}, and its host has {addresses:?}")
                });
                self.reachable(node, PUBLISHES_WITHIN);
                return self.wait_published(node);
            }
            NetFault::Cut | NetFault::Block(_) | NetFault::Mtu(_) | NetFault::Wire(_) => {
                // Packets that a host sends to one or another that it cannot reach end at the same place.
                let counts = |it: &Counted| it.node == node && matches!(it.fault, NetFault::Block(_));
                if self.holds.counted.iter().any(counts) {
                    return Ok(());
                }
                let before = self.hosts.counters(place, fault)?;
                self.holds.counted.push(Counted { fault, node, before });
            }
        }
        Ok(())
    }

    /// Waits until another host finds the node's new address in the directory (D13).
    fn wait_published(&mut self, node: usize) -> Result<()> {
        let moved = Instant::now();
        let observer = self.hosts.add(Side::Public)?;
        let (id, ip) = (self.nodes[node].node_id.clone(), self.nodes[node].place.ip.to_string());
        let mut took = None;
        while took.is_none() && moved.elapsed() < 2 * PUBLISHES_WITHIN {
            let asked = moved.elapsed();
            let (found, _) = self.providers(&observer)?;
            let record = found.iter().find(|provider| provider["node_id"] == id.as_str());
            let published = record.is_some_and(|record| record["endpoints"].to_string().contains(&ip));
            took = published.then_some(asked);
        }
        let seconds = took.unwrap_or_else(|| moved.elapsed()).as_secs_f64();
        self.holds.note(
            took.is_some_and(|took| took <= PUBLISHES_WITHIN),
            format!("published after {seconds:.1} s (5 by D13)"),
            || format!("node {node} had not published its new address after {seconds:.1} s (5 by D13)"),
        );
        Ok(())
    }

    /// Reads what the faults of a node's link, or of all, have done, before they are undone.
    fn close_counts(&mut self, of: Option<usize>) -> Result<()> {
        let (closed, open) = std::mem::take(&mut self.holds.counted)
            .into_iter()
            .partition(|it: &Counted| of.is_none_or(|node| node == it.node));
        self.holds.counted = open;
        for Counted { fault, node, before } in closed {
            let after = self.hosts.counters(&self.nodes[node].place, fault)?;
            let by: Vec<_> = after
                .iter()
                .zip(&before)
                .map(|((name, after), (_, before))| (*name, after.saturating_sub(*before)))
                .collect();
            let seen: Vec<_> = by.iter().map(|(name, packets)| format!("{packets} {name}")).collect();
            let grows = fault != NetFault::Cut;
            self.holds.note(
                by.iter().all(|(_, packets)| (*packets > 0) == grows),
                seen.join(", "),
                || format!("{fault:?} at node {node} did not show: {}", seen.join(", ")),
            );
        }
        Ok(())
    }

    /// Reads all evidence that takes time to come.
    ///
    /// # Errors
    /// A counter or a log cannot be read.
    pub(super) fn close_holds(&mut self) -> Result<()> {
        self.close_counts(None)?;
        if let Some(before) = self.holds.translations.take() {
            let by = self.hosts.translations()?.saturating_sub(before);
            self.holds.note(by > 0, format!("{by} new translations"), || {
                "the router forgot its translations, and made no new ones".to_owned()
            });
        }
        for host in std::mem::take(&mut self.holds.full_disks) {
            let noticed = self.read_log(host)?.contains(FULL);
            self.holds.note(noticed, "the node noticed it", || {
                format!("host {host} did not notice that its disk was full")
            });
        }
        for Jump { host, seconds } in std::mem::take(&mut self.holds.jumps) {
            let log = self.read_log(host)?;
            let noticed = jumps(&log).any(|ms| (ms - seconds * 1_000).abs() <= JUMP_WITHIN_MS);
            self.holds.note(noticed, format!("a jump of {seconds} s noticed"), || {
                format!("host {host} did not notice that its clock jumped by {seconds} s")
            });
        }
        Ok(())
    }

    fn read_log(&self, host: u16) -> Result<String> {
        let log = self.log_of(host);
        fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))
    }

    /// Starts a node with a new key at a new place, and lets the old one leave.
    fn replace(&mut self, node: usize) -> Result<()> {
        let place = self.hosts.add(Side::Public)?;
        let data = self.folder.join(format!("node-{node}-{}", place.number));
        let next = Node::new(place, data);
        let old = std::mem::replace(&mut self.nodes[node], next);
        let ready = self.spawn(node)?;
        self.wait_ready(node, ready)?;
        let new = std::mem::replace(&mut self.nodes[node], old);
        let old = &self.nodes[node];
        let differs =
            new.node_id != old.node_id && (new.place.ip, &new.place.listen) != (old.place.ip, &old.place.listen);
        self.holds.note(differs, "a new key at a new place", || {
            format!("node {node} was replaced, and has the same key or place")
        });
        self.unreachable(node);
        self.leave(node)?;
        self.nodes[node] = new;
        Ok(())
    }

    /// Has a node leave in order.
    fn leave(&mut self, node: usize) -> Result<()> {
        self.signal(node, Signal::TERM)?;
        let status = self.wait_end(node)?;
        self.holds.note(status.success(), "left in order", || {
            format!("node {node} was to leave, and ended with {status}")
        });
        Ok(())
    }

    fn pause(&mut self, node: usize) -> Result<()> {
        let running = self.nodes[node].running.as_ref();
        let running = running.with_context(|| format!("node {node} does not run"))?;
        self.hosts.pause(running)?;
        let until = Instant::now() + STOPS_WITHIN;
        while !self.hosts.stands_still(running)? {
            ensure!(Instant::now() < until, "node {node} does not stand still");
            interrupt::sleep(Duration::from_millis(1))?;
        }
        Ok(())
    }

    fn resume(&mut self, node: usize) -> Result<()> {
        let running = self.nodes[node].running.as_ref();
        let running = running.with_context(|| format!("node {node} does not run"))?;
        // It stood still all the time if it does so at the end.
        let still = self.hosts.stands_still(running)?;
        self.hosts.resume(running)?;
        self.holds.note(still, "stood still", || {
            format!("node {node} was paused, and ran before it was resumed")
        });
        // Its record may have ended while its clock stood still; it is published again within this time (D14).
        let has_clock = self.clocks.contains_key(&self.nodes[node].place.number);
        self.reachable(node, if has_clock { PUBLISHES_WITHIN } else { Duration::ZERO });
        Ok(())
    }

    fn callers_sleep(&mut self) -> Result<()> {
        self.truth.stills.push((unix_us(), u64::MAX));
        for caller in &self.callers {
            self.hosts.pause(&caller.started)?;
        }
        Ok(())
    }

    fn callers_wake(&mut self) -> Result<()> {
        for caller in &self.callers {
            let still = self.hosts.stands_still(&caller.started)?;
            self.hosts.resume(&caller.started)?;
            self.holds.note(still, "a caller stood still", || {
                "a caller was paused, and ran".to_owned()
            });
        }
        if let Some((_, until)) = self.truth.stills.last_mut() {
            *until = unix_us();
        }
        Ok(())
    }

    fn disk(&self, node: usize) -> Result<&Disk> {
        let disk = self.nodes[node].disk.as_ref();
        disk.context("the node has no disk of its own")
    }

    fn signal(&mut self, node: usize, signal: Signal) -> Result<()> {
        let running = self.nodes[node].running.as_ref();
        let running = running.with_context(|| format!("node {node} does not run"))?;
        let pid = Pid::from_raw(running.pid).context("a process has an id")?;
        kill_process(pid, signal).with_context(|| format!("node {node} cannot be signalled"))
    }

    fn wait_end(&mut self, node: usize) -> Result<ExitStatus> {
        self.weigh();
        let running = self.nodes[node].running.take();
        let mut running = running.with_context(|| format!("node {node} does not run"))?;
        let until = Instant::now() + LEAVES_WITHIN;
        loop {
            if let Some(status) = running.child.try_wait().context("a node cannot be waited for")? {
                return Ok(status);
            }
            ensure!(
                Instant::now() < until,
                "node {node} has not ended after {LEAVES_WITHIN:?}"
            );
            interrupt::sleep(Duration::from_millis(10))?;
        }
    }

    /// Lets a node hold so many files. It is done as the process's own user, because root may lack the right over the processes of
    /// others.
    fn limit_files(&mut self, node: usize, limit: u32) -> Result<()> {
        let running = self.nodes[node].running.as_ref();
        let pid = running.with_context(|| format!("node {node} does not run"))?.worker();
        let process = format!("/proc/{pid}");
        let owner = fs::metadata(&process).context("the process has ended")?;
        let (user, group) = (owner.uid().to_string(), owner.gid().to_string());
        let own = ["setpriv", "--reuid", &user, "--regid", &group, "--clear-groups"];
        let (pid, nofile) = (pid.to_string(), format!("--nofile={limit}"));
        tool(&[&own[..], &["prlimit", "--pid", &pid, &nofile]].concat())?;
        let limits = fs::read_to_string(format!("{process}/limits")).context("a process's limits cannot be read")?;
        let open = fs::read_dir(format!("{process}/fd"))
            .context("a process's files cannot be listed")?
            .count();
        self.holds.note(
            open_files_limit(&limits) == Some(limit) && open >= limit as usize,
            format!("{open} files open, {limit} allowed"),
            || format!("node {node} may still open files: {open} are open, and {limit} were to be allowed"),
        );
        Ok(())
    }
}

/// The jumps of the wall clock in a node's log, in milliseconds.
fn jumps(log: &str) -> impl Iterator<Item = i64> {
    let lines = log.lines().filter(|line| line.contains(JUMPED));
    lines.filter_map(|line| {
        let (_, rest) = line.split_once("stepped_ms=")?;
        let end = rest.find(|it: char| it != '-' && !it.is_ascii_digit());
        rest[..end.unwrap_or(rest.len())].parse().ok()
    })
}

/// The soft limit of open files in `/proc/PID/limits`.
fn open_files_limit(limits: &str) -> Option<u32> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_is_summed_up_and_a_doubt_stays_by_itself() {
        let mut holds = Holds::default();
        holds.note(true, "killed", || unreachable!("it is so"));
        holds.note(true, "killed", || unreachable!("it is so"));
        holds.note(true, "stood still", || unreachable!("it is so"));
        holds.note(false, "moved", || "it did not move".to_owned());
        let (seen, doubts) = holds.finish();
        assert_eq!(seen, ["2 × killed", "stood still"]);
        assert_eq!(doubts, ["it did not move"]);
    }

    #[test]
    fn the_jump_that_a_node_noticed_is_read_from_its_log() {
        let log = "12:00 WARN x: the machine was suspended or its wall clock was set; y slept=0ns stepped_ms=-86400001\nother stepped_ms=5\n";
        assert_eq!(jumps(log).collect::<Vec<_>>(), [-86_400_001]);
    }

    #[test]
    fn the_limit_of_open_files_is_the_soft_one() {
        let limits =
            "Limit  Soft  Hard  Units\nMax open files            8                    4096                 files\n";
        assert_eq!(open_files_limit(limits), Some(8));
        assert_eq!(open_files_limit(""), None);
    }
}
