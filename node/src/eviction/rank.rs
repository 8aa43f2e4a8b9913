//! Who ends first, and what is said to it. The kubelet's rules, pure.

use std::cmp::Reverse;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::threshold::{Resource, Threshold};
use super::usage::PodUsage;
use super::watch::Observations;
use crate::pods::admission;

/// A pod that may have to end.
#[derive(Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) uid: &'a str,
    pub(crate) pod: &'a Pod,
    pub(crate) usage: PodUsage,
}

/// Puts first who uses more than it asked for, then who matters less, then who uses most beyond its request.
pub(crate) fn rank(candidates: &mut [Candidate<'_>], resource: Resource) {
    candidates.sort_by_key(|candidate| {
        let (used, requested) = (used(candidate, resource), requested(candidate.pod, resource));
        // Nobody asks for processes: there is no asking for too much of them.
        let exceeds = resource != Resource::Pids && used > requested;
        let beyond = i128::from(used) - i128::from(requested);
        (Reverse(exceeds), admission::priority(candidate.pod), Reverse(beyond))
    });
}

fn used(candidate: &Candidate<'_>, resource: Resource) -> u64 {
    let usage = &candidate.usage;
    match resource {
        Resource::Memory => usage.memory,
        Resource::EphemeralStorage => usage.disk().bytes,
        Resource::Inodes => usage.disk().inodes,
        Resource::Pids => usage.processes,
    }
}

fn requested(pod: &Pod, resource: Resource) -> u64 {
    let Some(spec) = &pod.spec else { return 0 };
    let of = |container: &Container| request(container, resource).map_or(0, |quantity| amount(&quantity));
    let regular: u64 = spec.containers.iter().map(of).sum();
    let init = spec.init_containers.iter().flatten().map(of).max().unwrap_or(0);
    regular.max(init)
}

fn request(container: &Container, resource: Resource) -> Option<Quantity> {
    let resources = container.resources.as_ref()?;
    let of = |map: &Option<std::collections::BTreeMap<String, _>>| {
        let text: &k8s_openapi::apimachinery::pkg::api::resource::Quantity =
            map.as_ref()?.get(resource.name())?;
        Quantity::parse(&text.0).ok()
    };
    of(&resources.requests).or_else(|| of(&resources.limits))
}

fn amount(quantity: &Quantity) -> u64 {
    quantity.value().max(0) as u64
}

/// Why the pod ends: what is short, and which of its containers use more than they asked for.
pub(crate) fn message(
    candidate: &Candidate<'_>,
    threshold: &Threshold,
    observations: &Observations,
) -> String {
    let resource = threshold.signal.resource();
    let name = resource.name();
    let mut message = format!("The node was low on resource: {name}. ");
    if let Some(observed) = observations.get(&threshold.signal) {
        let (wanted, available) = (threshold.value.of(observed.capacity), observed.available);
        let (wanted, available) = (resource.quantity(wanted), resource.quantity(available));
        message += &format!("Threshold quantity: {wanted}, available: {available}. ");
    }
    let containers = candidate.pod.spec.iter().flat_map(|spec| &spec.containers);
    for container in containers {
        let usage = candidate.usage.containers.iter().find(|usage| usage.name == container.name);
        let used = match (resource, usage) {
            (Resource::Memory, Some(usage)) => usage.memory,
            (Resource::EphemeralStorage, Some(usage)) => usage.disk.bytes,
            _ => continue,
        };
        let request = request(container, resource).unwrap_or(Quantity::ZERO);
        if used > amount(&request) {
            let (container, used) = (&container.name, resource.quantity(used));
            message += &format!(
                "Container {container} was using {used}, request is {request}, has larger consumption of {name}. "
            );
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::super::disk::Used;
    use super::super::threshold::{Amount, Observation, Signal};
    use super::super::usage::ContainerUsage;
    use super::*;

    fn pod(name: &str, request: &str, priority: i32) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name},
            "spec": {"priority": priority, "containers": [
                {"name": "c", "resources": {"requests": {"memory": request, "ephemeral-storage": request}}}]},
        }))
        .unwrap()
    }

    fn using(memory: u64) -> PodUsage {
        let container =
            ContainerUsage { name: "c".into(), memory, disk: Used { bytes: memory, inodes: memory } };
        PodUsage { memory, processes: memory, containers: vec![container], ..PodUsage::default() }
    }

    fn order(resource: Resource) -> Vec<String> {
        let pods = [
            (pod("within", "100", 0), 90),
            (pod("a-little-beyond", "100", 0), 110),
            (pod("far-beyond", "10", 0), 95),
            (pod("important-and-beyond", "0", 100), 1000),
            (pod("within-but-unimportant", "2000", -1), 1500),
        ];
        let mut candidates: Vec<Candidate<'_>> =
            pods.iter().map(|(pod, used)| Candidate { uid: "", pod, usage: using(*used) }).collect();
        rank(&mut candidates, resource);
        candidates.iter().map(|c| c.pod.metadata.name.clone().unwrap()).collect()
    }

    #[test]
    fn who_uses_more_than_it_asked_for_goes_first() {
        let memory =
            ["far-beyond", "a-little-beyond", "important-and-beyond", "within-but-unimportant", "within"];
        assert_eq!(order(Resource::Memory), memory);
        assert_eq!(order(Resource::EphemeralStorage), memory);
        assert_eq!(order(Resource::Pids)[0], "within-but-unimportant");
    }

    #[test]
    fn the_message_is_the_kubelets() {
        let pod = pod("p", "1Mi", 0);
        let candidate = Candidate { uid: "", pod: &pod, usage: using(3 << 20) };
        let signal = Signal::MemoryAvailable;
        let value = Amount::Percent(10.0);
        let threshold = Threshold { signal, value, soft_grace: None, minimum_reclaim: None };
        let observed = Observation { available: 12_345, capacity: 1 << 30 };
        assert_eq!(
            message(&candidate, &threshold, &[(signal, observed)].into()),
            "The node was low on resource: memory. Threshold quantity: 107374182, available: 12345. \
             Container c was using 3Mi, request is 1Mi, has larger consumption of memory. "
        );
        let threshold = Threshold { signal: Signal::PidAvailable, ..threshold };
        let observed = Observation { available: 2000, capacity: 30_000 };
        assert_eq!(
            message(&candidate, &threshold, &[(Signal::PidAvailable, observed)].into()),
            "The node was low on resource: pids. Threshold quantity: 3k, available: 2k. "
        );
    }
}
