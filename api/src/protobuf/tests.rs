use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::protobuf::table::tests::lacks as table_lacks;
use crate::protobuf::table::{Count, Type};

/// What kubectl 1.33 sends for `create namespace other`, and so on; 1.32 sends the same.
const NAMESPACE: &[u8] = b"k8s\x00\n\x0f\n\x02v1\x12\tNamespace\x12\x1d\n\x15\n\x05other\x12\x00\x1a\x00\"\x00*\x002\x008\x00B\x00\x12\x00\x1a\x02\n\x00\x1a\x00\"\x00";
const CONFIG_MAP: &[u8] = b"k8s\x00\n\x0f\n\x02v1\x12\tConfigMap\x12\"\n\x11\n\x01d\x12\x00\x1a\x00\"\x00*\x002\x008\x00B\x00\x12\x06\n\x01a\x12\x01b\x12\x05\n\x01e\x12\x00\x1a\x00\"\x00";
const SECRET: &[u8] = b"k8s\x00\n\x0c\n\x02v1\x12\x06Secret\x12\x1d\n\x11\n\x01s\x12\x00\x1a\x00\"\x00*\x002\x008\x00B\x00\x12\x06\n\x01a\x12\x01b\x1a\x00\x1a\x00\"\x00";
const SERVICE_ACCOUNT: &[u8] = b"k8s\x00\n\x14\n\x02v1\x12\x0eServiceAccount\x12\x17\n\x15\n\x05robot\x12\x00\x1a\x00\"\x00*\x002\x008\x00B\x00\x1a\x00\"\x00";

const CAPTURED: [&[u8]; 4] = [NAMESPACE, CONFIG_MAP, SECRET, SERVICE_ACCOUNT];

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
    bytes
}

fn number(field: u64, value: i64) -> Vec<u8> {
    [varint(field << 3), varint(value.cast_unsigned())].concat()
}

fn bytes(field: u64, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    [varint(field << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
}

fn entry(field: u64, key: &str, value: &[u8]) -> Vec<u8> {
    bytes(field, [bytes(1, key), bytes(2, value)].concat())
}

fn time(field: u64, seconds: i64, nanos: i64) -> Vec<u8> {
    bytes(field, [number(1, seconds), number(2, nanos)].concat())
}

fn body(api_version: &str, kind: &str, fields: &[Vec<u8>]) -> Vec<u8> {
    let type_meta = [bytes(1, api_version), bytes(2, kind)].concat();
    [MAGIC.to_vec(), bytes(1, type_meta), bytes(2, fields.concat()), bytes(3, ""), bytes(4, "")].concat()
}

fn read(api_version: &str, kind: &str, fields: &[Vec<u8>]) -> Value {
    decode(&body(api_version, kind, fields)).unwrap()
}

/// The text and the problem of a malformed body.
fn refused(api_version: &str, kind: &str, fields: &[Vec<u8>]) -> (String, Problem) {
    match decode(&body(api_version, kind, fields)).unwrap_err() {
        Error::Malformed(error) => (error.to_string(), error.problem()),
        error => panic!("{error}"),
    }
}

#[test]
fn what_kubectl_sends_becomes_what_it_sent_before_as_json() {
    let object =
        |kind: &str, name: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}});
    assert_eq!(decode(NAMESPACE).unwrap(), object("Namespace", "other"));
    let mut config_map = object("ConfigMap", "d");
    config_map["data"] = json!({"a": "b", "e": ""});
    assert_eq!(decode(CONFIG_MAP).unwrap(), config_map);
    let mut secret = object("Secret", "s");
    secret["data"] = json!({"a": "Yg=="});
    assert_eq!(decode(SECRET).unwrap(), secret);
    assert_eq!(decode(SERVICE_ACCOUNT).unwrap(), object("ServiceAccount", "robot"));
}

/// What kubectl 1.33 sends for a `create`, and what it prints for the same with `--dry-run=client -o json`.
macro_rules! captured {
    ($($name:literal),*) => {
        [$(($name, &include_bytes!(concat!("testdata/", $name, ".pb"))[..],
            include_str!(concat!("testdata/", $name, ".json")))),*]
    };
}

