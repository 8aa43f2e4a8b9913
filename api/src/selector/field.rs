//! Field selectors.
//!
//! Owns the text form (`metadata.name=x,status.phase!=Running`) and which fields each kind supports, with the
//! value a field has in an object. Promises Kubernetes' error texts. A field that is missing reads as empty,
//! except booleans, which read as `false`.

use std::fmt;

use serde_json::Value;

use crate::crd::CustomKind;
use crate::kinds::Kind;
use crate::object;
use crate::status::{Status, quoted};
use crate::versions;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    field: String,
    value: String,
    equal: bool,
}

/// A conjunction of comparisons of fields with texts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

impl FieldSelector {
    /// Matches everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches the object of that name.
    pub fn name(name: &str) -> Self {
        Self { terms: vec![Term { field: "metadata.name".into(), value: name.into(), equal: true }] }
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let mut terms = Vec::new();
        for part in split_terms(text) {
            if part.is_empty() {
                continue;
            }
            let Some((field, value, equal)) = split_term(&part) else {
                return Err(Status::bad_request(format!(
                    "invalid selector: '{text}'; can't understand '{part}'"
                )));
            };
            let value = unescape(value).map_err(|why| {
                Status::bad_request(format!("{why} in field selector value {}", quoted(value)))
            })?;
            terms.push(Term { field: field.to_owned(), value, equal });
        }
        Ok(Self { terms })
    }

    /// Refuses a selector that names a field which the kind does not support.
    pub fn check(&self, kind: &Kind) -> Result<(), Status> {
        self.check_fields(kind, None)
    }

    /// As [`FieldSelector::check`], for a kind that says itself which fields it supports.
    pub fn check_custom(&self, custom: &CustomKind) -> Result<(), Status> {
        self.check_fields(custom.kind(), Some(custom))
    }

    fn check_fields(&self, kind: &Kind, custom: Option<&CustomKind>) -> Result<(), Status> {
        for term in &self.terms {
            if kind.stored_as.is_some() {
                check_version(kind, &term.field)?;
                continue;
            }
            if supported(kind).contains(&term.field.as_str()) || is_generic(kind, &term.field) {
                continue;
            }
            if custom.is_some_and(|custom| custom.selectable().iter().any(|(name, _)| *name == term.field)) {
                continue;
            }
            if kind.is_custom {
                return Err(Status::bad_request(format!("field label not supported: {}", term.field)));
            }
            return Err(Status::bad_request(unsupported(kind, &term.field)));
        }
        Ok(())
    }

    /// Whether the object is selected. An unsupported field reads as empty; see [`FieldSelector::check`].
    pub fn matches(&self, kind: &Kind, object: &Value) -> bool {
        if kind.stored_as.is_some() {
            let (stored_kind, stored) = versions::as_stored(kind, object);
            let value = |field: &str| match versions::field(kind, field) {
                Some(name) => field_value(stored_kind, &name, &stored),
                None => String::new(),
            };
            return self.terms.iter().all(|t| (value(&t.field) == t.value) == t.equal);
        }
        self.terms.iter().all(|t| (field_value(kind, &t.field, object) == t.value) == t.equal)
    }

    /// As [`FieldSelector::matches`], for a kind that says itself which fields it supports.
    pub fn matches_custom(&self, custom: &CustomKind, object: &Value) -> bool {
        let value = |field: &str| match custom.selectable().iter().find(|(name, _)| name == field) {
            None => field_value(custom.kind(), field, object),
            Some((_, path)) => match path.find(object) {
                None | Some(Value::Null) => String::new(),
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
            },
        };
        self.terms.iter().all(|term| (value(&term.field) == term.value) == term.equal)
    }

    /// Whether nothing is asked, so that everything matches.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that the selector demands of a field, if it demands one.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.terms.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let operator = if term.equal { "=" } else { "!=" };
            let value = term.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{comma}{}{operator}{value}", term.field)?;
        }
        Ok(())
    }
}

/// Refuses a field that a second version does not have.
fn check_version(kind: &Kind, field: &str) -> Result<(), Status> {
    let stored = kind.stored_kind();
    match versions::field(kind, field) {
        Some(name) if supported(stored).contains(&name.as_str()) || is_generic(stored, &name) => Ok(()),
        Some(name) if name == field => Err(Status::bad_request(unsupported(stored, field))),
        _ => Err(Status::bad_request(format!("field label not supported: {field}"))),
    }
}

fn is_generic(kind: &Kind, field: &str) -> bool {
    field == "metadata.name" || (field == "metadata.namespace" && kind.namespaced)
}

/// The fields beyond name and namespace.
fn supported(kind: &Kind) -> &'static [&'static str] {
    match (kind.group, kind.kind) {
        ("", "Pod") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "Node") => &["spec.unschedulable"],
        ("", "Namespace") => &["status.phase"],
        ("", "Secret") => &["type"],
        ("", "ReplicationController") | ("apps", "ReplicaSet") => &["status.replicas"],
        ("", "Service") => &["spec.clusterIP", "spec.type"],
        ("batch", "Job") => &["status.successful"],
        ("certificates.k8s.io", _) => &["spec.signerName"],
        ("", "Event") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        _ => &[],
    }
}

