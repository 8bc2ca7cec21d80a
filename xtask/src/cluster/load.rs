//! The load of a scenario: `macula bench` at a rate on each caller's host, and its log of every call.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    hosts::{Place, Side},
    interrupt,
    mesh::{Caller, Mesh, SERVICE, summary},
    oracle::Call,
    scenario::Scenario,
    work::{SLOW_SERVICE, STREAM_MESSAGES, Work},
};

/// Slow calls a second, and as many streams.
const SLOW_RATE: u32 = 5;
/// How long a caller may take to make its first calls, which reach its log a few at a time.
const CALLS_WITHIN: Duration = Duration::from_secs(60);
/// How much longer than planned a load may last on a slow machine.
const MAX_STRETCH: u32 = 10;
/// How long after its load a caller may take to end: a call's deadline, and some time to leave.
const CALLER_ENDS_WITHIN: Duration = Duration::from_secs(20);

impl Mesh {
    /// Starts the callers; those of a scenario with long calls have hosts of their own.
    pub(super) fn start_callers(&mut self, scenario: &Scenario, places: &[Place]) -> Result<()> {
        let rate = (scenario.rate / places.len() as u32).max(1);
        for place in places {
            self.start_caller(scenario, place, Work::Echo, rate)?;
        }
        if scenario.long_calls {
            for work in [Work::Slow, Work::Stream] {
                let place = self.hosts.add(Side::Private)?;
                self.start_caller(scenario, &place, work, SLOW_RATE)?;
            }
        }
        self.wait_for_calls()
    }

    /// Waits until every caller of echoes has called: before that it may still be on its way into the mesh.
    fn wait_for_calls(&self) -> Result<()> {
        let until = Instant::now() + CALLS_WITHIN;
        let logs = self.callers.iter().filter(|caller| caller.work == Work::Echo);
        for Caller { calls, started, .. } in logs {
            while fs::metadata(calls).map_or(0, |log| log.len()) == 0 {
                ensure!(
                    Instant::now() < until,
                    "a caller has made no call within {CALLS_WITHIN:?}: {}",
                    started.said()
                );
                interrupt::sleep(Duration::from_millis(20))?;
            }
        }
        Ok(())
    }

    fn start_caller(&mut self, scenario: &Scenario, place: &Place, work: Work, rate: u32) -> Result<()> {
        let calls = self.folder.join(format!("calls-{}", place.number));
        let file = calls.to_string_lossy();
        let (rate, messages) = (rate.to_string(), STREAM_MESSAGES.to_string());
        let duration = format!("{}s", scenario.lasts * MAX_STRETCH);
        let (payload, clients) = (scenario.payload.to_string(), scenario.clients.to_string());
        let mut options = vec!["--rate", &rate, "--duration", &duration, "--calls", &file];
        options.extend(["--payload", &payload, "--clients", &clients]);
        if work == Work::Stream {
            options.extend(["--messages", &messages]);
        }
        let service = if work == Work::Echo { SERVICE } else { SLOW_SERVICE };
        let started = self.bench(place, service, &options)?;
        self.callers.push(Caller { started, work, calls });
        Ok(())
    }

    /// Ends the callers' load, and gives their calls and the number of connections that they opened.
    pub(super) fn stop_callers(&mut self) -> Result<(Vec<Call>, u64)> {
        for (number, node) in self.nodes.iter_mut().enumerate() {
            if let Some(running) = &mut node.running {
                let ended = running.child.try_wait().context("a node cannot be waited for")?;
                ensure!(ended.is_none(), "node {number} has ended by itself: {ended:?}");
            }
        }
        for Caller { started, .. } in &mut self.callers {
            let ended = started.child.try_wait().context("a caller cannot be waited for")?;
            ensure!(ended.is_none(), "a caller ended before its load: {ended:?}");
            let pid = Pid::from_raw(started.pid).context("a process has an id")?;
            kill_process(pid, Signal::INT).context("a caller ended before its load")?;
        }
        let until = Instant::now() + CALLER_ENDS_WITHIN;
        let (mut calls, mut connections) = (Vec::new(), 0);
        for caller in std::mem::take(&mut self.callers) {
            let Caller {
                mut started,
                work,
                calls: path,
            } = caller;
            while started
                .child
                .try_wait()
                .context("a caller cannot be waited for")?
                .is_none()
            {
                if Instant::now() > until {
                    let _ = started.child.kill();
                    bail!("a caller has not ended {CALLER_ENDS_WITHIN:?} after its load");
                }
                interrupt::sleep(Duration::from_millis(20))?;
            }
            let summary = summary(started)?;
            connections += summary["connections_opened"].as_u64().unwrap_or_default();
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            for line in text.lines() {
                calls.push(Call::read(line, work)?);
            }
        }
        calls.sort_by_key(|call| call.at_us);
        Ok((calls, connections))
    }
}
