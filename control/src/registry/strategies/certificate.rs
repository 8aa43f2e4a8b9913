//! CertificateSigningRequests: who asks is written by the server; what is decided about one is written apart
//! from what is issued.

use serde_json::{Map, Value, json};

use super::{Strategy, copy, keep_all_but_status};

pub(super) struct RequestStrategy;

impl Strategy for RequestStrategy {
    fn default_status(&self, object: &mut Value) {
        object["status"] = json!({});
    }

    /// A request is signed as it was made.
    fn prepare_update(&self, old: &Value, new: &mut Value) {
        copy(old, new, "spec");
        copy(old, new, "status");
    }

    /// Whoever signs does not approve.
    fn prepare_status_update(&self, old: &Value, new: &mut Value) {
        keep_all_but_status(old, new);
        let is_verdict =
            |condition: &&Value| matches!(condition["type"].as_str(), Some("Approved" | "Denied"));
        let list = |object: &Value| object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let (before, after) = (list(old), list(new));
        let kept = before.iter().filter(is_verdict);
        let others = after.iter().filter(|condition| !is_verdict(condition));
        let conditions: Vec<Value> = kept.chain(others).cloned().collect();
        set_conditions(new, conditions);
    }
}

/// Says who made a new request, whatever the request says: `asker` is a `UserInfo`; without one it is a part of
/// the cluster.
pub(in crate::registry) fn set_requester(object: &mut Value, asker: Option<&Value>) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for field in ["username", "uid", "groups", "extra"] {
        match asker.and_then(|asker| asker.get(field)) {
            Some(value) => drop(spec.insert(field.to_owned(), value.clone())),
            None => drop(spec.remove(field)),
        }
    }
}

/// Undoes what a write of the approval may not change: all but the conditions. Those that carry no time get
/// `now`, as far as they are new.
pub(in crate::registry) fn prepare_approval(old: &Value, new: &mut Value, now: &str) {
    let mut conditions = new["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let before = old["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
        stamp(condition, before, now);
    }
    *new = old.clone();
    set_conditions(new, conditions);
}

fn stamp(condition: &mut Map<String, Value>, before: &[Value], now: &str) {
    let same =
        |other: &&Value| ["type", "status"].iter().all(|field| other.get(*field) == condition.get(*field));
    let since = before.iter().find(same).map_or(json!(now), |known| known["lastTransitionTime"].clone());
    for (field, time) in [("lastUpdateTime", json!(now)), ("lastTransitionTime", since)] {
        if condition.get(field).is_none_or(Value::is_null) && !time.is_null() {
            condition.insert(field.to_owned(), time);
        }
    }
}

fn set_conditions(object: &mut Value, conditions: Vec<Value>) {
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    match (conditions.is_empty(), object["status"].as_object_mut()) {
        (true, Some(status)) => drop(status.remove("conditions")),
        (false, _) => object["status"]["conditions"] = Value::from(conditions),
        (true, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn approving_and_signing_are_two_things() {
        let old = json!({"spec": {"request": "r"}, "status": {}});
        let mut approved = json!({"spec": {"request": "other"},
            "status": {"certificate": "c", "conditions": [{"type": "Approved"}]}});
        prepare_approval(&old, &mut approved, "2024-01-01T00:00:00Z");
        let verdict = json!({"type": "Approved", "lastUpdateTime": "2024-01-01T00:00:00Z",
            "lastTransitionTime": "2024-01-01T00:00:00Z"});
        assert_eq!(approved, json!({"spec": {"request": "r"}, "status": {"conditions": [verdict]}}));
        let mut signed = json!({"metadata": {}, "spec": {"request": "r"}, "status": {"certificate": "c",
            "conditions": [{"type": "Denied"}]}});
        RequestStrategy.prepare_status_update(&approved, &mut signed);
        assert_eq!(signed["status"], json!({"certificate": "c", "conditions": [verdict]}));
    }

    #[test]
    fn who_asks_is_what_the_server_knows() {
        let mut request = json!({"spec": {"username": "root", "groups": ["system:masters"], "uid": "1",
            "extra": {"a": ["b"]}, "request": "r"}});
        let asker = json!({"username": "jane", "groups": ["dev"]});
        set_requester(&mut request, Some(&asker));
        assert_eq!(request, json!({"spec": {"username": "jane", "groups": ["dev"], "request": "r"}}));
        set_requester(&mut request, None);
        assert_eq!(request, json!({"spec": {"request": "r"}}));
    }
}
