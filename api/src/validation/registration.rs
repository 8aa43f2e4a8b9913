//! Validation of what registers itself with the API: webhooks, admission policies, certificates, runtime
//! classes and drivers of volumes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{invalid_each, one_of};
use crate::name;
use crate::object;
use crate::status::Cause;

const TIMEOUT_S_MAX: i64 = 30;
/// The signers that Kubernetes knows, and what may be asked of them.
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
/// The shortest time for which a certificate may be asked.
const EXPIRATION_S_MIN: i64 = 600;
/// A signer of an older version of the API.
const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
/// What is decided about a request once and for all.
const VERDICTS: [&str; 3] = ["Approved", "Denied", "Failed"];

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

pub(super) fn webhooks(object: &Value, causes: &mut Vec<Cause>) {
    let mut names = BTreeSet::new();
    for (index, webhook) in list(object, "webhooks").iter().enumerate() {
        let at = |field: &str| format!("webhooks[{index}].{field}");
        let own = text(webhook, "name");
        if own.split('.').count() < 3 || !name::dns1123_subdomain(own).is_empty() {
            let why = "should be a domain with at least three segments separated by dots";
            causes.push(Cause::invalid(at("name"), own, why));
        }
        if !names.insert(own) {
            causes.push(Cause::duplicate(at("name"), own));
        }
        let versions = list(webhook, "admissionReviewVersions");
        if versions.is_empty() {
            let why = "must specify one of v1, v1beta1";
            causes.push(Cause::required(at("admissionReviewVersions"), why));
        } else if !versions.iter().any(|version| version == "v1") {
            let why = "must include at least one of v1";
            causes.push(Cause::invalid(at("admissionReviewVersions"), versions.to_vec(), why));
        }
        one_of(&at("sideEffects"), text(webhook, "sideEffects"), &["None", "NoneOnDryRun"], causes);
        one_of(&at("failurePolicy"), text(webhook, "failurePolicy"), &["Fail", "Ignore"], causes);
        one_of(&at("matchPolicy"), text(webhook, "matchPolicy"), &["Equivalent", "Exact"], causes);
        let timeout = webhook["timeoutSeconds"].as_i64().unwrap_or(0);
        if !(1..=TIMEOUT_S_MAX).contains(&timeout) {
            let why = "the timeout value must be between 1 and 30 seconds";
            causes.push(Cause::invalid(at("timeoutSeconds"), timeout, why));
        }
        for (number, rule) in list(webhook, "rules").iter().enumerate() {
            check_rule(&at(&format!("rules[{number}]")), rule, causes);
        }
        client_config(&at("clientConfig"), &webhook["clientConfig"], causes);
    }
}

fn check_rule(path: &str, rule: &Value, causes: &mut Vec<Cause>) {
    for field in ["operations", "apiGroups", "apiVersions", "resources"] {
        if list(rule, field).is_empty() {
            causes.push(Cause::required(format!("{path}.{field}"), ""));
        }
    }
    let operations = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    for (index, operation) in list(rule, "operations").iter().enumerate() {
        let operation = operation.as_str().unwrap_or_default();
        one_of(&format!("{path}.operations[{index}]"), operation, &operations, causes);
    }
    one_of(&format!("{path}.scope"), text(rule, "scope"), &["*", "Cluster", "Namespaced"], causes);
}

