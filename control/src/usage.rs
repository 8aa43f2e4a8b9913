//! What nodes and pods use of CPU and memory, as their agents last said.
//!
//! In memory only, at every replica, since agents tell all of them: figures never reach the log. Written by node
//! sessions; read by whoever asks for `metrics.k8s.io` and by the autoscaler. A node that has said nothing for
//! [`FRESH_FOR`] counts as not measured.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::object;
use jiff::Timestamp;
use proto::node as wire;
use serde_json::Value;

/// How long figures count after they came.
pub const FRESH_FOR: Duration = Duration::from_secs(60);
/// Most pods in one report; a node has far fewer.
const PODS_MAX: usize = 10_000;

/// CPU and memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Billionths of a core, on average over the window.
    pub cpu_nano: u64,
    /// Memory that cannot be given back at once.
    pub memory_bytes: u64,
}

/// What one pod uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodUsage {
    /// The end of the window, by the node's clock.
    pub at: Timestamp,
    /// Over what time the CPU was averaged.
    pub window: Duration,
    /// By container name; at least one.
    pub containers: Vec<(String, Amounts)>,
}

/// What one node uses, its pods included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeUsage {
    /// The end of the window, by the node's clock.
    pub at: Timestamp,
    /// Over what time the CPU was averaged.
    pub window: Duration,
    /// All of the machine.
    pub amounts: Amounts,
}

#[derive(Debug)]
struct Report {
    heard_at: Instant,
    node: NodeUsage,
    /// By uid.
    pods: BTreeMap<String, PodUsage>,
}

/// The newest figures of all nodes; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    reports: Arc<Mutex<BTreeMap<String, Report>>>,
}

impl Amounts {
    /// Thousandths of a core, rounded up as Kubernetes does.
    pub fn cpu_milli(&self) -> i64 {
        i64::try_from(self.cpu_nano.div_ceil(1_000_000)).unwrap_or(i64::MAX)
    }
}

impl Usage {
    /// Takes a node's report; one that makes no sense is dropped.
    pub fn heard(&self, node: &str, report: wire::Usage, heard_at: Instant) {
        let at = Timestamp::from_millisecond(report.at_ms);
        let (Ok(at), true) = (at, report.pods.len() <= PODS_MAX) else {
            tracing::warn!(node, "a report of what the node uses makes no sense; dropped");
            return;
        };
        let window = Duration::from_millis(report.window_ms.into());
        let amounts = |cpu_nano, memory_bytes| Amounts { cpu_nano, memory_bytes };
        let pods = report.pods.into_iter().filter(|pod| !pod.containers.is_empty()).map(|pod| {
            let window = Duration::from_millis(pod.window_ms.into());
            let containers =
                pod.containers.into_iter().map(|c| (c.name, amounts(c.cpu_nano, c.memory_bytes)));
            (pod.uid, PodUsage { at, window, containers: containers.collect() })
        });
        let pods = pods.collect();
        let node_usage = NodeUsage { at, window, amounts: amounts(report.cpu_nano, report.memory_bytes) };
        self.lock().insert(node.to_owned(), Report { heard_at, node: node_usage, pods });
    }

    /// The node's object is gone.
    pub fn forget(&self, node: &str) {
        self.lock().remove(node);
    }

    /// What a node uses, if it said so lately.
    pub fn node(&self, name: &str) -> Option<NodeUsage> {
        self.lock().get(name).filter(|report| is_fresh(report)).map(|report| report.node)
    }

    /// What a pod on a node uses, if the node said so lately.
    pub fn pod(&self, node: &str, uid: &str) -> Option<PodUsage> {
        let reports = self.lock();
        let report = reports.get(node).filter(|report| is_fresh(report))?;
        report.pods.get(uid).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Report>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The uid by which its node knows a pod: what the API shows of a static pod has one of its own.
pub fn uid_at_node(pod: &Value) -> &str {
    pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].as_str().unwrap_or_else(|| object::uid(pod))
}

fn is_fresh(report: &Report) -> bool {
    report.heard_at.elapsed() < FRESH_FOR
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(at_ms: i64) -> wire::Usage {
        let container = wire::ContainerUsage { name: "c".to_owned(), cpu_nano: 1_500_000, memory_bytes: 7 };
        let pod = wire::PodUsage { uid: "u".to_owned(), window_ms: 10_000, containers: vec![container] };
        wire::Usage { at_ms, window_ms: 15_000, cpu_nano: 9, memory_bytes: 8, pods: vec![pod] }
    }

    #[test]
    fn the_newest_report_counts_while_it_is_fresh() {
        let usage = Usage::default();
        usage.heard("n", report(1_000), Instant::now());
        let pod = usage.pod("n", "u").unwrap();
        assert_eq!((pod.containers[0].1.cpu_milli(), pod.window), (2, Duration::from_secs(10)));
        assert_eq!(usage.node("n").unwrap().amounts, Amounts { cpu_nano: 9, memory_bytes: 8 });
        assert!(usage.pod("n", "other").is_none() && usage.node("m").is_none());
        // A time that no clock shows.
        usage.heard("n", report(i64::MAX), Instant::now());
        assert_eq!(usage.node("n").unwrap().at, Timestamp::from_second(1).unwrap());
        if let Some(long_ago) = Instant::now().checked_sub(FRESH_FOR) {
            usage.heard("n", report(2_000), long_ago);
            assert!(usage.node("n").is_none() && usage.pod("n", "u").is_none());
        }
        usage.forget("n");
        assert!(usage.lock().is_empty());
    }
}
