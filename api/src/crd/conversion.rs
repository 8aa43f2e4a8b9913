//! `ConversionReview` v1: what a conversion webhook is sent, and what its answer means.
//!
//! Pure: calling a webhook is the business of `control`. Promises that a webhook changes nothing about an object's
//! identity: of the metadata it may change labels and annotations, the rest stays what it was. Words are those of
//! the Kubernetes API server.

use serde_json::{Value, json};

use crate::object;

const REVIEW: &str = "apiextensions.k8s.io/v1";
/// Of the metadata, what a webhook may change.
const CHANGEABLE: [&str; 2] = ["labels", "annotations"];

/// The body that a webhook is sent.
pub fn write(uid: &str, desired: &str, objects: &[Value]) -> Value {
    json!({"kind": "ConversionReview", "apiVersion": REVIEW,
        "request": {"uid": uid, "desiredAPIVersion": desired, "objects": objects}})
}

/// Reads a webhook's answer: the objects of `sent`, in their order, in the version `desired`. The error is what
/// follows "conversion webhook for KIND ".
pub fn read(body: &[u8], uid: &str, desired: &str, sent: &[Value]) -> Result<Vec<Value>, String> {
    let converted = answered(body, uid).map_err(|why| format!("failed: {why}"))?;
    if converted.len() != sent.len() {
        return Err(format!("returned {} objects, expected {}", converted.len(), sent.len()));
    }
    let each = sent.iter().zip(converted).enumerate();
    each.map(|(index, (original, converted))| {
        check(original, &converted, desired)
            .map_err(|why| format!("returned invalid converted object at index {index}: {why}"))?;
        restore(original, converted)
            .map_err(|why| format!("returned invalid metadata in object at index {index}: {why}"))
    })
    .collect()
}

fn answered(body: &[u8], uid: &str) -> Result<Vec<Value>, String> {
    let mut review: Value =
        serde_json::from_slice(body).map_err(|error| format!("the answer is no valid JSON: {error}"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if review["kind"] != "ConversionReview" || review["apiVersion"] != REVIEW {
        return Err(format!(
            "expected webhook response of {REVIEW}, Kind=ConversionReview, got {}, Kind={}",
            text(&review["apiVersion"]),
            text(&review["kind"])
        ));
    }
    let response = &mut review["response"];
    if !response.is_object() {
        return Err("no response provided".to_owned());
    }
    if response["uid"] != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", text(&response["uid"])));
    }
    let result = &response["result"];
    if result["status"] != "Success" {
        let said = [text(&result["message"]), text(&result["reason"])];
        let said = said.into_iter().find(|said| !said.is_empty());
        return Err(said.unwrap_or_else(|| {
            format!("response.result.status was '{}', expected 'Success'", text(&result["status"]))
        }));
    }
    match response["convertedObjects"].take() {
        Value::Array(objects) => Ok(objects),
        _ => Ok(Vec::new()),
    }
}

fn check(original: &Value, converted: &Value, desired: &str) -> Result<(), String> {
    let (got, kind) = (object::api_version(converted), object::kind(converted));
    if got != desired {
        return Err(format!("invalid groupVersion (expected {desired}, received {got})"));
    }
    if kind != object::kind(original) {
        return Err(format!("invalid kind (expected {}, received {kind})", object::kind(original)));
    }
    for (field, what) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let of = |value: &Value| value["metadata"][field].as_str().unwrap_or_default().to_owned();
        let (before, after) = (of(original), of(converted));
        if before != after {
            return Err(format!("must have the same {what}: {before} != {after}"));
        }
    }
    Ok(())
}

