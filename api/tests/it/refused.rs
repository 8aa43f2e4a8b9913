//! What is refused, with the words that a client reads.

use api::kinds::{by_kind, split_api_version};
use api::{Status, decode, defaults, object, validation};
use serde_json::Value;

const REFUSED: &str = include_str!("testdata/refused.yaml");

/// Each manifest says in the annotation `refused` what its refusal contains.
#[test]
fn bad_manifests_are_refused_for_their_reason() {
    let documents: Vec<Value> = serde_saphyr::from_multiple(REFUSED).expect("the manifests are YAML");
    assert!(documents.len() >= 40, "{}", documents.len());
    for mut value in documents {
        let (group, version) = split_api_version(object::api_version(&value));
        let kind = by_kind(group, version, object::kind(&value)).expect("the kind is served");
        let expected = object::annotation(&value, "refused").expect("every manifest says why").to_owned();
        let name = object::name(&value).to_owned();
        let text = match decode::normalize(kind, &mut value) {
            Err(status) => status.message().to_owned(),
            Ok(_) => {
                defaults::apply(kind, &mut value);
                Status::invalid(kind, &name, validation::create(kind, &value)).message().to_owned()
            }
        };
        assert!(text.contains(&expected), "{} {name}: {text}", kind.kind);
    }
}
