//! Quality of service: classes, cgroup paths and weights, OOM scores. Kubernetes' rules, pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use runtime::CgroupSpec;

const CPU_SHARES_MIN: u64 = 2;
const CPU_SHARES_MAX: u64 = 262_144;
const CPU_PERIOD_US: u64 = 100_000;
const CPU_QUOTA_US_MIN: u64 = 1_000;
const OOM_SCORE_GUARANTEED: i32 = -997;
const OOM_SCORE_BEST_EFFORT: i32 = 1_000;
/// The score of the process that holds a sandbox: the last to be killed.
pub(crate) const OOM_SCORE_SANDBOX: i32 = -998;

/// A pod's quality-of-service class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// What a container asks for and may use at most. 0 stands for "nothing said".
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Amounts {
    pub(crate) cpu_request_milli: i64,
    pub(crate) cpu_limit_milli: i64,
    pub(crate) memory_request: i64,
    pub(crate) memory_limit: i64,
}

/// Reads a container's resources; a limit without a request is its request too.
pub(crate) fn amounts(container: &Container) -> Amounts {
    let resources = container.resources.as_ref();
    let read = |from: Option<&BTreeMap<String, _>>, key: &str| {
        let text: &k8s_openapi::apimachinery::pkg::api::resource::Quantity = from?.get(key)?;
        Quantity::parse(&text.0).ok()
    };
    let limits = resources.and_then(|r| r.limits.as_ref());
    let requests = resources.and_then(|r| r.requests.as_ref());
    let cpu = |from| read(from, "cpu").map_or(0, |q| q.milli_value());
    let memory = |from| read(from, "memory").map_or(0, |q| q.value());
    let (cpu_limit_milli, memory_limit) = (cpu(limits), memory(limits));
    let or_limit = |request: i64, limit: i64| if request == 0 { limit } else { request };
    Amounts {
        cpu_request_milli: or_limit(cpu(requests), cpu_limit_milli),
        cpu_limit_milli,
        memory_request: or_limit(memory(requests), memory_limit),
        memory_limit,
    }
}

/// The pod's class.
pub(crate) fn class(spec: &PodSpec) -> QosClass {
    let all: Vec<Amounts> =
        spec.init_containers.iter().flatten().chain(&spec.containers).map(amounts).collect();
    if all.iter().all(|a| *a == Amounts::default()) {
        return QosClass::BestEffort;
    }
    let guaranteed = all.iter().all(|a| {
        a.cpu_limit_milli > 0
            && a.memory_limit > 0
            && a.cpu_limit_milli == a.cpu_request_milli
            && a.memory_limit == a.memory_request
    });
    if guaranteed { QosClass::Guaranteed } else { QosClass::Burstable }
}

/// The group of a pod, relative to the node's root group.
pub(crate) fn pod_cgroup(spec: &PodSpec, uid: &str) -> CgroupSpec {
    let class = class(spec);
    let parent = match class {
        QosClass::Guaranteed => PathBuf::from("kubepods"),
        QosClass::Burstable => PathBuf::from("kubepods/burstable"),
        QosClass::BestEffort => PathBuf::from("kubepods/besteffort"),
    };
    let regular: Vec<Amounts> = spec.containers.iter().map(amounts).collect();
    let init: Vec<Amounts> = spec.init_containers.iter().flatten().map(amounts).collect();
    // Init containers run alone: the pod needs the larger of their maximum and the others' sum.
    let total = |pick: fn(&Amounts) -> i64| {
        regular.iter().map(pick).sum::<i64>().max(init.iter().map(pick).max().unwrap_or(0))
    };
    let limited = |pick: fn(&Amounts) -> i64| regular.iter().chain(&init).all(|a| pick(a) > 0);
    CgroupSpec {
        path: parent.join(format!("pod{uid}")),
        cpu_shares: Some(cpu_shares(total(|a| a.cpu_request_milli))),
        cpu_quota_us: limited(|a| a.cpu_limit_milli).then(|| cpu_quota(total(|a| a.cpu_limit_milli))),
        cpu_period_us: Some(CPU_PERIOD_US),
        memory_limit: limited(|a| a.memory_limit).then(|| total(|a| a.memory_limit) as u64),
        ..CgroupSpec::default()
    }
}

/// The group of one container.
pub(crate) fn container_cgroup(spec: &PodSpec, uid: &str, container: &Container, id: &str) -> CgroupSpec {
    let amounts = amounts(container);
    CgroupSpec {
        path: pod_cgroup(spec, uid).path.join(id),
        cpu_shares: Some(cpu_shares(amounts.cpu_request_milli)),
        cpu_quota_us: (amounts.cpu_limit_milli > 0).then(|| cpu_quota(amounts.cpu_limit_milli)),
        cpu_period_us: Some(CPU_PERIOD_US),
        memory_limit: (amounts.memory_limit > 0).then_some(amounts.memory_limit as u64),
        hugepage_limits: hugepage_limits(container),
        ..CgroupSpec::default()
    }
}

