//! The machine as the kernel describes it: processors, memory, file systems, processes. Measured anew on each
//! question; what cannot be read is nothing.

use std::fs;
use std::path::Path;

/// A small file's text; empty if it cannot be read.
pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Processors that this process may use.
pub(crate) fn cpus() -> i64 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as i64)
}

/// A line of /proc/meminfo, in bytes.
pub(crate) fn memory(key: &str) -> u64 {
    let text = read("/proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kibibytes = line.and_then(|l| l.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// Devices and files that the host swaps to.
pub(crate) fn swap() -> Vec<String> {
    swap_of(&read("/proc/swaps"))
}

/// The first column of /proc/swaps, without its title.
fn swap_of(table: &str) -> Vec<String> {
    let lines = table.lines().skip(1);
    lines.filter_map(|line| line.split_ascii_whitespace().next().map(str::to_owned)).collect()
}

/// A file system's size and what is left of it for others than root.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Storage {
    pub(crate) total_bytes: u64,
    /// What others than root can have of it at most: what is reserved is nobody's to be short of.
    pub(crate) usable_bytes: u64,
    pub(crate) available_bytes: u64,
    /// 0: it has as many as it needs.
    pub(crate) inodes: u64,
    pub(crate) inodes_free: u64,
}

/// The file system that a path lies on.
pub(crate) fn storage(path: &Path) -> Option<Storage> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    let block = stat.fragment_size();
    Some(Storage {
        total_bytes: stat.blocks() * block,
        usable_bytes: (stat.blocks() - stat.blocks_free() + stat.blocks_available()) * block,
        available_bytes: stat.blocks_available() * block,
        inodes: stat.files(),
        inodes_free: stat.files_free(),
    })
}

/// Processes and threads that exist, and how many may.
pub(crate) fn processes() -> Option<(u64, u64)> {
    let most = |name: &str| read(&format!("/proc/sys/kernel/{name}")).parse::<u64>().ok();
    let max = most("pid_max")?.min(most("threads-max")?);
    let load = read("/proc/loadavg");
    let running = load.split_ascii_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some((running, max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_what_the_kernel_lists() {
        assert!(swap_of("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n").is_empty());
        assert!(swap_of("").is_empty());
        let table = "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n/swap file 1 0 -3\n";
        assert_eq!(swap_of(table), ["/dev/sda2", "/swap"]);
    }
}
