//! Against the behaviour that Kubernetes' reference "Server-Side Apply" describes.

mod custom;

use proptest::prelude::*;

use super::*;
use crate::kinds::by_kind;

fn at(minute: i64) -> jiff::Timestamp {
    jiff::Timestamp::new(1_700_000_000 + minute * 60, 0).unwrap()
}

fn by(manager: &str, minute: i64) -> Writer<'_> {
    Writer { manager, subresource: "", now: at(minute) }
}

fn deployment() -> &'static Kind {
    by_kind("apps", "v1", "Deployment").unwrap()
}

fn config_map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "n"}, "data": data})
}

fn config_maps() -> &'static Kind {
    by_kind("", "v1", "ConfigMap").unwrap()
}

/// An object as it lies in the store.
fn stored(mut object: Value) -> Value {
    object["metadata"]["uid"] = json!("u");
    object["metadata"]["creationTimestamp"] = json!("2024-01-01T00:00:00Z");
    object
}

fn applied_by(kind: &Kind, live: &Value, config: &Value, by: Writer<'_>) -> Result<Value, Status> {
    apply(kind, live, Config { object: config, force: false }, by)
}

/// Updates the object as a client that read it would.
fn update(kind: &Kind, live: &Value, by: Writer<'_>, change: impl FnOnce(&mut Value)) -> Value {
    let mut new = live.clone();
    change(&mut new);
    let sent = new["metadata"]["managedFields"].clone();
    track(kind, live, &mut new, &sent, by);
    new
}

/// Manager, operation and fields of each entry.
fn entries(object: &Value) -> Vec<(String, String, Value)> {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    entries.iter().map(|e| (text(&e["manager"]), text(&e["operation"]), e["fieldsV1"].clone())).collect()
}

fn owned(object: &Value, manager: &str) -> Value {
    entries(object).into_iter().find(|(own, ..)| own == manager).map_or(Value::Null, |(.., fields)| fields)
}

