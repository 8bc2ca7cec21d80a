//! Reads what criterion leaves in its folder and makes a [`Report`] of it.
//!
//! Criterion writes two files for each benchmark: `new/benchmark.json`, what it is, and `new/estimates.json`, times in
//! nanoseconds. Files older than the run belong to benchmarks that were not run and are passed over.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::report::{Cell, Kind, Plot, Report, Series, Table};
use crate::workspace::files;

/// One benchmark's result.
#[derive(Debug, PartialEq)]
pub(crate) struct Measured {
    group: String,
    function: String,
    /// The parameter, when the benchmark has one.
    value: Option<String>,
    /// Elements or bytes an iteration.
    throughput: Option<(u64, &'static str)>,
    /// Nanoseconds an iteration.
    median: f64,
    low: f64,
    high: f64,
}

#[derive(Deserialize)]
struct Benchmark {
    group_id: String,
    function_id: Option<String>,
    value_str: Option<String>,
    throughput: Option<Throughput>,
}

#[derive(Deserialize)]
enum Throughput {
    Bytes(u64),
    BytesDecimal(u64),
    Elements(u64),
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
    confidence_interval: Interval,
}

#[derive(Deserialize)]
struct Interval {
    lower_bound: f64,
    upper_bound: f64,
}

/// The results under `home` that were written at `started` or later.
///
/// # Errors
///
/// A file cannot be read or understood.
pub(crate) fn measured_since(home: &Path, started: SystemTime) -> Result<Vec<Measured>> {
    let mut measured = Vec::new();
    for path in files(home, "json")? {
        if !path.ends_with("new/estimates.json") || fs::metadata(&path)?.modified()? < started {
            continue;
        }
        let what: Benchmark = read(&path.with_file_name("benchmark.json"))?;
        let Estimates { median } = read(&path)?;
        measured.push(Measured {
            function: what.function_id.unwrap_or_else(|| what.group_id.clone()),
            group: what.group_id,
            value: what.value_str,
            throughput: what.throughput.and_then(|it| match it {
                Throughput::Bytes(n) | Throughput::BytesDecimal(n) => Some((n, "B/s")),
                Throughput::Elements(n) => Some((n, "/s")),
                Throughput::Other => None,
            }),
            median: median.point_estimate,
            low: median.confidence_interval.lower_bound,
            high: median.confidence_interval.upper_bound,
        });
    }
    Ok(measured)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))
}

/// A table for each group, and a plot for each whose parameter is a number.
pub(crate) fn report(name: &str, measured: Vec<Measured>) -> Report {
    let mut groups: BTreeMap<String, Vec<Measured>> = BTreeMap::new();
    for it in measured {
        groups.entry(it.group.clone()).or_default().push(it);
    }
    for group in groups.values_mut() {
        group.sort_by(|a, b| {
            let by_number = number(a).unwrap_or_default().total_cmp(&number(b).unwrap_or_default());
            a.function
                .cmp(&b.function)
                .then(by_number)
                .then_with(|| a.value.cmp(&b.value))
        });
    }
    Report {
        title: format!("{name}: criterion benches"),
        seed: None,
        tables: groups.iter().map(|(group, results)| table(group, results)).collect(),
        plots: groups
            .iter()
            .filter_map(|(group, results)| plot(name, group, results))
            .collect(),
        trace_hash: None,
        notes: vec!["time an iteration: median, and its 95 % confidence interval".to_owned()],
    }
}

fn number(it: &Measured) -> Option<f64> {
    it.value.as_ref()?.parse().ok()
}

fn table(group: &str, results: &[Measured]) -> Table {
    let valued = results.iter().any(|it| it.value.is_some());
    let through = results.iter().any(|it| it.throughput.is_some());
    let mut columns = vec!["benchmark"];
    columns.extend(valued.then_some("at"));
    columns.extend(["median", "low", "high"]);
    columns.extend(through.then_some("throughput"));
    let rows = results.iter().map(|it| {
        let mut row = vec![Cell::Text(it.function.clone())];
        if valued {
            row.push(it.value.clone().map_or(Cell::Empty(()), |value| match value.parse() {
                Ok(whole) => Cell::Whole(whole),
                Err(_) => Cell::Text(value),
            }));
        }
        row.extend([it.median, it.low, it.high].map(|ns| Cell::Text(time(ns))));
        if through {
            row.push(it.throughput.map_or(Cell::Empty(()), |(n, unit)| {
                Cell::Text(rate(n as f64 / it.median * 1e9, unit))
            }));
        }
        row
    });
    Table {
        name: group.to_owned(),
        columns: columns.into_iter().map(str::to_owned).collect(),
        rows: rows.collect(),
    }
}

