//! Many runs on every core, and their summary.

use std::{
    collections::{BTreeMap, VecDeque},
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::{
    fault::Schedule,
    options::Campaign,
    oracle::{Broken, RULES},
    run::{self, Outcome},
    schedule, shrink,
};

/// The most failures that are shrunk and shown, one for each rule.
const SHOWN: usize = 12;

/// A schedule, and the name that a person knows it by.
#[derive(Debug, Clone)]
struct Case {
    name: String,
    schedule: Schedule,
}

struct Report {
    case: Case,
    outcome: Outcome,
}

/// Runs all; `true` when nothing is broken.
pub(super) fn run(campaign: &Campaign) -> Result<bool, Box<dyn Error>> {
    let cases = cases(campaign)?;
    let reports = run_all(campaign, cases)?;
    if campaign.broken {
        return Ok(true);
    }
    if campaign.traces {
        for report in &reports {
            println!("{} {:016x}", report.case.name, report.outcome.trace);
        }
        return Ok(true);
    }
    if campaign.twice {
        compare(campaign, &reports)?;
    }
    let mut failures: BTreeMap<&str, Vec<(&Report, &Broken)>> = BTreeMap::new();
    for report in &reports {
        for broken in report
            .outcome
            .broken
            .iter()
            .filter(|it| campaign.rules.contains(it.rule))
        {
            failures.entry(broken.rule).or_default().push((report, broken));
        }
    }
    for (rule, all) in failures.iter().take(SHOWN) {
        if let Some((report, broken)) = all.first() {
            show(campaign, rule, report, broken)?;
        }
    }
    println!("{}", document(campaign, &reports, &failures));
    Ok(failures.is_empty())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(Path::new(file!()).parent().map_or_else(PathBuf::new, |folder| {
            // The path is from the workspace, of which the package is a folder.
            folder.components().skip(1).collect()
        }))
        .join("regressions")
}

fn cases(campaign: &Campaign) -> Result<Vec<Case>, Box<dyn Error>> {
    if let Some(file) = &campaign.schedule {
        return Ok(vec![read(file)?]);
    }
    let mut kept = Vec::new();
    // Only seeds may find the planted bugs.
    if campaign.with_kept
        && !campaign.broken
        && let Ok(files) = fs::read_dir(folder())
    {
        for file in files {
            kept.push(read(&file?.path())?);
        }
    }
    kept.sort_by(|a, b| a.name.cmp(&b.name));
    let drawn = campaign.seeds.clone().map(|seed| Case {
        name: format!("--no-kept --seeds {seed}..{}", seed + 1),
        schedule: schedule::of_seed(seed, campaign.nodes),
    });
    Ok(kept.into_iter().chain(drawn).collect())
}

fn read(file: &Path) -> Result<Case, Box<dyn Error>> {
    let named = |error: &dyn Error| format!("{}: {error}", file.display());
    let text = fs::read_to_string(file).map_err(|error| named(&error))?;
    Ok(Case {
        name: format!("--schedule {}", file.display()),
        schedule: text.parse().map_err(|error| named(&error))?,
    })
}

/// Runs each case once, on as many threads as there are processors. The reports are in the order of the cases.
fn run_all(campaign: &Campaign, cases: Vec<Case>) -> Result<Vec<Report>, Box<dyn Error>> {
    let bar =
        ProgressBar::new(cases.len() as u64).with_style(ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}")?);
    let queue: Mutex<VecDeque<(usize, Case)>> = Mutex::new(cases.into_iter().enumerate().collect());
    let done = Mutex::new(BTreeMap::new());
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let next = lock(&queue).pop_front();
                    let Some((at, case)) = next else { return };
                    let outcome = run::run(&case.schedule).map_err(|error| format!("{}: {error}", case.name));
                    bar.inc(1);
                    if campaign.broken {
                        tell(campaign, &case, outcome.as_ref().map_or(&[], |it| &it.broken));
                    }
                    lock(&done).insert(at, outcome.map(|outcome| Report { case, outcome }));
                }
            });
        }
    });
    bar.finish_and_clear();
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(done.into_values().collect::<Result<_, _>>()?)
}