/// Without what Go's encoder of JSON writes though nobody set it.
fn without_nothing(value: Value) -> Value {
    let is_something = |value: &Value| !value.is_null() && value.as_object().is_none_or(|o| !o.is_empty());
    match value {
        Value::Object(members) => {
            let members = members.into_iter().map(|(key, value)| (key, without_nothing(value)));
            Value::Object(members.filter(|(_, value)| is_something(value)).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nothing).collect()),
        other => other,
    }
}

#[test]
fn kubectl_means_the_same_in_both_formats() {
    for (name, protobuf, text) in captured![
        "clusterrole",
        "clusterrolebinding",
        "deployment",
        "headless",
        "ingress",
        "pdb",
        "priorityclass",
        "quota",
        "secret",
        "service"
    ] {
        let (mut from_protobuf, text) = (decode(protobuf).unwrap(), serde_json::from_str(text).unwrap());
        let mut text: Value = text;
        for value in [&mut from_protobuf, &mut text] {
            // The dry run fills in the namespace, and leaves out the only zero.
            value["metadata"].as_object_mut().unwrap().remove("namespace");
            if name == "pdb" {
                value.as_object_mut().unwrap().remove("status");
            }
        }
        assert_eq!(without_nothing(from_protobuf.clone()), without_nothing(text), "{name}");
        let kind = from_protobuf["kind"].as_str().unwrap().to_owned();
        let encoder = Encoder::new(from_protobuf["apiVersion"].as_str().unwrap(), &kind).unwrap();
        let again = decode(&encoder.object(from_protobuf.to_string().as_bytes()).unwrap()).unwrap();
        assert_eq!(again, from_protobuf, "{name}");
    }
    let job = decode(include_bytes!("testdata/job.pb")).unwrap();
    assert_eq!(job["spec"]["template"]["spec"]["containers"][0]["command"], json!(["sh", "-c", "exit"]));
    let cron_job = decode(include_bytes!("testdata/cronjob.pb")).unwrap();
    assert_eq!(cron_job["spec"]["schedule"], "*/5 * * * *");
    let template = &cron_job["spec"]["jobTemplate"]["spec"]["template"];
    assert_eq!(template["spec"]["restartPolicy"], "OnFailure");
}

/// Makes objects of a message with any of its fields; the seed decides which.
struct Maker(u64);

impl Maker {
    fn below(&mut self, bound: u64) -> u64 {
        // Knuth's multiplier for linear congruences; the upper bits are the better ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn object(&mut self, id: MessageId, depth: usize) -> Value {
        let mut object = Map::new();
        for named in table::get(id).members() {
            let field = named.field;
            let deep = matches!(field.ty, Type::Message(_)) || field.name == "not";
            if self.below(3) == 0 || (depth == 0 && deep) {
                continue;
            }
            let count = 1 + self.below(3);
            let value = match field.count {
                Count::One => self.value(field.ty, depth),
                Count::Many => (0..count).map(|_| self.value(field.ty, depth)).collect(),
                Count::Map => {
                    let mut entries = Map::new();
                    for n in 0..count {
                        entries.insert(format!("k{n}"), self.value(field.ty, depth));
                    }
                    Value::Object(entries)
                }
            };
            let nothing = value.as_object().is_some_and(Map::is_empty) && !field.is_optional;
            if !nothing || field.is_required {
                object.insert(field.name.to_owned(), value);
            }
        }
        Value::Object(object)
    }

    fn value(&mut self, ty: Type, depth: usize) -> Value {
        let number = i64::try_from(self.below(1 << 31)).unwrap() + 1;
        match ty {
            Type::Text => json!(format!("text-{number}")),
            Type::Bool => json!(true),
            Type::Int32 => json!(-(number / 2) - 1),
            Type::Int64 => json!(number << 20),
            Type::Double => json!(number as f64 + 0.5),
            Type::Bytes => json!("AAECAw=="),
            Type::Time => json!(object_time(number)),
            Type::MicroTime => json!(object_time(number).replace('Z', ".000001Z")),
            Type::Quantity => json!(format!("{number}m")),
            Type::IntOrString if number % 2 == 0 => json!(number / 2),
            Type::IntOrString => json!("50%"),
            Type::Json | Type::Raw => {
                json!({"f:a": {"k:{\"x\":1}": {".": {}}, "n": [1, -2.5, null, true, "\n"]}})
            }
            Type::Texts => json!(["a", "b"]),
            Type::SchemaOrBool(_) if number % 2 == 0 => json!(false),
            Type::SchemaOrTexts(_) if number % 2 == 0 => json!(["x"]),
            Type::SchemaOrArray(id) if number % 2 == 0 => json!([self.object(id, depth.saturating_sub(1))]),
            Type::SchemaOrArray(id)
            | Type::SchemaOrBool(id)
            | Type::SchemaOrTexts(id)
            | Type::Message(id) => match depth.checked_sub(1) {
                Some(depth) => self.object(id, depth),
                None => json!({}),
            },
        }
    }
}