fn unsupported(kind: &Kind, field: &str) -> String {
    let quoted_field = quoted(field);
    match (kind.group, kind.kind) {
        ("", "Pod" | "Node" | "Namespace" | "Secret" | "Event") => {
            let what = match kind.kind {
                "Namespace" => {
                    return format!(
                        "{quoted_field} is not a known field selector: only \"metadata.name\", \"status.phase\""
                    );
                }
                other => other,
            };
            if what == "Secret" {
                return format!(
                    "{quoted_field} is not a known field selector: only \"metadata.name\", \"metadata.namespace\", \"type\""
                );
            }
            format!("field label not supported: {field}")
        }
        _ if kind.namespaced => {
            format!(
                "{quoted_field} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
            )
        }
        _ => format!("{quoted_field} is not a known field selector: only \"metadata.name\""),
    }
}

fn field_value(kind: &Kind, field: &str, value: &Value) -> String {
    match field {
        "metadata.name" => return object::name(value).to_owned(),
        "metadata.namespace" => return object::namespace(value).to_owned(),
        _ => {}
    }
    if !supported(kind).contains(&field) {
        return String::new();
    }
    match (kind.kind, field) {
        ("Pod", "status.podIPs") => value
            .pointer("/status/podIPs")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|ip| ip.get("ip")?.as_str())
            .collect::<Vec<_>>()
            .join(","),
        ("ReplicationController" | "ReplicaSet", _) => number(value, field),
        ("Job", _) => number(value, "status.succeeded"),
        ("Pod", "spec.hostNetwork") | ("Node", "spec.unschedulable") => {
            at(value, field).and_then(Value::as_bool).unwrap_or(false).to_string()
        }
        ("Event", "source") => {
            let source = text(value, "source.component");
            if source.is_empty() { text(value, "reportingComponent") } else { source }
        }
        _ => text(value, field),
    }
}

fn at<'a>(value: &'a Value, field: &str) -> Option<&'a Value> {
    field.split('.').try_fold(value, |v, segment| v.get(segment))
}

fn number(value: &Value, field: &str) -> String {
    at(value, field).and_then(Value::as_i64).unwrap_or(0).to_string()
}

fn text(value: &Value, field: &str) -> String {
    at(value, field).and_then(Value::as_str).unwrap_or("").to_owned()
}

/// Splits at commas that no backslash escapes.
fn split_terms(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        let last = parts.len() - 1;
        match c {
            ',' if !escaped => parts.push(String::new()),
            c => parts[last].push(c),
        }
        escaped = c == '\\' && !escaped;
    }
    parts
}

fn split_term(part: &str) -> Option<(&str, &str, bool)> {
    let mut escaped = false;
    for (index, c) in part.char_indices() {
        let rest = &part[index..];
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if rest.starts_with("!=") {
            return Some((&part[..index], &part[index + 2..], false));
        } else if rest.starts_with("==") {
            return Some((&part[..index], &part[index + 2..], true));
        } else if c == '=' {
            return Some((&part[..index], &part[index + 1..], true));
        }
    }
    None
}

fn unescape(text: &str) -> Result<String, &'static str> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                _ => return Err("invalid escape sequence"),
            },
            ',' | '=' => return Err("unescaped character"),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::by_kind;
    use serde_json::json;

    #[test]
    fn supported_fields_select() {
        let pod = by_kind("", "v1", "Pod").unwrap();
        let object = json!({
            "metadata": {"name": "a", "namespace": "d"},
            "spec": {"nodeName": "n1", "restartPolicy": "Always"},
            "status": {"phase": "Running", "podIPs": [{"ip": "1.2.3.4"}, {"ip": "::1"}]},
        });
        for (text, expected) in [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name==a,metadata.namespace=d,spec.nodeName!=n2", true),
            ("spec.nodeName=", false),
            ("status.phase!=Running", false),
            ("spec.hostNetwork=false", true),
            ("status.podIPs=1.2.3.4\\,::1", true),
            ("status.nominatedNodeName=", true),
        ] {
            let selector = FieldSelector::parse(text).unwrap();
            selector.check(pod).unwrap();
            assert_eq!(selector.matches(pod, &object), expected, "{text}");
        }
        assert_eq!(FieldSelector::parse("spec.nodeName=n").unwrap().required("spec.nodeName"), Some("n"));
    }

    #[test]
    fn events_and_nodes_have_their_own_fields() {
        let event = by_kind("", "v1", "Event").unwrap();
        let object = json!({"involvedObject": {"kind": "Pod", "uid": "u"}, "type": "Warning",
            "reportingComponent": "kubelet"});
        let selector = FieldSelector::parse("involvedObject.uid=u,type=Warning,source=kubelet").unwrap();
        selector.check(event).unwrap();
        assert!(selector.matches(event, &object));
        assert!(!FieldSelector::parse("type=warning").unwrap().matches(event, &object));
        let node = by_kind("", "v1", "Node").unwrap();
        assert!(FieldSelector::parse("spec.unschedulable=false").unwrap().matches(node, &json!({})));
    }

    #[test]
    fn unsupported_fields_and_nonsense_are_refused() {
        let pod = by_kind("", "v1", "Pod").unwrap();
        let cm = by_kind("", "v1", "ConfigMap").unwrap();
        let error = FieldSelector::parse("spec.foo=x").unwrap().check(pod).unwrap_err();
        assert_eq!((error.code(), error.message()), (400, "field label not supported: spec.foo"));
        let error = FieldSelector::parse("data.x=x").unwrap().check(cm).unwrap_err();
        assert_eq!(
            error.message(),
            "\"data.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
        let error = FieldSelector::parse("nonsense").unwrap_err();
        assert_eq!(error.message(), "invalid selector: 'nonsense'; can't understand 'nonsense'");
    }
}