/// Undoes what a webhook may not change.
fn restore(original: &Value, mut converted: Value) -> Result<Value, String> {
    let Some(changed) = converted["metadata"].as_object() else {
        return Err("metadata is no object".to_owned());
    };
    let mut metadata = original["metadata"].as_object().cloned().unwrap_or_default();
    for field in CHANGEABLE {
        metadata.remove(field);
        match changed.get(field) {
            None | Some(Value::Null) => {}
            Some(Value::Object(texts)) if texts.values().all(Value::is_string) => {
                metadata.insert(field.to_owned(), Value::Object(texts.clone()));
            }
            Some(_) => return Err(format!("metadata.{field} is no map of texts")),
        }
    }
    converted["metadata"] = Value::Object(metadata);
    Ok(converted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent() -> Vec<Value> {
        let object = |name: &str| {
            json!({"apiVersion": "g.example.com/v1", "kind": "Thing", "host": "h",
                "metadata": {"name": name, "uid": "1", "generation": 3, "labels": {"a": "b"}}})
        };
        vec![object("a"), object("b")]
    }

    fn answer(result: Value, objects: Value) -> Vec<u8> {
        json!({"kind": "ConversionReview", "apiVersion": REVIEW,
            "response": {"uid": "u", "result": result, "convertedObjects": objects}})
        .to_string()
        .into_bytes()
    }

    fn converted() -> Vec<Value> {
        let mut objects = sent();
        for object in &mut objects {
            object["apiVersion"] = json!("g.example.com/v2");
        }
        objects
    }

    #[test]
    fn labels_and_annotations_may_change_and_nothing_else_of_the_metadata() {
        let mut objects = converted();
        objects[0]["metadata"] = json!({"name": "a", "uid": "1", "generation": 9, "finalizers": ["x"],
            "labels": {"new": "label"}, "annotations": {"c": "d"}});
        let body = answer(json!({"status": "Success"}), json!(objects));
        let read = read(&body, "u", "g.example.com/v2", &sent()).unwrap();
        let expected = json!({"name": "a", "uid": "1", "generation": 3, "labels": {"new": "label"},
            "annotations": {"c": "d"}});
        assert_eq!(read[0]["metadata"], expected);
        assert_eq!((&read[1]["apiVersion"], &read[1]["host"]), (&json!("g.example.com/v2"), &json!("h")));
    }

    #[test]
    fn what_is_no_conversion_is_refused_with_its_reason() {
        let success = json!({"status": "Success"});
        let changed = |path: &str, value: Value| {
            let mut objects = json!(converted());
            *objects.pointer_mut(path).unwrap() = value;
            answer(success.clone(), objects)
        };
        let mut swapped = converted();
        swapped.reverse();
        for (body, why) in [
            (
                b"{".to_vec(),
                "failed: the answer is no valid JSON: EOF while parsing an object at line 1 column 1",
            ),
            (
                b"[]".to_vec(),
                "failed: expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got , Kind=",
            ),
            (answer(json!({"status": "Failure", "message": "not today"}), json!([])), "failed: not today"),
            (answer(json!({"status": "Failure", "reason": "Why"}), json!([])), "failed: Why"),
            (answer(json!(null), json!([])), "failed: response.result.status was '', expected 'Success'"),
            (answer(success.clone(), json!([{}])), "returned 1 objects, expected 2"),
            (answer(success.clone(), json!(3)), "returned 0 objects, expected 2"),
            (
                answer(success.clone(), json!(swapped)),
                "returned invalid converted object at index 0: must have the same name: a != b",
            ),
            (
                answer(success.clone(), json!(sent())),
                "returned invalid converted object at index 0: invalid groupVersion (expected g.example.com/v2, received g.example.com/v1)",
            ),
            (
                changed("/1/kind", json!("Other")),
                "returned invalid converted object at index 1: invalid kind (expected Thing, received Other)",
            ),
            (
                changed("/1/metadata/uid", json!("2")),
                "returned invalid converted object at index 1: must have the same UID: 1 != 2",
            ),
            (
                changed("/1/metadata/labels", json!({"a": 1})),
                "returned invalid metadata in object at index 1: metadata.labels is no map of texts",
            ),
        ] {
            assert_eq!(read(&body, "u", "g.example.com/v2", &sent()).unwrap_err(), why);
        }
        let body =
            json!({"kind": "ConversionReview", "apiVersion": REVIEW, "response": {"uid": "x"}}).to_string();
        let why = read(body.as_bytes(), "u", "g.example.com/v2", &sent()).unwrap_err();
        assert_eq!(why, "failed: expected response.uid=\"u\", got \"x\"");
    }
}
