//! Planted bugs: does the oracle find them?
//!
//! The workspace is copied, the copy is patched, and this program is built from it. Each patch is behind a switch in the environment, so one
//! build has all of the bugs and each run has one. A bug is found when a seed breaks the bug's rule with it and does not without it.
//!
//! A patch names the text that it changes. The text must stand exactly once in the file; otherwise the run fails, and the mutant needs a
//! new text.

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::{options::Campaign, run, schedule};

/// Says in the environment which bug a run has.
const SWITCH: &str = "MACULA_MUTANT";
/// The seeds within which each bug must be found.
const SEEDS: u64 = 200;

struct Mutant {
    name: &'static str,
    rule: &'static str,
    patches: &'static [Patch],
}

struct Patch {
    file: &'static str,
    anchor: &'static str,
    /// `MUTANT` stands for whether the bug is on.
    instead: &'static str,
}

const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "the exclusion is dropped",
        rule: "F2",
        patches: &[Patch {
            file: "macula-select/src/call.rs",
            anchor: "balancer.exclude_tried(attempt.handle, &attempt.provider, &mut excluded);",
            instead: "if !MUTANT { balancer.exclude_tried(attempt.handle, &attempt.provider, &mut excluded); }",
        }],
    },
    Mutant {
        name: "a record comes back after its withdrawal",
        rule: "D3",
        patches: &[
            Patch {
                file: "macula-dht/src/store/entry.rs",
                anchor: "    let order = new\n",
                instead: "    if MUTANT && old.is_withdrawn() && !new.is_withdrawn() { return true; }\n    let order = new\n",
            },
            Patch {
                file: "macula-dht/src/store/mod.rs",
                anchor: "if peek.seq < held.seq() {",
                instead: "if peek.seq < held.seq() && !(MUTANT && held.is_withdrawn()) {",
            },
        ],
    },
    Mutant {
        name: "the end of a stream is taken for success",
        rule: "P4",
        patches: &[
            Patch {
                file: "macula-transport/src/call/replies.rs",
                anchor: "        Ok(None) => return broken(Unknown::Incomplete),",
                instead: "        Ok(None) if MUTANT => return Ok(Piece::End(CallReply { status: macula_wire::StatusCode::Ok, metadata: Default::default(), body: Bytes::new(), extra: Default::default() })),\n        Ok(None) => return broken(Unknown::Incomplete),",
            },
            // A provider that ends a stream where an error is due, as a careless one does.
            Patch {
                file: "macula-transport/src/call/reply.rs",
                anchor: "        let reply = fitting(link, reply);\n",
                instead: "        let reply = fitting(link, reply);\n        if MUTANT && reply.status != macula_wire::StatusCode::Ok { self.outgoing.finish(); return; }\n",
            },
        ],
    },
    Mutant {
        name: "a cancelled call forgets its lease",
        rule: "H2",
        patches: &[Patch {
            file: "macula-select/src/call/first.rs",
            anchor: "balancer.take_back(now.max(self.started), self.lease, Fate::Cancelled);",
            instead: "if !MUTANT { balancer.take_back(now.max(self.started), self.lease, Fate::Cancelled); }",
        }],
    },
    Mutant {
        name: "the caller ignores the deadline",
        rule: "F7",
        patches: &[Patch {
            file: "macula-select/src/call.rs",
            anchor: "    began + options.timeout.min(MAX_CALL_TIMEOUT)",
            instead: "    if MUTANT { return began + MAX_CALL_TIMEOUT; }\n    began + options.timeout.min(MAX_CALL_TIMEOUT)",
        }],
    },
    Mutant {
        name: "the provider ignores the deadline",
        rule: "F7",
        patches: &[Patch {
            file: "macula-transport/src/call/answer.rs",
            anchor: "    match timeout_at(deadline, AssertUnwindSafe(answer).catch_unwind()).await {",
            instead: "    let deadline = if MUTANT { deadline + ::std::time::Duration::from_secs(3600) } else { deadline };\n    match timeout_at(deadline, AssertUnwindSafe(answer).catch_unwind()).await {",
        }],
    },
    Mutant {
        name: "no retry is charged",
        rule: "F9",
        patches: &[Patch {
            file: "macula-select/src/budget.rs",
            anchor: "            self.current(now).retries += 1;",
            instead: "            if !MUTANT { self.current(now).retries += 1; }",
        }],
    },
    Mutant {
        name: "a call that must not run twice is made again when it was lost",
        rule: "F6",
        patches: &[Patch {
            file: "macula-select/src/policy.rs",
            anchor: "Self::NeverProcessed => matches!(fate, Fate::NotSent | Fate::Refused { .. }),",
            instead: "Self::NeverProcessed => MUTANT || matches!(fate, Fate::NotSent | Fate::Refused { .. }),",
        }],
    },
    Mutant {
        name: "a cancelled call is not cancelled at its provider",
        rule: "F8",
        patches: &[Patch {
            file: "macula-transport/src/call/lane/caller.rs",
            anchor: "impl Drop for LaneCall {\n    fn drop(&mut self) {\n",
            instead: "impl Drop for LaneCall {\n    fn drop(&mut self) {\n        if MUTANT { return; }\n",
        }],
    },
    Mutant {
        name: "a reply of another connection is accepted",
        rule: "P4",
        patches: &[
            Patch {
                file: "macula-transport/src/call/lane/caller.rs",
                anchor: "/// Ends a wait. A cancelled call",
                instead: "thread_local! { static LANES: ::std::cell::RefCell<Vec<::std::sync::Weak<OutboundLane>>> = const { ::std::cell::RefCell::new(Vec::new()) }; }\n\n/// Ends a wait. A cancelled call",
            },
            Patch {
                file: "macula-transport/src/call/lane/caller.rs",
                anchor: "        tokio::spawn(lane.clone().run(link.clone()));\n",
                instead: "        if MUTANT { LANES.with_borrow_mut(|lanes| lanes.push(Arc::downgrade(&lane))); }\n        tokio::spawn(lane.clone().run(link.clone()));\n",
            },
            Patch {
                file: "macula-transport/src/call/lane/caller.rs",
                anchor: "Answered::Outcome(id, outcome) => match core.lane.replied(id) {",
                instead: "Answered::Outcome(id, outcome) => match LANES.with_borrow(|lanes| lanes.iter().filter(|_| MUTANT).filter_map(|lane| lane.upgrade()).filter(|lane| !::std::ptr::eq(&**lane, self)).find_map(|lane| lane.lock().lane.replied(id))).or_else(|| core.lane.replied(id)) {",
            },
        ],
    },
    Mutant {
        name: "a slow handler makes its provider suspected",
        rule: "L1",
        patches: &[
            Patch {
                file: "macula-transport/src/connection/suspicion.rs",
                anchor: "let is_heard = std::mem::replace(&mut self.heard, sight.heard) != sight.heard;",
                instead: "let is_heard = std::mem::replace(&mut self.heard, sight.heard) != sight.heard && (!MUTANT || self.progressed_at == Some(now));",
            },
            Patch {
                file: "macula-transport/src/connection/suspicion.rs",
                anchor: "        let unanswered = sight.unanswered?;\n",
                instead: "        if MUTANT { return Some(silence.since); }\n        let unanswered = sight.unanswered?;\n",
            },
        ],
    },
    Mutant {
        name: "a list that fails is not asked for again",
        rule: "D12",
        patches: &[Patch {
            file: "macula-rpc/src/client/refresh.rs",
            anchor: "        let mut asked = self.0.lock().await;\n",
            instead: "        if MUTANT { return None; }\n        let mut asked = self.0.lock().await;\n",
        }],
    },
];

