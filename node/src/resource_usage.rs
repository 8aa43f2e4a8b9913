//! What this node and its containers use of CPU and memory, measured at intervals and told to every replica.
//!
//! CPU is counted by the kernel since a container began; what is told is the average between two looks, so a
//! container is there from its second look on. Nothing is kept: who dials a replica tells it the newest figures.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use proto::node as wire;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::machine;
use crate::pods::containers::ContainerRuntime;
use crate::pods::roster::Roster;

/// The newest figures; `None` until there are some.
pub(crate) type Newest = Option<wire::Usage>;

/// The unit of `/proc/stat`: the kernel's `USER_HZ`, which user space always sees as this.
const TICK_NS: u64 = 1_000_000_000 / 100;

/// CPU time since the beginning, and memory now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Nanoseconds.
    pub(crate) cpu_ns: u64,
    /// Bytes that cannot be given back at once.
    pub(crate) memory_bytes: u64,
}

/// Measures until `shutdown`.
pub(crate) async fn run(
    runtime: Arc<dyn ContainerRuntime>,
    roster: Arc<Roster>,
    newest: watch::Sender<Newest>,
    interval: Duration,
    shutdown: CancellationToken,
) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut meter = Meter::default();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let (runtime, roster) = (Arc::clone(&runtime), Arc::clone(&roster));
        // It reads files, or asks another runtime.
        let looked = tokio::task::spawn_blocking(move || {
            let report = meter.look(&*runtime, &roster);
            (meter, report)
        });
        let report;
        (meter, report) = looked.await.expect("measuring does not panic");
        if let Some(report) = report {
            newest.send_replace(Some(report));
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    cpu_ns: u64,
}

#[derive(Debug, Default)]
struct Meter {
    node: Option<Look>,
    /// By container id.
    containers: BTreeMap<String, Look>,
}

impl Meter {
    fn look(&mut self, runtime: &dyn ContainerRuntime, roster: &Roster) -> Option<wire::Usage> {
        let mut seen = BTreeMap::new();
        let mut pods = Vec::new();
        for looked in roster.all() {
            let mut window = Duration::MAX;
            let mut containers = Vec::new();
            for (name, id) in looked.containers {
                let Some(counted) = runtime.counted(&id) else { continue };
                let now = Look { at: Instant::now(), cpu_ns: counted.cpu_ns };
                if let Some((cpu_nano, over)) =
                    self.containers.get(&id).and_then(|before| average(before, &now))
                {
                    window = window.min(over);
                    containers.push(wire::ContainerUsage {
                        name,
                        cpu_nano,
                        memory_bytes: counted.memory_bytes,
                    });
                }
                seen.insert(id, now);
            }
            if !containers.is_empty() {
                pods.push(wire::PodUsage { uid: looked.uid, window_ms: millis(window), containers });
            }
        }
        self.containers = seen;
        let Counted { cpu_ns, memory_bytes } = machine_counted()?;
        let now = Look { at: Instant::now(), cpu_ns };
        let before = self.node.replace(now)?;
        let (cpu_nano, window) = average(&before, &now)?;
        let at_ms = Timestamp::now().as_millisecond();
        Some(wire::Usage { at_ms, window_ms: millis(window), cpu_nano, memory_bytes, pods })
    }
}

/// What the whole machine has used: processor time since it began, and memory.
pub(crate) fn machine_counted() -> Option<Counted> {
    let cpu_ns = busy_ns(&machine::read("/proc/stat"))?;
    let memory_bytes = machine::memory("MemTotal").saturating_sub(machine::memory("MemAvailable"));
    Some(Counted { cpu_ns, memory_bytes })
}

/// Billionths of a core between two looks, and how long that was. A counter that went back says nothing.
fn average(before: &Look, now: &Look) -> Option<(u64, Duration)> {
    let window = now.at.duration_since(before.at);
    let used = now.cpu_ns.checked_sub(before.cpu_ns)?;
    let nano = u128::from(used) * 1_000_000_000 / window.as_nanos().max(1);
    Some((u64::try_from(nano).unwrap_or(u64::MAX), window))
}

fn millis(window: Duration) -> u32 {
    u32::try_from(window.as_millis()).unwrap_or(u32::MAX)
}

/// The time that all processors together were busy, out of /proc/stat.
fn busy_ns(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guests stand in user already.
    let busy: u64 =
        ticks.iter().take(8).enumerate().filter(|(at, _)| ![3, 4].contains(at)).map(|(_, n)| n).sum();
    (ticks.len() >= 4).then(|| busy.saturating_mul(TICK_NS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_what_is_neither_idle_nor_waiting() {
        let stat = "cpu  10 1 5 1000 50 2 3 4 7 0\ncpu0 1 1 1 1\n";
        assert_eq!(busy_ns(stat), Some((10 + 1 + 5 + 2 + 3 + 4) * TICK_NS));
        assert_eq!(busy_ns("intr 1"), None);
    }

    #[test]
    fn averages_are_over_the_time_between_looks() {
        let began = Instant::now();
        let before = Look { at: began, cpu_ns: 500 };
        let now = Look { at: began + Duration::from_secs(2), cpu_ns: 1_000_000_500 };
        assert_eq!(average(&before, &now), Some((500_000_000, Duration::from_secs(2))));
        assert_eq!(average(&now, &Look { cpu_ns: 0, ..now }), None);
    }
}