/// Where a webhook is: at an address or behind a Service.
pub(crate) fn client_config(path: &str, config: &Value, causes: &mut Vec<Cause>) {
    match (config["url"].as_str(), config["service"].as_object()) {
        (None, None) => causes.push(Cause::required(path, "exactly one of url or service is required")),
        (Some(_), Some(_)) => {
            causes.push(Cause::required(path, "exactly one of url or service is required"));
        }
        (Some(url), None) => {
            if !url.starts_with("https://") {
                let why = "'https' is the only allowed URL scheme; desired format: https://host[/path]";
                causes.push(Cause::invalid(format!("{path}.url"), url, why));
            } else if url.contains(['@', '#', '?']) {
                let why = "user information, fragments and query parameters are not permitted in the URL";
                causes.push(Cause::invalid(format!("{path}.url"), url, why));
            }
        }
        (None, Some(_)) => {
            for field in ["name", "namespace"] {
                if text(&config["service"], field).is_empty() {
                    let why = format!("service {field} is required");
                    causes.push(Cause::required(format!("{path}.service.{field}"), &why));
                }
            }
            let port = config["service"]["port"].as_i64().unwrap_or(443);
            if !(1..=65535).contains(&port) {
                let why = "port is not valid: must be between 1 and 65535, inclusive";
                causes.push(Cause::invalid(format!("{path}.service.port"), port, why));
            }
            let service_path = text(&config["service"], "path");
            if !service_path.is_empty() && !service_path.starts_with('/') {
                let why = "must start with a '/'";
                causes.push(Cause::invalid(format!("{path}.service.path"), service_path, why));
            }
        }
    }
}

pub(super) fn admission_policy(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    one_of("spec.failurePolicy", text(spec, "failurePolicy"), &["Fail", "Ignore"], causes);
    if list(spec, "validations").is_empty() && list(spec, "auditAnnotations").is_empty() {
        let why = "validations or auditAnnotations must contain at least one item";
        causes.push(Cause::required("spec.validations", why));
    }
    for (index, validation) in list(spec, "validations").iter().enumerate() {
        if text(validation, "expression").trim().is_empty() {
            let field = format!("spec.validations[{index}].expression");
            causes.push(Cause::required(field, "expression is not specified"));
        }
    }
    let constraints = &spec["matchConstraints"];
    if list(constraints, "resourceRules").is_empty() {
        causes.push(Cause::required("spec.matchConstraints.resourceRules", ""));
    }
    for (index, rule) in list(constraints, "resourceRules").iter().enumerate() {
        check_rule(&format!("spec.matchConstraints.resourceRules[{index}]"), rule, causes);
    }
}

pub(super) fn admission_policy_binding(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    if text(spec, "policyName").is_empty() {
        causes.push(Cause::required("spec.policyName", ""));
    }
    let actions = list(spec, "validationActions");
    if actions.is_empty() {
        causes.push(Cause::required("spec.validationActions", ""));
    }
    for (index, action) in actions.iter().enumerate() {
        let field = format!("spec.validationActions[{index}]");
        one_of(&field, action.as_str().unwrap_or_default(), &["Audit", "Deny", "Warn"], causes);
    }
    let has = |action: &str| actions.iter().any(|own| own == action);
    if has("Deny") && has("Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        causes.push(Cause::invalid("spec.validationActions", actions.to_vec(), why));
    }
}

pub(super) fn certificate_request(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    if text(spec, "request").is_empty() {
        causes.push(Cause::required("spec.request", "PEM block type must be CERTIFICATE REQUEST"));
    }
    let usages = list(spec, "usages");
    if usages.is_empty() {
        causes.push(Cause::required("spec.usages", "usages must be specified"));
    }
    for (index, usage) in usages.iter().enumerate() {
        one_of(&format!("spec.usages[{index}]"), usage.as_str().unwrap_or_default(), USAGES, causes);
    }
    let signer = text(spec, "signerName");
    if signer.is_empty() {
        causes.push(Cause::required("spec.signerName", ""));
    } else if !signer.split_once('/').is_some_and(|(domain, path)| {
        domain.contains('.') && name::dns1123_subdomain(domain).is_empty() && !path.is_empty()
    }) {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        causes.push(Cause::invalid("spec.signerName", signer, why));
    } else if signer == LEGACY_SIGNER {
        let why = "the legacy signerName is not allowed via this API version";
        causes.push(Cause::invalid("spec.signerName", signer, why));
    }
    if let Some(seconds) = spec["expirationSeconds"].as_i64().filter(|seconds| *seconds < EXPIRATION_S_MIN) {
        let why = format!("may not specify a duration less than {EXPIRATION_S_MIN} seconds (10 minutes)");
        causes.push(Cause::invalid("spec.expirationSeconds", seconds, &why));
    }
}

