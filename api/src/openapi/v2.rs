//! The OpenAPI v2 document: all groups in one, custom kinds included, for older clients and generators.
//!
//! Written from the v3 documents. What the older form cannot say (`anyOf`, `oneOf`, `nullable`) is left out, as
//! Kubernetes leaves it out: a field is then anything.

use serde_json::{Map, Value, json};

use super::{paths, schemas};
use crate::crd::KindSet;

/// What v2 does not have.
const UNKNOWN: [&str; 4] = ["anyOf", "oneOf", "not", "nullable"];

/// `GET /openapi/v2`.
pub(super) fn document(kinds: &KindSet, server_version: &str) -> Value {
    let paths = paths::of(kinds.kinds()).into_iter().map(|(path, item)| (path, path_item(item)));
    let definitions =
        schemas::of(kinds.kinds(), kinds).into_iter().map(|(name, found)| (name, schema(found)));
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": server_version},
        "paths": paths.collect::<Map<_, _>>(),
        "definitions": definitions.collect::<Map<_, _>>(),
    })
}

fn path_item(item: Value) -> Value {
    let Value::Object(members) = item else { return item };
    let convert = |(key, value): (String, Value)| match key.as_str() {
        "parameters" => (key, parameters(value)),
        _ => (key, operation(value)),
    };
    Value::Object(members.into_iter().map(convert).collect())
}

fn parameters(list: Value) -> Value {
    let Value::Array(list) = list else { return json!([]) };
    list.into_iter().map(parameter).collect()
}

/// What v3 says in a schema, v2 says in the parameter itself.
fn parameter(mut parameter: Value) -> Value {
    let Some(members) = parameter.as_object_mut() else { return parameter };
    if let Some(Value::Object(schema)) = members.remove("schema") {
        members.extend(schema);
    }
    parameter
}

fn operation(mut operation: Value) -> Value {
    let Some(members) = operation.as_object_mut() else { return operation };
    let mut own = members.remove("parameters").map(parameters).unwrap_or_else(|| json!([]));
    if let Some(mut body) = members.remove("requestBody") {
        let contents = body["content"].as_object_mut().map(std::mem::take).unwrap_or_default();
        let consumes: Vec<Value> =
            contents.keys().map(|media_type| Value::from(media_type.as_str())).collect();
        let found = contents.into_iter().next().map(|(_, mut content)| content["schema"].take());
        let body = json!({"name": "body", "in": "body", "required": true, "schema": schema(found.unwrap_or_default())});
        own.as_array_mut().into_iter().for_each(|own| own.push(body.clone()));
        members.insert("consumes".to_owned(), Value::from(consumes));
    }
    let mut produces: Vec<Value> = Vec::new();
    if let Some(Value::Object(responses)) = members.get_mut("responses") {
        for response in responses.values_mut().filter_map(Value::as_object_mut) {
            let Some(Value::Object(contents)) = response.remove("content") else { continue };
            for (media_type, mut content) in contents {
                produces.push(Value::from(media_type));
                response.insert("schema".to_owned(), schema(content["schema"].take()));
            }
        }
    }
    members.insert("produces".to_owned(), Value::from(produces));
    members.insert("parameters".to_owned(), own);
    members.insert("schemes".to_owned(), json!(["https"]));
    operation
}

fn schema(value: Value) -> Value {
    match value {
        Value::Object(members) => object(members),
        Value::Array(items) => items.into_iter().map(schema).collect(),
        other => other,
    }
}

fn object(mut members: Map<String, Value>) -> Value {
    for key in UNKNOWN {
        // A property may bear such a name, and then holds a schema rather than a list or a flag.
        if members.get(key).is_some_and(|value| !value.is_object()) {
            members.remove(key);
        }
    }
    // A reference with words beside it is the one place where v3 needs `allOf`.
    if let Some(Value::Array(all)) = members.get("allOf")
        && let [only] = all.as_slice()
        && let Some(target) = only.get("$ref").cloned()
    {
        members.remove("allOf");
        members.insert("$ref".to_owned(), target);
    }
    let convert = |(key, value): (String, Value)| match value {
        Value::String(target) if key == "$ref" => {
            let target = target.replace("#/components/schemas/", "#/definitions/");
            (key, Value::from(target))
        }
        value => (key, schema(value)),
    };
    Value::Object(members.into_iter().map(convert).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_references(value: &Value, definitions: &Map<String, Value>) {
        match value {
            Value::Object(members) => {
                if let Some(target) = members.get("$ref").and_then(Value::as_str) {
                    let name = target.strip_prefix("#/definitions/").unwrap();
                    assert!(definitions.contains_key(name), "{name}");
                }
                members.values().for_each(|member| check_references(member, definitions));
            }
            Value::Array(items) => items.iter().for_each(|item| check_references(item, definitions)),
            _ => {}
        }
    }

    #[test]
    fn all_groups_are_in_one_document_and_every_reference_leads_somewhere() {
        let document = document(KindSet::builtin(), "v1.33.0");
        let definitions = document["definitions"].as_object().unwrap();
        for name in ["io.k8s.api.core.v1.Pod", "io.k8s.api.apps.v1.Deployment", "io.k8s.api.events.v1.Event"]
        {
            assert!(definitions.contains_key(name), "{name}");
        }
        check_references(&document, definitions);
        let metadata = &definitions["io.k8s.api.core.v1.Pod"]["properties"]["metadata"];
        assert_eq!(metadata["$ref"], "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
        assert!(metadata["description"].is_string());
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(patch["consumes"].as_array().unwrap().len(), 4);
        let parameters = patch["parameters"].as_array().unwrap();
        assert!(parameters.iter().any(|own| own["name"] == "fieldValidation" && own["type"] == "string"));
        assert!(parameters.iter().any(|own| own["in"] == "body"));
        assert!(!document.to_string().contains("components/schemas"));
    }
}
