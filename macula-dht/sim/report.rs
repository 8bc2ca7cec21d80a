//! The document the simulation prints.

use serde_json::{Value, json};

/// Tables and plots, in the order they were made.
#[derive(Default)]
pub(crate) struct Report {
    tables: Vec<Value>,
    plots: Vec<Value>,
    notes: Vec<String>,
}

/// A number as it is shown: three significant digits or so.
pub(crate) fn number(value: f64) -> Value {
    let scale = match value.abs() {
        v if v >= 100.0 => 1.0,
        v if v >= 10.0 => 10.0,
        _ => 100.0,
    };
    json!((value * scale).round() / scale)
}

pub(crate) fn text(value: impl ToString) -> Value {
    Value::String(value.to_string())
}

/// The value below which `share` of `values` lie.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let at = ((values.len() as f64 - 1.0) * share).round().max(0.0) as usize;
    values.get(at).copied().unwrap_or(f64::NAN)
}

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

impl Report {
    pub(crate) fn table(&mut self, name: &str, columns: &[&str], rows: Vec<Vec<Value>>) {
        self.tables
            .push(json!({ "name": name, "columns": columns, "rows": rows }));
    }

    pub(crate) fn plot(&mut self, name: &str, title: &str, x: &str, y: &str, series: &[(&str, Vec<(f64, f64)>)]) {
        let series: Vec<_> = series
            .iter()
            .map(|(name, points)| json!({ "name": name, "points": points.iter().map(|(x, y)| [x, y]).collect::<Vec<_>>() }))
            .collect();
        self.plots.push(json!({
            "name": name, "title": title, "x_label": x, "y_label": y, "x_log": false, "y_log": false,
            "series": series,
        }));
    }

    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    pub(crate) fn finish(self, title: &str, seed: u64, trace: u64) -> Value {
        json!({
            "title": title, "seed": seed, "tables": self.tables, "plots": self.plots,
            "trace_hash": format!("{trace:016x}"), "notes": self.notes,
        })
    }
}
