//! Validation, seen through the texts that a client gets.

use serde_json::{Value, json};

use super::{create, update};
use crate::kinds::{Kind, by_kind};
use crate::status::Status;
use crate::{decode, defaults};

fn kind(name: &str) -> &'static Kind {
    let group = if name == "Lease" { "coordination.k8s.io" } else { "" };
    by_kind(group, "v1", name).unwrap()
}

/// The error text of a create, after decoding and defaulting as a server does; empty when all is well.
fn refusal(name: &str, mut object: Value) -> String {
    let kind = kind(name);
    decode::normalize(kind, &mut object).unwrap();
    defaults::apply(kind, &mut object);
    let causes = create(kind, &object);
    if causes.is_empty() { String::new() } else { Status::invalid(kind, "x", causes).to_string() }
}

fn pod(spec: Value) -> Value {
    json!({"metadata": {"name": "x", "namespace": "d"}, "spec": spec})
}

fn refused_pod(spec: Value) -> String {
    refusal("Pod", pod(spec)).replace("Pod \"x\" is invalid: ", "")
}

/// A pod of one good container with more fields.
fn refused_container(more: Value) -> String {
    let mut container = json!({"name": "c", "image": "i:1"});
    for (key, value) in more.as_object().unwrap() {
        container[key] = value.clone();
    }
    refused_pod(json!({"containers": [container], "volumes": [{"name": "v"}]}))
        .replace("spec.containers[0].", "")
}