fn places(status: &Status) -> Vec<String> {
    let causes = status.to_value()["details"]["causes"].clone();
    causes.as_array().unwrap().iter().map(|cause| cause["field"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_apply_creates_with_the_fields_that_it_sent() {
    let config = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "n", "labels": {"app": "web"}},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}],
                "resources": {}}]}}}});
    let object = applied_by(deployment(), &json!({}), &config, by("me", 0)).unwrap();
    let entry = &object["metadata"]["managedFields"][0];
    assert_eq!(
        *entry,
        json!({"manager": "me", "operation": "Apply", "apiVersion": "apps/v1", "fieldsType": "FieldsV1",
            "time": "2023-11-14T22:13:20Z", "fieldsV1": {
            "f:metadata": {"f:labels": {"f:app": {}}},
            "f:spec": {"f:replicas": {}, "f:selector": {}, "f:template": {
                "f:metadata": {"f:labels": {"f:app": {}}},
                "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:name": {}, "f:image": {},
                    "f:resources": {},
                    "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}}}}})
    );
    assert_eq!(object["spec"], config["spec"]);
}

#[test]
fn another_value_is_a_conflict_the_same_is_shared_and_force_takes_over() {
    let live = stored(
        applied_by(config_maps(), &json!({}), &config_map(json!({"a": "1", "b": "1"})), by("one", 0))
            .unwrap(),
    );
    let other = config_map(json!({"a": "2", "b": "1"}));
    let error = applied_by(config_maps(), &live, &other, by("two", 1)).unwrap_err();
    assert_eq!((error.code(), error.reason()), (409, "Conflict"));
    assert_eq!(error.message(), "Apply failed with 1 conflict: conflict with \"one\": .data.a");
    let cause = &error.to_value()["details"]["causes"][0];
    assert_eq!(
        *cause,
        json!({"reason": "FieldManagerConflict", "message": "conflict with \"one\"", "field": ".data.a"})
    );
    let shared = applied_by(config_maps(), &live, &config_map(json!({"b": "1"})), by("two", 1)).unwrap();
    assert_eq!(shared["data"], json!({"a": "1", "b": "1"}));
    assert_eq!(owned(&shared, "two"), json!({"f:data": {"f:b": {}}}));
    assert_eq!(owned(&shared, "one"), json!({"f:data": {"f:a": {}, "f:b": {}}}));
    let forced = apply(config_maps(), &live, Config { object: &other, force: true }, by("two", 1)).unwrap();
    assert_eq!(forced["data"]["a"], "2");
    assert_eq!(owned(&forced, "one"), json!({"f:data": {"f:b": {}}}));
    assert_eq!(owned(&forced, "two"), json!({"f:data": {"f:a": {}, "f:b": {}}}));
}

#[test]
fn conflicts_of_several_managers_are_listed() {
    let live =
        stored(applied_by(config_maps(), &json!({}), &config_map(json!({"a": "1"})), by("one", 0)).unwrap());
    let live = update(config_maps(), &live, by("edit", 1), |object| {
        object["data"]["b"] = json!("1");
        object["data"]["c"] = json!("1");
    });
    let config = config_map(json!({"a": "2", "b": "2", "c": "2"}));
    let error = applied_by(config_maps(), &live, &config, by("two", 2)).unwrap_err();
    assert_eq!(
        error.message(),
        "Apply failed with 3 conflicts: conflicts with \"edit\" using v1:\n- .data.b\n- .data.c\n\
         conflicts with \"one\":\n- .data.a"
    );
    assert_eq!(places(&error), [".data.b", ".data.c", ".data.a"]);
}

#[test]
fn what_is_applied_no_more_goes_unless_others_own_it() {
    let first = config_map(json!({"a": "1", "b": "1", "c": "1"}));
    let live = stored(applied_by(config_maps(), &json!({}), &first, by("one", 0)).unwrap());
    let live = applied_by(config_maps(), &live, &config_map(json!({"b": "1"})), by("two", 1)).unwrap();
    let live = update(config_maps(), &live, by("edit", 2), |object| object["data"]["d"] = json!("1"));
    let live = applied_by(config_maps(), &live, &config_map(json!({"c": "1"})), by("one", 3)).unwrap();
    assert_eq!(live["data"], json!({"b": "1", "c": "1", "d": "1"}));
    assert_eq!(owned(&live, "one"), json!({"f:data": {"f:c": {}}}));
    let mut nothing = config_map(json!({}));
    nothing.as_object_mut().unwrap().remove("data");
    let live = applied_by(config_maps(), &live, &nothing, by("one", 4)).unwrap();
    assert_eq!(live["data"], json!({"b": "1", "d": "1"}));
    assert_eq!(owned(&live, "one"), Value::Null);
    assert_eq!((&live["metadata"]["name"], &live["metadata"]["uid"]), (&json!("c"), &json!("u")));
}

#[test]
fn items_of_lists_are_owned_one_by_one() {
    let kind = by_kind("", "v1", "Pod").unwrap();
    let pod =
        |spec: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec});
    let live = pod(json!({"containers": [{"name": "a", "image": "a", "env": [{"name": "X", "value": "1"}]},
        {"name": "b", "image": "b"}], "nodeSelector": {"x": "y"}}));
    let live = stored(applied_by(kind, &json!({}), &live, by("one", 0)).unwrap());
    let side = pod(json!({"containers": [{"name": "side", "image": "s"}, {"name": "b", "image": "b"}]}));
    let live = applied_by(kind, &live, &side, by("two", 1)).unwrap();
    let names = |object: &Value| -> Vec<String> {
        let containers = object["spec"]["containers"].as_array().unwrap();
        containers.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&live), ["a", "side", "b"]);
    let less = pod(json!({"containers": [{"name": "a", "image": "a"}], "nodeSelector": {"x": "y"}}));
    let live = applied_by(kind, &live, &less, by("one", 2)).unwrap();
    assert_eq!(names(&live), ["a", "side", "b"]);
    assert_eq!(live["spec"]["containers"][0], json!({"name": "a", "image": "a"}));
    let gone = applied_by(kind, &live, &pod(json!({"containers": []})), by("two", 3)).unwrap();
    assert_eq!(names(&gone), ["a"]);
    let other = pod(json!({"nodeSelector": {"z": "z"}}));
    let error = applied_by(kind, &live, &other, by("two", 3)).unwrap_err();
    assert_eq!(places(&error), [".spec.nodeSelector"]);
    let image = pod(json!({"containers": [{"name": "a", "image": "other"}]}));
    let error = applied_by(kind, &live, &image, by("two", 3)).unwrap_err();
    assert_eq!(places(&error), [".spec.containers[name=\"a\"].image"]);
    let twice = pod(json!({"containers": [{"name": "a"}, {"name": "a"}]}));
    let error = applied_by(kind, &live, &twice, by("two", 3)).unwrap_err();
    assert!(error.message().ends_with("duplicate entries for key [name=\"a\"]"), "{}", error.message());
}

#[test]
fn finalizers_are_a_set() {
    let with = |finalizers: Value| {
        let mut object = config_map(json!({"a": "1"}));
        object["metadata"]["finalizers"] = finalizers;
        object
    };
    let live = stored(applied_by(config_maps(), &json!({}), &with(json!(["x", "y"])), by("one", 0)).unwrap());
    let live = applied_by(config_maps(), &live, &with(json!(["y", "z"])), by("two", 1)).unwrap();
    let live = applied_by(config_maps(), &live, &with(json!(["x"])), by("one", 2)).unwrap();
    assert_eq!(live["metadata"]["finalizers"], json!(["x", "y", "z"]));
    let live = applied_by(config_maps(), &live, &config_map(json!({"a": "1"})), by("two", 3)).unwrap();
    assert_eq!(live["metadata"]["finalizers"], json!(["x"]));
}

#[test]
fn who_updates_owns_what_it_changed() {
    let mut created = stored(config_map(json!({"a": "1"})));
    created["metadata"]["labels"] = json!({"l": "1"});
    track(config_maps(), &Value::Null, &mut created, &Value::Null, by("kubectl-create", 0));
    assert_eq!(
        owned(&created, "kubectl-create"),
        json!({"f:data": {".": {}, "f:a": {}}, "f:metadata": {"f:labels": {".": {}, "f:l": {}}}})
    );
    let edited =
        update(config_maps(), &created, by("kubectl-edit", 1), |object| object["data"]["a"] = json!("2"));
    assert_eq!(owned(&edited, "kubectl-edit"), json!({"f:data": {"f:a": {}}}));
    assert_eq!(owned(&edited, "kubectl-create")["f:data"], json!({}));
    let same = update(config_maps(), &edited, by("other", 2), |_| {});
    assert_eq!(same, edited);
    let removed = update(config_maps(), &edited, by("other", 3), |object| {
        object.as_object_mut().unwrap().remove("data");
    });
    assert_eq!(owned(&removed, "kubectl-create")["f:data"], Value::Null);
    assert_eq!(entries(&removed).len(), 1);
}

#[test]
fn an_apply_that_changes_nothing_leaves_its_time() {
    let config = config_map(json!({"a": "1"}));
    let live = stored(applied_by(config_maps(), &json!({}), &config, by("one", 0)).unwrap());
    assert_eq!(applied_by(config_maps(), &live, &config, by("one", 5)).unwrap(), live);
    let more = applied_by(config_maps(), &live, &config_map(json!({"a": "2"})), by("one", 5)).unwrap();
    assert_eq!(more["metadata"]["managedFields"][0]["time"], "2023-11-14T22:18:20Z");
}

#[test]
fn one_empty_entry_resets_and_none_does_not() {
    let live =
        stored(applied_by(config_maps(), &json!({}), &config_map(json!({"a": "1"})), by("one", 0)).unwrap());
    let kept =
        update(config_maps(), &live, by("edit", 1), |object| object["metadata"]["managedFields"] = json!([]));
    assert_eq!(entries(&kept).len(), 1);
    let reset = update(config_maps(), &live, by("edit", 1), |object| {
        object["metadata"]["managedFields"] = json!([{}])
    });
    assert_eq!(reset["metadata"].get("managedFields"), None);
    let changed = update(config_maps(), &reset, by("edit", 2), |object| object["data"]["a"] = json!("2"));
    assert_eq!(changed["metadata"].get("managedFields"), None);
    let error =
        applied_by(config_maps(), &changed, &config_map(json!({"a": "3"})), by("one", 3)).unwrap_err();
    assert_eq!(
        error.message(),
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.a"
    );
    let same = applied_by(config_maps(), &changed, &config_map(json!({"a": "2"})), by("one", 3)).unwrap();
    assert_eq!(entries(&same).len(), 2);
}

#[test]
fn entries_that_a_client_sends_count() {
    let live =
        stored(applied_by(config_maps(), &json!({}), &config_map(json!({"a": "1"})), by("one", 0)).unwrap());
    let renamed = update(config_maps(), &live, by("kubectl", 1), |object| {
        object["metadata"]["managedFields"][0]["manager"] = json!("two");
    });
    assert_eq!(owned(&renamed, "two"), json!({"f:data": {"f:a": {}}}));
    let nonsense = update(config_maps(), &live, by("kubectl", 1), |object| {
        object["metadata"]["managedFields"][0]["operation"] = json!("Guess");
    });
    assert_eq!(entries(&nonsense), entries(&live));
    let mut config = config_map(json!({}));
    config["metadata"]["managedFields"] = json!([{"manager": "x"}]);
    let error = applied_by(config_maps(), &live, &config, by("one", 1)).unwrap_err();
    assert_eq!((error.code(), error.message()), (400, "metadata.managedFields must be nil"));
}

#[test]
fn kubectl_takes_over_what_it_applied_from_its_side() {
    let config = config_map(json!({"a": "1", "b": "1"}));
    let mut live = stored(config.clone());
    live["metadata"]["annotations"] = json!({LAST_APPLIED: config.to_string()});
    track(config_maps(), &Value::Null, &mut live, &Value::Null, by("kubectl-client-side-apply", 0));
    let changed = config_map(json!({"a": "2", "b": "1"}));
    let error = applied_by(config_maps(), &live, &changed, by("me", 1)).unwrap_err();
    assert!(error.message().contains("kubectl-client-side-apply"), "{}", error.message());
    let taken = applied_by(config_maps(), &live, &changed, by("kubectl", 1)).unwrap();
    assert_eq!(taken["data"]["a"], "2");
    let annotation: Value = serde_json::from_str(object::annotation(&taken, LAST_APPLIED).unwrap()).unwrap();
    assert_eq!(annotation["data"]["a"], "2");
    let edited = update(config_maps(), &live, by("edit", 1), |object| object["data"]["a"] = json!("9"));
    let error = applied_by(config_maps(), &edited, &changed, by("kubectl", 2)).unwrap_err();
    assert_eq!(places(&error), [".data.a"]);
}

#[test]
fn old_updates_are_folded() {
    let mut live =
        stored(applied_by(config_maps(), &json!({}), &config_map(json!({"a": "1"})), by("one", 0)).unwrap());
    for n in 0..15 {
        let manager = format!("m{n:02}");
        live = update(config_maps(), &live, by(&manager, n), |object| object["data"][&manager] = json!("1"));
    }
    let entries = entries(&live);
    assert_eq!(entries.len(), 1 + UPDATERS_MAX);
    assert_eq!(entries[0].0, "one");
    assert_eq!(entries[1].0, "ancient-changes");
    assert_eq!(entries[1].2["f:data"].as_object().unwrap().len(), 6);
    assert_eq!(entries[10].0, "m14");
}

#[test]
fn the_status_is_owned_through_its_subresource() {
    let kind = by_kind("", "v1", "Pod").unwrap();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"nodeName": "n"},
        "status": {"phase": "Running"}});
    let live = stored(applied_by(kind, &json!({}), &pod, by("one", 0)).unwrap());
    assert_eq!(owned(&live, "one"), json!({"f:spec": {"f:nodeName": {}}}));
    let status = Writer { subresource: "status", ..by("two", 1) };
    let live = applied_by(kind, &live, &pod, status).unwrap();
    assert_eq!(owned(&live, "two"), json!({"f:status": {"f:phase": {}}}));
    assert_eq!(live["metadata"]["managedFields"][1]["subresource"], "status");
    let kubelet = Writer { subresource: "status", ..by("kubelet", 2) };
    let live = update(kind, &live, kubelet, |pod| {
        pod["status"] = json!({"phase": "Failed", "conditions": [{"type": "Ready", "status": "False"}]});
    });
    assert_eq!(owned(&live, "two"), Value::Null);
    assert_eq!(
        owned(&live, "kubelet"),
        json!({"f:status": {"f:phase": {}, "f:conditions": {".": {}, "k:{\"type\":\"Ready\"}":
            {".": {}, "f:type": {}, "f:status": {}}}}})
    );
}

