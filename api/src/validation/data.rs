//! Validation of ConfigMaps and Secrets.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::{DATA_BYTES_MAX, invalid_each};
use crate::name;
use crate::object;
use crate::status::Cause;

const IMMUTABLE: &str = "field is immutable when `immutable` is set";
const REDACTED: &str = "<secret contents redacted>";

fn members<'a>(object: &'a Value, field: &str) -> Option<&'a Map<String, Value>> {
    object.get(field)?.as_object().filter(|m| !m.is_empty())
}

/// Bytes that a base64 text stands for.
fn decoded_bytes(text: &str) -> usize {
    text.len() / 4 * 3 - text.bytes().rev().take_while(|b| *b == b'=').count().min(2)
}

pub(super) fn config_map(object: &Value, causes: &mut Vec<Cause>) {
    let mut bytes = 0;
    let binary = members(object, "binaryData");
    for (key, value) in members(object, "data").into_iter().flatten() {
        invalid_each(&format!("data[{key}]"), key, name::config_map_key(key), causes);
        if binary.is_some_and(|b| b.contains_key(key)) {
            causes.push(Cause::invalid(
                format!("data[{key}]"),
                key.as_str(),
                "duplicate of key present in binaryData",
            ));
        }
        bytes += value.as_str().map_or(0, str::len);
    }
    for (key, value) in binary.into_iter().flatten() {
        invalid_each(&format!("binaryData[{key}]"), key, name::config_map_key(key), causes);
        bytes += value.as_str().map_or(0, decoded_bytes);
    }
    if bytes > DATA_BYTES_MAX {
        // The very field that Kubernetes names: none.
        causes.push(Cause::too_long("[]", DATA_BYTES_MAX));
    }
}

pub(super) fn secret(object: &Value, causes: &mut Vec<Cause>) {
    let mut bytes = 0;
    for (key, value) in members(object, "data").into_iter().flatten() {
        invalid_each(&format!("data[{key}]"), key, name::config_map_key(key), causes);
        bytes += value.as_str().map_or(0, decoded_bytes);
    }
    if bytes > DATA_BYTES_MAX {
        causes.push(Cause::too_long("data", DATA_BYTES_MAX));
    }
    secret_type(object, causes);
}

fn secret_type(object: &Value, causes: &mut Vec<Cause>) {
    let has = |key: &str| object.get("data").is_some_and(|d| d.get(key).is_some());
    let mut require = |key: &str| {
        if !has(key) {
            causes.push(Cause::required(format!("data[{key}]"), ""));
        }
    };
    match object.get("type").and_then(Value::as_str).unwrap_or("") {
        "kubernetes.io/service-account-token" => {
            let account = "kubernetes.io/service-account.name";
            if object::annotation(object, account).is_none_or(str::is_empty) {
                causes.push(Cause::required(format!("metadata.annotations[{account}]"), ""));
            }
        }
        "kubernetes.io/dockercfg" => docker_config(object, ".dockercfg", causes),
        "kubernetes.io/dockerconfigjson" => docker_config(object, ".dockerconfigjson", causes),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            require("username");
            require("password");
        }
        "kubernetes.io/ssh-auth" => require("ssh-privatekey"),
        "kubernetes.io/tls" => {
            require("tls.crt");
            require("tls.key");
        }
        _ => {}
    }
}

fn docker_config(object: &Value, key: &str, causes: &mut Vec<Cause>) {
    let field = format!("data[{key}]");
    let Some(text) = object.get("data").and_then(|d| d.get(key)).and_then(Value::as_str) else {
        causes.push(Cause::required(field, ""));
        return;
    };
    let parsed =
        STANDARD.decode(text).ok().and_then(|b| serde_json::from_slice::<Map<String, Value>>(&b).ok());
    if parsed.is_none() {
        causes.push(Cause::invalid(field, REDACTED, "the content is not a JSON object"));
    }
}

pub(super) fn update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let text = |value: &Value| value.get("type").and_then(Value::as_str).unwrap_or("").to_owned();
    if text(old) != text(new) {
        causes.push(Cause::invalid("type", text(new), "field is immutable"));
    }
    let immutable = |value: &Value| value.get("immutable").and_then(Value::as_bool).unwrap_or(false);
    if !immutable(old) {
        return;
    }
    if !immutable(new) {
        causes.push(Cause::forbidden("immutable", IMMUTABLE));
    }
    for field in ["data", "binaryData"] {
        if members(old, field) != members(new, field) {
            causes.push(Cause::forbidden(field, IMMUTABLE));
        }
    }
}
