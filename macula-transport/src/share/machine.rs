//! How much memory this process may use: the machine's, or less where a control group limits it.
//!
//! Left out: memory that other processes use, and limits that are set while this process runs.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The part of the memory that peers may fill by default, as a divisor. The rest is for the application, for connections that
/// hold nothing, and for what the allocator keeps.
const FRACTION: u64 = 4;
/// The default is at least this much, in bytes: the messages of some peers at a time.
const MIN_MEMORY_BYTES: u64 = 64 << 20;
/// The memory that is assumed where the system does not tell, in bytes.
const ASSUMED_MEMORY_BYTES: u64 = 1 << 30;

/// The bytes that all peers together may make this node keep, unless it is told otherwise: see
/// [`Limits::memory_bytes`](crate::Limits::memory_bytes).
pub(crate) fn default_memory_bytes() -> u64 {
    static BYTES: OnceLock<u64> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let memory = usable(Path::new("/")).unwrap_or(ASSUMED_MEMORY_BYTES);
        (memory / FRACTION).max(MIN_MEMORY_BYTES)
    })
}

/// The least of the machine's memory and of the limits of this process's control groups and those above them, in bytes.
fn usable(root: &Path) -> Option<u64> {
    let machine = fs::read_to_string(root.join("proc/meminfo")).ok();
    let machine = machine.as_deref().and_then(total);
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().filter_map(|line| limit(root, line));
    machine.into_iter().chain(limits).min()
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// The least memory limit on the way from a control group up to the root. `line` is of `/proc/self/cgroup`, whose format
/// cgroups(7) describes: `0::PATH` of version 2, `N:CONTROLLERS:PATH` of version 1.
fn limit(root: &Path, line: &str) -> Option<u64> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    let (tree, file) = match controllers {
        "" => ("sys/fs/cgroup", "memory.max"),
        _ if controllers.split(',').any(|it| it == "memory") => ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        _ => return None,
    };
    let tree = root.join(tree);
    // A container may see its own group as the root, whatever the path says.
    let own = path.trim_start_matches('/');
    let groups = Path::new(own).ancestors().map(|group| tree.join(group));
    groups.filter_map(|group: PathBuf| read(&group.join(file))).min()
}

/// A limit; `None` when there is none, which version 2 writes as `max` and version 1 as a very large number.
fn read(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with these files.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:        8000000 kB\nMemFree: 17 kB\n");

    #[test]
    fn x6_the_memory_is_the_machines_where_no_group_limits_it() {
        assert_eq!(usable(machine(&[MEMINFO]).path()), Some(8_192_000_000));
        let unlimited = [
            MEMINFO,
            ("proc/self/cgroup", "0::/system/a\n"),
            ("sys/fs/cgroup/system/a/memory.max", "max\n"),
        ];
        assert_eq!(usable(machine(&unlimited).path()), Some(8_192_000_000));
        assert_eq!(usable(machine(&[]).path()), None);
    }

    #[test]
    fn x6_a_limit_of_a_group_or_of_one_above_it_counts() {
        let v2 = [
            MEMINFO,
            ("proc/self/cgroup", "0::/pod/container\n"),
            ("sys/fs/cgroup/pod/container/memory.max", "536870912\n"),
            ("sys/fs/cgroup/pod/memory.max", "268435456\n"),
        ];
        assert_eq!(usable(machine(&v2).path()), Some(256 << 20));
        let v1 = [
            MEMINFO,
            ("proc/self/cgroup", "5:cpu,cpuacct:/docker/a\n4:memory:/docker/a\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "134217728\n"),
        ];
        assert_eq!(usable(machine(&v1).path()), Some(128 << 20));
    }

    #[test]
    fn x6_the_default_is_never_less_than_a_few_messages() {
        assert!(default_memory_bytes() >= MIN_MEMORY_BYTES);
    }
}
