//! The result of the demonstration: a table for a person, or one JSON object.

use std::fmt;

use macula_node::{Address, NodeId, Strategy};
use serde::Serialize;

use super::{
    Stage,
    tally::{Phase, PhaseTally, Tally},
};

pub(crate) struct Summary<'a> {
    pub(crate) tally: &'a Tally,
    pub(crate) providers: Vec<(NodeId, Address)>,
    pub(crate) killed: Option<NodeId>,
    pub(crate) stage: Stage,
    pub(crate) connections_opened: u64,
    pub(crate) strategy: Strategy,
    pub(crate) payload: u32,
}

impl Summary<'_> {
    /// The longest call from the kill until the provider was back, in microseconds; 0 without a kill.
    fn failover_max_us(&self) -> u32 {
        self.tally.phase(Phase::Down).map_or(0, PhaseTally::max_us)
    }

    pub(crate) fn to_json(&self) -> Result<String, serde_json::Error> {
        let (calls, failed) = (self.tally.calls(), self.tally.failed());
        let provider = |(id, endpoint): &(NodeId, Address)| ProviderJson {
            node_id: id.to_string(),
            endpoint: endpoint.to_string(),
            calls: self.tally.answered_by(id),
        };
        serde_json::to_string(&SummaryJson {
            calls,
            ok: calls - failed,
            failed,
            providers: self.providers.iter().map(provider).collect(),
            killed: self.killed.map(|id| id.to_string()),
            attempts: self.tally.attempts(),
            connections_opened: self.connections_opened,
            p50_us: self.tally.quantile_us(0.5),
            p99_us: self.tally.quantile_us(0.99),
            max_us: self.tally.max_us(),
            failover_max_us: self.failover_max_us(),
        })
    }

    fn row(&self, f: &mut fmt::Formatter<'_>, title: &str, phase: &PhaseTally) -> fmt::Result {
        let answered = phase.calls() - phase.failed;
        write!(
            f,
            "  {title:<12}{:>8}{:>8}{:>10}{:>10}{:>10}  ",
            phase.calls(),
            phase.failed,
            time(phase.quantile_us(0.5)),
            time(phase.quantile_us(0.99)),
            time(phase.max_us()),
        )?;
        for (id, _) in &self.providers {
            let share = phase.by_provider.get(id).copied().unwrap_or(0) as f64 / answered.max(1) as f64;
            write!(f, "{:>9.1} %", 100.0 * share)?;
        }
        writeln!(f)
    }
}

/// The object that `--json` prints.
#[derive(Serialize)]
struct SummaryJson {
    calls: u64,
    ok: u64,
    failed: u64,
    providers: Vec<ProviderJson>,
    killed: Option<String>,
    attempts: u64,
    connections_opened: u64,
    p50_us: u32,
    p99_us: u32,
    max_us: u32,
    failover_max_us: u32,
}

#[derive(Serialize)]
struct ProviderJson {
    node_id: String,
    endpoint: String,
    calls: u64,
}

/// The letter a provider goes by in the table.
fn letter(at: usize) -> String {
    match u8::try_from(at) {
        Ok(at @ 0..26) => char::from(b'A' + at).to_string(),
        _ => format!("#{}", at + 1),
    }
}

fn time(us: u32) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", f64::from(us) / 1e3),
        _ => format!("{:.2} s", f64::from(us) / 1e6),
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (calls, failed) = (self.tally.calls(), self.tally.failed());
        writeln!(
            f,
            "\n{calls} calls to demo.echo, {} bytes each, {}\n",
            self.payload, self.strategy
        )?;
        for (at, (id, endpoint)) in self.providers.iter().enumerate() {
            let note = match self.stage {
                Stage::Killed if self.killed == Some(*id) => "  killed with SIGKILL",
                Stage::Restarted | Stage::Back if self.killed == Some(*id) => {
                    "  killed with SIGKILL, then started again"
                }
                Stage::Alive | Stage::Killed | Stage::Restarted | Stage::Back => "",
            };
            writeln!(
                f,
                "  {}  {}  {endpoint}  {} calls{note}",
                letter(at),
                id.short(),
                self.tally.answered_by(id)
            )?;
        }
        write!(
            f,
            "\n  {:<12}{:>8}{:>8}{:>10}{:>10}{:>10}  ",
            "phase", "calls", "failed", "p50", "p99", "longest"
        )?;
        for at in 0..self.providers.len() {
            write!(f, "{:>11}", letter(at))?;
        }
        writeln!(f)?;
        for phase in Phase::ALL {
            if let Some(tally) = self.tally.phase(phase) {
                self.row(f, phase.title(), tally)?;
            }
        }
        writeln!(f)?;
        match failed {
            0 => writeln!(f, "  No call failed.")?,
            _ => writeln!(f, "  {failed} calls FAILED.")?,
        }
        let per_call = self.tally.attempts() as f64 / calls.max(1) as f64;
        writeln!(
            f,
            "  {per_call:.3} attempts a call; {} connections opened for {calls} calls.",
            self.connections_opened
        )?;
        if self.killed.is_some() {
            writeln!(
                f,
                "  The longest call during the failover took {}.",
                time(self.failover_max_us())
            )?;
            if self.stage != Stage::Back {
                writeln!(
                    f,
                    "  The killed provider did not answer again within these calls; make more of them."
                )?;
            }
        }
        Ok(())
    }
}
