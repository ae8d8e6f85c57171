//! What the machine has.

use std::fs;
use std::path::Path;

/// Bytes of memory that the machine has, or that the groups which this process is in may take, as far as the system tells.
pub(super) fn memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    kilobytes.map_or(u64::MAX, |n| n * 1024).min(of_groups(Path::new("/sys/fs/cgroup"), &groups))
}

/// The least that the control groups (version 2) of a process allow, which lie in each other; `groups` is what the system says of them.
fn of_groups(root: &Path, groups: &str) -> u64 {
    let Some(group) = groups.lines().find_map(|line| line.strip_prefix("0::/")) else { return u64::MAX };
    let inside = root.join(group);
    let inside = inside.ancestors().take_while(|group| group.starts_with(root));
    // Without a limit it says `max`.
    let limit = |group: &Path| fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok();
    inside.filter_map(limit).min().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_a_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        let of = |groups| of_groups(root.path(), groups);
        assert_eq!(of("0::/a/b\n"), u64::MAX);
        fs::write(root.path().join("a/memory.max"), "5000\n").unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        assert_eq!(of("0::/a/b\n"), 5000);
        fs::write(inner.join("memory.max"), "4000\n").unwrap();
        assert_eq!(of("1:cpu:/x\n0::/a/b\n"), 4000);
        assert_eq!(of("0::/\n"), u64::MAX);
        assert_eq!(of(""), u64::MAX);
    }
}
