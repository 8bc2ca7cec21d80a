//! What was done, what was promised and what was seen, for a person and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{
    hosts::Backend,
    oracle::Seen,
    scenario::Scenario,
    verdict::{self, Limits},
};

/// One scenario's result.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) scenario: &'static Scenario,
    pub(crate) backend: Backend,
    pub(crate) outcome: Outcome,
}

/// What became of a scenario.
#[derive(Debug)]
pub(crate) enum Outcome {
    Ran(Box<Measured>),
    /// The backend cannot run it, or this machine lacks something.
    NotRun(&'static str),
    /// It could not be played to its end.
    Stopped(String),
}

/// What a scenario that ran has shown.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) seen: Seen,
    /// What showed that the faults took hold.
    pub(crate) took_hold: Vec<String>,
    /// What did not show, each in a sentence.
    pub(crate) doubts: Vec<String>,
    /// Connections that the callers opened, all together.
    pub(crate) connections: u64,
    /// The largest resident memory of a node, in bytes.
    pub(crate) rss_bytes: u64,
}

impl Row {
    fn limits(&self, measured: &Measured) -> Limits {
        Limits::of(&self.scenario.promise, self.backend, &measured.seen)
    }

    fn broken(&self) -> Vec<String> {
        match &self.outcome {
            Outcome::Ran(measured) => {
                let mut broken = verdict::broken(&measured.seen, &self.scenario.promise, &self.limits(measured));
                broken.extend(measured.doubts.iter().cloned());
                broken
            }
            Outcome::NotRun(_) => Vec::new(),
            Outcome::Stopped(why) => vec![format!("the scenario was not played to its end: {why}")],
        }
    }

    pub(crate) fn is_broken(&self) -> bool {
        !self.broken().is_empty()
    }

    pub(crate) fn verdict(&self) -> String {
        match (&self.outcome, self.broken()) {
            (Outcome::NotRun(lack), _) => format!("not run: {lack}"),
            (_, broken) if broken.is_empty() => "kept".to_owned(),
            (_, broken) => format!("BROKEN: {}", broken.join("; ")),
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        let (seen, promised) = match &self.outcome {
            Outcome::Ran(measured) => (seen(measured), self.promised(measured)),
            Outcome::NotRun(_) | Outcome::Stopped(_) => (Value::Null, Value::Null),
        };
        let lack = match &self.outcome {
            Outcome::NotRun(lack) => Some(lack),
            Outcome::Ran(_) | Outcome::Stopped(_) => None,
        };
        json!({
            "backend": self.backend.name(),
            "scenario": self.scenario.name,
            "does": self.scenario.does,
            "rules": self.scenario.rules,
            "promised": promised,
            "seen": seen,
            "not_run": lack,
            "broken": self.broken(),
        })
    }

    fn promised(&self, measured: &Measured) -> Value {
        let promise = &self.scenario.promise;
        let limits = self.limits(measured);
        json!({
            "failed": promise.failed,
            "may_fail_without_provider": promise.may_lack_providers,
            "longest": limits.longest.to_json(),
            "recovered": limits.recovered.to_json(),
        })
    }

    /// The cells between the rules and the verdict.
    fn cells(&self, measured: &Measured) -> String {
        let seen = &measured.seen;
        let Limits { longest, recovered } = self.limits(measured);
        let without = match seen.excused {
            0 => "0".to_owned(),
            calls => format!("{calls} in {:.1} s", seen.without_provider_us as f64 / 1e6),
        };
        let busy = match longest.busy_us / 1_000 {
            0 => String::new(),
            ms => format!(" + {ms} busy"),
        };
        let took = seen
            .recovered_us
            .map_or("never".to_owned(), |us| format!("{:.1}", us as f64 / 1e6));
        format!(
            "{} | {} | {} | {without} | {:.1} | {}{busy} ({}) | {:.3} | {took} | {} ({}) | {} | {:.0}",
            measured.took_hold.join(", "),
            seen.calls,
            seen.failed,
            seen.longest.us as f64 / 1e3,
            longest.us / 1_000,
            longest.name(),
            seen.attempts as f64 / seen.calls.max(1) as f64,
            recovered.us / 1_000_000,
            recovered.name(),
            measured.connections,
            measured.rss_bytes as f64 / f64::from(1 << 20),
        )
    }
}

fn seen(measured: &Measured) -> Value {
    let seen = &measured.seen;
    json!({
        "took_hold": measured.took_hold,
        "did_not_take_hold": measured.doubts,
        "calls": seen.calls,
        "failed": seen.failed,
        "failed_without_provider": seen.excused,
        "cut_off_by_crashes": seen.cut_off,
        "cut_off_us": seen.cut_off_us,
        "slow_calls_under_way": seen.met.slow,
        "streams_under_way": seen.met.streams,
        "without_provider_us": seen.without_provider_us,
        "attempts": seen.attempts,
        "longest_us": seen.longest.us,
        "longest_after_us": seen.longest.at_us,
        "longest_causes": seen.longest.causes,
        "pto_us": seen.pto_us,
        "recovered_us": seen.recovered_us,
        "providers_seen": seen.providers_seen,
        "connections": measured.connections,
        "rss_bytes": measured.rss_bytes,
    })
}

const COLUMNS: [&str; 14] = [
    "scenario",
    "rules",
    "took hold",
    "calls",
    "failed",
    "without a provider",
    "longest ms",
    "promised ms",
    "attempts a call",
    "recovered s",
    "promised s",
    "connections",
    "RSS MiB",
    "verdict",
];

/// The results as a table in Markdown, which reads well in a terminal and stands in the documentation as it is.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = format!("| {} |\n{}|\n", COLUMNS.join(" | "), "|---".repeat(COLUMNS.len()));
    for row in rows {
        let cells = match &row.outcome {
            Outcome::Ran(measured) => row.cells(measured),
            Outcome::NotRun(_) | Outcome::Stopped(_) => vec!["–"; COLUMNS.len() - 3].join(" | "),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {cells} | {} |",
            row.scenario.name,
            row.scenario.rules,
            row.verdict()
        );
    }
    text
}

/// The scenarios, and whether the backend can run them.
pub(crate) fn list(scenarios: &[Scenario], backend: Backend) -> String {
    let mut text = String::new();
    for scenario in scenarios {
        let note = backend
            .cannot(scenario)
            .map_or(String::new(), |lack| format!(" (not here: {lack})"));
        let _ = writeln!(text, "{:<24} {}{note}", scenario.name, scenario.does);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{super::scenarios::ALL, *};

    #[test]
    fn every_row_has_a_cell_for_each_column() {
        let measured = Measured {
            seen: Seen::default(),
            took_hold: Vec::new(),
            doubts: Vec::new(),
            connections: 1,
            rss_bytes: 1,
        };
        let outcomes = [
            Outcome::Ran(Box::new(measured)),
            Outcome::NotRun("why"),
            Outcome::Stopped("why".to_owned()),
        ];
        let rows = outcomes.map(|outcome| Row {
            scenario: &ALL[0],
            backend: Backend::Netns,
            outcome,
        });
        for line in table(&rows).lines() {
            assert_eq!(line.matches('|').count(), COLUMNS.len() + 1, "{line}");
        }
        assert_eq!(rows.map(|row| row.is_broken()), [true, false, true]);
    }
}
