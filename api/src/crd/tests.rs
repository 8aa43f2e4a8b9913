//! Definitions and objects against each other, as tables: what is refused, in which words.

use serde_json::{Value, json};

use super::*;
use crate::kinds;

/// A definition with a schema for `spec`.
fn definition(spec: Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "crontabs.stable.example.com"},
        "spec": {
            "group": "stable.example.com", "scope": "Namespaced",
            "names": {"plural": "crontabs", "singular": "crontab", "kind": "CronTab", "listKind": "CronTabList",
                "shortNames": ["ct"]},
            "conversion": {"strategy": "None"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}}],
        },
        "status": {"conditions": [{"type": "Established", "status": "True"}], "storedVersions": ["v1"]},
    })
}

fn custom(spec: Value) -> Arc<CustomKind> {
    let definition = definition(spec);
    let causes = causes(&definition);
    assert!(causes.is_empty(), "{causes:?}");
    CustomKind::of(&definition, 1, &Rows::default()).remove(0)
}

fn causes(definition: &Value) -> Vec<String> {
    let mut causes = Vec::new();
    super::definition::check(definition, &mut causes);
    causes.iter().map(ToString::to_string).collect()
}

fn object(spec: Value) -> Value {
    json!({"apiVersion": "stable.example.com/v1", "kind": "CronTab",
        "metadata": {"name": "a", "namespace": "default", "uid": "u", "resourceVersion": "1",
            "creationTimestamp": "2024-01-01T00:00:00Z"},
        "spec": spec})
}

fn refused(custom: &CustomKind, spec: Value) -> Vec<String> {
    let mut object = object(spec);
    custom.default(&mut object);
    let mut causes = Vec::new();
    custom.check(&object, None, &mut causes);
    causes.iter().map(ToString::to_string).collect()
}

#[test]
fn values_are_refused_in_kubernetes_words() {
    let table = [
        (
            json!({"type": "integer"}),
            json!("x"),
            "Invalid value: \"string\": spec.v in body must be of type integer: \"string\"",
        ),
        (json!({"type": "string"}), json!(null), ""),
        (
            json!({"type": "string"}),
            json!(1),
            "Invalid value: \"integer\": spec.v in body must be of type string: \"integer\"",
        ),
        (
            json!({"type": "integer", "minimum": 1, "maximum": 10}),
            json!(11),
            "Invalid value: 11: spec.v in body should be less than or equal to 10",
        ),
        (
            json!({"type": "integer", "minimum": 1}),
            json!(0),
            "Invalid value: 0: spec.v in body should be greater than or equal to 1",
        ),
        (
            json!({"type": "integer", "maximum": 5, "exclusiveMaximum": true}),
            json!(5),
            "Invalid value: 5: spec.v in body should be less than 5",
        ),
        (
            json!({"type": "integer", "multipleOf": 2}),
            json!(3),
            "Invalid value: 3: spec.v in body should be a multiple of 2",
        ),
        (
            json!({"type": "string", "pattern": "^a+$"}),
            json!("b"),
            "Invalid value: \"b\": spec.v in body should match '^a+$'",
        ),
        (
            json!({"type": "string", "minLength": 2}),
            json!("b"),
            "Invalid value: \"b\": spec.v in body should be at least 2 chars long",
        ),
        (json!({"type": "string", "maxLength": 2}), json!("bbb"), "Too long: may not be more than 2 bytes"),
        (
            json!({"type": "string", "enum": ["a", "b"]}),
            json!("c"),
            "Unsupported value: \"c\": supported values: \"a\", \"b\"",
        ),
        (
            json!({"type": "string", "format": "date-time"}),
            json!("c"),
            "Invalid value: \"c\": spec.v in body must be of type date-time: \"c\"",
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "maxItems": 1}),
            json!(["a", "b"]),
            "Too many: 2: must have at most 1 item",
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "minItems": 1}),
            json!([]),
            "Invalid value: 0: spec.v in body should have at least 1 items",
        ),
        (json!({"x-kubernetes-int-or-string": true}), json!("5%"), ""),
        (
            json!({"x-kubernetes-int-or-string": true}),
            json!(true),
            "Invalid value: \"boolean\": spec.v in body must be of type integer,string: \"boolean\"",
        ),
        (json!({"type": "string", "nullable": true}), json!(null), ""),
        (
            json!({"type": "object", "minProperties": 1, "x-kubernetes-preserve-unknown-fields": true}),
            json!({}),
            "Invalid value: 0: spec.v in body should have at least 1 properties",
        ),
        (
            json!({"type": "integer", "not": {"enum": [3]}}),
            json!(3),
            "Invalid value: \"\": \"spec.v\" must not validate the schema (not)",
        ),
        (
            json!({"type": "integer", "anyOf": [{"minimum": 5}, {"maximum": 1}]}),
            json!(3),
            "Invalid value: \"\": \"spec.v\" must validate at least one schema (anyOf)",
        ),
        (
            json!({"type": "integer", "oneOf": [{"minimum": 1}, {"minimum": 2}]}),
            json!(3),
            "Invalid value: \"\": \"spec.v\" must validate one and only one schema (oneOf). Found 2 valid alternatives",
        ),
        (
            json!({"type": "string", "x-kubernetes-validations": [{"rule": "self.startsWith('a')"}]}),
            json!("b"),
            "Invalid value: \"string\": failed rule: self.startsWith('a')",
        ),
    ];
    for (schema, value, wanted) in table {
        let custom = custom(json!({"type": "object", "properties": {"v": schema}}));
        let found = refused(&custom, json!({"v": value}));
        match wanted {
            "" => assert!(found.is_empty(), "{schema} {value}: {found:?}"),
            wanted => assert_eq!(found, [format!("spec.v: {wanted}")], "{schema} {value}"),
        }
    }
}

