//! What each process tells of itself, out of `/proc/self`.

use crate::Exposition;

/// The unit of `/proc/self/stat`: the kernel's `USER_HZ`, which user space always sees as this.
const TICKS_PER_SECOND: f64 = 100.0;
/// Places in `/proc/PID/stat`.
const USER_TIME: usize = 14;
const SYSTEM_TIME: usize = 15;
const STARTED: usize = 22;

impl Exposition {
    /// Adds the numbers of this process, as every Prometheus client shows them. One that the kernel does not show is
    /// left out.
    pub fn process(&mut self) {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
        let status = read("status");
        if let Some(bytes) = kibibytes(&status, "VmRSS:") {
            self.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", bytes);
        }
        if let Some(bytes) = kibibytes(&status, "VmSize:") {
            self.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", bytes);
        }
        let stat = read("stat");
        let booted = std::fs::read_to_string("/proc/stat").ok().and_then(|stat| boot_time(&stat));
        if let (Some(booted), Some([started])) = (booted, fields(&stat, [STARTED])) {
            let help = "Start time of the process since unix epoch in seconds.";
            self.gauge("process_start_time_seconds", help, booted as f64 + started as f64 / TICKS_PER_SECOND);
        }
        if let Some([user, system]) = fields(&stat, [USER_TIME, SYSTEM_TIME]) {
            let seconds = (user + system) as f64 / TICKS_PER_SECOND;
            let help = "Total user and system CPU time spent in seconds.";
            self.counter("process_cpu_seconds_total", help, seconds);
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            // The directory itself is open while it is read.
            self.gauge(
                "process_open_fds",
                "Number of open file descriptors.",
                open.count().saturating_sub(1),
            );
        }
        if let Some(most) = files_max(&read("limits")) {
            self.gauge("process_max_fds", "Maximum number of open file descriptors.", most);
        }
    }
}

/// A size out of `/proc/PID/status`.
fn kibibytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// Numbers out of `/proc/PID/stat`, by their place as proc(5) counts them.
fn fields<const N: usize>(stat: &str, places: [usize; N]) -> Option<[u64; N]> {
    // The second field is the command's name in parentheses and may itself hold any character.
    let (_, rest) = stat.rsplit_once(')')?;
    let rest: Vec<&str> = rest.split_ascii_whitespace().collect();
    let mut found = [0; N];
    for (found, place) in found.iter_mut().zip(places) {
        *found = rest.get(place.checked_sub(3)?)?.parse().ok()?;
    }
    Some(found)
}

/// When the machine began, in seconds since the Unix epoch, out of `/proc/stat`.
fn boot_time(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// The soft limit of open files out of `/proc/PID/limits`.
fn files_max(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_tells_what_the_kernel_shows() {
        let mut out = Exposition::default();
        out.process();
        let text = out.finish();
        for name in [
            "process_resident_memory_bytes ",
            "process_virtual_memory_bytes ",
            "process_cpu_seconds_total ",
            "process_open_fds ",
            "process_max_fds ",
            "process_start_time_seconds ",
        ] {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            assert!(line.parse::<f64>().is_ok_and(|value| value >= 0.0), "{name}: {text}");
        }
    }

    #[test]
    fn a_process_began_after_its_machine_and_before_now() {
        let mut out = Exposition::default();
        out.process();
        let text = out.finish();
        let started = text.lines().find_map(|line| line.strip_prefix("process_start_time_seconds ")).unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - started.parse::<f64>().unwrap();
        // The kernel tells when it began in whole seconds.
        assert!((-2.0..600.0).contains(&age), "{age} s old");
    }

    #[test]
    fn fields_are_counted_behind_the_name() {
        assert_eq!(fields("1 (a) b) R 4 5", [3 + 1, 5]), Some([4, 5]));
        assert_eq!(fields("1 (a) b) R 4 5", [6]), None);
        assert_eq!(fields("1 (a", [4]), None);
        assert_eq!(boot_time("cpu 1\nbtime 1700000000\n"), Some(1_700_000_000));
    }
}
