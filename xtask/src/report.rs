//! The report that a simulation or a benchmark writes to its standard output, and its form in a terminal.
//!
//! The program writes one JSON document ([`Report`]); it is printed as aligned tables and notes, and kept beside its
//! plots as SVG files. The same document always gives the same bytes.
//!
//! Left out: judging the numbers. A program that has goals says in its notes whether it met them.

mod plot;
mod table;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use self::plot::Plot;
use self::table::Table;

/// One document.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Report {
    pub(crate) title: String,
    pub(crate) seed: Option<u64>,
    #[serde(default)]
    pub(crate) tables: Vec<Table>,
    #[serde(default)]
    pub(crate) plots: Vec<Plot>,
    /// Equal hashes mean equal runs.
    pub(crate) trace_hash: Option<String>,
    #[serde(default)]
    pub(crate) notes: Vec<String>,
}

impl Report {
    /// Reads the one document a program wrote.
    ///
    /// # Errors
    ///
    /// It is not JSON, is not this document, or contradicts itself: a row of another length than its columns, a plot
    /// whose name is no file stem.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let report: Report = serde_json::from_str(text).context("standard output is not one report document")?;
        for table in &report.tables {
            let odd = table.rows.iter().position(|row| row.len() != table.columns.len());
            ensure!(
                odd.is_none(),
                "row {} of table {:?} does not have its {} cells",
                odd.unwrap_or_default(),
                table.name,
                table.columns.len()
            );
        }
        for plot in &report.plots {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            ensure!(
                !plot.name.is_empty() && plot.name.chars().all(plain),
                "{:?} cannot be the name of a plot's file: use letters, digits, - and _",
                plot.name
            );
        }
        Ok(report)
    }

    /// Title, tables and notes, for a terminal.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("{}\n", self.title);
        if let Some(seed) = self.seed {
            text.push_str(&format!("seed {seed}\n"));
        }
        for table in &self.tables {
            text.push_str(&format!("\n{}\n{}", table.name, table::render(table)));
        }
        if !self.notes.is_empty() {
            text.push('\n');
        }
        for note in &self.notes {
            text.push_str(&format!("- {note}\n"));
        }
        if let Some(hash) = &self.trace_hash {
            text.push_str(&format!("\ntrace {hash}\n"));
        }
        text
    }

    /// Prints the report and writes its plots into `out`.
    ///
    /// # Errors
    ///
    /// A plot cannot be drawn, or `out` cannot be written to.
    pub(crate) fn show(&self, out: &Path) -> Result<()> {
        print!("{}", self.to_text());
        if !self.plots.is_empty() {
            println!();
        }
        for plot in &self.plots {
            let (svg, left_out) = plot.draw()?;
            let path = out.join(format!("{}.svg", plot.name));
            fs::write(&path, svg).with_context(|| format!("cannot write {}", path.display()))?;
            println!("plot  {}", path.display());
            if left_out > 0 {
                println!("      {left_out} point(s) at or below zero have no place on a log axis");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_becomes_text() {
        let report = Report::parse(
            r#"{"title":"T","seed":7,"tables":[{"name":"shares","columns":["who","n"],"rows":[["a",1],["b",12]]}],
                "plots":[],"trace_hash":"abc","notes":["all met"]}"#,
        )
        .unwrap();
        let expected = "T\nseed 7\n\nshares\n who    n\n──────────\n a      1\n b     12\n\n- all met\n\ntrace abc\n";
        assert_eq!(report.to_text(), expected);
    }

    #[test]
    fn what_is_not_a_report_is_refused_with_a_reason() {
        let refused = |text: &str| format!("{:#}", Report::parse(text).unwrap_err());
        assert!(refused("hello").contains("not one report document"));
        assert!(refused(r#"{"title":"T","colour":1}"#).contains("colour"));
        let short = r#"{"title":"T","tables":[{"name":"x","columns":["a","b"],"rows":[[1]]}]}"#;
        assert!(refused(short).contains("row 0"));
    }

    #[test]
    fn a_plot_cannot_name_a_file_elsewhere() {
        let plot = r#"{"title":"T","plots":[{"name":"../x","title":"","x_label":"","y_label":"","series":[]}]}"#;
        assert!(format!("{:#}", Report::parse(plot).unwrap_err()).contains("../x"));
    }

    #[test]
    fn plots_are_written_where_asked() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"title":"T","plots":[{"name":"p","title":"P","x_label":"x","y_label":"y",
            "series":[{"name":"s","points":[[1,2],[3,4]]}]}]}"#;
        Report::parse(text).unwrap().show(dir.path()).unwrap();
        assert!(
            fs::read_to_string(dir.path().join("p.svg"))
                .unwrap()
                .starts_with("<svg")
        );
    }
}