/// Prints the seed of a run that has broken a rule.
fn tell(campaign: &Campaign, case: &Case, broken: &[Broken]) {
    if broken.iter().any(|broken| campaign.rules.contains(broken.rule)) {
        println!("{}", case.schedule.seed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs everything again in a process of its own, whose traces must be the same.
fn compare(campaign: &Campaign, reports: &[Report]) -> Result<(), Box<dyn Error>> {
    let mut again = Command::new(std::env::current_exe()?);
    let seeds = format!("{}..{}", campaign.seeds.start, campaign.seeds.end);
    again.args(["--traces", "--seeds", &seeds, "--nodes", &campaign.nodes.to_string()]);
    if let Some(file) = &campaign.schedule {
        again.arg("--schedule").arg(file);
    }
    if !campaign.with_kept {
        again.arg("--no-kept");
    }
    let again = String::from_utf8(again.output()?.stdout)?;
    let traces: Vec<&str> = again.lines().collect();
    if traces.len() != reports.len() {
        return Err("the second process has not run the same schedules".into());
    }
    for (report, trace) in reports.iter().zip(traces) {
        let first = format!("{} {:016x}", report.case.name, report.outcome.trace);
        if first != trace {
            return Err(format!("two processes have two traces: {first}, then {trace}").into());
        }
    }
    Ok(())
}

/// Shows a failure: the rule, how it was broken, and the smallest schedule that breaks it.
fn show(campaign: &Campaign, rule: &str, report: &Report, broken: &Broken) -> Result<(), Box<dyn Error>> {
    let words = RULES
        .iter()
        .find(|(known, _)| *known == rule)
        .map_or("", |(_, words)| words);
    eprintln!("{rule}: {words}\n  {:.3} s: {}", broken.at.as_secs_f64(), broken.text);
    eprintln!(
        "  again: cargo xtask sim mesh -- --rules {rule} {} --nodes {}",
        report.case.name, report.case.schedule.nodes
    );
    if campaign.shrinks {
        let small = shrink::shrink(&report.case.schedule, rule);
        eprintln!("  shrunk to:\n{small}");
        if campaign.keeps {
            fs::create_dir_all(folder())?;
            let file = folder().join(format!("{}-{}.txt", rule.to_lowercase(), small.seed));
            fs::write(&file, format!("# {rule}: {words}\n{small}"))?;
            eprintln!("  kept as {}", file.display());
        }
    }
    Ok(())
}

fn document(campaign: &Campaign, reports: &[Report], failures: &BTreeMap<&str, Vec<(&Report, &Broken)>>) -> Value {
    let rules = RULES
        .iter()
        .filter(|(rule, _)| campaign.rules.contains(rule))
        .map(|(rule, words)| {
            let broken = failures.get(rule).map_or(&[][..], Vec::as_slice);
            let mut runs: Vec<&str> = broken.iter().map(|(report, _)| report.case.name.as_str()).collect();
            runs.dedup();
            json!([rule, words, broken.len(), runs.len(), runs.first()])
        });
    let sum = |of: fn(&Outcome) -> usize| reports.iter().map(|report| of(&report.outcome)).sum::<usize>();
    let (calls, failed, runs) = (sum(|it| it.calls), sum(|it| it.failed), sum(|it| it.runs));
    let lasted: Duration = reports.iter().map(|report| report.outcome.lasted).sum();
    let took: Duration = reports.iter().map(|report| report.outcome.took).sum();
    let trace = reports
        .iter()
        .fold(0_u64, |all, report| all.rotate_left(1) ^ report.outcome.trace);
    json!({
        "title": format!("The mesh in a bottle: {} runs", reports.len()),
        "tables": [
            {
                "name": "rules",
                "columns": ["rule", "of the specification", "broken", "in runs", "the first"],
                "rows": rules.collect::<Vec<_>>(),
            },
            {
                "name": "runs",
                "columns": ["what", "value"],
                "rows": [
                    ["calls", calls],
                    ["calls that failed", failed],
                    ["runs of handlers", runs],
                    ["virtual seconds", lasted.as_secs()],
                    ["processor seconds", took.as_secs_f64()],
                    ["virtual seconds in one of a processor", lasted.as_secs_f64() / took.as_secs_f64().max(f64::MIN_POSITIVE)],
                ],
            },
        ],
        "trace_hash": format!("{trace:016x}"),
    })
}
