//! What a process uses, as the kernel counts it.

use std::fs;

/// A process's memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Resident set size: its pages in memory, shared ones included.
    pub(crate) resident: u64,
    /// Pages that are in memory for this process alone.
    pub(crate) private: u64,
}

/// The memory of a process; `None` when it is gone.
pub(crate) fn of(pid: i32) -> Option<Memory> {
    parse(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?)
}

/// The arguments that a process was started with; empty when it is gone.
pub(crate) fn command_line(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.split_terminator('\0').map(str::to_owned).collect()
}

/// Reads `/proc/<pid>/smaps_rollup` (proc(5)): lines such as `Private_Dirty:     128 kB`.
fn parse(text: &str) -> Option<Memory> {
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Some(Memory { resident: field("Rss")?, private: field("Private_Clean")? + field("Private_Dirty")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_of_its_own() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let used = of(pid).unwrap();
        assert!(used.private > 0 && used.private <= used.resident, "{used:?}");
        assert!(!command_line(pid).is_empty());
        assert_eq!(of(-1), None);
    }
}
