//! What was done, what was promised and what was seen, for a person and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{
    hosts::Backend,
    oracle::{self, Seen},
    scenario::Scenario,
};

/// One scenario's result.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) scenario: &'static Scenario,
    /// What it has shown, or why the backend could not run it.
    pub(crate) result: Result<Measured, &'static str>,
}

/// What a scenario that ran has shown.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) seen: Seen,
    /// Connections that the callers opened, all together.
    pub(crate) connections: u64,
    /// The largest resident memory of a node, in bytes.
    pub(crate) rss_bytes: u64,
}

impl Row {
    /// A scenario that the backend cannot run.
    pub(crate) fn skipped(scenario: &'static Scenario, lack: &'static str) -> Self {
        Self {
            scenario,
            result: Err(lack),
        }
    }

    fn broken(&self) -> Vec<String> {
        match &self.result {
            Ok(measured) => oracle::broken(&measured.seen, &self.scenario.promise),
            Err(_) => Vec::new(),
        }
    }

    pub(crate) fn is_broken(&self) -> bool {
        !self.broken().is_empty()
    }

    pub(crate) fn verdict(&self) -> String {
        match (&self.result, self.broken()) {
            (Err(lack), _) => format!("not run: {lack}"),
            (Ok(_), broken) if broken.is_empty() => "kept".to_owned(),
            (Ok(_), broken) => format!("BROKEN: {}", broken.join("; ")),
        }
    }

    pub(crate) fn to_json(&self, backend: Backend) -> Value {
        let seen = self.result.as_ref().ok().map(|measured| {
            let seen = &measured.seen;
            json!({
                "calls": seen.calls,
                "failed": seen.failed,
                "failed_without_provider": seen.excused,
                "attempts": seen.attempts,
                "longest_us": seen.longest_us,
                "recovered_us": seen.recovered_us,
                "providers_seen": seen.providers_seen,
                "connections": measured.connections,
                "rss_bytes": measured.rss_bytes,
            })
        });
        json!({
            "backend": backend.name(),
            "scenario": self.scenario.name,
            "rules": self.scenario.rules,
            "seen": seen,
            "not_run": self.result.as_ref().err(),
            "broken": self.broken(),
        })
    }
}

/// The results as a table in Markdown, which reads well in a terminal and stands in the documentation as it is.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| scenario | rules | calls | failed | without a provider | longest ms | attempts a call | recovered s | connections | RSS MiB | verdict |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let cells = match &row.result {
            Err(_) => "– | – | – | – | – | – | – | –".to_owned(),
            Ok(measured) => {
                let seen = &measured.seen;
                let recovered = seen
                    .recovered_us
                    .map_or("never".to_owned(), |us| format!("{:.1}", us as f64 / 1e6));
                format!(
                    "{} | {} | {} | {:.1} | {:.3} | {recovered} | {} | {:.0}",
                    seen.calls,
                    seen.failed,
                    seen.excused,
                    seen.longest_us as f64 / 1e3,
                    seen.attempts as f64 / seen.calls.max(1) as f64,
                    measured.connections,
                    measured.rss_bytes as f64 / f64::from(1 << 20),
                )
            }
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
