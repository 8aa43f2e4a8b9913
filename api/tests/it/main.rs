//! The rules together, over manifests: typed check, defaults, validation, printing.

mod refused;

use api::k8s_openapi::api::core::v1::Pod;
use api::kinds::{by_kind, split_api_version};
use api::table::{IncludeObject, table};
use api::{Kind, decode, defaults, object, validation};
use serde_json::{Value, json};

const ACCEPTED: &str = include_str!("testdata/accepted.yaml");

/// Each manifest with its kind.
fn manifests() -> Vec<(&'static Kind, Value)> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(ACCEPTED).expect("the manifests are YAML");
    documents
        .into_iter()
        .map(|document| {
            let (group, version) = split_api_version(object::api_version(&document));
            let kind = by_kind(group, version, object::kind(&document)).expect("the kind is served");
            (kind, document)
        })
        .collect()
}

#[test]
fn good_manifests_are_accepted_and_stay_so() {
    let manifests = manifests();
    assert_eq!(manifests.len(), 43);
    for (kind, mut value) in manifests {
        assert_eq!(decode::normalize(kind, &mut value), Ok(Vec::new()), "{value}");
        defaults::apply(kind, &mut value);
        let causes = validation::create(kind, &value);
        assert!(causes.is_empty(), "{}: {}", object::name(&value), api::Status::invalid(kind, "", causes));
        // What was stored is read, checked and written back by every update.
        let mut again = value.clone();
        assert_eq!(decode::decode(kind, &again), Ok(Vec::new()));
        defaults::apply(kind, &mut again);
        assert_eq!(again, value);
        assert_eq!(validation::update(kind, &value, &again), Vec::new());
    }
}

#[test]
fn our_typed_check_reads_what_k8s_openapi_reads() {
    for (kind, mut value) in manifests().into_iter().filter(|(kind, _)| kind.kind == "Pod") {
        decode::normalize(kind, &mut value).expect("the manifest is well typed");
        let ours: Pod = decode::typed(&value).expect("the manifest is well typed");
        let theirs: Pod = serde_json::from_value(value).expect("the stored form is what k8s-openapi reads");
        assert_eq!(ours, theirs);
    }
}

#[test]
fn a_new_pod_is_printed_as_pending() {
    let (kind, mut value) = manifests().swap_remove(1);
    decode::normalize(kind, &mut value).expect("the manifest is well typed");
    defaults::apply(kind, &mut value);
    object::set_creation_timestamp(&mut value, "2024-01-01T00:00:00Z");
    let now = "2024-01-01T00:05:03Z".parse().expect("a timestamp");
    let printed = table(kind, &[value], now, IncludeObject::None, json!({}));
    assert_eq!(
        printed["rows"][0]["cells"],
        json!(["hello-live", "0/2", "Pending", "0", "5m3s", "<none>", "<none>", "<none>", "<none>"])
    );
}
