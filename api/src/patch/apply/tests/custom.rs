//! Kinds that definitions register: their schemas say which lists have items of their own.

use super::*;

/// A custom kind with every form of list and map that its definition can ask for.
fn gadgets() -> std::sync::Arc<CustomKind> {
    let text = json!({"type": "string"});
    let spec = json!({"type": "object", "properties": {
        "ports": {"type": "array", "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["port", "protocol"],
            "items": {"type": "object", "required": ["port"], "properties": {
                "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"},
                "name": text, "labels": {"type": "object", "additionalProperties": text}}}},
        "zones": {"type": "array", "x-kubernetes-list-type": "set", "items": text},
        "order": {"type": "array", "items": text},
        "whole": {"type": "object", "x-kubernetes-map-type": "atomic", "properties": {"a": text, "b": text}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "template": {"type": "object", "x-kubernetes-embedded-resource": true,
            "x-kubernetes-preserve-unknown-fields": true},
    }});
    let definition = json!({
        "metadata": {"name": "gadgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "gadgets", "singular": "gadget", "kind": "Gadget", "listKind": "GadgetList"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}}]},
        "status": {"conditions": [{"type": "Established", "status": "True"}]},
    });
    CustomKind::of(&definition, 1, &crate::crd::Rows::default()).remove(0)
}

fn gadget(spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "g", "namespace": "n"},
        "spec": spec})
}

/// Applies for two managers in turn, of which the second may not force.
fn by_two(first: Value, second: Value) -> Result<Value, Status> {
    let kind = gadgets();
    let (first, second) = (gadget(first), gadget(second));
    let config = |object| Config { object, force: false };
    let one = apply(&*kind, &json!({}), config(&first), by("one", 0))?;
    apply(&*kind, &stored(one), config(&second), by("two", 1))
}

#[test]
fn a_custom_kinds_lists_and_maps_are_what_its_schema_says() {
    let both = by_two(
        json!({"ports": [{"port": 80, "name": "web", "labels": {"a": "1"}}], "zones": ["x"], "free": {"a": 1}}),
        json!({"ports": [{"port": 80, "protocol": "TCP", "labels": {"b": "2"}}, {"port": 80, "protocol": "UDP"}],
            "zones": ["y"], "free": {"b": [1]}}),
    )
    .unwrap();
    let spec = &both["spec"];
    assert_eq!(spec["zones"], json!(["x", "y"]));
    assert_eq!(spec["free"], json!({"a": 1, "b": [1]}));
    assert_eq!(
        spec["ports"],
        json!([{"port": 80, "protocol": "TCP", "name": "web", "labels": {"a": "1", "b": "2"}},
            {"port": 80, "protocol": "UDP"}])
    );
    assert_eq!(
        owned(&both, "one"),
        json!({"f:spec": {
            "f:free": {"f:a": {}},
            "f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {
                ".": {}, "f:labels": {"f:a": {}}, "f:name": {}, "f:port": {}}},
            "f:zones": {"v:\"x\"": {}}}})
    );

    for (first, second, place) in [
        (json!({"order": ["a"]}), json!({"order": ["b"]}), ".spec.order"),
        (json!({"whole": {"a": "1"}}), json!({"whole": {"b": "1"}}), ".spec.whole"),
        (
            json!({"ports": [{"port": 1, "name": "a"}]}),
            json!({"ports": [{"port": 1, "name": "b"}]}),
            ".spec.ports[port=1,protocol=\"TCP\"].name",
        ),
        (json!({"free": {"l": [1]}}), json!({"free": {"l": [2]}}), ".spec.free.l"),
    ] {
        let conflict = by_two(first, second).unwrap_err();
        assert_eq!(places(&conflict), [place], "{conflict:?}");
    }
}

#[test]
fn items_that_an_applier_of_a_custom_kind_sends_no_more_go() {
    let kind = gadgets();
    let apply_as = |live: &Value, spec: Value, manager, minute| {
        let config = gadget(spec);
        stored(apply(&*kind, live, Config { object: &config, force: false }, by(manager, minute)).unwrap())
    };
    let one =
        apply_as(&json!({}), json!({"zones": ["x", "z"], "ports": [{"port": 1}, {"port": 2}]}), "one", 0);
    let two = apply_as(&one, json!({"zones": ["y", "z"], "ports": [{"port": 2}]}), "two", 1);
    let less = apply_as(&two, json!({"zones": ["x"], "ports": [{"port": 1}]}), "one", 2);
    assert_eq!(less["spec"], json!({"zones": ["x", "y", "z"], "ports": [{"port": 1}, {"port": 2}]}));
    let none = apply_as(&less, json!({}), "one", 3);
    assert_eq!(none["spec"], json!({"zones": ["y", "z"], "ports": [{"port": 2}]}));
}

#[test]
fn metadata_of_custom_objects_is_that_of_all_objects() {
    let kind = gadgets();
    let mut config = gadget(json!({"template": {"metadata": {"finalizers": ["a"]}}}));
    config["metadata"]["finalizers"] = json!(["one"]);
    let one = apply(&*kind, &json!({}), Config { object: &config, force: false }, by("one", 0)).unwrap();
    let mut config = gadget(json!({"template": {"metadata": {"finalizers": ["b"]}}}));
    config["metadata"]["finalizers"] = json!(["two"]);
    let both = apply(&*kind, &stored(one), Config { object: &config, force: false }, by("two", 1)).unwrap();
    assert_eq!(both["metadata"]["finalizers"], json!(["one", "two"]));
    assert_eq!(both["spec"]["template"]["metadata"]["finalizers"], json!(["a", "b"]));

    let mut twice = gadget(json!({"ports": [{"port": 1}, {"port": 1, "protocol": "TCP"}]}));
    let refused =
        apply(&*kind, &json!({}), Config { object: &twice, force: false }, by("one", 0)).unwrap_err();
    assert!(refused.message().contains("duplicate entries for key [port=1,protocol=\"TCP\"]"), "{refused:?}");
    twice["spec"] = json!({"zones": ["a", "a"]});
    apply(&*kind, &json!({}), Config { object: &twice, force: false }, by("one", 0)).unwrap_err();
}

#[test]
fn an_update_of_a_custom_object_owns_what_it_changed() {
    let kind = gadgets();
    let config = gadget(json!({"ports": [{"port": 1, "name": "a"}], "zones": ["x"]}));
    let live =
        stored(apply(&*kind, &json!({}), Config { object: &config, force: false }, by("one", 0)).unwrap());
    let mut new = live.clone();
    new["spec"]["ports"] = json!([{"port": 1, "name": "b"}, {"port": 2}]);
    let sent = new["metadata"]["managedFields"].clone();
    track(&*kind, &live, &mut new, &sent, by("two", 1));
    assert_eq!(
        owned(&new, "two"),
        json!({"f:spec": {"f:ports": {
            "k:{\"port\":1,\"protocol\":\"TCP\"}": {"f:name": {}},
            "k:{\"port\":2,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}}})
    );
}
