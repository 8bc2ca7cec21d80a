//! The layers: which package may depend on which, and what the cores may reach.
//!
//! Three checks. *Edges*: each dependency of one of our packages on another, of any kind, is an arrow of [`HOUSE`].
//! *Reach*: the normal dependencies of a core, with every feature on and resolved for that package alone, hold nothing
//! of [`UNREACHABLE`]. *Words*: a core's shipped source names no clock, lock, thread, channel or randomness. That holds
//! for every file of a core package, and for every module elsewhere whose documentation says [`CORE_MODULE`].
//!
//! Left out: build-time code. A procedural macro of a core may depend on what it likes; it never runs in the core.

use std::path::Path;
use std::sync::LazyLock;

use anyhow::Result;
use regex::Regex;

use crate::finding::{Finding, report};
use crate::house::HOUSE;
use crate::metadata::{Package, packages};
use crate::modules;
use crate::source::{self, Source, matches, pattern};
use crate::workspace::{cargo, display, files, output, root};

/// Unpublished packages inside a crate's folder that are built with the workspace, and the packages they may use. They are
/// examples that generate code in a build script, as a user's crate does; no crate of the house does.
const GUESTS: &[(&str, &[&str])] = &[("macula-examples-tonic", &["macula-node"])];

/// Packages that are a core from their first line to their last.
const CORES: &[&str] = &["macula-select", "macula-dht"];

/// Begins a line of a module's documentation. The module is then a core, though its package is not.
const CORE_MODULE: &str = "A core:";

/// Packages that a core must not reach: runtimes, QUIC, TLS and everything that asks the system for randomness. Generators
/// that take a seed (`rand_core`, `rand_chacha`, …) are allowed.
const UNREACHABLE: &[&str] = &[
    "async-std",
    "aws-lc-rs",
    "fastrand",
    "getrandom",
    "mio",
    "openssl",
    "quinn",
    "quinn-proto",
    "quinn-udp",
    "rand",
    "ring",
    "rustls",
    "smol",
    "tokio",
];

/// Runs the three checks over the workspace, and [`modules::check`].
pub(crate) fn check() -> Result<()> {
    let packages = packages()?;
    let mut findings = edges(&packages);
    for core in CORES {
        let mut tree = cargo();
        tree.args(["tree", "--locked", "--package", core, "--edges", "normal,no-proc-macro"]);
        tree.args([
            "--all-features",
            "--target",
            "all",
            "--prefix",
            "depth",
            "--format",
            "{p}",
        ]);
        findings.extend(reach(core, &output(&mut tree)?));
    }
    let mut cores = 0;
    for (package, _) in HOUSE.iter().filter(|(name, _)| *name != "xtask") {
        let sources = source::read(&files(&root().join(package).join("src"), "rs")?)?;
        for core in sources.iter().filter(|it| CORES.contains(package) || is_core(it)) {
            cores += 1;
            findings.extend(words(core));
        }
    }
    report(findings)?;
    println!(
        "{} packages keep to their layers, {cores} files of cores are pure",
        packages.len()
    );
    modules::check()
}

/// The edges between our packages that are not arrows.
fn edges(packages: &[Package]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in packages {
        let Some((_, allowed)) = HOUSE.iter().chain(GUESTS).find(|(name, _)| *name == package.name) else {
            let folder = Path::new(&package.manifest_path).parent().unwrap_or(Path::new(""));
            findings.push(Finding::new(
                display(folder),
                format!("the package {} has no place in the house", package.name),
                "make it a module of the layer it belongs to, or an unpublished package outside the workspace",
            ));
            continue;
        };
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            let ours = HOUSE.iter().any(|(it, _)| *it == name) || packages.iter().any(|it| it.name == name);
            if ours && !allowed.contains(&name) {
                let kind = dependency.kind.as_deref().unwrap_or("normal");
                findings.push(Finding::new(
                    format!("{} → {name}", package.name),
                    format!("this {kind} dependency is not one of the arrows of the house"),
                    mend_edge(&package.name, allowed),
                ));
            }
        }
    }
    findings
}

fn mend_edge(package: &str, allowed: &[&str]) -> String {
    if allowed.is_empty() {
        format!("{package} depends on nothing of ours: pass what it needs as an argument or a trait")
    } else {
        let allowed = allowed.join(", ");
        format!("{package} may use {allowed}; put a trait in {package} and let a layer above implement it")
    }
}

/// The forbidden packages in the output of `cargo tree --prefix depth`, each with the way to it.
fn reach(core: &str, tree: &str) -> Vec<Finding> {
    let mut way: Vec<&str> = Vec::new();
    let mut findings = Vec::new();
    for line in tree.lines() {
        let name = line.trim_start_matches(|c: char| c.is_ascii_digit());
        let Ok(depth) = line[..line.len() - name.len()].parse::<usize>() else {
            continue;
        };
        let name = name.split_whitespace().next().unwrap_or_default();
        way.truncate(depth);
        way.push(name);
        if UNREACHABLE.contains(&name) {
            findings.push(Finding::new(
                way.join(" → "),
                format!("{core} is a core and reaches {name}"),
                "turn off the feature that brings it in, or move the code that needs it into a layer above",
            ));
        }
    }
    findings
}

fn is_core(source: &Source) -> bool {
    source.module_docs().any(|line| line.starts_with(CORE_MODULE))
}

