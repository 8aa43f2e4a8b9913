//! `/stats/summary`: the kubelet's `stats/v1alpha1` `Summary`, as far as this node counts.

use jiff::Timestamp;
use proto::node as wire;
use serde_json::{Map, Value, json};

use super::{Container, Measurements, Running};
use crate::machine;
use crate::resource_usage::{Counted, machine_counted};

/// CPU and memory at a moment; the average is missing until there were two looks.
fn stats(at: Timestamp, counted: Counted, nano_cores: Option<u64>) -> [(&'static str, Value); 2] {
    let time = seconds(at);
    let mut cpu = json!({"time": time, "usageCoreNanoSeconds": counted.cpu_ns});
    if let Some(nano_cores) = nano_cores {
        cpu["usageNanoCores"] = nano_cores.into();
    }
    let memory = json!({"time": time, "workingSetBytes": counted.memory_bytes});
    [("cpu", cpu), ("memory", memory)]
}

/// RFC 3339 in whole seconds, as Kubernetes writes times.
fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn object(members: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let members: Map<String, Value> =
        members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Value::Object(members)
}

/// When the machine began, out of /proc/stat.
fn booted(stat: &str) -> Option<Timestamp> {
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Timestamp::from_second(line.trim().parse().ok()?).ok()
}

impl Measurements {
    pub(super) fn summary(&self) -> String {
        let newest = self.usage.borrow().clone();
        let at = Timestamp::now();
        let mut node = vec![("nodeName", json!(self.node_name))];
        if let Some(booted) = booted(&machine::read("/proc/stat")) {
            node.push(("startTime", json!(seconds(booted))));
        }
        if let Some(counted) = machine_counted() {
            let [cpu, (_, mut memory)] = stats(at, counted, newest.as_ref().map(|usage| usage.cpu_nano));
            memory["availableBytes"] = machine::memory("MemAvailable").into();
            node.extend([cpu, ("memory", memory)]);
        }
        let averages = |uid: &str| newest.as_ref()?.pods.iter().find(|pod| pod.uid == uid);
        let pods: Vec<Value> =
            self.running().iter().map(|running| pod(at, running, averages(&running.uid))).collect();
        json!({"node": object(node), "pods": pods}).to_string()
    }
}

fn pod(at: Timestamp, running: &Running, averages: Option<&wire::PodUsage>) -> Value {
    let average_of = |container: &Container| {
        let own = averages?.containers.iter().find(|own| own.name == container.name)?;
        Some(own.cpu_nano)
    };
    let containers = running.containers.iter().map(|container| {
        let mut members = vec![("name", json!(container.name))];
        members.extend(container.started_at.map(|started| ("startTime", json!(seconds(started)))));
        members.extend(stats(at, container.counted, average_of(container)));
        object(members)
    });
    let reference = json!({"name": running.name(), "namespace": running.namespace(), "uid": running.uid});
    let mut members = vec![("podRef", reference), ("containers", containers.collect())];
    members.extend(running.started_at.map(|started| ("startTime", json!(seconds(started)))));
    let total = averages.map(|own| own.containers.iter().map(|container| container.cpu_nano).sum());
    members.extend(stats(at, running.total(), total));
    object(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_began_when_the_kernel_says() {
        assert_eq!(booted("cpu 1\nbtime 1700000000\n"), Timestamp::from_second(1_700_000_000).ok());
        assert_eq!(booted("cpu 1\n"), None);
    }
}