fn object_time(second: i64) -> String {
    crate::object::timestamp(jiff::Timestamp::new(second, 0).unwrap())
}

#[test]
fn tables_and_types_agree() {
    for seed in 0..4 {
        for kind in crate::kinds().iter().filter(|kind| !table_lacks(kind.group)) {
            let message = table::message(&kind.api_version(), kind.kind).unwrap();
            let mut object = Maker(seed).object(message, 12);
            for (kind_name, required) in [("Binding", "target"), ("Event", "involvedObject")] {
                if kind.group.is_empty() && kind.kind == kind_name && object.get(required).is_none() {
                    object[required] = json!({});
                }
            }
            // Its type demands what Kubernetes' only says to be there.
            let conditions = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
            for condition in conditions.into_iter().flatten() {
                if condition.get("lastTransitionTime").is_none() {
                    condition["lastTransitionTime"] = json!("2024-01-01T00:00:00Z");
                }
            }
            if let Some(series) = object.get_mut("series").filter(|series| series.is_object()) {
                series["count"] = json!(2);
                series["lastObservedTime"] = json!("2024-01-01T00:00:00.000000Z");
            }
            let unknown = crate::decode::decode(kind, &object).unwrap();
            assert_eq!(unknown, Vec::<String>::new(), "{}", kind.kind);
        }
    }
}

#[test]
fn lists_carry_their_version_and_items() {
    let kind = crate::kinds::by_kind("", "v1", "ConfigMap").unwrap();
    let items = [json!({"metadata": {"name": "a"}, "data": {"x": "y"}}), json!({"metadata": {"name": "b"}})];
    let mut left = items.iter();
    let meta = json!({"resourceVersion": "7", "continue": "more", "remainingItemCount": 0});
    let encoder = Encoder::new(&kind.api_version(), kind.kind).unwrap();
    let body = encoder
        .list(&meta, |out| {
            let Some(item) = left.next() else { return false };
            out.extend(item.to_string().as_bytes());
            true
        })
        .unwrap();
    let expected = json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": meta, "items": items});
    assert_eq!(decode(&body).unwrap(), expected);
}

#[test]
fn a_watch_frame_tells_its_length_and_holds_an_enveloped_object() {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 410,
        "reason": "Expired", "message": "too old", "details": {"retryAfterSeconds": 1}});
    let object = Encoder::new("v1", "Status").unwrap().object(status.to_string().as_bytes()).unwrap();
    let frame = watch_frame("ERROR", &object);
    let (length, event) = frame.split_first_chunk::<4>().unwrap();
    assert_eq!(u32::from_be_bytes(*length) as usize, event.len());
    // The event itself has no envelope; it is read here as if it had one.
    let event = decode(&body("v1", "WatchEvent", &[event.to_vec()])).unwrap();
    assert_eq!(event["type"], "ERROR");
    assert_eq!(event["object"]["reason"], "Expired");
    assert_eq!(event["object"]["details"]["retryAfterSeconds"], 1);
}

#[test]
fn json_of_the_wrong_type_is_refused() {
    let encoder = Encoder::new("v1", "Pod").unwrap();
    for json in [
        json!([]),
        json!({"metadata": 3}),
        json!({"spec": {"containers": {}}}),
        json!({"spec": {"containers": [{"name": 1}]}}),
        json!({"spec": {"priority": 3_000_000_000_i64}}),
        json!({"spec": {"priority": 1.5}}),
        json!({"metadata": {"creationTimestamp": "yesterday"}}),
    ] {
        let error = encoder.object(json.to_string().as_bytes()).unwrap_err();
        assert!(error.to_string().starts_with("Pod "), "{error}");
    }
    assert!(encoder.object(b"{").is_err());
    let nulls = br#"{"kind":"Pod","future":{"a":1},"metadata":{"labels":null},"spec":{"priority":null}}"#;
    let read = decode(&encoder.object(nulls).unwrap()).unwrap();
    assert_eq!(read, json!({"apiVersion": "v1", "kind": "Pod"}));
}