fn plot(name: &str, group: &str, results: &[Measured]) -> Option<Plot> {
    let mut series: BTreeMap<&str, Vec<[f64; 2]>> = BTreeMap::new();
    for it in results {
        series.entry(&it.function).or_default().push([number(it)?, it.median]);
    }
    let several = series.values().any(|points| points.len() > 1);
    let stem = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    several.then(|| Plot {
        name: format!("{name}-{}", group.chars().map(stem).collect::<String>()),
        title: group.to_owned(),
        x_label: "n".to_owned(),
        y_label: "ns an iteration".to_owned(),
        x_log: results.iter().all(|it| number(it).is_some_and(|n| n > 0.0)),
        y_log: true,
        kind: Kind::Line,
        series: series
            .into_iter()
            .map(|(name, points)| Series {
                name: name.to_owned(),
                points,
            })
            .collect(),
    })
}

/// Four digits and a unit.
fn time(ns: f64) -> String {
    let (value, unit) = match ns {
        _ if ns < 1e3 => (ns, "ns"),
        _ if ns < 1e6 => (ns / 1e3, "µs"),
        _ if ns < 1e9 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    format!("{} {unit}", four_digits(value))
}

fn rate(per_second: f64, unit: &str) -> String {
    let (value, prefix) = match per_second {
        _ if per_second < 1e3 => (per_second, ""),
        _ if per_second < 1e6 => (per_second / 1e3, "k"),
        _ if per_second < 1e9 => (per_second / 1e6, "M"),
        _ => (per_second / 1e9, "G"),
    };
    format!("{} {prefix}{unit}", four_digits(value))
}

fn four_digits(value: f64) -> String {
    let decimals = [1000.0, 100.0, 10.0].iter().take_while(|it| value < **it).count();
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(group: &str, function: &str, value: Option<&str>, median: f64) -> Measured {
        Measured {
            group: group.to_owned(),
            function: function.to_owned(),
            value: value.map(str::to_owned),
            throughput: None,
            median,
            low: median,
            high: median,
        }
    }

    fn leave(home: &Path, at: &str, benchmark: &str) {
        let dir = home.join(at).join("new");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("benchmark.json"), benchmark).unwrap();
        let estimate = r#"{"confidence_interval":{"confidence_level":0.95,"lower_bound":1.0,"upper_bound":3.0},
            "point_estimate":2.0,"standard_error":0.1}"#;
        fs::write(
            dir.join("estimates.json"),
            format!(r#"{{"mean":{estimate},"median":{estimate}}}"#),
        )
        .unwrap();
    }

    #[test]
    fn files_of_this_run_are_read_and_older_ones_passed_over() {
        let home = tempfile::tempdir().unwrap();
        let what = r#"{"group_id":"pick","function_id":"p2c","value_str":"100","throughput":{"Elements":10},
            "full_id":"pick/p2c/100","directory_name":"pick/p2c/100","title":"pick/p2c/100"}"#;
        leave(home.path(), "pick/p2c/100", what);
        let found = measured_since(home.path(), SystemTime::UNIX_EPOCH).unwrap();
        let expected = Measured {
            throughput: Some((10, "/s")),
            low: 1.0,
            high: 3.0,
            ..measured("pick", "p2c", Some("100"), 2.0)
        };
        assert_eq!(found, [expected]);
        let later = SystemTime::now() + std::time::Duration::from_secs(60);
        assert_eq!(measured_since(home.path(), later).unwrap(), []);
    }

    #[test]
    fn a_group_is_a_table_sorted_by_function_then_number() {
        let report = report(
            "select",
            vec![
                measured("pick", "p2c", Some("100"), 12.345),
                measured("pick", "p2c", Some("3"), 5.0),
                measured("pick", "first", Some("3"), 4.0),
                measured("call", "call", None, 1234.0),
            ],
        );
        let text = report.to_text();
        let order = ["call", "1.234 µs", "first", "4.000 ns", "5.000 ns", "12.35 ns"].map(|it| text.find(it));
        assert!(order.is_sorted() && order[0].is_some(), "{text}");
        assert_eq!(report.plots.len(), 1);
        assert_eq!(report.plots[0].name, "select-pick");
        assert_eq!(report.plots[0].series[1].points, [[3.0, 5.0], [100.0, 12.345]]);
    }

    #[test]
    fn words_as_parameters_make_no_plot() {
        let results = vec![
            measured("g", "f", Some("small"), 1.0),
            measured("g", "f", Some("large"), 2.0),
        ];
        assert!(report("x", results).plots.is_empty());
    }

    #[test]
    fn times_and_rates_have_four_digits_and_a_unit() {
        let times = [0.5, 12.34, 1500.0, 2.5e6, 3e9].map(time);
        assert_eq!(times, ["0.500 ns", "12.34 ns", "1.500 µs", "2.500 ms", "3.000 s"]);
        assert_eq!(rate(1.5e9, "B/s"), "1.500 GB/s");
        assert_eq!(rate(20.0, "/s"), "20.00 /s");
    }
}
