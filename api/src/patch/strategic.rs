//! Kubernetes' strategic merge patch.
//!
//! Owns the merging of lists by key and the directives: `$patch` (`replace`, `delete`, `merge`), `$retainKeys`,
//! `$deleteFromPrimitiveList/<field>` and `$setElementOrder/<field>`. Promises the order of elements that
//! Kubernetes gives. The merge keys stand in `merge_keys`.

use serde_json::{Map, Value};

use super::merge_keys::{FREE, Rule, Shape, shape};
use crate::kinds::Kind;
use crate::status::Status;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// The document with the patch applied.
pub fn apply(kind: &Kind, document: &Value, patch: &Value) -> Result<Value, Status> {
    let (Value::Object(members), Value::Object(changes)) = (document, patch) else {
        return Err(Status::bad_request("invalid JSON document: a strategic merge patch must be an object"));
    };
    merge_map(members.clone(), changes, shape(kind)).map(Value::Object)
}

fn bad(message: String) -> Status {
    Status::bad_request(message)
}

/// The `$patch` directive of an object.
fn directive(changes: &Map<String, Value>) -> Result<Option<&str>, Status> {
    match changes.get(PATCH) {
        None => Ok(None),
        Some(Value::String(text)) if matches!(text.as_str(), "replace" | "delete" | "merge") => {
            Ok(Some(text))
        }
        Some(other) => Err(bad(format!("unknown patch type found: {other}"))),
    }
}

fn merge_map(
    mut members: Map<String, Value>,
    changes: &Map<String, Value>,
    shape: &Shape,
) -> Result<Map<String, Value>, Status> {
    match directive(changes)? {
        Some("replace") => return Ok(without_directives_map(changes)),
        Some("delete") => return Ok(Map::new()),
        _ => {}
    }
    retain_keys(&mut members, changes)?;
    for (key, values) in changes {
        if let Some(field) = key.strip_prefix(DELETE_PRIMITIVES) {
            delete_primitives(&mut members, field, values)?;
        }
    }
    let before: Map<String, Value> = changes
        .keys()
        .filter_map(|key| key.strip_prefix(ELEMENT_ORDER))
        .filter_map(|field| Some((field.to_owned(), members.get(field)?.clone())))
        .collect();
    for (key, change) in changes.iter().filter(|(key, _)| !key.starts_with('$')) {
        let Some(change) = merge_member(members.remove(key), change, shape.rule(key))? else { continue };
        members.insert(key.clone(), change);
    }
    for (key, order) in changes {
        let Some(field) = key.strip_prefix(ELEMENT_ORDER) else { continue };
        let Some(order) = order.as_array() else {
            return Err(bad(format!("invalid $setElementOrder list: {field} is not a list")));
        };
        let merge_key = match shape.rule(field) {
            Some(Rule::List { key, .. }) => Some(*key),
            _ => None,
        };
        let empty = Vec::new();
        let server = before.get(field).and_then(Value::as_array).unwrap_or(&empty);
        if let Some(Value::Array(items)) = members.get_mut(field) {
            *items = ordered(std::mem::take(items), order, server, merge_key);
        }
    }
    Ok(members)
}

/// The member after the change; `None` when it is deleted.
fn merge_member(before: Option<Value>, change: &Value, rule: Option<&Rule>) -> Result<Option<Value>, Status> {
    if change.is_null() {
        return Ok(None);
    }
    Ok(Some(match (before, change) {
        (Some(Value::Object(members)), Value::Object(changes)) => {
            let shape = match rule {
                Some(Rule::Object(shape)) => shape,
                _ => &FREE,
            };
            Value::Object(merge_map(members, changes, shape)?)
        }
        (Some(Value::Array(items)), Value::Array(changes)) => match rule {
            Some(Rule::List { key, item, .. }) => Value::Array(merge_list(items, changes, key, item)?),
            Some(Rule::Set) => Value::Array(merge_set(items, changes)),
            _ => without_directives(change),
        },
        _ => without_directives(change),
    }))
}

