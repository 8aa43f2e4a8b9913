//! Defaults of pods.
//!
//! Owns what Kubernetes' defaulting and its always-on admission steps (default tolerations, priority, service
//! account) fill in. Existing values stay.

use serde_json::{Map, Value, json};

use super::{child, items, set};
use crate::object::{MIRROR_ANNOTATION, child_mut};
use crate::qos::QosClass;

/// Seconds that a pod stays bound to a node that is not ready or not reachable.
const TOLERATION_S: i64 = 300;
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Mode of projected files: 0644.
const FILE_MODE: i64 = 0o644;

pub(super) fn apply(object: &mut Value) {
    // A mirror pod shows what runs without the API: it is nobody to it.
    let is_mirror = object["metadata"]["annotations"][MIRROR_ANNOTATION].is_string();
    let Some(pod) = object.as_object_mut() else { return };
    let Some(spec) = child_mut(pod, "spec") else { return };
    pod_spec(spec);
    set(spec, "enableServiceLinks", true);
    if !is_mirror {
        set(spec, "serviceAccountName", "default");
        account_twice(spec);
    }
    for list in ["initContainers", "containers"] {
        items(spec, list).for_each(requests_from_limits);
    }
    priority(spec);
    tolerations(spec);
    let class = QosClass::of(object);
    let Some(status) = object.as_object_mut().and_then(|pod| child_mut(pod, "status")) else { return };
    set(status, "phase", "Pending");
    set(status, "qosClass", class.as_str());
    for condition in items(status, "conditions") {
        // Kubernetes writes these even when they are not known.
        set(condition, "lastProbeTime", Value::Null);
        set(condition, "lastTransitionTime", Value::Null);
    }
}

/// The defaults of a pod that is to be made of a template. What depends on the pod itself waits until there
/// is one.
pub(super) fn template(owner_spec: &mut Map<String, Value>) {
    if let Some(spec) = child_mut(owner_spec, "template").and_then(|template| child_mut(template, "spec")) {
        pod_spec(spec);
    }
}

/// The service account stands under its old name as well.
fn account_twice(spec: &mut Map<String, Value>) {
    if let Some(old) =
        spec.get("serviceAccount").filter(|a| a.as_str().is_some_and(|t| !t.is_empty())).cloned()
    {
        set(spec, "serviceAccountName", old);
    }
    if let Some(account) = spec.get("serviceAccountName").cloned() {
        spec.insert("serviceAccount".to_owned(), account);
    }
}

fn pod_spec(spec: &mut Map<String, Value>) {
    set(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "restartPolicy", "Always");
    set(spec, "securityContext", json!({}));
    set(spec, "terminationGracePeriodSeconds", 30);
    set(spec, "schedulerName", "default-scheduler");
    account_twice(spec);
    let host_network = spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or(false);
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in items(spec, list) {
            container_defaults(container, host_network);
        }
    }
    for volume in items(spec, "volumes") {
        volume_defaults(volume);
    }
    for constraint in items(spec, "topologySpreadConstraints") {
        set(constraint, "whenUnsatisfiable", "DoNotSchedule");
    }
}

fn container_defaults(container: &mut Map<String, Value>, host_network: bool) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or("");
    let policy = if is_latest(image) { "Always" } else { "IfNotPresent" };
    set(container, "imagePullPolicy", policy);
    set(container, "terminationMessagePath", "/dev/termination-log");
    set(container, "terminationMessagePolicy", "File");
    set(container, "resources", json!({}));
    for port in items(container, "ports") {
        set(port, "protocol", "TCP");
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            set(port, "hostPort", number);
        }
    }
    for variable in items(container, "env") {
        if let Some(from) = child(variable, "valueFrom").and_then(|from| child(from, "fieldRef")) {
            set(from, "apiVersion", "v1");
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = child(container, key) {
            set(probe, "timeoutSeconds", 1);
            set(probe, "periodSeconds", 10);
            set(probe, "successThreshold", 1);
            set(probe, "failureThreshold", 3);
            handler_defaults(probe);
            if let Some(grpc) = child(probe, "grpc") {
                set(grpc, "service", "");
            }
        }
    }
    if let Some(lifecycle) = child(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(handler) = child(lifecycle, hook) {
                handler_defaults(handler);
            }
        }
    }
}

fn handler_defaults(handler: &mut Map<String, Value>) {
    if let Some(get) = child(handler, "httpGet") {
        if get.get("path").and_then(Value::as_str) == Some("") {
            get.remove("path");
        }
        set(get, "path", "/");
        set(get, "scheme", "HTTP");
    }
}

/// Whether the reference means the newest image: tag `latest`, or neither tag nor digest.
fn is_latest(image: &str) -> bool {
    let (reference, digest) = image.split_once('@').map_or((image, None), |(r, d)| (r, Some(d)));
    let last = reference.rsplit('/').next().unwrap_or(reference);
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => digest.is_none(),
    }
}