#[test]
fn nesting_and_numbers_are_bounded() {
    let mut schema = Vec::new();
    for _ in 0..200 {
        schema = bytes(28, schema);
    }
    let version = bytes(4, bytes(1, schema));
    let (_, problem) =
        refused("apiextensions.k8s.io/v1", "CustomResourceDefinition", &[bytes(2, bytes(7, version))]);
    assert_eq!(problem, Problem::Depth);
    let containers = bytes(2, "").repeat(300_000);
    let (_, problem) = refused("v1", "Pod", &[bytes(2, containers)]);
    assert_eq!(problem, Problem::Values);
}

#[test]
fn every_field_of_the_metadata_has_its_place() {
    let owner = [bytes(1, "Pod"), bytes(3, "p"), bytes(4, "u"), bytes(5, "v1"), number(6, 0), number(7, 1)];
    let metadata = [
        bytes(1, "n"),
        bytes(2, "n-"),
        bytes(3, "ns"),
        bytes(4, "/x"),
        bytes(5, "uid"),
        bytes(6, "12"),
        number(7, 3),
        time(8, 1_714_979_289, 5),
        time(9, 0, 0),
        number(10, 0),
        entry(11, "l", b"1"),
        entry(12, "a", b""),
        bytes(13, owner.concat()),
        bytes(14, "f"),
        bytes(14, "g"),
        bytes(17, bytes(1, "kubectl")),
        [varint(100 << 3 | 1), vec![0; 8]].concat(),
    ];
    let expected = json!({
        "name": "n", "generateName": "n-", "namespace": "ns", "selfLink": "/x", "uid": "uid",
        "resourceVersion": "12", "generation": 3, "creationTimestamp": "2024-05-06T07:08:09Z",
        "deletionTimestamp": "1970-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0,
        "labels": {"l": "1"}, "annotations": {"a": ""}, "finalizers": ["f", "g"],
        "managedFields": [{"manager": "kubectl"}],
        "ownerReferences": [{"kind": "Pod", "name": "p", "uid": "u", "apiVersion": "v1",
            "controller": false, "blockOwnerDeletion": true}],
    });
    assert_eq!(read("v1", "ConfigMap", &[bytes(1, metadata.concat())])["metadata"], expected);
}

#[test]
fn each_kind_has_its_fields() {
    let condition = [bytes(1, "T"), bytes(2, "True"), time(4, 1, 0), bytes(5, "R"), bytes(6, "m")];
    let status = [bytes(1, "Active"), bytes(2, condition.concat())].concat();
    let namespace = read("v1", "Namespace", &[bytes(2, bytes(1, "kubernetes")), bytes(3, status)]);
    let condition = json!({"type": "T", "status": "True", "lastTransitionTime": "1970-01-01T00:00:01Z",
        "reason": "R", "message": "m"});
    assert_eq!(namespace["spec"], json!({"finalizers": ["kubernetes"]}));
    assert_eq!(namespace["status"], json!({"phase": "Active", "conditions": [condition]}));

    let config_map = read("v1", "ConfigMap", &[entry(3, "k", b"\xff"), number(4, 0)]);
    assert_eq!((&config_map["binaryData"], &config_map["immutable"]), (&json!({"k": "/w=="}), &json!(false)));
    let secret = read("v1", "Secret", &[bytes(3, "Opaque"), entry(4, "k", b"v"), number(5, 1)]);
    let expected = json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "stringData": {"k": "v"},
        "immutable": true});
    assert_eq!(secret, expected);
    let account = [bytes(2, bytes(3, "s")), bytes(3, bytes(1, "pull")), bytes(3, bytes(1, "")), number(4, 0)];
    let account = read("v1", "ServiceAccount", &account);
    assert_eq!(account["secrets"], json!([{"name": "s"}]));
    assert_eq!(account["imagePullSecrets"], json!([{"name": "pull"}, {}]));
    assert_eq!(account["automountServiceAccountToken"], json!(false));

    let target = [bytes(1, "Node"), bytes(3, "n1"), bytes(4, "u"), bytes(5, "v1"), bytes(7, "x")].concat();
    let target = read("v1", "Binding", &[bytes(2, target)])["target"].clone();
    let expected = json!({"kind": "Node", "name": "n1", "uid": "u", "apiVersion": "v1", "fieldPath": "x"});
    assert_eq!(target, expected);
    let spec = [
        bytes(1, ""),
        number(2, 15),
        time(3, ZERO_TIME, 0),
        time(4, 1, 123_456_789),
        number(5, -1),
        bytes(6, "OldestEmulationVersion"),
        bytes(7, "b"),
    ];
    let lease = read("coordination.k8s.io/v1", "Lease", &[bytes(2, spec.concat())]);
    let expected = json!({"holderIdentity": "", "leaseDurationSeconds": 15, "leaseTransitions": -1,
        "renewTime": "1970-01-01T00:00:01.123456Z", "strategy": "OldestEmulationVersion", "preferredHolder": "b"});
    assert_eq!(lease["spec"], expected);
}