#[test]
fn metadata() {
    let named = |metadata: Value| refusal("ConfigMap", json!({"metadata": metadata}));
    assert_eq!(named(json!({"name": "a", "namespace": "d"})), "");
    assert_eq!(
        named(json!({})),
        "ConfigMap \"x\" is invalid: [metadata.name: Required value: name or generateName is required, \
         metadata.namespace: Required value]"
    );
    assert!(named(json!({"name": "A", "namespace": "d"})).starts_with(
        "ConfigMap \"x\" is invalid: metadata.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist of"
    ));
    assert_eq!(named(json!({"name": "a-x7k2p", "generateName": "a-", "namespace": "d"})), "");
    assert!(named(json!({"name": "a", "namespace": "d", "labels": {"a b": "c d"}})).contains(
        "metadata.labels: Invalid value: \"a b\": name part must consist of alphanumeric characters"
    ));
    let big = "x".repeat(256 * 1024);
    assert!(
        named(json!({"name": "a", "namespace": "d", "annotations": {"k": big}}))
            .ends_with("metadata.annotations: Too long: may not be more than 262144 bytes")
    );
    assert!(named(json!({"name": "a", "namespace": "d", "finalizers": ["mine"]}))
        .ends_with("metadata.finalizers[0]: Invalid value: \"mine\": name is neither a standard finalizer name nor is it fully qualified"));
    assert!(
        named(json!({"name": "a", "namespace": "d",
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": ""}]}))
        .ends_with("metadata.ownerReferences[0].uid: Invalid value: \"\": must not be empty")
    );
    assert_eq!(
        refusal("Namespace", json!({"metadata": {"name": "a.b"}})),
        "Namespace \"x\" is invalid: metadata.name: Invalid value: \"a.b\": must not contain dots"
    );
    assert!(
        refusal("Node", json!({"metadata": {"name": "a", "namespace": "d"}}))
            .ends_with("metadata.namespace: Forbidden: not allowed on this type")
    );
}

#[test]
fn a_pod_needs_containers_with_names_and_images() {
    assert_eq!(refused_pod(json!({"containers": []})), "spec.containers: Required value");
    assert_eq!(
        refused_pod(json!({"containers": [{"name": "c"}]})),
        "spec.containers[0].image: Required value"
    );
    assert_eq!(
        refused_pod(json!({"containers": [{"name": "c", "image": "i"}, {"name": "c", "image": "i"}],
            "initContainers": [{"name": "c", "image": "i"}]})),
        "[spec.containers[1].name: Duplicate value: \"c\", spec.initContainers[0].name: Duplicate value: \"c\"]"
    );
    assert_eq!(
        refused_pod(json!({"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Sometimes"})),
        "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\""
    );
}

#[test]
fn ports_and_environment() {
    assert_eq!(
        refused_container(json!({"ports": [
            {"containerPort": 0}, {"containerPort": 70000}, {"containerPort": 80, "name": "a", "protocol": "ICMP"},
            {"containerPort": 81, "name": "a"}]})),
        "[ports[0].containerPort: Required value, \
         ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive, \
         ports[2].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\", \
         ports[3].name: Duplicate value: \"a\"]"
    );
    assert_eq!(
        refused_container(
            json!({"ports": [{"containerPort": 80, "hostPort": 80}, {"containerPort": 81, "hostPort": 80}]})
        ),
        "ports[1].hostPort: Duplicate value: \"TCP//80\""
    );
    assert_eq!(
        refused_container(json!({"env": [{"name": ""}, {"name": "A=B"}, {"name": "A", "valueFrom": {}},
            {"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['x']"}}}]})),
        "[env[0].name: Required value, \
         env[1].name: Invalid value: \"A=B\": a valid environment variable name must consist only of printable ASCII characters other than '=', \
         env[2].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`, \
         env[3].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty]"
    );
}

#[test]
fn mounts_and_volumes() {
    assert_eq!(
        refused_container(json!({"volumeMounts": [
            {"name": "v", "mountPath": "/a"}, {"name": "w", "mountPath": "/b"}, {"name": "v", "mountPath": "/a"},
            {"name": "v", "mountPath": "/c", "subPath": "../x"}]})),
        "[volumeMounts[1].name: Not found: \"w\", volumeMounts[2].mountPath: Invalid value: \"/a\": must be unique, \
         volumeMounts[3].subPath: Invalid value: \"../x\": must not contain '..']"
    );
    let containers = json!([{"name": "c", "image": "i"}]);
    assert_eq!(
        refused_pod(json!({"containers": containers, "volumes": [
            {"name": "a", "hostPath": {"path": "", "type": "Door"}}, {"name": "a", "emptyDir": {}, "configMap": {"name": "x"}},
            {"name": "b", "secret": {"secretName": "s", "defaultMode": 1000}}]})),
        "[spec.volumes[0].hostPath.path: Required value, spec.volumes[0].hostPath.type: Unsupported value: \"Door\": \
         supported values: \"\", \"BlockDevice\", \"CharDevice\", \"Directory\", \"DirectoryOrCreate\", \"File\", \
         \"FileOrCreate\", \"Socket\", spec.volumes[1].configMap: Forbidden: may not specify more than 1 volume type, \
         spec.volumes[1].name: Duplicate value: \"a\", spec.volumes[2].secret.defaultMode: Invalid value: 1000: \
         must be a number between 0 and 0777 (octal), both inclusive]"
    );
}

#[test]
fn amounts() {
    assert_eq!(
        refused_container(json!({"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}})),
        "resources.requests: Invalid value: \"2Gi\": must be less than or equal to memory limit of 1Gi"
    );
    assert_eq!(
        refused_container(json!({"resources": {"limits": {"cpu": "-1", "foo": "1"}}})),
        "[resources.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0, \
         resources.limits[foo]: Invalid value: \"foo\": must be a standard resource type or fully qualified, \
         resources.limits[foo]: Invalid value: \"foo\": must be a standard resource for containers, \
         resources.requests[cpu]: Invalid value: \"-1\": must be greater than or equal to 0, \
         resources.requests[foo]: Invalid value: \"foo\": must be a standard resource type or fully qualified, \
         resources.requests[foo]: Invalid value: \"foo\": must be a standard resource for containers]"
    );
    assert_eq!(refused_container(json!({"resources": {"limits": {"example.com/gpu": 2}}})), "");
}

#[test]
fn probes_and_hooks() {
    let exec = json!({"exec": {"command": ["true"]}});
    assert_eq!(
        refused_container(
            json!({"livenessProbe": {}, "readinessProbe": {"exec": {}, "httpGet": {"port": 80}},
            "startupProbe": {"tcpSocket": {"port": "a--b"}, "successThreshold": 2}})
        ),
        "[livenessProbe: Required value: must specify a handler type, readinessProbe.exec.command: Required value, \
         readinessProbe.httpGet: Forbidden: may not specify more than 1 handler type, \
         startupProbe.tcpSocket.port: Invalid value: \"a--b\": must not contain consecutive hyphens, \
         startupProbe.successThreshold: Invalid value: 2: must be 1]"
    );
    assert_eq!(
        refused_container(json!({"lifecycle": {
            "postStart": {"exec": {"command": ["x"]}, "httpGet": {"port": 80}}, "preStop": {"tcpSocket": {"port": 80}}}})),
        "[lifecycle.postStart.httpGet: Forbidden: may not specify more than 1 handler type, \
         lifecycle.preStop.tcpSocket: Forbidden: is not supported as a lifecycle hook]"
    );
    assert_eq!(
        refused_pod(json!({"containers": [{"name": "c", "image": "i"}], "initContainers": [
            {"name": "i", "image": "i", "livenessProbe": exec, "lifecycle": {}},
            {"name": "s", "image": "i", "livenessProbe": exec, "restartPolicy": "Always"}]})),
        "[spec.initContainers[0].lifecycle: Forbidden: may not be set for init containers without restartPolicy=Always, \
         spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always]"
    );
}

#[test]
fn placement() {
    let refused = |more: Value| {
        let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        refused_pod(spec)
    };
    assert!(
        refused(json!({"nodeSelector": {"a": "b c"}}))
            .starts_with("spec.nodeSelector: Invalid value: \"b c\"")
    );
    assert_eq!(
        refused(json!({"tolerations": [{"operator": "Equal"}, {"key": "k", "operator": "Near"},
            {"key": "k", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 3}]})),
        "[spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, \
         which means \"match all values and all keys\", spec.tolerations[1].operator: Unsupported value: \"Near\": \
         supported values: \"Equal\", \"Exists\", spec.tolerations[2].effect: Invalid value: \"NoSchedule\": \
         effect must be 'NoExecute' when `tolerationSeconds` is set]"
    );
    assert_eq!(
        refused(json!({"topologySpreadConstraints": [
            {"maxSkew": 0, "topologyKey": "", "whenUnsatisfiable": "Cry", "labelSelector": {}}]})),
        "[spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero, \
         spec.topologySpreadConstraints[0].topologyKey: Required value: can not be empty, \
         spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: \"Cry\": supported values: \
         \"DoNotSchedule\", \"ScheduleAnyway\"]"
    );
    assert_eq!(
        refused(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In"}]}]}}}})),
        "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]\
         .matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"
    );
}

/// The error text of an update that applies `change` to a good pod.
fn refused_update(change: impl FnOnce(&mut Value)) -> String {
    let kind = kind("Pod");
    let mut old = pod(
        json!({"containers": [{"name": "c", "image": "i:1"}], "nodeName": "n", "activeDeadlineSeconds": 60}),
    );
    defaults::apply(kind, &mut old);
    let mut new = old.clone();
    change(&mut new);
    let causes = update(kind, &old, &new);
    if causes.is_empty() { String::new() } else { Status::invalid(kind, "x", causes).to_string() }
}

#[test]
fn a_pods_spec_is_fixed() {
    assert_eq!(refused_update(|_| {}), "");
    assert_eq!(refused_update(|p| p["spec"]["containers"][0]["image"] = "i:2".into()), "");
    assert_eq!(refused_update(|p| p["metadata"]["labels"] = json!({"a": "b"})), "");
    assert_eq!(refused_update(|p| p["spec"]["activeDeadlineSeconds"] = 50.into()), "");
    assert_eq!(
        refused_update(|p| p["spec"]["tolerations"]
            .as_array_mut()
            .unwrap()
            .push(json!({"operator": "Exists"}))),
        ""
    );
    assert_eq!(
        refused_update(|p| p["spec"]["nodeName"] = "m".into()),
        "Pod \"x\" is invalid: spec: Forbidden: pod updates may not change fields other than \
         `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` \
         (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it \
         was previously negative)\n- spec.nodeName: \"n\"\n+ spec.nodeName: \"m\""
    );
    assert!(
        refused_update(|p| p["spec"]["containers"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "d", "image": "i",
            "imagePullPolicy": "Always", "terminationMessagePolicy": "File"})))
        .ends_with("spec.containers: Forbidden: pod updates may not add or remove containers")
    );
    assert!(refused_update(|p| p["spec"]["tolerations"] = json!([])).ends_with(
        "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"
    ));
    assert!(refused_update(|p| p["spec"]["activeDeadlineSeconds"] = 70.into()).ends_with(
        "spec.activeDeadlineSeconds: Invalid value: 70: must be less than or equal to previous value"
    ));
    assert!(
        refused_update(|p| p["metadata"]["name"] = "y".into())
            .ends_with("metadata.name: Invalid value: \"y\": field is immutable")
    );
    assert!(
        refused_update(|p| p["spec"]["containers"][0]["image"] = "".into())
            .ends_with("spec.containers[0].image: Required value")
    );
}

#[test]
fn config_maps_and_secrets() {
    let map = |more: Value| {
        let mut object = json!({"metadata": {"name": "a", "namespace": "d"}});
        for (key, value) in more.as_object().unwrap() {
            object[key] = value.clone();
        }
        object
    };
    assert!(
        refusal("ConfigMap", map(json!({"data": {"a/b": "x"}})))
            .contains("data[a/b]: Invalid value: \"a/b\": a valid config key must consist of")
    );
    assert!(
        refusal("ConfigMap", map(json!({"data": {"a": "x".repeat(1 << 20 | 1)}})))
            .ends_with("[]: Too long: may not be more than 1048576 bytes")
    );
    assert!(
        refusal("ConfigMap", map(json!({"data": {"a": "x"}, "binaryData": {"a": "eA=="}})))
            .ends_with("data[a]: Invalid value: \"a\": duplicate of key present in binaryData")
    );
    assert_eq!(
        refusal("Secret", map(json!({"type": "kubernetes.io/tls"}))),
        "Secret \"x\" is invalid: [data[tls.crt]: Required value, data[tls.key]: Required value]"
    );
    let old = map(json!({"data": {"a": "x"}, "immutable": true}));
    let mut new = old.clone();
    new["data"]["a"] = "y".into();
    new["immutable"] = false.into();
    let texts: Vec<String> = update(kind("ConfigMap"), &old, &new).iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "immutable: Forbidden: field is immutable when `immutable` is set",
            "data: Forbidden: field is immutable when `immutable` is set"
        ]
    );
}

#[test]
fn nodes_events_leases_and_bindings() {
    assert!(
        refusal(
            "Node",
            json!({"metadata": {"name": "n"}, "spec": {"taints": [
        {"key": "k", "effect": "NoSchedule"}, {"key": "k", "effect": "NoSchedule"}]}})
        )
        .ends_with("spec.taints[1]: Duplicate value: \"k=:NoSchedule\"")
    );
    assert!(
        refusal("Node", json!({"metadata": {"name": "n"}, "spec": {"podCIDRs": ["10.0.0.0/33"]}}))
            .contains("spec.podCIDRs[0]: Invalid value: \"10.0.0.0/33\": must be a valid CIDR value")
    );
    let old = json!({"metadata": {"name": "n"}, "spec": {"podCIDRs": ["10.0.0.0/24"]}});
    let new =
        json!({"metadata": {"name": "n"}, "spec": {"podCIDRs": ["10.0.1.0/24"], "unschedulable": true}});
    assert_eq!(
        update(kind("Node"), &old, &new)[0].to_string(),
        "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"
    );
    assert!(
        refusal(
            "Event",
            json!({"metadata": {"name": "e", "namespace": "d"}, "involvedObject": {"namespace": "f"}})
        )
        .ends_with("involvedObject.namespace: Invalid value: \"f\": does not match event.namespace")
    );
    assert_eq!(
        refusal(
            "Event",
            json!({"metadata": {"name": "e", "namespace": "default"}, "involvedObject": {"kind": "Node"}})
        ),
        ""
    );
    assert!(
        refusal(
            "Lease",
            json!({"metadata": {"name": "l", "namespace": "d"}, "spec": {"leaseDurationSeconds": 0}})
        )
        .ends_with("spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0")
    );
    assert!(refusal("Binding", json!({"target": {"kind": "Node"}})).ends_with("target.name: Required value"));
}

#[test]
fn a_finalizer_cannot_be_added_to_an_object_that_goes() {
    let old = json!({"metadata": {"name": "a", "namespace": "d", "deletionTimestamp": "2024-01-01T00:00:00Z",
        "finalizers": ["example.com/a"]}});
    let mut new = old.clone();
    new["metadata"]["finalizers"] = json!(["example.com/a", "example.com/b"]);
    assert_eq!(
        update(kind("ConfigMap"), &old, &new)[0].to_string(),
        "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, \
         found new finalizers []string{\"example.com/b\"}"
    );
}

/// As Kubernetes refuses them: the other namespaces belong to the user namespace.
#[test]
fn a_user_namespace_of_its_own_excludes_the_hosts_namespaces() {
    let spec = |extra: serde_json::Value| {
        let mut spec = json!({"hostUsers": false, "restartPolicy": "Never", "dnsPolicy": "Default",
            "containers": [{"name": "c", "image": "i", "imagePullPolicy": "Never",
                "terminationMessagePolicy": "File"}]});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        refusal("Pod", json!({"metadata": {"name": "p", "namespace": "d"}, "spec": spec}))
    };
    assert_eq!(spec(json!({"shareProcessNamespace": true})), "");
    for (field, path) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        let refused = spec(json!({field: true}));
        assert!(
            refused.ends_with(&format!("spec.{path}: Forbidden: when `hostUsers` is false")),
            "{refused}"
        );
    }
}