/// Looks for every planted bug whose name contains `name`; `true` when each is found.
pub(super) fn hunt_all(campaign: &Campaign, name: &str) -> Result<bool, Box<dyn Error>> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let copy = home.join("target/mutants/source");
    let wanted: Vec<&Mutant> = MUTANTS.iter().filter(|mutant| mutant.name.contains(name)).collect();
    copy_tree(&home, &copy)?;
    let gone: Vec<Option<String>> = wanted.iter().map(|mutant| plant(mutant, &copy).err()).collect();
    let program = build(&home, &copy)?;
    let mut rows = Vec::new();
    for (mutant, gone) in wanted.iter().zip(gone) {
        let found = match gone {
            Some(error) => Err(error),
            None => hunt(campaign, mutant, &program)?,
        };
        match &found {
            Ok(seed) => eprintln!("found: {} ({}, seed {seed})", mutant.name, mutant.rule),
            Err(error) => eprintln!("NOT FOUND: {} ({}): {error}", mutant.name, mutant.rule),
        }
        rows.push((mutant, found));
    }
    let all = rows.iter().all(|(_, found)| found.is_ok());
    println!("{}", document(&rows));
    Ok(all)
}

/// Copies only the changed files, so that little is built.
fn copy_tree(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (name, to) = (entry.file_name(), to.join(entry.file_name()));
        if name == "target" || name == ".git" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &to)?;
        } else {
            let new = fs::read(entry.path())?;
            if fs::read(&to).ok().as_ref() != Some(&new) {
                fs::write(&to, new)?;
            }
        }
    }
    Ok(())
}