fn message_has_type_fields(message: MessageId) -> bool {
    ["apiVersion", "kind"].iter().any(|name| table::get(message).named(name).is_some())
}

const ZERO_TIME: i64 = -62_135_596_800;

#[test]
fn delete_options_keep_what_was_set_to_nothing() {
    let preconditions = [bytes(1, ""), bytes(2, "7")].concat();
    let options = [number(1, 0), bytes(2, preconditions), number(3, 0), bytes(4, "Orphan"), bytes(5, "All")];
    let fields = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "", "resourceVersion": "7"},
        "orphanDependents": false, "propagationPolicy": "Orphan", "dryRun": ["All"]});
    for version in ["v1", "meta.k8s.io/v1", "coordination.k8s.io/v1"] {
        let mut expected = fields.clone();
        expected["apiVersion"] = json!(version);
        expected["kind"] = json!("DeleteOptions");
        assert_eq!(read(version, "DeleteOptions", &options), expected);
    }
    let eviction = read("policy/v1", "Eviction", &[bytes(1, bytes(1, "p")), bytes(2, options.concat())]);
    assert_eq!((&eviction["metadata"]["name"], &eviction["deleteOptions"]), (&json!("p"), &fields));
}

#[test]
fn the_last_value_counts_and_messages_are_merged() {
    let metadata = [bytes(1, bytes(1, "a")), bytes(1, bytes(3, "ns")), bytes(1, bytes(1, "b"))];
    assert_eq!(read("v1", "Secret", &metadata)["metadata"], json!({"name": "b", "namespace": "ns"}));
    let unset = [bytes(1, [bytes(1, "a"), bytes(1, "")].concat())];
    assert_eq!(read("v1", "Secret", &unset).get("metadata"), None);
    let twice = [entry(2, "k", b"1"), entry(2, "k", b"2"), bytes(2, "")];
    assert_eq!(read("v1", "ConfigMap", &twice)["data"], json!({"k": "2", "": ""}));
}

#[test]
fn refusals_say_what_is_wrong_and_where() {
    let metadata = |field: Vec<u8>| refused("v1", "Secret", &[bytes(1, field)]);
    let (text, problem) = metadata(number(1, 5));
    assert_eq!(text, "metadata.name: a value has the wrong wire type");
    assert_eq!(problem, Problem::WireType);
    assert_eq!(metadata(bytes(7, "1")).1, Problem::WireType);
    assert_eq!(
        metadata(entry(11, "k", b"\xff")),
        ("metadata.labels: a text is not UTF-8".to_owned(), Problem::Utf8)
    );
    assert_eq!(metadata(bytes(11, number(2, 1))).1, Problem::WireType);
    for (seconds, nanos) in
        [(i64::MAX, 0), (i64::MIN, 0), (ZERO_TIME * 2, 0), (1, -1), (1, 1_000_000_000), (1, 1 << 40)]
    {
        assert_eq!(metadata(time(8, seconds, nanos)).1, Problem::Range, "{seconds} {nanos}");
    }
    let lease = refused("coordination.k8s.io/v1", "Lease", &[bytes(2, number(2, 1 << 31))]);
    assert_eq!(
        lease,
        ("spec.leaseDurationSeconds: a number or time is out of range".to_owned(), Problem::Range)
    );

    assert_eq!(decode(b"{}"), Err(Error::Magic));
    assert_eq!(decode(MAGIC), Err(Error::NoKind));
    assert_eq!(decode(&vec![0; BYTES_MAX + 1]), Err(Error::TooLarge { bytes: BYTES_MAX + 1 }));
    let unknown = decode(&body("v1", "Widget", &[])).unwrap_err();
    assert_eq!(unknown, Error::UnknownKind { api_version: "v1".to_owned(), kind: "Widget".to_owned() });
    assert_eq!(
        unknown.to_string(),
        "\"Widget\" of \"v1\" is not read as Kubernetes protobuf; send it as application/json"
    );
    assert!(matches!(decode(&body("v2", "Secret", &[])), Err(Error::UnknownKind { .. })));
    let mut zipped = body("v1", "Secret", &[]);
    zipped.extend(bytes(3, "gzip"));
    assert_eq!(decode(&zipped), Err(Error::Content { content: "gzip".to_owned() }));
}