/// Words that show an effect, and the remedy.
static WORDS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        (r"\b(?:Instant|SystemTime)::now\b", "take the time as an argument"),
        (
            r"\b(?:thread_rng|OsRng|SysRng|from_os_rng|from_entropy|getrandom|RandomState)\b",
            "take a seed as an argument",
        ),
        (
            r"\bstd::thread\b|\bthread::(?:spawn|sleep|scope|park)\b|\bthread_local!",
            "threads belong to the shell",
        ),
        (
            r"\b(?:tokio|quinn|futures)\b|\basync\b|\.await\b",
            "async belongs to the shell",
        ),
        (
            r"\b(?:Mutex|RwLock|Condvar|mpsc)\b",
            "take `&mut self` and let the shell own the lock or the channel",
        ),
        (
            r"\b(?:UdpSocket|TcpStream|TcpListener)\b",
            "give messages back from `poll_…` and let the shell send them",
        ),
    ]
    .into_iter()
    .map(|(words, mend)| (pattern(words), mend))
    .collect()
});

/// The words of [`WORDS`] in the part of a core's source that ships.
fn words(source: &Source) -> Vec<Finding> {
    let found = WORDS.iter().flat_map(|(words, mend)| {
        let hits = matches(&source.shipped, words);
        hits.map(move |(line, word)| {
            let place = format!("{}:{line}", source.path);
            Finding::new(place, format!("`{word}` in a core"), *mend)
        })
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Dependency;

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Package {
        Package {
            name: name.to_owned(),
            manifest_path: root().join(name).join("Cargo.toml").to_string_lossy().into_owned(),
            dependencies: dependencies
                .iter()
                .map(|(name, kind)| Dependency {
                    name: (*name).to_owned(),
                    kind: kind.map(str::to_owned),
                })
                .collect(),
            ..Package::default()
        }
    }

    fn places(findings: &[Finding]) -> Vec<&str> {
        findings.iter().map(|it| it.place.as_str()).collect()
    }

    #[test]
    fn every_arrow_of_the_house_is_allowed_and_points_down() {
        for (at, (name, allowed)) in HOUSE.iter().enumerate() {
            let arrows: Vec<_> = allowed.iter().map(|it| (*it, None)).collect();
            assert_eq!(edges(&[package(name, &arrows)]), []);
            let below: Vec<_> = HOUSE[..at].iter().map(|(name, _)| name).collect();
            assert!(allowed.iter().all(|it| below.contains(&it)), "{name} points up");
        }
    }

    #[test]
    fn an_edge_against_the_arrows_is_found_whatever_its_kind() {
        for kind in [None, Some("dev"), Some("build")] {
            let found = edges(&[package("macula-dht", &[("macula-select", kind), ("bytes", None)])]);
            assert_eq!(places(&found), ["macula-dht → macula-select"]);
            assert!(found[0].wrong.contains(kind.unwrap_or("normal")));
        }
    }

    #[test]
    fn the_bottom_depends_on_nothing_of_ours_and_nothing_on_xtask() {
        let found = edges(&[
            package("macula-wire", &[("macula-select", Some("dev"))]),
            package("xtask", &[("macula-wire", None)]),
            package("macula-node", &[("xtask", Some("build"))]),
        ]);
        let expected = [
            "macula-wire → macula-select",
            "xtask → macula-wire",
            "macula-node → xtask",
        ];
        assert_eq!(places(&found), expected);
    }

    #[test]
    fn a_package_without_a_place_is_found() {
        let found = edges(&[package("macula-extra", &[])]);
        assert_eq!(places(&found), ["macula-extra"]);
    }

    #[test]
    fn reach_shows_the_way_to_a_forbidden_package() {
        let tree = "0macula-dht v0.1.0 (/x)\n1macula-wire v0.1.0 (/y)\n2ed25519-dalek v3.0.0\n3rand_core v0.10.0\n\
                    4getrandom v0.4.3\n2bytes v1.12.1\n1rand v0.9.0 (*)\n";
        let found = reach("macula-dht", tree);
        assert_eq!(
            places(&found),
            [
                "macula-dht → macula-wire → ed25519-dalek → rand_core → getrandom",
                "macula-dht → rand",
            ]
        );
    }

    #[test]
    fn reach_is_silent_about_seeded_generators_and_blank_lines() {
        assert_eq!(
            reach("macula-select", "0macula-select v0.1.0 (/x)\n1rand_chacha v0.9.0\n\n"),
            []
        );
    }

    #[test]
    fn words_of_an_effect_are_found_where_they_ship_only() {
        let text = "//! No `Mutex`, see std::thread.\nuse std::time::Instant;\nfn f() { let _ = Instant::now(); }\n\
                    async fn g() {}\nuse std::sync::Mutex;\n#[cfg(test)]\nmod tests { use tokio::x; }\n";
        let found = words(&Source::new("macula-dht/src/a.rs", text));
        assert_eq!(
            places(&found),
            [
                "macula-dht/src/a.rs:3",
                "macula-dht/src/a.rs:4",
                "macula-dht/src/a.rs:5"
            ]
        );
    }

    #[test]
    fn a_module_says_that_it_is_a_core() {
        assert!(is_core(&Source::new(
            "a",
            "//! The pool's policy.\n//!\n//! A core: no clock, no lock.\nuse b;\n"
        )));
        assert!(!is_core(&Source::new(
            "a",
            "//! Drives a core.\n\n/// A core: x\nfn f() {}\n//! A core: y\n"
        )));
    }

    #[test]
    fn time_as_an_argument_and_words_that_merely_look_alike_are_fine() {
        let text = "fn f(now: Instant, thread: Thread, asynchronous: u8, mutexes: M) { now.elapsed_since(x) }";
        assert_eq!(words(&Source::new("macula-dht/src/a.rs", text)), []);
    }
}