#[test]
fn lists_maps_and_required_fields() {
    let custom = custom(json!({"type": "object", "required": ["name"], "properties": {
        "name": {"type": "string"},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
            "items": {"type": "object", "required": ["port"], "properties": {
                "port": {"type": "integer"}, "name": {"type": "string", "maxLength": 3}}}},
        "free": {"type": "object", "additionalProperties": {"type": "integer"}}}}));
    let found = refused(
        &custom,
        json!({
            "set": ["a", "b", "a"],
            "ports": [{"port": 1}, {"port": 1, "name": "long"}],
            "free": {"x": "y"},
        }),
    );
    assert_eq!(
        found,
        [
            "spec.name: Required value",
            "spec.free[x]: Invalid value: \"string\": spec.free[x] in body must be of type integer: \"string\"",
            "spec.ports[1]: Duplicate value: {\"port\":1}",
            "spec.ports[1].name: Too long: may not be more than 3 bytes",
            "spec.set[2]: Duplicate value: \"a\"",
        ]
    );
}

#[test]
fn unknown_fields_go_and_defaults_come() {
    let custom = custom(json!({"type": "object", "properties": {
        "a": {"type": "integer", "default": 7},
        "deep": {"type": "object", "default": {}, "properties": {"b": {"type": "string", "default": "x"}}},
        "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "properties": {"known": {"type": "object", "properties": {"c": {"type": "integer"}}}}},
        "inner": {"type": "object", "x-kubernetes-embedded-resource": true,
            "x-kubernetes-preserve-unknown-fields": true},
        "n": {"type": "string", "nullable": true}, "m": {"type": "string"},
        "list": {"type": "array", "items": {"type": "object", "properties": {"d": {"type": "integer", "default": 1}}}}}}));
    let mut value = object(json!({
        "typo": 1, "open": {"kept": {"x": 1}, "known": {"dropped": 1}},
        "inner": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {}},
        "n": null, "m": null, "list": [{}, {"e": 1}],
    }));
    value["extra"] = json!(1);
    value["metadata"]["nonsense"] = json!(1);
    let texts = custom.normalize(&mut value).expect("a CronTab");
    assert_eq!(
        texts,
        [
            "unknown field \"metadata.nonsense\"",
            "unknown field \"extra\"",
            "unknown field \"spec.typo\"",
            "unknown field \"spec.list[1].e\"",
            "unknown field \"spec.open.known.dropped\"",
        ]
    );
    custom.default(&mut value);
    assert_eq!(
        value["spec"],
        json!({
            "a": 7, "deep": {"b": "x"}, "open": {"kept": {"x": 1}, "known": {}},
            "inner": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {}},
            "n": null, "list": [{"d": 1}, {"d": 1}],
        })
    );
    let before = value.clone();
    custom.default(&mut value);
    assert_eq!(custom.normalize(&mut value), Ok(Vec::new()));
    assert_eq!(value, before, "once is enough");
}

