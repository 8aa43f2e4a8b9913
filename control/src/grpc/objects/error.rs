//! Errors of REST as errors of gRPC: the code that fits, and the Kubernetes Status in the details.

use api::protobuf::Encoder;
use bytes::Bytes;
use prost::Message;
use prost_types::{Any, Duration};
use proto::rpc;
use serde_json::Value;
use tonic::{Code, Status};

/// Longest details; clients refuse answers whose metadata have more than 8 KiB or so.
const DETAILS_BYTES_MAX: usize = 4096;
/// Longest message.
const MESSAGE_BYTES_MAX: usize = 2048;
/// The message inside details that would be too long.
const SHORT_MESSAGE_BYTES_MAX: usize = 512;

const STATUS_TYPE: &str = "type.googleapis.com/k8s.io.apimachinery.pkg.apis.meta.v1.Status";
const RETRY_TYPE: &str = "type.googleapis.com/google.rpc.RetryInfo";

/// An answer that is an error. What is no `Status` object comes from before REST knew what was asked.
pub(super) fn of_answer(http_code: u16, body: &[u8]) -> Status {
    let status: Value = serde_json::from_slice(body).unwrap_or_default();
    if status["kind"] == "Status" {
        return of_status(&status);
    }
    let status = match http_code {
        404 => api::Status::not_found_path(),
        405 => api::Status::method_not_allowed_path(),
        _ => return of_code(http_code, String::from_utf8_lossy(body).trim()),
    };
    of_status(&status.to_value())
}

/// A `Status` object.
pub(super) fn of_status(status: &Value) -> Status {
    let code = code(status["code"].as_u64().unwrap_or(500), status["reason"].as_str().unwrap_or_default());
    let message = status["message"].as_str().unwrap_or_default();
    let message = cut(message, MESSAGE_BYTES_MAX);
    Status::with_details(code, message, details(code, message, status))
}

/// What a node or a replica says about a stream, with a code of HTTP.
pub(super) fn of_code(http_code: u16, message: &str) -> Status {
    Status::new(code(http_code.into(), ""), cut(message, MESSAGE_BYTES_MAX))
}

fn code(http_code: u64, reason: &str) -> Code {
    match (http_code, reason) {
        (401, _) => Code::Unauthenticated,
        (403, _) => Code::PermissionDenied,
        (404, _) => Code::NotFound,
        (405, _) => Code::Unimplemented,
        (409, "AlreadyExists") => Code::AlreadyExists,
        (409, _) => Code::Aborted,
        (410, _) => Code::OutOfRange,
        (413 | 429, _) => Code::ResourceExhausted,
        (400..500, _) => Code::InvalidArgument,
        (503, _) | (500, "ServerTimeout") => Code::Unavailable,
        (504, _) => Code::DeadlineExceeded,
        _ => Code::Internal,
    }
}

fn details(code: Code, message: &str, status: &Value) -> Bytes {
    let mut any = Vec::new();
    if let Some(value) = encoded(status) {
        any.push(Any { type_url: STATUS_TYPE.to_owned(), value });
    }
    if let Some(seconds) = status["details"]["retryAfterSeconds"].as_i64() {
        let retry = rpc::RetryInfo { retry_delay: Some(Duration { seconds, nanos: 0 }) };
        any.push(Any { type_url: RETRY_TYPE.to_owned(), value: retry.encode_to_vec() });
    }
    let status = rpc::Status { code: code as i32, message: message.to_owned(), details: any };
    Bytes::from(status.encode_to_vec())
}

/// A `Status` as a message; without its causes and with a shorter text if it would be too long.
fn encoded(status: &Value) -> Option<Vec<u8>> {
    let encoder = Encoder::new("v1", "Status")?;
    let bytes = encoder.bare(status.to_string().as_bytes()).ok()?;
    if bytes.len() <= DETAILS_BYTES_MAX {
        return Some(bytes);
    }
    let mut short = status.clone();
    let message = cut(status["message"].as_str().unwrap_or_default(), SHORT_MESSAGE_BYTES_MAX);
    short["message"] = Value::from(message);
    if let Some(details) = short["details"].as_object_mut() {
        details.remove("causes");
    }
    encoder.bare(short.to_string().as_bytes()).ok().filter(|bytes| bytes.len() <= DETAILS_BYTES_MAX)
}

fn cut(text: &str, bytes_max: usize) -> &str {
    if text.len() <= bytes_max {
        return text;
    }
    let end = (0..=bytes_max).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    &text[..end]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn codes_are_those_of_grpc() {
        let pod = api::kinds::by_kind("", "v1", "Pod").unwrap();
        for (status, expected) in [
            (api::Status::not_found(pod, "x"), Code::NotFound),
            (api::Status::already_exists(pod, "x"), Code::AlreadyExists),
            (api::Status::modified(pod, "x"), Code::Aborted),
            (api::Status::expired("too old"), Code::OutOfRange),
            (api::Status::unauthorized(), Code::Unauthenticated),
            (api::Status::forbidden(pod, "x", "no"), Code::PermissionDenied),
            (api::Status::too_many_requests("wait", 3), Code::ResourceExhausted),
            (api::Status::server_timeout(pod, "create", 1), Code::Unavailable),
            (api::Status::timeout("slow", 1), Code::DeadlineExceeded),
            (api::Status::unsupported_media_type(&["x"]), Code::InvalidArgument),
            (api::Status::invalid_request("x"), Code::InvalidArgument),
            (api::Status::internal("x"), Code::Internal),
        ] {
            assert_eq!(of_status(&status.to_value()).code(), expected, "{status}");
        }
        assert_eq!(of_answer(404, b"404 page not found\n").code(), Code::NotFound);
        assert_eq!(of_answer(405, b"405: Method Not Allowed").code(), Code::Unimplemented);
    }

    #[test]
    fn details_stay_short_however_much_is_wrong() {
        let causes: Vec<Value> = (0..1000)
            .map(|n| json!({"reason": "x", "field": format!("spec.f{n}"), "message": "ü"}))
            .collect();
        let status = json!({"kind": "Status", "code": 422, "reason": "Invalid", "message": "ü".repeat(100_000),
            "details": {"name": "a", "retryAfterSeconds": 3, "causes": causes}});
        let error = of_status(&status);
        assert!(error.message().len() <= MESSAGE_BYTES_MAX && error.details().len() < 8 * 1024);
        let details = rpc::Status::decode(error.details()).unwrap();
        assert_eq!(details.details[0].type_url, STATUS_TYPE);
        let retry = rpc::RetryInfo::decode(details.details[1].value.as_slice()).unwrap();
        assert_eq!(retry.retry_delay.unwrap().seconds, 3);
    }
}