fn retain_keys(members: &mut Map<String, Value>, changes: &Map<String, Value>) -> Result<(), Status> {
    let Some(keys) = changes.get(RETAIN_KEYS) else { return Ok(()) };
    let keys: Vec<&str> = keys.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (key, change) in changes {
        if !key.starts_with('$') && !change.is_null() && !keys.contains(&key.as_str()) {
            return Err(bad(format!(
                "invalid patch format of retainKeys: {key} is changed but not among the retained keys"
            )));
        }
    }
    members.retain(|key, _| keys.contains(&key.as_str()));
    Ok(())
}

fn delete_primitives(members: &mut Map<String, Value>, field: &str, values: &Value) -> Result<(), Status> {
    let Some(values) = values.as_array() else {
        return Err(bad(format!("invalid patch format of primitive list: {DELETE_PRIMITIVES}{field}")));
    };
    if let Some(Value::Array(items)) = members.get_mut(field) {
        items.retain(|item| !values.contains(item));
    }
    Ok(())
}

fn merge_list(
    items: Vec<Value>,
    changes: &[Value],
    key: &str,
    item_shape: &Shape,
) -> Result<Vec<Value>, Status> {
    let mut plain: Vec<(&Value, &Map<String, Value>)> = Vec::new();
    let mut merged = items.clone();
    let mut replaced = false;
    for change in changes {
        let Value::Object(change) = change else {
            return Err(bad(format!("expected an object with the key {key} in the list, found {change}")));
        };
        match (directive(change)?, change.get(key)) {
            (Some("replace"), _) => replaced = true,
            (_, None) => {
                return Err(bad(format!(
                    "map: {} does not contain declared merge key: {key}",
                    Value::Object(change.clone())
                )));
            }
            (Some("delete"), Some(id)) => merged.retain(|item| item.get(key) != Some(id)),
            (_, Some(id)) => plain.push((id, change)),
        }
    }
    if replaced {
        return Ok(plain
            .into_iter()
            .map(|(_, change)| Value::Object(without_directives_map(change)))
            .collect());
    }
    for (id, change) in &plain {
        let place = merged.iter().position(|item| item.get(key) == Some(*id));
        match place {
            Some(index) => {
                if let Value::Object(members) = merged[index].take() {
                    merged[index] = Value::Object(merge_map(members, change, item_shape)?);
                }
            }
            None => merged.push(Value::Object(without_directives_map(change))),
        }
    }
    let order: Vec<Value> = plain.iter().map(|(_, change)| Value::Object((*change).clone())).collect();
    Ok(ordered(merged, &order, &items, Some(key)))
}

fn merge_set(items: Vec<Value>, changes: &[Value]) -> Vec<Value> {
    let mut merged: Vec<Value> = Vec::with_capacity(items.len() + changes.len());
    for item in items.iter().chain(changes) {
        if !merged.contains(item) {
            merged.push(item.clone());
        }
    }
    ordered(merged, changes, &items, None)
}

fn same(a: &Value, b: &Value, key: Option<&str>) -> bool {
    match key {
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        None => a == b,
    }
}

fn index(list: &[Value], item: &Value, key: Option<&str>) -> Option<usize> {
    list.iter().position(|other| same(item, other, key))
}

/// The items that the patch orders, in its order, woven with the others in the server's order: another goes
/// first where the server had it before the next ordered one.
fn ordered(items: Vec<Value>, order: &[Value], server: &[Value], key: Option<&str>) -> Vec<Value> {
    let (mut right, mut left): (Vec<Value>, Vec<Value>) =
        items.into_iter().partition(|item| index(order, item, key).is_some());
    right.sort_by_key(|item| index(order, item, key));
    left.sort_by_key(|item| index(server, item, key).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(left.len() + right.len());
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    loop {
        let take_left = match (left.peek(), right.peek()) {
            (None, None) => return out,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(l), Some(r)) => match (index(server, l, key), index(server, r, key)) {
                (Some(l), Some(r)) => l < r,
                _ => false,
            },
        };
        out.extend(if take_left { left.next() } else { right.next() });
    }
}

/// A patch's value as it is stored where there was nothing before: no directives, no nulls in objects.
fn without_directives(value: &Value) -> Value {
    match value {
        Value::Object(members) => Value::Object(without_directives_map(members)),
        Value::Array(items) => Value::Array(
            items
                .iter()
                .filter(|item| item.get(PATCH).is_none_or(|d| d == "merge"))
                .map(without_directives)
                .collect(),
        ),
        other => other.clone(),
    }
}