#[test]
fn rules_see_old_and_new() {
    let custom = custom(json!({"type": "object",
        "x-kubernetes-validations": [
            {"rule": "self.minReplicas <= self.replicas", "message": "replicas should be at least minReplicas"},
            {"rule": "self.replicas <= 5", "messageExpression": "'at most 5, not ' + string(self.replicas)",
                "reason": "FieldValueForbidden", "fieldPath": ".replicas"}],
        "properties": {
            "minReplicas": {"type": "integer", "default": 0}, "replicas": {"type": "integer", "default": 1},
            "fixed": {"type": "string",
                "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "is immutable"}]},
            "since": {"type": "string", "format": "date-time",
                "x-kubernetes-validations": [{"rule": "self > timestamp('2000-01-01T00:00:00Z')"}]},
            "x-y": {"type": "number", "x-kubernetes-validations": [{"rule": "self + 0.5 > 1.0"}]}}}));
    assert_eq!(
        refused(&custom, json!({"minReplicas": 3, "replicas": 2})),
        ["spec: Invalid value: \"object\": replicas should be at least minReplicas"]
    );
    assert_eq!(refused(&custom, json!({"replicas": 6})), ["spec.replicas: Forbidden: at most 5, not 6"]);
    assert_eq!(refused(&custom, json!({"fixed": "a", "since": "2024-01-01T00:00:00Z", "x-y": 1})), [""; 0]);
    assert_eq!(refused(&custom, json!({"since": "1999-01-01T00:00:00Z"})).len(), 1);
    let (mut old, mut new) = (object(json!({"fixed": "a"})), object(json!({"fixed": "b"})));
    custom.default(&mut old);
    custom.default(&mut new);
    let found: Vec<String> = custom.check_update(&old, &new).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["spec.fixed: Invalid value: \"string\": is immutable"]);
    new["spec"]["fixed"] = json!("a");
    assert!(custom.check_update(&old, &new).is_empty());
}

#[test]
fn rules_that_might_never_end_are_causes() {
    let nested = "self.all(a, self.all(b, self.all(c, self.all(d, a + b + c + d >= 0))))";
    let custom = custom(json!({"type": "object", "properties": {"l": {"type": "array",
        "items": {"type": "integer"}, "x-kubernetes-validations": [{"rule": nested}, {"rule": "false"}]}}}));
    let list: Vec<i32> = (0..2000).collect();
    let found = refused(&custom, json!({"l": list}));
    assert_eq!(
        found,
        [format!(
            "spec.l: Invalid value: \"array\": call cost exceeds limit for rule: {nested}, no further validation rules will be run"
        )]
    );
}

#[test]
fn what_did_not_change_is_not_looked_at_again() {
    let custom = custom(json!({"type": "object", "properties": {
        "a": {"type": "string", "maxLength": 1}, "b": {"type": "string"}}}));
    let (old, new) = (object(json!({"a": "long", "b": "x"})), object(json!({"a": "long", "b": "y"})));
    assert!(custom.check_update(&old, &new).is_empty());
    let worse = object(json!({"a": "longer", "b": "y"}));
    assert_eq!(custom.check_update(&old, &worse).len(), 1);
}

