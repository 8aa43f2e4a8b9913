//! What server processes use, seen from outside: processor time, memory, bytes written, fsyncs of the log.

use std::fs;
use std::ops::Sub;

use nix::unistd::{SysconfVar, sysconf};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::memory;

/// What is asked of `/metrics`; etcd's name, which others give their log's fsyncs too.
const FSYNC_METRIC: &str = "etcd_disk_wal_fsync_duration_seconds_count";
/// Longest wait for `/metrics`.
const METRICS_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

/// Counters of one or more processes since they began.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Processor time, user and system, in seconds.
    pub(crate) cpu_seconds: f64,
    /// Bytes that the processes caused to be written to disks.
    pub(crate) written_bytes: u64,
}

impl Usage {
    /// The sum over these processes; those that are gone count nothing.
    pub(crate) fn of(pids: &[i32]) -> Self {
        let mut sum = Self::default();
        for pid in pids {
            sum.cpu_seconds += cpu_seconds(*pid).unwrap_or(0.0);
            sum.written_bytes += written_bytes(*pid).unwrap_or(0);
        }
        sum
    }
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds - before.cpu_seconds,
            written_bytes: self.written_bytes.saturating_sub(before.written_bytes),
        }
    }
}

/// The fsyncs of their logs that the members report, summed; `None` where one does not count them.
pub(crate) async fn fsyncs(endpoints: &[String]) -> Option<u64> {
    let mut sum = 0;
    for endpoint in endpoints {
        sum += tokio::time::timeout(METRICS_TIMEOUT, fsyncs_of(endpoint)).await.ok()??;
    }
    Some(sum)
}

/// Resident bytes of each process that runs.
pub(crate) fn resident_bytes(pids: &[i32]) -> Vec<u64> {
    pids.iter().filter_map(|pid| memory::of(*pid)).map(|used| used.resident).collect()
}

/// `utime` and `stime` of proc(5)'s `stat`.
fn cpu_seconds(pid: i32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let ticks_per_second = sysconf(SysconfVar::CLK_TCK).ok()??;
    Some((user + system) as f64 / ticks_per_second as f64)
}

fn written_bytes(pid: i32) -> Option<u64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    io.lines().find_map(|line| line.strip_prefix("write_bytes:"))?.trim().parse().ok()
}

/// A plain HTTP/1.1 question whose answer ends with the connection.
async fn fsyncs_of(endpoint: &str) -> Option<u64> {
    let mut stream = TcpStream::connect(endpoint).await.ok()?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {endpoint}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    parse_metric(&String::from_utf8_lossy(&answer), FSYNC_METRIC)
}

fn parse_metric(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.trim().parse::<f64>().ok().map(|value| value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_processor_time() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let before = Usage::of(&[pid]);
        let began = std::time::Instant::now();
        while began.elapsed() < std::time::Duration::from_millis(50) {
            std::hint::black_box(0);
        }
        let used = Usage::of(&[pid]) - before;
        assert!(used.cpu_seconds > 0.0 && used.cpu_seconds < 60.0, "{used:?}");
        assert_eq!(Usage::of(&[-1]).written_bytes, 0);
    }

    #[test]
    fn metrics_are_found_by_their_whole_name() {
        let text = "HTTP/1.1 200 OK\r\n\r\n# HELP a\na_count_total 3\na_count 1.2e+03\n";
        assert_eq!(parse_metric(text, "a_count"), Some(1200));
        assert_eq!(parse_metric(text, "b_count"), None);
    }
}