fn without_directives_map(members: &Map<String, Value>) -> Map<String, Value> {
    members
        .iter()
        .filter(|(key, value)| !value.is_null() && !is_directive(key))
        .map(|(key, value)| (key.clone(), without_directives(value)))
        .collect()
}

fn is_directive(key: &str) -> bool {
    key == PATCH || key == RETAIN_KEYS || key.starts_with(DELETE_PRIMITIVES) || key.starts_with(ELEMENT_ORDER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::by_kind;
    use proptest::prelude::*;
    use serde_json::json;

    fn pod(document: Value, patch: Value) -> Value {
        apply(by_kind("", "v1", "Pod").unwrap(), &document, &patch).unwrap()
    }

    fn names(value: &Value, pointer: &str) -> Vec<String> {
        value
            .pointer(pointer)
            .unwrap()
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v["name"].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn containers_merge_by_name_and_their_lists_by_their_keys() {
        let document = json!({"spec": {"containers": [
            {"name": "a", "image": "a:1", "args": ["x"], "ports": [{"containerPort": 80, "name": "web"}]},
            {"name": "b", "image": "b:1", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]}]}});
        let patch = json!({"spec": {"containers": [
            {"name": "b", "env": [{"name": "Y", "value": "3"}, {"name": "X", "$patch": "delete"}]},
            {"name": "a", "image": "a:2", "args": ["y"], "ports": [{"containerPort": 80, "protocol": "UDP"}]}],
            "$setElementOrder/containers": [{"name": "a"}, {"name": "b"}]}});
        assert_eq!(
            pod(document, patch),
            json!({"spec": {"containers": [
                {"name": "a", "image": "a:2", "args": ["y"],
                    "ports": [{"containerPort": 80, "name": "web", "protocol": "UDP"}]},
                {"name": "b", "image": "b:1", "env": [{"name": "Y", "value": "3"}]}]}})
        );
    }

    #[test]
    fn null_deletes_and_new_values_lose_nulls_and_directives() {
        let document = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"nodeName": "n"}});
        let patch = json!({
            "metadata": {"labels": {"a": null, "c": "3"}, "annotations": {"x": null, "y": "z"}},
            "spec": {"securityContext": {"$patch": "merge", "runAsUser": 1, "fsGroup": null}},
        });
        assert_eq!(
            pod(document, patch),
            json!({"metadata": {"labels": {"b": "2", "c": "3"}, "annotations": {"y": "z"}},
                "spec": {"nodeName": "n", "securityContext": {"runAsUser": 1}}})
        );
    }

    #[test]
    fn directives_replace_delete_and_retain() {
        let document = json!({
            "metadata": {"finalizers": ["a", "b", "c"]},
            "spec": {
                "securityContext": {"runAsUser": 1, "fsGroup": 2},
                "containers": [{"name": "a"}, {"name": "b"}],
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {}}],
                "tolerations": [{"key": "x"}],
            }
        });
        let patch = json!({
            "metadata": {"$deleteFromPrimitiveList/finalizers": ["b"], "finalizers": ["d"]},
            "spec": {
                "securityContext": {"$patch": "replace", "runAsUser": 3},
                "containers": [{"$patch": "replace"}, {"name": "z"}],
                "volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}},
                    {"$patch": "delete", "name": "w"}],
                "tolerations": [{"key": "y"}],
            }
        });
        assert_eq!(
            pod(document, patch),
            json!({
                "metadata": {"finalizers": ["d", "a", "c"]},
                "spec": {
                    "securityContext": {"runAsUser": 3},
                    "containers": [{"name": "z"}],
                    "volumes": [{"name": "v", "configMap": {"name": "c"}}],
                    "tolerations": [{"key": "y"}],
                }
            })
        );
    }

    #[test]
    fn the_order_is_the_patchs_woven_into_the_servers() {
        let document = json!({"spec": {"containers": [{"name": "sidecar"}, {"name": "a"}, {"name": "b"}]}});
        let patch = json!({"spec": {
            "$setElementOrder/containers": [{"name": "b"}, {"name": "c"}, {"name": "a"}],
            "containers": [{"name": "c"}]}});
        assert_eq!(names(&pod(document, patch), "/spec/containers"), ["sidecar", "b", "c", "a"]);
        let document = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        let patch = json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}});
        assert_eq!(names(&pod(document, patch), "/spec/containers"), ["b", "a"]);
    }

    #[test]
    fn node_lists() {
        let node = by_kind("", "v1", "Node").unwrap();
        let document = json!({"spec": {"taints": [{"key": "a"}, {"key": "b"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "PIDPressure", "status": "False"}]}});
        let patch = json!({"spec": {"taints": [{"key": "b"}]},
            "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
        assert_eq!(
            apply(node, &document, &patch).unwrap(),
            json!({"spec": {"taints": [{"key": "b"}]}, "status": {"conditions": [
                {"type": "Ready", "status": "Unknown"}, {"type": "PIDPressure", "status": "False"}]}})
        );
    }

    #[test]
    fn what_kubectl_apply_sends() {
        let document = json!({"spec": {
            "containers": [{"name": "hello", "image": "lab/hello:1.0", "imagePullPolicy": "IfNotPresent",
                "ports": [{"containerPort": 8080, "protocol": "TCP"}]}],
            "volumes": [{"name": "v", "emptyDir": {}}]}});
        let patch = json!({"metadata": {"labels": {"a": "b"}}, "spec": {
            "$setElementOrder/containers": [{"name": "sidecar"}, {"name": "hello"}],
            "$setElementOrder/volumes": [{"name": "v"}],
            "containers": [{"image": "x:1", "name": "sidecar"},
                {"$setElementOrder/ports": [{"containerPort": 8080}], "image": "lab/hello:2.0", "name": "hello",
                    "ports": [{"containerPort": 8080, "name": "web"}]}],
            "volumes": [{"$retainKeys": ["configMap", "name"], "configMap": {"name": "c"}, "emptyDir": null,
                "name": "v"}]}});
        assert_eq!(
            pod(document, patch),
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {
                "containers": [{"image": "x:1", "name": "sidecar"},
                    {"name": "hello", "image": "lab/hello:2.0", "imagePullPolicy": "IfNotPresent",
                        "ports": [{"containerPort": 8080, "name": "web", "protocol": "TCP"}]}],
                "volumes": [{"name": "v", "configMap": {"name": "c"}}]}})
        );
    }

    #[test]
    fn malformed_patches_are_refused() {
        let kind = by_kind("", "v1", "Pod").unwrap();
        let document = json!({"spec": {"containers": [{"name": "a"}]}});
        for (patch, message) in [
            (
                json!({"spec": {"containers": [{"image": "x"}]}}),
                "map: {\"image\":\"x\"} does not contain declared merge key: name",
            ),
            (json!({"spec": {"$patch": "explode"}}), "unknown patch type found: \"explode\""),
            (json!([]), "invalid JSON document: a strategic merge patch must be an object"),
        ] {
            let error = apply(kind, &document, &patch).unwrap_err();
            assert_eq!((error.code(), error.message()), (400, message));
        }
    }

    proptest! {
        #[test]
        fn patching_twice_changes_nothing_more(
            have in proptest::sample::subsequence(vec!["a", "b", "c", "d", "e"], 0..=5),
            change in proptest::sample::subsequence(vec!["e", "d", "c", "x", "y"], 0..=5),
        ) {
            let list = |names: &[&str]| names.iter().map(|n| json!({"name": n})).collect::<Vec<_>>();
            let document = json!({"spec": {"containers": list(&have)}});
            let patch = json!({"spec": {"containers": list(&change), "$setElementOrder/containers": list(&change)}});
            let once = pod(document, patch.clone());
            let all = names(&once, "/spec/containers");
            let patched: Vec<&String> = all.iter().filter(|n| change.contains(&n.as_str())).collect();
            prop_assert_eq!(patched, change.iter().collect::<Vec<_>>());
            prop_assert_eq!(pod(once.clone(), patch), once);
        }
    }
}
