//! The schemas of a document: those that its kinds reach, with merge keys, and their lists.

use serde_json::{Map, Value, json};

use super::{group_version_kind, reference, schema_name};
use crate::crd::KindSet;
use crate::kinds::{Kind, METRICS_GROUP};
use crate::patch::merge_keys::{Rule, Shape, shape};

/// Written by `examples/generate-schemas.rs`.
const GENERATED: &str = include_str!("schemas.json");

const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const ALWAYS: &[&str] = &[
    LIST_META,
    "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Patch",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
];

pub(super) fn of(kinds: &[&Kind], set: &KindSet) -> Map<String, Value> {
    let mut all: Map<String, Value> =
        serde_json::from_str(GENERATED).expect("a test reads the generated schemas");
    all.insert(
        "io.k8s.apimachinery.pkg.apis.meta.v1.Patch".to_owned(),
        json!({"type": "object", "description": "Patch is provided to give a concrete name and type to the Kubernetes PATCH request body."}),
    );
    let mut roots: Vec<String> = ALWAYS.iter().map(|name| (*name).to_owned()).collect();
    for kind in kinds {
        let name = schema_name(kind.group, kind.version, kind.kind);
        if let Some(custom) = set.custom(kind) {
            all.insert(name.clone(), custom.openapi_schema());
        }
        if kind.group == METRICS_GROUP {
            all.insert(name.clone(), crate::metrics::schema(kind.kind));
        }
        // A version that has no types of its own is the same as the stored one.
        let stored = kind.stored_kind();
        if let Some(same) = all.get(&schema_name(stored.group, stored.version, stored.kind)).cloned() {
            all.entry(name.clone()).or_insert(same);
        }
        mark(&mut all, &name, kind.group, kind.version, kind.kind);
        merge_keys(&mut all, &name, shape(kind));
        for sub in kind.subresources.iter().filter(|s| !s.version.is_empty()) {
            let sub_name = schema_name(sub.group, sub.version, sub.kind);
            mark(&mut all, &sub_name, sub.group, sub.version, sub.kind);
            roots.push(sub_name);
        }
        if kind.has_verb("list") {
            let list_name = schema_name(kind.group, kind.version, &kind.list_kind());
            all.insert(list_name.clone(), list(kind, &name));
            roots.push(list_name);
        }
        roots.push(name);
    }
    reachable(&mut all, roots)
}

/// Says which kind a schema is. An object's metadata may be left out, whatever its Rust type says.
fn mark(all: &mut Map<String, Value>, name: &str, group: &str, version: &str, kind: &str) {
    let Some(schema) = all.get_mut(name) else { return };
    schema["x-kubernetes-group-version-kind"] = json!([group_version_kind(group, version, kind)]);
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|field| field != "metadata");
        if required.is_empty()
            && let Some(schema) = schema.as_object_mut()
        {
            schema.remove("required");
        }
    }
}

fn list(kind: &Kind, item: &str) -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({
        "type": "object",
        "description": format!("{} is a list of {} objects.", kind.list_kind(), kind.kind),
        "required": ["items"],
        "properties": {
            "apiVersion": text("APIVersion defines the versioned schema of this representation of an object."),
            "kind": text("Kind is a string value representing the REST resource this object represents."),
            "metadata": {"allOf": [reference(LIST_META)], "description": "Standard list metadata."},
            "items": {"type": "array", "items": reference(item), "description": "The objects."},
        },
        "x-kubernetes-group-version-kind": [group_version_kind(kind.group, kind.version, &kind.list_kind())],
    })
}

/// Writes the merge keys of a shape into the schema and those that it leads to.
fn merge_keys(all: &mut Map<String, Value>, name: &str, shape: &Shape) {
    for (field, rule) in shape.fields {
        let Some(property) = all.get_mut(name).and_then(|s| s["properties"].get_mut(*field)) else {
            continue;
        };
        let next = match rule {
            Rule::Object(shape) => target(property).map(|name| (name, *shape)),
            Rule::List { key, item, retain_keys } => {
                property["x-kubernetes-patch-merge-key"] = Value::from(*key);
                let strategy = if *retain_keys { "merge,retainKeys" } else { "merge" };
                property["x-kubernetes-patch-strategy"] = Value::from(strategy);
                target(&property["items"]).map(|name| (name, *item))
            }
            Rule::Set => {
                property["x-kubernetes-patch-strategy"] = Value::from("merge");
                None
            }
        };
        if let Some((name, shape)) = next {
            merge_keys(all, &name, shape);
        }
    }
}

/// The schema that a property refers to.
fn target(property: &Value) -> Option<String> {
    let direct = property.get("$ref");
    let reference = direct.or_else(|| property.pointer("/allOf/0/$ref"))?.as_str()?;
    reference.rsplit('/').next().map(str::to_owned)
}

/// Keeps the schemas that the roots lead to.
fn reachable(all: &mut Map<String, Value>, mut names: Vec<String>) -> Map<String, Value> {
    let mut kept = Map::new();
    while let Some(name) = names.pop() {
        let Some(schema) = all.remove(&name) else { continue };
        targets(&schema, &mut names);
        kept.insert(name, schema);
    }
    kept
}

fn targets(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            out.extend(target(value));
            members.values().for_each(|member| targets(member, out));
        }
        Value::Array(items) => items.iter().for_each(|item| targets(item, out)),
        _ => {}
    }
}