fn requests_from_limits(container: &mut Map<String, Value>) {
    let Some(resources) = child(container, "resources") else { return };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).filter(|l| !l.is_empty()).cloned()
    else {
        return;
    };
    if let Some(requests) = child_mut(resources, "requests") {
        for (name, limit) in limits {
            set(requests, &name, limit);
        }
    }
}

fn volume_defaults(volume: &mut Map<String, Value>) {
    if volume.iter().all(|(key, source)| key == "name" || source.is_null()) {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
    for source in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = child(volume, source) {
            set(source, "defaultMode", FILE_MODE);
            field_refs(source);
        }
    }
    if let Some(host_path) = child(volume, "hostPath") {
        set(host_path, "type", "");
    }
    if let Some(projected) = child(volume, "projected") {
        for source in items(projected, "sources") {
            if let Some(token) = child(source, "serviceAccountToken") {
                set(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = child(source, "downwardAPI") {
                field_refs(downward);
            }
        }
    }
}

fn field_refs(source: &mut Map<String, Value>) {
    for item in items(source, "items") {
        if let Some(field) = child(item, "fieldRef") {
            set(field, "apiVersion", "v1");
        }
    }
}

fn priority(spec: &mut Map<String, Value>) {
    let value = match spec.get("priorityClassName").and_then(Value::as_str) {
        Some("system-cluster-critical") => 2_000_000_000,
        Some("system-node-critical") => 2_000_001_000,
        _ => 0,
    };
    set(spec, "priority", value);
    set(spec, "preemptionPolicy", "PreemptLowerPriority");
}

fn tolerations(spec: &mut Map<String, Value>) {
    set(spec, "tolerations", json!([]));
    let Some(list) = spec.get_mut("tolerations").and_then(Value::as_array_mut) else { return };
    for key in [NOT_READY, UNREACHABLE] {
        let tolerated = list.iter().any(|t| {
            let text = |field: &str| t.get(field).and_then(Value::as_str).unwrap_or("");
            (text("key").is_empty() || text("key") == key) && matches!(text("effect"), "" | "NoExecute")
        });
        if !tolerated {
            list.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": TOLERATION_S}));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minimal_pod_is_filled_in() {
        let mut pod = json!({"metadata": {"name": "hello"},
            "spec": {"containers": [{"name": "hello", "image": "lab/hello:1.0", "ports": [{"containerPort": 8080}]}]}});
        apply(&mut pod);
        assert_eq!(
            pod["spec"],
            json!({
                "containers": [{
                    "name": "hello", "image": "lab/hello:1.0", "imagePullPolicy": "IfNotPresent",
                    "ports": [{"containerPort": 8080, "protocol": "TCP"}], "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"
                }],
                "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority",
                "priority": 0, "restartPolicy": "Always", "schedulerName": "default-scheduler",
                "securityContext": {}, "serviceAccount": "default", "serviceAccountName": "default",
                "terminationGracePeriodSeconds": 30,
                "tolerations": [
                    {"effect": "NoExecute", "key": NOT_READY, "operator": "Exists", "tolerationSeconds": 300},
                    {"effect": "NoExecute", "key": UNREACHABLE, "operator": "Exists", "tolerationSeconds": 300},
                ]
            })
        );
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    }

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, latest) in [
            ("hello", true),
            ("hello:latest", true),
            ("hello:1.0", false),
            ("registry:5000/hello", true),
            ("registry:5000/hello:1", false),
            ("hello@sha256:abc", false),
            ("hello:latest@sha256:abc", true),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn probes_hooks_volumes_and_requests() {
        let mut pod = json!({"spec": {
            "containers": [{
                "image": "a", "livenessProbe": {"httpGet": {"port": 80}, "periodSeconds": 5},
                "lifecycle": {"postStart": {"httpGet": {"port": 80, "path": "/warmup"}}},
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}},
            }],
            "volumes": [{"name": "a"}, {"name": "b", "configMap": {"name": "x"}}, {"name": "c", "hostPath": {"path": "/"}}],
            "tolerations": [{"operator": "Exists"}],
        }});
        apply(&mut pod);
        let container = &pod["spec"]["containers"][0];
        assert_eq!(
            container["livenessProbe"],
            json!({"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}, "periodSeconds": 5,
                "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3})
        );
        assert_eq!(container["lifecycle"]["postStart"]["httpGet"]["scheme"], "HTTP");
        assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
        assert_eq!(container["resources"]["requests"], json!({"cpu": "500m", "memory": "1Gi"}));
        assert_eq!(pod["spec"]["volumes"][0], json!({"name": "a", "emptyDir": {}}));
        assert_eq!(pod["spec"]["volumes"][1]["configMap"]["defaultMode"], 420);
        assert_eq!(pod["spec"]["volumes"][2]["hostPath"]["type"], "");
        assert_eq!(pod["spec"]["tolerations"], json!([{"operator": "Exists"}]));
        assert_eq!(pod["status"]["qosClass"], "Burstable");
    }
}
