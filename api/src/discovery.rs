//! Discovery documents.
//!
//! Owns what a client asks first: which groups, versions and resources there are. Pure functions of the
//! served kinds, both in the form of one document per group and in the aggregated form.

use serde_json::{Value, json};

use crate::crd::KindSet;
use crate::kinds::Kind;

/// `GET /api`: versions of the core group. `server_addresses` are `host:port` texts for in-cluster clients.
pub fn api_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

/// The named groups with their versions, in table order.
pub fn groups(kinds: &KindSet) -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
    for kind in kinds.kinds().iter().filter(|k| !k.group.is_empty()) {
        match groups.iter_mut().find(|(group, _)| *group == kind.group) {
            Some((_, versions)) if versions.contains(&kind.version) => {}
            Some((_, versions)) => versions.push(kind.version),
            None => groups.push((kind.group, vec![kind.version])),
        }
    }
    groups
}

fn group_versions(group: &str, versions: &[&str]) -> Value {
    let versions: Vec<Value> =
        versions.iter().map(|v| json!({"groupVersion": format!("{group}/{v}"), "version": v})).collect();
    json!({"name": group, "preferredVersion": versions[0], "versions": versions})
}

/// `GET /apis`: every named group.
pub fn api_group_list(kinds: &KindSet) -> Value {
    let groups: Vec<Value> = groups(kinds).iter().map(|(g, v)| group_versions(g, v)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `GET /apis/<group>`: one named group.
pub fn api_group(kinds: &KindSet, group: &str) -> Option<Value> {
    let all = groups(kinds);
    let (name, versions) = all.iter().find(|(g, _)| *g == group)?;
    let mut value = group_versions(name, versions);
    value["kind"] = Value::from("APIGroup");
    value["apiVersion"] = Value::from("v1");
    Some(value)
}

/// `GET /api/v1` or `/apis/<group>/<version>`: the resources of one group and version.
pub fn api_resource_list(kinds: &KindSet, group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for kind in kinds.kinds().iter().filter(|k| k.group == group && k.version == version) {
        resources.push(resource(kind));
        for sub in kind.subresources {
            let mut value = json!({
                "name": format!("{}/{}", kind.plural, sub.name),
                "singularName": "",
                "namespaced": kind.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if !sub.group.is_empty() {
                value["group"] = Value::from(sub.group);
                value["version"] = Value::from(sub.version);
            }
            resources.push(value);
        }
    }
    if resources.is_empty() {
        return None;
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": resources,
    }))
}

fn resource(kind: &Kind) -> Value {
    let mut value = json!({
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        value["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        value["categories"] = json!(kind.categories);
    }
    value
}

/// The aggregated form of `GET /api` (`named` false) or `GET /apis` (`named` true):
/// `application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList`. `version` is `v2` or `v2beta1`.
pub fn aggregated(kinds: &KindSet, named: bool, version: &str) -> Value {
    let groups: Vec<(&str, Vec<&str>)> = if named { groups(kinds) } else { vec![("", vec!["v1"])] };
    let items: Vec<Value> = groups
        .iter()
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|v| {
                    let resources: Vec<Value> = kinds
                        .kinds()
                        .iter()
                        .filter(|k| k.group == *group && k.version == *v)
                        .map(|kind| aggregated_resource(kind))
                        .collect();
                    json!({"version": v, "freshness": "Current", "resources": resources})
                })
                .collect();
            let metadata = if group.is_empty() {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": group, "creationTimestamp": null})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resource(kind: &Kind) -> Value {
    let response =
        |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut value = json!({
        "resource": kind.plural,
        "responseKind": response(kind.group, kind.version, kind.kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        value["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        value["categories"] = json!(kind.categories);
    }
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|sub| {
            let (group, version) =
                if sub.version.is_empty() { (kind.group, kind.version) } else { (sub.group, sub.version) };
            json!({
                "subresource": sub.name,
                "responseKind": response(group, version, sub.kind),
                "verbs": sub.verbs,
            })
        })
        .collect();
    if !subresources.is_empty() {
        value["subresources"] = Value::from(subresources);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_group_lists_its_resources() {
        let list = api_resource_list(KindSet::builtin(), "", "v1").unwrap();
        let resources = list["resources"].as_array().unwrap();
        let find = |name: &str| resources.iter().find(|r| r["name"] == name).unwrap();
        assert_eq!(
            find("pods"),
            &json!({"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod",
                "shortNames": ["po"], "categories": ["all"],
                "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]})
        );
        assert_eq!(find("pods/eviction")["group"], "policy");
        assert_eq!(find("nodes")["namespaced"], false);
        assert!(api_resource_list(KindSet::builtin(), "lab.example", "v1").is_none());
    }

    #[test]
    fn groups_name_their_preferred_version() {
        assert_eq!(
            api_group(KindSet::builtin(), "coordination.k8s.io").unwrap(),
            json!({"kind": "APIGroup", "apiVersion": "v1", "name": "coordination.k8s.io",
                "versions": [{"groupVersion": "coordination.k8s.io/v1", "version": "v1"}],
                "preferredVersion": {"groupVersion": "coordination.k8s.io/v1", "version": "v1"}})
        );
        assert_eq!(
            api_group_list(KindSet::builtin())["groups"].as_array().unwrap().len(),
            groups(KindSet::builtin()).len()
        );
        assert!(api_group(KindSet::builtin(), "nope").is_none());
    }

    #[test]
    fn the_aggregated_form_says_the_same() {
        let core = aggregated(KindSet::builtin(), false, "v2");
        let resources = core["items"][0]["versions"][0]["resources"].as_array().unwrap();
        let pods = resources.iter().find(|r| r["resource"] == "pods").unwrap();
        assert_eq!(pods["scope"], "Namespaced");
        let names: Vec<&str> = pods["subresources"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|sub| sub["subresource"].as_str())
            .collect();
        let wanted = [
            "attach",
            "binding",
            "ephemeralcontainers",
            "eviction",
            "exec",
            "log",
            "portforward",
            "proxy",
            "status",
        ];
        assert_eq!(names, wanted);
        assert_eq!(
            aggregated(KindSet::builtin(), true, "v2beta1")["items"][0]["metadata"]["name"],
            "admissionregistration.k8s.io"
        );
    }
}
