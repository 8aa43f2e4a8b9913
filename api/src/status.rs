//! Kubernetes `Status` errors.
//!
//! Owns the error that every rule of this package and every layer above it answers with: message, reason,
//! code and details, worded as the Kubernetes API server words them, so that `kubectl` and client libraries
//! recognise them. Does not decide when an error is due.

use std::fmt;

use serde_json::{Value, json};

use crate::kinds::Kind;

/// Why a field is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CauseKind {
    /// What the field refers to does not exist.
    NotFound,
    /// The field must be set.
    Required,
    /// The value stands there twice.
    Duplicate,
    /// The value is malformed or out of range.
    Invalid,
    /// The value is none of the supported ones.
    NotSupported,
    /// The field may not be set or changed.
    Forbidden,
    /// The value has too many bytes.
    TooLong,
    /// The list has too many items.
    TooMany,
    /// The value has the wrong type.
    TypeInvalid,
    /// The check itself failed.
    Internal,
}

impl CauseKind {
    /// The machine-readable reason in `details.causes`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Internal => "InternalError",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }
}

/// One refused field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Path of the field, such as `spec.containers[0].image`.
    pub field: String,
    /// Why.
    pub kind: CauseKind,
    /// The text without the field's path: `Required value`, `Invalid value: "x": must be ...`.
    pub message: String,
}

impl Cause {
    fn new(field: impl Into<String>, kind: CauseKind, value: Option<&Value>, detail: &str) -> Self {
        let mut message = kind.title().to_owned();
        if let Some(value) = value {
            message.push_str(": ");
            message.push_str(&printed(value));
        }
        if !detail.is_empty() {
            message.push_str(": ");
            message.push_str(detail);
        }
        Self { field: field.into(), kind, message }
    }

    /// The field must be set.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self::new(field, CauseKind::Required, None, detail)
    }

    /// The value is malformed or out of range.
    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: &str) -> Self {
        Self::new(field, CauseKind::Invalid, Some(&value.into()), detail)
    }

    /// The value stands there twice.
    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(field, CauseKind::Duplicate, Some(&value.into()), "")
    }

    /// What the value names does not exist.
    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(field, CauseKind::NotFound, Some(&value.into()), "")
    }

    /// The value is none of the supported ones.
    pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let mut sorted: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        sorted.sort();
        let detail = format!("supported values: {}", sorted.join(", "));
        Self::new(field, CauseKind::NotSupported, Some(&value.into()), &detail)
    }

    /// The field may not be set or changed.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::new(field, CauseKind::Forbidden, None, detail)
    }

    /// The value has more than `bytes_max` bytes.
    pub fn too_long(field: impl Into<String>, bytes_max: usize) -> Self {
        let detail = format!("may not be more than {bytes_max} bytes");
        Self::new(field, CauseKind::TooLong, None, &detail)
    }

    /// The list has more than `items_max` items.
    pub fn too_many(field: impl Into<String>, items: usize, items_max: usize) -> Self {
        let plural = if items_max == 1 { "item" } else { "items" };
        let detail = format!("must have at most {items_max} {plural}");
        Self::new(field, CauseKind::TooMany, Some(&Value::from(items)), &detail)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.field, self.message)
        }
    }
}

/// A value as error texts print it: strings quoted, the rest as JSON.
fn printed(value: &Value) -> String {
    match value {
        Value::Null => "\"null\"".to_owned(),
        Value::String(text) => quoted(text),
        other => other.to_string(),
    }
}

/// A string in double quotes, with Go's escapes (`%q`): the words of the ecosystem's messages, and of files
/// that programs written for it read.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A failed request.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    inner: Box<Inner>,
}

#[derive(Debug, Clone, PartialEq)]
struct Inner {
    code: u16,
    reason: &'static str,
    message: String,
    kind: String,
    group: String,
    name: String,
    uid: String,
    causes: Vec<Value>,
    retry_after_s: Option<u32>,
    has_details: bool,
}

