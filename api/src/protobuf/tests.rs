use proptest::prelude::*;
use serde_json::json;

use super::*;

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
    let unknown = decode(&body("v1", "Pod", &[])).unwrap_err();
    assert_eq!(unknown, Error::UnknownKind { api_version: "v1".to_owned(), kind: "Pod".to_owned() });
    assert_eq!(
        unknown.to_string(),
        "\"Pod\" of \"v1\" is not read as Kubernetes protobuf; send it as application/json"
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
