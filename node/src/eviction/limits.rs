//! Limits of local storage that pods set themselves: `emptyDir.sizeLimit`, and `ephemeral-storage` of
//! containers and of the pod as their sum. Pure.

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, Volume};

use super::usage::PodUsage;

const RESOURCE: &str = "ephemeral-storage";

/// Whether the pod limits any of it: only then its disk use has to be known.
pub(crate) fn are_set(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let volumes = spec.volumes.iter().flatten();
    volumes.filter_map(size_limit).next().is_some() || spec.containers.iter().any(|c| limit(c).is_some())
}

/// What the pod exceeds, in the kubelet's words.
pub(crate) fn exceeded(pod: &Pod, usage: &PodUsage) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    for (volume, limit) in spec.volumes.iter().flatten().filter_map(size_limit) {
        let used = usage.empty_dirs.get(&volume.name).map_or(0, |used| used.bytes);
        if exceeds(used, &limit) {
            return Some(format!(
                "Usage of EmptyDir volume {:?} exceeds the limit \"{limit}\". ",
                volume.name
            ));
        }
    }
    let limits: Vec<Quantity> = spec.containers.iter().filter_map(limit).collect();
    if !limits.is_empty() {
        let total: Quantity = limits.into_iter().sum();
        if exceeds(usage.disk().bytes, &total) {
            return Some(format!(
                "Pod ephemeral local storage usage exceeds the total limit of containers {total}. "
            ));
        }
    }
    let of = |container: &Container| {
        let used = usage.containers.iter().find(|usage| usage.name == container.name)?;
        let limit = limit(container)?;
        exceeds(used.disk.bytes, &limit).then(|| {
            let name = &container.name;
            format!("Container {name} exceeded its local ephemeral storage limit \"{limit}\". ")
        })
    };
    spec.containers.iter().find_map(of)
}

fn exceeds(used: u64, limit: &Quantity) -> bool {
    i64::try_from(used).unwrap_or(i64::MAX) > limit.value()
}

/// A limited volume; one in memory is held to its size by the kernel.
fn size_limit(volume: &Volume) -> Option<(&Volume, Quantity)> {
    let source = volume.empty_dir.as_ref().filter(|source| source.medium.as_deref() != Some("Memory"))?;
    let limit = Quantity::parse(&source.size_limit.as_ref()?.0).ok().filter(|limit| limit.value() > 0)?;
    Some((volume, limit))
}

fn limit(container: &Container) -> Option<Quantity> {
    let text = container.resources.as_ref()?.limits.as_ref()?.get(RESOURCE)?;
    Quantity::parse(&text.0).ok()
}

#[cfg(test)]
mod tests {
    use super::super::disk::Used;
    use super::super::usage::ContainerUsage;
    use super::*;

    fn usage(container: u64, volume: u64) -> PodUsage {
        let used = |bytes| Used { bytes, inodes: 1 };
        PodUsage {
            containers: vec![ContainerUsage { name: "c".into(), memory: 0, disk: used(container) }],
            empty_dirs: [("v".to_owned(), used(volume))].into(),
            ..PodUsage::default()
        }
    }

    fn pod(limits: serde_json::Value, volume: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"spec": {
            "containers": [{"name": "c", "resources": {"limits": limits}}, {"name": "d"}],
            "volumes": [{"name": "v", "emptyDir": volume}],
        }}))
        .unwrap()
    }

    #[test]
    fn every_limit_has_its_sentence() {
        use serde_json::json;
        let limited = pod(json!({"ephemeral-storage": "1Mi"}), json!({"sizeLimit": "10Mi"}));
        assert!(are_set(&limited));
        assert_eq!(exceeded(&limited, &usage(1 << 20, 0)), None);
        assert_eq!(
            exceeded(&limited, &usage(1, 11 << 20)).as_deref(),
            Some("Usage of EmptyDir volume \"v\" exceeds the limit \"10Mi\". ")
        );
        assert_eq!(
            exceeded(&limited, &usage(1, 1 << 20)).as_deref(),
            Some("Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. ")
        );
        let two = json!({"spec": {"containers": [
            {"name": "c", "resources": {"limits": {"ephemeral-storage": "1Mi"}}},
            {"name": "d", "resources": {"limits": {"ephemeral-storage": "5Mi"}}},
        ]}});
        assert_eq!(
            exceeded(&serde_json::from_value(two).unwrap(), &usage(2 << 20, 0)).as_deref(),
            Some("Container c exceeded its local ephemeral storage limit \"1Mi\". ")
        );
    }

    #[test]
    fn without_limits_nothing_is_exceeded() {
        use serde_json::json;
        let free = pod(json!({"memory": "1Mi"}), json!({}));
        assert!(!are_set(&free));
        assert_eq!(exceeded(&free, &usage(1 << 40, 1 << 40)), None);
        assert!(!are_set(&pod(json!({}), json!({"medium": "Memory", "sizeLimit": "1Mi"}))));
    }
}
