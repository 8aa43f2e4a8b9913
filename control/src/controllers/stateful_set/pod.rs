//! What a StatefulSet's pod with an ordinal is. Pure.

use api::object;
use serde_json::{Value, json};

use super::super::owners::{Owner, pod_of};
use super::super::revisions::HASH_LABEL;

const NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// The name of the pod with that ordinal.
pub(super) fn name(set: &str, ordinal: i64) -> String {
    format!("{set}-{ordinal}")
}

/// The ordinal in a name that begins with the owner's.
pub(super) fn ordinal(owner: &str, name: &str) -> Option<i64> {
    let digits = name.strip_prefix(owner)?.strip_prefix('-')?;
    let is_plain = !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits == "0" || !digits.starts_with('0'));
    is_plain.then(|| digits.parse().ok()).flatten()
}

/// The claims of the pod with that ordinal.
pub(super) fn claims(owner: &Owner<'_>, ordinal: i64) -> Vec<Value> {
    let templates = owner.value()["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten();
    let selector = owner.value()["spec"]["selector"]["matchLabels"].clone();
    let when_deleted = &owner.value()["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"];
    let each = templates.map(|template| {
        let mut claim = template.clone();
        let name = format!("{}-{}", object::name(template), name(owner.object.name(), ordinal));
        object::set_name(&mut claim, &name);
        let mut labels = template["metadata"]["labels"].clone();
        if !labels.is_object() {
            labels = json!({});
        }
        for (key, value) in selector.as_object().into_iter().flatten() {
            labels[key] = value.clone();
        }
        object::set_metadata(&mut claim, "labels", labels);
        if when_deleted == "Delete" {
            let mut reference = owner.reference.clone();
            reference["controller"] = json!(false);
            object::set_metadata(&mut claim, "ownerReferences", json!([reference]));
        }
        if let Some(members) = claim.as_object_mut() {
            members.remove("status");
        }
        claim
    });
    each.collect()
}

/// The pod with that ordinal, of a revision's template.
pub(super) fn of(owner: &Owner<'_>, template: &Value, revision: &str, ordinal: i64) -> Value {
    let set = owner.object.name();
    let own = name(set, ordinal);
    let mut pod = pod_of(template, &owner.reference);
    object::set_name(&mut pod, &own);
    for (key, value) in
        [(NAME_LABEL, own.clone()), (INDEX_LABEL, ordinal.to_string()), (HASH_LABEL, revision.to_owned())]
    {
        object::set_label(&mut pod, key, &value);
    }
    let templates = owner.value()["spec"]["volumeClaimTemplates"].as_array().cloned().unwrap_or_default();
    let spec = &mut pod["spec"];
    spec["hostname"] = json!(own);
    spec["subdomain"] = owner.value()["spec"]["serviceName"].clone();
    let claimed: Vec<&str> = templates.iter().map(object::name).collect();
    let given = spec["volumes"].as_array().cloned().unwrap_or_default();
    // A claim's volume stands instead of one of that name in the template.
    let mut volumes: Vec<Value> = given
        .into_iter()
        .filter(|volume| !claimed.contains(&volume["name"].as_str().unwrap_or_default()))
        .collect();
    volumes.extend(claimed.iter().map(
        |volume| json!({"name": volume, "persistentVolumeClaim": {"claimName": format!("{volume}-{own}")}}),
    ));
    if !volumes.is_empty() {
        spec["volumes"] = Value::from(volumes);
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinals_are_read_from_names_of_the_owner_only() {
        for (name, expected) in [
            ("db-0", Some(0)),
            ("db-12", Some(12)),
            ("db-01", None),
            ("db-x", None),
            ("web-0", None),
            ("db-", None),
        ] {
            assert_eq!(ordinal("db", name), expected, "{name}");
        }
    }
}
