//! The files of each crate: which file takes names from which, and that they make no circle of more than two files.
//!
//! Two files that need each other are one thought in two files. Three or more are a knot: none of them can be read, tested
//! or changed alone. A circle is a strongly connected component of the graph that [`tree::Crate`] reads from the sources.
//!
//! A struct of more than [`MAX_FIELDS`] fields says in its documentation why it needs them.
//!
//! Left out: calls of methods. A type whose methods lie in many files ties those files together without a `use`.

mod tree;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use petgraph::{algo::tarjan_scc, graphmap::DiGraphMap};

use self::tree::{Crate, FileId};
use crate::finding::{Finding, report};
use crate::house::HOUSE;
use crate::workspace::{display, files, root};

/// The largest circle of files that stands.
const MAX_CIRCLE: usize = 2;

/// The most fields a struct has without a reason.
const MAX_FIELDS: usize = 20;

/// A larger struct's documentation has a sentence with this word: why it has so many.
const REASON: &str = "fields";

/// The names that tie each pair of files.
type Edges = BTreeMap<(FileId, FileId), BTreeSet<String>>;

/// Checks every crate of the house, and prints how its files hang together.
pub(crate) fn check() -> Result<()> {
    let mut findings = Vec::new();
    for (package, _) in HOUSE {
        for start in crate_roots(&root().join(package).join("src"))? {
            let it = Crate::read(&start, &|path| fs::read_to_string(path).ok())?;
            let edges = edges(&it);
            let circles = circles(&edges);
            println!("{}", summary(&display(&start), it.files.len(), &edges, &circles));
            findings.extend(knots(&it, &edges, &circles));
            findings.extend(wide_structs(&it));
        }
    }
    report(findings)
}

/// The root files below a package's `src`: its library, its program, and its further programs.
fn crate_roots(src: &Path) -> Result<Vec<PathBuf>> {
    let is_root = |path: &PathBuf| {
        let inner: Vec<_> = path.strip_prefix(src).unwrap_or(path).iter().collect();
        let inner: Vec<_> = inner.iter().filter_map(|it| it.to_str()).collect();
        matches!(inner[..], ["lib.rs" | "main.rs"] | ["bin", _] | ["bin", _, "main.rs"])
    };
    Ok(files(src, "rs")?.into_iter().filter(is_root).collect())
}

fn edges(it: &Crate) -> Edges {
    let mut edges = Edges::new();
    for reference in it.references() {
        let names = edges.entry((reference.from, reference.to)).or_default();
        names.insert(reference.name);
    }
    edges
}

fn summary(name: &str, files: usize, edges: &Edges, circles: &[Vec<FileId>]) -> String {
    let sizes: Vec<_> = circles.iter().map(|it| it.len().to_string()).collect();
    let shown = if sizes.is_empty() {
        "no circle".to_owned()
    } else {
        format!("circles of {} files", sizes.join(", "))
    };
    format!("{name}: {files} files, {} edges, {shown}", edges.len())
}

/// The sets of at least two files that reach each other, largest first.
fn circles(edges: &Edges) -> Vec<Vec<FileId>> {
    let graph = DiGraphMap::<FileId, ()>::from_edges(edges.keys().copied());
    let mut circles = tarjan_scc(&graph);
    circles.retain(|it| it.len() > 1);
    circles.iter_mut().for_each(|it| it.sort_unstable());
    circles.sort_by_key(|it| (Reverse(it.len()), it.clone()));
    circles
}

/// A finding for each circle that is too large: its edges with the names that tie them, and the fewest to turn.
fn knots(it: &Crate, edges: &Edges, circles: &[Vec<FileId>]) -> Vec<Finding> {
    let src = it.files[0].parent().unwrap_or(Path::new(""));
    let shown = |file: FileId| display(it.files[file].strip_prefix(src).unwrap_or(&it.files[file]));
    let knots = circles.iter().filter(|it| it.len() > MAX_CIRCLE);
    let findings = knots.map(|circle| {
        let order = layered(circle, edges);
        let place = |file: &FileId| order.iter().position(|it| it == file);
        let inside = edges
            .iter()
            .filter(|((from, to), _)| circle.contains(from) && circle.contains(to));
        let (up, down): (Vec<_>, Vec<_>) = inside.partition(|((from, to), _)| place(from) > place(to));
        let lines = |edges: Vec<(&(FileId, FileId), &BTreeSet<String>)>| -> String {
            let line = |((from, to), names): (&(FileId, FileId), &BTreeSet<String>)| {
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                format!("\n      {} → {}: {}", shown(*from), shown(*to), names.join(", "))
            };
            edges.into_iter().map(line).collect()
        };
        let order: Vec<_> = order.iter().map(|it| shown(*it)).collect();
        Finding::new(
            display(src),
            format!("{} files import each other in a circle", circle.len()),
            format!(
                "an order that leaves few imports against it, upper files first: {}\n    \
                 to open: move these names down, or hand the upper file in as a trait or an argument{}\n    \
                 the other imports of the circle:{}",
                order.join(", "),
                lines(up),
                lines(down)
            ),
        )
    });
    findings.collect()
}

