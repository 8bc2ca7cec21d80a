//! What a run that was killed left behind: processes, namespaces, mounts, folders, containers, networks, images.
//!
//! Everything that a run makes has a name that begins with one of [`NAMES`] and the run's process id. What belongs to a run that
//! lives is left alone, and so is every other name.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal, kill_process};

use super::hosts::tool;

/// The names of namespaces, and of folders, containers, networks and images.
const NAMES: [&str; 2] = ["macula", "macula-cluster-"];
/// The repository of the images, whose tag is `cluster-` and the run's id.
pub(super) const IMAGE: &str = "macula:cluster-";

/// What the names of this run's things begin with.
pub(super) fn own_name() -> String {
    format!("{}{}", NAMES[1], std::process::id())
}

/// What the names of this run's network namespaces begin with.
pub(super) fn own_namespaces() -> String {
    format!("{}{}", NAMES[0], std::process::id())
}

/// The run that made a thing of this name.
fn run_of(name: &str, prefix: &str) -> Option<u32> {
    let rest = name.strip_prefix(prefix)?;
    let (id, rest) = rest.split_at(rest.find(|it: char| !it.is_ascii_digit()).unwrap_or(rest.len()));
    (rest.is_empty() || rest.starts_with('-')).then_some(())?;
    id.parse().ok()
}

/// Whether a run has ended. Its id may be another program's by now.
fn is_over(run: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{run}/comm")).unwrap_or_default();
    name.trim() != "xtask"
}

/// Removes what runs that are over have left, and gives a name for each thing.
pub(super) fn remove() -> Vec<String> {
    let mut removed = BTreeSet::new();
    for folder in folders() {
        end_processes(&folder);
        unmount(&folder);
        if fs::remove_dir_all(&folder).is_ok() {
            removed.insert(folder.display().to_string());
        }
    }
    let lines = |words: &[&str]| -> Vec<String> {
        let said = tool(words).unwrap_or_default();
        said.lines().map(|line| line.trim().to_owned()).collect()
    };
    let over = |name: &str, prefix| run_of(name, prefix).is_some_and(is_over);
    for name in lines(&["ip", "netns", "list"]) {
        let name = name.split_whitespace().next().unwrap_or_default();
        if over(name, NAMES[0]) {
            for pid in lines(&["ip", "netns", "pids", name]) {
                end(pid.parse().ok());
            }
            remove_one(&mut removed, name, &["ip", "netns", "delete", name]);
        }
    }
    for name in lines(&["docker", "ps", "--all", "--format", "{{.Names}}"]) {
        if over(&name, NAMES[1]) {
            remove_one(&mut removed, &name, &["docker", "rm", "--force", &name]);
        }
    }
    for name in lines(&["docker", "network", "ls", "--format", "{{.Name}}"]) {
        if over(&name, NAMES[1]) {
            remove_one(&mut removed, &name, &["docker", "network", "rm", &name]);
        }
    }
    for name in lines(&["docker", "images", "--format", "{{.Repository}}:{{.Tag}}"]) {
        if over(&name, IMAGE) {
            remove_one(&mut removed, &name, &["docker", "rmi", &name]);
        }
    }
    removed.into_iter().collect()
}

fn remove_one(removed: &mut BTreeSet<String>, name: &str, words: &[&str]) {
    if tool(words).is_ok() {
        removed.insert(name.to_owned());
    }
}

/// The folders of runs that are over.
fn folders() -> Vec<PathBuf> {
    let entries = fs::read_dir(env::temp_dir()).into_iter().flatten().flatten();
    let names = entries.filter(|entry| {
        let name = entry.file_name();
        run_of(&name.to_string_lossy(), NAMES[1]).is_some_and(is_over)
    });
    // One that was kept on purpose says so.
    let paths = names.map(|entry| entry.path());
    paths.filter(|path| !path.join(KEPT).exists()).collect()
}

/// The file in a folder that is to stay.
pub(super) const KEPT: &str = "kept";

/// Ends the programs that keep their files in a folder of a run that is over.
fn end_processes(folder: &Path) {
    let folder = folder.to_string_lossy();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if line.split('\0').any(|argument| argument.starts_with(folder.as_ref())) {
            end(process.file_name().to_string_lossy().parse().ok());
        }
    }
}

fn end(pid: Option<i32>) {
    if let Some(pid) = pid.and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn unmount(folder: &Path) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let at = mounts.lines().filter_map(|line| line.split_whitespace().nth(1));
    for at in at.filter(|at| Path::new(at).starts_with(folder)) {
        let _ = tool(&["umount", "-l", at]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_suite_belong_to_a_run() {
        assert_eq!(run_of("macula12-net", NAMES[0]), Some(12));
        assert_eq!(run_of("macula-cluster-12-3", NAMES[1]), Some(12));
        assert_eq!(run_of("macula:cluster-12", IMAGE), Some(12));
        for other in [
            "macula",
            "macula-12",
            "macula12x",
            "maculator",
            "other12",
            "macula-cluster-x",
        ] {
            assert_eq!(run_of(other, NAMES[0]), None, "{other}");
        }
        assert_eq!(run_of("macula-cluster-12abc", NAMES[1]), None);
    }

    #[test]
    fn a_run_that_lives_is_left_alone() {
        assert!(is_over(u32::MAX));
    }
}
