//! `AdmissionReview` v1: what a webhook is sent, and what its answer means.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Request;

/// Longest warning of a webhook that is passed on.
const WARNING_BYTES_MAX: usize = 256;
/// Most of them.
const WARNINGS_MAX: usize = 16;

/// What a webhook says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Refused: code and message of its status.
    pub denied: Option<(u16, String)>,
    /// A JSON patch.
    pub patch: Option<Vec<u8>>,
    /// For whoever asked.
    pub warnings: Vec<String>,
    /// For the audit log.
    pub annotations: Vec<(String, String)>,
}

/// The body that a webhook is sent.
pub fn write(request: &Request<'_>, uid: &str) -> Value {
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request.value(uid)})
}

/// Reads a webhook's answer.
pub fn read(body: &[u8], uid: &str, may_patch: bool) -> Result<Verdict, String> {
    let review: Value =
        serde_json::from_slice(body).map_err(|error| format!("the answer is no valid JSON: {error}"))?;
    if review["kind"] != "AdmissionReview" || review["apiVersion"] != "admission.k8s.io/v1" {
        return Err(format!(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {}, Kind={}",
            review["apiVersion"].as_str().unwrap_or_default(),
            review["kind"].as_str().unwrap_or_default()
        ));
    }
    let response = &review["response"];
    if !response.is_object() {
        return Err("webhook response was absent".to_owned());
    }
    if response["uid"] != uid {
        return Err(format!("expected response.uid={uid:?}, got {}", response["uid"]));
    }
    let warnings = response["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let warnings = warnings.take(WARNINGS_MAX).map(|text| text.chars().take(WARNING_BYTES_MAX).collect());
    let annotations = response["auditAnnotations"].as_object().into_iter().flatten();
    let annotations = annotations.filter_map(|(key, text)| Some((key.clone(), text.as_str()?.to_owned())));
    let mut verdict =
        Verdict { warnings: warnings.collect(), annotations: annotations.collect(), ..Verdict::default() };
    if response["allowed"] != true {
        let status = &response["status"];
        let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok());
        let code = code.filter(|code| (400..600).contains(code)).unwrap_or(403);
        let text = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
        let message = [text("message"), text("reason")].into_iter().find(|text| !text.is_empty());
        verdict.denied = Some((code, message.unwrap_or_default()));
        return Ok(verdict);
    }
    let patch = response["patch"].as_str().unwrap_or_default();
    if patch.is_empty() {
        return Ok(verdict);
    }
    if !may_patch {
        return Err("a validating webhook must not answer with a patch".to_owned());
    }
    if response["patchType"] != "JSONPatch" {
        return Err("webhook returned response.patch but not response.patchType=\"JSONPatch\"".to_owned());
    }
    verdict.patch =
        Some(STANDARD.decode(patch).map_err(|error| format!("response.patch is no base64: {error}"))?);
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_odd_ones_refused() {
        let answer = |response: Value| {
            json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response})
                .to_string()
        };
        let read = |text: &str| read(text.as_bytes(), "u", true);
        assert_eq!(read(&answer(json!({"uid": "u", "allowed": true}))), Ok(Verdict::default()));
        let denied =
            read(&answer(json!({"uid": "u", "allowed": false, "status": {"message": "no", "code": 418}})));
        assert_eq!(denied.map(|verdict| verdict.denied), Ok(Some((418, "no".to_owned()))));
        let patched =
            read(&answer(json!({"uid": "u", "allowed": true, "patchType": "JSONPatch", "patch": "W10="})));
        assert_eq!(patched.map(|verdict| verdict.patch), Ok(Some(b"[]".to_vec())));
        for text in [
            "",
            "{}",
            "[]",
            &answer(json!(null)),
            &answer(json!({"uid": "x", "allowed": true})),
            &answer(json!({"uid": "u", "allowed": true, "patch": "W10="})),
            &answer(json!({"uid": "u", "allowed": true, "patch": "%", "patchType": "JSONPatch"})),
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