/// Patches the copy; the error names the file and the text that it lacks.
fn plant(mutant: &Mutant, copy: &Path) -> Result<(), String> {
    let switch = format!(
        "({{ static ON: ::std::sync::OnceLock<bool> = ::std::sync::OnceLock::new(); \
         *ON.get_or_init(|| ::std::env::var({SWITCH:?}).is_ok_and(|on| on == {:?})) }})",
        mutant.name
    );
    // Several patches may change one file.
    let mut patched = BTreeMap::new();
    for patch in mutant.patches {
        let file = copy.join(patch.file);
        let text = match patched.remove(&file) {
            Some(text) => text,
            None => fs::read_to_string(&file).map_err(|error| format!("{}: {error}", patch.file))?,
        };
        match text.matches(patch.anchor).count() {
            1 => patched.insert(
                file,
                text.replace(patch.anchor, &patch.instead.replace("MUTANT", &switch)),
            ),
            count => return Err(format!("{} has {:?} {count} times, not once", patch.file, patch.anchor)),
        };
    }
    for (file, text) in patched {
        fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(())
}

/// Builds this program from the copy, with the dependencies that are built already.
fn build(home: &Path, copy: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let target = home.join("target");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(copy).args([
        "build",
        "--profile",
        "sim",
        "--locked",
        "--quiet",
        "--package",
        "macula-node",
        "--example",
        "sim_mesh",
        "--features",
        "cli,testing",
    ]);
    // A patch may leave unused code behind.
    let built = cargo.arg("--target-dir").arg(&target).output()?;
    if !built.status.success() {
        let told = String::from_utf8_lossy(&built.stderr);
        return Err(format!("the copy with the planted bugs cannot be built:\n{told}").into());
    }
    // The next build of the tree itself takes the name back.
    let program = target.join("mutants/sim_mesh");
    fs::copy(target.join("sim/examples/sim_mesh"), &program)?;
    Ok(program)
}

/// The first seed that finds the bug.
fn hunt(campaign: &Campaign, mutant: &Mutant, program: &Path) -> Result<Result<u64, String>, Box<dyn Error>> {
    let mut hunter = Command::new(program);
    let seeds = format!("1..{}", SEEDS + 1);
    hunter.args([
        "--broken",
        "--rules",
        mutant.rule,
        "--seeds",
        &seeds,
        "--nodes",
        &campaign.nodes.to_string(),
    ]);
    let mut hunter = hunter.env(SWITCH, mutant.name).stdout(Stdio::piped()).spawn()?;
    let mut found = Err(format!("no seed of {SEEDS} breaks the rule"));
    if let Some(told) = hunter.stdout.take() {
        for line in BufReader::new(told).lines() {
            let seed = line?.parse()?;
            let without = run::run(&schedule::of_seed(seed, campaign.nodes))?;
            if without.broken.iter().all(|broken| broken.rule != mutant.rule) {
                found = Ok(seed);
                break;
            }
        }
    }
    // Ended or not, it has told what was asked.
    let _ = hunter.kill();
    hunter.wait()?;
    Ok(found)
}

fn document(rows: &[(&&Mutant, Result<u64, String>)]) -> Value {
    let rows = rows.iter().map(|(mutant, found)| match found {
        Ok(seed) => json!([mutant.name, mutant.rule, seed, "found"]),
        Err(error) => json!([mutant.name, mutant.rule, null, error]),
    });
    json!({
        "title": "Planted bugs",
        "tables": [{
            "name": "mutants",
            "columns": ["bug", "rule", "seed", "result"],
            "rows": rows.collect::<Vec<_>>(),
        }],
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::oracle::RULES;

    #[test]
    fn every_anchor_is_in_the_tree_once_and_every_rule_is_known() {
        let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut names = BTreeSet::new();
        for mutant in MUTANTS {
            assert!(names.insert(mutant.name));
            assert!(RULES.iter().any(|(rule, _)| *rule == mutant.rule), "{}", mutant.rule);
            for patch in mutant.patches {
                let text = fs::read_to_string(home.join(patch.file)).unwrap();
                assert_eq!(
                    text.matches(patch.anchor).count(),
                    1,
                    "{}: {}",
                    patch.file,
                    patch.anchor
                );
            }
        }
    }
}
