//! OpenAPI documents, v3 and v2.
//!
//! Owns one document per group and version: the paths with their operations, and the schemas of the served
//! kinds with their texts, from which `kubectl explain` and `kubectl apply` work. Promises the extensions that
//! `kubectl` looks for: `x-kubernetes-group-version-kind`, the parameters `fieldValidation` and `dryRun`, merge
//! keys of lists. The schemas' texts stand in `schemas.json`, which `examples/generate-schemas.rs` writes.
//! Documents are built when asked for and not kept.

mod paths;
mod schemas;
mod v2;

use serde_json::{Map, Value, json};

use crate::crd::KindSet;
use crate::kinds::{EXTENSIONS_GROUP, Kind, METRICS_GROUP};

/// Groups and versions that have a document, as the index names them: `api/v1`,
/// `apis/coordination.k8s.io/v1`.
pub fn group_versions(kinds: &KindSet) -> Vec<String> {
    let mut names = Vec::new();
    for kind in kinds.kinds() {
        let name = document_name(kind);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn document_name(kind: &Kind) -> String {
    if kind.group.is_empty() {
        format!("api/{}", kind.version)
    } else {
        format!("apis/{}/{}", kind.group, kind.version)
    }
}

/// `GET /openapi/v3`: where the documents are. Each address carries a hash of its document, so that clients
/// may keep what they have read.
pub fn index(kinds: &KindSet, server_version: &str) -> Value {
    let mut paths = Map::new();
    for name in group_versions(kinds) {
        let Some(document) = document(kinds, &name, server_version) else { continue };
        let hash = fnv1a(document.to_string().as_bytes());
        let address = format!("/openapi/v3/{name}?hash={hash:016X}");
        paths.insert(name, json!({"serverRelativeURL": address}));
    }
    json!({"paths": paths})
}

/// `GET /openapi/v3/<name>`: one document. `server_version` is what `/version` gives as `gitVersion`.
pub fn document(kinds: &KindSet, name: &str, server_version: &str) -> Option<Value> {
    let served: Vec<&Kind> = kinds.kinds().iter().copied().filter(|k| document_name(k) == name).collect();
    if served.is_empty() {
        return None;
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": server_version},
        "paths": paths::of(&served),
        "components": {"schemas": schemas::of(&served, kinds)},
    }))
}

/// `GET /openapi/v2`: all in one document, in the older form.
pub fn document_v2(kinds: &KindSet, server_version: &str) -> Value {
    v2::document(kinds, server_version)
}

/// A short hash that is the same on every replica.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn group_version_kind(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

/// The name of a kind's schema.
fn schema_name(group: &str, version: &str, kind: &str) -> String {
    // The groups of custom kinds are domains of somebody else's.
    if group.contains('.') && !group.ends_with(".k8s.io") {
        let reversed: Vec<&str> = group.rsplit('.').collect();
        return format!("{}.{version}.{kind}", reversed.join("."));
    }
    if group == METRICS_GROUP {
        return format!("io.k8s.metrics.pkg.apis.metrics.{version}.{kind}");
    }
    if group == EXTENSIONS_GROUP {
        return format!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.{version}.{kind}");
    }
    let package = match group {
        "" => "core",
        group => group.split('.').next().unwrap_or(group),
    };
    format!("io.k8s.api.{package}.{version}.{kind}")
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` in a value.
    fn references<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
        match value {
            Value::Object(members) => {
                for (key, member) in members {
                    match member.as_str() {
                        Some(target) if key == "$ref" => out.push(target),
                        _ => references(member, out),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, out)),
            _ => {}
        }
    }

    #[test]
    fn the_index_names_every_document() {
        let index = index(KindSet::builtin(), "v1.33.0");
        let paths = index["paths"].as_object().unwrap();
        assert_eq!(
            paths.keys().collect::<Vec<_>>(),
            [
                "api/v1",
                "apis/admissionregistration.k8s.io/v1",
                "apis/apiextensions.k8s.io/v1",
                "apis/apps/v1",
                "apis/authentication.k8s.io/v1",
                "apis/authentication.k8s.io/v1beta1",
                "apis/authorization.k8s.io/v1",
                "apis/autoscaling/v1",
                "apis/autoscaling/v2",
                "apis/batch/v1",
                "apis/certificates.k8s.io/v1",
                "apis/coordination.k8s.io/v1",
                "apis/discovery.k8s.io/v1",
                "apis/events.k8s.io/v1",
                "apis/flowcontrol.apiserver.k8s.io/v1",
                "apis/metrics.k8s.io/v1beta1",
                "apis/networking.k8s.io/v1",
                "apis/node.k8s.io/v1",
                "apis/policy/v1",
                "apis/rbac.authorization.k8s.io/v1",
                "apis/scheduling.k8s.io/v1",
                "apis/storage.k8s.io/v1",
            ]
        );
        let address = paths["api/v1"]["serverRelativeURL"].as_str().unwrap();
        assert!(address.starts_with("/openapi/v3/api/v1?hash="), "{address}");
        assert_eq!(self::index(KindSet::builtin(), "v1.33.0"), index);
        assert_ne!(self::index(KindSet::builtin(), "v1.33.1"), index);
        assert!(document(KindSet::builtin(), "apis/lab.example/v1", "v1.33.0").is_none());
    }

    #[test]
    fn every_reference_leads_to_a_schema() {
        for name in group_versions(KindSet::builtin()) {
            let document = document(KindSet::builtin(), &name, "v1.33.0").unwrap();
            let mut targets = Vec::new();
            references(&document, &mut targets);
            assert!(!targets.is_empty());
            for target in targets {
                let pointer = target.strip_prefix("#/components/schemas/").unwrap();
                assert!(document["components"]["schemas"].get(pointer).is_some(), "{name}: {target}");
            }
        }
    }

    #[test]
    fn a_patch_takes_the_parameters_that_kubectl_looks_for() {
        let document = document(KindSet::builtin(), "api/v1", "v1.33.0").unwrap();
        let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"], group_version_kind("", "v1", "Pod"));
        let parameters: Vec<&str> =
            patch["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
        assert!(parameters.contains(&"fieldValidation") && parameters.contains(&"dryRun"), "{parameters:?}");
        assert!(patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_some());
        assert!(document["paths"].get("/api/v1/nodes/{name}/status").is_some());
        assert!(document["paths"]["/api/v1/pods"].get("post").is_none());
    }

    #[test]
    fn schemas_tell_kinds_and_merge_keys() {
        let document = document(KindSet::builtin(), "api/v1", "v1.33.0").unwrap();
        let schemas = &document["components"]["schemas"];
        let pod = &schemas["io.k8s.api.core.v1.Pod"];
        assert_eq!(pod["x-kubernetes-group-version-kind"], json!([group_version_kind("", "v1", "Pod")]));
        let spec = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"];
        assert_eq!(spec["containers"]["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(spec["containers"]["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(spec["volumes"]["x-kubernetes-patch-strategy"], "merge,retainKeys");
        assert!(spec["tolerations"].get("x-kubernetes-patch-strategy").is_none());
        let container = &schemas["io.k8s.api.core.v1.Container"]["properties"];
        assert_eq!(container["ports"]["x-kubernetes-patch-merge-key"], "containerPort");
        let meta = &schemas["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"]["properties"];
        assert_eq!(meta["finalizers"]["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(schemas["io.k8s.api.core.v1.PodList"]["properties"]["items"]["type"], "array");
        assert!(schemas.get("io.k8s.api.coordination.v1.Lease").is_none());
    }
}