#[test]
fn kinds_without_types_merge_as_their_values_tell() {
    let custom = Kind { group: "example.com", kind: "Widget", plural: "widgets", ..config_maps().clone() };
    let widget = |spec: Value| json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": spec});
    let live = stored(
        applied_by(&custom, &json!({}), &widget(json!({"a": {"b": 1}, "l": [1]})), by("one", 0)).unwrap(),
    );
    let live = applied_by(&custom, &live, &widget(json!({"a": {"c": 2}})), by("two", 1)).unwrap();
    assert_eq!(live["spec"], json!({"a": {"b": 1, "c": 2}, "l": [1]}));
    let error = applied_by(&custom, &live, &widget(json!({"l": [2]})), by("two", 2)).unwrap_err();
    assert_eq!(places(&error), [".spec.l"]);
}

fn data() -> impl Strategy<Value = Value> {
    let pairs = prop::collection::btree_map("[a-d]", "[12]", 0..4);
    pairs.prop_map(|pairs| config_map(json!(pairs)))
}

proptest! {
    #[test]
    fn an_apply_sets_its_fields_and_twice_is_once(configs in prop::collection::vec((data(), 0..3_usize), 1..6)) {
        let mut live = json!({});
        for (minute, (config, who)) in configs.iter().enumerate() {
            let writer = by(["one", "two", "three"][*who], i64::try_from(minute).unwrap());
            let next = apply(config_maps(), &live, Config { object: config, force: true }, writer).unwrap();
            for (key, value) in config["data"].as_object().unwrap() {
                prop_assert_eq!(&next["data"][key], value);
            }
            live = stored(next);
            let again = applied_by(config_maps(), &live, config, writer).unwrap();
            prop_assert_eq!(&again, &live);
            // Nothing is there that nobody owns.
            for key in live["data"].as_object().into_iter().flatten().map(|(key, _)| key) {
                let owners = entries(&live);
                let step = format!("f:{key}");
                prop_assert!(owners.iter().any(|(.., fields)| fields["f:data"].get(&step).is_some()));
            }
        }
    }

    #[test]
    fn no_entries_panic(text in "\\PC{0,40}") {
        let mut live = stored(config_map(json!({"a": "1"})));
        live["metadata"]["managedFields"] = json!([{"manager": "m", "operation": "Apply", "apiVersion": "v1",
            "fieldsType": "FieldsV1", "fieldsV1": {&text: {}, format!("k:{text}"): {"f:x": {}}}}]);
        let _ = applied_by(config_maps(), &live, &config_map(json!({"a": "2"})), by("one", 1));
    }
}