impl Status {
    fn plain(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            inner: Box::new(Inner {
                code,
                reason,
                message: message.into(),
                kind: String::new(),
                group: String::new(),
                name: String::new(),
                uid: String::new(),
                causes: Vec::new(),
                retry_after_s: None,
                has_details: false,
            }),
        }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        self.inner.group = group.to_owned();
        self.inner.kind = kind.to_owned();
        self.inner.name = name.to_owned();
        self.inner.has_details = true;
        self
    }

    /// 404: there is no such object.
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        Self::plain(404, "NotFound", format!("{} {} not found", kind.group_resource(), quoted(name))).about(
            kind.group,
            kind.plural,
            name,
        )
    }

    /// 404: the path names nothing that is served.
    pub fn not_found_path() -> Self {
        Self::plain(404, "NotFound", "the server could not find the requested resource").about("", "", "")
    }

    /// 409: an object of that name exists.
    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        Self::plain(
            409,
            "AlreadyExists",
            format!("{} {} already exists", kind.group_resource(), quoted(name)),
        )
        .about(kind.group, kind.plural, name)
    }

    /// 409: the write does not fit the object's present state.
    pub fn conflict(kind: &Kind, name: &str, message: &str) -> Self {
        let resource = kind.group_resource();
        Self::plain(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {resource} {}: {message}", quoted(name)),
        )
        .about(kind.group, kind.plural, name)
    }

    /// 409: the object has changed since the writer read it.
    pub fn modified(kind: &Kind, name: &str) -> Self {
        Self::conflict(
            kind,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 409: others own fields that an applier would change. The causes are places and texts.
    pub fn apply_conflict(message: &str, causes: &[(String, String)]) -> Self {
        let mut status = Self::plain(409, "Conflict", message);
        let cause = |(field, message): &(String, String)| json!({"reason": "FieldManagerConflict", "message": message, "field": field});
        status.inner.causes = causes.iter().map(cause).collect();
        status.inner.has_details = true;
        status
    }

    /// 422: fields are refused.
    pub fn invalid(kind: &Kind, name: &str, causes: Vec<Cause>) -> Self {
        let mut texts: Vec<String> = Vec::with_capacity(causes.len());
        for cause in &causes {
            let text = cause.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let list = if texts.len() == 1 { texts.swap_remove(0) } else { format!("[{}]", texts.join(", ")) };
        let mut status =
            Self::plain(422, "Invalid", format!("{} {} is invalid: {list}", kind.group_kind(), quoted(name)))
                .about(kind.group, kind.kind, name);
        status.inner.causes = causes
            .into_iter()
            .map(|c| json!({"reason": c.kind.reason(), "message": c.message, "field": c.field}))
            .collect();
        status
    }

    /// 422 for something that is no object of a served kind (a patch, options).
    pub fn invalid_request(message: impl Into<String>) -> Self {
        Self::plain(422, "Invalid", message)
    }

    /// 400: the request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::plain(400, "BadRequest", message)
    }

    /// 401: nobody knows who asks.
    pub fn unauthorized() -> Self {
        Self::plain(401, "Unauthorized", "Unauthorized")
    }

    /// 403: the asker may not. An empty name speaks of the whole resource.
    pub fn forbidden(kind: &Kind, name: &str, message: &str) -> Self {
        Self::forbidden_resource(kind.group, kind.plural, name, message)
    }

    /// 403 for a resource that need not be served. An empty name speaks of the whole resource.
    pub fn forbidden_resource(group: &str, plural: &str, name: &str, message: &str) -> Self {
        let resource = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
        let text = if name.is_empty() {
            format!("{resource} is forbidden: {message}")
        } else {
            format!("{resource} {} is forbidden: {message}", quoted(name))
        };
        Self::plain(403, "Forbidden", text).about(group, plural, name)
    }

    /// A refusal by admission that a user configured, with a code of its own.
    pub fn denied(code: u16, message: impl Into<String>) -> Self {
        let reason = match code {
            400 => "BadRequest",
            401 => "Unauthorized",
            404 => "NotFound",
            409 => "Conflict",
            413 => "RequestEntityTooLarge",
            422 => "Invalid",
            500 => "InternalError",
            _ => "Forbidden",
        };
        Self::plain(code, reason, message)
    }

    /// 403 for a path that is no resource.
    pub fn forbidden_path(message: impl Into<String>) -> Self {
        Self::plain(403, "Forbidden", message).about("", "", "")
    }

    /// 405: the resource does not serve the verb.
    pub fn method_not_allowed(kind: &Kind, verb: &str) -> Self {
        let resource = kind.group_resource();
        Self::plain(
            405,
            "MethodNotAllowed",
            format!("{verb} is not supported on resources of kind {}", quoted(&resource)),
        )
        .about(kind.group, kind.plural, "")
    }

    /// 405 for a path that is no resource, or a method that means nothing there.
    pub fn method_not_allowed_path() -> Self {
        Self::plain(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
        .about("", "", "")
    }

    /// 406: no served format is acceptable to the asker.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let list = accepted.join(", ");
        Self::plain(406, "NotAcceptable", format!("only the following media types are accepted: {list}"))
    }

    /// 415: the body's format is not understood.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let list = accepted.join(", ");
        Self::plain(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {list}"
            ),
        )
    }

    /// 410: the name stood for something that is gone for good.
    pub fn gone(message: impl Into<String>) -> Self {
        Self::plain(410, "Gone", message)
    }

    /// 410: the resource version is too old to continue from.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::plain(410, "Expired", message)
    }

    /// 413: the body exceeds the limit.
    pub fn request_entity_too_large(message: &str) -> Self {
        Self::plain(413, "RequestEntityTooLarge", format!("Request entity is too large: {message}"))
    }

    /// 429: ask again later.
    pub fn too_many_requests(message: impl Into<String>, retry_after_s: u32) -> Self {
        Self::plain(429, "TooManyRequests", message).retry_after(retry_after_s)
    }

    /// 504: no answer in time.
    pub fn timeout(message: &str, retry_after_s: u32) -> Self {
        Self::plain(504, "Timeout", format!("Timeout: {message}")).retry_after(retry_after_s)
    }

    /// 500 with reason `ServerTimeout`: the operation could not be completed now; the client may try again.
    pub fn server_timeout(kind: &Kind, operation: &str, retry_after_s: u32) -> Self {
        let resource = kind.group_resource();
        Self::plain(
            500,
            "ServerTimeout",
            format!(
                "The {operation} operation against {resource} could not be completed at this time, please try again."
            ),
        )
        .about(kind.group, kind.plural, "")
        .retry_after(retry_after_s)
    }

    /// 503: not able to serve now.
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::plain(503, "ServiceUnavailable", message)
    }

    /// 500: something that should not happen did.
    pub fn internal(message: &str) -> Self {
        let mut status = Self::plain(500, "InternalError", format!("Internal error occurred: {message}"));
        status.inner.causes = vec![json!({"message": message})];
        status.inner.has_details = true;
        status
    }

    /// The same error, asking the client to wait that long before the next try.
    pub fn retry_after(mut self, retry_after_s: u32) -> Self {
        self.inner.retry_after_s = Some(retry_after_s);
        self.inner.has_details = true;
        self
    }

    /// The same error, naming the object's uid in its details.
    pub fn with_uid(mut self, uid: &str) -> Self {
        self.inner.uid = uid.to_owned();
        self.inner.has_details = true;
        self
    }

    /// HTTP status code.
    pub fn code(&self) -> u16 {
        self.inner.code
    }

    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        self.inner.reason
    }

    /// The text.
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    /// Seconds that the client is asked to wait, if any.
    pub fn retry_after_s(&self) -> Option<u32> {
        self.inner.retry_after_s
    }

    /// The `v1` `Status` object, as a response body carries it.
    pub fn to_value(&self) -> Value {
        let inner = &self.inner;
        let mut value = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": inner.message,
            "reason": inner.reason,
            "code": inner.code,
        });
        if inner.has_details {
            let mut details = serde_json::Map::new();
            for (key, text) in
                [("name", &inner.name), ("group", &inner.group), ("kind", &inner.kind), ("uid", &inner.uid)]
            {
                if !text.is_empty() {
                    details.insert(key.to_owned(), Value::from(text.as_str()));
                }
            }
            if !inner.causes.is_empty() {
                details.insert("causes".to_owned(), Value::from(inner.causes.clone()));
            }
            if let Some(seconds) = inner.retry_after_s {
                details.insert("retryAfterSeconds".to_owned(), Value::from(seconds));
            }
            value["details"] = Value::Object(details);
        }
        value
    }

    /// The `v1` `Status` object of a deletion that succeeded at once.
    pub fn deleted(kind: &Kind, name: &str, uid: &str) -> Value {
        let mut details = json!({"name": name, "kind": kind.plural, "uid": uid});
        if !kind.group.is_empty() {
            details["group"] = Value::from(kind.group);
        }
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::by_kind;

    #[test]
    fn texts_codes_and_details_are_kubernetes_own() {
        let pod = by_kind("", "v1", "Pod").unwrap();
        let lease = by_kind("coordination.k8s.io", "v1", "Lease").unwrap();
        assert_eq!(
            Status::not_found(pod, "x").to_value(),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "pods \"x\" not found", "reason": "NotFound",
                "details": {"name": "x", "kind": "pods"}, "code": 404})
        );
        assert_eq!(
            Status::already_exists(lease, "l").to_string(),
            "leases.coordination.k8s.io \"l\" already exists"
        );
        assert_eq!(
            Status::modified(pod, "x").to_string(),
            "Operation cannot be fulfilled on pods \"x\": the object has been modified; \
             please apply your changes to the latest version and try again"
        );
        assert_eq!(
            Status::forbidden(pod, "", "User \"u\" cannot list").to_string(),
            "pods is forbidden: User \"u\" cannot list"
        );
        assert_eq!(
            Status::too_many_requests("slow down", 3).to_value()["details"],
            json!({"retryAfterSeconds": 3})
        );
    }

    #[test]
    fn invalid_lists_its_causes() {
        let pod = by_kind("", "v1", "Pod").unwrap();
        let one = Status::invalid(pod, "x", vec![Cause::required("spec.containers[0].image", "")]);
        assert_eq!(one.to_string(), "Pod \"x\" is invalid: spec.containers[0].image: Required value");
        assert_eq!(one.code(), 422);
        let two = Status::invalid(
            pod,
            "x",
            vec![
                Cause::required("spec.containers[0].image", ""),
                Cause::not_supported("spec.restartPolicy", "Sometimes", &["Always", "OnFailure", "Never"]),
                Cause::invalid("spec.x", 70000, "must be between 1 and 65535, inclusive"),
            ],
        );
        assert_eq!(
            two.to_string(),
            "Pod \"x\" is invalid: [spec.containers[0].image: Required value, \
             spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\", \
             spec.x: Invalid value: 70000: must be between 1 and 65535, inclusive]"
        );
        assert_eq!(
            two.to_value()["details"]["causes"][1],
            json!({"reason": "FieldValueNotSupported", "field": "spec.restartPolicy",
                "message": "Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\""})
        );
    }

    #[test]
    fn texts_are_quoted_as_go_does() {
        assert_eq!(quoted("Doing something\n"), r#""Doing something\n""#);
        assert_eq!(quoted("a \"b\" \\ \u{1} \u{85} \u{fc}"), "\"a \\\"b\\\" \\\\ \\x01 \\u0085 \u{fc}\"");
    }
}