#[test]
fn schemas_must_be_structural() {
    let root = "spec.versions[0].schema.openAPIV3Schema.properties[spec]";
    for (schema, wanted) in [
        (json!({}), format!("{root}.type: Required value: must not be empty for specified object fields")),
        (json!({"type": "array"}), format!("{root}.items: Required value: must be specified")),
        (
            json!({"type": "array", "items": {}}),
            format!("{root}.items.type: Required value: must not be empty for specified array items"),
        ),
        (
            json!({"type": "text"}),
            format!(
                "{root}.type: Unsupported value: \"text\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\""
            ),
        ),
        (json!({"type": "object", "$ref": "#/x"}), format!("{root}.$ref: Forbidden: $ref is not supported")),
        (
            json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true}),
            format!(
                "{root}.uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
            ),
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
            format!(
                "{root}.additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive"
            ),
        ),
        (
            json!({"type": "object", "anyOf": [{"type": "string"}]}),
            format!("{root}.anyOf[0].type: Forbidden: must be empty to be structural"),
        ),
        (
            json!({"type": "object", "anyOf": [{"properties": {"x": {"minimum": 1}}}]}),
            format!(
                "{root}.properties[x]: Required value: because it is defined in {root}.anyOf[0].properties[x]"
            ),
        ),
        (
            json!({"type": "string", "pattern": "("}),
            format!("{root}.pattern: Invalid value: \"(\": must be a valid regular expression, but isn't"),
        ),
        (
            json!({"type": "integer", "default": "x"}),
            format!(
                "{root}.default: Invalid value: \"string\": {root}.default in body must be of type integer: \"string\""
            ),
        ),
        (
            json!({"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}},
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"]}),
            format!(
                "{root}.items.properties[a].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"
            ),
        ),
        (
            json!({"type": "object", "x-kubernetes-validations": [{"rule": "self."}]}),
            format!("{root}.x-kubernetes-validations[0].rule: Invalid value: \"self.\": compilation failed"),
        ),
        (
            json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.nope == 1"}],
            "properties": {"a": {"type": "integer"}}}),
            format!(
                "{root}.x-kubernetes-validations[0].rule: Invalid value: \"self.nope == 1\": compilation failed: ERROR: undefined field 'nope'"
            ),
        ),
    ] {
        let found = causes(&definition(schema.clone()));
        assert!(found.first().is_some_and(|found| found.starts_with(&wanted)), "{schema}: {found:?}");
    }
    assert!(
        causes(&definition(json!({"x-kubernetes-int-or-string": true,
        "anyOf": [{"type": "integer"}, {"type": "string"}]})))
        .is_empty()
    );
}

#[test]
fn definitions_are_checked() {
    let good = json!({"type": "object"});
    for (pointer, value, wanted) in [
        (
            "/metadata/name",
            json!("x"),
            "metadata.name: Invalid value: \"x\": must be spec.names.plural+\".\"+spec.group",
        ),
        (
            "/spec/scope",
            json!("Galaxy"),
            "spec.scope: Unsupported value: \"Galaxy\": supported values: \"Cluster\", \"Namespaced\"",
        ),
        (
            "/spec/names/listKind",
            json!("CronTab"),
            "spec.names.listKind: Invalid value: \"CronTab\": kind and listKind may not be the same",
        ),
        (
            "/spec/versions/0/storage",
            json!(false),
            "spec.versions: Invalid value: [\"v1\"]: must have exactly one version marked as storage version",
        ),
        (
            "/spec/versions/0/schema",
            json!(null),
            "spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required",
        ),
        (
            "/spec/versions/0/additionalPrinterColumns",
            json!([{"name": "X", "type": "text", "jsonPath": ".a"}]),
            "spec.versions[0].additionalPrinterColumns[0].type: Invalid value: \"text\": must be one of boolean,date,integer,number,string",
        ),
        (
            "/spec/versions/0/subresources",
            json!({"scale": {"specReplicasPath": ".x", "statusReplicasPath": ".status.r"}}),
            "spec.versions[0].subresources.scale.specReplicasPath: Invalid value: \".x\": should be a json path under .spec",
        ),
        (
            "/status/storedVersions",
            json!(["v0"]),
            "status.storedVersions[0]: Invalid value: \"v0\": missing from spec.versions; v0 was previously",
        ),
        (
            "/spec/conversion/strategy",
            json!("Webhook"),
            "spec.conversion.webhook.clientConfig: Required value: required when strategy is set to Webhook",
        ),
        (
            "/spec/conversion",
            json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1beta1"],
                "clientConfig": {"service": {"namespace": "d", "name": "c", "path": "x", "port": 0}}}}),
            "spec.conversion.webhook.clientConfig.service.port: Invalid value: 0",
        ),
    ] {
        let mut definition = definition(good.clone());
        match definition.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => definition["spec"]["versions"][0][pointer.rsplit('/').next().unwrap_or_default()] = value,
        }
        let found = causes(&definition);
        assert!(found.first().is_some_and(|found| found.starts_with(wanted)), "{pointer}: {found:?}");
    }
}

