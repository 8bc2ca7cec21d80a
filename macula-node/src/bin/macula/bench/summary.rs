//! What a run has measured, for a person and as JSON.

use std::{fmt, time::Duration};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::load::Counts;

/// The shares of calls whose latency is shown, with their names in JSON.
const QUANTILES: [(f64, &str); 5] = [
    (0.5, "p50_us"),
    (0.9, "p90_us"),
    (0.99, "p99_us"),
    (0.999, "p999_us"),
    (1.0, "max_us"),
];

#[derive(Debug)]
pub(super) struct Summary {
    pub(super) counts: Counts,
    pub(super) lasted: Duration,
    /// Lookups in the directory before the load.
    pub(super) lookups: Histogram<u64>,
    pub(super) connections_opened: u64,
}

impl Summary {
    pub(super) fn failed(&self) -> u64 {
        self.counts.errors.values().sum()
    }

    /// Answered calls in a second.
    fn per_second(&self) -> f64 {
        self.counts.ok as f64 / self.lasted.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    pub(super) fn to_json(&self) -> Value {
        let counts = &self.counts;
        let providers: Vec<_> = counts
            .providers
            .iter()
            .map(|(node_id, share)| {
                json!({
                    "node_id": node_id.to_string(),
                    "answered": share.answered,
                    "failed_attempts": share.failed_attempts,
                    "latency": quantiles(&share.latency),
                })
            })
            .collect();
        json!({
            "calls": counts.ok + self.failed(),
            "ok": counts.ok,
            "failed": self.failed(),
            "errors": counts.errors,
            "attempts": counts.attempts,
            "seconds": self.lasted.as_secs_f64(),
            "per_second": self.per_second(),
            "latency": quantiles(&counts.latency),
            "first_us": counts.first_us,
            "failed_over": {"calls": counts.failed_over.len(), "latency": quantiles(&counts.failed_over)},
            "lookups": {"asked": self.lookups.len(), "latency": quantiles(&self.lookups)},
            "found_in": counts.found_in,
            "connections_opened": self.connections_opened,
            "providers": providers,
        })
    }
}

fn quantiles(latency: &Histogram<u64>) -> Value {
    let named = QUANTILES.iter().map(|&(share, name)| {
        let us = latency.value_at_quantile(share);
        (name.to_owned(), Value::from(us))
    });
    Value::Object(named.collect())
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        writeln!(
            f,
            "{} calls in {:.1} s: {} answered ({:.0} a second), {} failed, {} attempts, {} connections opened",
            counts.ok + self.failed(),
            self.lasted.as_secs_f64(),
            counts.ok,
            self.per_second(),
            self.failed(),
            counts.attempts,
            self.connections_opened,
        )?;
        for (name, count) in &counts.errors {
            writeln!(f, "  {name}: {count}")?;
        }
        let found: Vec<_> = counts
            .found_in
            .iter()
            .map(|(place, calls)| format!("{place} {calls}"))
            .collect();
        writeln!(f, "providers found in: {}", found.join(", "))?;
        write!(
            f,
            "\n{:<12}{:>9}{:>9}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "", "answered", "failed", "p50", "p90", "p99", "p99.9", "max"
        )?;
        row(f, "all", counts.ok, counts.attempts - counts.ok, &counts.latency)?;
        if !counts.failed_over.is_empty() {
            row(f, "failed over", counts.failed_over.len(), 0, &counts.failed_over)?;
        }
        if !self.lookups.is_empty() {
            row(f, "lookups", self.lookups.len(), 0, &self.lookups)?;
        }
        for (node_id, share) in &counts.providers {
            row(
                f,
                &node_id.short().to_string(),
                share.answered,
                share.failed_attempts,
                &share.latency,
            )?;
        }
        Ok(())
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, answered: u64, failed: u64, latency: &Histogram<u64>) -> fmt::Result {
    write!(f, "\n{name:<12}{answered:>9}{failed:>9}")?;
    for (share, _) in QUANTILES {
        write!(f, "{:>10}", shown(latency.value_at_quantile(share)))?;
    }
    Ok(())
}

/// Microseconds in the unit that a person reads best.
fn shown(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_the_unit_that_fits() {
        assert_eq!(shown(999), "999 µs");
        assert_eq!(shown(1_500), "1.5 ms");
        assert_eq!(shown(2_345_678), "2.35 s");
    }
}