/// What a container may use of huge pages, by page size as the kernel writes it: `hugepages-2Mi` is `2MB`.
fn hugepage_limits(container: &Container) -> BTreeMap<String, u64> {
    let limits = container.resources.iter().flat_map(|resources| resources.limits.iter().flatten());
    let huge = limits.filter_map(|(name, quantity)| {
        let size = Quantity::parse(name.strip_prefix("hugepages-")?).ok()?.value();
        let bytes = Quantity::parse(&quantity.0).ok()?.value();
        Some((page_size(u64::try_from(size).ok()?), u64::try_from(bytes).ok()?))
    });
    huge.collect()
}

/// A page size in the kernel's words.
fn page_size(bytes: u64) -> String {
    match bytes {
        size if size >= 1 << 30 => format!("{}GB", size >> 30),
        size if size >= 1 << 20 => format!("{}MB", size >> 20),
        size => format!("{}KB", size >> 10),
    }
}

fn cpu_shares(milli: i64) -> u64 {
    (milli.max(0) as u64 * 1024 / 1000).clamp(CPU_SHARES_MIN, CPU_SHARES_MAX)
}

fn cpu_quota(milli: i64) -> u64 {
    (milli.max(0) as u64 * CPU_PERIOD_US / 1000).max(CPU_QUOTA_US_MIN)
}

/// The OOM score adjustment of a container on a machine with this much memory.
pub(crate) fn oom_score_adj(spec: &PodSpec, container: &Container, memory_capacity: u64) -> i32 {
    match class(spec) {
        QosClass::Guaranteed => OOM_SCORE_GUARANTEED,
        QosClass::BestEffort => OOM_SCORE_BEST_EFFORT,
        QosClass::Burstable => {
            let request = amounts(container).memory_request.max(0) as u64;
            let share = (1000 * u128::from(request) / u128::from(memory_capacity.max(1))) as i32;
            (1000 - share).clamp(1000 + OOM_SCORE_GUARANTEED, OOM_SCORE_BEST_EFFORT - 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(resources: &[&str]) -> PodSpec {
        let containers: Vec<serde_json::Value> = resources
            .iter()
            .enumerate()
            .map(|(i, r)| {
                serde_json::json!({"name": format!("c{i}"), "resources": serde_json::from_str::<serde_json::Value>(r).unwrap()})
            })
            .collect();
        serde_json::from_value(serde_json::json!({"containers": containers})).unwrap()
    }

    #[test]
    fn classes_follow_requests_and_limits() {
        let full = r#"{"limits":{"cpu":"500m","memory":"64Mi"}}"#;
        assert_eq!(class(&spec(&["{}"])), QosClass::BestEffort);
        assert_eq!(class(&spec(&[full])), QosClass::Guaranteed);
        assert_eq!(class(&spec(&[full, "{}"])), QosClass::Burstable);
        assert_eq!(class(&spec(&[r#"{"requests":{"cpu":"1"}}"#])), QosClass::Burstable);
    }

    #[test]
    fn cgroups_carry_kubernetes_numbers() {
        let spec = spec(&[r#"{"limits":{"cpu":"500m","memory":"64Mi"}}"#, r#"{"requests":{"cpu":"1"}}"#]);
        let pod = pod_cgroup(&spec, "u");
        assert_eq!(pod.path, PathBuf::from("kubepods/burstable/podu"));
        assert_eq!((pod.cpu_shares, pod.cpu_quota_us, pod.memory_limit), (Some(1536), None, None));
        let first = container_cgroup(&spec, "u", &spec.containers[0], "id");
        assert_eq!((first.cpu_shares, first.cpu_quota_us), (Some(512), Some(50_000)));
        assert_eq!(first.memory_limit, Some(64 << 20));
        assert_eq!(cpu_shares(0), 2);
    }

    #[test]
    fn huge_pages_are_limited_by_size() {
        let spec = spec(&[r#"{"limits":{"hugepages-2Mi":"64Mi","hugepages-1Gi":"2Gi","memory":"1Gi"}}"#]);
        let limits = container_cgroup(&spec, "u", &spec.containers[0], "id").hugepage_limits;
        assert_eq!(limits, [("1GB".to_owned(), 2 << 30), ("2MB".to_owned(), 64 << 20)].into());
    }

    #[test]
    fn oom_scores_shield_what_reserved_memory() {
        let spec = spec(&[r#"{"requests":{"memory":"1Gi"}}"#, "{}"]);
        assert_eq!(oom_score_adj(&spec, &spec.containers[0], 4 << 30), 750);
        assert_eq!(oom_score_adj(&spec, &spec.containers[1], 4 << 30), 999);
        let guaranteed = self::spec(&[r#"{"limits":{"cpu":"1","memory":"1Gi"}}"#]);
        assert_eq!(oom_score_adj(&guaranteed, &guaranteed.containers[0], 4 << 30), -997);
    }
}