/// What was asked stays as it was signed.
pub(super) fn certificate_request_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    if old["spec"] != new["spec"] {
        causes.push(Cause::forbidden("spec", "updates to certificatesigningrequest spec are forbidden"));
    }
    let decided = |object: &Value, verdict: &str| {
        list(&object["status"], "conditions").iter().any(|condition| condition["type"] == verdict)
    };
    for verdict in VERDICTS {
        if decided(old, verdict) && !decided(new, verdict) {
            let why = format!("updates may not remove a condition of type {verdict:?}");
            causes.push(Cause::forbidden("status.conditions", &why));
        }
    }
    if decided(new, "Approved") && decided(new, "Denied") {
        let why = "Approved and Denied conditions are mutually exclusive";
        causes.push(Cause::invalid("status.conditions", new["status"]["conditions"].clone(), why));
    }
    let issued = |object: &Value| text(&object["status"], "certificate").to_owned();
    if !issued(old).is_empty() && issued(old) != issued(new) {
        causes.push(Cause::forbidden(
            "status.certificate",
            "updates may not set certificate content: the certificate was issued already",
        ));
    }
    if old["status"]["conditions"] != new["status"]["conditions"] {
        request_conditions(list(&new["status"], "conditions"), causes);
    }
}

fn request_conditions(conditions: &[Value], causes: &mut Vec<Cause>) {
    let mut seen = BTreeSet::new();
    for (index, condition) in conditions.iter().enumerate() {
        let at = |field: &str| format!("status.conditions[{index}].{field}");
        let (own, status) = (text(condition, "type"), text(condition, "status"));
        if own.is_empty() {
            causes.push(Cause::required(at("type"), ""));
        }
        if !seen.insert(own) {
            causes.push(Cause::duplicate(at("type"), own));
        }
        let allowed: &[&str] =
            if VERDICTS.contains(&own) { &["True"] } else { &["False", "True", "Unknown"] };
        match status {
            "" => causes.push(Cause::required(at("status"), "")),
            status => one_of(&at("status"), status, allowed, causes),
        }
    }
}

pub(super) fn runtime_class(object: &Value, causes: &mut Vec<Cause>) {
    match text(object, "handler") {
        "" => causes.push(Cause::required("handler", "")),
        handler => invalid_each("handler", handler, name::dns1123_label(handler), causes),
    }
}

pub(super) fn runtime_class_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    if old["handler"] != new["handler"] {
        causes.push(Cause::invalid("handler", new["handler"].clone(), "field is immutable"));
    }
}

pub(super) fn csi_driver(object: &Value, causes: &mut Vec<Cause>) {
    let own = object::name(object);
    if own.len() > 63 {
        causes.push(Cause::too_long("metadata.name", 63));
    }
    let spec = &object["spec"];
    for (index, mode) in list(spec, "volumeLifecycleModes").iter().enumerate() {
        let field = format!("spec.volumeLifecycleModes[{index}]");
        one_of(&field, mode.as_str().unwrap_or_default(), &["Ephemeral", "Persistent"], causes);
    }
    let policies = ["File", "None", "ReadWriteOnceWithFSType"];
    one_of("spec.fsGroupPolicy", text(spec, "fsGroupPolicy"), &policies, causes);
}

pub(super) fn volume_attachment(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    for field in ["attacher", "nodeName"] {
        if text(spec, field).is_empty() {
            causes.push(Cause::required(format!("spec.{field}"), ""));
        }
    }
    let source = &spec["source"];
    if source["persistentVolumeName"].is_null() && source["inlineVolumeSpec"].is_null() {
        let why = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
        causes.push(Cause::required("spec.source", why));
    }
}

pub(super) fn volume_attachment_update(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    if old["spec"] != new["spec"] {
        causes.push(Cause::invalid("spec", new["spec"].clone(), "field is immutable"));
    }
}
