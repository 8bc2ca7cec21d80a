//! The JSON document: tables, plots, notes, and a hash of everything that happened.

use serde_json::{Value, json};

pub(crate) struct Report {
    title: &'static str,
    seed: u64,
    tables: Vec<Value>,
    plots: Vec<Value>,
    notes: Vec<String>,
    trace: u64,
}

/// A named line.
pub(crate) type Series = (String, Vec<(f64, f64)>);

pub(crate) struct Plot {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) x_label: &'static str,
    pub(crate) y_label: &'static str,
    pub(crate) y_log: bool,
}

impl Report {
    pub(crate) fn new(title: &'static str, seed: u64) -> Self {
        Self {
            title,
            seed,
            tables: Vec::new(),
            plots: Vec::new(),
            notes: Vec::new(),
            trace: 0,
        }
    }

    pub(crate) fn table(&mut self, name: &str, columns: &[&str], rows: Vec<Vec<Value>>) {
        self.tables
            .push(json!({ "name": name, "columns": columns, "rows": rows }));
    }

    pub(crate) fn plot(&mut self, plot: &Plot, series: Vec<Series>) {
        let series: Vec<Value> = series
            .into_iter()
            .map(|(name, points)| json!({ "name": name, "points": points }))
            .collect();
        self.plots.push(json!({
            "name": plot.name, "title": plot.title, "x_label": plot.x_label, "y_label": plot.y_label,
            "x_log": false, "y_log": plot.y_log, "series": series,
        }));
    }

    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Adds the trace of one run.
    pub(crate) fn trace(&mut self, trace: u64) {
        self.trace = (self.trace ^ trace).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
    }

    pub(crate) fn into_json(self) -> Value {
        json!({
            "title": self.title, "seed": self.seed, "tables": self.tables, "plots": self.plots,
            "trace_hash": format!("{:016x}", self.trace), "notes": self.notes,
        })
    }
}

/// Rounded to so many decimals, so that a table is readable.
pub(crate) fn rounded(value: f64, decimals: i32) -> Value {
    let unit = 10f64.powi(decimals);
    json!((value * unit).round() / unit)
}