#[test]
fn captured_bodies_cut_anywhere_never_panic() {
    for body in CAPTURED {
        for end in 0..body.len() {
            let _ = decode(&body[..end]);
        }
    }
}

#[test]
fn a_body_of_the_largest_size_is_read_quickly() {
    let key = "k".repeat(1024);
    let entries: Vec<Vec<u8>> = (0..2900).map(|n| entry(2, &format!("{key}{n}"), b"v")).collect();
    let object = read("v1", "ConfigMap", &entries);
    assert_eq!(object["data"].as_object().unwrap().len(), 2900);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn every_message_comes_through(seed in any::<u64>()) {
        let mut maker = Maker(seed);
        for (version, name) in table::names() {
            let Some(message) = table::message(version, name) else { continue };
            let mut object = maker.object(message, 3);
            let encoder = Encoder::new(version, name).unwrap();
            let bytes = encoder.object(object.to_string().as_bytes()).unwrap();
            if matches!(*name, "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrStringArray") {
                continue;
            }
            object["apiVersion"] = json!(version);
            object["kind"] = json!(name);
            let read = decode(&bytes).unwrap();
            // A type of its own may have members of these names.
            if message_has_type_fields(message) {
                continue;
            }
            prop_assert_eq!(read, object, "{} {}", version, name);
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
        let _ = decode(&[MAGIC, &bytes].concat());
        for (api_version, kind) in [
            ("v1", "Binding"), ("v1", "ConfigMap"), ("v1", "DeleteOptions"), ("v1", "Namespace"), ("v1", "Secret"),
            ("v1", "ServiceAccount"), ("coordination.k8s.io/v1", "Lease"), ("policy/v1", "Eviction"),
        ] {
            let _ = decode(&body(api_version, kind, std::slice::from_ref(&bytes)));
        }
    }

    #[test]
    fn no_bytes_of_any_message_panic(
        which in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 0..200)
    ) {
        let names: Vec<_> = table::names().collect();
        let (version, name) = which.get(&names);
        if let Ok(object) = decode(&body(version, name, std::slice::from_ref(&bytes))) {
            let written = Encoder::new(version, name).unwrap().object(object.to_string().as_bytes());
            prop_assert!(decode(&written.unwrap()).is_ok());
        }
    }

    #[test]
    fn no_damage_panics(
        which in 0..CAPTURED.len(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
    ) {
        let mut body = CAPTURED[which].to_vec();
        for (at, byte) in damage {
            let at = at.index(body.len());
            body[at] = byte;
        }
        let _ = decode(&body);
    }

    #[test]
    fn any_moment_is_rfc_3339(seconds in any::<i64>(), nanos in any::<i32>()) {
        if let Ok(object) = decode(&body("v1", "Secret", &[bytes(1, time(8, seconds, i64::from(nanos)))]))
            && let Some(text) = object["metadata"]["creationTimestamp"].as_str()
        {
            prop_assert!(crate::object::parse_timestamp(text).is_some(), "{}", text);
        }
    }

    #[test]
    fn secrets_come_through(
        name in "[a-z]{1,20}", data in prop::collection::btree_map("[a-z]{1,8}", prop::collection::vec(any::<u8>(), 0..300), 1..5)
    ) {
        use base64::Engine;
        let mut fields = vec![bytes(1, bytes(1, &name))];
        fields.extend(data.iter().map(|(key, value)| entry(2, key, value)));
        let object = read("v1", "Secret", &fields);
        prop_assert_eq!(&object["metadata"]["name"], &json!(name));
        for (key, value) in data {
            let text = base64::engine::general_purpose::STANDARD.encode(value);
            prop_assert_eq!(&object["data"][key], &json!(text));
        }
    }
}