#[test]
fn hostile_schemas_are_refused_or_bounded() {
    let mut deep = json!({"type": "string"});
    for _ in 0..100 {
        deep = json!({"type": "object", "properties": {"a": deep}});
    }
    assert!(causes(&definition(deep)).iter().any(|cause| cause.contains("nested at most")));
    let many: serde_json::Map<String, Value> =
        (0..30_000).map(|index| (format!("f{index}"), json!({"type": "string"}))).collect();
    assert!(
        causes(&definition(json!({"type": "object", "properties": many})))
            .iter()
            .any(|c| c.contains("at most"))
    );
    let huge = json!({"type": "string", "pattern": "(((a{1000}){1000}){1000})"});
    assert!(causes(&definition(huge)).iter().any(|cause| cause.contains("regular expression")));
    for odd in
        [json!(null), json!(3), json!([]), json!({"properties": 3, "type": 4, "items": "x", "anyOf": {}})]
    {
        let mut definition = definition(json!({}));
        definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = odd;
        let _ = causes(&definition);
        for custom in CustomKind::of(&definition, 1, &Rows::default()) {
            let _ = refused(&custom, json!({"a": [1, {"b": null}]}));
        }
    }
}

#[test]
fn names_are_accepted_unless_somebody_has_them() {
    let first = definition(json!({"type": "object"}));
    let names = accept(&first, std::iter::empty());
    assert_eq!(names.conflict, None);
    assert_eq!(names.accepted["shortNames"], json!(["ct"]));
    let mut other = first.clone();
    other["metadata"]["name"] = json!("others.stable.example.com");
    other["status"]["acceptedNames"] = json!({"plural": "others", "kind": "CronTab", "shortNames": ["ct"]});
    let names = accept(&first, [&other].into_iter());
    assert_eq!(names.conflict, Some(("ShortNamesConflict".into(), "\"ct\" is already in use".into())));
    assert_eq!(
        names.accepted,
        json!({"plural": "crontabs", "singular": "crontab", "kind": "", "listKind": "CronTabList"})
    );
    other["spec"]["group"] = json!("elsewhere.example.com");
    assert_eq!(accept(&first, [&other].into_iter()).conflict, None);
}

#[test]
fn a_custom_kind_is_a_row_like_others() {
    let mut definition = definition(json!({"type": "object", "properties": {"cronSpec": {"type": "string"},
        "replicas": {"type": "integer"}}}));
    definition["spec"]["versions"][0]["additionalPrinterColumns"] = json!([{"name": "Spec", "type": "string", "jsonPath": ".spec.cronSpec"},
            {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas", "priority": 1},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]);
    definition["spec"]["versions"][0]["subresources"] = json!({"status": {},
        "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}});
    assert_eq!(causes(&definition), [""; 0]);
    let rows = Rows::default();
    let served = CustomKind::of(&definition, 1, &rows);
    let again = CustomKind::of(&definition, 2, &rows);
    assert!(std::ptr::eq(served[0].kind(), again[0].kind()), "equal definitions share a row");
    let set = KindSet::new(served);
    let kind = set.by_resource("stable.example.com", "v1", "crontabs").expect("served");
    assert!(kind.has_status && kind.subresource("scale").is_some());
    assert!(kinds::by_resource("stable.example.com", "v1", "crontabs").is_none());
    let list =
        crate::discovery::api_resource_list(&set, "stable.example.com", "v1").expect("a group version");
    assert_eq!(list["resources"][0]["shortNames"], json!(["ct"]));
    assert_eq!(list["resources"].as_array().map(Vec::len), Some(3));
    let document = crate::openapi::document(&set, "apis/stable.example.com/v1", "v1").expect("a document");
    let schema = &document["components"]["schemas"]["com.example.stable.v1.CronTab"];
    assert_eq!(schema["properties"]["spec"]["properties"]["replicas"]["type"], "integer");
    assert!(document["components"]["schemas"]["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"].is_object());
    let custom = set.custom(kind).expect("custom");
    let now = "2024-01-01T00:01:00Z".parse().expect("a time");
    let table = custom.table(
        &[object(json!({"cronSpec": "* *", "replicas": 3}))],
        now,
        IncludeObject::None,
        json!({}),
    );
    assert_eq!(table["rows"][0]["cells"], json!(["a", "* *", 3, "60s"]));
    assert_eq!(table["columnDefinitions"][2]["priority"], 1);
}