/// The files of a circle in an order that few imports run against.
///
/// The greedy heuristic of Eades, Lin and Smyth (Information Processing Letters 47(6), 1993), with names as weights.
fn layered(circle: &[FileId], edges: &Edges) -> Vec<FileId> {
    let mut left: BTreeSet<FileId> = circle.iter().copied().collect();
    let (mut top, mut bottom) = (Vec::new(), Vec::new());
    while !left.is_empty() {
        let weigh = |file: FileId| {
            let (mut out, mut into) = (0_usize, 0_usize);
            for ((from, to), names) in edges
                .iter()
                .filter(|((from, to), _)| left.contains(from) && left.contains(to))
            {
                out += if *from == file { names.len() } else { 0 };
                into += if *to == file { names.len() } else { 0 };
            }
            (out, into)
        };
        let weights: Vec<_> = left.iter().map(|it| (*it, weigh(*it))).collect();
        let sink = weights.iter().find(|(_, (out, _))| *out == 0);
        let upper = weights
            .iter()
            .max_by_key(|(_, (out, into))| out.cast_signed() - into.cast_signed());
        match (sink, upper) {
            (Some((file, _)), _) => {
                bottom.push(*file);
                left.remove(file);
            }
            (None, Some((file, _))) => {
                top.push(*file);
                left.remove(file);
            }
            (None, None) => break,
        }
    }
    top.extend(bottom.into_iter().rev());
    top
}

fn wide_structs(it: &Crate) -> Vec<Finding> {
    let wide = it.structs.iter().filter(|it| it.fields > MAX_FIELDS);
    let unexplained = wide.filter(|it| !it.docs.split(|c: char| !c.is_alphanumeric()).any(|word| word == REASON));
    let findings = unexplained.map(|found| {
        Finding::new(
            display(&it.files[found.file]),
            format!("{} has {} fields, the limit is {MAX_FIELDS}", found.name, found.fields),
            format!("group what belongs together, or say in its documentation why it has so many {REASON}"),
        )
    });
    findings.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(FileId, FileId)]) -> Edges {
        edges
            .iter()
            .map(|edge| (*edge, BTreeSet::from(["x".to_owned()])))
            .collect()
    }

    fn read(files: &[(&str, &str)]) -> Crate {
        let text = |path: &Path| {
            let found = files.iter().find(|(it, _)| Path::new(it) == path);
            found.map(|(_, text)| (*text).to_owned())
        };
        Crate::read(Path::new("lib.rs"), &text).unwrap()
    }

    fn findings(files: &[(&str, &str)]) -> Vec<Finding> {
        let it = read(files);
        let edges = edges(&it);
        let mut all = knots(&it, &edges, &circles(&edges));
        all.extend(wide_structs(&it));
        all
    }

    #[test]
    fn circles_are_found_whatever_leads_into_them() {
        let edges = graph(&[(0, 1), (1, 2), (2, 3), (3, 1), (3, 4), (4, 5), (5, 4), (6, 6)]);
        assert_eq!(circles(&edges), [vec![1, 2, 3], vec![4, 5]]);
        assert_eq!(circles(&graph(&[(0, 1), (1, 2), (0, 2)])), [[0; 0]; 0]);
    }

    #[test]
    fn two_files_may_need_each_other_and_three_may_not() {
        let lib = ("lib.rs", "mod a; mod b; mod c;");
        let pair = [
            lib,
            ("a.rs", "use crate::b::B; pub struct A;"),
            ("b.rs", "use crate::a::A; pub struct B;"),
            ("c.rs", "use crate::a::A; pub struct C;"),
        ];
        assert_eq!(findings(&pair), []);
        let knot = [
            lib,
            ("a.rs", "use crate::b::{B, B2}; pub struct A;"),
            ("b.rs", "use crate::c::{C, C2}; pub struct B; pub struct B2;"),
            ("c.rs", "use crate::a::A; pub struct C; pub struct C2;"),
        ];
        let found = findings(&knot);
        assert_eq!(found.len(), 1);
        let (open, other) = found[0].mend.split_once("the other imports").unwrap();
        assert!(open.contains("upper files first: a.rs, b.rs, c.rs"), "{open}");
        assert!(open.contains("\n      c.rs → a.rs: A"), "{open}");
        assert!(
            other.contains("a.rs → b.rs: B, B2") && other.contains("b.rs → c.rs: C, C2"),
            "{other}"
        );
    }

    #[test]
    fn a_large_struct_says_why() {
        let fields: String = (0..21).map(|it| format!("f{it}: u8,")).collect();
        let large = format!("/// A thing.\nstruct Thing {{ {fields} }}");
        assert_eq!(findings(&[("lib.rs", &large)]).len(), 1);
        let explained = format!("/// A thing. Its fields are one line of the protocol each.\n{large}");
        assert_eq!(findings(&[("lib.rs", &explained)]), []);
        let small: String = (0..20).map(|it| format!("f{it}: u8,")).collect();
        assert_eq!(findings(&[("lib.rs", &format!("struct Thing {{ {small} }}"))]), []);
    }

    #[test]
    fn the_summary_counts_edges_and_circles() {
        let edges = graph(&[(0, 1), (1, 0), (2, 0)]);
        let shown = summary("a/src/lib.rs", 3, &edges, &circles(&edges));
        assert_eq!(shown, "a/src/lib.rs: 3 files, 3 edges, circles of 2 files");
        assert!(summary("a", 1, &Edges::new(), &[]).ends_with("no circle"));
    }
}
